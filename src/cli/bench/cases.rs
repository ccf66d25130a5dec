//! What is timed: a list of cases in JSON, made into launches.

use advect::ops::{
    Activation, Attention, AttentionArgs, Coefficients, Conv, ConvArgs, Matmul, MatmulArgs, Noise, Norm,
    NormArgs, NormKind, Resample, ResampleArgs, Step, StepArgs,
};
use advect::{Device, Dtype, Tensor, View};
use anyhow::{Result, anyhow, bail, ensure};
use serde::Deserialize;

/// One case: a name and what it does.
#[derive(Debug, Deserialize)]
pub(super) struct Case {
    pub(super) id: String,
    pub(super) kind: String,
    #[serde(flatten)]
    fields: serde_json::Map<String, serde_json::Value>,
}

/// Runs a case once.
type Run = Box<dyn FnMut(&Device) -> advect::Result<()>>;

/// A launch with its work, counted as the results of other libraries count it: attention 4 B H Nq Nk D (half of it where causal),
/// convolution 2 a multiply-add, bytes each tensor once.
pub(super) struct Launch {
    pub(super) run: Run,
    pub(super) flops: f64,
    pub(super) bytes: f64,
}

#[derive(Deserialize)]
struct Gemm {
    m: usize,
    n: usize,
    k: usize,
}

#[derive(Deserialize)]
#[allow(non_snake_case, reason = "named as in the file")]
struct Heads {
    B: usize,
    Hq: usize,
    Hkv: usize,
    Nq: usize,
    Nk: usize,
    D: usize,
    #[serde(default)]
    causal: bool,
}

#[derive(Deserialize)]
#[allow(non_snake_case, reason = "named as in the file")]
struct Image {
    N: usize,
    C: usize,
    O: usize,
    #[serde(rename = "in")]
    size: Vec<usize>,
    k: Vec<usize>,
    stride: usize,
    pad: usize,
    dil: usize,
    groups: usize,
    #[serde(default)]
    transposed: bool,
}

#[derive(Deserialize)]
struct Shape {
    shape: Vec<usize>,
    #[serde(default)]
    groups: usize,
    #[serde(default)]
    mode: String,
}

#[derive(Deserialize)]
struct Length {
    n: usize,
}

/// Larger sizes than any machine holds are a mistake in the file: refused before they are multiplied.
fn sane(sizes: &[usize]) -> Result<()> {
    let elements = sizes.iter().try_fold(1usize, |n, &s| n.checked_mul(s));
    ensure!(elements.is_some_and(|n| n <= 1 << 31), "sizes {sizes:?} are over 2^31 elements");
    Ok(())
}

/// Numbers that are neither zero nor special, the same in every run.
fn filled(device: &Device, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
    sane(shape)?;
    let mut state = 1u32;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Ok(Tensor::from_f32(device, dtype, shape, &values)?)
}

fn empty(device: &Device, dtype: Dtype, shape: &[usize]) -> Result<Tensor> {
    sane(shape)?;
    Ok(Tensor::new(device, dtype, shape)?)
}

const NCHW: [usize; 4] = [0, 1, 2, 3];
/// Shows an array stored as NHWC as NCHW.
const NHWC: [usize; 4] = [0, 3, 1, 2];

/// An NCHW shape as it is stored under one of the orders above.
fn stored(order: [usize; 4], [n, c, h, w]: [usize; 4]) -> [usize; 4] {
    if order == NHWC { [n, h, w, c] } else { [n, c, h, w] }
}

impl Case {
    /// Reads a list of cases.
    pub(super) fn list(json: &str) -> Result<Vec<Self>> {
        Ok(serde_json::from_str(json)?)
    }

    /// The op that does it; `None` for kinds that are not known.
    pub(super) fn op(&self) -> Option<&'static str> {
        Some(match self.kind.as_str() {
            "gemm" => "matmul",
            "attention" => "attention",
            "conv" | "conv_bias_silu" => "conv",
            "groupnorm_silu" | "layernorm_adaln" => "norm",
            "resample" => "resample",
            "lincomb4" | "dpmpp2m_cfg" | "randn" | "scheduler" => "step",
            _ => return None,
        })
    }

    fn fields<T: serde::de::DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_value(serde_json::Value::Object(self.fields.clone()))?)
    }

    /// What to time, by layout. A case that cannot be done here is an error that says why.
    pub(super) fn launches(
        &self,
        device: &Device,
        dtype: Dtype,
    ) -> Vec<(Option<&'static str>, Result<Launch>)> {
        let images =
            |f: &dyn Fn([usize; 4]) -> Result<Launch>| vec![(Some("nchw"), f(NCHW)), (Some("nhwc"), f(NHWC))];
        match self.kind.as_str() {
            "gemm" => vec![(None, self.gemm(device, dtype))],
            "attention" => vec![(None, self.attention(device, dtype))],
            "conv" => images(&|order| self.conv(device, dtype, order, false)),
            "conv_bias_silu" => images(&|order| self.conv(device, dtype, order, true)),
            "groupnorm_silu" => images(&|order| self.group_norm(device, dtype, order)),
            "layernorm_adaln" => vec![(None, self.layer_norm(device, dtype))],
            "resample" => images(&|order| self.resample(device, dtype, order)),
            "lincomb4" | "dpmpp2m_cfg" | "randn" | "scheduler" => vec![(None, self.step(device, dtype))],
            other => vec![(None, Err(anyhow!("the kind `{other}` is not known")))],
        }
    }

    fn gemm(&self, device: &Device, dtype: Dtype) -> Result<Launch> {
        let Gemm { m, n, k } = self.fields()?;
        let (a, b) = (filled(device, dtype, &[m, k])?, filled(device, dtype, &[k, n])?);
        let mut out = empty(device, dtype, &[m, n])?;
        Ok(Launch {
            flops: 2.0 * m as f64 * n as f64 * k as f64,
            bytes: bytes([&a, &b, &out]),
            run: Box::new(move |device| {
                let (a, b, out) = (a.view(), b.view(), out.view_mut());
                let args = MatmulArgs { a, b, bias: None, residual: None, out };
                device.run(&Matmul { activation: Activation::None }, args)
            }),
        })
    }

    #[allow(non_snake_case, reason = "named as in the file")]
    fn attention(&self, device: &Device, dtype: Dtype) -> Result<Launch> {
        let Heads { B, Hq, Hkv, Nq, Nk, D, causal } = self.fields()?;
        ensure!(Hkv > 0 && Hq.is_multiple_of(Hkv), "{Hq} query heads do not divide into {Hkv}");
        let q = filled(device, dtype, &[B, Hq, Nq, D])?;
        let k = filled(device, dtype, &[B, Hkv, Nk, D])?;
        let v = filled(device, dtype, &[B, Hkv, Nk, D])?;
        let mut out = empty(device, dtype, &[B, Hq, Nq, D])?;
        let op = if causal { Attention::new(D).causal() } else { Attention::new(D) };
        Ok(Launch {
            flops: 4.0 * (B * Hq * D) as f64 * Nq as f64 * Nk as f64 * if causal { 0.5 } else { 1.0 },
            bytes: bytes([&q, &k, &v, &out]),
            run: Box::new(move |device| {
                let (q, k, v, out) = (q.view(), k.view(), v.view(), out.view_mut());
                device.run(&op, AttentionArgs::new(q, k, v, out))
            }),
        })
    }

    #[allow(non_snake_case, reason = "named as in the file")]
    fn conv(&self, device: &Device, dtype: Dtype, order: [usize; 4], fused: bool) -> Result<Launch> {
        let Image { N, C, O, size, k, stride, pad, dil, groups, transposed } = self.fields()?;
        ensure!(!transposed, "transposed convolution is not an op yet");
        // One dimension is an image of one row.
        let (h, w, kh, kw, one_row) = match (size.as_slice(), k.as_slice()) {
            (&[h, w], &[kh, kw]) => (h, w, kh, kw, false),
            (&[w], &[kw]) => (1, w, 1, kw, true),
            _ => bail!("convolution over {} axes is not an op yet", size.len()),
        };
        ensure!(groups > 0 && C.is_multiple_of(groups), "{groups} groups do not divide {C} channels");
        let pads = [if one_row { 0 } else { pad }, pad];
        let strides = [if one_row { 1 } else { stride }, stride];
        ensure!(stride > 0 && dil > 0 && kh > 0 && kw > 0, "stride, dil and k are at least 1");
        let extent = |size: usize, k: usize, axis: usize| {
            let padded = (size + 2 * pads[axis]).checked_sub(dil * (k - 1) + 1);
            padded
                .map(|p| p / strides[axis] + 1)
                .ok_or_else(|| anyhow!("the kernel is larger than the image"))
        };
        let (oh, ow) = (extent(h, kh, 0)?, extent(w, kw, 1)?);
        let x = filled(device, dtype, &stored(order, [N, C, h, w]))?;
        let weight = filled(device, dtype, &stored(order, [O, C / groups, kh, kw]))?;
        let bias = filled(device, dtype, &[O])?;
        let mut out = empty(device, dtype, &stored(order, [N, O, oh, ow]))?;
        let activation = if fused { Activation::Silu } else { Activation::None };
        let op = Conv { stride: strides, padding: pads, dilation: [dil; 2], groups, activation };
        Ok(Launch {
            flops: 2.0 * (N * O * oh * ow) as f64 * (C / groups * kh * kw) as f64,
            bytes: bytes([&x, &weight, &bias, &out]),
            run: Box::new(move |device| {
                let args = ConvArgs {
                    x: x.view().permute(&order)?,
                    weight: weight.view().permute(&order)?,
                    bias: Some(bias.view()),
                    sample_bias: None,
                    residual: None,
                    out: out.view_mut().permute(&order)?,
                };
                device.run(&op, args)
            }),
        })
    }

    fn group_norm(&self, device: &Device, dtype: Dtype, order: [usize; 4]) -> Result<Launch> {
        let Shape { shape, groups, .. } = self.fields()?;
        let shape: [usize; 4] = shape.try_into().map_err(|s| anyhow!("wanted 4 axes, got {s:?}"))?;
        let x = filled(device, dtype, &stored(order, shape))?;
        let (weight, bias) = (filled(device, dtype, &[shape[1]])?, filled(device, dtype, &[shape[1]])?);
        let mut out = empty(device, dtype, &stored(order, shape))?;
        let op = Norm { kind: NormKind::Group { groups }, eps: 1e-6, activation: Activation::Silu };
        Ok(Launch {
            flops: 0.0,
            bytes: bytes([&x, &out]),
            run: Box::new(move |device| {
                let args = NormArgs {
                    x: x.view().permute(&order)?,
                    weight: Some(weight.view()),
                    bias: Some(bias.view()),
                    scale: None,
                    shift: None,
                    out: out.view_mut().permute(&order)?,
                };
                device.run(&op, args)
            }),
        })
    }

    fn layer_norm(&self, device: &Device, dtype: Dtype) -> Result<Launch> {
        let Shape { shape, .. } = self.fields()?;
        let [n, _, c]: [usize; 3] =
            shape.as_slice().try_into().map_err(|_| anyhow!("wanted 3 axes, got {shape:?}"))?;
        let x = filled(device, dtype, &shape)?;
        let (scale, shift) = (filled(device, dtype, &[n, c])?, filled(device, dtype, &[n, c])?);
        let mut out = empty(device, dtype, &shape)?;
        let op = Norm { kind: NormKind::Layer, eps: 1e-6, activation: Activation::None };
        Ok(Launch {
            flops: 0.0,
            bytes: bytes([&x, &out]),
            run: Box::new(move |device| {
                let (x, out) = (x.view(), out.view_mut());
                let (scale, shift) = (Some(scale.view()), Some(shift.view()));
                device.run(&op, NormArgs { x, weight: None, bias: None, scale, shift, out })
            }),
        })
    }

    fn resample(&self, device: &Device, dtype: Dtype, order: [usize; 4]) -> Result<Launch> {
        let Shape { shape, mode, .. } = self.fields()?;
        let [n, c, h, w] = shape.try_into().map_err(|s| anyhow!("wanted 4 axes, got {s:?}"))?;
        let (op, size) = match mode.as_str() {
            "up" => (Resample::Up2, [n, c, 2 * h, 2 * w]),
            "down" => (Resample::Down2, [n, c, h / 2, w / 2]),
            other => bail!("wanted the mode up or down, got `{other}`"),
        };
        let x = filled(device, dtype, &stored(order, [n, c, h, w]))?;
        let mut out = empty(device, dtype, &stored(order, size))?;
        Ok(Launch {
            flops: 0.0,
            bytes: bytes([&x, &out]),
            run: Box::new(move |device| {
                let (x, out) = (x.view().permute(&order)?, out.view_mut().permute(&order)?);
                device.run(&op, ResampleArgs { x, out })
            }),
        })
    }

    fn step(&self, device: &Device, dtype: Dtype) -> Result<Launch> {
        let n = match self.kind.as_str() {
            "scheduler" => {
                let Shape { shape, .. } = self.fields()?;
                sane(&shape)?;
                shape.iter().product()
            }
            _ => self.fields::<Length>()?.n,
        };
        let buffer = || filled(device, dtype, &[1, n]);
        let size = (n * dtype.size()) as f64;
        match self.kind.as_str() {
            "randn" => {
                let (x, noise) = ([0.0; 8], Some(Noise { seed: 1, stream: 0 }));
                let op = Step { coefficients: Coefficients::Values { x, noise: 1.0 }, noise };
                // The unread first buffer is one element, repeated.
                let unread = filled(device, dtype, &[1])?;
                let mut out = empty(device, dtype, &[1, n])?;
                let run = Box::new(move |device: &Device| {
                    let unread = View::strided(unread.view().into_memory(), dtype, &[1, n], &[0, 0], 0)?;
                    device.run(&op, StepArgs::over([unread], out.view_mut())?)
                });
                Ok(Launch { flops: 0.0, bytes: size, run })
            }
            "dpmpp2m_cfg" => {
                // DPM-Solver++(2M) with guidance g: x0 = (x - sigma eps) / alpha of the mixed noise
                // prediction, then cx x + cd ((1 + h) x0 - h x0_before). Two outputs, so two launches.
                let (g, sigma, alpha, cx, cd, h) = (7.5f32, 0.6f32, 0.8f32, 0.95f32, 0.21f32, 0.5f32);
                let convert = combination(&[1.0 / alpha, -sigma * g / alpha, sigma * (g - 1.0) / alpha]);
                let advance = combination(&[cx, cd * (1.0 + h), -cd * h]);
                let (x, cond, uncond, before) = (buffer()?, buffer()?, buffer()?, buffer()?);
                let (mut x0, mut out) = (empty(device, dtype, &[1, n])?, empty(device, dtype, &[1, n])?);
                let run = Box::new(move |device: &Device| {
                    let inputs = [x.view(), cond.view(), uncond.view()];
                    device.run(&convert, StepArgs::over(inputs, x0.view_mut())?)?;
                    device
                        .run(&advance, StepArgs::over([x.view(), x0.view(), before.view()], out.view_mut())?)
                });
                Ok(Launch { flops: 0.0, bytes: 6.0 * size, run })
            }
            kind => {
                // `scheduler` is Euler's step of a flow: x + h v.
                let coefficients: &[f32] =
                    if kind == "scheduler" { &[1.0, 0.1] } else { &[0.9, 0.1, -0.3, 0.2] };
                let op = combination(coefficients);
                let x = coefficients.iter().map(|_| buffer()).collect::<Result<Vec<_>>>()?;
                let mut out = empty(device, dtype, &[1, n])?;
                let bytes = (x.len() + 1) as f64 * size;
                let run = Box::new(move |device: &Device| {
                    device.run(&op, StepArgs::over(x.iter().map(Tensor::view), out.view_mut())?)
                });
                Ok(Launch { flops: 0.0, bytes, run })
            }
        }
    }
}

/// The step that sums its buffers under these coefficients.
fn combination(coefficients: &[f32]) -> Step {
    let mut x = [0.0; 8];
    x[..coefficients.len()].copy_from_slice(coefficients);
    Step { coefficients: Coefficients::Values { x, noise: 0.0 }, noise: None }
}

fn bytes<const N: usize>(tensors: [&Tensor; N]) -> f64 {
    tensors.iter().map(|t| (t.shape().iter().product::<usize>() * t.dtype().size()) as f64).sum()
}
