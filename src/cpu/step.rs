//! The solver step on the CPU. Memory traffic is the limit, so buffers are read once, side by side; noise
//! is made in pieces that stay in the L1 cache. Large results are written past the caches.

use super::simd::{Kernel, Simd};
use super::strided::{In, Out, by_dtype};
use crate::dtype::{Dtype, Float};
use crate::ops::step::{Coefficients, MAX_BUFFERS, Noise, Step, StepArgs, StepParams, Strides};
use crate::philox;
use crate::target::cpu::Cpu;
use arrayvec::ArrayVec;
use std::ops::Range;

/// Elements of a task: a multiple of [`PIECE`].
const TASK: usize = 16 << 10;

/// Elements of noise made at once.
const PIECE: usize = 1 << 10;

/// Bytes of a result that is written past the caches: it would not be there any more when it is read.
const STREAMED: usize = 8 << 20;

pub(crate) fn run(op: Step, p: &StepParams, args: StepArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    by_dtype!(args.out.dtype(), typed(op, p, args, cpu));
}

fn typed<T: Float>(op: Step, p: &StepParams, args: StepArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    let (samples, len) = (p.samples as usize, p.len as usize);
    if samples == 0 || len == 0 {
        return;
    }
    let StepArgs { x0, x1, x2, x3, x4, x5, x6, x7, table, mut out } = args;
    let given = [Some(x0), x1, x2, x3, x4, x5, x6, x7];
    let used = op.used(std::array::from_fn(|j| given[j].is_some()));
    let table = table.as_ref().map(In::<f32>::new);
    let buffers: ArrayVec<_, MAX_BUFFERS> = given
        .iter()
        .enumerate()
        .filter_map(|(j, view)| Some((j, In::<T>::new(view.as_ref().filter(|_| used[j])?))))
        .collect();
    let call = Call {
        op,
        p,
        dense: p.dense(used),
        stream: T::DTYPE == Dtype::F32 && samples * len * size_of::<T>() >= STREAMED,
        buffers,
        table,
        out: Out::<T>::new(&mut out),
    };
    let tasks = len.div_ceil(TASK);
    cpu.each(samples * tasks, |task| {
        let (b, first) = (task / tasks, task % tasks * TASK);
        call.part(b, first..len.min(first + TASK), cpu);
    });
}

/// A call, with its operands as pointers.
struct Call<'a, T> {
    op: Step,
    p: &'a StepParams,
    dense: bool,
    stream: bool,
    /// Number and first element of each buffer that is read.
    buffers: ArrayVec<(usize, In<'a, T>), MAX_BUFFERS>,
    table: Option<In<'a, f32>>,
    out: Out<'a, T>,
}

/// One buffer of a sample: coefficient, first element, strides.
type Term<'a, T> = (f32, In<'a, T>, Strides);

impl<T: Float> Call<'_, T> {
    /// Coefficient `j` of sample `b`; 8 is that of the noise.
    fn coefficient(&self, b: usize, j: usize) -> f32 {
        match (self.op.coefficients, self.table) {
            // SAFETY: (b, j) is inside the table, whose shape `check` compared.
            (_, Some(t)) => unsafe { *t.at(b * self.p.table_b as usize + j * self.p.table_c as usize) },
            (Coefficients::Values { x, noise }, None) => x.get(j).copied().unwrap_or(noise),
            (Coefficients::Table, None) => 0.0,
        }
    }

    /// Elements `range` of sample `b`.
    fn part(&self, b: usize, range: Range<usize>, cpu: &Cpu) {
        let strides = self.p.strides();
        let terms: ArrayVec<Term<T>, MAX_BUFFERS> = self
            .buffers
            .iter()
            .map(|&(j, x)| (self.coefficient(b, j), x.after(b * strides[j][0] as usize), strides[j]))
            .filter(|term| term.0 != 0.0)
            .collect();
        let out = self.out.after(b * self.p.out_b as usize);
        let noise = self.op.noise.filter(|_| self.op.noisy());
        let noise_coefficient = noise.map_or(0.0, |_| self.coefficient(b, MAX_BUFFERS));
        let mut normals = [0.0; PIECE];
        let size = if noise.is_some() { PIECE } else { TASK };
        for first in range.clone().step_by(size) {
            let piece = first..range.end.min(first + size);
            let normals = noise.map(|Noise { seed, stream }| {
                let normals = &mut normals[..piece.len()];
                philox::fill(cpu.isa(), seed, stream.wrapping_add(b as u64), (first / 4) as u32, normals);
                &*normals
            });
            if self.dense {
                let stream = self.stream;
                cpu.isa().run(Dense {
                    terms: &terms,
                    noise: (noise_coefficient, normals),
                    out,
                    piece,
                    stream,
                });
            } else {
                self.scattered(&terms, (noise_coefficient, normals), out, piece);
            }
        }
        if self.stream && self.dense {
            super::simd::fence();
        }
    }

    /// Element by element, along runs of the last axis.
    fn scattered(
        &self,
        terms: &[Term<T>],
        (c, normals): (f32, Option<&[f32]>),
        out: Out<T>,
        piece: Range<usize>,
    ) {
        let (size_j, size_k) = (self.p.size_j as usize, self.p.size_k as usize);
        let at = |[_, i, j, k]: Strides, e: usize| {
            let place = [e / size_k / size_j, e / size_k % size_j, e % size_k];
            place[0] * i as usize + place[1] * j as usize + place[2] * k as usize
        };
        let out_strides = self.p.strides()[MAX_BUFFERS];
        let mut sums = [0.0f32; 256];
        let mut e = piece.start;
        while e < piece.end {
            let run = (size_k - e % size_k).min(piece.end - e).min(sums.len());
            let sums = &mut sums[..run];
            match normals {
                Some(z) => sums.iter_mut().zip(&z[e - piece.start..]).for_each(|(s, z)| *s = c * z),
                None => sums.fill(0.0),
            }
            for &(c, x, strides) in terms {
                let first = at(strides, e);
                for (w, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: elements e..e + run of the sample lie along its last axis from e on.
                    *sum += c * unsafe { *x.at(first + w * strides[3] as usize) }.to_f32();
                }
            }
            let first = at(out_strides, e);
            for (w, &sum) in sums.iter().enumerate() {
                // SAFETY: as above; no other task has these elements.
                unsafe { *out.at(first + w * out_strides[3] as usize) = T::from_f32(sum) };
            }
            e += run;
        }
    }
}

/// Neighbouring elements of one sample.
struct Dense<'a, T> {
    terms: &'a [Term<'a, T>],
    noise: (f32, Option<&'a [f32]>),
    out: Out<'a, T>,
    piece: Range<usize>,
    stream: bool,
}

impl<T: Float> Kernel for Dense<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the caller's contract; one copy per number of terms, so that the sum has no loop.
        unsafe {
            match self.terms.len() {
                0 => self.sum::<S, 0>(),
                1 => self.sum::<S, 1>(),
                2 => self.sum::<S, 2>(),
                3 => self.sum::<S, 3>(),
                4 => self.sum::<S, 4>(),
                5 => self.sum::<S, 5>(),
                6 => self.sum::<S, 6>(),
                7 => self.sum::<S, 7>(),
                _ => self.sum::<S, 8>(),
            }
        }
    }
}

impl<T: Float> Dense<'_, T> {
    #[inline(always)]
    unsafe fn sum<S: Simd, const N: usize>(self) {
        let Self { terms, noise, out, piece, stream } = self;
        // SAFETY: the elements of the piece are inside every buffer, normals has one for each, and no
        // other task has them.
        unsafe {
            let mut sources = Sources::<S, T, N> {
                from: [out.at(piece.start).cast_const(); N],
                coefficients: [S::splat(0.0); N],
                noise: S::splat(noise.0),
                normals: noise.1.map(<[f32]>::as_ptr),
            };
            for (j, &(c, x, _)) in terms.iter().enumerate() {
                sources.from[j] = x.at(piece.start);
                sources.coefficients[j] = S::splat(c);
            }
            let (to, count) = (out.at(piece.start), piece.len());
            let mut e = 0;
            if stream {
                // Up to the first boundary of a register, which streaming needs.
                let head = to.align_offset(S::LANES * size_of::<T>()).min(count) % S::LANES;
                S::put_n(to, sources.sum(0, head), head);
                e = head;
                while e + S::LANES <= count {
                    S::stream(to.add(e).cast(), sources.sum(e, S::LANES));
                    e += S::LANES;
                }
            }
            while e + S::LANES <= count {
                S::put(to.add(e), sources.sum(e, S::LANES));
                e += S::LANES;
            }
            if e < count {
                S::put_n(to.add(e), sources.sum(e, count - e), count - e);
            }
        }
    }
}

/// What a sum is taken of.
struct Sources<S: Simd, T, const N: usize> {
    from: [*const T; N],
    coefficients: [S::V; N],
    noise: S::V,
    normals: Option<*const f32>,
}

impl<S: Simd, T: Float, const N: usize> Sources<S, T, N> {
    /// The sum over `lanes` elements from `e` on.
    #[inline(always)]
    unsafe fn sum(&self, e: usize, lanes: usize) -> S::V {
        // SAFETY: the caller's elements are inside every buffer.
        unsafe {
            let whole = lanes == S::LANES;
            let mut sum = match self.normals {
                Some(z) if whole => S::mul(self.noise, S::load(z.add(e))),
                Some(z) => S::mul(self.noise, S::load_n(z.add(e), lanes)),
                None => S::splat(0.0),
            };
            for j in 0..N {
                let x = self.from[j].add(e);
                let x = if whole { S::get(x) } else { S::get_n(x, lanes) };
                sum = S::fma(self.coefficients[j], x, sum);
            }
            sum
        }
    }
}
