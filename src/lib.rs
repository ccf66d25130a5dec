//! Fused kernels for the loops in which probability-flow models spend their time: on the CPU, in WGSL through wgpu, and in
//! CUDA, with one set of arguments.
//!
//! | op | what it computes |
//! |---|---|
//! | [`Matmul`](ops::Matmul) | batched products, with bias, activation, residual |
//! | [`Conv`](ops::Conv) | 2-D convolution, with bias, time embedding, activation, residual |
//! | [`Norm`](ops::Norm) | GroupNorm, LayerNorm, RMSNorm, with FiLM or adaLN and SiLU |
//! | [`Attention`](ops::Attention) | attention, masked, windowed, packed, paged, in parts |
//! | [`Merge`](ops::Merge) | the parts of attention made whole |
//! | [`LinearAttention`](ops::LinearAttention) | linear attention, with decays and the delta rule |
//! | [`Resample`](ops::Resample) | by two, up and down |
//! | [`Step`](ops::Step) | one step of an ODE or SDE: a linear combination, with noise |
//!
//! An engine brings memory of its own and calls a [`target`]: [`Cpu`], `Wgpu` or `Cuda`. Who has none takes
//! [`Device`] and [`Tensor`]; [`solver`] says when to evaluate a network and what to sum. Operands are [`View`]s: logical
//! shapes, and strides that say how they lie.
//!
//! ```
//! use advect::ops::{Conv, ConvArgs};
//! use advect::{Device, Dtype, Tensor};
//!
//! let device = Device::cpu(0)?; // or Device::wgpu(0)?, Device::cuda(0)?
//! let x = Tensor::from_f32(&device, Dtype::F32, &[1, 1, 3, 3], &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0])?;
//! let weight = Tensor::from_f32(&device, Dtype::F32, &[1, 1, 3, 1], &[1.0, 2.0, 1.0])?;
//! let mut out = Tensor::new(&device, Dtype::F32, &[1, 1, 3, 3])?;
//! let (bias, sample_bias, residual) = (None, None, None);
//! let conv = Conv { padding: [1, 0], ..Conv::default() };
//! let (x, weight) = (x.view(), weight.view());
//! device.run(&conv, ConvArgs { x, weight, bias, sample_bias, residual, out: out.view_mut() })?;
//! assert_eq!(out.to_f32(&device)?, [0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 1.0, 0.0]);
//! # Ok::<(), advect::Error>(())
//! ```
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
/// The version of wgpu whose devices, buffers and passes the target takes, for a host that has no other.
#[cfg(feature = "wgpu")]
pub use wgpu;

/// The README's example, compiled and run as a test.
#[cfg(all(doctest, feature = "cuda", feature = "wgpu"))]
#[doc = include_str!("../README.md")]
struct Readme;
