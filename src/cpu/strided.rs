//! Host views as typed pointers that threads may share.

use crate::dtype::{Dtype, Element, Float};
use crate::view::View;
use std::marker::PhantomData;

/// An input as a pointer to its first element. Copies may be read from any thread.
#[derive(Clone, Copy)]
pub(crate) struct In<'a, T>(*const T, PhantomData<&'a [T]>);

/// An output as a pointer to its first element. Threads may write through copies of it as long as each
/// writes other elements: kernels cut their output among threads.
#[derive(Clone, Copy)]
pub(crate) struct Out<'a, T>(*mut T, PhantomData<&'a mut [T]>);

// SAFETY: an In only reads, from memory that stays borrowed for 'a.
unsafe impl<T: Sync> Send for In<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for In<'_, T> {}
// SAFETY: an Out writes only through unsafe calls, whose contract keeps threads apart.
unsafe impl<T: Send> Send for Out<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Out<'_, T> {}

impl<'a, T: Element> In<'a, T> {
    /// The first element of a view that `op::prepare` accepted.
    pub(crate) fn new(view: &View<&'a [u8]>) -> Self {
        debug_assert_eq!(view.dtype(), T::DTYPE);
        Self(view.memory().as_ptr().cast::<T>().wrapping_add(view.offset()), PhantomData)
    }

    /// From the element `index` after the first on.
    pub(crate) fn after(self, index: usize) -> Self {
        Self(self.0.wrapping_add(index), PhantomData)
    }

    /// The element `index` after the first, unchecked.
    ///
    /// # Safety
    /// `index` is inside the view's extent.
    #[inline(always)]
    pub(crate) unsafe fn at(self, index: usize) -> *const T {
        // SAFETY: inside the view by this function's contract, inside memory by `op::prepare`.
        unsafe { self.0.add(index) }
    }
}

/// An input in f32, or in the dtype of the other operands.
#[derive(Clone, Copy)]
pub(crate) enum Either<'a, T> {
    F32(In<'a, f32>),
    Same(In<'a, T>),
}

impl<'a, T: Float> Either<'a, T> {
    /// The first element of a view that `op::prepare` accepted.
    pub(crate) fn new(view: &View<&'a [u8]>) -> Self {
        match view.dtype() {
            Dtype::F32 => Self::F32(In::new(view)),
            _ => Self::Same(In::new(view)),
        }
    }

    /// From the element `index` after the first on.
    pub(crate) fn after(self, index: usize) -> Self {
        match self {
            Self::F32(input) => Self::F32(input.after(index)),
            Self::Same(input) => Self::Same(input.after(index)),
        }
    }

    /// The element `index` after the first, unchecked.
    ///
    /// # Safety
    /// `index` is inside the view's extent.
    #[inline(always)]
    pub(crate) unsafe fn get(self, index: usize) -> f32 {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Self::F32(input) => *input.at(index),
                Self::Same(input) => (*input.at(index)).to_f32(),
            }
        }
    }
}

impl<'a, T: Element> Out<'a, T> {
    /// The first element of a view that `op::prepare` accepted.
    pub(crate) fn new(view: &mut View<&'a mut [u8]>) -> Self {
        debug_assert_eq!(view.dtype(), T::DTYPE);
        let offset = view.offset();
        Self(view.memory_mut().as_mut_ptr().cast::<T>().wrapping_add(offset), PhantomData)
    }

    /// From the element `index` after the first on.
    pub(crate) fn after(self, index: usize) -> Self {
        Self(self.0.wrapping_add(index), PhantomData)
    }

    /// The element `index` after the first, unchecked.
    ///
    /// # Safety
    /// `index` is inside the view's extent, and no other thread touches that element.
    #[inline(always)]
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: inside the view by this function's contract, inside memory by `op::prepare`.
        unsafe { self.0.add(index) }
    }
}

/// Calls a generic function with the element type of a float dtype: `by_dtype!(dtype, run(args..))` calls
/// `run::<f32>(args..)`, `run::<f16>(..)` or `run::<bf16>(..)`.
macro_rules! by_dtype {
    ($dtype:expr, $run:ident($($arg:expr),* $(,)?)) => {
        match $dtype {
            $crate::Dtype::F32 => $run::<f32>($($arg),*),
            $crate::Dtype::F16 => $run::<half::f16>($($arg),*),
            $crate::Dtype::Bf16 => $run::<half::bf16>($($arg),*),
            $crate::Dtype::I32 | $crate::Dtype::U8 => unreachable!("ops check that they compute with floats"),
        }
    };
}
pub(crate) use by_dtype;
