//! Layers that load what those of `candle_nn` load and fuse what follows them.

use crate::{ConvInputs, NormInputs, conv, norm};
use advect::ops::{Activation, Conv, Norm, NormKind};
use candle_core::{Result, Tensor};
use candle_nn::{Conv2dConfig, Init, Module, VarBuilder};

/// A 2-D convolution. [`Module::forward`] is that of `candle_nn::Conv2d`.
#[derive(Debug, Clone)]
pub struct Conv2d {
    weight: Tensor,
    bias: Option<Tensor>,
    op: Conv,
}

/// As `candle_nn::conv2d`.
///
/// # Errors
/// When the weights are not there or not of this shape.
pub fn conv2d(
    in_channels: usize,
    out_channels: usize,
    kernel_size: usize,
    config: Conv2dConfig,
    vb: VarBuilder<'_>,
) -> Result<Conv2d> {
    Ok(Conv2d::from(&candle_nn::conv2d(in_channels, out_channels, kernel_size, config, vb)?))
}

impl From<&candle_nn::Conv2d> for Conv2d {
    /// The same weights, shared.
    fn from(layer: &candle_nn::Conv2d) -> Self {
        let &Conv2dConfig { padding, stride, dilation, groups, .. } = layer.config();
        let op = Conv {
            stride: [stride; 2],
            padding: [padding; 2],
            dilation: [dilation; 2],
            groups,
            activation: Activation::None,
        };
        Self { weight: layer.weight().clone(), bias: layer.bias().cloned(), op }
    }
}

impl Conv2d {
    /// The same weights, shared, as a 1x1 convolution: the layer applied to each pixel of an image, whose
    /// channels then need not be transposed to the last axis and back.
    ///
    /// # Errors
    /// When the weights have not two axes.
    pub fn per_pixel(layer: &candle_nn::Linear) -> Result<Self> {
        let (c_out, c_in) = layer.weight().dims2()?;
        let weight = layer.weight().reshape((c_out, c_in, 1, 1))?;
        Ok(Self { weight, bias: layer.bias().cloned(), op: Conv::default() })
    }

    /// `activation(conv(x) + bias + sample_bias) + residual`, in one pass.
    ///
    /// # Errors
    /// As [`crate::attention`].
    pub fn fused(
        &self,
        x: &Tensor,
        sample_bias: Option<&Tensor>,
        activation: Activation,
        residual: Option<&Tensor>,
    ) -> Result<Tensor> {
        let inputs = ConvInputs { x, weight: &self.weight, bias: self.bias.as_ref(), sample_bias, residual };
        conv(Conv { activation, ..self.op }, inputs)
    }

    /// `conv(x) + bias + residual`, in one pass.
    ///
    /// # Errors
    /// As [`crate::attention`].
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.fused(x, None, Activation::None, Some(residual))
    }
}

impl Module for Conv2d {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fused(x, None, Activation::None, None)
    }
}

/// Group normalisation. [`Module::forward`] is that of `candle_nn::GroupNorm`.
#[derive(Debug, Clone)]
pub struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    op: Norm,
}

/// As `candle_nn::group_norm`.
///
/// # Errors
/// When the weights are not there or not of this shape.
pub fn group_norm(groups: usize, channels: usize, eps: f64, vb: VarBuilder<'_>) -> Result<GroupNorm> {
    let weight = vb.get_with_hints(channels, "weight", Init::Const(1.0))?;
    let bias = vb.get_with_hints(channels, "bias", Init::Const(0.0))?;
    Ok(GroupNorm::new(weight, bias, groups, eps))
}

impl GroupNorm {
    /// From its weights, `[channels]` each.
    pub fn new(weight: Tensor, bias: Tensor, groups: usize, eps: f64) -> Self {
        let kind = NormKind::Group { groups };
        Self { weight, bias, op: Norm { kind, eps: eps as f32, activation: Activation::None } }
    }

    /// The normalisation and what follows it, in one pass.
    ///
    /// # Errors
    /// As [`crate::attention`].
    pub fn fused(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        norm(Norm { activation, ..self.op }, NormInputs { x, weight, bias, scale: None, shift: None })
    }
}

impl Module for GroupNorm {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fused(x, Activation::None)
    }
}
