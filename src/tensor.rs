//! Owned memory on a device, for users without an engine of their own.
//!
//! An engine brings its memory and its stream and calls the targets directly; this is the convenience on
//! top: a [`Device`] that runs ops, and a [`Tensor`] that owns memory there.

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use crate::op::Op;
use crate::target::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::target::cuda::{self, Cuda};
#[cfg(feature = "ptx-sim")]
use crate::target::ptx_sim::{self, PtxSim};
#[cfg(feature = "wgpu")]
use crate::target::wgpu::{Queue, Wgpu};
use crate::view::{Memory, View};
use crate::with_element;

/// Something that runs ops and owns memory. Cheap to clone.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The CPU.
    Cpu(Cpu),
    /// An adapter of wgpu. Launches are recorded and submitted together, at the latest when memory is read.
    #[cfg(feature = "wgpu")]
    Wgpu(Queue),
    /// An NVIDIA GPU, with a stream of its own.
    #[cfg(feature = "cuda")]
    Cuda(Cuda),
    /// A simulated NVIDIA GPU: CUDA kernels executed on the CPU under checks.
    #[cfg(feature = "ptx-sim")]
    PtxSim(PtxSim),
}

/// Bytes on a cache-line boundary.
#[repr(C, align(64))]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Line([u8; 64]);

/// Memory on a device, zeroed when made.
#[derive(Debug)]
pub struct Storage(Place);

enum Place {
    Cpu {
        lines: Vec<Line>,
        bytes: usize,
    },
    #[cfg(feature = "wgpu")]
    Wgpu {
        buffer: wgpu::Buffer,
        bytes: usize,
        owner: Queue,
    },
    #[cfg(feature = "cuda")]
    Cuda(cuda::Buffer),
    #[cfg(feature = "ptx-sim")]
    PtxSim(ptx_sim::Buffer),
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Cpu { bytes, .. } => write!(f, "Cpu({bytes} bytes)"),
            #[cfg(feature = "wgpu")]
            Self::Wgpu { bytes, .. } => write!(f, "Wgpu({bytes} bytes)"),
            #[cfg(feature = "cuda")]
            Self::Cuda(buffer) => write!(f, "Cuda({} bytes)", buffer.byte_len()),
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(buffer) => write!(f, "PtxSim({} bytes)", buffer.byte_len()),
        }
    }
}

impl Storage {
    /// Its size in bytes.
    pub fn byte_len(&self) -> usize {
        match &self.0 {
            Place::Cpu { bytes, .. } => *bytes,
            #[cfg(feature = "wgpu")]
            Place::Wgpu { bytes, .. } => *bytes,
            #[cfg(feature = "cuda")]
            Place::Cuda(buffer) => buffer.byte_len(),
            #[cfg(feature = "ptx-sim")]
            Place::PtxSim(buffer) => buffer.byte_len(),
        }
    }

    fn place(&self) -> (u64, u64) {
        match &self.0 {
            Place::Cpu { lines, .. } => (0, lines.as_ptr() as u64),
            #[cfg(feature = "wgpu")]
            Place::Wgpu { buffer, .. } => Memory::place(&buffer),
            // SAFETY: the pointer is only compared.
            #[cfg(feature = "cuda")]
            Place::Cuda(buffer) => unsafe { buffer.ptr() }.place(),
            #[cfg(feature = "ptx-sim")]
            Place::PtxSim(buffer) => buffer.place().place(),
        }
    }

    /// The bytes, when they are on the host.
    fn host(&self) -> Result<&[u8]> {
        match &self.0 {
            Place::Cpu { lines, bytes } => Ok(&bytemuck::cast_slice(lines)[..*bytes]),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Err(elsewhere("cpu")),
        }
    }

    fn host_mut(&mut self) -> Result<&mut [u8]> {
        match &mut self.0 {
            Place::Cpu { lines, bytes } => Ok(&mut bytemuck::cast_slice_mut(lines)[..*bytes]),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            _ => Err(elsewhere("cpu")),
        }
    }

    #[cfg(feature = "wgpu")]
    fn buffer(&self, device: &Queue) -> Result<&wgpu::Buffer> {
        match &self.0 {
            Place::Wgpu { buffer, owner, .. } if owner.is(device) => Ok(buffer),
            _ => Err(elsewhere("wgpu")),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self, device: &Cuda) -> Result<&cuda::Buffer> {
        match &self.0 {
            Place::Cuda(buffer) if buffer.is_of(device) => Ok(buffer),
            _ => Err(elsewhere("cuda")),
        }
    }

    #[cfg(feature = "ptx-sim")]
    fn simulated(&self) -> Result<&ptx_sim::Buffer> {
        match &self.0 {
            Place::PtxSim(buffer) => Ok(buffer),
            _ => Err(elsewhere("ptx-sim")),
        }
    }

    #[cfg(feature = "ptx-sim")]
    fn simulated_mut(&mut self) -> Result<&mut ptx_sim::Buffer> {
        match &mut self.0 {
            Place::PtxSim(buffer) => Ok(buffer),
            _ => Err(elsewhere("ptx-sim")),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_mut(&mut self, device: &Cuda) -> Result<&mut cuda::Buffer> {
        match &mut self.0 {
            Place::Cuda(buffer) if buffer.is_of(device) => Ok(buffer),
            _ => Err(elsewhere("cuda")),
        }
    }
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn elsewhere(device: &'static str) -> Error {
    Error::argument(
        "device",
        "memory",
        format!("memory of this device ({device})"),
        "memory of another device",
    )
}

impl Memory for &Storage {
    fn byte_len(&self) -> u64 {
        Storage::byte_len(self) as u64
    }
    fn place(&self) -> (u64, u64) {
        Storage::place(self)
    }
}

impl Memory for &mut Storage {
    fn byte_len(&self) -> u64 {
        Storage::byte_len(self) as u64
    }
    fn place(&self) -> (u64, u64) {
        Storage::place(self)
    }
}

impl Device {
    /// The CPU with `threads` threads (0: one a core) and its widest instruction set.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when the threads cannot be started.
    pub fn cpu(threads: usize) -> Result<Self> {
        Ok(Self::Cpu(Cpu::with(threads, crate::Isa::detect())?))
    }

    /// The `index`-th adapter of wgpu, in the order that `advect devices` lists.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no such adapter.
    #[cfg(feature = "wgpu")]
    pub fn wgpu(index: usize) -> Result<Self> {
        Ok(Self::Wgpu(Queue::new(Wgpu::new(index)?)))
    }

    /// The CUDA device of this number.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no driver, no such device or no NVRTC.
    #[cfg(feature = "cuda")]
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Ok(Self::Cuda(Cuda::new(ordinal)?))
    }

    /// A simulated GPU of architecture `arch` (75, 80, .., 120).
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no NVRTC.
    #[cfg(feature = "ptx-sim")]
    pub fn ptx_sim(arch: u32) -> Result<Self> {
        Ok(Self::PtxSim(PtxSim::new(arch, Default::default())?))
    }

    /// The face it runs: `cpu`, `wgpu`, `cuda` or `ptx-sim`.
    pub fn face(&self) -> &'static str {
        match self {
            Self::Cpu(_) => "cpu",
            #[cfg(feature = "wgpu")]
            Self::Wgpu(_) => "wgpu",
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => "cuda",
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(_) => "ptx-sim",
        }
    }

    /// Whether it is an adapter that runs shaders on the CPU.
    pub fn is_software(&self) -> bool {
        match self {
            Self::Cpu(_) => false,
            #[cfg(feature = "wgpu")]
            Self::Wgpu(queue) => queue.wgpu().device().adapter_info().device_type == wgpu::DeviceType::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => false,
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(_) => true,
        }
    }

    /// The device in words.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(cpu) => format!("cpu {}", cpu.isa().name()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(queue) => queue.wgpu().caps().name.clone(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.caps().name.clone(),
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(sim) => sim.caps().name.clone(),
        }
    }

    /// Memory of `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`Error::Limit`] or [`Error::Driver`] when the device has no room.
    pub fn alloc(&self, bytes: usize) -> Result<Storage> {
        Ok(Storage(match self {
            Self::Cpu(_) => {
                let mut lines = Vec::new();
                let count = bytes.div_ceil(64);
                lines.try_reserve_exact(count).map_err(|e| Error::Driver {
                    target: "cpu".into(),
                    call: "alloc",
                    message: format!("{bytes} bytes: {e}"),
                })?;
                lines.resize(count, bytemuck::Zeroable::zeroed());
                Place::Cpu { lines, bytes }
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu(queue) => Place::Wgpu { buffer: queue.alloc(bytes)?, bytes, owner: queue.clone() },
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => Place::Cuda(cuda.alloc(bytes)?),
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(sim) => {
                let mut buffer = sim.alloc(bytes);
                sim.write(&mut buffer, &vec![0; bytes])?;
                Place::PtxSim(buffer)
            }
        }))
    }

    /// Overwrites all of `storage` with `bytes`, which must be as long.
    ///
    /// # Errors
    /// [`Error::Argument`] when the sizes differ or the memory is another device's.
    pub fn write(&self, storage: &mut Storage, bytes: &[u8]) -> Result<()> {
        same_len(storage, bytes.len())?;
        match self {
            Self::Cpu(_) => storage.host_mut()?.copy_from_slice(bytes),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(queue) => queue.write(storage.buffer(queue)?, bytes)?,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.write(storage.cuda_mut(cuda)?, bytes)?,
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(sim) => sim.write(storage.simulated_mut()?, bytes)?,
        }
        Ok(())
    }

    /// On a simulated GPU, makes bytes count as never written, so that a kernel that reads them is at fault.
    #[cfg(feature = "ptx-sim")]
    pub(crate) fn forget(&self, storage: &mut Storage, bytes: std::ops::Range<usize>) -> Result<()> {
        match self {
            Self::PtxSim(sim) => sim.forget(storage.simulated_mut()?, bytes),
            _ => Ok(()),
        }
    }

    /// Waits for everything launched and reads all of `storage` into `bytes`, which must be as long.
    ///
    /// # Errors
    /// [`Error::Argument`] when the sizes differ or the memory is another device's; [`Error::Driver`]
    /// when a kernel before it failed.
    pub fn read(&self, storage: &Storage, bytes: &mut [u8]) -> Result<()> {
        same_len(storage, bytes.len())?;
        match self {
            Self::Cpu(_) => bytes.copy_from_slice(storage.host()?),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(queue) => queue.read(storage.buffer(queue)?, bytes)?,
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.read(storage.cuda(cuda)?, bytes)?,
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(sim) => sim.read(storage.simulated()?, bytes)?,
        }
        Ok(())
    }

    /// Validates and launches one op. On the CPU it is done when this returns; elsewhere it is done by
    /// the next [`Device::read`] or [`Device::synchronize`].
    ///
    /// # Errors
    /// Whatever the op and the target find wrong; nothing is then written.
    pub fn run<T: Op>(&self, op: &T, args: T::Args<&Storage, &mut Storage>) -> Result<()> {
        match self {
            Self::Cpu(cpu) => {
                let host =
                    T::map(args, |_, v| v.try_map(Storage::host), |_, v| v.try_map(Storage::host_mut))?;
                cpu.run(op, host)
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu(queue) => {
                let buffers = T::map(
                    args,
                    |_, v| v.try_map(|s| s.buffer(queue)),
                    |_, v| v.try_map(|s| s.buffer(queue)),
                )?;
                queue.run(op, buffers)
            }
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => {
                // SAFETY: the borrows of `args` keep the memory alive through the launch, and memory is freed
                // in stream order, after the work that uses it.
                let pointers = unsafe {
                    T::map(
                        args,
                        |_, v| v.try_map(|s| Ok(s.cuda(cuda)?.ptr())),
                        |_, v| v.try_map(|s| Ok(s.cuda_mut(cuda)?.ptr())),
                    )?
                };
                cuda.run(op, pointers)
            }
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(sim) => {
                let places = T::map(
                    args,
                    |_, v| v.try_map(|s| Ok(s.simulated()?.place())),
                    |_, v| v.try_map(|s| Ok(s.simulated()?.place())),
                )?;
                sim.run(op, places)
            }
        }
    }

    /// Waits for everything launched.
    ///
    /// # Errors
    /// [`Error::Driver`] when a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        match self {
            Self::Cpu(_) => Ok(()),
            #[cfg(feature = "wgpu")]
            Self::Wgpu(queue) => queue.synchronize(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda) => cuda.synchronize(),
            #[cfg(feature = "ptx-sim")]
            Self::PtxSim(_) => Ok(()),
        }
    }
}

fn same_len(storage: &Storage, bytes: usize) -> Result<()> {
    if storage.byte_len() == bytes {
        return Ok(());
    }
    Err(Error::argument("device", "bytes", format!("{} bytes", storage.byte_len()), bytes))
}

/// A row-major array that owns its memory.
#[derive(Debug)]
pub struct Tensor {
    storage: Storage,
    view: View<()>,
}

impl Tensor {
    /// Zeros.
    ///
    /// # Errors
    /// As [`Device::alloc`]; [`Error::Argument`] when the shape has too many axes or overflows.
    pub fn new(device: &Device, dtype: Dtype, shape: &[usize]) -> Result<Self> {
        let view = View::contiguous((), dtype, shape)?;
        let bytes = view.len().checked_mul(dtype.size()).ok_or_else(|| {
            Error::argument("tensor", "shape", "fewer bytes than an address can hold", format!("{shape:?}"))
        })?;
        Ok(Self { storage: device.alloc(bytes)?, view })
    }

    /// Given values, rounded to `dtype`.
    ///
    /// # Errors
    /// As [`Tensor::new`]; [`Error::Argument`] when the number of values is not that of the shape.
    pub fn from_f32(device: &Device, dtype: Dtype, shape: &[usize], values: &[f32]) -> Result<Self> {
        let mut tensor = Self::new(device, dtype, shape)?;
        tensor.write(device, values)?;
        Ok(tensor)
    }

    /// Overwrites its elements, rounded to its dtype.
    ///
    /// # Errors
    /// [`Error::Argument`] when the number of values is not its number of elements.
    pub fn write(&mut self, device: &Device, values: &[f32]) -> Result<()> {
        if values.len() != self.view.len() {
            let wanted = format!("{} values for shape {:?}", self.view.len(), self.view.shape());
            return Err(Error::argument("tensor", "values", wanted, values.len()));
        }
        fn to<T: Element>(values: &[f32]) -> Vec<u8> {
            bytemuck::cast_slice(&values.iter().map(|&x| T::from_f32(x)).collect::<Vec<T>>()).to_vec()
        }
        match self.view.dtype() {
            Dtype::F32 => device.write(&mut self.storage, bytemuck::cast_slice(values)),
            dtype => device.write(&mut self.storage, &with_element!(dtype, to(values))),
        }
    }

    /// Its elements as f32, once everything launched is done.
    ///
    /// # Errors
    /// As [`Device::read`].
    pub fn to_f32(&self, device: &Device) -> Result<Vec<f32>> {
        fn from<T: Element>(bytes: &[u8]) -> Vec<f32> {
            bytes
                .chunks_exact(size_of::<T>())
                .map(|b| bytemuck::pod_read_unaligned::<T>(b).to_f32())
                .collect()
        }
        let mut bytes = vec![0; self.storage.byte_len()];
        device.read(&self.storage, &mut bytes)?;
        Ok(with_element!(self.view.dtype(), from(&bytes)))
    }

    /// Elements along each axis.
    pub fn shape(&self) -> &[usize] {
        self.view.shape()
    }

    /// How its elements are stored.
    pub fn dtype(&self) -> Dtype {
        self.view.dtype()
    }

    /// All of it, to be read.
    pub fn view(&self) -> View<&Storage> {
        let Ok(view) = self.view.clone().try_map(|()| Ok::<_, std::convert::Infallible>(&self.storage));
        view
    }

    /// All of it, to be written.
    pub fn view_mut(&mut self) -> View<&mut Storage> {
        let storage = &mut self.storage;
        let Ok(view) = self.view.clone().try_map(|()| Ok::<_, std::convert::Infallible>(storage));
        view
    }
}
