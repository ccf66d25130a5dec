//! A whole model of candle-transformers, whose pieces the example replaces: judged by candle's own graph in f64.

mod devices;
#[path = "../vae.rs"]
#[allow(dead_code)] // Its `main`.
mod example;

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use devices::everywhere;

#[test]
fn the_example_runs() -> Result<()> {
    everywhere().iter().try_for_each(example::compare)
}

#[test]
fn the_decoder_is_as_exact_as_candles_own() -> Result<()> {
    everywhere().iter().try_for_each(judge_decoder)
}

/// On a device, by the result in f64 on the CPU.
fn judge_decoder(device: &Device) -> Result<()> {
    let (single, double) = (VarMap::new(), VarMap::new());
    let vb = VarBuilder::from_varmap(&single, DType::F32, device);
    let vb64 = VarBuilder::from_varmap(&double, DType::F64, &Device::Cpu);
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![16, 24, 40],
        layers_per_block: 1,
        norm_num_groups: 8,
        ..Default::default()
    };
    let theirs = AutoEncoderKL::new(vb.clone(), 3, 3, config.clone())?;
    let exact = AutoEncoderKL::new(vb64, 3, 3, config.clone())?;
    {
        // The same weights in both, and norms that are not the identity.
        let (single, double) = (single.data().lock().unwrap(), double.data().lock().unwrap());
        for (name, var) in single.iter() {
            if name.contains("norm") {
                let around = if name.ends_with("weight") { 1f32 } else { 0f32 };
                var.set(&Tensor::randn(around, 0.3f32, var.shape(), device)?)?;
            }
            double[name].set(&var.to_device(&Device::Cpu)?.to_dtype(DType::F64)?)?;
        }
    }
    let ours = example::Decoder::new(vb, &config)?;

    // Latents of odd sizes, transposed.
    let latents = Tensor::randn(0f32, 1f32, (2, 4, 5, 7), device)?.transpose(2, 3)?;
    let double = |t: &Tensor| t.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous();
    let exact = exact.decode(&double(&latents)?)?;
    let error = |image: Tensor| -> Result<f64> {
        assert_eq!(image.dims(), [2, 3, 28, 20]);
        (double(&image)? - &exact)?.sqr()?.mean_all()?.sqrt()?.to_scalar()
    };
    let (theirs, ours) = (error(theirs.decode(&latents)?)?, error(ours.decode(&latents)?)?);
    let size: f64 = exact.sqr()?.mean_all()?.sqrt()?.to_scalar()?;
    println!(
        "{:?}: of {size:.2}, candle's f32 is off by {theirs:.1e} and advect's by {ours:.1e}",
        device.location()
    );
    assert!(size > 0.1 && theirs < 1e-5 * size);
    // Both add the same numbers in orders of their own: neither may be much the worse.
    assert!(ours <= 1.5 * theirs, "advect is off by {ours:e}, candle by {theirs:e}");
    Ok(())
}
