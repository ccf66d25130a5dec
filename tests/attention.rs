//! Attention, cross-checked on every device; bad input, one by one.

use advect::op::prepare;
use advect::ops::{Attention, AttentionArgs};
use advect::reference::{self, Dense};
use advect::verify::judge::Rounding;
use advect::verify::run::execute;
use advect::verify::{Case, Fill, Layout, Prepared};
use advect::{Cpu, Device, Dtype, Error, Isa, Tensor, View, verify};

#[test]
fn cross_check() {
    advect::verify::assert_op::<Attention>(30);
}

#[test]
fn the_default_scale() {
    assert_eq!(Attention::new(64), Attention::scaled(0.125));
    assert_eq!(Attention::new(0).softmax_scale, 1.0);
}

const SHAPE: [usize; 4] = [2, 3, 5, 4];
const COUNT: usize = 2 * 3 * 5 * 4;

/// Runs with views of q, k, v and out over memory of `COUNT` floats each: the call must be refused,
/// naming `arg`, with the output as it was.
fn refused(op: Attention, arg: &str, views: [(Dtype, &[usize], &[usize], usize); 4]) {
    let input = vec![1.0f32; COUNT];
    let mut output = vec![-7.5f32; COUNT];
    let bytes: &[u8] = bytemuck::cast_slice(&input);
    let [q, k, v, out] = views;
    let input =
        |(dtype, shape, strides, offset)| View::strided(bytes, dtype, shape, strides, offset).unwrap();
    let out = View::strided(bytemuck::cast_slice_mut(&mut output), out.0, out.1, out.2, out.3).unwrap();
    let args = AttentionArgs::new(input(q), input(k), input(v), out);
    let error = Cpu::new().unwrap().run(&op, args).unwrap_err();
    match &error {
        Error::Argument { op: "attention", arg: got, .. } if *got == arg => {}
        _ => panic!("wanted an argument error about `{arg}`: {error}"),
    }
    assert!(output.iter().all(|&x| x == -7.5), "an output was written: {error}");
}

#[test]
fn bad_input_is_refused() {
    const F32: Dtype = Dtype::F32;
    let op = Attention::new(4);
    let good: (Dtype, &[usize], &[usize], usize) = (F32, &SHAPE, &[60, 20, 4, 1], 0);
    let with = |at: usize, view| {
        let mut views = [good; 4];
        views[at] = view;
        views
    };
    for scale in [f32::NAN, f32::MAX, f32::INFINITY] {
        refused(Attention::scaled(scale), "softmax_scale", [good; 4]);
    }
    // Ranks.
    refused(op, "q", with(0, (F32, &[6, 5, 4], &[20, 4, 1], 0)));
    refused(op, "k", with(1, (F32, &[6, 5, 4], &[20, 4, 1], 0)));
    refused(op, "v", with(2, (F32, &[6, 5, 4], &[20, 4, 1], 0)));
    refused(op, "out", with(3, (F32, &[6, 5, 4], &[20, 4, 1], 0)));
    // Sizes: batch, heads, head size, keys against values, queries against the result.
    refused(op, "k", with(1, (F32, &[1, 3, 5, 4], &[60, 20, 4, 1], 0)));
    // Fewer heads of K and V must divide those of Q, and be as many of both.
    refused(op, "k", with(1, (F32, &[2, 2, 5, 4], &[60, 20, 4, 1], 0)));
    refused(op, "k", with(1, (F32, &[2, 0, 5, 4], &[60, 20, 4, 1], 0)));
    refused(op, "k", with(1, (F32, &[2, 6, 5, 4], &[60, 0, 4, 1], 0)));
    refused(op, "v", with(1, (F32, &[2, 1, 5, 4], &[60, 20, 4, 1], 0)));
    for softcap in [-1.0, 1e-31, 1e31, f32::NAN, f32::INFINITY] {
        refused(op.softcap(softcap), "softcap", [good; 4]);
    }
    // More keys than a signed number counts: one, repeated.
    let many: (Dtype, &[usize], &[usize], usize) = (F32, &[2, 3, 1 << 31, 4], &[60, 20, 0, 1], 0);
    refused(op, "q", [good, many, many, good]);
    refused(op, "k", with(1, (F32, &[2, 3, 5, 3], &[60, 20, 4, 1], 0)));
    refused(op, "v", with(2, (F32, &[2, 3, 4, 4], &[60, 20, 4, 1], 0)));
    refused(op, "out", with(3, (F32, &[2, 3, 4, 4], &[60, 20, 4, 1], 0)));
    // Dtypes that differ.
    refused(op, "k", with(1, (Dtype::F16, good.1, good.2, 0)));
    refused(op, "out", with(3, (Dtype::Bf16, good.1, good.2, 0)));
    // Past the end, by offset and by stride; strides that overflow; elements of out that coincide.
    refused(op, "v", with(2, (F32, good.1, good.2, 1)));
    refused(op, "q", with(0, (F32, good.1, &[61, 20, 4, 1], 0)));
    refused(op, "q", with(0, (F32, good.1, &[usize::MAX, 20, 4, 1], 0)));
    refused(op, "out", with(3, (F32, good.1, &[60, 20, 4, 0], 0)));
}

/// Memory at a made-up place.
#[derive(Clone, Copy, Debug)]
struct Fake(u64);

impl advect::Memory for Fake {
    fn byte_len(&self) -> u64 {
        4096
    }
    fn place(&self) -> (u64, u64) {
        (1, self.0)
    }
}

#[test]
fn the_result_must_lie_apart() {
    let view = |start| View::contiguous(Fake(start), Dtype::F32, &SHAPE).unwrap();
    let at = |out| AttentionArgs::new(view(0), view(1024), view(2048), view(out));
    prepare(&Attention::new(4), &at(4096)).unwrap();
    for (out, other) in [(0, "q"), (1024 + 4, "k"), (2048 - 4, "v")] {
        let error = prepare(&Attention::new(4), &at(out)).unwrap_err().to_string();
        let wanted = format!("attention: `out`: wanted memory apart from `{other}`");
        assert!(error.starts_with(&wanted), "{error}");
    }
}

#[test]
fn optional_operands_are_checked() {
    type Args = AttentionArgs<Fake, Fake>;
    type Set = fn(&mut Args, View<Fake>);
    let operand = |start, dtype, shape: &[usize]| View::contiguous(Fake(start), dtype, shape).unwrap();
    let [b, h, nq, d] = SHAPE;
    let scores = [b, h, nq, nq];
    let set: [(&str, Set, Dtype, &[usize]); 7] = [
        ("bias", |args, v| args.bias = Some(v), Dtype::F32, &scores),
        ("mask", |args, v| args.mask = Some(v), Dtype::U8, &scores),
        ("q_lengths", |args, v| args.q_lengths = Some(v), Dtype::I32, &[b]),
        ("k_lengths", |args, v| args.k_lengths = Some(v), Dtype::I32, &[b]),
        ("slopes", |args, v| args.slopes = Some(v), Dtype::F32, &[b, h]),
        ("sinks", |args, v| args.sinks = Some(v), Dtype::F32, &[h]),
        ("lse", |args, v| args.lse = Some(v), Dtype::F32, &[b, h, nq]),
    ];
    for (name, set, dtype, shape) in set {
        let checked = |dtype, shape: &[usize]| {
            let one = |start| operand(start, Dtype::F16, &SHAPE);
            let mut args = Args::new(one(0), one(1024), one(2048), one(4096));
            set(&mut args, operand(1 << 20, dtype, shape));
            prepare(&Attention::new(d), &args)
        };
        checked(dtype, shape).unwrap();
        let mut long = shape.to_vec();
        *long.last_mut().unwrap() += 1;
        let refused = [
            (Dtype::Bf16, shape.to_vec()),
            (if dtype == Dtype::I32 { Dtype::U8 } else { Dtype::I32 }, shape.to_vec()),
            (dtype, long),
            (dtype, shape[1..].to_vec()),
        ];
        for (dtype, shape) in refused {
            let error = checked(dtype, &shape).unwrap_err().to_string();
            assert!(error.starts_with(&format!("attention: `{name}`: wanted ")), "{error}");
        }
    }
    // Q may not be of integers.
    let int = |start| operand(start, Dtype::I32, &SHAPE);
    let args = Args::new(int(0), int(1024), int(2048), int(4096));
    let error = prepare(&Attention::new(d), &args).unwrap_err().to_string();
    assert!(error.starts_with("attention: `q`: wanted f32, f16 or bf16"), "{error}");
}

#[test]
fn where_sequences_lie_is_checked() {
    type Args = AttentionArgs<Fake, Fake>;
    let operand = |start, dtype, shape: &[usize]| View::contiguous(Fake(start), dtype, shape).unwrap();
    let float = |start: u64, shape: &[usize]| operand(start << 20, Dtype::F16, shape);
    let args = |q: &[usize], k: &[usize], out: &[usize]| -> Args {
        Args::new(float(0, q), float(1, k), float(2, k), float(3, out))
    };
    let int = |shape: &[usize]| Some(operand(4 << 20, Dtype::I32, shape));
    let lse = |shape: &[usize]| Some(operand(5 << 20, Dtype::F32, shape));
    let refused = |op: Attention, args: &Args, arg: &str, wanted: &str| {
        let error = prepare(&op, args).unwrap_err().to_string();
        assert!(error.starts_with(&format!("attention: `{arg}`: wanted {wanted}")), "{error}");
    };
    let op = Attention::new(4);
    let (one, two) = ([1, 3, 5, 4], [2, 3, 5, 4]);
    // Three packed sequences, and what does not go with them.
    let packed = Args { cu_seqlens_q: int(&[4]), cu_seqlens_k: int(&[4]), ..args(&one, &one, &one) };
    prepare(&op, &packed).unwrap();
    prepare(&op.max_seqlens(Some(5), Some(3)), &packed).unwrap();
    prepare(&op, &Args { k_lengths: int(&[3]), ..packed.clone() }).unwrap();
    refused(op, &Args { k_lengths: int(&[1]), ..packed.clone() }, "k_lengths", "shape [3]");
    refused(op, &Args { cu_seqlens_k: int(&[3]), ..packed.clone() }, "cu_seqlens_k", "shape [4]");
    refused(op, &Args { cu_seqlens_q: int(&[0]), ..packed.clone() }, "cu_seqlens_q", "b + 1 places");
    refused(op, &Args { cu_seqlens_q: int(&[2, 2]), ..packed.clone() }, "cu_seqlens_q", "1 axes [b + 1]");
    refused(op, &Args { cu_seqlens_q: None, ..packed.clone() }, "cu_seqlens_k", "shape [2]");
    refused(op, &Args { q: float(0, &two), ..packed.clone() }, "q", "shape [1, 3, 5, 4]");
    refused(op, &Args { k: float(1, &two), ..packed.clone() }, "k", "shape [1, 3, 5, 4]");
    refused(op.max_seqlens(Some(5), Some(5)), &args(&two, &two, &two), "max_seqlen_q", "none, since");
    let queries = Args { cu_seqlens_k: None, cu_seqlens_q: int(&[3]), ..args(&one, &two, &one) };
    prepare(&op, &queries).unwrap();
    refused(op.max_seqlens(Some(5), Some(5)), &queries, "max_seqlen_k", "none, since");
    // Two sequences, of up to three pages of two tokens.
    let pages = Args { block_table: int(&[2, 3]), ..args(&two, &[7, 3, 2, 4], &two) };
    prepare(&op, &pages).unwrap();
    refused(op, &Args { block_table: int(&[1, 3]), ..pages.clone() }, "block_table", "shape [2, 3]");
    refused(op, &Args { block_table: int(&[2]), ..pages.clone() }, "block_table", "2 axes [b, pages]");
    let none = float(1, &[0, 3, 2, 4]);
    refused(op, &Args { k: none.clone(), v: none, ..pages.clone() }, "k", "at least one page");
    refused(op, &Args { cu_seqlens_k: int(&[3]), ..pages }, "cu_seqlens_k", "none beside a block_table");
    // Parts of the keys.
    let parts = Args { lse: lse(&[4, 2, 3, 5]), ..args(&two, &two, &[4, 2, 3, 5, 4]) };
    prepare(&op.splits(4), &parts).unwrap();
    refused(op.splits(3), &parts, "out", "shape [3, 2, 3, 5, 4]");
    refused(op, &parts, "out", "shape [2, 3, 5, 4]");
    refused(op.splits(4), &Args { lse: None, ..parts.clone() }, "lse", "a view");
    refused(op.splits(4), &Args { lse: lse(&[2, 3, 5]), ..parts.clone() }, "lse", "shape [4, 2, 3, 5]");
    for splits in [0, 65_537] {
        refused(op.splits(splits), &parts, "splits", "1 to 65536");
    }
}

/// Places that no sequence has do no harm: kernels stay inside their operands (which simulators check), and what is right of
/// them counts.
#[test]
fn places_outside_do_no_harm() {
    for device in verify::devices().unwrap() {
        let tensor =
            |dtype, shape: &[usize], values: &[f32]| Tensor::from_f32(&device, dtype, shape, values).unwrap();
        let number = |n: usize| (0..n).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect::<Vec<_>>();
        let run = |starts: &[f32], table: &[f32]| {
            let shape = [1, 2, 6, 8];
            let (q, k) =
                (tensor(Dtype::F32, &shape, &number(96)), tensor(Dtype::F32, &[3, 2, 4, 8], &number(192)));
            let (starts, table) = (tensor(Dtype::I32, &[4], starts), tensor(Dtype::I32, &[3, 2], table));
            let mut out = tensor(Dtype::F32, &shape, &[9.0; 96]);
            let mut args = AttentionArgs::new(q.view(), k.view(), k.view(), out.view_mut());
            (args.cu_seqlens_q, args.block_table) = (Some(starts.view()), Some(table.view()));
            device.run(&Attention::new(8).causal(), args).unwrap();
            out.to_f32(&device).unwrap()
        };
        let outside = run(&[-5.0, 2.0, 2.0, 2e9], &[-1e9, 1.0, 7.0, 2e9, 0.0, 3.0]);
        let inside = run(&[0.0, 2.0, 2.0, 6.0], &[0.0, 1.0, 2.0, 2.0, 0.0, 2.0]);
        assert_eq!(outside, inside, "{}", device.name());
        // All sequences behind the tokens: nothing is written.
        assert_eq!(run(&[7.0, 8.0, 8.0, 9.0], &[0.0; 6]), [9.0; 96], "{}", device.name());
    }
}

/// Sequences that start before the end of the one before share no query.
#[test]
fn starts_that_decrease_do_no_harm() {
    let cpu = Cpu::new().unwrap();
    let values = vec![0.5f32; 6 * 8];
    let mut out = vec![9.0f32; 6 * 8];
    let view = || View::of(&values, &[1, 1, 6, 8]).unwrap();
    let starts = [0i32, 5, 2, i32::MIN, 6];
    let cu_seqlens = || View::of(&starts, &[5]).unwrap();
    let mut args = AttentionArgs::new(view(), view(), view(), View::of_mut(&mut out, &[1, 1, 6, 8]).unwrap());
    (args.cu_seqlens_q, args.cu_seqlens_k) = (Some(cu_seqlens()), Some(cu_seqlens()));
    cpu.run(&Attention::new(8), args).unwrap();
    assert!(out.iter().all(|x| (x - 0.5).abs() < 1e-6 || *x == 0.0), "{out:?}");
}

/// Queries without a key have the result 0, whatever the queries computed before them had.
#[test]
fn nothing_is_left_of_what_was_computed_before() {
    let cpu = advect::Device::cpu(1).unwrap();
    let (shape, count) = ([40, 1, 8, 8], 40 * 8 * 8);
    let tensor = |values: &[f32]| Tensor::from_f32(&cpu, Dtype::F32, &shape, values).unwrap();
    let (x, v) = (tensor(&vec![0.5; count]), tensor(&vec![f32::NAN; count]));
    let lengths: Vec<f32> = (0..40).map(|b| if b % 2 == 0 { 8.0 } else { 0.0 }).collect();
    let lengths = Tensor::from_f32(&cpu, Dtype::I32, &[40], &lengths).unwrap();
    let mut out = tensor(&vec![9.0; count]);
    let mut args = AttentionArgs::new(x.view(), x.view(), v.view(), out.view_mut());
    args.k_lengths = Some(lengths.view());
    cpu.run(&Attention::new(8), args).unwrap();
    for (i, x) in out.to_f32(&cpu).unwrap().into_iter().enumerate() {
        assert!(if i / 64 % 2 == 0 { x.is_nan() } else { x == 0.0 }, "{i}: {x}");
    }
}

/// What PyTorch computes in float64: `tests/golden/attention.py`.
struct Golden(Vec<u8>);

impl Golden {
    /// A tensor of a case.
    fn get(&self, case: &str, name: &str) -> Option<Dense> {
        let file = safetensors::SafeTensors::deserialize(&self.0).unwrap();
        let tensor = file.tensor(&format!("{case}.{name}")).ok()?;
        let bytes = tensor.data();
        let data = match tensor.dtype() {
            safetensors::Dtype::F64 => bytes.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            safetensors::Dtype::I32 => {
                bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b).into()).collect()
            }
            safetensors::Dtype::U8 => bytes.iter().map(|&b| b.into()).collect(),
            other => panic!("{case}.{name} is {other:?}"),
        };
        Some(Dense { shape: tensor.shape().to_vec(), data })
    }
}

/// The definition that every kernel is held to is that of PyTorch.
#[test]
fn the_definition_is_pytorchs() {
    let path = format!("{}/tests/golden/attention.safetensors", env!("CARGO_MANIFEST_DIR"));
    let golden = Golden(std::fs::read(path).unwrap());
    let op = Attention::new(16);
    let cases = [
        ("plain", op),
        ("scale", Attention::scaled(0.75)),
        ("causal", op.causal()),
        ("grouped", op),
        ("grouped_causal", op.causal()),
        ("value_dim", op),
        ("bias", op),
        ("bias_per_key", op),
        ("mask", op),
        ("softcap", op.softcap(2.5)),
        ("window", op.window(Some(3), Some(1))),
        ("alibi", op.causal()),
        ("lengths", op),
        ("no_key", op),
        ("sinks", op),
        ("packed", op.causal()),
        ("pages", op),
    ];
    for (case, op) in cases {
        let one = |name: &str, dtype| {
            let dense = golden.get(case, name)?;
            let shape = dense.shape.clone();
            Some(View::contiguous(dense, dtype, &shape).unwrap())
        };
        // Q, K and V of a case, or those of all; the first two heads of K and V where there are fewer.
        let operand = |name: &str| {
            one(name, Dtype::F32).unwrap_or_else(|| {
                let mut dense = golden.get("all", name).unwrap();
                if case.starts_with("grouped") && name != "q" {
                    let [b, h, n, d] = dense.shape[..] else { unreachable!("four axes") };
                    let heads = |i: usize| i / (n * d) % h < 2;
                    let data = dense.data.iter().enumerate().filter(|(i, _)| heads(*i));
                    dense = Dense { shape: vec![b, 2, n, d], data: data.map(|(_, &x)| x).collect() };
                }
                let shape = dense.shape.clone();
                View::contiguous(dense, Dtype::F32, &shape).unwrap()
            })
        };
        let wanted = golden.get(case, "out").unwrap();
        let out = View::contiguous((), Dtype::F32, &wanted.shape).unwrap();
        let args = AttentionArgs {
            bias: one("bias", Dtype::F32),
            mask: one("mask", Dtype::U8),
            k_lengths: one("k_lengths", Dtype::I32),
            cu_seqlens_q: one("cu_seqlens_q", Dtype::I32),
            cu_seqlens_k: one("cu_seqlens_k", Dtype::I32),
            block_table: one("block_table", Dtype::I32),
            slopes: one("slopes", Dtype::F32),
            sinks: one("sinks", Dtype::F32),
            ..AttentionArgs::new(operand("q"), operand("k"), operand("v"), out)
        };
        let [got, got_lse] = reference::attention::attention(&op, &args);
        // Both are of float64: what is left are roundings of some 1e-16.
        let near = |got: &[f64], wanted: &[f64]| {
            assert_eq!(got.len(), wanted.len(), "{case}");
            for (got, wanted) in got.iter().zip(wanted) {
                assert!(got == wanted || (got - wanted).abs() < 1e-13, "{case}: {got} {wanted}");
            }
        };
        near(&got.value, &wanted.data);
        if let Some(lse) = golden.get(case, "lse") {
            near(&got_lse.value, &lse.data);
        }
    }
}

/// Scores so large that their roundings alone are beyond what can be exponentiated: alike keys still count alike, hidden
/// ones do not count, and one that is ahead of all others is the result. Inputs are powers of two, so that every product
/// is exact; bounds that grow with the score say nothing here.
#[test]
fn large_scores_are_compared_as_they_are_rounded() {
    const KEYS: usize = 70;
    let value = |j: usize| (j * 7 % 5) as f32;
    for device in verify::devices().unwrap() {
        for dtype in Dtype::FLOATS {
            // Scores of 2^30 to 2^126.
            let powers = if dtype == Dtype::F16 { &[15][..] } else { &[15, 60] };
            for (nq, d) in [(3, 64), (70, 64), (5, 1)] {
                for &power in powers {
                    let x = 2f32.powi(power);
                    let all = |n: usize| vec![x; n];
                    let ahead: Vec<f32> = (0..KEYS * d).map(|at| if at / d == 41 { x } else { -x }).collect();
                    let values: Vec<f32> = (0..KEYS * d).map(|at| value(at / d)).collect();
                    let tensor = |shape: &[usize], values: &[f32]| {
                        Tensor::from_f32(&device, dtype, shape, values).unwrap()
                    };
                    let q = tensor(&[1, 1, nq, d], &all(nq * d));
                    let v = tensor(&[1, 1, KEYS, d], &values);
                    let hidden: Vec<f32> = (0..KEYS).map(|j| f32::from(u8::from(j % 3 != 0))).collect();
                    let mask = Tensor::from_f32(&device, Dtype::U8, &[1, 1, 1, KEYS], &hidden).unwrap();
                    for (k, only) in [(all(KEYS * d), None), (ahead, Some(41))] {
                        let k = tensor(&[1, 1, KEYS, d], &k);
                        for (masked, scale) in [(false, 1.0), (false, 0.3), (true, 1.0)] {
                            let mut out = tensor(&[1, 1, nq, d], &vec![9.0; nq * d]);
                            let mut args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
                            if masked {
                                args.mask = Some(mask.view().expand(&[1, 1, nq, KEYS]).unwrap());
                            }
                            device.run(&Attention::scaled(scale), args).unwrap();
                            let seen: Vec<usize> = (0..KEYS)
                                .filter(|j| only.is_none_or(|only| *j == only))
                                .filter(|j| !masked || j % 3 != 0)
                                .collect();
                            let want = seen.iter().map(|&j| value(j)).sum::<f32>() / seen.len() as f32;
                            let close = 4.0 * (dtype.unit_roundoff() as f32 + 2f32.powi(-20)) * want;
                            let case = format!(
                                "{} {dtype} {nq} queries, heads of {d}, 2^{power}, {only:?}, {masked}, {scale}",
                                device.name()
                            );
                            for got in out.to_f32(&device).unwrap() {
                                assert!((got - want).abs() <= close, "{case}: {got}, wanted {want}");
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Products of pairs of bf16 take numbers below the smallest normal one for 0, and the definition's bound has room for that,
/// on every instruction set: values that small, a query that is, products that are, sums that are.
#[test]
fn small_numbers_may_count_as_0_in_bf16() {
    const QUERIES: usize = 5;
    let power = |n: i32| 2f32.powi(n);
    // The scale, and one query, the keys and their values, in rows of so many elements.
    let cases = [
        ("values", 1.0, 1, vec![0.0], vec![0.0; 2], vec![power(-130); 2]),
        ("a query", 1.0, 1, vec![power(-127)], vec![power(126), 0.0], vec![1.0, 0.0]),
        (
            "products",
            power(126),
            2,
            vec![power(-64); 2],
            vec![power(-64), power(-64), 0.0, 0.0],
            vec![1.0, 1.0, 0.0, 0.0],
        ),
        // Weights of 1 and 0.375.
        ("sums", 0.980_829_3, 1, vec![1.0], vec![0.0, -1.0], vec![power(-126); 2]),
    ];
    for (name, scale, d, q, k, v) in cases {
        let view = |tokens, values| {
            verify::view(Dtype::Bf16, &[1, 1, tokens, d], &Layout::Contiguous, Fill::Values(values))
        };
        let out = verify::view(Dtype::Bf16, &[1, 1, QUERIES, d], &Layout::Contiguous, ());
        let mut args = AttentionArgs::new(view(QUERIES, q), view(2, k), view(2, v), out);
        args.lse = Some(verify::view(Dtype::F32, &[1, 1, QUERIES], &Layout::Contiguous, ()));
        let prepared = Prepared::new(&Case { name: name.into(), op: Attention::scaled(scale), args });
        for isa in Isa::available() {
            let device = Device::Cpu(Cpu::with(1, isa).unwrap());
            let outputs = execute(&device, &prepared).unwrap();
            let fault = prepared.judge(&outputs, Rounding::Exact).fault;
            assert_eq!(fault, None, "{name} with {}", isa.name());
        }
    }
}

/// What products of pairs may lose is no more than weights can change, however large the scale is: bounds are numbers.
#[test]
fn a_large_scale_has_a_bound() {
    let dense = |shape: &[usize], data: &[f64]| {
        View::contiguous(Dense { shape: shape.to_vec(), data: data.to_vec() }, Dtype::Bf16, shape).unwrap()
    };
    let small = 2f64.powi(-120);
    // What 512 products may lose is a score of 1024: its exponential is no number.
    let (q, k) = (dense(&[1, 1, 1, 512], &[small; 512]), dense(&[1, 1, 2, 512], &[small; 1024]));
    let v = dense(&[1, 1, 2, 2], &[1.0, 3.0, 2.0, 3.0]);
    let out = View::contiguous((), Dtype::Bf16, &[1, 1, 1, 2]).unwrap();
    let op = Attention::scaled(2f32.powi(126));
    let [out, lse] = reference::attention::attention(&op, &AttentionArgs::new(q, k, v, out));
    assert!(out.value[0] == 1.5 && (0.5..0.6).contains(&out.error[0]), "{out:?}");
    assert!(out.value[1] == 3.0 && out.error[1] < 0.1, "{out:?}");
    assert!((1024.0..1025.0).contains(&lse.error[0]), "{lse:?}");
}

/// More heads than few queries keep results of parts for at a time.
#[test]
fn many_heads_of_few_queries() {
    const BATCH: usize = 300_000;
    const DV: usize = 62;
    fn view<'a>(memory: &'a [f32], shape: &[usize], strides: &[usize]) -> View<&'a [u8]> {
        View::strided(bytemuck::cast_slice(memory), Dtype::F32, shape, strides, 0).unwrap()
    }
    // Values overlap, so that every batch entry has others: two keys, which count alike.
    let values: Vec<f32> = (0..BATCH + 2 * DV).map(|i| (i * 37 % 1009) as f32).collect();
    let mut out = vec![9.0f32; BATCH * DV];
    let zero = [0.0f32];
    let args = AttentionArgs::new(
        view(&zero, &[BATCH, 1, 1, 1], &[0; 4]),
        view(&zero, &[BATCH, 1, 2, 1], &[0; 4]),
        view(&values, &[BATCH, 1, 2, DV], &[1, 0, DV, 1]),
        View::of_mut(&mut out, &[BATCH, 1, 1, DV]).unwrap(),
    );
    Cpu::new().unwrap().run(&Attention::new(1), args).unwrap();
    for (b, row) in out.chunks(DV).enumerate() {
        for (e, &x) in row.iter().enumerate() {
            assert_eq!(x, 0.5 * (values[b + e] + values[b + DV + e]), "batch entry {b}, element {e}");
        }
    }
}

/// With a scale of 0 every score is 0, however large the products, and if there are none.
#[test]
fn a_scale_of_zero_weighs_all_keys_alike() {
    for device in verify::devices().unwrap() {
        let tensor =
            |shape: &[usize], values: &[f32]| Tensor::from_f32(&device, Dtype::F32, shape, values).unwrap();
        let (q, v) = (tensor(&[1, 1, 2, 1], &[1e19; 2]), tensor(&[1, 1, 2, 1], &[1.0, 4.0]));
        for keys in [[1e19, -1e19], [f32::NAN, f32::NEG_INFINITY]] {
            let (k, mut out) = (tensor(&[1, 1, 2, 1], &keys), tensor(&[1, 1, 2, 1], &[9.0; 2]));
            let args = AttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
            device.run(&Attention::scaled(0.0), args).unwrap();
            assert_eq!(out.to_f32(&device).unwrap(), [2.5; 2], "{}", device.name());
        }
    }
}
