//! The ops: options, operands, validation, planning. No arithmetic.

mod activation;
pub mod resample;

pub use activation::Activation;
pub use resample::{Resample, ResampleArgs};
