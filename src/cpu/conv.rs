//! Convolutions on the CPU: direct, vectorised over output channels.
//!
//! ```text
//!   pack the weights into panels [window row, window column, input channel][2 registers of channels]
//!   for each sample and block of rows of out                                  threads over these
//!       copy the rows that it sees, as f32, channels last, padded with zeros, to a cache-sized scratch
//!       for each panel, for each strip of pixels, for each tile of it
//!           sums += taps x panel      in registers: PIXELS pixels x 2 registers of channels
//!       after each strip: biases, activation, residual, store
//! ```
//!
//! In the scratch the taps of one window row are neighbours, whatever the padding: the innermost loop
//! runs over `columns x input channels` of them, loads the panel's weights and broadcasts one input per
//! pixel. Nothing else is unfolded (no im2col). An image that is already channels-last f32 and needs no
//! padding is read where it lies. Few output channels would leave registers empty: there the sums run
//! along the taps instead (`Dots`). One input channel a group is another loop altogether, in
//! [`depthwise`].

use super::activation::activate;
use super::simd::{Isa, Kernel, Simd};
use super::strided::{In, Out, by_dtype};
use crate::dtype::{Dtype, Element};
use crate::ops::Activation;
use crate::ops::conv::{Conv, ConvArgs, ConvParams};
use crate::target::cpu::Cpu;
use std::cell::Cell;
use std::ops::Range;
use std::thread::LocalKey;

/// Floats of scratch that a block of rows may take: it stays in the second cache beside a panel. Speed
/// only.
const SCRATCH: usize = 128 << 10;
/// Tiles between two epilogues. Speed only.
const STRIP_TILES: usize = 4;
/// Pixels between two epilogues where the sums run along the taps.
const DOTS_PIXELS: usize = 64;
/// Multiply-adds that are worth handing to a thread. Speed only.
const WORTH_A_TASK: usize = 1_000_000;
/// The most pixels of a tile and the most lanes of a register on any instruction set.
const MAX_PIXELS: usize = 14;
const MAX_LANES: usize = 16;
/// The most output channels for which sums run along the taps.
const MAX_DOTS: usize = 4;

pub(crate) fn run(op: Conv, p: &ConvParams, args: ConvArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    by_dtype!(args.out.dtype(), typed(op, p, args, cpu));
}

fn typed<T: Element>(op: Conv, p: &ConvParams, args: ConvArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    let ConvArgs { x, weight, bias, sample_bias, residual, mut out } = args;
    if out.is_empty() {
        return;
    }
    let u = |v: u32| v as usize;
    let job = Job {
        activation: op.activation,
        batch: u(p.batch),
        groups: u(p.groups),
        c_in: u(p.c_in),
        c_out: u(p.c_out),
        kernel: [u(p.kh), u(p.kw)],
        stride: [u(p.stride_h), u(p.stride_w)],
        padding: [u(p.pad_h), u(p.pad_w)],
        dilation: [u(p.dilation_h), u(p.dilation_w)],
        size: [u(p.h), u(p.w)],
        out_size: [u(p.oh), u(p.ow)],
        x: Image { at: In::<T>::new(&x), strides: [p.x_n, p.x_c, p.x_h, p.x_w].map(u) },
        weight: Image {
            at: In::new(&weight),
            strides: [p.weight_o, p.weight_c, p.weight_h, p.weight_w].map(u),
        },
        bias: bias.map(|view| Image { at: In::new(&view), strides: [0, u(p.bias_o), 0, 0] }),
        sample_bias: sample_bias.map(|view| Image {
            at: In::new(&view),
            strides: [u(p.sample_bias_n), u(p.sample_bias_o), 0, 0],
        }),
        residual: residual.map(|view| Image {
            at: In::new(&view),
            strides: [p.residual_n, p.residual_c, p.residual_h, p.residual_w].map(u),
        }),
        out: Out::new(&mut out),
        out_strides: [p.out_n, p.out_c, p.out_h, p.out_w].map(u),
    };
    job.dense(cpu);
}

/// An input with the strides of its four axes.
#[derive(Clone, Copy)]
struct Image<'a, T> {
    at: In<'a, T>,
    strides: [usize; 4],
}

impl<T: Element> Image<'_, T> {
    /// # Safety
    /// The index is inside the view.
    #[inline(always)]
    unsafe fn at(&self, index: [usize; 4]) -> *const T {
        // SAFETY: this function's contract.
        unsafe { self.at.at(dot(index, self.strides)) }
    }
}

#[inline(always)]
fn dot(index: [usize; 4], strides: [usize; 4]) -> usize {
    index.iter().zip(strides).map(|(i, s)| i * s).sum()
}

/// One call. Channels are those of a group; pairs are (rows, columns).
struct Job<'a, T> {
    activation: Activation,
    batch: usize,
    groups: usize,
    c_in: usize,
    c_out: usize,
    kernel: [usize; 2],
    stride: [usize; 2],
    padding: [usize; 2],
    dilation: [usize; 2],
    size: [usize; 2],
    out_size: [usize; 2],
    x: Image<'a, T>,
    weight: Image<'a, T>,
    bias: Option<Image<'a, T>>,
    sample_bias: Option<Image<'a, T>>,
    residual: Option<Image<'a, T>>,
    out: Out<'a, T>,
    out_strides: [usize; 4],
}

/// Registers of an instruction set, and the tile that fits them: two registers of channels, and as many
/// pixels as leave registers for the operands.
#[derive(Clone, Copy)]
struct Shape {
    lanes: usize,
    pixels: usize,
}

impl Shape {
    #[inline(always)]
    const fn of<S: Simd>() -> Self {
        let pixels = (S::REGISTERS - 4) / 2;
        Self { lanes: S::LANES, pixels: if pixels < MAX_PIXELS { pixels } else { MAX_PIXELS } }
    }
}

struct ShapeOf;

impl Kernel for ShapeOf {
    type Output = Shape;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Shape {
        Shape::of::<S>()
    }
}

/// The taps of a window in the scratch (or in the image): `rows x columns` runs of neighbours.
#[derive(Clone, Copy)]
struct Taps {
    rows: usize,
    columns: usize,
    row_step: usize,
    column_step: usize,
    run: usize,
}

/// How a call is cut.
struct Cut {
    isa: Isa,
    shape: Shape,
    /// The image is read where it lies.
    direct: bool,
    /// Sums run along the taps.
    dots: bool,
    /// Results are stored along pixels, not along channels.
    by_pixels: bool,
    /// All pixels of a block lie at one distance from the next, in `out` and in `residual`.
    flat: bool,
    /// Floats from row to row and from pixel to pixel of the scratch (or of the image).
    row: usize,
    pixel: usize,
    taps: Taps,
    /// Rows of `out` in a block.
    rows: usize,
    /// Output channels of a panel, and its floats.
    width: usize,
    panel: usize,
    panels: usize,
}

impl<T: Element> Job<'_, T> {
    fn cut(&self, cpu: &Cpu) -> Cut {
        let isa = cpu.isa();
        let shape = isa.run(ShapeOf);
        let [_, x_c, x_h, x_w] = self.x.strides;
        let [kh, kw] = self.kernel;
        let [oh, ow] = self.out_size;
        let direct =
            T::DTYPE == Dtype::F32 && self.padding == [0, 0] && self.c_in > 0 && (x_c == 1 || self.c_in == 1);
        let columns = (ow - 1) * self.stride[1] + (kw - 1) * self.dilation[1] + 1;
        let (row, pixel) = if direct { (x_h, x_w) } else { (columns * self.c_in, self.c_in) };
        let joined = kw == 1 || self.dilation[1] == 1 && pixel == self.c_in;
        let taps = Taps {
            rows: kh,
            columns: if joined { 1 } else { kw },
            row_step: self.dilation[0] * row,
            column_step: self.dilation[1] * pixel,
            run: if joined { kw * self.c_in } else { self.c_in },
        };
        let dots = self.c_out <= MAX_DOTS && taps.run >= shape.lanes && self.c_out * 2 <= shape.lanes;
        let (width, panel) = if dots {
            (self.c_out, self.c_out * kh * taps.columns * taps.run.next_multiple_of(shape.lanes))
        } else {
            (2 * shape.lanes, kh * kw * self.c_in * 2 * shape.lanes)
        };
        // Rows of a block: what the scratch holds, but some blocks a thread.
        let row_floats = columns * self.c_in;
        let first = row_floats * ((kh - 1) * self.dilation[0] + 1);
        let fit = 1 + SCRATCH.saturating_sub(first) / (row_floats * self.stride[0]).max(1);
        let wanted = (4 * cpu.threads()).div_ceil(self.batch);
        let blocks = if cpu.threads() > 1 { oh.div_ceil(fit).max(wanted.min(oh)) } else { oh.div_ceil(fit) };
        let by_pixels = dots || self.out_strides[3] < self.out_strides[1];
        let flat = |s: [usize; 4]| s[2] == ow * s[3];
        Cut {
            isa,
            shape,
            direct,
            dots,
            by_pixels,
            flat: flat(self.out_strides) && self.residual.is_none_or(|r| flat(r.strides)),
            row,
            pixel,
            taps,
            rows: oh.div_ceil(blocks),
            width,
            panel,
            panels: self.c_out.div_ceil(width),
        }
    }

    /// Computes the convolution.
    fn dense(&self, cpu: &Cpu) {
        let cut = &self.cut(cpu);
        with_buffer(&PANELS, self.groups * cut.panels * cut.panel, |packed| {
            let packed = Shared(packed);
            let all = self.groups * cut.panels;
            let pack = |index: usize| {
                let packed = packed;
                cut.isa.run(Pack {
                    job: self,
                    cut,
                    group: index / cut.panels,
                    panel: index % cut.panels,
                    // SAFETY: the buffer has room for all panels, and each is written by one thread.
                    to: unsafe { packed.0.add(index * cut.panel) },
                });
            };
            if all * cut.panel > SCRATCH {
                cpu.each(all, pack)
            } else {
                (0..all).for_each(pack)
            }

            let blocks = self.out_size[0].div_ceil(cut.rows);
            let work = cut.rows * self.out_size[1] * self.groups * cut.panels * cut.panel;
            let tasks = self.batch * blocks;
            let bunch = (WORTH_A_TASK / work.max(1)).clamp(1, tasks.div_ceil(4 * cpu.threads()));
            cpu.each(tasks.div_ceil(bunch), |t| {
                let packed = packed;
                for task in t * bunch..tasks.min((t + 1) * bunch) {
                    let first = task % blocks * cut.rows;
                    let rows = first..self.out_size[0].min(first + cut.rows);
                    self.block(cut, packed.0, task / blocks, rows);
                }
            });
        });
    }

    /// Computes rows `rows` of one sample. The panels are packed.
    fn block(&self, cut: &Cut, packed: *const f32, sample: usize, rows: Range<usize>) {
        let seen = (rows.len() - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1;
        let scratch = if cut.direct { 0 } else { seen * cut.row };
        let sums = if cut.dots {
            self.c_out * DOTS_PIXELS
        } else {
            STRIP_TILES * cut.shape.pixels.next_multiple_of(cut.shape.lanes) * cut.width
        };
        with_buffer(&ROWS, sums + scratch, |buffer| {
            let scratch = buffer.wrapping_add(sums);
            for group in 0..self.groups {
                let base = if cut.direct {
                    // SAFETY: there is no padding, so the first row that is seen is inside the image;
                    // T is f32.
                    unsafe {
                        let first = [sample, group * self.c_in, rows.start * self.stride[0], 0];
                        self.x.at(first).cast::<f32>()
                    }
                } else {
                    let first = rows.start * self.stride[0];
                    cut.isa.run(Fill {
                        job: self,
                        cut,
                        sample,
                        group,
                        rows: first..first + seen,
                        to: scratch,
                    });
                    scratch.cast_const()
                };
                for panel in 0..cut.panels {
                    // SAFETY: the panel was packed.
                    let weights = unsafe { packed.add((group * cut.panels + panel) * cut.panel) };
                    let first = panel * cut.width;
                    let channels = first..self.c_out.min(first + cut.width);
                    let strip = Strip {
                        cut,
                        job: self,
                        sample,
                        group,
                        rows: &rows,
                        channels,
                        base,
                        weights,
                        sums: buffer,
                    };
                    if cut.flat || !cut.by_pixels {
                        strip.segment(0..rows.len() * self.out_size[1]);
                    } else {
                        for row in 0..rows.len() {
                            strip.segment(row * self.out_size[1]..(row + 1) * self.out_size[1]);
                        }
                    }
                }
            }
        });
    }
}

thread_local! {
    /// Packed weights, by the thread that called.
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// Sums of a strip and the scratch of a block, by the thread that computes it.
    static ROWS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with `len` floats at a cache line's boundary, in a buffer that this thread keeps from
/// call to call. What it holds is left over from earlier calls.
fn with_buffer(kept: &'static LocalKey<Cell<Vec<f32>>>, len: usize, work: impl FnOnce(*mut f32)) {
    const LINE: usize = 16;
    // Taken while in use: work that this thread steals meanwhile then allocates its own.
    let mut buffer = kept.take();
    if buffer.len() < len + LINE {
        buffer = vec![0.0; len + LINE];
    }
    let start = buffer.as_ptr().align_offset(64).min(LINE);
    work(buffer[start..].as_mut_ptr());
    kept.set(buffer);
}

/// Packed weights that threads share: each panel is written by one thread, and read after all are written.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: see above; every use is in an unsafe block that says who else is there.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Packs one panel of weights: `[window row, window column, input channel][channels]`, padded with zeros to
/// whole registers; for sums along the taps `[channel][run][taps]`, each run padded.
struct Pack<'a, T> {
    job: &'a Job<'a, T>,
    cut: &'a Cut,
    group: usize,
    panel: usize,
    to: *mut f32,
}

impl<T: Element> Kernel for Pack<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { job, cut, group, panel, to } = self;
        if job.c_in == 0 {
            return;
        }
        let first = panel * cut.width;
        let count = cut.width.min(job.c_out - first);
        let channel = group * job.c_out + first;
        // SAFETY: the channels are inside the weights, and `to` has room for the panel.
        unsafe {
            if cut.dots {
                pack_runs(job, cut, channel, count, to, S::LANES);
                return;
            }
            let step = count.div_ceil(S::LANES) * S::LANES;
            for r in (0..step).step_by(S::LANES) {
                let lanes = S::LANES.min(count - r);
                pack_register::<S, T>(job, channel + r, lanes, to.add(r), step);
            }
        }
    }
}

/// Packs `lanes` output channels from `channel` on: tap t in memory order (row, column, input) goes to
/// `to[t * step ..]`, one register each.
///
/// # Safety
/// The channels are inside the weights; `to` has room.
#[inline(always)]
unsafe fn pack_register<S: Simd, T: Element>(
    job: &Job<'_, T>,
    channel: usize,
    lanes: usize,
    to: *mut f32,
    step: usize,
) {
    let [kh, kw] = job.kernel;
    let [o, c, h, w] = job.weight.strides;
    let window = kh * kw;
    // SAFETY: this function's contract; a block of LANES x LANES is read only where all of it is there.
    unsafe {
        // Weights lie in lines without gaps: all taps of an output channel, or its input channels at one
        // tap. Lines are transposed a block at a time, the last block where it still fits.
        let whole = lanes == S::LANES;
        let mut block = [0.0f32; MAX_LANES * MAX_LANES];
        if whole && w == 1 && h == kw && c == window && job.c_in * window >= S::LANES {
            let line = job.c_in * window;
            for start in (0..line).step_by(S::LANES) {
                let start = start.min(line - S::LANES);
                S::transpose(job.weight.at([channel, 0, 0, 0]).add(start), o, block.as_mut_ptr(), S::LANES);
                for t in 0..S::LANES {
                    let tap = (start + t) % window * job.c_in + (start + t) / window;
                    S::store(to.add(tap * step), S::load(block.as_ptr().add(t * S::LANES)));
                }
            }
            return;
        }
        for i in 0..kh {
            for j in 0..kw {
                let to = to.add((i * kw + j) * job.c_in * step);
                let from = job.weight.at([channel, 0, i, j]);
                if whole && c == 1 && job.c_in >= S::LANES {
                    for start in (0..job.c_in).step_by(S::LANES) {
                        let start = start.min(job.c_in - S::LANES);
                        S::transpose(from.add(start), o, block.as_mut_ptr(), S::LANES);
                        for t in 0..S::LANES {
                            S::store(to.add((start + t) * step), S::load(block.as_ptr().add(t * S::LANES)));
                        }
                    }
                } else {
                    for t in 0..job.c_in {
                        S::store(to.add(t * step), gather::<S, T>(from.add(t * c), o, lanes));
                    }
                }
            }
        }
    }
}

/// Packs for sums along the taps.
///
/// # Safety
/// As [`pack_register`].
#[inline(always)]
unsafe fn pack_runs<T: Element>(
    job: &Job<'_, T>,
    cut: &Cut,
    channel: usize,
    count: usize,
    mut to: *mut f32,
    lanes: usize,
) {
    let Taps { rows, columns, run, .. } = cut.taps;
    for o in 0..count {
        for i in 0..rows {
            for j in 0..columns {
                for t in 0..run.next_multiple_of(lanes) {
                    // Of a run of several columns, t counts them too.
                    let index = [channel + o, t % job.c_in, i, j + t / job.c_in];
                    // SAFETY: this function's contract; t is inside the run.
                    unsafe {
                        *to = if t < run { (*job.weight.at(index)).to_f32() } else { 0.0 };
                        to = to.add(1);
                    }
                }
            }
        }
    }
}

/// Copies the rows of the padded image that a block sees: `[row][column][input channel]`, in f32.
struct Fill<'a, T> {
    job: &'a Job<'a, T>,
    cut: &'a Cut,
    sample: usize,
    group: usize,
    /// Rows of the padded image.
    rows: Range<usize>,
    to: *mut f32,
}

impl<T: Element> Kernel for Fill<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { job, cut, sample, group, rows, to } = self;
        if job.c_in == 0 {
            return;
        }
        let (channels, columns) = (job.c_in, cut.row / job.c_in);
        // Columns of the scratch that are inside the image.
        let left = job.padding[1].min(columns);
        let right = (job.padding[1] + job.size[1]).min(columns).max(left);
        for (i, row) in rows.enumerate() {
            // SAFETY: the scratch holds all rows; the copied columns are inside the image.
            unsafe {
                let to = to.add(i * cut.row);
                let inside = row.checked_sub(job.padding[0]).filter(|&y| y < job.size[0] && left < right);
                let Some(y) = inside else {
                    std::ptr::write_bytes(to, 0, cut.row);
                    continue;
                };
                std::ptr::write_bytes(to, 0, left * channels);
                std::ptr::write_bytes(to.add(right * channels), 0, (columns - right) * channels);
                let from = job.x.at([sample, group * channels, y, left - job.padding[1]]);
                copy_row::<S, T>(job, from, right - left, to.add(left * channels));
            }
        }
    }
}

/// Copies `pixels` pixels of a row from `from` on, channels last.
///
/// # Safety
/// The pixels are inside the image; `to` has room.
#[inline(always)]
unsafe fn copy_row<S: Simd, T: Element>(job: &Job<'_, T>, from: *const T, pixels: usize, to: *mut f32) {
    let channels = job.c_in;
    let [_, x_c, _, x_w] = job.x.strides;
    // SAFETY: this function's contract.
    unsafe {
        if channels == 1 {
            copy::<S, T>(from, x_w, pixels, to);
        } else if x_c == 1 && x_w == channels {
            copy::<S, T>(from, 1, pixels * channels, to);
        } else if x_c == 1 || x_w != 1 {
            for j in 0..pixels {
                copy::<S, T>(from.add(j * x_w), x_c, channels, to.add(j * channels));
            }
        } else {
            for c in (0..channels).step_by(S::LANES) {
                // The last block starts where it still fits, and some channels are copied twice.
                let c = if channels < S::LANES { 0 } else { c.min(channels - S::LANES) };
                for j in (0..pixels).step_by(S::LANES) {
                    let j = if pixels < S::LANES { 0 } else { j.min(pixels - S::LANES) };
                    let (from, to) = (from.add(c * x_c + j), to.add(j * channels + c));
                    if channels >= S::LANES && pixels >= S::LANES {
                        S::transpose(from, x_c, to, channels);
                        continue;
                    }
                    let (lanes, columns) = (channels.min(S::LANES), pixels.min(S::LANES));
                    let mut block = [0.0f32; MAX_LANES * MAX_LANES];
                    let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
                    for lane in 0..lanes {
                        let row = gather::<S, T>(from.add(lane * x_c), 1, columns);
                        S::store(block.as_mut_ptr().add(lane * S::LANES), row);
                    }
                    S::transpose(block.as_ptr(), S::LANES, turned.as_mut_ptr(), S::LANES);
                    for column in 0..columns {
                        let v = S::load(turned.as_ptr().add(column * S::LANES));
                        S::store_n(to.add(column * channels), v, lanes);
                    }
                }
            }
        }
    }
}

/// Copies `count` elements `stride` apart.
///
/// # Safety
/// They are readable, and `to` has room.
#[inline(always)]
unsafe fn copy<S: Simd, T: Element>(from: *const T, stride: usize, count: usize, to: *mut f32) {
    // SAFETY: this function's contract.
    unsafe {
        for first in (0..count).step_by(S::LANES) {
            let lanes = S::LANES.min(count - first);
            let v = gather::<S, T>(from.add(first * stride), stride, lanes);
            if lanes == S::LANES { S::store(to.add(first), v) } else { S::store_n(to.add(first), v, lanes) }
        }
    }
}

/// The first `lanes` lanes from elements `stride` apart; the others are 0 unless the stride is.
///
/// # Safety
/// Those elements are readable.
#[inline(always)]
unsafe fn gather<S: Simd, T: Element>(from: *const T, stride: usize, lanes: usize) -> S::V {
    // SAFETY: this function's contract.
    unsafe {
        match stride {
            1 if lanes == S::LANES => S::get(from),
            1 => S::get_n(from, lanes),
            _ => {
                let mut all = [0.0f32; MAX_LANES];
                for (lane, x) in all.iter_mut().enumerate().take(lanes) {
                    *x = (*from.add(lane * stride)).to_f32();
                }
                S::load(all.as_ptr())
            }
        }
    }
}

/// The first `lanes` lanes to elements `stride` apart.
///
/// # Safety
/// Those elements are writable by this thread alone.
#[inline(always)]
unsafe fn scatter<S: Simd, T: Element>(to: *mut T, stride: usize, v: S::V, lanes: usize) {
    // SAFETY: this function's contract.
    unsafe {
        match stride {
            1 if lanes == S::LANES => S::put(to, v),
            1 => S::put_n(to, v, lanes),
            _ => {
                let mut all = [0.0f32; MAX_LANES];
                S::store(all.as_mut_ptr(), v);
                for (lane, &x) in all.iter().enumerate().take(lanes) {
                    *to.add(lane * stride) = T::from_f32(x);
                }
            }
        }
    }
}

/// One panel of one block, computed strip by strip.
struct Strip<'a, T> {
    job: &'a Job<'a, T>,
    cut: &'a Cut,
    sample: usize,
    group: usize,
    /// Rows of `out`; pixels are counted from the first pixel of the first.
    rows: &'a Range<usize>,
    /// Output channels, in the group.
    channels: Range<usize>,
    /// What the first pixel sees.
    base: *const f32,
    weights: *const f32,
    /// Sums of a strip: `[pixel][registers of channels]`, or `[channel][DOTS_PIXELS]`.
    sums: *mut f32,
}

impl<T: Element> Strip<'_, T> {
    /// Computes pixels that lie at one distance from the next.
    fn segment(&self, pixels: Range<usize>) {
        let cut = self.cut;
        let mut biases = [0.0f32; 2 * MAX_LANES];
        for (lane, z) in biases.iter_mut().enumerate().take(self.channels.len()) {
            let o = self.group * self.job.c_out + self.channels.start + lane;
            // SAFETY: the channel and the sample are inside.
            unsafe {
                *z += self.job.bias.map_or(0.0, |b| (*b.at([0, o, 0, 0])).to_f32());
                *z += self.job.sample_bias.map_or(0.0, |b| (*b.at([self.sample, o, 0, 0])).to_f32());
            }
        }
        let tiles = if cut.dots {
            pixels.len().div_ceil(DOTS_PIXELS)
        } else {
            pixels.len().div_ceil(cut.shape.pixels)
        };
        let mut tile = 0;
        let start = |tile: usize| pixels.start + tile * pixels.len() / tiles;
        while tile < tiles {
            let next = tiles.min(tile + if cut.dots { 1 } else { STRIP_TILES });
            cut.isa.run(Tiles {
                taps: cut.taps,
                dots: cut.dots,
                channels: self.channels.len(),
                columns: self.job.out_size[1],
                row_step: self.job.stride[0] * cut.row,
                column_step: self.job.stride[1] * cut.pixel,
                base: self.base,
                weights: self.weights,
                sums: self.sums,
                pixels: &pixels,
                tiles,
                range: tile..next,
            });
            cut.isa.run(Finish { strip: self, biases: &biases, pixels: start(tile)..start(next) });
            tile = next;
        }
    }
}

/// The sums of some tiles.
struct Tiles<'a> {
    taps: Taps,
    dots: bool,
    channels: usize,
    /// Pixels of a row of `out`, and the distance of their windows.
    columns: usize,
    row_step: usize,
    column_step: usize,
    base: *const f32,
    weights: *const f32,
    sums: *mut f32,
    /// These pixels are cut into `tiles` tiles, of which `range` is computed.
    pixels: &'a Range<usize>,
    tiles: usize,
    range: Range<usize>,
}

impl Kernel for Tiles<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let start = |tile: usize| self.pixels.start + tile * self.pixels.len() / self.tiles;
        let registers = self.channels.div_ceil(S::LANES);
        let (mut y, mut x) = (start(self.range.start) / self.columns, start(self.range.start) % self.columns);
        let mut next_window = || {
            let at = y * self.row_step + x * self.column_step;
            x += 1;
            if x == self.columns {
                (y, x) = (y + 1, 0);
            }
            self.base.wrapping_add(at)
        };
        if self.dots {
            let count = start(self.range.end) - start(self.range.start);
            for first in (0..count).step_by(4) {
                let mut windows = [self.base; 4];
                let real = windows.len().min(count - first);
                for window in &mut windows[..real] {
                    *window = next_window();
                }
                // SAFETY: the windows are inside the scratch; past the last pixel the first is summed again,
                // and there is room for it.
                unsafe {
                    let to = self.sums.add(first);
                    match self.channels {
                        1 => dots::<S, 1>(self.taps, self.weights, windows, to),
                        2 => dots::<S, 2>(self.taps, self.weights, windows, to),
                        3 => dots::<S, 3>(self.taps, self.weights, windows, to),
                        _ => dots::<S, 4>(self.taps, self.weights, windows, to),
                    }
                }
            }
            return;
        }
        let mut to = self.sums;
        for tile in self.range.clone() {
            let pixels = start(tile + 1) - start(tile);
            let mut windows = [self.base; MAX_PIXELS];
            for window in &mut windows[..pixels] {
                *window = next_window();
            }
            macro_rules! by_pixels {
                ($($pixels:literal)*) => {
                    match (pixels, registers) {
                        // Tiles that S does not have are not compiled.
                        // SAFETY: the windows are inside the scratch, the panel is whole, and the sums have room.
                        $(($pixels, 1) if $pixels <= const { Shape::of::<S>().pixels } => unsafe {
                            products::<S, $pixels, 1>(self.taps, self.weights, &windows, to);
                        },
                        ($pixels, _) if $pixels <= const { Shape::of::<S>().pixels } => unsafe {
                            products::<S, $pixels, 2>(self.taps, self.weights, &windows, to);
                        },)*
                        _ => unreachable!("a tile has 1 to {} pixels", Shape::of::<S>().pixels),
                    }
                };
            }
            by_pixels!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
            to = to.wrapping_add(pixels * registers * S::LANES);
        }
    }
}

/// A tile of `P` pixels by `V` registers of channels.
///
/// # Safety
/// Every tap of the first `P` windows is readable, `weights` holds `V` registers a tap, and `to` has room
/// for `P * V` registers.
#[inline(always)]
unsafe fn products<S: Simd, const P: usize, const V: usize>(
    taps: Taps,
    mut weights: *const f32,
    windows: &[*const f32; MAX_PIXELS],
    to: *mut f32,
) {
    // SAFETY: this function's contract.
    unsafe {
        let mut acc = [[S::splat(0.0); V]; P];
        for i in 0..taps.rows {
            for j in 0..taps.columns {
                let from: [*const f32; P] =
                    std::array::from_fn(|q| windows[q].add(i * taps.row_step + j * taps.column_step));
                for t in 0..taps.run {
                    let mut panel = [S::splat(0.0); V];
                    for (v, w) in panel.iter_mut().enumerate() {
                        *w = S::load(weights.add(v * S::LANES));
                    }
                    weights = weights.add(V * S::LANES);
                    for (sums, from) in acc.iter_mut().zip(&from) {
                        let x = S::splat(*from.add(t));
                        for (sum, &w) in sums.iter_mut().zip(&panel) {
                            *sum = S::fma(x, w, *sum);
                        }
                    }
                }
            }
        }
        for (q, sums) in acc.iter().enumerate() {
            for (v, &sum) in sums.iter().enumerate() {
                S::store(to.add((q * V + v) * S::LANES), sum);
            }
        }
    }
}

/// Four pixels by `O` channels, summed along the taps: sums go to `to[channel * DOTS_PIXELS + pixel]`.
///
/// # Safety
/// As [`products`], the weights being runs padded with zeros.
#[inline(always)]
unsafe fn dots<S: Simd, const O: usize>(
    taps: Taps,
    weights: *const f32,
    windows: [*const f32; 4],
    to: *mut f32,
) {
    let run = taps.run.next_multiple_of(S::LANES);
    let channel = taps.rows * taps.columns * run;
    // SAFETY: this function's contract.
    unsafe {
        let mut acc = [[S::splat(0.0); 4]; O];
        for i in 0..taps.rows {
            for j in 0..taps.columns {
                let weights = weights.add((i * taps.columns + j) * run);
                let from = windows.map(|w| w.add(i * taps.row_step + j * taps.column_step));
                let whole = taps.run / S::LANES * S::LANES;
                for t in (0..whole).step_by(S::LANES) {
                    let x = from.map(|from| S::load(from.add(t)));
                    for (o, sums) in acc.iter_mut().enumerate() {
                        let w = S::load(weights.add(o * channel + t));
                        for (sum, &x) in sums.iter_mut().zip(&x) {
                            *sum = S::fma(x, w, *sum);
                        }
                    }
                }
                if whole < taps.run {
                    let x = from.map(|from| S::load_n(from.add(whole), taps.run - whole));
                    for (o, sums) in acc.iter_mut().enumerate() {
                        let w = S::load(weights.add(o * channel + whole));
                        for (sum, &x) in sums.iter_mut().zip(&x) {
                            *sum = S::fma(x, w, *sum);
                        }
                    }
                }
            }
        }
        for (o, sums) in acc.iter().enumerate() {
            for (q, &sum) in sums.iter().enumerate() {
                *to.add(o * DOTS_PIXELS + q) = S::sum(sum);
            }
        }
    }
}

/// Biases, activation, residual and store of a strip.
struct Finish<'a, T> {
    strip: &'a Strip<'a, T>,
    biases: &'a [f32; 2 * MAX_LANES],
    pixels: Range<usize>,
}

impl<T: Element> Kernel for Finish<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the pixels are this thread's, and their sums are there.
        unsafe {
            match self.strip.job.activation {
                Activation::None => self.by_activation::<S>(Activation::None),
                Activation::Silu => self.by_activation::<S>(Activation::Silu),
                Activation::Gelu => self.by_activation::<S>(Activation::Gelu),
            }
        }
    }
}

impl<T: Element> Finish<'_, T> {
    /// # Safety
    /// The pixels are this thread's, and their sums are there.
    #[inline(always)]
    unsafe fn by_activation<S: Simd>(&self, activation: Activation) {
        let Strip { job, cut, sample, group, rows, channels, sums, .. } = self.strip;
        let first = group * job.c_out + channels.start;
        let columns = job.out_size[1];
        // SAFETY: this function's contract.
        unsafe {
            if !cut.by_pixels {
                let mut from = sums.cast_const();
                let (mut y, mut x) = (rows.start + self.pixels.start / columns, self.pixels.start % columns);
                for _ in self.pixels.clone() {
                    for c in (0..channels.len()).step_by(S::LANES) {
                        let bias = S::load(self.biases.as_ptr().add(c));
                        let lanes = S::LANES.min(channels.len() - c);
                        let index = [*sample, first + c, y, x];
                        self.store::<S>(activation, S::add(S::load(from), bias), index, 1, lanes);
                        from = from.add(S::LANES);
                    }
                    x += 1;
                    if x == columns {
                        (y, x) = (y + 1, 0);
                    }
                }
                return;
            }
            let step = channels.len().next_multiple_of(S::LANES);
            for q in (0..self.pixels.len()).step_by(S::LANES) {
                let lanes = S::LANES.min(self.pixels.len() - q);
                let pixel = self.pixels.start + q;
                let (y, x) = (rows.start + pixel / columns, pixel % columns);
                for c in (0..channels.len()).step_by(S::LANES) {
                    let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
                    if !cut.dots {
                        S::transpose(
                            sums.add(q * step + c).cast_const(),
                            step,
                            turned.as_mut_ptr(),
                            S::LANES,
                        );
                    }
                    for lane in 0..S::LANES.min(channels.len() - c) {
                        let sum = if cut.dots {
                            S::load(sums.add((c + lane) * DOTS_PIXELS + q))
                        } else {
                            S::load(turned.as_ptr().add(lane * S::LANES))
                        };
                        let bias = S::splat(self.biases[c + lane]);
                        let index = [*sample, first + c + lane, y, x];
                        self.store::<S>(activation, S::add(sum, bias), index, 3, lanes);
                    }
                }
            }
        }
    }

    /// Activation, residual and store of `lanes` elements from `index` on along `axis`.
    ///
    /// # Safety
    /// They are inside `out` and this thread's.
    #[inline(always)]
    unsafe fn store<S: Simd>(
        &self,
        activation: Activation,
        z: S::V,
        index: [usize; 4],
        axis: usize,
        lanes: usize,
    ) {
        let job = self.strip.job;
        // SAFETY: this function's contract.
        unsafe {
            let mut z = activate::<S>(activation, z);
            if let Some(residual) = &job.residual {
                z = S::add(z, gather::<S, T>(residual.at(index), residual.strides[axis], lanes));
            }
            scatter::<S, T>(job.out.at(dot(index, job.out_strides)), job.out_strides[axis], z, lanes);
        }
    }
}
