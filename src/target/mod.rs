//! Who launches: borrowed streams and passes, compile caches.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod presets;
#[cfg(feature = "ptx-sim")]
pub mod ptx_sim;
#[cfg(feature = "wgpu")]
pub mod wgpu;
