//! From noise to images: a solver's questions answered by the network and the `step` op.

use super::model::{Description, Weights};
use super::unet::Unet;
use super::workspace::Id;
use advect::ops::{Noise, Step, StepArgs};
use advect::solver::{Ask, Buffer, Guidance, Method, Solver, Term, uniform};
use advect::{Device, Dtype, Result, View};

/// How to sample.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Recipe {
    pub(crate) method: Method,
    pub(crate) steps: usize,
    /// 1 is the plain conditional model, which costs half of any other.
    pub(crate) guidance: f64,
}

/// A network on a device with the states and slopes of a solver.
pub(crate) struct Sampler {
    unet: Unet,
    solver: Solver,
    null_class: usize,
    /// Images at once.
    batch: usize,
    /// One row of embedded time an evaluation.
    times: View<Id>,
    states: Vec<View<Id>>,
    /// One a stage; the branches of guidance follow each other along the batch.
    slopes: Vec<View<Id>>,
}

impl Sampler {
    pub(crate) fn new(
        device: Device,
        dtype: Dtype,
        description: &Description,
        weights: &Weights,
        recipe: Recipe,
        batch: usize,
    ) -> anyhow::Result<Self> {
        let d = description;
        let guidance = match recipe.guidance == 1.0 {
            true => Guidance::none(),
            false => Guidance::classifier_free(recipe.guidance),
        };
        let branches = guidance.branches();
        let solver = Solver::new(recipe.method.tableau(), uniform(recipe.steps)?, guidance);
        let mut unet = Unet::new(device, dtype, d, weights, branches * batch)?;
        let workspace = unet.workspace();

        let mut times = Vec::new();
        let mut ahead = solver.clone();
        loop {
            match ahead.next_ask() {
                Ask::Eval { t, .. } => times.extend(d.time_embedding(t)),
                Ask::Combine { .. } => {}
                Ask::Done { .. } => break,
            }
        }
        let image = |n| [n, d.in_channels, d.image_size, d.image_size];
        let states = (0..solver.states()).map(|_| workspace.image(image(batch))).collect::<Result<_>>()?;
        let stages = solver.tableau().stages();
        let slopes = (0..stages).map(|_| workspace.image(image(branches * batch))).collect::<Result<_>>()?;
        let times = workspace.values(&[times.len() / (2 * d.time_freqs), 2 * d.time_freqs], &times)?;
        Ok(Self { unet, solver, null_class: d.null_class, batch, times, states, slopes })
    }

    /// Evaluations of the velocity for each image.
    pub(crate) fn evaluations(&self) -> usize {
        self.solver.evaluations()
    }

    /// Passes of the network in one evaluation.
    pub(crate) fn branches(&self) -> usize {
        self.solver.guidance().branches()
    }

    /// Draws an image of each class. The noise of an image depends on the seed and its number alone,
    /// counted from `first` on: not on the batch. `evaluated` is told how many images an evaluation was of.
    pub(crate) fn draw(
        &mut self,
        classes: &[usize],
        seed: u64,
        first: usize,
        mut evaluated: impl FnMut(usize),
    ) -> Result<Vec<f32>> {
        let mut images = Vec::new();
        for (chunk, classes) in classes.chunks(self.batch).enumerate() {
            self.noise(seed, first + chunk * self.batch, classes.len())?;
            images.extend(self.solve(classes, &mut evaluated)?);
        }
        Ok(images)
    }

    /// Integrates from given noise instead of drawing it: at most a batch of images.
    #[cfg(test)]
    pub(crate) fn continue_from(&mut self, x0: &[f32], classes: &[usize]) -> Result<Vec<f32>> {
        let mut padded = x0.to_vec();
        padded.resize(self.states[0].len(), 0.0);
        let state = self.states[0].clone();
        self.unet.workspace().write(&state, &padded)?;
        self.solve(classes, &mut |_| ())
    }

    /// Answers every question of the solver, starting from state 0.
    fn solve(&mut self, classes: &[usize], evaluated: &mut impl FnMut(usize)) -> Result<Vec<f32>> {
        let (n, branches) = (classes.len(), self.branches());
        let labels: Vec<usize> = match branches {
            1 => classes.to_vec(),
            _ => classes.iter().map(|_| self.null_class).chain(classes.iter().copied()).collect(),
        };
        self.unet.set_labels(&labels)?;
        let mut solver = self.solver.clone();
        let mut evaluation = 0;
        loop {
            match solver.next_ask() {
                Ask::Eval { x, stage, .. } => {
                    let time = self.times.clone().slice(0, evaluation..evaluation + 1)?;
                    let x = self.states[x].clone().slice(0, 0..n)?;
                    let out = self.slopes[stage].clone().slice(0, 0..n * branches)?;
                    self.unet.velocity(&time, &x, &out)?;
                    evaluation += 1;
                    evaluated(n);
                }
                Ask::Combine { out, terms } => self.combine(n, out, &terms)?,
                Ask::Done { x } => {
                    let x = self.states[x].clone().slice(0, 0..n)?;
                    return self.unet.workspace().read(&x);
                }
            }
        }
    }

    /// One `step`: a sum of states and slopes into the state `out`.
    fn combine(&mut self, n: usize, out: usize, terms: &[Term]) -> Result<()> {
        let place = |term: &Term| match term.buffer {
            Buffer::State(state) => self.states[state].clone().slice(0, 0..n),
            Buffer::Slope { stage, branch } => {
                self.slopes[stage].clone().slice(0, branch * n..(branch + 1) * n)
            }
        };
        let buffers = terms.iter().map(place).collect::<Result<Vec<_>>>()?;
        let coefficients: Vec<f64> = terms.iter().map(|term| term.coefficient).collect();
        let out = self.states[out].clone().slice(0, 0..n)?;
        self.unet.workspace().run(&Step::sum(&coefficients)?, StepArgs::over(buffers, out)?)
    }

    /// Standard normal noise over the first `n` images of state 0; image `first` has the stream `first`.
    fn noise(&mut self, seed: u64, first: usize, n: usize) -> Result<()> {
        let op = Step::noise(1.0, Noise { seed, stream: first as u64 });
        // A step has a first buffer; under the coefficient 0 it is not read.
        let unread = self.states[1].clone().slice(0, 0..n)?;
        let out = self.states[0].clone().slice(0, 0..n)?;
        self.unet.workspace().run(&op, StepArgs::over([unread], out)?)
    }
}
