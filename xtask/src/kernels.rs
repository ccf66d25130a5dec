//! The compile matrix: the CUDA kernels for every architecture, on a machine without a GPU.

use crate::step;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Compiles the kernels (`all` of them, or a cover) with the NVRTC in a folder, and prints registers, shared
/// memory and spills; a spill is a failure. `command` is the program.
pub(crate) fn kernels(mut command: Command, nvrtc: &Path, all: bool) -> Result<()> {
    command.arg("kernels");
    if !all {
        command.arg("--cover");
    }
    step::run(command.env("ADVECT_NVRTC", nvrtc).env("ADVECT_CACHE_DIR", step::kernel_cache()))
}

/// Compiles what the simulators of the tests will run, on all cores: the tests find it in the cache, and would
/// otherwise compile one kernel after the other.
pub(crate) fn simulated(mut command: Command, nvrtc: &Path) -> Result<()> {
    command
        .args(["kernels", "--emit", "ptx", "--arch", "75,80,100a", "--out"])
        .arg(step::target().join("ptx"));
    step::run(command.env("ADVECT_NVRTC", nvrtc).env("ADVECT_CACHE_DIR", step::kernel_cache()))
}
