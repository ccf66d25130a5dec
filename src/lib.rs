//! Fused kernels for the loops in which probability-flow models spend their time.
#![warn(missing_docs)]

mod cases;
mod cpu;
mod dtype;
mod error;
pub mod op;
pub mod ops;
pub mod philox;
pub mod reference;
pub mod solver;
pub mod source;
pub mod target;
pub mod tensor;
pub mod verify;
mod view;

pub use cpu::simd::Isa;
pub use dtype::{Dtype, Element, Float};
pub use error::{Error, Result};
pub use target::cpu::Cpu;
pub use tensor::{Device, Storage, Tensor};
pub use view::{Dims, MAX_RANK, Memory, View};

/// The README's example, compiled and run as a test.
#[cfg(all(doctest, feature = "cuda", feature = "wgpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
