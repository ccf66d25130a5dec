//! One explicit solver step, defined.
//!
//! `out[b, e] = sum over j of c[b, j] x_j[b, e] + c_noise[b] z(seed, stream + b, e)`, with the noise of
//! Philox4x32-10 (Salmon et al. 2011) and Box and Muller's transform, written here a second time.

use super::{Dense, Expected, Sum, U};
use crate::ops::step::{Coefficients, Noise, Step, StepArgs};
use std::f64::consts::TAU;

/// Ten rounds, each multiplying words 0 and 2 and mixing the halves of the products into words 3 and 1.
fn words(counter: [u32; 4], key: u64) -> [u32; 4] {
    const MASK: u128 = 0xffff_ffff;
    (0..10u64).fold(counter, |[a, b, c, d], round| {
        let bump = |half: u64, step: u64| (half + round * step) as u32;
        let (low, high) = (bump(key & 0xffff_ffff, 0x9e37_79b9), bump(key >> 32, 0xbb67_ae85));
        let left = u128::from(a) * 0xd251_1f53;
        let right = u128::from(c) * 0xcd9e_8d57;
        [
            ((right >> 32) as u32) ^ b ^ low,
            (right & MASK) as u32,
            ((left >> 32) as u32) ^ d ^ high,
            (left & MASK) as u32,
        ]
    })
}

/// Element `e` of a stream.
fn normal(Noise { seed, stream }: Noise, e: usize) -> f64 {
    let w = words([(e / 4) as u32, stream as u32, (stream >> 32) as u32, 0], seed);
    let (first, second) = (w[e % 4 / 2 * 2] | 1, w[e % 4 / 2 * 2 + 1]);
    // An odd 32-bit numerator, cut to 24 significant bits in the upper half.
    let numerator = if first >= 1 << 31 { first - first % 256 } else { first };
    let radius = (-2.0 * (f64::from(numerator) / 2f64.powi(32)).ln()).sqrt();
    let turns = ((second / 64) as f64 + 0.5) / 2f64.powi(26);
    radius * if e.is_multiple_of(2) { (TAU * turns).cos() } else { (TAU * turns).sin() }
}

/// The result of `op` and its error bound. A normal number is within 16 units of roundoff: three for the
/// logarithm, of which the root halves the effect, three for sine or cosine, one for the product, and up
/// to nine for WGSL's root, which is a quotient of an inverse root.
pub fn step(op: &Step, args: &StepArgs<Dense, ()>) -> Expected {
    let optional = [&args.x1, &args.x2, &args.x3, &args.x4, &args.x5, &args.x6, &args.x7];
    let buffers: Vec<Option<&Dense>> = [Some(args.x0.memory())]
        .into_iter()
        .chain(optional.into_iter().map(|o| o.as_ref().map(|v| v.memory())))
        .collect();
    let samples = args.out.shape()[0];
    let len: usize = args.out.shape()[1..].iter().product();
    let mut expected = Expected::default();
    for b in 0..samples {
        let coefficient = |j: usize| match op.coefficients {
            Coefficients::Values { x, noise } => f64::from(*x.get(j).unwrap_or(&noise)),
            Coefficients::Table => args.table.as_ref().map_or(0.0, |t| t.memory().at(&[b, j])),
        };
        for e in 0..len {
            let mut sum = Sum::default();
            for (j, buffer) in buffers.iter().enumerate() {
                let c = coefficient(j);
                if let Some(x) = buffer.filter(|_| c != 0.0) {
                    sum.add(c * x.data[b * len + e]);
                }
            }
            let mut z_error = 0.0;
            if let Some(noise) = op.noise {
                let stream = noise.stream.wrapping_add(b as u64);
                let z = coefficient(8) * normal(Noise { stream, ..noise }, e);
                sum.add(z);
                z_error = 16.0 * U * z.abs();
            }
            let (value, error) = sum.finish();
            expected.push((value, error + z_error));
        }
    }
    expected
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn known_answers() {
        assert_eq!(words([0; 4], 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(words(pi, 0x299f_31d0_a409_3822), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }
}
