//! Tensors: memory that advect owns or borrows, and the views of it that ops take.

use crate::device::{DEVICES, Device, advect_device};
use crate::dlpack::Import;
use crate::handle::{Kind, Object, Table};
use crate::memory::Caller;
use crate::status::{Failure, advect_status, entry};
use advect::{Dtype, Element, View, with_element};
use std::alloc::Layout;
use std::ffi::c_void;
use std::sync::Arc;

/// Memory on a device or on the host, with the shape it was made with. A handle, not an address.
///
/// Tensors may be destroyed while work that uses them is under way on another thread, and in any order with
/// their device. Ordering reads and writes of one tensor by several threads is the caller's business, as with
/// any memory.
pub struct advect_tensor {
    _opaque: (),
}

/// How one element is stored: `ADVECT_F32`, `ADVECT_F16`, `ADVECT_BF16`, and of lengths and masks `ADVECT_I32` and
/// `ADVECT_U8`. 0 is none of them.
pub type advect_dtype = u32;

/// IEEE binary32.
pub const ADVECT_F32: advect_dtype = 1;
/// IEEE binary16.
pub const ADVECT_F16: advect_dtype = 2;
/// bfloat16.
pub const ADVECT_BF16: advect_dtype = 3;
/// Two's complement, 32 bits.
pub const ADVECT_I32: advect_dtype = 4;
/// Unsigned, 8 bits; booleans, where anything but 0 is true.
pub const ADVECT_U8: advect_dtype = 5;

/// The axes that a view has room for. Ops take at most 6 today.
pub const ADVECT_MAX_AXES: usize = 8;

/// Flag of borrowed memory: ops and uploads that would write it are refused.
pub const ADVECT_READ_ONLY: u32 = 1;

/// A strided array in a tensor's memory. Element `(i, j, ..)` is at `offset + i strides[0] + j strides[1] ..`,
/// counted in elements from the start of the memory. Shapes are logical and strides say how they lie: an NHWC
/// image is an NCHW view whose channel stride is 1, Q of a packed projection is a slice. A stride of 0 repeats
/// (inputs only).
///
/// `advect_tensor_view` fills it, and `advect_view_*` change it; filling it by hand is as good. It holds no
/// reference, needs no clean-up, and never changes its layout.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct advect_view {
    /// Where it lies.
    pub tensor: *mut advect_tensor,
    /// Index of its first element.
    pub offset: u64,
    /// Elements along each axis.
    pub shape: [u64; ADVECT_MAX_AXES],
    /// Distance between neighbours along each axis, in elements.
    pub strides: [u64; ADVECT_MAX_AXES],
    /// Number of axes; entries of `shape` and `strides` from there on are not read.
    pub rank: u32,
    /// How its elements are stored.
    pub dtype: advect_dtype,
}

/// Memory, and what is to be done with it at the end.
pub(crate) struct Host {
    pub(crate) ptr: *mut u8,
    pub(crate) bytes: usize,
    keeper: Keeper,
}

enum Keeper {
    /// Allocated here.
    Owned(Layout),
    /// The caller's.
    Caller,
    /// Given by DLPack, and given back when dropped.
    Dlpack(#[expect(dead_code, reason = "held to be dropped")] Import),
}

// SAFETY: the memory is reached only under the contract of the header, which leaves ordering to the caller.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

impl Drop for Host {
    fn drop(&mut self) {
        if let Keeper::Owned(layout) = self.keeper
            && layout.size() > 0
        {
            // SAFETY: allocated in `Host::zeros` with this layout, and freed only here.
            unsafe { std::alloc::dealloc(self.ptr, layout) };
        }
    }
}

impl Host {
    /// New memory, on a cache-line boundary.
    fn zeros(op: &str, bytes: usize) -> Result<Self, Failure> {
        let layout = Layout::from_size_align(bytes, 64).map_err(|_| Failure::memory(op, bytes))?;
        let ptr = match bytes {
            0 => layout.dangling_ptr().as_ptr(),
            // SAFETY: the layout is not empty.
            _ => unsafe { std::alloc::alloc_zeroed(layout) },
        };
        if ptr.is_null() {
            return Err(Failure::memory(op, bytes));
        }
        Ok(Self { ptr, bytes, keeper: Keeper::Owned(layout) })
    }

    pub(crate) fn of_dlpack(ptr: *mut u8, bytes: usize, import: Import) -> Self {
        Self { ptr, bytes, keeper: Keeper::Dlpack(import) }
    }
}

/// Where a tensor lies.
pub(crate) enum Place {
    Host(Host),
    #[cfg(feature = "wgpu")]
    Wgpu {
        buffer: wgpu::Buffer,
        owner: advect::target::wgpu::Queue,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        buffer: std::sync::Mutex<advect::target::cuda::Buffer>,
        owner: advect::target::cuda::Cuda,
        ordinal: u32,
    },
    #[cfg(feature = "cuda")]
    CudaForeign {
        ptr: u64,
        bytes: u64,
        ordinal: u32,
        /// The `CUcontext` that it is of, as a number.
        context: usize,
        #[expect(dead_code, reason = "held to be dropped")]
        lent: Option<Lent>,
    },
}

/// What DLPack gave on a CUDA device: given back when nothing that the device launched uses it any more.
#[cfg(feature = "cuda")]
pub(crate) struct Lent {
    cuda: advect::target::cuda::Cuda,
    #[expect(dead_code, reason = "held to be dropped")]
    import: Import,
}

#[cfg(feature = "cuda")]
impl Drop for Lent {
    fn drop(&mut self) {
        // The import is dropped after this, and its owner may free or reuse the memory at once. Where waiting fails
        // the device has failed, and nothing runs on it any more.
        let _ = self.cuda.synchronize();
    }
}

/// What a tensor handle is of.
pub(crate) struct Tensor {
    pub(crate) place: Place,
    pub(crate) layout: View<()>,
    pub(crate) read_only: bool,
}

impl Object for Tensor {
    /// Memory of the host is copied by `fork`, or shared.
    fn confined(&self) -> bool {
        !matches!(self.place, Place::Host(_))
    }
}

pub(crate) static TENSORS: Table<Tensor> = Table::new(Kind::Tensor);

/// A dtype from its number.
pub(crate) fn dtype(op: &str, dtype: advect_dtype) -> Result<Dtype, Failure> {
    match dtype {
        ADVECT_F32 => Ok(Dtype::F32),
        ADVECT_F16 => Ok(Dtype::F16),
        ADVECT_BF16 => Ok(Dtype::Bf16),
        ADVECT_I32 => Ok(Dtype::I32),
        ADVECT_U8 => Ok(Dtype::U8),
        other => Err(Failure::argument(op, "dtype", DTYPES, other)),
    }
}

/// All of them, for messages.
const DTYPES: &str = "ADVECT_F32, ADVECT_F16, ADVECT_BF16, ADVECT_I32 or ADVECT_U8";

fn number(dtype: Dtype) -> advect_dtype {
    match dtype {
        Dtype::F32 => ADVECT_F32,
        Dtype::F16 => ADVECT_F16,
        Dtype::Bf16 => ADVECT_BF16,
        Dtype::I32 => ADVECT_I32,
        Dtype::U8 => ADVECT_U8,
    }
}

/// Sizes as Rust counts them; on 32-bit machines not every one fits.
fn sizes(op: &str, arg: &str, values: &[u64]) -> Result<Vec<usize>, Failure> {
    let size =
        |&v: &u64| usize::try_from(v).map_err(|_| Failure::argument(op, arg, "sizes of this machine", v));
    values.iter().map(size).collect()
}

impl advect_view {
    /// The same in Rust's terms, over `memory`.
    pub(crate) fn over<M>(&self, op: &str, arg: &str, memory: M) -> Result<View<M>, Failure> {
        let rank = self.rank as usize;
        if rank > advect::MAX_RANK {
            let wanted = format!("at most {} axes", advect::MAX_RANK);
            return Err(Failure::argument(op, arg, wanted, format!("{rank} axes")));
        }
        let dtype = dtype(op, self.dtype)
            .map_err(|_| Failure::argument(op, arg, format!("the dtype {DTYPES}"), self.dtype))?;
        let shape = sizes(op, arg, &self.shape[..rank])?;
        let strides = sizes(op, arg, &self.strides[..rank])?;
        let offset = sizes(op, arg, &[self.offset])?[0];
        Ok(View::strided(memory, dtype, &shape, &strides, offset)?)
    }

    fn of<M>(tensor: *mut advect_tensor, view: &View<M>) -> Self {
        let array = |values: &[usize]| {
            let mut all = [0; ADVECT_MAX_AXES];
            values.iter().zip(&mut all).for_each(|(&v, a)| *a = v as u64);
            all
        };
        Self {
            tensor,
            offset: view.offset() as u64,
            shape: array(view.shape()),
            strides: array(view.strides()),
            rank: view.rank() as u32,
            dtype: number(view.dtype()),
        }
    }
}

/// A row-major layout, and its size in bytes.
fn layout(
    c: &Caller,
    kind: advect_dtype,
    rank: u32,
    shape: *const u64,
) -> Result<(View<()>, usize), Failure> {
    let kind = dtype(c.op(), kind)?;
    let rank = rank as usize;
    if rank > advect::MAX_RANK {
        return Err(Failure::argument(c.op(), "rank", format!("at most {}", advect::MAX_RANK), rank));
    }
    let shape = sizes(c.op(), "shape", c.slice("shape", shape, rank)?)?;
    let view = View::contiguous((), kind, &shape)?;
    let extent = view.extent().and_then(|e| e.end.checked_mul(kind.size()));
    let bytes = extent.filter(|&b| b <= isize::MAX as usize).ok_or_else(|| {
        Failure::argument(c.op(), "shape", "fewer bytes than an address can hold", format!("{shape:?}"))
    })?;
    Ok((view, bytes))
}

impl Tensor {
    fn new(c: &Caller, device: &Device, layout: View<()>, bytes: usize) -> Result<Self, Failure> {
        if device.stream.is_some() {
            let what =
                "memory of advect's own, which is ordered by its own stream, beside a stream of the caller";
            return Err(Failure::unsupported(c.op(), what, "bring memory by advect_tensor_from_cuda"));
        }
        let place = match &device.inner {
            advect::Device::Cpu(_) => Place::Host(Host::zeros(c.op(), bytes)?),
            #[cfg(feature = "wgpu")]
            advect::Device::Wgpu(queue) => Place::Wgpu { buffer: queue.alloc(bytes)?, owner: queue.clone() },
            #[cfg(feature = "cuda")]
            advect::Device::Cuda(cuda) => Place::Cuda {
                buffer: std::sync::Mutex::new(cuda.alloc(bytes)?),
                owner: cuda.clone(),
                ordinal: device.index,
            },
            other => return Err(Failure::unsupported(c.op(), &other.name(), "open it by its name")),
        };
        Ok(Self { place, layout, read_only: false })
    }

    /// The bytes of all its elements, which lie without gaps.
    fn dense(&self, op: &str) -> Result<std::ops::Range<usize>, Failure> {
        let size = self.layout.dtype().size();
        let extent = self.layout.extent().filter(|_| self.layout.is_contiguous());
        let wanted = "a tensor without gaps";
        let extent = extent.ok_or_else(|| Failure::argument(op, "tensor", wanted, self.layout.describe()))?;
        Ok(extent.start * size..extent.end * size)
    }

    fn same_len(&self, op: &str, bytes: usize) -> Result<std::ops::Range<usize>, Failure> {
        let range = self.dense(op)?;
        if range.len() != bytes {
            let wanted = format!("{}, the bytes of {}", range.len(), self.layout.describe());
            return Err(Failure::argument(op, "bytes", wanted, bytes));
        }
        Ok(range)
    }

    fn upload(&self, op: &str, bytes: &[u8]) -> Result<(), Failure> {
        let range = self.same_len(op, bytes.len())?;
        if self.read_only {
            return Err(Failure::argument(op, "tensor", "memory that may be written", "read-only memory"));
        }
        match &self.place {
            Place::Host(host) => {
                apart(op, host, bytes)?;
                // SAFETY: the range lies in the memory, as checked when the tensor was made, and apart from the
                // caller's bytes.
                unsafe { host.ptr.add(range.start).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
                Ok(())
            }
            #[cfg(feature = "wgpu")]
            Place::Wgpu { buffer, owner } => Ok(owner.write(buffer, bytes)?),
            #[cfg(feature = "cuda")]
            Place::Cuda { buffer, owner, .. } => {
                let mut buffer = buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                Ok(owner.write(&mut buffer, bytes)?)
            }
            #[cfg(feature = "cuda")]
            Place::CudaForeign { .. } => Err(theirs(op)),
        }
    }

    fn download(&self, op: &str, bytes: &mut [u8]) -> Result<(), Failure> {
        let range = self.same_len(op, bytes.len())?;
        match &self.place {
            Place::Host(host) => {
                apart(op, host, bytes)?;
                // SAFETY: as in `upload`.
                unsafe { host.ptr.add(range.start).copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) };
                Ok(())
            }
            #[cfg(feature = "wgpu")]
            Place::Wgpu { buffer, owner } => Ok(owner.read(buffer, bytes)?),
            #[cfg(feature = "cuda")]
            Place::Cuda { buffer, owner, .. } => {
                let buffer = buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                Ok(owner.read(&buffer, bytes)?)
            }
            #[cfg(feature = "cuda")]
            Place::CudaForeign { .. } => Err(theirs(op)),
        }
    }

    /// Bytes for its elements, or for as many f32; a size the machine does not have is an error.
    fn scratch(&self, op: &str) -> Result<Vec<u8>, Failure> {
        let bytes = self.dense(op)?.len();
        let mut all = Vec::new();
        all.try_reserve_exact(bytes).map_err(|_| Failure::memory(op, bytes))?;
        all.resize(bytes, 0);
        Ok(all)
    }

    fn same_count(&self, op: &str, count: usize) -> Result<(), Failure> {
        if count == self.layout.len() {
            return Ok(());
        }
        let wanted = format!("{}, the elements of {}", self.layout.len(), self.layout.describe());
        Err(Failure::argument(op, "count", wanted, count))
    }
}

/// The caller's bytes are not the tensor's memory.
fn apart(op: &str, host: &Host, bytes: &[u8]) -> Result<(), Failure> {
    let (from, to) = (bytes.as_ptr().addr(), host.ptr.addr());
    if bytes.is_empty() || from >= to + host.bytes || to >= from + bytes.len() {
        return Ok(());
    }
    Err(Failure::argument(op, "data", "memory apart from the tensor's", "the tensor's own memory"))
}

#[cfg(feature = "cuda")]
fn theirs(op: &str) -> Failure {
    Failure::unsupported(op, "copying CUDA memory of the caller", "copy it in the order of your own stream")
}

fn add(c: &Caller, out: *mut *mut advect_tensor, tensor: Tensor) -> Result<(), Failure> {
    c.put("tensor", out, TENSORS.insert(c.op(), tensor)?)
}

fn flags(op: &str, flags: u32) -> Result<bool, Failure> {
    match flags {
        0 => Ok(false),
        ADVECT_READ_ONLY => Ok(true),
        other => Err(Failure::argument(op, "flags", "0 or ADVECT_READ_ONLY", other)),
    }
}

fn holds(op: &str, needed: usize, bytes: usize) -> Result<(), Failure> {
    if needed <= bytes {
        return Ok(());
    }
    Err(Failure::argument(op, "bytes", format!("at least {needed}, which the shape takes"), bytes))
}

/// New memory on a device, all zero, row-major. `shape` has `rank` entries; rank 0 is one element.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_new(
    device: *const advect_device,
    dtype: advect_dtype,
    rank: u32,
    shape: *const u64,
    tensor: *mut *mut advect_tensor,
) -> advect_status {
    entry!("advect_tensor_new", |c| {
        c.room("tensor", tensor)?;
        let device = DEVICES.get(c.op(), "device", device)?;
        let (view, bytes) = layout(c, dtype, rank, shape)?;
        add(c, tensor, Tensor::new(c, &device, view, bytes)?)
    })
}

/// Memory of the caller on the host: `bytes` bytes from `data` on, read and written in place by every CPU
/// device. The shape is row-major and needs no more than `bytes`; views may reach all of them. The memory
/// outlives the tensor and all calls with it. `flags` is 0 or `ADVECT_READ_ONLY`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_from_host(
    data: *mut c_void,
    bytes: usize,
    dtype: advect_dtype,
    rank: u32,
    shape: *const u64,
    flags: u32,
    tensor: *mut *mut advect_tensor,
) -> advect_status {
    entry!("advect_tensor_from_host", |c| {
        c.room("tensor", tensor)?;
        let read_only = self::flags(c.op(), flags)?;
        let (view, needed) = layout(c, dtype, rank, shape)?;
        holds(c.op(), needed, bytes)?;
        c.span("data", data.cast::<u8>().cast_const(), bytes)?;
        let size = view.dtype().size();
        if bytes > 0 && !data.addr().is_multiple_of(size) {
            let wanted = format!("an address aligned to the {size} bytes of {}", view.dtype());
            return Err(Failure::argument(c.op(), "data", wanted, format!("{data:p}")));
        }
        let ptr = if bytes == 0 { std::ptr::without_provenance_mut(size) } else { data.cast() };
        let place = Place::Host(Host { ptr, bytes, keeper: Keeper::Caller });
        add(c, tensor, Tensor { place, layout: view, read_only })
    })
}

/// Memory of the caller on a CUDA device: `bytes` bytes from the `CUdeviceptr` on, memory of the device's context
/// and for devices of that context only. It outlives the tensor and the work launched with it; nothing else
/// writes it unordered with that work. Otherwise as `advect_tensor_from_host`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_from_cuda(
    device: *const advect_device,
    device_ptr: u64,
    bytes: u64,
    dtype: advect_dtype,
    rank: u32,
    shape: *const u64,
    flags: u32,
    tensor: *mut *mut advect_tensor,
) -> advect_status {
    entry!("advect_tensor_from_cuda", |c| {
        c.room("tensor", tensor)?;
        let device = DEVICES.get(c.op(), "device", device)?;
        let read_only = self::flags(c.op(), flags)?;
        let (view, needed) = layout(c, dtype, rank, shape)?;
        let wide = usize::try_from(bytes).unwrap_or(usize::MAX);
        holds(c.op(), needed, wide)?;
        if device_ptr == 0 && bytes > 0 {
            return Err(Failure::argument(c.op(), "device_ptr", "an address", 0));
        }
        if device_ptr.checked_add(bytes).is_none() {
            let got = format!("{bytes} from {device_ptr:#x} on");
            return Err(Failure::argument(c.op(), "bytes", "bytes before the end of the address space", got));
        }
        let place = foreign_cuda(c.op(), &device, device_ptr, bytes, || None)?;
        add(c, tensor, Tensor { place, layout: view, read_only })
    })
}

/// CUDA memory of others. `import` is asked for what DLPack gave when nothing can fail any more.
#[cfg(feature = "cuda")]
pub(crate) fn foreign_cuda(
    op: &str,
    device: &Device,
    ptr: u64,
    bytes: u64,
    import: impl FnOnce() -> Option<Import>,
) -> Result<Place, Failure> {
    match &device.inner {
        advect::Device::Cuda(cuda) => {
            let (ordinal, context) = (device.index, cuda.context().addr());
            let lent = import().map(|import| Lent { cuda: cuda.clone(), import });
            Ok(Place::CudaForeign { ptr, bytes, ordinal, context, lent })
        }
        other => Err(Failure::argument(op, "device", "a CUDA device", other.name())),
    }
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn foreign_cuda(
    op: &str,
    device: &Device,
    _: u64,
    _: u64,
    _: impl FnOnce() -> Option<Import>,
) -> Result<Place, Failure> {
    Err(Failure::argument(op, "device", "a CUDA device", device.inner.name()))
}

/// Destroys a tensor: frees what advect allocated, calls the deleter of what DLPack gave, leaves the caller's
/// memory alone. Work under way still finds it. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_destroy(tensor: *mut advect_tensor) -> advect_status {
    entry!("advect_tensor_destroy", |c| {
        if !tensor.is_null() {
            drop(TENSORS.remove(c.op(), "tensor", tensor)?);
        }
        Ok(())
    })
}

/// The address of a tensor's memory (not of its first element, where it has an offset): a host pointer, or a
/// `CUdeviceptr` as a pointer. Valid while the tensor is. wgpu buffers have none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_data(
    tensor: *const advect_tensor,
    data: *mut *mut c_void,
) -> advect_status {
    entry!("advect_tensor_data", |c| {
        let tensor = TENSORS.get(c.op(), "tensor", tensor)?;
        let (address, _) = tensor.address(c.op())?;
        c.put("data", data, address)
    })
}

impl Tensor {
    /// Its memory's address, and the CUDA device it is on if it is on one.
    #[cfg_attr(not(feature = "wgpu"), allow(unused_variables, reason = "only wgpu's memory has none"))]
    pub(crate) fn address(&self, op: &str) -> Result<(*mut c_void, Option<u32>), Failure> {
        #[cfg(feature = "cuda")]
        let pointer = |ptr: u64| std::ptr::without_provenance_mut(ptr as usize);
        match &self.place {
            Place::Host(host) => Ok((host.ptr.cast(), None)),
            #[cfg(feature = "wgpu")]
            Place::Wgpu { .. } => {
                let instead = "use advect_tensor_download and advect_tensor_upload";
                Err(Failure::unsupported(op, "the address of a wgpu buffer", instead))
            }
            #[cfg(feature = "cuda")]
            Place::Cuda { buffer, ordinal, .. } => {
                let buffer = buffer.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                // SAFETY: the address is handed out under the header's contract, which says how long it holds.
                Ok((pointer(unsafe { buffer.ptr() }.address()), Some(*ordinal)))
            }
            #[cfg(feature = "cuda")]
            Place::CudaForeign { ptr, ordinal, .. } => Ok((pointer(*ptr), Some(*ordinal))),
        }
    }
}

/// Overwrites all elements of a tensor with `bytes` bytes from `data`, in its dtype and row-major, after
/// everything launched before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_upload(
    tensor: *const advect_tensor,
    data: *const c_void,
    bytes: usize,
) -> advect_status {
    entry!("advect_tensor_upload", |c| {
        let tensor = TENSORS.get(c.op(), "tensor", tensor)?;
        tensor.upload(c.op(), c.slice("data", data.cast::<u8>(), bytes)?)
    })
}

/// Waits for everything launched before and reads all elements of a tensor into `bytes` bytes at `data`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_download(
    tensor: *const advect_tensor,
    data: *mut c_void,
    bytes: usize,
) -> advect_status {
    entry!("advect_tensor_download", |c| {
        let tensor = TENSORS.get(c.op(), "tensor", tensor)?;
        tensor.download(c.op(), c.slice_mut("data", data.cast::<u8>(), bytes)?)
    })
}

/// As `advect_tensor_upload`, from `count` floats that are rounded to the tensor's dtype.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_upload_f32(
    tensor: *const advect_tensor,
    values: *const f32,
    count: usize,
) -> advect_status {
    entry!("advect_tensor_upload_f32", |c| {
        fn round<T: Element>(values: &[f32], bytes: &mut [u8]) {
            for (x, to) in values.iter().zip(bytes.chunks_exact_mut(size_of::<T>())) {
                to.copy_from_slice(bytemuck::bytes_of(&T::from_f32(*x)));
            }
        }
        let tensor = TENSORS.get(c.op(), "tensor", tensor)?;
        tensor.same_count(c.op(), count)?;
        let values = c.slice("values", values, count)?;
        if tensor.layout.dtype() == Dtype::F32 {
            return tensor.upload(c.op(), bytemuck::cast_slice(values));
        }
        let mut bytes = tensor.scratch(c.op())?;
        with_element!(tensor.layout.dtype(), round(values, &mut bytes));
        tensor.upload(c.op(), &bytes)
    })
}

/// As `advect_tensor_download`, into `count` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_download_f32(
    tensor: *const advect_tensor,
    values: *mut f32,
    count: usize,
) -> advect_status {
    entry!("advect_tensor_download_f32", |c| {
        fn widen<T: Element>(bytes: &[u8], values: &mut [f32]) {
            for (x, from) in values.iter_mut().zip(bytes.chunks_exact(size_of::<T>())) {
                *x = bytemuck::pod_read_unaligned::<T>(from).to_f32();
            }
        }
        let tensor = TENSORS.get(c.op(), "tensor", tensor)?;
        tensor.same_count(c.op(), count)?;
        let values = c.slice_mut("values", values, count)?;
        if tensor.layout.dtype() == Dtype::F32 {
            return tensor.download(c.op(), bytemuck::cast_slice_mut(values));
        }
        let mut bytes = tensor.scratch(c.op())?;
        tensor.download(c.op(), &mut bytes)?;
        with_element!(tensor.layout.dtype(), widen(&bytes, values));
        Ok(())
    })
}

/// All of a tensor, as it was made.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_view(
    tensor: *mut advect_tensor,
    view: *mut advect_view,
) -> advect_status {
    entry!("advect_tensor_view", |c| {
        let found = TENSORS.get(c.op(), "tensor", tensor)?;
        c.put("view", view, advect_view::of(tensor, &found.layout))
    })
}

/// Changes a view where it is.
fn change(
    c: &Caller,
    view: *mut advect_view,
    f: impl FnOnce(View<()>) -> Result<View<()>, Failure>,
) -> Result<(), Failure> {
    let before = c.get("view", view.cast_const())?;
    let after = f(before.over(c.op(), "view", ())?).map_err(|e| e.of(c.op()))?;
    c.put("view", view, advect_view::of(before.tensor, &after))
}

/// Axes in another order: `{0, 3, 1, 2}` shows an NHWC array as NCHW. `order` has as many entries as the view
/// has axes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_view_permute(
    view: *mut advect_view,
    order: *const u32,
    count: usize,
) -> advect_status {
    entry!("advect_view_permute", |c| {
        let order: Vec<usize> = c.slice("order", order, count)?.iter().map(|&a| a as usize).collect();
        change(c, view, |v| Ok(v.permute(&order)?))
    })
}

/// The elements from `start` up to, not including, `end` of one axis.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_view_slice(
    view: *mut advect_view,
    axis: u32,
    start: u64,
    end: u64,
) -> advect_status {
    entry!("advect_view_slice", |c| {
        let ends = sizes(c.op(), "end", &[start, end])?;
        change(c, view, |v| Ok(v.slice(axis as usize, ends[0]..ends[1])?))
    })
}

/// Splits one axis in two, `outer` times `size / outer`: heads out of channels.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_view_split(view: *mut advect_view, axis: u32, outer: u64) -> advect_status {
    entry!("advect_view_split", |c| {
        let outer = sizes(c.op(), "outer", &[outer])?[0];
        change(c, view, |v| Ok(v.split(axis as usize, outer)?))
    })
}

/// The same elements under another shape, where they lie without gaps.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_view_reshape(
    view: *mut advect_view,
    rank: u32,
    shape: *const u64,
) -> advect_status {
    entry!("advect_view_reshape", |c| {
        let (shape, _) = layout(c, ADVECT_F32, rank, shape)?;
        change(c, view, |v| Ok(v.reshape(shape.shape())?))
    })
}

/// The tensor of a view.
pub(crate) fn tensor_of(op: &str, arg: &str, view: &advect_view) -> Result<Arc<Tensor>, Failure> {
    TENSORS.get(op, arg, view.tensor.cast_const())
}
