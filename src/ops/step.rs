//! One explicit solver step: a linear combination per sample, with noise: the spec.

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Language, Op, Operands, Plan, Side, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::view::View;
use arrayvec::ArrayVec;

/// The most buffers of one combination.
pub const MAX_BUFFERS: usize = 8;

/// `out[b, e] = sum over j of c[b, j] x_j[b, e] + c_noise[b] z(seed, stream + b, e)`
///
/// Nearly every explicit step of an ODE or SDE solver is of this form: guidance, changes of
/// parametrisation and differences of history are linear and fold into the coefficients, which the host
/// computes in f64 and rounds once. A coefficient of 0 leaves its buffer unread, whatever it holds.
///
/// ```
/// use advect::{Cpu, View, ops::{Step, StepArgs}};
/// // A step of Euler's method with guidance: x + h (v0 + w (v1 - v0)), h = 0.5, w = 3.
/// let (x, v0, v1, mut out) = ([1.0f32, 2.0], [0.0f32, 4.0], [2.0f32, 4.0], [0.0f32; 2]);
/// let step = Step::sum(&[1.0, 0.5 * (1.0 - 3.0), 0.5 * 3.0])?;
/// let buffers = [View::of(&x, &[2])?, View::of(&v0, &[2])?, View::of(&v1, &[2])?];
/// Cpu::new()?.run(&step, StepArgs::over(buffers, View::of_mut(&mut out, &[2])?)?)?;
/// assert_eq!(out, [4.0, 4.0]);
/// # Ok::<(), advect::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// What the buffers are multiplied by.
    pub coefficients: Coefficients,
    /// Standard normal noise made on the way, if any.
    pub noise: Option<Noise>,
}

/// What the buffers are multiplied by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Coefficients {
    /// The same for all samples. Finite, and 0 for buffers that are not given.
    Values {
        /// For `x0` to `x7`.
        x: [f32; MAX_BUFFERS],
        /// For the noise; 0 without [`Step::noise`].
        noise: f32,
    },
    /// Row b of the operand `table` is for sample b: columns 0 to 7 for `x0` to `x7`, column 8 for the
    /// noise. Columns of buffers that are not given, and of noise that is not asked for, are not read.
    Table,
}

/// Where noise comes from: element e of sample b is `z(seed, stream + b, e)`, see [`crate::philox`].
/// It depends on nothing else, so that samples are the same however they are batched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Noise {
    /// The key of the generator.
    pub seed: u64,
    /// The stream of the first sample; the next ones follow (and wrap around).
    pub stream: u64,
}

impl Step {
    /// The sum of buffers times these coefficients, each rounded once to f32.
    ///
    /// # Errors
    /// [`Error::Argument`] when there are more than [`MAX_BUFFERS`].
    pub fn sum(coefficients: &[f64]) -> Result<Self> {
        let mut x = [0.0; MAX_BUFFERS];
        let Some(given) = x.get_mut(..coefficients.len()) else {
            let wanted = format!("at most {MAX_BUFFERS}");
            return Err(Error::argument(NAME, "coefficients", wanted, coefficients.len()));
        };
        given.iter_mut().zip(coefficients).for_each(|(x, &c)| *x = c as f32);
        Ok(Self { coefficients: Coefficients::Values { x, noise: 0.0 }, noise: None })
    }

    /// Standard normal noise alone, times `scale`: the one buffer of the call is not read.
    pub fn noise(scale: f32, noise: Noise) -> Self {
        let coefficients = Coefficients::Values { x: [0.0; MAX_BUFFERS], noise: scale };
        Self { coefficients, noise: Some(noise) }
    }
}

crate::operands! {
    /// Operands of [`Step`]: buffers of one dtype and shape `[b, ..]` of 1 to 4 axes, with free strides.
    /// `e` counts a sample's elements row-major, whatever the strides.
    pub struct StepArgs {
        /// The first buffer. Pure noise has coefficient 0 here.
        x0: input,
        /// The second buffer.
        x1: optional,
        /// The third buffer.
        x2: optional,
        /// The fourth buffer.
        x3: optional,
        /// The fifth buffer.
        x4: optional,
        /// The sixth buffer.
        x5: optional,
        /// The seventh buffer.
        x6: optional,
        /// The eighth buffer.
        x7: optional,
        /// Coefficients per sample, `[b, 9]`, always f32: see [`Coefficients::Table`].
        table: optional,
        /// The result.
        out: output,
    }
}

impl<I, O> StepArgs<I, O> {
    /// The buffers of a combination in order, and no table.
    ///
    /// # Errors
    /// [`Error::Argument`] when there is none or there are more than [`MAX_BUFFERS`].
    pub fn over(buffers: impl IntoIterator<Item = View<I>>, out: View<O>) -> Result<Self> {
        let mut x = buffers.into_iter();
        let Some(x0) = x.next() else {
            return Err(Error::argument(NAME, "buffers", "at least 1", "none"));
        };
        let [x1, x2, x3, x4, x5, x6, x7] = std::array::from_fn(|_| x.next());
        let more = x.count();
        if more > 0 {
            let wanted = format!("at most {MAX_BUFFERS}");
            return Err(Error::argument(NAME, "buffers", wanted, MAX_BUFFERS + more));
        }
        Ok(Self { x0, x1, x2, x3, x4, x5, x6, x7, table: None, out })
    }
}

crate::params! {
    /// Scalars of the step kernels. Element e of a sample is (i, j, k) with the last axis fastest.
    pub struct StepParams {
        /// Samples, or what is left of them where they are walked as one.
        samples: u32,
        /// Elements of a sample.
        len: u32,
        /// Elements along the middle axis.
        size_j: u32,
        /// Elements along the last axis.
        size_k: u32,
        /// Stride of `x0` from sample to sample.
        x0_b: u32,
        /// Stride of `x0` along the first axis of a sample.
        x0_i: u32,
        /// Stride of `x0` along the middle axis.
        x0_j: u32,
        /// Stride of `x0` along the last axis.
        x0_k: u32,
        /// Stride of `x1` from sample to sample.
        x1_b: u32,
        /// Stride of `x1` along the first axis of a sample.
        x1_i: u32,
        /// Stride of `x1` along the middle axis.
        x1_j: u32,
        /// Stride of `x1` along the last axis.
        x1_k: u32,
        /// Stride of `x2` from sample to sample.
        x2_b: u32,
        /// Stride of `x2` along the first axis of a sample.
        x2_i: u32,
        /// Stride of `x2` along the middle axis.
        x2_j: u32,
        /// Stride of `x2` along the last axis.
        x2_k: u32,
        /// Stride of `x3` from sample to sample.
        x3_b: u32,
        /// Stride of `x3` along the first axis of a sample.
        x3_i: u32,
        /// Stride of `x3` along the middle axis.
        x3_j: u32,
        /// Stride of `x3` along the last axis.
        x3_k: u32,
        /// Stride of `x4` from sample to sample.
        x4_b: u32,
        /// Stride of `x4` along the first axis of a sample.
        x4_i: u32,
        /// Stride of `x4` along the middle axis.
        x4_j: u32,
        /// Stride of `x4` along the last axis.
        x4_k: u32,
        /// Stride of `x5` from sample to sample.
        x5_b: u32,
        /// Stride of `x5` along the first axis of a sample.
        x5_i: u32,
        /// Stride of `x5` along the middle axis.
        x5_j: u32,
        /// Stride of `x5` along the last axis.
        x5_k: u32,
        /// Stride of `x6` from sample to sample.
        x6_b: u32,
        /// Stride of `x6` along the first axis of a sample.
        x6_i: u32,
        /// Stride of `x6` along the middle axis.
        x6_j: u32,
        /// Stride of `x6` along the last axis.
        x6_k: u32,
        /// Stride of `x7` from sample to sample.
        x7_b: u32,
        /// Stride of `x7` along the first axis of a sample.
        x7_i: u32,
        /// Stride of `x7` along the middle axis.
        x7_j: u32,
        /// Stride of `x7` along the last axis.
        x7_k: u32,
        /// Stride of `out` from sample to sample.
        out_b: u32,
        /// Stride of `out` along the first axis of a sample.
        out_i: u32,
        /// Stride of `out` along the middle axis.
        out_j: u32,
        /// Stride of `out` along the last axis.
        out_k: u32,
        /// Stride of `table` from sample to sample.
        table_b: u32,
        /// Stride of `table` from coefficient to coefficient.
        table_c: u32,
        /// Coefficient of `x0`, by value.
        c0: f32,
        /// Coefficient of `x1`, by value.
        c1: f32,
        /// Coefficient of `x2`, by value.
        c2: f32,
        /// Coefficient of `x3`, by value.
        c3: f32,
        /// Coefficient of `x4`, by value.
        c4: f32,
        /// Coefficient of `x5`, by value.
        c5: f32,
        /// Coefficient of `x6`, by value.
        c6: f32,
        /// Coefficient of `x7`, by value.
        c7: f32,
        /// Coefficient of the noise, by value.
        c8: f32,
        /// Low half of the noise's seed.
        seed_lo: u32,
        /// High half of the noise's seed.
        seed_hi: u32,
        /// Low half of the first sample's stream.
        stream_lo: u32,
        /// High half of the first sample's stream.
        stream_hi: u32,
    }
}

/// An operand's strides along (sample, i, j, k).
pub(crate) type Strides = [u32; 4];

impl StepParams {
    /// The strides of `x0` to `x7` and `out`.
    pub(crate) fn strides(&self) -> [Strides; MAX_BUFFERS + 1] {
        [
            [self.x0_b, self.x0_i, self.x0_j, self.x0_k],
            [self.x1_b, self.x1_i, self.x1_j, self.x1_k],
            [self.x2_b, self.x2_i, self.x2_j, self.x2_k],
            [self.x3_b, self.x3_i, self.x3_j, self.x3_k],
            [self.x4_b, self.x4_i, self.x4_j, self.x4_k],
            [self.x5_b, self.x5_i, self.x5_j, self.x5_k],
            [self.x6_b, self.x6_i, self.x6_j, self.x6_k],
            [self.x7_b, self.x7_i, self.x7_j, self.x7_k],
            [self.out_b, self.out_i, self.out_j, self.out_k],
        ]
    }

    /// Whether the elements of a sample are neighbours, in the buffers that are used and in `out`.
    pub(crate) fn dense(&self, used: [bool; MAX_BUFFERS]) -> bool {
        let strides = self.strides();
        let mut each = used.into_iter().chain([true]).zip(strides);
        self.len == self.size_k && each.all(|(used, s)| !used || s[3] == 1 || self.len == 1)
    }

    /// Whether `width` neighbours always start at a multiple of `width` elements: of the sample, and of
    /// the buffers that are used.
    fn spans(&self, used: [bool; MAX_BUFFERS], width: u32) -> bool {
        let mut each = used.into_iter().chain([true]).zip(self.strides());
        self.dense(used) && each.all(|(used, s)| !used || self.samples <= 1 || s[0] % width == 0)
    }
}

const NAME: &str = "step";
const BUFFERS: [&str; MAX_BUFFERS] = ["x0", "x1", "x2", "x3", "x4", "x5", "x6", "x7"];

/// One axis of the buffers: its size, and the stride of each buffer and of `out`.
#[derive(Debug, Clone, Copy)]
struct Axis {
    size: usize,
    strides: [usize; MAX_BUFFERS + 1],
}

/// Joins neighbouring axes (outermost first) that every buffer walks as one.
fn join(axes: impl IntoIterator<Item = Axis>) -> ArrayVec<Axis, 4> {
    let mut joined: ArrayVec<Axis, 4> = ArrayVec::new();
    for axis in axes.into_iter().filter(|a| a.size != 1) {
        match joined.last_mut() {
            Some(last)
                if last.strides.iter().zip(axis.strides).all(|(&o, i)| o == i.saturating_mul(axis.size)) =>
            {
                *last = Axis { size: last.size.saturating_mul(axis.size), ..axis };
            }
            _ => joined.push(axis),
        }
    }
    joined
}

impl Step {
    /// Which buffers are read: those given, less those whose coefficient is known to be 0.
    pub(crate) fn used(&self, given: [bool; MAX_BUFFERS]) -> [bool; MAX_BUFFERS] {
        match self.coefficients {
            Coefficients::Values { x, .. } => std::array::from_fn(|j| given[j] && x[j] != 0.0),
            Coefficients::Table => given,
        }
    }

    /// Whether noise is made.
    pub(crate) fn noisy(&self) -> bool {
        let zero = matches!(self.coefficients, Coefficients::Values { noise: 0.0, .. });
        self.noise.is_some() && !zero
    }

    /// Coefficients and noise fit the operands that are given.
    fn options(&self, given: [bool; MAX_BUFFERS], table: bool) -> Result<()> {
        let Coefficients::Values { x, noise } = self.coefficients else {
            if table {
                return Ok(());
            }
            return Err(Error::argument(NAME, "table", "coefficients [b, 9]", "none"));
        };
        if table {
            let wanted = "no table, since coefficients come by value";
            return Err(Error::argument(NAME, "table", wanted, "a table"));
        }
        if let Some(c) = x.into_iter().chain([noise]).find(|c| !c.is_finite()) {
            return Err(Error::argument(NAME, "coefficients", "finite numbers", c));
        }
        if let Some(j) = (0..MAX_BUFFERS).find(|&j| x[j] != 0.0 && !given[j]) {
            let wanted = format!("a buffer for its coefficient {}", x[j]);
            return Err(Error::argument(NAME, BUFFERS[j], wanted, "none"));
        }
        if noise != 0.0 && self.noise.is_none() {
            let wanted = format!("a seed and a stream for its coefficient {noise}");
            return Err(Error::argument(NAME, "noise", wanted, "none"));
        }
        Ok(())
    }

    /// How many buffers are read, to plan and to cost with.
    fn count(&self, signature: &Signature) -> usize {
        self.used(BUFFERS.map(|x| signature.has(x))).into_iter().filter(|&u| u).count()
    }
}

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Step {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/step.cu");
    const WGSL: &'static str = include_str!("../../shaders/step.wgsl");
    type Args<I, O> = StepArgs<I, O>;
    type Params = StepParams;

    fn check<I, O>(&self, args: &StepArgs<I, O>) -> Result<StepParams> {
        check::one_dtype(NAME, args, &["table"])?;
        let shape = args.x0.shape();
        if !(1..=4).contains(&shape.len()) {
            return Err(Error::argument(NAME, "x0", "1 to 4 axes [b, ..]", format!("{shape:?}")));
        }
        let all = args.each();
        let mut given = [false; MAX_BUFFERS];
        let mut strides: [&[usize]; MAX_BUFFERS + 1] = [&[]; MAX_BUFFERS + 1];
        for (j, operand) in all[..MAX_BUFFERS].iter().enumerate() {
            if let Side::Input(Some(view)) = operand.side {
                check::shape(NAME, operand.name, view, shape)?;
                given[j] = true;
                strides[j] = view.strides();
            }
        }
        check::shape(NAME, "out", &args.out, shape)?;
        strides[MAX_BUFFERS] = args.out.strides();
        self.options(given, args.table.is_some())?;
        if let Some(table) = &args.table {
            check::shape(NAME, "table", table, &[shape[0], MAX_BUFFERS + 1])?;
            if table.dtype() != Dtype::F32 {
                return Err(Error::argument(NAME, "table", "f32 at every dtype", table.dtype()));
            }
        }

        // Buffers that are not read may lie anyhow.
        let used = self.used(given);
        let axis = |a: usize| Axis {
            size: shape[a],
            strides: std::array::from_fn(|j| if j == MAX_BUFFERS || used[j] { strides[j][a] } else { 0 }),
        };
        let mut axes: ArrayVec<Axis, 4> = (0..shape.len()).map(axis).collect();
        if !self.noisy() {
            // Nobody asks for a sample's elements by number: walk them as the result lies.
            axes[1..].sort_by_key(|a| std::cmp::Reverse(a.strides[MAX_BUFFERS]));
        }
        let one = Axis { size: 1, strides: [0; MAX_BUFFERS + 1] };
        let mut samples = one;
        let mut inner;
        if self.noisy() || self.coefficients == Coefficients::Table {
            samples = axes.remove(0);
            inner = join(axes);
        } else {
            // Samples do not differ: they are one more axis.
            inner = join(axes);
            if inner.len() == 4 {
                samples = inner.remove(0);
            }
        }
        while inner.len() < 3 {
            inner.insert(0, one);
        }
        let count = |v: usize| check::scalar(NAME, "out", v);
        let stride = |j: usize, a: &Axis| {
            let name = BUFFERS.get(j).copied().unwrap_or("out");
            // A stride along an axis of one is never walked, and may be anything.
            check::scalar(NAME, name, if a.size <= 1 { 0 } else { a.strides[j] })
        };
        let table =
            |a: usize| args.table.as_ref().map_or(Ok(0), |t| check::scalar(NAME, "table", t.strides()[a]));
        let (values, noise) = match self.coefficients {
            Coefficients::Values { x, noise } => (x, noise),
            Coefficients::Table => ([0.0; MAX_BUFFERS], 0.0),
        };
        let Noise { seed, stream } = self.noise.unwrap_or(Noise { seed: 0, stream: 0 });
        let (i, j, k) = (&inner[0], &inner[1], &inner[2]);
        let len = i.size.saturating_mul(j.size).saturating_mul(k.size);
        count(samples.size.saturating_mul(len))?;
        Ok(StepParams {
            samples: count(samples.size)?,
            len: count(len)?,
            size_j: count(j.size)?,
            size_k: count(k.size)?,
            x0_b: stride(0, &samples)?,
            x0_i: stride(0, i)?,
            x0_j: stride(0, j)?,
            x0_k: stride(0, k)?,
            x1_b: stride(1, &samples)?,
            x1_i: stride(1, i)?,
            x1_j: stride(1, j)?,
            x1_k: stride(1, k)?,
            x2_b: stride(2, &samples)?,
            x2_i: stride(2, i)?,
            x2_j: stride(2, j)?,
            x2_k: stride(2, k)?,
            x3_b: stride(3, &samples)?,
            x3_i: stride(3, i)?,
            x3_j: stride(3, j)?,
            x3_k: stride(3, k)?,
            x4_b: stride(4, &samples)?,
            x4_i: stride(4, i)?,
            x4_j: stride(4, j)?,
            x4_k: stride(4, k)?,
            x5_b: stride(5, &samples)?,
            x5_i: stride(5, i)?,
            x5_j: stride(5, j)?,
            x5_k: stride(5, k)?,
            x6_b: stride(6, &samples)?,
            x6_i: stride(6, i)?,
            x6_j: stride(6, j)?,
            x6_k: stride(6, k)?,
            x7_b: stride(7, &samples)?,
            x7_i: stride(7, i)?,
            x7_j: stride(7, j)?,
            x7_k: stride(7, k)?,
            out_b: stride(MAX_BUFFERS, &samples)?,
            out_i: stride(MAX_BUFFERS, i)?,
            out_j: stride(MAX_BUFFERS, j)?,
            out_k: stride(MAX_BUFFERS, k)?,
            table_b: table(0)?,
            table_c: table(1)?,
            c0: values[0],
            c1: values[1],
            c2: values[2],
            c3: values[3],
            c4: values[4],
            c5: values[5],
            c6: values[6],
            c7: values[7],
            c8: noise,
            seed_lo: seed as u32,
            seed_hi: (seed >> 32) as u32,
            stream_lo: stream as u32,
            stream_hi: (stream >> 32) as u32,
        })
    }

    fn plan(&self, p: &StepParams, signature: &Signature, caps: &Caps) -> Result<Plan> {
        let given = signature.slots().iter().filter(|s| s.dtype.is_some()).count() as u32;
        if given > caps.max_operands {
            let others = 1 + u32::from(signature.has("table"));
            let possible = caps.max_operands.saturating_sub(others);
            return Err(Error::Unsupported {
                op: NAME,
                what: format!("a combination of {} buffers", given - others),
                target: caps.name.clone(),
                instead: format!("{possible} can be combined there in one launch: add the rest in a second"),
            });
        }
        let used = self.used(BUFFERS.map(|x| signature.has(x)));
        let size = signature.dtype("out").size() as u32;
        let aligned = |bytes: u32| {
            let mut names = BUFFERS.into_iter().zip(used).filter(|n| n.1).map(|n| n.0).chain(["out"]);
            names.all(|name| signature.align(name) >= bytes)
        };
        let threads = 256.min(caps.max_threads);
        let mut consts = Consts::new()
            .set("THREADS", threads)
            .set("DENSE", u32::from(p.dense(used)))
            .set("NOISE", u32::from(self.noisy()))
            .set("TABLE", u32::from(self.coefficients == Coefficients::Table));
        const USE: [&str; MAX_BUFFERS] =
            ["USE_X0", "USE_X1", "USE_X2", "USE_X3", "USE_X4", "USE_X5", "USE_X6", "USE_X7"];
        for (name, used) in USE.into_iter().zip(used) {
            consts = consts.set(name, used);
        }
        let mut width = 4;
        consts = match caps.language {
            Language::Cuda { .. } => {
                let wide = aligned(16) && p.len.is_multiple_of(16 / size) && p.spans(used, 16 / size);
                if wide {
                    width = 16 / size;
                }
                consts.set("WIDE", wide).set("WIDTH", width)
            }
            // Two 16-bit elements fill a word where the adapter has no 16-bit storage.
            Language::Wgsl { .. } => consts.set("PAIRS", size == 2 && aligned(4) && p.spans(used, 2)),
        };
        let spans = u64::from(p.samples) * u64::from(p.len.div_ceil(width));
        Ok(Plan {
            entry: NAME,
            consts,
            grid: fold_grid(NAME, spans.div_ceil(u64::from(threads)), caps)?,
            block: [threads, 1, 1],
            shared_bytes: 0,
        })
    }

    fn cost(&self, p: &StepParams, signature: &Signature) -> Cost {
        let total = f64::from(p.samples) * f64::from(p.len);
        let buffers = self.count(signature) as f64;
        // A normal number: ten rounds of a block of four, half a logarithm, sine and cosine.
        let noise = if self.noisy() { 2.0 + 40.0 } else { 0.0 };
        let table = if signature.has("table") { 36.0 * f64::from(p.samples) } else { 0.0 };
        Cost {
            flops: total * (2.0 * buffers + noise),
            bytes: total * (buffers + 1.0) * signature.dtype("out").size() as f64 + table,
        }
    }

    unsafe fn cpu(&self, p: &StepParams, args: StepArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
        crate::cpu::step::run(*self, p, args, cpu);
        Ok(())
    }

    fn map<I, O, J, P>(
        args: StepArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>, Error>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>, Error>,
    ) -> Result<StepArgs<J, P>> {
        args.try_map(input, output)
    }

    fn batch_axis<I, O>(&self, _: &StepArgs<I, O>, _: &str) -> Option<usize> {
        Some(0)
    }

    fn starting_at(&self, first: usize) -> Self {
        let noise = self.noise.map(|n| Noise { stream: n.stream.wrapping_add(first as u64), ..n });
        Self { noise, ..*self }
    }
}
