//! The one harness: cases, error bounds, fences, report. Used by `tests/`, `benches/` and the command
//! line.

pub mod case;
pub mod judge;
pub mod kernels;
pub mod probe;
pub mod run;
pub mod timing;

pub use case::{Case, Fill, Layout, Verified, view};
pub use judge::{Prepared, Verdict};
pub use probe::{Ceilings, ceilings};
#[cfg(feature = "ptx-sim")]
pub use run::simulators;
pub use run::{Outcome, Selection, Status, Tally, assert_op, devices, required, verify};
pub use timing::{Timing, time};

use crate::ops::{Attention, Conv, LinearAttention, Matmul, Merge, Norm, Resample, Step};

/// Something to do with every op. Ops are types, so a list of them is a visitor.
pub trait OpVisitor {
    /// Called once per op.
    fn visit<T: Verified>(&mut self);
}

/// Shows every op to `visitor`, in the order of tables.
pub fn each_op(visitor: &mut impl OpVisitor) {
    visitor.visit::<Matmul>();
    visitor.visit::<Conv>();
    visitor.visit::<Norm>();
    visitor.visit::<Attention>();
    visitor.visit::<Merge>();
    visitor.visit::<LinearAttention>();
    visitor.visit::<Resample>();
    visitor.visit::<Step>();
}

/// The names of all ops, in that order.
pub fn op_names() -> Vec<&'static str> {
    struct Names(Vec<&'static str>);
    impl OpVisitor for Names {
        fn visit<T: Verified>(&mut self) {
            self.0.push(T::NAME);
        }
    }
    let mut names = Names(Vec::new());
    each_op(&mut names);
    names.0
}
