//! Two-dimensional convolutions with a fused epilogue: the spec.

use super::Activation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// `out[n, o, y, x] = activation(sum over c, i, j of weight[o, c, i, j] * input[n, g(o) + c, y * stride + i *
/// dilation - padding, ..] + bias[o] + sample_bias[n, o]) + residual[n, o, y, x]`: what deep learning calls
/// a convolution (a cross-correlation), input outside the image being 0.
///
/// Pairs are (along rows, along columns): `[vertical, horizontal]`.
///
/// ```
/// use advect::{Cpu, View, ops::{Conv, ConvArgs}};
/// // How many neighbours, itself included, each pixel of a 3x3 image has.
/// let (x, weight, mut out) = ([1.0f32; 9], [1.0f32; 9], [0.0f32; 9]);
/// Cpu::new()?.run(&Conv { padding: [1, 1], ..Conv::default() }, ConvArgs {
///     x: View::of(&x, &[1, 1, 3, 3])?,
///     weight: View::of(&weight, &[1, 1, 3, 3])?,
///     bias: None,
///     sample_bias: None,
///     residual: None,
///     out: View::of_mut(&mut out, &[1, 1, 3, 3])?,
/// })?;
/// assert_eq!(out, [4.0, 6.0, 4.0, 6.0, 9.0, 6.0, 4.0, 6.0, 4.0]);
/// # Ok::<(), advect::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conv {
    /// Distance between neighbouring windows.
    pub stride: [usize; 2],
    /// Zeros on each side of the image.
    pub padding: [usize; 2],
    /// Distance between neighbouring taps of a window.
    pub dilation: [usize; 2],
    /// Output channels in group `g` see the input channels of group `g` alone. 1 is the usual
    /// convolution, the number of channels a depthwise one.
    pub groups: usize,
    /// Applied after the biases and before the residual.
    pub activation: Activation,
}

impl Default for Conv {
    /// Stride and dilation 1, no padding, one group, no activation.
    fn default() -> Self {
        Self { stride: [1, 1], padding: [0, 0], dilation: [1, 1], groups: 1, activation: Activation::None }
    }
}

crate::operands! {
    /// Operands of [`Conv`], all of one dtype, with free strides: NCHW, NHWC and slices of channels need no
    /// copy, and weights may be stored (out, in, row, column) or (out, row, column, in).
    pub struct ConvArgs {
        /// The image, `[n, c_in, h, w]`.
        x: input,
        /// The weights, `[c_out, c_in / groups, kh, kw]`.
        weight: input,
        /// Added to each output channel before the activation, `[c_out]`.
        bias: optional,
        /// Added to each output channel of each sample before the activation, `[n, c_out]`: a time
        /// embedding.
        sample_bias: optional,
        /// Added after the activation, `[n, c_out, oh, ow]`.
        residual: optional,
        /// The result, `[n, c_out, oh, ow]` with `oh = (h + 2 padding - dilation (kh - 1) - 1) / stride + 1`.
        out: output,
    }
}

crate::params! {
    /// Scalars of the convolution kernels.
    pub struct ConvParams {
        /// Samples.
        batch: u32,
        /// Groups of channels.
        groups: u32,
        /// Input channels of a group.
        c_in: u32,
        /// Output channels of a group.
        c_out: u32,
        /// Rows of `x`.
        h: u32,
        /// Columns of `x`.
        w: u32,
        /// Rows of `out`.
        oh: u32,
        /// Columns of `out`.
        ow: u32,
        /// Rows of a window.
        kh: u32,
        /// Columns of a window.
        kw: u32,
        /// Distance between windows along rows.
        stride_h: u32,
        /// Distance between windows along columns.
        stride_w: u32,
        /// Zero rows above the image.
        pad_h: u32,
        /// Zero columns left of the image.
        pad_w: u32,
        /// Distance between taps along rows.
        dilation_h: u32,
        /// Distance between taps along columns.
        dilation_w: u32,
        /// Stride of `x` along the batch.
        x_n: u32,
        /// Stride of `x` along channels.
        x_c: u32,
        /// Stride of `x` along rows.
        x_h: u32,
        /// Stride of `x` along columns.
        x_w: u32,
        /// Stride of `weight` along output channels.
        weight_o: u32,
        /// Stride of `weight` along input channels.
        weight_c: u32,
        /// Stride of `weight` along rows.
        weight_h: u32,
        /// Stride of `weight` along columns.
        weight_w: u32,
        /// Stride of `bias`.
        bias_o: u32,
        /// Stride of `sample_bias` along the batch.
        sample_bias_n: u32,
        /// Stride of `sample_bias` along channels.
        sample_bias_o: u32,
        /// Stride of `residual` along the batch.
        residual_n: u32,
        /// Stride of `residual` along channels.
        residual_c: u32,
        /// Stride of `residual` along rows.
        residual_h: u32,
        /// Stride of `residual` along columns.
        residual_w: u32,
        /// Stride of `out` along the batch.
        out_n: u32,
        /// Stride of `out` along channels.
        out_c: u32,
        /// Stride of `out` along rows.
        out_h: u32,
        /// Stride of `out` along columns.
        out_w: u32,
    }
}

const NAME: &str = "conv";

/// The kernels, by their name in the files.
const TILE: &str = "conv_tile";
const MMA: &str = "conv_mma";
const DEPTHWISE: &str = "conv_depthwise";

/// The largest padded image along one axis: kernels compute positions in it with 32 bits.
const MAX_PADDED: usize = i32::MAX as usize;
/// The most taps of a window, over the input channels: kernels count them with 32 bits. Only repeated weights, or empty
/// ones, can have more.
const MAX_TAPS: usize = i32::MAX as usize;

impl ConvParams {
    /// Pixels of `out`, over the batch. Saturates: only an empty result can have that many.
    fn pixels(&self) -> u64 {
        [self.batch, self.oh, self.ow].map(u64::from).into_iter().fold(1, u64::saturating_mul)
    }

    /// Elements of `out`.
    fn total(&self) -> u64 {
        u64::from(self.groups).saturating_mul(u64::from(self.c_out)).saturating_mul(self.pixels())
    }
}

impl Conv {
    /// Rows (axis 0) or columns (axis 1) of the result for an input of `size` and a kernel of `taps`.
    ///
    /// # Errors
    /// [`Error::Argument`] when the options are not valid or the window does not fit.
    fn out_size(&self, axis: usize, size: usize, taps: usize) -> Result<usize> {
        for (arg, value) in [("stride", self.stride), ("dilation", self.dilation)] {
            if value[axis] == 0 {
                return Err(Error::argument(NAME, arg, "at least 1 along each axis", format!("{value:?}")));
            }
        }
        let window = taps.checked_sub(1).and_then(|t| t.checked_mul(self.dilation[axis])?.checked_add(1));
        let padded = self.padding[axis].checked_mul(2).and_then(|p| p.checked_add(size));
        let Some(padded) = padded.filter(|&p| p <= MAX_PADDED) else {
            let wanted = format!("at most {MAX_PADDED} rows or columns with the image");
            return Err(Error::argument(NAME, "padding", wanted, format!("{:?}", self.padding)));
        };
        match window {
            Some(window) if window <= padded => Ok((padded - window) / self.stride[axis] + 1),
            _ => {
                let what = ["rows", "columns"][axis];
                let wanted = format!("a window of 1 to {padded} {what}, dilated: the padded image");
                let got = format!("{taps} taps with dilation {}", self.dilation[axis]);
                Err(Error::argument(NAME, "weight", wanted, got))
            }
        }
    }
}

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Conv {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/conv.cu");
    const WGSL: &'static str = include_str!("../../shaders/conv.wgsl");
    type Args<I, O> = ConvArgs<I, O>;
    type Params = ConvParams;

    fn check<I, O>(&self, args: &ConvArgs<I, O>) -> Result<ConvParams> {
        let ConvArgs { x, weight, bias, sample_bias, residual, out } = args;
        check::one_dtype(NAME, args, &[])?;
        check::rank(NAME, "x", x, &["n", "c_in", "h", "w"])?;
        check::rank(NAME, "weight", weight, &["c_out", "c_in / groups", "kh", "kw"])?;
        let (batch, channels, h, w) = (x.shape()[0], x.shape()[1], x.shape()[2], x.shape()[3]);
        let (c_out, kh, kw) = (weight.shape()[0], weight.shape()[2], weight.shape()[3]);
        let groups = self.groups;
        if groups == 0 || channels % groups != 0 || c_out % groups != 0 {
            let wanted = format!("a divisor of the {channels} input and {c_out} output channels");
            return Err(Error::argument(NAME, "groups", wanted, groups));
        }
        check::shape(NAME, "weight", weight, &[c_out, channels / groups, kh, kw])?;
        let (oh, ow) = (self.out_size(0, h, kh)?, self.out_size(1, w, kw)?);
        let taps = [kh, kw].into_iter().fold((channels / groups).max(1), usize::saturating_mul);
        if taps > MAX_TAPS {
            let wanted = format!("at most {MAX_TAPS} taps, over the input channels of a group");
            return Err(Error::argument(NAME, "weight", wanted, taps));
        }
        if let Some(bias) = bias {
            check::shape(NAME, "bias", bias, &[c_out])?;
        }
        if let Some(sample_bias) = sample_bias {
            check::shape(NAME, "sample_bias", sample_bias, &[batch, c_out])?;
        }
        let shape = [batch, c_out, oh, ow];
        if let Some(residual) = residual {
            check::shape(NAME, "residual", residual, &shape)?;
        }
        check::shape(NAME, "out", out, &shape)?;

        // Sizes are at least bounded by the extents of the operands unless an axis is empty or repeated.
        let size = |arg, value: usize| check::scalar(NAME, arg, value);
        let four = |arg, s: &[usize]| -> Result<[u32; 4]> {
            Ok([size(arg, s[0])?, size(arg, s[1])?, size(arg, s[2])?, size(arg, s[3])?])
        };
        let [x_n, x_c, x_h, x_w] = four("x", x.strides())?;
        let [weight_o, weight_c, weight_h, weight_w] = four("weight", weight.strides())?;
        let [residual_n, residual_c, residual_h, residual_w] = match residual {
            Some(residual) => four("residual", residual.strides())?,
            None => [0; 4],
        };
        let [out_n, out_c, out_h, out_w] = four("out", out.strides())?;
        let [sample_bias_n, sample_bias_o] = match sample_bias {
            Some(s) => [size("sample_bias", s.strides()[0])?, size("sample_bias", s.strides()[1])?],
            None => [0; 2],
        };
        Ok(ConvParams {
            batch: size("x", batch)?,
            groups: size("groups", groups)?,
            c_in: size("x", channels / groups)?,
            c_out: size("weight", c_out / groups)?,
            h: size("x", h)?,
            w: size("x", w)?,
            oh: size("out", oh)?,
            ow: size("out", ow)?,
            kh: size("weight", kh)?,
            kw: size("weight", kw)?,
            // A stride over the padded image is never taken.
            stride_h: self.stride[0].min(MAX_PADDED) as u32,
            stride_w: self.stride[1].min(MAX_PADDED) as u32,
            pad_h: self.padding[0] as u32,
            pad_w: self.padding[1] as u32,
            // As is a dilation over it: a window of one tap may have any.
            dilation_h: self.dilation[0].min(MAX_PADDED) as u32,
            dilation_w: self.dilation[1].min(MAX_PADDED) as u32,
            x_n,
            x_c,
            x_h,
            x_w,
            weight_o,
            weight_c,
            weight_h,
            weight_w,
            bias_o: size("bias", bias.as_ref().map_or(0, |b| b.strides()[0]))?,
            sample_bias_n,
            sample_bias_o,
            residual_n,
            residual_c,
            residual_h,
            residual_w,
            out_n,
            out_c,
            out_h,
            out_w,
        })
    }

    fn plan(&self, p: &ConvParams, signature: &Signature, caps: &Caps) -> Result<Plan> {
        if p.c_in == 1 && p.groups > 1 {
            return plan_depthwise(*self, p, caps);
        }
        match caps.language {
            Language::Cuda { arch } => plan_cuda(*self, p, signature, caps, arch),
            Language::Wgsl { f16, .. } => plan_wgsl(*self, p, signature, caps, f16),
        }
    }

    fn cost(&self, p: &ConvParams, signature: &Signature) -> Cost {
        let size = signature.dtype("out").size() as f64;
        let [batch, groups, c_in, c_out] = [p.batch, p.groups, p.c_in, p.c_out].map(f64::from);
        let taps = f64::from(p.kh) * f64::from(p.kw);
        let total = p.total() as f64;
        let mut elements =
            batch * groups * c_in * f64::from(p.h) * f64::from(p.w) + groups * c_out * c_in * taps + total;
        if signature.has("bias") {
            elements += groups * c_out;
        }
        if signature.has("sample_bias") {
            elements += batch * groups * c_out;
        }
        if signature.has("residual") {
            elements += total;
        }
        Cost { flops: 2.0 * total * c_in * taps, bytes: elements * size }
    }

    unsafe fn cpu(&self, p: &ConvParams, args: ConvArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
        crate::cpu::conv::run(*self, p, args, cpu)
    }

    fn map<I, O, J, P>(
        args: ConvArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<ConvArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, _: &ConvArgs<I, O>, operand: &str) -> Option<usize> {
        matches!(operand, "x" | "sample_bias" | "residual" | "out").then_some(0)
    }
}

/// One thread an output element: with one input channel a group there is no product to tile.
fn plan_depthwise(op: Conv, p: &ConvParams, caps: &Caps) -> Result<Plan> {
    let threads = 128.min(caps.max_threads);
    Ok(Plan {
        entry: DEPTHWISE,
        consts: Consts::new()
            .set("ACT", op.activation.tag())
            .set("MMA", 0u32)
            .set("TILED", 0u32)
            .set("THREADS", threads)
            // Neighbouring threads walk the axis along which the result is dense.
            .set("CHANNELS_LAST", u32::from(p.out_c < p.out_w)),
        grid: fold_grid(NAME, p.total().div_ceil(u64::from(threads)), caps)?,
        block: [threads, 1, 1],
        shared_bytes: 0,
    })
}

/// Tiles of `pixels` x `channels` over all groups.
fn blocks(p: &ConvParams, pixels: u32, channels: u32) -> u64 {
    let per_pixel = u64::from(p.groups) * u64::from(p.c_out.div_ceil(channels));
    per_pixel.saturating_mul(p.pixels().div_ceil(u64::from(pixels)))
}

fn plan_cuda(op: Conv, p: &ConvParams, signature: &Signature, caps: &Caps, arch: u32) -> Result<Plan> {
    // Two neighbouring channels can be stored at once.
    let pairs = p.out_c == 1
        && p.c_out.is_multiple_of(2)
        && signature.align("out") as usize >= 2 * signature.dtype("out").size()
        && [p.out_n, p.out_h, p.out_w].iter().all(|s| s % 2 == 0);
    let consts = Consts::new()
        .set("ACT", op.activation.tag())
        .set("TILED", 1u32)
        .set("PAIRS", u32::from(pairs))
        .set("X_ALONG_K", u32::from(p.x_c <= p.x_w))
        .set("WEIGHT_ALONG_K", u32::from(p.weight_c <= p.weight_o));
    // Few output channels leave most of a wide tile empty; few pixels leave a device idle, of which every multiprocessor
    // runs two blocks or more.
    let enough = |block_m, block_n| blocks(p, block_m, block_n) >= 2 * u64::from(caps.multiprocessors);
    if signature.dtype("x") != Dtype::F32 && arch >= 80 {
        // Chunks of 8 channels start at 16-byte boundaries and lie in one tap.
        let chunked = |operand: &str, channel: u32, others: &[u32]| {
            channel == 1 && signature.align(operand) == 16 && others.iter().all(|s| s % 8 == 0)
        };
        let x_vector = p.c_in.is_multiple_of(8) && chunked("x", p.x_c, &[p.x_n, p.x_h, p.x_w]);
        let weight_vector =
            p.c_in.is_multiple_of(8) && chunked("weight", p.weight_c, &[p.weight_o, p.weight_h, p.weight_w]);
        // Warps of 64 rows read least from shared memory; elements that are gathered take more threads.
        let vectors = x_vector && weight_vector;
        let (block_m, block_n, warps_m, warps_n) = match p.c_out {
            65.. if enough(128, 128) => (128, 128, 2, if vectors { 2 } else { 4 }),
            33.. if enough(128, 64) => {
                if vectors {
                    (128, 64, 2, 2)
                } else {
                    (128, 64, 4, 2)
                }
            }
            33.. => (64, 64, 2, 2),
            _ => (128, 32, 4, 1),
        };
        let threads = 32 * warps_m * warps_n;
        return Ok(Plan {
            entry: MMA,
            consts: consts
                .set("MMA", 1u32)
                .set("BLOCK_M", block_m)
                .set("BLOCK_N", block_n)
                .set("BLOCK_K", 32u32)
                .set("WARPS_M", warps_m)
                .set("WARPS_N", warps_n)
                .set("STAGES", 3u32)
                .set("TAP_CHUNKS", u32::from(p.c_in.is_multiple_of(8)))
                .set("X_VECTOR", u32::from(x_vector))
                .set("WEIGHT_VECTOR", u32::from(weight_vector)),
            grid: fold_grid(NAME, blocks(p, block_m, block_n), caps)?,
            block: [threads, 1, 1],
            shared_bytes: 3 * (block_m + block_n) * 32 * 2,
        });
    }
    let (block_m, block_n, per_thread) = match p.c_out {
        65.. if enough(128, 128) => (128u32, 128u32, 8u32),
        33.. => (64, 64, 4),
        _ => (128, 32, 4),
    };
    let block_k = 8;
    Ok(Plan {
        entry: TILE,
        consts: consts
            .set("MMA", 0u32)
            .set("BLOCK_M", block_m)
            .set("BLOCK_N", block_n)
            .set("BLOCK_K", block_k)
            .set("THREAD_M", per_thread)
            .set("THREAD_N", per_thread),
        grid: fold_grid(NAME, blocks(p, block_m, block_n), caps)?,
        block: [256, 1, 1],
        // Two stages of both tiles in f32, rows padded by 4.
        shared_bytes: 2 * block_k * (block_m + 4 + block_n + 4) * 4,
    })
}

fn plan_wgsl(op: Conv, p: &ConvParams, signature: &Signature, caps: &Caps, f16: bool) -> Result<Plan> {
    let tile_f16 = f16 && signature.dtype("x") == Dtype::F16;
    // 4x4 elements an invocation. Larger tiles need less traffic, but must be filled, and small problems
    // would leave a device idle. Besides both tiles, three words a pixel.
    let bytes = |m: u32, n: u32| 16 * (m / 4 + 1 + n / 4 + 1) * if tile_f16 { 8 } else { 16 } + 12 * m;
    let (block_m, block_n) = [(64, 64), (64, 32), (64, 16), (32, 32), (32, 16), (16, 16)]
        .into_iter()
        .find(|&(m, n)| {
            m * n / 16 <= caps.max_threads
                && bytes(m, n) <= caps.shared_bytes
                && (n == 16 || p.c_out > n / 2)
                && (m == 16 || blocks(p, m, n) >= 16)
        })
        .unwrap_or((16, 16));
    let threads = block_m * block_n / 16;
    Ok(Plan {
        entry: TILE,
        consts: Consts::new()
            .set("ACT", op.activation.tag())
            .set("TILED", 1u32)
            .set("THREADS", threads)
            .set("BLOCK_M", block_m)
            .set("BLOCK_N", block_n)
            .set("BLOCK_K", 16u32)
            .set("X_ALONG_K", u32::from(p.x_c <= p.x_w))
            .set("WEIGHT_ALONG_K", u32::from(p.weight_c <= p.weight_o))
            .set("TILE_F16", u32::from(tile_f16)),
        grid: fold_grid(NAME, blocks(p, block_m, block_n), caps)?,
        block: [threads, 1, 1],
        shared_bytes: bytes(block_m, block_n),
    })
}
