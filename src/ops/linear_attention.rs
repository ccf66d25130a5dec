//! Linear attention: the spec.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;

/// Linear attention over heads: keys and values go into a state of `d` by `dv` numbers, and queries read it. Time and
/// memory grow with the tokens, not with their square.
///
/// ```text
/// S[t] = exp(log_decay[t]) * S[t - 1] + k[t] u[t]^T       u[t] = v[t]
/// out[t] = scale * S[t]^T q[t]                              or beta[t] (v[t] - (exp(log_decay[t]) * S[t - 1])^T k[t])
/// ```
///
/// which without `beta` is the same as `out[t] = scale * sum over s <= t of (q[t] . (decays after s) k[s]) v[s]`.
///
/// - **Causal** ([`LinearAttention::causal`]): query `t` sees the keys up to its own. Otherwise every query sees all keys, of
///   which there may be another number; there are then no decays and no `beta`.
/// - **Decays.** One a token for the whole head (RetNet, Sun et al. 2023, arXiv:2307.08621; Mamba-2, Dao and Gu 2024,
///   arXiv:2405.21060) or one for each of its `d` channels (gated linear attention, Yang et al. 2023, arXiv:2312.06635).
/// - **`beta`** makes it the delta rule, which first takes out what the state holds under a key (DeltaNet, Yang et al. 2024,
///   arXiv:2406.06484), and with decays the gated delta rule (Yang, Kautz and Hatamizadeh 2024, arXiv:2412.06464).
/// - **Feature map** ([`LinearAttention::feature_map`]), of queries and keys as they are loaded, and a **normalizer**
///   ([`LinearAttention::normalize`]): `out` is then divided by `q . z + eps`, `z` being the sum of the keys, decayed as the
///   state is (Katharopoulos et al. 2020, arXiv:2006.16236). It is one more column of the state, whose value is 1.
/// - **States** in and out: a sequence in pieces, or token by token, is the same as the whole.
/// - **Heads.** Q, K and V may each have fewer heads than `out`, by a whole factor: head `h` of `out` uses head
///   `h / (heads of out / heads of it)`. There is a state for each head of K or of V, whichever has more.
///
/// Kernels for GPUs take heads of Q and K of at most 256 elements; the CPU takes up to 65536. V's may have any size.
///
/// ```
/// use advect::{Cpu, View, ops::{LinearAttention, LinearAttentionArgs}};
/// // Three tokens of one head. The state halves before each: out = q (1), q (1/2 + 2), q (1/4 + 1 + 4).
/// let (ones, v, half, mut out) = ([1.0f32; 3], [1.0f32, 2.0, 4.0], [0.5f32.ln(); 3], [0.0f32; 3]);
/// let view = |x| View::of(x, &[1, 1, 3, 1]);
/// let mut args = LinearAttentionArgs::new(
///     view(&ones)?, view(&ones)?, view(&v)?, View::of_mut(&mut out, &[1, 1, 3, 1])?,
/// );
/// args.log_decay = Some(View::of(&half, &[1, 1, 3])?);
/// Cpu::new()?.run(&LinearAttention::scaled(1.0).causal(), args)?;
/// assert!(out.iter().zip([1.0, 2.5, 5.25]).all(|(got, want)| (got - want).abs() < 1e-6));
/// # Ok::<(), advect::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearAttention {
    /// What the result is multiplied with; any finite number.
    pub scale: f32,
    /// Whether a query sees only the keys up to its own.
    pub causal: bool,
    /// Applied to every element of Q and K.
    pub feature_map: FeatureMap,
    /// `eps`, when the result is divided by `q . z + eps`: finite, at least 0. With 0, a query whose product with every key
    /// is 0 divides by zero.
    pub normalize: Option<f32>,
}

/// What is applied to each element of queries and keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FeatureMap {
    /// Nothing.
    #[default]
    Identity,
    /// `max(x, 0)` (SANA, Xie et al. 2024, arXiv:2410.10629).
    Relu,
    /// `elu(x) + 1`: `x + 1` above 0, `exp(x)` below (Katharopoulos et al. 2020, arXiv:2006.16236).
    EluPlusOne,
}

impl FeatureMap {
    /// Every feature map, in the order of their tags.
    pub const ALL: [Self; 3] = [Self::Identity, Self::Relu, Self::EluPlusOne];

    /// The value of the kernels' constant `FEATURE`.
    pub const fn tag(self) -> u32 {
        self as u32
    }

    /// The name used in case strings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Relu => "relu",
            Self::EluPlusOne => "elu+1",
        }
    }
}

impl LinearAttention {
    /// The usual scale for heads of `head_dim` elements, `1 / sqrt(head_dim)`; every query sees every key.
    pub fn new(head_dim: usize) -> Self {
        Self::scaled((1.0 / (head_dim.max(1) as f64).sqrt()) as f32)
    }

    /// With this scale.
    pub fn scaled(scale: f32) -> Self {
        Self { scale, causal: false, feature_map: FeatureMap::Identity, normalize: None }
    }

    /// A query sees the keys up to its own.
    #[must_use]
    pub fn causal(self) -> Self {
        Self { causal: true, ..self }
    }

    /// With this feature map.
    #[must_use]
    pub fn feature_map(self, feature_map: FeatureMap) -> Self {
        Self { feature_map, ..self }
    }

    /// Divided by `q . z + eps`.
    #[must_use]
    pub fn normalize(self, eps: f32) -> Self {
        Self { normalize: Some(eps), ..self }
    }
}

crate::operands! {
    /// Operands of [`LinearAttention`]: axes are (batch, head, token, element of the head), `q`, `k`, `v` and `out` of one
    /// dtype, with free strides. There are `h` heads of `out`, and `hs` states: as many as `k` or `v` has heads.
    pub struct LinearAttentionArgs {
        /// Queries, `[b, h / g, n, d]`.
        q: input,
        /// Keys, `[b, h / g, nk, d]`; `nk` is `n` when causal.
        k: input,
        /// Values, `[b, h / g, nk, dv]`.
        v: input,
        /// Logarithms of the decays, 0 or less, `[b, hs, nk]` or, one a channel, `[b, hs, nk, d]`, in f32 or the dtype of `q`.
        log_decay: optional,
        /// How much of its value a key writes by the delta rule, from 0 to 1 (or to 2), `[b, hs, nk]`, in f32 or the dtype of
        /// `q`. It contracts the state where `beta |k|^2` is 2 or less, and lets it grow otherwise.
        beta: optional,
        /// The state before the first token, `[b, hs, d, dv]`, or `[b, hs, d, dv + 1]` with a normalizer, whose sum of keys
        /// comes last; f32. Absent is 0.
        initial_state: optional,
        /// The result, `[b, h, n, dv]`.
        out: output,
        /// The state after the last token, of the shape of `initial_state`, f32.
        final_state: extra,
    }
}

impl<I, O> LinearAttentionArgs<I, O> {
    /// Without anything optional, which is then set field by field.
    pub fn new(q: View<I>, k: View<I>, v: View<I>, out: View<O>) -> Self {
        Self { q, k, v, log_decay: None, beta: None, initial_state: None, out, final_state: None }
    }
}

crate::params! {
    /// Scalars of the linear attention kernels.
    pub struct LinearAttentionParams {
        /// Batch times heads of `out`.
        pairs: u32,
        /// Heads of `out`.
        heads: u32,
        /// Heads of `out` for each of `q`.
        q_group: u32,
        /// Heads of `out` for each of `k`.
        k_group: u32,
        /// Heads of `out` for each of `v`.
        v_group: u32,
        /// Heads of `out` for each state.
        state_group: u32,
        /// Queries.
        n: u32,
        /// Keys.
        nk: u32,
        /// Elements of a head of `q` and `k`.
        d: u32,
        /// Elements of a head of `v` and `out`.
        dv: u32,
        /// What the result is multiplied with.
        scale: f32,
        /// Added to what it is divided by.
        eps: f32,
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
        /// Stride of `log_decay` along the batch.
        log_decay_b: u32,
        /// Stride of `log_decay` along heads.
        log_decay_h: u32,
        /// Stride of `log_decay` along tokens.
        log_decay_n: u32,
        /// Stride of `log_decay` along channels.
        log_decay_d: u32,
        /// Decays of a token: 0 none, 1 one for the head, 2 one a channel.
        decay: u32,
        /// Stride of `beta` along the batch.
        beta_b: u32,
        /// Stride of `beta` along heads.
        beta_h: u32,
        /// Stride of `beta` along tokens.
        beta_n: u32,
        /// Stride of `initial_state` along the batch.
        initial_b: u32,
        /// Stride of `initial_state` along heads.
        initial_h: u32,
        /// Stride of `initial_state` along channels.
        initial_d: u32,
        /// Stride of `initial_state` along columns.
        initial_v: u32,
        /// Stride of `out` along the batch.
        out_b: u32,
        /// Stride of `out` along heads.
        out_h: u32,
        /// Stride of `out` along tokens.
        out_n: u32,
        /// Stride of `out` along elements.
        out_d: u32,
        /// Stride of `final_state` along the batch.
        final_b: u32,
        /// Stride of `final_state` along heads.
        final_h: u32,
        /// Stride of `final_state` along channels.
        final_d: u32,
        /// Stride of `final_state` along columns.
        final_v: u32,
    }
}

const NAME: &str = "linear_attention";

/// The largest head of Q and K of the GPU kernels: the state lives in registers.
const MAX_HEAD_DIM: u32 = 256;
/// The largest anywhere.
const MAX_CHANNELS: usize = 1 << 16;
/// The most tokens: kernels step beyond the last.
const MAX_TOKENS: usize = 1 << 30;

/// The operands of other dtypes than that of Q.
const EXTRAS: [&str; 4] = ["log_decay", "beta", "initial_state", "final_state"];

/// An operand's strides as the scalars of kernels.
fn strides<M, const N: usize>(arg: &'static str, view: &View<M>) -> Result<[u32; N]> {
    let mut all = [0; N];
    for (to, &stride) in all.iter_mut().zip(view.strides()) {
        *to = check::scalar(NAME, arg, stride)?;
    }
    Ok(all)
}

/// An operand's strides once its dtype and shape are what they should be; 0 where it is absent.
fn checked<M, const N: usize>(
    arg: &'static str,
    view: Option<&View<M>>,
    dtypes: &[Dtype],
    shape: &[usize],
) -> Result<[u32; N]> {
    let Some(view) = view else { return Ok([0; N]) };
    check::dtype(NAME, arg, view, dtypes)?;
    check::shape(NAME, arg, view, shape)?;
    strides(arg, view)
}

impl LinearAttention {
    fn options<I, O>(&self, args: &LinearAttentionArgs<I, O>) -> Result<()> {
        if !self.scale.is_finite() {
            return Err(Error::argument(NAME, "scale", "a finite number", self.scale));
        }
        if let Some(eps) = self.normalize.filter(|eps| !(*eps >= 0.0 && eps.is_finite())) {
            return Err(Error::argument(NAME, "normalize", "a finite eps, at least 0", eps));
        }
        for (arg, given) in [("log_decay", args.log_decay.is_some()), ("beta", args.beta.is_some())] {
            if given && !self.causal {
                let wanted = "none, unless causal: what every query sees has no order";
                return Err(Error::argument(NAME, arg, wanted, "a view"));
            }
        }
        if self.normalize.is_some() && args.beta.is_some() {
            let wanted = "none beside a normalizer: the delta rule has no sum of keys";
            return Err(Error::argument(NAME, "beta", wanted, "a view"));
        }
        Ok(())
    }

    /// Whether there is anything to compute.
    fn is_nothing(p: &LinearAttentionParams, signature: &Signature) -> bool {
        !signature.has("final_state") && (p.n == 0 || p.dv == 0)
    }
}

/// `part` heads serve `whole`.
fn divides(part: usize, whole: usize) -> bool {
    part == whole || part > 0 && whole.is_multiple_of(part)
}

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for LinearAttention {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/linear_attention.cu");
    const WGSL: &'static str = include_str!("../../shaders/linear_attention.wgsl");
    type Args<I, O> = LinearAttentionArgs<I, O>;
    type Params = LinearAttentionParams;

    fn check<I, O>(&self, args: &LinearAttentionArgs<I, O>) -> Result<LinearAttentionParams> {
        let LinearAttentionArgs { q, k, v, log_decay, beta, initial_state, out, final_state } = args;
        self.options(args)?;
        let dtype = check::one_dtype(NAME, args, &EXTRAS)?;
        check::rank(NAME, "q", q, &["b", "h", "n", "d"])?;
        check::rank(NAME, "k", k, &["b", "h", "nk", "d"])?;
        check::rank(NAME, "v", v, &["b", "h", "nk", "dv"])?;
        check::rank(NAME, "out", out, &["b", "h", "n", "dv"])?;
        let (&[b, q_heads, n, d], &[_, k_heads, nk, _], &[_, v_heads, _, dv], &[_, h, ..]) =
            (q.shape(), k.shape(), v.shape(), out.shape())
        else {
            unreachable!("the ranks were checked")
        };
        let nk = if self.causal { n } else { nk };
        check::shape(NAME, "k", k, &[b, k_heads, nk, d])?;
        check::shape(NAME, "v", v, &[b, v_heads, nk, dv])?;
        check::shape(NAME, "out", out, &[b, h, n, dv])?;
        for (arg, heads) in [("q", q_heads), ("k", k_heads), ("v", v_heads)] {
            if !divides(heads, h) {
                let wanted = format!("a number of heads that divides the {h} of `out`");
                return Err(Error::argument(NAME, arg, wanted, heads));
            }
        }
        let states = k_heads.max(v_heads);
        if !divides(k_heads.min(v_heads), states) {
            let wanted = format!("heads that divide, or are divided by, the {v_heads} of `v`");
            return Err(Error::argument(NAME, "k", wanted, k_heads));
        }
        for (arg, got, limit) in [("q", n, MAX_TOKENS), ("k", nk, MAX_TOKENS), ("q", d, MAX_CHANNELS)] {
            if got > limit {
                let what = if limit == MAX_TOKENS { "tokens" } else { "elements of a head" };
                return Err(Error::argument(NAME, arg, format!("at most {limit} {what}"), got));
            }
        }

        let gates = [Dtype::F32, dtype];
        let per_channel = log_decay.as_ref().is_some_and(|view| view.rank() == 4);
        let decays = [&[b, states, nk][..], &[d]].concat();
        let decays = if per_channel { &decays[..] } else { &decays[..3] };
        let state = [b, states, d, dv.saturating_add(usize::from(self.normalize.is_some()))];
        let [q_b, q_h, q_n, q_d] = strides("q", q)?;
        let [k_b, k_h, k_n, k_d] = strides("k", k)?;
        let [v_b, v_h, v_n, v_d] = strides("v", v)?;
        let [out_b, out_h, out_n, out_d] = strides("out", out)?;
        let [log_decay_b, log_decay_h, log_decay_n, log_decay_d] =
            checked("log_decay", log_decay.as_ref(), &gates, decays)?;
        let [beta_b, beta_h, beta_n] = checked("beta", beta.as_ref(), &gates, &[b, states, nk])?;
        let [initial_b, initial_h, initial_d, initial_v] =
            checked("initial_state", initial_state.as_ref(), &[Dtype::F32], &state)?;
        let [final_b, final_h, final_d, final_v] =
            checked("final_state", final_state.as_ref(), &[Dtype::F32], &state)?;
        let size = |arg, n: usize| check::scalar(NAME, arg, n);
        let group = |heads: usize| size("out", h / heads.max(1)).map(|group| group.max(1));
        Ok(LinearAttentionParams {
            pairs: size("out", b.saturating_mul(h))?,
            heads: size("out", h)?,
            q_group: group(q_heads)?,
            k_group: group(k_heads)?,
            v_group: group(v_heads)?,
            state_group: group(states)?,
            n: size("q", n)?,
            nk: size("k", nk)?,
            d: size("q", d)?,
            dv: size("v", dv)?,
            scale: self.scale,
            eps: self.normalize.unwrap_or(0.0),
            q_b,
            q_h,
            q_n,
            q_d,
            k_b,
            k_h,
            k_n,
            k_d,
            v_b,
            v_h,
            v_n,
            v_d,
            log_decay_b,
            log_decay_h,
            log_decay_n,
            log_decay_d,
            decay: u32::from(log_decay.is_some()) + u32::from(per_channel),
            beta_b,
            beta_h,
            beta_n,
            initial_b,
            initial_h,
            initial_d,
            initial_v,
            out_b,
            out_h,
            out_n,
            out_d,
            final_b,
            final_h,
            final_d,
            final_v,
        })
    }

    fn plan(&self, p: &LinearAttentionParams, signature: &Signature, caps: &Caps) -> Result<Plan> {
        let limit = |arg, what, got: u32, limit: u32| match got > limit {
            true => {
                let (got, limit, target) = (got.into(), limit.into(), caps.name.clone());
                Err(Error::Limit { op: NAME, arg, what, got, limit, target })
            }
            false => Ok(()),
        };
        limit("q", "elements of a head", p.d, MAX_HEAD_DIM)?;
        // Threads share a column: each has so many of the channels of a slice, in whole quads.
        const PARTS: u32 = 4;
        // As many columns as a warp has lanes, or fewer where that leaves some idle.
        let tiles = p.dv.div_ceil(32).max(1);
        let real = p.dv.div_ceil(tiles).max(1).next_multiple_of(8);
        let normalize = u32::from(self.normalize.is_some());
        let slices = p.d.div_ceil(64).max(1);
        let depth = p.d.div_ceil(slices).max(1).next_multiple_of(4 * PARTS);
        let cols = real + normalize;
        let delta = u32::from(signature.has("beta"));
        // Tokens of a chunk: WebGPU promises 16 KiB of workgroup memory.
        let tokens = if matches!(caps.language, Language::Cuda { .. }) { 16 } else { 8 };
        let threads = cols * PARTS;
        let pitch = depth + 4;
        let shared = 4
            * tokens
            * (pitch * if p.decay == 2 { 3 } else { 2 }
                + p.decay % 2
                + cols
                + threads
                + delta * (tokens + 1));
        limit("q", "bytes of shared memory", shared, caps.shared_bytes)?;
        limit("q", "threads of a block", threads, caps.max_threads.min(caps.max_block[0]))?;
        let blocks = u64::from(p.pairs) * u64::from(p.dv.div_ceil(real).max(1));
        Ok(Plan {
            entry: NAME,
            consts: Consts::new()
                .set("CAUSAL", u32::from(self.causal))
                .set("FEATURE", self.feature_map.tag())
                .set("NORMALIZE", normalize)
                .set("DECAY", p.decay)
                .set("PER_CHANNEL", u32::from(p.decay == 2))
                .set("PER_TOKEN", u32::from(p.decay == 1))
                .set("DELTA", delta)
                .set("TOKENS", tokens)
                .set("DEPTH", depth)
                .set("SLICES", slices)
                .set("COLS", cols)
                .set("PARTS", PARTS)
                .set("THREADS", threads),
            grid: fold_grid(NAME, if Self::is_nothing(p, signature) { 0 } else { blocks }, caps)?,
            block: [threads, 1, 1],
            shared_bytes: match caps.language {
                Language::Cuda { .. } => 0,
                Language::Wgsl { .. } => shared,
            },
        })
    }

    fn cost(&self, p: &LinearAttentionParams, signature: &Signature) -> Cost {
        let [pairs, n, nk, d, dv] = [p.pairs, p.n, p.nk, p.d, p.dv].map(f64::from);
        let columns = dv + f64::from(u8::from(self.normalize.is_some()));
        let of = |group: u32| pairs / f64::from(group);
        let states = of(p.state_group);
        // Per element of the state and token: a multiply-add each for what is written, read and, by the delta rule,
        // predicted; a product for a decay.
        let written =
            2.0 + f64::from(u8::from(p.decay > 0)) + f64::from(u8::from(signature.has("beta"))) * 2.0;
        let size = |name| signature.dtype(name).size() as f64;
        let given = |name, count: f64| if signature.has(name) { count * size(name) } else { 0.0 };
        Cost {
            flops: d * columns * (states * nk * written + 2.0 * pairs * n),
            bytes: size("q")
                * (of(p.q_group) * n * d + of(p.k_group) * nk * d + of(p.v_group) * nk * dv + pairs * n * dv)
                + given("log_decay", states * nk * if p.decay == 2 { d } else { 1.0 })
                + given("beta", states * nk)
                + given("initial_state", states * d * columns)
                + given("final_state", states * d * columns),
        }
    }

    unsafe fn cpu(
        &self,
        p: &LinearAttentionParams,
        args: LinearAttentionArgs<&[u8], &mut [u8]>,
        cpu: &Cpu,
    ) -> Result<()> {
        crate::cpu::linear_attention::run(*self, p, args, cpu);
        Ok(())
    }

    fn map<I, O, J, P>(
        args: LinearAttentionArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<LinearAttentionArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, _: &LinearAttentionArgs<I, O>, _: &str) -> Option<usize> {
        Some(0)
    }
}
