//! Normalisation on the CPU: three passes over data that then lies in the L1 or L2 cache.
//!
//! - Channels last (the channel stride is 1): a task is a sample, or some whole groups of it, and a
//!   register holds neighbouring channels, whatever the size of a group. Sums are kept per channel and
//!   folded into groups at the end.
//! - Dense rows: a task is a few rows, and a register holds neighbours of a row.
//! - Any other strides, and more channels than there should be tables for: element by element. Dense rows without weight,
//!   bias, scale and shift need none.
//!
//! Sums are f32 in each lane and f64 where lanes meet.

use super::activation::activate;
use super::simd::{Isa, Kernel, Simd};
use super::strided::{In, Out, by_dtype};
use crate::dtype::Float;
use crate::ops::Activation;
use crate::ops::norm::{Norm, NormArgs, NormKind, NormParams};
use crate::target::cpu::Cpu;
use std::ops::Range;

/// Elements that are worth a task of their own.
const TASK: usize = 16 << 10;

/// Bytes of a sample's part that should stay in the L2 cache between passes.
const PART: usize = 512 << 10;

/// The most channels that a task has tables for.
const MAX_CHANNELS: usize = 1 << 22;

/// The most elements that are kept between passes, where rows are taken element by element.
const BLOCK: usize = 1 << 20;

pub(crate) fn run(op: Norm, p: &NormParams, args: NormArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    by_dtype!(args.out.dtype(), typed(op, p, args, cpu));
}

/// A call, with its operands as pointers.
struct Call<'a, T> {
    p: NormParams,
    center: bool,
    activation: Activation,
    x: In<'a, T>,
    out: Out<'a, T>,
    weight: Option<In<'a, T>>,
    bias: Option<In<'a, T>>,
    scale: Option<In<'a, T>>,
    shift: Option<In<'a, T>>,
}

fn typed<T: Float>(op: Norm, p: &NormParams, args: NormArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    if p.rows == 0 || p.len == 0 {
        return;
    }
    let NormArgs { x, weight, bias, scale, shift, mut out } = args;
    let call = Call::<T> {
        p: *p,
        center: op.kind != NormKind::Rms,
        activation: op.activation,
        x: In::new(&x),
        out: Out::new(&mut out),
        weight: weight.as_ref().map(In::new),
        bias: bias.as_ref().map(In::new),
        scale: scale.as_ref().map(In::new),
        shift: shift.as_ref().map(In::new),
    };
    let (rows, per_sample, len) = (p.rows as usize, p.per_sample as usize, p.len as usize);
    let dense = p.x_i == 1 && p.out_i == 1;
    // Of a group, the channel axis is the step from row to row cut into its channels.
    let channels_last = p.ch_r > 0
        && if p.ch_r > 1 { dense && p.ch_i == 1 } else { p.per_sample > 1 && p.x_r == 1 && p.out_r == 1 };
    let channels = if p.ch_r == 0 { len } else { p.ch_r as usize * per_sample };
    let tables = channels <= MAX_CHANNELS;
    if tables && channels_last && !(dense && p.ch_i == 0) {
        let samples = rows / per_sample;
        let enough = (2 * cpu.threads()).div_ceil(samples).min((len * per_sample).div_ceil(TASK));
        let parts = enough.max((len * per_sample * size_of::<T>()).div_ceil(PART));
        let parts = if samples >= 2 * cpu.threads() { 1 } else { parts.clamp(1, per_sample) };
        // Whole cache lines of channels, where groups can be put together to that.
        let even = per_sample.div_ceil(parts);
        let whole = (even..2 * even + 8).find(|g| (g * p.ch_r as usize * size_of::<T>()).is_multiple_of(64));
        let groups = if parts == 1 { per_sample } else { whole.unwrap_or(even).min(per_sample) };
        let parts = per_sample.div_ceil(groups);
        cpu.each(samples * parts, |task| {
            let first = task % parts * groups;
            let columns =
                Columns { call: &call, n: task / parts, groups: first..per_sample.min(first + groups) };
            cpu.isa().run(columns);
        });
        return;
    }
    let count = (TASK / len).clamp(1, rows.div_ceil(4 * cpu.threads()).max(1));
    cpu.each(rows.div_ceil(count), |task| {
        let range = task * count..rows.min((task + 1) * count);
        if (tables || call.plain()) && dense && (p.ch_i == 0 || p.len == p.inner) {
            cpu.isa().run(Rows { call: &call, range });
        } else {
            range.for_each(|row| call.scattered(row, cpu.isa()));
        }
    });
}

/// What a row's elements are mapped with: `(x - mean) * inverse`.
#[derive(Clone, Copy)]
struct Statistics {
    mean: f32,
    inverse: f32,
}

impl<T: Float> Call<'_, T> {
    /// Whether all factors are 1 and all summands 0.
    fn plain(&self) -> bool {
        self.weight.is_none() && self.bias.is_none() && self.scale.is_none() && self.shift.is_none()
    }

    /// Factor and summand of channel `c` in sample `n`.
    #[inline(always)]
    fn affine(&self, n: usize, c: usize) -> (f32, f32) {
        let p = &self.p;
        let get = |operand: Option<In<T>>, at: usize, or: f32| {
            // SAFETY: n and c are inside the operand, whose shape `check` compared.
            operand.map_or(or, |o| unsafe { *o.at(at) }.to_f32())
        };
        let weight = get(self.weight, c * p.weight_c as usize, 1.0);
        let bias = get(self.bias, c * p.bias_c as usize, 0.0);
        let scale = get(self.scale, n * p.scale_n as usize + c * p.scale_c as usize, 0.0);
        let shift = get(self.shift, n * p.shift_n as usize + c * p.shift_c as usize, 0.0);
        (weight * (1.0 + scale), bias * (1.0 + scale) + shift)
    }

    /// Mean and inverse deviation from the sums over a row: of the deviations from a first mean, and of
    /// their squares.
    fn statistics(&self, mean: f32, first: f64, second: f64) -> Statistics {
        let len = f64::from(self.p.len);
        let correction = if self.center { first / len } else { 0.0 };
        let variance = second / len - correction * correction;
        // `max` would hide a NaN.
        let variance = if variance < 0.0 { 0.0 } else { variance };
        Statistics {
            mean: (f64::from(mean) + correction) as f32,
            inverse: (1.0 / (variance + f64::from(self.p.eps)).sqrt()) as f32,
        }
    }

    /// One row, element by element, a block of them after the other.
    fn scattered(&self, row: usize, isa: Isa) {
        let p = &self.p;
        let (n, r) = (row / p.per_sample as usize, row % p.per_sample as usize);
        let from = n * p.x_n as usize + r * p.x_r as usize;
        let to = n * p.out_n as usize + r * p.out_r as usize;
        let (inner, mid, len) = (p.inner as usize, p.mid as usize, p.len as usize);
        let place = |e: usize| (e % inner, e / inner % mid, e / inner / mid);
        let blocks = || (0..len).step_by(BLOCK).map(move |first| first..len.min(first + BLOCK));
        let load = |block: Range<usize>, values: &mut Vec<f32>, maps: &mut Vec<(f32, f32)>| {
            values.clear();
            maps.clear();
            for e in block {
                let (i, m, o) = place(e);
                let at = from + i * p.x_i as usize + m * p.x_m as usize + o * p.x_o as usize;
                // SAFETY: (i, m, o) is inside row r of sample n.
                values.push(unsafe { *self.x.at(at) }.to_f32());
                let c = r * p.ch_r as usize + i * p.ch_i as usize + m * p.ch_m as usize + o * p.ch_o as usize;
                maps.push(self.affine(n, c));
            }
        };
        let kept = len.min(BLOCK);
        let (mut values, mut maps) = (Vec::with_capacity(kept), Vec::with_capacity(kept));
        // The only block is loaded once, others before each pass.
        load(0..kept, &mut values, &mut maps);
        let mut pass = |f: &mut dyn FnMut(f64)| {
            for block in blocks() {
                if len > BLOCK {
                    load(block, &mut values, &mut maps);
                }
                values.iter().for_each(|&v| f(f64::from(v)));
            }
        };
        let mut total = 0.0;
        if self.center {
            pass(&mut |v| total += v);
        }
        let mean = (total / f64::from(p.len)) as f32;
        let (mut first, mut second) = (0.0, 0.0);
        pass(&mut |v| {
            let off = v - f64::from(mean);
            first += off;
            second += off * off;
        });
        let s = self.statistics(mean, first, second);
        for block in blocks() {
            if len > BLOCK {
                load(block.clone(), &mut values, &mut maps);
            }
            for (v, (factor, summand)) in values.iter_mut().zip(&maps) {
                *v = (*v - s.mean) * s.inverse * factor + summand;
            }
            isa.run(Activate(self.activation, &mut values));
            for (e, &v) in block.zip(&values) {
                let (i, m, o) = place(e);
                let at = to + i * p.out_i as usize + m * p.out_m as usize + o * p.out_o as usize;
                // SAFETY: as above; each row belongs to one task.
                unsafe { *self.out.at(at) = T::from_f32(v) };
            }
        }
    }
}

/// The activation of every number, in place.
struct Activate<'a>(Activation, &'a mut [f32]);

impl Kernel for Activate<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for chunk in self.1.chunks_mut(S::LANES) {
            let (at, n) = (chunk.as_mut_ptr(), chunk.len());
            // SAFETY: the chunk has n lanes.
            unsafe { S::store_n(at, activate::<S>(self.0, S::load_n(at, n)), n) }
        }
    }
}

/// Registers of sums kept at once, so that additions do not wait for one another.
const CHAINS: usize = 4;

// The two walks below are macros and no functions of closures: a closure is compiled without the
// instruction set of the function around it.

/// Runs the body for registers that cover `0..count` elements, whole ones first: `chain` counts those
/// that may be under way at once, `i` is the first element, `lanes` how many there are.
macro_rules! registers {
    ($S:ident, $count:expr, |$chain:pat_param, $i:ident, $lanes:ident| $body:block) => {{
        let (count, mut next) = ($count, 0);
        while next + CHAINS * $S::LANES <= count {
            for chain in 0..CHAINS {
                let ($chain, $i, $lanes) = (chain, next + chain * $S::LANES, $S::LANES);
                $body
            }
            next += CHAINS * $S::LANES;
        }
        while next < count {
            let ($chain, $i, $lanes) = (0, next, $S::LANES.min(count - next));
            $body
            next += $S::LANES;
        }
    }};
}

/// Runs the body for every position of a [`Columns`] block: `from` and `to` are its first channel's
/// element on both sides.
macro_rules! positions {
    ($columns:expr, |$chain:pat_param, $from:ident, $to:pat_param| $body:block) => {{
        let Grid { from, to, across, down } = $columns.grid();
        for j in 0..down.count {
            let (from, to) = (from + j * down.x, to + j * down.out);
            let mut i = 0;
            while i + CHAINS <= across.count {
                for chain in 0..CHAINS {
                    let ($chain, $from) = (chain, from + (i + chain) * across.x);
                    let $to = to + (i + chain) * across.out;
                    $body
                }
                i += CHAINS;
            }
            while i < across.count {
                let ($chain, $from, $to) = (0, from + i * across.x, to + i * across.out);
                $body
                i += 1;
            }
        }
    }};
}

/// The positions of one sample: two axes and where they start, on both sides.
struct Grid {
    from: usize,
    to: usize,
    across: Steps,
    down: Steps,
}

/// Positions along one axis, and their distance on both sides.
struct Steps {
    count: usize,
    x: usize,
    out: usize,
}

/// `lanes` elements of the input from `at` on; the lanes behind are 0.
///
/// # Safety
/// They are inside the view, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn get<S: Simd, T: Float>(x: In<T>, at: usize, lanes: usize) -> S::V {
    // SAFETY: this function's contract.
    unsafe {
        let from = x.at(at);
        if lanes == S::LANES { S::get(from) } else { S::get_n(from, lanes) }
    }
}

/// `lanes` elements to the output from `at` on.
///
/// # Safety
/// They are inside the view, no other thread has them, and the CPU has the instructions of `S`.
#[inline(always)]
unsafe fn put<S: Simd, T: Float>(out: Out<T>, at: usize, v: S::V, lanes: usize) {
    // SAFETY: this function's contract.
    unsafe {
        let to = out.at(at);
        if lanes == S::LANES { S::put(to, v) } else { S::put_n(to, v, lanes) }
    }
}

/// The sum of the chains.
///
/// # Safety
/// The CPU has the instructions of `S`.
#[inline(always)]
unsafe fn fold<S: Simd>(v: [S::V; CHAINS]) -> S::V {
    // SAFETY: this function's contract.
    unsafe { S::add(S::add(v[0], v[1]), S::add(v[2], v[3])) }
}

/// Some whole groups of one sample whose channels are neighbours.
struct Columns<'a, T> {
    call: &'a Call<'a, T>,
    n: usize,
    groups: Range<usize>,
}

impl<T: Float> Columns<'_, T> {
    /// The positions: the two axes that are not the channels.
    #[inline(always)]
    fn grid(&self) -> Grid {
        let p = &self.call.p;
        let (first, steps) = (self.groups.start, |count: u32, x: u32, out: u32| Steps {
            count: count as usize,
            x: x as usize,
            out: out as usize,
        });
        let (across, down) = if p.ch_i == 1 {
            (steps(p.mid, p.x_m, p.out_m), steps(p.outer(), p.x_o, p.out_o))
        } else {
            (steps(p.inner, p.x_i, p.out_i), steps(p.mid, p.x_m, p.out_m))
        };
        Grid {
            from: self.n * p.x_n as usize + first * p.x_r as usize,
            to: self.n * p.out_n as usize + first * p.out_r as usize,
            across,
            down,
        }
    }

    /// The last pass.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, activation: Activation, mean: &[f32], factor: &[f32], summand: &[f32]) {
        let channels = self.groups.len() * self.call.p.ch_r as usize;
        for block in (0..channels).step_by(S::LANES) {
            let lanes = S::LANES.min(channels - block);
            // SAFETY: the tables are padded to whole registers; positions and channels are inside both
            // views; no other task has these groups.
            unsafe {
                let mean = S::load(mean.as_ptr().add(block));
                let factor = S::load(factor.as_ptr().add(block));
                let summand = S::load(summand.as_ptr().add(block));
                positions!(self, |_, from, to| {
                    let d = S::sub(get::<S, T>(self.call.x, from + block, lanes), mean);
                    let y = activate::<S>(activation, S::fma(d, factor, summand));
                    put::<S, T>(self.call.out, to + block, y, lanes);
                });
            }
        }
    }
}

impl<T: Float> Kernel for Columns<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let call = self.call;
        let size = call.p.ch_r as usize;
        let channels = self.groups.len() * size;
        let padded = channels.next_multiple_of(S::LANES);
        let mut tables = vec![0.0f32; 4 * padded];
        let (mean, rest) = tables.split_at_mut(padded);
        let (first, rest) = rest.split_at_mut(padded);
        let (second, summand) = rest.split_at_mut(padded);
        let len = f64::from(call.p.len);

        if call.center {
            for block in (0..channels).step_by(S::LANES) {
                let lanes = S::LANES.min(channels - block);
                // SAFETY: positions and channels are inside the view, tables are padded.
                unsafe {
                    let mut sums = [S::splat(0.0); CHAINS];
                    positions!(self, |chain, from, _| {
                        sums[chain] = S::add(sums[chain], get::<S, T>(call.x, from + block, lanes));
                    });
                    S::store(first.as_mut_ptr().add(block), fold::<S>(sums));
                }
            }
            for (mean, sums) in mean.chunks_mut(size).zip(first.chunks(size)).take(self.groups.len()) {
                mean.fill((total(sums) / len) as f32);
            }
        }
        for block in (0..channels).step_by(S::LANES) {
            let lanes = S::LANES.min(channels - block);
            // SAFETY: as above.
            unsafe {
                let centre = S::load(mean.as_ptr().add(block));
                let (mut sums, mut squares) = ([S::splat(0.0); CHAINS], [S::splat(0.0); CHAINS]);
                positions!(self, |chain, from, _| {
                    let d = S::sub(get::<S, T>(call.x, from + block, lanes), centre);
                    sums[chain] = S::add(sums[chain], d);
                    squares[chain] = S::fma(d, d, squares[chain]);
                });
                S::store(first.as_mut_ptr().add(block), fold::<S>(sums));
                S::store(second.as_mut_ptr().add(block), fold::<S>(squares));
            }
        }
        for group in 0..self.groups.len() {
            let range = group * size..(group + 1) * size;
            let s = call.statistics(
                mean[range.start],
                total(&first[range.clone()]),
                total(&second[range.clone()]),
            );
            for c in range {
                let (factor, add) = call.affine(self.n, self.groups.start * size + c);
                mean[c] = s.mean;
                first[c] = s.inverse * factor;
                summand[c] = add;
            }
        }
        // One copy of the last pass per activation, so that none is chosen per register.
        // SAFETY: the caller's contract.
        unsafe {
            match call.activation {
                Activation::None => self.write::<S>(Activation::None, mean, first, summand),
                Activation::Silu => self.write::<S>(Activation::Silu, mean, first, summand),
                Activation::Gelu => self.write::<S>(Activation::Gelu, mean, first, summand),
            }
        }
    }
}

/// The sum of the channels of a group.
fn total(channels: &[f32]) -> f64 {
    channels.iter().map(|&v| f64::from(v)).sum()
}

/// Some rows whose inner axis is dense.
struct Rows<'a, T> {
    call: &'a Call<'a, T>,
    range: Range<usize>,
}

/// A dense run of a row: its first element on both sides and its first channel.
struct Run {
    from: usize,
    to: usize,
    channel: usize,
}

impl<T: Float> Rows<'_, T> {
    /// How many runs a row has.
    #[inline(always)]
    fn runs(&self) -> usize {
        (self.call.p.mid * self.call.p.outer()) as usize
    }

    /// Run `i` of row `r` of sample `n`.
    #[inline(always)]
    fn run_of(&self, n: usize, r: usize, i: usize) -> Run {
        let p = &self.call.p;
        let (m, o) = (i % p.mid as usize, i / p.mid as usize);
        Run {
            from: n * p.x_n as usize + r * p.x_r as usize + m * p.x_m as usize + o * p.x_o as usize,
            to: n * p.out_n as usize + r * p.out_r as usize + m * p.out_m as usize + o * p.out_o as usize,
            channel: r * p.ch_r as usize + m * p.ch_m as usize + o * p.ch_o as usize,
        }
    }

    /// Mean and inverse deviation of row `r` of sample `n`.
    #[inline(always)]
    unsafe fn statistics<S: Simd>(&self, n: usize, r: usize) -> Statistics {
        let (call, inner) = (self.call, self.call.p.inner as usize);
        // SAFETY: runs and their elements are inside the view.
        unsafe {
            let mut mean = 0.0;
            if call.center {
                let mut total = 0.0;
                for i in 0..self.runs() {
                    let from = self.run_of(n, r, i).from;
                    let mut sums = [S::splat(0.0); CHAINS];
                    registers!(S, inner, |chain, i, lanes| {
                        sums[chain] = S::add(sums[chain], get::<S, T>(call.x, from + i, lanes));
                    });
                    total += f64::from(S::sum(fold::<S>(sums)));
                }
                mean = (total / f64::from(call.p.len)) as f32;
            }
            let (whole, centre) = (S::splat(mean), [mean; 16]);
            let (mut first, mut second) = (0.0, 0.0);
            for i in 0..self.runs() {
                let from = self.run_of(n, r, i).from;
                let (mut sums, mut squares) = ([S::splat(0.0); CHAINS], [S::splat(0.0); CHAINS]);
                registers!(S, inner, |chain, i, lanes| {
                    // Lanes past the end hold 0 and are off by 0.
                    let centre = if lanes == S::LANES { whole } else { S::load_n(centre.as_ptr(), lanes) };
                    let d = S::sub(get::<S, T>(call.x, from + i, lanes), centre);
                    sums[chain] = S::add(sums[chain], d);
                    squares[chain] = S::fma(d, d, squares[chain]);
                });
                first += f64::from(S::sum(fold::<S>(sums)));
                second += f64::from(S::sum(fold::<S>(squares)));
            }
            call.statistics(mean, first, second)
        }
    }

    /// The last pass over row `r` of sample `n`.
    #[inline(always)]
    unsafe fn write<S: Simd>(
        &self,
        activation: Activation,
        (n, r): (usize, usize),
        s: Statistics,
        tables: Option<(&[f32], &[f32])>,
    ) {
        let (call, inner) = (self.call, self.call.p.inner as usize);
        // SAFETY: runs and their elements are inside both views, the tables (if any) hold every channel of the
        // sample, and no other task has this row.
        unsafe {
            let (mean, inverse) = (S::splat(s.mean), S::splat(s.inverse));
            for i in 0..self.runs() {
                let Run { from, to, channel } = self.run_of(n, r, i);
                let alike = match tables {
                    None => Some((s.inverse, 0.0)),
                    Some((factors, summands)) if call.p.ch_i == 0 => {
                        Some((s.inverse * factors[channel], summands[channel]))
                    }
                    Some(_) => None,
                };
                if let Some((factor, summand)) = alike {
                    let (factor, summand) = (S::splat(factor), S::splat(summand));
                    registers!(S, inner, |_, i, lanes| {
                        let d = S::sub(get::<S, T>(call.x, from + i, lanes), mean);
                        let y = activate::<S>(activation, S::fma(d, factor, summand));
                        put::<S, T>(call.out, to + i, y, lanes);
                    });
                } else if let Some((factors, summands)) = tables {
                    let (factor, summand) = (factors.as_ptr().add(channel), summands.as_ptr().add(channel));
                    registers!(S, inner, |_, i, lanes| {
                        let d = S::sub(get::<S, T>(call.x, from + i, lanes), mean);
                        // The tables are padded to whole registers.
                        let (factor, summand) = (S::load(factor.add(i)), S::load(summand.add(i)));
                        let y = activate::<S>(activation, S::fma(S::mul(d, inverse), factor, summand));
                        put::<S, T>(call.out, to + i, y, lanes);
                    });
                }
            }
        }
    }
}

impl<T: Float> Kernel for Rows<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let call = self.call;
        let per_sample = call.p.per_sample as usize;
        let plain = call.plain();
        let channels = match call.p.ch_r {
            _ if plain => 0,
            0 => call.p.len as usize,
            each => (each * call.p.per_sample) as usize,
        };
        let size = if plain { 0 } else { channels + S::LANES };
        let mut tables = vec![0.0; 2 * size];
        let (factors, summands) = tables.split_at_mut(size);
        let mut of_sample = None;
        for row in self.range.clone() {
            let (n, r) = (row / per_sample, row % per_sample);
            if of_sample != Some(n) {
                for c in 0..channels {
                    (factors[c], summands[c]) = call.affine(n, c);
                }
                of_sample = Some(n);
            }
            let tables = (!plain).then_some((&*factors, &*summands));
            // SAFETY: the caller's contract.
            unsafe {
                let s = self.statistics::<S>(n, r);
                match call.activation {
                    Activation::None => self.write::<S>(Activation::None, (n, r), s, tables),
                    Activation::Silu => self.write::<S>(Activation::Silu, (n, r), s, tables),
                    Activation::Gelu => self.write::<S>(Activation::Gelu, (n, r), s, tables),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::View;

    /// Rows of more channels than there are tables for, which need none.
    #[test]
    fn long_plain_rows() {
        let len = MAX_CHANNELS + 2;
        // A mean of 2, and a deviation of 1.
        let x: Vec<f32> = (0..len).map(|i| if i % 2 == 0 { 3.0 } else { 1.0 }).collect();
        let mut out = vec![7.0f32; len];
        let args = NormArgs {
            x: View::of(&x, &[1, len]).unwrap(),
            weight: None,
            bias: None,
            scale: None,
            shift: None,
            out: View::of_mut(&mut out, &[1, len]).unwrap(),
        };
        let op = Norm { kind: NormKind::Layer, eps: 0.0, activation: Activation::None };
        Cpu::with(1, Isa::detect()).unwrap().run(&op, args).unwrap();
        assert!((0..len).all(|i| out[i] == x[i] - 2.0));
    }
}
