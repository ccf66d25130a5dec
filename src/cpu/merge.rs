//! Merging parts of attention on the CPU: threads over queries; of each the weights first, then sums along the elements.
//! Memory traffic is the limit.

use super::simd::{Kernel, Simd};
use super::strided::{In, Out, by_dtype};
use crate::dtype::{Dtype, Float};
use crate::ops::merge::{MergeArgs, MergeParams};
use crate::target::cpu::Cpu;
use std::ops::Range;

/// Queries of a task.
const QUERIES: usize = 32;

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
        let mut weights: Vec<(usize, f32)> = Vec::with_capacity(count);
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
                weights.clear();
                weights.extend((0..count).filter(|&s| of(s) != f32::NEG_INFINITY).map(|s| {
                    (at([p.parts_b, p.parts_h, p.parts_n]) + s * p.parts_s as usize, (of(s) - m).exp())
                }));
                let l: f32 = weights.iter().map(|(_, w)| w).sum();
                if let Some(lse) = lse {
                    // The logarithm of 0 is -infinity.
                    let m = if l == 0.0 { 0.0 } else { m };
                    *lse.at(at([p.lse_b, p.lse_h, p.lse_n])) = m + l.ln();
                }
                let scale = if l == 0.0 { 0.0 } else { 1.0 / l };
                let to = out.after(at([p.out_b, p.out_h, p.out_n]));
                let whole = if dense { d - d % S::LANES } else { 0 };
                for e in (0..whole).step_by(S::LANES) {
                    let mut sum = S::splat(0.0);
                    for &(start, w) in &weights {
                        sum = S::fma(S::splat(w), S::get(parts.at(start + e)), sum);
                    }
                    S::put(to.at(e), S::mul(sum, S::splat(scale)));
                }
                for e in whole..d {
                    let mut sum = 0.0;
                    for &(start, w) in &weights {
                        sum += w * (*parts.at(start + e * p.parts_d as usize)).to_f32();
                    }
                    *to.at(e * p.out_d as usize) = T::from_f32(sum * scale);
                }
            }
        }
    }
}
