//! The compile matrix: the CUDA kernels for every architecture, on a machine without a GPU.

use crate::step;
use anyhow::Result;
use std::path::Path;

/// Compiles the kernels (`all` of them, or a cover) with the NVRTC in a folder, and prints registers, shared
/// memory and spills; a spill is a failure.
pub(crate) fn kernels(nvrtc: &Path, all: bool) -> Result<()> {
    let mut command = step::program("advect")?;
    command.arg("kernels");
    if !all {
        command.arg("--cover");
    }
    step::run(command.env("ADVECT_NVRTC", nvrtc).env("ADVECT_CACHE_DIR", step::kernel_cache()))
}

/// Compiles what the simulators of the tests will run, on all cores: the tests find it in the cache, and would
/// otherwise compile one kernel after the other.
pub(crate) fn simulated(nvrtc: &Path) -> Result<()> {
    let mut command = step::program("advect")?;
    command
        .args(["kernels", "--emit", "ptx", "--arch", "75,80,100a", "--out"])
        .arg(step::target().join("ptx"));
    step::run(command.env("ADVECT_NVRTC", nvrtc).env("ADVECT_CACHE_DIR", step::kernel_cache()))
}
