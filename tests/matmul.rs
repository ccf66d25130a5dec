//! Matrix products, cross-checked on every device, and bad input tried one by one.

use advect::ops::{Matmul, MatmulArgs};
use advect::{Cpu, Dtype, Error, View};
use std::ops::Range;

#[test]
fn cross_check() {
    advect::verify::assert_op::<Matmul>(30);
}

/// Runs a 4x5 product of one shape changed: the call must be refused with an error that names `arg` and
/// says `wanted` and `got`, and `out` must be as it was.
#[track_caller]
fn refused(arg: &str, wanted: &str, got: &str, change: impl FnOnce(&mut Shapes)) {
    let mut shapes = Shapes::default();
    change(&mut shapes);
    let data = vec![1.0f32; 256];
    let mut out = vec![7.0f32; 256];
    let view = |(dtype, shape): &Operand| {
        View::contiguous(bytemuck::cast_slice(&data), *dtype, shape).expect("few axes")
    };
    let args = MatmulArgs {
        a: view(&shapes.a),
        b: view(&shapes.b),
        bias: Some(view(&shapes.bias)),
        residual: Some(view(&shapes.residual)),
        out: View::contiguous(bytemuck::cast_slice_mut(&mut out), shapes.out.0, &shapes.out.1)
            .expect("few axes"),
    };
    let error = Cpu::new().expect("threads start").run(&Matmul::default(), args).unwrap_err();
    match &error {
        Error::Argument { op: "matmul", arg: at, wanted: w, got: g } => {
            assert_eq!((*at, w.contains(wanted), g.contains(got)), (arg, true, true), "{error}");
        }
        other => panic!("{other}"),
    }
    assert!(out.iter().all(|&x| x == 7.0), "{error}: out was written");
}

type Operand = (Dtype, Vec<usize>);

/// What each operand is; as made by default, all fit.
struct Shapes {
    a: Operand,
    b: Operand,
    bias: Operand,
    residual: Operand,
    out: Operand,
}

impl Default for Shapes {
    fn default() -> Self {
        let of = |shape: &[usize]| (Dtype::F32, shape.to_vec());
        Self {
            a: of(&[2, 4, 3]),
            b: of(&[3, 5]),
            bias: of(&[5]),
            residual: of(&[1, 4, 5]),
            out: of(&[2, 4, 5]),
        }
    }
}

#[test]
fn wrong_rank() {
    refused("out", "2 axes [m, n] or 3 axes [batch, m, n]", "[20]", |s| s.out.1 = vec![20]);
    refused("out", "2 axes", "[1, 2, 4, 5]", |s| s.out.1 = vec![1, 2, 4, 5]);
    refused("a", "2 axes [m, k]", "no axes", |s| s.a.1 = vec![]);
    refused("a", "[2, 4, 12]", "[12]", |s| s.a.1 = vec![12]);
    refused("b", "[3, 5]", "[1, 1, 3, 5]", |s| s.b.1 = vec![1, 1, 3, 5]);
    refused("bias", "shape [5]", "[1, 5]", |s| s.bias.1 = vec![1, 5]);
}

#[test]
fn mismatched_sizes() {
    refused("a", "shape [2, 4, 3], [1, 4, 3] or [4, 3]", "[2, 5, 3]", |s| s.a.1 = vec![2, 5, 3]);
    refused("b", "[3, 5]", "[4, 5]", |s| s.b.1 = vec![4, 5]);
    refused("b", "[3, 5]", "[5, 3]", |s| s.b.1 = vec![5, 3]);
    refused("bias", "shape [5]", "[4]", |s| s.bias.1 = vec![4]);
    refused("residual", "[2, 4, 5]", "[2, 5, 4]", |s| s.residual.1 = vec![2, 5, 4]);
    refused("a", "[2, 4, 3]", "[3, 4, 3]", |s| s.a.1 = vec![3, 4, 3]);
}

#[test]
fn a_batched_input_without_a_batched_result() {
    refused("a", "shape [4, 3]", "[2, 4, 3]", |s| {
        s.out.1 = vec![4, 5];
        s.residual.1 = vec![4, 5];
    });
    refused("residual", "shape [4, 5]", "[1, 4, 5]", |s| {
        s.a.1 = vec![4, 3];
        s.out.1 = vec![4, 5];
    });
}

#[test]
fn mixed_dtypes() {
    refused("b", "f32, the dtype of `a`", "f16", |s| s.b.0 = Dtype::F16);
    refused("bias", "f32, the dtype of `a`", "bf16", |s| s.bias.0 = Dtype::Bf16);
    refused("out", "f32, the dtype of `a`", "f16", |s| s.out.0 = Dtype::F16);
}

#[test]
fn past_the_end() {
    refused("a", "inside the 256 of its memory", "[2, 4, 33]", |s| s.a.1 = vec![2, 4, 33]);
    refused("out", "inside the 256 of its memory", "[20, 4, 5]", |s| s.out.1 = vec![20, 4, 5]);
    refused("b", "inside the 256 of its memory", "overflows", |s| s.b.1 = vec![usize::MAX, 5]);
}

#[test]
fn an_output_that_meets_an_input_or_itself() {
    let data = [1.0f32; 64];
    let mut out = [7.0f32; 64];
    let input = |shape: &[usize]| View::of(&data, shape).expect("few axes");
    let cpu = Cpu::new().expect("threads start");
    let repeated = View::strided(bytemuck::cast_slice_mut(&mut out), Dtype::F32, &[4, 5], &[0, 1], 0)
        .expect("one stride an axis");
    let args = MatmulArgs { a: input(&[4, 3]), b: input(&[3, 5]), bias: None, residual: None, out: repeated };
    let error = cpu.run(&Matmul::default(), args).unwrap_err();
    assert!(matches!(&error, Error::Argument { arg: "out", .. }), "{error}");
    assert!(error.to_string().contains("no two elements coincide"), "{error}");
    assert_eq!(out, [7.0; 64]);
}

/// The rows of `a x b`, with `b` stored row by row or column by column.
fn rows(threads: usize, m: usize, by_columns: bool, a: &[f32], b: &[f32], bias: &[f32]) -> Vec<u32> {
    let (n, k) = (bias.len(), a.len() / 40);
    let (shape, order) = if by_columns { ([n, k], [1, 0]) } else { ([k, n], [0, 1]) };
    let mut out = vec![f32::NAN; m * n];
    let cpu = Cpu::with(threads, advect::Isa::detect()).expect("threads start");
    let args = MatmulArgs {
        a: View::of(&a[..m * k], &[m, k]).expect("two axes"),
        b: View::of(b, &shape).and_then(|b| b.permute(&order)).expect("two axes"),
        bias: Some(View::of(bias, &[n]).expect("one axis")),
        residual: None,
        out: View::of_mut(&mut out, &[m, n]).expect("two axes"),
    };
    cpu.run(&Matmul::default(), args).expect("runs");
    out.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_row_does_not_depend_on_its_company_or_on_threads() {
    let (n, k) = (150, 1100);
    let numbers = |count: usize, step: usize| -> Vec<f32> {
        (0..count).map(|i| (i * step % 1009) as f32 / 504.5 - 1.0).collect()
    };
    let (a, b, bias) = (numbers(40 * k, 577), numbers(n * k, 389), numbers(n, 11));
    for by_columns in [false, true] {
        let all = rows(2, 40, by_columns, &a, &b, &bias);
        for m in [1, 3, 5, 20, 40] {
            assert_eq!(rows(1, m, by_columns, &a, &b, &bias), all[..m * n], "{m} rows, columns {by_columns}");
        }
    }
}

/// Longer sums, of few rows, than there are copies of; and products so tall that parts of them come one after the other.
#[test]
fn large_products() {
    let one = [1.0f32];
    let repeated = |shape: &[usize], strides: &[usize]| {
        View::strided(bytemuck::cast_slice(&one), Dtype::F32, shape, strides, 0).expect("one stride an axis")
    };
    let (cpu, k) = (Cpu::new().expect("threads start"), 5 << 20);
    let mut sum = [0.0f32];
    let args = MatmulArgs {
        a: repeated(&[1, k], &[0, 0]),
        b: repeated(&[k, 1], &[0, 1]),
        bias: None,
        residual: None,
        out: View::of_mut(&mut sum, &[1, 1]).expect("two axes"),
    };
    cpu.run(&Matmul::default(), args).expect("runs");
    assert_eq!(sum, [k as f32]);

    let (m, n, k) = (170_000, 100, 513);
    let numbers = |count: usize, step: usize| -> Vec<f32> {
        (0..count).map(|i| (i * step % 1009) as f32 / 504.5 - 1.0).collect()
    };
    let (row, b, bias, column) = (numbers(k, 577), numbers(n * k, 389), numbers(n, 11), numbers(m, 7));
    let rows = |rows: Range<usize>| {
        let mut out = vec![f32::NAN; rows.len() * n];
        let of = |memory, strides: &[usize], columns, offset| {
            View::strided(memory, Dtype::F32, &[rows.len(), columns], strides, offset).expect("two axes")
        };
        let args = MatmulArgs {
            a: of(bytemuck::cast_slice(&row), &[0, 1], k, 0),
            b: View::of(&b, &[k, n]).expect("two axes"),
            bias: Some(View::of(&bias, &[n]).expect("one axis")),
            residual: Some(of(bytemuck::cast_slice(&column), &[1, 0], n, rows.start)),
            out: View::of_mut(&mut out, &[rows.len(), n]).expect("two axes"),
        };
        cpu.run(&Matmul::default(), args).expect("runs");
        out
    };
    let all = rows(0..m);
    for some in [0..20, 80_000..90_000, m - 3..m] {
        assert!(all[some.start * n..some.end * n] == rows(some.clone()), "{some:?}");
    }
}
