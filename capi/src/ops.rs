//! The ops. Each takes one struct of operands and options, in which NULL is an absent operand and 0 a default.

use crate::call::{Mode, Operands, activation, advect_plan};
use crate::device::{advect_device, reserved};
use crate::memory::{Caller, Extensible};
use crate::status::{Failure, advect_status, entry};
use crate::tensor::advect_view;
use advect::ops::{
    Attention, AttentionArgs, Coefficients, Conv, ConvArgs, FeatureMap, LinearAttention, LinearAttentionArgs,
    Matmul, MatmulArgs, Merge, MergeArgs, Noise, Norm, NormArgs, NormKind, Resample, ResampleArgs, Step,
    StepArgs, Window,
};

/// The identity.
pub const ADVECT_ACTIVATION_NONE: u32 = 0;
/// `z / (1 + e^-z)`, also called swish.
pub const ADVECT_ACTIVATION_SILU: u32 = 1;
/// `z * Phi(z)` with the error function, not the tanh approximation.
pub const ADVECT_ACTIVATION_GELU: u32 = 2;

/// `advect_attention_args.window`: every query sees every key.
pub const ADVECT_WINDOW_ALL: u32 = 0;
/// `advect_attention_args.window`: a query sees no key after its place.
pub const ADVECT_WINDOW_CAUSAL: u32 = 1;
/// `advect_attention_args.window`: a query sees `window_left` keys before its place, the one there, and `window_right`
/// after it.
pub const ADVECT_WINDOW_SIDES: u32 = 2;

/// `advect_linear_attention_args.feature_map`: queries and keys as they are.
pub const ADVECT_FEATURE_MAP_IDENTITY: u32 = 0;
/// `advect_linear_attention_args.feature_map`: `max(x, 0)`.
pub const ADVECT_FEATURE_MAP_RELU: u32 = 1;
/// `advect_linear_attention_args.feature_map`: `elu(x) + 1`.
pub const ADVECT_FEATURE_MAP_ELU_PLUS_ONE: u32 = 2;

/// `advect_norm_args.kind`: mean and variance over the channels of a group and all positions of one sample.
pub const ADVECT_NORM_GROUP: u32 = 1;
/// `advect_norm_args.kind`: mean and variance over the last axis.
pub const ADVECT_NORM_LAYER: u32 = 2;
/// `advect_norm_args.kind`: as `ADVECT_NORM_LAYER`, without the mean.
pub const ADVECT_NORM_RMS: u32 = 3;

/// `advect_resample_args.mode`: nearest neighbour, sizes doubled.
pub const ADVECT_RESAMPLE_UP2: u32 = 1;
/// `advect_resample_args.mode`: means of 2 x 2, sizes halved; an odd last row or column is left out.
pub const ADVECT_RESAMPLE_DOWN2: u32 = 2;

/// The most buffers of one `advect_step`.
pub const ADVECT_MAX_BUFFERS: usize = 8;

/// `out[b, i, j] = activation(sum over k of a[b, i, k] * b[b, k, j] + bias[j]) + residual[b, i, j]`.
/// `a` is `[batch, m, k]` or `[m, k]`, `b` `[batch, k, n]` or `[k, n]`, `out` `[batch, m, n]` or `[m, n]`. A
/// transposed operand is a view with its axes permuted. All operands have one dtype.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_matmul_args {
    /// `sizeof(advect_matmul_args)`.
    pub struct_size: usize,
    /// The left factor.
    pub a: *const advect_view,
    /// The right factor.
    pub b: *const advect_view,
    /// `[n]`, or NULL.
    pub bias: *const advect_view,
    /// Of the shape of `out`, or NULL.
    pub residual: *const advect_view,
    /// The result.
    pub out: *const advect_view,
    /// `ADVECT_ACTIVATION_*`.
    pub activation: u32,
    /// 0.
    pub reserved: u32,
}

/// `out[n, o, y, x] = activation(sum of weight * window of x + bias[o] + sample_bias[n, o]) + residual[n, o, y, x]`.
/// Pairs are (along rows, along columns). All operands have one dtype.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_conv_args {
    /// `sizeof(advect_conv_args)`.
    pub struct_size: usize,
    /// The image, `[n, c_in, h, w]`.
    pub x: *const advect_view,
    /// The weights, `[c_out, c_in / groups, kh, kw]`.
    pub weight: *const advect_view,
    /// `[c_out]`, or NULL.
    pub bias: *const advect_view,
    /// `[n, c_out]`, or NULL.
    pub sample_bias: *const advect_view,
    /// Of the shape of `out`, or NULL.
    pub residual: *const advect_view,
    /// The result, `[n, c_out, oh, ow]`.
    pub out: *const advect_view,
    /// Distance between neighbouring windows; 0 is 1.
    pub stride: [u32; 2],
    /// Zeros on each side of the image.
    pub padding: [u32; 2],
    /// Distance between neighbouring taps of a window; 0 is 1.
    pub dilation: [u32; 2],
    /// Groups of channels; 0 is 1.
    pub groups: u32,
    /// `ADVECT_ACTIVATION_*`.
    pub activation: u32,
}

/// `out = activation((y * weight + bias) * (1 + scale) + shift)` with `y = (x - mean) / sqrt(variance + eps)`.
/// All operands have one dtype.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_norm_args {
    /// `sizeof(advect_norm_args)`.
    pub struct_size: usize,
    /// `[n, c]`, `[n, c, w]` or `[n, c, h, w]` for groups, `[n, c]` or `[n, t, c]` otherwise.
    pub x: *const advect_view,
    /// `[c]`, or NULL for 1.
    pub weight: *const advect_view,
    /// `[c]`, or NULL for 0.
    pub bias: *const advect_view,
    /// `[n, c]`, or NULL for 0.
    pub scale: *const advect_view,
    /// `[n, c]`, or NULL for 0.
    pub shift: *const advect_view,
    /// The result, of the shape of `x`.
    pub out: *const advect_view,
    /// `ADVECT_NORM_GROUP`, `ADVECT_NORM_LAYER` or `ADVECT_NORM_RMS`.
    pub kind: u32,
    /// Groups of consecutive channels, for `ADVECT_NORM_GROUP`; otherwise 0.
    pub groups: u32,
    /// Added to the variance. 0 is 0, and then a row of equal numbers divides by zero.
    pub eps: f32,
    /// `ADVECT_ACTIVATION_*`.
    pub activation: u32,
}

/// `out = softmax(softmax_scale * q k^T + bias) v` over axes (batch, head, token, element of the head), `q`, `k`, `v` and
/// `out` of one dtype. `k` and `v` may have fewer heads, which divide those of `q`. What is alike along an axis is repeated
/// there by a stride of 0. What is NULL is not there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_attention_args {
    /// `sizeof(advect_attention_args)`.
    pub struct_size: usize,
    /// Queries, `[b, h, nq, d]`.
    pub q: *const advect_view,
    /// Keys, `[b, h / g, nk, d]`.
    pub k: *const advect_view,
    /// Values, `[b, h / g, nk, dv]`.
    pub v: *const advect_view,
    /// Added to the scores, `[b, h, nq, nk]`, in f32 or the dtype of `q`; -1e38 and less hides the key. Or NULL.
    pub bias: *const advect_view,
    /// `[b, h, nq, nk]`, u8: 0 hides the key. Or NULL.
    pub mask: *const advect_view,
    /// `[b]`, i32: how many of the queries a sequence has; the results of others are 0. Or NULL.
    pub q_lengths: *const advect_view,
    /// `[b]`, i32: how many of the keys it has; others are hidden. Or NULL.
    pub k_lengths: *const advect_view,
    /// `[b + 1]`, i32, not decreasing: where the queries of each sequence start, and where the last ends. `q`, `out` and
    /// `lse` then have a batch of 1 and the tokens of all sequences; `nq` in other operands is the longest. Or NULL.
    pub cu_seqlens_q: *const advect_view,
    /// The same of keys. Or NULL.
    pub cu_seqlens_k: *const advect_view,
    /// `[b, pages]`, i32: the keys of a sequence in pages. `k` and `v` are then `[pages of all, h / g, tokens of a page, d]`,
    /// key `j` of a sequence being token `j % tokens` of page `block_table[b, j / tokens]`. Or NULL.
    pub block_table: *const advect_view,
    /// `[b, h]`, f32: by how much scores fall with the distance between query and key (ALiBi). Or NULL.
    pub slopes: *const advect_view,
    /// `[h]`, f32: a score of every query's softmax that has no value. Or NULL.
    pub sinks: *const advect_view,
    /// The result, `[b, h, nq, dv]`; of several splits `[splits, b, h, nq, dv]`.
    pub out: *const advect_view,
    /// `[b, h, nq]`, or `[splits, b, h, nq]`, f32: the natural logarithm of the sum of the exponentials. Or NULL, but for
    /// splits.
    pub lse: *const advect_view,
    /// What the scores are multiplied with; 0 is `1 / sqrt(d)`. (For the mean of the values pass `FLT_MIN`.)
    pub softmax_scale: f32,
    /// Scores become `softcap * tanh(score / softcap)`; 0 leaves them as they are.
    pub softcap: f32,
    /// `ADVECT_WINDOW_*`: which keys a query sees. The last query is at the place of the last key.
    pub window: u32,
    /// With `ADVECT_WINDOW_SIDES`, how many keys before its place a query sees; `UINT32_MAX` is all. Otherwise 0.
    pub window_left: u32,
    /// And how many after it.
    pub window_right: u32,
    /// With `cu_seqlens_q`, the queries of the longest sequence; 0 is all there are.
    pub max_seqlen_q: u32,
    /// With `cu_seqlens_k`, its keys.
    pub max_seqlen_k: u32,
    /// Parts of the keys, each with results that `advect_merge` merges; 0 and 1 are none.
    pub splits: u32,
}

/// Results of `advect_attention` over disjoint sets of keys, merged into that over all of them.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_merge_args {
    /// `sizeof(advect_merge_args)`.
    pub struct_size: usize,
    /// The results, `[s, b, h, n, d]`, in f32 or the dtype of `out`.
    pub parts: *const advect_view,
    /// What `advect_attention` wrote to `lse`, `[s, b, h, n]`, f32. A part with -infinity counts for nothing.
    pub lses: *const advect_view,
    /// The result, `[b, h, n, d]`.
    pub out: *const advect_view,
    /// `[b, h, n]`, f32: the natural logarithm of the whole sum. Or NULL.
    pub lse: *const advect_view,
}

/// Linear attention: keys and values go into a state `S` of `d` by `dv` numbers, which queries read: token by token
/// `S = exp(log_decay) S + k u^T`, `out = scale S^T q`, with `u = v`, or by the delta rule
/// `u = beta (v - (exp(log_decay) S)^T k)`. Axes are (batch, head, token, element of the head), `q`, `k`, `v` and `out` of one
/// dtype. `q`, `k` and `v` may each have fewer heads, which divide those of `out`; there are `hs` states, as many as `k` or `v`
/// has heads. What is NULL is not there.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_linear_attention_args {
    /// `sizeof(advect_linear_attention_args)`.
    pub struct_size: usize,
    /// Queries, `[b, h / g, n, d]`.
    pub q: *const advect_view,
    /// Keys, `[b, h / g, nk, d]`; `nk` is `n` when causal.
    pub k: *const advect_view,
    /// Values, `[b, h / g, nk, dv]`.
    pub v: *const advect_view,
    /// Logarithms of the decays, 0 or less, `[b, hs, nk]` or `[b, hs, nk, d]`, in f32 or the dtype of `q`. Causal. Or NULL.
    pub log_decay: *const advect_view,
    /// How much of its value a key writes by the delta rule, `[b, hs, nk]`, in f32 or the dtype of `q`. Causal and without a
    /// normalizer. Or NULL.
    pub beta: *const advect_view,
    /// The state before the first token, f32, `[b, hs, d, dv]`; with a normalizer `[b, hs, d, dv + 1]`, the sum of the keys
    /// last. NULL is 0.
    pub initial_state: *const advect_view,
    /// The result, `[b, h, n, dv]`.
    pub out: *const advect_view,
    /// The state after the last token, of the same shape, f32. Or NULL.
    pub final_state: *const advect_view,
    /// What the result is multiplied with; 0 is `1 / sqrt(d)`. (For a result of 0 pass `FLT_MIN`.)
    pub scale: f32,
    /// Added to what the result is divided by. 0 without a normalizer.
    pub eps: f32,
    /// 1: a query sees the keys up to its own. 0: every query sees all keys.
    pub causal: u32,
    /// `ADVECT_FEATURE_MAP_*`, of every element of `q` and `k`.
    pub feature_map: u32,
    /// 1: the result is divided by the product of the query and the sum of the keys, plus `eps`.
    pub normalize: u32,
    /// 0.
    pub reserved: u32,
}

/// Resampling by two along height and width.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_resample_args {
    /// `sizeof(advect_resample_args)`.
    pub struct_size: usize,
    /// The image, `[n, c, h, w]`.
    pub x: *const advect_view,
    /// The result, `[n, c, 2h, 2w]` or `[n, c, h/2, w/2]`, of the same dtype.
    pub out: *const advect_view,
    /// `ADVECT_RESAMPLE_UP2` or `ADVECT_RESAMPLE_DOWN2`.
    pub mode: u32,
    /// 0.
    pub reserved: u32,
}

/// `out[b, e] = sum over j of c[j] x_j[b, e] + c_noise z(seed, stream + b, e)`: one explicit step of an ODE or SDE.
/// Buffers are `[b, ..]` of 1 to 4 axes. A coefficient of 0 leaves its buffer unread. All operands have one
/// dtype, the table excepted.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_step_args {
    /// `sizeof(advect_step_args)`.
    pub struct_size: usize,
    /// The buffers; the first is always given, the others may be NULL.
    pub x: [*const advect_view; ADVECT_MAX_BUFFERS],
    /// Coefficients per sample, `[b, 9]` of f32 (the last column is the noise's), or NULL. With a table the
    /// coefficients below are 0.
    pub table: *const advect_view,
    /// The result.
    pub out: *const advect_view,
    /// Key of the noise's generator.
    pub seed: u64,
    /// Stream of the first sample's noise; the next samples have the next streams.
    pub stream: u64,
    /// Coefficients of the buffers.
    pub coefficients: [f32; ADVECT_MAX_BUFFERS],
    /// Coefficient of the noise.
    pub noise_coefficient: f32,
    /// 1 to make standard normal noise on the way, 0 to make none.
    pub noise: u32,
}

// SAFETY: six pointers or sizes and two u32: no padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_matmul_args {
    const FIRST: usize = size_of::<Self>();
}

// SAFETY: seven pointers or sizes and eight u32: no padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_conv_args {
    const FIRST: usize = size_of::<Self>();
}

// SAFETY: seven pointers or sizes and four of 4 bytes: no padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_norm_args {
    const FIRST: usize = size_of::<Self>();
}

// SAFETY: fifteen pointers or sizes and eight of 4 bytes: no padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_attention_args {
    const FIRST: usize = size_of::<Self>();
}

// SAFETY: five pointers or sizes: no padding.
unsafe impl Extensible for advect_merge_args {
    const FIRST: usize = size_of::<Self>();
}

// SAFETY: nine pointers or sizes and six of 4 bytes: no padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_linear_attention_args {
    const FIRST: usize = size_of::<Self>();
}

// SAFETY: three pointers or sizes and two u32: no padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_resample_args {
    const FIRST: usize = size_of::<Self>();
}

// SAFETY: eleven pointers or sizes, two u64 and ten of 4 bytes: no padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_step_args {
    const FIRST: usize = size_of::<Self>();
}

fn matmul(
    c: &Caller,
    device: *const advect_device,
    a: advect_matmul_args,
    mode: Mode,
) -> Result<(), Failure> {
    reserved(c.op(), a.reserved)?;
    let op = Matmul { activation: activation(c.op(), a.activation)? };
    let mut o = Operands::new(c);
    let args = MatmulArgs {
        a: o.required("a", a.a)?,
        b: o.required("b", a.b)?,
        bias: o.optional("bias", a.bias)?,
        residual: o.optional("residual", a.residual)?,
        out: o.required("out", a.out)?,
    };
    o.call(device, &op, args, mode)
}

/// A batched matrix product with its epilogue.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_matmul(
    device: *const advect_device,
    args: *const advect_matmul_args,
) -> advect_status {
    entry!("matmul", |c| matmul(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_matmul` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_matmul_plan(
    device: *const advect_device,
    args: *const advect_matmul_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("matmul", |c| matmul(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_matmul` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_matmul_warm(
    device: *const advect_device,
    args: *const advect_matmul_args,
) -> advect_status {
    entry!("matmul", |c| matmul(c, device, c.read("args", args)?, Mode::Warm))
}

fn conv(c: &Caller, device: *const advect_device, a: advect_conv_args, mode: Mode) -> Result<(), Failure> {
    let pair = |p: [u32; 2]| p.map(|n| n as usize);
    let or_one = |p: [u32; 2]| pair(p.map(|n| n.max(1)));
    let op = Conv {
        stride: or_one(a.stride),
        padding: pair(a.padding),
        dilation: or_one(a.dilation),
        groups: a.groups.max(1) as usize,
        activation: activation(c.op(), a.activation)?,
    };
    let mut o = Operands::new(c);
    let args = ConvArgs {
        x: o.required("x", a.x)?,
        weight: o.required("weight", a.weight)?,
        bias: o.optional("bias", a.bias)?,
        sample_bias: o.optional("sample_bias", a.sample_bias)?,
        residual: o.optional("residual", a.residual)?,
        out: o.required("out", a.out)?,
    };
    o.call(device, &op, args, mode)
}

/// A 2-D convolution with its epilogue.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_conv(
    device: *const advect_device,
    args: *const advect_conv_args,
) -> advect_status {
    entry!("conv", |c| conv(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_conv` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_conv_plan(
    device: *const advect_device,
    args: *const advect_conv_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("conv", |c| conv(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_conv` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_conv_warm(
    device: *const advect_device,
    args: *const advect_conv_args,
) -> advect_status {
    entry!("conv", |c| conv(c, device, c.read("args", args)?, Mode::Warm))
}

fn norm(c: &Caller, device: *const advect_device, a: advect_norm_args, mode: Mode) -> Result<(), Failure> {
    let kind = match (a.kind, a.groups) {
        (ADVECT_NORM_GROUP, groups) => NormKind::Group { groups: groups as usize },
        (ADVECT_NORM_LAYER, 0) => NormKind::Layer,
        (ADVECT_NORM_RMS, 0) => NormKind::Rms,
        (ADVECT_NORM_LAYER | ADVECT_NORM_RMS, groups) => {
            return Err(Failure::argument(
                c.op(),
                "groups",
                "0, since only ADVECT_NORM_GROUP has groups",
                groups,
            ));
        }
        (kind, _) => {
            let wanted = "ADVECT_NORM_GROUP, ADVECT_NORM_LAYER or ADVECT_NORM_RMS";
            return Err(Failure::argument(c.op(), "kind", wanted, kind));
        }
    };
    let op = Norm { kind, eps: a.eps, activation: activation(c.op(), a.activation)? };
    let mut o = Operands::new(c);
    let args = NormArgs {
        x: o.required("x", a.x)?,
        weight: o.optional("weight", a.weight)?,
        bias: o.optional("bias", a.bias)?,
        scale: o.optional("scale", a.scale)?,
        shift: o.optional("shift", a.shift)?,
        out: o.required("out", a.out)?,
    };
    o.call(device, &op, args, mode)
}

/// Group, layer or root-mean-square normalisation with what follows it.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_norm(
    device: *const advect_device,
    args: *const advect_norm_args,
) -> advect_status {
    entry!("norm", |c| norm(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_norm` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_norm_plan(
    device: *const advect_device,
    args: *const advect_norm_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("norm", |c| norm(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_norm` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_norm_warm(
    device: *const advect_device,
    args: *const advect_norm_args,
) -> advect_status {
    entry!("norm", |c| norm(c, device, c.read("args", args)?, Mode::Warm))
}

fn attention(
    c: &Caller,
    device: *const advect_device,
    a: advect_attention_args,
    mode: Mode,
) -> Result<(), Failure> {
    let mut o = Operands::new(c);
    let args = AttentionArgs {
        q: o.required("q", a.q)?,
        k: o.required("k", a.k)?,
        v: o.required("v", a.v)?,
        bias: o.optional("bias", a.bias)?,
        mask: o.optional("mask", a.mask)?,
        q_lengths: o.optional("q_lengths", a.q_lengths)?,
        k_lengths: o.optional("k_lengths", a.k_lengths)?,
        cu_seqlens_q: o.optional("cu_seqlens_q", a.cu_seqlens_q)?,
        cu_seqlens_k: o.optional("cu_seqlens_k", a.cu_seqlens_k)?,
        block_table: o.optional("block_table", a.block_table)?,
        slopes: o.optional("slopes", a.slopes)?,
        sinks: o.optional("sinks", a.sinks)?,
        out: o.required("out", a.out)?,
        lse: o.optional("lse", a.lse)?,
    };
    let usual = Attention::new(args.q.shape().last().copied().unwrap_or(1));
    let op = if a.softmax_scale == 0.0 { usual } else { Attention::scaled(a.softmax_scale) };
    let side = |n: u32| (n != u32::MAX).then_some(n);
    let window = match (a.window, a.window_left, a.window_right) {
        (ADVECT_WINDOW_ALL, 0, 0) => Window::default(),
        (ADVECT_WINDOW_CAUSAL, 0, 0) => usual.causal().window,
        (ADVECT_WINDOW_SIDES, left, right) => Window { left: side(left), right: side(right) },
        (ADVECT_WINDOW_ALL | ADVECT_WINDOW_CAUSAL, left, right) => {
            let wanted = "0 and 0, since only ADVECT_WINDOW_SIDES has sides";
            return Err(Failure::argument(c.op(), "window_left", wanted, format!("{left} and {right}")));
        }
        (other, ..) => {
            let wanted = "ADVECT_WINDOW_ALL, ADVECT_WINDOW_CAUSAL or ADVECT_WINDOW_SIDES";
            return Err(Failure::argument(c.op(), "window", wanted, other));
        }
    };
    let longest = |n: u32| (n != 0).then_some(n);
    let (max_seqlen_q, max_seqlen_k) = (longest(a.max_seqlen_q), longest(a.max_seqlen_k));
    let splits = a.splits.max(1);
    let op = Attention { window, softcap: a.softcap, max_seqlen_q, max_seqlen_k, splits, ..op };
    o.call(device, &op, args, mode)
}

/// Scaled dot-product attention.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_attention(
    device: *const advect_device,
    args: *const advect_attention_args,
) -> advect_status {
    entry!("attention", |c| attention(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_attention` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_attention_plan(
    device: *const advect_device,
    args: *const advect_attention_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("attention", |c| attention(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_attention` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_attention_warm(
    device: *const advect_device,
    args: *const advect_attention_args,
) -> advect_status {
    entry!("attention", |c| attention(c, device, c.read("args", args)?, Mode::Warm))
}

fn merge(c: &Caller, device: *const advect_device, a: advect_merge_args, mode: Mode) -> Result<(), Failure> {
    let mut o = Operands::new(c);
    let args = MergeArgs {
        parts: o.required("parts", a.parts)?,
        lses: o.required("lses", a.lses)?,
        out: o.required("out", a.out)?,
        lse: o.optional("lse", a.lse)?,
    };
    o.call(device, &Merge, args, mode)
}

/// Merges parts of attention.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_merge(
    device: *const advect_device,
    args: *const advect_merge_args,
) -> advect_status {
    entry!("merge", |c| merge(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_merge` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_merge_plan(
    device: *const advect_device,
    args: *const advect_merge_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("merge", |c| merge(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_merge` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_merge_warm(
    device: *const advect_device,
    args: *const advect_merge_args,
) -> advect_status {
    entry!("merge", |c| merge(c, device, c.read("args", args)?, Mode::Warm))
}

/// A switch of the caller's.
fn switch(c: &Caller, argument: &'static str, given: u32) -> Result<bool, Failure> {
    match given {
        0 | 1 => Ok(given == 1),
        other => Err(Failure::argument(c.op(), argument, "0 or 1", other)),
    }
}

fn linear_attention(
    c: &Caller,
    device: *const advect_device,
    a: advect_linear_attention_args,
    mode: Mode,
) -> Result<(), Failure> {
    reserved(c.op(), a.reserved)?;
    let mut o = Operands::new(c);
    let args = LinearAttentionArgs {
        q: o.required("q", a.q)?,
        k: o.required("k", a.k)?,
        v: o.required("v", a.v)?,
        log_decay: o.optional("log_decay", a.log_decay)?,
        beta: o.optional("beta", a.beta)?,
        initial_state: o.optional("initial_state", a.initial_state)?,
        out: o.required("out", a.out)?,
        final_state: o.optional("final_state", a.final_state)?,
    };
    let usual = LinearAttention::new(args.q.shape().last().copied().unwrap_or(1));
    let feature_map = match a.feature_map {
        ADVECT_FEATURE_MAP_IDENTITY => FeatureMap::Identity,
        ADVECT_FEATURE_MAP_RELU => FeatureMap::Relu,
        ADVECT_FEATURE_MAP_ELU_PLUS_ONE => FeatureMap::EluPlusOne,
        other => return Err(Failure::argument(c.op(), "feature_map", "one of ADVECT_FEATURE_MAP_*", other)),
    };
    let normalize = switch(c, "normalize", a.normalize)?;
    if !normalize && a.eps != 0.0 {
        return Err(Failure::argument(c.op(), "eps", "0 without a normalizer", a.eps));
    }
    let op = LinearAttention {
        scale: if a.scale == 0.0 { usual.scale } else { a.scale },
        causal: switch(c, "causal", a.causal)?,
        feature_map,
        normalize: normalize.then_some(a.eps),
    };
    o.call(device, &op, args, mode)
}

/// Linear attention.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_linear_attention(
    device: *const advect_device,
    args: *const advect_linear_attention_args,
) -> advect_status {
    entry!("linear_attention", |c| linear_attention(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_linear_attention` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_linear_attention_plan(
    device: *const advect_device,
    args: *const advect_linear_attention_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("linear_attention", |c| linear_attention(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_linear_attention` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_linear_attention_warm(
    device: *const advect_device,
    args: *const advect_linear_attention_args,
) -> advect_status {
    entry!("linear_attention", |c| linear_attention(c, device, c.read("args", args)?, Mode::Warm))
}

fn resample(
    c: &Caller,
    device: *const advect_device,
    a: advect_resample_args,
    mode: Mode,
) -> Result<(), Failure> {
    reserved(c.op(), a.reserved)?;
    let op = match a.mode {
        ADVECT_RESAMPLE_UP2 => Resample::Up2,
        ADVECT_RESAMPLE_DOWN2 => Resample::Down2,
        mode => {
            let wanted = "ADVECT_RESAMPLE_UP2 or ADVECT_RESAMPLE_DOWN2";
            return Err(Failure::argument(c.op(), "mode", wanted, mode));
        }
    };
    let mut o = Operands::new(c);
    let args = ResampleArgs { x: o.required("x", a.x)?, out: o.required("out", a.out)? };
    o.call(device, &op, args, mode)
}

/// Nearest-neighbour doubling or 2 x 2 averaging.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_resample(
    device: *const advect_device,
    args: *const advect_resample_args,
) -> advect_status {
    entry!("resample", |c| resample(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_resample` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_resample_plan(
    device: *const advect_device,
    args: *const advect_resample_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("resample", |c| resample(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_resample` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_resample_warm(
    device: *const advect_device,
    args: *const advect_resample_args,
) -> advect_status {
    entry!("resample", |c| resample(c, device, c.read("args", args)?, Mode::Warm))
}

pub(crate) fn step(
    c: &Caller,
    device: *const advect_device,
    a: advect_step_args,
    mode: Mode,
) -> Result<(), Failure> {
    let noise = match a.noise {
        0 => None,
        1 => Some(Noise { seed: a.seed, stream: a.stream }),
        other => return Err(Failure::argument(c.op(), "noise", "0 or 1", other)),
    };
    let coefficients = if a.table.is_null() {
        Coefficients::Values { x: a.coefficients, noise: a.noise_coefficient }
    } else {
        let given = a.coefficients.into_iter().chain([a.noise_coefficient]).find(|&k| k != 0.0);
        if let Some(k) = given {
            return Err(Failure::argument(c.op(), "coefficients", "zeros beside a table", k));
        }
        Coefficients::Table
    };
    let op = Step { coefficients, noise };
    let mut o = Operands::new(c);
    let args = StepArgs {
        x0: o.required("x0", a.x[0])?,
        x1: o.optional("x1", a.x[1])?,
        x2: o.optional("x2", a.x[2])?,
        x3: o.optional("x3", a.x[3])?,
        x4: o.optional("x4", a.x[4])?,
        x5: o.optional("x5", a.x[5])?,
        x6: o.optional("x6", a.x[6])?,
        x7: o.optional("x7", a.x[7])?,
        table: o.optional("table", a.table)?,
        out: o.required("out", a.out)?,
    };
    o.call(device, &op, args, mode)
}

/// A linear combination of buffers, with noise.
///
/// On the CPU it is done when this returns; elsewhere it is launched. Nothing is written when an error is
/// returned.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_step(
    device: *const advect_device,
    args: *const advect_step_args,
) -> advect_status {
    entry!("step", |c| step(c, device, c.read("args", args)?, Mode::Run))
}

/// What `advect_step` would launch and cost, after the same checks. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_step_plan(
    device: *const advect_device,
    args: *const advect_step_args,
    plan: *mut advect_plan,
) -> advect_status {
    entry!("step", |c| step(c, device, c.read("args", args)?, Mode::Plan(plan)))
}

/// Compiles what `advect_step` needs for such arguments, so that the call itself does not. Launches nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_step_warm(
    device: *const advect_device,
    args: *const advect_step_args,
) -> advect_status {
    entry!("step", |c| step(c, device, c.read("args", args)?, Mode::Warm))
}
