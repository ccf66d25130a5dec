//! Attention, defined.
//!
//! `s[j] = softmax_scale * sum over e of q[e] k[j, e]`, `w[j] = exp(s[j] - max s) / sum over i of exp(s[i] - max s)`,
//! `out[e] = sum over j of w[j] v[j, e]` (Vaswani et al. 2017, arXiv:1706.03762), for each batch entry, head and
//! query, over the keys `j` that it sees; 0 when there are none. With a softcap `s[j]` becomes
//! `softcap * tanh(s[j] / softcap)` first. Then `bias[j]` is added, and `-slope |place - j|`, `place` being the query's
//! among the keys. A sink is one more key with a score of its own and the value 0. `lse = ln(sum over j of exp(s[j]))`.
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
//! What is added to a score takes a constant, a product and a sum: `4 u` of it and `u` of what comes out.
//!
//! The logarithm of the sum has the weighted error of the scores, `ln(sum w exp(H))`, the relative error of the sum, that
//! of a logarithm, which WGSL allows 3 ulp and between 0.5 and 2 an absolute error of 2^-21, and the roundings of
//! `(m + log2(l)) ln 2`.

use super::{Dense, Expected, U, gamma};
use crate::dtype::Dtype;
use crate::ops::{Attention, AttentionArgs};
use crate::view::View;

/// A bias that is no more than this hides its key.
const HIDING_BIAS: f32 = -1e38;

/// The fewest keys that a kernel takes at a time.
const TILE: usize = 16;

/// The result of `op` and its error bound, and those of the logarithms of its sums.
pub fn attention(op: &Attention, args: &AttentionArgs<Dense, ()>) -> [Expected; 2] {
    let mut expected = [Expected::default(), Expected::default()];
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
fn row(op: &Attention, args: &AttentionArgs<Dense, ()>, [b, h, i]: [usize; 3], expected: &mut [Expected; 2]) {
    let (q, k, v) = (args.q.memory(), args.k.memory(), args.v.memory());
    let (&[_, heads, queries, d], &[_, kv_heads, all, dv]) = (args.q.shape(), args.v.shape()) else {
        unreachable!("four axes each")
    };
    let [expected, expected_lse] = expected;
    let kv = h / (heads / kv_heads.max(1)).max(1);
    let length = |of: &Option<View<Dense>>, all: usize| {
        of.as_ref().map_or(all, |lengths| (lengths.memory().at(&[b]).max(0.0) as usize).min(all))
    };
    let (q_length, k_length) = (length(&args.q_lengths, queries), length(&args.k_lengths, all));
    // Where the query is among the keys, and what it sees.
    let place = i as i64 + k_length as i64 - q_length as i64;
    let bias = |j: usize| args.bias.as_ref().map_or(0.0, |bias| bias.memory().at(&[b, h, i, j]));
    let sees = |j: usize| {
        let ahead = j as i64 - place;
        op.window.left.is_none_or(|left| -ahead <= i64::from(left))
            && op.window.right.is_none_or(|right| ahead <= i64::from(right))
            && args.mask.as_ref().is_none_or(|mask| mask.memory().at(&[b, h, i, j]) != 0.0)
            && bias(j) > f64::from(HIDING_BIAS)
    };
    let seen: Vec<usize> =
        if i < q_length { (0..k_length).filter(|&j| sees(j)).collect() } else { Vec::new() };
    let slope = args.slopes.as_ref().map_or(0.0, |slopes| slopes.memory().at(&[b, h]));
    let scale = f64::from(op.softmax_scale);
    let dtype = args.out.dtype();
    let (truncation, weight_u, weight_tiny) = match dtype {
        Dtype::F32 => (1, 0.0, 0.0),
        _ => (2, dtype.unit_roundoff(), 0.5 * dtype.smallest()),
    };
    // A window need not start where a tile does.
    let tiles = match args.bias.is_some() || args.mask.is_some() {
        // Nor are the keys that are seen neighbours.
        true => all.div_ceil(TILE).min(seen.len()) + 1,
        false => seen.len().div_ceil(TILE) + usize::from(seen.len() < all),
    };
    let cap = f64::from(op.softcap);

    let (mut scores, mut score_error) = (Vec::new(), Vec::new());
    for &j in &seen {
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for e in 0..d {
            let term = scale * q.at(&[b, h, i, e]) * k.at(&[b, kv, j, e]);
            sum += term;
            magnitude += term.abs();
        }
        let score = if cap > 0.0 { cap * (sum / cap).tanh() } else { sum };
        let added = [bias(j), -slope * (place - j as i64).abs() as f64];
        let total = score + added[0] + added[1];
        // Three roundings of what is added, and that of each sum.
        let changed: f64 = added.iter().map(|x| x.abs()).sum();
        let changing =
            if changed > 0.0 { 4.0 * U * changed + 2.0 * U * (score.abs() + changed) } else { 0.0 };
        scores.push(total);
        score_error.push(gamma(truncation * d + 6) * magnitude + 20.0 * U * cap + changing);
    }
    // A sink counts like a key whose value is 0.
    if let Some(sinks) = args.sinks.as_ref().filter(|_| i < q_length) {
        let sink = sinks.memory().at(&[h]);
        if sink > f64::from(HIDING_BIAS) {
            scores.push(sink);
            score_error.push(4.0 * U * sink.abs());
        }
    }
    let keys = scores.len();
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

    // And above it: w exp(H), of scores far below the largest too.
    let raised: Vec<f64> = (0..keys).map(|j| (scores[j] - max + bounds[j]).exp() / total).collect();
    let spread: f64 = raised.iter().sum();
    let sums = 2.0 * gamma(keys + tiles + 6);
    expected_lse.push(if keys == 0 {
        (f64::NEG_INFINITY, 0.0)
    } else {
        let value = max + total.ln();
        let logarithm =
            f64::powi(2.0, -21) + 6.0 * U * total.ln().abs() + 4.0 * U * (max.abs() + value.abs());
        (value, spread.ln().max(-floor.ln()) + sums + logarithm)
    });

    for e in 0..dv {
        let value = |j: usize| seen.get(j).map_or(0.0, |&j| v.at(&[b, kv, j, e]));
        let exact: f64 = (0..keys).map(|j| weights[j] * value(j)).sum();
        let mut error = 0.0;
        for j in 0..keys {
            let (w, raised, v) = (weights[j], raised[j], value(j));
            error += (raised - w) * (v - exact).abs() / floor;
            error += 2.0 * gamma(truncation * (keys + tiles) + 6) * raised / floor * v.abs();
            error += (weight_u * w + w.min(weight_tiny / total)) * v.abs();
            error += f64::powi(2.0, -125) * v.abs();
        }
        expected.push((exact, error));
    }
}
