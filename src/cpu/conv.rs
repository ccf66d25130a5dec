//! Convolutions on the CPU: direct, vectorised over output channels.
//!
//! ```text
//!   pack the weights into panels [window row, window column, input channel][2 registers of channels]
//!   for each sample and block of rows of out                                  threads over these
//!       copy the rows that it sees, as f32, channels last, padded with zeros, to a cache-sized scratch
//!       for each panel, for each strip of tiles, for each tile of pixels
//!           sums += taps x panel      in registers: a tile of pixels x 2 registers of channels
//!       after each strip: biases, activation, residual, store
//! ```
//!
//! In the scratch the taps of one window row are neighbours, whatever the padding: the innermost loop
//! runs over `columns x input channels` of them, loads the panel's weights and broadcasts one input per
//! pixel. Nothing else is unfolded (no im2col). What differs from that:
//!
//! - An image that is already channels-last f32 and needs no padding is read where it lies.
//! - So is one with padding where there are samples enough: a tile is then one pixel of several samples
//!   ([`Job::across`]), which all miss the same taps, and those are left out instead of multiplied by 0.
//! - Few output channels would leave registers empty: there sums run along the taps ([`Dots`]).
//! - With one channel a group on both sides, channels are multiplied one by one ([`Depthwise`]).

use super::activation::activate;
use super::scratch::{self, LINE, with_buffer};
use super::simd::{Isa, Kernel, Simd};
use super::strided::{In, Out, by_dtype};
use crate::dtype::{Dtype, Float};
use crate::error::Result;
use crate::op::Op;
use crate::ops::Activation;
use crate::ops::conv::{Conv, ConvArgs, ConvParams};
use crate::target::cpu::Cpu;
use arrayvec::ArrayVec;
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Floats of scratch that a block of rows may take: it stays in the second cache beside a panel. Speed
/// only.
const SCRATCH: usize = 128 << 10;
/// The most floats that each thread keeps for panels, or for a block of rows: where those are more, or one row of `out` sees
/// more, a call asks for them.
const MAX_KEPT: usize = 1 << 24;
/// The most floats that a call asks for so that more than one thread has a block of rows. Speed only.
const MAX_SHARED: usize = 1 << 28;
/// Tiles between two epilogues. Speed only.
const STRIP_TILES: usize = 4;
/// Pixels between two epilogues where the sums run along the taps, and the most there are.
const DOTS_PIXELS: usize = 64;
const MAX_STRIP: usize = 64;
/// Floats of a line of the first cache.
const FLOATS_A_LINE: usize = 16;
/// Multiply-adds that are worth handing to a thread. Speed only.
const WORTH_A_TASK: usize = 1_000_000;
/// The most pixels of a tile and the most lanes of a register on any instruction set.
const MAX_PIXELS: usize = 14;
const MAX_LANES: usize = 16;
/// The most output channels for which sums run along the taps.
const MAX_DOTS: usize = 4;

pub(crate) fn run(op: Conv, p: &ConvParams, args: ConvArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
    by_dtype!(args.out.dtype(), typed(op, p, args, cpu))
}

fn typed<T: Float>(op: Conv, p: &ConvParams, args: ConvArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
    let ConvArgs { x, weight, bias, sample_bias, residual, mut out } = args;
    if out.is_empty() {
        return Ok(());
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
    job.run(cpu)
}

/// An input with the strides of its four axes.
#[derive(Clone, Copy)]
struct Image<'a, T> {
    at: In<'a, T>,
    strides: [usize; 4],
}

impl<T: Float> Image<'_, T> {
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

/// The taps of a window in the scratch (or in the image): `rows x columns` runs of neighbours, how far apart
/// those are there (in floats), and in the packed weights (in taps).
#[derive(Clone, Copy)]
struct Taps {
    rows: usize,
    columns: usize,
    run: usize,
    row_step: usize,
    column_step: usize,
    weight_row: usize,
    weight_column: usize,
}

/// How the sums are computed.
#[derive(Clone, Copy, PartialEq)]
enum Method {
    /// A panel of output channels by a tile of pixels.
    Products,
    /// Along the taps: few output channels.
    Dots,
    /// Channel by channel: one input and one output channel a group.
    Depthwise,
}

/// How a call is cut.
struct Cut {
    isa: Isa,
    shape: Shape,
    method: Method,
    /// The image is read where it lies.
    direct: bool,
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
    /// Samples in a tile, where a tile is one pixel of several samples.
    samples: usize,
    /// Output channels of a panel, and its floats.
    width: usize,
    panel: usize,
    /// Panels of a group; depthwise, of all groups.
    panels: usize,
    /// Groups; depthwise, one.
    groups: usize,
}

impl<T: Float> Job<'_, T> {
    fn cut(&self, cpu: &Cpu) -> Cut {
        let isa = cpu.isa();
        let shape = isa.run(ShapeOf);
        let lanes = shape.lanes;
        let [x_n, x_c, x_h, x_w] = self.x.strides;
        let [kh, kw] = self.kernel;
        let [oh, ow] = self.out_size;
        let joined = |pixel: usize| kw == 1 || self.dilation[1] == 1 && pixel == self.c_in;
        let run = |pixel: usize| if joined(pixel) { kw * self.c_in } else { self.c_in };
        let method = if self.c_in == 1 && self.c_out == 1 && self.groups > 1 {
            Method::Depthwise
        } else if self.c_out <= MAX_DOTS && 2 * self.c_out <= lanes && run(self.c_in) >= lanes {
            Method::Dots
        } else {
            Method::Products
        };
        let by_pixels = method == Method::Dots || self.out_strides[3] < self.out_strides[1];
        let readable = T::DTYPE == Dtype::F32
            && method != Method::Depthwise
            && self.c_in > 0
            && (x_c == 1 || self.c_in == 1);
        // A tile of one pixel in several samples leaves out exactly the taps on padding, but there must be
        // enough samples, and they should not all fall on the same lines of the first cache.
        let tiles = self.batch.div_ceil(shape.pixels);
        let samples = self.batch.div_ceil(tiles);
        let lines = (x_n / FLOATS_A_LINE).trailing_zeros();
        let across = readable
            && method == Method::Products
            && !by_pixels
            && self.padding != [0, 0]
            && 4 * samples >= 3 * shape.pixels
            && lines <= 5;
        let direct = readable && (across || self.padding == [0, 0]);
        let columns = (ow - 1) * self.stride[1] + (kw - 1) * self.dilation[1] + 1;
        let (groups, panels, width) = match method {
            Method::Depthwise => (1, self.groups.div_ceil(2 * lanes), 2 * lanes),
            Method::Dots => (self.groups, 1, self.c_out),
            Method::Products => (self.groups, self.c_out.div_ceil(2 * lanes), 2 * lanes),
        };
        let (row, pixel) = match method {
            _ if direct => (x_h, x_w),
            Method::Depthwise => (columns * width, width),
            _ => (columns * self.c_in, self.c_in),
        };
        let joined = method != Method::Depthwise && joined(pixel);
        let mut taps = Taps {
            rows: kh,
            columns: if joined { 1 } else { kw },
            run: if joined { kw * self.c_in } else { self.c_in },
            row_step: self.dilation[0].saturating_mul(row),
            column_step: self.dilation[1] * pixel,
            weight_row: 0,
            weight_column: 0,
        };
        // Where sums run along the taps, runs are padded to whole registers.
        taps.weight_column = if method == Method::Dots { taps.run.next_multiple_of(lanes) } else { taps.run };
        taps.weight_row = taps.columns * taps.weight_column;
        let panel = kh * taps.weight_row * width;
        // Rows of a block: what the scratch holds, but some blocks a thread.
        let (row_floats, scratch) = match method {
            // There the scratch is all that the sums read, and a fast cache counts.
            Method::Depthwise => (columns * width, SCRATCH / 4),
            _ => (columns * self.c_in, SCRATCH),
        };
        let first = row_floats.saturating_mul(self.seen(1));
        let fit = 1 + scratch.saturating_sub(first) / row_floats.saturating_mul(self.stride[0]).max(1);
        let wanted = (4 * cpu.threads()).div_ceil(if across { tiles } else { self.batch });
        let blocks = if cpu.threads() > 1 { oh.div_ceil(fit).max(wanted.min(oh)) } else { oh.div_ceil(fit) };
        let flat = |s: [usize; 4]| s[2] == ow * s[3];
        Cut {
            isa,
            shape,
            method,
            direct,
            by_pixels,
            flat: flat(self.out_strides) && self.residual.is_none_or(|r| flat(r.strides)),
            row,
            pixel,
            taps,
            rows: oh.div_ceil(blocks),
            samples: if across { samples } else { 1 },
            width,
            panel,
            panels,
            groups,
        }
    }

    /// The rows of the padded image that so many rows of `out` see.
    fn seen(&self, rows: usize) -> usize {
        (rows - 1) * self.stride[0] + (self.kernel[0] - 1) * self.dilation[0] + 1
    }

    /// Computes the convolution.
    fn run(&self, cpu: &Cpu) -> Result<()> {
        let cut = &self.cut(cpu);
        let panels = cut.groups * cut.panels;
        let blocks = self.out_size[0].div_ceil(cut.rows);
        let sizes = [cut.samples, cut.rows, self.out_size[1], panels, cut.panel];
        let work = sizes.into_iter().fold(1, usize::saturating_mul);
        // Samples of a tile are as equal in number as can be.
        let tiles = self.batch.div_ceil(cut.samples);
        let tasks = tiles * blocks;
        let bunch = (WORTH_A_TASK / work.max(1)).clamp(1, tasks.div_ceil(4 * cpu.threads()));
        let bunches = tasks.div_ceil(bunch);

        // All memory that grows with an axis, before anything is written.
        let packed_size = panels.saturating_mul(cut.panel);
        let packed_asked = if packed_size > MAX_KEPT { packed_size.saturating_add(LINE) } else { 0 };
        let rows_size = if cut.direct { 0 } else { self.seen(cut.rows).saturating_mul(cut.row) };
        let size = cut.sums().saturating_add(rows_size);
        let step = size.checked_next_multiple_of(LINE).unwrap_or(usize::MAX);
        // What one thread can do is not refused because there are more.
        let workers = bunches.min(cpu.threads()).min((MAX_SHARED / step).max(1));
        let asked = if size > MAX_KEPT { workers.saturating_mul(step).saturating_add(LINE) } else { 0 };
        let mut packed = scratch::zeros(Conv::NAME, "weight", packed_asked)?;
        let mut buffers = scratch::zeros(Conv::NAME, "x", asked)?;
        if packed.is_empty() {
            scratch::grow(&PANELS, Conv::NAME, "weight", packed_size)?;
        }

        let mut compute = |packed: *mut f32| {
            let packed = Shared(packed);
            let pack = |index: usize| {
                cut.isa.run(Pack {
                    job: self,
                    cut,
                    group: index / cut.panels,
                    panel: index % cut.panels,
                    // SAFETY: the buffer has room for all panels, and each is written by one thread.
                    to: unsafe { packed.get().add(index * cut.panel) },
                });
            };
            if packed_size > SCRATCH {
                cpu.each(panels, pack)
            } else {
                (0..panels).for_each(pack)
            }

            let some = |t: usize, buffer: *mut f32| {
                for task in t * bunch..tasks.min((t + 1) * bunch) {
                    let first = task % blocks * cut.rows;
                    let rows = first..self.out_size[0].min(first + cut.rows);
                    let tile = task / blocks;
                    let samples = tile * self.batch / tiles..(tile + 1) * self.batch / tiles;
                    if cut.samples > 1 {
                        self.across(cut, packed.get(), buffer, samples, rows);
                    } else {
                        self.block(cut, packed.get(), buffer, tile, rows);
                    }
                }
            };
            if buffers.is_empty() {
                cpu.each(bunches, |t| with_buffer(&ROWS, size, |buffer| some(t, buffer)));
                return;
            }
            let (buffers, next) = (Shared(scratch::aligned(&mut buffers)), AtomicUsize::new(0));
            cpu.each(workers, |worker| {
                // SAFETY: there is one for each worker.
                let buffer = unsafe { buffers.get().add(worker * step) };
                loop {
                    let t = next.fetch_add(1, Ordering::Relaxed);
                    if t >= bunches {
                        return;
                    }
                    some(t, buffer);
                }
            });
        };
        if packed.is_empty() {
            with_buffer(&PANELS, packed_size, compute);
        } else {
            compute(scratch::aligned(&mut packed));
        }
        Ok(())
    }

    /// Computes rows `rows` of one sample. The panels are packed, and the buffer holds the sums of a strip and what is seen.
    fn block(&self, cut: &Cut, packed: *const f32, buffer: *mut f32, sample: usize, rows: Range<usize>) {
        let seen = self.seen(rows.len());
        let first_row = rows.start * self.stride[0];
        let scratch = buffer.wrapping_add(cut.sums());
        let base = |first_channel: usize, channels: usize| {
            if cut.direct {
                // SAFETY: there is no padding, so the first row that is seen is inside the image; T is f32.
                unsafe { self.x.at([sample, first_channel, first_row, 0]).cast::<f32>() }
            } else {
                let rows = first_row..first_row + seen;
                cut.isa.run(Fill { job: self, cut, sample, first_channel, channels, rows, to: scratch });
                scratch.cast_const()
            }
        };
        for group in 0..cut.groups {
            let mut from = std::ptr::null();
            for panel in 0..cut.panels {
                let channels = cut.channels_of(self, panel);
                if cut.method == Method::Depthwise {
                    from = base(channels.start, channels.len());
                } else if panel == 0 {
                    from = base(group * self.c_in, self.c_in);
                }
                let channels = group * self.c_out + channels.start..group * self.c_out + channels.end;
                let mut biases = [0.0f32; 2 * MAX_LANES];
                self.biases(sample, channels.clone(), &mut biases);
                // SAFETY: the panel was packed.
                let weights = unsafe { packed.add((group * cut.panels + panel) * cut.panel) };
                let pixels = rows.len() * self.out_size[1];
                let segment = if cut.flat || !cut.by_pixels { pixels } else { self.out_size[1] };
                for first in (0..pixels).step_by(segment) {
                    let panel = Panel { job: self, cut, channels: channels.clone(), weights, sums: buffer };
                    panel.segment(sample, &rows, first..first + segment, from, &biases);
                }
            }
        }
    }

    /// Computes rows `rows` of several samples, a pixel of all samples at a time. The panels are packed, and there is room
    /// for the sums of a strip.
    fn across(
        &self,
        cut: &Cut,
        packed: *const f32,
        sums: *mut f32,
        samples: Range<usize>,
        rows: Range<usize>,
    ) {
        for group in 0..cut.groups {
            for panel in 0..cut.panels {
                let channels = cut.channels_of(self, panel);
                let channels = group * self.c_out + channels.start..group * self.c_out + channels.end;
                let mut biases = [0.0f32; 2 * MAX_LANES * MAX_PIXELS];
                for (s, biases) in samples.clone().zip(biases.chunks_mut(2 * MAX_LANES)) {
                    self.biases(s, channels.clone(), biases);
                }
                // SAFETY: the panel was packed.
                let weights = unsafe { packed.add((group * cut.panels + panel) * cut.panel) };
                let panel = Panel { job: self, cut, channels, weights, sums };
                let mut strip = Strip::new();
                for y in rows.clone() {
                    let tap_rows = self.inside(0, y);
                    for x in 0..self.out_size[1] {
                        let tap_columns = self.inside(1, x);
                        panel.pixel(group, &samples, [y, x], [&tap_rows, &tap_columns], &mut strip);
                        panel.compute(&mut strip, &biases);
                    }
                }
            }
        }
    }

    /// Bias and sample bias of some output channels.
    fn biases(&self, sample: usize, channels: Range<usize>, to: &mut [f32]) {
        for (o, z) in channels.zip(to) {
            // SAFETY: the channel and the sample are inside.
            unsafe {
                *z += self.bias.map_or(0.0, |b| (*b.at([0, o, 0, 0])).to_f32());
                *z += self.sample_bias.map_or(0.0, |b| (*b.at([sample, o, 0, 0])).to_f32());
            }
        }
    }

    /// The taps of a window that are inside the image, along one axis.
    fn inside(&self, axis: usize, window: usize) -> Range<usize> {
        let (first, padding) = (window * self.stride[axis], self.padding[axis]);
        let taps =
            |until: usize| until.saturating_sub(first).div_ceil(self.dilation[axis]).min(self.kernel[axis]);
        taps(padding)..taps(padding + self.size[axis])
    }
}

impl Cut {
    /// Floats for the sums of a strip.
    fn sums(&self) -> usize {
        match self.method {
            Method::Dots => self.width * DOTS_PIXELS,
            _ => STRIP_TILES * self.shape.pixels.next_multiple_of(self.shape.lanes) * self.width,
        }
    }

    /// The channels of a panel, in the group; depthwise, of all.
    fn channels_of<T>(&self, job: &Job<'_, T>, panel: usize) -> Range<usize> {
        let first = panel * self.width;
        let all = if self.method == Method::Depthwise { job.groups } else { job.c_out };
        first..all.min(first + self.width)
    }
}

thread_local! {
    /// Packed weights, by the thread that called.
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// Sums of a strip and the scratch of a block, by the thread that computes it.
    static ROWS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Memory that threads share: packed weights, of which each panel is written by one thread, and read after all are written;
/// buffers, of which each worker has one.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: see above; every use is in an unsafe block that says who else is there.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    fn get(self) -> *mut f32 {
        self.0
    }
}

/// Packs one panel of weights: `[window row, window column, input channel][channels]`, padded with zeros to
/// whole registers; for sums along the taps `[channel][run][taps]`, each run padded.
struct Pack<'a, T> {
    job: &'a Job<'a, T>,
    cut: &'a Cut,
    group: usize,
    panel: usize,
    to: *mut f32,
}

impl<T: Float> Kernel for Pack<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { job, cut, group, panel, to } = self;
        if job.c_in == 0 {
            return;
        }
        let channels = cut.channels_of(job, panel);
        let (first, count) = (group * job.c_out + channels.start, channels.len());
        // SAFETY: the channels are inside the weights, and `to` has room for the panel.
        unsafe {
            if cut.method == Method::Dots {
                pack_runs(job, cut, first, count, to, S::LANES);
                return;
            }
            let step = count.next_multiple_of(S::LANES);
            for r in (0..step).step_by(S::LANES) {
                let lanes = S::LANES.min(count - r);
                pack_register::<S, T>(job, first + r, lanes, to.add(r), step);
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
unsafe fn pack_register<S: Simd, T: Float>(
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
unsafe fn pack_runs<T: Float>(
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
    first_channel: usize,
    channels: usize,
    /// Rows of the padded image.
    rows: Range<usize>,
    to: *mut f32,
}

impl<T: Float> Kernel for Fill<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { job, cut, sample, first_channel, channels, rows, to } = self;
        if channels == 0 {
            return;
        }
        let columns = cut.row / cut.pixel;
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
                std::ptr::write_bytes(to, 0, left * cut.pixel);
                std::ptr::write_bytes(to.add(right * cut.pixel), 0, (columns - right) * cut.pixel);
                let from = job.x.at([sample, first_channel, y, left - job.padding[1]]);
                copy_row::<S, T>(job, from, channels, right - left, to.add(left * cut.pixel), cut.pixel);
            }
        }
    }
}

/// Copies `pixels` pixels of a row from `from` on, channels last and `step` floats apart.
///
/// # Safety
/// The pixels are inside the image; `to` has room.
#[inline(always)]
unsafe fn copy_row<S: Simd, T: Float>(
    job: &Job<'_, T>,
    from: *const T,
    channels: usize,
    pixels: usize,
    to: *mut f32,
    step: usize,
) {
    let [_, x_c, _, x_w] = job.x.strides;
    // SAFETY: this function's contract.
    unsafe {
        if channels == 1 && step == 1 {
            copy::<S, T>(from, x_w, pixels, to);
        } else if x_c == 1 && x_w == channels && step == channels {
            copy::<S, T>(from, 1, pixels * channels, to);
        } else if x_c == 1 || x_w != 1 {
            for j in 0..pixels {
                copy::<S, T>(from.add(j * x_w), x_c, channels, to.add(j * step));
            }
        } else {
            for c in (0..channels).step_by(S::LANES) {
                // The last block starts where it still fits, and some channels are copied twice.
                let c = if channels < S::LANES { 0 } else { c.min(channels - S::LANES) };
                for j in (0..pixels).step_by(S::LANES) {
                    let j = if pixels < S::LANES { 0 } else { j.min(pixels - S::LANES) };
                    let (from, to) = (from.add(c * x_c + j), to.add(j * step + c));
                    if channels >= S::LANES && pixels >= S::LANES {
                        S::transpose(from, x_c, to, step);
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
                        S::store_n(to.add(column * step), v, lanes);
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
unsafe fn copy<S: Simd, T: Float>(from: *const T, stride: usize, count: usize, to: *mut f32) {
    // SAFETY: this function's contract.
    unsafe {
        let mut first = 0;
        if stride == 1 {
            while first + S::LANES <= count {
                S::store(to.add(first), S::get(from.add(first)));
                first += S::LANES;
            }
        }
        while first < count {
            let lanes = S::LANES.min(count - first);
            let v = gather::<S, T>(from.add(first * stride), stride, lanes);
            S::store_n(to.add(first), v, lanes);
            first += S::LANES;
        }
    }
}

/// The first `lanes` lanes from elements `stride` apart; the others are 0 unless the stride is.
///
/// # Safety
/// Those elements are readable.
#[inline(always)]
unsafe fn gather<S: Simd, T: Float>(from: *const T, stride: usize, lanes: usize) -> S::V {
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
unsafe fn scatter<S: Simd, T: Float>(to: *mut T, stride: usize, v: S::V, lanes: usize) {
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
struct Panel<'a, T> {
    job: &'a Job<'a, T>,
    cut: &'a Cut,
    /// Output channels.
    channels: Range<usize>,
    weights: *const f32,
    /// Sums of a strip: `[pixel][registers of channels]`, or `[channel][DOTS_PIXELS]`.
    sums: *mut f32,
}

/// Some tiles, computed before their epilogue.
struct Strip {
    tiles: ArrayVec<Tile, STRIP_TILES>,
    /// Where the windows of its pixels start.
    windows: ArrayVec<*const f32, MAX_STRIP>,
    places: ArrayVec<Place, MAX_STRIP>,
}

/// Pixels that are summed in registers together.
struct Tile {
    pixels: usize,
    taps: Taps,
    weights: *const f32,
}

/// Where the first channel of a pixel is in `out` and in `residual`, and where its biases are.
#[derive(Clone, Copy)]
struct Place {
    out: usize,
    residual: usize,
    biases: usize,
}

impl Strip {
    fn new() -> Self {
        Self { tiles: ArrayVec::new(), windows: ArrayVec::new(), places: ArrayVec::new() }
    }
}

impl<T: Float> Panel<'_, T> {
    /// The first channel of a pixel in `out` and in `residual`.
    fn place(&self, sample: usize, y: usize, x: usize) -> Place {
        let index = [sample, self.channels.start, y, x];
        let residual = self.job.residual.map_or(0, |r| dot(index, r.strides));
        Place { out: dot(index, self.job.out_strides), residual, biases: 0 }
    }

    /// Computes pixels of a sample that lie at one distance from the next: they are counted from the first
    /// pixel of `rows`, whose window is at `base`.
    fn segment(
        &self,
        sample: usize,
        rows: &Range<usize>,
        pixels: Range<usize>,
        base: *const f32,
        biases: &[f32; 2 * MAX_LANES],
    ) {
        let (job, cut) = (self.job, self.cut);
        let columns = job.out_size[1];
        let residual_w = job.residual.map_or(0, |r| r.strides[3]);
        let (mut y, mut x) = (pixels.start / columns, pixels.start % columns);
        let window = |y: usize, x: usize| {
            base.wrapping_add(y * job.stride[0] * cut.row + x * job.stride[1] * cut.pixel)
        };
        let mut next = (window(y, x), self.place(sample, rows.start + y, x));
        let tile = if cut.method == Method::Dots { DOTS_PIXELS } else { cut.shape.pixels };
        let tiles = pixels.len().div_ceil(tile);
        let mut strip = Strip::new();
        for tile in 0..tiles {
            let count = (tile + 1) * pixels.len() / tiles - tile * pixels.len() / tiles;
            strip.tiles.push(Tile { pixels: count, taps: cut.taps, weights: self.weights });
            for _ in 0..count {
                strip.windows.push(next.0);
                strip.places.push(next.1);
                x += 1;
                if x == columns {
                    (y, x) = (y + 1, 0);
                    if y < rows.len() {
                        next = (window(y, x), self.place(sample, rows.start + y, x));
                    }
                } else {
                    next.0 = next.0.wrapping_add(job.stride[1] * cut.pixel);
                    next.1.out += job.out_strides[3];
                    next.1.residual += residual_w;
                }
            }
            // Stores along channels overlap with the next tile's sums when there are few of them; along
            // pixels they need many to fill registers, and depthwise sums are too short to hide them.
            let short = cut.method == Method::Products && !cut.by_pixels;
            if strip.tiles.is_full() || short || cut.method == Method::Dots {
                self.compute(&mut strip, biases);
            }
        }
        self.compute(&mut strip, biases);
    }

    /// Adds a tile: one pixel of several samples, with the taps that are inside the image.
    fn pixel(
        &self,
        group: usize,
        samples: &Range<usize>,
        [y, x]: [usize; 2],
        [tap_rows, tap_columns]: [&Range<usize>; 2],
        strip: &mut Strip,
    ) {
        let (job, cut) = (self.job, self.cut);
        let mut taps = cut.taps;
        taps.rows = tap_rows.len();
        // Taps that are left out before the first.
        let mut skip = tap_rows.start * taps.weight_row;
        if taps.columns == 1 {
            taps.run = tap_columns.len() * job.c_in;
            skip += tap_columns.start * job.c_in;
        } else {
            taps.columns = tap_columns.len();
            skip += tap_columns.start * taps.weight_column;
        }
        let width = self.channels.len().next_multiple_of(cut.shape.lanes);
        let mut at = [samples.start, group * job.c_in, 0, 0];
        if !tap_rows.is_empty() && !tap_columns.is_empty() {
            at[2] = y * job.stride[0] + tap_rows.start * job.dilation[0] - job.padding[0];
            at[3] = x * job.stride[1] + tap_columns.start * job.dilation[1] - job.padding[1];
        }
        // SAFETY: the tap is inside the image, whose elements are f32.
        let mut window = unsafe { job.x.at(at).cast::<f32>() };
        let mut place = self.place(samples.start, y, x);
        let residual_n = job.residual.map_or(0, |r| r.strides[0]);
        for _ in samples.clone() {
            strip.windows.push(window);
            strip.places.push(place);
            window = window.wrapping_add(job.x.strides[0]);
            place.out += job.out_strides[0];
            place.residual += residual_n;
            place.biases += 2 * MAX_LANES;
        }
        let weights = self.weights.wrapping_add(skip * width);
        strip.tiles.push(Tile { pixels: samples.len(), taps, weights });
    }

    /// Computes a strip and empties it.
    fn compute(&self, strip: &mut Strip, biases: &[f32]) {
        if strip.tiles.is_empty() {
            return;
        }
        let isa = self.cut.isa;
        let channels = self.channels.len();
        match self.cut.method {
            Method::Products => isa.run(Products { strip, channels, to: self.sums }),
            Method::Depthwise => isa.run(Depthwise { strip, channels, to: self.sums }),
            Method::Dots => isa.run(Dots { strip, channels, to: self.sums }),
        }
        isa.run(Finish { panel: self, places: &strip.places, biases });
        strip.tiles.clear();
        strip.windows.clear();
        strip.places.clear();
    }
}

/// Calls a function with the numbers of pixels and of registers of a tile as constants.
macro_rules! by_tile {
    ($S:ident, $pixels:expr, $registers:expr, $call:ident $arguments:tt) => {
        by_tile!(@ $S, $pixels, $registers, $call $arguments, 1 2 3 4 5 6 7 8 9 10 11 12 13 14)
    };
    (@ $S:ident, $pixels:expr, $registers:expr, $call:ident $arguments:tt, $($count:literal)*) => {
        match ($pixels, $registers) {
            // Tiles that S does not have are not compiled.
            $(($count, 1) if $count <= const { Shape::of::<$S>().pixels } => $call::<$S, $count, 1> $arguments,
            ($count, _) if $count <= const { Shape::of::<$S>().pixels } => $call::<$S, $count, 2> $arguments,)*
            _ => unreachable!("a tile has 1 to {} pixels", Shape::of::<$S>().pixels),
        }
    };
}

/// The sums of a strip: each input is multiplied by a panel of weights.
struct Products<'a> {
    strip: &'a Strip,
    channels: usize,
    to: *mut f32,
}

impl Kernel for Products<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let registers = self.channels.div_ceil(S::LANES);
        let (mut to, mut windows) = (self.to, self.strip.windows.as_ptr());
        for tile in &self.strip.tiles {
            // SAFETY: the windows are inside the scratch or the image, the panel is whole, and the sums have
            // room.
            unsafe {
                by_tile!(S, tile.pixels, registers, products(tile, windows, to));
                to = to.add(tile.pixels * registers * S::LANES);
                windows = windows.add(tile.pixels);
            }
        }
    }
}

/// A tile of `P` pixels by `V` registers of channels.
///
/// # Safety
/// There are `P` windows; every tap of theirs is readable, the weights hold `V` registers a tap, and `to` has
/// room for `P * V` registers.
#[inline(always)]
unsafe fn products<S: Simd, const P: usize, const V: usize>(
    tile: &Tile,
    windows: *const *const f32,
    to: *mut f32,
) {
    let taps = tile.taps;
    // SAFETY: this function's contract.
    unsafe {
        let windows = windows.cast::<[*const f32; P]>().read();
        let mut acc = [[S::splat(0.0); V]; P];
        for i in 0..taps.rows {
            for j in 0..taps.columns {
                let mut weights =
                    tile.weights.add((i * taps.weight_row + j * taps.weight_column) * V * S::LANES);
                let mut from = windows;
                for from in &mut from {
                    *from = from.add(i * taps.row_step + j * taps.column_step);
                }
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

/// The sums of a strip, channel by channel.
struct Depthwise<'a> {
    strip: &'a Strip,
    channels: usize,
    to: *mut f32,
}

impl Kernel for Depthwise<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let registers = self.channels.div_ceil(S::LANES);
        let (mut to, mut windows) = (self.to, self.strip.windows.as_ptr());
        for tile in &self.strip.tiles {
            // SAFETY: as in `Products`; a pixel of the scratch has whole registers of channels.
            unsafe {
                by_tile!(S, tile.pixels, registers, depthwise(tile, windows, to));
                to = to.add(tile.pixels * registers * S::LANES);
                windows = windows.add(tile.pixels);
            }
        }
    }
}

/// A tile of `P` pixels by `V` registers of channels, each of which sees only itself.
///
/// # Safety
/// As [`products`], with `V` registers a tap on both sides.
#[inline(always)]
unsafe fn depthwise<S: Simd, const P: usize, const V: usize>(
    tile: &Tile,
    windows: *const *const f32,
    to: *mut f32,
) {
    let taps = tile.taps;
    // SAFETY: this function's contract.
    unsafe {
        let windows = windows.cast::<[*const f32; P]>().read();
        let mut weights = tile.weights;
        let mut acc = [[S::splat(0.0); V]; P];
        for i in 0..taps.rows {
            for j in 0..taps.columns {
                let at = i * taps.row_step + j * taps.column_step;
                let mut panel = [S::splat(0.0); V];
                for (v, w) in panel.iter_mut().enumerate() {
                    *w = S::load(weights.add(v * S::LANES));
                }
                weights = weights.add(V * S::LANES);
                for (sums, from) in acc.iter_mut().zip(&windows) {
                    for (v, (sum, &w)) in sums.iter_mut().zip(&panel).enumerate() {
                        *sum = S::fma(S::load(from.add(at + v * S::LANES)), w, *sum);
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

/// The sums of a strip, along the taps.
struct Dots<'a> {
    strip: &'a Strip,
    channels: usize,
    to: *mut f32,
}

impl Kernel for Dots<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for tile in &self.strip.tiles {
            for (first, some) in self.strip.windows.chunks(4).enumerate() {
                // Past the last pixel the last is summed again.
                let last = some[some.len() - 1];
                let mut windows = [last; 4];
                windows[..some.len()].copy_from_slice(some);
                // SAFETY: the windows are inside the scratch or the image, and there is room for four sums.
                unsafe {
                    let to = self.to.add(4 * first);
                    match self.channels {
                        1 => dots::<S, 1>(tile, windows, to),
                        2 => dots::<S, 2>(tile, windows, to),
                        3 => dots::<S, 3>(tile, windows, to),
                        _ => dots::<S, 4>(tile, windows, to),
                    }
                }
            }
        }
    }
}

/// Four pixels by `O` channels: sums go to `to[channel * DOTS_PIXELS + pixel]`.
///
/// # Safety
/// As [`products`], the weights being runs padded to whole registers.
#[inline(always)]
unsafe fn dots<S: Simd, const O: usize>(tile: &Tile, windows: [*const f32; 4], to: *mut f32) {
    let taps = tile.taps;
    let channel = taps.rows * taps.weight_row;
    let whole = taps.run / S::LANES * S::LANES;
    // SAFETY: this function's contract.
    unsafe {
        let mut acc = [[S::splat(0.0); 4]; O];
        for i in 0..taps.rows {
            for j in 0..taps.columns {
                let weights = tile.weights.add(i * taps.weight_row + j * taps.weight_column);
                let at = i * taps.row_step + j * taps.column_step;
                for t in (0..whole).step_by(S::LANES) {
                    for (o, sums) in acc.iter_mut().enumerate() {
                        let w = S::load(weights.add(o * channel + t));
                        for (sum, from) in sums.iter_mut().zip(&windows) {
                            *sum = S::fma(S::load(from.add(at + t)), w, *sum);
                        }
                    }
                }
                if whole < taps.run {
                    for (o, sums) in acc.iter_mut().enumerate() {
                        let w = S::load(weights.add(o * channel + whole));
                        for (sum, from) in sums.iter_mut().zip(&windows) {
                            *sum = S::fma(S::load_n(from.add(at + whole), taps.run - whole), w, *sum);
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
    panel: &'a Panel<'a, T>,
    places: &'a [Place],
    biases: &'a [f32],
}

impl<T: Float> Kernel for Finish<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // SAFETY: the pixels are this thread's, and their sums are there.
        unsafe {
            match self.panel.job.activation {
                Activation::None => self.by_activation::<S>(Activation::None),
                Activation::Silu => self.by_activation::<S>(Activation::Silu),
                Activation::Gelu => self.by_activation::<S>(Activation::Gelu),
            }
        }
    }
}

impl<T: Float> Finish<'_, T> {
    /// # Safety
    /// The pixels are this thread's, and their sums are there.
    #[inline(always)]
    unsafe fn by_activation<S: Simd>(&self, activation: Activation) {
        let Panel { job, cut, channels, sums, .. } = self.panel;
        let step = channels.len().next_multiple_of(S::LANES);
        // SAFETY: this function's contract.
        unsafe {
            if !cut.by_pixels {
                let mut from = sums.cast_const();
                if job.out_strides[1] == 1 && job.residual.is_none_or(|r| r.strides[1] == 1) {
                    for place in self.places {
                        let to = job.out.at(place.out);
                        let residual = job.residual.map(|r| r.at.at(place.residual));
                        let biases = self.biases.as_ptr().add(place.biases);
                        let mut c = 0;
                        while c + S::LANES <= channels.len() {
                            let z = S::add(S::load(from.add(c)), S::load(biases.add(c)));
                            let mut z = activate::<S>(activation, z);
                            if let Some(residual) = residual {
                                z = S::add(z, S::get(residual.add(c)));
                            }
                            S::put(to.add(c), z);
                            c += S::LANES;
                        }
                        if c < channels.len() {
                            let z = S::add(S::load(from.add(c)), S::load(biases.add(c)));
                            self.store::<S>(activation, z, place, c, 1, channels.len() - c);
                        }
                        from = from.add(step);
                    }
                    return;
                }
                for place in self.places {
                    let biases = self.biases.as_ptr().add(place.biases);
                    let mut c = 0;
                    while c < channels.len() {
                        let z = S::add(S::load(from.add(c)), S::load(biases.add(c)));
                        self.store::<S>(activation, z, place, c, 1, channels.len() - c);
                        c += S::LANES;
                    }
                    from = from.add(step);
                }
                return;
            }
            let mut turned = [0.0f32; MAX_LANES * MAX_LANES];
            for (q, place) in self.places.iter().enumerate().step_by(S::LANES) {
                for c in (0..channels.len()).step_by(S::LANES) {
                    let (from, next) = if cut.method == Method::Dots {
                        (sums.add(c * DOTS_PIXELS + q).cast_const(), DOTS_PIXELS)
                    } else {
                        S::transpose(
                            sums.add(q * step + c).cast_const(),
                            step,
                            turned.as_mut_ptr(),
                            S::LANES,
                        );
                        (turned.as_ptr(), S::LANES)
                    };
                    for lane in 0..S::LANES.min(channels.len() - c) {
                        let z = S::add(S::load(from.add(lane * next)), S::splat(self.biases[c + lane]));
                        self.store::<S>(activation, z, place, c + lane, 3, self.places.len() - q);
                    }
                }
            }
        }
    }

    /// Activation, residual and store of up to `count` elements along `axis`, from channel `c` of the panel
    /// at `place` on.
    ///
    /// # Safety
    /// They are inside `out` and this thread's.
    #[inline(always)]
    unsafe fn store<S: Simd>(
        &self,
        activation: Activation,
        z: S::V,
        place: &Place,
        c: usize,
        axis: usize,
        count: usize,
    ) {
        let job = self.panel.job;
        let lanes = count.min(S::LANES);
        // SAFETY: this function's contract.
        unsafe {
            let mut z = activate::<S>(activation, z);
            if let Some(residual) = &job.residual {
                let from = residual.at.at(place.residual + c * residual.strides[1]);
                z = S::add(z, gather::<S, T>(from, residual.strides[axis], lanes));
            }
            let to = job.out.at(place.out + c * job.out_strides[1]);
            scatter::<S, T>(to, job.out_strides[axis], z, lanes);
        }
    }
}
