//! The cases of each op: odd sizes, tails, strides, empty and size-1 axes, extreme values.

mod norm;
mod attention;
mod matmul;
mod resample;
