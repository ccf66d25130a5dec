//! Nearest-neighbour doubling and 2x2 averaging of images: the spec.

use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// Resampling by two along height and width.
///
/// ```
/// use advect::{Cpu, View, ops::{Resample, ResampleArgs}};
/// let (x, mut out) = ([1.0f32, 2.0, 3.0, 4.0], [0.0f32; 1]);
/// Cpu::new()?.run(&Resample::Down2, ResampleArgs {
///     x: View::of(&x, &[1, 1, 2, 2])?,
///     out: View::of_mut(&mut out, &[1, 1, 1, 1])?,
/// })?;
/// assert_eq!(out, [2.5]);
/// # Ok::<(), advect::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resample {
    /// `out[n, c, i, j] = x[n, c, i / 2, j / 2]`: nearest neighbour, sizes doubled.
    Up2,
    /// `out[n, c, i, j]` is the mean of `x[n, c, 2i..2i+2, 2j..2j+2]`: sizes halved, an odd last row or
    /// column is left out (as PyTorch's `avg_pool2d(2)` does).
    Down2,
}

crate::operands! {
    /// Operands of [`Resample`]: shapes are (batch, channel, row, column), strides are free (NCHW, NHWC,
    /// a slice of channels).
    pub struct ResampleArgs {
        /// The image, `[n, c, h, w]`.
        x: input,
        /// The result, `[n, c, 2h, 2w]` or `[n, c, h/2, w/2]`, of the same dtype.
        out: output,
    }
}

crate::params! {
    /// Scalars of the resample kernels.
    pub struct ResampleParams {
        /// Elements of `out`.
        total: u32,
        /// Channels.
        c: u32,
        /// Rows of `out`.
        h: u32,
        /// Columns of `out`.
        w: u32,
        /// Stride of `x` along the batch.
        x_n: u32,
        /// Stride of `x` along channels.
        x_c: u32,
        /// Stride of `x` along rows.
        x_h: u32,
        /// Stride of `x` along columns.
        x_w: u32,
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

const NAME: &str = "resample";

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Resample {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/resample.cu");
    const WGSL: &'static str = include_str!("../../shaders/resample.wgsl");
    type Args<I, O> = ResampleArgs<I, O>;
    type Params = ResampleParams;

    fn check<I, O>(&self, args: &ResampleArgs<I, O>) -> Result<ResampleParams> {
        let ResampleArgs { x, out } = args;
        check::one_dtype(NAME, args, &[])?;
        check::rank(NAME, "x", x, &["n", "c", "h", "w"])?;
        let (h, w) = (x.shape()[2], x.shape()[3]);
        let (oh, ow) = match self {
            Self::Up2 => (h.saturating_mul(2), w.saturating_mul(2)),
            Self::Down2 => (h / 2, w / 2),
        };
        check::shape(NAME, "out", out, &[x.shape()[0], x.shape()[1], oh, ow])?;
        let stride = |arg, view: &[usize], axis: usize| check::scalar(NAME, arg, view[axis]);
        Ok(ResampleParams {
            total: check::scalar(NAME, "out", out.len())?,
            c: check::scalar(NAME, "out", x.shape()[1])?,
            h: check::scalar(NAME, "out", oh)?,
            w: check::scalar(NAME, "out", ow)?,
            x_n: stride("x", x.strides(), 0)?,
            x_c: stride("x", x.strides(), 1)?,
            x_h: stride("x", x.strides(), 2)?,
            x_w: stride("x", x.strides(), 3)?,
            out_n: stride("out", out.strides(), 0)?,
            out_c: stride("out", out.strides(), 1)?,
            out_h: stride("out", out.strides(), 2)?,
            out_w: stride("out", out.strides(), 3)?,
        })
    }

    fn plan(&self, p: &ResampleParams, _: &Signature, caps: &Caps) -> Result<Plan> {
        let threads = 256.min(caps.max_threads);
        Ok(Plan {
            entry: NAME,
            consts: Consts::new()
                .set("THREADS", threads)
                .set("DOWN", u32::from(*self == Self::Down2))
                // Neighbouring threads walk the axis along which the result is dense.
                .set("CHANNELS_LAST", u32::from(p.out_c < p.out_w)),
            grid: fold_grid(NAME, u64::from(p.total).div_ceil(u64::from(threads)), caps)?,
            block: [threads, 1, 1],
            shared_bytes: 0,
        })
    }

    fn cost(&self, p: &ResampleParams, signature: &Signature) -> Cost {
        let size = signature.dtype("x").size() as f64;
        let total = f64::from(p.total);
        match self {
            Self::Up2 => Cost { flops: 0.0, bytes: total * 1.25 * size },
            Self::Down2 => Cost { flops: total * 4.0, bytes: total * 5.0 * size },
        }
    }

    unsafe fn cpu(&self, p: &ResampleParams, args: ResampleArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
        crate::cpu::resample::run(*self, p, args, cpu);
        Ok(())
    }

    fn map<I, O, J, P>(
        args: ResampleArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<ResampleArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, _: &ResampleArgs<I, O>, _: &str) -> Option<usize> {
        Some(0)
    }
}
