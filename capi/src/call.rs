//! One call of an op: its operands gathered from views, then run, planned or compiled on a device.

use crate::device::{DEVICES, advect_device, text_in};
use crate::memory::{Caller, Extensible};
use crate::status::Failure;
use crate::tensor::{Place, Tensor, advect_view, tensor_of};
use advect::op::{self, Op, Plan};
use advect::ops::Activation;
use advect::{Memory, View};
use std::ffi::c_char;
use std::sync::Arc;

/// What a call would launch, and what it costs. On the CPU, where nothing is launched, `grid` and `block` are 0.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_plan {
    /// `sizeof(advect_plan)`, set by the caller.
    pub struct_size: usize,
    /// Device memory that the call needs beside its operands, in bytes. No op needs any today.
    pub scratch_bytes: u64,
    /// Floating-point operations; a multiply-add counts 2.
    pub flops: f64,
    /// Bytes that must move: each operand once.
    pub bytes: f64,
    /// Blocks (workgroups) along x, y, z; a zero among them on a GPU means that there is nothing to do.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Shared (workgroup) memory of a block in bytes.
    pub shared_bytes: u32,
    /// 0.
    pub reserved: u32,
    /// The kernel's name; empty on the CPU.
    pub kernel: [c_char; 64],
}

// SAFETY: numbers without padding: three of 8 bytes, eight of 4, then text.
unsafe impl Extensible for advect_plan {
    const FIRST: usize = size_of::<Self>();
}

/// What is to be done with a call.
#[derive(Clone, Copy)]
pub(crate) enum Mode {
    Run,
    Warm,
    Plan(*mut advect_plan),
}

/// Operands on the way from C: tensors by number, so that views can name them.
pub(crate) struct Operands<'c> {
    caller: &'c Caller,
    tensors: Vec<Arc<Tensor>>,
}

impl<'c> Operands<'c> {
    pub(crate) fn new(caller: &'c Caller) -> Self {
        Self { caller, tensors: Vec::new() }
    }

    /// An operand that must be given.
    pub(crate) fn required(
        &mut self,
        arg: &'static str,
        view: *const advect_view,
    ) -> Result<View<usize>, Failure> {
        let op = self.caller.op();
        let view = self.caller.get(arg, view)?;
        let tensor = tensor_of(op, arg, &view)?;
        self.tensors.push(tensor);
        view.over(op, arg, self.tensors.len() - 1)
    }

    /// An operand that may be NULL.
    pub(crate) fn optional(
        &mut self,
        arg: &'static str,
        view: *const advect_view,
    ) -> Result<Option<View<usize>>, Failure> {
        (!view.is_null()).then(|| self.required(arg, view)).transpose()
    }

    /// Does what `mode` says.
    pub(crate) fn call<T: Op>(
        self,
        device: *const advect_device,
        op: &T,
        args: T::Args<usize, usize>,
        mode: Mode,
    ) -> Result<(), Failure> {
        let device = DEVICES.get(self.caller.op(), "device", device)?;
        match &device.inner {
            advect::Device::Cpu(cpu) => self.on_cpu(cpu, op, args, mode),
            #[cfg(feature = "wgpu")]
            advect::Device::Wgpu(queue) => self.on_wgpu(queue, op, args, mode),
            #[cfg(feature = "cuda")]
            advect::Device::Cuda(cuda) => self.on_cuda(cuda, &device, op, args, mode),
            other => Err(Failure::unsupported(T::NAME, &other.name(), "open a device by its name")),
        }
    }

    /// The same operands over memory that `place` finds for each tensor.
    fn map<'t, T: Op, M>(
        &'t self,
        args: T::Args<usize, usize>,
        place: impl Fn(&'t Tensor) -> advect::Result<M>,
    ) -> Result<T::Args<M, M>, Failure> {
        let written = |name, view: View<usize>| {
            let tensor = &*self.tensors[*view.memory()];
            if tensor.read_only {
                return Err(advect::Error::Argument {
                    op: T::NAME,
                    arg: name,
                    wanted: "memory that may be written".into(),
                    got: "read-only memory".into(),
                });
            }
            view.try_map(|_| named(T::NAME, name, place(tensor)))
        };
        let read =
            |name, view: View<usize>| view.try_map(|id| named(T::NAME, name, place(&self.tensors[id])));
        Ok(T::map(args, read, written)?)
    }

    fn plan<T: Op, M: Memory>(
        &self,
        op: &T,
        args: &T::Args<M, M>,
        out: *mut advect_plan,
        caps: Option<&op::Caps>,
    ) -> Result<(), Failure> {
        let (params, signature) = op::prepare(op, args)?;
        let plan = caps.map(|caps| op::plan(op, &params, &signature, caps)).transpose()?;
        let cost = op.cost(&params, &signature);
        let launch = plan.unwrap_or(Plan {
            entry: "",
            consts: op::Consts::new(),
            grid: [0; 3],
            block: [0; 3],
            shared_bytes: 0,
        });
        let value = advect_plan {
            struct_size: 0,
            scratch_bytes: 0,
            flops: cost.flops,
            bytes: cost.bytes,
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            reserved: 0,
            kernel: text_in(launch.entry),
        };
        self.caller.fill("plan", out, value)
    }

    fn on_cpu<T: Op>(
        &self,
        cpu: &advect::Cpu,
        op: &T,
        args: T::Args<usize, usize>,
        mode: Mode,
    ) -> Result<(), Failure> {
        let args: T::Args<Span, Span> = self.map::<T, _>(args, |tensor| match &tensor.place {
            Place::Host(host) => Ok(Span { ptr: host.ptr, bytes: host.bytes }),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Err(elsewhere("cpu", OTHER_DEVICE)),
        })?;
        match mode {
            Mode::Plan(out) => self.plan(op, &args, out, None),
            Mode::Warm => Ok(op::prepare(op, &args).map(drop)?),
            Mode::Run => {
                op::prepare(op, &args)?;
                // SAFETY: `prepare` found every view inside its memory, and no output meets another operand. The
                // memory is there while `self` holds its tensor, or by the header's contract.
                let args =
                    unsafe { T::map(args, |_, v| v.narrow_to_slice(), |_, v| v.narrow_to_slice_mut())? };
                Ok(cpu.run(op, args)?)
            }
        }
    }

    #[cfg(feature = "wgpu")]
    fn on_wgpu<T: Op>(
        &self,
        queue: &advect::target::wgpu::Queue,
        op: &T,
        args: T::Args<usize, usize>,
        mode: Mode,
    ) -> Result<(), Failure> {
        let args = self.map::<T, &wgpu::Buffer>(args, |tensor| match &tensor.place {
            Place::Wgpu { buffer, owner } if owner.is(queue) => Ok(buffer),
            _ => Err(elsewhere("wgpu", OTHER_DEVICE)),
        })?;
        match mode {
            Mode::Plan(out) => self.plan(op, &args, out, Some(queue.wgpu().caps())),
            Mode::Warm => Ok(queue.wgpu().warm(op, &args)?),
            Mode::Run => Ok(queue.run(op, args)?),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda<T: Op>(
        &self,
        cuda: &advect::target::cuda::Cuda,
        device: &crate::device::Device,
        op: &T,
        args: T::Args<usize, usize>,
        mode: Mode,
    ) -> Result<(), Failure> {
        use advect::target::cuda::DevicePtr;
        let args = self.map::<T, DevicePtr>(args, |tensor| match &tensor.place {
            Place::Cuda { buffer, .. } => {
                let buffer = buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if !buffer.is_of(cuda) {
                    return Err(elsewhere("cuda", OTHER_DEVICE));
                }
                // It is freed in the order of advect's own stream.
                if device.stream.is_some() {
                    return Err(elsewhere("cuda", "memory of advect's own, beside a stream of yours"));
                }
                // SAFETY: freed in stream order, after the work that uses it.
                Ok(unsafe { buffer.ptr() })
            }
            Place::CudaForeign { ptr, bytes, ordinal, context, .. } if *ordinal == device.index => {
                if *context != cuda.context().addr() {
                    return Err(elsewhere("cuda", "memory of another context"));
                }
                // SAFETY: by the header's contract for memory of the caller.
                Ok(unsafe { DevicePtr::new(*ptr, *bytes) })
            }
            _ => Err(elsewhere("cuda", OTHER_DEVICE)),
        })?;
        match (mode, device.stream) {
            (Mode::Plan(out), _) => self.plan(op, &args, out, Some(cuda.caps())),
            (Mode::Warm, _) => Ok(cuda.warm(op, &args)?),
            (Mode::Run, None) => Ok(cuda.run(op, args)?),
            (Mode::Run, Some(stream)) => {
                // SAFETY: the stream is of this device and alive, by the contract of `advect_device_on_stream`.
                let mut on = unsafe { cuda.on(std::ptr::with_exposed_provenance_mut(stream)) };
                Ok(on.run(op, args)?)
            }
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
const OTHER_DEVICE: &str = "memory of another device";

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn elsewhere(face: &str, got: &str) -> advect::Error {
    advect::Error::Argument {
        op: "device",
        arg: "memory",
        wanted: format!("memory that this device ({face}) reaches"),
        got: got.into(),
    }
}

/// An error about memory, told of the operand whose memory it is.
fn named<M>(op: &'static str, arg: &'static str, result: advect::Result<M>) -> advect::Result<M> {
    result.map_err(|error| match error {
        advect::Error::Argument { wanted, got, .. } => advect::Error::Argument { op, arg, wanted, got },
        other => other,
    })
}

/// Host memory before it is known to be free of overlap.
#[derive(Clone, Copy)]
struct Span {
    ptr: *mut u8,
    bytes: usize,
}

impl Memory for Span {
    fn byte_len(&self) -> u64 {
        self.bytes as u64
    }
    fn place(&self) -> (u64, u64) {
        (0, self.ptr as u64)
    }
}

/// A view cut down to the bytes it reaches, so that a tensor may be read in one part and written in another.
trait Narrow {
    /// # Safety
    /// The view lies inside its memory, and nobody writes what it reaches while the slice lives.
    unsafe fn narrow_to_slice<'m>(self) -> advect::Result<View<&'m [u8]>>;
    /// # Safety
    /// The view lies inside its memory, and nobody else reaches what it reaches while the slice lives.
    unsafe fn narrow_to_slice_mut<'m>(self) -> advect::Result<View<&'m mut [u8]>>;
}

impl Narrow for View<Span> {
    unsafe fn narrow_to_slice<'m>(self) -> advect::Result<View<&'m [u8]>> {
        let (ptr, len) = reach(&self);
        // SAFETY: as the trait asks.
        let bytes = unsafe { std::slice::from_raw_parts(ptr, len) };
        View::strided(bytes, self.dtype(), self.shape(), self.strides(), 0)
    }
    unsafe fn narrow_to_slice_mut<'m>(self) -> advect::Result<View<&'m mut [u8]>> {
        let (ptr, len) = reach(&self);
        // SAFETY: as the trait asks.
        let bytes = unsafe { std::slice::from_raw_parts_mut(ptr, len) };
        View::strided(bytes, self.dtype(), self.shape(), self.strides(), 0)
    }
}

/// The first byte that a view reaches, and how many it reaches.
fn reach(view: &View<Span>) -> (*mut u8, usize) {
    let size = view.dtype().size();
    match view.extent().filter(|e| !e.is_empty()) {
        Some(extent) => (view.memory().ptr.wrapping_add(extent.start * size), extent.len() * size),
        None => (std::ptr::NonNull::<u128>::dangling().as_ptr().cast(), 0),
    }
}

impl Tensor {
    /// A view reaches no byte outside this tensor's memory.
    pub(crate) fn inside(&self, op: &str, arg: &str, view: &View<()>) -> Result<(), Failure> {
        let bytes = match &self.place {
            Place::Host(host) => host.bytes as u64,
            #[cfg(feature = "wgpu")]
            Place::Wgpu { buffer, .. } => buffer.size(),
            #[cfg(feature = "cuda")]
            Place::Cuda { buffer, .. } => {
                buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner).byte_len() as u64
            }
            #[cfg(feature = "cuda")]
            Place::CudaForeign { bytes, .. } => *bytes,
        };
        let count = bytes / view.dtype().size() as u64;
        if view.is_empty() || view.extent().is_some_and(|e| e.end as u64 <= count) {
            return Ok(());
        }
        Err(Failure::argument(op, arg, format!("elements inside the {count} of its memory"), view.describe()))
    }
}

/// An activation from its number.
pub(crate) fn activation(op: &str, tag: u32) -> Result<Activation, Failure> {
    Activation::ALL
        .into_iter()
        .find(|a| a.tag() == tag)
        .ok_or_else(|| Failure::argument(op, "activation", "ADVECT_ACTIVATION_NONE, _SILU or _GELU", tag))
}
