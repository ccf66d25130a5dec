//! DLPack in and out: tensors shared with NumPy, PyTorch, JAX and others without a copy.
//!
//! The structs are those of DLPack 1.x, in the form with a version and in the one before it
//! (<https://dmlc.github.io/dlpack/latest/c_api.html>).

use crate::device::{DEVICES, advect_device};
use crate::memory::Caller;
use crate::status::{Failure, advect_status, entry};
use crate::tensor::{Host, Place, TENSORS, Tensor, advect_tensor, advect_view, foreign_cuda, tensor_of};
use advect::{Dtype, View};
use std::ffi::c_void;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// DLPack's struct of before version 1; `dlpack.h` defines it.
pub struct DLManagedTensor {
    _opaque: (),
}

/// DLPack's struct with a version; `dlpack.h` defines it.
pub struct DLManagedTensorVersioned {
    _opaque: (),
}

/// `DLDevice`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DlDevice {
    kind: i32,
    id: i32,
}

/// `DLDataType`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Debug)]
struct DlType {
    code: u8,
    bits: u8,
    lanes: u16,
}

/// `DLTensor`.
#[repr(C)]
#[derive(Clone, Copy)]
struct DlTensor {
    data: *mut c_void,
    device: DlDevice,
    rank: i32,
    dtype: DlType,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

/// `DLManagedTensor`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Plain {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
}

/// `DLManagedTensorVersioned`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Versioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Self)>,
    flags: u64,
    tensor: DlTensor,
}

// The layout that every other library compiled in.
#[cfg(target_pointer_width = "64")]
const _: () = {
    assert!(size_of::<DlTensor>() == 48 && size_of::<Plain>() == 64 && size_of::<Versioned>() == 80);
    assert!(std::mem::offset_of!(DlTensor, shape) == 24 && std::mem::offset_of!(DlTensor, byte_offset) == 40);
    assert!(std::mem::offset_of!(Versioned, deleter) == 16 && std::mem::offset_of!(Versioned, tensor) == 32);
};

const MAJOR: u32 = 1;
const MINOR: u32 = 0;
const READ_ONLY: u64 = 1;

const CPU: i32 = 1;
const CUDA: i32 = 2;
const CUDA_HOST: i32 = 3;
const CUDA_MANAGED: i32 = 13;

const INT: u8 = 0;
const UINT: u8 = 1;
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const BOOL: u8 = 6;

/// What DLPack gave; given back, once, when dropped.
pub(crate) enum Import {
    Plain(*mut c_void),
    Versioned(*mut c_void),
}

// SAFETY: DLPack lets a deleter be called from any thread.
unsafe impl Send for Import {}
// SAFETY: nothing is reached through a shared reference.
unsafe impl Sync for Import {}

impl Drop for Import {
    fn drop(&mut self) {
        match *self {
            Self::Plain(managed) => {
                let managed = managed.cast::<Plain>();
                // SAFETY: it was handed over by the caller, and is given back here and nowhere else.
                unsafe { (*managed).deleter.map(|delete| delete(managed)) };
            }
            Self::Versioned(managed) => {
                let managed = managed.cast::<Versioned>();
                // SAFETY: as above.
                unsafe { (*managed).deleter.map(|delete| delete(managed)) };
            }
        }
    }
}

fn wrong(c: &Caller, wanted: &str, got: impl ToString) -> Failure {
    Failure::argument(c.op(), "managed", wanted, got.to_string())
}

/// Dtype, shape and strides of what another library gives.
fn layout(c: &Caller, t: &DlTensor) -> Result<View<()>, Failure> {
    let dtype = match t.dtype {
        DlType { code: FLOAT, bits: 32, lanes: 1 } => Dtype::F32,
        DlType { code: FLOAT, bits: 16, lanes: 1 } => Dtype::F16,
        DlType { code: BFLOAT, bits: 16, lanes: 1 } => Dtype::Bf16,
        DlType { code: INT, bits: 32, lanes: 1 } => Dtype::I32,
        DlType { code: UINT | BOOL, bits: 8, lanes: 1 } => Dtype::U8,
        other => return Err(wrong(c, "f32, f16, bf16, i32, u8 or bool", format!("{other:?}"))),
    };
    let rank = usize::try_from(t.rank).ok().filter(|&r| r <= advect::MAX_RANK);
    let most = format!("0 to {} axes", advect::MAX_RANK);
    let rank = rank.ok_or_else(|| wrong(c, &most, t.rank))?;
    let size = |v: &i64| usize::try_from(*v).map_err(|_| wrong(c, "sizes and strides of at least 0", v));
    let shape: Vec<usize> =
        c.slice("managed", t.shape.cast_const(), rank)?.iter().map(size).collect::<Result<_, _>>()?;
    let row_major = View::contiguous((), dtype, &shape)?;
    if t.strides.is_null() {
        return Ok(row_major);
    }
    let strides = c.slice("managed", t.strides.cast_const(), rank)?;
    // A stride along an axis of one, or in an array without elements, is never walked and may be anything.
    let walked = |d: usize| d > 1 && !row_major.is_empty();
    let each = shape.iter().zip(strides).zip(row_major.strides());
    let strides: Vec<usize> =
        each.map(|((&d, s), &own)| if walked(d) { size(s) } else { Ok(own) }).collect::<Result<_, _>>()?;
    Ok(View::strided((), dtype, &shape, &strides, 0)?)
}

/// A tensor over what another library gives. `import` is called last: until then nothing here would give it back,
/// whatever fails or panics.
fn import(
    c: &Caller,
    device: *const advect_device,
    t: &DlTensor,
    read_only: bool,
    import: impl FnOnce() -> Import,
) -> Result<Tensor, Failure> {
    let layout = layout(c, t)?;
    let size = layout.dtype().size();
    let bytes = layout.extent().and_then(|e| e.end.checked_mul(size)).filter(|&b| b <= isize::MAX as usize);
    let bytes = bytes.ok_or_else(|| wrong(c, "fewer bytes than an address can hold", layout.describe()))?;
    let bytes = if layout.is_empty() { 0 } else { bytes };
    let address =
        t.data.addr().checked_add(t.byte_offset as usize).filter(|a| a.checked_add(bytes).is_some());
    let address = address.ok_or_else(|| wrong(c, "an address inside memory", format!("{:p}", t.data)))?;
    if bytes > 0 && (t.data.is_null() || address % size != 0) {
        let wanted = format!("data aligned to the {size} bytes of {}", layout.dtype());
        return Err(wrong(c, &wanted, format!("{address:#x}")));
    }
    let device = if device.is_null() { None } else { Some(DEVICES.get(c.op(), "device", device)?) };
    let host = device.as_ref().is_none_or(|d| matches!(d.inner, advect::Device::Cpu(_)));
    let place = match (t.device.kind, device) {
        (CPU | CUDA_HOST | CUDA_MANAGED, _) if host => {
            let start = t.data.cast::<u8>().wrapping_byte_add(t.byte_offset as usize);
            Place::Host(Host::of_dlpack(start, bytes, import()))
        }
        (CUDA | CUDA_MANAGED, Some(device)) => {
            if t.device.kind == CUDA && t.device.id != device.index as i32 {
                let wanted = format!("memory of cuda:{}", device.index);
                return Err(wrong(c, &wanted, format!("cuda:{}", t.device.id)));
            }
            foreign_cuda(c.op(), &device, address as u64, bytes as u64, || Some(import()))?
        }
        (kind, _) => {
            let got = format!("memory of DLPack device type {kind}");
            return Err(wrong(c, "memory that the device reaches (host memory if device is NULL)", got));
        }
    };
    Ok(Tensor { place, layout, read_only })
}

/// Makes a handle of an import, or leaves the import with the caller.
fn adopt(c: &Caller, tensor: Tensor, out: *mut *mut advect_tensor) -> Result<(), Failure> {
    match TENSORS.try_insert(c.op(), tensor) {
        Ok(handle) => c.put("tensor", out, handle),
        Err((failure, tensor)) => {
            // All that a tensor over foreign memory holds is the import, and on CUDA a clone of its device.
            std::mem::forget(tensor);
            Err(failure)
        }
    }
}

/// Takes over a tensor of another library, without a copy. On success its deleter is called once, when the
/// tensor is destroyed and no call uses it any more; on failure it stays the caller's. `device` may be NULL for
/// memory of the host. Work on it by others must be done, or ordered before the stream that uses it.
///
/// On a CUDA device the deleter is called after a wait for all that was launched into the stream of `device`'s own.
/// Work with the tensor in a stream of the caller (`advect_device_on_stream`), or of a device that was opened apart
/// from `device`, is not waited for: it must be done before the tensor is destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_from_dlpack(
    device: *const advect_device,
    managed: *mut DLManagedTensor,
    tensor: *mut *mut advect_tensor,
) -> advect_status {
    entry!("advect_tensor_from_dlpack", |c| {
        c.room("tensor", tensor)?;
        let given = c.get("managed", managed.cast::<Plain>().cast_const())?;
        let made = import(c, device, &given.tensor, false, || Import::Plain(managed.cast()))?;
        adopt(c, made, tensor)
    })
}

/// As `advect_tensor_from_dlpack`, for the struct with a version, of which any 1.x is taken. Memory that it
/// marks read-only is never written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_tensor_from_dlpack_versioned(
    device: *const advect_device,
    managed: *mut DLManagedTensorVersioned,
    tensor: *mut *mut advect_tensor,
) -> advect_status {
    entry!("advect_tensor_from_dlpack_versioned", |c| {
        c.room("tensor", tensor)?;
        // Of another major version only the version is sure to lie where it is.
        let version = c.get("managed", managed.cast::<[u32; 2]>().cast_const())?;
        if version[0] != MAJOR {
            let [major, minor] = version;
            return Err(wrong(c, "version 1.x", format!("version {major}.{minor}")));
        }
        let given = c.get("managed", managed.cast::<Versioned>().cast_const())?;
        let read_only = given.flags & READ_ONLY != 0;
        let made = import(c, device, &given.tensor, read_only, || Import::Versioned(managed.cast()))?;
        adopt(c, made, tensor)
    })
}

/// A view handed out: the struct, then what it points to.
#[repr(C)]
struct Export<M> {
    managed: M,
    shape: [i64; advect::MAX_RANK],
    strides: [i64; advect::MAX_RANK],
    _tensor: Arc<Tensor>,
}

/// Frees an export. Never unwinds into the library that calls it.
unsafe extern "C" fn delete<M>(managed: *mut M) {
    if !managed.is_null() {
        // SAFETY: made by `export`, whose first field this is; DLPack calls a deleter once.
        let export = unsafe { Box::from_raw(managed.cast::<Export<M>>()) };
        if let Err(payload) = catch_unwind(AssertUnwindSafe(|| drop(export))) {
            std::mem::forget(payload);
        }
    }
}

fn export<M>(
    c: &Caller,
    view: *const advect_view,
    wrap: impl FnOnce(DlTensor, bool) -> M,
    place: fn(&mut M) -> &mut DlTensor,
) -> Result<*mut M, Failure> {
    let view = c.get("view", view)?;
    let tensor = tensor_of(c.op(), "view", &view)?;
    let layout = view.over(c.op(), "view", ())?;
    let (data, cuda) = tensor.address(c.op())?;
    tensor.inside(c.op(), "view", &layout)?;
    // A view may name another dtype than its tensor was made with.
    let size = layout.dtype().size();
    if !layout.is_empty() && !data.addr().is_multiple_of(size) {
        let wanted = format!("memory aligned to the {size} bytes of {}", layout.dtype());
        return Err(Failure::argument(c.op(), "view", wanted, format!("address {data:p}")));
    }
    let (code, bits) = match layout.dtype() {
        Dtype::F32 => (FLOAT, 32),
        Dtype::F16 => (FLOAT, 16),
        Dtype::Bf16 => (BFLOAT, 16),
        Dtype::I32 => (INT, 32),
        Dtype::U8 => (UINT, 8),
    };
    let signed = |values: &[usize]| -> Result<[i64; advect::MAX_RANK], Failure> {
        let mut all = [0; advect::MAX_RANK];
        for (to, &v) in all.iter_mut().zip(values) {
            *to = i64::try_from(v).map_err(|_| Failure::argument(c.op(), "view", "strides below 2^63", v))?;
        }
        Ok(all)
    };
    // Some libraries do not read byte_offset. Without elements there is no address.
    let data = match layout.is_empty() {
        true => std::ptr::null_mut(),
        false => data.wrapping_byte_add(layout.offset() * size),
    };
    let dl = DlTensor {
        data,
        device: DlDevice { kind: if cuda.is_some() { CUDA } else { CPU }, id: cuda.unwrap_or(0) as i32 },
        rank: layout.rank() as i32,
        dtype: DlType { code, bits, lanes: 1 },
        shape: std::ptr::null_mut(),
        strides: std::ptr::null_mut(),
        byte_offset: 0,
    };
    let (shape, strides) = (signed(layout.shape())?, signed(layout.strides())?);
    let managed = wrap(dl, tensor.read_only);
    let export = Box::into_raw(Box::new(Export { managed, shape, strides, _tensor: tensor }));
    // SAFETY: the box was just made and is nobody else's.
    unsafe {
        let (shape, strides) = (&raw mut (*export).shape, &raw mut (*export).strides);
        let dl = place(&mut (*export).managed);
        (dl.shape, dl.strides) = (shape.cast(), strides.cast());
    }
    Ok(export.cast())
}

/// Gives a view to another library, without a copy. The tensor's memory stays until the deleter is called,
/// also when the tensor is destroyed before. Work launched on it must be done (`advect_device_synchronize`) or
/// ordered before what the other library does. Read-only memory and wgpu buffers cannot be given this way.
///
/// The deleter waits for no work of others. CUDA memory of advect's own is freed in the order of advect's own
/// stream, which knows of no other, and may be given to somebody else at once: all that the other library
/// launched with the memory must be done before it calls the deleter. Libraries that free in the order of their
/// streams, such as PyTorch, call it while their work may be under way: wait for that (`torch.cuda.synchronize()`)
/// before the last of their tensors goes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_view_to_dlpack(
    view: *const advect_view,
    managed: *mut *mut DLManagedTensor,
) -> advect_status {
    entry!("advect_view_to_dlpack", |c| {
        c.room("managed", managed)?;
        let given = c.get("view", view)?;
        if tensor_of(c.op(), "view", &given)?.read_only {
            let instead = "use advect_view_to_dlpack_versioned, which says so";
            return Err(Failure::unsupported(c.op(), "read-only memory", instead));
        }
        let wrap =
            |tensor, _| Plain { tensor, context: std::ptr::null_mut(), deleter: Some(delete::<Plain>) };
        let made = export(c, view, wrap, |m| &mut m.tensor)?;
        c.put("managed", managed, made.cast())
    })
}

/// As `advect_view_to_dlpack`, as the struct with a version, which says where memory is read-only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_view_to_dlpack_versioned(
    view: *const advect_view,
    managed: *mut *mut DLManagedTensorVersioned,
) -> advect_status {
    entry!("advect_view_to_dlpack_versioned", |c| {
        c.room("managed", managed)?;
        let wrap = |tensor, read_only| Versioned {
            major: MAJOR,
            minor: MINOR,
            context: std::ptr::null_mut(),
            deleter: Some(delete::<Versioned>),
            flags: if read_only { READ_ONLY } else { 0 },
            tensor,
        };
        let made = export(c, view, wrap, |m| &mut m.tensor)?;
        c.put("managed", managed, made.cast())
    })
}
