//! Group, layer and root-mean-square normalisation with everything that follows it: the spec.

use super::Activation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;
use arrayvec::ArrayVec;

/// Normalisation, affine map and activation in one pass:
///
/// ```text
/// y   = (x - mean) / sqrt(variance + eps)          Rms: x / sqrt(mean of squares + eps)
/// out = activation((y * weight + bias) * (1 + scale) + shift)
/// ```
///
/// Absent operands count as weight 1, bias 0, scale 0, shift 0. The variance is the biased one. With
/// `eps` 0 a row of equal numbers divides by zero.
///
/// ```
/// use advect::{Cpu, View, ops::{Activation, Norm, NormArgs, NormKind}};
/// // Two groups of one channel each: 1, 3 has mean 2 and deviation 1; 10, 30 has mean 20 and deviation 10.
/// let (x, mut out) = ([1.0f32, 3.0, 10.0, 30.0], [0.0f32; 4]);
/// let norm = Norm { kind: NormKind::Group { groups: 2 }, eps: 0.0, activation: Activation::None };
/// Cpu::new()?.run(&norm, NormArgs {
///     x: View::of(&x, &[1, 2, 2])?,
///     weight: None,
///     bias: None,
///     scale: None,
///     shift: None,
///     out: View::of_mut(&mut out, &[1, 2, 2])?,
/// })?;
/// assert!(out.iter().zip([-1.0, 1.0, -1.0, 1.0]).all(|(got, want)| (got - want).abs() < 1e-6));
/// # Ok::<(), advect::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// What mean and variance are taken over.
    pub kind: NormKind,
    /// Added to the variance; finite, at least 0.
    pub eps: f32,
    /// Applied last.
    pub activation: Activation,
}

/// What mean and variance are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Over the channels of a group and all positions of one sample of `[n, c, ..]` (Wu and He 2018,
    /// arXiv:1803.08494). One group is layer normalisation of images, `c` groups instance normalisation.
    Group {
        /// Groups of consecutive channels; divides `c`.
        groups: usize,
    },
    /// Over the last axis of `[n, c]` or `[n, t, c]` (Ba, Kiros and Hinton 2016, arXiv:1607.06450).
    Layer,
    /// As [`NormKind::Layer`] without the mean (Zhang and Sennrich 2019, arXiv:1910.07467).
    Rms,
}

crate::operands! {
    /// Operands of [`Norm`], all of one dtype, with free strides.
    pub struct NormArgs {
        /// The input: `[n, c]`, `[n, c, w]` or `[n, c, h, w]` for groups, `[n, c]` or `[n, t, c]` for rows.
        x: input,
        /// Factor per channel, `[c]`.
        weight: optional,
        /// Summand per channel, `[c]`.
        bias: optional,
        /// Factor less 1 per sample and channel, `[n, c]`: the scale of FiLM or adaLN.
        scale: optional,
        /// Summand per sample and channel, `[n, c]`.
        shift: optional,
        /// The result, of the shape of `x`.
        out: output,
    }
}

crate::params! {
    /// Scalars of the norm kernels. A row is what one mean is taken over: a (sample, group) or a token.
    /// Its elements lie along at most three axes, inner (the densest), mid and outer; element (i, m, o)
    /// of row r of sample n is at `n x_n + r x_r + i x_i + m x_m + o x_o` and belongs to channel
    /// `r ch_r + i ch_i + m ch_m + o ch_o`.
    pub struct NormParams {
        /// Rows of all samples.
        rows: u32,
        /// Rows of one sample.
        per_sample: u32,
        /// Elements of a row.
        len: u32,
        /// Elements along the inner axis.
        inner: u32,
        /// Elements along the mid axis.
        mid: u32,
        /// Stride of `x` from sample to sample.
        x_n: u32,
        /// Stride of `x` from row to row.
        x_r: u32,
        /// Stride of `x` along the inner axis.
        x_i: u32,
        /// Stride of `x` along the mid axis.
        x_m: u32,
        /// Stride of `x` along the outer axis.
        x_o: u32,
        /// Stride of `out` from sample to sample.
        out_n: u32,
        /// Stride of `out` from row to row.
        out_r: u32,
        /// Stride of `out` along the inner axis.
        out_i: u32,
        /// Stride of `out` along the mid axis.
        out_m: u32,
        /// Stride of `out` along the outer axis.
        out_o: u32,
        /// Channels from row to row.
        ch_r: u32,
        /// 1 when the inner axis is the channels, else 0.
        ch_i: u32,
        /// 1 when the mid axis is the channels, else 0.
        ch_m: u32,
        /// 1 when the outer axis is the channels, else 0.
        ch_o: u32,
        /// Stride of `weight`.
        weight_c: u32,
        /// Stride of `bias`.
        bias_c: u32,
        /// Stride of `scale` along samples.
        scale_n: u32,
        /// Stride of `scale` along channels.
        scale_c: u32,
        /// Stride of `shift` along samples.
        shift_n: u32,
        /// Stride of `shift` along channels.
        shift_c: u32,
        /// Added to the variance.
        eps: f32,
    }
}

impl NormParams {
    /// Elements along the outer axis.
    pub(crate) fn outer(&self) -> u32 {
        self.len / (self.inner * self.mid).max(1)
    }

    /// Whether every span of `width` neighbours along the inner axis is dense and starts at a multiple of
    /// `width` elements, on both sides.
    fn spans(&self, width: u32) -> bool {
        let samples = self.rows / self.per_sample.max(1);
        let steps = [
            (samples, self.x_n, self.out_n),
            (self.per_sample, self.x_r, self.out_r),
            (self.mid, self.x_m, self.out_m),
            (self.outer(), self.x_o, self.out_o),
        ];
        let aligned = |&(size, x, out): &(u32, u32, u32)| size <= 1 || (x % width == 0 && out % width == 0);
        self.x_i == 1 && self.out_i == 1 && self.inner.is_multiple_of(width) && steps.iter().all(aligned)
    }
}

/// One axis of a row.
#[derive(Debug, Clone, Copy, Default)]
struct Axis {
    size: usize,
    x: usize,
    out: usize,
    channel: usize,
}

/// The axes of a row, densest first, neighbours joined where one walk covers both; padded to three.
fn walk(axes: impl Iterator<Item = Axis>) -> [Axis; 3] {
    let mut sorted: ArrayVec<Axis, 3> = axes.filter(|a| a.size != 1).collect();
    sorted.sort_by_key(|a| (a.out, a.x));
    let mut joined: ArrayVec<Axis, 3> = ArrayVec::new();
    for axis in sorted {
        let next = |stride: usize, inner: &Axis| stride.saturating_mul(inner.size);
        match joined.last_mut() {
            Some(last)
                if axis.x == next(last.x, last)
                    && axis.out == next(last.out, last)
                    && axis.channel == next(last.channel, last) =>
            {
                last.size = last.size.saturating_mul(axis.size);
            }
            _ => joined.push(axis),
        }
    }
    let one = Axis { size: 1, ..Axis::default() };
    std::array::from_fn(|i| joined.get(i).copied().unwrap_or(one))
}

const NAME: &str = "norm";

impl Norm {
    fn options(&self, channels: usize) -> Result<()> {
        if !(self.eps >= 0.0 && self.eps.is_finite()) {
            return Err(Error::argument(NAME, "eps", "a finite number, at least 0", self.eps));
        }
        match self.kind {
            NormKind::Group { groups } if groups == 0 || !channels.is_multiple_of(groups) => {
                let wanted = format!("a number of groups that divides the {channels} channels");
                Err(Error::argument(NAME, "groups", wanted, groups))
            }
            _ => Ok(()),
        }
    }
}

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Norm {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/norm.cu");
    const WGSL: &'static str = include_str!("../../shaders/norm.wgsl");
    type Args<I, O> = NormArgs<I, O>;
    type Params = NormParams;

    fn check<I, O>(&self, args: &NormArgs<I, O>) -> Result<NormParams> {
        let NormArgs { x, weight, bias, scale, shift, out } = args;
        check::one_dtype(NAME, args, &[])?;
        let (ranks, wanted, channel_axis) = match self.kind {
            NormKind::Group { .. } => (2..=4, "2 to 4 axes [n, c, ..]", 1),
            NormKind::Layer | NormKind::Rms => (2..=3, "[n, c] or [n, t, c]", x.rank().saturating_sub(1)),
        };
        if !ranks.contains(&x.rank()) {
            return Err(Error::argument(NAME, "x", wanted, format!("{:?}", x.shape())));
        }
        let (n, c) = (x.shape()[0], x.shape()[channel_axis]);
        self.options(c)?;
        check::shape(NAME, "out", out, x.shape())?;
        let per_channel = [("weight", weight), ("bias", bias)];
        for (name, view) in per_channel.into_iter().filter_map(|(name, v)| Some((name, v.as_ref()?))) {
            check::shape(NAME, name, view, &[c])?;
        }
        let per_sample = [("scale", scale), ("shift", shift)];
        for (name, view) in per_sample.into_iter().filter_map(|(name, v)| Some((name, v.as_ref()?))) {
            check::shape(NAME, name, view, &[n, c])?;
        }

        let axis = |a: usize, channel| Axis {
            size: x.shape()[a],
            x: x.strides()[a],
            out: out.strides()[a],
            channel,
        };
        let channels = axis(channel_axis, 1);
        // From row to row of a sample, and the axes inside a row.
        let (rows, [i, m, o]) = match self.kind {
            NormKind::Group { groups } => {
                let of_group = Axis { size: c / groups, ..channels };
                let step = |stride: usize| stride.saturating_mul(of_group.size);
                let row = Axis {
                    size: groups,
                    x: step(channels.x),
                    out: step(channels.out),
                    channel: of_group.size,
                };
                (row, walk((2..x.rank()).map(|a| axis(a, 0)).chain([of_group])))
            }
            _ if x.rank() == 3 => (axis(1, 0), walk([channels].into_iter())),
            _ => (Axis { size: 1, ..Axis::default() }, walk([channels].into_iter())),
        };
        let size = |v: usize| check::scalar(NAME, "x", v);
        let written = |v: usize| check::scalar(NAME, "out", v);
        let stride = |name, view: &Option<View<I>>, a: usize| {
            view.as_ref().map_or(Ok(0), |v| check::scalar(NAME, name, v.strides()[a]))
        };
        // A stride along an axis of one is never walked, and may be anything.
        let walked = |size: usize, stride: usize| if size <= 1 { 0 } else { stride };
        Ok(NormParams {
            rows: size(n.saturating_mul(rows.size))?,
            per_sample: size(rows.size)?,
            len: size(i.size.saturating_mul(m.size).saturating_mul(o.size))?,
            inner: size(i.size)?,
            mid: size(m.size)?,
            x_n: size(walked(n, x.strides()[0]))?,
            x_r: size(walked(rows.size, rows.x))?,
            x_i: size(i.x)?,
            x_m: size(m.x)?,
            x_o: size(o.x)?,
            out_n: written(walked(n, out.strides()[0]))?,
            out_r: written(walked(rows.size, rows.out))?,
            out_i: written(i.out)?,
            out_m: written(m.out)?,
            out_o: written(o.out)?,
            ch_r: size(rows.channel)?,
            ch_i: size(i.channel)?,
            ch_m: size(m.channel)?,
            ch_o: size(o.channel)?,
            weight_c: stride("weight", weight, 0)?,
            bias_c: stride("bias", bias, 0)?,
            scale_n: stride("scale", scale, 0)?,
            scale_c: stride("scale", scale, 1)?,
            shift_n: stride("shift", shift, 0)?,
            shift_c: stride("shift", shift, 1)?,
            eps: self.eps,
        })
    }

    fn plan(&self, p: &NormParams, signature: &Signature, caps: &Caps) -> Result<Plan> {
        let size = signature.dtype("x").size() as u32;
        let aligned = |bytes: u32| signature.align("x") >= bytes && signature.align("out") >= bytes;
        let (width, threads, lanes, cache) = match caps.language {
            Language::Cuda { .. } => {
                let wide = 16 / size;
                let width = if aligned(16) && p.spans(wide) { wide } else { 1 };
                let spans = p.len / width;
                // Small rows take a warp each, large ones a block; a thread holds up to 32 elements.
                let (threads, lanes) = if spans <= 128 {
                    (128, 32)
                } else {
                    let threads = spans.div_ceil(4).next_power_of_two().clamp(128, 1024);
                    (threads, threads)
                };
                let each = spans.div_ceil(lanes).max(1).next_power_of_two();
                let held = if each * width <= if threads == 1024 { 16 } else { 32 } { each } else { 0 };
                (width, threads, lanes, held)
            }
            Language::Wgsl { f16, .. } => {
                // Two 16-bit elements fill a word where the adapter has no 16-bit storage.
                let packed = size == 2 && !(f16 && signature.dtype("x") == Dtype::F16);
                let width = if packed && aligned(4) && p.spans(2) { 2 } else { 1 };
                let threads = 256.min(caps.max_threads).next_power_of_two().min(caps.max_threads);
                let lanes = (p.len / width).div_ceil(8).max(1).next_power_of_two().min(threads);
                (width, threads, lanes, 0)
            }
        };
        // Channel parameters come in spans too, where they lie like the inner axis.
        let dense = |name: &str, strides: &[u32]| {
            !signature.has(name)
                || (signature.align(name) >= 16
                    && strides[0] == 1
                    && strides[1..].iter().all(|s| s % width == 0))
        };
        let affine_wide = p.ch_i == 1
            && [p.ch_r, p.ch_m, p.ch_o].iter().all(|c| c % width == 0)
            && dense("weight", &[p.weight_c])
            && dense("bias", &[p.bias_c])
            && dense("scale", &[p.scale_c, p.scale_n])
            && dense("shift", &[p.shift_c, p.shift_n]);
        let mut consts = Consts::new()
            .set("THREADS", threads)
            .set("LANES", lanes)
            .set("WIDTH", width)
            .set("FLAT", u32::from(p.len == p.inner))
            .set("CHANNEL_INNER", p.ch_i)
            .set("CENTER", u32::from(self.kind != NormKind::Rms))
            .set("ACT", self.activation.tag());
        consts = match caps.language {
            Language::Cuda { .. } => {
                consts.set("CACHE", cache).set("AFFINE_WIDE", u32::from(affine_wide && width > 1))
            }
            Language::Wgsl { subgroups, .. } => consts
                .set("PAIRS", u32::from(width == 2))
                .set("SUBGROUP_SUM", u32::from(subgroups && lanes == threads)),
        };
        let rows = if p.len == 0 { 0 } else { u64::from(p.rows) };
        Ok(Plan {
            // CUDA has a function `norm` of its own.
            entry: "normalize",
            consts,
            grid: fold_grid(NAME, rows.div_ceil(u64::from(threads / lanes)), caps)?,
            block: [threads, 1, 1],
            shared_bytes: match caps.language {
                Language::Cuda { .. } => 0,
                Language::Wgsl { .. } => 4 * threads,
            },
        })
    }

    fn cost(&self, p: &NormParams, signature: &Signature) -> Cost {
        let total = f64::from(p.rows) * f64::from(p.len);
        let size = signature.dtype("x").size() as f64;
        // Mean, deviation and its square, affine map; an activation counts as four.
        let activation = if self.activation == Activation::None { 0.0 } else { 4.0 };
        let shared = ["weight", "bias"].into_iter().filter(|s| signature.has(s)).count() as f64;
        let own = ["scale", "shift"].into_iter().filter(|s| signature.has(s)).count() as f64;
        let samples = f64::from(p.rows) / f64::from(p.per_sample.max(1));
        let groups = if p.ch_r == 0 { 1.0 } else { f64::from(p.per_sample) };
        let channels = groups * if p.ch_r == 0 { f64::from(p.len) } else { f64::from(p.ch_r) };
        Cost {
            flops: total * (7.0 + activation),
            bytes: size * (2.0 * total + channels * (shared + own * samples)),
        }
    }

    unsafe fn cpu(&self, p: &NormParams, args: NormArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
        crate::cpu::norm::run(*self, p, args, cpu);
        Ok(())
    }

    fn map<I, O, J, P>(
        args: NormArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<NormArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, _: &NormArgs<I, O>, operand: &str) -> Option<usize> {
        (!matches!(operand, "weight" | "bias")).then_some(0)
    }
}
