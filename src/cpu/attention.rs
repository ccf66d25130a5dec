//! Attention on the CPU: flash attention with the queries along the lanes of a vector.
//!
//! Scores are kept transposed, `S[key][query]`, so that maximum, exponential and sum over the keys are
//! plain vector operations on whole rows, and both products have one form: a row of outputs is a sum of
//! rows of vectors, each times a scalar.
//!
//! ```text
//! S[key][queries] = sum over e   of K[key][e] * Q[e][queries]       K, V as scalars, in the order in
//! O[e][queries]   = sum over key of V[key][e] * P[key][queries]     which memory has them
//! ```
//!
//! Work is cut into tasks of one head and up to [`QUERIES`] queries. A task copies its Q, scaled and
//! transposed, into blocks of up to [`WIDTH`] vectors, then takes K and V a tile of [`KEYS`] keys at a time
//! (converted to f32, in rows along whichever axis is dense) through all its blocks: scores, running
//! maximum, exponentials, O rescaled and added to. With one tile nothing is ever rescaled.
//!
//! With a window a task takes only the keys that one of its queries sees. Tiles that some do not see, and all tiles
//! under a softcap, a bias, a mask or slopes, have their scores changed in a pass of their own; what bias, mask and slopes
//! add is laid out like the scores first. A hidden key has the score [`HIDDEN`], and the exponential 0.
//!
//! Keys in pages are copied a page at a time, and splits of the keys computed one after the other.
//!
//! Where the CPU multiplies pairs of bf16, Q, K, V and the exponentials stay in bf16, in [`pairs`], and sums are in f32.
//!
//! Queries too few for the lanes go another way: [`few`].

mod few;
mod pairs;

use super::scratch;
use super::simd::{Kernel, Simd};
use super::strided::{Either, In, Out, by_dtype};
use crate::dtype::{Dtype, Float};
use crate::error::Result;
use crate::op::Op;
use crate::ops::attention::{Attention, AttentionArgs, AttentionParams, SPLIT_KEYS};
use crate::target::cpu::Cpu;
use crate::view::View;
use std::f32::consts::{LN_2, LOG2_E};
use std::ops::Range;

/// Queries of a task: enough that copying a tile of keys costs little, few enough for a cache.
const QUERIES: usize = 240;
/// Keys of a tile.
const KEYS: usize = 128;
/// Vectors of queries in a block: with 8 rows of accumulators they fill 24 of 32 registers.
const WIDTH: usize = 3;

pub(crate) fn run(
    op: Attention,
    p: &AttentionParams,
    args: AttentionArgs<&[u8], &mut [u8]>,
    cpu: &Cpu,
) -> Result<()> {
    let banded = !op.window.is_all();
    by_dtype!(args.q.dtype(), typed(banded, p, args, cpu))
}

fn typed<T: Float>(
    banded: bool,
    p: &AttentionParams,
    args: AttentionArgs<&[u8], &mut [u8]>,
    cpu: &Cpu,
) -> Result<()> {
    let (pairs, nq) = (p.pairs as usize, p.nq as usize);
    if pairs * nq == 0 || p.dv == 0 && args.lse.is_none() {
        return Ok(());
    }
    let sequences = Sequence::all(banded, p, &args)?;
    // Of tokens without elements none has a place.
    let mut p = *p;
    if p.d == 0 {
        [p.q_b, p.q_h, p.q_n, p.k_b, p.k_h, p.k_n] = [0; 6];
    }
    if p.dv == 0 {
        [p.v_b, p.v_h, p.v_n, p.out_b, p.out_h, p.out_n, p.out_s] = [0; 7];
    }
    let AttentionArgs { q, k, v, bias, mask, block_table, slopes, sinks, mut out, mut lse, .. } = args;
    let parts = nq.div_ceil(QUERIES);
    let bias = bias.as_ref().map(Either::new);
    let (packed_q, packed_k) = (args.cu_seqlens_q.is_some(), args.cu_seqlens_k.is_some());
    let mut call = Call {
        q: In::<T>::new(&q),
        k: In::<T>::new(&k),
        v: In::<T>::new(&v),
        bias,
        mask: mask.as_ref().map(In::new),
        table: block_table.as_ref().map(In::new),
        slopes: slopes.as_ref().map(In::new),
        sinks: sinks.as_ref().map(In::new),
        lse: lse.as_mut().map(Out::new),
        out: Out::<T>::new(&mut out),
        p,
        // A multiple of every vector's length.
        part: nq.div_ceil(parts).next_multiple_of(16),
        sequences,
        packed_q,
        packed_k,
        split: 0,
    };
    let (out, lse) = (call.out, call.lse);
    for split in 0..p.splits as usize {
        call.split = split;
        call.out = out.after(split * p.out_s as usize);
        call.lse = lse.map(|lse| lse.after(split * p.lse_s as usize));
        if few::serves(&call) {
            few::run(&call, cpu);
        } else {
            many(&call, cpu);
        }
    }
    Ok(())
}

/// Queries enough to fill the lanes.
fn many<T: Float>(call: &Call<T>, cpu: &Cpu) {
    let tasks = call.p.pairs as usize * (call.p.nq as usize).div_ceil(call.part);
    // Several tasks a share where there are many, so that they use one scratch.
    let shares = tasks.min(8 * cpu.threads());
    cpu.each(shares, |s| {
        let tasks = s * tasks / shares..(s + 1) * tasks / shares;
        cpu.isa().run(Share { call, tasks });
    });
}

/// One call of the op.
struct Call<'a, T> {
    q: In<'a, T>,
    k: In<'a, T>,
    v: In<'a, T>,
    bias: Option<Either<'a, T>>,
    mask: Option<In<'a, u8>>,
    table: Option<In<'a, i32>>,
    slopes: Option<In<'a, f32>>,
    sinks: Option<In<'a, f32>>,
    out: Out<'a, T>,
    lse: Option<Out<'a, f32>>,
    p: AttentionParams,
    /// Queries of a task.
    part: usize,
    /// Of each batch entry.
    sequences: Vec<Sequence>,
    /// Whether Q and the result, and K and V, have the tokens of all sequences in a row.
    packed_q: bool,
    packed_k: bool,
    /// Which part of the keys is computed.
    split: usize,
}

/// What a batch entry has of queries and keys, and which of them see which.
#[derive(Clone, Copy)]
struct Sequence {
    queries: usize,
    keys: usize,
    band: Option<Band>,
    /// Where its tokens start, if packed, and the queries that lie there: those past the end of the sequence too.
    q_start: usize,
    k_start: usize,
    rows: usize,
}

/// Where a key lies: its batch entry or page, its token there; and how many keys from it on lie in a row.
struct Place {
    entry: usize,
    token: usize,
    run: usize,
}

impl Sequence {
    /// That of each batch entry. Packed, there may be any number of empty ones.
    fn all(banded: bool, p: &AttentionParams, args: &AttentionArgs<&[u8], &mut [u8]>) -> Result<Vec<Self>> {
        fn numbers<'a>(
            of: &Option<View<&'a [u8]>>,
            stride: u32,
        ) -> impl Fn(usize) -> Option<usize> + use<'a> {
            let of = of.as_ref().map(In::<i32>::new);
            // SAFETY: the op has checked the shapes, and callers stay inside them.
            move |i| of.map(|of| unsafe { *of.at(i * stride as usize) }.max(0) as usize)
        }
        let starts_q = numbers(&args.cu_seqlens_q, p.cu_seqlens_q_b);
        let starts_k = numbers(&args.cu_seqlens_k, p.cu_seqlens_k_b);
        let lengths_q = numbers(&args.q_lengths, p.q_lengths_b);
        let lengths_k = numbers(&args.k_lengths, p.k_lengths_b);
        // Queries' starts that decrease count as the largest so far: no two sequences share one that they would both write.
        let mut q_start = 0;
        let tokens =
            |b: usize, starts: &dyn Fn(usize) -> Option<usize>, before: usize, total: u32, most: u32| {
                let (total, most) = (total as usize, most as usize);
                match (starts(b), starts(b + 1)) {
                    (Some(start), Some(end)) => {
                        let start = start.max(before).min(total);
                        (start, (end.clamp(start, total) - start).min(most))
                    }
                    _ => (0, most),
                }
            };
        let count = p.pairs as usize / p.heads.max(1) as usize;
        let arg = if args.cu_seqlens_q.is_some() { "cu_seqlens_q" } else { "q" };
        let mut all: Vec<Self> = scratch::reserved(Attention::NAME, arg, count)?;
        all.extend((0..count).map(|b| {
            let (q_first, rows) = tokens(b, &starts_q, q_start, p.q_total, p.nq);
            let (k_start, keys) = tokens(b, &starts_k, 0, p.k_total, p.nk);
            q_start = q_first;
            let queries = lengths_q(b).unwrap_or(rows).min(rows);
            let keys = lengths_k(b).unwrap_or(keys).min(keys);
            // The band is that of all queries and keys.
            let moved = keys as i64 - queries as i64 - (i64::from(p.nk) - i64::from(p.nq));
            let band = banded.then_some(Band {
                from: i64::from(p.band_from as i32) + moved,
                until: i64::from(p.band_until as i32) + moved,
            });
            Self { queries, keys, band, q_start, k_start, rows }
        }));
        Ok(all)
    }

    /// That of query 0 among the keys.
    fn place(&self) -> i64 {
        self.keys as i64 - self.queries as i64
    }
}

impl<'a, T: Float> Call<'a, T> {
    /// How many of a sequence's keys the first part has; no other has more.
    fn split_keys(&self, keys: usize) -> usize {
        match self.p.splits as usize {
            1 => keys,
            splits => keys.div_ceil(splits).next_multiple_of(SPLIT_KEYS),
        }
    }

    /// The keys of the part that is computed.
    fn of_split(&self, keys: usize) -> Range<usize> {
        let count = self.split_keys(keys);
        let from = (self.split * count).min(keys);
        from..(from + count).min(keys)
    }

    /// Where query `i` of a sequence is in an operand with these strides.
    fn query(&self, b: usize, h: usize, i: usize, [s_b, s_h, s_n]: [u32; 3]) -> usize {
        let (entry, token) = if self.packed_q { (0, self.sequences[b].q_start + i) } else { (b, i) };
        entry * s_b as usize + h * s_h as usize + token * s_n as usize
    }

    /// Where a key is, and how many of those before `end` follow it.
    ///
    /// # Safety
    /// Batch entry `b` has that key.
    unsafe fn place(&self, b: usize, key: usize, end: usize) -> Place {
        let p = &self.p;
        let Some(table) = self.table else {
            let (entry, token) = if self.packed_k { (0, self.sequences[b].k_start + key) } else { (b, key) };
            return Place { entry, token, run: end - key };
        };
        let page = p.page as usize;
        let at = b * p.block_table_b as usize + key / page * p.block_table_p as usize;
        // SAFETY: by the contract; the op has checked the shape.
        let entry = unsafe { *table.at(at) }.clamp(0, p.k_total as i32 - 1) as usize;
        Place { entry, token: key % page, run: (page - key % page).min(end - key) }
    }

    /// The score of the head's sink, if it has one that counts here, in units of log2(e).
    ///
    /// # Safety
    /// There is a head `h`.
    unsafe fn sink(&self, h: usize) -> Option<f32> {
        let sinks = self.sinks.filter(|_| self.split == 0)?;
        // SAFETY: by the contract.
        let sink = unsafe { *sinks.at(h * self.p.sinks_h as usize) } * LOG2_E;
        // NaN is one.
        (sink > HIDDEN_FROM || sink.is_nan()).then_some(sink)
    }

    /// What is added to the scores of a head.
    ///
    /// # Safety
    /// There are a batch entry `b` and a head `h`.
    unsafe fn adding(&self, b: usize, h: usize, place: i64) -> Adding<'_, 'a, T> {
        let p = &self.p;
        let start = |b_stride: u32, h_stride: u32| b * b_stride as usize + h * h_stride as usize;
        Adding {
            bias: self.bias.map(|bias| (bias, start(p.bias_b, p.bias_h))),
            mask: self.mask.map(|mask| mask.after(start(p.mask_b, p.mask_h))),
            // SAFETY: by the contract.
            slope: self.slopes.map(|s| unsafe { *s.at(start(p.slopes_b, p.slopes_h)) } * LOG2_E),
            p,
            place,
        }
    }
}

/// Some tasks, run one after the other.
struct Share<'a, 'b, T> {
    call: &'a Call<'b, T>,
    tasks: Range<usize>,
}

impl<T: Float> Kernel for Share<'_, '_, T> {
    type Output = ();
    const PAIRS: bool = matches!(T::DTYPE, Dtype::Bf16);

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { call, tasks } = self;
        let p = &call.p;
        let parts = (p.nq as usize).div_ceil(call.part);
        let mut scratch = Scratch::new(call.part.min(p.nq as usize).next_multiple_of(S::LANES), call);
        for task in tasks {
            let (pair, part) = (task / parts, task % parts);
            let (b, h) = (pair / p.heads as usize, pair % p.heads as usize);
            let first = part * call.part;
            let queries = first..(first + call.part).min(p.nq as usize);
            // SAFETY: batch entry, head and queries are inside the call's views, each task has queries of
            // its own, and the caller has the instructions of S.
            unsafe { head::<S, T>(call, b, h, queries, &mut scratch) }
        }
    }
}

/// Memory of one share: everything a task needs between its inputs and its outputs. The largest head bounds it.
struct Scratch {
    /// Scaled Q, `[block][element][query]`; pairs are not scaled.
    q: Vec<f32>,
    /// The result so far, `[block][element][query]`, to be divided by `sum`.
    o: Vec<f32>,
    /// A tile of K and one of V.
    k: Vec<f32>,
    v: Vec<f32>,
    /// Scores, then their exponentials, `[key][query]`.
    scores: Vec<f32>,
    /// The largest score of each query so far, and the sum of exponentials.
    max: Vec<f32>,
    sum: Vec<f32>,
    /// Queries in rows, on their way between [`Self::q`] or [`Self::o`] and memory.
    rows: Vec<f32>,
    /// What is added to the scores of a tile, laid out like them; and rows of it, `[query][key]`.
    added: Vec<f32>,
    added_rows: Vec<f32>,
}

impl Scratch {
    fn new<T>(queries: usize, call: &Call<T>) -> Self {
        let p = &call.p;
        let (d, dv, keys) = (p.d as usize, p.dv as usize, KEYS.min(p.nk as usize));
        let tile = |d: usize| (pitch(d) * keys).max(pitch(keys) * d);
        let floats = |n| vec![0.0; n];
        let adds = call.bias.is_some() || call.mask.is_some() || call.slopes.is_some();
        let adding = |n| floats(if adds { n } else { 0 });
        Self {
            q: floats(queries * d),
            o: floats(queries * dv),
            k: floats(tile(d)),
            v: floats(tile(dv)),
            scores: floats(keys * WIDTH * 16),
            max: floats(queries),
            sum: floats(queries),
            rows: floats(16 * pitch(d.max(dv))),
            added: adding(keys.next_multiple_of(16) * WIDTH * 16),
            added_rows: adding(16 * pitch(keys)),
        }
    }
}

/// The distance of rows of `n` floats: an odd number of cache lines, so that no few sets of the cache
/// get all rows.
fn pitch(n: usize) -> usize {
    (n.div_ceil(16) | 1) * 16
}

/// Some queries of one head.
///
/// # Safety
/// Batch entry, head and queries are inside the views, no other thread has these queries, and the CPU
/// has the instructions of `S`.
#[inline(always)]
unsafe fn head<S: Simd, T: Float>(
    call: &Call<T>,
    b: usize,
    h: usize,
    queries: Range<usize>,
    s: &mut Scratch,
) {
    let p = &call.p;
    let (d, dv) = (p.d as usize, p.dv as usize);
    // Elements of a query as its products take them.
    let steps = packed::<S>(d);
    let sequence = call.sequences[b];
    // SAFETY: batch entry and head are inside the views.
    let (adding, sink) = unsafe { (call.adding(b, h, sequence.place()), call.sink(h)) };
    let Sequence { keys, band, .. } = sequence;
    let past = queries.start.max(sequence.queries)..queries.end.min(sequence.rows);
    let queries = queries.start..queries.end.min(sequence.queries).max(queries.start);
    // SAFETY: the queries past the end of the sequence are this task's too.
    unsafe { nothing(call, b, h, past) };
    if queries.is_empty() {
        return;
    }
    let part = call.of_split(keys);
    let seen = band.as_ref().map_or(0..keys, |band| band.of(&queries, keys));
    let seen = seen.start.clamp(part.start, part.end)..seen.end.clamp(part.start, part.end);
    let kv = h / p.group as usize;
    // The queries as vectors, cut into blocks of nearly equal width.
    let vectors = queries.len().div_ceil(S::LANES);
    let blocks = vectors.div_ceil(WIDTH);
    let block = |i: usize| i * vectors / blocks..(i + 1) * vectors / blocks;
    let live = |v: &Range<usize>| (v.len() * S::LANES).min(queries.len() - v.start * S::LANES);
    // The keys that a block sees: of a block that sees none, one that is hidden, so that there is something to write.
    let seen_by = |v: &Range<usize>| {
        let Some(band) = &band else { return seen.clone() };
        let at = queries.start + v.start * S::LANES;
        let of = band.of(&(at..at + live(v)), keys);
        let of = of.start.clamp(seen.start, seen.end)..of.end.clamp(seen.start, seen.end);
        if of.is_empty() { seen.start..seen.end.min(seen.start + 1) } else { of }
    };
    // SAFETY: each block lies inside the scratch, which holds `vectors` vectors of queries; the rest is
    // this function's contract.
    unsafe {
        for i in 0..blocks {
            let v = block(i);
            let first = queries.start + v.start * S::LANES;
            let from = call.q.at(call.query(b, h, first, [p.q_b, p.q_h, p.q_n]));
            let (to, width) = (s.q.as_mut_ptr().add(v.start * S::LANES * steps), v.len() * S::LANES);
            let lay = Lay { n: p.q_n as usize, e: p.q_d as usize, d };
            if S::PAIRS {
                pairs::gather::<S, T>(from, lay, live(&v), to, width);
            } else {
                gather::<S, T>(from, lay, live(&v), to, width, p.scale_log2e, &mut s.rows);
            }
        }
        for first in seen.clone().step_by(KEYS) {
            let count = KEYS.min(seen.end - first);
            let k_lay = Lay { n: p.k_n as usize, e: p.k_d as usize, d };
            let v_lay = Lay { n: p.v_n as usize, e: p.v_d as usize, d: dv };
            let mut done = 0;
            while done < count {
                let Place { entry, token, run } = call.place(b, first + done, first + count);
                let at = |b_stride: u32, h_stride: u32, stride: u32| {
                    entry * b_stride as usize + kv * h_stride as usize + token * stride as usize
                };
                let tokens = done..done + run;
                let (k, v) = (call.k.at(at(p.k_b, p.k_h, p.k_n)), call.v.at(at(p.v_b, p.v_h, p.v_n)));
                if S::PAIRS {
                    pairs::keys::<S, T>(k, k_lay, tokens.clone(), count, &mut s.k);
                    pairs::values::<S, T>(v, v_lay, tokens, count, &mut s.v);
                } else {
                    copy::<S, T>(k, k_lay, tokens.clone(), count, &mut s.k);
                    copy::<S, T>(v, v_lay, tokens, count, &mut s.v);
                }
                done += run;
            }
            let k = Tile::new(Lay { d: steps, ..k_lay }, count, &s.k);
            let v = Tile::new(v_lay, packed::<S>(count), &s.v);
            for i in 0..blocks {
                let range = block(i);
                let own = seen_by(&range);
                if own.start >= first + count || own.end <= first {
                    continue;
                }
                // Tiles come in order: the first that a block sees has its first key.
                let begins = own.start >= first;
                let at = range.start * S::LANES;
                if adding.adds() {
                    let live = queries.start + at..queries.start + at + live(&range);
                    adding.lay::<S>(live, range.len() * S::LANES, first..first + count, s);
                }
                let state = Block {
                    q: s.q.as_ptr().add(at * steps),
                    o: s.o.as_mut_ptr().add(at * dv),
                    max: s.max.as_mut_ptr().add(at),
                    sum: s.sum.as_mut_ptr().add(at),
                    scores: s.scores.as_mut_ptr(),
                    added: adding.adds().then_some(s.added.as_ptr()),
                    d: steps,
                    dv,
                    scale: p.scale_log2e,
                    cap: [p.cap, p.cap_rate],
                    sink,
                    band: band.as_ref().and_then(|band| {
                        band.within(first..first + count, queries.start + at, range.len() * S::LANES)
                    }),
                };
                match range.len() {
                    3 => state.tile::<S, 3>(k, v, count, begins),
                    2 => state.tile::<S, 2>(k, v, count, begins),
                    _ => state.tile::<S, 1>(k, v, count, begins),
                }
            }
        }
        if seen.is_empty() {
            // What a task before left there may be NaN.
            s.o[..vectors * S::LANES * dv].fill(0.0);
        }
        for i in 0..blocks {
            let v = block(i);
            let at = v.start * S::LANES;
            let to = call.out.at(call.query(b, h, queries.start + at, [p.out_b, p.out_h, p.out_n]));
            let lay = Lay { n: p.out_n as usize, e: p.out_d as usize, d: dv };
            // Without keys nothing was ever added.
            let sum = if seen.is_empty() { None } else { Some(s.sum.as_ptr().add(at)) };
            if let Some(lse) = call.lse {
                for query in 0..live(&v) {
                    let (max, sum) = match sum {
                        Some(sum) => (s.max[at + query], *sum.add(query)),
                        None => sink.map_or((0.0, 0.0), |sink| (sink, 1.0)),
                    };
                    let i = call.query(b, h, queries.start + at + query, [p.lse_b, p.lse_h, p.lse_n]);
                    // The logarithm of 0 is -infinity.
                    *lse.at(i) = (max + sum.log2()) * LN_2;
                }
            }
            scatter::<S, T>(
                s.o.as_ptr().add(at * dv),
                sum,
                v.len() * S::LANES,
                to,
                lay,
                live(&v),
                &mut s.rows,
            );
        }
    }
}

/// The results of queries that see nothing.
///
/// # Safety
/// Batch entry, head and queries are inside the views, and no other thread has these queries.
unsafe fn nothing<T: Float>(call: &Call<T>, b: usize, h: usize, queries: Range<usize>) {
    let p = &call.p;
    for i in queries {
        // SAFETY: by the contract.
        unsafe {
            let to = call.query(b, h, i, [p.out_b, p.out_h, p.out_n]);
            for e in 0..p.dv as usize {
                *call.out.at(to + e * p.out_d as usize) = T::from_f32(0.0);
            }
            if let Some(lse) = call.lse {
                *lse.at(call.query(b, h, i, [p.lse_b, p.lse_h, p.lse_n])) = f32::NEG_INFINITY;
            }
        }
    }
}

/// How many steps a product over `n` numbers takes: one a number, or one a pair.
#[inline(always)]
fn packed<S: Simd>(n: usize) -> usize {
    if S::PAIRS { n.div_ceil(2) } else { n }
}

/// What is added to the scores of one head, in units of log2(e).
struct Adding<'a, 'b, T> {
    /// With its start in the bias.
    bias: Option<(Either<'b, T>, usize)>,
    mask: Option<In<'b, u8>>,
    slope: Option<f32>,
    p: &'a AttentionParams,
    /// That of query 0 among the keys.
    place: i64,
}

impl<T: Float> Adding<'_, '_, T> {
    fn adds(&self) -> bool {
        self.bias.is_some() || self.mask.is_some() || self.slope.is_some()
    }

    /// Lays it out for some queries and the keys of a tile, in rows of `width` queries.
    ///
    /// # Safety
    /// Queries and keys are inside the views, the scratch holds that much, and the CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn lay<S: Simd>(&self, queries: Range<usize>, width: usize, keys: Range<usize>, s: &mut Scratch) {
        let count = keys.len();
        let pitch = pitch(count);
        let (rows, to) = (&mut s.added_rows, s.added.as_mut_ptr());
        let p = self.p;
        // SAFETY: by the contract; rows are `pitch` apart and hold whole vectors.
        unsafe {
            // What is alike for all queries is laid out once.
            let alike = self.slope.is_none()
                && (self.bias.is_none() || p.bias_q == 0)
                && (self.mask.is_none() || p.mask_q == 0);
            if alike {
                self.row::<S>(queries.start, keys, rows);
                for key in 0..count {
                    let x = S::splat(rows[key]);
                    for first in (0..width).step_by(S::LANES) {
                        S::store(to.add(key * width + first), x);
                    }
                }
                return;
            }
            for first in (0..width).step_by(S::LANES) {
                for lane in 0..S::LANES {
                    // Beyond the last query its numbers are repeated.
                    let query = (queries.start + first + lane).min(queries.end - 1);
                    self.row::<S>(query, keys.clone(), &mut rows[lane * pitch..][..pitch]);
                }
                for key in (0..count).step_by(S::LANES) {
                    S::transpose(rows.as_ptr().add(key), pitch, to.add(key * width + first), width);
                }
            }
        }
    }

    /// One query's.
    ///
    /// # Safety
    /// As for [`Self::lay`]; the row holds that many keys.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, query: usize, keys: Range<usize>, row: &mut [f32]) {
        let p = self.p;
        let row = &mut row[..keys.len()];
        // SAFETY: by the contract.
        unsafe {
            let stride = p.bias_k as usize;
            let at = |start: usize| start + query * p.bias_q as usize + keys.start * stride;
            match self.bias {
                Some((Either::F32(bias), start)) => {
                    line::<S, f32>(bias.at(at(start)), stride, keys.len(), LOG2_E, row.as_mut_ptr());
                }
                Some((Either::Same(bias), start)) => {
                    line::<S, T>(bias.at(at(start)), stride, keys.len(), LOG2_E, row.as_mut_ptr());
                }
                None => row.fill(0.0),
            }
            if self.bias.is_some() {
                for x in row.iter_mut() {
                    *x = if *x <= HIDDEN_FROM { HIDDEN } else { *x };
                }
            }
            if let Some(slope) = self.slope {
                let ahead = (keys.start as i64 - self.place - query as i64) as f32;
                for (j, x) in row.iter_mut().enumerate() {
                    *x -= slope * (ahead + j as f32).abs();
                }
            }
            if let Some(mask) = self.mask {
                let mask = mask.at(query * p.mask_q as usize + keys.start * p.mask_k as usize);
                for (j, x) in row.iter_mut().enumerate() {
                    *x = if *mask.add(j * p.mask_k as usize) == 0 { HIDDEN } else { *x };
                }
            }
        }
    }
}

/// A window: query `i` sees the keys from `i + from` on and before `i + until`.
#[derive(Clone, Copy)]
struct Band {
    from: i64,
    until: i64,
}

impl Band {
    /// The keys, of `keys`, that some of the queries sees.
    fn of(&self, queries: &Range<usize>, keys: usize) -> Range<usize> {
        let inside = |x: i64| x.clamp(0, keys as i64) as usize;
        let (from, until) =
            (inside(queries.start as i64 + self.from), inside(queries.end as i64 - 1 + self.until));
        from.min(until)..until
    }

    /// What it is for `count` queries from `first` on, counted from there, and for the keys of a tile, counted from its
    /// first: query `i` sees key `j` where `i <= [0] + j` and `i > [1] + j`. `None` where all see all.
    fn within(&self, tile: Range<usize>, first: usize, count: usize) -> Option<[f32; 2]> {
        let (tile, first) = (tile.start as i64..tile.end as i64, first as i64);
        let last = first + count as i64 - 1;
        if tile.start >= last + self.from && tile.end <= first + self.until {
            return None;
        }
        // Farther than any tile or block reaches makes no difference, and f32 holds these exactly.
        let near = |x: i64| x.clamp(-1024, 1024) as f32;
        Some([near(tile.start - self.from - first), near(tile.start - self.until - first)])
    }
}

/// The numbers of queries in a block.
const INDEX: [f32; WIDTH * 16] = {
    let mut all = [0.0; WIDTH * 16];
    let mut i = 0;
    while i < all.len() {
        all[i] = i as f32;
        i += 1;
    }
    all
};

/// How the tokens of a head lie.
#[derive(Clone, Copy)]
struct Lay {
    /// Stride along tokens.
    n: usize,
    /// Stride along elements.
    e: usize,
    /// Elements.
    d: usize,
}

/// A tile of K or V in f32: element (key, e) is at `key * n + e * e_stride`, of pairs of elements, or of keys, likewise.
#[derive(Clone, Copy)]
struct Tile {
    from: *const f32,
    n: usize,
    e: usize,
}

impl Tile {
    /// Of `count` tokens, which were copied there.
    fn new(lay: Lay, count: usize, memory: &[f32]) -> Self {
        let [n, e] = lay.of_tile(count);
        Self { from: memory.as_ptr(), n, e }
    }
}

impl Lay {
    /// Whether tokens are neighbours in memory, and the elements of one are not.
    fn across(self) -> bool {
        self.n == 1 && self.e != 1
    }

    /// The strides of a tile of `count` tokens, along tokens and elements: it has rows along the axis that is dense in
    /// memory.
    fn of_tile(self, count: usize) -> [usize; 2] {
        if self.across() { [1, pitch(count)] } else { [pitch(self.d), 1] }
    }
}

/// Copies the first tokens of a tile of `count`, or more of them.
///
/// # Safety
/// The tokens are inside the view, and `to` holds the tile.
#[inline(always)]
unsafe fn copy<S: Simd, T: Float>(
    from: *const T,
    lay: Lay,
    tokens: Range<usize>,
    count: usize,
    to: &mut [f32],
) {
    let [n_tile, e_tile] = lay.of_tile(count);
    let Lay { n, e, d } = lay;
    let (rows, columns, row, column, pitch) =
        if lay.across() { (d, tokens.len(), e, n, e_tile) } else { (tokens.len(), d, n, e, n_tile) };
    let to = to.as_mut_ptr();
    for r in 0..rows {
        // SAFETY: row r of `columns` elements is inside the view and inside `to`, by the contract.
        unsafe {
            let to = to.add(tokens.start * n_tile + r * pitch);
            line::<S, T>(from.add(r * row), column, columns, 1.0, to);
        }
    }
}

/// Converts `count` elements `stride` apart to neighbouring floats, times `scale`.
///
/// # Safety
/// Both sides hold them, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn line<S: Simd, T: Float>(from: *const T, stride: usize, count: usize, scale: f32, to: *mut f32) {
    // SAFETY: by the contract; whole vectors are read and written only where they fit.
    unsafe {
        if stride != 1 {
            for i in 0..count {
                *to.add(i) = (*from.add(i * stride)).to_f32() * scale;
            }
            return;
        }
        let factor = S::splat(scale);
        let whole = count - count % S::LANES;
        for i in (0..whole).step_by(S::LANES) {
            S::store(to.add(i), S::mul(S::get(from.add(i)), factor));
        }
        if whole < count {
            let rest = S::get_n(from.add(whole), count - whole);
            S::store_n(to.add(whole), S::mul(rest, factor), count - whole);
        }
    }
}

/// Copies `count` queries, scaled and transposed: `to[e][query]` in rows of `width`, zeros past `count`.
///
/// # Safety
/// The queries are inside the view, `to` holds `d * width` floats, `width` is a multiple of the lanes.
#[inline(always)]
unsafe fn gather<S: Simd, T: Float>(
    from: *const T,
    lay: Lay,
    count: usize,
    to: *mut f32,
    width: usize,
    scale: f32,
    rows: &mut [f32],
) {
    let Lay { n, e, d } = lay;
    // SAFETY: by the contract; `rows` holds 16 rows of `pitch(d)`, and no vector has more lanes.
    unsafe {
        if n == 1 && e != 1 {
            for i in 0..d {
                line::<S, T>(from.add(i * e), 1, count, scale, to.add(i * width));
                for query in count..width {
                    *to.add(i * width + query) = 0.0;
                }
            }
            return;
        }
        let (rows, pitch) = (rows.as_mut_ptr(), pitch(d));
        for first in (0..width).step_by(S::LANES) {
            for lane in 0..S::LANES {
                let row = rows.add(lane * pitch);
                if first + lane < count {
                    line::<S, T>(from.add((first + lane) * n), e, d, scale, row);
                } else {
                    row.write_bytes(0, d);
                }
            }
            for i in 0..d {
                for lane in 0..S::LANES {
                    *to.add(i * width + first + lane) = *rows.add(lane * pitch + i);
                }
            }
        }
    }
}

/// Divides by the sums (0 without them) and writes `count` queries: the reverse of [`gather`].
///
/// # Safety
/// As for [`gather`]; no other thread touches these queries.
#[inline(always)]
unsafe fn scatter<S: Simd, T: Float>(
    from: *const f32,
    sum: Option<*const f32>,
    width: usize,
    to: *mut T,
    lay: Lay,
    count: usize,
    rows: &mut [f32],
) {
    let Lay { n, e, d } = lay;
    // SAFETY: by the contract; `rows` holds 16 rows of `pitch(d)`, and no vector has more lanes.
    unsafe {
        let (rows, pitch) = (rows.as_mut_ptr(), pitch(d));
        for first in (0..count).step_by(S::LANES) {
            let live = S::LANES.min(count - first);
            let factor = match sum {
                // A query that saw no key has a sum and a result of 0; others have a sum of 1 at least, near enough.
                Some(sum) => {
                    S::div(S::splat(1.0), S::max(S::splat(f32::MIN_POSITIVE), S::load(sum.add(first))))
                }
                None => S::splat(0.0),
            };
            if n == 1 && e != 1 {
                for i in 0..d {
                    let x = S::mul(S::load(from.add(i * width + first)), factor);
                    S::put_n(to.add(i * e + first), x, live);
                }
                continue;
            }
            let mut lanes = [0.0; 16];
            S::store(lanes.as_mut_ptr(), factor);
            for i in 0..d {
                for (lane, factor) in lanes.iter().enumerate().take(live) {
                    *rows.add(lane * pitch + i) = *from.add(i * width + first + lane) * factor;
                }
            }
            for lane in 0..live {
                let (row, to) = (rows.add(lane * pitch), to.add((first + lane) * n));
                if e != 1 {
                    for i in 0..d {
                        *to.add(i * e) = T::from_f32(*row.add(i));
                    }
                    continue;
                }
                let whole = d - d % S::LANES;
                for i in (0..whole).step_by(S::LANES) {
                    S::put(to.add(i), S::load(row.add(i)));
                }
                if whole < d {
                    S::put_n(to.add(whole), S::load_n(row.add(whole), d - whole), d - whole);
                }
            }
        }
    }
}

/// A block of queries: `W` vectors of them, with their state.
struct Block {
    q: *const f32,
    o: *mut f32,
    max: *mut f32,
    sum: *mut f32,
    scores: *mut f32,
    /// What is added to them.
    added: Option<*const f32>,
    /// Elements of Q, or pairs of them.
    d: usize,
    dv: usize,
    /// What scores of pairs are yet to be multiplied with.
    scale: f32,
    /// The softcap in units of log2(e), or 0, and the rate of its exponential.
    cap: [f32; 2],
    /// A score that was there before all keys, in units of log2(e).
    sink: Option<f32>,
    /// What [`Band::within`] says of the tile.
    band: Option<[f32; 2]>,
}

/// A score that no other is below: what a hidden key has.
const HIDDEN: f32 = -3e38;
/// The least that is subtracted from scores, so that the exponential of a hidden one is 0 even where all are hidden.
const LEAST: f32 = -2.9e38;
/// A bias that is no more than this hides its key, in units of log2(e).
const HIDDEN_FROM: f32 = -1e38 * LOG2_E;

impl Block {
    /// Takes one tile of keys.
    ///
    /// # Safety
    /// The pointers hold `W` vectors of queries (times `d` elements, times `count` keys), the tiles `count`
    /// keys, and the CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const W: usize>(&self, k: Tile, v: Tile, count: usize, first: bool) {
        // SAFETY: by the contract.
        unsafe {
            let width = W * S::LANES;
            let mut max = [S::splat(self.sink.unwrap_or(f32::MIN)); W];
            let mut shift = [S::splat(0.0); W];
            let mut alpha = [S::splat(1.0); W];
            let mut sum = [S::splat(0.0); W];
            if !first {
                for w in 0..W {
                    max[w] = S::load(self.max.add(w * S::LANES));
                }
            }
            let before = max;
            let mut key = 0;
            while key < count {
                let from = k.from.add(key * k.n);
                let to = self.scores.add(key * width);
                let rows = rows::<S>(count - key);
                match rows {
                    8 => max = self.scores::<S, 8, W>(from, k, to, max),
                    4 => max = self.scores::<S, 4, W>(from, k, to, max),
                    2 => max = self.scores::<S, 2, W>(from, k, to, max),
                    _ => max = self.scores::<S, 1, W>(from, k, to, max),
                }
                key += rows;
            }
            if self.cap[0] > 0.0 || self.band.is_some() || self.added.is_some() {
                max = self.change::<S, W>(count, before);
            }
            for w in 0..W {
                shift[w] = S::max(S::splat(LEAST), max[w]);
                if !first {
                    alpha[w] = exp2::<S>(S::sub(before[w], shift[w]));
                    sum[w] = S::mul(S::load(self.sum.add(w * S::LANES)), alpha[w]);
                } else if self.sink.is_some() {
                    sum[w] = exp2::<S>(S::sub(before[w], shift[w]));
                }
            }
            for step in 0..packed::<S>(count) {
                for w in 0..W {
                    // What a step writes has been read: pairs take half the rows.
                    let at = self.scores.add(step * width + w * S::LANES);
                    if S::PAIRS {
                        let pair = at.add(step * width);
                        let low = exp2::<S>(S::sub(S::load(pair), shift[w]));
                        let mut high = S::splat(0.0);
                        if 2 * step + 1 < count {
                            high = exp2::<S>(S::sub(S::load(pair.add(width)), shift[w]));
                        }
                        sum[w] = S::add(sum[w], S::add(low, high));
                        S::store(at, S::pair(low, high));
                    } else {
                        let x = exp2::<S>(S::sub(S::load(at), shift[w]));
                        sum[w] = S::add(sum[w], x);
                        S::store(at, x);
                    }
                }
            }
            for w in 0..W {
                S::store(self.max.add(w * S::LANES), max[w]);
                S::store(self.sum.add(w * S::LANES), sum[w]);
            }
            let alpha = if first { None } else { Some(alpha) };
            let steps = packed::<S>(count);
            let mut e = 0;
            while e < self.dv {
                let from = v.from.add(e * v.e);
                let to = self.o.add(e * width);
                let rows = rows::<S>(self.dv - e);
                match rows {
                    8 => Self::values::<S, 8, W>(from, v, self.scores, steps, to, alpha),
                    4 => Self::values::<S, 4, W>(from, v, self.scores, steps, to, alpha),
                    2 => Self::values::<S, 2, W>(from, v, self.scores, steps, to, alpha),
                    _ => Self::values::<S, 1, W>(from, v, self.scores, steps, to, alpha),
                }
                e += rows;
            }
        }
    }

    /// Caps the scores of a tile, adds what is to be added, and hides those of keys that a query does not see; the largest
    /// of each query, and of `max`.
    #[inline(always)]
    unsafe fn change<S: Simd, const W: usize>(&self, count: usize, mut max: [S::V; W]) -> [S::V; W] {
        // SAFETY: by the contract of `tile`.
        unsafe {
            let [cap, rate] = self.cap;
            for key in 0..count {
                for w in 0..W {
                    let at = self.scores.add((key * W + w) * S::LANES);
                    let mut x = S::load(at);
                    if cap > 0.0 {
                        x = capped::<S>(x, cap, rate);
                    }
                    if let Some(added) = self.added {
                        x = plus::<S>(x, S::load(added.add((key * W + w) * S::LANES)));
                    }
                    if let Some(band) = self.band {
                        x = S::choose(visible::<S>(band, key, w), S::splat(0.5), S::splat(HIDDEN), x);
                    }
                    max[w] = S::max(max[w], x);
                    S::store(at, x);
                }
            }
            max
        }
    }

    /// The scores of `R` keys, and the largest of each query.
    #[inline(always)]
    unsafe fn scores<S: Simd, const R: usize, const W: usize>(
        &self,
        from: *const f32,
        k: Tile,
        to: *mut f32,
        mut max: [S::V; W],
    ) -> [S::V; W] {
        // SAFETY: by the contract of `tile`.
        unsafe {
            let mut acc = [[S::splat(0.0); W]; R];
            if k.e == 1 {
                product::<S, R, W>(from, k.n, 1, self.q, self.d, &mut acc);
            } else {
                product::<S, R, W>(from, 1, k.e, self.q, self.d, &mut acc);
            }
            for r in 0..R {
                for w in 0..W {
                    if S::PAIRS {
                        acc[r][w] = S::mul(acc[r][w], S::splat(self.scale));
                    }
                    max[w] = S::max(max[w], acc[r][w]);
                    S::store(to.add((r * W + w) * S::LANES), acc[r][w]);
                }
            }
            max
        }
    }

    /// `R` elements of the result: rescaled by `alpha` (or from 0), plus exponentials times V.
    #[inline(always)]
    unsafe fn values<S: Simd, const R: usize, const W: usize>(
        from: *const f32,
        v: Tile,
        exponentials: *const f32,
        steps: usize,
        to: *mut f32,
        alpha: Option<[S::V; W]>,
    ) {
        // SAFETY: by the contract of `tile`.
        unsafe {
            let mut acc = [[S::splat(0.0); W]; R];
            if let Some(alpha) = alpha {
                for r in 0..R {
                    for w in 0..W {
                        acc[r][w] = S::mul(S::load(to.add((r * W + w) * S::LANES)), alpha[w]);
                    }
                }
            }
            if v.e == 1 {
                product::<S, R, W>(from, 1, v.n, exponentials, steps, &mut acc);
            } else {
                product::<S, R, W>(from, v.e, 1, exponentials, steps, &mut acc);
            }
            for r in 0..R {
                for w in 0..W {
                    S::store(to.add((r * W + w) * S::LANES), acc[r][w]);
                }
            }
        }
    }
}

/// 1 where the queries of vector `w` see a key of the tile, else 0.
///
/// # Safety
/// The caller has the instructions of `S`, and `w` is below [`WIDTH`].
#[inline(always)]
unsafe fn visible<S: Simd>([from, until]: [f32; 2], key: usize, w: usize) -> S::V {
    // SAFETY: by the contract; no vector has more than 16 lanes. All numbers are whole.
    unsafe {
        let (zero, one) = (S::splat(0.0), S::splat(1.0));
        let i = S::load(INDEX.as_ptr().add(w * S::LANES));
        let started = S::sub(S::splat(from + key as f32 + 1.0), i);
        let ahead = S::sub(i, S::splat(until + key as f32));
        S::max(zero, S::min(one, S::min(started, ahead)))
    }
}

/// `cap * tanh(x / cap)`, with `e = 2^(-rate |x|)`: `(1 - e) / (1 + e)`, and near 0, where that difference would cost
/// digits, the series of tanh.
///
/// # Safety
/// The caller has the instructions of `S`.
#[inline(always)]
unsafe fn capped<S: Simd>(x: S::V, cap: f32, rate: f32) -> S::V {
    // SAFETY: by the contract.
    unsafe {
        let one = S::splat(1.0);
        let magnitude = S::abs(x);
        let e = exp2::<S>(S::mul(magnitude, S::splat(-rate)));
        let far = S::div(S::sub(one, e), S::add(one, e));
        let t = S::mul(magnitude, S::splat(rate * (0.5 * LN_2)));
        let square = S::mul(t, t);
        let mut series = S::splat(62.0 / 2835.0);
        for c in [-17.0 / 315.0, 2.0 / 15.0, -1.0 / 3.0, 1.0] {
            series = S::fma(series, square, S::splat(c));
        }
        let tanh = S::choose(t, S::splat(0.25), S::mul(t, series), far);
        S::copysign(S::mul(S::splat(cap), tanh), x)
    }
}

/// A score and what is added to it; [`HIDDEN`] where that hides the key, whatever its score is.
///
/// # Safety
/// The caller has the instructions of `S`.
#[inline(always)]
unsafe fn plus<S: Simd>(x: S::V, added: S::V) -> S::V {
    // SAFETY: by the contract.
    unsafe { S::choose(added, S::splat(LEAST), S::splat(HIDDEN), S::add(x, added)) }
}

/// How many of the `left` rows to take at a time: as many as the registers hold sums for.
#[inline(always)]
fn rows<S: Simd>(left: usize) -> usize {
    // AVX-512 and NEON have 32 registers, the others 16.
    match left {
        8.. if S::LANES != 8 => 8,
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// `acc[r] += sum over i < count of a[r * row + i * step] * b[i]`, `b` in rows of `W` vectors; of numbers or of pairs.
///
/// # Safety
/// The pointers hold these elements, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn product<S: Simd, const R: usize, const W: usize>(
    a: *const f32,
    row: usize,
    step: usize,
    b: *const f32,
    count: usize,
    acc: &mut [[S::V; W]; R],
) {
    // SAFETY: by the contract.
    unsafe {
        let mut sums = *acc;
        for i in 0..count {
            let mut vectors = [S::splat(0.0); W];
            for w in 0..W {
                vectors[w] = S::load(b.add((i * W + w) * S::LANES));
            }
            for r in 0..R {
                let scalar = S::splat(*a.add(r * row + i * step));
                for w in 0..W {
                    sums[r][w] = if S::PAIRS {
                        S::dot(scalar, vectors[w], sums[r][w])
                    } else {
                        S::fma(scalar, vectors[w], sums[r][w])
                    };
                }
            }
        }
        *acc = sums;
    }
}

/// `2^x` for x <= 0 to within 2 ulp; 0 where that is below the smallest normal number. NaN stays NaN.
///
/// `2^round(x)` times a minimax polynomial of degree 5 for the rest, whose relative error is 7.5e-8.
#[inline(always)]
unsafe fn exp2<S: Simd>(x: S::V) -> S::V {
    // SAFETY: the caller has the instructions of S.
    unsafe {
        // max keeps its second operand when that is NaN.
        let x = S::max(S::splat(-127.0), x);
        let n = S::round(x);
        let r = S::sub(x, n);
        let mut y = S::splat(1.327_647_2e-3);
        for c in [9.675_541e-3, 5.550_713_3e-2, 0.240_221_2, 0.693_146_97, 1.0] {
            y = S::fma(y, r, S::splat(c));
        }
        S::mul(y, S::pow2(n))
    }
}
