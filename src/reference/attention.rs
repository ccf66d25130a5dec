//! Attention, defined.
//!
//! `s[j] = softmax_scale * sum over e of q[e] k[j, e]`, `w[j] = exp(s[j] - max s) / sum over i of exp(s[i] - max s)`,
//! `out[e] = sum over j of w[j] v[j, e]` (Vaswani et al. 2017, arXiv:1706.03762), for each batch entry, head and
//! query, over the keys `j` that it sees; 0 when there are none. With a softcap `s[j]` becomes
//! `softcap * tanh(s[j] / softcap)` first. Then `bias[j]` is added, and `-slope |place - j|`, `place` being the query's
//! among the keys. A sink is one more key with a score of its own and the value 0. `lse = ln(sum over j of exp(s[j]))`.
//! Part `s` of several has the keys from `s * c` on and before `(s + 1) * c`, with `c` the keys of the sequence over the
//! parts, rounded up to a multiple of 64; the sink belongs to part 0.
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
//! In bf16 products of pairs may take numbers below the smallest normal one for 0, those that they multiply, each product
//! and each sum. So a score lacks `|softmax_scale|` times `|q[e] k[j, e]|` where a factor is that small, and `2^-125` for
//! each product that is not 0; a result lacks `w' |v|` where `|v|` is, and `2^-125 / L` for each key whose value is not 0,
//! and each tile. Times a large scale that is any score, but whatever the weights are, none is above 1 and they add up to
//! 1: weights move a result no farther than to the value that is farthest from it, and the logarithm no farther than the
//! largest `H`.
//!
//! The tanh of a softcap does not enlarge the error of a score, as its slope is at most 1. Below a quarter of the softcap it
//! is computed by its series, within 8 u of the result; above as `(1 - e) / (1 + e)`, `e = exp(-2 |s| / softcap)`, at least
//! 0.244. In WGSL the error of `e` and that of its argument are worth 6 u at most, 5 u after the quotient's slope and 20 u
//! of the result; difference, sum, division and the products with softcap cost 9 u more: `30 u |s|` of the capped score.
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

/// The fewest keys that a kernel takes at a time, but for those of a page that has fewer.
const TILE: usize = 16;
/// What the keys of a part are a multiple of.
const PART: usize = 64;

/// The smallest normal number of f32 and of bf16.
const NORMAL: f64 = 1.0 / (1u128 << 126) as f64;

/// The result of `op` and its error bound, and those of the logarithms of its sums.
pub fn attention(op: &Attention, args: &AttentionArgs<Dense, ()>) -> [Expected; 2] {
    let mut expected = [Expected::default(), Expected::default()];
    let [.., batch, heads, tokens, _] = *args.out.shape() else { return expected };
    for split in 0..op.splits as usize {
        for entry in 0..batch {
            for h in 0..heads {
                for token in 0..tokens {
                    let query = Query::of(op, args, [entry, h, token], split);
                    row(op, args, &query, &mut expected);
                }
            }
        }
    }
    expected
}

/// A query: where it lies, whose it is, and the part of the keys that is asked for.
struct Query {
    entry: usize,
    token: usize,
    /// Sequence, head, number in the sequence.
    b: usize,
    h: usize,
    i: usize,
    split: usize,
    /// The queries and keys that the sequence has, and the token of its first key.
    queries: usize,
    keys: usize,
    k_start: usize,
}

impl Query {
    fn of(
        op: &Attention,
        args: &AttentionArgs<Dense, ()>,
        [entry, h, token]: [usize; 3],
        split: usize,
    ) -> Self {
        let number = |of: &View<Dense>, at: &[usize]| of.memory().at(at).max(0.0) as usize;
        let most = |max: Option<u32>| max.map_or(usize::MAX, |max| max as usize);
        // Inside of all tokens, whatever the starts say.
        let packed = |of: &View<Dense>, b: usize, tokens: usize, max: Option<u32>| {
            let (start, end) = (number(of, &[b]).min(tokens), number(of, &[b + 1]).min(tokens));
            (start, end.saturating_sub(start).min(most(max)))
        };
        let (b, first, queries) = match &args.cu_seqlens_q {
            None => (entry, 0, args.q.shape()[2]),
            // Of tokens that belong to no sequence nothing is said: no case has them.
            Some(starts) => (0..starts.shape()[0] - 1)
                .map(|b| (b, packed(starts, b, args.q.shape()[2], op.max_seqlen_q)))
                .find(|(_, (first, count))| (*first..first + count).contains(&token))
                .map_or((0, 0, 0), |(b, (first, count))| (b, first, count)),
        };
        let (k_start, keys) = match (&args.cu_seqlens_k, &args.block_table) {
            (Some(starts), _) => packed(starts, b, args.k.shape()[2], op.max_seqlen_k),
            (None, Some(table)) => (0, table.shape()[1] * args.k.shape()[2]),
            (None, None) => (0, args.k.shape()[2]),
        };
        let shorter = |of: &Option<View<Dense>>, all: usize| {
            of.as_ref().map_or(all, |lengths| number(lengths, &[b]).min(all))
        };
        Self {
            entry,
            token,
            b,
            h,
            i: token - first,
            split,
            queries: shorter(&args.q_lengths, queries),
            keys: shorter(&args.k_lengths, keys),
            k_start,
        }
    }

    /// Batch entry or page, and token, of a key.
    fn key(&self, args: &AttentionArgs<Dense, ()>, j: usize) -> [usize; 2] {
        match &args.block_table {
            Some(table) => {
                let page = args.k.shape()[2];
                let last = args.k.shape()[0].saturating_sub(1) as f64;
                [table.memory().at(&[self.b, j / page]).clamp(0.0, last) as usize, j % page]
            }
            None if args.cu_seqlens_k.is_some() => [0, self.k_start + j],
            None => [self.b, j],
        }
    }

    /// The part of the keys.
    fn part(&self, splits: usize) -> std::ops::Range<usize> {
        if splits == 1 {
            return 0..self.keys;
        }
        let count = self.keys.div_ceil(splits).next_multiple_of(PART);
        (self.split * count).min(self.keys)..((self.split + 1) * count).min(self.keys)
    }
}

/// The head of K and V for a head of Q.
fn h_of_keys(h: usize, heads: usize, kv_heads: usize) -> usize {
    h / (heads / kv_heads.max(1)).max(1)
}

/// One query.
fn row(op: &Attention, args: &AttentionArgs<Dense, ()>, query: &Query, expected: &mut [Expected; 2]) {
    let (q, k, v) = (args.q.memory(), args.k.memory(), args.v.memory());
    let (&[_, heads, _, d], &[_, kv_heads, _, dv]) = (args.q.shape(), args.v.shape()) else {
        unreachable!("four axes each")
    };
    let [expected, expected_lse] = expected;
    let kv = h_of_keys(query.h, heads, kv_heads);
    let &Query { b, h, i, queries: q_length, keys: k_length, .. } = query;
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
    let part = query.part(op.splits as usize);
    let seen: Vec<usize> = if i < q_length { part.filter(|&j| sees(j)).collect() } else { Vec::new() };
    let places: Vec<[usize; 2]> = seen.iter().map(|&j| query.key(args, j)).collect();
    let all = args.block_table.as_ref().map_or(args.k.shape()[2], |t| t.shape()[1] * args.k.shape()[2]);
    let slope = args.slopes.as_ref().map_or(0.0, |slopes| slopes.memory().at(&[b, h]));
    let scale = f64::from(op.softmax_scale);
    let dtype = args.out.dtype();
    let (truncation, weight_u, weight_tiny) = match dtype {
        Dtype::F32 => (1, 0.0, 0.0),
        _ => (2, dtype.unit_roundoff(), 0.5 * dtype.smallest()),
    };
    let flushes = dtype == Dtype::Bf16;
    let tile = args.block_table.as_ref().map_or(TILE, |_| TILE.min(args.k.shape()[2].max(1)));
    // A window need not start where a tile does.
    let tiles = match args.bias.is_some() || args.mask.is_some() {
        // Nor are the keys that are seen neighbours.
        true => all.div_ceil(tile).min(seen.len()) + 1,
        false => seen.len().div_ceil(tile) + usize::from(seen.len() < all),
    };
    let cap = f64::from(op.softcap);

    let (mut scores, mut score_error) = (Vec::new(), Vec::new());
    for (&j, &[entry, token]) in seen.iter().zip(&places) {
        let (mut sum, mut magnitude, mut flushed) = (0.0, 0.0, 0.0);
        for e in 0..d {
            let factors = [q.at(&[query.entry, h, query.token, e]), k.at(&[entry, kv, token, e])];
            let term = if scale == 0.0 { 0.0 } else { scale * (factors[0] * factors[1]) };
            sum += term;
            magnitude += term.abs();
            if flushes && term != 0.0 && term.is_finite() {
                flushed += 2.0 * NORMAL * scale.abs();
                if factors.iter().any(|x| x.abs() < NORMAL) {
                    flushed += term.abs();
                }
            }
        }
        let score = if cap > 0.0 { cap * (sum / cap).tanh() } else { sum };
        let capping = if cap > 0.0 { 30.0 * U * score.abs() } else { 0.0 };
        let added = [bias(j), -slope * (place - j as i64).abs() as f64];
        let total = score + added[0] + added[1];
        // Three roundings of what is added, and that of each sum.
        let changed: f64 = added.iter().map(|x| x.abs()).sum();
        let changing =
            if changed > 0.0 { 4.0 * U * changed + 2.0 * U * (score.abs() + changed) } else { 0.0 };
        scores.push(total);
        score_error.push(gamma(truncation * d + 6) * magnitude + flushed + capping + changing);
    }
    // A sink counts like a key whose value is 0.
    if let Some(sinks) = args.sinks.as_ref().filter(|_| i < q_length && query.split == 0) {
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
    let largest = bounds.iter().copied().fold(0.0, f64::max);
    // The sum of the exponentials, of the scores as they are computed: 1 is that of the largest.
    let least = (total * floor * (-largest).exp()).max(1.0);
    expected_lse.push(if keys == 0 {
        (f64::NEG_INFINITY, 0.0)
    } else {
        let value = max + total.ln();
        let logarithm =
            f64::powi(2.0, -21) + 6.0 * U * total.ln().abs() + 4.0 * U * (max.abs() + value.abs());
        (value, spread.ln().max(-floor.ln()).min(largest) + sums + logarithm)
    });

    for e in 0..dv {
        let value = |j: usize| places.get(j).map_or(0.0, |&[entry, token]| v.at(&[entry, kv, token, e]));
        let exact: f64 = (0..keys).map(|j| weights[j] * value(j)).sum();
        let (mut error, mut moved, mut farthest, mut flushed) = (0.0, 0.0f64, 0.0f64, 0usize);
        for j in 0..keys {
            let (w, raised, v) = (weights[j], raised[j], value(j));
            // Where the quotient says nothing (it is infinite, or 0 / 0), a weight is still no more than 1.
            let share = (raised / floor).min(1.0);
            moved += (raised - w) * (v - exact).abs() / floor;
            farthest = farthest.max((v - exact).abs());
            error += 2.0 * gamma(truncation * (keys + tiles) + 6) * share * v.abs();
            error += (weight_u * w + w.min(weight_tiny / total)) * v.abs();
            error += f64::powi(2.0, -125) * v.abs();
            if flushes && v != 0.0 {
                error += if v.abs() < NORMAL { share * v.abs() } else { 0.0 };
                flushed += 1;
            }
        }
        error += moved.min(farthest);
        if flushed > 0 {
            error += (flushed + tiles) as f64 * 2.0 * NORMAL / least;
        }
        expected.push((exact, error));
    }
}
