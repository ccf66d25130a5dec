//! Attention of few queries, as in decoding from a cache: K and V are read once, where they lie, for all queries of all
//! heads that share them.
//!
//! ```text
//! s[row][key] = sum over e of Q[row][e] * K[key][e]        the elements of a token along the lanes
//! O[row][e]   = sum over key of s[row][key] * V[key][e]
//! ```
//!
//! A row is a query of one of the heads. The work is cut into parts of one head of K and [`PART`] keys or more (flash
//! decoding, Dao et al. 2023), which a task takes a tile of [`TILE`] at a time, with the running maximum of every row.
//! Then the parts of each query are joined: with `m` the largest of their maxima, `l = sum l_i 2^(m_i - m)` and
//! `O = sum O_i 2^(m_i - m) / l`. How the keys are cut depends on the shapes alone, so results do not on the threads.

use super::super::simd::{Kernel, Simd};
use super::super::strided::Out;
use super::{Adding, Call, HIDDEN, LEAST, LN_2, Place, capped, exp2, line, nothing, pitch, plus};
use crate::dtype::Float;
use crate::target::cpu::Cpu;
use crate::view::View;
use std::ops::Range;

/// The most queries of a head that are few: the other way takes as long for a vector of them as for one.
const MOST: u32 = 4;
/// Keys of a part, at least: enough to be worth a task.
const PART: usize = 1024;
/// The most parts: enough for the threads of any CPU, and their results are this many times that of the call.
const PARTS: usize = 64;
/// Keys of a tile: with the scores of a row in the first cache, and K and V in the second.
const TILE: usize = 256;
/// The most floats that a task may take, and the results of the parts that are kept at a time.
const MAX_FLOATS: usize = 1 << 25;

/// Whether a call is served here: few queries, also of all heads together, and tokens whose elements are neighbours.
pub(super) fn serves<T: Float>(call: &Call<T>) -> bool {
    let p = &call.p;
    let row = pitch(p.d as usize) + pitch(p.dv as usize) + TILE;
    p.nq <= MOST
        && p.nk > 0
        && (p.k_d == 1 || p.d <= 1)
        && (p.v_d == 1 || p.dv <= 1)
        && p.nq as usize * p.group as usize * row.max(PARTS * result(p.dv as usize)) <= MAX_FLOATS
}

/// Floats of a row's result in a part: its maximum, its sum, its elements of O.
fn result(dv: usize) -> usize {
    2 + dv
}

/// The numbers of a call.
#[derive(Clone, Copy)]
struct Sizes {
    /// Rows: queries of all heads that share one of K and V.
    rows: usize,
    /// Parts of a head of K and V.
    parts: usize,
    /// Keys of a part.
    part: usize,
    /// Those of [`result`].
    result: usize,
}

/// Computes the call, some heads of K and V at a time: a batch that repeats one entry may be of any length.
pub(super) fn run<T: Float>(call: &Call<T>, cpu: &Cpu) {
    let p = &call.p;
    let group = p.group as usize;
    let (heads, rows, result) = (p.pairs as usize / group, p.nq as usize * group, result(p.dv as usize));
    let keys = call.split_keys(p.nk as usize).min(p.nk as usize);
    let part = PART.max(keys.div_ceil(PARTS).next_multiple_of(TILE));
    let parts = keys.div_ceil(part);
    let one = parts * rows * result;
    let chunk = (MAX_FLOATS / one).clamp(1, heads);
    let sizes = Sizes { rows, parts, part, result };
    let mut memory = vec![0.0f32; chunk * one];
    let Ok(mut view) = View::of_mut(&mut memory, &[chunk * one]) else { unreachable!("one axis") };
    let results = Out::<f32>::new(&mut view);
    for first in (0..heads).step_by(chunk) {
        let count = chunk.min(heads - first);
        cpu.each(count * parts, |task| cpu.isa().run(Part { call, sizes, results, first, task }));
        cpu.each(count * group, |pair| cpu.isa().run(Join { call, sizes, results, first, pair }));
    }
}

/// One part: its keys, for all rows.
struct Part<'a, 'b, T> {
    call: &'a Call<'b, T>,
    sizes: Sizes,
    results: Out<'a, f32>,
    /// The head of K and V that has the first results.
    first: usize,
    /// Which part of those from there on.
    task: usize,
}

/// A row of a part, and what is known of it so far.
struct Row<'a, 'b, T> {
    query: usize,
    adding: Adding<'a, 'b, T>,
    /// The keys it sees.
    seen: Range<usize>,
    max: f32,
    sum: f32,
}

impl<T: Float> Kernel for Part<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { call, sizes, results, first, task } = self;
        let Sizes { rows: count, parts, result, .. } = sizes;
        let p = &call.p;
        let (d, dv, group) = (p.d as usize, p.dv as usize, p.group as usize);
        let (pair, part) = (first + task / parts, task % parts);
        let kv_heads = p.heads as usize / group;
        let (b, kv) = (pair / kv_heads, pair % kv_heads);
        // SAFETY: batch entry, heads, queries and keys are inside the call's views; scratch rows hold what is laid into
        // them; each task has results of its own; and the caller has the instructions of S.
        unsafe {
            let sequence = call.sequences[b];
            let (q_pitch, o_pitch) = (pitch(d), pitch(dv));
            let mut q = vec![0.0f32; count * q_pitch];
            let mut o = vec![0.0f32; count * o_pitch];
            let mut scores = vec![0.0f32; count * TILE];
            let mut added = vec![0.0f32; TILE];
            let mut rows: Vec<Row<T>> = (0..count)
                .map(|r| {
                    let (h, query) = (kv * group + r / p.nq as usize, r % p.nq as usize);
                    let live = query < sequence.queries;
                    if live {
                        let from = call.q.at(call.query(b, h, query, [p.q_b, p.q_h, p.q_n]));
                        line::<S, T>(from, p.q_d as usize, d, p.scale_log2e, q.as_mut_ptr().add(r * q_pitch));
                    }
                    let all = if live { 0..sequence.keys } else { 0..0 };
                    let one = query..query + 1;
                    let seen =
                        sequence.band.filter(|_| live).map_or(all, |band| band.of(&one, sequence.keys));
                    // A sink counts once: in the first part.
                    let sink = call.sink(h).filter(|_| part == 0);
                    let (max, sum) = sink.map_or((f32::MIN, 0.0), |sink| (sink, 1.0));
                    Row { query, adding: call.adding(b, h, sequence.place()), seen, max, sum }
                })
                .collect();
            // What some row sees of this part.
            let some = rows.iter().map(|r| &r.seen).filter(|s| !s.is_empty());
            let split = call.of_split(sequence.keys);
            let from = some.clone().map(|s| s.start).min().unwrap_or(0).max(split.start + part * sizes.part);
            let until = some
                .map(|s| s.end)
                .max()
                .unwrap_or(0)
                .min(split.end)
                .min(split.start + (part + 1) * sizes.part);
            let mut first = from;
            while first < until {
                let Place { entry, token, run } = call.place(b, first, until);
                let keys = first..first + run.min(TILE);
                first = keys.end;
                let at = |b_stride: u32, h_stride: u32, stride: u32| {
                    entry * b_stride as usize + kv * h_stride as usize + token * stride as usize
                };
                let (k, v) = (call.k.at(at(p.k_b, p.k_h, p.k_n)), call.v.at(at(p.v_b, p.v_h, p.v_n)));
                by_rows::<S>(count, |r, at_once| {
                    let (q, to) = (q.as_ptr().add(r * q_pitch), scores.as_mut_ptr().add(r * TILE));
                    match at_once {
                        4 => dots::<S, T, 4>(k, p.k_n as usize, keys.len(), d, q, q_pitch, to),
                        2 => dots::<S, T, 2>(k, p.k_n as usize, keys.len(), d, q, q_pitch, to),
                        _ => dots::<S, T, 1>(k, p.k_n as usize, keys.len(), d, q, q_pitch, to),
                    }
                });
                for (r, row) in rows.iter_mut().enumerate() {
                    let alpha = row.exponentials::<S>(&mut scores[r * TILE..][..TILE], &mut added, &keys);
                    if alpha != 1.0 {
                        o[r * o_pitch..][..dv].iter_mut().for_each(|x| *x *= alpha);
                    }
                }
                by_rows::<S>(count, |r, at_once| {
                    let (w, o) = (scores.as_ptr().add(r * TILE), o.as_mut_ptr().add(r * o_pitch));
                    match at_once {
                        4 => values::<S, T, 4>(v, p.v_n as usize, keys.len(), dv, w, o, o_pitch),
                        2 => values::<S, T, 2>(v, p.v_n as usize, keys.len(), dv, w, o, o_pitch),
                        _ => values::<S, T, 1>(v, p.v_n as usize, keys.len(), dv, w, o, o_pitch),
                    }
                });
            }
            for (r, row) in rows.iter().enumerate() {
                let to = results.at((task * count + r) * result);
                *to = row.max;
                *to.add(1) = row.sum;
                to.add(2).copy_from_nonoverlapping(o.as_ptr().add(r * o_pitch), dv);
            }
        }
    }
}

impl<T: Float> Row<'_, '_, T> {
    /// Makes exponentials of the scores of a tile; what was summed before is to be multiplied with the result.
    ///
    /// # Safety
    /// The keys are inside the views, and the CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn exponentials<S: Simd>(
        &mut self,
        scores: &mut [f32],
        added: &mut [f32],
        keys: &Range<usize>,
    ) -> f32 {
        let count = keys.len();
        let whole = count.next_multiple_of(S::LANES);
        let [cap, rate] = [self.adding.p.cap, self.adding.p.cap_rate];
        let at = scores.as_mut_ptr();
        // SAFETY: by the contract; tiles are of whole vectors.
        unsafe {
            if cap > 0.0 {
                for j in (0..whole).step_by(S::LANES) {
                    S::store(at.add(j), capped::<S>(S::load(at.add(j)), cap, rate));
                }
            }
            if self.adding.adds() {
                self.adding.row::<S>(self.query, keys.clone(), added);
                for j in (0..whole).step_by(S::LANES) {
                    S::store(at.add(j), plus::<S>(S::load(at.add(j)), S::load(added.as_ptr().add(j))));
                }
            }
            let inside = |key: usize| key.clamp(keys.start, keys.end) - keys.start;
            scores[..inside(self.seen.start)].fill(HIDDEN);
            scores[inside(self.seen.end)..whole].fill(HIDDEN);
            let mut top = S::splat(self.max);
            for j in (0..whole).step_by(S::LANES) {
                top = S::max(top, S::load(at.add(j)));
            }
            let mut lanes = [f32::MIN; 16];
            S::store(lanes.as_mut_ptr(), top);
            // NaN stays.
            let max = lanes.iter().fold(f32::MIN, |m, &x| if x > m || x.is_nan() { x } else { m });
            let shift = if max < LEAST { LEAST } else { max };
            let alpha = (self.max - shift).exp2();
            let mut sum = S::splat(0.0);
            for j in (0..whole).step_by(S::LANES) {
                let x = exp2::<S>(S::sub(S::load(at.add(j)), S::splat(shift)));
                sum = S::add(sum, x);
                S::store(at.add(j), x);
            }
            self.max = max;
            self.sum = self.sum * alpha + S::sum(sum);
            alpha
        }
    }
}

/// Calls `work` with the first of every few rows, and how many they are.
#[inline(always)]
fn by_rows<S: Simd>(count: usize, mut work: impl FnMut(usize, usize)) {
    // AVX-512 and NEON have 32 registers, the others 16.
    let most = if S::LANES == 8 { 2 } else { 4 };
    let mut r = 0;
    while r < count {
        let at_once = match count - r {
            4.. if most == 4 => 4,
            2.. => 2,
            _ => 1,
        };
        work(r, at_once);
        r += at_once;
    }
}

/// The scores of `R` rows: those of a row lie [`TILE`] apart.
///
/// # Safety
/// The pointers hold `count` tokens of `d` elements, `R` rows of queries padded with zeros to whole vectors, and `R` of
/// scores; the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn dots<S: Simd, T: Float, const R: usize>(
    k: *const T,
    token: usize,
    count: usize,
    d: usize,
    q: *const f32,
    q_pitch: usize,
    to: *mut f32,
) {
    // SAFETY: by the contract.
    unsafe {
        let whole = d - d % S::LANES;
        for j in 0..count {
            let key = k.add(j * token);
            let mut acc = [S::splat(0.0); R];
            for e in (0..whole).step_by(S::LANES) {
                let x = S::get(key.add(e));
                for r in 0..R {
                    acc[r] = S::fma(x, S::load(q.add(r * q_pitch + e)), acc[r]);
                }
            }
            if whole < d {
                let x = S::get_n(key.add(whole), d - whole);
                for r in 0..R {
                    acc[r] = S::fma(x, S::load(q.add(r * q_pitch + whole)), acc[r]);
                }
            }
            for r in 0..R {
                *to.add(r * TILE + j) = S::sum(acc[r]);
            }
        }
    }
}

/// Adds exponentials times V to `R` rows of the result.
///
/// # Safety
/// The pointers hold `count` tokens of `dv` elements, `R` rows of exponentials [`TILE`] apart and `R` of the result, of
/// whole vectors; the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn values<S: Simd, T: Float, const R: usize>(
    v: *const T,
    token: usize,
    count: usize,
    dv: usize,
    exponentials: *const f32,
    o: *mut f32,
    o_pitch: usize,
) {
    /// Vectors of a row that are summed at a time.
    const C: usize = 4;
    // SAFETY: by the contract.
    unsafe {
        let mut e = 0;
        while e + C * S::LANES <= dv {
            let mut acc = [[S::splat(0.0); C]; R];
            for r in 0..R {
                for c in 0..C {
                    acc[r][c] = S::load(o.add(r * o_pitch + e + c * S::LANES));
                }
            }
            for j in 0..count {
                let value = v.add(j * token + e);
                for c in 0..C {
                    let x = S::get(value.add(c * S::LANES));
                    for r in 0..R {
                        acc[r][c] = S::fma(S::splat(*exponentials.add(r * TILE + j)), x, acc[r][c]);
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    S::store(o.add(r * o_pitch + e + c * S::LANES), acc[r][c]);
                }
            }
            e += C * S::LANES;
        }
        while e < dv {
            let lanes = S::LANES.min(dv - e);
            for r in 0..R {
                let at = o.add(r * o_pitch + e);
                let mut acc = S::load(at);
                for j in 0..count {
                    let value = v.add(j * token + e);
                    let x = if lanes == S::LANES { S::get(value) } else { S::get_n(value, lanes) };
                    acc = S::fma(S::splat(*exponentials.add(r * TILE + j)), x, acc);
                }
                S::store(at, acc);
            }
            e += lanes;
        }
    }
}

/// The queries of one head, from their parts.
struct Join<'a, 'b, T> {
    call: &'a Call<'b, T>,
    sizes: Sizes,
    results: Out<'a, f32>,
    /// As in [`Part`].
    first: usize,
    /// Which head of those from there on.
    pair: usize,
}

impl<T: Float> Kernel for Join<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { call, sizes: Sizes { rows, parts, result, .. }, results, first, pair } = self;
        let p = &call.p;
        let (nq, dv, group) = (p.nq as usize, p.dv as usize, p.group as usize);
        let (heads, kv) = (p.heads as usize, pair / group);
        let (b, h) = ((first * group + pair) / heads, (first * group + pair) % heads);
        // SAFETY: every part has written its results; batch entry, head and queries are inside the call's views, and this
        // task alone has them.
        unsafe {
            let live = call.sequences[b].queries;
            nothing(call, b, h, live..call.sequences[b].rows);
            let mut o = vec![0.0f32; dv];
            for query in 0..live {
                let row = h % group * nq + query;
                let part = |i: usize| results.at(((kv * parts + i) * rows + row) * result);
                let max = (0..parts)
                    .map(|i| *part(i))
                    .fold(f32::MIN, |m, x| if x > m || x.is_nan() { x } else { m });
                let shift = if max < LEAST { LEAST } else { max };
                let mut sum = 0.0;
                o.fill(0.0);
                for i in 0..parts {
                    let factor = (*part(i) - shift).exp2();
                    sum += factor * *part(i).add(1);
                    for (e, x) in o.iter_mut().enumerate() {
                        *x = (*part(i).add(2 + e)).mul_add(factor, *x);
                    }
                }
                if let Some(lse) = call.lse {
                    // The logarithm of 0 is -infinity.
                    *lse.at(call.query(b, h, query, [p.lse_b, p.lse_h, p.lse_n])) = (max + sum.log2()) * LN_2;
                }
                // Without a key that it sees, a query's result is 0.
                let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                let to = call.out.at(call.query(b, h, query, [p.out_b, p.out_h, p.out_n]));
                for (e, x) in o.iter().enumerate() {
                    *to.add(e * p.out_d as usize) = T::from_f32(x * scale);
                }
            }
        }
    }
}
