//! Solvers: which evaluations and which combinations, computed in f64 on the host.
//!
//! A solver never calls the network and never touches a buffer. It [asks](Ask): evaluate the velocity
//! here, combine these buffers with these coefficients; whoever owns the memory answers in between, on
//! any device, and may record the whole loop ahead of running it. [`solve`] is the same loop over host
//! vectors, for when the velocity is a closure.
//!
//! ```
//! use advect::solver::{Guidance, Method, Solver, solve, uniform};
//! // dx/dt = -x from t = 0 to 1: e^-1.
//! let solver = Solver::new(Method::Rk4.tableau(), uniform(20)?, Guidance::none());
//! let x = solve(solver, &[1.0], |_, x, v| v[0][0] = -x[0]);
//! assert!((x[0] - (-1.0f64).exp()).abs() < 1e-7);
//! # Ok::<(), advect::Error>(())
//! ```

mod explicit;
mod tableau;

pub use explicit::{Ask, Buffer, Guidance, MAX_TERMS, Solver, Term, solve, uniform};
pub use tableau::{MAX_STAGES, Method, Tableau};
