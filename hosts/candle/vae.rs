//! The decoder of Stable Diffusion's VAE: as candle-transformers has it, and with the same weights through
//! advect. Random weights stand in for a checkpoint; a `VarBuilder` over a file is used in the same way.
//!
//!     cargo run --release -p advect-candle --example vae [--features cuda]

use advect::ops::{Activation::Silu, Attention};
use advect_candle::attention;
use advect_candle::layers::{Conv2d, GroupNorm, conv2d, group_norm};
use candle_core::{DType, Device, Result, Tensor};
use candle_nn::{Conv2dConfig, Module, VarBuilder, VarMap};
use candle_transformers::models::stable_diffusion::vae::{AutoEncoderKL, AutoEncoderKLConfig};

fn conv3x3(c_in: usize, c_out: usize, vb: VarBuilder<'_>) -> Result<Conv2d> {
    conv2d(c_in, c_out, 3, Conv2dConfig { padding: 1, ..Default::default() }, vb)
}

/// Two normalisations, each with its SiLU in one pass, and two convolutions, the second of which adds the skip.
struct ResBlock {
    first: (GroupNorm, Conv2d),
    second: (GroupNorm, Conv2d),
    shortcut: Option<Conv2d>,
}

impl ResBlock {
    fn new(groups: usize, c_in: usize, c_out: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let shortcut = || conv2d(c_in, c_out, 1, Conv2dConfig::default(), vb.pp("conv_shortcut"));
        let norm = |c, name| group_norm(groups, c, 1e-6, vb.pp(name));
        let conv = |c, name| conv3x3(c, c_out, vb.pp(name));
        Ok(Self {
            first: (norm(c_in, "norm1")?, conv(c_in, "conv1")?),
            second: (norm(c_out, "norm2")?, conv(c_out, "conv2")?),
            shortcut: (c_in != c_out).then(shortcut).transpose()?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let skip = self.shortcut.as_ref().map_or(Ok(x.clone()), |conv| conv.forward(x))?;
        let ((norm1, conv1), (norm2, conv2)) = (&self.first, &self.second);
        conv2.forward_add(&norm2.fused(&conv1.forward(&norm1.fused(x, Silu)?)?, Silu)?, &skip)
    }
}

/// Attention over pixels. The channels stay where they are: tokens are a transposed view of the image.
struct AttentionBlock {
    norm: GroupNorm,
    qkv: [Conv2d; 3],
    proj: Conv2d,
}

impl AttentionBlock {
    fn new(groups: usize, c: usize, vb: VarBuilder<'_>) -> Result<Self> {
        let linear = |name| Conv2d::per_pixel(&candle_nn::linear(c, c, vb.pp(name))?);
        Ok(Self {
            norm: group_norm(groups, c, 1e-6, vb.pp("group_norm"))?,
            qkv: [linear("query")?, linear("key")?, linear("value")?],
            proj: linear("proj_attn")?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.norm.forward(x)?;
        // (b, c, h, w) to (b, 1 head, tokens, c)
        let tokens = |conv: &Conv2d| conv.forward(&h)?.flatten_from(2)?.transpose(1, 2)?.unsqueeze(1);
        let [q, k, v] = &self.qkv;
        let out = attention(Attention::new(x.dim(1)?), &tokens(q)?, &tokens(k)?, &tokens(v)?)?;
        self.proj.forward_add(&out.squeeze(1)?.transpose(1, 2)?.reshape(x.shape())?, x)
    }
}

/// The decoder: names and sizes are candle-transformers'.
pub(crate) struct Decoder {
    post_quant: Conv2d,
    conv_in: Conv2d,
    mid: (ResBlock, AttentionBlock, ResBlock),
    up: Vec<(Vec<ResBlock>, Option<Conv2d>)>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    /// From the weights of an `AutoEncoderKL` of this configuration.
    pub(crate) fn new(vb: VarBuilder<'_>, config: &AutoEncoderKLConfig) -> Result<Self> {
        let (latent, groups) = (config.latent_channels, config.norm_num_groups);
        let post_quant = conv2d(latent, latent, 1, Conv2dConfig::default(), vb.pp("post_quant_conv"))?;
        let vb = vb.pp("decoder");
        let widths: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (wide, thin) = (widths[0], widths[widths.len() - 1]);
        let (mid, mut up, mut c_in) = (vb.pp("mid_block"), Vec::new(), wide);
        for (i, &c) in widths.iter().enumerate() {
            let vb = vb.pp("up_blocks").pp(i);
            let block = |j| ResBlock::new(groups, if j == 0 { c_in } else { c }, c, vb.pp("resnets").pp(j));
            let blocks = (0..=config.layers_per_block).map(block).collect::<Result<_>>()?;
            let up_conv = (i + 1 < widths.len()).then(|| conv3x3(c, c, vb.pp("upsamplers.0.conv")));
            up.push((blocks, up_conv.transpose()?));
            c_in = c;
        }
        Ok(Self {
            post_quant,
            conv_in: conv3x3(latent, wide, vb.pp("conv_in"))?,
            mid: (
                ResBlock::new(groups, wide, wide, mid.pp("resnets.0"))?,
                AttentionBlock::new(groups, wide, mid.pp("attentions.0"))?,
                ResBlock::new(groups, wide, wide, mid.pp("resnets.1"))?,
            ),
            up,
            norm_out: group_norm(groups, thin, 1e-6, vb.pp("conv_norm_out"))?,
            conv_out: conv3x3(thin, 3, vb.pp("conv_out"))?,
        })
    }

    /// Latents to an image.
    pub(crate) fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let (first, attention, second) = &self.mid;
        let x = self.conv_in.forward(&self.post_quant.forward(latents)?)?;
        let mut x = second.forward(&attention.forward(&first.forward(&x)?)?)?;
        for (blocks, up_conv) in &self.up {
            x = blocks.iter().try_fold(x, |x, block| block.forward(&x))?;
            if let Some(conv) = up_conv {
                x = conv.forward(&x.upsample_nearest2d(2 * x.dim(2)?, 2 * x.dim(3)?)?)?;
            }
        }
        self.conv_out.forward(&self.norm_out.fused(&x, Silu)?)
    }
}

pub(crate) fn main() -> Result<()> {
    compare(&Device::cuda_if_available(0)?) // With feature `cuda`.
}

pub(crate) fn compare(device: &Device) -> Result<()> {
    let weights = VarMap::new();
    let vb = VarBuilder::from_varmap(&weights, DType::F32, device);
    let config = AutoEncoderKLConfig { block_out_channels: vec![32, 64], ..Default::default() };
    let theirs = AutoEncoderKL::new(vb.clone(), 3, 3, config.clone())?;
    let ours = Decoder::new(vb, &config)?;
    let latents = Tensor::randn(0f32, 1f32, (1, 4, 16, 16), device)?;
    let timed = |decode: &dyn Fn() -> Result<Tensor>| {
        decode()?; // The first call compiles on CUDA.
        device.synchronize()?;
        let (start, image) = (std::time::Instant::now(), decode()?);
        device.synchronize().map(|()| (start.elapsed(), image))
    };
    let ((candle, a), (advect, b)) = (timed(&|| theirs.decode(&latents))?, timed(&|| ours.decode(&latents))?);
    let largest = |t: &Tensor| t.abs()?.max_all()?.to_scalar::<f32>();
    let (largest, apart) = (largest(&a)?, largest(&(&a - &b)?)?);
    println!("candle {candle:?}, advect {advect:?}; largest element {largest:.3}, difference {apart:.1e}");
    assert!(apart <= 1e-4 * largest, "the two decoders differ");
    Ok(())
}
