//! Solver sessions: the solver asks, the caller evaluates its network and owns all memory.

use crate::call::Mode;
use crate::device::advect_device;
use crate::handle::{Kind, Object, Table};
use crate::memory::{Caller, Extensible};
use crate::ops::{ADVECT_MAX_BUFFERS, advect_step_args, step};
use crate::status::{Failure, advect_status, entry};
use crate::tensor::advect_view;
use advect::solver::{Ask, Buffer, Guidance, MAX_STAGES, Method, Solver, Tableau, Term, uniform};
use std::sync::{Mutex, PoisonError};

/// An explicit method on its way along a grid of times. A handle, not an address.
pub struct advect_solver {
    _opaque: (),
}

/// One evaluation a step, order 1.
pub const ADVECT_METHOD_EULER: u32 = 1;
/// Two evaluations a step, order 2.
pub const ADVECT_METHOD_MIDPOINT: u32 = 2;
/// Two evaluations a step, the second at its end, order 2.
pub const ADVECT_METHOD_HEUN: u32 = 3;
/// Four evaluations a step, order 4.
pub const ADVECT_METHOD_RK4: u32 = 4;
/// The caller's tableau.
pub const ADVECT_METHOD_TABLEAU: u32 = 5;

/// How to solve `dx/dt = v(t, x)`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_solver_options {
    /// `sizeof(advect_solver_options)`.
    pub struct_size: usize,
    /// `ADVECT_METHOD_*`.
    pub method: u32,
    /// Steps of equal length from time 0 to 1; 0 where `times` are given.
    pub steps: u32,
    /// The times to go along, `times_count` of them, in either direction; NULL where `steps` are given.
    pub times: *const f64,
    /// How many times there are: one more than steps.
    pub times_count: usize,
    /// 1 for classifier-free guidance: every evaluation returns two slopes, the unconditional one (branch 0) and
    /// the conditional one (branch 1), and the velocity is `v0 + guidance_scale (v1 - v0)`. 0 for one slope.
    pub guided: u32,
    /// Stages of the caller's tableau, 1 to 7; otherwise 0.
    pub stages: u32,
    /// See `guided`.
    pub guidance_scale: f64,
    /// The tableau's rows below its diagonal, one after the other: `stages (stages - 1) / 2` numbers.
    pub a: *const f64,
    /// The tableau's weights: `stages` numbers.
    pub b: *const f64,
    /// The order that the tableau claims, 1 to 4, and is checked for; otherwise 0.
    pub order: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: numbers and pointers.
unsafe impl Extensible for advect_solver_options {
    const FIRST: usize = size_of::<Self>();
}

/// The memory that a solver's answers need.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_solver_info {
    /// `sizeof(advect_solver_info)`, set by the caller.
    pub struct_size: usize,
    /// States: buffers of the shape of `x`. State 0 holds the initial value.
    pub states: u32,
    /// Stages of a step, each with `branches` slopes of the shape of `x`.
    pub stages: u32,
    /// Slopes of one evaluation: 2 with guidance, otherwise 1.
    pub branches: u32,
    /// The order of the method.
    pub order: u32,
    /// Evaluations from the first time to the last.
    pub evaluations: u64,
}

// SAFETY: integers without padding.
unsafe impl Extensible for advect_solver_info {
    const FIRST: usize = size_of::<Self>();
}

/// `advect_ask.kind`: evaluate the network at time `t` on state `state`, and keep its slopes as those of `stage`.
pub const ADVECT_ASK_EVAL: u32 = 1;
/// `advect_ask.kind`: write the sum of `terms` over state `state`, which is none of them; `advect_solver_combine`
/// does.
pub const ADVECT_ASK_COMBINE: u32 = 2;
/// `advect_ask.kind`: nothing more; state `state` is the result.
pub const ADVECT_ASK_DONE: u32 = 3;

/// `advect_term.source`: a state.
pub const ADVECT_SOURCE_STATE: u32 = 1;
/// `advect_term.source`: a slope.
pub const ADVECT_SOURCE_SLOPE: u32 = 2;

/// One buffer of a combination and its coefficient.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct advect_term {
    /// What it is multiplied by.
    pub coefficient: f64,
    /// `ADVECT_SOURCE_STATE` or `ADVECT_SOURCE_SLOPE`.
    pub source: u32,
    /// The number of the state, or the stage of the slope.
    pub index: u32,
    /// The branch of the slope.
    pub branch: u32,
    /// 0.
    pub reserved: u32,
}

/// What a solver asks for.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct advect_ask {
    /// `sizeof(advect_ask)`, set by the caller.
    pub struct_size: usize,
    /// `ADVECT_ASK_EVAL`, `ADVECT_ASK_COMBINE` or `ADVECT_ASK_DONE`.
    pub kind: u32,
    /// The state to evaluate on, to write, or that is the result.
    pub state: u32,
    /// The stage whose slopes are to be written (`ADVECT_ASK_EVAL`).
    pub stage: u32,
    /// How many terms there are (`ADVECT_ASK_COMBINE`).
    pub term_count: u32,
    /// The time (`ADVECT_ASK_EVAL`).
    pub t: f64,
    /// What is summed (`ADVECT_ASK_COMBINE`).
    pub terms: [advect_term; ADVECT_MAX_BUFFERS],
}

// SAFETY: numbers without padding on machines of 64 bits, and none that is read on others.
unsafe impl Extensible for advect_ask {
    const FIRST: usize = size_of::<Self>();
}

struct Session {
    fresh: Solver,
    under_way: Mutex<Solver>,
}

impl Object for Session {
    fn confined(&self) -> bool {
        false
    }
}

static SOLVERS: Table<Session> = Table::new(Kind::Solver);

/// The most times of one solver: each costs memory when it is made.
const MAX_TIMES: usize = 1 << 20;

fn tableau(c: &Caller, o: &advect_solver_options) -> Result<Tableau, Failure> {
    let named = match o.method {
        ADVECT_METHOD_EULER => Method::Euler,
        ADVECT_METHOD_MIDPOINT => Method::Midpoint,
        ADVECT_METHOD_HEUN => Method::Heun,
        ADVECT_METHOD_RK4 => Method::Rk4,
        ADVECT_METHOD_TABLEAU => {
            let stages = o.stages as usize;
            if !(1..=MAX_STAGES).contains(&stages) {
                return Err(Failure::argument(c.op(), "stages", format!("1 to {MAX_STAGES}"), stages));
            }
            let packed = c.slice("a", o.a, stages * (stages - 1) / 2)?;
            let rows: Vec<&[f64]> =
                (0..stages).map(|i| &packed[i * i.saturating_sub(1) / 2..][..i]).collect();
            return Ok(Tableau::new(&rows, c.slice("b", o.b, stages)?, o.order as usize)?);
        }
        other => return Err(Failure::argument(c.op(), "method", "one of ADVECT_METHOD_*", other)),
    };
    let unused = o.stages != 0 || o.order != 0 || !o.a.is_null() || !o.b.is_null();
    if unused {
        let wanted = "ADVECT_METHOD_TABLEAU beside stages, order, a or b";
        return Err(Failure::argument(c.op(), "method", wanted, o.method));
    }
    Ok(named.tableau())
}

fn times(c: &Caller, o: &advect_solver_options) -> Result<Vec<f64>, Failure> {
    let most = format!("at most {MAX_TIMES}");
    if o.times.is_null() {
        if o.times_count != 0 {
            return Err(Failure::argument(c.op(), "times", "a pointer", "NULL"));
        }
        if o.steps as usize >= MAX_TIMES {
            return Err(Failure::limit(c.op(), "steps", most, o.steps));
        }
        return Ok(uniform(o.steps as usize)?);
    }
    if o.steps != 0 {
        return Err(Failure::argument(c.op(), "steps", "0 beside times", o.steps));
    }
    if o.times_count > MAX_TIMES {
        return Err(Failure::limit(c.op(), "times_count", most, o.times_count));
    }
    if o.times_count == 0 {
        return Err(Failure::argument(c.op(), "times_count", "at least 1, where to begin", 0));
    }
    let times = c.slice("times", o.times, o.times_count)?;
    match times.iter().find(|t| !t.is_finite()) {
        Some(t) => Err(Failure::argument(c.op(), "times", "finite numbers", t)),
        None => Ok(times.to_vec()),
    }
}

/// A solver from its method, grid of times and guidance.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_solver_new(
    options: *const advect_solver_options,
    solver: *mut *mut advect_solver,
) -> advect_status {
    entry!("advect_solver_new", |c| {
        c.room("solver", solver)?;
        let o = c.read("options", options)?;
        crate::device::reserved(c.op(), o.reserved)?;
        let guidance = match o.guided {
            0 if o.guidance_scale == 0.0 => Guidance::none(),
            0 => {
                return Err(Failure::argument(
                    c.op(),
                    "guidance_scale",
                    "0 without guidance",
                    o.guidance_scale,
                ));
            }
            1 if o.guidance_scale.is_finite() => Guidance::classifier_free(o.guidance_scale),
            1 => {
                return Err(Failure::argument(c.op(), "guidance_scale", "a finite number", o.guidance_scale));
            }
            other => return Err(Failure::argument(c.op(), "guided", "0 or 1", other)),
        };
        let fresh = Solver::new(tableau(c, &o)?, times(c, &o)?, guidance);
        let session = Session { under_way: Mutex::new(fresh.clone()), fresh };
        c.put("solver", solver, SOLVERS.insert(c.op(), session)?)
    })
}

/// What memory the solver's answers need.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_solver_describe(
    solver: *const advect_solver,
    info: *mut advect_solver_info,
) -> advect_status {
    entry!("advect_solver_describe", |c| {
        let session = SOLVERS.get(c.op(), "solver", solver)?;
        let s = &session.fresh;
        let value = advect_solver_info {
            struct_size: 0,
            states: s.states() as u32,
            stages: s.tableau().stages() as u32,
            branches: s.guidance().branches() as u32,
            order: s.tableau().order() as u32,
            evaluations: s.evaluations() as u64,
        };
        c.fill("info", info, value)
    })
}

fn term(term: Term) -> advect_term {
    let (source, index, branch) = match term.buffer {
        Buffer::State(state) => (ADVECT_SOURCE_STATE, state, 0),
        Buffer::Slope { stage, branch } => (ADVECT_SOURCE_SLOPE, stage, branch),
    };
    advect_term {
        coefficient: term.coefficient,
        source,
        index: index as u32,
        branch: branch as u32,
        reserved: 0,
    }
}

/// The next question. Each assumes that all before it were answered; after `ADVECT_ASK_DONE` it stays
/// `ADVECT_ASK_DONE`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_solver_next(
    solver: *const advect_solver,
    ask: *mut advect_ask,
) -> advect_status {
    entry!("advect_solver_next", |c| {
        let session = SOLVERS.get(c.op(), "solver", solver)?;
        let mut value = advect_ask {
            struct_size: 0,
            kind: ADVECT_ASK_DONE,
            state: 0,
            stage: 0,
            term_count: 0,
            t: 0.0,
            terms: Default::default(),
        };
        // A question is not lost when there is nowhere to put it.
        c.fill("ask", ask, value)?;
        match session.under_way.lock().unwrap_or_else(PoisonError::into_inner).next_ask() {
            Ask::Eval { t, x, stage } => {
                (value.kind, value.t, value.state, value.stage) =
                    (ADVECT_ASK_EVAL, t, x as u32, stage as u32);
            }
            Ask::Combine { out, terms } => {
                (value.kind, value.state, value.term_count) =
                    (ADVECT_ASK_COMBINE, out as u32, terms.len() as u32);
                value.terms.iter_mut().zip(terms).for_each(|(to, from)| *to = term(from));
            }
            Ask::Done { x } => value.state = x as u32,
        }
        c.fill("ask", ask, value)
    })
}

/// Answers `ADVECT_ASK_COMBINE` with one `advect_step`: `states` are the solver's states, `slopes` its slopes,
/// that of stage `s` and branch `k` being `slopes[s * branches + k]`. Both arrays are as long as
/// `advect_solver_describe` says, and all views of one shape, dtype and device.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_solver_combine(
    solver: *const advect_solver,
    device: *const advect_device,
    ask: *const advect_ask,
    states: *const advect_view,
    state_count: usize,
    slopes: *const advect_view,
    slope_count: usize,
) -> advect_status {
    entry!("advect_solver_combine", |c| {
        let session = SOLVERS.get(c.op(), "solver", solver)?;
        let ask = c.read("ask", ask)?;
        if ask.kind != ADVECT_ASK_COMBINE {
            return Err(Failure::argument(c.op(), "ask", "kind ADVECT_ASK_COMBINE", ask.kind));
        }
        let branches = session.fresh.guidance().branches();
        let wanted = [session.fresh.states(), session.fresh.tableau().stages() * branches];
        for (arg, got, wanted) in
            [("state_count", state_count, wanted[0]), ("slope_count", slope_count, wanted[1])]
        {
            if got != wanted {
                return Err(Failure::argument(c.op(), arg, wanted, got));
            }
        }
        let (states, slopes) =
            (c.slice("states", states, state_count)?, c.slice("slopes", slopes, slope_count)?);
        let count = ask.term_count as usize;
        if !(1..=ADVECT_MAX_BUFFERS).contains(&count) {
            return Err(Failure::argument(c.op(), "ask", format!("1 to {ADVECT_MAX_BUFFERS} terms"), count));
        }
        let wrong = |t: &advect_term| {
            let got = format!("source {}, index {}, branch {}", t.source, t.index, t.branch);
            Failure::argument(c.op(), "ask", "terms of this solver", got)
        };
        let none = std::ptr::null();
        let mut args = advect_step_args {
            struct_size: size_of::<advect_step_args>(),
            x: [none; ADVECT_MAX_BUFFERS],
            table: none,
            out: states.get(ask.state as usize).ok_or_else(|| {
                Failure::argument(c.op(), "ask", format!("a state below {state_count}"), ask.state)
            })?,
            seed: 0,
            stream: 0,
            coefficients: [0.0; ADVECT_MAX_BUFFERS],
            noise_coefficient: 0.0,
            noise: 0,
        };
        for (j, t) in ask.terms[..count].iter().enumerate() {
            let view = match t.source {
                ADVECT_SOURCE_STATE => states.get(t.index as usize),
                ADVECT_SOURCE_SLOPE if (t.branch as usize) < branches => {
                    slopes.get((t.index as usize).saturating_mul(branches).saturating_add(t.branch as usize))
                }
                _ => None,
            };
            args.x[j] = view.ok_or_else(|| wrong(t))?;
            args.coefficients[j] = t.coefficient as f32;
        }
        step(c, device, args, Mode::Run)
    })
}

/// Starts the solver again from its first time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_solver_reset(solver: *const advect_solver) -> advect_status {
    entry!("advect_solver_reset", |c| {
        let session = SOLVERS.get(c.op(), "solver", solver)?;
        *session.under_way.lock().unwrap_or_else(PoisonError::into_inner) = session.fresh.clone();
        Ok(())
    })
}

/// Destroys a solver. NULL is allowed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn advect_solver_destroy(solver: *mut advect_solver) -> advect_status {
    entry!("advect_solver_destroy", |c| {
        if !solver.is_null() {
            drop(SOLVERS.remove(c.op(), "solver", solver)?);
        }
        Ok(())
    })
}
