//! The cases of each op: odd sizes, tails, strides, empty and size-1 axes, extreme values.

mod attention;
mod conv;
mod matmul;
mod merge;
mod norm;
mod resample;
mod step;
