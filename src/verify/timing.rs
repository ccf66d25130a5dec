//! How long a launch takes, as benches and `advect bench` measure it.

use crate::error::Result;
use crate::tensor::Device;
use std::time::Instant;

/// The times of repeated launches.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// Median in milliseconds: what to quote on an idle machine.
    pub ms: f64,
    /// Best in milliseconds: what to compare on a shared one.
    pub ms_min: f64,
    /// Timed runs.
    pub n: usize,
}

/// Times `launch` until `budget` seconds are spent, at least three times. Every sample waits for the
/// device; short launches are timed in batches, so that the wait does not dominate: samples of at least 0.2 ms
/// on the CPU, and of 3 ms elsewhere, where waiting takes tens of microseconds.
///
/// # Errors
/// The first error of `launch` or of the device.
pub fn time(device: &Device, budget: f64, mut launch: impl FnMut() -> Result<()>) -> Result<Timing> {
    let mut sample = |count: usize| -> Result<f64> {
        let start = Instant::now();
        for _ in 0..count {
            launch()?;
        }
        device.synchronize()?;
        Ok(start.elapsed().as_secs_f64() * 1e3 / count as f64)
    };
    // The first launch compiles; the second tells how many a sample should hold.
    sample(1)?;
    let once = sample(1)?;
    let least = if device.face() == "cpu" { 0.2 } else { 3.0 };
    let batch = (least / once.max(1e-5)).ceil().clamp(1.0, 1000.0) as usize;
    let start = Instant::now();
    let mut all = Vec::new();
    while all.len() < 3 || (start.elapsed().as_secs_f64() < budget && all.len() < 10_000) {
        all.push(sample(batch)?);
    }
    all.sort_by(f64::total_cmp);
    Ok(Timing { ms: all[all.len() / 2], ms_min: all[0], n: all.len() })
}
