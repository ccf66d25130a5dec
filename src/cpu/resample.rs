//! Resampling on the CPU: one row of the output a step, threads over batch and rows. Values are copied
//! (up) or added in f32 (down); memory traffic is the limit either way.

use super::strided::{In, Out, by_dtype};
use crate::dtype::Float;
use crate::ops::resample::{Resample, ResampleArgs, ResampleParams};
use crate::target::cpu::Cpu;

pub(crate) fn run(op: Resample, p: &ResampleParams, args: ResampleArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    by_dtype!(args.out.dtype(), typed(op, p, args, cpu));
}

fn typed<T: Float>(op: Resample, p: &ResampleParams, args: ResampleArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    let ResampleArgs { x, mut out } = args;
    if p.total == 0 {
        return;
    }
    let (batch, h) = (out.shape()[0], p.h as usize);
    let (x, out) = (In::<T>::new(&x), Out::<T>::new(&mut out));
    cpu.each(batch * h, |task| {
        let (n, i) = (task / h, task % h);
        match op {
            // SAFETY: the row (n, .., i, ..) is inside `out`, its sources are inside `x`, and each task
            // has a row of its own.
            Resample::Up2 => unsafe { up_row(p, x, out, n, i) },
            // SAFETY: as above.
            Resample::Down2 => unsafe { down_row(p, x, out, n, i) },
        }
    });
}

/// # Safety
/// Row (n, i) is inside the output and no other thread touches it.
unsafe fn up_row<T: Float>(p: &ResampleParams, x: In<T>, out: Out<T>, n: usize, i: usize) {
    let s = Strides::new(p);
    let (from, to) = (n * s.x_n + i / 2 * s.x_h, n * s.out_n + i * s.out_h);
    if s.x_c == 1 && s.out_c == 1 {
        for j in 0..s.w {
            // SAFETY: the pixel's channels are neighbours on both sides, and inside both views.
            unsafe {
                let source = x.at(from + j / 2 * s.x_w);
                std::ptr::copy_nonoverlapping(source, out.at(to + j * s.out_w), s.c);
            }
        }
        return;
    }
    for c in 0..s.c {
        for j in 0..s.w {
            // SAFETY: c and j are inside both views.
            unsafe { *out.at(to + c * s.out_c + j * s.out_w) = *x.at(from + c * s.x_c + j / 2 * s.x_w) }
        }
    }
}

/// # Safety
/// Row (n, i) is inside the output and no other thread touches it.
unsafe fn down_row<T: Float>(p: &ResampleParams, x: In<T>, out: Out<T>, n: usize, i: usize) {
    let s = Strides::new(p);
    let (from, to) = (n * s.x_n + 2 * i * s.x_h, n * s.out_n + i * s.out_h);
    for c in 0..s.c {
        for j in 0..s.w {
            let at = from + c * s.x_c + 2 * j * s.x_w;
            // SAFETY: rows 2i, 2i + 1 and columns 2j, 2j + 1 are inside `x`; (c, j) is inside `out`.
            unsafe {
                let top = (*x.at(at)).to_f32() + (*x.at(at + s.x_w)).to_f32();
                let bottom = (*x.at(at + s.x_h)).to_f32() + (*x.at(at + s.x_h + s.x_w)).to_f32();
                *out.at(to + c * s.out_c + j * s.out_w) = T::from_f32(0.25 * (top + bottom));
            }
        }
    }
}

/// The params as indices.
struct Strides {
    c: usize,
    w: usize,
    x_n: usize,
    x_c: usize,
    x_h: usize,
    x_w: usize,
    out_n: usize,
    out_c: usize,
    out_h: usize,
    out_w: usize,
}

impl Strides {
    fn new(p: &ResampleParams) -> Self {
        Self {
            c: p.c as usize,
            w: p.w as usize,
            x_n: p.x_n as usize,
            x_c: p.x_c as usize,
            x_h: p.x_h as usize,
            x_w: p.x_w as usize,
            out_n: p.out_n as usize,
            out_c: p.out_c as usize,
            out_h: p.out_h as usize,
            out_w: p.out_w as usize,
        }
    }
}
