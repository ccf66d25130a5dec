//! Linear attention, defined.
//!
//! Of each batch entry and head, with the feature map `f` on every element of `q` and `k` (`x`, `max(x, 0)` or
//! `elu(x) + 1`), token by token, `S` a matrix of `d` channels by `dv` columns (Katharopoulos et al. 2020,
//! arXiv:2006.16236):
//!
//! ```text
//! D[c, j] = exp(log_decay[t, c]) S[c, j]
//! u[j]    = v[t, j]                                        or  beta[t] (v[t, j] - sum over c of f(k[t, c]) D[c, j])
//! S[c, j] = D[c, j] + f(k[t, c]) u[j]
//! out[t, j] = scale * sum over c of f(q[t, c]) S[c, j]     causal: here; otherwise after the last key
//! ```
//!
//! With a normalizer there is one more column, whose value is 1, and `out` is divided by what a query reads of it, plus
//! `eps`. `beta` makes it the delta rule (Yang et al. 2024, arXiv:2406.06484).
//!
//! The error bound. A kernel may compute the state as it is defined, or a chunk of tokens at a time, where what a token adds
//! meets products of decays and of keys that are computed ahead. Either way an element of the state is a sum of terms, each
//! `decays * k u`, and a term that lives through a token meets no more than the decay, one product and one addition. With
//! `M` the sum of the magnitudes of the terms, `e` the error of a decay and `E` that of the state,
//!
//! ```text
//! M' = (a + e) M + (|k| + e_k) |u|         E' = a E + (e + 4 u a) M  +  (e_k + 4 u (|k| + e_k)) |u|
//! ```
//!
//! and a query reads it with an error of `sum over c of (|q| + e_q) E + e_q M + gamma(d + 72) (|q| + e_q) M`: 72 for the
//! additions and products inside of a chunk, which has 32 tokens at most. WGSL allows an exponential `3 + 2 |x|` ulp, an ulp
//! being at most `2 u`.
//!
//! By the delta rule, `u` depends on the state, and bounds element by element would grow by `1 + beta |k|^2` a token, where
//! errors shrink. So there, of each column, the Euclidean norm is bounded. What a rounding does to the state is changed by
//! later tokens as the state itself, `(I - beta k k^T) diag(a)`, whose norm is `max(1, |1 - beta |k|^2|) max a`. With `l` the
//! norms of what a token's decays add to the error of `D` (as above), `h` the error of `u` by its own roundings, and `r` that
//! of `k u`,
//!
//! ```text
//! |E'| <= max(1, |1 - beta |k|^2|) (max a |E| + l) + |k| h + r
//! h = beta (sum over c of e_k M + gamma(d + 72) (|k| + e_k) M  +  4 u |v|) + 4 u |u|
//! ```
//!
//! The magnitudes are those of `u` as it is computed: `|u|` and its error. Nothing is assumed of `beta` and `k`; where they
//! let the state grow, so does the bound.

use super::{Dense, Expected, U, gamma};
use crate::ops::linear_attention::FeatureMap;
use crate::ops::{LinearAttention, LinearAttentionArgs};

/// What is lost where a number below the smallest normal one counts as 0, or is held there.
const TINY: f64 = 2.0 / (1u128 << 126) as f64;
/// Products and additions of a term inside of a chunk: two a token of 32, and eight.
const CHUNK: usize = 72;

/// A number and how far a kernel's may be off.
#[derive(Debug, Clone, Copy)]
struct Known {
    value: f64,
    error: f64,
}

impl Known {
    /// The most that a kernel's magnitude may be.
    fn most(self) -> f64 {
        self.value.abs() + self.error
    }
}

/// An exponential.
fn exp(x: f64) -> Known {
    let value = x.exp();
    Known { value, error: value * (6.0 + 4.0 * x.abs()) * U + TINY }
}

/// An element of a query or a key.
fn feature(map: FeatureMap, x: f64) -> Known {
    match map {
        FeatureMap::Identity => Known { value: x, error: 0.0 },
        FeatureMap::Relu => Known { value: x.max(0.0), error: 0.0 },
        FeatureMap::EluPlusOne if x > 0.0 => Known { value: x + 1.0, error: U * (x + 1.0) },
        FeatureMap::EluPlusOne => exp(x),
    }
}

fn norm(of: impl Iterator<Item = f64>) -> f64 {
    of.map(|x| x * x).sum::<f64>().sqrt()
}

/// A token: key and decays, channel by channel, and beta.
struct Token {
    k: Vec<Known>,
    a: Vec<Known>,
    beta: Option<f64>,
}

/// One column of the state.
#[derive(Debug, Clone)]
struct Column {
    value: Vec<f64>,
    /// Of each element, the magnitudes of what was added to it.
    magnitude: Vec<f64>,
    /// Of each element, how far it may be off. Not with a delta rule.
    error: Vec<f64>,
    /// How far the column may be off, with a delta rule: a norm.
    distance: f64,
}

impl Column {
    /// After one more token, with the value `v` in this column.
    fn push(&mut self, token: &Token, v: f64) {
        let decayed: f64 = token.a.iter().map(|a| a.most()).fold(0.0, f64::max);
        let mut by_decay = vec![0.0; token.k.len()];
        for (c, a) in token.a.iter().enumerate() {
            by_decay[c] = (a.error + 4.0 * U * a.value) * self.magnitude[c] + TINY;
            self.value[c] *= a.value;
            self.magnitude[c] *= a.most();
            self.error[c] = a.value * self.error[c] + by_decay[c];
        }
        let u = match token.beta {
            None => Known { value: v, error: 0.0 },
            Some(beta) => self.write(token, beta, v, decayed, &by_decay),
        };
        for (c, k) in token.k.iter().enumerate() {
            self.value[c] += k.value * u.value;
            self.magnitude[c] += k.most() * u.most();
            self.error[c] += (k.error + 4.0 * U * k.most()) * u.most() + TINY;
        }
    }

    /// What the delta rule writes, and what becomes of the distance.
    fn write(&mut self, token: &Token, beta: f64, v: f64, decayed: f64, by_decay: &[f64]) -> Known {
        let read: f64 = token.k.iter().zip(&self.value).map(|(k, d)| k.value * d).sum();
        let value = beta * (v - read);
        let sums = gamma(token.k.len() + CHUNK);
        let reading: f64 =
            token.k.iter().zip(&self.magnitude).map(|(k, m)| (k.error + sums * k.most()) * m + TINY).sum();
        let own = beta.abs() * (reading + 4.0 * U * v.abs()) + 4.0 * U * value.abs() + TINY;
        let length = norm(token.k.iter().map(|k| k.most()));
        let exact: f64 = token.k.iter().map(|k| k.value * k.value).sum();
        let before = decayed * self.distance + norm(by_decay.iter().copied());
        let error = beta.abs() * length * before + own;
        let most = value.abs() + error;
        let product = norm(token.k.iter().map(|k| (k.error + 4.0 * U * k.most()) * most + TINY));
        self.distance = (1.0 - beta * exact).abs().max(1.0) * before + length * own + product;
        Known { value, error }
    }

    /// What a query reads.
    fn read(&self, q: &[Known], delta: bool) -> Known {
        let sums = gamma(q.len() + CHUNK);
        let mut read = Known { value: 0.0, error: 0.0 };
        for (c, q) in q.iter().enumerate() {
            read.value += q.value * self.value[c];
            read.error += (q.error + sums * q.most()) * self.magnitude[c] + TINY;
            read.error += if delta { 0.0 } else { q.most() * self.error[c] };
        }
        read.error += if delta { norm(q.iter().map(|q| q.most())) * self.distance } else { 0.0 };
        read
    }
}

/// The result of `op` and its error bound, and those of the last state.
pub fn linear_attention(op: &LinearAttention, args: &LinearAttentionArgs<Dense, ()>) -> [Expected; 2] {
    let &[b, h, n, dv] = args.out.shape() else { return Default::default() };
    let states = args.k.shape()[1].max(args.v.shape()[1]);
    let columns = dv + usize::from(op.normalize.is_some());
    let d = args.q.shape()[3];
    let zeros = |count: usize| Expected { value: vec![0.0; count], error: vec![0.0; count] };
    let [mut out, mut last] = [zeros(b * h * n * dv), zeros(b * states * d * columns)];
    for entry in 0..b {
        for head in 0..h {
            let head = Head::of(op, args, entry, head);
            let mut read = vec![Vec::new(); columns];
            for (j, read) in read.iter_mut().enumerate() {
                let column = head.column(j, read);
                for c in 0..d {
                    let at = ((entry * states + head.state) * d + c) * columns + j;
                    last.value[at] = column.value[c];
                    last.error[at] = if head.delta { column.distance } else { column.error[c] };
                }
            }
            for t in 0..n {
                for (j, of_column) in read[..dv].iter().enumerate() {
                    let at = ((entry * h + head.head) * n + t) * dv + j;
                    (out.value[at], out.error[at]) = match op.normalize {
                        None => scaled(op.scale, of_column[t]),
                        Some(eps) => scaled(op.scale, divided(of_column[t], read[dv][t], eps)),
                    };
                }
            }
        }
    }
    [out, last]
}

/// Times the scale.
fn scaled(scale: f32, x: Known) -> (f64, f64) {
    let scale = f64::from(scale);
    let value = scale * x.value;
    (value, scale.abs() * x.error + 4.0 * U * (value.abs() + scale.abs() * x.error) + TINY)
}

/// A quotient, of which WGSL allows 2.5 ulp to be lost.
fn divided(x: Known, by: Known, eps: f32) -> Known {
    let by = Known { value: by.value + f64::from(eps), error: by.error + U * (by.most() + f64::from(eps)) };
    let value = x.value / by.value;
    let error = (x.error + value.abs() * by.error) / (by.value.abs() - by.error).max(0.0);
    Known { value, error: error + 8.0 * U * (value.abs() + error) + TINY }
}

/// One head: its tokens.
struct Head<'a> {
    op: &'a LinearAttention,
    args: &'a LinearAttentionArgs<Dense, ()>,
    entry: usize,
    head: usize,
    state: usize,
    delta: bool,
    tokens: Vec<Token>,
    queries: Vec<Vec<Known>>,
}

impl<'a> Head<'a> {
    fn of(
        op: &'a LinearAttention,
        args: &'a LinearAttentionArgs<Dense, ()>,
        entry: usize,
        head: usize,
    ) -> Self {
        let heads = args.out.shape()[1];
        let served = |by: usize| head / (heads / by);
        let states = args.k.shape()[1].max(args.v.shape()[1]);
        let (state, d) = (served(states), args.k.shape()[3]);
        let mapped = |x: f64| feature(op.feature_map, x);
        let token = |t: usize| Token {
            k: (0..d)
                .map(|c| mapped(args.k.memory().at(&[entry, served(args.k.shape()[1]), t, c])))
                .collect(),
            a: (0..d)
                .map(|c| match &args.log_decay {
                    None => Known { value: 1.0, error: 0.0 },
                    Some(log) if log.rank() == 3 => exp(log.memory().at(&[entry, state, t])),
                    Some(log) => exp(log.memory().at(&[entry, state, t, c])),
                })
                .collect(),
            beta: args.beta.as_ref().map(|beta| beta.memory().at(&[entry, state, t])),
        };
        let query = |t: usize| {
            (0..d).map(|c| mapped(args.q.memory().at(&[entry, served(args.q.shape()[1]), t, c]))).collect()
        };
        let (tokens, queries) = (args.k.shape()[2], args.q.shape()[2]);
        Self {
            op,
            args,
            entry,
            head,
            state,
            delta: args.beta.is_some(),
            tokens: (0..tokens).map(token).collect(),
            queries: (0..queries).map(query).collect(),
        }
    }

    /// Column `j` after all tokens, and what each query reads of it.
    fn column(&self, j: usize, read: &mut Vec<Known>) -> Column {
        let &[_, v_heads, _, dv] = self.args.v.shape() else { unreachable!("four axes") };
        let heads = self.args.out.shape()[1];
        let d = self.args.k.shape()[3];
        let first = |c: usize| match &self.args.initial_state {
            None => 0.0,
            Some(state) => state.memory().at(&[self.entry, self.state, c, j]),
        };
        let value: Vec<f64> = (0..d).map(first).collect();
        let magnitude = value.iter().map(|x| x.abs()).collect();
        let mut column = Column { value, magnitude, error: vec![0.0; d], distance: 0.0 };
        for (t, token) in self.tokens.iter().enumerate() {
            let v = if j < dv {
                self.args.v.memory().at(&[self.entry, self.head / (heads / v_heads), t, j])
            } else {
                1.0
            };
            column.push(token, v);
            if self.op.causal {
                read.push(column.read(&self.queries[t], self.delta));
            }
        }
        if !self.op.causal {
            read.extend(self.queries.iter().map(|q| column.read(q, self.delta)));
        }
        column
    }
}
