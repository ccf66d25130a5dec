//! The PTX simulator as a device: exactly the PTX that NVRTC makes of a kernel, with exactly the arguments
//! that a GPU would get, executed on the CPU under memory, race and barrier checks.
//!
//! It is for tests: correct, not fast. What the checks find comes back as [`Error::Driver`], naming kernel,
//! PTX line, block and thread.

use super::cuda::nvrtc::{Output, architecture};
use super::cuda::{Compiler, launch};
use super::presets;
use crate::error::{Error, Result};
use crate::op::{Caps, Op};
use crate::source::{self, Variant};
use crate::view::Memory;
use ptx_sim::{Counters, Gpu, Launch, Module, Schedule};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What one launch executed and moved.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The kernel's name in its file.
    pub kernel: &'static str,
    /// The counts, by the rules in the simulator's documentation.
    pub counters: Counters,
}

/// A simulated GPU of one architecture. Cheap to clone.
#[derive(Clone)]
pub struct PtxSim(Arc<Shared>);

struct Shared {
    arch: u32,
    caps: Caps,
    schedule: Option<Schedule>,
    compiler: Compiler,
    gpu: Mutex<Gpu>,
    modules: Mutex<HashMap<Variant, Arc<Module>>>,
    last: Mutex<Option<Launched>>,
}

impl std::fmt::Debug for PtxSim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PtxSim").field(&self.0.caps.name).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PtxSim {
    /// A GPU of architecture `arch` (75, 80, .., 120), whose warps and blocks run in the order of `schedule`. Without one it
    /// is for each kernel and grid the first, the last or a random warp that comes first: on each of
    /// [`SIMULATED`](presets::SIMULATED) another one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no NVRTC.
    pub fn new(arch: u32, schedule: Option<Schedule>) -> Result<Self> {
        let mut caps = presets::cuda_for(arch);
        // So few blocks along x that most grids are folded, with some blocks past the last: on hardware only calls
        // of more than 2^31 blocks are.
        caps.max_grid[0] = 3;
        caps.name = match schedule {
            None => format!("ptx-sim sm_{arch}"),
            Some(Schedule::FirstWarpFirst) => format!("ptx-sim sm_{arch} first-warp-first"),
            Some(Schedule::LastWarpFirst) => format!("ptx-sim sm_{arch} last-warp-first"),
            Some(Schedule::Random(seed)) => format!("ptx-sim sm_{arch} random-{seed}"),
        };
        Ok(Self(Arc::new(Shared {
            arch,
            caps,
            schedule,
            compiler: Compiler::new()?,
            gpu: Mutex::new(Gpu::new()),
            modules: Mutex::default(),
            last: Mutex::default(),
        })))
    }

    /// What the architecture can do.
    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    /// The last launch, when there was one since this was last asked.
    pub fn take_launch(&self) -> Option<Launched> {
        lock(&self.0.last).take()
    }

    fn failed(&self, call: &'static str, error: impl ToString) -> Error {
        Error::Driver { target: self.0.caps.name.clone(), call, message: error.to_string() }
    }

    /// Memory of `bytes` bytes. Reading a byte that was never written is a finding.
    pub fn alloc(&self, bytes: usize) -> Buffer {
        let address = lock(&self.0.gpu).alloc(bytes);
        Buffer { address, bytes, sim: self.clone() }
    }

    /// Overwrites a buffer from its start.
    ///
    /// # Errors
    /// [`Error::Driver`] when the bytes do not fit.
    pub fn write(&self, buffer: &mut Buffer, bytes: &[u8]) -> Result<()> {
        lock(&self.0.gpu).write(buffer.address, bytes).map_err(|e| self.failed("write", e))
    }

    /// Makes bytes of a buffer count as never written, so that a kernel that reads them is at fault.
    ///
    /// # Errors
    /// [`Error::Driver`] when they are not all in the buffer.
    pub fn forget(&self, buffer: &mut Buffer, bytes: Range<usize>) -> Result<()> {
        let at = buffer.address + bytes.start as u64;
        lock(&self.0.gpu).forget(at, bytes.len()).map_err(|e| self.failed("forget", e))
    }

    /// Reads a buffer from its start.
    ///
    /// # Errors
    /// [`Error::Driver`] when more is asked for than there is.
    pub fn read(&self, buffer: &Buffer, bytes: &mut [u8]) -> Result<()> {
        lock(&self.0.gpu).read(buffer.address, bytes).map_err(|e| self.failed("read", e))
    }

    /// Validates one op and runs it to its end.
    ///
    /// # Errors
    /// As on CUDA; [`Error::Driver`] with everything that the checks found.
    pub fn run<T: Op>(&self, op: &T, args: T::Args<Place, Place>) -> Result<()> {
        let (variant, launch) = launch::prepare(op, &args, self.caps())?;
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let module = self.module::<T>(&variant)?;
        let bytes = launch.arguments.bytes();
        let starts: Vec<usize> = launch.arguments.offsets().collect();
        let ends = starts.iter().skip(1).copied().chain([bytes.len()]);
        let params: Vec<&[u8]> = starts.iter().zip(ends).map(|(&start, end)| &bytes[start..end]).collect();
        let launch = Launch {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            params: &params,
            schedule: self.schedule(&variant, launch.grid),
            ..Launch::default()
        };
        let report = module
            .launch(&mut lock(&self.0.gpu), variant.entry, &launch)
            .map_err(|e| self.failed("launch", format!("{e}\nschedule: {:?}", launch.schedule)))?;
        *lock(&self.0.last) = Some(Launched { kernel: variant.entry, counters: report.counters });
        Ok(())
    }

    fn schedule(&self, variant: &Variant, grid: [u32; 3]) -> Schedule {
        self.0.schedule.unwrap_or_else(|| {
            let mut hasher = DefaultHasher::new();
            (variant, grid).hash(&mut hasher);
            let seed = hasher.finish() >> 8;
            let turn = presets::SIMULATED.iter().position(|&arch| arch == self.0.arch).unwrap_or(0);
            match (seed as usize + turn) % 3 {
                0 => Schedule::FirstWarpFirst,
                1 => Schedule::LastWarpFirst,
                _ => Schedule::Random(seed),
            }
        })
    }

    /// The module of a variant, compiled and decoded at its first use.
    fn module<T: Op>(&self, variant: &Variant) -> Result<Arc<Module>> {
        let mut modules = lock(&self.0.modules);
        if let Some(module) = modules.get(variant) {
            return Ok(module.clone());
        }
        let text = source::source::<T>(&variant.signature, &variant.consts, self.0.caps.language);
        let ptx = self.0.compiler.compile(T::NAME, &text, &architecture(self.0.arch), Output::Ptx)?.bytes;
        let ptx = relative(&String::from_utf8_lossy(&ptx));
        let module = Module::parse(&ptx).map_err(|e| self.failed("parse", e))?;
        let module = Arc::new(module);
        modules.insert(variant.clone(), module.clone());
        Ok(module)
    }
}

/// PTX whose line information names `kernels/conv.cu`, as the source does: NVRTC puts the folder before it
/// that the process ran in.
fn relative(ptx: &str) -> String {
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.split_inclusive('\n') {
        match (line.trim_start().starts_with(".file"), line.find('"'), line.find("/kernels/")) {
            (true, Some(open), Some(at)) => {
                out += &line[..=open];
                out += &line[at + 1..];
            }
            _ => out += line,
        }
    }
    out
}

/// Memory of a simulated GPU, freed when this is dropped.
#[derive(Debug)]
pub struct Buffer {
    address: u64,
    bytes: usize,
    sim: PtxSim,
}

impl Buffer {
    /// Its size in bytes.
    pub fn byte_len(&self) -> usize {
        self.bytes
    }

    /// Where it is. A launch that uses it after it was dropped is a finding.
    pub fn place(&self) -> Place {
        Place { address: self.address, bytes: self.bytes as u64 }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // Allocated in `alloc` and freed only here, so it cannot be refused.
        let _ = lock(&self.sim.0.gpu).free(self.address);
    }
}

/// A range of simulated memory: what arguments are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    address: u64,
    bytes: u64,
}

/// The address space of simulated memory, apart from the host's and CUDA's.
const SPACE: u64 = u64::MAX - 3;

impl Memory for Place {
    fn byte_len(&self) -> u64 {
        self.bytes
    }
    fn place(&self) -> (u64, u64) {
        (SPACE, self.address)
    }
}
