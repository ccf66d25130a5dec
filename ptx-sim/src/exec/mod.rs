//! Executes decoded kernels: one block at a time on a thread, one warp at a time in a block.

#![allow(clippy::too_many_arguments, reason = "functions take the fields of one instruction")]
#![allow(clippy::needless_range_loop, reason = "a lane indexes several arrays, and inputs that are computed")]

pub(crate) mod arith;
mod barrier;
pub(crate) mod block;
mod convert;
pub(crate) mod findings;
pub(crate) mod fp;
pub(crate) mod global;
mod matrix;
mod mem;
mod shared;
mod step;
mod value;
mod warp;
mod warpwide;

use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use crate::ir::Function;
use crate::memory::Gpu;

/// What is the same for all blocks of a launch.
pub(crate) struct LaunchCx<'l> {
    pub(crate) functions: &'l [Function],
    pub(crate) kernel: u32,
    pub(crate) gpu: &'l Gpu,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) params: &'l [u8],
    /// Where the dynamic shared memory starts, its size, and all variables including it.
    pub(crate) dynamic_base: u32,
    pub(crate) dynamic_bytes: u32,
    pub(crate) static_bytes: u32,
    pub(crate) shared_vars: &'l [(u32, u32)],
    pub(crate) shared_end: u32,
    pub(crate) shared_cell: u32,
    pub(crate) global_cell: u32,
    /// Local memory that a thread may use, in bytes.
    pub(crate) local_limit: u32,
    pub(crate) step_limit: u64,
    pub(crate) max_findings: usize,
    pub(crate) schedule: crate::Schedule,
    pub(crate) stop: &'l AtomicBool,
    pub(crate) uses_fences: bool,
    pub(crate) releases: &'l global::Releases,
    /// Where a block has come to a call of a function without a body.
    pub(crate) missing: &'l OnceLock<(u32, u32)>,
}
