//! Matrix products with a fused epilogue: the spec.

use super::Activation;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// `out[b, i, j] = activation(sum over k of a[b, i, k] * b[b, k, j] + bias[j]) + residual[b, i, j]`.
///
/// A transposed operand is a view with its last two axes permuted: a linear layer `x W^T` takes
/// `W.permute(&[1, 0])` as `b`.
///
/// ```
/// use advect::{Cpu, View, ops::{Matmul, MatmulArgs}};
/// // A linear layer of 3 inputs and 2 outputs, on 2 rows: x W^T + bias.
/// let x = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
/// let weight = [1.0f32, 0.0, 0.0, 0.0, 1.0, 1.0];
/// let (bias, mut out) = ([0.5f32, -1.0], [0.0f32; 4]);
/// Cpu::new()?.run(&Matmul::default(), MatmulArgs {
///     a: View::of(&x, &[2, 3])?,
///     b: View::of(&weight, &[2, 3])?.permute(&[1, 0])?,
///     bias: Some(View::of(&bias, &[2])?),
///     residual: None,
///     out: View::of_mut(&mut out, &[2, 2])?,
/// })?;
/// assert_eq!(out, [1.5, 4.0, 4.5, 10.0]);
/// # Ok::<(), advect::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Matmul {
    /// Applied after the bias and before the residual.
    pub activation: Activation,
}

crate::operands! {
    /// Operands of [`Matmul`], all of one dtype. `out` has two axes, or three with a batch first. An
    /// input of a batched product may have a batch of 1, no batch axis, or a batch stride of 0: every
    /// sample then uses the same matrix.
    pub struct MatmulArgs {
        /// The left factor, `[batch, m, k]` or `[m, k]`.
        a: input,
        /// The right factor, `[batch, k, n]` or `[k, n]`.
        b: input,
        /// Added to each row before the activation, `[n]`.
        bias: optional,
        /// Added after the activation, `[batch, m, n]` or `[m, n]`.
        residual: optional,
        /// The result, `[batch, m, n]` or `[m, n]`.
        out: output,
    }
}

crate::params! {
    /// Scalars of the matmul kernels. A stride of 0 along the batch shares a matrix.
    pub struct MatmulParams {
        /// Products in the batch.
        batch: u32,
        /// Rows of `a` and `out`.
        m: u32,
        /// Columns of `b` and `out`.
        n: u32,
        /// Length of the sums.
        k: u32,
        /// Stride of `a` along the batch.
        a_b: u32,
        /// Stride of `a` along its rows.
        a_i: u32,
        /// Stride of `a` along the sum.
        a_k: u32,
        /// Stride of `b` along the batch.
        b_b: u32,
        /// Stride of `b` along the sum.
        b_k: u32,
        /// Stride of `b` along its columns.
        b_j: u32,
        /// Stride of `bias`.
        bias_j: u32,
        /// Stride of `residual` along the batch.
        residual_b: u32,
        /// Stride of `residual` along its rows.
        residual_i: u32,
        /// Stride of `residual` along its columns.
        residual_j: u32,
        /// Stride of `out` along the batch.
        out_b: u32,
        /// Stride of `out` along its rows.
        out_i: u32,
        /// Stride of `out` along its columns.
        out_j: u32,
    }
}

const NAME: &str = "matmul";

/// The longest sum. Only repeated operands, or empty ones, can have longer ones.
const MAX_TERMS: usize = i32::MAX as usize;

/// The kernels, by their name in the files.
const TILE: &str = "matmul_tile";
const MMA: &str = "matmul_mma";
const ROWS: &str = "matmul_rows";

/// Strides of a matrix: batch, row, column; checked against the shape it should have.
fn matrix<M>(arg: &'static str, view: &View<M>, batch: Option<usize>, want: [usize; 2]) -> Result<[u32; 3]> {
    let [rows, columns] = want;
    let scalar = |value| check::scalar(NAME, arg, value);
    match (batch, view.shape()) {
        (_, &[r, c]) if [r, c] == want => Ok([0, scalar(view.strides()[0])?, scalar(view.strides()[1])?]),
        (Some(batch), &[b, r, c]) if [r, c] == want && (b == batch || b == 1) => {
            let step = if b == 1 { 0 } else { view.strides()[0] };
            Ok([scalar(step)?, scalar(view.strides()[1])?, scalar(view.strides()[2])?])
        }
        _ => {
            let wanted = match batch {
                None => format!("shape [{rows}, {columns}]"),
                Some(batch) => {
                    format!(
                        "shape [{batch}, {rows}, {columns}], [1, {rows}, {columns}] or [{rows}, {columns}]"
                    )
                }
            };
            Err(Error::argument(NAME, arg, wanted, format!("{:?}", view.shape())))
        }
    }
}

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Matmul {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/matmul.cu");
    const WGSL: &'static str = include_str!("../../shaders/matmul.wgsl");
    type Args<I, O> = MatmulArgs<I, O>;
    type Params = MatmulParams;

    fn check<I, O>(&self, args: &MatmulArgs<I, O>) -> Result<MatmulParams> {
        let MatmulArgs { a, b, bias, residual, out } = args;
        check::one_dtype(NAME, args, &[])?;
        let (batch, m, n) = match *out.shape() {
            [m, n] => (None, m, n),
            [batch, m, n] => (Some(batch), m, n),
            _ => {
                let wanted = "2 axes [m, n] or 3 axes [batch, m, n]";
                return Err(Error::argument(NAME, "out", wanted, format!("{:?}", out.shape())));
            }
        };
        let Some(&k) = a.shape().last() else {
            return Err(Error::argument(NAME, "a", "2 axes [m, k] or 3 axes [batch, m, k]", "no axes"));
        };
        // Kernels count them in steps, with 32 bits.
        if k > MAX_TERMS {
            return Err(Error::argument(NAME, "a", format!("at most {MAX_TERMS} terms of a sum"), k));
        }
        let [a_b, a_i, a_k] = matrix("a", a, batch, [m, k])?;
        let [b_b, b_k, b_j] = matrix("b", b, batch, [k, n])?;
        let bias_j = match bias {
            None => 0,
            Some(bias) => {
                check::shape(NAME, "bias", bias, &[n])?;
                check::scalar(NAME, "bias", bias.strides()[0])?
            }
        };
        let [residual_b, residual_i, residual_j] = match residual {
            None => [0; 3],
            Some(residual) => matrix("residual", residual, batch, [m, n])?,
        };
        let [out_b, out_i, out_j] = matrix("out", out, batch, [m, n])?;
        let size = |value| check::scalar(NAME, "out", value);
        let (m, n, k) = (size(m)?, size(n)?, check::scalar(NAME, "a", k)?);
        let batch = size(batch.unwrap_or(1))?;
        Ok(MatmulParams {
            batch,
            m,
            n,
            k,
            a_b,
            a_i,
            a_k,
            b_b,
            b_k,
            b_j,
            bias_j,
            residual_b,
            residual_i,
            residual_j,
            out_b,
            out_i,
            out_j,
        })
    }

    fn plan(&self, p: &MatmulParams, signature: &Signature, caps: &Caps) -> Result<Plan> {
        match caps.language {
            Language::Cuda { arch } => plan_cuda(*self, p, signature, caps, arch),
            Language::Wgsl { f16, subgroups, .. } => plan_wgsl(*self, p, signature, caps, f16, subgroups),
        }
    }

    fn cost(&self, p: &MatmulParams, signature: &Signature) -> Cost {
        let size = signature.dtype("out").size() as f64;
        let [batch, m, n, k] = [p.batch, p.m, p.n, p.k].map(f64::from);
        // A shared matrix is read once.
        let times = |stride: u32| if stride == 0 { batch.min(1.0) } else { batch };
        let mut elements = times(p.a_b) * m * k + times(p.b_b) * k * n + batch * m * n;
        if signature.has("bias") {
            elements += n;
        }
        if signature.has("residual") {
            elements += times(p.residual_b) * m * n;
        }
        Cost { flops: 2.0 * batch * m * n * k, bytes: elements * size }
    }

    unsafe fn cpu(&self, p: &MatmulParams, args: MatmulArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
        crate::cpu::matmul::run(*self, p, args, cpu);
        Ok(())
    }

    fn map<I, O, J, P>(
        args: MatmulArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<MatmulArgs<J, P>> {
        args.try_map(input, output)
    }

    /// The batch, where there is one to cut; rows otherwise.
    fn batch_axis<I, O>(&self, args: &MatmulArgs<I, O>, operand: &str) -> Option<usize> {
        let cut = args.out.rank() == 3 && args.out.shape()[0] != 1;
        let of = |view: &View<I>| match (cut, view.rank()) {
            (true, 3) => (view.shape()[0] != 1).then_some(0),
            (true, _) => None,
            (false, rank) => Some(rank - 2),
        };
        match operand {
            "a" => of(&args.a),
            "b" if cut => of(&args.b),
            "residual" => args.residual.as_ref().and_then(of),
            "out" => Some(if cut { 0 } else { args.out.rank() - 2 }),
            _ => None,
        }
    }
}

/// Whether chunks of 16 bytes along `step` (whose stride is 1) start at 16-byte boundaries: the first
/// element does, and so does every stride between chunks.
fn chunked(signature: &Signature, operand: &str, step: u32, others: [u32; 2]) -> bool {
    let chunk = (16 / signature.dtype(operand).size()) as u32;
    step == 1 && signature.align(operand) == 16 && others.iter().all(|s| s % chunk == 0)
}

/// Whether two neighbouring columns can be stored (or loaded) at once.
fn paired(signature: &Signature, operand: &str, step: u32, others: [u32; 2]) -> bool {
    let bytes = 2 * signature.dtype(operand).size() as u32;
    step == 1 && signature.align(operand) >= bytes && others.iter().all(|s| s % 2 == 0)
}

fn plan_cuda(op: Matmul, p: &MatmulParams, signature: &Signature, caps: &Caps, arch: u32) -> Result<Plan> {
    let dtype = signature.dtype("a");
    let a_vector = chunked(signature, "a", p.a_k, [p.a_b, p.a_i]);
    let a_vector_t = chunked(signature, "a", p.a_i, [p.a_b, p.a_k]);
    let b_vector = chunked(signature, "b", p.b_j, [p.b_b, p.b_k]);
    let b_vector_t = chunked(signature, "b", p.b_k, [p.b_b, p.b_j]);
    // Which axis lies along the rows of a tile: the one that can be copied 16 bytes at once, else the
    // denser one.
    let a_rows_k = a_vector || (!a_vector_t && p.a_k <= p.a_i);
    let b_rows_n = b_vector || (!b_vector_t && p.b_j <= p.b_k);
    let (a_vector, b_vector) = (a_vector || a_vector_t, b_vector || b_vector_t);
    let pairs = paired(signature, "out", p.out_j, [p.out_b, p.out_i])
        && (!signature.has("residual")
            || paired(signature, "residual", p.residual_j, [p.residual_b, p.residual_i]));
    let blocks =
        |bm: u32, bn: u32| u64::from(p.batch) * u64::from(p.m.div_ceil(bm)) * u64::from(p.n.div_ceil(bn));
    // Large tiles reuse more, but only where they are filled, and where there are enough of them for the device.
    let large = p.m > 64 && p.n > 64 && blocks(128, 128) >= u64::from(caps.multiprocessors);
    let consts = Consts::new()
        .set("ACT", op.activation.tag())
        .set("A_ROWS_K", u32::from(a_rows_k))
        .set("B_ROWS_N", u32::from(b_rows_n))
        .set("A_VECTOR", u32::from(a_vector))
        .set("B_VECTOR", u32::from(b_vector))
        .set("PAIRS", u32::from(pairs));
    if dtype != Dtype::F32 && arch >= 80 {
        // Tiles are square, of 2 bytes an element, in three stages along k. Warps of 64 x 64 read least from shared
        // memory; elements that are brought one by one take more threads. Longer steps wait less often, where two
        // blocks still fit a multiprocessor.
        const STAGES: u32 = 3;
        let bytes = |side: u32, block_k: u32| STAGES * 2 * side * block_k * 2;
        let longer = 2 * bytes(128, 64) <= caps.shared_bytes;
        let (side, warps_m, warps_n, block_k) = match (large, a_vector && b_vector) {
            (true, true) => (128, 2, 2, if longer { 64 } else { 32 }),
            (true, false) => (128, 2, 4, 32),
            (false, _) => (64, 2, 2, 32),
        };
        let threads = 32 * warps_m * warps_n;
        return Ok(Plan {
            entry: MMA,
            consts: consts
                .set("MMA", 1u32)
                .set("BLOCK_M", side)
                .set("BLOCK_N", side)
                .set("BLOCK_K", block_k)
                .set("WARPS_M", warps_m)
                .set("WARPS_N", warps_n)
                .set("STAGES", STAGES),
            grid: fold_grid(NAME, blocks(side, side), caps)?,
            block: [threads, 1, 1],
            shared_bytes: bytes(side, block_k),
        });
    }
    let (side, k, per_thread) = if large { (128u32, 8u32, 8u32) } else { (64, 16, 4) };
    Ok(Plan {
        entry: TILE,
        consts: consts
            .set("MMA", 0u32)
            .set("BLOCK_M", side)
            .set("BLOCK_N", side)
            .set("BLOCK_K", k)
            .set("THREAD_M", per_thread)
            .set("THREAD_N", per_thread),
        grid: fold_grid(NAME, blocks(side, side), caps)?,
        block: [256, 1, 1],
        // Two stages of both tiles in f32, rows padded by 4.
        shared_bytes: 2 * k * (side + 4) * 2 * 4,
    })
}

fn plan_wgsl(
    op: Matmul,
    p: &MatmulParams,
    signature: &Signature,
    caps: &Caps,
    f16: bool,
    subgroups: bool,
) -> Result<Plan> {
    let consts = Consts::new().set("ACT", op.activation.tag());
    let b_rows_n = p.b_j <= p.b_k;
    // Few rows leave most of a square tile empty: split the sum over the invocations instead.
    if p.m <= 4 && p.k >= 32 {
        let threads = 64.min(caps.max_threads);
        // Neighbours read along the dense axis of `b`: columns (16 of them, 4 a lane) or the sum.
        let column_lanes = if b_rows_n { 16 } else { 1 };
        let rows = if p.m == 1 { 1 } else { 4 };
        let by_subgroup = subgroups && !b_rows_n;
        let blocks =
            u64::from(p.batch) * u64::from(p.m.div_ceil(rows)) * u64::from(p.n.div_ceil(4 * column_lanes));
        // Partial sums, 4 columns each: one a row and subgroup (of at least 4 invocations), or one a row
        // and invocation.
        let partials = rows * if by_subgroup { threads.div_ceil(4) } else { threads };
        return Ok(Plan {
            entry: ROWS,
            consts: consts
                .set("TILED", 0u32)
                .set("THREADS", threads)
                .set("ROWS", rows)
                .set("COLUMN_LANES", column_lanes)
                .set("PARTIALS", partials)
                .set("BY_SUBGROUP", u32::from(by_subgroup)),
            grid: fold_grid(NAME, blocks, caps)?,
            block: [threads, 1, 1],
            shared_bytes: partials * 16,
        });
    }
    let tile_f16 = f16 && signature.dtype("a") == Dtype::F16;
    // 4x4 elements an invocation. A tile twice as wide needs half the traffic, but small products would
    // leave a device idle.
    let blocks =
        |side: u32| u64::from(p.batch) * u64::from(p.m.div_ceil(side)) * u64::from(p.n.div_ceil(side));
    let bytes = |side: u32| 2 * 16 * (side / 4 + 1) * if tile_f16 { 8 } else { 16 };
    let side = [64, 32, 16]
        .into_iter()
        .find(|&side| {
            side * side / 16 <= caps.max_threads
                && bytes(side) <= caps.shared_bytes
                && (side <= 32 || blocks(side) >= 16)
        })
        .unwrap_or(8);
    let threads = side * side / 16;
    Ok(Plan {
        entry: TILE,
        consts: consts
            .set("TILED", 1u32)
            .set("THREADS", threads)
            .set("BLOCK", side)
            .set("BLOCK_K", 16u32)
            .set("A_ROWS_K", u32::from(p.a_k <= p.a_i))
            .set("B_ROWS_N", u32::from(b_rows_n))
            .set("TILE_F16", u32::from(tile_f16)),
        grid: fold_grid(NAME, blocks(side), caps)?,
        block: [threads, 1, 1],
        shared_bytes: bytes(side),
    })
}
