//! CUDA: launches into a stream that the host owns, or into one of its own.
//!
//! The host keeps its context, its memory and its stream; advect adds kernels:
//!
//! ```no_run
//! # fn demo(stream: *mut std::ffi::c_void, x: u64, y: u64) -> advect::Result<()> {
//! use advect::{Dtype, View, ops::{Resample, ResampleArgs}, target::cuda::{Cuda, DevicePtr}};
//! let cuda = Cuda::new(0)?;
//! // SAFETY: x and y are allocations of these sizes, the stream belongs to device 0, and all of them
//! // outlive the work.
//! let (x, y, mut stream) =
//!     unsafe { (DevicePtr::new(x, 8192), DevicePtr::new(y, 32768), cuda.on(stream)) };
//! stream.run(
//!     &Resample::Up2,
//!     ResampleArgs {
//!         x: View::contiguous(x, Dtype::F32, &[1, 8, 16, 16])?,
//!         out: View::contiguous(y, Dtype::F32, &[1, 8, 32, 32])?,
//!     },
//! )?;
//! # Ok(()) }
//! ```
//!
//! Kernels are compiled at their first use, for exactly the device they run on, and kept in memory and on
//! disk ([`cache`]). A launch allocates nothing on the device and waits for nothing, so it can be captured
//! in a CUDA graph, once [`Cuda::warm`] or an earlier launch has compiled its kernel.

pub mod cache;
pub mod launch;
mod memory;
pub mod nvrtc;

pub use memory::{Buffer, DevicePtr};

use crate::error::{Error, Result};
use crate::op::{Caps, Language, Op};
use crate::source::{self, Variant};
use cache::{Cache, Key};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use launch::Launch;
use nvrtc::{Artifact, Nvrtc, Output};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// NVRTC behind a cache on disk. Needs no GPU.
#[derive(Debug, Clone)]
pub struct Compiler {
    nvrtc: &'static Nvrtc,
    cache: Cache,
}

impl Compiler {
    /// The process's NVRTC and the cache that the environment says.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no NVRTC.
    pub fn new() -> Result<Self> {
        Ok(Self { nvrtc: Nvrtc::get()?, cache: Cache::from_env() })
    }

    /// With another cache.
    #[must_use]
    pub fn with_cache(self, cache: Cache) -> Self {
        Self { cache, ..self }
    }

    /// The compiler.
    pub fn nvrtc(&self) -> &'static Nvrtc {
        self.nvrtc
    }

    /// Finds or compiles one complete source for an architecture as NVRTC names it (`90a`).
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log.
    pub fn compile(&self, op: &'static str, source: &str, arch: &str, output: Output) -> Result<Artifact> {
        let key = self.key(source, nvrtc::options(arch, output, self.nvrtc.version()));
        self.cache.get_or(&key, || self.nvrtc.compile(op, source, arch, output))
    }

    /// Finds or compiles machine code, and leaves the PTX where [`Compiler::compile`] finds it.
    ///
    /// # Errors
    /// As [`Compiler::compile`].
    pub fn compile_both(&self, op: &'static str, source: &str, arch: &str) -> Result<Artifact> {
        let version = self.nvrtc.version();
        let key = self.key(source, nvrtc::options_of_both(arch, version));
        self.cache.get_or(&key, || {
            let [cubin, ptx] = self.nvrtc.compile_both(op, source, arch)?;
            let key = self.key(source, nvrtc::options(arch, Output::Ptx, version));
            self.cache.get_or(&key, || Ok::<_, Error>(ptx))?;
            Ok(cubin)
        })
    }

    fn key(&self, source: &str, options: Vec<String>) -> Key {
        let (major, minor) = self.nvrtc.version();
        let version = format!("NVRTC {major}.{minor}");
        Key::new([source.as_bytes(), options.join("\0").as_bytes(), version.as_bytes()])
    }
}

/// A CUDA device with the kernels compiled so far. Cheap to clone.
#[derive(Clone)]
pub struct Cuda(Arc<Shared>);

struct Shared {
    /// Before the context, which must outlive the kernels' modules.
    kernels: Mutex<HashMap<Variant, Arc<Kernel>>>,
    stream: Stream,
    context: Context,
    ordinal: usize,
    caps: Caps,
    /// Machine code of the device, or PTX of an older architecture.
    output: Output,
    compiler: Compiler,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Ok(_current) = Current::set(&self.context) {
            // The kernels go after this, and their modules with them: nothing may be running them. That waiting fails
            // has no one to be told to.
            // SAFETY: the stream is alive.
            let _ = unsafe { result::stream::synchronize(self.stream.cu_stream()) };
        }
    }
}

impl std::fmt::Debug for Cuda {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Cuda").field(&self.0.caps.name).finish()
    }
}

fn unavailable(why: impl ToString, remedy: &str) -> Error {
    Error::Unavailable { target: "cuda", why: why.to_string(), remedy: remedy.into() }
}

const USE_ANOTHER: &str = "use wgpu or the cpu";

/// How many CUDA devices there are.
///
/// # Errors
/// [`Error::Unavailable`] when there is no driver, or when it does not start.
pub fn count() -> Result<usize> {
    if !driver_is_present() {
        let why = "the NVIDIA driver's library (libcuda) was not found";
        return Err(unavailable(why, "install the NVIDIA driver, or use wgpu or the cpu"));
    }
    let refused = |e: DriverError| unavailable(format!("the NVIDIA driver says: {}", says(&e)), USE_ANOTHER);
    result::init().map_err(refused)?;
    Ok(result::device::get_count().map_err(refused)?.max(0) as usize)
}

/// Whether the driver's library can be loaded: cudarc panics where it cannot. Its own check is there only
/// while it loads the library itself, and a host may have it linked.
fn driver_is_present() -> bool {
    let names: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so", "libcuda.so.1"] };
    // SAFETY: loading the driver's library runs only its own initialisers.
    names.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok())
}

/// The driver's words for an error.
fn says(error: &DriverError) -> String {
    let words = error.error_string().map(|s| s.to_string_lossy().into_owned());
    format!("{} ({:?})", words.unwrap_or_else(|_| "unknown error".into()), error.0)
}

impl Cuda {
    /// The device of this number: its primary context, which the runtime API and most engines share, and a
    /// stream of its own for [`Cuda::run`].
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no driver, no such device or no NVRTC, or when this NVRTC does
    /// not know the device's architecture.
    pub fn new(ordinal: usize) -> Result<Self> {
        let devices = count()?;
        if ordinal >= devices {
            let why = format!("device {ordinal} was asked for and {devices} were found");
            return Err(unavailable(why, USE_ANOTHER));
        }
        let compiler = Compiler::new()?;
        let refused = |e: DriverError| {
            unavailable(format!("device {ordinal} does not start: {}", says(&e)), USE_ANOTHER)
        };
        let context = Context::primary(ordinal).map_err(refused)?;
        let caps = device_caps(ordinal).map_err(refused)?;
        Self::start(context, ordinal, compiler, caps, Output::Cubin)
    }

    /// As [`Cuda::new`], but with the kernels that an architecture `arch` (75, 80, ..) would get, as PTX that the
    /// driver translates for the device: to compare architectures on one device, and a device with the simulator,
    /// which executes the same PTX. For the fastest kernels use [`Cuda::new`].
    ///
    /// # Errors
    /// As [`Cuda::new`]; [`Error::Driver`] at the first launch of each kernel when the driver cannot translate the
    /// PTX: the device is older than `arch` or, from 90 on, another one, or NVRTC is newer than the driver.
    pub fn with_ptx(ordinal: usize, arch: u32) -> Result<Self> {
        let Shared { context, compiler, caps, .. } = &*Self::new(ordinal)?.0;
        let name = format!("{} as PTX of sm_{arch}", caps.name);
        let caps = Caps { name, ..crate::target::presets::cuda_for(arch) };
        Self::start(context.clone(), ordinal, compiler.clone(), caps, Output::Ptx)
    }

    /// A context of the host's, a `CUcontext` of any kind, and a stream in it for [`Cuda::run`].
    ///
    /// # Errors
    /// As [`Cuda::new`]; [`Error::Argument`] when the context is null.
    ///
    /// # Safety
    /// The context is alive, and outlives every clone of what is returned and the work launched with them.
    pub unsafe fn from_context(context: *mut c_void) -> Result<Self> {
        if context.is_null() {
            return Err(Error::argument("cuda", "context", "a CUcontext", "null"));
        }
        let devices = count()?;
        let compiler = Compiler::new()?;
        let refused =
            |e: DriverError| unavailable(format!("the context cannot be used: {}", says(&e)), USE_ANOTHER);
        let mut context = Context { raw: context.cast(), has_async_alloc: false, _primary: None };
        let current = Current::set(&context).map_err(refused)?;
        let mut device = 0;
        // SAFETY: the context is alive and current, and the device is written to a place of its type.
        unsafe { sys::cuCtxGetDevice(&raw mut device).result() }.map_err(refused)?;
        // SAFETY: the driver has just named this device.
        let pools = unsafe { attribute(device, MEMORY_POOLS) }.map_err(refused)?;
        context.has_async_alloc = pools > 0;
        drop(current);
        let same = |i: &usize| result::device::get(*i as i32).is_ok_and(|d| d == device);
        let unseen = || unavailable("the context is of a device that this process does not see", USE_ANOTHER);
        let ordinal = (0..devices).find(same).ok_or_else(unseen)?;
        let caps = device_caps(ordinal).map_err(refused)?;
        Self::start(context, ordinal, compiler, caps, Output::Cubin)
    }

    fn start(
        context: Context,
        ordinal: usize,
        compiler: Compiler,
        caps: Caps,
        output: Output,
    ) -> Result<Self> {
        let refused = |e: DriverError| {
            unavailable(format!("device {ordinal} does not start: {}", says(&e)), USE_ANOTHER)
        };
        let stream = Stream::new(&context).map_err(refused)?;
        if let Language::Cuda { arch } = caps.language
            && !compiler.nvrtc.architectures().contains(&arch)
        {
            let (major, minor) = compiler.nvrtc.version();
            let why = format!("NVRTC {major}.{minor} does not compile for sm_{arch}, {}", caps.name);
            return Err(unavailable(why, "use another version of NVRTC (ADVECT_NVRTC), wgpu or the cpu"));
        }
        let kernels = Mutex::default();
        Ok(Self(Arc::new(Shared { kernels, stream, context, ordinal, caps, output, compiler })))
    }

    /// The number of the device.
    pub fn ordinal(&self) -> usize {
        self.0.ordinal
    }

    /// The context that it works in, a `CUcontext`: the device's primary one after [`Cuda::new`].
    pub fn context(&self) -> *mut c_void {
        self.0.context.raw.cast()
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    /// Launches into the host's stream, a `CUstream` or `cudaStream_t` (null is the default stream).
    ///
    /// # Safety
    /// The stream belongs to the context of this device (the primary one after [`Cuda::new`]) and outlives what is
    /// returned. A clone of `self` outlives the launched work, and every CUDA graph that captured it.
    pub unsafe fn on(&self, stream: *mut c_void) -> On<'_> {
        On { cuda: self, stream: stream.cast() }
    }

    fn own(&self) -> On<'_> {
        On { cuda: self, stream: self.0.stream.cu_stream() }
    }

    /// Validates one op and launches it into the stream of its own. It is done by the next
    /// [`Cuda::synchronize`] or [`Cuda::read`].
    ///
    /// # Errors
    /// As [`On::run`].
    pub fn run<T: Op>(&self, op: &T, args: T::Args<DevicePtr, DevicePtr>) -> Result<()> {
        self.own().run(op, args)
    }

    /// Compiles and loads the kernel that a call with such arguments needs, so that the launch itself does
    /// not.
    ///
    /// # Errors
    /// As [`On::run`].
    pub fn warm<T: Op>(&self, op: &T, args: &T::Args<DevicePtr, DevicePtr>) -> Result<()> {
        let (variant, launch) = launch::prepare(op, args, self.caps())?;
        let _current = self.enter()?;
        self.kernel::<T>(variant)?.allow_shared(&launch).map_err(|e| self.failed("cuFuncSetAttribute", e))
    }

    /// Waits for everything launched by [`Cuda::run`].
    ///
    /// # Errors
    /// [`Error::Driver`] when a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        let _current = self.enter()?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.0.stream.cu_stream()) }
            .map_err(|e| self.failed("cuStreamSynchronize", e))
    }

    fn failed(&self, call: &'static str, error: DriverError) -> Error {
        Error::Driver { target: self.0.caps.name.clone(), call, message: says(&error) }
    }

    /// Makes the context the thread's own until the guard goes: the host's stays as it was.
    fn enter(&self) -> Result<Current> {
        Current::set(&self.0.context).map_err(|e| self.failed("cuCtxSetCurrent", e))
    }

    /// The kernel of a variant, compiled and loaded at its first use. The context is current.
    fn kernel<T: Op>(&self, variant: Variant) -> Result<Arc<Kernel>> {
        // Compiling under the lock keeps two threads from compiling the same kernel twice.
        let mut kernels = self.0.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&variant) {
            return Ok(kernel.clone());
        }
        let Shared { caps, compiler, context, output, .. } = &*self.0;
        let Language::Cuda { arch } = caps.language else { unreachable!("made by `device_caps`") };
        let text = source::source::<T>(&variant.signature, &variant.consts, caps.language);
        let mut image = compiler.compile(T::NAME, &text, &nvrtc::architecture(arch), *output)?.bytes;
        // A CUBIN says its own length; PTX is a string, which ends with a NUL.
        image.push(0);
        let kernel =
            Kernel::load(context, &image, variant.entry).map_err(|e| self.failed("cuModuleLoadData", e))?;
        let kernel = Arc::new(kernel);
        kernels.insert(variant, kernel.clone());
        Ok(kernel)
    }
}

/// A stream to launch into.
pub struct On<'a> {
    cuda: &'a Cuda,
    stream: sys::CUstream,
}

impl On<'_> {
    /// Validates one op and launches it.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Limit`], [`Error::Unsupported`], [`Error::Compile`] or
    /// [`Error::Driver`]; nothing is then launched.
    pub fn run<T: Op>(&mut self, op: &T, args: T::Args<DevicePtr, DevicePtr>) -> Result<()> {
        let (variant, launch) = launch::prepare(op, &args, self.cuda.caps())?;
        if launch.grid.contains(&0) {
            return Ok(());
        }
        let _current = self.cuda.enter()?;
        let kernel = self.cuda.kernel::<T>(variant)?;
        kernel.allow_shared(&launch).map_err(|e| self.cuda.failed("cuFuncSetAttribute", e))?;
        kernel.launch(&launch, self.stream).map_err(|e| self.cuda.failed("cuLaunchKernel", e))
    }
}

/// The context that kernels are loaded into: the primary one of a device, or the host's.
#[derive(Clone)]
struct Context {
    raw: sys::CUcontext,
    has_async_alloc: bool,
    /// Keeps the primary context.
    _primary: Option<Arc<Primary>>,
}

impl Context {
    /// The primary context of a device. The calling thread stays in the one that it is in.
    fn primary(ordinal: usize) -> Result<Self, DriverError> {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the driver has just named this device.
        let (raw, pools) = unsafe { (result::primary_ctx::retain(device)?, attribute(device, MEMORY_POOLS)) };
        let primary = Arc::new(Primary(device));
        Ok(Self { raw, has_async_alloc: pools? > 0, _primary: Some(primary) })
    }
}

/// One use of the primary context of a device.
struct Primary(sys::CUdevice);

impl Drop for Primary {
    fn drop(&mut self) {
        // SAFETY: it was retained when this was made. That it cannot be released has no one to be told to.
        let _ = unsafe { result::primary_ctx::release(self.0) };
    }
}

// SAFETY: the driver lets a context be made current on any thread.
unsafe impl Send for Context {}
// SAFETY: as above; the driver locks what it changes.
unsafe impl Sync for Context {}

/// A stream of advect's own, which waits for no other.
struct Stream {
    raw: sys::CUstream,
    context: Context,
}

// SAFETY: the driver lets a stream be used from any thread on which its context is current.
unsafe impl Send for Stream {}
// SAFETY: as above; the driver locks what it changes.
unsafe impl Sync for Stream {}

impl Stream {
    fn new(context: &Context) -> Result<Self, DriverError> {
        let _current = Current::set(context)?;
        let raw = result::stream::create(result::stream::StreamKind::NonBlocking)?;
        Ok(Self { raw, context: context.clone() })
    }

    fn cu_stream(&self) -> sys::CUstream {
        self.raw
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_current) = Current::set(&self.context) {
            // SAFETY: made by `new` and destroyed only here; the driver lets work in it come to its end. That it
            // fails has no one to be told to.
            let _ = unsafe { result::stream::destroy(self.raw) };
        }
    }
}

/// The calling thread's context, put back when this is dropped.
struct Current(Option<sys::CUcontext>);

impl Current {
    fn set(context: &Context) -> Result<Self, DriverError> {
        let ours = context.raw;
        let before = result::ctx::get_current()?;
        if before == Some(ours) {
            return Ok(Self(None));
        }
        // SAFETY: the context is retained as long as `context` lives.
        unsafe { result::ctx::set_current(ours) }?;
        Ok(Self(Some(before.unwrap_or(std::ptr::null_mut()))))
    }
}

impl Drop for Current {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // SAFETY: it was current on this thread when the guard was made. That it cannot be restored has
            // no one to be told to.
            let _ = unsafe { result::ctx::set_current(before) };
        }
    }
}

/// Shared memory of a block that needs no permission, static and dynamic together.
const FREE_SHARED_BYTES: u32 = 48 << 10;

/// A loaded kernel.
struct Kernel {
    module: sys::CUmodule,
    function: sys::CUfunction,
    static_shared_bytes: u32,
    /// The dynamic shared memory it may be launched with.
    allowed_shared_bytes: AtomicU32,
    context: Context,
}

// SAFETY: the driver's handles may be used from any thread on which their context is current.
unsafe impl Send for Kernel {}
// SAFETY: as above; the driver locks what it changes.
unsafe impl Sync for Kernel {}

impl Kernel {
    /// The context is current.
    fn load(context: &Context, image: &[u8], entry: &str) -> Result<Self, DriverError> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES as STATIC_SHARED;
        let name = CString::new(entry).map_err(|_| DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND))?;
        // SAFETY: the image is whole and from NVRTC (its checksum held, if it came from disk): a CUBIN, which
        // says its own length, or PTX up to a NUL.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) }?;
        let mut kernel = Self {
            module,
            function: std::ptr::null_mut(),
            static_shared_bytes: 0,
            allowed_shared_bytes: AtomicU32::new(0),
            context: context.clone(),
        };
        // SAFETY: the module was loaded above and lives as long as the kernel.
        unsafe {
            kernel.function = result::module::get_function(module, name)?;
            let bytes = result::function::get_function_attribute(kernel.function, STATIC_SHARED)?;
            kernel.static_shared_bytes = bytes as u32;
        }
        kernel.allowed_shared_bytes =
            AtomicU32::new(FREE_SHARED_BYTES.saturating_sub(kernel.static_shared_bytes));
        Ok(kernel)
    }

    /// Asks for the dynamic shared memory that a launch needs, if it was not asked for before.
    fn allow_shared(&self, launch: &Launch) -> Result<(), DriverError> {
        use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_DYNAMIC_SHARED;
        let bytes = launch.shared_bytes;
        if bytes > self.allowed_shared_bytes.load(Ordering::Relaxed) {
            // SAFETY: the function's module is loaded.
            unsafe {
                result::function::set_function_attribute(self.function, MAX_DYNAMIC_SHARED, bytes as i32)
            }?;
            // Two threads may ask at once; asking again with more is all that a lost update costs.
            self.allowed_shared_bytes.store(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The context is current and the stream belongs to it.
    fn launch(&self, launch: &Launch, stream: sys::CUstream) -> Result<(), DriverError> {
        let bytes = launch.arguments.bytes();
        let mut arguments: arrayvec::ArrayVec<*mut c_void, { crate::op::MAX_OPERANDS + 1 }> = launch
            .arguments
            .offsets()
            .map(|at| std::ptr::from_ref(&bytes[at]).cast_mut().cast::<c_void>())
            .collect();
        let [grid, block] = [launch.grid, launch.block].map(|d| (d[0], d[1], d[2]));
        // SAFETY: the arguments are those that the kernel declares: both come from the same operands and
        // params. The driver copies them before it returns. The kernel reaches only into the extents that
        // `op::prepare` checked against memory that is alive (`DevicePtr::new`) until the work is done.
        unsafe {
            result::launch_kernel(self.function, grid, block, launch.shared_bytes, stream, &mut arguments)
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        if let Ok(_current) = Current::set(&self.context) {
            // SAFETY: loaded by `load` and unloaded only here. A failure leaves the module to the context.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

const MEMORY_POOLS: sys::CUdevice_attribute =
    sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;

/// # Safety
/// The driver knows the device.
unsafe fn attribute(device: sys::CUdevice, attribute: sys::CUdevice_attribute) -> Result<u32, DriverError> {
    // SAFETY: as this function asks.
    unsafe { result::device::get_attribute(device, attribute) }.map(|value| value.max(0) as u32)
}

/// What the driver says that a device can do.
fn device_caps(ordinal: usize) -> Result<Caps, DriverError> {
    use sys::CUdevice_attribute::*;
    let device = result::device::get(ordinal as i32)?;
    // SAFETY: the driver has just given this device.
    let get = |name| unsafe { attribute(device, name) };
    let major = get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let arch = major * 10 + minor;
    let warp = get(CU_DEVICE_ATTRIBUTE_WARP_SIZE)?;
    Ok(Caps {
        name: format!("{} (sm_{arch})", result::device::get_name(device)?),
        language: Language::Cuda { arch },
        shared_bytes: get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        max_threads: get(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        max_block: [
            get(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X)?,
            get(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y)?,
            get(CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z)?,
        ],
        max_grid: [
            get(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X)?,
            get(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y)?,
            get(CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z)?,
        ],
        subgroup: [warp, warp],
        multiprocessors: get(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        max_operands: u32::MAX,
        max_binding: u64::MAX,
    })
}
