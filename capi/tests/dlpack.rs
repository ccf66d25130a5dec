//! DLPack both ways: values, layouts, flags, lifetimes, refusals.

mod common;

use advect_capi::*;
use common::*;
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The structs as `dlpack.h` has them, written anew: what the library assumes is checked against these.
#[repr(C)]
#[derive(Clone, Copy)]
struct DlTensor {
    data: *mut c_void,
    device_type: i32,
    device_id: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *mut i64,
    strides: *mut i64,
    byte_offset: u64,
}

#[repr(C)]
struct Plain {
    tensor: DlTensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Plain)>,
}

#[repr(C)]
struct Versioned {
    version: [u32; 2],
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Versioned)>,
    flags: u64,
    tensor: DlTensor,
}

unsafe extern "C" fn count_plain(managed: *mut Plain) {
    // SAFETY: the context is a counter of the test.
    unsafe { (*(*managed).context.cast::<AtomicUsize>()).fetch_add(1, Ordering::SeqCst) };
}

unsafe extern "C" fn count_versioned(managed: *mut Versioned) {
    // SAFETY: as above.
    unsafe { (*(*managed).context.cast::<AtomicUsize>()).fetch_add(1, Ordering::SeqCst) };
}

/// A 2 x 3 array of f32 over `data`.
fn array(data: &mut [f32], shape: &mut [i64], strides: *mut i64) -> DlTensor {
    DlTensor {
        data: data.as_mut_ptr().cast(),
        device_type: 1,
        device_id: 0,
        ndim: shape.len() as i32,
        code: 2,
        bits: 32,
        lanes: 1,
        shape: shape.as_mut_ptr(),
        strides,
        byte_offset: 0,
    }
}

#[test]
fn in_and_the_deleter_is_called_once() {
    let mut data: Vec<f32> = (0..8).map(|i| i as f32).collect();
    let (mut shape, mut strides) = ([2, 3], [1, 2]);
    let deleted = AtomicUsize::new(0);
    let context = (&raw const deleted).cast_mut().cast();
    let device = open("cpu");
    for versioned in [false, true] {
        deleted.store(0, Ordering::SeqCst);
        let mut tensor = array(&mut data, &mut shape, strides.as_mut_ptr());
        tensor.byte_offset = 8;
        let mut plain = Plain { tensor, context, deleter: Some(count_plain) };
        let mut newer =
            Versioned { version: [1, 9], context, deleter: Some(count_versioned), flags: 1, tensor };
        let mut t = null_mut();
        // SAFETY: the structs are whole and outlive their tensors.
        unsafe {
            ok(match versioned {
                false => advect_tensor_from_dlpack(null(), (&raw mut plain).cast(), &raw mut t),
                true => advect_tensor_from_dlpack_versioned(device, (&raw mut newer).cast(), &raw mut t),
            });
            let x = view(t);
            assert_eq!((x.rank, &x.shape[..2], &x.strides[..2], x.offset), (2, &[2, 3][..], &[1, 2][..], 0));
            let out = view(self::tensor(device, ADVECT_F32, &[2, 3]));
            let mut args = advect_step_args { out: &raw const out, ..sized() };
            (args.x[0], args.coefficients[0]) = (&raw const x, 1.0);
            ok(advect_step(device, &raw const args));
            assert_eq!(values(out.tensor, 6), [2.0, 4.0, 6.0, 3.0, 5.0, 7.0]);
            args.x[0] = &raw const out;
            args.out = &raw const x;
            match versioned {
                false => ok(advect_step(device, &raw const args)),
                true => refused(advect_step(device, &raw const args), ADVECT_ERROR_ARGUMENT, "read-only"),
            }
            // Its elements have gaps, so that whole copies are refused.
            refused(advect_tensor_upload_f32(t, data.as_ptr(), 6), ADVECT_ERROR_ARGUMENT, "without gaps");
            assert_eq!(deleted.load(Ordering::SeqCst), 0);
            ok(advect_tensor_destroy(t));
            assert_eq!(deleted.load(Ordering::SeqCst), 1);
            assert_eq!(advect_tensor_destroy(t), ADVECT_ERROR_HANDLE);
            assert_eq!(deleted.load(Ordering::SeqCst), 1);
            ok(advect_tensor_destroy(out.tensor));
        }
    }
}

#[test]
fn what_is_refused_stays_the_callers() {
    let mut data = vec![0.0f32; 8];
    let (mut shape, mut negative, mut back) = ([2, 3], [-2, 3], [-3, 1]);
    let deleted = AtomicUsize::new(0);
    let context = (&raw const deleted).cast_mut().cast();
    let good = array(&mut data, &mut shape, null_mut());
    let cases = [
        (DlTensor { bits: 64, ..good }, "f32, f16, bf16, i32"),
        (DlTensor { code: 0, bits: 16, ..good }, "f32, f16, bf16, i32"),
        (DlTensor { code: 6, ..good }, "f32, f16, bf16, i32"),
        (DlTensor { lanes: 4, ..good }, "f32, f16, bf16, i32"),
        (DlTensor { ndim: 7, ..good }, "0 to 6 axes"),
        (DlTensor { ndim: -1, ..good }, "0 to 6 axes"),
        (DlTensor { shape: negative.as_mut_ptr(), ..good }, "at least 0"),
        (DlTensor { shape: null_mut(), ..good }, "a pointer"),
        (DlTensor { strides: back.as_mut_ptr(), ..good }, "at least 0"),
        (DlTensor { data: null_mut(), ..good }, "aligned"),
        (DlTensor { byte_offset: 2, ..good }, "aligned"),
        (DlTensor { byte_offset: u64::MAX, ..good }, "address"),
        (DlTensor { device_type: 2, ..good }, "memory that the device reaches"),
        (DlTensor { device_type: 7, ..good }, "memory that the device reaches"),
    ];
    let mut t = null_mut();
    for (tensor, says) in cases {
        let mut plain = Plain { tensor, context, deleter: Some(count_plain) };
        let mut newer =
            Versioned { version: [1, 0], context, deleter: Some(count_versioned), flags: 0, tensor };
        // SAFETY: what is wrong with the structs is what is tested.
        unsafe {
            let no = ADVECT_ERROR_ARGUMENT;
            refused(advect_tensor_from_dlpack(null(), (&raw mut plain).cast(), &raw mut t), no, says);
            refused(
                advect_tensor_from_dlpack_versioned(null(), (&raw mut newer).cast(), &raw mut t),
                no,
                says,
            );
            newer.tensor = good;
            newer.version = [2, 0];
            let status = advect_tensor_from_dlpack_versioned(null(), (&raw mut newer).cast(), &raw mut t);
            refused(status, no, "wanted version 1.x, got version 2.0");
        }
    }
    assert_eq!(deleted.into_inner(), 0);
}

#[test]
fn out_and_the_memory_stays() {
    let device = open("cpu");
    for versioned in [false, true] {
        let t = with_values(device, ADVECT_BF16, &[4, 2, 3], &noise(3, 24));
        let wanted = values(t, 24);
        let mut v = view(t);
        // SAFETY: the exports are deleted once, and not used thereafter.
        unsafe {
            ok(advect_view_slice(&raw mut v, 0, 1, 3));
            ok(advect_view_permute(&raw mut v, [2, 0, 1].as_ptr(), 3));
            let mut data = null_mut();
            ok(advect_tensor_data(t, &raw mut data));
            let (mut plain, mut newer) = (null_mut(), null_mut());
            ok(match versioned {
                false => advect_view_to_dlpack(&raw const v, &raw mut plain),
                true => advect_view_to_dlpack_versioned(&raw const v, &raw mut newer),
            });
            ok(advect_tensor_destroy(t));
            let (plain, newer) = (plain.cast::<Plain>(), newer.cast::<Versioned>());
            let dl = if versioned { (*newer).tensor } else { (*plain).tensor };
            assert_eq!((dl.device_type, dl.device_id, dl.ndim), (1, 0, 3));
            // The first element's place is in `data`: some libraries do not read the offset.
            assert_eq!((dl.code, dl.bits, dl.lanes, dl.byte_offset), (4, 16, 1, 0));
            assert_eq!(dl.data, data.wrapping_byte_add(12));
            let (shape, strides) = (dl.shape.cast::<[i64; 3]>().read(), dl.strides.cast::<[i64; 3]>().read());
            assert_eq!((shape, strides), ([3, 2, 2], [1, 6, 3]));
            let first = dl.data.cast::<half::bf16>();
            for (i, j, k) in [(0, 0, 0), (2, 1, 1), (1, 0, 1)] {
                let at = i * strides[0] + j * strides[1] + k * strides[2];
                assert_eq!(first.offset(at as isize).read().to_f32(), wanted[6 + at as usize]);
            }
            // And in again, from the export.
            let mut back = null_mut();
            ok(match versioned {
                false => advect_tensor_from_dlpack(device, plain.cast(), &raw mut back),
                true => {
                    assert_eq!(((*newer).version, (*newer).flags), ([1, 0], 0));
                    advect_tensor_from_dlpack_versioned(device, newer.cast(), &raw mut back)
                }
            });
            let v = view(back);
            assert_eq!(
                (&v.shape[..3], &v.strides[..3], v.dtype),
                (&[3, 2, 2][..], &[1, 6, 3][..], ADVECT_BF16)
            );
            ok(advect_tensor_destroy(back));
        }
    }
}

/// Strides of an array without elements are nobody's: NumPy gives a flipped one of them as it is.
#[test]
fn an_empty_array_may_have_any_strides() {
    let (mut shape, mut strides) = ([0, 3], [-12, -4]);
    let deleted = AtomicUsize::new(0);
    let context = (&raw const deleted).cast_mut().cast();
    let tensor = DlTensor { data: null_mut(), ..array(&mut [], &mut shape, strides.as_mut_ptr()) };
    let mut plain = Plain { tensor, context, deleter: Some(count_plain) };
    let mut t = null_mut();
    // SAFETY: the struct is whole and outlives its tensor.
    unsafe {
        ok(advect_tensor_from_dlpack(null(), (&raw mut plain).cast(), &raw mut t));
        assert_eq!(view(t).shape[..2], [0, 3]);
        ok(advect_tensor_upload(t, null(), 0));
        ok(advect_tensor_destroy(t));
    }
    assert_eq!(deleted.into_inner(), 1);
}

/// And goes out without an address, and in again.
#[test]
fn an_empty_view_has_no_address() {
    let t = tensor(open("cpu"), ADVECT_F32, &[4, 3]);
    let (mut v, mut newer, mut back) = (view(t), null_mut(), null_mut());
    // SAFETY: the export is taken over once, and not used thereafter.
    unsafe {
        ok(advect_view_slice(&raw mut v, 0, 2, 2));
        ok(advect_view_to_dlpack_versioned(&raw const v, &raw mut newer));
        let dl = (*newer.cast::<Versioned>()).tensor;
        assert_eq!((dl.data, dl.byte_offset, dl.shape.read()), (null_mut(), 0, 0));
        ok(advect_tensor_from_dlpack_versioned(null(), newer, &raw mut back));
        ok(advect_tensor_destroy(back));
        ok(advect_tensor_destroy(t));
    }
}

/// A view of another dtype than its tensor's does not go out where its elements would not be aligned.
#[test]
fn what_is_not_aligned_does_not_go_out() {
    let mut memory = [0u32; 4];
    let (mut t, mut plain, mut newer, n) = (null_mut(), null_mut(), null_mut(), 6);
    // SAFETY: the memory outlives the tensor.
    unsafe {
        let odd = memory.as_mut_ptr().cast::<c_void>().byte_add(2);
        ok(advect_tensor_from_host(odd, 12, ADVECT_F16, 1, &raw const n, 0, &raw mut t));
        let v = advect_view { dtype: ADVECT_F32, shape: [3; 8], ..view(t) };
        let (no, says) = (ADVECT_ERROR_ARGUMENT, "`view`: wanted memory aligned to the 4 bytes of f32");
        refused(advect_view_to_dlpack(&raw const v, &raw mut plain), no, says);
        refused(advect_view_to_dlpack_versioned(&raw const v, &raw mut newer), no, says);
        ok(advect_tensor_destroy(t));
    }
}

#[test]
fn read_only_memory_goes_out_as_such() {
    let (data, n) = ([1.0f32; 4], 4);
    let (mut t, mut plain, mut newer) = (null_mut(), null_mut(), null_mut());
    // SAFETY: the memory outlives the tensor and its export.
    unsafe {
        let from = data.as_ptr().cast_mut().cast();
        ok(advect_tensor_from_host(from, 16, ADVECT_F32, 1, &raw const n, ADVECT_READ_ONLY, &raw mut t));
        let v = view(t);
        refused(advect_view_to_dlpack(&raw const v, &raw mut plain), ADVECT_ERROR_UNSUPPORTED, "_versioned");
        ok(advect_view_to_dlpack_versioned(&raw const v, &raw mut newer));
        let managed = newer.cast::<Versioned>();
        assert_eq!((*managed).flags, 1);
        ok(advect_tensor_destroy(t));
        (*managed).deleter.unwrap()(managed);
        let far = advect_view { offset: 1, ..v };
        let status = advect_view_to_dlpack_versioned(&raw const far, &raw mut newer);
        assert_eq!(status, ADVECT_ERROR_HANDLE);
    }
}
