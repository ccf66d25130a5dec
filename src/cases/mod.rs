//! The cases of each op: odd sizes, tails, strides, empty and size-1 axes, extreme values.

mod attention;
mod conv;
mod linear_attention;
mod matmul;
mod merge;
mod norm;
mod resample;
mod step;
