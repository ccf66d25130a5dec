//! Normalisation: cross-checked on every device, and bad input tried one by one.

use advect::ops::{Activation, Norm, NormArgs, NormKind};
use advect::{Cpu, Dtype, Error, View};

#[test]
fn cross_check() {
    advect::verify::assert_op::<Norm>(30);
}

const GROUPS: Norm = Norm { kind: NormKind::Group { groups: 4 }, eps: 1e-5, activation: Activation::Silu };

/// Runs `op` on a sound `[2, 8, 3]` call changed by `change`, and gives the argument and the text of the
/// error; the output must be untouched.
fn refused(op: Norm, change: impl Fn(&mut NormArgs<&[u8], &mut [u8]>)) -> (&'static str, String) {
    let x: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let mut out = vec![7.0f32; 64];
    let of = |shape: &[usize]| View::of(&x[..shape.iter().product()], shape).unwrap();
    let mut args = NormArgs {
        x: of(&[2, 8, 3]),
        weight: Some(of(&[8])),
        bias: Some(of(&[8])),
        scale: Some(of(&[2, 8])),
        shift: Some(of(&[2, 8])),
        out: View::of_mut(&mut out[..48], &[2, 8, 3]).unwrap(),
    };
    change(&mut args);
    let error = Cpu::new().unwrap().run(&op, args).expect_err("a bad call");
    assert!(out.iter().all(|&v| v == 7.0), "the output was touched");
    match error {
        Error::Argument { op: "norm", arg, wanted, got } => (arg, format!("wanted {wanted}, got {got}")),
        other => panic!("{other}"),
    }
}

/// A view of zeros that lives as long as the program.
fn zeros(dtype: Dtype, shape: &[usize]) -> View<&'static [u8]> {
    static ZEROS: [f32; 256] = [0.0; 256];
    View::contiguous(bytemuck::cast_slice(&ZEROS), dtype, shape).unwrap()
}

#[test]
fn bad_calls_are_named() {
    assert!(refused(GROUPS, |a| a.x = zeros(Dtype::F32, &[16])).0 == "x");
    assert!(refused(GROUPS, |a| a.x = zeros(Dtype::F32, &[1, 1, 1, 4, 4])).0 == "x");
    assert!(refused(GROUPS, |a| a.x = zeros(Dtype::F32, &[2, 8, 4])).0 == "out");
    assert!(refused(GROUPS, |a| a.x = zeros(Dtype::F16, &[2, 8, 3])).1.contains("f16"));
    assert!(refused(GROUPS, |a| a.weight = Some(zeros(Dtype::F32, &[7]))).0 == "weight");
    assert!(refused(GROUPS, |a| a.bias = Some(zeros(Dtype::F32, &[1, 8]))).0 == "bias");
    assert!(refused(GROUPS, |a| a.bias = Some(zeros(Dtype::Bf16, &[8]))).0 == "bias");
    assert!(refused(GROUPS, |a| a.scale = Some(zeros(Dtype::F32, &[8]))).0 == "scale");
    assert!(refused(GROUPS, |a| a.shift = Some(zeros(Dtype::F32, &[1, 8]))).0 == "shift");
    let layer = Norm { kind: NormKind::Layer, ..GROUPS };
    assert!(refused(layer, |a| a.x = zeros(Dtype::F32, &[1, 2, 8, 3])).0 == "x");
    assert!(refused(layer, |_| ()).0 == "weight");
}

#[test]
fn bad_options_are_named() {
    for groups in [0, 3, 16] {
        let (arg, text) = refused(Norm { kind: NormKind::Group { groups }, ..GROUPS }, |_| ());
        assert!(
            arg == "groups" && text.contains("8 channels") && text.contains(&groups.to_string()),
            "{text}"
        );
    }
    for eps in [-1e-5, f32::NAN, f32::INFINITY] {
        assert_eq!(refused(Norm { eps, ..GROUPS }, |_| ()).0, "eps");
    }
}

#[test]
fn bad_memory_is_named() {
    let past_the_end = |a: &mut NormArgs<&[u8], &mut [u8]>| {
        a.scale = Some(
            View::strided(*a.scale.as_ref().unwrap().memory(), Dtype::F32, &[2, 8], &[8, 1], 1).unwrap(),
        );
    };
    assert_eq!(refused(GROUPS, past_the_end).0, "scale");
    let overflow = |a: &mut NormArgs<&[u8], &mut [u8]>| {
        a.x = View::strided(*a.x.memory(), Dtype::F32, &[2, 8, 3], &[usize::MAX / 2, 3, 1], 0).unwrap();
    };
    assert_eq!(refused(GROUPS, overflow).0, "x");
    let overlapping = |a: &mut NormArgs<&[u8], &mut [u8]>| {
        let memory = std::mem::take(a.out.memory_mut());
        a.out = View::strided(memory, Dtype::F32, &[2, 8, 3], &[0, 3, 1], 0).unwrap();
    };
    assert_eq!(refused(GROUPS, overlapping).0, "out");
}

/// The same sample gives the same bits whatever else is in the batch, on one thread or several.
#[test]
fn results_do_not_depend_on_the_batch() {
    let x: Vec<f32> = (0..5 * 8 * 40).map(|i| ((i * 37) % 101) as f32 * 0.1).collect();
    let run = |threads: usize, first: usize, count: usize| {
        let mut out = vec![0.0f32; count * 320];
        let args = NormArgs {
            x: View::of(&x[first * 320..][..count * 320], &[count, 8, 40]).unwrap(),
            weight: None,
            bias: None,
            scale: None,
            shift: None,
            out: View::of_mut(&mut out, &[count, 8, 40]).unwrap(),
        };
        Cpu::with(threads, advect::Isa::detect()).unwrap().run(&GROUPS, args).unwrap();
        out
    };
    let whole = run(2, 0, 5);
    assert_eq!(whole[320..640], run(1, 1, 1));
    assert_eq!(whole[640..], run(2, 2, 3));
}

/// Rows that are not kept between passes, and more channels than there are tables for.
#[test]
fn long_rows() {
    let layer = Norm { kind: NormKind::Layer, eps: 0.0, activation: Activation::None };
    for (len, stride) in [((1 << 20) + 6, 2), ((1 << 22) + 2, 1)] {
        // A mean of 2, and a deviation of 1.
        let x: Vec<f32> = (0..len * stride).map(|i| if i / stride % 2 == 0 { 3.0 } else { 1.0 }).collect();
        let weight: Vec<f32> = (0..len).map(|c| (c % 5) as f32).collect();
        let mut out = vec![7.0f32; len];
        let shape = [1, len];
        let args = NormArgs {
            x: View::strided(bytemuck::cast_slice(&x), Dtype::F32, &shape, &[len * stride, stride], 0)
                .unwrap(),
            weight: Some(View::of(&weight, &[len]).unwrap()),
            bias: None,
            scale: None,
            shift: None,
            out: View::of_mut(&mut out, &shape).unwrap(),
        };
        Cpu::new().unwrap().run(&layer, args).unwrap();
        let wanted = |c: usize| if c.is_multiple_of(2) { weight[c] } else { -weight[c] };
        assert!((0..len).all(|c| out[c] == wanted(c)), "{len}");
    }
}
