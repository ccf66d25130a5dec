//! advect's kernels for tensors of [burn]: attention, convolution, normalisation and solver steps, on burn's CPU
//! backend (Flex) and, with the feature `wgpu`, on its wgpu backend.
//!
//! Nothing is copied on either. On the CPU a kernel reads burn's bytes through the strides and the offset of the
//! tensor's layout and writes into fresh ones. On wgpu it reads and writes burn's own buffers on burn's own device,
//! in the order of burn's own queue; `Advect::wgpu` says how the two are brought together.
//!
//! ```
//! use advect::ops::Attention;
//! use advect_burn::Advect;
//! use burn::tensor::{Device, Distribution, Tensor};
//! # fn main() -> advect_burn::Result<()> {
//! let advect = Advect::cpu();
//! // A packed projection, (batch, token, 3 heads, element): its parts are views.
//! let qkv = Tensor::<4>::random([2, 77, 24, 40], Distribution::Normal(0.0, 1.0), &Device::flex());
//! let part = |i: usize| qkv.clone().narrow(2, 8 * i, 8).swap_dims(1, 2);
//! let out = advect.attention(Attention::new(40), part(0), part(1), part(2))?;
//! assert_eq!(out.dims(), [2, 8, 77, 40]);
//! # Ok(()) }
//! ```
//!
//! The ops are for inference: a tensor of an autodiff device is an error, never a silently missing gradient.

#[cfg(feature = "wgpu")]
mod cube;
mod flex;

use advect::ops::step::MAX_BUFFERS;
use advect::ops::{Attention, AttentionArgs, Coefficients, Conv, ConvArgs, Norm, NormArgs, Step, StepArgs};
use advect::{Cpu, Dtype, View, op};
#[cfg(feature = "wgpu")]
use burn::backend::wgpu::{CubeTensor, WgpuSetup};
use burn::backend::{BackendTensor, DispatchTensor, DispatchTensorKind, flex::FlexTensor};
#[cfg(feature = "wgpu")]
use burn::tensor::Device;
use burn::tensor::{DType, Tensor};

/// The result of every call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// advect refused the call: shapes, options, limits of the device. Nothing was written.
    #[error(transparent)]
    Advect(#[from] advect::Error),
    /// The tensor's elements are not f32, f16 or bf16.
    #[error("{op}: {dtype:?} is not supported; cast to F32, F16 or BF16")]
    Dtype {
        /// The op that was called.
        op: &'static str,
        /// What came.
        dtype: DType,
    },
    /// The tensor lives where these kernels do not reach, or the operands live in several places.
    #[error("{op}: {why}")]
    Backend {
        /// The op that was called.
        op: &'static str,
        /// What is wrong with where it lives.
        why: String,
    },
    /// burn's runtime failed: out of memory, a lost device, an earlier kernel.
    #[error("{op}: burn's {call} failed: {message}")]
    Runtime {
        /// The op that was called.
        op: &'static str,
        /// The call of burn's runtime.
        call: &'static str,
        /// What it said.
        message: String,
    },
}

/// Where the kernels run: always on the CPU, and on the wgpu device that it was made for.
#[derive(Debug, Clone)]
pub struct Advect {
    cpu: Cpu,
    #[cfg(feature = "wgpu")]
    wgpu: Option<cube::Shared>,
}

impl Advect {
    /// For tensors of `Device::flex()`, in the threads that burn uses: rayon's pool of the caller.
    pub fn cpu() -> Self {
        Self::on(Cpu::in_callers_pool())
    }

    /// For tensors of `Device::flex()`, with these threads and instructions.
    pub fn on(cpu: Cpu) -> Self {
        Self {
            cpu,
            #[cfg(feature = "wgpu")]
            wgpu: None,
        }
    }

    /// Also for tensors of this wgpu device, whose handles burn gives when it is initialised:
    ///
    /// ```no_run
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use burn::tensor::{Device, wgpu::MemoryConfiguration};
    /// let options = Device::wgpu_options().memory_config(MemoryConfiguration::ExclusivePages);
    /// let (device, setup) = options.init_with_setup()?;
    /// let advect = advect_burn::Advect::cpu().wgpu(&device, &setup);
    /// # Ok(()) }
    /// ```
    ///
    /// or which the application made itself, with all that the adapter can do, since burn generates code for that, and
    /// registered with `WgpuOptions::setup`. `ExclusivePages` gives each
    /// tensor a buffer of its own. Without it burn packs tensors into shared buffers; wgpu does not let one dispatch
    /// read and write the same buffer, and each result that would share one is allocated apart, which is slower.
    #[cfg(feature = "wgpu")]
    #[must_use]
    pub fn wgpu(self, device: &Device, setup: &WgpuSetup) -> Self {
        let wgpu = Some(cube::Shared::new(device.clone(), setup));
        Self { wgpu, ..self }
    }

    /// `softmax(Q Kᵀ · scale) V` of `[b, h, n, d]` tensors, never with an `n` by `n` matrix in memory.
    ///
    /// # Errors
    /// [`Error::Advect`] for shapes and options; [`Error::Dtype`] and [`Error::Backend`] for tensors that do not
    /// belong here.
    pub fn attention(&self, op: Attention, q: Tensor<4>, k: Tensor<4>, v: Tensor<4>) -> Result<Tensor<4>> {
        let shape = q.dims();
        self.call(op, vec![any(q), any(k), any(v)], &shape)
    }

    /// A 2-D convolution with biases, activation and residual in one pass.
    ///
    /// # Errors
    /// As [`Advect::attention`].
    pub fn conv(&self, op: Conv, inputs: ConvInputs) -> Result<Tensor<4>> {
        let ConvInputs { x, weight, bias, sample_bias, residual } = inputs;
        let ([n, _, h, w], [c_out, _, kh, kw]) = (x.dims(), weight.dims());
        // Where the options make no sense advect says so; here they only must not overflow.
        let size = |axis: usize, image: usize, window: usize| {
            let padded = image.saturating_add(op.padding[axis].saturating_mul(2));
            let reach = op.dilation[axis].saturating_mul(window.saturating_sub(1)).saturating_add(1);
            padded.checked_sub(reach).map_or(0, |free| free / op.stride[axis].max(1) + 1)
        };
        let shape = [n, c_out, size(0, h, kh), size(1, w, kw)];
        let operands =
            vec![any(x), any(weight), bias.and_then(any), sample_bias.and_then(any), residual.and_then(any)];
        self.call(op, operands, &shape)
    }

    /// Group, layer or RMS normalisation with affine map, modulation and activation in one pass.
    ///
    /// # Errors
    /// As [`Advect::attention`].
    pub fn norm<const D: usize>(&self, op: Norm, inputs: NormInputs<D>) -> Result<Tensor<D>> {
        let NormInputs { x, weight, bias, scale, shift } = inputs;
        let shape = x.dims();
        let operands =
            vec![any(x), weight.and_then(any), bias.and_then(any), scale.and_then(any), shift.and_then(any)];
        self.call(op, operands, &shape)
    }

    /// A linear combination of 1 to 8 tensors of one shape, with noise: one step of an ODE or SDE solver.
    ///
    /// # Errors
    /// As [`Advect::attention`]. Coefficients come by value: [`Coefficients::Table`] is refused.
    pub fn step<const D: usize>(&self, op: Step, buffers: &[Tensor<D>]) -> Result<Tensor<D>> {
        let wrong = |arg, wanted: String, got: String| {
            Error::Advect(advect::Error::Argument { op: "step", arg, wanted, got })
        };
        if op.coefficients == Coefficients::Table {
            return Err(wrong("coefficients", "values".into(), "a table".into()));
        }
        let count = || wrong("buffers", format!("1 to {MAX_BUFFERS} of them"), buffers.len().to_string());
        let first = buffers.first().filter(|_| buffers.len() <= MAX_BUFFERS).ok_or_else(count)?;
        self.call(op, buffers.iter().map(|b| any(b.clone())).collect(), &first.dims())
    }

    fn call<K: Kernel, const D: usize>(
        &self,
        op: K,
        operands: Vec<Option<DispatchTensor>>,
        shape: &[usize; D],
    ) -> Result<Tensor<D>> {
        let elements = shape.iter().try_fold(4usize, |n, &d| n.checked_mul(d));
        if elements.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            let wanted = "a result that fits in memory".into();
            let got = format!("{shape:?}");
            return Err(advect::Error::Argument { op: K::NAME, arg: "out", wanted, got }.into());
        }
        let primitives = operands.into_iter().map(|o| o.map(Primitive::new::<K>).transpose());
        let primitives = primitives.collect::<Result<Vec<_>>>()?;
        match primitives.first() {
            Some(Some(Primitive::Flex(_))) => {
                let own = |p| match p {
                    Primitive::Flex(t) => Ok(t),
                    #[cfg(feature = "wgpu")]
                    Primitive::Cube(_) => Err(several(K::NAME)),
                };
                let tensors = primitives.into_iter().map(|p| p.map(own).transpose());
                let out = flex::run(&self.cpu, op, tensors.collect::<Result<_>>()?, shape)?;
                Ok(Tensor::from_primitive::<burn::backend::Flex>(out))
            }
            #[cfg(feature = "wgpu")]
            Some(Some(Primitive::Cube(_))) => {
                let own = |p| match p {
                    Primitive::Cube(t) => Ok(*t),
                    Primitive::Flex(_) => Err(several(K::NAME)),
                };
                let tensors = primitives.into_iter().map(|p| p.map(own).transpose());
                let shared = self.wgpu.as_ref().ok_or_else(|| Error::Backend {
                    op: K::NAME,
                    why: "no wgpu device was given to `Advect::wgpu`".into(),
                })?;
                let out = shared.run(op, tensors.collect::<Result<_>>()?, shape)?;
                Ok(Tensor::from_primitive::<burn::backend::Cube>(out))
            }
            _ => Err(Error::Backend { op: K::NAME, why: "there is no first operand".into() }),
        }
    }
}

/// The operands of [`Advect::conv`].
#[derive(Debug, Clone)]
pub struct ConvInputs {
    /// The image, `[n, c_in, h, w]`.
    pub x: Tensor<4>,
    /// The weights, `[c_out, c_in / groups, kh, kw]`.
    pub weight: Tensor<4>,
    /// Added to each output channel, `[c_out]`.
    pub bias: Option<Tensor<1>>,
    /// Added to each output channel of each sample, `[n, c_out]`: a time embedding.
    pub sample_bias: Option<Tensor<2>>,
    /// Added after the activation, of the shape of the result.
    pub residual: Option<Tensor<4>>,
}

/// The operands of [`Advect::norm`].
#[derive(Debug, Clone)]
pub struct NormInputs<const D: usize> {
    /// `[n, c]`, `[n, c, w]` or `[n, c, h, w]` for groups, `[n, c]` or `[n, t, c]` for rows.
    pub x: Tensor<D>,
    /// Factor per channel, `[c]`.
    pub weight: Option<Tensor<1>>,
    /// Summand per channel, `[c]`.
    pub bias: Option<Tensor<1>>,
    /// Factor less 1 per sample and channel, `[n, c]`.
    pub scale: Option<Tensor<2>>,
    /// Summand per sample and channel, `[n, c]`.
    pub shift: Option<Tensor<2>>,
}

/// A tensor of any rank.
fn any<const D: usize>(tensor: Tensor<D>) -> Option<DispatchTensor> {
    Some(tensor.into_dispatch())
}

#[cfg(feature = "wgpu")]
fn several(op: &'static str) -> Error {
    Error::Backend { op, why: "the operands live on several backends".into() }
}

/// A tensor of a backend that the kernels reach.
enum Primitive {
    Flex(FlexTensor),
    #[cfg(feature = "wgpu")]
    Cube(Box<CubeTensor>),
}

impl Primitive {
    fn new<K: Kernel>(tensor: DispatchTensor) -> Result<Self> {
        let why = match tensor.kind {
            DispatchTensorKind::Flex(BackendTensor::Float(t)) => return Ok(Self::Flex(t)),
            #[cfg(feature = "wgpu")]
            DispatchTensorKind::Cube(BackendTensor::Float(t)) => return Ok(Self::Cube(Box::new(t))),
            _ => {
                "only plain float tensors without autodiff are supported, of Flex and, with the feature `wgpu`, of wgpu"
            }
        };
        Err(Error::Backend { op: K::NAME, why: why.into() })
    }
}

/// advect's name of a dtype.
fn dtype<K: Kernel>(dtype: DType) -> Result<Dtype> {
    match dtype {
        DType::F32 => Ok(Dtype::F32),
        DType::F16 => Ok(Dtype::F16),
        DType::BF16 => Ok(Dtype::Bf16),
        other => Err(Error::Dtype { op: K::NAME, dtype: other }),
    }
}

/// An advect op whose operands come as a list, in the order of its arguments.
trait Kernel: op::Op {
    /// The op's arguments. `None` when one is missing that may not be.
    fn args<I, O>(operands: Vec<Option<View<I>>>, out: View<O>) -> Option<Self::Args<I, O>>;

    /// As [`Kernel::args`], where none is missing.
    fn checked<I, O>(operands: Vec<Option<View<I>>>, out: View<O>) -> Result<Self::Args<I, O>> {
        let why = || "an operand is missing".into();
        Self::args(operands, out).ok_or_else(|| Error::Backend { op: Self::NAME, why: why() })
    }
}

impl Kernel for Attention {
    fn args<I, O>(operands: Vec<Option<View<I>>>, out: View<O>) -> Option<AttentionArgs<I, O>> {
        let mut rest = operands.into_iter();
        let mut next = || rest.next().flatten();
        Some(AttentionArgs::new(next()?, next()?, next()?, out))
    }
}

impl Kernel for Conv {
    fn args<I, O>(operands: Vec<Option<View<I>>>, out: View<O>) -> Option<ConvArgs<I, O>> {
        let mut rest = operands.into_iter();
        let mut next = || rest.next().flatten();
        let (x, weight) = (next()?, next()?);
        Some(ConvArgs { x, weight, bias: next(), sample_bias: next(), residual: next(), out })
    }
}

impl Kernel for Norm {
    fn args<I, O>(operands: Vec<Option<View<I>>>, out: View<O>) -> Option<NormArgs<I, O>> {
        let mut rest = operands.into_iter();
        let mut next = || rest.next().flatten();
        Some(NormArgs { x: next()?, weight: next(), bias: next(), scale: next(), shift: next(), out })
    }
}

impl Kernel for Step {
    fn args<I, O>(operands: Vec<Option<View<I>>>, out: View<O>) -> Option<StepArgs<I, O>> {
        StepArgs::over(operands.into_iter().flatten(), out).ok()
    }
}
