//! Two-dimensional convolution, defined.
//!
//! `out[n, o, y, x] = activation(sum over c, i, j of weight[o, c, i, j] * input[n, g C + c, y s_h + i d_h - p_h,
//! x s_w + j d_w - p_w] + bias[o] + sample_bias[n, o]) + residual[n, o, y, x]`, where `C` input channels make
//! a group, output channel `o` belongs to group `g`, and the input is 0 outside the image.

use super::{Dense, Expected, Sum, U, activate};
use crate::ops::{Conv, ConvArgs};

/// The result of `op` and its error bound.
pub fn conv(op: &Conv, args: &ConvArgs<Dense, ()>) -> Expected {
    let (image, weight) = (args.x.memory(), args.weight.memory());
    let mut expected = Expected::default();
    let &[batch, channels, rows, columns] = args.out.shape() else { return expected };
    let &[_, group_inputs, kh, kw] = &weight.shape[..] else { return expected };
    let group_outputs = channels / op.groups;
    // The position in the image of a tap, if it is inside.
    let inside = |axis: usize, window: usize, tap: usize| {
        (window * op.stride[axis] + tap * op.dilation[axis])
            .checked_sub(op.padding[axis])
            .filter(|&at| at < image.shape[2 + axis])
    };
    for n in 0..batch {
        for o in 0..channels {
            for y in 0..rows {
                for x in 0..columns {
                    let mut sum = Sum::default();
                    for i in 0..kh {
                        for j in 0..kw {
                            let (Some(row), Some(column)) = (inside(0, y, i), inside(1, x, j)) else {
                                continue;
                            };
                            for c in 0..group_inputs {
                                let channel = o / group_outputs * group_inputs + c;
                                sum.add(weight.at(&[o, c, i, j]) * image.at(&[n, channel, row, column]));
                            }
                        }
                    }
                    if let Some(bias) = &args.bias {
                        sum.add(bias.memory().at(&[o]));
                    }
                    if let Some(sample_bias) = &args.sample_bias {
                        sum.add(sample_bias.memory().at(&[n, o]));
                    }
                    let (mut value, mut error) = activate(op.activation, sum.finish());
                    if let Some(residual) = &args.residual {
                        let residual = residual.memory().at(&[n, o, y, x]);
                        error += U * (value.abs() + error + residual.abs());
                        value += residual;
                    }
                    expected.push((value, error));
                }
            }
        }
    }
    expected
}
