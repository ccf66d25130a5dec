//! One call: operands locked, views made of their layouts, a result allocated, the kernel run.

use advect::op::{Op, Operands};
use advect::{Cpu, Dtype, Element, View};
#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Error, Layout, Result, Shape, Storage, Tensor, WithDType};
use half::{bf16, f16};
use std::ptr::from_ref;

/// An advect op as candle calls it. Operands come in the order of its arguments, absent ones as `None`.
pub(crate) trait Kernel: Op {
    /// Checks the operands' ranks and shapes, and gives that of the result.
    fn shape(&self, operands: &[Option<&Layout>]) -> Result<Shape>;
}

/// Runs an op on tensors. candle's custom ops have one to three arguments and advect's up to fourteen: one goes
/// through candle, which dispatches on its device, the others ride along.
pub(crate) fn apply<K: Kernel>(op: K, operands: &[Option<&Tensor>]) -> Result<Tensor> {
    let call = Call::new(op, operands)?;
    let undo = inverse(&call.order);
    let through = operands.get(call.through).copied().flatten();
    through.ok_or(Error::UnwrapNone)?.apply_op1(call)?.permute(undo)
}

/// The operand that goes through candle: one that gradients would flow to, if there is one, so that a
/// backward pass finds the op and is refused.
fn tracked(operands: &[Option<&Tensor>]) -> usize {
    operands.iter().position(|o| o.is_some_and(Tensor::track_op)).unwrap_or(0)
}

/// The axes of a layout, the one with the largest stride first. Axes of one element and repeated ones say
/// nothing about the order and come first.
fn order_like(layout: &Layout) -> Vec<usize> {
    let slow = |axis: usize| layout.dims()[axis] <= 1 || layout.stride()[axis] == 0;
    let mut order: Vec<usize> = (0..layout.dims().len()).collect();
    order.sort_by_key(|&axis| {
        (!slow(axis), std::cmp::Reverse(if slow(axis) { 0 } else { layout.stride()[axis] }))
    });
    order
}

fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (at, &axis) in order.iter().enumerate() {
        inverse[axis] = at;
    }
    inverse
}

/// The layout has exactly this shape.
pub(crate) fn expect(msg: &str, layout: &Layout, shape: impl Into<Shape>) -> Result<()> {
    let (expected, got) = (shape.into(), layout.shape().clone());
    if expected == got {
        return Ok(());
    }
    Err(Error::UnexpectedShape { msg: msg.into(), expected, got }.bt())
}

/// advect's error inside candle's, where it can be had back by downcasting.
pub(crate) fn wrapped(error: advect::Error) -> Error {
    Error::WrappedContext { context: error.to_string(), wrapped: Box::new(error) }.bt()
}

/// One call on its way through candle.
pub(crate) struct Call<K> {
    op: K,
    /// Which operand candle passes in.
    through: usize,
    operands: Vec<Option<Operand>>,
    /// The result's axes from slow to fast, and their sizes in that order.
    order: Vec<usize>,
    shape: Shape,
}

/// An operand, and where its storage is.
struct Operand {
    tensor: Tensor,
    storage: usize,
}

impl Operand {
    fn new(tensor: &Tensor) -> Self {
        let storage = address(&tensor.storage_and_layout().0);
        Self { tensor: tensor.clone(), storage }
    }
}

/// What tells one storage from another.
fn address(storage: &Storage) -> usize {
    match storage {
        Storage::Cpu(s) => from_ref(s).addr(),
        Storage::Cuda(s) => from_ref(s).addr(),
        Storage::Metal(s) => from_ref(s).addr(),
    }
}

impl<K: Kernel> Call<K> {
    /// Checks the operands: one dtype that advect has, one device, shapes that fit.
    pub(crate) fn new(op: K, operands: &[Option<&Tensor>]) -> Result<Self> {
        let Some(Some(first)) = operands.first() else {
            return Err(Error::OpRequiresAtLeastOneTensor { op: K::NAME }.bt());
        };
        for other in operands.iter().flatten() {
            if other.dtype() != first.dtype() {
                let (lhs, rhs) = (first.dtype(), other.dtype());
                return Err(Error::DTypeMismatchBinaryOp { lhs, rhs, op: K::NAME }.bt());
            }
            if !other.device().same_device(first.device()) {
                let (lhs, rhs) = (first.device().location(), other.device().location());
                return Err(Error::DeviceMismatchBinaryOp { lhs, rhs, op: K::NAME }.bt());
            }
        }
        if !matches!(first.dtype(), DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::UnsupportedDTypeForOp(first.dtype(), K::NAME).bt());
        }
        let layouts: Vec<_> = operands.iter().map(|o| o.map(Tensor::layout)).collect();
        let shape = op.shape(&layouts)?;
        let bytes = shape.dims().iter().try_fold(first.dtype().size_in_bytes(), |n, &d| n.checked_mul(d));
        if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
            let dims = shape.dims();
            return Err(Error::Msg(format!("{}: no memory holds a result of {dims:?}", K::NAME)).bt());
        }
        let order = order_like(first.layout());
        let dims: Vec<usize> = order.iter().map(|&axis| shape.dims()[axis]).collect();
        let through = tracked(operands);
        let operands = operands.iter().map(|o| o.map(Operand::new)).collect();
        Ok(Self { op, through, operands, order, shape: Shape::from_dims(&dims) })
    }

    /// Calls `run` with the storage and layout of every operand. A storage is locked once however many
    /// operands share it, and not at all if candle holds it: a second read lock on one thread would deadlock
    /// with a writer waiting between the two.
    pub(crate) fn with_storages<S, R>(
        &self,
        held: &S,
        of: fn(&Storage) -> Option<&S>,
        run: impl FnOnce(Vec<Option<(&S, &Layout)>>) -> Result<R>,
    ) -> Result<R> {
        let held_at = from_ref(held).addr();
        let mut guards: Vec<(usize, candle_core::StorageRef<'_>)> = Vec::new();
        for operand in self.operands.iter().flatten() {
            let at = operand.storage;
            if at != held_at && guards.iter().all(|g| g.0 != at) {
                guards.push((at, operand.tensor.storage_and_layout().0));
            }
        }
        let storages = self.operands.iter().map(|operand| {
            let Some(Operand { tensor, storage }) = operand else { return Ok(None) };
            let guard = guards.iter().find(|g| g.0 == *storage);
            let found = if *storage == held_at { Some(held) } else { guard.and_then(|g| of(&g.1)) };
            let found = found.ok_or_else(|| {
                let (lhs, rhs) = (self.operands[self.through].as_ref(), tensor.device().location());
                let lhs = lhs.map_or(rhs, |o| o.tensor.device().location());
                Error::DeviceMismatchBinaryOp { lhs, rhs, op: K::NAME }.bt()
            })?;
            Ok(Some((found, tensor.layout())))
        });
        let storages = storages.collect::<Result<Vec<_>>>()?;
        run(storages)
    }

    /// The kernel's arguments from the memory of the operands and of the result.
    pub(crate) fn args<I, O>(
        &self,
        dtype: Dtype,
        operands: Vec<Option<(I, &Layout)>>,
        out: O,
    ) -> Result<K::Args<I, O>> {
        let view = |(memory, layout): (I, &Layout)| {
            View::strided(memory, dtype, layout.dims(), layout.stride(), layout.start_offset())
        };
        let views = operands.into_iter().map(|o| o.map(view).transpose());
        let views = views.collect::<advect::Result<Vec<_>>>().map_err(wrapped)?;
        let out = View::contiguous(out, dtype, self.shape.dims())
            .and_then(|out| out.permute(&inverse(&self.order)))
            .map_err(wrapped)?;
        <K::Args<I, O>>::in_order(views, [out]).ok_or(Error::UnwrapNone)
    }

    /// The op.
    #[cfg(feature = "cuda")]
    pub(crate) fn op(&self) -> &K {
        &self.op
    }

    /// The result as it lies in memory.
    #[cfg(feature = "cuda")]
    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    fn on_cpu<T: Element + WithDType>(&self, held: &CpuStorage) -> Result<(CpuStorage, Shape)> {
        fn within(storage: &Storage) -> Option<&CpuStorage> {
            match storage {
                Storage::Cpu(s) => Some(s),
                Storage::Cuda(_) | Storage::Metal(_) => None,
            }
        }
        let mut out = bytemuck::try_zeroed_vec::<T>(self.shape.elem_count())
            .map_err(|()| Error::Msg(format!("{}: out of memory for {:?}", K::NAME, self.shape)).bt())?;
        self.with_storages(held, within, |storages| {
            let bytes = storages.into_iter().map(|operand| {
                let Some((storage, layout)) = operand else { return Ok(None) };
                Ok(Some((bytemuck::cast_slice::<T, u8>(storage.as_slice()?), layout)))
            });
            let bytes = bytes.collect::<Result<Vec<_>>>()?;
            let args =
                self.args(<T as Element>::DTYPE, bytes, bytemuck::cast_slice_mut::<T, u8>(&mut out))?;
            // candle's own kernels run in the same threads.
            Cpu::in_callers_pool().run(&self.op, args).map_err(wrapped)
        })?;
        Ok((T::to_cpu_storage_owned(out), self.shape.clone()))
    }
}

impl<K: Kernel> CustomOp1 for Call<K> {
    fn name(&self) -> &'static str {
        K::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        match storage.dtype() {
            DType::F32 => self.on_cpu::<f32>(storage),
            DType::F16 => self.on_cpu::<f16>(storage),
            DType::BF16 => self.on_cpu::<bf16>(storage),
            other => Err(Error::UnsupportedDTypeForOp(other, K::NAME).bt()),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        crate::cuda::forward(self, storage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_lie_in_the_order_of_the_first_operand() {
        let nchw = Layout::contiguous((2, 3, 4, 5));
        assert_eq!(order_like(&nchw), [0, 1, 2, 3]);
        // Channels last; heads transposed out of (b, n, h, d).
        let nhwc = Layout::new((2, 3, 4, 5).into(), vec![60, 1, 15, 3], 7);
        assert_eq!(order_like(&nhwc), [0, 2, 3, 1]);
        assert_eq!(inverse(&order_like(&nhwc)), [0, 3, 1, 2]);
        // A repeated batch and a single channel.
        let odd = Layout::new((2, 1, 4, 5).into(), vec![0, 1, 1, 4], 0);
        assert_eq!(order_like(&odd), [0, 1, 3, 2]);
    }
}
