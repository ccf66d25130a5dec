//! advect's ops against burn's own, in turn, on Flex and on the wgpu device that burn opens:
//!
//!     RAYON_NUM_THREADS=2 cargo bench -p advect-burn --features wgpu

use advect::ops::{Activation, Attention, Coefficients, Conv, Norm, NormKind, Step};
use advect_burn::{Advect, ConvInputs, NormInputs};
use burn::nn::GroupNormConfig;
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{Device, Distribution, Tensor, activation, module};
use std::time::{Duration, Instant};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Computes something and returns it, not waited for.
type Run<'a> = Box<dyn Fn() -> Result<Tensor<4>> + 'a>;

/// Where the ops run, and how large their cases are: software GPUs get small ones.
struct Place {
    name: &'static str,
    device: Device,
    advect: Advect,
    small: bool,
}

/// Milliseconds that one run takes, which is waited for.
fn time(device: &Device, run: &Run<'_>) -> Result<f64> {
    let start = Instant::now();
    let out = run()?;
    device.sync()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    drop(out);
    Ok(took)
}

/// Prints the best of many runs of each, taken in turn, and how far their results are apart.
fn compare(place: &Place, name: &str, ours: Run<'_>, theirs: &[(&str, Run<'_>)]) -> Result<()> {
    let Place { device, .. } = place;
    let at_home = |run: &Run<'_>| Ok::<_, Box<dyn std::error::Error>>(run()?.to_device(&Device::flex()));
    // The first run of each compiles and tunes.
    let result = at_home(&ours)?;
    let size: f32 = result.clone().abs().max().into_scalar();
    let apart = theirs.iter().map(|(_, run)| {
        let apart: f32 = (at_home(run)? - result.clone()).abs().max().into_scalar();
        Ok(apart / size)
    });
    let apart = apart.collect::<Result<Vec<f32>>>()?;
    let mut best = vec![f64::INFINITY; 1 + theirs.len()];
    let begin = Instant::now();
    for round in 0.. {
        for (run, best) in [&ours].into_iter().chain(theirs.iter().map(|(_, r)| r)).zip(&mut best) {
            *best = best.min(time(device, run)?);
        }
        if round >= 4 && begin.elapsed() > Duration::from_secs(4) {
            break;
        }
    }
    for (((variant, _), theirs), apart) in theirs.iter().zip(&best[1..]).zip(apart) {
        let (ours, ratio) = (best[0], theirs / best[0]);
        println!(
            "| {} | {name} | {ours:.3} | {variant} | {theirs:.3} | {ratio:.2} | {apart:.0e} |",
            place.name
        );
    }
    Ok(())
}

fn main() -> Result<()> {
    println!("| device | case | ours, ms | burn's | ms | ratio | apart |\n|---|---|---|---|---|---|---|");
    let advect = Advect::cpu();
    ops(&Place { name: "flex", device: Device::flex(), advect: advect.clone(), small: false })?;
    #[cfg(feature = "wgpu")]
    on_wgpu(advect)?;
    Ok(())
}

#[cfg(feature = "wgpu")]
fn on_wgpu(advect: Advect) -> Result<()> {
    use burn::tensor::wgpu::MemoryConfiguration;
    if advect::target::wgpu::adapters().is_empty() {
        println!("no adapter for wgpu");
        return Ok(());
    }
    let options = Device::wgpu_options().memory_config(MemoryConfiguration::ExclusivePages);
    let (device, setup) = options.init_with_setup()?;
    let info = setup.adapter.get_info();
    println!("wgpu is {} ({})", info.name, info.backend);
    let small = info.device_type == burn::backend::wgpu::wgpu::DeviceType::Cpu;
    ops(&Place { name: "wgpu", advect: advect.wgpu(&device, &setup), device, small })
}

fn ops(place: &Place) -> Result<()> {
    attentions(place)?;
    convolutions(place)?;
    norms(place)?;
    steps(place)
}

fn random<const D: usize>(place: &Place, shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &place.device)
}

fn attentions(place: &Place) -> Result<()> {
    let cases: &[(&str, [usize; 4], usize)] = match place.small {
        false => &[
            ("attn_sd_2x8x1024x40", [2, 8, 1024, 40], 1024),
            ("attn_cross_1x8x4096x77x40", [1, 8, 4096, 40], 77),
        ],
        true => {
            &[("attn_1x4x256x40", [1, 4, 256, 40], 256), ("attn_cross_1x4x512x77x40", [1, 4, 512, 40], 77)]
        }
    };
    for &(name, [b, h, n, d], nk) in cases {
        let (q, k, v) =
            (random(place, [b, h, n, d]), random(place, [b, h, nk, d]), random(place, [b, h, nk, d]));
        let op = Attention::new(d);
        let parts = || (q.clone(), k.clone(), v.clone());
        let ours = || {
            let (q, k, v) = parts();
            Ok(place.advect.attention(op, q, k, v)?)
        };
        let own = || {
            let (q, k, v) = parts();
            Ok(module::attention(q, k, v, None, None, AttentionModuleOptions::default()))
        };
        let composed = || {
            let (q, k, v) = parts();
            Ok(activation::softmax(q.matmul(k.transpose()) * op.softmax_scale, 3).matmul(v))
        };
        let theirs: [(&str, Run<'_>); 2] =
            [("attention", Box::new(own)), ("matmul, softmax", Box::new(composed))];
        compare(place, name, Box::new(ours), &theirs)?;
    }
    Ok(())
}

fn convolutions(place: &Place) -> Result<()> {
    let cases: &[(&str, [usize; 4], usize, usize)] = match place.small {
        false => &[
            ("conv3x3_1x320x64x64_320", [1, 320, 64, 64], 320, 3),
            ("conv3x3_16x64x28x28_64", [16, 64, 28, 28], 64, 3),
            ("conv1x1_1x320x64x64_320", [1, 320, 64, 64], 320, 1),
        ],
        true => &[
            ("conv3x3_1x64x32x32_64", [1, 64, 32, 32], 64, 3),
            ("conv1x1_1x64x32x32_64", [1, 64, 32, 32], 64, 1),
        ],
    };
    for &(name, shape, o, size) in cases {
        let x = random(place, shape);
        let (weight, bias) = (random(place, [o, shape[1], size, size]), random(place, [o]));
        let padding = [size / 2; 2];
        let op = Conv { padding, activation: Activation::Silu, ..Conv::default() };
        let inputs = ConvInputs {
            x: x.clone(),
            weight: weight.clone(),
            bias: Some(bias.clone()),
            sample_bias: None,
            residual: None,
        };
        let ours = || Ok(place.advect.conv(op, inputs.clone())?);
        let theirs = || {
            let options = ConvOptions::new([1; 2], padding, [1; 2], 1);
            Ok(activation::silu(module::conv2d(x.clone(), weight.clone(), Some(bias.clone()), options)))
        };
        let name = format!("{name}, bias, SiLU");
        compare(place, &name, Box::new(ours), &[("conv2d, silu", Box::new(theirs))])?;
    }
    Ok(())
}

fn norms(place: &Place) -> Result<()> {
    let (name, shape) = match place.small {
        false => ("gn_silu_1x320x64x64_g32", [1, 320, 64, 64]),
        true => ("gn_silu_1x64x32x32_g32", [1, 64, 32, 32]),
    };
    let x = random(place, shape);
    let layer = GroupNormConfig::new(32, shape[1]).init(&place.device);
    let [weight, bias] = [&layer.gamma, &layer.beta].map(|p| p.as_ref().map(|p| p.val()));
    let op = Norm {
        kind: NormKind::Group { groups: 32 },
        eps: layer.epsilon as f32,
        activation: Activation::Silu,
    };
    let inputs = NormInputs { x: x.clone(), weight, bias, scale: None, shift: None };
    let ours = || Ok(place.advect.norm(op, inputs.clone())?);
    let theirs = || Ok(activation::silu(layer.forward(x.clone())));
    compare(place, name, Box::new(ours), &[("GroupNorm, silu", Box::new(theirs))])
}

/// DPM-Solver++ (2M) with classifier-free guidance: the state, two evaluations and one of history.
fn steps(place: &Place) -> Result<()> {
    let (name, shape) = match place.small {
        false => ("dpmpp2m_cfg_4M", [4, 4, 256, 1024]),
        true => ("dpmpp2m_cfg_64K", [1, 4, 128, 128]),
    };
    let buffers: [Tensor<4>; 4] = [(); 4].map(|()| random(place, shape));
    let c = [0.9f32, -0.6, 0.2, 0.1];
    let mut values = [0.0; 8];
    values[..4].copy_from_slice(&c);
    let op = Step { coefficients: Coefficients::Values { x: values, noise: 0.0 }, noise: None };
    let ours = || Ok(place.advect.step(op, &buffers)?);
    let theirs = || {
        let [x, cond, uncond, past] = buffers.clone();
        Ok(x * c[0] + cond * c[1] + uncond * c[2] + past * c[3])
    };
    compare(place, name, Box::new(ours), &[("mul, add", Box::new(theirs))])
}
