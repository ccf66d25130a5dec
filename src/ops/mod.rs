//! The ops: options, operands, validation, planning. No arithmetic.

mod activation;
pub mod attention;
pub mod conv;
pub mod linear_attention;
pub mod matmul;
pub mod merge;
pub mod norm;
pub mod resample;
pub mod step;

pub use activation::Activation;
pub use attention::{Attention, AttentionArgs, Window};
pub use conv::{Conv, ConvArgs};
pub use linear_attention::{FeatureMap, LinearAttention, LinearAttentionArgs};
pub use matmul::{Matmul, MatmulArgs};
pub use merge::{Merge, MergeArgs};
pub use norm::{Norm, NormArgs, NormKind};
pub use resample::{Resample, ResampleArgs};
pub use step::{Coefficients, Noise, Step, StepArgs};
