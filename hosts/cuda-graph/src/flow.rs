//! The sampling loop, over memory of any kind: the same calls go into a CUDA stream, and in the tests to the PTX
//! simulator.
//!
//! The flow is exact. For data `d` and the path `x_t = t d + (1 - t) z`, flow matching's velocity is
//! `(E[d | x] - x) / (1 - t)`, and the expectation is attention: the queries are the particles, keys and values
//! the data, and the scores `t / (1 - t)^2 (x.d - t/2 |d|^2)` take their last term from a third coordinate.

use advect::op::Op;
use advect::ops::{Attention, AttentionArgs, Noise, Step, StepArgs};
use advect::solver::{Ask, Buffer, Guidance, Method, Solver, Term, uniform};
use advect::{Dtype, Memory, Result, View};

pub(crate) const PARTICLES: usize = 500;
pub(crate) const POINTS: usize = 60;
const STEPS: usize = 64;

/// Where calls go.
pub(crate) trait Launch<M> {
    fn run<T: Op>(&mut self, op: &T, args: T::Args<M, M>) -> Result<()>;
}

/// The engine's memory: rows of four f32, of which the third is for the scores.
pub(crate) struct Buffers<M> {
    /// Particles, twice: a step reads one and writes the other.
    pub(crate) states: [M; 2],
    pub(crate) mean: M,
    pub(crate) velocity: M,
    /// x, y, x^2 + y^2, 0.
    pub(crate) data: M,
    /// A single 1.
    pub(crate) one: M,
}

/// Launches the whole loop; the result is in `states[STEPS % 2]`.
pub(crate) fn sample<M: Memory + Copy>(into: &mut impl Launch<M>, b: &Buffers<M>, seed: u64) -> Result<M> {
    let xy = |memory| View::strided(memory, Dtype::F32, &[PARTICLES, 2], &[4, 1], 0);
    let third = |memory| View::strided(memory, Dtype::F32, &[PARTICLES, 1], &[4, 1], 2);
    let ones = |columns| View::strided(b.one, Dtype::F32, &[PARTICLES, columns], &[0, 0], 0);
    let heads = |memory, n| View::strided(memory, Dtype::F32, &[1, 1, n, 3], &[0, 0, 4, 1], 0);
    into.run(&Step::noise(1.0, Noise { seed, stream: 0 }), StepArgs::over([ones(2)?], xy(b.states[0])?)?)?;
    let mut solver = Solver::new(Method::Euler.tableau(), uniform(STEPS)?, Guidance::none());
    loop {
        match solver.next_ask() {
            Ask::Eval { t, x, .. } => {
                let (x, left) = (b.states[x], 1.0 - t);
                into.run(&Step::sum(&[-t / 2.0])?, StepArgs::over([ones(1)?], third(x)?)?)?;
                let points = heads(b.data, POINTS)?;
                let expectation = AttentionArgs::new(
                    heads(x, PARTICLES)?,
                    points.clone(),
                    points,
                    heads(b.mean, PARTICLES)?,
                );
                into.run(&Attention::scaled((t / (left * left)) as f32), expectation)?;
                let towards = StepArgs::over([xy(b.mean)?, xy(x)?], xy(b.velocity)?)?;
                into.run(&Step::sum(&[1.0 / left, -1.0 / left])?, towards)?;
            }
            Ask::Combine { out, terms } => {
                let place = |term: &Term| match term.buffer {
                    Buffer::State(i) => xy(b.states[i]),
                    Buffer::Slope { .. } => xy(b.velocity),
                };
                let buffers = terms.iter().map(place).collect::<Result<Vec<_>>>()?;
                let sum: Vec<f64> = terms.iter().map(|term| term.coefficient).collect();
                into.run(&Step::sum(&sum)?, StepArgs::over(buffers, xy(b.states[out])?)?)?;
            }
            Ask::Done { x } => return Ok(b.states[x]),
        }
    }
}

/// The data, a ring, as rows of four.
pub(crate) fn ring() -> Vec<f32> {
    let point = |i: usize| (std::f32::consts::TAU * i as f32 / POINTS as f32).sin_cos();
    (0..POINTS).map(point).flat_map(|(y, x)| [x, y, x * x + y * y, 0.0]).collect()
}

/// How far the farthest of the particles, rows of four, is from the ring.
pub(crate) fn farthest(particles: &[f32]) -> f32 {
    particles.chunks(4).map(|p| (p[0].hypot(p[1]) - 1.0).abs()).fold(0.0, f32::max)
}
