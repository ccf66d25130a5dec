//! Device memory: the host's, by address, and advect's own.

use super::{Cuda, Current};
use crate::error::{Error, Result};
use crate::view::Memory;
use cudarc::driver::result;

/// The address space of every CUDA device: unified addressing gives no two devices the same address. The
/// host's is 0 and those of wgpu buffers are odd.
const SPACE: u64 = 2;

/// Memory of a CUDA device that the host owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DevicePtr {
    ptr: u64,
    bytes: u64,
}

impl DevicePtr {
    /// `bytes` bytes from the address `ptr` (a `CUdeviceptr`) on.
    ///
    /// # Safety
    /// Until all work that is launched with it is done, these bytes are memory that the device may read, and
    /// write where an output lies in it, and nothing else writes to them unordered with that work.
    pub unsafe fn new(ptr: u64, bytes: u64) -> Self {
        Self { ptr, bytes }
    }

    /// The address of its first byte.
    pub fn address(self) -> u64 {
        self.ptr
    }
}

impl Memory for DevicePtr {
    fn byte_len(&self) -> u64 {
        self.bytes
    }
    fn place(&self) -> (u64, u64) {
        (SPACE, self.ptr)
    }
}

/// Memory of a CUDA device that is freed when this is dropped, after the work that was launched before.
pub struct Buffer {
    memory: DevicePtr,
    cuda: Cuda,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Buffer").field(&self.memory).finish()
    }
}

impl Buffer {
    /// Its size in bytes.
    pub fn byte_len(&self) -> usize {
        self.memory.bytes as usize
    }

    /// Whether it was allocated by this device (or a clone of it).
    pub fn is_of(&self, cuda: &Cuda) -> bool {
        std::sync::Arc::ptr_eq(&self.cuda.0, &cuda.0)
    }

    /// All of it.
    ///
    /// # Safety
    /// As [`DevicePtr::new`]. Work of [`Cuda::run`] on the device that it was allocated on may be under way
    /// when the buffer is dropped.
    pub unsafe fn ptr(&self) -> DevicePtr {
        self.memory
    }
}

impl Memory for &Buffer {
    fn byte_len(&self) -> u64 {
        self.memory.bytes
    }
    fn place(&self) -> (u64, u64) {
        self.memory.place()
    }
}

impl Memory for &mut Buffer {
    fn byte_len(&self) -> u64 {
        self.memory.bytes
    }
    fn place(&self) -> (u64, u64) {
        self.memory.place()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.bytes == 0 {
            return;
        }
        if let Ok(_current) = Current::set(&self.cuda.0.context) {
            let stream = self.cuda.0.stream.cu_stream();
            // SAFETY: allocated by `Cuda::alloc` in the same way and freed only here: in the order of the
            // stream, or after waiting for the whole device. A failure leaves the memory to the context.
            let _ = unsafe {
                if self.cuda.0.context.has_async_alloc {
                    result::free_async(self.memory.ptr, stream)
                } else {
                    result::free_sync(self.memory.ptr)
                }
            };
        }
    }
}

impl Cuda {
    /// Memory of `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`Error::Driver`] when the device has no room.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer> {
        if bytes == 0 {
            return Ok(Buffer { memory: DevicePtr { ptr: 0, bytes: 0 }, cuda: self.clone() });
        }
        let _current = self.enter()?;
        let stream = self.0.stream.cu_stream();
        // SAFETY: the stream is alive and the context current.
        let ptr = unsafe {
            if self.0.context.has_async_alloc {
                result::malloc_async(stream, bytes)
            } else {
                result::malloc_sync(bytes)
            }
        };
        let ptr = ptr.map_err(|e| match self.failed("cuMemAlloc", e) {
            Error::Driver { target, call, message } => {
                Error::Driver { target, call, message: format!("{bytes} bytes: {message}") }
            }
            other => other,
        })?;
        let buffer = Buffer { memory: DevicePtr { ptr, bytes: bytes as u64 }, cuda: self.clone() };
        // SAFETY: all of the allocation made above, in the order of its stream.
        unsafe { result::memset_d8_async(ptr, 0, bytes, stream) }
            .map_err(|e| self.failed("cuMemsetD8Async", e))?;
        Ok(buffer)
    }

    /// Overwrites a buffer from its start, after everything launched by [`Cuda::run`] so far.
    ///
    /// # Errors
    /// [`Error::Argument`] when the bytes do not fit or the buffer is another device's; [`Error::Driver`] when a
    /// kernel failed.
    pub fn write(&self, buffer: &mut Buffer, bytes: &[u8]) -> Result<()> {
        self.reaches("write", buffer, bytes.len())?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _current = self.enter()?;
        // SAFETY: the bytes fit, and stay where they are until the stream has been waited for.
        unsafe { result::memcpy_htod_async(buffer.memory.ptr, bytes, self.0.stream.cu_stream()) }
            .map_err(|e| self.failed("cuMemcpyHtoDAsync", e))?;
        self.synchronize()
    }

    /// Waits for everything launched by [`Cuda::run`] and reads a buffer from its start.
    ///
    /// # Errors
    /// [`Error::Argument`] when more is asked for than there is or the buffer is another device's; [`Error::Driver`]
    /// when a kernel failed.
    pub fn read(&self, buffer: &Buffer, bytes: &mut [u8]) -> Result<()> {
        self.reaches("read", buffer, bytes.len())?;
        if bytes.is_empty() {
            return self.synchronize();
        }
        let _current = self.enter()?;
        // SAFETY: the bytes are there, and their new place is not touched until the stream has been waited
        // for.
        unsafe { result::memcpy_dtoh_async(bytes, buffer.memory.ptr, self.0.stream.cu_stream()) }
            .map_err(|e| self.failed("cuMemcpyDtoHAsync", e))?;
        self.synchronize()
    }

    /// The buffer is this device's, in the order of its stream, and has so many bytes.
    fn reaches(&self, call: &'static str, buffer: &Buffer, bytes: usize) -> Result<()> {
        if !buffer.is_of(self) {
            let wanted = format!("memory of this device ({})", self.caps().name);
            return Err(Error::argument(call, "buffer", wanted, "memory of another device"));
        }
        if bytes <= buffer.byte_len() {
            return Ok(());
        }
        Err(Error::argument(call, "bytes", format!("at most {} bytes", buffer.byte_len()), bytes))
    }
}
