//! Scaled dot-product attention: the spec.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// Attention over heads: `out = softmax(softmax_scale * Q K^T + bias) V`, the softmax taken over the keys that a query
/// sees.
///
/// - **Heads.** K and V may have fewer heads than Q, by a whole factor: query head `h` then uses head
///   `h / (heads of Q / heads of K)` (grouped and multi-query attention). The heads of V may have another size than those
///   of Q and K.
/// - **Scores.** `softmax_scale * q . k`, then [`Attention::softcap()`], then `bias` and the slopes of ALiBi are added.
/// - **Which keys a query sees**: those inside [`Attention::causal`] or [`Attention::window()`], before the length of its
///   sequence, where `mask` is not 0 and where `bias` is above -1e38. A query that sees no key has the result 0.
/// - **What else goes into the sum below the fraction line**: `sinks`.
/// - `lse` is the logarithm of that sum, from which partial results are merged and gradients computed.
///
/// - **Where sequences lie.** One a batch entry; or one behind the other along the tokens, without padding, with the places
///   where they start (`cu_seqlens_q`, `cu_seqlens_k`), which count as the nearest token where there is none; or keys in
///   pages of a common pool (`block_table`).
/// - **Few queries, many keys.** [`Attention::splits()`] gives each part of the keys blocks of its own, whose results
///   [`Merge`](super::Merge) makes whole.
///
/// All of them go together, but keys lie in a row or in pages. Joint attention of two streams (MM-DiT) needs no operand of its own: their projections
/// write into slices of one buffer along the tokens, as every operand of [`Matmul`](super::Matmul) may be strided.
///
/// Computed with the online softmax of FlashAttention-2 (Dao 2023, arXiv:2307.08691): scores exist one
/// tile at a time, never as an `nq` by `nk` matrix. Scores up to 1e38 either way are safe, with `q . k` and
/// `softmax_scale * q` that are too: each is rounded and compared with the largest before it is exponentiated. Tiles of keys that no query of a block sees are skipped. Of a hidden key `k`
/// may hold anything, `v` any number but NaN and infinity; past the lengths of sequences both may hold anything.
///
/// Kernels for GPUs take heads of at most 512 elements; the CPU takes up to 65536.
///
/// ```
/// use advect::{Cpu, View, ops::{Attention, AttentionArgs}};
/// // One head of 2 numbers: the first query looks at the second key, the other at both alike.
/// let (q, k) = ([0.0f32, 50.0, 0.0, 0.0], [1.0f32, 0.0, 0.0, 1.0]);
/// let (v, mut out) = ([1.0f32, 2.0, 3.0, 4.0], [0.0f32; 4]);
/// let shape = [1, 1, 2, 2];
/// let view = |x| View::of(x, &shape);
/// Cpu::new()?.run(
///     &Attention::new(2),
///     AttentionArgs::new(view(&q)?, view(&k)?, view(&v)?, View::of_mut(&mut out, &shape)?),
/// )?;
/// assert!(out.iter().zip([3.0, 4.0, 2.0, 3.0]).all(|(got, want)| (got - want).abs() < 1e-6));
/// # Ok::<(), advect::Error>(())
/// ```
///
/// ```
/// use advect::{Cpu, View, ops::{Attention, AttentionArgs}};
/// // Two sequences in a row, of two tokens and of one, which do not see each other.
/// let (x, starts, mut out) = ([1.0f32, 3.0, 5.0], [0i32, 2, 3], [0.0f32; 3]);
/// let shape = [1, 1, 3, 1];
/// let view = || View::of(&x, &shape);
/// let mut args = AttentionArgs::new(view()?, view()?, view()?, View::of_mut(&mut out, &shape)?);
/// args.cu_seqlens_q = Some(View::of(&starts, &[3])?);
/// args.cu_seqlens_k = Some(View::of(&starts, &[3])?);
/// // With a scale of 0 each token of a sequence counts the same.
/// Cpu::new()?.run(&Attention::scaled(0.0), args)?;
/// assert_eq!(out, [2.0, 2.0, 5.0]);
/// # Ok::<(), advect::Error>(())
/// ```
///
/// ```
/// use advect::ops::Attention;
/// // Mistral's: causal, 4096 tokens back. Gemma 2's: scores capped at 50.
/// let mistral = Attention::new(128).window(Some(4095), Some(0));
/// let gemma = Attention::new(256).causal().softcap(50.0);
/// assert_eq!(gemma.window.right, mistral.window.right);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// What the scores are multiplied with before the softmax; any finite number. 0 makes every score 0, whatever `q` and
    /// `k` hold.
    pub softmax_scale: f32,
    /// Which keys a query sees.
    pub window: Window,
    /// Scores become `softcap * tanh(score / softcap)`, after the scale and before the window (Gemma 2, arXiv:2408.00118):
    /// a number from 1e-30 to 1e30, or 0, which leaves them as they are.
    pub softcap: f32,
    /// With `cu_seqlens_q`, the queries of the longest sequence; `None` is all there are.
    pub max_seqlen_q: Option<u32>,
    /// With `cu_seqlens_k`, its keys.
    pub max_seqlen_k: Option<u32>,
    /// Parts of the keys that have results of their own; 1 is the whole.
    pub splits: u32,
}

/// Which keys a query sees. The last query and the last key are at the same place: query `i` of `nq` is at
/// `i + nk - nq` among `nk` keys. With lengths, those of its sequence stand for `nq` and `nk`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Window {
    /// How many keys before that place; `None` is all.
    pub left: Option<u32>,
    /// How many keys after it; `None` is all.
    pub right: Option<u32>,
}

impl Window {
    /// Whether it hides nothing.
    pub fn is_all(self) -> bool {
        self == Self::default()
    }

    /// What query `i` sees is `max(0, i + from)..min(nk, i + until)`: `from` and `until`, no farther than makes a
    /// difference, also where lengths move them by up to `nq` or `nk`.
    pub(crate) fn bounds(self, nq: usize, nk: usize) -> [i64; 2] {
        let (nq, nk) = (nq as i64, nk as i64);
        let far = 2 * (nq + nk);
        let from = self.left.map_or(-far, |left| (nk - nq - i64::from(left)).max(-far));
        let until = self.right.map_or(far, |right| (nk - nq + i64::from(right) + 1).min(far));
        [from, until]
    }
}

impl Attention {
    /// The usual scale for heads of `head_dim` elements, `1 / sqrt(head_dim)` (Vaswani et al. 2017,
    /// arXiv:1706.03762).
    pub fn new(head_dim: usize) -> Self {
        Self::scaled((1.0 / (head_dim.max(1) as f64).sqrt()) as f32)
    }

    /// With this scale.
    pub fn scaled(softmax_scale: f32) -> Self {
        let (window, softcap, max_seqlen_q, max_seqlen_k) = (Window::default(), 0.0, None, None);
        Self { softmax_scale, window, softcap, max_seqlen_q, max_seqlen_k, splits: 1 }
    }

    /// A query sees no key after its place: the last query sees all, the one before it all but one.
    #[must_use]
    pub fn causal(self) -> Self {
        let window = Window { right: Some(0), ..self.window };
        Self { window, ..self }
    }

    /// A query sees `left` keys before its place, the one there, and `right` after it (sliding window, Beltagy et al.
    /// 2020, arXiv:2004.05150); `None` is all.
    #[must_use]
    pub fn window(self, left: Option<u32>, right: Option<u32>) -> Self {
        Self { window: Window { left, right }, ..self }
    }

    /// Bounds scores by `softcap * tanh(score / softcap)`.
    #[must_use]
    pub fn softcap(self, softcap: f32) -> Self {
        Self { softcap, ..self }
    }

    /// Of packed sequences, how many queries and keys the longest has: what a launch, a bias and a mask are sized for.
    /// `None` is all there are, and what is not packed has. Tokens of a longer sequence beyond that are not computed.
    #[must_use]
    pub fn max_seqlens(self, q: Option<u32>, k: Option<u32>) -> Self {
        Self { max_seqlen_q: q, max_seqlen_k: k, ..self }
    }

    /// Cuts the keys of a sequence into parts, each with results of its own, as [`Merge`](super::Merge) takes them:
    /// split-KV decoding (Flash-Decoding, Dao et al. 2023). Part `s` has the keys from `s * c` on and before `(s + 1) * c`,
    /// with `c` the keys of the sequence over `splits`, rounded up to a multiple of 64; the last parts may have none.
    /// `lse` is then necessary, and a sink counts in part 0.
    #[must_use]
    pub fn splits(self, splits: u32) -> Self {
        Self { splits, ..self }
    }
}

crate::operands! {
    /// Operands of [`Attention`]: axes are (batch, head, token, element of the head), `q`, `k`, `v` and `out` of one
    /// dtype, with free strides. The Q, K and V of a packed projection `[b, n, 3, h, d]` are three views of it; the
    /// heads of an NCHW image are views whose last stride is the number of pixels. What is the same along an axis is
    /// repeated there by [`View::expand`].
    pub struct AttentionArgs {
        /// Queries, `[b, h, nq, d]`.
        q: input,
        /// Keys, `[b, h / g, nk, d]`, one head for each `g` heads of `q`.
        k: input,
        /// Values, `[b, h / g, nk, dv]`.
        v: input,
        /// Added to the scores, `[b, h, nq, nk]`, in f32 or the dtype of `q`. What is -1e38 or less hides the key.
        bias: optional,
        /// `[b, h, nq, nk]`, u8: 0 hides the key.
        mask: optional,
        /// `[b]`, i32: how many of the `nq` queries a sequence has. The results of others are 0. Lengths below 0 count
        /// as 0, those above `nq` as `nq`.
        q_lengths: optional,
        /// `[b]`, i32: how many of the `nk` keys it has. The others are hidden.
        k_lengths: optional,
        /// `[b + 1]`, i32, not decreasing: where the queries of each sequence start, and where the last ends. `q`, `out` and
        /// `lse` then have a batch of 1 and the tokens of all sequences, `nq` in other operands is the longest. What belongs
        /// to no sequence is not written.
        cu_seqlens_q: optional,
        /// The same of keys.
        cu_seqlens_k: optional,
        /// `[b, pages]`, i32: the keys of a sequence in pages (PagedAttention, Kwon et al. 2023, arXiv:2309.06180). `k` and
        /// `v` are then `[pages of all, h / g, tokens of a page, d]`, key `j` of a sequence being token `j % tokens` of page
        /// `block_table[b, j / tokens]`; an entry outside of the pool counts as the nearest inside. Entries past the length
        /// of a sequence are not read.
        block_table: optional,
        /// `[b, h]`, f32: slopes of ALiBi (Press et al. 2021, arXiv:2108.12409), by which scores fall with the distance
        /// between the places of query and key.
        slopes: optional,
        /// `[h]`, f32: a score that joins the softmax of every query of a head, without a value (attention sinks, Xiao et
        /// al. 2023, arXiv:2309.17453); -1e38 or less is none.
        sinks: optional,
        /// The result, `[b, h, nq, dv]`; of several splits `[splits, b, h, nq, dv]`.
        out: output,
        /// `[b, h, nq]`, or `[splits, b, h, nq]`, f32: the natural logarithm of the sum of the exponentials of all scores, sinks included;
        /// -infinity where there are none.
        lse: extra,
    }
}

impl<I, O> AttentionArgs<I, O> {
    /// Without anything optional, which is then set field by field.
    pub fn new(q: View<I>, k: View<I>, v: View<I>, out: View<O>) -> Self {
        let (bias, mask, q_lengths, k_lengths, slopes, sinks) = (None, None, None, None, None, None);
        let (cu_seqlens_q, cu_seqlens_k, block_table, lse) = (None, None, None, None);
        Self {
            q,
            k,
            v,
            bias,
            mask,
            q_lengths,
            k_lengths,
            cu_seqlens_q,
            cu_seqlens_k,
            block_table,
            slopes,
            sinks,
            out,
            lse,
        }
    }
}

crate::params! {
    /// Scalars of the attention kernels.
    pub struct AttentionParams {
        /// Batch times heads.
        pairs: u32,
        /// Heads.
        heads: u32,
        /// Queries, of the longest sequence.
        nq: u32,
        /// Keys, of the longest sequence.
        nk: u32,
        /// Queries of all packed sequences.
        q_total: u32,
        /// Keys of all packed sequences; or pages.
        k_total: u32,
        /// Tokens of a page.
        page: u32,
        /// Parts of the keys.
        splits: u32,
        /// Elements of a head of `q` and `k`.
        d: u32,
        /// Elements of a head of `v` and `out`.
        dv: u32,
        /// Heads of `q` for each of `k`.
        group: u32,
        /// With a window, query i sees the keys from max(0, i + band_from) on; a signed number.
        band_from: u32,
        /// And those before min(nk, i + band_until); a signed number.
        band_until: u32,
        /// The softcap times log2(e).
        cap: f32,
        /// tanh(s / cap) is (1 - e) / (1 + e) with e = 2^(-cap_rate s), of scores in units of log2(e).
        cap_rate: f32,
        /// The softmax scale times log2(e), so that kernels exponentiate with base 2. Never 0.
        scale_log2e: f32,
        /// Stride of `q` along the batch.
        q_b: u32,
        /// Stride of `q` along heads.
        q_h: u32,
        /// Stride of `q` along tokens.
        q_n: u32,
        /// Stride of `q` along elements.
        q_d: u32,
        /// Stride of `k` along the batch.
        k_b: u32,
        /// Stride of `k` along heads.
        k_h: u32,
        /// Stride of `k` along tokens.
        k_n: u32,
        /// Stride of `k` along elements.
        k_d: u32,
        /// Stride of `v` along the batch.
        v_b: u32,
        /// Stride of `v` along heads.
        v_h: u32,
        /// Stride of `v` along tokens.
        v_n: u32,
        /// Stride of `v` along elements.
        v_d: u32,
        /// Stride of `out` along the batch.
        out_b: u32,
        /// Stride of `out` along heads.
        out_h: u32,
        /// Stride of `out` along tokens.
        out_n: u32,
        /// Stride of `out` along elements.
        out_d: u32,
        /// Stride of `out` along splits.
        out_s: u32,
        /// Stride of `bias` along the batch.
        bias_b: u32,
        /// Stride of `bias` along heads.
        bias_h: u32,
        /// Stride of `bias` along queries.
        bias_q: u32,
        /// Stride of `bias` along keys.
        bias_k: u32,
        /// Stride of `mask` along the batch.
        mask_b: u32,
        /// Stride of `mask` along heads.
        mask_h: u32,
        /// Stride of `mask` along queries.
        mask_q: u32,
        /// Stride of `mask` along keys.
        mask_k: u32,
        /// Stride of `q_lengths`.
        q_lengths_b: u32,
        /// Stride of `k_lengths`.
        k_lengths_b: u32,
        /// Stride of `cu_seqlens_q`.
        cu_seqlens_q_b: u32,
        /// Stride of `cu_seqlens_k`.
        cu_seqlens_k_b: u32,
        /// Stride of `block_table` along the batch.
        block_table_b: u32,
        /// Stride of `block_table` along pages.
        block_table_p: u32,
        /// Stride of `slopes` along the batch.
        slopes_b: u32,
        /// Stride of `slopes` along heads.
        slopes_h: u32,
        /// Stride of `sinks`.
        sinks_h: u32,
        /// Stride of `lse` along the batch.
        lse_b: u32,
        /// Stride of `lse` along heads.
        lse_h: u32,
        /// Stride of `lse` along queries.
        lse_n: u32,
        /// Stride of `lse` along splits.
        lse_s: u32,
    }
}

const NAME: &str = "attention";

/// The largest head of the GPU kernels: their accumulators live in registers.
const MAX_HEAD_DIM: u32 = 512;
/// The largest anywhere.
const MAX_CHANNELS: usize = 1 << 16;
/// The largest of the tensor-core kernel; beyond it the tiled one serves 16-bit dtypes too.
const MMA_MAX_HEAD_DIM: u32 = 256;

/// The most parts of the keys.
const MAX_SPLITS: u32 = 1 << 16;
/// What the keys of a part are a multiple of.
pub(crate) const SPLIT_KEYS: usize = 64;

/// Queries of a block, in every GPU kernel, or half of them.
const BLOCK_M: u32 = 64;

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Attention {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/attention.cu");
    const WGSL: &'static str = include_str!("../../shaders/attention.wgsl");
    type Args<I, O> = AttentionArgs<I, O>;
    type Params = AttentionParams;

    fn check<I, O>(&self, args: &AttentionArgs<I, O>) -> Result<AttentionParams> {
        let AttentionArgs { q, k, v, out, .. } = args;
        // Kernels work in powers of two: the scale times log2(e) must be a number too.
        if !(self.softmax_scale * std::f32::consts::LOG2_E).is_finite() {
            let wanted = "a number that stays finite times log2(e)";
            return Err(Error::argument(NAME, "softmax_scale", wanted, self.softmax_scale));
        }
        let dtype = check::one_dtype(NAME, args, &EXTRAS)?;
        check::rank(NAME, "q", q, &["b", "h", "nq", "d"])?;
        check::rank(NAME, "k", k, &["b", "h", "nk", "d"])?;
        check::rank(NAME, "v", v, &["b", "h", "nk", "dv"])?;
        let (&[_, h, _, d], &[_, kv_heads, ..], &[.., dv]) = (q.shape(), k.shape(), v.shape()) else {
            unreachable!("the ranks were checked")
        };
        let places = Places::of(self, args)?;
        let Places { b, nq, nk, q: [q_b, q_n], k: [k_b, k_n], .. } = places;
        // As many heads, or fewer that divide them.
        let divides = kv_heads == h || (kv_heads > 0 && h.is_multiple_of(kv_heads));
        check::shape(NAME, "q", q, &[q_b, h, q_n, d])?;
        check::shape(NAME, "k", k, &[k_b, if divides { kv_heads } else { h }, k_n, d])?;
        check::shape(NAME, "v", v, &[k_b, kv_heads, k_n, dv])?;
        for (arg, got) in [("q", d), ("v", dv)] {
            if got > MAX_CHANNELS {
                let wanted = format!("at most {MAX_CHANNELS} elements of a head");
                return Err(Error::argument(NAME, arg, wanted, got));
            }
        }
        if !(1..=MAX_SPLITS).contains(&self.splits) {
            return Err(Error::argument(NAME, "splits", format!("1 to {MAX_SPLITS}"), self.splits));
        }
        let splits = if self.splits == 1 { &[][..] } else { &[self.splits as usize][..] };
        check::shape(NAME, "out", out, &[splits, &[q_b, h, q_n, dv]].concat())?;
        if self.splits > 1 && args.lse.is_none() {
            return Err(Error::argument(NAME, "lse", "a view, since splits are merged by it", "none"));
        }
        let extras = Extras::check(args, dtype, [b, h, nq, nk], &[splits, &[q_b, h, q_n]].concat())?;
        if self.softcap != 0.0 && !(1e-30..=1e30).contains(&self.softcap) {
            return Err(Error::argument(NAME, "softcap", "0, or a number from 1e-30 to 1e30", self.softcap));
        }
        // Kernels compute places among the keys with signed numbers.
        if nq.saturating_add(nk) >= 1 << 28 {
            return Err(Error::argument(NAME, "q", "nq + nk below 2^28", format!("{nq} + {nk}")));
        }
        // And the places of packed tokens.
        for (arg, n) in [("q", q_n), ("k", k_b.max(k_n))] {
            if n >= 1 << 30 {
                return Err(Error::argument(NAME, arg, "below 2^30 tokens or pages", n));
            }
        }
        let [from, until] = if self.window.is_all() { [0; 2] } else { self.window.bounds(nq, nk) };
        let size = |arg, n: usize| check::scalar(NAME, arg, n);
        let (qs, ks, vs) = (q.strides(), k.strides(), v.strides());
        let (out_s, outs) = match out.strides() {
            [s, outs @ ..] if self.splits > 1 => (*s, outs),
            outs => (0, outs),
        };
        // With a scale of 0 every score is 0, as that of heads without elements: kernels read none, and multiply with
        // another scale, which leaves a masked -infinity what it is.
        let (scale, d) = if self.softmax_scale == 0.0 { (1.0, 0) } else { (self.softmax_scale, d) };
        Ok(AttentionParams {
            pairs: size("q", b.saturating_mul(h))?,
            heads: size("q", h)?,
            nq: size("q", nq)?,
            nk: size("k", nk)?,
            q_total: size("q", q_n)?,
            k_total: size("k", if args.block_table.is_some() { k_b } else { k_n })?,
            page: size("k", k_n)?.max(1),
            splits: self.splits,
            d: size("q", d)?,
            dv: size("v", dv)?,
            group: size("k", h / kv_heads.max(1))?.max(1),
            band_from: from as i32 as u32,
            band_until: until as i32 as u32,
            cap: (f64::from(self.softcap) * std::f64::consts::LOG2_E) as f32,
            cap_rate: if self.softcap > 0.0 { 2.0 / self.softcap } else { 0.0 },
            scale_log2e: (f64::from(scale) * std::f64::consts::LOG2_E) as f32,
            q_b: size("q", qs[0])?,
            q_h: size("q", qs[1])?,
            q_n: size("q", qs[2])?,
            q_d: size("q", qs[3])?,
            k_b: size("k", ks[0])?,
            k_h: size("k", ks[1])?,
            k_n: size("k", ks[2])?,
            k_d: size("k", ks[3])?,
            v_b: size("v", vs[0])?,
            v_h: size("v", vs[1])?,
            v_n: size("v", vs[2])?,
            v_d: size("v", vs[3])?,
            out_b: size("out", outs[0])?,
            out_h: size("out", outs[1])?,
            out_n: size("out", outs[2])?,
            out_d: size("out", outs[3])?,
            out_s: size("out", out_s)?,
            bias_b: extras.bias[0],
            bias_h: extras.bias[1],
            bias_q: extras.bias[2],
            bias_k: extras.bias[3],
            mask_b: extras.mask[0],
            mask_h: extras.mask[1],
            mask_q: extras.mask[2],
            mask_k: extras.mask[3],
            q_lengths_b: extras.q_lengths[0],
            k_lengths_b: extras.k_lengths[0],
            cu_seqlens_q_b: extras.cu_seqlens_q[0],
            cu_seqlens_k_b: extras.cu_seqlens_k[0],
            block_table_b: extras.block_table[0],
            block_table_p: extras.block_table[1],
            slopes_b: extras.slopes[0],
            slopes_h: extras.slopes[1],
            sinks_h: extras.sinks[0],
            lse_b: extras.lse[0],
            lse_h: extras.lse[1],
            lse_n: extras.lse[2],
            lse_s: extras.lse_s,
        })
    }

    fn plan(&self, p: &AttentionParams, signature: &Signature, caps: &Caps) -> Result<Plan> {
        for (arg, got) in [("q", p.d), ("v", p.dv)] {
            if got > MAX_HEAD_DIM {
                let (what, limit, target) = ("elements of a head", MAX_HEAD_DIM.into(), caps.name.clone());
                return Err(Error::Limit { op: NAME, arg, what, got: got.into(), limit, target });
            }
        }
        match caps.language {
            Language::Cuda { arch }
                if arch >= 80 && signature.dtype("q") != Dtype::F32 && p.d.max(p.dv) <= MMA_MAX_HEAD_DIM =>
            {
                mma(*self, p, signature, caps, arch)
            }
            Language::Cuda { .. } => tile(*self, p, signature, caps, Consts::new().set("MMA", 0u32), 4),
            Language::Wgsl { f16, subgroups, .. } => {
                let half = f16 && signature.dtype("q") == Dtype::F16;
                // Lanes of a subgroup that share a row: 16 threads hold one.
                let lanes = if subgroups { caps.subgroup[0].clamp(1, 16) } else { 1 };
                let lanes = if lanes.is_power_of_two() { lanes } else { 1 };
                let consts = Consts::new()
                    .set("TILE_F16", u32::from(half))
                    .set("LANES", lanes)
                    .set("SHUFFLE", u32::from(lanes > 1))
                    .set("ACROSS", u32::from(lanes < 16));
                tile(*self, p, signature, caps, consts, if half { 2 } else { 4 })
            }
        }
    }

    fn cost(&self, p: &AttentionParams, signature: &Signature) -> Cost {
        let [pairs, nq, nk, d, dv, group] = [p.pairs, p.nq, p.nk, p.d, p.dv, p.group].map(f64::from);
        let both = d + dv;
        let size = signature.dtype("q").size() as f64;
        // Of the scores, those that a window leaves.
        let seen = if self.window.is_all() { nq * nk } else { seen(p) };
        // Of packed sequences only the sum is known: they count as equally long.
        let batch = pairs / f64::from(p.heads.max(1));
        let packed = |name, n: f64, total: u32| {
            if signature.has(name) && n > 0.0 { (f64::from(total) / (n * batch)).min(1.0) } else { 1.0 }
        };
        let (of_q, of_k) = (packed("cu_seqlens_q", nq, p.q_total), packed("cu_seqlens_k", nk, p.k_total));
        let queries = nq * of_q * f64::from(p.splits);
        // What is repeated by a stride of 0 is read once.
        let scores = |name, strides: [u32; 4]| {
            let axes = [batch, p.heads.into(), nq, nk].into_iter().zip(strides);
            let count: f64 = axes.filter(|(_, stride)| *stride != 0).map(|(n, _)| n).product();
            if signature.has(name) { count * signature.dtype(name).size() as f64 } else { 0.0 }
        };
        let added = scores("bias", [p.bias_b, p.bias_h, p.bias_q, p.bias_k])
            + scores("mask", [p.mask_b, p.mask_h, p.mask_q, p.mask_k]);
        let lse = if signature.has("lse") { 4.0 * pairs * queries } else { 0.0 };
        Cost {
            flops: 2.0 * pairs * seen * of_q * of_k * both,
            bytes: pairs * (queries + nk * of_k / group) * both * size + added + lse,
        }
    }

    unsafe fn cpu(
        &self,
        p: &AttentionParams,
        args: AttentionArgs<&[u8], &mut [u8]>,
        cpu: &Cpu,
    ) -> Result<()> {
        crate::cpu::attention::run(*self, p, args, cpu)
    }

    fn map<I, O, J, P>(
        args: AttentionArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<AttentionArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, args: &AttentionArgs<I, O>, operand: &str) -> Option<usize> {
        let packed = args.cu_seqlens_q.is_some() || args.cu_seqlens_k.is_some();
        match operand {
            _ if packed => None,
            "sinks" => None,
            "k" | "v" if args.block_table.is_some() => None,
            "out" | "lse" if self.splits > 1 => Some(1),
            _ => Some(0),
        }
    }
}

/// How many sequences there are, how long they may be, and the sizes that operands have for it.
pub(crate) struct Places {
    /// Sequences.
    pub(crate) b: usize,
    /// Queries and keys of the longest.
    pub(crate) nq: usize,
    pub(crate) nk: usize,
    /// Batch and tokens of `q` and `out`.
    q: [usize; 2],
    /// Batch and tokens of `k` and `v`; or pages, and the tokens of one.
    k: [usize; 2],
}

impl Places {
    pub(crate) fn of<I, O>(op: &Attention, args: &AttentionArgs<I, O>) -> Result<Self> {
        let (&[q_b, _, q_n, _], &[k_b, _, k_n, _]) = (args.q.shape(), args.k.shape()) else {
            unreachable!("the ranks were checked")
        };
        let sequences = |name, starts: Option<&View<I>>| {
            let Some(starts) = starts else { return Ok(None) };
            check::rank(NAME, name, starts, &["b + 1"])?;
            match starts.shape()[0].checked_sub(1) {
                Some(b) => Ok(Some(b)),
                None => Err(Error::argument(NAME, name, "b + 1 places of sequences", "none")),
            }
        };
        let longest = |name, max: Option<u32>, packed: bool, n: usize| match (max, packed) {
            (Some(max), true) => Ok(n.min(max as usize)),
            (Some(max), false) => {
                let wanted = "none, since sequences are not packed (there is no cu_seqlens)";
                Err(Error::argument(NAME, name, wanted, max))
            }
            (None, _) => Ok(n),
        };
        let b_q = sequences("cu_seqlens_q", args.cu_seqlens_q.as_ref())?;
        let b_k = sequences("cu_seqlens_k", args.cu_seqlens_k.as_ref())?;
        let b = b_q.unwrap_or(q_b);
        let nq = longest("max_seqlen_q", op.max_seqlen_q, b_q.is_some(), q_n)?;
        let nk = longest("max_seqlen_k", op.max_seqlen_k, b_k.is_some(), k_n)?;
        let q = if b_q.is_some() { [1, q_n] } else { [b, q_n] };
        let Some(table) = &args.block_table else {
            return Ok(Self { b, nq, nk, q, k: if b_k.is_some() { [1, k_n] } else { [b, k_n] } });
        };
        if b_k.is_some() {
            let wanted = "none beside a block_table: keys lie in a row or in pages";
            return Err(Error::argument(NAME, "cu_seqlens_k", wanted, "a view"));
        }
        check::rank(NAME, "block_table", table, &["b", "pages"])?;
        let nk = table.shape()[1].saturating_mul(k_n);
        if k_b == 0 && b > 0 && nk > 0 {
            return Err(Error::argument(NAME, "k", "at least one page", "none"));
        }
        Ok(Self { b, nq, nk, q, k: [k_b, k_n] })
    }
}

/// The operands of other dtypes than that of Q.
const EXTRAS: [&str; 10] = [
    "bias",
    "mask",
    "q_lengths",
    "k_lengths",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "block_table",
    "slopes",
    "sinks",
    "lse",
];

/// Their strides; 0 of those that are absent.
struct Extras {
    bias: [u32; 4],
    mask: [u32; 4],
    q_lengths: [u32; 1],
    k_lengths: [u32; 1],
    cu_seqlens_q: [u32; 1],
    cu_seqlens_k: [u32; 1],
    block_table: [u32; 2],
    slopes: [u32; 2],
    sinks: [u32; 1],
    lse: [u32; 3],
    lse_s: u32,
}

impl Extras {
    /// Checks their dtypes and shapes.
    fn check<I, O>(
        args: &AttentionArgs<I, O>,
        dtype: Dtype,
        [b, h, nq, nk]: [usize; 4],
        lse: &[usize],
    ) -> Result<Self> {
        fn one<M, const N: usize>(
            name: &'static str,
            view: Option<&View<M>>,
            dtypes: &[Dtype],
            shape: &[usize],
        ) -> Result<[u32; N]> {
            let mut strides = [0; N];
            let Some(view) = view else { return Ok(strides) };
            check::dtype(NAME, name, view, dtypes)?;
            check::shape(NAME, name, view, shape)?;
            // Behind the leading axes that are not there.
            for (to, &stride) in strides.iter_mut().rev().zip(view.strides().iter().rev()) {
                *to = check::scalar(NAME, name, stride)?;
            }
            Ok(strides)
        }
        let (scores, f32, i32) = (&[b, h, nq, nk], &[Dtype::F32], &[Dtype::I32]);
        let pages = args.block_table.as_ref().map_or(0, |table| table.shape()[1]);
        let [lse_s, lse_b, lse_h, lse_n] = one("lse", args.lse.as_ref(), f32, lse)?;
        Ok(Self {
            bias: one("bias", args.bias.as_ref(), &[Dtype::F32, dtype], scores)?,
            mask: one("mask", args.mask.as_ref(), &[Dtype::U8], scores)?,
            q_lengths: one("q_lengths", args.q_lengths.as_ref(), i32, &[b])?,
            k_lengths: one("k_lengths", args.k_lengths.as_ref(), i32, &[b])?,
            cu_seqlens_q: one("cu_seqlens_q", args.cu_seqlens_q.as_ref(), i32, &[b + 1])?,
            cu_seqlens_k: one("cu_seqlens_k", args.cu_seqlens_k.as_ref(), i32, &[b + 1])?,
            block_table: one("block_table", args.block_table.as_ref(), i32, &[b, pages])?,
            slopes: one("slopes", args.slopes.as_ref(), f32, &[b, h])?,
            sinks: one("sinks", args.sinks.as_ref(), f32, &[h])?,
            lse: [lse_b, lse_h, lse_n],
            lse_s,
        })
    }
}

/// The tensor-core kernel: 4 warps, each of one or two tiles of 16 queries; K and V double-buffered in shared memory.
fn mma(op: Attention, p: &AttentionParams, signature: &Signature, caps: &Caps, arch: u32) -> Result<Plan> {
    let [head_dim, v_dim] = [p.d, p.dv].map(|d| d.max(1).next_multiple_of(16));
    let largest = head_dim.max(v_dim);
    // Two tiles a warp halve what is read from shared memory, where there are registers for the result, queries for
    // both tiles and blocks for a large device.
    let enough = p.nq > BLOCK_M && blocks(p, signature, 2 * BLOCK_M) >= u64::from(caps.multiprocessors);
    let rows = if largest <= 128 && enough { 2 } else { 1 };
    // Of larger heads the queries of two tiles take too many registers beside those of the result.
    let q_shared = rows == 2 && head_dim > 64;
    // K and V, two stages each, and Q; rows padded by 16 bytes.
    let shared = |block_n: u32| {
        let keys = 2 * block_n * (head_dim + v_dim + 16);
        let queries = rows * BLOCK_M * (head_dim + 8);
        2 * if q_shared { keys + queries } else { keys.max(queries) }
    };
    // Copies of 16 bytes need rows that are dense and start at multiples of 8 elements; pairs, of 2.
    let dense = |name, d_stride: u32, strides: &[u32], unit: u32| {
        let fits = d_stride == 1
            && strides.iter().all(|s| s % unit == 0)
            && signature.align(name) >= unit * signature.dtype("q").size() as u32;
        u32::from(fits)
    };
    let k_vec = dense("k", p.k_d, &[p.k_b, p.k_h, p.k_n, p.d], 8);
    let v_vec = dense("v", p.v_d, &[p.v_b, p.v_h, p.v_n, p.dv], 8);
    // The longest tile of keys of which a multiprocessor holds two blocks: its shared memory is a little more than
    // what one block may have, and a thread's part of result, scores and queries has to leave registers for the rest:
    // the limits are those up to which the compiler spills none.
    let changes = usize::from(op.softcap > 0.0)
        + ["bias", "mask", "slopes"].iter().filter(|name| signature.has(name)).count();
    let changed = changes > 0;
    let registers = |block_n: u32| {
        // What changes scores is loaded for all of them at once.
        let scores = if changed { block_n } else { block_n / 2 };
        rows * (v_dim / 2 + scores + if q_shared { 0 } else { head_dim / 4 })
    };
    let plain = op.window.is_all() && op.softcap == 0.0 && !EXTRAS.iter().any(|name| signature.has(name));
    let limit = match (k_vec & v_vec == 1, plain) {
        (true, true) if largest == 128 && arch < 120 => 176,
        (true, true) => 160,
        _ if changed => 112,
        _ if arch < 120 => 144,
        _ => 128,
    };
    let twice = |&block_n: &u32| 2 * shared(block_n) <= caps.shared_bytes && registers(block_n) <= limit;
    let tight =
        largest > 240 && (!plain && arch >= 120 || changed && arch >= 100 || changes > 1 && arch >= 86);
    let least = if tight || shared(32) > caps.shared_bytes { 16 } else { 32 };
    // Splits begin at multiples of 64 keys, and so at a tile.
    let whole = |block_n: &u32| p.splits == 1 || 64 % block_n == 0;
    let block_n = [64, 48, 32].into_iter().filter(whole).find(twice).unwrap_or(least);
    fits(caps, shared(block_n), 128)?;
    Ok(Plan {
        entry: "attention_mma",
        consts: variants(op, signature, Consts::new())
            .set("MMA", 1u32)
            .set("HEAD_DIM", head_dim)
            .set("V_DIM", v_dim)
            .set("ROWS", rows)
            .set("BLOCK_M", rows * BLOCK_M)
            .set("BLOCK_N", block_n)
            .set("THREADS", 128u32)
            .set("Q_SHARED", u32::from(q_shared))
            .set("KV_VEC", k_vec & v_vec)
            .set("Q_VEC", dense("q", p.q_d, &[p.q_b, p.q_h, p.q_n, p.d], 8))
            .set("OUT_VEC", dense("out", p.out_d, &[p.out_s, p.out_b, p.out_h, p.out_n, p.dv], 2)),
        grid: fold_grid(NAME, blocks(p, signature, rows * BLOCK_M), caps)?,
        block: [128, 1, 1],
        shared_bytes: shared(block_n),
    })
}

/// How many pairs of a query and a key the window leaves in a head.
fn seen(p: &AttentionParams) -> f64 {
    let (from, until) = (i64::from(p.band_from as i32), i64::from(p.band_until as i32));
    let of = |i: i64| ((i + until).min(p.nk.into()) - (i + from).max(0)).max(0);
    (0..i64::from(p.nq)).map(of).sum::<i64>() as f64
}

/// What changes the scores: these are compiled in.
fn variants(op: Attention, signature: &Signature, consts: Consts) -> Consts {
    let [band, cap] = [!op.window.is_all(), op.softcap > 0.0];
    let [bias, mask, slopes] = ["bias", "mask", "slopes"].map(|name| signature.has(name));
    consts
        .set("BAND", u32::from(band))
        .set("SOFTCAP", u32::from(cap))
        .set("CHANGED", u32::from(cap || bias || mask || slopes))
        .set("SPLIT", u32::from(op.splits > 1))
}

/// Blocks of `block_m` queries each.
fn blocks(p: &AttentionParams, signature: &Signature, block_m: u32) -> u64 {
    let nothing = p.dv == 0 && !signature.has("lse");
    if nothing { 0 } else { u64::from(p.splits) * u64::from(p.pairs) * u64::from(p.nq.div_ceil(block_m)) }
}

/// The register-tiled f32 kernel of CUDA and WGSL: 16 x 16 threads, each 4 queries by `BLOCK_N / 16` keys.
/// `element` is the size of a tile's elements.
fn tile(
    op: Attention,
    p: &AttentionParams,
    signature: &Signature,
    caps: &Caps,
    consts: Consts,
    element: u32,
) -> Result<Plan> {
    const THREADS: u32 = 256;
    let chunks = p.dv.max(1).div_ceil(TILE_COLS);
    let shared = |block_n: u32| {
        // Scores, 4 queries a vector, 16 vectors and one of padding a key.
        let scores = 16 * 17 * block_n;
        // Q and K a slice of the head at a time; V takes the place of both.
        let qk = TILE_DEPTH * (4 * 17 + block_n);
        scores + element * qk.max(block_n * TILE_COLS)
    };
    let block_n = if shared(64) <= caps.shared_bytes { 64 } else { 32 };
    fits(caps, shared(block_n), THREADS)?;
    // CUDA compares with -infinity, which WGSL may not compute with: it has to know.
    let hides = !op.window.is_all() || signature.has("bias") || signature.has("mask");
    let consts = match caps.language {
        Language::Wgsl { .. } => consts.set("HIDES", u32::from(hides)),
        Language::Cuda { .. } => consts,
    };
    Ok(Plan {
        entry: "attention_tile",
        consts: variants(op, signature, consts)
            .set("BLOCK_M", BLOCK_M)
            .set("BLOCK_N", block_n)
            .set("DEPTH", TILE_DEPTH)
            .set("COLS", TILE_COLS)
            .set("CHUNKS", chunks)
            .set("THREADS", THREADS),
        grid: fold_grid(NAME, blocks(p, signature, BLOCK_M), caps)?,
        block: [THREADS, 1, 1],
        shared_bytes: shared(block_n),
    })
}

/// Elements of the head that the tiled kernels multiply per slice of Q and K.
const TILE_DEPTH: u32 = 16;
/// Elements of the head that they multiply per slice of V.
const TILE_COLS: u32 = 32;

/// The device has that much shared memory and threads for a block.
fn fits(caps: &Caps, shared: u32, threads: u32) -> Result<()> {
    let needs = [
        ("bytes of shared memory", shared, caps.shared_bytes),
        ("threads of a block", threads, caps.max_threads.min(caps.max_block[0])),
    ];
    for (what, got, limit) in needs {
        if got > limit {
            let (got, limit, target) = (got.into(), limit.into(), caps.name.clone());
            return Err(Error::Limit { op: NAME, arg: "q", what, got, limit, target });
        }
    }
    Ok(())
}
