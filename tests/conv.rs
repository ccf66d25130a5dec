//! Convolutions, cross-checked on every device; bad input, refused by name with the output untouched.

use advect::ops::{Activation, Conv, ConvArgs};
use advect::{Cpu, Dtype, Error, View};

#[test]
fn cross_check() {
    advect::verify::assert_op::<Conv>(40);
}

/// Operands of a valid 3x3 convolution, to be spoilt: shapes, dtypes and buffers.
struct Call {
    op: Conv,
    x: (Dtype, Vec<usize>),
    weight: Vec<usize>,
    bias: Vec<usize>,
    sample_bias: Vec<usize>,
    residual: Vec<usize>,
    out: Vec<usize>,
}

fn valid() -> Call {
    Call {
        op: Conv { padding: [1, 1], groups: 2, activation: Activation::Silu, ..Conv::default() },
        x: (Dtype::F32, vec![2, 4, 5, 6]),
        weight: vec![6, 2, 3, 3],
        bias: vec![6],
        sample_bias: vec![2, 6],
        residual: vec![2, 6, 5, 6],
        out: vec![2, 6, 5, 6],
    }
}

impl Call {
    /// Runs it; the output is checked to be untouched when it is refused.
    fn run(self) -> Result<(), Error> {
        let data = vec![1.0f32; 4096];
        let mut result = vec![7.0f32; 4096];
        let view = |shape: &[usize]| View::of(&data, shape).unwrap();
        let bytes: &[u8] = bytemuck::cast_slice(&data);
        let args = ConvArgs {
            x: View::contiguous(bytes, self.x.0, &self.x.1).unwrap(),
            weight: view(&self.weight),
            bias: Some(view(&self.bias)),
            sample_bias: Some(view(&self.sample_bias)),
            residual: Some(view(&self.residual)),
            out: View::of_mut(&mut result, &self.out).unwrap(),
        };
        let outcome = Cpu::new().unwrap().run(&self.op, args);
        let untouched = result.iter().all(|&v| v == 7.0);
        assert_eq!(untouched, outcome.is_err(), "{outcome:?}");
        outcome
    }
}

/// The call is refused with an argument error about `arg` whose text contains `says`.
#[track_caller]
fn refused(arg: &str, says: &str, spoil: impl FnOnce(&mut Call)) {
    let mut call = valid();
    spoil(&mut call);
    let error = call.run().unwrap_err();
    assert!(matches!(error, Error::Argument { op: "conv", .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("conv: `{arg}`: ")), "{text}");
    assert!(text.contains(says), "`{text}` does not say `{says}`");
}

#[test]
fn a_valid_call_runs() {
    valid().run().unwrap();
}

#[test]
fn wrong_ranks_are_refused() {
    refused("x", "4 axes [n, c_in, h, w], got [4, 5, 6]", |c| c.x.1 = vec![4, 5, 6]);
    refused("weight", "4 axes [c_out, c_in / groups, kh, kw]", |c| c.weight = vec![6, 2, 9]);
    refused("bias", "wanted shape [6], got [1, 6]", |c| c.bias = vec![1, 6]);
}

#[test]
fn mismatched_sizes_are_refused() {
    refused("weight", "wanted shape [6, 2, 3, 3], got [6, 4, 3, 3]", |c| c.weight = vec![6, 4, 3, 3]);
    refused("bias", "wanted shape [6], got [5]", |c| c.bias = vec![5]);
    refused("sample_bias", "wanted shape [2, 6], got [1, 6]", |c| c.sample_bias = vec![1, 6]);
    refused("residual", "wanted shape [2, 6, 5, 6]", |c| c.residual = vec![2, 6, 6, 5]);
    refused("out", "wanted shape [2, 6, 5, 6], got [2, 6, 3, 4]", |c| c.out = vec![2, 6, 3, 4]);
}

#[test]
fn mixed_dtypes_are_refused() {
    refused("weight", "wanted f16, the dtype of `x`, got f32", |c| c.x.0 = Dtype::F16);
}

#[test]
fn zero_options_are_refused() {
    refused("groups", "a divisor of the 4 input and 6 output channels, got 0", |c| c.op.groups = 0);
    refused("stride", "at least 1 along each axis, got [0, 1]", |c| c.op.stride = [0, 1]);
    refused("stride", "at least 1 along each axis, got [2, 0]", |c| c.op.stride = [2, 0]);
    refused("dilation", "at least 1 along each axis, got [1, 0]", |c| c.op.dilation = [1, 0]);
}

#[test]
fn indivisible_channels_are_refused() {
    refused("groups", "a divisor of the 4 input and 6 output channels, got 3", |c| c.op.groups = 3);
    refused("groups", "a divisor of the 4 input and 7 output channels, got 2", |c| {
        c.weight = vec![7, 2, 3, 3];
    });
}

#[test]
fn windows_that_do_not_fit_are_refused() {
    refused("weight", "a window of 1 to 7 rows", |c| c.weight = vec![6, 2, 8, 3]);
    refused("weight", "3 taps with dilation 4", |c| c.op.dilation = [1, 4]);
    refused("weight", "0 taps with dilation 1", |c| c.weight = vec![6, 2, 3, 0]);
    refused("weight", "dilation 18446744073709551615", |c| c.op.dilation = [usize::MAX, 1]);
    refused("padding", "at most 2147483647", |c| c.op.padding = [1 << 40, 1]);
    refused("padding", "at most 2147483647", |c| c.op.padding = [1, usize::MAX]);
}

/// Rows of an image so long that threads do not keep the memory for what they see of it.
#[test]
fn long_rows() {
    let one = [1.0f32];
    let repeated =
        |shape: &[usize]| View::strided(bytemuck::cast_slice(&one), Dtype::F32, shape, &[0; 4], 0).unwrap();
    let mut out = [0.0f32; 3 * 90];
    let args = ConvArgs {
        x: repeated(&[1, 1 << 16, 5, 90]),
        weight: repeated(&[1, 1 << 16, 3, 1]),
        bias: None,
        sample_bias: None,
        residual: None,
        out: View::of_mut(&mut out, &[1, 1, 3, 90]).unwrap(),
    };
    Cpu::with(2, advect::Isa::detect()).unwrap().run(&Conv::default(), args).unwrap();
    assert_eq!(out, [3.0 * 65536.0; 3 * 90]);
}

/// Weights so many that threads do not keep the memory for them packed.
#[test]
fn many_weights() {
    let one = [1.0f32];
    let repeated =
        |shape: &[usize]| View::strided(bytemuck::cast_slice(&one), Dtype::F32, shape, &[0; 4], 0).unwrap();
    let mut out = [0.0f32; 40];
    let args = ConvArgs {
        x: repeated(&[1, 1 << 16, 3, 3]),
        weight: repeated(&[40, 1 << 16, 3, 3]),
        bias: None,
        sample_bias: None,
        residual: None,
        out: View::of_mut(&mut out, &[1, 40, 1, 1]).unwrap(),
    };
    Cpu::with(2, advect::Isa::detect()).unwrap().run(&Conv::default(), args).unwrap();
    assert_eq!(out, [9.0 * 65536.0; 40]);
}
