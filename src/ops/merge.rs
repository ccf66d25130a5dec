//! Attention over parts of the keys, made whole: the spec.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// Results of [`Attention`](super::Attention) over disjoint sets of keys, merged into that over all of them:
/// `out = sum over s of w[s] parts[s]` with `w = softmax(lses)` over the parts.
///
/// Each part has to give its keys the scores that they have in the whole. Those of
/// [`Attention::splits()`](super::Attention::splits) do. A call of its own for each part takes its own last key for the place
/// of the last query: windows and slopes are then those of the part, and sinks belong to one of the calls.
///
/// As exact as attention in one piece (section 2.3 of FlashAttention, Dao et al. 2022, arXiv:2205.14135; Ring Attention,
/// Liu et al. 2023, arXiv:2310.01889): a long cache is split among blocks, a long context among devices. A part whose
/// `lses` is -infinity has seen no key and counts for nothing, whatever it holds.
///
/// ```
/// use advect::{Cpu, View, ops::{Merge, MergeArgs}};
/// // Two parts of one query. The sum below the fraction line of the first is three times that of the second.
/// let (parts, lses) = ([4.0f32, 8.0], [3.0f32.ln(), 0.0]);
/// let mut out = [0.0f32];
/// Cpu::new()?.run(&Merge, MergeArgs {
///     parts: View::of(&parts, &[2, 1, 1, 1, 1])?,
///     lses: View::of(&lses, &[2, 1, 1, 1])?,
///     out: View::of_mut(&mut out, &[1, 1, 1, 1])?,
///     lse: None,
/// })?;
/// assert!((out[0] - 5.0).abs() < 1e-6);
/// # Ok::<(), advect::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Merge;

crate::operands! {
    /// Operands of [`Merge`]: axes are (part, batch, head, query, element of the head), with free strides.
    pub struct MergeArgs {
        /// Results of attention, `[s, b, h, n, d]`, in f32 or the dtype of `out`.
        parts: input,
        /// Natural logarithms of their sums, `[s, b, h, n]`, f32.
        lses: input,
        /// The result, `[b, h, n, d]`.
        out: output,
        /// The logarithm of the whole sum, `[b, h, n]`, f32; -infinity where that of every part is.
        lse: extra,
    }
}

crate::params! {
    /// Scalars of the merge kernels.
    pub struct MergeParams {
        /// Threads: one an element of `out`, and one a query at least.
        total: u32,
        /// Parts.
        parts: u32,
        /// Heads.
        heads: u32,
        /// Queries.
        n: u32,
        /// Elements of a head.
        d: u32,
        /// Elements of a head, or 1 where there are none.
        columns: u32,
        /// Stride of `parts` along parts.
        parts_s: u32,
        /// Stride of `parts` along the batch.
        parts_b: u32,
        /// Stride of `parts` along heads.
        parts_h: u32,
        /// Stride of `parts` along queries.
        parts_n: u32,
        /// Stride of `parts` along elements.
        parts_d: u32,
        /// Stride of `lses` along parts.
        lses_s: u32,
        /// Stride of `lses` along the batch.
        lses_b: u32,
        /// Stride of `lses` along heads.
        lses_h: u32,
        /// Stride of `lses` along queries.
        lses_n: u32,
        /// Stride of `out` along the batch.
        out_b: u32,
        /// Stride of `out` along heads.
        out_h: u32,
        /// Stride of `out` along queries.
        out_n: u32,
        /// Stride of `out` along elements.
        out_d: u32,
        /// Stride of `lse` along the batch.
        lse_b: u32,
        /// Stride of `lse` along heads.
        lse_h: u32,
        /// Stride of `lse` along queries.
        lse_n: u32,
    }
}

const NAME: &str = "merge";

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Merge {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/merge.cu");
    const WGSL: &'static str = include_str!("../../shaders/merge.wgsl");
    type Args<I, O> = MergeArgs<I, O>;
    type Params = MergeParams;

    fn check<I, O>(&self, args: &MergeArgs<I, O>) -> Result<MergeParams> {
        let MergeArgs { parts, lses, out, lse } = args;
        let dtype = check::one_dtype(NAME, args, &["parts", "lses", "lse"])?;
        check::dtype(NAME, "parts", parts, &[Dtype::F32, dtype])?;
        check::dtype(NAME, "lses", lses, &[Dtype::F32])?;
        check::rank(NAME, "parts", parts, &["s", "b", "h", "n", "d"])?;
        let &[s, b, h, n, d] = parts.shape() else { unreachable!("the rank was checked") };
        check::shape(NAME, "lses", lses, &[s, b, h, n])?;
        check::shape(NAME, "out", out, &[b, h, n, d])?;
        let size = |arg, n: usize| check::scalar(NAME, arg, n);
        let mut lse_strides = [0; 3];
        if let Some(lse) = lse {
            check::dtype(NAME, "lse", lse, &[Dtype::F32])?;
            check::shape(NAME, "lse", lse, &[b, h, n])?;
            for (to, &stride) in lse_strides.iter_mut().zip(lse.strides()) {
                *to = size("lse", stride)?;
            }
        }
        let columns = d.max(1);
        let total = [h, n, columns].iter().fold(b, |total, &n| total.saturating_mul(n));
        let (ps, ls, os) = (parts.strides(), lses.strides(), out.strides());
        Ok(MergeParams {
            total: if d == 0 && lse.is_none() { 0 } else { size("out", total)? },
            parts: size("parts", s)?,
            heads: size("parts", h)?,
            n: size("parts", n)?,
            d: size("parts", d)?,
            columns: size("parts", columns)?,
            parts_s: size("parts", ps[0])?,
            parts_b: size("parts", ps[1])?,
            parts_h: size("parts", ps[2])?,
            parts_n: size("parts", ps[3])?,
            parts_d: size("parts", ps[4])?,
            lses_s: size("lses", ls[0])?,
            lses_b: size("lses", ls[1])?,
            lses_h: size("lses", ls[2])?,
            lses_n: size("lses", ls[3])?,
            out_b: size("out", os[0])?,
            out_h: size("out", os[1])?,
            out_n: size("out", os[2])?,
            out_d: size("out", os[3])?,
            lse_b: lse_strides[0],
            lse_h: lse_strides[1],
            lse_n: lse_strides[2],
        })
    }

    fn plan(&self, p: &MergeParams, _: &Signature, caps: &Caps) -> Result<Plan> {
        let threads = 256.min(caps.max_threads);
        Ok(Plan {
            entry: NAME,
            // Neighbouring threads walk the axis along which the result is dense.
            consts: Consts::new().set("THREADS", threads).set("ALONG_N", u32::from(p.out_n < p.out_d)),
            grid: fold_grid(NAME, u64::from(p.total).div_ceil(u64::from(threads)), caps)?,
            block: [threads, 1, 1],
            shared_bytes: 0,
        })
    }

    fn cost(&self, p: &MergeParams, signature: &Signature) -> Cost {
        let [total, parts, columns] = [p.total, p.parts, p.columns].map(f64::from);
        let [read, written] = ["parts", "out"].map(|name| signature.dtype(name).size() as f64);
        let sums = total / columns * (parts + f64::from(u8::from(signature.has("lse"))));
        Cost { flops: 2.0 * total * parts, bytes: total * (parts * read + written) + 4.0 * sums }
    }

    unsafe fn cpu(&self, p: &MergeParams, args: MergeArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
        crate::cpu::merge::run(p, args, cpu);
        Ok(())
    }

    fn map<I, O, J, P>(
        args: MergeArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<MergeArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, _: &MergeArgs<I, O>, operand: &str) -> Option<usize> {
        Some(usize::from(operand == "parts" || operand == "lses"))
    }
}
