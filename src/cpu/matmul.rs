//! Matrix products on the CPU: the blocking of Goto and van de Geijn (Anatomy of High-Performance Matrix
//! Multiplication, ACM TOMS 34, 2008).
//!
//! ```text
//!   for each block of columns, for each block of k (KC)
//!       pack b into panels [k][2 registers of columns]                          threads over panels
//!       for each block of rows                                                  threads over blocks
//!           pack a into tiles [k][ROWS rows]
//!           for each panel, for each tile
//!               sums += tile x panel    in registers: ROWS rows x 2 registers
//!               after the last block of k: bias, activation, residual, store
//! ```
//!
//! Packing converts to f32 and turns any stride into 1. Where few tiles use a panel it is read where it
//! lies, or packed by the thread that uses it, while it is in the cache. A result stored column by column
//! is computed as its transpose, so that stores are dense.
//!
//! On every path an element is one chain of multiply-adds, k ascending: a row's result does not depend on
//! how many other rows there are, nor on the number of threads.

use super::activation::activate;
use super::scratch::with_buffer;
use super::simd::{Kernel, Simd};
use super::strided::{In, Out, by_dtype};
use crate::dtype::Float;
use crate::ops::Activation;
use crate::ops::matmul::{Matmul, MatmulArgs, MatmulParams};
use crate::target::cpu::Cpu;
use std::cell::Cell;
use std::ops::Range;

/// The longest stretch of k that is packed at once: a tile of `a` then stays in the first cache and a
/// block of tiles in the second. Speed only.
const KC: usize = 512;
/// Panels of `b` packed at once. Speed only.
const NC_PANELS: usize = 64;
/// Tiles of `a` packed at once. Speed only.
const MC_TILES: usize = 12;
/// The most floats of unfinished sums: of taller products one part is computed after the other.
const SUMS: usize = 1 << 24;
/// The most floats of `a` that [`FewRows`] has a copy of.
const FEW: usize = 1 << 22;
/// Multiply-adds that are worth waking a thread for. Speed only.
const WORTH_A_THREAD: usize = 400_000;
/// The most rows and columns of a micro-tile on any instruction set.
const MAX_ROWS: usize = 14;
const MAX_COLUMNS: usize = 32;

pub(crate) fn run(op: Matmul, p: &MatmulParams, args: MatmulArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    by_dtype!(args.out.dtype(), typed(op, p, args, cpu));
}

fn typed<T: Float>(op: Matmul, p: &MatmulParams, args: MatmulArgs<&[u8], &mut [u8]>, cpu: &Cpu) {
    let MatmulArgs { a, b, bias, residual, mut out } = args;
    let mut batch = p.batch as usize;
    if batch == 0 || p.m == 0 || p.n == 0 {
        return;
    }
    let place =
        |start: usize, row: u32, column: u32| Place { start, row: row as usize, column: column as usize };
    let mut product = Product {
        activation: op.activation,
        m: p.m as usize,
        n: p.n as usize,
        k: p.k as usize,
        a: Matrix { at: In::<T>::new(&a), place: place(0, p.a_i, p.a_k) },
        b: Matrix { at: In::new(&b), place: place(0, p.b_k, p.b_j) },
        bias: bias.map(|view| Matrix { at: In::new(&view), place: place(0, 0, p.bias_j) }),
        residual: residual
            .map(|view| Matrix { at: In::new(&view), place: place(0, p.residual_i, p.residual_j) }),
        out: Out::new(&mut out),
        out_place: place(0, p.out_i, p.out_j),
    };
    // Samples that share `b` and lie on end are one tall matrix.
    let tall = |step: u32, row: u32| u64::from(step) == u64::from(p.m) * u64::from(row);
    if batch > 1
        && p.b_b == 0
        && tall(p.a_b, p.a_i)
        && tall(p.out_b, p.out_i)
        && (product.residual.is_none() || tall(p.residual_b, p.residual_i))
    {
        product.m *= batch;
        batch = 1;
    }
    let sample = |s: usize| {
        let mut at = product;
        at.a.place.start = s * p.a_b as usize;
        at.b.place.start = s * p.b_b as usize;
        if let Some(residual) = &mut at.residual {
            residual.place.start = s * p.residual_b as usize;
        }
        at.out_place.start = s * p.out_b as usize;
        at.upright()
    };
    let work = product.m * product.n * product.k.max(8);
    if batch >= cpu.threads() && batch > 1 && work.saturating_mul(batch) > WORTH_A_THREAD {
        // Samples in bunches, each bunch with enough to do.
        let bunch = (WORTH_A_THREAD / work.max(1)).clamp(1, batch.div_ceil(cpu.threads()));
        cpu.each(batch.div_ceil(bunch), |t| {
            for s in t * bunch..batch.min((t + 1) * bunch) {
                sample(s).compute(cpu, 1);
            }
        });
        return;
    }
    for s in 0..batch {
        sample(s).compute(cpu, (work / WORTH_A_THREAD).clamp(1, cpu.threads()));
    }
}

/// Where the elements of a matrix are, counted from the first element of its view.
#[derive(Clone, Copy)]
struct Place {
    start: usize,
    row: usize,
    column: usize,
}

impl Place {
    #[inline(always)]
    fn of(self, i: usize, j: usize) -> usize {
        self.start + i * self.row + j * self.column
    }

    fn transposed(self) -> Self {
        Self { start: self.start, row: self.column, column: self.row }
    }

    fn at_row(self, i: usize) -> Self {
        Self { start: self.of(i, 0), ..self }
    }
}

/// An input matrix.
#[derive(Clone, Copy)]
struct Matrix<'a, T> {
    at: In<'a, T>,
    place: Place,
}

impl<T: Float> Matrix<'_, T> {
    /// # Safety
    /// Element (i, j) is inside the view.
    #[inline(always)]
    unsafe fn at(&self, i: usize, j: usize) -> *const T {
        // SAFETY: this function's contract.
        unsafe { self.at.at(self.place.of(i, j)) }
    }

    fn transposed(self) -> Self {
        Self { at: self.at, place: self.place.transposed() }
    }

    fn at_row(self, i: usize) -> Self {
        Self { at: self.at, place: self.place.at_row(i) }
    }
}

/// One product. The bias is a matrix too: stride 0 along rows, or along columns after [`Self::upright`].
#[derive(Clone, Copy)]
struct Product<'a, T> {
    activation: Activation,
    m: usize,
    n: usize,
    k: usize,
    a: Matrix<'a, T>,
    b: Matrix<'a, T>,
    bias: Option<Matrix<'a, T>>,
    residual: Option<Matrix<'a, T>>,
    out: Out<'a, T>,
    out_place: Place,
}

impl<T: Float> Product<'_, T> {
    /// The same product with the dense axis of the result along its rows, or with the long axis there
    /// when the other is very short: `out^T = b^T a^T`.
    fn upright(self) -> Self {
        let by_columns = self.out_place.row < self.out_place.column && self.m > 1 && self.n > 1;
        let thin = self.n <= 4 && self.m > 2 * self.n;
        if !(thin || by_columns && !(self.m <= 4 && self.n > 2 * self.m)) {
            return self;
        }
        Self {
            m: self.n,
            n: self.m,
            a: self.b.transposed(),
            b: self.a.transposed(),
            bias: self.bias.map(Matrix::transposed),
            residual: self.residual.map(Matrix::transposed),
            out_place: self.out_place.transposed(),
            ..self
        }
    }

    /// Some rows of the result.
    fn part(self, rows: Range<usize>) -> Self {
        Self {
            m: rows.len(),
            a: self.a.at_row(rows.start),
            bias: self.bias.map(|bias| bias.at_row(rows.start)),
            residual: self.residual.map(|residual| residual.at_row(rows.start)),
            out_place: self.out_place.at_row(rows.start),
            ..self
        }
    }

    /// Computes the product with work cut for `threads` threads.
    fn compute(&self, cpu: &Cpu, threads: usize) {
        let isa = cpu.isa();
        let shape = isa.run(ShapeOf);
        let each = |count: usize, work: &(dyn Fn(usize) + Sync)| each(cpu, threads, count, work);
        if self.m <= 4 && self.k > 0 && self.m * self.k <= FEW && self.b.place.column == 1 {
            let columns = self.n.div_ceil(threads).next_multiple_of(shape.columns);
            each(self.n.div_ceil(columns), &|t| {
                with_buffer(&TILES, self.m * self.k, |a| {
                    isa.run(FewRows {
                        product: self,
                        a,
                        columns: t * columns..self.n.min((t + 1) * columns),
                    });
                });
            });
            return;
        }
        let panels = self.n.div_ceil(shape.columns);
        let nc = panels.min(NC_PANELS);
        let steps = self.k.div_ceil(KC).max(1);
        let most = SUMS / (nc * shape.columns * shape.rows) * shape.rows;
        if steps > 1 && self.m > most {
            // None is left with a few rows, for which `b` would be read once more.
            let parts = self.m.div_ceil(most);
            for i in 0..parts {
                self.part(share(self.m, parts, i)).compute(cpu, threads);
            }
            return;
        }
        let tiles = self.m.div_ceil(shape.rows);
        // Panels that few tiles use are not worth a pass of their own over `b`.
        let few_tiles = tiles <= 2;
        let kc = self.k.div_ceil(steps);
        // A few blocks of rows a thread even out their speeds; columns are cut where rows are too few.
        let row_blocks = match threads {
            _ if few_tiles => 1,
            1 => tiles.div_ceil(MC_TILES),
            _ => tiles
                .div_ceil(MC_TILES)
                .next_multiple_of(threads)
                .max(tiles.div_ceil(4).min(4 * threads))
                .min(tiles),
        };
        let column_blocks = if row_blocks >= threads { 1 } else { (2 * threads).div_ceil(row_blocks) };
        let tile_size = shape.rows * shape.columns;
        let sums_size = if steps > 1 { tiles * nc * tile_size } else { 0 };
        let packed_size = if few_tiles { 0 } else { nc * kc * shape.columns };
        with_buffer(&PANELS, packed_size + sums_size, |buffer| {
            let packed = (!few_tiles).then_some(Shared(buffer));
            let sums = Shared(buffer.wrapping_add(packed_size));
            for first_panel in (0..panels).step_by(nc) {
                let nc = nc.min(panels - first_panel);
                for step in 0..steps {
                    let k = step * self.k / steps..(step + 1) * self.k / steps;
                    let pass = Pass { product: self, packed, sums, tiles, first_panel, k, kc };
                    if let Some(packed) = packed {
                        // Packing is worth a thread for every so many elements.
                        let blocks =
                            (nc * kc * shape.columns / (WORTH_A_THREAD / 8)).clamp(1, nc.min(4 * threads));
                        each(blocks, &|t| {
                            isa.run(PackB { pass: &pass, packed, panels: share(nc, blocks, t) });
                        });
                    }
                    let column_blocks = column_blocks.min(nc);
                    each(row_blocks * column_blocks, &|t| {
                        let tiles = share(tiles, row_blocks, t / column_blocks);
                        let panels = share(nc, column_blocks, t % column_blocks);
                        // One register more than the tiles hold: packing writes whole registers.
                        let tiles_size = (tiles.len() * shape.rows * kc).next_multiple_of(16) + 16;
                        let panel_size = if few_tiles { kc * shape.columns } else { 0 };
                        with_buffer(&TILES, tiles_size + panel_size, |a| {
                            isa.run(Multiply {
                                pass: &pass,
                                a,
                                panel: a.wrapping_add(tiles_size),
                                tiles,
                                panels,
                                load: step > 0,
                                finish: step + 1 == steps,
                            });
                        });
                    });
                }
            }
        });
    }
}

/// Part `index` of `0..count` cut in `parts` that differ by at most one.
fn share(count: usize, parts: usize, index: usize) -> Range<usize> {
    index * count / parts..(index + 1) * count / parts
}

thread_local! {
    /// Packed panels of `b` and unfinished sums, by the thread that called.
    static PANELS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    /// Packed tiles of `a`, by the thread that multiplies them.
    static TILES: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` for each of `0..count`, on `threads` threads if there are more than one.
fn each(cpu: &Cpu, threads: usize, count: usize, work: impl Fn(usize) + Sync + Send) {
    if threads == 1 { (0..count).for_each(work) } else { cpu.each(count, work) }
}

/// A buffer that threads share: packed panels are written each by one thread and read after all are
/// written; sums are written and read by the thread that has the tile.
#[derive(Clone, Copy)]
struct Shared(*mut f32);
// SAFETY: see above; every use is in an unsafe block that says who else is there.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// Rows and columns of a micro-tile: two registers of columns, and as many rows as leave registers for
/// the operands.
#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    columns: usize,
}

impl Shape {
    #[inline(always)]
    const fn of<S: Simd>() -> Self {
        let rows = (S::REGISTERS - 4) / 2;
        // Packing writes whole registers; what it writes past a tile's last row must fall on later ones.
        let rows = if rows > S::LANES { rows / S::LANES * S::LANES } else { rows };
        Self { rows: if rows < MAX_ROWS { rows } else { MAX_ROWS }, columns: 2 * S::LANES }
    }
}

/// The micro-tile of an instruction set.
struct ShapeOf;

impl Kernel for ShapeOf {
    type Output = Shape;
    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> Shape {
        Shape::of::<S>()
    }
}

/// One block of columns and one block of k.
struct Pass<'a, T> {
    product: &'a Product<'a, T>,
    /// Packed panels, `[k][columns]` each and `kc * columns` floats apart; none where threads pack for
    /// themselves.
    packed: Option<Shared>,
    /// Unfinished sums, a micro-tile each, panel by panel.
    sums: Shared,
    /// Tiles of rows in the product.
    tiles: usize,
    /// The first panel of the block of columns; panels are counted from it.
    first_panel: usize,
    k: Range<usize>,
    kc: usize,
}

/// Packs some panels of `b`.
struct PackB<'a, T> {
    pass: &'a Pass<'a, T>,
    packed: Shared,
    panels: Range<usize>,
}

impl<T: Float> Kernel for PackB<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for panel in self.panels {
            // SAFETY: this panel's part of `packed` is written by this thread alone.
            unsafe {
                pack_panel::<S, T>(self.pass, panel, self.packed.0.add(panel * self.pass.kc * 2 * S::LANES))
            }
        }
    }
}

/// Packs one panel: `[k][columns]`, or `[k][LANES]` where that holds all its columns.
///
/// # Safety
/// `to` has room for it, and no other thread touches it.
#[inline(always)]
unsafe fn pack_panel<S: Simd, T: Float>(pass: &Pass<'_, T>, panel: usize, to: *mut f32) {
    let first = (pass.first_panel + panel) * 2 * S::LANES;
    let width = (2 * S::LANES).min(pass.product.n - first);
    let registers = width.div_ceil(S::LANES);
    let by_columns = pass.product.b.transposed();
    for r in 0..registers {
        let lanes = S::LANES.min(width - r * S::LANES);
        // SAFETY: those columns are inside `b`, and this function's contract.
        unsafe {
            let to = to.add(r * S::LANES);
            pack::<S, T>(by_columns, first + r * S::LANES, lanes, &pass.k, to, registers * S::LANES);
        }
    }
}

/// Writes rows `first..first + lanes` of `from`, over columns `k`, as columns: `to[step * t + lane]` for the
/// t-th column. Whole registers are written, `t` ascending.
///
/// # Safety
/// Those rows and columns are inside `from`; `lanes <= LANES`; `to` has room for `LANES` floats from each
/// step on.
#[inline(always)]
unsafe fn pack<S: Simd, T: Float>(
    from: Matrix<'_, T>,
    first: usize,
    lanes: usize,
    k: &Range<usize>,
    to: *mut f32,
    step: usize,
) {
    // SAFETY: this function's contract; a block of LANES x LANES is taken only where all of it is there.
    unsafe {
        let Place { row, column, .. } = from.place;
        let full = lanes == S::LANES;
        let mut t = 0;
        if row == 1 {
            while t < k.len() {
                let source = from.at(first, k.start + t);
                let v = if full { S::get(source) } else { S::get_n(source, lanes) };
                S::store(to.add(t * step), v);
                t += 1;
            }
            return;
        }
        if column == 1 {
            if full {
                while t + S::LANES <= k.len() {
                    S::transpose(from.at(first, k.start + t), row, to.add(t * step), step);
                    t += S::LANES;
                }
            } else {
                // Rows that are not there repeat the last one.
                let mut rows = [0.0f32; 16 * 16];
                while t + S::LANES <= k.len() {
                    for lane in 0..S::LANES {
                        let source = from.at(first + lane.min(lanes - 1), k.start + t);
                        S::store(rows.as_mut_ptr().add(lane * S::LANES), S::get(source));
                    }
                    S::transpose(rows.as_ptr(), S::LANES, to.add(t * step), step);
                    t += S::LANES;
                }
            }
        }
        while t < k.len() {
            let mut all = [0.0f32; 16];
            let source = from.at(first, k.start + t);
            for (lane, x) in all.iter_mut().enumerate().take(lanes) {
                *x = (*source.add(lane * row)).to_f32();
            }
            S::store(to.add(t * step), S::load(all.as_ptr()));
            t += 1;
        }
    }
}

/// Multiplies some tiles of `a` by some panels of `b`.
struct Multiply<'a, T> {
    pass: &'a Pass<'a, T>,
    /// Room for the packed tiles.
    a: *mut f32,
    /// Room for a panel, where threads pack for themselves.
    panel: *mut f32,
    tiles: Range<usize>,
    panels: Range<usize>,
    /// There are sums of earlier k to add to.
    load: bool,
    /// This is the last block of k.
    finish: bool,
}

impl<T: Float> Kernel for Multiply<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Pass { product, packed, sums, tiles, first_panel, ref k, kc } = *self.pass;
        let shape = const { Shape::of::<S>() };
        let size = shape.rows * shape.columns;
        let rows = |tile: usize| share(product.m, tiles, tile);
        // SAFETY: rows and k are inside `a`; each tile takes `rows * kc` floats, and the register that
        // the last one overhangs by is there too.
        unsafe {
            for (index, tile) in self.tiles.clone().enumerate() {
                let rows = rows(tile);
                let to = self.a.add(index * shape.rows * kc);
                for first in (0..rows.len()).step_by(S::LANES) {
                    let lanes = S::LANES.min(rows.len() - first);
                    pack::<S, T>(product.a, rows.start + first, lanes, k, to.add(first), shape.rows);
                }
            }
        }
        let mut scratch = [0.0f32; MAX_ROWS * MAX_COLUMNS];
        for panel in self.panels {
            let first = (first_panel + panel) * shape.columns;
            let width = shape.columns.min(product.n - first);
            // A full panel without a packed copy is read where it lies, if its rows are dense.
            let direct = packed.is_none() && product.b.place.column == 1 && width == shape.columns;
            let b = match packed {
                Some(packed) => packed.0.wrapping_add(panel * kc * shape.columns),
                None => self.panel,
            };
            if packed.is_none() && !direct {
                // SAFETY: the room is this thread's.
                unsafe { pack_panel::<S, T>(self.pass, panel, b) };
            }
            for (index, tile) in self.tiles.clone().enumerate() {
                let rows = rows(tile);
                // SAFETY: the tile was packed above, the panel there or before this work (or all its
                // columns are inside `b`); the tile's sums belong to this thread.
                unsafe {
                    let acc = if self.load || !self.finish {
                        sums.0.add((panel * tiles + tile) * size)
                    } else {
                        scratch.as_mut_ptr()
                    };
                    let block = Block {
                        k: k.len(),
                        a: self.a.add(index * shape.rows * kc),
                        rows: rows.len(),
                        acc,
                        load: self.load,
                    };
                    if direct {
                        let b = if k.is_empty() { std::ptr::null() } else { product.b.at(k.start, first) };
                        block.multiply::<S, T, 2>(b, product.b.place.row);
                    } else if width <= S::LANES {
                        block.multiply::<S, f32, 1>(b, S::LANES);
                    } else {
                        block.multiply::<S, f32, 2>(b, shape.columns);
                    }
                    if self.finish {
                        finish::<S, T>(product, acc, shape.columns, rows, first..first + width);
                    }
                }
            }
        }
    }
}

/// One micro-tile: `rows` rows of packed `a` by a panel.
struct Block {
    k: usize,
    a: *const f32,
    rows: usize,
    acc: *mut f32,
    load: bool,
}

impl Block {
    /// # Safety
    /// `b` has `k` steps of `V` registers, `step` elements apart, and `a` as many of `rows` floats; `acc`
    /// is a micro-tile of this thread.
    #[inline(always)]
    unsafe fn multiply<S: Simd, B: Float, const V: usize>(&self, b: *const B, step: usize) {
        macro_rules! by_rows {
            ($($rows:literal)*) => {
                match self.rows {
                    // Rows that no tile of S has are not compiled.
                    // SAFETY: this function's contract.
                    $($rows if $rows <= const { Shape::of::<S>().rows } => unsafe {
                        self.rows::<S, B, $rows, V>(b, step);
                    },)*
                    _ => unreachable!("a tile has at most {} rows", Shape::of::<S>().rows),
                }
            };
        }
        by_rows!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    }

    /// # Safety
    /// As [`Self::multiply`], with `rows == R`.
    #[inline(always)]
    unsafe fn rows<S: Simd, B: Float, const R: usize, const V: usize>(&self, mut b: *const B, step: usize) {
        let Shape { rows, columns } = const { Shape::of::<S>() };
        let mut a = self.a;
        // SAFETY: this function's contract.
        unsafe {
            let mut acc = [[S::splat(0.0); V]; R];
            if self.load {
                for (r, row) in acc.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = S::load(self.acc.add(r * columns + v * S::LANES));
                    }
                }
            }
            for _ in 0..self.k {
                let mut panel = [S::splat(0.0); V];
                for (v, x) in panel.iter_mut().enumerate() {
                    *x = S::get(b.add(v * S::LANES));
                }
                for (r, row) in acc.iter_mut().enumerate() {
                    let x = S::splat(*a.add(r));
                    for (sum, &y) in row.iter_mut().zip(&panel) {
                        *sum = S::fma(x, y, *sum);
                    }
                }
                a = a.add(rows);
                b = b.wrapping_add(step);
            }
            for (r, row) in acc.iter().enumerate() {
                for (v, &sum) in row.iter().enumerate() {
                    S::store(self.acc.add(r * columns + v * S::LANES), sum);
                }
            }
        }
    }
}

/// Bias, activation, residual and store of a block of sums, whose rows are `acc_row` floats apart.
///
/// # Safety
/// The rows and columns are inside the result and belong to this thread; `acc` holds their sums.
#[inline(always)]
unsafe fn finish<S: Simd, T: Float>(
    product: &Product<'_, T>,
    acc: *const f32,
    acc_row: usize,
    rows: Range<usize>,
    columns: Range<usize>,
) {
    let mut acc = acc;
    for i in rows {
        for first in columns.clone().step_by(S::LANES) {
            let lanes = S::LANES.min(columns.end - first);
            // SAFETY: this function's contract: row i and columns first..first + lanes are inside.
            unsafe {
                let mut z = S::load(acc.add(first - columns.start));
                if let Some(bias) = &product.bias {
                    z = S::add(z, gather::<S, T>(bias.at(i, first), bias.place.column, lanes));
                }
                z = activate::<S>(product.activation, z);
                if let Some(residual) = &product.residual {
                    z = S::add(z, gather::<S, T>(residual.at(i, first), residual.place.column, lanes));
                }
                scatter::<S, T>(
                    product.out.at(product.out_place.of(i, first)),
                    product.out_place.column,
                    z,
                    lanes,
                );
            }
        }
        acc = acc.wrapping_add(acc_row);
    }
}

/// The first `lanes` lanes from elements `stride` apart.
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
            0 => S::splat((*from).to_f32()),
            _ => {
                let mut all = [0.0f32; 16];
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
                let mut all = [0.0f32; 16];
                S::store(all.as_mut_ptr(), v);
                for (lane, &x) in all.iter().enumerate().take(lanes) {
                    *to.add(lane * stride) = T::from_f32(x);
                }
            }
        }
    }
}

/// Up to four rows as sums of the rows of `b`, which are dense and read one after the other.
struct FewRows<'a, T> {
    product: &'a Product<'a, T>,
    /// Room for the rows of `a` in f32.
    a: *mut f32,
    columns: Range<usize>,
}

/// Columns whose sums [`FewRows`] keeps at once. Speed only.
const STRIP: usize = 512;

impl<T: Float> Kernel for FewRows<'_, T> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Product { m, k, ref a, ref b, .. } = *self.product;
        // SAFETY: rows 0..m are inside `a`; the room is for m * k floats.
        unsafe {
            for i in 0..m {
                for first in (0..k).step_by(S::LANES) {
                    let lanes = S::LANES.min(k - first);
                    let v = gather::<S, T>(a.at(i, first), a.place.column, lanes);
                    S::store_n(self.a.add(i * k + first), v, lanes);
                }
            }
        }
        let mut sums = [0.0f32; 4 * STRIP];
        for first in self.columns.clone().step_by(STRIP) {
            let columns = first..self.columns.end.min(first + STRIP);
            // SAFETY: the rows were made dense above; the columns are inside `b` and `out`, and belong to
            // this thread.
            unsafe {
                match m {
                    1 => few_rows::<S, T, 1>(k, self.a, b, &columns, &mut sums),
                    2 => few_rows::<S, T, 2>(k, self.a, b, &columns, &mut sums),
                    3 => few_rows::<S, T, 3>(k, self.a, b, &columns, &mut sums),
                    _ => few_rows::<S, T, 4>(k, self.a, b, &columns, &mut sums),
                }
                finish::<S, T>(self.product, sums.as_ptr(), STRIP, 0..m, columns);
            }
        }
    }
}

/// The sums of `R` rows, `STRIP` apart.
///
/// # Safety
/// `a` holds `R` rows of `k` floats; rows 0..k and the columns are inside `b`, whose rows are dense.
#[inline(always)]
unsafe fn few_rows<S: Simd, T: Float, const R: usize>(
    k: usize,
    a: *const f32,
    b: &Matrix<'_, T>,
    columns: &Range<usize>,
    sums: &mut [f32; 4 * STRIP],
) {
    // SAFETY: this function's contract.
    unsafe {
        for row in sums.chunks_mut(STRIP).take(R) {
            row.fill(0.0);
        }
        let whole = k / 4 * 4;
        for t in (0..whole).step_by(4) {
            add_rows::<S, T, R, 4>(t, k, a, b, columns, sums);
        }
        for t in whole..k {
            add_rows::<S, T, R, 1>(t, k, a, b, columns, sums);
        }
    }
}

/// Adds rows `t..t + U` of `b`, times their factors, to the sums of `R` rows.
///
/// # Safety
/// As [`few_rows`], with `t + U <= k`.
#[inline(always)]
unsafe fn add_rows<S: Simd, T: Float, const R: usize, const U: usize>(
    t: usize,
    k: usize,
    a: *const f32,
    b: &Matrix<'_, T>,
    columns: &Range<usize>,
    sums: &mut [f32; 4 * STRIP],
) {
    // SAFETY: this function's contract.
    unsafe {
        let dense: [*const T; U] = std::array::from_fn(|u| b.at(t + u, columns.start));
        let mut factors = [[S::splat(0.0); U]; R];
        for (r, row) in factors.iter_mut().enumerate() {
            for (u, factor) in row.iter_mut().enumerate() {
                *factor = S::splat(*a.add(r * k + t + u));
            }
        }
        for j in (0..columns.len()).step_by(S::LANES) {
            let lanes = S::LANES.min(columns.len() - j);
            let b = dense
                .map(|row| if lanes == S::LANES { S::get(row.add(j)) } else { S::get_n(row.add(j), lanes) });
            for (r, row) in factors.iter().enumerate() {
                let to = sums.as_mut_ptr().add(r * STRIP + j);
                let mut sum = S::load(to);
                for (&x, &y) in row.iter().zip(&b) {
                    sum = S::fma(x, y, sum);
                }
                S::store(to, sum);
            }
        }
    }
}
