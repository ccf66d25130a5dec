//! The C interface of advect: `libadvect` and `advect.h`.
//!
//! Every function returns a status, checks what it is given, and keeps panics inside. The header is generated
//! from these files; what a caller must know is said there, and in the text at its top (`capi/cbindgen.toml`).
#![allow(non_camel_case_types, reason = "these are the names of the header")]
#![allow(
    clippy::missing_safety_doc,
    reason = "one contract, at the top of the header, holds for every function"
)]

mod call;
mod device;
mod dlpack;
mod handle;
mod memory;
mod ops;
mod solver;
mod status;
mod tensor;

pub use call::advect_plan;
pub use device::*;
pub use dlpack::{
    DLManagedTensor, DLManagedTensorVersioned, advect_tensor_from_dlpack,
    advect_tensor_from_dlpack_versioned, advect_view_to_dlpack, advect_view_to_dlpack_versioned,
};
pub use ops::*;
pub use solver::*;
pub use status::{
    ADVECT_ERROR_ARGUMENT, ADVECT_ERROR_COMPILE, ADVECT_ERROR_DRIVER, ADVECT_ERROR_HANDLE,
    ADVECT_ERROR_INTERNAL, ADVECT_ERROR_LIMIT, ADVECT_ERROR_UNAVAILABLE, ADVECT_ERROR_UNSUPPORTED, ADVECT_OK,
    advect_error, advect_last_error, advect_last_error_message, advect_status, advect_status_name,
};
pub use tensor::*;

use std::ffi::{CStr, c_char};

/// The version of the header, to compare with `advect_version()`, the version of the library.
pub const ADVECT_VERSION_MAJOR: u32 = 0;
/// See `ADVECT_VERSION_MAJOR`.
pub const ADVECT_VERSION_MINOR: u32 = 1;
/// See `ADVECT_VERSION_MAJOR`.
pub const ADVECT_VERSION_PATCH: u32 = 0;

/// `advect_features()`: built with CUDA. Whether there is a GPU, `advect_device_list` says.
pub const ADVECT_FEATURE_CUDA: u32 = 1;
/// `advect_features()`: built with wgpu.
pub const ADVECT_FEATURE_WGPU: u32 = 2;

/// The version of the library: `major << 16 | minor << 8 | patch`.
#[unsafe(no_mangle)]
pub extern "C" fn advect_version() -> u32 {
    ADVECT_VERSION_MAJOR << 16 | ADVECT_VERSION_MINOR << 8 | ADVECT_VERSION_PATCH
}

/// The version of the library in words: `"0.1.0"`.
#[unsafe(no_mangle)]
pub extern "C" fn advect_version_string() -> *const c_char {
    const TEXT: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(text) => text,
        Err(_) => panic!("a version has no zero byte"),
    };
    TEXT.as_ptr()
}

/// What the library was built with: `ADVECT_FEATURE_*`, added up.
#[unsafe(no_mangle)]
pub extern "C" fn advect_features() -> u32 {
    let has = |feature, is| if is { feature } else { 0 };
    has(ADVECT_FEATURE_CUDA, cfg!(feature = "cuda")) | has(ADVECT_FEATURE_WGPU, cfg!(feature = "wgpu"))
}
