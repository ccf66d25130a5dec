//! Attention, defined.
//!
//! `s[j] = softmax_scale * sum over e of q[e] k[j, e]`, `w[j] = exp(s[j] - max s) / sum over i of exp(s[i] - max s)`,
//! `out[e] = sum over j of w[j] v[j, e]` (Vaswani et al. 2017, arXiv:1706.03762), for each batch entry, head and
//! query, over the keys `j` that it sees; 0 when there are none. With a softcap `s[j]` becomes
//! `softcap * tanh(s[j] / softcap)` first.
//!
//! The error bound. A kernel computes weights that are proportional to `w[j] exp(h[j])`, where `h[j]`
//! collects, for key `j`, the errors of its score and of every exponential that it was multiplied with.
//! A factor common to all keys (the maximum that was subtracted, whatever it was) cancels. So
//!
//! ```text
//! |h[j]| <= H[j] = gamma(d + 6) |softmax_scale| sum over e of |q[e] k[j, e]|      the score, and its scaling
//!                + (3 (T + 1) + 3 |s[j] - max s|) ulp                             exponentials
//!                + (T + 2 + 2 |s[j] - max s|) u                                   differences, products
//! ```
//!
//! WGSL allows an exponential of base 2 the error of `3 + 2 |x|` ulp with `x = s log2(e)`, an ulp being at
//! most 2 u, and no target is worse. The running maximum rises towards the last one in at most `T`
//! steps, one a tile of keys; the rises add up to no more than `max s - s[j]`. With `o` the exact result,
//! `sum over j of w[j] (v[j] - o) = 0`, hence
//!
//! ```text
//! |sum w exp(h) v / sum w exp(h)  -  o|  <=  sum w (exp(H) - 1) |v - o|  /  sum w exp(-H)
//! ```
//!
//! To that come the sums in f32, of `nk` products and `T` rescalings above and of `nk` terms below the
//! fraction line, and the division: `2 gamma(nk + T + 6) sum w' |v|` with `w' = w exp(H) / sum w exp(-H)`.
//! In 16-bit dtypes a kernel may round the exponentials, which are at most 1, to the dtype before they
//! meet V, as tensor cores require: `sum (u16 w + min(tiny / L, w)) |v|`, with `tiny` the error of the
//! smallest numbers and `L >= 1` the sum of the exponentials; and tensor cores may truncate where
//! others round, which doubles u. Exponentials below the smallest normal number may be lost, or held
//! there: `2^-125 |v|` a key.
//!
//! The tanh of a softcap does not enlarge the error of a score, as its slope is at most 1. It is computed as
//! `(1 - e) / (1 + e)`, `e = exp(-2 |s| / softcap)`: in WGSL the error of `e` is worth at most 5 u of the result and
//! that of its argument 2 u, difference, sum, division and the products with softcap 9 u: `20 u softcap`.

use super::{Dense, Expected, U, gamma};
use crate::dtype::Dtype;
use crate::ops::{Attention, AttentionArgs};

/// The fewest keys that a kernel takes at a time.
const TILE: usize = 16;

/// The result of `op` and its error bound.
pub fn attention(op: &Attention, args: &AttentionArgs<Dense, ()>) -> Expected {
    let mut expected = Expected::default();
    let &[batch, heads, queries, _] = args.out.shape() else { return expected };
    for b in 0..batch {
        for h in 0..heads {
            for i in 0..queries {
                row(op, args, [b, h, i], &mut expected);
            }
        }
    }
    expected
}

/// One query.
fn row(op: &Attention, args: &AttentionArgs<Dense, ()>, [b, h, i]: [usize; 3], expected: &mut Expected) {
    let (q, k, v) = (args.q.memory(), args.k.memory(), args.v.memory());
    let (&[_, heads, queries, _], &[_, kv_heads, all, d]) = (args.q.shape(), args.k.shape()) else {
        unreachable!("four axes each")
    };
    let kv = h / (heads / kv_heads.max(1)).max(1);
    // Where the query is among the keys, and what it sees.
    let place = i as i64 + all as i64 - queries as i64;
    let sees = |j: usize| {
        let ahead = j as i64 - place;
        op.window.left.is_none_or(|left| -ahead <= i64::from(left))
            && op.window.right.is_none_or(|right| ahead <= i64::from(right))
    };
    let seen: Vec<usize> = (0..all).filter(|&j| sees(j)).collect();
    let keys = seen.len();
    let scale = f64::from(op.softmax_scale);
    let dtype = args.out.dtype();
    let (truncation, weight_u, weight_tiny) = match dtype {
        Dtype::F32 => (1, 0.0, 0.0),
        Dtype::F16 | Dtype::Bf16 => (2, dtype.unit_roundoff(), 0.5 * dtype.smallest()),
    };
    // A window need not start where a tile does.
    let tiles = keys.div_ceil(TILE) + usize::from(keys < all);
    let cap = f64::from(op.softcap);

    let mut scores = Vec::with_capacity(keys);
    let mut score_error = Vec::with_capacity(keys);
    for &j in &seen {
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for e in 0..d {
            let term = scale * q.at(&[b, h, i, e]) * k.at(&[b, kv, j, e]);
            sum += term;
            magnitude += term.abs();
        }
        scores.push(if cap > 0.0 { cap * (sum / cap).tanh() } else { sum });
        score_error.push(gamma(truncation * d + 6) * magnitude + 20.0 * U * cap);
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
    let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp() / total).collect();
    let bounds: Vec<f64> = (0..keys)
        .map(|j| {
            let below = max - scores[j];
            let steps = tiles as f64;
            score_error[j] + (3.0 * (steps + 1.0) + 3.0 * below) * 2.0 * U + (steps + 2.0 + 2.0 * below) * U
        })
        .collect();
    // The bound on every normalized weight, the perturbed sum below the fraction line.
    let floor: f64 = weights.iter().zip(&bounds).map(|(w, h)| w * (-h).exp()).sum();

    for e in 0..d {
        let value = |j: usize| v.at(&[b, kv, seen[j], e]);
        let exact: f64 = (0..keys).map(|j| weights[j] * value(j)).sum();
        let mut error = 0.0;
        for j in 0..keys {
            let (w, h, v) = (weights[j], bounds[j], value(j));
            error += w * h.exp_m1() * (v - exact).abs() / floor;
            error += 2.0 * gamma(truncation * (keys + tiles) + 6) * w * h.exp() / floor * v.abs();
            error += (weight_u * w + w.min(weight_tiny / total)) * v.abs();
            error += f64::powi(2.0, -125) * v.abs();
        }
        expected.push((exact, error));
    }
}
