//! advect's kernels as custom ops of [candle](candle_core): attention, convolution, normalisation and solver
//! steps over candle's own tensors, on the CPU and (feature `cuda`) on NVIDIA GPUs.
//!
//! Nothing is copied on the way in: a kernel reads candle's storage through the strides and the offset of the
//! tensor's layout, whatever they are, so that transposed, narrowed and broadcast tensors need no
//! `contiguous()`. On CUDA the pointers and the stream are candle's own. The result is a fresh tensor which
//! lies in memory in the order of the first operand: a channels-last image gives a channels-last image, and
//! heads that were transposed out of `(b, n, h, d)` are transposed back for free.
//!
//! ```
//! use advect::ops::Attention;
//! use candle_core::{Device, Tensor};
//! # fn main() -> candle_core::Result<()> {
//! // A packed projection, (batch, token, 3, head, element).
//! let qkv = Tensor::randn(0f32, 1f32, (2, 77, 3, 8, 40), &Device::Cpu)?;
//! let head = |i| qkv.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2);
//! let out = advect_candle::attention(Attention::new(40), &head(0)?, &head(1)?, &head(2)?)?;
//! assert_eq!(out.dims(), [2, 8, 77, 40]);
//! assert!(out.transpose(1, 2)?.is_contiguous());
//! # Ok(()) }
//! ```
//!
//! [`layers`] has these ops as layers that load from a `VarBuilder`, in place of those of `candle_nn`.
//!
//! The ops are for inference: a backward pass through one is candle's
//! [`BackwardNotSupported`](candle_core::Error::BackwardNotSupported).

mod call;
#[cfg(feature = "cuda")]
mod cuda;
pub mod layers;

use advect::ops::step::MAX_BUFFERS;
use advect::ops::{Attention, Coefficients, Conv, Norm, NormKind, Step};
use call::{Kernel, apply, expect};
use candle_core::{Error, Layout, Result, Shape, Tensor};

/// `softmax(Q Kᵀ · scale) V` of `[b, h, n, d]` tensors, never with an `n` by `n` matrix in memory.
///
/// # Errors
/// candle's errors for wrong ranks, shapes, dtypes and devices; advect's own for the rest, as
/// [`Error::WrappedContext`].
pub fn attention(op: Attention, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
    apply(op, &[Some(q), Some(k), Some(v)])
}

/// The operands of [`conv`].
#[derive(Debug, Clone, Copy)]
pub struct ConvInputs<'a> {
    /// The image, `[n, c_in, h, w]`.
    pub x: &'a Tensor,
    /// The weights, `[c_out, c_in / groups, kh, kw]`.
    pub weight: &'a Tensor,
    /// Added to each output channel, `[c_out]`.
    pub bias: Option<&'a Tensor>,
    /// Added to each output channel of each sample, `[n, c_out]`: a time embedding.
    pub sample_bias: Option<&'a Tensor>,
    /// Added after the activation, of the shape of the result.
    pub residual: Option<&'a Tensor>,
}

/// A 2-D convolution with biases, activation and residual in one pass.
///
/// # Errors
/// As [`attention`].
pub fn conv(op: Conv, inputs: ConvInputs<'_>) -> Result<Tensor> {
    let ConvInputs { x, weight, bias, sample_bias, residual } = inputs;
    apply(op, &[Some(x), Some(weight), bias, sample_bias, residual])
}

/// The operands of [`norm`].
#[derive(Debug, Clone, Copy)]
pub struct NormInputs<'a> {
    /// `[n, c]`, `[n, c, w]` or `[n, c, h, w]` for groups, `[n, c]` or `[n, t, c]` for rows.
    pub x: &'a Tensor,
    /// Factor per channel, `[c]`.
    pub weight: Option<&'a Tensor>,
    /// Summand per channel, `[c]`.
    pub bias: Option<&'a Tensor>,
    /// Factor less 1 per sample and channel, `[n, c]`.
    pub scale: Option<&'a Tensor>,
    /// Summand per sample and channel, `[n, c]`.
    pub shift: Option<&'a Tensor>,
}

/// Group, layer or RMS normalisation with affine map, modulation and activation in one pass.
///
/// # Errors
/// As [`attention`].
pub fn norm(op: Norm, inputs: NormInputs<'_>) -> Result<Tensor> {
    let NormInputs { x, weight, bias, scale, shift } = inputs;
    apply(op, &[Some(x), weight, bias, scale, shift])
}

/// A linear combination of up to 8 tensors of one shape, with noise: one step of an ODE or SDE solver.
///
/// # Errors
/// As [`attention`]; [`Error::OpRequiresAtLeastOneTensor`] without a buffer. Coefficients come by value:
/// [`Coefficients::Table`] is refused.
pub fn step(op: Step, buffers: &[&Tensor]) -> Result<Tensor> {
    if op.coefficients == Coefficients::Table {
        return Err(Error::Msg("step: a table of coefficients is not offered through candle".into()).bt());
    }
    if buffers.len() > MAX_BUFFERS {
        let found = buffers.len();
        return Err(Error::Msg(format!("step: at most {MAX_BUFFERS} buffers, got {found}")).bt());
    }
    apply(op, &buffers.iter().copied().map(Some).collect::<Vec<_>>())
}

impl Kernel for Attention {
    fn shape(&self, operands: &[Option<&Layout>]) -> Result<Shape> {
        let [Some(q), Some(k), Some(v)] = operands else { return Err(Error::UnwrapNone) };
        let (b, h, _, d) = rank4(q)?;
        let (_, kv_heads, nk, _) = rank4(k)?;
        // As many heads as the queries have, or fewer that divide them.
        let kv_heads = if kv_heads > 0 && h % kv_heads == 0 { kv_heads } else { h };
        expect("attention: k", k, (b, kv_heads, nk, d))?;
        expect("attention: v", v, (b, kv_heads, nk, d))?;
        Ok(q.shape().clone())
    }
}

impl Kernel for Conv {
    fn shape(&self, operands: &[Option<&Layout>]) -> Result<Shape> {
        let &[Some(x), Some(weight), bias, sample_bias, residual] = operands else {
            return Err(Error::UnwrapNone);
        };
        let (n, c_in, h, w) = rank4(x)?;
        let (c_out, _, kh, kw) = rank4(weight)?;
        // advect refuses groups that divide neither; here they only must not divide by zero.
        expect("conv: weight", weight, (c_out, c_in / self.groups.max(1), kh, kw))?;
        let size = |axis: usize, image: usize, window: usize| {
            let padded = image.saturating_add(self.padding[axis].saturating_mul(2));
            let reach = self.dilation[axis].saturating_mul(window.saturating_sub(1)).saturating_add(1);
            padded.checked_sub(reach).map_or(0, |free| free / self.stride[axis].max(1) + 1)
        };
        let out = Shape::from((n, c_out, size(0, h, kh), size(1, w, kw)));
        if let Some(bias) = bias {
            expect("conv: bias", bias, c_out)?;
        }
        if let Some(sample_bias) = sample_bias {
            expect("conv: sample_bias", sample_bias, (n, c_out))?;
        }
        if let Some(residual) = residual {
            expect("conv: residual", residual, out.clone())?;
        }
        Ok(out)
    }
}

impl Kernel for Norm {
    fn shape(&self, operands: &[Option<&Layout>]) -> Result<Shape> {
        let &[Some(x), weight, bias, scale, shift] = operands else { return Err(Error::UnwrapNone) };
        let group = matches!(self.kind, NormKind::Group { .. });
        let rank = x.dims().len();
        let (most, channel_axis) = if group { (4, 1) } else { (3, rank.saturating_sub(1)) };
        if !(2..=most).contains(&rank) {
            let shape = x.shape().clone();
            return Err(Error::UnexpectedNumberOfDims { expected: most, got: rank, shape }.bt());
        }
        let (n, c) = (x.dims()[0], x.dims()[channel_axis]);
        for (name, operand) in [("norm: weight", weight), ("norm: bias", bias)] {
            operand.map_or(Ok(()), |o| expect(name, o, c))?;
        }
        for (name, operand) in [("norm: scale", scale), ("norm: shift", shift)] {
            operand.map_or(Ok(()), |o| expect(name, o, (n, c)))?;
        }
        Ok(x.shape().clone())
    }
}

impl Kernel for Step {
    fn shape(&self, operands: &[Option<&Layout>]) -> Result<Shape> {
        let Some(Some(x0)) = operands.first() else {
            return Err(Error::OpRequiresAtLeastOneTensor { op: "step" }.bt());
        };
        let rank = x0.dims().len();
        if !(1..=4).contains(&rank) {
            let shape = x0.shape().clone();
            return Err(Error::UnexpectedNumberOfDims { expected: 4, got: rank, shape }.bt());
        }
        for other in operands.iter().flatten() {
            if other.shape() != x0.shape() {
                let (lhs, rhs) = (x0.shape().clone(), other.shape().clone());
                return Err(Error::ShapeMismatchBinaryOp { lhs, rhs, op: "step" }.bt());
            }
        }
        Ok(x0.shape().clone())
    }
}

/// The sizes of a layout of four axes.
fn rank4(layout: &Layout) -> Result<(usize, usize, usize, usize)> {
    layout.shape().dims4()
}
