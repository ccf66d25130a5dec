//! What the tests of the interface share.
#![allow(dead_code, reason = "every test file uses a part of it")]

use advect_capi::*;
use std::ffi::{CStr, CString};
use std::ptr::{null, null_mut};

/// The message of this thread's last error.
pub(crate) fn message() -> String {
    // SAFETY: a string of this thread that nothing replaces before it is copied.
    unsafe { CStr::from_ptr(advect_last_error_message()) }.to_str().unwrap().to_owned()
}

#[track_caller]
pub(crate) fn ok(status: advect_status) {
    assert_eq!(status, ADVECT_OK, "{}", message());
}

/// The call failed with this status, and its message contains `says`.
#[track_caller]
pub(crate) fn refused(status: advect_status, wanted: advect_status, says: &str) {
    let message = message();
    assert_eq!(status, wanted, "{message}");
    assert!(message.contains(says), "`{message}` does not say `{says}`");
}

/// A struct of zeros with its size set.
pub(crate) fn sized<T>() -> T {
    // SAFETY: the structs of the interface are numbers and pointers; the first field is their size.
    unsafe {
        let mut value: T = std::mem::zeroed();
        (&raw mut value).cast::<usize>().write(size_of::<T>());
        value
    }
}

pub(crate) fn open(name: &str) -> *mut advect_device {
    let (name, mut device) = (CString::new(name).unwrap(), null_mut());
    // SAFETY: the arguments are what they should be.
    ok(unsafe { advect_device_open(name.as_ptr(), null(), &raw mut device) });
    device
}

/// The names of the devices to test: the CPU, and the first of each face that the environment asks for.
pub(crate) fn asked() -> Vec<&'static str> {
    let faces = [("wgpu", "wgpu:0", ADVECT_FEATURE_WGPU), ("cuda", "cuda:0", ADVECT_FEATURE_CUDA)];
    let wanted = |face: &str| {
        let named = |v: &str| std::env::var(v).is_ok_and(|s| s.split(',').any(|f| f == face));
        named("ADVECT_FACES") || named("ADVECT_REQUIRE")
    };
    let here = faces.into_iter().filter(|(face, _, bit)| wanted(face) && advect_features() & bit != 0);
    std::iter::once("cpu").chain(here.map(|(_, name, _)| name)).collect()
}

/// They, open.
pub(crate) fn devices() -> Vec<*mut advect_device> {
    asked().into_iter().map(open).collect()
}

pub(crate) fn tensor(device: *const advect_device, dtype: advect_dtype, shape: &[u64]) -> *mut advect_tensor {
    let mut tensor = null_mut();
    // SAFETY: the arguments are what they should be.
    ok(unsafe { advect_tensor_new(device, dtype, shape.len() as u32, shape.as_ptr(), &raw mut tensor) });
    tensor
}

pub(crate) fn view(tensor: *mut advect_tensor) -> advect_view {
    let mut view = std::mem::MaybeUninit::uninit();
    // SAFETY: the view is written when the call succeeds.
    unsafe {
        ok(advect_tensor_view(tensor, view.as_mut_ptr()));
        view.assume_init()
    }
}

pub(crate) fn with_values(
    device: *const advect_device,
    dtype: advect_dtype,
    shape: &[u64],
    values: &[f32],
) -> *mut advect_tensor {
    let made = tensor(device, dtype, shape);
    // SAFETY: the values are as many as their number.
    ok(unsafe { advect_tensor_upload_f32(made, values.as_ptr(), values.len()) });
    made
}

pub(crate) fn values(tensor: *const advect_tensor, count: usize) -> Vec<f32> {
    let mut all = vec![0.0; count];
    // SAFETY: there is room for so many.
    ok(unsafe { advect_tensor_download_f32(tensor, all.as_mut_ptr(), count) });
    all
}

/// Numbers between -1 and 1 that look random.
pub(crate) fn noise(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}
