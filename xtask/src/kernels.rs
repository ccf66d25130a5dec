//! The compile matrix: the CUDA kernels for every architecture, on a machine without a GPU.

use crate::step;
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// Compiles the kernels with the NVRTC in a folder, and prints registers, shared memory and spills; a spill is a failure.
/// `command` is the program, `options` say what is left out or kept.
pub(crate) fn kernels(mut command: Command, nvrtc: &Path, options: &[&str]) -> Result<()> {
    command.arg("kernels").args(options);
    step::run(command.env("ADVECT_NVRTC", nvrtc).env("ADVECT_CACHE_DIR", step::kernel_cache()))
}
