//! Merging parts of attention on the CPU: threads over queries; of each the largest weight first, then sums of the parts,
//! a block of elements at a time. Memory traffic is the limit.

use super::simd::{Kernel, Simd};
use super::strided::{In, Out, by_dtype};
use crate::dtype::{Dtype, Float};
use crate::ops::merge::{MergeArgs, MergeParams};
use crate::target::cpu::Cpu;
use std::ops::Range;

/// Queries of a task.
const QUERIES: usize = 32;

/// Elements that are summed at once, in cache: a multiple of every vector's lanes. There may be any number of parts,
/// and keeping something for each of them would take memory without end.
const BLOCK: usize = 256;

pub(crate) fn run(p: &MergeParams, args: MergeArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    by_dtype!(args.out.dtype(), typed(p, args, cpu));
}

fn typed<T: Float>(p: &MergeParams, args: MergeArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    match args.parts.dtype() {
        Dtype::F32 => both::<f32, T>(p, args, cpu),
        _ => both::<T, T>(p, args, cpu),
    }
}

fn both<P: Float, T: Float>(p: &MergeParams, args: MergeArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    let MergeArgs { parts, lses, mut out, mut lse } = args;
    if p.total == 0 {
        return;
    }
    let (parts, lses) = (In::<P>::new(&parts), In::<f32>::new(&lses));
    let (out, lse) = (Out::<T>::new(&mut out), lse.as_mut().map(Out::<f32>::new));
    let rows = (p.total / p.columns) as usize;
    cpu.each(rows.div_ceil(QUERIES), |task| {
        let rows = task * QUERIES..((task + 1) * QUERIES).min(rows);
        cpu.isa().run(Rows { p, parts, lses, out, lse, rows });
    });
}

/// Some queries, numbered through batch and heads.
struct Rows<'a, P, T> {
    p: &'a MergeParams,
    parts: In<'a, P>,
    lses: In<'a, f32>,
    out: Out<'a, T>,
    lse: Option<Out<'a, f32>>,
    rows: Range<usize>,
}

impl<P: Float, T: Float> Kernel for Rows<'_, P, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { p, parts, lses, out, lse, rows } = self;
        let (n, heads, count, d) = (p.n as usize, p.heads as usize, p.parts as usize, p.d as usize);
        let dense = p.parts_d == 1 && p.out_d == 1;
        let mut sums = [0.0f32; BLOCK];
        for row in rows {
            let (b, h, i) = (row / n / heads, row / n % heads, row % n);
            let at = |strides: [u32; 3]| {
                b * strides[0] as usize + h * strides[1] as usize + i * strides[2] as usize
            };
            // SAFETY: batch entry, head, query, parts and elements are inside the views, no other task has this query, and
            // the caller has the instructions of S.
            unsafe {
                let from = lses.after(at([p.lses_b, p.lses_h, p.lses_n]));
                let of = |s: usize| *from.at(s * p.lses_s as usize);
                // NaN stays.
                let max = |m: f32, x: f32| if x > m || x.is_nan() { x } else { m };
                let m = (0..count).map(of).fold(f32::NEG_INFINITY, max);
                let from = parts.after(at([p.parts_b, p.parts_h, p.parts_n]));
                let to = out.after(at([p.out_b, p.out_h, p.out_n]));
                let whole = if dense { d - d % S::LANES } else { 0 };
                let mut l = 0.0f32;
                // Without elements there is still the sum of the weights.
                for first in (0..d.max(1)).step_by(BLOCK) {
                    let end = (first + BLOCK).min(d);
                    // Vectors up to here, which is `first` or a multiple of LANES after it.
                    let middle = end.min(whole).max(first);
                    sums[..end - first].fill(0.0);
                    let sum = sums.as_mut_ptr();
                    l = 0.0;
                    for s in 0..count {
                        let x = of(s);
                        if x == f32::NEG_INFINITY {
                            continue;
                        }
                        let w = (x - m).exp();
                        l += w;
                        let start = s * p.parts_s as usize;
                        for e in (first..middle).step_by(S::LANES) {
                            let sum = sum.add(e - first);
                            S::store(sum, S::fma(S::splat(w), S::get(from.at(start + e)), S::load(sum)));
                        }
                        for e in middle..end {
                            *sum.add(e - first) += w * (*from.at(start + e * p.parts_d as usize)).to_f32();
                        }
                    }
                    let scale = if l == 0.0 { 0.0 } else { 1.0 / l };
                    for e in (first..middle).step_by(S::LANES) {
                        S::put(to.at(e), S::mul(S::load(sum.add(e - first)), S::splat(scale)));
                    }
                    for e in middle..end {
                        *to.at(e * p.out_d as usize) = T::from_f32(*sum.add(e - first) * scale);
                    }
                }
                if let Some(lse) = lse {
                    // The logarithm of 0 is -infinity.
                    let m = if l == 0.0 { 0.0 } else { m };
                    *lse.at(at([p.lse_b, p.lse_h, p.lse_n])) = m + l.ln();
                }
            }
        }
    }
}
