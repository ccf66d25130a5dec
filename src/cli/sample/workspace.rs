//! The memory of a network: storages by number, so that layers can name their operands and one of them
//! be written while the others are read.

use advect::op::{Op, Operands, Side};
use advect::{Device, Dtype, Result, Storage, Tensor, View};

/// A storage of a [`Workspace`].
pub(crate) type Id = usize;

/// Storages on one device, all allocated before the first evaluation.
#[derive(Debug)]
pub(crate) struct Workspace {
    device: Device,
    dtype: Dtype,
    /// `None` only while an op writes it.
    tensors: Vec<Option<Tensor>>,
}

impl Workspace {
    pub(crate) fn new(device: Device, dtype: Dtype) -> Self {
        Self { device, dtype, tensors: Vec::new() }
    }

    fn push(&mut self, tensor: Tensor) -> Result<View<Id>> {
        let view = View::contiguous(self.tensors.len(), self.dtype, tensor.shape());
        self.tensors.push(Some(tensor));
        view
    }

    /// A new buffer of zeros, row-major.
    pub(crate) fn zeros(&mut self, shape: &[usize]) -> Result<View<Id>> {
        self.push(Tensor::new(&self.device, self.dtype, shape)?)
    }

    /// A new buffer with these values, row-major.
    pub(crate) fn values(&mut self, shape: &[usize], values: &[f32]) -> Result<View<Id>> {
        self.push(Tensor::from_f32(&self.device, self.dtype, shape, values)?)
    }

    /// A new image `[n, c, h, w]` with its channels side by side in memory (NHWC).
    pub(crate) fn image(&mut self, [n, c, h, w]: [usize; 4]) -> Result<View<Id>> {
        self.zeros(&[n, h, w, c])?.permute(&[0, 3, 1, 2])
    }

    /// Overwrites a whole buffer.
    pub(crate) fn write(&mut self, buffer: &View<Id>, values: &[f32]) -> Result<()> {
        let Self { device, tensors, .. } = self;
        tensors[*buffer.memory()].as_mut().expect(HOME).write(device, values)
    }

    /// The elements of a view in the order of its axes, once everything launched is done.
    pub(crate) fn read(&self, view: &View<Id>) -> Result<Vec<f32>> {
        let all = self.tensors[*view.memory()].as_ref().expect(HOME).to_f32(&self.device)?;
        let mut at = vec![view.offset()];
        for (&size, &stride) in view.shape().iter().zip(view.strides()) {
            at = at.iter().flat_map(|&from| (0..size).map(move |i| from + i * stride)).collect();
        }
        Ok(at.into_iter().map(|i| all[i]).collect())
    }

    /// Runs an op over numbered storages. Those it writes are not among those it reads.
    pub(crate) fn run<T: Op>(&mut self, op: &T, args: T::Args<Id, Id>) -> Result<()> {
        let outputs: Vec<Id> = args
            .each()
            .iter()
            .filter_map(|o| match &o.side {
                Side::Output(view) => view.map(|view| *view.memory()),
                Side::Input(_) => None,
            })
            .collect();
        let mut taken: Vec<Tensor> =
            outputs.iter().map(|&id| self.tensors[id].take().expect("an op writes a storage once")).collect();
        let mut written = taken.iter_mut();
        let input = |_, v: View<Id>| {
            v.try_map(|id| {
                Ok(self.tensors[id].as_ref().expect("no op reads what it writes").view().into_memory())
            })
        };
        let output = |_, v: View<Id>| {
            v.try_map(|_| Ok(written.next().expect("one was taken per output").view_mut().into_memory()))
        };
        let result = T::map(args, input, output)
            .and_then(|args: T::Args<&Storage, &mut Storage>| self.device.run(op, args));
        for (id, tensor) in outputs.into_iter().zip(taken) {
            self.tensors[id] = Some(tensor);
        }
        result
    }
}

const HOME: &str = "storages are away only while an op runs";

/// The pixels of an NHWC image as the rows of a matrix, `[n * h * w, c]`.
pub(crate) fn pixels(image: &View<Id>) -> Result<View<Id>> {
    let (&[n, c, h, w], &[_, channel, _, column]) = (image.shape(), image.strides()) else {
        unreachable!("an image has four axes");
    };
    View::strided(*image.memory(), image.dtype(), &[n * h * w, c], &[column, channel], image.offset())
}

/// An image of other channels in the memory of `image`, which has room for it.
pub(crate) fn with_channels(image: &View<Id>, c: usize) -> Result<View<Id>> {
    let &[n, _, h, w] = image.shape() else { unreachable!("an image has four axes") };
    View::contiguous(*image.memory(), image.dtype(), &[n, h, w, c])?.permute(&[0, 3, 1, 2])
}
