//! The compile matrix: every CUDA kernel variant for every architecture, on a machine without a GPU.

use crate::{setup, step};
use anyhow::Result;

/// Compiles everything and prints registers, shared memory and spills; a spill is a failure.
pub(crate) fn kernels() -> Result<()> {
    let nvrtc = setup::nvrtc()?;
    step::run(step::cargo("run --quiet --package advect -- kernels").env("ADVECT_NVRTC", nvrtc))
}
