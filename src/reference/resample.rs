//! Resampling, defined.
//!
//! Nearest neighbour: `out[n, c, i, j] = x[n, c, floor(i / 2), floor(j / 2)]`.
//! Average: `out[n, c, i, j] = (1/4) sum over a, b in {0, 1} of x[n, c, 2i + a, 2j + b]`.

use super::{Dense, Expected, Sum};
use crate::ops::{Resample, ResampleArgs};

/// The result of `op` and its error bound.
pub fn resample(op: &Resample, args: &ResampleArgs<Dense, ()>) -> Expected {
    let x = args.x.memory();
    let mut expected = Expected::default();
    let &[batch, channels, rows, columns] = args.out.shape() else { return expected };
    for n in 0..batch {
        for c in 0..channels {
            for i in 0..rows {
                for j in 0..columns {
                    let mut sum = Sum::default();
                    match op {
                        Resample::Up2 => {
                            expected.push((x.at(&[n, c, i / 2, j / 2]), 0.0));
                            continue;
                        }
                        Resample::Down2 => {
                            for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                                sum.add(0.25 * x.at(&[n, c, 2 * i + a, 2 * j + b]));
                            }
                        }
                    }
                    expected.push(sum.finish());
                }
            }
        }
    }
    expected
}
