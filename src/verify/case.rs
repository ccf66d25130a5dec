//! What is run: an op with options, and operands described by how they lie and what fills them.

use crate::dtype::Dtype;
use crate::op::Op;
use crate::reference::{Dense, Expected};
use crate::view::{Dims, View};
use rand_chacha::ChaCha8Rng;

/// An op with cases and a definition.
pub trait Verified: Op<Args<Vec<u8>, Vec<u8>>: Sync> + Op<Args<Fill, ()>: Sync> {
    /// The cases at one dtype: the same list serves tests, `advect verify` and the benches. Names are
    /// unique within the op.
    fn cases(dtype: Dtype) -> Vec<Case<Self>>;

    /// A random small case: sizes, strides, options.
    fn random(rng: &mut ChaCha8Rng, dtype: Dtype) -> Case<Self>;

    /// The definition: what each output should hold, in the order of the outputs.
    fn reference(&self, args: &Self::Args<Dense, ()>) -> Vec<Expected>;
}

/// One case of an op.
#[derive(Debug, Clone)]
pub struct Case<T: Op> {
    /// Its name, which is also the filter that runs it alone: options and sizes as `key=value`.
    pub name: String,
    /// The op with its options.
    pub op: T,
    /// Operands over descriptions instead of memory.
    pub args: T::Args<Fill, ()>,
}

/// What an input holds. Values are rounded to the operand's dtype before anyone sees them.
#[derive(Debug, Clone, PartialEq)]
pub enum Fill {
    /// Normal numbers with this standard deviation.
    Normal(f32),
    /// Uniform numbers between these.
    Uniform(f32, f32),
    /// Every element the same.
    Constant(f32),
    /// Exactly these, row-major, repeated as often as needed.
    Values(Vec<f32>),
}

/// How an operand lies in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Layout {
    /// Row-major without gaps.
    Contiguous,
    /// Without gaps, axes stored in this order (outermost first): `[0, 2, 3, 1]` stores an NCHW view as NHWC.
    Order(Vec<usize>),
    /// Stored in this order, with unused elements between rows of every axis and an odd offset.
    Gaps(Vec<usize>),
    /// Stored in this order, each row padded to a multiple of 8 elements: aligned, whatever the sizes.
    Pitched(Vec<usize>),
    /// One copy along these axes, which get stride 0 (inputs only).
    Broadcast(Vec<usize>),
}

/// A view for a case: shape, dtype, layout and (for inputs) fill.
pub fn view<M>(dtype: Dtype, shape: &[usize], layout: &Layout, memory: M) -> View<M> {
    let rank = shape.len();
    let natural: Vec<usize> = (0..rank).collect();
    let (order, gap, pitch, offset, repeated): (&[usize], _, _, _, &[usize]) = match layout {
        Layout::Contiguous => (&natural, 0, 1, 0, &[]),
        Layout::Order(order) => (order, 0, 1, 0, &[]),
        Layout::Gaps(order) => (order, 1, 1, 3, &[]),
        Layout::Pitched(order) => (order, 0, 8, 0, &[]),
        Layout::Broadcast(axes) => (&natural, 0, 1, 0, axes),
    };
    assert_eq!(order.len(), rank, "a layout orders every axis");
    let mut strides: Dims = shape.iter().map(|_| 0).collect();
    let mut next = 1;
    for (depth, &axis) in order.iter().rev().enumerate() {
        if repeated.contains(&axis) {
            continue;
        }
        strides[axis] = next;
        next = (next * shape[axis].max(1) + gap * (depth + 1)).next_multiple_of(pitch);
    }
    View::strided(memory, dtype, shape, &strides, offset).expect("cases have few axes")
}
