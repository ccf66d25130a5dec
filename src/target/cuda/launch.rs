//! A call made ready: the kernel to compile, the grid, and the bytes of its arguments.
//!
//! Nothing here needs a driver, so that a simulator of PTX is launched with exactly what a GPU would get.

use crate::error::Result;
use crate::op::{self, Caps, Op, Operands, Side};
use crate::source::Variant;
use crate::view::{Memory, View};
use arrayvec::ArrayVec;

/// The most bytes that operand pointers and params of a kernel may take together.
const MAX_ARGUMENT_BYTES: usize = 1024;

/// One launch of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y, z; a zero means that there is nothing to do.
    pub grid: [u32; 3],
    /// Threads of a block along x, y, z.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// What the kernel's parameters hold.
    pub arguments: Arguments,
}

/// The parameters of a kernel as they lie in its parameter space: one 8-byte pointer to the first element
/// of each operand (null when it is absent), then the struct `Params`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    bytes: ArrayVec<u8, MAX_ARGUMENT_BYTES>,
    operands: usize,
}

impl Arguments {
    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Where each of them starts.
    pub fn offsets(&self) -> impl Iterator<Item = usize> + use<> {
        (0..=self.operands).map(|i| 8 * i)
    }
}

/// Validates and plans a call.
///
/// # Errors
/// Whatever [`op::prepare`] and [`Op::plan`] find wrong.
pub fn prepare<T: Op, I: Memory, O: Memory>(
    op: &T,
    args: &T::Args<I, O>,
    caps: &Caps,
) -> Result<(Variant, Launch)> {
    const { assert!(8 * op::MAX_OPERANDS + size_of::<T::Params>() <= MAX_ARGUMENT_BYTES) };
    let (params, signature) = op::prepare(op, args)?;
    let plan = op::plan(op, &params, &signature, caps)?;
    let mut bytes = ArrayVec::new();
    let all = args.each();
    for operand in &all {
        let pointer = match &operand.side {
            Side::Input(None) | Side::Output(None) => 0,
            Side::Input(Some(view)) => first_element(view),
            Side::Output(Some(view)) => first_element(view),
        };
        bytes.extend(pointer.to_ne_bytes());
    }
    bytes.extend(bytemuck::bytes_of(&params).iter().copied());
    let arguments = Arguments { bytes, operands: all.len() };
    let launch = Launch { grid: plan.grid, block: plan.block, shared_bytes: plan.shared_bytes, arguments };
    Ok((Variant::new::<T>(&plan, signature), launch))
}

/// The address of a view's first element. [`op::prepare`] has found it inside its memory; the offset of an
/// empty view may be anything, and its pointer is not used.
fn first_element<M: Memory>(view: &View<M>) -> u64 {
    let (_, base) = view.memory().place();
    base.wrapping_add((view.offset() as u64).wrapping_mul(view.dtype().size() as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Dtype;
    use crate::ops::{Resample, ResampleArgs};
    use crate::target::cuda::DevicePtr;
    use crate::target::presets;

    fn view(ptr: u64, shape: &[usize], offset: usize) -> View<DevicePtr> {
        // SAFETY: nothing is launched.
        let memory = unsafe { DevicePtr::new(ptr, 4096) };
        let strides = [shape[1] * shape[2] * shape[3], shape[2] * shape[3], shape[3], 1];
        View::strided(memory, Dtype::F16, shape, &strides, offset).unwrap()
    }

    #[test]
    fn arguments_are_pointers_to_first_elements_and_the_params() {
        let args = ResampleArgs { x: view(0x1000, &[1, 2, 3, 4], 5), out: view(0x8000, &[1, 2, 6, 8], 0) };
        let (variant, launch) = prepare(&Resample::Up2, &args, &presets::cuda_for(80)).unwrap();
        let (params, _) = op::prepare(&Resample::Up2, &args).unwrap();
        let bytes = launch.arguments.bytes();
        assert_eq!(bytes[..8], 0x100au64.to_ne_bytes());
        assert_eq!(bytes[8..16], 0x8000u64.to_ne_bytes());
        assert_eq!(bytes[16..], *bytemuck::bytes_of(&params));
        assert_eq!(launch.arguments.offsets().collect::<Vec<_>>(), [0, 8, 16]);
        assert_eq!((variant.op, variant.entry), ("resample", "resample"));
        assert_eq!((launch.grid, launch.block, launch.shared_bytes), ([1, 1, 1], [256, 1, 1], 0));
    }

    #[test]
    fn alignment_does_not_make_another_variant() {
        let variant = |offset| {
            let args =
                ResampleArgs { x: view(0x1000, &[1, 2, 2, 2], offset), out: view(0x8000, &[1, 2, 4, 4], 0) };
            prepare(&Resample::Up2, &args, &presets::cuda_for(80)).unwrap().0
        };
        assert_eq!(variant(0), variant(1));
    }

    #[test]
    fn nothing_to_do_is_an_empty_grid() {
        let args = ResampleArgs { x: view(0, &[0, 2, 2, 2], 0), out: view(0, &[0, 2, 4, 4], 0) };
        let (_, launch) = prepare(&Resample::Up2, &args, &presets::cuda_for(80)).unwrap();
        assert!(launch.grid.contains(&0));
    }
}
