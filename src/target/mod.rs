//! Who launches: borrowed streams and passes, compile caches.

pub mod cpu;
pub mod presets;
#[cfg(feature = "wgpu")]
pub mod wgpu;
