//! The definitions: naive f64 loops that share no code with any other face.
//!
//! Each op's function takes dense operands and gives, per output element, the value and a bound on how
//! far an f32 kernel may be from it. The bound is derived from what was added: a sum of `n` products in
//! f32, in any order, is within `gamma(n) * (sum of magnitudes)` of the exact one (Higham, Accuracy and
//! Stability of Numerical Algorithms, 2002, section 3.1). Rounding to the output's dtype is added by the
//! harness.

use crate::dtype::Dtype;
use crate::ops::Activation;

pub mod attention;
pub mod conv;
pub mod linear_attention;
pub mod matmul;
pub mod merge;
pub mod norm;
pub mod resample;
pub mod step;

/// A row-major array of f64: the values exactly as the kernel's dtype holds them.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// The elements, last axis fastest.
    pub data: Vec<f64>,
}

impl Dense {
    /// The element at `index`, which has one entry per axis.
    pub fn at(&self, index: &[usize]) -> f64 {
        let position = index.iter().zip(&self.shape).fold(0, |p, (&i, &size)| p * size + i);
        self.data[position]
    }
}

/// What one output should hold, row-major over its shape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Expected {
    /// The exact value (in f64).
    pub value: Vec<f64>,
    /// How far an f32 computation may be from it, before the result is rounded to the output's dtype.
    pub error: Vec<f64>,
}

impl Expected {
    /// Adds one element.
    pub fn push(&mut self, (value, error): (f64, f64)) {
        self.value.push(value);
        self.error.push(error);
    }
}

/// The unit roundoff of the arithmetic, which is f32 on every target.
pub const U: f64 = Dtype::F32.unit_roundoff();

/// The relative error of `n` rounded operations in a row: `n u / (1 - n u)`.
pub fn gamma(n: usize) -> f64 {
    let nu = n as f64 * U;
    nu / (1.0 - nu)
}

/// A sum under way: exact value and the sum of the magnitudes that went into it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sum {
    value: f64,
    magnitude: f64,
    terms: usize,
}

impl Sum {
    /// Adds a term that the kernel computes with one rounding (or none).
    pub fn add(&mut self, term: f64) {
        self.value += term;
        self.magnitude += term.abs();
        self.terms += 1;
    }

    /// Value and error bound: one rounding a product and one an addition.
    pub fn finish(self) -> (f64, f64) {
        (self.value, gamma(self.terms + 1) * self.magnitude)
    }
}

/// The activation of a value known to within `error`: the slope of SiLU and GELU stays below 1.13, and
/// evaluating them costs the relative error of an exponential, which WGSL bounds by (3 + 2|z|) ulp, and
/// for GELU the 1.5e-7 of the error function's approximation. Far below 0, where both are as good as 0, nothing of
/// the error is left, and no kernel may make something of it.
pub fn activate(activation: Activation, (z, error): (f64, f64)) -> (f64, f64) {
    match activation {
        Activation::None => (z, error),
        Activation::Silu => {
            let y = z / (1.0 + (-z).exp());
            // Kernels stop at -88 or thereabouts, where SiLU is -88 e^-88, or go to 0.
            let stopped = z.abs().min(88.0) * 1e-38;
            if z + error < -88.0 {
                return (y, stopped);
            }
            (y, 1.13 * error + y.abs() * (8.0 + 4.0 * z.abs().min(88.0)) * U + stopped)
        }
        Activation::Gelu => {
            let gelu = |z: f64| 0.5 * z * (1.0 + erf(z * std::f64::consts::FRAC_1_SQRT_2));
            // Beyond 8 the error function is 1 to 1e-15, which in f32 is 1: below -8 kernels give 0.
            if z + error < -8.0 {
                return (gelu(z), 2.0 * gelu(z + error).abs());
            }
            let evaluated = if z > 8.0 { 8.0 * U } else { 0.5 * 1.5e-7 + 8.0 * U };
            (gelu(z), 1.13 * error + z.abs() * evaluated)
        }
    }
}

/// The error function, to f64 accuracy: its Maclaurin series up to 3, the continued fraction of its
/// complement beyond (Abramowitz and Stegun 7.1.6 and 7.1.14).
fn erf(x: f64) -> f64 {
    if x.abs() < 3.0 {
        let mut term = x;
        let mut sum = x;
        let mut n = 0.0;
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
        }
        return 2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum;
    }
    let a = x.abs();
    let fraction = (1..=60).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (a + f));
    x.signum() * (1.0 - (-a * a).exp() / ((a + fraction) * std::f64::consts::PI.sqrt()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_accurate() {
        // From C's `erf`, which is correct to the last digit or two.
        for (x, want) in [
            (0.0, 0.0),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (2.999, 0.999_977_769_831_4),
            (3.5, 0.999_999_256_901_627_7),
        ] {
            assert!((erf(x) - want).abs() < 2e-12, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + want).abs() < 2e-12);
        }
    }

    #[test]
    fn sums_carry_their_magnitude() {
        let mut s = Sum::default();
        s.add(1.0);
        s.add(-1.0);
        let (value, error) = s.finish();
        assert_eq!(value, 0.0);
        assert!(error > 1e-7 && error < 1e-6);
    }
}
