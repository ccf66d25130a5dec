//! Scaled dot-product attention: the spec.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// Attention over heads: `out = softmax(softmax_scale * Q K^T) V`, the softmax taken over the keys.
///
/// Computed with the online softmax of FlashAttention-2 (Dao 2023, arXiv:2307.08691): scores exist one
/// tile at a time, never as an `nq` by `nk` matrix. Scores of any finite size are safe: each is compared
/// with the largest before it is exponentiated. With no keys (`nk == 0`) the result is 0.
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
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Attention {
    /// What the scores are multiplied with before the softmax; any finite number.
    pub softmax_scale: f32,
}

impl Attention {
    /// The usual scale for heads of `head_dim` elements, `1 / sqrt(head_dim)` (Vaswani et al. 2017,
    /// arXiv:1706.03762).
    pub fn new(head_dim: usize) -> Self {
        Self { softmax_scale: (1.0 / (head_dim.max(1) as f64).sqrt()) as f32 }
    }
}

crate::operands! {
    /// Operands of [`Attention`]: axes are (batch, head, token, element of the head), of one dtype, with
    /// free strides. The Q, K and V of a packed projection `[b, n, 3, h, d]` are three views of it; the
    /// heads of an NCHW image are views whose last stride is the number of pixels.
    pub struct AttentionArgs {
        /// Queries, `[b, h, nq, d]`.
        q: input,
        /// Keys, `[b, h, nk, d]`.
        k: input,
        /// Values, `[b, h, nk, d]`.
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
        let &[b, h, _, d] = q.shape() else { unreachable!("the rank was checked") };
        let nk = k.shape()[2];
        check::shape(NAME, "k", k, &[b, h, nk, d])?;
        check::shape(NAME, "v", v, &[b, h, nk, d])?;
        check::shape(NAME, "out", out, q.shape())?;
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
                mma(p, signature, caps, arch)
            }
            Language::Cuda { .. } => tile(p, caps, Consts::new().set("MMA", 0u32), 4),
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
                tile(p, caps, consts, if half { 2 } else { 4 })
            }
        }
    }

    fn cost(&self, p: &AttentionParams, signature: &Signature) -> Cost {
        let [pairs, nq, nk, d] = [p.pairs, p.nq, p.nk, p.d].map(f64::from);
        let size = signature.dtype("q").size() as f64;
        Cost { flops: 4.0 * pairs * nq * nk * d, bytes: 2.0 * pairs * (nq + nk) * d * size }
    }

    unsafe fn cpu(&self, p: &AttentionParams, args: AttentionArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
        crate::cpu::attention::run(p, args, cpu);
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
fn mma(p: &AttentionParams, signature: &Signature, caps: &Caps, arch: u32) -> Result<Plan> {
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
    // what one block may have, and a thread's part of result, scores and queries has to leave registers for the rest.
    let registers =
        |block_n: u32| rows * ((head_dim + block_n) / 2 + if q_shared { 0 } else { head_dim / 4 });
    let limit = match (k_vec & v_vec, head_dim) {
        (0, _) => 144,
        (_, 128) if arch < 120 => 176,
        _ => 160,
    };
    let twice = |&block_n: &u32| 2 * shared(block_n) <= caps.shared_bytes && registers(block_n) <= limit;
    let block_n =
        [64, 48, 32].into_iter().find(twice).unwrap_or(if shared(32) <= caps.shared_bytes { 32 } else { 16 });
    fits(caps, shared(block_n), 128)?;
    Ok(Plan {
        entry: "attention_mma",
        consts: Consts::new()
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

/// Blocks of `block_m` queries each.
fn blocks(p: &AttentionParams, block_m: u32) -> u64 {
    u64::from(p.pairs) * u64::from(p.nq.div_ceil(block_m)) * u64::from(p.d.min(1))
}

/// The register-tiled f32 kernel of CUDA and WGSL: 16 x 16 threads, each 4 queries by `BLOCK_N / 16` keys.
/// `element` is the size of a tile's elements.
fn tile(p: &AttentionParams, caps: &Caps, consts: Consts, element: u32) -> Result<Plan> {
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
        consts: consts
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
