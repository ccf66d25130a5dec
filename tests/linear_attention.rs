//! Linear attention, cross-checked on every device; its definition against the square of tokens, the delta rule as a product
//! of matrices, and flash-linear-attention; sequences in pieces; bad input, one by one.

use advect::op::{plan, prepare};
use advect::ops::{FeatureMap, LinearAttention, LinearAttentionArgs};
use advect::reference::{self, Dense, Expected};
use advect::target::presets;
use advect::{Cpu, Device, Dtype, Error, Memory, Tensor, View, verify};

#[test]
fn cross_check() {
    verify::assert_op::<LinearAttention>(30);
}

/// Numbers between `low` and `high` that look like noise, as f32 has them.
fn noise(seed: usize, count: usize, low: f64, high: f64) -> Vec<f64> {
    let of = |i: usize| ((i * 7919 + seed * 104_729) % 4001) as f64 / 4000.0;
    (0..count).map(|i| f64::from((low + (high - low) * of(i)) as f32)).collect()
}

/// One head: `n` tokens, keys of `d` elements, values of `dv`.
#[derive(Clone)]
struct Head {
    n: usize,
    d: usize,
    dv: usize,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
    /// Logarithms, `[n, d]`.
    log_decay: Vec<f64>,
    beta: Option<Vec<f64>>,
    initial: Option<Vec<f64>>,
}

impl Head {
    fn new(n: usize, d: usize, dv: usize) -> Self {
        Self {
            n,
            d,
            dv,
            q: noise(1, n * d, -1.0, 1.0),
            k: noise(2, n * d, -0.4, 0.4),
            v: noise(3, n * dv, -2.0, 2.0),
            log_decay: vec![0.0; n * d],
            beta: None,
            initial: None,
        }
    }

    /// What the reference makes of it: the result, and the last state.
    fn reference(&self, op: &LinearAttention) -> [Expected; 2] {
        let dense = |shape: &[usize], data: &[f64]| {
            View::contiguous(Dense { shape: shape.to_vec(), data: data.to_vec() }, Dtype::F32, shape).unwrap()
        };
        let (of_d, of_dv) = ([1, 1, self.n, self.d], [1, 1, self.n, self.dv]);
        let columns = self.dv + usize::from(op.normalize.is_some());
        let mut args = LinearAttentionArgs::new(
            dense(&of_d, &self.q),
            dense(&of_d, &self.k),
            dense(&of_dv, &self.v),
            View::contiguous((), Dtype::F32, &of_dv).unwrap(),
        );
        args.log_decay = op.causal.then(|| dense(&of_d, &self.log_decay));
        args.beta = self.beta.as_ref().map(|beta| dense(&[1, 1, self.n], beta));
        args.initial_state = self.initial.as_ref().map(|state| dense(&[1, 1, self.d, columns], state));
        reference::linear_attention::linear_attention(op, &args)
    }

    /// By the square of tokens: what query `t` sees of token `s` is `q[t]` times `k[s]` times the decays after `s`.
    fn by_scores(&self, op: &LinearAttention) -> Vec<f64> {
        let map = |x: f64| match op.feature_map {
            FeatureMap::Identity => x,
            FeatureMap::Relu => x.max(0.0),
            FeatureMap::EluPlusOne => 1.0 + if x > 0.0 { x } else { x.exp_m1() },
        };
        let mut out = Vec::new();
        for t in 0..self.n {
            let last = if op.causal { t } else { self.n - 1 };
            let score = |s: usize| -> f64 {
                let of_channel = |c: usize| {
                    let logs: f64 = if op.causal {
                        (s + 1..=t).map(|r| self.log_decay[r * self.d + c]).sum()
                    } else {
                        0.0
                    };
                    map(self.q[t * self.d + c]) * map(self.k[s * self.d + c]) * logs.exp()
                };
                (0..self.d).map(of_channel).sum()
            };
            let scores: Vec<f64> = (0..=last).map(score).collect();
            let by = op.normalize.map_or(1.0, |eps| scores.iter().sum::<f64>() + f64::from(eps));
            for j in 0..self.dv {
                let sum: f64 = scores.iter().enumerate().map(|(s, w)| w * self.v[s * self.dv + j]).sum();
                out.push(f64::from(op.scale) * sum / by);
            }
        }
        out
    }

    /// By the delta rule: `S^T <- S^T diag(a) (I - beta k k^T) + beta v k^T`, the matrices written out.
    fn by_matrices(&self, op: &LinearAttention) -> Vec<f64> {
        let (d, dv) = (self.d, self.dv);
        let mut state = vec![0.0; dv * d];
        if let Some(initial) = &self.initial {
            (0..d * dv).for_each(|i| state[i % dv * d + i / dv] = initial[i]);
        }
        let mut out = Vec::new();
        for t in 0..self.n {
            let (k, beta) = (&self.k[t * d..][..d], self.beta.as_ref().unwrap()[t]);
            let transition = |c: usize, e: usize| {
                self.log_decay[t * d + c].exp() * (f64::from(u8::from(c == e)) - beta * k[c] * k[e])
            };
            let next = |j: usize, e: usize| {
                let kept: f64 = (0..d).map(|c| state[j * d + c] * transition(c, e)).sum();
                kept + beta * self.v[t * dv + j] * k[e]
            };
            state = (0..dv * d).map(|i| next(i / d, i % d)).collect();
            let read = |j: usize| -> f64 { (0..d).map(|c| state[j * d + c] * self.q[t * d + c]).sum() };
            out.extend((0..dv).map(|j| f64::from(op.scale) * read(j)));
        }
        out
    }
}

fn same(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= 1e-12 * largest, "{i}: {got} {want}");
    }
}

#[test]
fn the_definition_is_the_square_of_tokens() {
    let plain = Head::new(23, 6, 4);
    let scalar =
        Head { log_decay: noise(4, 23, -0.7, 0.0).iter().flat_map(|x| [*x; 6]).collect(), ..plain.clone() };
    let channels = Head { log_decay: noise(5, 23 * 6, -0.7, 0.0), ..plain.clone() };
    for map in FeatureMap::ALL {
        let op = LinearAttention::new(6).feature_map(map);
        for head in [&plain, &scalar, &channels] {
            same(&head.reference(&op.causal())[0].value, &head.by_scores(&op.causal()));
        }
        same(&plain.reference(&op)[0].value, &plain.by_scores(&op));
    }
    let op = LinearAttention::scaled(1.5).feature_map(FeatureMap::EluPlusOne).normalize(1e-3);
    same(&plain.reference(&op)[0].value, &plain.by_scores(&op));
    same(&channels.reference(&op.causal())[0].value, &channels.by_scores(&op.causal()));
}

#[test]
fn the_delta_rule_is_a_product_of_matrices() {
    let op = LinearAttention::new(6).causal();
    let head = Head {
        beta: Some(noise(6, 23, 0.0, 1.5)),
        initial: Some(noise(7, 6 * 4, -1.0, 1.0)),
        ..Head::new(23, 6, 4)
    };
    same(&head.reference(&op)[0].value, &head.by_matrices(&op));
    let gated = Head { log_decay: noise(8, 23 * 6, -0.7, 0.0), ..head };
    same(&gated.reference(&op)[0].value, &gated.by_matrices(&op));
}

/// What flash-linear-attention computes in float64: `tests/golden/linear_attention.py`.
struct Golden(Vec<u8>);

impl Golden {
    /// A tensor of a case.
    fn get(&self, case: &str, name: &str) -> Option<Dense> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(&format!("{case}.{name}")).ok()?;
        assert_eq!(tensor.dtype(), safetensors::Dtype::F64, "{case}.{name}");
        let bytes = tensor.data();
        let data = bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect();
        Some(Dense { shape: tensor.shape().to_vec(), data })
    }
}

/// The definition that every kernel is held to is that of the library that most models of this kind come with.
#[test]
fn the_definition_is_that_of_flash_linear_attention() {
    let path = format!("{}/tests/golden/linear_attention.safetensors", env!("CARGO_MANIFEST_DIR"));
    let golden = Golden(std::fs::read(path).unwrap());
    let op = LinearAttention::new(4).causal();
    let scaled = |scale| LinearAttention::scaled(scale).causal();
    // The library multiplies both sides of the quotient by the scale, here 1/2, and then adds 1e-10 to the lower one.
    let normalized = scaled(1.0).feature_map(FeatureMap::EluPlusOne).normalize(2e-10);
    let cases = [
        ("plain", op),
        ("scale", scaled(0.75)),
        ("state", op),
        ("relu", op.feature_map(FeatureMap::Relu)),
        ("elu", op.feature_map(FeatureMap::EluPlusOne)),
        ("normalized", normalized),
        ("normalized_state", normalized),
        ("retention", op),
        ("simple_gla", op),
        ("mamba2", scaled(1.0)),
        ("gla", op),
        ("gla_state", op),
        ("delta", op),
        ("delta_state", op),
        ("gated_delta", op),
        ("gated_delta_state", scaled(0.75)),
        ("kda", op),
        ("kda_grouped", op),
        ("delta_product", op),
    ];
    for (case, op) in cases {
        let one = |case: &str, name: &str| {
            let dense = golden.get(case, name)?;
            let shape = dense.shape.clone();
            Some(View::contiguous(dense, Dtype::F32, &shape).unwrap())
        };
        // Q, K and V of a case, or those of all.
        let operand = |name: &str| one(case, name).or_else(|| one("all", name)).unwrap();
        let wanted = golden.get(case, "out").unwrap();
        let out = View::contiguous((), Dtype::F32, &wanted.shape).unwrap();
        let args = LinearAttentionArgs {
            log_decay: one(case, "log_decay"),
            beta: one(case, "beta"),
            initial_state: one(case, "initial_state"),
            ..LinearAttentionArgs::new(operand("q"), operand("k"), operand("v"), out)
        };
        let [got, got_last] = reference::linear_attention::linear_attention(&op, &args);
        // Both are of float64: what is left are roundings of some 1e-16.
        let near = |got: &[f64], wanted: &[f64]| {
            assert_eq!(got.len(), wanted.len(), "{case}");
            for (got, wanted) in got.iter().zip(wanted) {
                assert!((got - wanted).abs() < 1e-13, "{case}: {got} {wanted}");
            }
        };
        near(&got.value, &wanted.data);
        if let Some(last) = golden.get(case, "final_state") {
            near(&got_last.value, &last.data);
        }
    }
}

/// The bound of the delta rule grows with the tokens, not with their number in the exponent.
#[test]
fn bounds_stay_small_where_the_rule_contracts() {
    let (n, d) = (400, 8);
    let mut head = Head { beta: Some(noise(6, n, 0.0, 2.0)), ..Head::new(n, d, 2) };
    for key in head.k.chunks_mut(d) {
        let length = key.iter().map(|x| x * x).sum::<f64>().sqrt();
        key.iter_mut().for_each(|x| *x /= length);
    }
    let [out, last] = head.reference(&LinearAttention::new(d).causal());
    let worst = out.error.iter().chain(&last.error).fold(0.0f64, |m, x| m.max(*x));
    assert!(worst > 1e-7 && worst < 1.0, "{worst}");
}

/// A call on a device: `[b, h, n, d]` of keys and queries, `[b, h, n, dv]` of values.
struct Call {
    op: LinearAttention,
    shape: [usize; 4],
    dv: usize,
    gated: bool,
    delta: bool,
}

/// Operands on a device, in f32.
struct Operands {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
}

impl Call {
    fn all() -> [Self; 4] {
        let op = LinearAttention::new(24);
        let elu = op.feature_map(FeatureMap::EluPlusOne).normalize(1e-3);
        let (shape, dv) = ([3, 2, 45, 24], 20);
        [
            Self { op: op.causal(), shape, dv, gated: true, delta: false },
            Self { op: op.causal(), shape, dv, gated: true, delta: true },
            Self { op: elu.causal(), shape, dv, gated: true, delta: false },
            Self { op: elu, shape, dv, gated: false, delta: false },
        ]
    }

    fn values(&self) -> [(Vec<usize>, Vec<f64>); 5] {
        let [b, h, n, d] = self.shape;
        let of = |seed, shape: &[usize], low, high| {
            (shape.to_vec(), noise(seed, shape.iter().product(), low, high))
        };
        [
            of(1, &[b, h, n, d], -1.0, 1.0),
            of(2, &[b, h, n, d], -0.3, 0.3),
            of(3, &[b, h, n, self.dv], -2.0, 2.0),
            of(4, &[b, h, n, d], -0.4, 0.0),
            of(5, &[b, h, n], 0.0, 1.0),
        ]
    }

    fn operands(&self, device: &Device) -> Operands {
        let [q, k, v, log_decay, beta] = self.values().map(|(shape, values)| {
            let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
            Tensor::from_f32(device, Dtype::F32, &shape, &values).unwrap()
        });
        Operands { q, k, v, log_decay, beta }
    }

    fn state_shape(&self) -> [usize; 4] {
        let [b, h, _, d] = self.shape;
        [b, h, d, self.dv + usize::from(self.op.normalize.is_some())]
    }

    /// Result and last state of the tokens `tokens` of the batch entries `batch`.
    fn run<'a>(
        &self,
        device: &Device,
        o: &'a Operands,
        batch: std::ops::Range<usize>,
        tokens: std::ops::Range<usize>,
        initial: Option<&Tensor>,
    ) -> [Tensor; 2] {
        let [_, h, ..] = self.shape;
        let zeros = |shape: &[usize]| Tensor::new(device, Dtype::F32, shape).unwrap();
        let mut out = zeros(&[batch.len(), h, tokens.len(), self.dv]);
        let mut last = zeros(&[&[batch.len()], &self.state_shape()[1..]].concat());
        let sliced = |t: &'a Tensor| {
            t.view().slice(0, batch.clone()).and_then(|v| v.slice(2, tokens.clone())).unwrap()
        };
        let mut args = LinearAttentionArgs::new(sliced(&o.q), sliced(&o.k), sliced(&o.v), out.view_mut());
        args.log_decay = self.gated.then(|| sliced(&o.log_decay));
        args.beta = self.delta.then(|| sliced(&o.beta));
        args.initial_state = initial.map(Tensor::view);
        args.final_state = Some(last.view_mut());
        device.run(&self.op, args).unwrap();
        [out, last]
    }

    fn exact(&self) -> [Expected; 2] {
        let [q, k, v, log_decay, beta] = self.values().map(|(shape, data)| {
            View::contiguous(Dense { shape: shape.clone(), data }, Dtype::F32, &shape).unwrap()
        });
        let [b, h, n, _] = self.shape;
        let out = View::contiguous((), Dtype::F32, &[b, h, n, self.dv]).unwrap();
        let mut args = LinearAttentionArgs::new(q, k, v, out);
        args.log_decay = self.gated.then_some(log_decay);
        args.beta = self.delta.then_some(beta);
        reference::linear_attention::linear_attention(&self.op, &args)
    }
}

/// A sequence in three pieces, each beginning with the state that the last ended with, is the whole, within its bound.
#[test]
fn pieces_make_the_whole() {
    for call in Call::all().iter().filter(|call| call.op.causal) {
        let [exact, exact_last] = call.exact();
        let [b, h, n, _] = call.shape;
        for device in verify::devices().unwrap() {
            let o = call.operands(&device);
            let mut state: Option<Tensor> = None;
            for cut in [0, 11, 12, n].windows(2) {
                let [out, last] = call.run(&device, &o, 0..b, cut[0]..cut[1], state.as_ref());
                let got = out.to_f32(&device).unwrap();
                for (i, got) in got.iter().enumerate() {
                    let (row, j) = (i / call.dv, i % call.dv);
                    let (pair, t) = (row / (cut[1] - cut[0]), cut[0] + row % (cut[1] - cut[0]));
                    assert!(pair < b * h);
                    let at = (pair * n + t) * call.dv + j;
                    let error = (f64::from(*got) - exact.value[at]).abs();
                    assert!(error <= exact.error[at], "{}: {got} {}", device.name(), exact.value[at]);
                }
                state = Some(last);
            }
            let got = state.unwrap().to_f32(&device).unwrap();
            for (i, got) in got.iter().enumerate() {
                let error = (f64::from(*got) - exact_last.value[i]).abs();
                assert!(error <= exact_last.error[i], "{}: {got} {}", device.name(), exact_last.value[i]);
            }
        }
    }
}

/// The same bits every time, whatever else is in the batch, on one thread or several.
#[test]
fn results_repeat_bit_for_bit() {
    let bits = |device: &Device, results: &[Tensor; 2]| -> [Vec<u32>; 2] {
        [&results[0], &results[1]].map(|t| t.to_f32(device).unwrap().iter().map(|x| x.to_bits()).collect())
    };
    for call in Call::all() {
        let [b, _, n, _] = call.shape;
        for device in verify::devices().unwrap() {
            let o = call.operands(&device);
            let whole = bits(&device, &call.run(&device, &o, 0..b, 0..n, None));
            assert!(whole[0].iter().any(|x| *x != 0));
            assert!(whole == bits(&device, &call.run(&device, &o, 0..b, 0..n, None)), "{}", device.name());
            for entries in [0..1, 1..3] {
                let part = bits(&device, &call.run(&device, &o, entries.clone(), 0..n, None));
                for (part, whole) in part.iter().zip(&whole) {
                    let each = whole.len() / b;
                    assert!(*part == whole[entries.start * each..entries.end * each], "{}", device.name());
                }
            }
        }
        let of = |threads| {
            let device = Device::Cpu(Cpu::with(threads, advect::Isa::detect()).unwrap());
            let o = call.operands(&device);
            bits(&device, &call.run(&device, &o, 0..b, 0..n, None))
        };
        assert!(of(1) == of(3));
    }
}

/// Memory at a made-up place.
#[derive(Clone, Copy, Debug)]
struct Fake(u64);

impl Memory for Fake {
    fn byte_len(&self) -> u64 {
        1 << 19
    }
    fn place(&self) -> (u64, u64) {
        (1, self.0)
    }
}

type Args = LinearAttentionArgs<Fake, Fake>;

/// Operand number `at`, apart from all others.
fn operand(at: u64, dtype: Dtype, shape: &[usize]) -> View<Fake> {
    View::contiguous(Fake(at << 20), dtype, shape).unwrap()
}

fn half(at: u64, shape: &[usize]) -> View<Fake> {
    operand(at, Dtype::F16, shape)
}

fn sound() -> Args {
    Args::new(half(0, &[2, 4, 5, 8]), half(1, &[2, 2, 5, 8]), half(2, &[2, 2, 5, 6]), half(3, &[2, 4, 5, 6]))
}

fn refused(op: LinearAttention, args: &Args, arg: &str, wanted: &str) {
    let error = prepare(&op, args).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Argument { .. }), "{text}");
    assert!(text.starts_with(&format!("linear_attention: `{arg}`: wanted {wanted}")), "{text}");
}

#[test]
fn shapes_are_checked() {
    let (op, causal) = (LinearAttention::new(8), LinearAttention::new(8).causal());
    prepare(&op, &sound()).unwrap();
    prepare(&causal, &sound()).unwrap();
    refused(op, &Args { q: half(0, &[8, 5, 8]), ..sound() }, "q", "4 axes [b, h, n, d]");
    refused(op, &Args { k: half(1, &[4, 5, 8]), ..sound() }, "k", "4 axes [b, h, nk, d]");
    refused(op, &Args { v: half(2, &[4, 5, 6]), ..sound() }, "v", "4 axes [b, h, nk, dv]");
    refused(op, &Args { out: half(3, &[8, 5, 6]), ..sound() }, "out", "4 axes [b, h, n, dv]");
    // Batch, heads, tokens, elements.
    refused(op, &Args { k: half(1, &[1, 2, 5, 8]), ..sound() }, "k", "shape [2, 2, 5, 8]");
    refused(op, &Args { v: half(2, &[2, 2, 4, 6]), ..sound() }, "v", "shape [2, 2, 5, 6]");
    refused(op, &Args { k: half(1, &[2, 2, 5, 7]), ..sound() }, "k", "shape [2, 2, 5, 8]");
    refused(op, &Args { out: half(3, &[2, 4, 5, 8]), ..sound() }, "out", "shape [2, 4, 5, 6]");
    refused(op, &Args { out: half(3, &[2, 4, 4, 6]), ..sound() }, "out", "shape [2, 4, 5, 6]");
    refused(op, &Args { q: half(0, &[2, 3, 5, 8]), ..sound() }, "q", "a number of heads that divides the 4");
    refused(op, &Args { k: half(1, &[2, 0, 5, 8]), ..sound() }, "k", "a number of heads that divides the 4");
    refused(op, &Args { v: half(2, &[2, 8, 5, 6]), ..sound() }, "v", "a number of heads that divides the 4");
    let six = Args {
        q: half(0, &[2, 6, 5, 8]),
        k: half(1, &[2, 2, 5, 8]),
        v: half(2, &[2, 3, 5, 6]),
        out: half(3, &[2, 6, 5, 6]),
        ..sound()
    };
    refused(op, &six, "k", "heads that divide, or are divided by, the 3 of `v`");
    // Another number of keys only without an order.
    let longer = Args { k: half(1, &[2, 2, 9, 8]), v: half(2, &[2, 2, 9, 6]), ..sound() };
    prepare(&op, &longer).unwrap();
    refused(causal, &longer, "k", "shape [2, 2, 5, 8]");
    // Dtypes.
    refused(op, &Args { k: operand(1, Dtype::F32, &[2, 2, 5, 8]), ..sound() }, "k", "f16, the dtype of `q`");
    refused(op, &Args { q: operand(0, Dtype::I32, &[2, 4, 5, 8]), ..sound() }, "q", "f32, f16 or bf16");
    // More than kernels count.
    let repeated =
        |at: u64, shape: [usize; 4]| View::strided(Fake(at << 20), Dtype::F16, &shape, &[0; 4], 0).unwrap();
    let many = Args { k: repeated(1, [2, 2, 1 << 31, 8]), v: repeated(2, [2, 2, 1 << 31, 6]), ..sound() };
    refused(op, &many, "k", "at most 1073741824 tokens");
    let wide = Args { q: repeated(0, [2, 4, 5, 1 << 17]), k: repeated(1, [2, 2, 5, 1 << 17]), ..sound() };
    refused(op, &wide, "q", "at most 65536 elements of a head");
}

#[test]
fn optional_operands_are_checked() {
    type Set = fn(&mut Args, View<Fake>);
    let causal = LinearAttention::new(8).causal();
    let set: [(&str, Set, bool, &[usize]); 5] = [
        ("log_decay", |a, v| a.log_decay = Some(v), true, &[2, 2, 5]),
        ("log_decay", |a, v| a.log_decay = Some(v), true, &[2, 2, 5, 8]),
        ("beta", |a, v| a.beta = Some(v), true, &[2, 2, 5]),
        ("initial_state", |a, v| a.initial_state = Some(v), false, &[2, 2, 8, 6]),
        ("final_state", |a, v| a.final_state = Some(v), false, &[2, 2, 8, 6]),
    ];
    for (name, set, may_be_half, shape) in set {
        let with = |dtype, shape: &[usize]| {
            let mut args = sound();
            set(&mut args, operand(5, dtype, shape));
            args
        };
        prepare(&causal, &with(Dtype::F32, shape)).unwrap();
        if may_be_half {
            prepare(&causal, &with(Dtype::F16, shape)).unwrap();
        } else {
            refused(causal, &with(Dtype::F16, shape), name, "f32");
        }
        refused(causal, &with(Dtype::Bf16, shape), name, "f32");
        let mut long = shape.to_vec();
        *long.last_mut().unwrap() += 1;
        refused(causal, &with(Dtype::F32, &long), name, "shape ");
        refused(causal, &with(Dtype::F32, &shape[1..]), name, "shape ");
    }
    // A normalizer takes a column.
    let normalized = causal.normalize(1e-6);
    let state =
        |columns| Args { initial_state: Some(operand(5, Dtype::F32, &[2, 2, 8, columns])), ..sound() };
    prepare(&normalized, &state(7)).unwrap();
    refused(normalized, &state(6), "initial_state", "shape [2, 2, 8, 7]");
    // States lie apart.
    let place = || Some(operand(5, Dtype::F32, &[2, 2, 8, 6]));
    let in_place = Args { initial_state: place(), final_state: place(), ..sound() };
    refused(causal, &in_place, "final_state", "memory apart from `initial_state`");
}

#[test]
fn options_are_checked() {
    let op = LinearAttention::new(8);
    for scale in [f32::NAN, f32::INFINITY] {
        refused(LinearAttention { scale, ..op }, &sound(), "scale", "a finite number");
    }
    for eps in [f32::NAN, f32::INFINITY, -1e-6] {
        refused(op.normalize(eps), &sound(), "normalize", "a finite eps, at least 0");
    }
    let gates = |at| Some(half(at, &[2, 2, 5]));
    refused(op, &Args { log_decay: gates(5), ..sound() }, "log_decay", "none, unless causal");
    refused(op, &Args { beta: gates(5), ..sound() }, "beta", "none, unless causal");
    let normalized = op.causal().normalize(1e-6);
    refused(normalized, &Args { beta: gates(5), ..sound() }, "beta", "none beside a normalizer");
    assert_eq!(LinearAttention::new(64), LinearAttention::scaled(0.125));
}

#[test]
fn gpus_say_which_heads_they_take() {
    let of = |d: usize| {
        Args::new(
            half(0, &[1, 1, 1, d]),
            half(1, &[1, 1, 1, d]),
            half(2, &[1, 1, 1, 6]),
            half(3, &[1, 1, 1, 6]),
        )
    };
    let op = LinearAttention::new(8).causal();
    for caps in presets::cuda().into_iter().chain(presets::wgsl()) {
        let planned = |d: usize| {
            let (params, signature) = prepare(&op, &of(d)).unwrap();
            plan(&op, &params, &signature, &caps)
        };
        planned(256).unwrap();
        let error = planned(257).unwrap_err();
        assert!(matches!(error, Error::Limit { arg: "q", got: 257, limit: 256, .. }), "{error}");
    }
}

/// An output is as it was when a call is refused.
#[test]
fn nothing_is_written_by_a_bad_call() {
    let x = [1.0f32; 24];
    let (mut out, mut state) = ([-7.5f32; 24], [-7.5f32; 16]);
    let shape = [1, 1, 6, 4];
    let view = || View::of(&x, &shape).unwrap();
    let mut args = LinearAttentionArgs::new(view(), view(), view(), View::of_mut(&mut out, &shape).unwrap());
    args.final_state = Some(View::of_mut(&mut state, &[1, 1, 4, 4]).unwrap());
    args.beta = Some(View::of(&x[..5], &[1, 1, 5]).unwrap());
    Cpu::new().unwrap().run(&LinearAttention::new(4).causal(), args).unwrap_err();
    assert!(out.iter().chain(&state).all(|x| *x == -7.5));
}
