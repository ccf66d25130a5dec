//! Linear attention on the CPU. A task has a head and up to [`COLS`] columns of its state, and takes the tokens through it
//! [`CHUNK`] at a time. Tiles of the state stay in registers while a chunk passes: every token decays the tile, writes its
//! key, and its query reads what is there, which takes fewer operations than products of matrices of tokens would.
//!
//! By the delta rule, what a token writes depends on what the state then holds under its key. That is known for a whole chunk
//! beforehand: what the old state holds, and what the keys of the chunk write under each other, solved forward (the WY form,
//! Yang et al. 2024, arXiv:2406.06484).

use super::simd::{Kernel, Simd};
use super::strided::{Either, In, Out, by_dtype};
use crate::dtype::Float;
use crate::ops::LinearAttention;
use crate::ops::linear_attention::{FeatureMap, LinearAttentionArgs, LinearAttentionParams};
use crate::target::cpu::Cpu;

/// Tokens of a chunk: its queries, keys and decays stay in the first or second cache.
const CHUNK: usize = 32;
/// Columns of the state that a task has.
const COLS: usize = 64;
/// Channels of a tile.
const ROWS: usize = 4;

pub(crate) fn run(
    op: LinearAttention,
    p: &LinearAttentionParams,
    args: LinearAttentionArgs<&[u8], &mut [u8]>,
    cpu: &Cpu,
) {
    by_dtype!(args.q.dtype(), typed(op, p, args, cpu));
}

fn typed<T: Float>(
    op: LinearAttention,
    p: &LinearAttentionParams,
    args: LinearAttentionArgs<&[u8], &mut [u8]>,
    cpu: &Cpu,
) {
    let LinearAttentionArgs { q, k, v, log_decay, beta, initial_state, mut out, mut final_state } = args;
    if final_state.is_none() && (p.n == 0 || p.dv == 0) {
        return;
    }
    let (q, k, v, out) = (In::<T>::new(&q), In::<T>::new(&k), In::<T>::new(&v), Out::<T>::new(&mut out));
    let (log_decay, beta) = (log_decay.as_ref().map(Either::new), beta.as_ref().map(Either::new));
    let initial_state = initial_state.as_ref().map(In::<f32>::new);
    let final_state = final_state.as_mut().map(Out::<f32>::new);
    // Columns are spread evenly.
    let dv = p.dv as usize;
    let tiles = dv.div_ceil(COLS).max(1);
    let width = dv.div_ceil(tiles);
    cpu.each(p.pairs as usize * tiles, |task| {
        let (pair, first) = (task / tiles, task % tiles * width);
        let [b, h] = [pair / p.heads as usize, pair % p.heads as usize];
        let at = |strides: [u32; 2], group: u32| {
            b * strides[0] as usize + h / group as usize * strides[1] as usize
        };
        let state_at = |strides| at(strides, p.state_group);
        cpu.isa().run(Head {
            op,
            p,
            q: q.after(at([p.q_b, p.q_h], p.q_group)),
            k: k.after(at([p.k_b, p.k_h], p.k_group)),
            v: v.after(at([p.v_b, p.v_h], p.v_group)),
            log_decay: log_decay.map(|gate| gate.after(state_at([p.log_decay_b, p.log_decay_h]))),
            beta: beta.map(|gate| gate.after(state_at([p.beta_b, p.beta_h]))),
            initial_state: initial_state.map(|state| state.after(state_at([p.initial_b, p.initial_h]))),
            out: out.after(at([p.out_b, p.out_h], 1)),
            // One head of those that share a state stores it.
            final_state: final_state
                .filter(|_| h.is_multiple_of(p.state_group as usize))
                .map(|state| state.after(state_at([p.final_b, p.final_h]))),
            first,
            width: width.min(dv - first.min(dv)),
        });
    });
}

/// One head, and the columns `first..first + width` of its state.
struct Head<'a, T> {
    op: LinearAttention,
    p: &'a LinearAttentionParams,
    q: In<'a, T>,
    k: In<'a, T>,
    v: In<'a, T>,
    log_decay: Option<Either<'a, T>>,
    beta: Option<Either<'a, T>>,
    initial_state: Option<In<'a, f32>>,
    out: Out<'a, T>,
    final_state: Option<Out<'a, f32>>,
    first: usize,
    width: usize,
}

/// What a task works on. Rows of tokens are `pitch` channels, those of columns `cols`; what is beyond the operands is 0.
struct Work {
    /// Channels of the state: those of the operands, in whole tiles.
    rows: usize,
    pitch: usize,
    cols: usize,
    /// `[rows][cols]`
    state: Vec<f32>,
    /// `[CHUNK][pitch]` each: queries, keys, decays.
    q: Vec<f32>,
    k: Vec<f32>,
    a: Vec<f32>,
    /// `[CHUNK][cols]` each: values, or what the delta rule makes of them; and what is read.
    u: Vec<f32>,
    seen: Vec<f32>,
    /// With a normalizer, the sum of the keys, `[pitch]`, and what each query reads of it, `[CHUNK]`.
    z: Vec<f32>,
    by: Vec<f32>,
    /// `[CHUNK][CHUNK]`: how much of what one key writes is under a later one when that comes.
    gram: Vec<f32>,
}

impl<T: Float> Kernel for Head<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let p = self.p;
        let [n, nk, d] = [p.n, p.nk, p.d].map(|size| size as usize);
        let (pitch, cols) = (d.next_multiple_of(S::LANES.max(ROWS)), self.width.next_multiple_of(S::LANES));
        let tokens = n.max(nk).min(CHUNK);
        let zeros = |count: usize| vec![0.0f32; count];
        let delta = self.beta.is_some();
        let rows = d.next_multiple_of(ROWS);
        let mut work = Work {
            rows,
            pitch,
            cols,
            state: zeros(rows * cols),
            q: zeros(tokens * pitch),
            k: zeros(tokens * pitch),
            a: zeros(if self.log_decay.is_some() { tokens * pitch } else { 0 }),
            u: zeros(tokens * cols),
            seen: zeros(tokens * cols),
            z: zeros(if self.op.normalize.is_some() { pitch } else { 0 }),
            by: zeros(tokens),
            gram: zeros(if delta { CHUNK * CHUNK } else { 0 }),
        };
        let chunks = |n: usize| (0..n).step_by(CHUNK).map(move |start| (start, CHUNK.min(n - start)));
        // SAFETY: chunks are inside the axes, columns inside the views, and no other task has these of this head; the caller
        // has the instructions of S.
        unsafe {
            self.load_state(&mut work);
            if self.op.causal {
                for (start, count) in chunks(n) {
                    self.load_keys::<S>(&mut work, start, count);
                    self.load_queries::<S>(&mut work, start, count);
                    if delta {
                        self.solve::<S>(&mut work, start, count);
                    }
                    scan::<S, true, true>(&mut work, count);
                    self.store::<S>(&work, start, count);
                }
            } else {
                for (start, count) in chunks(nk) {
                    self.load_keys::<S>(&mut work, start, count);
                    scan::<S, true, false>(&mut work, count);
                }
                for (start, count) in chunks(n) {
                    self.load_queries::<S>(&mut work, start, count);
                    scan::<S, false, true>(&mut work, count);
                    self.store::<S>(&work, start, count);
                }
            }
            self.store_state(&work);
        }
    }
}

impl<T: Float> Head<'_, T> {
    /// # Safety
    /// The views are inside their memory.
    unsafe fn load_state(&self, work: &mut Work) {
        let Some(from) = self.initial_state else { return };
        let [along_d, along_v] = [self.p.initial_d as usize, self.p.initial_v as usize];
        for c in 0..self.p.d as usize {
            let from = from.after(c * along_d);
            // SAFETY: channel and columns are inside.
            unsafe {
                for j in 0..self.width {
                    work.state[c * work.cols + j] = *from.at((self.first + j) * along_v);
                }
                if let Some(z) = work.z.get_mut(c) {
                    *z = *from.at(self.p.dv as usize * along_v);
                }
            }
        }
    }

    /// # Safety
    /// As `load_state`; no other task has these columns.
    unsafe fn store_state(&self, work: &Work) {
        let Some(to) = self.final_state else { return };
        let [along_d, along_v] = [self.p.final_d as usize, self.p.final_v as usize];
        for c in 0..self.p.d as usize {
            let to = to.after(c * along_d);
            // SAFETY: channel and columns are inside.
            unsafe {
                for j in 0..self.width {
                    *to.at((self.first + j) * along_v) = work.state[c * work.cols + j];
                }
                // Every task has the sum of the keys; the first stores it.
                if let Some(z) = work.z.get(c).filter(|_| self.first == 0) {
                    *to.at(self.p.dv as usize * along_v) = *z;
                }
            }
        }
    }

    /// Keys, decays and values of the tokens `start..start + count`.
    ///
    /// # Safety
    /// The tokens are inside, and the CPU has the instructions of `S`.
    #[inline(always)]
    unsafe fn load_keys<S: Simd>(&self, work: &mut Work, start: usize, count: usize) {
        let p = self.p;
        let (d, pitch, cols) = (p.d as usize, work.pitch, work.cols);
        // SAFETY: rows of d channels and of `width` columns of tokens that are inside.
        unsafe {
            for t in 0..count {
                let k = &mut work.k[t * pitch..][..pitch];
                row::<S, T>(k, self.k.after((start + t) * p.k_n as usize), d, p.k_d as usize);
                features::<S>(k, d, self.op.feature_map);
                if let Some(gate) = self.log_decay {
                    let a = &mut work.a[t * pitch..][..pitch];
                    let at = (start + t) * p.log_decay_n as usize;
                    match (p.decay, gate) {
                        (1, _) => a.fill(gate.get(at)),
                        (_, Either::F32(gate)) => row::<S, f32>(a, gate.after(at), d, p.log_decay_d as usize),
                        (_, Either::Same(gate)) => row::<S, T>(a, gate.after(at), d, p.log_decay_d as usize),
                    }
                    exponentials::<S>(a);
                }
                let u = &mut work.u[t * cols..][..cols];
                let at = (start + t) * p.v_n as usize + self.first * p.v_d as usize;
                row::<S, T>(u, self.v.after(at), self.width, p.v_d as usize);
            }
        }
    }

    /// # Safety
    /// As `load_keys`.
    #[inline(always)]
    unsafe fn load_queries<S: Simd>(&self, work: &mut Work, start: usize, count: usize) {
        let (p, pitch) = (self.p, work.pitch);
        for t in 0..count {
            let q = &mut work.q[t * pitch..][..pitch];
            // SAFETY: rows of d channels of tokens that are inside.
            unsafe {
                row::<S, T>(q, self.q.after((start + t) * p.q_n as usize), p.d as usize, p.q_d as usize);
                features::<S>(q, p.d as usize, self.op.feature_map);
            }
        }
    }

    /// Turns the values of a chunk into what the delta rule writes.
    ///
    /// # Safety
    /// As `load_keys`, after it.
    #[inline(always)]
    unsafe fn solve<S: Simd>(&self, work: &mut Work, start: usize, count: usize) {
        let Some(beta) = self.beta else { return };
        // SAFETY: work has whole registers a row; the tokens are inside.
        unsafe {
            predict::<S>(work, count);
            grams::<S>(work, count, self.p.decay);
            for t in 0..count {
                let beta = beta.get((start + t) * self.p.beta_n as usize);
                let columns = work.cols / S::LANES;
                let mut v = 0;
                while columns - v >= 4 {
                    write::<S, 4>(work, t, beta, v * S::LANES);
                    v += 4;
                }
                while v < columns {
                    write::<S, 1>(work, t, beta, v * S::LANES);
                    v += 1;
                }
            }
        }
    }

    /// What the queries of a chunk have read, as the result.
    ///
    /// # Safety
    /// As `load_keys`; no other task has these columns.
    #[inline(always)]
    unsafe fn store<S: Simd>(&self, work: &Work, start: usize, count: usize) {
        let (p, width, cols) = (self.p, self.width, work.cols);
        for t in 0..count {
            let seen = &work.seen[t * cols..][..cols];
            let to = self.out.after((start + t) * p.out_n as usize + self.first * p.out_d as usize);
            let by = if work.z.is_empty() { 1.0 } else { work.by[t] + p.eps };
            // SAFETY: `width` columns of a token that is inside.
            unsafe {
                let (scale, by) = (S::splat(p.scale), S::splat(by));
                for j in (0..width).step_by(S::LANES) {
                    let x = S::mul(scale, S::div(S::load(seen[j..].as_ptr()), by));
                    let lanes = S::LANES.min(width - j);
                    if p.out_d == 1 {
                        S::put_n(to.at(j), x, lanes);
                    } else {
                        let mut all = [0.0f32; 16];
                        S::store_n(all.as_mut_ptr(), x, lanes);
                        for (i, &x) in all[..lanes].iter().enumerate() {
                            *to.at((j + i) * p.out_d as usize) = T::from_f32(x);
                        }
                    }
                }
            }
        }
    }
}

/// Fills the start of `to` with `count` elements that lie `stride` apart, and the rest with 0.
///
/// # Safety
/// They are inside their view, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn row<S: Simd, T: Float>(to: &mut [f32], from: In<'_, T>, count: usize, stride: usize) {
    let (row, rest) = to.split_at_mut(count);
    // SAFETY: the caller's contract.
    unsafe {
        if stride == 1 {
            for j in (0..count).step_by(S::LANES) {
                let lanes = S::LANES.min(count - j);
                S::store_n(row[j..].as_mut_ptr(), S::get_n(from.at(j), lanes), lanes);
            }
        } else {
            for (j, to) in row.iter_mut().enumerate() {
                *to = (*from.at(j * stride)).to_f32();
            }
        }
    }
    rest.fill(0.0);
}

/// The feature map of the first `d` of a row of whole registers; the others stay 0.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn features<S: Simd>(row: &mut [f32], d: usize, map: FeatureMap) {
    if map == FeatureMap::Identity {
        return;
    }
    for j in (0..row.len()).step_by(S::LANES) {
        let at = row[j..].as_mut_ptr();
        // SAFETY: rows are whole registers.
        unsafe {
            let (x, zero) = (S::load(at), S::splat(0.0));
            let mapped = match map {
                FeatureMap::Relu => S::max(zero, x),
                _ => S::choose(x, zero, S::exp(S::min(zero, x)), S::add(x, S::splat(1.0))),
            };
            S::store(at, mapped);
        }
    }
    row[d..].fill(0.0);
}

/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn exponentials<S: Simd>(row: &mut [f32]) {
    for j in (0..row.len()).step_by(S::LANES) {
        let at = row[j..].as_mut_ptr();
        // SAFETY: rows are whole registers.
        unsafe { S::store(at, S::exp(S::load(at))) };
    }
}

/// Takes the state through a chunk: each token writes (`WRITE`), then its query reads (`READ`).
///
/// # Safety
/// `work` holds the chunk, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn scan<S: Simd, const WRITE: bool, const READ: bool>(work: &mut Work, count: usize) {
    if READ {
        work.seen[..count * work.cols].fill(0.0);
    }
    // SAFETY: the caller's contract.
    unsafe {
        if work.a.is_empty() {
            tiles::<S, Scan<WRITE, READ, false>>(work, count);
        } else {
            tiles::<S, Scan<WRITE, READ, true>>(work, count);
        }
        if !work.z.is_empty() {
            scan_keys::<S, WRITE, READ>(work, count);
        }
    }
}

/// Takes the sum of the keys through a chunk: the column of the state whose value is 1.
///
/// # Safety
/// As [`scan`].
#[inline(always)]
unsafe fn scan_keys<S: Simd, const WRITE: bool, const READ: bool>(work: &mut Work, count: usize) {
    let pitch = work.pitch;
    for t in 0..count {
        // SAFETY: rows are whole registers.
        unsafe {
            let mut read = S::splat(0.0);
            for c in (0..pitch).step_by(S::LANES) {
                let (at, row) = (work.z[c..].as_mut_ptr(), t * pitch + c);
                let mut z = S::load(at);
                if WRITE {
                    if !work.a.is_empty() {
                        z = S::mul(z, S::load(work.a[row..].as_ptr()));
                    }
                    z = S::add(z, S::load(work.k[row..].as_ptr()));
                    S::store(at, z);
                }
                if READ {
                    read = S::fma(z, S::load(work.q[row..].as_ptr()), read);
                }
            }
            if READ {
                work.by[t] = S::sum(read);
            }
        }
    }
}

/// What the state before a chunk, decayed, holds under each of its keys.
///
/// # Safety
/// As [`scan`].
#[inline(always)]
unsafe fn predict<S: Simd>(work: &mut Work, count: usize) {
    work.seen[..count * work.cols].fill(0.0);
    // SAFETY: the caller's contract.
    unsafe {
        if work.a.is_empty() {
            tiles::<S, Predict<false>>(work, count);
        } else {
            tiles::<S, Predict<true>>(work, count);
        }
    }
}

/// What becomes of a tile of the state as a chunk passes.
trait Pass {
    /// Channels `c..c + ROWS` by `V` registers of columns from `j` on.
    ///
    /// # Safety
    /// The tile is inside the state, `work` holds the chunk, and the CPU has the instructions of `S`.
    unsafe fn tile<S: Simd, const V: usize>(work: &mut Work, count: usize, c: usize, j: usize);
}

/// Every tile of the state, as many registers of columns together as there are registers for.
///
/// # Safety
/// As [`scan`].
#[inline(always)]
unsafe fn tiles<S: Simd, P: Pass>(work: &mut Work, count: usize) {
    let columns = work.cols / S::LANES;
    // SAFETY: the caller's contract; tiles cut the state.
    unsafe {
        let mut v = 0;
        while S::REGISTERS >= 32 && columns - v >= 4 {
            column::<S, P, 4>(work, count, v * S::LANES);
            v += 4;
        }
        while columns - v >= 2 {
            column::<S, P, 2>(work, count, v * S::LANES);
            v += 2;
        }
        if v < columns {
            column::<S, P, 1>(work, count, v * S::LANES);
        }
    }
}

/// The tiles of `V` registers of columns.
///
/// # Safety
/// As [`Pass::tile`].
#[inline(always)]
unsafe fn column<S: Simd, P: Pass, const V: usize>(work: &mut Work, count: usize, j: usize) {
    for c in (0..work.rows).step_by(ROWS) {
        // SAFETY: the caller's contract.
        unsafe { P::tile::<S, V>(work, count, c, j) };
    }
}

struct Scan<const WRITE: bool, const READ: bool, const DECAY: bool>;

impl<const WRITE: bool, const READ: bool, const DECAY: bool> Pass for Scan<WRITE, READ, DECAY> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const V: usize>(work: &mut Work, count: usize, c: usize, j: usize) {
        let Work { pitch, cols, .. } = *work;
        // SAFETY: the caller's contract: rows of `pitch` channels and of `cols` columns, and the tile inside of both.
        unsafe {
            let state = work.state.as_mut_ptr().add(c * cols + j);
            let (q, k) = (work.q.as_ptr().add(c), work.k.as_ptr().add(c));
            let a = if DECAY { work.a.as_ptr().add(c) } else { k };
            let (u, seen) = (work.u.as_ptr().add(j), work.seen.as_mut_ptr().add(j));
            let mut tile = [[S::splat(0.0); V]; ROWS];
            for (r, row) in tile.iter_mut().enumerate() {
                for (v, s) in row.iter_mut().enumerate() {
                    *s = S::load(state.add(r * cols + v * S::LANES));
                }
            }
            for t in 0..count {
                let mut written = [S::splat(0.0); V];
                let mut read = [S::splat(0.0); V];
                for v in 0..V {
                    if WRITE {
                        written[v] = S::load(u.add(t * cols + v * S::LANES));
                    }
                    if READ {
                        read[v] = S::load(seen.add(t * cols + v * S::LANES));
                    }
                }
                for (r, row) in tile.iter_mut().enumerate() {
                    for v in 0..V {
                        if WRITE && DECAY {
                            row[v] = S::mul(S::splat(*a.add(t * pitch + r)), row[v]);
                        }
                        if WRITE {
                            row[v] = S::fma(S::splat(*k.add(t * pitch + r)), written[v], row[v]);
                        }
                        if READ {
                            read[v] = S::fma(S::splat(*q.add(t * pitch + r)), row[v], read[v]);
                        }
                    }
                }
                for v in 0..V {
                    if READ {
                        S::store(seen.add(t * cols + v * S::LANES), read[v]);
                    }
                }
            }
            for (r, row) in tile.iter().enumerate() {
                for (v, s) in row.iter().enumerate() {
                    if WRITE {
                        S::store(state.add(r * cols + v * S::LANES), *s);
                    }
                }
            }
        }
    }
}

struct Predict<const DECAY: bool>;

impl<const DECAY: bool> Pass for Predict<DECAY> {
    #[inline(always)]
    unsafe fn tile<S: Simd, const V: usize>(work: &mut Work, count: usize, c: usize, j: usize) {
        let Work { pitch, cols, .. } = *work;
        // SAFETY: as in `Scan`.
        unsafe {
            let state = work.state.as_ptr().add(c * cols + j);
            let k = work.k.as_ptr().add(c);
            let a = if DECAY { work.a.as_ptr().add(c) } else { k };
            let seen = work.seen.as_mut_ptr().add(j);
            let mut tile = [[S::splat(0.0); V]; ROWS];
            for (r, row) in tile.iter_mut().enumerate() {
                for (v, s) in row.iter_mut().enumerate() {
                    *s = S::load(state.add(r * cols + v * S::LANES));
                }
            }
            for t in 0..count {
                for v in 0..V {
                    let at = seen.add(t * cols + v * S::LANES);
                    let mut read = S::load(at);
                    for (r, row) in tile.iter_mut().enumerate() {
                        if DECAY {
                            row[v] = S::mul(S::splat(*a.add(t * pitch + r)), row[v]);
                        }
                        read = S::fma(S::splat(*k.add(t * pitch + r)), row[v], read);
                    }
                    S::store(at, read);
                }
            }
        }
    }
}

/// What token `t` writes by the delta rule, in `V` registers of columns from `j` on: a part of its value, less what is
/// held under its key by then.
///
/// # Safety
/// `work` has what `predict` and `grams` made, and the earlier tokens are done; the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn write<S: Simd, const V: usize>(work: &mut Work, t: usize, beta: f32, j: usize) {
    let cols = work.cols;
    let (earlier, own) = work.u.split_at_mut(t * cols);
    // SAFETY: rows are whole registers, and these inside of them.
    unsafe {
        let seen = work.seen[t * cols + j..].as_ptr();
        let mut held = [S::splat(0.0); V];
        for (v, held) in held.iter_mut().enumerate() {
            *held = S::load(seen.add(v * S::LANES));
        }
        for (s, gram) in work.gram[t * CHUNK..][..t].iter().enumerate() {
            let u = earlier[s * cols + j..].as_ptr();
            for (v, held) in held.iter_mut().enumerate() {
                *held = S::fma(S::splat(*gram), S::load(u.add(v * S::LANES)), *held);
            }
        }
        let u = own[j..].as_mut_ptr();
        for (v, held) in held.into_iter().enumerate() {
            let at = u.add(v * S::LANES);
            S::store(at, S::mul(S::splat(beta), S::sub(S::load(at), held)));
        }
    }
}

/// `gram[t][s]`, `s < t`: how much of what key `s` writes is under key `t` when that comes.
///
/// # Safety
/// As [`scan`].
#[inline(always)]
unsafe fn grams<S: Simd>(work: &mut Work, count: usize, decay: u32) {
    let Work { pitch, k, a, gram, .. } = work;
    let pitch = *pitch;
    // What is left of a key, channel by channel.
    let mut left = vec![0.0f32; pitch];
    for s in 0..count {
        left.copy_from_slice(&k[s * pitch..][..pitch]);
        let mut t = s + 1;
        // SAFETY: rows are whole registers.
        unsafe {
            while decay != 2 && t + 4 <= count {
                let products = products::<S, 4>(&left, &k[t * pitch..]);
                for (i, product) in products.into_iter().enumerate() {
                    gram[(t + i) * CHUNK + s] = product;
                }
                t += 4;
            }
            while t < count {
                if decay == 2 {
                    for c in (0..pitch).step_by(S::LANES) {
                        let at = left[c..].as_mut_ptr();
                        S::store(at, S::mul(S::load(at), S::load(a[t * pitch + c..].as_ptr())));
                    }
                }
                [gram[t * CHUNK + s]] = products::<S, 1>(&left, &k[t * pitch..]);
                t += 1;
            }
        }
        if decay == 1 && pitch > 0 {
            let mut of_token = 1.0;
            for t in s + 1..count {
                of_token *= a[t * pitch];
                gram[t * CHUNK + s] *= of_token;
            }
        }
    }
}

/// The products of a row with `N` rows that follow each other.
///
/// # Safety
/// Rows are whole registers, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn products<S: Simd, const N: usize>(row: &[f32], rows: &[f32]) -> [f32; N] {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [S::splat(0.0); N];
        for c in (0..row.len()).step_by(S::LANES) {
            let x = S::load(row[c..].as_ptr());
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = S::fma(x, S::load(rows[i * row.len() + c..].as_ptr()), *sum);
            }
        }
        let mut products = [0.0; N];
        for (product, sum) in products.iter_mut().zip(sums) {
            *product = S::sum(sum);
        }
        products
    }
}
