//! The ops: options, operands, validation, planning. No arithmetic.

mod activation;
pub mod attention;
pub mod resample;

pub use activation::Activation;
pub use attention::{Attention, AttentionArgs};
pub use resample::{Resample, ResampleArgs};
