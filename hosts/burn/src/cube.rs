//! The same calls over the buffers of burn's wgpu backend, on its device and in the order of its queue.

use crate::{Error, Kernel, Result, dtype};
use advect::View;
use advect::target::wgpu::Wgpu;
use burn::backend::wgpu::{AutoCompiler, CubeTensor, WgpuResource, WgpuSetup, wgpu};
use burn::cubecl::server::{Handle, ServerError};
use burn::cubecl::wgpu::WgpuServer;
use burn::tensor::{Device, Shape};

/// burn's wgpu device, with advect's kernels for it.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    device: Device,
    wgpu: Wgpu,
    queue: wgpu::Queue,
}

impl Shared {
    pub(crate) fn new(device: Device, setup: &WgpuSetup) -> Self {
        Self { device, wgpu: Wgpu::from_device(setup.device.clone()), queue: setup.queue.clone() }
    }

    pub(crate) fn run<K: Kernel>(
        &self,
        op: K,
        operands: Vec<Option<CubeTensor>>,
        shape: &[usize],
    ) -> Result<CubeTensor> {
        let operands = operands.into_iter().map(|o| o.map(|t| self.own::<K>(t)).transpose());
        let operands = operands.collect::<Result<Vec<_>>>()?;
        let first = operands.iter().flatten().next();
        let first = first.ok_or_else(|| Error::Backend { op: K::NAME, why: "there is no operand".into() })?;
        let element = dtype::<K>(first.dtype)?;
        let inputs = operands.iter().map(|o| o.as_ref().map(|t| resource::<K>(t, &t.handle)).transpose());
        let inputs = inputs.collect::<Result<Vec<_>>>()?;

        let bytes = (shape.iter().product::<usize>() * element.size()).next_multiple_of(4);
        let mut handle = first.client.empty(bytes);
        let mut out = resource::<K>(first, &handle)?;
        if inputs.iter().flatten().any(|i| i.buffer == out.buffer) {
            // Packed into the buffer of an operand: one of its own instead.
            handle = first.client.memory_dedicated_allocation((), |()| first.client.empty(bytes));
            out = resource::<K>(first, &handle)?;
        }

        let views = operands.iter().zip(&inputs).map(|(tensor, memory)| {
            let (Some(tensor), Some(memory)) = (tensor, memory) else { return Ok(None) };
            let element = dtype::<K>(tensor.dtype)?;
            let at = offset::<K>(memory, element.size())?;
            let (shape, strides) = (tensor.meta.shape(), tensor.meta.strides());
            Ok(Some(View::strided(&memory.buffer, element, &shape[..], &strides[..], at)?))
        });
        let views = views.collect::<Result<Vec<_>>>()?;
        let at = offset::<K>(&out, element.size())?;
        let strides = View::contiguous((), element, shape)?;
        let out = View::strided(&out.buffer, element, shape, strides.strides(), at)?;
        let args = K::checked(views, out)?;

        // Of the two the pass is dropped first, also on the way out of an error: it is over before its encoder is.
        let (encoder, mut pass) = self.caught::<K, _>("begin_compute_pass", || {
            let mut encoder = self.wgpu.device().create_command_encoder(&Default::default());
            let pass = encoder.begin_compute_pass(&Default::default()).forget_lifetime();
            (encoder, pass)
        })?;
        self.wgpu.within(&mut pass).run(&op, args)?;
        // What burn has recorded so far comes before, what it records from now on comes after. `resource` has
        // submitted the work on the streams that made the operands; this does for the caller's.
        let failed = |e: ServerError| runtime::<K>("flush", &e);
        first.client.flush().map_err(failed)?;
        self.caught::<K, _>("submit", || {
            drop(pass);
            self.queue.submit([encoder.finish()]);
        })?;
        let (client, device, dtype) = (first.client.clone(), first.device.clone(), first.dtype);
        Ok(CubeTensor::new_contiguous(client, device, Shape::from(shape.to_vec()), handle, dtype))
    }

    /// Does what may raise an error on the device, such as a lack of memory, at which wgpu would panic.
    fn caught<K: Kernel, R>(&self, call: &'static str, work: impl FnOnce() -> R) -> Result<R> {
        self.wgpu.caught(work).map_err(|e| runtime::<K>(call, &e))
    }

    /// The tensor, if it lives on this device as rows of plain numbers.
    fn own<K: Kernel>(&self, tensor: CubeTensor) -> Result<CubeTensor> {
        let why = if Device::from(tensor.device.clone()) != self.device {
            format!("a tensor of {:?} came to {:?}", tensor.device, self.device)
        } else if tensor.meta.is_tiled() || tensor.qparams.is_some() {
            "tiled and quantized tensors are not supported".into()
        } else {
            return Ok(tensor);
        };
        Err(Error::Backend { op: K::NAME, why })
    }
}

/// The buffer that a handle stands for. burn submits its pending work on it, whichever thread recorded it.
fn resource<K: Kernel>(tensor: &CubeTensor, handle: &Handle) -> Result<WgpuResource> {
    let found = tensor.client.get_resource::<WgpuServer<AutoCompiler>>(handle.clone());
    Ok(found.map_err(|e| runtime::<K>("get_resource", &e))?.resource().clone())
}

fn runtime<K: Kernel>(call: &'static str, error: &impl ToString) -> Error {
    Error::Runtime { op: K::NAME, call, message: error.to_string() }
}

/// Where in its buffer a tensor starts, in elements.
fn offset<K: Kernel>(memory: &WgpuResource, size: usize) -> Result<usize> {
    let offset = usize::try_from(memory.offset).ok().filter(|o| o.is_multiple_of(size));
    offset.map(|o| o / size).ok_or_else(|| Error::Backend {
        op: K::NAME,
        why: format!("a tensor starts at byte {} of its buffer, within an element", memory.offset),
    })
}
