//! advect's ops and the VAE decoder against candle's own, in turn, by wall and by processor time, on the CPU or,
//! built with the feature `cuda`, on the first CUDA device:
//!
//!     RAYON_NUM_THREADS=2 cargo bench -p advect-candle
//!     cargo bench -p advect-candle --features cuda

#[path = "../vae.rs"]
#[allow(dead_code)]
mod example;

use advect::ops::{Activation, Attention, Coefficients, Conv, Norm, NormKind, Step};
use advect_candle::{ConvInputs, NormInputs, attention, conv, norm, step};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::{Module, VarBuilder, VarMap};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};
use std::time::{Duration, Instant};

/// Seconds of processor time that the process has used, all threads together.
fn processor() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

type Run<'a> = Box<dyn Fn() -> Result<Tensor> + 'a>;

/// Seconds by the clock and of the processor that one of `count` runs takes. They are launched one after another,
/// and the device is waited for once.
fn time(device: &Device, run: &Run<'_>, count: u32) -> Result<[f64; 2]> {
    let (wall, cpu) = (Instant::now(), processor());
    for _ in 0..count {
        run()?;
    }
    device.synchronize()?;
    Ok([wall.elapsed().as_secs_f64(), processor() - cpu].map(|s| s / f64::from(count)))
}

/// Prints the best of many runs of each, taken in turn: milliseconds by the clock and of the processor.
fn compare(device: &Device, name: &str, ours: Run<'_>, theirs: &[(&str, Run<'_>)]) -> Result<()> {
    let runs: Vec<(&str, &Run<'_>)> =
        [("", &ours)].into_iter().chain(theirs.iter().map(|(n, r)| (*n, r))).collect();
    let mut counts = Vec::new();
    for (_, run) in &runs {
        time(device, run, 1)?; // Which compiles on CUDA.
        let [once, _] = time(device, run, 1)?;
        // On CUDA enough for the wait to be little of it.
        counts.push(if device.is_cpu() { 1 } else { (5e-3 / once).clamp(1.0, 200.0) as u32 });
    }
    let most = if device.is_cpu() { Duration::from_secs(6) } else { Duration::from_secs(1) };
    let mut best = vec![[f64::INFINITY; 2]; runs.len()];
    let begin = Instant::now();
    for round in 0.. {
        for (((_, run), count), best) in runs.iter().zip(&counts).zip(&mut best) {
            let took = time(device, run, *count)?;
            *best = [best[0].min(took[0]), best[1].min(took[1])];
        }
        if round >= 4 && begin.elapsed() > most {
            break;
        }
    }
    let ms = |s: f64| s * 1e3;
    for (i, (variant, _)) in runs.iter().enumerate().skip(1) {
        println!(
            "| {name} | {:.3} | {:.3} | {variant} | {:.3} | {:.3} | {:.2} | {:.2} |",
            ms(best[0][0]),
            ms(best[0][1]),
            ms(best[i][0]),
            ms(best[i][1]),
            best[i][0] / best[0][0],
            best[i][1] / best[0][1],
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    let device = Device::cuda_if_available(0)?;
    println!("{:?}, threads: {}", device.location(), candle_core::utils::get_num_threads());
    println!("| case | ours | cpu | candle | theirs | cpu | ratio | cpu ratio |");
    println!("|---|---|---|---|---|---|---|---|");
    let dtypes = if device.is_cpu() { &[DType::F32][..] } else { &[DType::F32, DType::F16] };
    for &dtype in dtypes {
        ops(&device, dtype)?;
        vae(&device, dtype)?;
    }
    Ok(())
}

/// The cases of single ops.
fn ops(device: &Device, dtype: DType) -> Result<()> {
    let random = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, device)?.to_dtype(dtype);
    let compare = |name: &str, ours: Run<'_>, theirs: &[(&str, Run<'_>)]| {
        compare(device, &format!("{}_{name}", dtype.as_str()), ours, theirs)
    };

    for (name, shape, nk) in
        [("attn_sd_2x8x1024x40", [2, 8, 1024, 40], 1024), ("attn_cross_1x8x4096x77x40", [1, 8, 4096, 40], 77)]
    {
        let [b, h, _, d] = shape;
        let (q, k, v) = (random(&shape)?, random(&[b, h, nk, d])?, random(&[b, h, nk, d])?);
        let op = Attention::new(d);
        let scale = f64::from(op.softmax_scale);
        let theirs = || candle_nn::ops::softmax_last_dim(&(q.matmul(&k.t()?)? * scale)?)?.matmul(&v);
        // Which takes (b, n, h, d).
        let [q_, k_, v_] = [&q, &k, &v].map(|t| t.transpose(1, 2).and_then(|t| t.contiguous()));
        let (q_, k_, v_) = (q_?, k_?, v_?);
        let flash = || flash_attn::<f32>(&q_, &k_, &v_, op.softmax_scale, AttnMask::None, None, None);
        let ours = || attention(op, &q, &k, &v);
        let mut others: Vec<(&str, Run<'_>)> = vec![("matmul, softmax", Box::new(theirs))];
        // candle_nn's is of the CPU.
        if device.is_cpu() {
            others.push(("flash_attn", Box::new(flash)));
        }
        compare(name, Box::new(ours), &others)?;
    }

    for (name, shape, o, k) in [
        ("conv3x3_1x320x64x64_320", [1, 320, 64, 64], 320, 3),
        ("conv3x3_16x64x28x28_64", [16, 64, 28, 28], 64, 3),
        ("conv1x1_1x320x64x64_320", [1, 320, 64, 64], 320, 1),
    ] {
        let (x, weight, bias) = (random(&shape)?, random(&[o, shape[1], k, k])?, random(&[o])?);
        let config = candle_nn::Conv2dConfig { padding: k / 2, ..Default::default() };
        let layer = candle_nn::Conv2d::new(weight.clone(), Some(bias.clone()), config);
        let op = Conv { padding: [k / 2; 2], activation: Activation::Silu, ..Conv::default() };
        let inputs =
            ConvInputs { x: &x, weight: &weight, bias: Some(&bias), sample_bias: None, residual: None };
        let theirs: Run<'_> = Box::new(|| layer.forward(&x)?.silu());
        compare(
            &format!("{name}, bias, SiLU"),
            Box::new(move || conv(op, inputs)),
            &[("Conv2d, silu", theirs)],
        )?;
    }

    let (x, weight, bias) = (random(&[1, 320, 64, 64])?, random(&[320])?, random(&[320])?);
    let layer = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), 320, 32, 1e-5)?;
    let op = Norm { kind: NormKind::Group { groups: 32 }, eps: 1e-5, activation: Activation::Silu };
    let inputs = NormInputs { x: &x, weight: Some(&weight), bias: Some(&bias), scale: None, shift: None };
    let theirs: Run<'_> = Box::new(|| layer.forward(&x)?.silu());
    compare("gn_silu_1x320x64x64_g32", Box::new(move || norm(op, inputs)), &[("GroupNorm, silu", theirs)])?;

    // DPM-Solver++ (2M) with classifier-free guidance: the state, two evaluations and one of history.
    let buffers = [0; 4].map(|_| random(&[4, 4, 256, 1024]));
    let [x, cond, uncond, past] = &buffers.map(|b| b.expect("memory"));
    let c = [0.9f32, -0.6, 0.2, 0.1];
    let mut values = [0.0; 8];
    values[..4].copy_from_slice(&c);
    let op = Step { coefficients: Coefficients::Values { x: values, noise: 0.0 }, noise: None };
    let c = c.map(f64::from);
    let theirs = || (((x * c[0])? + (cond * c[1])?)? + (uncond * c[2])?)? + (past * c[3])?;
    let ours = || step(op, &[x, cond, uncond, past]);
    compare("dpmpp2m_cfg_4M", Box::new(ours), &[("mul, add", Box::new(theirs))])
}

/// Stable Diffusion 1.5's own sizes, for an image of 128 x 128, or 512 x 512 on CUDA.
fn vae(device: &Device, dtype: DType) -> Result<()> {
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        ..Default::default()
    };
    let weights = VarMap::new();
    let f32 = VarBuilder::from_varmap(&weights, DType::F32, device);
    AutoEncoderKL::new(f32, 3, 3, config.clone())?; // Which draws them.
    let weights = weights.data().lock().expect("no panic").clone();
    let weights = weights.iter().map(|(name, w)| Ok((name.clone(), w.to_dtype(dtype)?)));
    let vb = VarBuilder::from_tensors(weights.collect::<Result<_>>()?, dtype, device);
    let theirs = AutoEncoderKL::new(vb.clone(), 3, 3, config.clone())?;
    let ours = example::Decoder::new(vb, &config)?;

    let size = if device.is_cpu() { 16 } else { 64 };
    let latents = Tensor::randn(0f32, 1f32, (1, 4, size, size), device)?.to_dtype(dtype)?;
    let largest = |t: &Tensor| t.to_dtype(DType::F32)?.abs()?.max_all()?.to_scalar::<f32>();
    let image = ours.decode(&latents)?;
    let apart = largest(&(theirs.decode(&latents)? - &image)?)?;
    println!("largest difference of the decoders {apart:e}, largest element {}", largest(&image)?);
    let candles: Run<'_> = Box::new(|| theirs.decode(&latents));
    let name = format!("{}_vae_decode_sd15_{side}x{side}", dtype.as_str(), side = 8 * size);
    compare(device, &name, Box::new(|| ours.decode(&latents)), &[("AutoEncoderKL", candles)])
}
