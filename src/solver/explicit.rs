//! Explicit methods with a fixed grid of times, as a sequence of questions.

use super::tableau::Tableau;
use crate::error::{Error, Result};
use arrayvec::ArrayVec;
use std::collections::VecDeque;

/// The most terms of one combination: what the `step` op sums in one launch.
pub const MAX_TERMS: usize = 8;

/// The most outputs of one evaluation that [`Guidance`] mixes.
const MAX_BRANCHES: usize = 4;

/// Memory that a solver speaks of. Whoever answers owns it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Buffer {
    /// A state: 0 holds the initial value, 1 is a second one, 2 an intermediate sum (see
    /// [`Solver::states`]).
    State(usize),
    /// What an evaluation returned.
    Slope {
        /// The stage it belongs to.
        stage: usize,
        /// Which of the outputs that [`Guidance`] mixes.
        branch: usize,
    },
}

/// One buffer of a combination and its coefficient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Term {
    /// What is multiplied.
    pub buffer: Buffer,
    /// By how much.
    pub coefficient: f64,
}

/// What a solver asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Ask {
    /// Evaluate the network at time `t` on the state `x`, and keep every branch as a slope of `stage`.
    Eval {
        /// The time.
        t: f64,
        /// The index of the state.
        x: usize,
        /// The stage whose slopes are to be written.
        stage: usize,
    },
    /// Write the sum of the terms over the state `out`, which is none of them.
    Combine {
        /// The index of the state to write.
        out: usize,
        /// What is summed: at most [`MAX_TERMS`] terms, no coefficient 0.
        terms: Vec<Term>,
    },
    /// Nothing more: the state `x` is the result.
    Done {
        /// The index of the state.
        x: usize,
    },
}

/// How the outputs of one evaluation make up the velocity: a weighted sum, which folds into the
/// coefficients of the combinations.
#[derive(Debug, Clone, PartialEq)]
pub struct Guidance(ArrayVec<f64, MAX_BRANCHES>);

impl Guidance {
    /// The velocity is the one output.
    pub fn none() -> Self {
        Self([1.0].into_iter().collect())
    }

    /// Classifier-free guidance (Ho and Salimans 2022, here with 1 as the plain conditional model):
    /// branch 0 is the unconditional output `v0`, branch 1 the conditional `v1`, and the velocity is
    /// `v0 + scale (v1 - v0)`.
    pub fn classifier_free(scale: f64) -> Self {
        Self([1.0 - scale, scale].into_iter().collect())
    }

    /// How many outputs an evaluation returns.
    pub fn branches(&self) -> usize {
        self.0.len()
    }
}

/// The times `0, 1/n, 2/n, .. 1`.
///
/// # Errors
/// [`Error::Argument`] when `steps` is 0.
pub fn uniform(steps: usize) -> Result<Vec<f64>> {
    if steps == 0 {
        return Err(Error::argument("solver", "steps", "at least 1", steps));
    }
    Ok((0..=steps).map(|k| k as f64 / steps as f64).collect())
}

/// An explicit method on its way along a grid of times. Ask it with [`Solver::next_ask`], or use
/// [`solve`].
#[derive(Debug, Clone)]
pub struct Solver {
    tableau: Tableau,
    times: Vec<f64>,
    guidance: Guidance,
    /// The step to plan next.
    step: usize,
    /// The state that holds the result of the steps planned so far.
    x: usize,
    /// Questions of the current step, not asked yet.
    asks: VecDeque<Ask>,
}

impl Solver {
    /// A solver along `times`, which may run either way and be spaced as they like; with fewer than two
    /// there is nothing to do.
    pub fn new(tableau: Tableau, times: Vec<f64>, guidance: Guidance) -> Self {
        Self { tableau, times, guidance, step: 0, x: 0, asks: VecDeque::new() }
    }

    /// The method.
    pub fn tableau(&self) -> &Tableau {
        &self.tableau
    }

    /// How branches make up the velocity.
    pub fn guidance(&self) -> &Guidance {
        &self.guidance
    }

    /// How many evaluations it asks for from the first time to the last.
    pub fn evaluations(&self) -> usize {
        self.times.len().saturating_sub(1) * self.tableau.stages()
    }

    /// How many states it speaks of: 2, or 3 when a combination has more than [`MAX_TERMS`] terms and
    /// goes through an intermediate sum.
    pub fn states(&self) -> usize {
        let rows = (0..self.tableau.stages()).map(|i| self.tableau.a(i)).chain([self.tableau.b()]);
        let longest = rows.map(|row| self.terms(0, row, 1.0).len()).max().unwrap_or(0);
        if longest > MAX_TERMS { 3 } else { 2 }
    }

    /// The next question. Each assumes that all before it were answered; after [`Ask::Done`] it stays
    /// [`Ask::Done`].
    pub fn next_ask(&mut self) -> Ask {
        if self.asks.is_empty() {
            self.plan_step();
        }
        self.asks.pop_front().unwrap_or(Ask::Done { x: self.x })
    }

    /// Queues the questions of one step, if there is one left.
    fn plan_step(&mut self) {
        let Some(&[start, end]) = self.times.get(self.step..).and_then(<[f64]>::first_chunk) else { return };
        let (x, other) = (self.x, 1 - self.x);
        for stage in 0..self.tableau.stages() {
            let inputs = self.terms(x, self.tableau.a(stage), end - start);
            let at_start = inputs.len() == 1;
            if !at_start {
                self.combine(other, &inputs);
            }
            let c = self.tableau.c()[stage];
            // Exact at both ends of the step.
            let t = (1.0 - c) * start + c * end;
            self.asks.push_back(Ask::Eval { t, x: if at_start { x } else { other }, stage });
        }
        let result = self.terms(x, self.tableau.b(), end - start);
        self.combine(other, &result);
        self.x = other;
        self.step += 1;
    }

    /// The state `x` plus `h` times a row of the tableau, guidance folded in, zeros left out.
    fn terms(&self, x: usize, row: &[f64], h: f64) -> Vec<Term> {
        let mut terms = vec![Term { buffer: Buffer::State(x), coefficient: 1.0 }];
        for (stage, weight) in row.iter().enumerate() {
            for (branch, share) in self.guidance.0.iter().enumerate() {
                let coefficient = h * weight * share;
                if coefficient != 0.0 {
                    terms.push(Term { buffer: Buffer::Slope { stage, branch }, coefficient });
                }
            }
        }
        terms
    }

    /// Queues a combination, in as many parts as it takes. The sum so far alternates between `out` and
    /// state 2, so that the last part lands in `out`.
    fn combine(&mut self, out: usize, terms: &[Term]) {
        let (first, rest) = terms.split_at(terms.len().min(MAX_TERMS));
        let more = rest.chunks(MAX_TERMS - 1);
        let mut left = more.len();
        let place = |left: usize| if left.is_multiple_of(2) { out } else { 2 };
        self.asks.push_back(Ask::Combine { out: place(left), terms: first.to_vec() });
        for part in more {
            let so_far = Term { buffer: Buffer::State(place(left)), coefficient: 1.0 };
            left -= 1;
            let terms = [so_far].into_iter().chain(part.iter().copied()).collect();
            self.asks.push_back(Ask::Combine { out: place(left), terms });
        }
    }
}

/// Solves `dx/dt = v(t, x)` on the host. `velocity(t, x, slopes)` fills one slope for each branch of the
/// solver's guidance.
pub fn solve(
    mut solver: Solver,
    x0: &[f64],
    mut velocity: impl FnMut(f64, &[f64], &mut [Vec<f64>]),
) -> Vec<f64> {
    let zeros = vec![0.0; x0.len()];
    let mut states = vec![zeros.clone(); solver.states()];
    let mut slopes = vec![vec![zeros; solver.guidance.branches()]; solver.tableau.stages()];
    states[0].copy_from_slice(x0);
    loop {
        match solver.next_ask() {
            Ask::Eval { t, x, stage } => velocity(t, &states[x], &mut slopes[stage]),
            Ask::Combine { out, terms } => {
                let value = |buffer, i: usize| match buffer {
                    Buffer::State(s) => states[s][i],
                    Buffer::Slope { stage, branch } => slopes[stage][branch][i],
                };
                states[out] = (0..x0.len())
                    .map(|i| terms.iter().map(|t| t.coefficient * value(t.buffer, i)).sum())
                    .collect();
            }
            Ask::Done { x } => return states.swap_remove(x),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Method;
    use super::*;

    /// A rotation with a growth that varies in time: `z' = (i + t) z`, `z = z0 exp(i t + t^2 / 2)`.
    fn spiral(t: f64, x: &[f64], v: &mut [Vec<f64>]) {
        v[0][0] = t * x[0] - x[1];
        v[0][1] = x[0] + t * x[1];
    }

    fn error(tableau: Tableau, steps: usize) -> f64 {
        let x = solve(Solver::new(tableau, uniform(steps).unwrap(), Guidance::none()), &[1.0, 0.0], spiral);
        let growth = 0.5f64.exp();
        (x[0] - growth * 1.0f64.cos()).hypot(x[1] - growth * 1.0f64.sin())
    }

    #[test]
    fn order_by_slope() {
        for method in Method::ALL {
            for steps in [16, 32, 64] {
                let slope = (error(method.tableau(), steps) / error(method.tableau(), 2 * steps)).log2();
                let order = method.tableau().order() as f64;
                assert!((slope - order).abs() < 0.1, "{method}: {slope} with {steps} steps");
            }
        }
    }

    #[test]
    fn one_step_is_the_truncated_exponential() {
        for method in Method::ALL {
            let h = -0.75;
            let solver = Solver::new(method.tableau(), vec![0.0, h], Guidance::none());
            let x = solve(solver, &[1.0], |_, x, v| v[0][0] = x[0]);
            let series: f64 = (0..=method.tableau().order())
                .map(|n| h.powi(n as i32) / (1..=n).product::<usize>() as f64)
                .sum();
            assert!((x[0] - series).abs() < 1e-15, "{method}: {} and {series}", x[0]);
        }
    }

    #[test]
    fn guidance_is_the_mixed_velocity() {
        for method in Method::ALL {
            for scale in [-0.5, 0.0, 1.0, 1.5, 4.0] {
                let guided =
                    Solver::new(method.tableau(), uniform(7).unwrap(), Guidance::classifier_free(scale));
                let folded = solve(guided, &[0.3], |t, x, v| {
                    v[0][0] = (x[0] + t).sin();
                    v[1][0] = 1.0 - x[0];
                });
                let plain = Solver::new(method.tableau(), uniform(7).unwrap(), Guidance::none());
                let mixed = solve(plain, &[0.3], |t, x, v| {
                    let (v0, v1) = ((x[0] + t).sin(), 1.0 - x[0]);
                    v[0][0] = v0 + scale * (v1 - v0);
                });
                assert!((folded[0] - mixed[0]).abs() < 1e-14, "{method} {scale}");
            }
        }
    }

    #[test]
    fn every_combination_fits_one_step_and_spares_its_inputs() {
        // Seven slopes of two branches: three parts a combination.
        let euler_seven = Tableau::new(
            &[&[], &[0.1], &[0.1; 2], &[0.1; 3], &[0.1; 4], &[0.1; 5], &[0.1; 6]],
            &[1.0 / 7.0; 7],
            1,
        )
        .unwrap();
        let tableaus = Method::ALL.map(Method::tableau).into_iter().chain([euler_seven]);
        for (tableau, states) in tableaus.zip([2, 2, 2, 3, 3]) {
            let mut solver = Solver::new(tableau, uniform(3).unwrap(), Guidance::classifier_free(1.5));
            assert_eq!(solver.states(), states);
            let (mut evaluations, wanted) = (0, solver.evaluations());
            loop {
                match solver.next_ask() {
                    Ask::Eval { .. } => evaluations += 1,
                    Ask::Combine { out, terms } => {
                        assert!(out < states);
                        assert!(terms.iter().all(|t| t.buffer != Buffer::State(out)), "{terms:?}");
                    }
                    Ask::Done { .. } => break,
                }
            }
            assert_eq!(evaluations, wanted);
            assert!(matches!(solver.next_ask(), Ask::Done { .. }));
        }
    }

    #[test]
    fn grids() {
        assert_eq!(uniform(4).unwrap(), [0.0, 0.25, 0.5, 0.75, 1.0]);
        assert!(matches!(uniform(0), Err(Error::Argument { op: "solver", arg: "steps", .. })));
        let nothing = Solver::new(Method::Heun.tableau(), vec![0.5], Guidance::none());
        assert_eq!(solve(nothing, &[2.0], |_, _, _| panic!("no step, no evaluation")), [2.0]);
    }

    #[test]
    fn stages_at_the_ends_are_evaluated_at_the_ends() {
        let times = uniform(10).unwrap();
        let mut solver = Solver::new(Method::Heun.tableau(), times.clone(), Guidance::none());
        let mut asked = Vec::new();
        loop {
            match solver.next_ask() {
                Ask::Eval { t, .. } => asked.push(t),
                Ask::Combine { .. } => {}
                Ask::Done { .. } => break,
            }
        }
        let wanted: Vec<f64> = times.windows(2).flatten().copied().collect();
        assert_eq!(asked, wanted);
    }
}
