//! The one harness: cases, error bounds, fences, report. Used by `tests/`, `benches/` and the command
//! line.

pub mod case;

pub use case::{Case, Fill, Layout, Verified, view};
