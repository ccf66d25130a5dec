//! The CPU: threads, instruction set, and direct calls of the kernels in `src/cpu/`.

use crate::cpu::simd::Isa;
use crate::error::{Error, Result};
use crate::op::{self, Op};
use std::sync::Arc;

/// Threads and instruction set that the CPU kernels run with. Cheap to clone.
#[derive(Clone)]
pub struct Cpu {
    pool: Arc<rayon::ThreadPool>,
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
        Ok(Self { pool: Arc::new(pool), isa })
    }

    /// How many threads the kernels use.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }

    /// The instruction set the kernels use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Validates and runs one op on host slices; returns when the outputs are written.
    ///
    /// # Errors
    /// [`Error::Argument`] or [`Error::Limit`]; the outputs are then untouched.
    pub fn run<T: Op>(&self, op: &T, args: T::Args<&[u8], &mut [u8]>) -> Result<()> {
        let (params, _) = op::prepare(op, &args)?;
        // SAFETY: the params were made from these arguments, two lines up.
        unsafe { op.cpu(&params, args, self) };
        Ok(())
    }

    /// Calls `work` for each of `0..count`, spread over the threads. Returns when all are done.
    pub(crate) fn each(&self, count: usize, work: impl Fn(usize) + Sync + Send) {
        use rayon::prelude::*;
        if count <= 1 || self.threads() == 1 {
            return (0..count).for_each(work);
        }
        self.pool.install(|| (0..count).into_par_iter().with_max_len(1).for_each(work));
    }
}
