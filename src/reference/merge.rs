//! Merging parts of attention, defined.
//!
//! `w[s] = exp(lses[s] - max lses) / sum over i of exp(lses[i] - max lses)`, `out[e] = sum over s of w[s] parts[s, e]`,
//! `lse = ln(sum over s of exp(lses[s]))`, over the parts whose `lses` is above -infinity; 0 and -infinity when there are
//! none.
//!
//! The error bound, as that of attention: a kernel's weights are proportional to `w[s] exp(h[s])` with
//!
//! ```text
//! |h[s]| <= H[s] = 6 u + 7 u (max lses - lses[s]) log2(e)
//! ```
//!
//! where WGSL allows an exponential `3 + 2 |x|` ulp, an ulp being at most `2 u`, and difference, constant and product cost
//! `3 u |x|`. What a difference of f32 is rounded by is part of it. Sums, products and the division add
//! `2 gamma(n + 3) sum w' |parts|`, weights below the smallest normal number may be lost, and the logarithm has the errors
//! that it has in attention.

use super::{Dense, Expected, U, gamma};
use crate::ops::MergeArgs;

/// The result and its error bound, and those of the logarithms of the sums.
pub fn merge(args: &MergeArgs<Dense, ()>) -> [Expected; 2] {
    let [mut merged, mut sums] = [Expected::default(), Expected::default()];
    let (parts, lses) = (args.parts.memory(), args.lses.memory());
    let &[count, batch, heads, queries, d] = args.parts.shape() else { return [merged, sums] };
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..queries {
                let of = |s: usize| lses.at(&[s, b, h, i]);
                let seen: Vec<usize> = (0..count).filter(|&s| of(s) > f64::NEG_INFINITY).collect();
                let max = seen.iter().map(|&s| of(s)).fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = seen.iter().map(|&s| (of(s) - max).exp()).sum();
                // Each part's weight, and how far it may be off, as a factor.
                let weights: Vec<(usize, f64, f64)> = seen
                    .iter()
                    .map(|&s| {
                        let below = (max - of(s)) * std::f64::consts::LOG2_E;
                        (s, (of(s) - max).exp() / total, (6.0 + 7.0 * below) * U)
                    })
                    .collect();
                let raised = |w: f64, h: f64| if w == 0.0 { 0.0 } else { w * h.exp() };
                let floor: f64 = weights.iter().map(|(_, w, h)| w * (-h).exp()).sum();
                let spread: f64 = weights.iter().map(|&(_, w, h)| raised(w, h)).sum();
                for e in 0..d {
                    let value = |s: usize| parts.at(&[s, b, h, i, e]);
                    let exact: f64 = weights.iter().map(|&(s, w, _)| w * value(s)).sum();
                    let mut error = 0.0;
                    for &(s, w, h) in &weights {
                        error += (raised(w, h) - w) * (value(s) - exact).abs() / floor;
                        error += 2.0 * gamma(count + 3) * raised(w, h) / floor * value(s).abs();
                        error += f64::powi(2.0, -125) * value(s).abs();
                    }
                    merged.push((exact, error));
                }
                sums.push(if seen.is_empty() {
                    (f64::NEG_INFINITY, 0.0)
                } else {
                    let value = max + total.ln();
                    let logarithm = f64::powi(2.0, -21)
                        + 6.0 * U * total.ln().abs()
                        + 4.0 * U * (max.abs() + value.abs());
                    (value, spread.ln().max(-floor.ln()) + 2.0 * gamma(count + 3) + logarithm)
                });
            }
        }
    }
    [merged, sums]
}
