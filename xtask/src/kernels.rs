//! The compile matrix: the CUDA kernels for every architecture, on a machine without a GPU.

use crate::step;
use anyhow::Result;
use std::path::Path;

/// Compiles the kernels (`all` of them, or a cover) with the NVRTC in a folder, and prints registers, shared
/// memory and spills; a spill is a failure.
pub(crate) fn kernels(nvrtc: &Path, all: bool) -> Result<()> {
    let mut command = step::cargo("run --quiet --package advect --features ptx-sim -- kernels");
    if !all {
        command.arg("--cover");
    }
    step::run(command.env("ADVECT_NVRTC", nvrtc).env("ADVECT_CACHE_DIR", step::kernel_cache()))
}
