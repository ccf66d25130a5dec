//! Normalisation, defined.
//!
//! With mean and biased variance over a row (a group's channels and all positions of one sample, or the
//! last axis):
//!
//! `out = activation((((x - mean) / sqrt(var + eps)) * weight + bias) * (1 + scale) + shift)`, and for
//! RMS `x / sqrt(mean of x^2 + eps)` in the place of the quotient.

use super::{Dense, Expected, U, activate, gamma};
use crate::ops::{Norm, NormArgs, NormKind};

/// The deviations of a row from its mean, with what a kernel may be off.
struct Row {
    mean: f64,
    mean_error: f64,
    /// `1 / sqrt(var + eps)`.
    inverse: f64,
    inverse_error: f64,
}

/// Mean and variance in two passes, the second correcting the first (Chan, Golub and LeVeque 1983): the
/// mean is then off by a sum of deviations instead of a sum of values, and by its own rounding.
fn statistics(row: &[f64], eps: f64, centre: bool) -> Row {
    let n = row.len() as f64;
    let average = |f: &dyn Fn(f64) -> f64| row.iter().map(|&x| f(x)).sum::<f64>() / n;
    let (mean, first) = match centre {
        true => (average(&|x| x), gamma(row.len() + 2) * average(&f64::abs)),
        false => (0.0, 0.0),
    };
    let deviation = average(&|x| (x - mean).abs());
    let mean_error = match centre {
        true => gamma(row.len() + 4) * (deviation + first) + 2.0 * U * (mean.abs() + first),
        false => 0.0,
    };
    let variance = average(&|x| (x - mean) * (x - mean));
    let variance_error = 3.0 * gamma(row.len() + 6) * average(&|x| ((x - mean).abs() + first).powi(2));
    let inverse = 1.0 / (variance + eps).sqrt();
    // No computed variance is below 0.
    let least = (variance - variance_error).max(0.0) + eps;
    let inverse_error = 1.0 / least.sqrt() - inverse + 8.0 * U * inverse;
    Row { mean, mean_error, inverse, inverse_error }
}

/// The result of `op` and its error bound.
pub fn norm(op: &Norm, args: &NormArgs<Dense, ()>) -> Expected {
    let x = args.x.memory();
    let shape = args.out.shape();
    let eps = f64::from(op.eps);
    let samples = shape[0];
    let sample: usize = shape[1..].iter().product();
    let inner: usize = shape[2..].iter().product();
    let channels = match op.kind {
        NormKind::Group { .. } => shape[1],
        _ => *shape.last().expect("two axes at least"),
    };
    // Position within a sample, to row and channel.
    let place = |e: usize| match op.kind {
        NormKind::Group { groups } => (e / inner / (channels / groups), e / inner),
        _ => (e / channels, e % channels),
    };
    let mut expected = Expected::default();
    for n in 0..samples {
        let values = &x.data[n * sample..][..sample];
        let count = (0..sample).map(|e| place(e).0 + 1).max().unwrap_or(0);
        let mut members = vec![Vec::new(); count];
        for (e, &v) in values.iter().enumerate() {
            members[place(e).0].push(v);
        }
        let rows: Vec<Row> = members.iter().map(|m| statistics(m, eps, op.kind != NormKind::Rms)).collect();
        for (e, &v) in values.iter().enumerate() {
            let (r, c) = place(e);
            let Row { mean, mean_error, inverse, inverse_error } = rows[r];
            let per_channel =
                |o: &Option<crate::View<Dense>>, or: f64| o.as_ref().map_or(or, |o| o.memory().data[c]);
            let per_sample = |o: &Option<crate::View<Dense>>| {
                o.as_ref().map_or(0.0, |o| o.memory().data[n * channels + c])
            };
            let (weight, bias) = (per_channel(&args.weight, 1.0), per_channel(&args.bias, 0.0));
            let (scale, shift) = (per_sample(&args.scale), per_sample(&args.shift));
            let d = v - mean;
            let y = d * inverse;
            let d_error = mean_error + U * d.abs();
            let y_error = d_error * (inverse + inverse_error) + d.abs() * inverse_error + U * y.abs();
            let z = (y * weight + bias) * (1.0 + scale) + shift;
            let magnitude = (y.abs() * weight.abs() + bias.abs()) * (1.0 + scale.abs()) + shift.abs();
            let z_error = y_error * (weight * (1.0 + scale)).abs() + gamma(6) * magnitude;
            expected.push(activate(op.activation, (z, z_error)));
        }
    }
    expected
}
