//! The digit classifier that scores samples. Convolutions and matrix products are ops on the CPU; its
//! activation, max(x, 0), is not one that ops fuse, so it is applied on the host in between.

use super::model::Weights;
use advect::ops::{Activation, Conv, ConvArgs, Matmul, MatmulArgs};
use advect::{Cpu, View};

/// Images classified at once: bounds the memory of the activations.
const CHUNK: usize = 64;

/// Name, channels in and out, and stride of each convolution.
const CONVS: [(&str, usize, usize, usize); 4] =
    [("conv1", 1, 16, 1), ("conv2", 16, 32, 2), ("conv3", 32, 32, 1), ("conv4", 32, 64, 2)];
const SIDE: usize = 28;
const FEATURES: usize = 64;
const CLASSES: usize = 10;

pub(crate) struct Classifier {
    cpu: Cpu,
    weights: Weights,
}

/// What the classifier makes of images.
pub(crate) struct Scores {
    /// Ten numbers an image, the largest for its class.
    pub(crate) logits: Vec<f32>,
    /// The layer before, 64 numbers an image.
    #[cfg_attr(not(test), allow(dead_code, reason = "compared with its golden file"))]
    pub(crate) features: Vec<f32>,
}

impl Classifier {
    pub(crate) fn new(threads: usize) -> anyhow::Result<Self> {
        let cpu = Cpu::with(threads, advect::Isa::detect())?;
        Ok(Self { cpu, weights: Weights::bundled_classifier()? })
    }

    /// Classifies images of 28x28 pixels between -1 and 1.
    pub(crate) fn scores(&self, images: &[f32]) -> anyhow::Result<Scores> {
        let mut all = Scores { logits: Vec::new(), features: Vec::new() };
        for images in images.chunks(CHUNK * SIDE * SIDE) {
            let (mut x, mut side, n) = (images.to_vec(), SIDE, images.len() / (SIDE * SIDE));
            for (name, from, to, stride) in CONVS {
                x = self.conv(name, &x, [n, from, side, side], to, stride)?;
                side /= stride;
                relu(&mut x);
            }
            let mut features = self.linear("fc1", &x, n, FEATURES)?;
            relu(&mut features);
            all.logits.extend(self.linear("fc2", &features, n, CLASSES)?);
            all.features.extend(features);
        }
        Ok(all)
    }

    /// The class of each image.
    pub(crate) fn classify(&self, images: &[f32]) -> anyhow::Result<Vec<usize>> {
        let largest = |l: &[f32]| (0..CLASSES).max_by(|&a, &b| l[a].total_cmp(&l[b])).unwrap_or(0);
        Ok(self.scores(images)?.logits.chunks(CLASSES).map(largest).collect())
    }

    fn conv(
        &self,
        name: &str,
        x: &[f32],
        shape: [usize; 4],
        to: usize,
        stride: usize,
    ) -> anyhow::Result<Vec<f32>> {
        let [n, from, side, _] = shape;
        let weight = self.weights.take(&format!("{name}.weight"), &[to, from, 3, 3])?;
        let bias = self.weights.take(&format!("{name}.bias"), &[to])?;
        let small = side / stride;
        let mut out = vec![0.0f32; n * to * small * small];
        let op = Conv { stride: [stride; 2], padding: [1; 2], ..Conv::default() };
        let args = ConvArgs {
            x: View::of(x, &shape)?,
            weight: View::of(weight, &[to, from, 3, 3])?,
            bias: Some(View::of(bias, &[to])?),
            sample_bias: None,
            residual: None,
            out: View::of_mut(&mut out, &[n, to, small, small])?,
        };
        self.cpu.run(&op, args)?;
        Ok(out)
    }

    fn linear(&self, name: &str, x: &[f32], n: usize, to: usize) -> anyhow::Result<Vec<f32>> {
        let from = x.len() / n.max(1);
        let weight = self.weights.take(&format!("{name}.weight"), &[to, from])?;
        let bias = self.weights.take(&format!("{name}.bias"), &[to])?;
        let mut out = vec![0.0f32; n * to];
        let args = MatmulArgs {
            a: View::of(x, &[n, from])?,
            b: View::of(weight, &[to, from])?.permute(&[1, 0])?,
            bias: Some(View::of(bias, &[to])?),
            residual: None,
            out: View::of_mut(&mut out, &[n, to])?,
        };
        self.cpu.run(&Matmul { activation: Activation::None }, args)?;
        Ok(out)
    }
}

fn relu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.max(0.0));
}
