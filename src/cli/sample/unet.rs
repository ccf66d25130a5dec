//! The network of models/digits/README.md from ops of advect and nothing else.
//!
//! Images lie as NHWC. What follows a convolution or a norm is fused into it (bias, SiLU, scale and
//! shift, residual). Nothing is copied: producers write into their half of a concatenation, and Q, K and V
//! are slices of one projection.

use super::model::{Description, Weights};
use super::workspace::{Id, Workspace, pixels, with_channels};
use advect::ops::{
    Activation, Attention, AttentionArgs, Conv, ConvArgs, Matmul, MatmulArgs, Norm, NormArgs, NormKind,
    Resample, ResampleArgs,
};
use advect::{Device, Dtype, Result, View};
use std::ops::Range;

type Image = View<Id>;

/// Weight and bias of a convolution, a norm or a linear layer.
struct Affine {
    weight: View<Id>,
    bias: View<Id>,
}

struct Residual {
    name: String,
    norm1: Affine,
    conv1: Affine,
    /// The columns of all blocks' scales and shifts that are this block's.
    film: Range<usize>,
    norm2: Affine,
    conv2: Affine,
    skip: Option<Affine>,
}

struct SelfAttention {
    name: String,
    norm: Affine,
    qkv: Affine,
    proj: Affine,
}

/// The blocks at one image size.
struct Level {
    down: Residual,
    down_attention: Option<SelfAttention>,
    /// To the next smaller size.
    shrink: Option<Affine>,
    up: Residual,
    up_attention: Option<SelfAttention>,
    /// To the next larger size.
    grow: Option<Affine>,
}

/// The buffers at one image size.
#[derive(Clone)]
struct Buffers {
    /// What the level starts from.
    enter: Image,
    /// What comes up from the next smaller level, and beside it what the way down left here.
    concat: Image,
    /// Normalised input of a convolution or a projection; as wide as the widest.
    normed: Image,
    /// Between the convolutions of a block.
    inner: Image,
    /// The shortcut of a block that changes its channels.
    shortcut: Image,
    /// Packed queries, keys and values.
    qkv: Image,
    /// Output of a block that another block follows.
    first: Image,
    /// Output of the last block.
    last: Image,
    /// The next smaller level's output at this size.
    raised: Image,
}

impl Buffers {
    /// The half of the concatenation that comes from below.
    fn risen(&self) -> Result<Image> {
        let c = self.inner.shape()[1];
        self.concat.clone().slice(1, 0..c)
    }

    /// The half of the concatenation that the way down leaves.
    fn skip(&self) -> Result<Image> {
        let c = self.inner.shape()[1];
        self.concat.clone().slice(1, c..2 * c)
    }

    fn map(&self, f: impl Fn(&Image) -> Result<Image>) -> Result<Self> {
        Ok(Self {
            enter: f(&self.enter)?,
            concat: f(&self.concat)?,
            normed: f(&self.normed)?,
            inner: f(&self.inner)?,
            shortcut: f(&self.shortcut)?,
            qkv: f(&self.qkv)?,
            first: f(&self.first)?,
            last: f(&self.last)?,
            raised: f(&self.raised)?,
        })
    }
}

/// Every layer.
struct Layers {
    time_in: Affine,
    time_out: Affine,
    film: Affine,
    conv_in: Affine,
    levels: Vec<Level>,
    mid: (Residual, SelfAttention, Residual),
    norm_out: Affine,
    conv_out: Affine,
}

/// The network with its weights and buffers on a device.
pub(crate) struct Unet {
    layers: Layers,
    runner: Runner,
    /// `[capacity, hidden units + one-hot label + padding]`: the input of the second embedding layer.
    hidden: View<Id>,
    embedding: View<Id>,
    films: View<Id>,
    buffers: Vec<Buffers>,
}

/// Takes weights and puts them on the device.
struct Loader<'a> {
    workspace: Workspace,
    weights: &'a Weights,
    description: &'a Description,
    /// Names and channels of the blocks whose scales and shifts come from one matrix, in its order.
    blocks: Vec<(String, usize)>,
}

impl Loader<'_> {
    fn affine(&mut self, name: &str, shape: &[usize]) -> anyhow::Result<Affine> {
        let weight = self.weights.take(&format!("{name}.weight"), shape)?;
        let bias = self.weights.take(&format!("{name}.bias"), &shape[..1])?;
        let weight = match *shape {
            [o, c, h, w] => {
                // Stored as they are read: output channels side by side.
                let at = |i: usize| weight[(i % o * c + i / o % c) * h * w + i / (o * c)];
                let stored: Vec<f32> = (0..weight.len()).map(at).collect();
                self.workspace.values(&[h, w, c, o], &stored)?.permute(&[3, 2, 0, 1])?
            }
            _ => self.workspace.values(shape, weight)?,
        };
        Ok(Affine { weight, bias: self.workspace.values(&shape[..1], bias)? })
    }

    /// A 3x3 convolution.
    fn conv(&mut self, name: &str, from: usize, to: usize) -> anyhow::Result<Affine> {
        self.affine(name, &[to, from, 3, 3])
    }

    fn conv_if(&mut self, is: bool, name: &str, from: usize, to: usize) -> anyhow::Result<Option<Affine>> {
        is.then(|| self.conv(name, from, to)).transpose()
    }

    fn attention_if(&mut self, is: bool, name: String, c: usize) -> anyhow::Result<Option<SelfAttention>> {
        is.then(|| self.attention(name, c)).transpose()
    }

    /// A linear layer, its weight turned round to `[from, to]`.
    fn linear(&mut self, name: &str, from: usize, to: usize) -> anyhow::Result<Affine> {
        let weight = transposed(self.weights.take(&format!("{name}.weight"), &[to, from])?, to, from);
        let bias = self.weights.take(&format!("{name}.bias"), &[to])?;
        let weight = self.workspace.values(&[from, to], &weight)?;
        Ok(Affine { weight, bias: self.workspace.values(&[to], bias)? })
    }

    /// A 1x1 convolution, as the linear layer that it is on NHWC images.
    fn pointwise(&mut self, name: &str, from: usize, to: usize) -> anyhow::Result<Affine> {
        let weight = self.weights.take(&format!("{name}.weight"), &[to, from, 1, 1])?;
        let bias = self.weights.take(&format!("{name}.bias"), &[to])?;
        let weight = transposed(weight, to, from);
        let weight = self.workspace.values(&[from, to], &weight)?;
        Ok(Affine { weight, bias: self.workspace.values(&[to], bias)? })
    }

    fn residual(&mut self, name: String, from: usize, to: usize) -> anyhow::Result<Residual> {
        let start: usize = self.blocks.iter().map(|f| 2 * f.1).sum();
        self.blocks.push((format!("{name}.film"), to));
        Ok(Residual {
            norm1: self.affine(&format!("{name}.norm1"), &[from])?,
            conv1: self.conv(&format!("{name}.conv1"), from, to)?,
            film: start..start + 2 * to,
            norm2: self.affine(&format!("{name}.norm2"), &[to])?,
            conv2: self.conv(&format!("{name}.conv2"), to, to)?,
            skip: match from == to {
                true => None,
                false => Some(self.pointwise(&format!("{name}.skip"), from, to)?),
            },
            name,
        })
    }

    fn attention(&mut self, name: String, c: usize) -> anyhow::Result<SelfAttention> {
        Ok(SelfAttention {
            norm: self.affine(&format!("{name}.norm"), &[c])?,
            qkv: self.pointwise(&format!("{name}.qkv"), c, 3 * c)?,
            proj: self.pointwise(&format!("{name}.proj"), c, c)?,
            name,
        })
    }

    fn layers(&mut self) -> anyhow::Result<Layers> {
        let d = self.description;
        let time_in = self.linear("time_mlp.0", 2 * d.time_freqs, d.emb_dim)?;
        let time_out = self.time_and_class()?;
        let conv_in = self.conv("conv_in", d.in_channels, d.channels[0])?;
        let deepest = d.channels.len() - 1;
        let mut levels = Vec::new();
        for (i, &c) in d.channels.iter().enumerate() {
            let above = d.channels[i.saturating_sub(1)];
            levels.push(Level {
                down: self.residual(format!("down.{i}.res"), above, c)?,
                down_attention: self.attention_if(d.attention[i], format!("down.{i}.attn"), c)?,
                shrink: self.conv_if(i < deepest, &format!("down.{i}.down"), c, c)?,
                up: self.residual(format!("up.{i}.res"), 2 * c, c)?,
                up_attention: self.attention_if(d.attention[i], format!("up.{i}.attn"), c)?,
                grow: self.conv_if(i > 0, &format!("up.{i}.up"), c, above)?,
            });
        }
        let c = d.channels[deepest];
        let mid = (
            self.residual("mid.res0".into(), c, c)?,
            self.attention("mid.attn".into(), c)?,
            self.residual("mid.res1".into(), c, c)?,
        );
        Ok(Layers {
            time_in,
            time_out,
            conv_in,
            levels,
            mid,
            norm_out: self.affine("norm_out", &[d.channels[0]])?,
            conv_out: self.conv("conv_out", d.channels[0], d.out_channels)?,
            film: self.films()?,
        })
    }

    /// The second layer of the time embedding beside the class embedding: on hidden units followed by a
    /// one-hot label, their sum is one matrix product.
    fn time_and_class(&mut self) -> anyhow::Result<Affine> {
        let (d, classes) = (self.description.emb_dim, self.description.num_classes + 1);
        let weight = self.weights.take("time_mlp.1.weight", &[d, d])?;
        let bias = self.weights.take("time_mlp.1.bias", &[d])?;
        let class = self.weights.take("class_emb.weight", &[classes, d])?;
        let mut rows = transposed(weight, d, d);
        rows.extend_from_slice(class);
        rows.resize(hidden_width(self.description) * d, 0.0);
        let weight = self.workspace.values(&[hidden_width(self.description), d], &rows)?;
        Ok(Affine { weight, bias: self.workspace.values(&[d], bias)? })
    }

    /// The scales and shifts of every block, from one matrix.
    fn films(&mut self) -> anyhow::Result<Affine> {
        let d = self.description.emb_dim;
        let (mut weight, mut bias) = (Vec::new(), Vec::new());
        for (name, c) in &self.blocks {
            weight.extend_from_slice(self.weights.take(&format!("{name}.weight"), &[2 * c, d])?);
            bias.extend_from_slice(self.weights.take(&format!("{name}.bias"), &[2 * c])?);
        }
        let n = bias.len();
        let weight = self.workspace.values(&[d, n], &transposed(&weight, n, d))?;
        Ok(Affine { weight, bias: self.workspace.values(&[n], &bias)? })
    }
}

/// Columns of the second embedding layer's input: hidden units and one-hot label, filled up to whole vectors.
fn hidden_width(d: &Description) -> usize {
    (d.emb_dim + d.num_classes + 1).next_multiple_of(16)
}

/// The transpose of a row-major matrix.
fn transposed(matrix: &[f32], rows: usize, columns: usize) -> Vec<f32> {
    (0..matrix.len()).map(|i| matrix[i % rows * columns + i / rows]).collect()
}

impl Unet {
    /// Loads the network for up to `capacity` images at once.
    ///
    /// # Errors
    /// A `ModelError` when the weights are not those of the description, or what the device finds wrong.
    pub(crate) fn new(
        device: Device,
        dtype: Dtype,
        d: &Description,
        weights: &Weights,
        capacity: usize,
    ) -> anyhow::Result<Self> {
        let workspace = Workspace::new(device, dtype);
        let mut load = Loader { workspace, weights, description: d, blocks: Vec::new() };
        let layers = load.layers()?;
        weights.all_taken()?;

        let mut workspace = load.workspace;
        let mut buffers = Vec::new();
        for (i, &c) in d.channels.iter().enumerate() {
            let (s, above) = (d.image_size >> i, d.channels[i.saturating_sub(1)]);
            let mut image = |c| workspace.image([capacity, c, s, s]);
            buffers.push(Buffers {
                enter: image(above)?,
                concat: image(2 * c)?,
                normed: image(above.max(2 * c))?,
                inner: image(c)?,
                shortcut: image(c)?,
                qkv: image(3 * c)?,
                first: image(c)?,
                last: image(c)?,
                raised: image(d.channels.get(i + 1).copied().unwrap_or(0))?,
            });
        }
        Ok(Self {
            hidden: workspace.zeros(&[capacity, hidden_width(d)])?,
            embedding: workspace.zeros(&[capacity, d.emb_dim])?,
            films: workspace.zeros(&[capacity, layers.film.bias.len()])?,
            layers,
            runner: Runner {
                workspace,
                groups: d.groups,
                eps: d.norm_eps,
                head_dim: d.head_dim,
                #[cfg(test)]
                trace: None,
            },
            buffers,
        })
    }

    /// Where everything lies. Users put their states and slopes here too.
    pub(crate) fn workspace(&mut self) -> &mut Workspace {
        &mut self.runner.workspace
    }

    /// Keeps the output of every stage of the coming evaluations, by name.
    #[cfg(test)]
    pub(crate) fn trace(&mut self) -> &mut std::collections::BTreeMap<String, Vec<f32>> {
        self.runner.trace.get_or_insert_default()
    }

    /// Tells which class each image of the coming evaluations is to be of.
    pub(crate) fn set_labels(&mut self, labels: &[usize]) -> Result<()> {
        let &[_, width] = self.hidden.shape() else { unreachable!("a matrix") };
        let mut rows = vec![0.0; self.hidden.len()];
        for (row, &label) in rows.chunks_exact_mut(width).zip(labels) {
            row[self.embedding.shape()[1]..][label] = 1.0;
        }
        self.runner.workspace.write(&self.hidden, &rows)
    }

    /// Writes the velocity over `out`, `[k m, c, s, s]`, from the images `x`, `[m, c, s, s]`: every image is
    /// evaluated `k` times, the `j`-th time under the labels from `j m` on. `time` is a row of embedded time.
    pub(crate) fn velocity(&mut self, time: &View<Id>, x: &Image, out: &Image) -> Result<()> {
        let (n, m) = (out.shape()[0], x.shape()[0]);
        let first = |v: &View<Id>| v.clone().slice(0, 0..n);
        let levels: Vec<Buffers> = self.buffers.iter().map(|b| b.map(first)).collect::<Result<_>>()?;
        let (hidden, embedding) = (first(&self.hidden)?, first(&self.embedding)?);
        let films = first(&self.films)?;
        let Self { layers, runner, .. } = self;

        let e = embedding.shape()[1];
        let time = View::strided(*time.memory(), time.dtype(), &[n, time.len()], &[0, 1], time.offset())?;
        let units = hidden.clone().slice(1, 0..e)?;
        runner.linear(&layers.time_in, &time, Activation::Silu, &units)?;
        runner.mark("time_mlp", ".0", &units)?;
        runner.linear(&layers.time_out, &hidden, Activation::Silu, &embedding)?;
        runner.mark("embed", "", &embedding)?;
        runner.linear(&layers.film, &embedding, Activation::None, &films)?;

        // The first convolution knows neither time nor label: its output is made once per label.
        for from in (0..n).step_by(m.max(1)) {
            let part = levels[0].enter.clone().slice(0, from..from + m)?;
            runner.conv3(&layers.conv_in, 1, x, None, &part)?;
        }
        runner.mark("conv_in", "", &levels[0].enter)?;
        for (i, (level, b)) in layers.levels.iter().zip(&levels).enumerate() {
            let skip = b.skip()?;
            match &level.down_attention {
                Some(attention) => {
                    runner.residual(&level.down, b, &films, &b.enter, &b.first)?;
                    runner.attention(attention, b, &b.first, &skip)?;
                }
                None => runner.residual(&level.down, b, &films, &b.enter, &skip)?,
            }
            if let (Some(shrink), Some(below)) = (&level.shrink, levels.get(i + 1)) {
                runner.conv3(shrink, 2, &skip, None, &below.enter)?;
                runner.mark(&format!("down.{i}"), ".down", &below.enter)?;
            }
        }
        let (b, (res0, attention, res1)) = (&levels[levels.len() - 1], &layers.mid);
        runner.residual(res0, b, &films, &b.skip()?, &b.first)?;
        runner.attention(attention, b, &b.first, &b.last)?;
        runner.residual(res1, b, &films, &b.last, &b.risen()?)?;
        for (i, (level, b)) in layers.levels.iter().zip(&levels).enumerate().rev() {
            match &level.up_attention {
                Some(attention) => {
                    runner.residual(&level.up, b, &films, &b.concat, &b.first)?;
                    runner.attention(attention, b, &b.first, &b.last)?;
                }
                None => runner.residual(&level.up, b, &films, &b.concat, &b.last)?,
            }
            if let Some((grow, above)) = level.grow.as_ref().zip(i.checked_sub(1).map(|i| &levels[i])) {
                runner
                    .workspace
                    .run(&Resample::Up2, ResampleArgs { x: b.last.clone(), out: above.raised.clone() })?;
                runner.conv3(grow, 1, &above.raised, None, &above.risen()?)?;
                runner.mark(&format!("up.{i}"), ".up", &above.risen()?)?;
            }
        }
        let b = &levels[0];
        let normed = with_channels(&b.normed, b.last.shape()[1])?;
        runner.norm(&layers.norm_out, &b.last, Activation::Silu, None, &normed)?;
        runner.mark("norm_out", "", &normed)?;
        runner.conv3(&layers.conv_out, 1, &normed, None, out)?;
        runner.mark("conv_out", "", out)
    }
}

/// Runs layers on a workspace.
struct Runner {
    workspace: Workspace,
    groups: usize,
    eps: f32,
    head_dim: usize,
    /// Every stage's output by name, when someone asked.
    #[cfg(test)]
    trace: Option<std::collections::BTreeMap<String, Vec<f32>>>,
}

impl Runner {
    /// `x W + b` on the rows of a matrix.
    fn linear(&mut self, layer: &Affine, x: &View<Id>, activation: Activation, out: &View<Id>) -> Result<()> {
        self.product(layer, x, activation, None, out)
    }

    fn product(
        &mut self,
        layer: &Affine,
        x: &View<Id>,
        activation: Activation,
        residual: Option<View<Id>>,
        out: &View<Id>,
    ) -> Result<()> {
        let (b, bias) = (layer.weight.clone(), Some(layer.bias.clone()));
        let args = MatmulArgs { a: x.clone(), b, bias, residual, out: out.clone() };
        self.workspace.run(&Matmul { activation }, args)
    }

    /// A 1x1 convolution: a matrix product over pixels.
    fn pointwise(&mut self, layer: &Affine, x: &Image, residual: Option<&Image>, out: &Image) -> Result<()> {
        let residual = residual.map(pixels).transpose()?;
        self.product(layer, &pixels(x)?, Activation::None, residual, &pixels(out)?)
    }

    /// A 3x3 convolution with padding 1.
    fn conv3(
        &mut self,
        layer: &Affine,
        stride: usize,
        x: &Image,
        residual: Option<&Image>,
        out: &Image,
    ) -> Result<()> {
        let op = Conv { stride: [stride; 2], padding: [1; 2], ..Conv::default() };
        let args = ConvArgs {
            x: x.clone(),
            weight: layer.weight.clone(),
            bias: Some(layer.bias.clone()),
            sample_bias: None,
            residual: residual.cloned(),
            out: out.clone(),
        };
        self.workspace.run(&op, args)
    }

    /// Group norm with what follows it; `film` holds scale and shift per image and channel, side by side.
    fn norm(
        &mut self,
        layer: &Affine,
        x: &Image,
        activation: Activation,
        film: Option<View<Id>>,
        out: &Image,
    ) -> Result<()> {
        let op = Norm { kind: NormKind::Group { groups: self.groups }, eps: self.eps, activation };
        let c = x.shape()[1];
        let part = |range| film.clone().map(|f| f.slice(1, range)).transpose();
        let args = NormArgs {
            x: x.clone(),
            weight: Some(layer.weight.clone()),
            bias: Some(layer.bias.clone()),
            scale: part(0..c)?,
            shift: part(c..2 * c)?,
            out: out.clone(),
        };
        self.workspace.run(&op, args)
    }

    fn residual(
        &mut self,
        block: &Residual,
        b: &Buffers,
        films: &View<Id>,
        x: &Image,
        out: &Image,
    ) -> Result<()> {
        let normed = with_channels(&b.normed, x.shape()[1])?;
        self.norm(&block.norm1, x, Activation::Silu, None, &normed)?;
        self.mark(&block.name, ".norm1", &normed)?;
        self.conv3(&block.conv1, 1, &normed, None, &b.inner)?;
        self.mark(&block.name, ".conv1", &b.inner)?;
        let film = films.clone().slice(1, block.film.clone())?;
        self.mark(&block.name, ".film", &film)?;
        let normed = with_channels(&b.normed, out.shape()[1])?;
        self.norm(&block.norm2, &b.inner, Activation::Silu, Some(film), &normed)?;
        self.mark(&block.name, ".norm2", &normed)?;
        let shortcut = match &block.skip {
            Some(skip) => {
                self.pointwise(skip, x, None, &b.shortcut)?;
                self.mark(&block.name, ".skip", &b.shortcut)?;
                &b.shortcut
            }
            None => x,
        };
        self.conv3(&block.conv2, 1, &normed, Some(shortcut), out)?;
        self.mark(&block.name, "", out)
    }

    fn attention(&mut self, block: &SelfAttention, b: &Buffers, x: &Image, out: &Image) -> Result<()> {
        let &[n, c, h, w] = x.shape() else { unreachable!("an image has four axes") };
        let normed = with_channels(&b.normed, c)?;
        self.norm(&block.norm, x, Activation::None, None, &normed)?;
        self.mark(&block.name, ".norm", &normed)?;
        self.pointwise(&block.qkv, &normed, None, &b.qkv)?;
        self.mark(&block.name, ".qkv", &b.qkv)?;
        let heads = c / self.head_dim;
        // [n, h w, channels] as [n, heads, h w, head_dim].
        let tokens = |image: &Image, from: usize| {
            let channels = image.shape()[1];
            View::contiguous(*image.memory(), image.dtype(), &[n, h * w, channels])?
                .slice(2, from..from + c)?
                .split(2, heads)?
                .permute(&[0, 2, 1, 3])
        };
        let op = Attention::new(self.head_dim);
        let args = AttentionArgs::new(
            tokens(&b.qkv, 0)?,
            tokens(&b.qkv, c)?,
            tokens(&b.qkv, 2 * c)?,
            tokens(&normed, 0)?,
        );
        self.workspace.run(&op, args)?;
        self.pointwise(&block.proj, &normed, Some(x), out)?;
        self.mark(&block.name, "", out)
    }

    /// Keeps the output of a stage, if asked to.
    #[cfg(test)]
    fn mark(&mut self, block: &str, stage: &str, output: &View<Id>) -> Result<()> {
        if let Some(trace) = &mut self.trace {
            trace.insert(format!("{block}{stage}"), self.workspace.read(output)?);
        }
        Ok(())
    }

    #[cfg(not(test))]
    #[inline]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "it has a body in tests")]
    fn mark(&mut self, _: &str, _: &str, _: &View<Id>) -> Result<()> {
        Ok(())
    }
}
