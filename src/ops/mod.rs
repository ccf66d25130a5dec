//! The ops: options, operands, validation, planning. No arithmetic.

mod activation;
pub mod matmul;
pub mod resample;

pub use activation::Activation;
pub use matmul::{Matmul, MatmulArgs};
pub use resample::{Resample, ResampleArgs};
