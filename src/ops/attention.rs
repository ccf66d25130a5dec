//! Scaled dot-product attention: the spec.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// Attention over heads: `out = softmax(softmax_scale * Q K^T) V`, the softmax taken over the keys that a query sees.
///
/// K and V may have fewer heads than Q, by a whole factor: query head `h` then uses head `h / (heads of Q / heads of K)`
/// (grouped and multi-query attention). [`Attention::causal`] and [`Attention::window()`] hide keys from queries,
/// [`Attention::softcap()`] bounds the scores. A query that sees no key has the result 0.
///
/// Computed with the online softmax of FlashAttention-2 (Dao 2023, arXiv:2307.08691): scores exist one
/// tile at a time, never as an `nq` by `nk` matrix. Scores of any finite size are safe: each is compared
/// with the largest before it is exponentiated. Tiles of keys that no query of a block sees are skipped.
///
/// Kernels for GPUs take heads of at most 512 elements; the CPU takes any.
///
/// ```
/// use advect::{Cpu, View, ops::{Attention, AttentionArgs}};
/// // One head of 2 numbers: the first query looks at the second key, the other at both alike.
/// let (q, k) = ([0.0f32, 50.0, 0.0, 0.0], [1.0f32, 0.0, 0.0, 1.0]);
/// let (v, mut out) = ([1.0f32, 2.0, 3.0, 4.0], [0.0f32; 4]);
/// let shape = [1, 1, 2, 2];
/// Cpu::new()?.run(&Attention::new(2), AttentionArgs {
///     q: View::of(&q, &shape)?,
///     k: View::of(&k, &shape)?,
///     v: View::of(&v, &shape)?,
///     out: View::of_mut(&mut out, &shape)?,
/// })?;
/// assert!(out.iter().zip([3.0, 4.0, 2.0, 3.0]).all(|(got, want)| (got - want).abs() < 1e-6));
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
    /// What the scores are multiplied with before the softmax; any finite number.
    pub softmax_scale: f32,
    /// Which keys a query sees.
    pub window: Window,
    /// Scores become `softcap * tanh(score / softcap)`, after the scale and before the window (Gemma 2, arXiv:2408.00118):
    /// a number from 1e-30 to 1e30, or 0, which leaves them as they are.
    pub softcap: f32,
}

/// Which keys a query sees. The last query and the last key are at the same place: query `i` of `nq` is at
/// `i + nk - nq` among `nk` keys.
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
    /// difference.
    pub(crate) fn bounds(self, nq: usize, nk: usize) -> [i64; 2] {
        let (nq, nk) = (nq as i64, nk as i64);
        let within = |x: i64| x.clamp(-nq, nk);
        let from = self.left.map_or(-nq, |left| within(nk - nq - i64::from(left)));
        let until = self.right.map_or(nk, |right| within(nk - nq + i64::from(right) + 1));
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
        Self { softmax_scale, window: Window::default(), softcap: 0.0 }
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
}

crate::operands! {
    /// Operands of [`Attention`]: axes are (batch, head, token, element of the head), of one dtype, with
    /// free strides. The Q, K and V of a packed projection `[b, n, 3, h, d]` are three views of it; the
    /// heads of an NCHW image are views whose last stride is the number of pixels.
    pub struct AttentionArgs {
        /// Queries, `[b, h, nq, d]`.
        q: input,
        /// Keys, `[b, h / g, nk, d]`, one head for each `g` heads of `q`.
        k: input,
        /// Values, `[b, h / g, nk, d]`.
        v: input,
        /// The result, `[b, h, nq, d]`.
        out: output,
    }
}

crate::params! {
    /// Scalars of the attention kernels.
    pub struct AttentionParams {
        /// Batch times heads.
        pairs: u32,
        /// Heads.
        heads: u32,
        /// Queries.
        nq: u32,
        /// Keys.
        nk: u32,
        /// Elements of a head.
        d: u32,
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
    }
}

const NAME: &str = "attention";

/// The largest head of the GPU kernels: their accumulators live in registers.
const MAX_HEAD_DIM: u32 = 512;
/// The largest of the tensor-core kernel; beyond it the tiled one serves 16-bit dtypes too.
const MMA_MAX_HEAD_DIM: u32 = 256;

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
        let AttentionArgs { q, k, v, out } = args;
        // Kernels work in powers of two: the scale times log2(e) must be a number too.
        if !(self.softmax_scale * std::f32::consts::LOG2_E).is_finite() {
            let wanted = "a number that stays finite times log2(e)";
            return Err(Error::argument(NAME, "softmax_scale", wanted, self.softmax_scale));
        }
        check::one_dtype(NAME, args, &[])?;
        check::rank(NAME, "q", q, &["b", "h", "nq", "d"])?;
        check::rank(NAME, "k", k, &["b", "h", "nk", "d"])?;
        let (&[b, h, nq, d], &[_, kv_heads, nk, _]) = (q.shape(), k.shape()) else {
            unreachable!("the ranks were checked")
        };
        // As many heads, or fewer that divide them.
        let divides = kv_heads == h || (kv_heads > 0 && h.is_multiple_of(kv_heads));
        check::shape(NAME, "k", k, &[b, if divides { kv_heads } else { h }, nk, d])?;
        check::shape(NAME, "v", v, &[b, kv_heads, nk, d])?;
        check::shape(NAME, "out", out, q.shape())?;
        if self.softcap != 0.0 && !(1e-30..=1e30).contains(&self.softcap) {
            return Err(Error::argument(NAME, "softcap", "0, or a number from 1e-30 to 1e30", self.softcap));
        }
        // Kernels compute places among the keys with signed numbers.
        if nq.saturating_add(nk) > i32::MAX as usize {
            return Err(Error::argument(NAME, "q", "nq + nk below 2^31", format!("{nq} + {nk}")));
        }
        let [from, until] = if self.window.is_all() { [0; 2] } else { self.window.bounds(nq, nk) };
        let size = |arg, n: usize| check::scalar(NAME, arg, n);
        let (qs, ks, vs, outs) = (q.strides(), k.strides(), v.strides(), out.strides());
        // A scale of 0 makes every score 0. So does this one, and it keeps a masked -infinity infinite.
        let scale = if self.softmax_scale == 0.0 { f32::MIN_POSITIVE } else { self.softmax_scale };
        Ok(AttentionParams {
            pairs: size("q", b.saturating_mul(h))?,
            heads: size("q", h)?,
            nq: size("q", q.shape()[2])?,
            nk: size("k", nk)?,
            d: size("q", d)?,
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
        })
    }

    fn plan(&self, p: &AttentionParams, signature: &Signature, caps: &Caps) -> Result<Plan> {
        if p.d > MAX_HEAD_DIM {
            return Err(Error::Limit {
                op: NAME,
                arg: "q",
                what: "elements of a head",
                got: p.d.into(),
                limit: MAX_HEAD_DIM.into(),
                target: caps.name.clone(),
            });
        }
        match caps.language {
            Language::Cuda { arch }
                if arch >= 80 && signature.dtype("q") != Dtype::F32 && p.d <= MMA_MAX_HEAD_DIM =>
            {
                mma(*self, p, signature, caps, arch)
            }
            Language::Cuda { .. } => tile(*self, p, caps, Consts::new().set("MMA", 0u32), 4),
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
                tile(*self, p, caps, consts, if half { 2 } else { 4 })
            }
        }
    }

    fn cost(&self, p: &AttentionParams, signature: &Signature) -> Cost {
        let [pairs, nq, nk, d, group] = [p.pairs, p.nq, p.nk, p.d, p.group].map(f64::from);
        let size = signature.dtype("q").size() as f64;
        // Of the scores, those that a window leaves.
        let seen = if self.window.is_all() { nq * nk } else { seen(p) };
        Cost { flops: 4.0 * pairs * seen * d, bytes: 2.0 * pairs * (nq + nk / group) * d * size }
    }

    unsafe fn cpu(&self, p: &AttentionParams, args: AttentionArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
        crate::cpu::attention::run(*self, p, args, cpu);
    }

    fn map<I, O, J, P>(
        args: AttentionArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<AttentionArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, _: &AttentionArgs<I, O>, _: &str) -> Option<usize> {
        Some(0)
    }
}

/// The tensor-core kernel: 4 warps, each of one or two tiles of 16 queries; K and V double-buffered in shared memory.
fn mma(op: Attention, p: &AttentionParams, signature: &Signature, caps: &Caps, arch: u32) -> Result<Plan> {
    let head_dim = p.d.next_multiple_of(16);
    // Two tiles a warp halve what is read from shared memory, where there are registers for the result, queries for
    // both tiles and blocks for a large device.
    let enough = p.nq > BLOCK_M && blocks(p, 2 * BLOCK_M) >= u64::from(caps.multiprocessors);
    let rows = if head_dim <= 128 && enough { 2 } else { 1 };
    // Of larger heads the queries of two tiles take too many registers beside those of the result.
    let q_shared = rows == 2 && head_dim > 64;
    // K and V, two stages each, and Q; rows padded by 16 bytes.
    let shared = |block_n: u32| {
        let (keys, queries) = (4 * block_n, rows * BLOCK_M);
        let tokens = if q_shared { keys + queries } else { keys.max(queries) };
        tokens * (head_dim + 8) * 2
    };
    // Copies of 16 bytes need rows that are dense and start at multiples of 8 elements; pairs, of 2.
    let dense = |name, d_stride: u32, strides: [u32; 3], unit: u32| {
        let fits = d_stride == 1
            && [p.d].iter().chain(&strides).all(|s| s % unit == 0)
            && signature.align(name) >= unit * signature.dtype("q").size() as u32;
        u32::from(fits)
    };
    let k_vec = dense("k", p.k_d, [p.k_b, p.k_h, p.k_n], 8);
    let v_vec = dense("v", p.v_d, [p.v_b, p.v_h, p.v_n], 8);
    // The longest tile of keys of which a multiprocessor holds two blocks: its shared memory is a little more than
    // what one block may have, and a thread's part of result, scores and queries has to leave registers for the rest:
    // the limits are those up to which the compiler spills none.
    let registers =
        |block_n: u32| rows * ((head_dim + block_n) / 2 + if q_shared { 0 } else { head_dim / 4 });
    let plain = op.window.is_all() && op.softcap == 0.0;
    let limit = match (k_vec & v_vec == 1, plain) {
        (true, true) if head_dim == 128 && arch < 120 => 176,
        (true, true) => 160,
        _ if arch < 120 => 144,
        _ => 128,
    };
    let twice = |&block_n: &u32| 2 * shared(block_n) <= caps.shared_bytes && registers(block_n) <= limit;
    let least =
        if shared(32) > caps.shared_bytes || !plain && arch >= 120 && head_dim > 240 { 16 } else { 32 };
    let block_n = [64, 48, 32].into_iter().find(twice).unwrap_or(least);
    fits(caps, shared(block_n), 128)?;
    Ok(Plan {
        entry: "attention_mma",
        consts: variants(op, Consts::new())
            .set("MMA", 1u32)
            .set("HEAD_DIM", head_dim)
            .set("ROWS", rows)
            .set("BLOCK_M", rows * BLOCK_M)
            .set("BLOCK_N", block_n)
            .set("THREADS", 128u32)
            .set("Q_SHARED", u32::from(q_shared))
            .set("KV_VEC", k_vec & v_vec)
            .set("Q_VEC", dense("q", p.q_d, [p.q_b, p.q_h, p.q_n], 8))
            .set("OUT_VEC", dense("out", p.out_d, [p.out_b, p.out_h, p.out_n], 2)),
        grid: fold_grid(NAME, blocks(p, rows * BLOCK_M), caps)?,
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
fn variants(op: Attention, consts: Consts) -> Consts {
    consts.set("BAND", u32::from(!op.window.is_all())).set("SOFTCAP", u32::from(op.softcap > 0.0))
}

/// Blocks of `block_m` queries each.
fn blocks(p: &AttentionParams, block_m: u32) -> u64 {
    u64::from(p.pairs) * u64::from(p.nq.div_ceil(block_m)) * u64::from(p.d.min(1))
}

/// The register-tiled f32 kernel of CUDA and WGSL: 16 x 16 threads, each 4 queries by `BLOCK_N / 16` keys.
/// `element` is the size of a tile's elements.
fn tile(op: Attention, p: &AttentionParams, caps: &Caps, consts: Consts, element: u32) -> Result<Plan> {
    const THREADS: u32 = 256;
    let chunks = p.d.div_ceil(TILE_COLS);
    let shared = |block_n: u32| {
        // Scores, 4 queries a vector, 16 vectors and one of padding a key.
        let scores = 16 * 17 * block_n;
        // Q and K a slice of the head at a time; V takes the place of both.
        let qk = TILE_DEPTH * (4 * 17 + block_n);
        scores + element * qk.max(block_n * TILE_COLS)
    };
    let block_n = if shared(64) <= caps.shared_bytes { 64 } else { 32 };
    fits(caps, shared(block_n), THREADS)?;
    Ok(Plan {
        entry: "attention_tile",
        consts: variants(op, consts)
            .set("BLOCK_M", BLOCK_M)
            .set("BLOCK_N", block_n)
            .set("DEPTH", TILE_DEPTH)
            .set("COLS", TILE_COLS)
            .set("CHUNKS", chunks)
            .set("THREADS", THREADS),
        grid: fold_grid(NAME, blocks(p, BLOCK_M), caps)?,
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
