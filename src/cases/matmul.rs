//! Cases of matrix products: every pair of storage orders, tails round each tile size, nothing to sum,
//! one long sum, one row, one column, shared matrices, every epilogue, extreme values.

use crate::dtype::Dtype;
use crate::ops::{Activation, Matmul, MatmulArgs};
use crate::reference::{self, Dense, Expected};
use crate::verify::{Case, Fill, Layout, Verified, view};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;

/// How a matrix is stored.
#[derive(Clone, Copy, PartialEq)]
enum Lies {
    /// Row by row.
    Rows,
    /// Column by column: the transposed matrix row by row.
    Columns,
    /// Row by row with gaps and an odd offset.
    RowGaps,
    /// Column by column with gaps and an odd offset.
    ColumnGaps,
    /// Row by row, each padded to a multiple of 8 elements.
    RowPitch,
    /// Column by column, each padded to a multiple of 8 elements.
    ColumnPitch,
    /// One row, used for all.
    OneRow,
}

/// Which batch axis an input has.
#[derive(Clone, Copy, PartialEq)]
enum Batch {
    /// A matrix a sample.
    Each,
    /// No batch axis.
    Shared,
    /// A batch of one.
    One,
    /// A batch stride of 0.
    Repeated,
}

/// A case in the making.
#[derive(Clone)]
struct Sketch {
    activation: Activation,
    batch: Option<usize>,
    size: [usize; 3],
    lies: [Lies; 4],
    share: [Batch; 3],
    bias: Option<Layout>,
    residual: bool,
    fill: Fill,
    note: &'static str,
}

const PLAIN: Sketch = Sketch {
    activation: Activation::None,
    batch: None,
    size: [0; 3],
    lies: [Lies::Rows; 4],
    share: [Batch::Each; 3],
    bias: None,
    residual: false,
    fill: Fill::Normal(1.0),
    note: "",
};

impl Sketch {
    fn matrix<M>(
        &self,
        dtype: Dtype,
        size: [usize; 2],
        lies: Lies,
        share: Batch,
        memory: M,
    ) -> crate::View<M> {
        let batch = match (self.batch, share) {
            (None, _) | (_, Batch::Shared) => None,
            (Some(_), Batch::One) => Some(1),
            (Some(batch), _) => Some(batch),
        };
        let first = usize::from(batch.is_some());
        let shape: Vec<usize> = batch.into_iter().chain(size).collect();
        let order = |row: usize, column: usize| (0..first).chain([first + row, first + column]).collect();
        let layout = match lies {
            _ if share == Batch::Repeated && first == 1 => Layout::Broadcast(vec![0]),
            Lies::Rows => Layout::Order(order(0, 1)),
            Lies::Columns => Layout::Order(order(1, 0)),
            Lies::RowGaps => Layout::Gaps(order(0, 1)),
            Lies::ColumnGaps => Layout::Gaps(order(1, 0)),
            Lies::RowPitch => Layout::Pitched(order(0, 1)),
            Lies::ColumnPitch => Layout::Pitched(order(1, 0)),
            Lies::OneRow => Layout::Broadcast(vec![first]),
        };
        view(dtype, &shape, &layout, memory)
    }

    fn case(self, dtype: Dtype) -> Case<Matmul> {
        let [m, n, k] = self.size;
        let letter = |lies| match lies {
            Lies::Rows => "n",
            Lies::Columns => "t",
            Lies::RowGaps => "ng",
            Lies::ColumnGaps => "tg",
            Lies::RowPitch => "np",
            Lies::ColumnPitch => "tp",
            Lies::OneRow => "1",
        };
        let lies: Vec<&str> = self.lies.map(letter).to_vec();
        let mut name = format!("m={m} n={n} k={k} lies={}", lies.join(","));
        if let Some(batch) = self.batch {
            let letter = |share| match share {
                Batch::Each => "each",
                Batch::Shared => "shared",
                Batch::One => "one",
                Batch::Repeated => "repeated",
            };
            let share: Vec<&str> = self.share.map(letter).to_vec();
            name += &format!(" batch={batch} share={}", share.join(","));
        }
        name += &format!(" act={}", self.activation.name());
        for (on, word) in [(self.bias.is_some(), " bias"), (self.residual, " residual")] {
            name += if on { word } else { "" };
        }
        if !self.note.is_empty() {
            name += &format!(" {}", self.note);
        }
        let ([a, b, residual, out], [sa, sb, sr]) = (self.lies, self.share);
        let fill = || self.fill.clone();
        let args = MatmulArgs {
            a: self.matrix(dtype, [m, k], a, sa, fill()),
            b: self.matrix(dtype, [k, n], b, sb, fill()),
            bias: self.bias.as_ref().map(|layout| view(dtype, &[n], layout, Fill::Normal(1.0))),
            residual: self.residual.then(|| self.matrix(dtype, [m, n], residual, sr, Fill::Normal(2.0))),
            out: self.matrix(dtype, [m, n], out, Batch::Each, ()),
        };
        Case { name, op: Matmul { activation: self.activation }, args }
    }
}

impl Verified for Matmul {
    fn cases(dtype: Dtype) -> Vec<Case<Self>> {
        use Lies::{ColumnGaps, ColumnPitch, Columns, OneRow, RowGaps, RowPitch, Rows};
        let contiguous = Some(Layout::Contiguous);
        let mut all = Vec::new();
        // Sizes: empty, one, primes, and either side of the tiles (14, 16, 32, 64, 128) and of the steps
        // along k (8, 16, 32).
        for size in [
            [0, 5, 3],
            [4, 0, 3],
            [3, 4, 0],
            [0, 0, 0],
            [1, 1, 1],
            [1, 1, 2],
            [2, 3, 1],
            [5, 7, 11],
            [13, 17, 19],
            [14, 32, 8],
            [15, 33, 9],
            [16, 16, 16],
            [31, 47, 23],
            [33, 31, 33],
            [63, 65, 31],
            [64, 64, 64],
            [65, 63, 32],
            [80, 128, 64],
            [80, 10, 64],
            [127, 129, 17],
            [128, 128, 32],
            [129, 127, 15],
            [97, 2, 61],
            [1, 150, 96],
            [2, 67, 45],
            [4, 96, 130],
            [150, 1, 40],
            [1, 3, 2000],
            [5, 4, 2000],
            [40, 9, 700],
        ] {
            all.push(Sketch { size, ..PLAIN });
        }
        // Every pair of storage orders, dense and with gaps, at a size with tails and at one without.
        for a in [Rows, Columns, RowGaps, ColumnGaps] {
            for b in [Rows, Columns, RowGaps, ColumnGaps] {
                all.push(Sketch { size: [37, 41, 43], lies: [a, b, Rows, RowGaps], ..PLAIN });
                if a != Rows || b != Rows {
                    all.push(Sketch { size: [64, 64, 32], lies: [a, b, Rows, Rows], ..PLAIN });
                }
            }
        }
        for lies in [Columns, ColumnGaps] {
            for size in [[3, 35, 77], [2, 40, 64], [70, 3, 20], [1, 1, 131]] {
                all.push(Sketch { size, lies: [Rows, lies, Rows, lies], ..PLAIN });
            }
            all.push(Sketch { size: [35, 3, 64], lies: [lies, Rows, Rows, lies], ..PLAIN });
        }
        // Aligned rows whose ends are not: the widest loads and stores, with tails inside of them.
        for (a, b) in [
            (RowPitch, RowPitch),
            (RowPitch, ColumnPitch),
            (ColumnPitch, RowPitch),
            (ColumnPitch, ColumnPitch),
        ] {
            for size in [[37, 41, 43], [66, 65, 35], [3, 13, 21], [2, 71, 9]] {
                let all_on = Sketch {
                    size,
                    lies: [a, b, RowPitch, RowPitch],
                    residual: true,
                    bias: contiguous.clone(),
                    ..PLAIN
                };
                all.push(Sketch { lies: [a, b, RowPitch, ColumnPitch], ..all_on.clone() });
                all.push(Sketch { batch: Some(2), ..all_on.clone() });
                all.push(all_on);
            }
        }
        all.push(Sketch { size: [9, 20, 33], lies: [OneRow, Rows, Rows, Rows], ..PLAIN });
        all.push(Sketch { size: [20, 40, 33], lies: [Rows, OneRow, Rows, Rows], ..PLAIN });
        // Every epilogue; with k = 0 it is all there is.
        for activation in Activation::ALL {
            for (bias, residual) in [(false, true), (true, false), (true, true)] {
                let bias = bias.then_some(Layout::Contiguous);
                let base = Sketch { activation, bias, residual, ..PLAIN };
                all.push(Sketch { size: [18, 34, 12], ..base.clone() });
                all.push(Sketch { size: [7, 9, 0], lies: [Rows, Rows, RowGaps, RowGaps], ..base.clone() });
                all.push(Sketch { size: [3, 45, 50], lies: [Rows, Columns, ColumnGaps, Columns], ..base });
            }
            all.push(Sketch { activation, size: [19, 36, 21], ..PLAIN });
        }
        all.push(Sketch { size: [8, 11, 5], bias: Some(Layout::Gaps(vec![0])), residual: true, ..PLAIN });
        all.push(Sketch { size: [8, 40, 5], bias: Some(Layout::Broadcast(vec![0])), ..PLAIN });
        all.push(Sketch {
            size: [30, 40, 5],
            residual: true,
            lies: [Rows, Rows, Columns, ColumnGaps],
            bias: contiguous.clone(),
            ..PLAIN
        });
        // Batches, with each way to share an input.
        use Batch::{Each, One, Repeated, Shared};
        for (batch, share) in [
            (0, [Each, Each, Each]),
            (1, [Each, Each, Each]),
            (3, [Each, Each, Each]),
            (3, [Shared, Each, Each]),
            (3, [Each, Shared, Each]),
            (3, [One, Each, Shared]),
            (3, [Each, One, One]),
            (3, [Repeated, Each, Repeated]),
            (2, [Each, Repeated, Each]),
            (2, [Shared, One, Repeated]),
        ] {
            let base = Sketch { batch: Some(batch), share, ..PLAIN };
            all.push(Sketch { size: [17, 33, 20], ..base.clone() });
            all.push(Sketch {
                size: [6, 13, 9],
                lies: [RowGaps, Columns, ColumnGaps, RowGaps],
                residual: true,
                bias: contiguous.clone(),
                activation: Activation::Silu,
                ..base
            });
        }
        let many = Sketch { batch: Some(40), lies: [Rows, Columns, Rows, Rows], ..PLAIN };
        all.push(Sketch { size: [16, 16, 8], ..many.clone() });
        // Enough for the largest tiles.
        all.push(Sketch { size: [66, 70, 41], ..many.clone() });
        all.push(Sketch { size: [68, 65, 40], lies: [Columns, Rows, Rows, Columns], ..many.clone() });
        all.push(Sketch { size: [1, 12, 40], ..many });
        // A prime number of blocks: the grids of the tests, folded at 3 and 50, have one past the last.
        let prime = Sketch { batch: Some(53), ..PLAIN };
        all.push(Sketch { size: [3, 5, 7], ..prime.clone() });
        all.push(Sketch { size: [1, 4, 32], ..prime });
        // Products near the largest number of the dtype, exact cancellation, and values whose activation
        // saturates.
        let large = dtype.largest().sqrt() as f32 * 0.5;
        let fill = Fill::Constant(large);
        all.push(Sketch { size: [5, 6, 2], fill, note: "large-values", ..PLAIN });
        let fill = Fill::Values(vec![large, -large]);
        all.push(Sketch { size: [20, 20, 40], fill, note: "cancelling-values", ..PLAIN });
        let fill = Fill::Constant(0.0);
        all.push(Sketch { size: [5, 18, 16], fill, note: "zeros", bias: contiguous, ..PLAIN });
        for activation in [Activation::Silu, Activation::Gelu] {
            let fill = Fill::Uniform(-9.0, 9.0);
            all.push(Sketch { activation, size: [16, 17, 1], fill, note: "wide-values", ..PLAIN });
            // One product each: +-90, some thousands and more, and near the largest number, where nothing may be
            // left of one side.
            let fill = Fill::Values(vec![large, 9.5, -large, -9.5, 0.1, -0.1, 40.0]);
            all.push(Sketch { activation, size: [14, 15, 1], fill, note: "saturated-values", ..PLAIN });
        }
        all.into_iter().map(|sketch| sketch.case(dtype)).collect()
    }

    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self> {
        let mut of = |n: usize| rng.random_range(0..n);
        let orders =
            [Lies::Rows, Lies::Columns, Lies::RowGaps, Lies::ColumnGaps, Lies::RowPitch, Lies::ColumnPitch];
        let shares = [Batch::Each, Batch::Shared, Batch::One, Batch::Repeated];
        let mut size = [0; 3].map(|_: usize| of(40));
        // One axis in three is longer or very short.
        match of(3) {
            0 => size[of(3)] = 60 + of(90),
            1 => size[of(3)] = of(3),
            _ => {}
        }
        Sketch {
            activation: Activation::ALL[of(3)],
            batch: (of(3) == 0).then(|| of(4)),
            size,
            lies: [0; 4].map(|_: usize| orders[of(6)]),
            share: [0; 3].map(|_: usize| shares[of(4)]),
            bias: [None, Some(Layout::Contiguous), Some(Layout::Gaps(vec![0]))][of(3)].clone(),
            residual: of(2) == 0,
            fill: Fill::Uniform(-2.0, 2.0),
            note: "random",
        }
        .case(dtype)
    }

    fn reference(&self, args: &MatmulArgs<Dense, ()>) -> Vec<Expected> {
        vec![reference::matmul::matmul(self, args)]
    }
}
