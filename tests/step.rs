//! The solver step: cross-checked on every device, bad input tried one by one, and the noise judged as
//! noise.

use advect::op::{Op, prepare};
use advect::ops::{Coefficients, Noise, Step, StepArgs};
use advect::target::presets;
use advect::{Cpu, Dtype, Error, Isa, View, philox};

#[test]
fn cross_check() {
    advect::verify::assert_op::<Step>(30);
}

fn values(x: [f32; 8], noise: f32) -> Step {
    Step { coefficients: Coefficients::Values { x, noise }, noise: None }
}

/// Two buffers by value, no noise.
fn pair() -> Step {
    values([1.0, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.0)
}

type HostArgs<'a> = StepArgs<&'a [u8], &'a mut [u8]>;

fn args<'a>(x: &'a [f32], out: &'a mut [f32], shape: &[usize]) -> HostArgs<'a> {
    let x0 = View::of(x, shape).unwrap();
    StepArgs {
        x1: Some(x0.clone()),
        x0,
        x2: None,
        x3: None,
        x4: None,
        x5: None,
        x6: None,
        x7: None,
        table: None,
        out: View::of_mut(out, shape).unwrap(),
    }
}

/// Runs `op` on a sound `[2, 12]` call changed by `change`, and gives the argument and the text of the
/// error; the output must be untouched.
fn refused(op: Step, change: impl Fn(&mut HostArgs)) -> (&'static str, String) {
    let (x, mut out) = (vec![1.0f32; 24], vec![7.0f32; 24]);
    let mut call = args(&x, &mut out, &[2, 12]);
    change(&mut call);
    let error = Cpu::new().unwrap().run(&op, call).expect_err("a bad call");
    assert!(out.iter().all(|&v| v == 7.0), "the output was touched");
    match error {
        Error::Argument { op: "step", arg, wanted, got } => (arg, format!("wanted {wanted}, got {got}")),
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
    assert_eq!(refused(pair(), |a| a.x0 = zeros(Dtype::F32, &[2, 1, 1, 1, 12])).0, "x0");
    assert_eq!(refused(pair(), |a| a.x0 = zeros(Dtype::F32, &[])).0, "x0");
    assert_eq!(refused(pair(), |a| a.x1 = Some(zeros(Dtype::F32, &[2, 11]))).0, "x1");
    assert!(refused(pair(), |a| a.x1 = Some(zeros(Dtype::F16, &[2, 12]))).1.contains("f16"));
    assert_eq!(refused(pair(), |a| a.x7 = Some(zeros(Dtype::F32, &[12, 2]))).0, "x7");
    let transposed = |a: &mut HostArgs| {
        a.x0 = zeros(Dtype::F32, &[12, 2]);
        a.x1 = None;
    };
    assert_eq!(refused(values([1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.0), transposed).0, "out");
    let past_the_end = |a: &mut HostArgs| {
        a.x1 = Some(View::strided(*a.x0.memory(), Dtype::F32, &[2, 12], &[12, 1], 1).unwrap());
    };
    assert_eq!(refused(pair(), past_the_end).0, "x1");
}

#[test]
fn bad_coefficients_are_named() {
    let missing = values([1.0, 0.0, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0], 0.0);
    let (arg, text) = refused(missing, |_| ());
    assert!(arg == "x3" && text.contains("0.25") && text.contains("none"), "{text}");
    for c in [f32::NAN, f32::INFINITY] {
        assert_eq!(refused(values([c, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 0.0), |_| ()).0, "coefficients");
        assert_eq!(refused(values([0.0; 8], c), |_| ()).0, "coefficients");
    }
    assert_eq!(refused(values([0.0; 8], 1.0), |_| ()).0, "noise");
    let table = Step { coefficients: Coefficients::Table, noise: None };
    assert_eq!(refused(table, |_| ()).0, "table");
    assert_eq!(refused(table, |a| a.table = Some(zeros(Dtype::F32, &[2, 8]))).0, "table");
    assert_eq!(refused(table, |a| a.table = Some(zeros(Dtype::F32, &[9]))).0, "table");
    assert_eq!(refused(table, |a| a.table = Some(zeros(Dtype::F16, &[2, 9]))).0, "table");
    assert_eq!(refused(pair(), |a| a.table = Some(zeros(Dtype::F32, &[2, 9]))).0, "table");
}

/// A device that binds too few buffers says how many it can combine.
#[test]
fn too_many_buffers_for_a_device_are_counted() {
    let (x, mut out) = (vec![1.0f32; 24], vec![0.0f32; 24]);
    let mut call = args(&x, &mut out, &[2, 12]);
    let more = Some(call.x0.clone());
    (call.x2, call.x3, call.x4) = (more.clone(), more.clone(), more.clone());
    (call.x5, call.x6, call.x7) = (more.clone(), more.clone(), more);
    let op = values([1.0; 8], 0.0);
    let (params, signature) = prepare(&op, &call).unwrap();
    let caps = presets::wgsl().into_iter().find(|c| c.max_operands == 8).unwrap();
    match op.plan(&params, &signature, &caps) {
        Err(Error::Unsupported { op: "step", what, instead, .. }) => {
            assert!(what.contains("8 buffers") && instead.contains("7 can"), "{what}; {instead}");
        }
        other => panic!("{other:?}"),
    }
}

/// `count` samples of pure noise from stream `stream` on, each `len` long.
fn noise(cpu: &Cpu, stream: u64, count: usize, len: usize) -> Vec<f32> {
    let op = Step {
        coefficients: Coefficients::Values { x: [0.0; 8], noise: 1.0 },
        noise: Some(Noise { seed: 42, stream }),
    };
    let mut out = vec![0.0f32; count * len];
    let shape = [count, len];
    // A buffer that is not read may be one number, seen everywhere.
    let x0 = View::strided(bytemuck::cast_slice(&[f32::NAN][..]), Dtype::F32, &shape, &[0, 0], 0).unwrap();
    let call = StepArgs { x0, x1: None, ..args(&[], &mut out, &[0]) };
    let StepArgs { x1, x2, x3, x4, x5, x6, x7, table, out: view, x0 } = call;
    let view = View::strided(view.into_memory(), Dtype::F32, &shape, &[len, 1], 0).unwrap();
    cpu.run(&op, StepArgs { x0, x1, x2, x3, x4, x5, x6, x7, table, out: view }).unwrap();
    out
}

#[test]
fn noise_does_not_depend_on_the_batch() {
    let cpu = Cpu::with(2, Isa::detect()).unwrap();
    for len in [1, 7, 784, 5000] {
        let whole = noise(&cpu, u64::MAX - 1, 5, len);
        for b in 0..5 {
            let alone = noise(&cpu, (u64::MAX - 1).wrapping_add(b), 1, len);
            assert_eq!(whole[b as usize * len..][..len], alone);
            let mut stream = vec![0.0; len];
            philox::normals(42, (u64::MAX - 1).wrapping_add(b), &mut stream);
            assert_eq!(stream, alone);
        }
    }
    let op = Step { noise: Some(Noise { seed: 1, stream: 7 }), ..pair() };
    assert_eq!(op.starting_at(3).noise, Some(Noise { seed: 1, stream: 10 }));
    assert_eq!(pair().starting_at(3), pair());
}

/// The standard normal distribution function, from the complementary error function's continued fraction
/// beyond 3 and its series below.
fn normal_cdf(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let upper = if x < 2.5 {
        let (mut term, mut sum) = (x, x);
        for n in 1..80 {
            term *= 2.0 * x * x / (2.0 * f64::from(n) + 1.0);
            sum += term;
        }
        0.5 - sum * (-x * x).exp() / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..=60).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (x + f));
        0.5 * (-x * x).exp() / ((x + fraction) * std::f64::consts::PI.sqrt())
    };
    if z > 0.0 { 1.0 - upper } else { upper }
}

/// Moments, the Kolmogorov-Smirnov distance and correlations of a million numbers, each within five
/// standard deviations of what independent normal numbers have (the seed is fixed: this never flickers).
#[test]
fn noise_is_normal_and_independent() {
    let cpu = Cpu::new().unwrap();
    let (samples, len) = (64, 16_384);
    let z = noise(&cpu, 0, samples, len);
    let n = z.len() as f64;
    let mean_of = |f: &dyn Fn(f64) -> f64| z.iter().map(|&z| f(f64::from(z))).sum::<f64>() / n;
    // Variances of z, z^2, z^3, z^4 are 1, 2, 15, 96.
    for (power, want, variance) in [(1, 0.0, 1.0f64), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)] {
        let moment = mean_of(&|z| z.powi(power));
        assert!((moment - want).abs() < 5.0 * (variance / n).sqrt(), "moment {power} is {moment}");
    }
    // Neighbours (which share a radius), the next block, the next sample: plain and squared.
    for lag in [1, 2, 3, 4, len] {
        for square in [false, true] {
            let f = |z: f32| if square { (f64::from(z).powi(2) - 1.0) / 2f64.sqrt() } else { f64::from(z) };
            let pairs = z.iter().zip(&z[lag..]);
            let count = pairs.len() as f64;
            let correlation = pairs.map(|(&a, &b)| f(a) * f(b)).sum::<f64>() / count;
            assert!(correlation.abs() < 5.0 / count.sqrt(), "lag {lag}, squares {square}: {correlation}");
        }
    }
    let mut sorted = z.clone();
    sorted.sort_by(f32::total_cmp);
    let distance = sorted.iter().enumerate().fold(0.0f64, |worst, (i, &z)| {
        let p = normal_cdf(f64::from(z));
        worst.max((p - i as f64 / n).abs()).max((p - (i + 1) as f64 / n).abs())
    });
    // The Kolmogorov distribution passes 1.95 with probability 0.001.
    assert!(distance * n.sqrt() < 1.95, "Kolmogorov-Smirnov distance {distance}");
    let tail = z.iter().filter(|z| z.abs() > 4.0).count() as f64 / (n * 6.334e-5);
    assert!((0.5..1.5).contains(&tail), "{tail} times as many beyond 4 as there should be");
    assert!(z.iter().all(|z| z.abs() < 6.7));
}

/// A NaN in a buffer whose coefficient is 0 stays there, by value and from a table, on every instruction set.
#[test]
fn a_coefficient_of_zero_leaves_its_buffer_unread() {
    let x: Vec<f32> = (0..24).map(|i| if i % 3 == 0 { f32::NAN } else { 1.0 }).collect();
    let table: Vec<f32> = [[0.0; 9], [0.0; 9]].concat();
    for isa in Isa::available() {
        let cpu = Cpu::with(1, isa).unwrap();
        for by_table in [false, true] {
            let mut out = vec![7.0f32; 24];
            let mut call = args(&x, &mut out, &[2, 12]);
            call.table = by_table.then(|| View::of(&table[..], &[2, 9]).unwrap());
            let coefficients = match by_table {
                true => Coefficients::Table,
                false => Coefficients::Values { x: [0.0; 8], noise: 0.0 },
            };
            cpu.run(&Step { coefficients, noise: None }, call).unwrap();
            assert!(out.iter().all(|&v| v == 0.0), "{out:?}");
        }
    }
}

/// Large results are written past the caches, from an unaligned start, to the last element.
#[test]
fn large_results_are_complete() {
    let n = (2 << 20) + 13;
    let x: Vec<f32> = (0..n + 3).map(|i| (i % 1000) as f32).collect();
    let mut out = vec![f32::NAN; n + 3];
    let mut call = args(&x[3..], &mut out[3..], &[n]);
    call.x1 = Some(View::of(&x[..n], &[n]).unwrap());
    Cpu::new().unwrap().run(&pair(), call).unwrap();
    assert!(out[..3].iter().all(|v| v.is_nan()));
    for i in 0..n {
        assert_eq!(out[i + 3], x[i + 3] - 0.5 * x[i], "element {i}");
    }
}
