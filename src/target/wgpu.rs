//! wgpu: launches into a compute pass that the host owns, or through a queue of its own.
//!
//! The host keeps its device, its encoder and its pass; advect adds pipelines and dispatches:
//!
//! ```no_run
//! # fn demo(device: wgpu::Device, queue: wgpu::Queue, x: &wgpu::Buffer, y: &wgpu::Buffer) -> advect::Result<()> {
//! use advect::{Dtype, View, ops::{Resample, ResampleArgs}, target::wgpu::Wgpu};
//! let wgpu = Wgpu::from_device(device.clone());
//! let mut encoder = device.create_command_encoder(&Default::default());
//! let mut pass = encoder.begin_compute_pass(&Default::default());
//! wgpu.within(&mut pass).run(
//!     &Resample::Up2,
//!     ResampleArgs {
//!         x: View::contiguous(x, Dtype::F32, &[1, 8, 16, 16])?,
//!         out: View::contiguous(y, Dtype::F32, &[1, 8, 32, 32])?,
//!     },
//! )?;
//! drop(pass);
//! queue.submit([encoder.finish()]);
//! # Ok(()) }
//! ```
//!
//! Params travel as immediates where the device was made with `Features::IMMEDIATES` and they fit, and
//! otherwise in a small uniform buffer. [`Within::run`] makes it, and a bind group, for each launch; a host that
//! records the same loop again and again makes them once, with [`Wgpu::prepare`], and then allocates nothing.

mod queue;

pub use queue::Queue;

use crate::error::{Error, Result};
use crate::op::{self, Caps, Language, Op, Operands, Plan, Side, Signature};
use crate::source::{self, Variant};
use crate::view::{Memory, View};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

impl Memory for &wgpu::Buffer {
    fn byte_len(&self) -> u64 {
        self.size()
    }
    fn place(&self) -> (u64, u64) {
        // Buffers have identity but no address: each is a space of its own, never the host's space 0.
        let mut hasher = DefaultHasher::new();
        Hash::hash(*self, &mut hasher);
        (hasher.finish() | 1, 0)
    }
}

/// A wgpu device with the kernels compiled so far. Cheap to clone.
#[derive(Clone)]
pub struct Wgpu(Arc<Shared>);

struct Shared {
    device: wgpu::Device,
    caps: Caps,
    /// Bound for inputs and for outputs without elements: wgpu does not bind empty ranges, nor one buffer for both.
    /// Made when first asked for, where an error has somewhere to go.
    nothing: [OnceLock<wgpu::Buffer>; 2],
    offset_alignment: u64,
    kernels: Mutex<HashMap<Variant, Arc<Kernel>>>,
    /// Whether the device is known to be lost. WebGPU lets calls on a lost device do nothing, in silence.
    lost: Arc<AtomicBool>,
}

struct Kernel {
    pipeline: wgpu::ComputePipeline,
    bindings: wgpu::BindGroupLayout,
}

impl std::fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Wgpu").field(&self.0.caps.name).finish()
    }
}

/// Every adapter that wgpu finds, in a fixed order. The environment variables `WGPU_BACKEND` and
/// `VK_ICD_FILENAMES` narrow it.
pub fn adapters() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    if std::env::var_os("WGPU_BACKEND").is_none_or(|v| v.is_empty()) {
        descriptor.backends = wgpu::Backends::PRIMARY;
    }
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

/// What advect asks of an adapter: everything it uses when it is there.
const FEATURES: wgpu::Features =
    wgpu::Features::SHADER_F16.union(wgpu::Features::SUBGROUP).union(wgpu::Features::IMMEDIATES);

/// Opens an adapter's device with the limits and features that advect can use.
///
/// # Errors
/// [`Error::Unavailable`] when the driver refuses.
pub fn open(adapter: &wgpu::Adapter) -> Result<(wgpu::Device, wgpu::Queue)> {
    open_with(adapter, adapter.limits())
}

/// As [`open`], with limits of the caller's choice.
///
/// # Errors
/// [`Error::Unavailable`] when the driver refuses.
pub fn open_with(adapter: &wgpu::Adapter, limits: wgpu::Limits) -> Result<(wgpu::Device, wgpu::Queue)> {
    let descriptor = wgpu::DeviceDescriptor {
        label: Some("advect"),
        required_features: adapter.features() & FEATURES,
        required_limits: limits,
        ..Default::default()
    };
    pollster::block_on(adapter.request_device(&descriptor)).map_err(|e| Error::Unavailable {
        target: "wgpu",
        why: format!("{} refused a device: {e}", adapter.get_info().name),
        remedy: "use another adapter (`advect devices` lists them) or the cpu".into(),
    })
}

impl Wgpu {
    /// The `index`-th of [`adapters`], with its queue.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when there is no such adapter.
    pub fn new(index: usize) -> Result<(Self, wgpu::Queue)> {
        let all = adapters();
        let adapter = all.get(index).ok_or_else(|| Error::Unavailable {
            target: "wgpu",
            why: format!("adapter {index} was asked for and {} were found", all.len()),
            remedy: "install a Vulkan driver (mesa-vulkan-drivers has a software one) or use the cpu".into(),
        })?;
        let (device, queue) = open(adapter)?;
        let wgpu = Self::from_device(device);
        let lost = wgpu.0.lost.clone();
        wgpu.device().set_device_lost_callback(move |_, _| lost.store(true, Ordering::Relaxed));
        Ok((wgpu, queue))
    }

    /// Borrows the host's device, whose callback for its loss stays the host's. Kernels use f16, subgroups and
    /// immediates as far as the device was made with those features, and stay within the limits that it was made
    /// with.
    pub fn from_device(device: wgpu::Device) -> Self {
        let (limits, features, info) = (device.limits(), device.features(), device.adapter_info());
        let has = |feature| features.contains(feature);
        let subgroups = has(wgpu::Features::SUBGROUP);
        let per_axis = limits.max_compute_workgroups_per_dimension;
        let uniforms = 1;
        let caps = Caps {
            name: format!("{} ({})", info.name, info.backend),
            language: Language::Wgsl {
                f16: has(wgpu::Features::SHADER_F16),
                subgroups,
                immediates: if has(wgpu::Features::IMMEDIATES) { limits.max_immediate_size } else { 0 },
            },
            shared_bytes: limits.max_compute_workgroup_storage_size,
            max_threads: limits.max_compute_invocations_per_workgroup,
            max_block: [
                limits.max_compute_workgroup_size_x,
                limits.max_compute_workgroup_size_y,
                limits.max_compute_workgroup_size_z,
            ],
            max_grid: [per_axis; 3],
            subgroup: if subgroups { [info.subgroup_min_size, info.subgroup_max_size] } else { [1, 1] },
            multiprocessors: 1,
            max_operands: limits
                .max_storage_buffers_per_shader_stage
                .min(limits.max_bindings_per_bind_group.saturating_sub(uniforms)),
            max_binding: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size),
        };
        let offset_alignment = u64::from(limits.min_storage_buffer_offset_alignment);
        let (kernels, lost, nothing) = (Mutex::default(), Arc::default(), Default::default());
        Self(Arc::new(Shared { device, caps, nothing, offset_alignment, kernels, lost }))
    }

    /// What the device can do.
    pub fn caps(&self) -> &Caps {
        &self.0.caps
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.0.device
    }

    /// Fails when the device is known to be lost.
    fn alive(&self, call: &'static str) -> Result<()> {
        if self.0.lost.load(Ordering::Relaxed) { Err(self.lost(call)) } else { Ok(()) }
    }

    /// Notes that the device is lost, and says so.
    fn lost(&self, call: &'static str) -> Error {
        self.0.lost.store(true, Ordering::Relaxed);
        let message = "the device is lost; open it anew".into();
        Error::Driver { target: self.0.caps.name.clone(), call, message }
    }

    /// Finds out whether the device is lost: a buffer made on a lost one has no memory to show.
    fn probe(&self, call: &'static str) -> Result<()> {
        let make = || {
            self.0.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("advect probe"),
                size: 4,
                usage: wgpu::BufferUsages::COPY_SRC,
                mapped_at_creation: true,
            })
        };
        let probe = self.caught(make).map_err(|error| self.refused(call, &error))?;
        if probe.get_mapped_range(..).is_err() {
            return Err(self.lost(call));
        }
        self.alive(call)
    }

    /// Does what makes objects on the device, and gives the error that it raised: without a scope of its own wgpu
    /// panics at what nobody else catches. Hosts need it for what they make beside the launches: encoders, passes.
    ///
    /// # Errors
    /// The first that the device raised on this thread, of any kind.
    pub fn caught<R>(&self, make: impl FnOnce() -> R) -> Result<R, wgpu::Error> {
        let (made, error) = self.scoped(make);
        let Some(error) = error else { return Ok(made) };
        // A pass over an encoder that is none may raise another when it goes.
        self.scoped(|| drop(made));
        Err(error)
    }

    fn scoped<R>(&self, make: impl FnOnce() -> R) -> (R, Option<wgpu::Error>) {
        use wgpu::ErrorFilter::{Internal, OutOfMemory, Validation};
        let scopes = [Validation, OutOfMemory, Internal].map(|filter| self.0.device.push_error_scope(filter));
        let made = make();
        // The scopes are a stack, of which every one is to be popped.
        let mut caught = None;
        for scope in scopes.into_iter().rev() {
            caught = pollster::block_on(scope.pop()).or(caught);
        }
        (made, caught)
    }

    /// As an error of the driver's.
    fn refused(&self, call: &'static str, error: &wgpu::Error) -> Error {
        Error::Driver { target: self.0.caps.name.clone(), call, message: error.to_string() }
    }

    /// Launches into the host's pass. The host ends the pass and submits.
    pub fn within<'a, 'p>(&'a self, pass: &'a mut wgpu::ComputePass<'p>) -> Within<'a, 'p> {
        Within { wgpu: self, pass }
    }

    /// Compiles the kernels that a call with such arguments needs, so that the launch itself does not.
    ///
    /// # Errors
    /// As [`Within::run`].
    pub fn warm<'b, T: Op>(&self, op: &T, args: &T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>) -> Result<()> {
        let (params, signature) = op::prepare(op, args)?;
        self.alive("warm")?;
        let plan = op::plan(op, &params, &signature, self.caps())?;
        self.kernel::<T>(&plan, signature).map(drop)
    }

    /// Validates one op, compiles its kernel and makes what its launch needs, so that recording it, as often as
    /// the host likes, allocates nothing and cannot fail.
    ///
    /// # Errors
    /// As [`Within::run`]. A lost device is always found out.
    pub fn prepare<'b, T: Op>(
        &self,
        op: &T,
        args: T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>,
    ) -> Result<Prepared> {
        let prepared = self.prepared(op, args)?;
        // On a lost device what was made is made of nothing, and recording it would do nothing, in silence.
        self.probe("prepare")?;
        Ok(prepared)
    }

    /// As [`Wgpu::prepare`], for a launch that is recorded at once: asking the device whether it is lost costs a buffer.
    fn prepared<'b, T: Op>(
        &self,
        op: &T,
        args: T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>,
    ) -> Result<Prepared> {
        let mut launches = Vec::new();
        self.launches(op, args, &mut launches)?;
        Ok(Prepared(launches))
    }

    /// The pipeline of a plan, compiled at its first use.
    fn kernel<T: Op>(&self, plan: &Plan, signature: Signature) -> Result<Arc<Kernel>> {
        let variant = Variant::new::<T>(plan, signature);
        // Compiling under the lock keeps two threads from compiling the same kernel twice.
        let mut kernels = self.0.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = kernels.get(&variant) {
            return Ok(kernel.clone());
        }
        let kernel = Arc::new(self.compile::<T>(&variant)?);
        kernels.insert(variant, kernel.clone());
        Ok(kernel)
    }

    fn compile<T: Op>(&self, variant: &Variant) -> Result<Kernel> {
        let Shared { device, caps, .. } = &*self.0;
        let Variant { entry, signature, consts, .. } = variant;
        let text = source::source::<T>(signature, consts, caps.language);
        self.probe("compile")?;
        let make = || {
            // SAFETY: kernels index only inside the extents that `op::prepare` checked, and their loops are
            // bounded by sizes; both hold for every case of the cross-check.
            let module = unsafe {
                device.create_shader_module_trusted(
                    wgpu::ShaderModuleDescriptor {
                        label: Some(entry),
                        source: wgpu::ShaderSource::Wgsl(text.into()),
                    },
                    wgpu::ShaderRuntimeChecks::unchecked(),
                )
            };
            let immediate = immediates::<T>(caps, signature);
            let slot = |binding, ty| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            };
            let uniform = immediate.is_none().then(|| slot(0, wgpu::BufferBindingType::Uniform));
            let given = signature.slots().iter().filter(|s| s.dtype.is_some()).zip(1..);
            let storage =
                given.map(|(s, b)| slot(b, wgpu::BufferBindingType::Storage { read_only: !s.output }));
            let entries: Vec<_> = uniform.into_iter().chain(storage).collect();
            let bindings = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(entry),
                entries: &entries,
            });
            let layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(entry),
                bind_group_layouts: &[Some(&bindings)],
                immediate_size: immediate.unwrap_or(0),
            });
            let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(entry),
                layout: Some(&layout),
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Kernels write workgroup memory before they read it.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            Kernel { pipeline, bindings }
        };
        self.caught(make).map_err(|error| match error {
            wgpu::Error::OutOfMemory { .. } => self.refused("compile", &error),
            _ => Error::Compile {
                op: T::NAME,
                language: "WGSL",
                target: caps.name.clone(),
                log: error.to_string(),
            },
        })
    }
}

/// Bytes of immediates that a kernel of `T` takes, if its params go that way.
fn immediates<T: Op>(caps: &Caps, signature: &Signature) -> Option<u32> {
    let bytes = source::params_bytes::<T>(signature);
    matches!(caps.language, Language::Wgsl { immediates, .. } if bytes <= immediates).then_some(bytes)
}

/// A pass that the host owns, with the kernels to launch into it.
pub struct Within<'a, 'p> {
    wgpu: &'a Wgpu,
    pass: &'a mut wgpu::ComputePass<'p>,
}

impl Within<'_, '_> {
    /// Validates one op and records it. A call whose operands are larger than one binding may be is cut
    /// along the batch.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::Limit`], [`Error::Unsupported`], [`Error::Compile`], or [`Error::Driver`] when
    /// the device is known to be lost, memory is short or a buffer is refused; nothing is then recorded.
    pub fn run<'b, T: Op>(
        &mut self,
        op: &T,
        args: T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>,
    ) -> Result<()> {
        self.wgpu.prepared(op, args)?.record(self.pass);
        Ok(())
    }
}

/// A validated call with all that its dispatches need. It keeps the buffers that it was made over alive.
pub struct Prepared(Vec<Launch>);

impl Prepared {
    /// Records the call. The pass is of the device that the call was prepared for.
    pub fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        self.0.iter().for_each(|launch| launch.record(pass));
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").field("dispatches", &self.0.len()).finish_non_exhaustive()
    }
}

/// Everything that one dispatch needs.
struct Launch {
    kernel: Arc<Kernel>,
    group: wgpu::BindGroup,
    immediates: Option<Vec<u8>>,
    grid: [u32; 3],
}

impl Launch {
    fn record(&self, pass: &mut wgpu::ComputePass<'_>) {
        pass.set_pipeline(&self.kernel.pipeline);
        pass.set_bind_group(0, &self.group, &[]);
        if let Some(bytes) = &self.immediates {
            pass.set_immediates(0, bytes);
        }
        pass.dispatch_workgroups(self.grid[0], self.grid[1], self.grid[2]);
    }
}

impl Wgpu {
    /// Validates, plans and compiles a call, cut into as many launches as the binding limit asks for.
    fn launches<'b, T: Op>(
        &self,
        op: &T,
        args: T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>,
        launches: &mut Vec<Launch>,
    ) -> Result<()> {
        let (params, signature) = op::prepare(op, &args)?;
        usable::<T>(&args)?;
        self.alive("launch")?;
        if let Some((arg, bytes)) = self.too_large::<T>(&args) {
            let Some(batch) = batch_of(op, &args).filter(|&b| b > 1) else {
                return Err(Error::Limit {
                    op: T::NAME,
                    arg,
                    what: "bytes in one binding",
                    got: bytes,
                    limit: self.0.caps.max_binding,
                    target: self.0.caps.name.clone(),
                });
            };
            self.launches(op, cut(op, &args, 0..batch / 2)?, launches)?;
            return self.launches(&op.starting_at(batch / 2), cut(op, &args, batch / 2..batch)?, launches);
        }
        let plan = op::plan(op, &params, &signature, &self.0.caps)?;
        if plan.grid.contains(&0) {
            return Ok(());
        }
        let given = signature.slots().iter().filter(|s| s.dtype.is_some()).count();
        let mut bytes = bytemuck::bytes_of(&params).to_vec();
        let mut entries = Vec::with_capacity(given + 1);
        for (i, operand) in args.each().iter().enumerate() {
            let (view, buffer) = match operand.side {
                Side::Input(None) | Side::Output(None) => continue,
                Side::Input(Some(v)) | Side::Output(Some(v)) => (v, *v.memory()),
            };
            let (start, resource) = self.binding(view, buffer, matches!(operand.side, Side::Output(_)))?;
            bytes.extend_from_slice(&start.to_le_bytes());
            let binding = signature.slots()[..=i].iter().filter(|s| s.dtype.is_some()).count() as u32;
            entries.push(wgpu::BindGroupEntry { binding, resource });
        }
        let immediate = immediates::<T>(&self.0.caps, &signature).is_some();
        let uniform = (!immediate).then(|| self.uniform(&bytes)).transpose()?;
        if let Some(uniform) = &uniform {
            entries.push(wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() });
        }
        let kernel = self.kernel::<T>(&plan, signature)?;
        // A buffer of another device of the same instance is found out here.
        let group = self.caught(|| {
            self.0.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(plan.entry),
                layout: &kernel.bindings,
                entries: &entries,
            })
        });
        let group = group.map_err(|error| self.refused("create_bind_group", &error))?;
        let immediates = immediate.then_some(bytes);
        launches.push(Launch { kernel, group, immediates, grid: plan.grid });
        Ok(())
    }

    /// The smallest aligned range that holds a view, and where in it the view starts, in elements.
    fn binding<'b>(
        &'b self,
        view: &View<&'b wgpu::Buffer>,
        buffer: &'b wgpu::Buffer,
        output: bool,
    ) -> Result<(u32, wgpu::BindingResource<'b>)> {
        let extent = view.extent().filter(|e| !e.is_empty());
        let Some(extent) = extent else { return Ok((0, self.nothing(output)?.as_entire_binding())) };
        let size = view.dtype().size() as u64;
        let alignment = self.0.offset_alignment;
        let offset = extent.start as u64 * size / alignment * alignment;
        let bytes = (extent.end as u64 * size - offset).next_multiple_of(4);
        let start = extent.start as u64 - offset / size;
        let range = wgpu::BufferBinding { buffer, offset, size: NonZeroU64::new(bytes) };
        Ok((start as u32, wgpu::BindingResource::Buffer(range)))
    }

    /// What is bound for inputs, or outputs, without elements.
    fn nothing(&self, output: bool) -> Result<&wgpu::Buffer> {
        let place = &self.0.nothing[usize::from(output)];
        if let Some(made) = place.get() {
            return Ok(made);
        }
        let made = self.caught(|| {
            self.0.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("advect nothing"),
                size: 16,
                usage: wgpu::BufferUsages::STORAGE,
                mapped_at_creation: false,
            })
        });
        let made = made.map_err(|error| self.refused("create_buffer", &error))?;
        Ok(place.get_or_init(|| made))
    }

    /// A buffer holding the params of one launch.
    fn uniform(&self, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let make = || {
            self.0.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some("advect params"),
                size: bytes.len() as u64,
                usage: wgpu::BufferUsages::UNIFORM,
                mapped_at_creation: true,
            })
        };
        let buffer = self.caught(make).map_err(|error| self.refused("create_buffer", &error))?;
        // As in `probe`: without its params the launch must not be recorded.
        let mut mapped = buffer.get_mapped_range_mut(..).map_err(|_| self.lost("create_buffer"))?;
        mapped.copy_from_slice(bytes);
        drop(mapped);
        buffer.unmap();
        Ok(buffer)
    }

    /// The first operand that does not fit one binding, with its size.
    fn too_large<'b, T: Op>(
        &self,
        args: &T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>,
    ) -> Option<(&'static str, u64)> {
        args.each().iter().find_map(|operand| {
            let (Side::Input(Some(v)) | Side::Output(Some(v))) = operand.side else { return None };
            // The start may be cut down to the alignment, the end is rounded up to a word.
            let slack = self.0.offset_alignment + 4;
            let bytes = v.extent()?.len() as u64 * v.dtype().size() as u64 + slack;
            (bytes > self.0.caps.max_binding).then_some((operand.name, bytes))
        })
    }
}

/// wgpu's own rules for buffers, as typed errors instead of a validation error at submission.
fn usable<'b, T: Op>(args: &T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>) -> Result<()> {
    let all = args.each();
    for operand in &all {
        let (Side::Input(Some(v)) | Side::Output(Some(v))) = operand.side else { continue };
        let buffer = *v.memory();
        if !buffer.usage().contains(wgpu::BufferUsages::STORAGE) && !v.is_empty() {
            let got = format!("{:?}", buffer.usage());
            return Err(Error::argument(T::NAME, operand.name, "a buffer with STORAGE usage", got));
        }
        if buffer.size() % 4 != 0 && !v.is_empty() {
            let wanted = "a buffer of a multiple of 4 bytes";
            return Err(Error::argument(T::NAME, operand.name, wanted, buffer.size()));
        }
        // Within one dispatch wgpu lets a buffer be read or written, not both, even in disjoint ranges.
        let shared = all.iter().find(|other| match (&operand.side, &other.side) {
            (Side::Output(Some(o)), Side::Input(Some(i))) => {
                o.memory() == i.memory() && !o.is_empty() && !i.is_empty()
            }
            _ => false,
        });
        if let Some(other) = shared {
            let wanted = format!("a buffer other than that of `{}`", other.name);
            return Err(Error::argument(T::NAME, operand.name, wanted, "the same wgpu buffer"));
        }
    }
    Ok(())
}

/// The number of samples along the batch axis of the outputs.
fn batch_of<T: Op, I, O>(op: &T, args: &T::Args<I, O>) -> Option<usize> {
    args.each().iter().find_map(|operand| match operand.side {
        Side::Output(v) => v?.shape().get(op.batch_axis(args, operand.name)?).copied(),
        Side::Input(_) => None,
    })
}

/// The samples in `range` of every operand that has a batch axis.
fn cut<'b, T: Op>(
    op: &T,
    args: &T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>,
    range: std::ops::Range<usize>,
) -> Result<T::Args<&'b wgpu::Buffer, &'b wgpu::Buffer>> {
    let slice = |name, view: View<&'b wgpu::Buffer>| match op.batch_axis(args, name) {
        Some(axis) => view.slice(axis, range.clone()),
        None => Ok(view),
    };
    T::map(args.duplicate(), slice, slice)
}
