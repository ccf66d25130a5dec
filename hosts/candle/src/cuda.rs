//! The same calls over candle's CUDA memory, in candle's stream.

use crate::call::{Call, Kernel, wrapped};
use advect::Element;
use advect::target::cuda::{Cuda, DevicePtr as Place};
use candle_core::backend::BackendStorage;
use candle_core::cuda::cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, DeviceRepr};
use candle_core::cuda::{CudaDType, CudaStorage};
use candle_core::{DType, Error, Result, Shape, Storage};
use half::{bf16, f16};
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// The kernels of a device, compiled so far. They stay until the process ends, so that they outlive all work.
fn kernels(ordinal: usize) -> Result<Cuda> {
    static DEVICES: Mutex<Option<HashMap<usize, Cuda>>> = Mutex::new(None);
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    let devices = devices.get_or_insert_default();
    if let Some(cuda) = devices.get(&ordinal) {
        return Ok(cuda.clone());
    }
    let cuda = Cuda::new(ordinal).map_err(wrapped)?;
    devices.insert(ordinal, cuda.clone());
    Ok(cuda)
}

/// [`candle_core::CustomOp1::cuda_fwd`] of a call.
pub(crate) fn forward<K: Kernel>(call: &Call<K>, held: &CudaStorage) -> Result<(CudaStorage, Shape)> {
    match held.dtype() {
        DType::F32 => launch::<K, f32>(call, held),
        DType::F16 => launch::<K, f16>(call, held),
        DType::BF16 => launch::<K, bf16>(call, held),
        other => Err(Error::UnsupportedDTypeForOp(other, K::NAME).bt()),
    }
}

fn within(storage: &Storage) -> Option<&CudaStorage> {
    match storage {
        Storage::Cuda(s) => Some(s),
        Storage::Cpu(_) | Storage::Metal(_) => None,
    }
}

fn launch<K: Kernel, T: Element + DeviceRepr + CudaDType>(
    call: &Call<K>,
    held: &CudaStorage,
) -> Result<(CudaStorage, Shape)> {
    let device = held.device.clone();
    let stream = device.cuda_stream();
    let cuda = kernels(stream.context().ordinal())?;
    // SAFETY: the kernel writes every element of its output, or nothing is returned.
    let mut out = unsafe { device.alloc::<T>(call.shape().elem_count()) }?;
    call.with_storages(held, within, |storages| {
        // The guards tell candle's streams, when they are dropped after the launch, who uses the memory.
        let mut guards = Vec::new();
        let mut places = Vec::new();
        for operand in storages {
            places.push(match operand {
                None => None,
                Some((storage, layout)) => {
                    let slice = storage.as_cuda_slice::<T>()?;
                    let (address, guard) = slice.device_ptr(&stream);
                    guards.push(guard);
                    Some((place::<T>(address, slice.len()), layout))
                }
            });
        }
        let elements = out.len();
        let (address, guard) = out.device_ptr_mut(&stream);
        guards.push(guard);
        let args = call.args(T::DTYPE, places, place::<T>(address, elements))?;
        // SAFETY: the stream is of the primary context of this device, as all of candle's are, and `kernels`
        // keeps a clone of `cuda` for good.
        unsafe { cuda.on(raw(&stream)) }.run(call.op(), args).map_err(wrapped)
    })?;
    Ok((CudaStorage::wrap_cuda_slice(out, device), call.shape().clone()))
}

/// candle's stream as the raw handle that advect takes: no version of cudarc is shared.
fn raw(stream: &CudaStream) -> *mut std::ffi::c_void {
    stream.cu_stream().cast()
}

/// candle's memory as the raw address that advect takes.
fn place<T: Element>(address: u64, elements: usize) -> Place {
    // SAFETY: `elements` elements from `address` on are a slice of candle's, kept alive in stream order: it is
    // freed by its stream, after the work that was launched before.
    unsafe { Place::new(address, (elements * size_of::<T>()) as u64) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use advect::Memory;
    use advect::op::prepare;
    use advect::ops::{Attention, AttentionArgs};
    use candle_core::{Device, Tensor};

    #[test]
    fn addresses_and_sizes_are_handed_over_as_they_are() {
        let memory = place::<f16>(0x7f00_0000_1000, 10);
        assert_eq!((memory.address(), memory.byte_len()), (0x7f00_0000_1000, 20));
    }

    /// What `launch` hands to advect, up to the driver: a packed projection at a made-up address.
    #[test]
    fn a_call_over_device_pointers_is_accepted() {
        let qkv = Tensor::zeros((2, 7, 3, 4, 8), DType::F32, &Device::Cpu).unwrap();
        let part = |i| qkv.narrow(2, i, 1).unwrap().squeeze(2).unwrap().transpose(1, 2).unwrap();
        let parts = [part(0), part(1), part(2)];
        let at = |first: u64, elements| place::<f32>(first, elements);
        let operands = parts.iter().map(|t| Some((at(0x1000, qkv.elem_count()), t.layout()))).collect();
        let op = Attention::new(8);
        let call = Call::new(op, &parts.each_ref().map(Some)).unwrap();
        let args: AttentionArgs<Place, Place> =
            call.args(<f32 as Element>::DTYPE, operands, at(0x10_0000, 2 * 7 * 4 * 8)).unwrap();
        assert_eq!((args.k.offset(), args.k.strides()), (32, &[672, 8, 96, 1][..]));
        // In the order of the queries: (b, n, h, d).
        assert_eq!(args.out.strides(), [224, 8, 32, 1]);
        prepare(&op, &args).unwrap();
    }

    #[test]
    fn without_a_device_there_is_an_error() {
        // Where there are devices, one past the last.
        let missing = advect::target::cuda::count().unwrap_or(0);
        assert!(matches!(kernels(missing), Err(Error::WrappedContext { .. } | Error::WithBacktrace { .. })));
    }
}
