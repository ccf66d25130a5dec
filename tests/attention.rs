//! Attention, cross-checked on every device; bad input, one by one.

use advect::op::prepare;
use advect::ops::{Attention, AttentionArgs};
use advect::{Cpu, Dtype, Error, View};

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
