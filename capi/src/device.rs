//! Devices: found, opened, described.

use crate::handle::{Kind, Object, Table};
use crate::memory::Extensible;
use crate::status::{Failure, advect_status, entry};
use std::ffi::{c_char, c_void};

/// Something that runs ops. A handle, not an address; any number of threads may use one at once.
pub struct advect_device {
    _opaque: (),
}

/// The CPU.
pub const ADVECT_DEVICE_CPU: u32 = 1;
/// An adapter of wgpu: Vulkan, Metal or DirectX 12.
pub const ADVECT_DEVICE_WGPU: u32 = 2;
/// An NVIDIA GPU.
pub const ADVECT_DEVICE_CUDA: u32 = 3;

/// How to open a device. Zeros are defaults.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_device_options {
    /// `sizeof(advect_device_options)`.
    pub struct_size: usize,
    /// Threads of the CPU's kernels, at most 512; 0 is one a core.
    pub threads: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: integers without padding.
unsafe impl Extensible for advect_device_options {
    const FIRST: usize = size_of::<Self>();
}

/// A device in words and numbers.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_device_info {
    /// `sizeof(advect_device_info)`, set by the caller.
    pub struct_size: usize,
    /// `ADVECT_DEVICE_CPU`, `ADVECT_DEVICE_WGPU` or `ADVECT_DEVICE_CUDA`.
    pub kind: u32,
    /// Its number among those of its kind.
    pub index: u32,
    /// Threads that the kernels run on (CPU); 0 elsewhere.
    pub threads: u32,
    /// 1 for an adapter that runs shaders on the CPU.
    pub software: u32,
    /// What opens it: `cpu`, `wgpu:0`, `cuda:1`.
    pub name: [c_char; 32],
    /// Its name in words; cut where it does not fit.
    pub description: [c_char; 256],
}

// SAFETY: integers without padding: 16 + 32 + 256 bytes after the first field.
unsafe impl Extensible for advect_device_info {
    const FIRST: usize = size_of::<Self>();
}

/// Text in an array, cut at a character and ended by a zero byte.
pub(crate) fn text_in<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    let end = text.floor_char_boundary(N - 1);
    for (to, from) in array.iter_mut().zip(text[..end].bytes().filter(|&b| b != 0)) {
        *to = from as c_char;
    }
    array
}

/// An open device.
pub(crate) struct Device {
    pub(crate) inner: advect::Device,
    pub(crate) index: u32,
    /// The stream that the caller lent, as a number.
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only CUDA has streams"))]
    pub(crate) stream: Option<usize>,
}

impl Object for Device {
    /// The CPU has threads, GPUs what their drivers know.
    fn confined(&self) -> bool {
        true
    }
}

pub(crate) static DEVICES: Table<Device> = Table::new(Kind::Device);

/// The most threads of a CPU device: few enough that they start at once.
const MAX_THREADS: u32 = 512;

impl Device {
    fn open(name: &str, options: &advect_device_options) -> Result<Self, Failure> {
        const OP: &str = "advect_device_open";
        if options.threads > MAX_THREADS {
            return Err(Failure::limit(OP, "threads", format!("at most {MAX_THREADS}"), options.threads));
        }
        reserved(OP, options.reserved)?;
        let wanted = "cpu, wgpu, wgpu:N, cuda, cuda:N or auto";
        let wrong = || Failure::argument(OP, "name", wanted, format!("`{name}`"));
        let (kind, number) = name.split_once(':').map_or((name, None), |(kind, n)| (kind, Some(n)));
        let index = match number {
            None => Some(0),
            // `parse` would take a sign.
            Some(n) if n.bytes().all(|b| b.is_ascii_digit()) => n.parse().ok(),
            Some(_) => None,
        };
        let index: u32 = index.ok_or_else(wrong)?;
        let inner = match kind {
            "cpu" if number.is_none() => advect::Device::cpu(options.threads as usize)?,
            "wgpu" => wgpu(index)?,
            "cuda" => cuda(index)?,
            "auto" if number.is_none() => return auto(options),
            _ => return Err(wrong()),
        };
        Ok(Self { inner, index, stream: None })
    }

    fn kind(&self) -> u32 {
        match self.inner.face() {
            "cpu" => ADVECT_DEVICE_CPU,
            "wgpu" => ADVECT_DEVICE_WGPU,
            _ => ADVECT_DEVICE_CUDA,
        }
    }

    fn info(&self) -> advect_device_info {
        let face = self.inner.face();
        let threads = match &self.inner {
            advect::Device::Cpu(cpu) => cpu.threads() as u32,
            _ => 0,
        };
        let name = if face == "cpu" { face.into() } else { format!("{face}:{}", self.index) };
        describe(self.kind(), self.index, threads, self.inner.is_software(), &name, &self.inner.name())
    }
}

fn describe(
    kind: u32,
    index: u32,
    threads: u32,
    software: bool,
    name: &str,
    description: &str,
) -> advect_device_info {
    advect_device_info {
        struct_size: 0,
        kind,
        index,
        threads,
        software: software.into(),
        name: text_in(name),
        description: text_in(description),
    }
}

/// A field kept for later versions is 0.
pub(crate) fn reserved(op: &str, field: u32) -> Result<(), Failure> {
    if field == 0 { Ok(()) } else { Err(Failure::argument(op, "reserved", 0, field)) }
}

#[cfg(feature = "wgpu")]
fn wgpu(index: u32) -> Result<advect::Device, Failure> {
    Ok(advect::Device::wgpu(index as usize)?)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: u32) -> Result<advect::Device, Failure> {
    Err(Failure::unsupported("advect_device_open", "wgpu in this build", "build libadvect with it"))
}

#[cfg(feature = "cuda")]
fn cuda(index: u32) -> Result<advect::Device, Failure> {
    Ok(advect::Device::cuda(index as usize)?)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: u32) -> Result<advect::Device, Failure> {
    Err(Failure::unsupported("advect_device_open", "CUDA in this build", "build libadvect with it"))
}

/// The first of: an NVIDIA GPU, a hardware adapter of wgpu, the CPU.
fn auto(options: &advect_device_options) -> Result<Device, Failure> {
    if let Ok(inner) = cuda(0) {
        return Ok(Device { inner, index: 0, stream: None });
    }
    let hardware = list()?.into_iter().find(|d| d.kind == ADVECT_DEVICE_WGPU && d.software == 0);
    if let Some(found) = hardware
        && let Ok(inner) = wgpu(found.index)
    {
        return Ok(Device { inner, index: found.index, stream: None });
    }
    Device::open("cpu", options)
}

/// Every device that may be opened.
fn list() -> Result<Vec<advect_device_info>, Failure> {
    let cpu = advect::Cpu::with(1, advect::Isa::detect())?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
    #[cfg_attr(
        not(any(feature = "wgpu", feature = "cuda")),
        allow(unused_mut, reason = "there is the CPU and nothing else")
    )]
    let mut all = vec![describe(ADVECT_DEVICE_CPU, 0, cores, false, "cpu", &advect::Device::Cpu(cpu).name())];
    #[cfg(feature = "wgpu")]
    for (index, adapter) in (0..).zip(advect::target::wgpu::adapters()) {
        let info = adapter.get_info();
        let software = info.device_type == ::wgpu::DeviceType::Cpu;
        let words = format!("{} ({})", info.name, info.backend);
        all.push(describe(ADVECT_DEVICE_WGPU, index, 0, software, &format!("wgpu:{index}"), &words));
    }
    #[cfg(feature = "cuda")]
    for index in 0..advect::target::cuda::count().unwrap_or(0) as u32 {
        // One that cannot be used says why.
        let words = cuda(index).map_or_else(|why| why.to_string(), |device| device.name());
        all.push(describe(ADVECT_DEVICE_CUDA, index, 0, false, &format!("cuda:{index}"), &words));
    }
    Ok(all)
}

/// Lists the devices that are here: the CPU, every adapter of wgpu, every NVIDIA GPU. With `infos` NULL their
/// number is put into `count`. Otherwise up to `*count` of them are described, and `count` becomes the number
/// described; `infos[0].struct_size` is the size, and the distance, of all of them.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_device_list(
    infos: *mut advect_device_info,
    count: *mut usize,
) -> advect_status {
    entry!("advect_device_list", |c| {
        let room = c.get("count", count)?;
        let all = list()?;
        if infos.is_null() {
            return c.put("count", count, all.len());
        }
        let filled = all.len().min(room);
        if filled > 0 {
            let size = c.get("infos", infos.cast::<usize>())?;
            // Of every entry, before the first is written.
            if !size.is_multiple_of(align_of::<advect_device_info>()) {
                let wanted =
                    format!("a struct_size that is a multiple of {}", align_of::<advect_device_info>());
                return Err(Failure::argument(c.op(), "infos", wanted, format!("struct_size {size}")));
            }
            for (i, info) in all.into_iter().take(filled).enumerate() {
                let at = infos.wrapping_byte_add(i * size);
                if i > 0 {
                    c.put("infos", at.cast(), size)?;
                }
                c.fill("infos", at, info)?;
            }
        }
        c.put("count", count, filled)
    })
}

/// Opens a device by name: `cpu`, `wgpu:N`, `cuda:N`, or `auto` for the first of an NVIDIA GPU, a hardware
/// adapter of wgpu and the CPU. `options` may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_device_open(
    name: *const c_char,
    options: *const advect_device_options,
    device: *mut *mut advect_device,
) -> advect_status {
    entry!("advect_device_open", |c| {
        c.room("device", device)?;
        let options = c.read_or_zero("options", options)?;
        let opened = Device::open(c.text("name", name)?, &options)?;
        c.put("device", device, DEVICES.insert(c.op(), opened)?)
    })
}

/// A CUDA device over a context of the caller: a `CUcontext` of any kind, which outlives the device, its tensors and
/// the work launched with them. (`advect_device_open` uses the primary context, as the runtime API does.)
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_device_from_cuda_context(
    context: *mut c_void,
    device: *mut *mut advect_device,
) -> advect_status {
    entry!("advect_device_from_cuda_context", |c| {
        c.room("device", device)?;
        let (inner, index) = in_context(c.op(), context)?;
        c.put("device", device, DEVICES.insert(c.op(), Device { inner, index, stream: None })?)
    })
}

#[cfg(feature = "cuda")]
fn in_context(op: &str, context: *mut c_void) -> Result<(advect::Device, u32), Failure> {
    if context.is_null() {
        return Err(Failure::argument(op, "context", "a CUcontext", "NULL"));
    }
    // SAFETY: alive for as long as it must, by the contract of `advect_device_from_cuda_context`.
    let cuda = unsafe { advect::target::cuda::Cuda::from_context(context) }?;
    let ordinal = cuda.ordinal() as u32;
    Ok((advect::Device::Cuda(cuda), ordinal))
}

#[cfg(not(feature = "cuda"))]
fn in_context(op: &str, _: *mut c_void) -> Result<(advect::Device, u32), Failure> {
    Err(Failure::unsupported(op, "CUDA in this build", "build libadvect with it"))
}

/// The same CUDA device with its compiled kernels, launching into a stream of the caller: a `CUstream` or
/// `cudaStream_t` of the device's context (NULL is the default stream). Its ops do not synchronise
/// and do not allocate device memory, so that a stream that is being captured may be given, once the kernels
/// are compiled (`advect_<op>_warm`). The stream outlives the work launched into it; the device handle (this one
/// or another of the same device) outlives that work too. Tensors come from `advect_tensor_from_cuda`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_device_on_stream(
    device: *const advect_device,
    stream: *mut c_void,
    on_stream: *mut *mut advect_device,
) -> advect_status {
    entry!("advect_device_on_stream", |c| {
        c.room("on_stream", on_stream)?;
        let parent = DEVICES.get(c.op(), "device", device)?;
        if parent.kind() != ADVECT_DEVICE_CUDA {
            let wanted = "a CUDA device, since only CUDA has streams";
            return Err(Failure::argument(c.op(), "device", wanted, parent.inner.name()));
        }
        let stream = Some(stream.expose_provenance());
        let other = Device { inner: parent.inner.clone(), index: parent.index, stream };
        c.put("on_stream", on_stream, DEVICES.insert(c.op(), other)?)
    })
}

/// Describes an open device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_device_describe(
    device: *const advect_device,
    info: *mut advect_device_info,
) -> advect_status {
    entry!("advect_device_describe", |c| {
        let device = DEVICES.get(c.op(), "device", device)?;
        c.fill("info", info, device.info())
    })
}

/// Waits for everything launched on the device, or on its stream where that is not the caller's. Ops on the
/// CPU are done when they return.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_device_synchronize(device: *const advect_device) -> advect_status {
    entry!("advect_device_synchronize", |c| {
        let device = DEVICES.get(c.op(), "device", device)?;
        if device.stream.is_some() {
            let instead = "wait for it with the driver's own calls";
            return Err(Failure::unsupported(c.op(), "waiting for a stream of the caller", instead));
        }
        Ok(device.inner.synchronize()?)
    })
}

/// Destroys a device. Its tensors stay, and keep what they need of it: memory of the host goes with every CPU
/// device, CUDA memory of the caller with every device of its context. Of memory that advect allocated on a GPU only
/// copies (upload, download) and DLPack remain, since every device opened there has memory of its own. NULL is
/// allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_device_destroy(device: *mut advect_device) -> advect_status {
    entry!("advect_device_destroy", |c| {
        if !device.is_null() {
            drop(DEVICES.remove(c.op(), "device", device)?);
        }
        Ok(())
    })
}
