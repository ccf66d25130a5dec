//! The same calls over the bytes of Flex.

use crate::{Error, Kernel, Result, dtype};
use advect::{Cpu, Element, View};
use burn::backend::flex::{FlexTensor, Layout};
use burn::tensor::{Bytes, DType, Shape};
use half::{bf16, f16};

/// Runs an op on Flex's tensors.
pub(crate) fn run<K: Kernel>(
    cpu: &Cpu,
    op: K,
    operands: Vec<Option<FlexTensor>>,
    shape: &[usize],
) -> Result<FlexTensor> {
    let first = operands.iter().flatten().next().map(FlexTensor::dtype);
    let first = first.ok_or_else(|| Error::Backend { op: K::NAME, why: "there is no operand".into() })?;
    match first {
        DType::F32 => typed::<K, f32>(cpu, op, operands, shape),
        DType::F16 => typed::<K, f16>(cpu, op, operands, shape),
        DType::BF16 => typed::<K, bf16>(cpu, op, operands, shape),
        dtype => Err(Error::Dtype { op: K::NAME, dtype }),
    }
}

fn typed<K: Kernel, T: Element + burn::tensor::Element>(
    cpu: &Cpu,
    op: K,
    operands: Vec<Option<FlexTensor>>,
    shape: &[usize],
) -> Result<FlexTensor> {
    let operands: Vec<_> = operands.into_iter().map(|o| o.map(forwards)).collect();
    let views = operands.iter().map(|o| o.as_ref().map(view::<K>).transpose());
    let views = views.collect::<Result<Vec<_>>>()?;
    let out_of_memory =
        |()| Error::Runtime { op: K::NAME, call: "allocation", message: format!("no memory for {shape:?}") };
    let elements = shape.iter().product();
    let mut out = bytemuck::try_zeroed_vec::<T>(elements).map_err(out_of_memory)?;
    cpu.run(&op, K::checked(views, View::of_mut(&mut out, shape)?)?)?;
    let layout = Layout::contiguous(Shape::from(shape.to_vec()));
    Ok(FlexTensor::new(Bytes::from_elems(out), layout, <T as burn::tensor::Element>::dtype()))
}

/// A tensor whose strides are all forwards. Flipped axes are the one layout that is copied: burn gives them
/// strides below 0, which advect does not have.
fn forwards(tensor: FlexTensor) -> FlexTensor {
    match tensor.layout().strides().iter().any(|&s| s < 0) {
        true => tensor.to_contiguous(),
        false => tensor,
    }
}

fn view<K: Kernel>(tensor: &FlexTensor) -> Result<View<&[u8]>> {
    let layout = tensor.layout();
    let strides: Vec<usize> = layout.strides().iter().map(|s| s.unsigned_abs()).collect();
    let dtype = dtype::<K>(tensor.dtype())?;
    Ok(View::strided(tensor.bytes(), dtype, &layout.shape()[..], &strides, layout.start_offset())?)
}
