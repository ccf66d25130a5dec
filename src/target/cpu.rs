//! The CPU: threads, instruction set, and direct calls of the kernels in `src/cpu/`.

use crate::cpu::simd::Isa;
use crate::error::{Error, Result};
use crate::op::{self, Op};
use std::sync::Arc;

/// Threads and instruction set that the CPU kernels run with. Cheap to clone.
#[derive(Clone)]
pub struct Cpu {
    /// None: whatever pool the calling thread belongs to.
    pool: Option<Arc<rayon::ThreadPool>>,
    isa: Isa,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cpu").field("threads", &self.threads()).field("isa", &self.isa).finish()
    }
}

impl Cpu {
    /// All cores and the widest instruction set.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the threads cannot be started.
    pub fn new() -> Result<Self> {
        Self::with(0, Isa::detect())
    }

    /// `threads` threads (0: one a core) and an instruction set that the machine has.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the machine lacks the instruction set or the threads cannot be started.
    pub fn with(threads: usize, isa: Isa) -> Result<Self> {
        let unavailable =
            |why: String, remedy: &str| Error::Unavailable { target: "cpu", why, remedy: remedy.into() };
        if !Isa::available().contains(&isa) {
            let why = format!("this machine has no {}", isa.name());
            return Err(unavailable(why, "use Isa::detect()"));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("advect-{i}"))
            .build()
            .map_err(|e| unavailable(e.to_string(), "ask for fewer threads"))?;
        Ok(Self { pool: Some(Arc::new(pool)), isa })
    }

    /// No threads of its own: work is spread over the rayon pool that the calling thread belongs to, which is the
    /// global one outside of any. For hosts that have a pool already: two pools would fight over the cores, and the
    /// host's limit on threads would not hold.
    ///
    /// ```
    /// use advect::{Cpu, Dtype, Tensor, Device, ops::{Resample, ResampleArgs}};
    /// let host = rayon::ThreadPoolBuilder::new().num_threads(2).build()?;
    /// let device = Device::Cpu(Cpu::in_callers_pool());
    /// let x = Tensor::new(&device, Dtype::F32, &[1, 1, 2, 2])?;
    /// let mut out = Tensor::new(&device, Dtype::F32, &[1, 1, 4, 4])?;
    /// host.install(|| device.run(&Resample::Up2, ResampleArgs { x: x.view(), out: out.view_mut() }))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn in_callers_pool() -> Self {
        Self { pool: None, isa: Isa::detect() }
    }

    /// How many threads the kernels use: in the caller's pool, as many as that has.
    pub fn threads(&self) -> usize {
        self.pool.as_ref().map_or_else(rayon::current_num_threads, |pool| pool.current_num_threads())
    }

    /// The instruction set the kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Validates and runs one op on host slices; returns when the outputs are written.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Limit`], or [`Error::Driver`] when the host has no memory for what the op needs beside
    /// its operands; the outputs are then untouched.
    pub fn run<T: Op>(&self, op: &T, args: T::Args<&[u8], &mut [u8]>) -> Result<()> {
        let (params, _) = op::prepare(op, &args)?;
        // SAFETY: the params were made from these arguments, two lines up.
        unsafe { op.cpu(&params, args, self) }
    }

    /// Calls `work` for each of `0..count`, spread over the threads. Returns when all are done.
    pub(crate) fn each(&self, count: usize, work: impl Fn(usize) + Sync + Send) {
        use rayon::prelude::*;
        if count <= 1 || self.threads() == 1 {
            return (0..count).for_each(work);
        }
        let spread = || (0..count).into_par_iter().with_max_len(1).for_each(work);
        match &self.pool {
            Some(pool) => pool.install(spread),
            None => spread(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    /// The names of the threads that work is spread over.
    fn workers(cpu: &Cpu) -> BTreeSet<String> {
        let names = Mutex::new(BTreeSet::new());
        cpu.each(500, |_| {
            std::thread::sleep(std::time::Duration::from_micros(50));
            let name = std::thread::current().name().unwrap_or_default().to_owned();
            names.lock().unwrap().insert(name);
        });
        names.into_inner().unwrap()
    }

    #[test]
    fn work_stays_in_the_callers_pool() {
        let host = rayon::ThreadPoolBuilder::new()
            .num_threads(3)
            .thread_name(|i| format!("host-{i}"))
            .build()
            .unwrap();
        let cpu = Cpu::in_callers_pool();
        let (threads, names) = host.install(|| (cpu.threads(), workers(&cpu)));
        assert_eq!(threads, 3);
        assert!(names.iter().all(|n| n.starts_with("host-")) && names.len() <= 3, "{names:?}");
    }

    #[test]
    fn a_limit_on_threads_holds() {
        for threads in [1, 2] {
            let cpu = Cpu::with(threads, Isa::detect()).unwrap();
            assert_eq!(cpu.threads(), threads);
            assert!(workers(&cpu).len() <= threads);
        }
    }
}
