//! Executes NVIDIA PTX on the CPU, warp by warp, with memory, race and barrier checks.
//!
//! ```
//! let ptx = "
//! .version 7.0
//! .target sm_80
//! .address_size 64
//! .visible .entry double(.param .u64 data) {
//!     .reg .b32 %r<3>;
//!     .reg .b64 %rd<4>;
//!     ld.param.u64 %rd1, [data];
//!     mov.u32 %r1, %tid.x;
//!     mul.wide.u32 %rd2, %r1, 4;
//!     add.s64 %rd3, %rd1, %rd2;
//!     ld.global.u32 %r2, [%rd3];
//!     add.s32 %r2, %r2, %r2;
//!     st.global.u32 [%rd3], %r2;
//!     ret;
//! }";
//! use ptx_sim::{Gpu, Launch, Module};
//!
//! let module = Module::parse(ptx)?;
//! let mut gpu = Gpu::new();
//! let data = gpu.alloc(4 * 64);
//! gpu.write(data, &[1; 4 * 64])?;
//! let params: &[&[u8]] = &[&data.to_le_bytes()];
//! let report = module.launch(&mut gpu, "double", &Launch { block: [64, 1, 1], params, ..Launch::default() })?;
//! let mut first = [0; 4];
//! gpu.read(data, &mut first)?;
//! assert_eq!(first, [2; 4]);
//! assert_eq!(report.counters.global_load.sectors, 8);
//! # Ok::<(), ptx_sim::Error>(())
//! ```

mod cfg;
mod counters;
mod decode;
mod error;
mod exec;
mod ir;
mod lexer;
mod memory;
mod module;
mod parser;

pub use counters::{Banks, Class, Counters, Traffic};
pub use error::{Error, Finding, FindingKind, Result, SourceLine};
pub use memory::Gpu;
pub use module::{Kernel, Launch, Module, Report, Schedule};
