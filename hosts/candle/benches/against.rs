//! advect's ops and the VAE decoder against candle's own, in turn, by wall and by processor time:
//!
//!     RAYON_NUM_THREADS=2 cargo bench -p advect-candle

#[path = "../vae.rs"]
#[allow(dead_code)]
mod example;

use advect::ops::{Activation, Attention, Coefficients, Conv, Norm, NormKind, Step};
use advect_candle::{ConvInputs, NormInputs, attention, conv, norm, step};
use candle_core::{D, DType, Device, Result, Tensor};
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

/// Prints the best of many runs of each, taken in turn: milliseconds by the clock and of the processor.
fn compare(name: &str, ours: Run<'_>, theirs: &[(&str, Run<'_>)]) -> Result<()> {
    let runs: Vec<(&str, &Run<'_>)> =
        [("", &ours)].into_iter().chain(theirs.iter().map(|(n, r)| (*n, r))).collect();
    let mut best = vec![[f64::INFINITY; 2]; runs.len()];
    let begin = Instant::now();
    for round in 0.. {
        for ((_, run), best) in runs.iter().zip(&mut best) {
            let (wall, cpu) = (Instant::now(), processor());
            run()?;
            let took = [wall.elapsed().as_secs_f64(), processor() - cpu];
            if round > 0 {
                *best = [best[0].min(took[0]), best[1].min(took[1])];
            }
        }
        if round >= 5 && begin.elapsed() > Duration::from_secs(6) {
            break;
        }
    }
    let ms = |s: f64| s * 1e3;
    for (i, (variant, _)) in runs.iter().enumerate().skip(1) {
        println!(
            "| {name} | {:.2} | {:.2} | {variant} | {:.2} | {:.2} | {:.2} | {:.2} |",
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
    let random = |shape: &[usize]| Tensor::randn(0f32, 1f32, shape, &Device::Cpu);
    println!("threads: {}", candle_core::utils::get_num_threads());
    println!("| case | ours | cpu | candle | theirs | cpu | ratio | cpu ratio |");
    println!("|---|---|---|---|---|---|---|---|");

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
        compare(
            name,
            Box::new(ours),
            &[("matmul, softmax", Box::new(theirs)), ("flash_attn", Box::new(flash))],
        )?;
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
    compare("dpmpp2m_cfg_4M", Box::new(ours), &[("mul, add", Box::new(theirs))])?;

    // Stable Diffusion 1.5's own sizes, for an image of 128 x 128.
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu);
    let config = AutoEncoderKLConfig {
        block_out_channels: vec![128, 256, 512, 512],
        layers_per_block: 2,
        ..Default::default()
    };
    let theirs = AutoEncoderKL::new(vb.clone(), 3, 3, config.clone())?;
    let ours = example::Decoder::new(vb, &config)?;
    let latents = random(&[1, 4, 16, 16])?;
    let apart = (theirs.decode(&latents)? - ours.decode(&latents)?)?.abs()?.max_all()?.to_scalar::<f32>()?;
    let size = ours.decode(&latents)?.flatten_all()?.max(D::Minus1)?.to_scalar::<f32>()?;
    println!("largest difference of the decoders {apart:e}, largest element {size}");
    let candles: Run<'_> = Box::new(|| theirs.decode(&latents));
    compare("vae_decode_sd15_128x128", Box::new(|| ours.decode(&latents)), &[("AutoEncoderKL", candles)])
}
