//! Where the tests run.

use candle_core::{Device, Result};

/// The CPU and, on a CUDA device, candle's default stream and one of its own. Without a device these are
/// skipped, unless `ADVECT_REQUIRE` names `cuda`.
pub(crate) fn everywhere() -> Vec<Device> {
    let says = |variable| std::env::var(variable).unwrap_or_default();
    let names = |variable, face| says(variable).split(',').any(|f| f == face);
    let mut all = vec![Device::Cpu];
    if says("ADVECT_FACES").is_empty() || names("ADVECT_FACES", "cuda") {
        match cuda() {
            Ok(found) => all.extend(found),
            Err(why) => {
                assert!(!names("ADVECT_REQUIRE", "cuda"), "ADVECT_REQUIRE asks for CUDA: {why}");
                eprintln!("skipped on CUDA: {why}");
            }
        }
    }
    all
}

fn cuda() -> Result<[Device; 2]> {
    Ok([Device::new_cuda(0)?, Device::new_cuda_with_stream(0)?])
}
