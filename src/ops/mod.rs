//! The ops: options, operands, validation, planning. No arithmetic.

mod activation;
pub mod norm;
pub mod resample;

pub use activation::Activation;
pub use norm::{Norm, NormArgs, NormKind};
pub mod attention;
pub mod resample;

pub use activation::Activation;
pub use attention::{Attention, AttentionArgs};
pub mod matmul;
pub mod resample;

pub use activation::Activation;
pub use matmul::{Matmul, MatmulArgs};
pub use resample::{Resample, ResampleArgs};
