//! Matrix products, defined.
//!
//! `out[b, i, j] = activation(sum over k of a[b, i, k] * b[b, k, j] + bias[j]) + residual[b, i, j]`; an
//! input without a batch, or with a batch of 1, is the same for every sample.

use super::{Dense, Expected, Sum, U, activate};
use crate::ops::{Matmul, MatmulArgs};

/// The result of `op` and its error bound.
pub fn matmul(op: &Matmul, args: &MatmulArgs<Dense, ()>) -> Expected {
    let (a, b) = (args.a.memory(), args.b.memory());
    let mut expected = Expected::default();
    let (batch, m, n) = match *args.out.shape() {
        [m, n] => (1, m, n),
        [batch, m, n] => (batch, m, n),
        _ => return expected,
    };
    let terms = a.shape.last().copied().unwrap_or(0);
    for s in 0..batch {
        for i in 0..m {
            for j in 0..n {
                let mut sum = Sum::default();
                for k in 0..terms {
                    sum.add(of_sample(a, s, i, k) * of_sample(b, s, k, j));
                }
                if let Some(bias) = &args.bias {
                    sum.add(bias.memory().at(&[j]));
                }
                let (mut value, mut error) = activate(op.activation, sum.finish());
                if let Some(residual) = &args.residual {
                    let residual = of_sample(residual.memory(), s, i, j);
                    error += U * (value.abs() + error + residual.abs());
                    value += residual;
                }
                expected.push((value, error));
            }
        }
    }
    expected
}

/// Element (i, j) of sample `s`.
fn of_sample(matrix: &Dense, s: usize, i: usize, j: usize) -> f64 {
    match matrix.shape.len() {
        2 => matrix.at(&[i, j]),
        _ if matrix.shape[0] == 1 => matrix.at(&[0, i, j]),
        _ => matrix.at(&[s, i, j]),
    }
}
