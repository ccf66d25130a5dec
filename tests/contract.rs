//! Bad input that every op refuses in the same words, before anything is planned.

use advect::op::{MAX_ELEMENTS, Op, Operands, prepare};
use advect::ops::{
    Attention, AttentionArgs, Conv, ConvArgs, LinearAttention, LinearAttentionArgs, Matmul, MatmulArgs,
    Merge, MergeArgs, Resample, ResampleArgs,
};
use advect::verify::judge::Rounding;
use advect::verify::run::execute;
use advect::verify::{OpVisitor, Prepared, Verified, each_op};
use advect::{Cpu, Device, Dtype, Error, MAX_RANK, Memory, Tensor, View};
use std::cell::Cell;

/// Memory at a made-up place.
#[derive(Clone, Copy, Debug)]
struct Fake {
    space: u64,
    start: u64,
    bytes: u64,
}

impl Memory for Fake {
    fn byte_len(&self) -> u64 {
        self.bytes
    }
    fn place(&self) -> (u64, u64) {
        (self.space, self.start)
    }
}

const X: Fake = Fake { space: 1, start: 0, bytes: 4 * 32 };
const OUT: Fake = Fake { space: 2, start: 0, bytes: 4 * 128 };

fn x() -> View<Fake> {
    View::contiguous(X, Dtype::F32, &[1, 2, 4, 4]).unwrap()
}

fn out() -> View<Fake> {
    View::contiguous(OUT, Dtype::F32, &[1, 2, 8, 8]).unwrap()
}

/// The call is refused with an argument error about `arg` whose text contains `says`.
#[track_caller]
fn refused(arg: &str, says: &str, x: View<Fake>, out: View<Fake>) {
    let error = prepare(&Resample::Up2, &ResampleArgs { x, out }).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with(&format!("resample: `{arg}`: ")), "{text}");
    assert!(text.contains(says), "`{text}` does not say `{says}`");
}

#[test]
fn a_good_call_is_accepted() {
    prepare(&Resample::Up2, &ResampleArgs { x: x(), out: out() }).unwrap();
}

#[test]
fn wrong_rank() {
    refused(
        "x",
        "4 axes [n, c, h, w], got [2, 4, 4]",
        View::contiguous(X, Dtype::F32, &[2, 4, 4]).unwrap(),
        out(),
    );
}

#[test]
fn mismatched_sizes() {
    let out = View::contiguous(OUT, Dtype::F32, &[1, 2, 8, 7]).unwrap();
    refused("out", "wanted shape [1, 2, 8, 8], got [1, 2, 8, 7]", x(), out);
}

#[test]
fn mixed_dtypes() {
    refused(
        "out",
        "wanted f32, the dtype of `x`, got f16",
        x(),
        View::contiguous(OUT, Dtype::F16, &[1, 2, 8, 8]).unwrap(),
    );
}

#[test]
fn past_the_end() {
    refused(
        "x",
        "inside the 32 of its memory",
        View::contiguous(X, Dtype::F32, &[1, 2, 4, 5]).unwrap(),
        out(),
    );
    let shifted = View::strided(X, Dtype::F32, &[1, 2, 4, 4], &[32, 16, 4, 1], 1).unwrap();
    refused("x", "at offset 1", shifted, out());
    let far = View::strided(X, Dtype::F32, &[1, 2, 4, 4], &[32, 16, 4, 1], usize::MAX).unwrap();
    refused("x", "overflows", far, out());
}

#[test]
fn stride_overflow() {
    let wide = View::strided(X, Dtype::F32, &[1, 2, 4, 4], &[1, 1, usize::MAX / 2, 1], 0).unwrap();
    refused("x", "overflows", wide, out());
}

#[test]
fn overlapping_output() {
    let within = Fake { start: 64, ..X };
    let out = View::contiguous(Fake { bytes: 4 * 128, ..within }, Dtype::F32, &[1, 2, 8, 8]).unwrap();
    refused("out", "memory apart from `x`", x(), out);
}

#[test]
fn neighbours_do_not_overlap() {
    let next = Fake { start: 128, bytes: 4 * 128, ..X };
    let out = View::contiguous(next, Dtype::F32, &[1, 2, 8, 8]).unwrap();
    prepare(&Resample::Up2, &ResampleArgs { x: x(), out }).unwrap();
}

#[test]
fn an_output_that_meets_itself() {
    for strides in [[128, 64, 8, 0], [128, 64, 4, 1], [128, 8, 8, 1]] {
        let out = View::strided(OUT, Dtype::F32, &[1, 2, 8, 8], &strides, 0).unwrap();
        refused("out", "no two elements coincide", x(), out);
    }
}

#[test]
fn misaligned_memory() {
    let out = View::contiguous(Fake { start: 2, ..OUT }, Dtype::F32, &[1, 2, 8, 8]).unwrap();
    refused("out", "aligned to the 4 bytes of f32", x(), out);
}

#[test]
fn over_the_index_limit() {
    let huge = Fake { bytes: 1 << 40, ..X };
    let side = 1 << 16;
    let x = View::contiguous(huge, Dtype::F32, &[1, 1, side, side]).unwrap();
    let out =
        View::contiguous(Fake { bytes: 1 << 40, ..OUT }, Dtype::F32, &[1, 1, 2 * side, 2 * side]).unwrap();
    let error = prepare(&Resample::Up2, &ResampleArgs { x, out }).unwrap_err();
    assert!(matches!(error, Error::Limit { op: "resample", arg: "x", limit: MAX_ELEMENTS, .. }), "{error}");
}

#[test]
fn too_many_axes() {
    let error = View::contiguous(X, Dtype::F32, &[1; 7]).unwrap_err();
    assert_eq!(error.to_string(), "view: `shape`: wanted at most 6 axes, got 7");
    let error = View::strided(X, Dtype::F32, &[2, 2], &[1], 0).unwrap_err();
    assert_eq!(error.to_string(), "view: `strides`: wanted 2 strides, one per axis, got 1");
}

/// As adapters for engines hand them over.
#[test]
fn operands_in_a_list() {
    let view = |n| View::contiguous(n, Dtype::F32, &[1]).unwrap();
    let some = |n: i32| Some(view(n));
    let args = |inputs: &[Option<View<i32>>], outputs: &[i32]| {
        ConvArgs::in_order(inputs.iter().cloned(), outputs.iter().map(|&n| view(n)))
    };
    let conv = args(&[some(0), some(1), None, some(3)], &[9]).unwrap();
    assert_eq!((*conv.x.memory(), *conv.weight.memory(), *conv.out.memory()), (0, 1, 9));
    assert_eq!((conv.bias, conv.sample_bias.map(View::into_memory), conv.residual), (None, Some(3), None));
    assert!(args(&[some(0), None], &[9]).is_none(), "a weight is needed");
    assert!(args(&[some(0)], &[9]).is_none(), "a weight is needed");
    assert!(args(&[some(0), some(1), None, None, None, None], &[9]).is_none(), "one is left over");
    assert!(args(&[some(0), some(1)], &[]).is_none() && args(&[some(0), some(1)], &[8, 9]).is_none());
}

#[test]
fn outputs_stay_untouched() {
    let source = [1.0f32; 32];
    let mut target = [7.0f32; 100];
    let x = View::of(&source, &[1, 2, 4, 4]).unwrap();
    let out = View::of_mut(&mut target, &[1, 2, 8, 8]).unwrap();
    let error = Cpu::new().unwrap().run(&Resample::Up2, ResampleArgs { x, out }).unwrap_err();
    assert!(matches!(error, Error::Argument { op: "resample", arg: "out", .. }), "{error}");
    assert_eq!(target, [7.0; 100]);
}

/// One element, as often as one likes.
fn repeated(dtype: Dtype, shape: &[usize]) -> View<&'static [u8]> {
    const ONE: &[f32] = &[1.0];
    View::strided(bytemuck::cast_slice(ONE), dtype, shape, &[0; MAX_RANK][..shape.len()], 0).unwrap()
}

/// What the CPU says to a call with a result of this shape, which it leaves as it was.
#[track_caller]
fn refused_by_the_cpu<T: Op>(
    op: T,
    out: &[usize],
    args: impl for<'a> FnOnce(View<&'a mut [u8]>) -> T::Args<&'static [u8], &'a mut [u8]>,
) -> Error {
    let mut result = vec![7.0f32; out.iter().product()];
    let view = View::of_mut(&mut result, out).unwrap();
    let error = Cpu::new().unwrap().run(&op, args(view)).unwrap_err();
    assert!(result.iter().all(|&x| x == 7.0), "{error}");
    error
}

/// Axes that `out` has not may be of any length without memory behind them. The memory that kernels take beside their
/// operands is bounded all the same.
#[test]
fn long_axes_of_one_element() {
    #[track_caller]
    fn says(error: Error, text: &str) {
        assert!(error.to_string().starts_with(text), "`{error}` does not start with `{text}`");
    }
    #[track_caller]
    fn over_the_limit(error: Error, op: &str, arg: &str) {
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        says(error, &format!("{op}: `{arg}`: scratch memory in bytes of "));
    }
    let one = |shape: &[usize]| repeated(Dtype::F32, shape);

    let terms = 1 << 31;
    let error = refused_by_the_cpu(Matmul::default(), &[2, 3], |out| MatmulArgs {
        a: one(&[2, terms]),
        b: one(&[terms, 3]),
        bias: None,
        residual: None,
        out,
    });
    says(error, "matmul: `a`: wanted at most 2147483647 terms of a sum, got 2147483648");

    let conv = |op: Conv, x: [usize; 4], weight: [usize; 4], out: [usize; 4]| {
        refused_by_the_cpu(op, &out, |out| ConvArgs {
            x: one(&x),
            weight: one(&weight),
            bias: None,
            sample_bias: None,
            residual: None,
            out,
        })
    };
    let (side, channels) = (1 << 16, 1 << 30);
    let error = conv(Conv::default(), [1, 1, side, side], [1, 1, side, side], [1, 1, 1, 1]);
    says(error, "conv: `weight`: wanted at most 2147483647 taps");
    let error = conv(Conv::default(), [1, 2 * channels, 1, 1], [1, 2 * channels, 1, 1], [1, 1, 1, 1]);
    says(error, "conv: `weight`: wanted at most 2147483647 taps");
    let error = conv(Conv::default(), [1, channels, 1, 1], [1 << 15, channels, 1, 1], [1, 1 << 15, 1, 1]);
    over_the_limit(error, "conv", "weight");
    // A window as large as its image, all of which but one pixel is padding.
    let far = Conv { padding: [1 << 29; 2], dilation: [1 << 30; 2], ..Conv::default() };
    over_the_limit(conv(far, [1, 1, 1, 1], [1, 1, 2, 2], [1, 1, 1, 1]), "conv", "x");

    let wide = 1 << 20;
    let error = refused_by_the_cpu(Attention::new(1), &[1, 1, 1, 1], |out| {
        AttentionArgs::new(one(&[1, 1, 1, wide]), one(&[1, 1, 1, wide]), one(&[1, 1, 1, 1]), out)
    });
    says(error, "attention: `q`: wanted at most 65536 elements of a head, got 1048576");
    let error = refused_by_the_cpu(Attention::new(1), &[1, 1, 0, wide], |out| {
        AttentionArgs::new(one(&[1, 1, 0, 1]), one(&[1, 1, 1, 1]), one(&[1, 1, 1, wide]), out)
    });
    says(error, "attention: `v`: wanted at most 65536 elements of a head, got 1048576");
    let error = refused_by_the_cpu(Attention::new(1), &[1, 1, 1, 1], |out| {
        let token = || one(&[1, 1, 1, 1]);
        let mut args = AttentionArgs::new(token(), token(), token(), out);
        let starts = || Some(repeated(Dtype::I32, &[(1 << 31) + 1]));
        (args.cu_seqlens_q, args.cu_seqlens_k) = (starts(), starts());
        args
    });
    over_the_limit(error, "attention", "cu_seqlens_q");

    let error = refused_by_the_cpu(LinearAttention::new(1), &[1, 1, 1, 1], |out| {
        LinearAttentionArgs::new(one(&[1, 1, 1, wide]), one(&[1, 1, 1, wide]), one(&[1, 1, 1, 1]), out)
    });
    says(error, "linear_attention: `q`: wanted at most 65536 elements of a head, got 1048576");

    let parts = 1 << 40;
    let error = refused_by_the_cpu(Merge, &[1, 1, 1, 1], |out| MergeArgs {
        parts: one(&[parts, 1, 1, 1, 1]),
        lses: one(&[parts, 1, 1, 1]),
        out,
        lse: None,
    });
    says(error, "merge: `parts`: wanted a size or stride below 2^32");
}

#[test]
fn tensors_check_their_sizes() {
    let device = Device::cpu(1).unwrap();
    let error = Tensor::from_f32(&device, Dtype::F16, &[2, 3], &[0.0; 5]).unwrap_err();
    assert_eq!(error.to_string(), "tensor: `values`: wanted 6 values for shape [2, 3], got 5");
    let error = Tensor::new(&device, Dtype::F32, &[usize::MAX, 2]).unwrap_err();
    assert!(error.to_string().starts_with("tensor: `shape`"), "{error}");
    let mut t = Tensor::from_f32(&device, Dtype::Bf16, &[2], &[1.0, -2.5]).unwrap();
    assert_eq!(t.to_f32(&device).unwrap(), [1.0, -2.5]);
    assert_eq!(t.view_mut().shape(), [2]);
}

/// Every case with an axis of one, or without elements, with strides there that no memory could hold.
struct Far {
    cases: usize,
}

/// The same view with other strides where nobody walks; whether there are such.
fn far<M>(view: View<M>) -> (View<M>, bool) {
    let (shape, empty) = (view.shape().to_vec(), view.is_empty());
    let unwalked = |size: usize| size == 1 || empty;
    let each = shape.iter().zip(view.strides());
    let strides: Vec<usize> =
        each.map(|(&size, &stride)| if unwalked(size) { usize::MAX / 2 } else { stride }).collect();
    let (dtype, offset) = (view.dtype(), view.offset());
    let any = shape.iter().any(|&size| unwalked(size));
    (View::strided(view.into_memory(), dtype, &shape, &strides, offset).unwrap(), any)
}

impl OpVisitor for Far {
    fn visit<T: Verified>(&mut self) {
        let cpu = Device::cpu(1).unwrap();
        let before = self.cases;
        for mut case in T::cases(Dtype::F32) {
            let moved = &Cell::new(false);
            fn go<M>(moved: &Cell<bool>, view: View<M>) -> Result<View<M>, Error> {
                let (view, any) = far(view);
                moved.set(moved.get() | any);
                Ok(view)
            }
            case.args = T::map(case.args, |_, v| go(moved, v), |_, v| go(moved, v)).unwrap();
            if !moved.get() {
                continue;
            }
            let prepared = Prepared::new(&case);
            let outputs = execute(&cpu, &prepared).unwrap_or_else(|e| panic!("{}: {e}", case.name));
            let fault = prepared.judge(&outputs, Rounding::Exact).fault;
            assert_eq!(fault, None, "{} {}", T::NAME, case.name);
            self.cases += 1;
        }
        assert!(self.cases > before, "{}: no case has an axis of one", T::NAME);
    }
}

#[test]
fn strides_that_nobody_walks_may_be_anything() {
    each_op(&mut Far { cases: 0 });
}
