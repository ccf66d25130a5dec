//! The CPU kernels: blocked, threaded, and compiled for each instruction set.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod conv;
pub(crate) mod linear_attention;
pub(crate) mod matmul;
pub(crate) mod merge;
pub(crate) mod norm;
pub(crate) mod resample;
pub(crate) mod scratch;
pub(crate) mod simd;
pub(crate) mod step;
pub(crate) mod strided;
