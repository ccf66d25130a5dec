//! A device with a queue of its own: launches are gathered in one pass and submitted together.

use super::Wgpu;
use crate::error::{Error, Result};
use crate::op::Op;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A [`Wgpu`] with its queue and the pass that is being recorded. Cheap to clone; clones share the pass.
#[derive(Clone)]
pub struct Queue {
    wgpu: Wgpu,
    queue: wgpu::Queue,
    open: Arc<Mutex<Open>>,
}

/// The pass being recorded. The pass ends (drops) before its encoder is finished.
#[derive(Default)]
struct Open {
    recording: Option<(wgpu::ComputePass<'static>, wgpu::CommandEncoder)>,
    launches: usize,
}

/// Launches after which a pass is submitted without being asked, so that the device starts early.
const LAUNCHES_PER_SUBMIT: usize = 64;

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Queue").field(&self.wgpu).finish()
    }
}

impl Queue {
    /// Takes a device and its queue.
    pub fn new((wgpu, queue): (Wgpu, wgpu::Queue)) -> Self {
        Self { wgpu, queue, open: Arc::default() }
    }

    /// The device.
    pub fn wgpu(&self) -> &Wgpu {
        &self.wgpu
    }

    /// Whether it is this queue or a clone of it.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.open, &other.open)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Validates one op and records it.
    ///
    /// # Errors
    /// As [`super::Within::run`].
    pub fn run<'b, T: Op>(&self, op: &T, args: T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>) -> Result<()> {
        let mut open = self.open();
        let recording = match open.recording.take() {
            Some(recording) => recording,
            None => self.begin()?,
        };
        let (pass, _) = open.recording.insert(recording);
        self.wgpu.within(pass).run(op, args)?;
        open.launches += 1;
        if open.launches >= LAUNCHES_PER_SUBMIT {
            self.submit(&mut open)?;
        }
        Ok(())
    }

    fn begin(&self) -> Result<(wgpu::ComputePass<'static>, wgpu::CommandEncoder)> {
        let begun = self.wgpu.caught(|| {
            let mut encoder =
                self.wgpu.device().create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            let pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default()).forget_lifetime();
            (pass, encoder)
        });
        begun.map_err(|error| self.failed("begin_compute_pass", error))
    }

    fn submit(&self, open: &mut Open) -> Result<()> {
        open.launches = 0;
        let Some((pass, encoder)) = open.recording.take() else { return Ok(()) };
        let submitted = self.wgpu.caught(|| {
            drop(pass);
            self.queue.submit([encoder.finish()]);
        });
        submitted.map_err(|error| self.failed("submit", error))
    }

    /// Submits what was recorded and waits for it.
    ///
    /// # Errors
    /// [`Error::Driver`] when the device is lost.
    pub fn synchronize(&self) -> Result<()> {
        self.submit(&mut self.open())?;
        self.wait()
    }

    fn wait(&self) -> Result<()> {
        let poll = || self.wgpu.device().poll(wgpu::PollType::wait_indefinitely());
        // wgpu panics where the driver says that the device is lost, and has no other way to tell.
        let polled = catch_unwind(AssertUnwindSafe(poll)).map_err(|_| self.wgpu.lost("poll"))?;
        polled.map_err(|e| self.failed("poll", e))?;
        self.wgpu.probe("poll")
    }

    fn failed(&self, call: &'static str, error: impl ToString) -> Error {
        Error::Driver { target: self.wgpu.caps().name.clone(), call, message: error.to_string() }
    }

    fn buffer(&self, label: &str, size: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let descriptor =
            wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        let made = self.wgpu.caught(|| self.wgpu.device().create_buffer(&descriptor));
        made.map_err(|error| self.failed("create_buffer", error))
    }

    /// A storage buffer of at least `bytes` bytes, all zero.
    ///
    /// # Errors
    /// [`Error::Limit`] when it is larger than the device allows; [`Error::Driver`] when memory is short.
    pub fn alloc(&self, bytes: usize) -> Result<wgpu::Buffer> {
        let device = self.wgpu.device();
        let limit = device.limits().max_buffer_size;
        let size = (bytes as u64).max(4).checked_next_multiple_of(4).unwrap_or(u64::MAX);
        if size > limit {
            return Err(Error::Limit {
                op: "alloc",
                arg: "bytes",
                what: "size of a buffer in bytes",
                got: size,
                limit,
                target: self.wgpu.caps().name.clone(),
            });
        }
        self.wgpu.probe("create_buffer")?;
        self.buffer(
            "advect storage",
            size,
            wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST,
        )
    }

    /// Overwrites a buffer from its start, after everything recorded so far. wgpu writes words of 4 bytes: a last one
    /// that is not whole must be the last of the buffer, and is filled up with zeros.
    ///
    /// # Errors
    /// [`Error::Argument`] when the bytes do not fit, or end inside a word that is not the last; [`Error::Driver`]
    /// when the device is lost, or memory is short.
    pub fn write(&self, buffer: &wgpu::Buffer, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > buffer.size() {
            let wanted = format!("at most {} bytes", buffer.size());
            return Err(Error::argument("write", "bytes", wanted, bytes.len()));
        }
        let whole = bytes.len() / 4 * 4;
        if whole < bytes.len() && whole as u64 + 4 < buffer.size() {
            let wanted =
                format!("a multiple of 4 bytes, or more than {} of {}", buffer.size() - 4, buffer.size());
            return Err(Error::argument("write", "bytes", wanted, bytes.len()));
        }
        self.wgpu.alive("write_buffer")?;
        // A queue write happens before the next submission: launches recorded earlier go first.
        self.submit(&mut self.open())?;
        let written = self.wgpu.caught(|| {
            self.queue.write_buffer(buffer, 0, &bytes[..whole]);
            if whole < bytes.len() {
                let mut word = [0; 4];
                word[..bytes.len() - whole].copy_from_slice(&bytes[whole..]);
                self.queue.write_buffer(buffer, whole as u64, &word);
            }
        });
        written.map_err(|error| self.failed("write_buffer", error))
    }

    /// Waits for everything recorded and reads a buffer from its start.
    ///
    /// # Errors
    /// [`Error::Argument`] when more is asked for than there is; [`Error::Driver`] when the device is lost, or memory
    /// is short.
    pub fn read(&self, buffer: &wgpu::Buffer, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() as u64 > buffer.size() {
            let wanted = format!("at most {} bytes", buffer.size());
            return Err(Error::argument("read", "bytes", wanted, bytes.len()));
        }
        if bytes.is_empty() {
            return self.synchronize();
        }
        // On a lost device the calls below would panic.
        self.wgpu.probe("create_buffer")?;
        let size = (bytes.len() as u64).next_multiple_of(4);
        let device = self.wgpu.device();
        let usage = wgpu::BufferUsages::COPY_DST | wgpu::BufferUsages::MAP_READ;
        let staging = self.buffer("advect read", size, usage)?;
        self.submit(&mut self.open())?;
        let copied = self.wgpu.caught(|| {
            let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
            encoder.copy_buffer_to_buffer(buffer, 0, &staging, 0, size);
            self.queue.submit([encoder.finish()]);
        });
        copied.map_err(|error| self.failed("copy", error))?;
        let (tell, told) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |result| {
            // The receiver is gone only when the wait below failed, which is reported there.
            let _ = tell.send(result);
        });
        self.wait()?;
        told.recv().map_err(|e| self.failed("map", e))?.map_err(|e| self.failed("map", e))?;
        let mapped = staging.get_mapped_range(..).map_err(|e| self.failed("map", e))?;
        bytes.copy_from_slice(&mapped[..bytes.len()]);
        Ok(())
    }
}
