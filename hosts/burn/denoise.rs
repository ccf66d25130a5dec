//! A denoiser written with burn's own modules, sampled on burn's CPU backend and on its wgpu backend: once with
//! burn's own ops and once with advect's over the same weights and the same memory.
//!
//!     cargo run --release -p advect-burn --features wgpu --example denoise

use advect::ops::{Activation, Attention, Conv, Norm, NormKind, Step};
use advect_burn::{Advect, ConvInputs, NormInputs};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{GroupNorm, GroupNormConfig, Linear, LinearConfig, PaddingConfig2d};
use burn::tensor::{Device, Distribution, Tensor, activation};
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const CHANNELS: usize = 32;
const GROUPS: usize = 8;
const STEPS: usize = 4;

/// A residual block with a time embedding, then attention over pixels: the velocity of a flow.
struct Denoiser {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Linear,
    norm2: GroupNorm,
    conv2: Conv2d,
    qkv: Conv2d,
}

impl Denoiser {
    fn new(device: &Device) -> Self {
        device.seed(1);
        let norm = || GroupNormConfig::new(GROUPS, CHANNELS).init(device);
        let conv = |c_out, size: usize| {
            let pad = size / 2;
            let padding = PaddingConfig2d::Explicit(pad, pad, pad, pad);
            Conv2dConfig::new([CHANNELS, c_out], [size, size]).with_padding(padding).init(device)
        };
        let time = LinearConfig::new(1, CHANNELS).init(device);
        let (conv1, conv2, qkv) = (conv(CHANNELS, 3), conv(CHANNELS, 3), conv(3 * CHANNELS, 1));
        Self { norm1: norm(), conv1, time, norm2: norm(), conv2, qkv }
    }

    fn embed(&self, t: f32, x: &Tensor<4>) -> Tensor<2> {
        self.time.forward(Tensor::full([x.dims()[0], 1], t, &x.device()))
    }

    /// With burn's own ops.
    fn burn(&self, x: Tensor<4>, t: f32) -> Tensor<4> {
        let time = self.embed(t, &x).unsqueeze_dims(&[2, 3]);
        let h = self.conv1.forward(activation::silu(self.norm1.forward(x.clone()))) + time;
        let h = self.conv2.forward(activation::silu(self.norm2.forward(h))) + x;
        let [q, k, v] = self.split(self.qkv.forward(h.clone()));
        let scale = (CHANNELS as f32).powf(-0.5);
        let out = activation::softmax(q.matmul(k.transpose()) * scale, 3).matmul(v);
        out.transpose().reshape(h.dims()) + h
    }

    /// With advect's: normalisation and SiLU in one pass, convolution, time and residual in one.
    fn advect(&self, advect: &Advect, x: Tensor<4>, t: f32) -> advect_burn::Result<Tensor<4>> {
        let time = self.embed(t, &x);
        let h = conv(advect, &self.conv1, norm_silu(advect, &self.norm1, x.clone())?, Some(time), None)?;
        let h = conv(advect, &self.conv2, norm_silu(advect, &self.norm2, h)?, None, Some(x))?;
        let [q, k, v] = self.split(conv(advect, &self.qkv, h.clone(), None, None)?);
        let out = advect.attention(Attention::new(CHANNELS), q, k, v)?;
        Ok(out.transpose().reshape(h.dims()) + h)
    }

    /// Queries, keys and values (b, 1 head, pixels, channels): views of one image of 3 * CHANNELS channels.
    fn split(&self, qkv: Tensor<4>) -> [Tensor<4>; 3] {
        let [b, _, h, w] = qkv.dims();
        let tokens = qkv.reshape([b, 3, CHANNELS, h * w]);
        [0, 1, 2].map(|i| tokens.clone().narrow(1, i, 1).transpose())
    }
}

/// A module of burn, run by advect: the same weights, nothing copied.
fn conv(
    advect: &Advect,
    module: &Conv2d,
    x: Tensor<4>,
    sample_bias: Option<Tensor<2>>,
    residual: Option<Tensor<4>>,
) -> advect_burn::Result<Tensor<4>> {
    let op = Conv { padding: module.kernel_size.map(|size| size / 2), ..Conv::default() };
    let (weight, bias) = (module.weight.val(), module.bias.as_ref().map(|b| b.val()));
    advect.conv(op, ConvInputs { x, weight, bias, sample_bias, residual })
}

fn norm_silu(advect: &Advect, module: &GroupNorm, x: Tensor<4>) -> advect_burn::Result<Tensor<4>> {
    let kind = NormKind::Group { groups: module.num_groups };
    let op = Norm { kind, eps: module.epsilon as f32, activation: Activation::Silu };
    let [weight, bias] = [&module.gamma, &module.beta].map(|p| p.as_ref().map(|p| p.val()));
    advect.norm(op, NormInputs { x, weight, bias, scale: None, shift: None })
}

/// Euler's method on both sides, from the same noise; how far the samples are apart.
fn sample(name: &str, advect: &Advect, device: &Device) -> Result<f32> {
    let model = Denoiser::new(device);
    let noise = Tensor::<4>::random([2, CHANNELS, 12, 10], Distribution::Normal(0.0, 1.0), device);
    let dt = 0.25 / STEPS as f32;
    let euler = Step::sum(&[1.0, f64::from(dt)])?;

    let (mut theirs, mut ours) = (noise.clone(), noise);
    let start = Instant::now();
    for i in 0..STEPS {
        theirs = theirs.clone() + model.burn(theirs, i as f32 * dt) * dt;
    }
    let theirs = theirs.to_device(&Device::flex());
    let middle = Instant::now();
    for i in 0..STEPS {
        let velocity = model.advect(advect, ours.clone(), i as f32 * dt)?;
        ours = advect.step(euler, &[ours, velocity])?;
    }
    let ours = ours.to_device(&Device::flex());
    println!("{name}: burn {:?}, advect {:?}", middle - start, middle.elapsed());
    let largest: f32 = theirs.clone().abs().max().into_scalar();
    let apart: f32 = (theirs - ours).abs().max().into_scalar();
    println!("  largest element {largest:.3}, largest difference {apart:.1e}");
    Ok(apart / largest)
}

pub(crate) fn main() -> Result<()> {
    let advect = Advect::cpu();
    assert!(sample("flex", &advect, &Device::flex())? < 1e-4, "the two samples differ");
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
    // burn opens the adapter and hands out the device and the queue that it uses.
    let options = Device::wgpu_options().memory_config(MemoryConfiguration::ExclusivePages);
    let (device, setup) = options.init_with_setup()?;
    let advect = advect.wgpu(&device, &setup);
    assert!(sample("wgpu", &advect, &device)? < 1e-4, "the two samples differ");
    Ok(())
}
