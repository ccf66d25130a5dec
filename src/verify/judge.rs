//! One case made concrete, and the verdict on what a target made of it.
//!
//! Inputs are rounded to their dtype and surrounded by NaN; outputs start as a poison that no kernel
//! writes and are fenced with it. So a stray read gives NaN, a stray write breaks the fence, and an
//! element never written still holds the poison. On a simulated GPU a stray read is a finding by itself, also
//! where nothing comes of it.

use super::case::{Case, Fill, Verified};
use crate::dtype::{Dtype, Element};
use crate::error::Result;
use crate::op::{Op, Operands, Side};
use crate::reference::{Dense, Expected};
use crate::view::View;
use crate::with_element;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use std::collections::HashMap;
#[cfg(feature = "ptx-sim")]
use std::ops::Range;

/// Elements of fence on either side of an operand: a multiple of every alignment that kernels care
/// about, so that a fence does not hide an aligned fast path.
const FENCE: usize = 64;

/// A case with its memory images and what its outputs should hold.
pub struct Prepared<T: Op> {
    /// Name of the case.
    pub name: String,
    /// The op with its options.
    pub op: T,
    /// Every operand over a memory image: fences, poison, values.
    pub args: T::Args<Vec<u8>, Vec<u8>>,
    /// What each output should hold, in the order of the outputs.
    pub expected: Vec<Expected>,
    fixed: Vec<OutputShape>,
}

/// Where the elements of an output lie, kept apart from the memory that a target fills.
struct OutputShape {
    name: &'static str,
    dtype: Dtype,
    shape: Vec<usize>,
    /// Position in memory of each element, row-major over the shape.
    positions: Vec<usize>,
}

/// How an output compares with its bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// The largest error as a fraction of its bound; NaN when a result is NaN.
    pub worst: f64,
    /// Index of the element where that is.
    pub at: Vec<usize>,
    /// What is wrong; `None` when every element is within its bound and every fence stands.
    pub fault: Option<String>,
}

/// How a target may round: WGSL may round a conversion to 16 bits either way and flush subnormals.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// To nearest even, subnormals kept.
    Exact,
    /// As WGSL allows.
    Wgsl,
}

/// The poison of a dtype: a NaN whose payload no arithmetic makes, or of integers something unlikely.
fn poison(dtype: Dtype) -> Vec<u8> {
    match dtype {
        Dtype::F32 => 0x7fb0_dead_u32.to_le_bytes().to_vec(),
        Dtype::F16 => 0x7ead_u16.to_le_bytes().to_vec(),
        Dtype::Bf16 => 0x7fad_u16.to_le_bytes().to_vec(),
        Dtype::I32 => 0x5ead_dead_u32.to_le_bytes().to_vec(),
        Dtype::U8 => vec![0xad],
    }
}

/// What surrounds the elements of an input: NaN, or of integers what no mask, length or index is.
fn fence(dtype: Dtype) -> Vec<u8> {
    if dtype.is_float() { encode(dtype, f32::NAN) } else { poison(dtype) }
}

fn encode(dtype: Dtype, x: f32) -> Vec<u8> {
    fn write<T: Element>(x: f32) -> Vec<u8> {
        bytemuck::bytes_of(&T::from_f32(x)).to_vec()
    }
    with_element!(dtype, write(x))
}

fn decode(dtype: Dtype, bytes: &[u8]) -> f64 {
    fn read<T: Element>(bytes: &[u8]) -> f64 {
        f64::from(bytemuck::pod_read_unaligned::<T>(bytes).to_f32())
    }
    with_element!(dtype, read(bytes))
}

/// The memory position of every element, row-major.
fn positions<M>(view: &View<M>) -> Vec<usize> {
    let mut all = vec![view.offset()];
    for (&size, &stride) in view.shape().iter().zip(view.strides()) {
        all = all.iter().flat_map(|&at| (0..size).map(move |i| at + i * stride)).collect();
    }
    all
}

/// The bytes of a view's memory that are no element of it: fences and gaps.
#[cfg(feature = "ptx-sim")]
pub(super) fn gaps(view: &View<Vec<u8>>) -> Vec<Range<usize>> {
    let size = view.dtype().size();
    let mut elements = positions(view);
    elements.sort_unstable();
    let mut end = 0;
    let mut all = Vec::new();
    for at in elements.into_iter().map(|p| p * size).chain([view.memory().len()]) {
        if end < at {
            all.push(end..at);
        }
        end = at + size;
    }
    all
}

/// A fraction of a bound in words.
pub fn in_bounds(ratio: f64) -> String {
    if ratio < 1e4 { format!("{ratio:.3}") } else { format!("{ratio:.3e}") }
}

/// The index tuple of the `position`-th element, row-major.
fn unravel(mut position: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (i, &size) in index.iter_mut().zip(shape).rev() {
        *i = position % size;
        position /= size;
    }
    index
}

/// A fenced memory image for a view, and the view shifted behind the fence.
fn image<M>(view: &View<M>, filler: &[u8]) -> View<Vec<u8>> {
    let end = view.extent().expect("cases are small").end;
    let memory = filler.repeat(end + 2 * FENCE);
    View::strided(memory, view.dtype(), view.shape(), view.strides(), view.offset() + FENCE)
        .expect("the view was one already")
}

fn values(fill: &Fill, count: usize, rng: &mut ChaCha8Rng) -> Vec<f32> {
    let mut uniform = |low: f32, high: f32| low + (high - low) * rng.random::<f32>();
    match fill {
        Fill::Normal(deviation) => (0..count)
            .map(|_| {
                let radius = (-2.0 * uniform(1e-7, 1.0).ln()).sqrt();
                deviation * radius * (std::f32::consts::TAU * uniform(0.0, 1.0)).cos()
            })
            .collect(),
        Fill::Uniform(low, high) => (0..count).map(|_| uniform(*low, *high)).collect(),
        Fill::Constant(x) => vec![*x; count],
        Fill::Values(list) => list.iter().copied().cycle().take(count).collect(),
    }
}

/// A seed that depends on nothing but the text: the same case has the same numbers everywhere.
fn seed(text: &str) -> u64 {
    // FNV-1a.
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

impl<T: Verified> Prepared<T> {
    /// Draws the inputs, lays out the memory and computes what is expected.
    ///
    /// # Panics
    /// When the case's reference does not give one value per output element: a defect of the case.
    pub fn new(case: &Case<T>) -> Self {
        let mut dense: HashMap<&'static str, Dense> = HashMap::new();
        let laid = T::map(
            case.args.duplicate(),
            |name, view| {
                let dtype = view.dtype();
                let mut rng = ChaCha8Rng::seed_from_u64(seed(&format!("{} {name}", case.name)));
                let mut image = image(&view, &fence(dtype));
                let at = positions(&image);
                let size = dtype.size();
                for (&p, x) in at.iter().zip(values(view.memory(), at.len(), &mut rng)) {
                    image.memory_mut()[p * size..][..size].copy_from_slice(&encode(dtype, x));
                }
                // Read back: strided repeats hold what was written last, and values are rounded.
                let data = at.iter().map(|&p| decode(dtype, &image.memory()[p * size..][..size])).collect();
                dense.insert(name, Dense { shape: view.shape().to_vec(), data });
                Ok(image)
            },
            |_, view| Ok(image(&view, &poison(view.dtype()))),
        )
        .expect("cases are valid");
        let oracle_args = T::map(
            case.args.duplicate(),
            |name, view| view.try_map(|_| Result::Ok(dense[name].clone())),
            |_, view| Ok(view),
        )
        .expect("cases are valid");
        let expected = case.op.reference(&oracle_args);
        let fixed: Vec<OutputShape> = laid
            .each()
            .iter()
            .filter_map(|o| match o.side {
                Side::Input(_) => None,
                Side::Output(v) => v.map(|v| OutputShape {
                    name: o.name,
                    dtype: v.dtype(),
                    shape: v.shape().to_vec(),
                    positions: positions(v),
                }),
            })
            .collect();
        assert_eq!(fixed.len(), expected.len(), "one expectation per output");
        for (f, e) in fixed.iter().zip(&expected) {
            assert_eq!((f.positions.len(), e.error.len()), (e.value.len(), e.value.len()), "{}", case.name);
        }
        Self { name: case.name.clone(), op: case.op, args: laid, expected, fixed }
    }

    /// Judges the memory of the outputs, in their order, after a target ran.
    pub fn judge(&self, outputs: &[Vec<u8>], rounding: Rounding) -> Verdict {
        let mut verdict = Verdict { worst: 0.0, at: Vec::new(), fault: None };
        if outputs.len() != self.fixed.len() {
            verdict.fault =
                Some(format!("{} outputs came back, {} expected", outputs.len(), self.fixed.len()));
        }
        let mut blamed = None;
        for ((shape, expected), memory) in self.fixed.iter().zip(&self.expected).zip(outputs) {
            if shape.judge(expected, memory, rounding, &mut verdict) {
                blamed = Some(shape);
            }
        }
        if let (Some(fault), Some(output)) = (&mut verdict.fault, blamed) {
            *fault += &format!("; of {}", self.inputs(&output.shape, &verdict.at));
        }
        verdict
    }

    /// The inputs in words: the element at `index` of those that have the output's shape, the range of the others.
    fn inputs(&self, shape: &[usize], index: &[usize]) -> String {
        let mut words = Vec::new();
        for operand in self.args.each() {
            let Side::Input(Some(view)) = operand.side else { continue };
            let size = view.dtype().size();
            let value = |p: usize| decode(view.dtype(), &view.memory()[p * size..][..size]);
            let name = operand.name;
            words.push(if view.shape() == shape && index.len() == shape.len() {
                let along = index.iter().zip(view.strides());
                format!("{name}{index:?} = {:e}", value(along.fold(view.offset(), |p, (i, s)| p + i * s)))
            } else {
                let all = || positions(view).into_iter().map(value);
                let (low, high) =
                    (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
                match low <= high {
                    true => format!("{name} {:?} in {low:e}..={high:e}", view.shape()),
                    false => format!("{name} {:?}", view.shape()),
                }
            });
        }
        words.join(", ")
    }
}

impl OutputShape {
    /// Whether the verdict is now one of an element of this output.
    fn judge(&self, expected: &Expected, memory: &[u8], rounding: Rounding, verdict: &mut Verdict) -> bool {
        let mut blamed = false;
        let Self { name, dtype, shape, positions } = self;
        let size = dtype.size();
        let poison = poison(*dtype);
        let (flush, either_way) = match rounding {
            Rounding::Exact => (0.0, 1.0),
            Rounding::Wgsl => (f64::from(f32::MIN_POSITIVE), if *dtype == Dtype::F32 { 1.0 } else { 2.0 }),
        };
        let mut inside = vec![false; memory.len() / size];
        for (i, &p) in positions.iter().enumerate() {
            inside[p] = true;
            let bytes = &memory[p * size..][..size];
            let (want, error) = (expected.value[i], expected.error[i]);
            let got = decode(*dtype, bytes);
            let store = (dtype.unit_roundoff() * (want.abs() + error)).max(0.5 * dtype.smallest());
            let bound = error + either_way * store + flush;
            // Past the largest number a result may saturate or become infinite.
            let overflow =
                want.abs() + bound > dtype.largest() && got.abs() >= dtype.largest() && got * want > 0.0;
            let ratio = if overflow || got == want { 0.0 } else { (got - want).abs() / bound };
            // Written so that NaN fails.
            let within = ratio <= 1.0;
            if verdict.worst < ratio || ratio.is_nan() && !verdict.worst.is_nan() {
                verdict.worst = ratio;
                verdict.at = unravel(i, shape);
                if !within {
                    blamed = true;
                    let unwritten = if bytes == poison { " (never written)" } else { "" };
                    let tile: Vec<usize> = verdict.at.iter().map(|x| x / 16).collect();
                    verdict.fault = Some(format!(
                        "{name}{:?} in 16-tile {tile:?}: wanted {want:e}, got {got:e}{unwritten}, \
                         {} of the bound {bound:.3e}",
                        verdict.at,
                        in_bounds(ratio)
                    ));
                }
            }
        }
        for (p, _) in inside.iter().enumerate().filter(|(_, inside)| !**inside) {
            if memory[p * size..][..size] != poison {
                verdict.worst = f64::INFINITY;
                verdict.fault = Some(format!(
                    "{name}: element {p} of its memory was overwritten, which is no element of the output"
                ));
                return false;
            }
        }
        blamed
    }
}
