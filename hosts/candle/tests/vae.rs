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
    let (single, on_cpu, double) = (VarMap::new(), VarMap::new(), VarMap::new());
    let vb = VarBuilder::from_varmap(&single, DType::F32, device);
    let vb_cpu = VarBuilder::from_varmap(&on_cpu, DType::F32, &Device::Cpu);
    let vb64 = VarBuilder::from_varmap(&double, DType::F64, &Device::Cpu);
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![16, 24, 40],
        layers_per_block: 1,
        norm_num_groups: 8,
        ..Default::default()
    };
    let theirs = AutoEncoderKL::new(vb.clone(), 3, 3, config.clone())?;
    let theirs_on_cpu = AutoEncoderKL::new(vb_cpu, 3, 3, config.clone())?;
    let exact = AutoEncoderKL::new(vb64, 3, 3, config.clone())?;
    {
        // The same weights in all, and norms that are not the identity.
        let (single, double) = (single.data().lock().unwrap(), double.data().lock().unwrap());
        let on_cpu = on_cpu.data().lock().unwrap();
        for (name, var) in single.iter() {
            if name.contains("norm") {
                let around = if name.ends_with("weight") { 1f32 } else { 0f32 };
                var.set(&Tensor::randn(around, 0.3f32, var.shape(), device)?)?;
            }
            on_cpu[name].set(&var.to_device(&Device::Cpu)?)?;
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
    let ours = error(ours.decode(&latents)?)?;
    let theirs_on_cpu = error(theirs_on_cpu.decode(&latents.to_device(&Device::Cpu)?)?)?;
    let theirs = error(theirs.decode(&latents)?)?;
    let size: f64 = exact.sqr()?.mean_all()?.sqrt()?.to_scalar()?;
    println!(
        "{:?}: of {size:.2}, candle's f32 is off by {theirs:.1e} ({theirs_on_cpu:.1e} on the CPU) and advect's by {ours:.1e}",
        device.location()
    );
    assert!(size > 0.1 && theirs < 1e-5 * size);
    // advect adds the terms of a convolution one after the other on every device, as candle does on the CPU: neither may be
    // much the worse. On a GPU candle's products are cuBLAS's, which may part a sum among blocks and then errs less.
    assert!(ours <= 1.5 * theirs_on_cpu, "advect is off by {ours:e}, candle on the CPU by {theirs_on_cpu:e}");
    Ok(())
}
