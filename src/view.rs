//! A view: dtype, shape, strides and offset over any memory.
//!
//! Shapes are logical and strides say how they lie: an NHWC image is an NCHW view whose channel stride
//! is 1, a transposed matrix is a view with its strides swapped, Q of a packed QKV projection is a
//! slice. Kernels read strides, so none of these needs a copy.

use crate::dtype::{Dtype, Element};
use crate::error::{Error, Result};
use arrayvec::ArrayVec;
use std::ops::Range;

/// The largest rank of a view.
pub const MAX_RANK: usize = 6;

/// Sizes or strides of a view, one per axis.
pub type Dims = ArrayVec<usize, MAX_RANK>;

/// Memory that a view can lie in: a host slice, a device pointer, a wgpu buffer.
pub trait Memory {
    /// Its size in bytes.
    fn byte_len(&self) -> u64;
    /// Where it is: an address space (or buffer) and the first byte's address inside it. Two memories
    /// overlap only if their spaces are equal and their ranges meet.
    fn place(&self) -> (u64, u64);
}

impl Memory for &[u8] {
    fn byte_len(&self) -> u64 {
        self.len() as u64
    }
    fn place(&self) -> (u64, u64) {
        (0, self.as_ptr() as u64)
    }
}

impl Memory for &mut [u8] {
    fn byte_len(&self) -> u64 {
        self.len() as u64
    }
    fn place(&self) -> (u64, u64) {
        (0, self.as_ptr() as u64)
    }
}

/// A strided array over memory `M`. Element `(i, j, ..)` is at `offset + i*strides[0] + j*strides[1] + ..`,
/// counted in elements.
#[derive(Debug, Clone, PartialEq)]
pub struct View<M> {
    dtype: Dtype,
    shape: Dims,
    strides: Dims,
    offset: usize,
    memory: M,
}

fn dims(arg: &'static str, d: &[usize]) -> Result<Dims> {
    Dims::try_from(d).map_err(|_| Error::argument("view", arg, format!("at most {MAX_RANK} axes"), d.len()))
}

/// The strides of a row-major array without gaps. Saturates, so that an absurd shape fails the bounds
/// check and not here.
fn row_major(shape: &[usize]) -> Dims {
    let mut strides: Dims = shape.iter().map(|_| 1).collect();
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis].max(1));
    }
    strides
}

impl<M> View<M> {
    /// A row-major view without gaps, from the start of `memory`.
    ///
    /// # Errors
    /// [`Error::Argument`] when there are more than [`MAX_RANK`] axes. Whether it fits in its memory is
    /// checked when an op is called.
    pub fn contiguous(memory: M, dtype: Dtype, shape: &[usize]) -> Result<Self> {
        let shape = dims("shape", shape)?;
        let strides = row_major(&shape);
        Ok(Self { dtype, shape, strides, offset: 0, memory }.settled())
    }

    /// A view with given strides and offset, both in elements. A stride of 0 repeats (inputs only). A stride that
    /// nobody walks, along an axis of one or of a view without elements, may be anything, and is 0 from 2^31 on.
    ///
    /// # Errors
    /// [`Error::Argument`] when the ranks differ or are over [`MAX_RANK`].
    pub fn strided(
        memory: M,
        dtype: Dtype,
        shape: &[usize],
        strides: &[usize],
        offset: usize,
    ) -> Result<Self> {
        if shape.len() != strides.len() {
            return Err(Error::argument(
                "view",
                "strides",
                format!("{} strides, one per axis", shape.len()),
                strides.len(),
            ));
        }
        let (shape, strides) = (dims("shape", shape)?, dims("strides", strides)?);
        Ok(Self { dtype, shape, strides, offset, memory }.settled())
    }

    /// Without strides that nobody walks and that kernels could not hold: one sample of an array that is larger than
    /// they can address is a view like any other.
    fn settled(mut self) -> Self {
        let empty = self.is_empty();
        for (&size, stride) in self.shape.iter().zip(&mut self.strides) {
            if (size == 1 || empty) && *stride > i32::MAX as usize {
                *stride = 0;
            }
        }
        self
    }

    /// How its elements are stored.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }
    /// Elements along each axis.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }
    /// Distance between neighbours along each axis, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }
    /// Index of the first element in its memory.
    pub fn offset(&self) -> usize {
        self.offset
    }
    /// The memory it lies in.
    pub fn memory(&self) -> &M {
        &self.memory
    }
    /// The memory it lies in, to write to.
    pub fn memory_mut(&mut self) -> &mut M {
        &mut self.memory
    }
    /// Gives the memory back.
    pub fn into_memory(self) -> M {
        self.memory
    }
    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
    /// Number of elements; saturates.
    pub fn len(&self) -> usize {
        self.shape.iter().fold(1, |n, &d| n.saturating_mul(d))
    }
    /// Whether an axis has size 0.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }
    /// Whether it is row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        let want = row_major(&self.shape);
        self.is_empty()
            || self.shape.iter().zip(&self.strides).zip(&want).all(|((&d, s), w)| d == 1 || s == w)
    }

    /// The elements from the first to past the last one touched, relative to the start of the memory:
    /// `None` on overflow. Empty views touch nothing.
    pub fn extent(&self) -> Option<Range<usize>> {
        if self.is_empty() {
            return Some(self.offset..self.offset);
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (&d, &s)| at.checked_add((d - 1).checked_mul(s)?))?;
        Some(self.offset..last.checked_add(1)?)
    }

    /// The same view over other memory: how one set of arguments is handed from target to target.
    pub fn try_map<N, E>(self, f: impl FnOnce(M) -> Result<N, E>) -> Result<View<N>, E> {
        let Self { dtype, shape, strides, offset, memory } = self;
        Ok(View { dtype, shape, strides, offset, memory: f(memory)? })
    }

    /// Axes in another order: `permute(&[0, 3, 1, 2])` shows an NHWC array as NCHW.
    ///
    /// # Errors
    /// [`Error::Argument`] when `order` is not a permutation of the axes.
    pub fn permute(mut self, order: &[usize]) -> Result<Self> {
        let mut sorted: Dims = dims("order", order)?;
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.rank()) {
            let wanted = format!("a permutation of 0..{}", self.rank());
            return Err(Error::argument("view", "order", wanted, format!("{order:?}")));
        }
        self.shape = order.iter().map(|&a| self.shape[a]).collect();
        self.strides = order.iter().map(|&a| self.strides[a]).collect();
        Ok(self)
    }

    /// The elements `range` of one axis.
    ///
    /// # Errors
    /// [`Error::Argument`] when the axis or the range is not inside the view.
    pub fn slice(mut self, axis: usize, range: Range<usize>) -> Result<Self> {
        let size = *self
            .shape
            .get(axis)
            .ok_or_else(|| Error::argument("view", "axis", format!("less than {}", self.rank()), axis))?;
        if range.start > range.end || range.end > size {
            return Err(Error::argument("view", "range", format!("inside 0..{size}"), format!("{range:?}")));
        }
        self.offset = self.offset.saturating_add(range.start.saturating_mul(self.strides[axis]));
        self.shape[axis] = range.len();
        Ok(self.settled())
    }

    /// The same elements under another shape, without a copy.
    ///
    /// # Errors
    /// [`Error::Argument`] when the view is not contiguous or the number of elements differs.
    pub fn reshape(mut self, shape: &[usize]) -> Result<Self> {
        let new = dims("shape", shape)?;
        let count = new.iter().fold(1usize, |n, &d| n.saturating_mul(d));
        if !self.is_contiguous() || count != self.len() {
            let wanted = format!("a contiguous view of {count} elements");
            return Err(Error::argument("view", "shape", wanted, self.describe()));
        }
        self.strides = row_major(&new);
        self.shape = new;
        Ok(self.settled())
    }

    /// Splits one axis in two, `outer` times `size / outer`: heads out of channels.
    ///
    /// # Errors
    /// [`Error::Argument`] when the axis is not there, `outer` does not divide it, or the rank gets too large.
    pub fn split(mut self, axis: usize, outer: usize) -> Result<Self> {
        let size = self.shape.get(axis).copied().unwrap_or(0);
        if axis >= self.rank() || outer == 0 || size % outer != 0 || self.rank() == MAX_RANK {
            let wanted = format!("an axis of a multiple of {outer} and rank below {MAX_RANK}");
            return Err(Error::argument("view", "axis", wanted, self.describe()));
        }
        let inner = size / outer;
        let stride = self.strides[axis];
        self.shape[axis] = inner;
        self.shape.insert(axis, outer);
        self.strides.insert(axis, stride.saturating_mul(inner));
        Ok(self.settled())
    }

    /// Repeats axes of one element, and puts others before the first, as NumPy broadcasts: a bias `[h, 1, nk]` becomes
    /// `[b, h, nq, nk]`. Repeated axes have stride 0, which only inputs may have.
    ///
    /// # Errors
    /// [`Error::Argument`] when another axis would have to change, or there are too many.
    pub fn expand(mut self, shape: &[usize]) -> Result<Self> {
        let new = dims("shape", shape)?;
        let before = new.len().saturating_sub(self.rank());
        let fits = self.rank() <= new.len()
            && self.shape.iter().zip(&new[before..]).all(|(&from, &to)| from == to || from == 1);
        if !fits {
            let wanted = format!("a view whose axes are those of {shape:?} or 1");
            return Err(Error::argument("view", "shape", wanted, self.describe()));
        }
        let own = self.shape.iter().zip(&self.strides).zip(&new[before..]);
        let repeated = own.map(|((&from, &stride), &to)| if from == to { stride } else { 0 });
        self.strides = std::iter::repeat_n(0, before).chain(repeated).collect();
        self.shape = new;
        Ok(self.settled())
    }

    /// Dtype, shape, strides and offset in words, for messages.
    pub fn describe(&self) -> String {
        format!("{} {:?} with strides {:?} at offset {}", self.dtype, self.shape, self.strides, self.offset)
    }
}

impl<'a> View<&'a [u8]> {
    /// A contiguous view of a host slice.
    ///
    /// # Errors
    /// As [`View::contiguous`].
    pub fn of<T: Element>(data: &'a [T], shape: &[usize]) -> Result<Self> {
        Self::contiguous(bytemuck::cast_slice(data), T::DTYPE, shape)
    }
}

impl<'a> View<&'a mut [u8]> {
    /// A contiguous view of a mutable host slice.
    ///
    /// # Errors
    /// As [`View::contiguous`].
    pub fn of_mut<T: Element>(data: &'a mut [T], shape: &[usize]) -> Result<Self> {
        Self::contiguous(bytemuck::cast_slice_mut(data), T::DTYPE, shape)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: &[usize]) -> View<()> {
        View::contiguous((), Dtype::F32, shape).unwrap()
    }

    #[test]
    fn expanded_axes_repeat() {
        let v = view(&[3, 1, 4]).expand(&[2, 3, 5, 4]).unwrap();
        assert_eq!((v.shape(), v.strides()), (&[2, 3, 5, 4][..], &[0, 4, 0, 1][..]));
        assert_eq!(v.extent(), Some(0..12));
        assert_eq!(view(&[]).expand(&[2, 0]).unwrap().strides(), [0, 0]);
        for wrong in [&[3, 1][..], &[3, 2, 5], &[3, 1, 1]] {
            let error = view(&[3, 1, 4]).expand(wrong).unwrap_err().to_string();
            assert!(error.starts_with("view: `shape`: wanted a view whose axes are those of ["), "{error}");
        }
    }

    #[test]
    fn contiguous_strides_and_extent() {
        let v = view(&[2, 3, 4]);
        assert_eq!(v.strides(), [12, 4, 1]);
        assert_eq!(v.extent(), Some(0..24));
        assert_eq!(view(&[]).extent(), Some(0..1));
        assert_eq!(view(&[3, 0, 2]).extent(), Some(0..0));
    }

    #[test]
    fn extent_overflow_is_none() {
        let v = View::strided((), Dtype::F32, &[3, 3], &[usize::MAX / 2, 1], 5).unwrap();
        assert_eq!(v.extent(), None);
    }

    #[test]
    fn strides_that_nobody_walks_are_settled() {
        let far = usize::MAX / 3;
        let v = View::strided((), Dtype::F32, &[1, 3, 1], &[far, 2, 7], 0).unwrap();
        assert_eq!(v.strides(), [0, 2, 7]);
        assert_eq!(view(&[4, 0, far, far]).strides(), [0, 0, 0, 1]);
        let batch = View::strided((), Dtype::F32, &[2, 3], &[1 << 40, 1], 0).unwrap();
        assert_eq!(batch.strides(), [1 << 40, 1]);
        let second = batch.slice(0, 1..2).unwrap();
        assert_eq!((second.strides(), second.offset()), (&[0, 1][..], 1 << 40));
    }

    #[test]
    fn permute_slice_split() {
        let v = view(&[2, 4, 6]).permute(&[0, 2, 1]).unwrap();
        assert_eq!((v.shape(), v.strides()), (&[2, 6, 4][..], &[24, 1, 6][..]));
        let s = v.slice(1, 2..5).unwrap();
        assert_eq!((s.offset(), s.shape()), (2, &[2, 3, 4][..]));
        let h = view(&[2, 6]).split(1, 3).unwrap();
        assert_eq!((h.shape(), h.strides()), (&[2, 3, 2][..], &[6, 2, 1][..]));
        assert!(view(&[2, 6]).split(1, 4).is_err());
        assert!(view(&[2]).permute(&[1]).is_err());
        assert!(view(&[2]).slice(0, 1..3).is_err());
        assert!(view(&[2; 7][..6]).split(0, 1).is_err());
    }
}
