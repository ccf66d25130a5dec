//! Who launches: borrowed streams and passes, compile caches.

pub mod cpu;
#[cfg(feature = "wgpu")]
pub mod wgpu;
