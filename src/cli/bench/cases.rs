//! What is timed: a list of cases in JSON, made into launches.

use advect::ops::{
    Activation, Attention, AttentionArgs, Coefficients, Conv, ConvArgs, FeatureMap, LinearAttention,
    LinearAttentionArgs, Matmul, MatmulArgs, Merge, MergeArgs, Noise, Norm, NormArgs, NormKind, Resample,
    ResampleArgs, Step, StepArgs,
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
/// convolution 2 a multiply-add, bytes each tensor once. Linear attention is a state of D Dv multiply-adds a token to write it
/// and as many to read it, and by the delta rule to predict from it.
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

/// Parts of attention: how many, batch, heads, queries, elements of a head.
#[derive(Deserialize)]
#[allow(non_snake_case, reason = "named as in the file")]
struct Parts {
    S: usize,
    B: usize,
    H: usize,
    N: usize,
    D: usize,
}

#[derive(Deserialize)]
#[allow(non_snake_case, reason = "named as in the file")]
struct Recurrence {
    B: usize,
    Hqk: usize,
    Hv: usize,
    N: usize,
    D: usize,
    Dv: usize,
    #[serde(default)]
    causal: bool,
    /// Decays of each `token` or `channel`; none without it.
    #[serde(default)]
    decay: String,
    /// The delta rule.
    #[serde(default)]
    beta: bool,
    /// `relu` or `elu+1`.
    #[serde(default)]
    map: String,
    /// With a normalizer.
    #[serde(default)]
    eps: Option<f32>,
    /// From a state to a state, as in decoding.
    #[serde(default)]
    states: bool,
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
    between(device, dtype, shape, -1.0, 1.0)
}

/// The same from `low` to `high`.
fn between(device: &Device, dtype: Dtype, shape: &[usize], low: f32, high: f32) -> Result<Tensor> {
    sane(shape)?;
    let mut state = 1u32;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            low + (high - low) * ((state >> 8) as f32 / (1 << 24) as f32)
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
            "merge" => "merge",
            "linear_attention" => "linear_attention",
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
            "merge" => vec![(None, self.merge(device, dtype))],
            "linear_attention" => vec![(None, self.linear_attention(device, dtype))],
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
    fn merge(&self, device: &Device, dtype: Dtype) -> Result<Launch> {
        let Parts { S, B, H, N, D } = self.fields()?;
        let parts = filled(device, dtype, &[S, B, H, N, D])?;
        let lses = filled(device, Dtype::F32, &[S, B, H, N])?;
        let mut out = empty(device, dtype, &[B, H, N, D])?;
        Ok(Launch {
            flops: 0.0,
            bytes: bytes([&parts, &lses, &out]),
            run: Box::new(move |device| {
                let (parts, lses, out) = (parts.view(), lses.view(), out.view_mut());
                device.run(&Merge, MergeArgs { parts, lses, out, lse: None })
            }),
        })
    }

    #[allow(non_snake_case, reason = "named as in the file")]
    fn linear_attention(&self, device: &Device, dtype: Dtype) -> Result<Launch> {
        let Recurrence { B, Hqk, Hv, N, D, Dv, causal, decay, beta, map, eps, states } = self.fields()?;
        ensure!(Hqk > 0 && Hv.is_multiple_of(Hqk), "{Hv} heads of values do not divide into {Hqk}");
        let feature_map = match map.as_str() {
            "" => FeatureMap::Identity,
            "relu" => FeatureMap::Relu,
            "elu+1" => FeatureMap::EluPlusOne,
            other => bail!("wanted the map relu or elu+1, got `{other}`"),
        };
        let decays = match decay.as_str() {
            "" => None,
            "token" => Some(vec![B, Hv, N]),
            "channel" => Some(vec![B, Hv, N, D]),
            other => bail!("wanted the decay token or channel, got `{other}`"),
        };
        let q = filled(device, dtype, &[B, Hqk, N, D])?;
        // Keys of length 1 at most: under longer ones the delta rule lets the state grow.
        let length = (D as f32).sqrt().recip();
        let k = between(device, dtype, &[B, Hqk, N, D], -length, length)?;
        let v = filled(device, dtype, &[B, Hv, N, Dv])?;
        let log_decay = decays.map(|shape| between(device, dtype, &shape, -0.1, 0.0)).transpose()?;
        let beta = beta.then(|| between(device, dtype, &[B, Hv, N], 0.0, 1.0)).transpose()?;
        let state = [B, Hv, D, Dv + usize::from(eps.is_some())];
        let before = states.then(|| filled(device, Dtype::F32, &state)).transpose()?;
        let mut out = empty(device, dtype, &[B, Hv, N, Dv])?;
        let mut after = states.then(|| empty(device, Dtype::F32, &state)).transpose()?;
        let extras = [&log_decay, &beta, &before, &after].into_iter().flatten();
        let op = LinearAttention { causal, feature_map, normalize: eps, ..LinearAttention::new(D) };
        Ok(Launch {
            flops: 2.0 * (B * Hv * N) as f64 * (D * Dv) as f64 * if beta.is_some() { 3.0 } else { 2.0 },
            bytes: bytes([&q, &k, &v, &out].into_iter().chain(extras)),
            run: Box::new(move |device| {
                let mut args = LinearAttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
                args.log_decay = log_decay.as_ref().map(Tensor::view);
                args.beta = beta.as_ref().map(Tensor::view);
                args.initial_state = before.as_ref().map(Tensor::view);
                args.final_state = after.as_mut().map(Tensor::view_mut);
                device.run(&op, args)
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

fn bytes<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> f64 {
    tensors.into_iter().map(|t| (t.shape().iter().product::<usize>() * t.dtype().size()) as f64).sum()
}

#[cfg(test)]
mod tests {
    use super::super::CASES;
    use super::*;
    use advect::verify::op_names;

    #[test]
    fn every_case_is_of_an_op_and_every_op_has_one() {
        let cases = Case::list(CASES).unwrap();
        let for_gpus = Case::list(include_str!("../../../benches/cases-gpu.json")).unwrap();
        for case in cases.iter().chain(&for_gpus) {
            assert!(case.op().is_some(), "{}", case.id);
        }
        for op in op_names() {
            assert!(cases.iter().any(|case| case.op() == Some(op)), "{op}");
        }
    }

    /// What is launched for one case, in JSON without its name.
    fn launch(fields: &str, device: &Device, dtype: Dtype) -> Result<Launch> {
        let list = format!(r#"[{{"id":"small",{fields}}}]"#);
        let mut launches = Case::list(&list)?[0].launches(device, dtype);
        launches.remove(0).1
    }

    #[test]
    fn parts_and_states_run_and_are_counted() {
        let merge = r#""kind":"merge","S":3,"B":1,"H":2,"N":5,"D":8"#;
        let sizes = r#""kind":"linear_attention","B":1,"Hqk":1,"Hv":2,"N":5,"D":8,"Dv":4"#;
        let linear = |extras: &str| format!("{sizes}{extras}");
        // Operations, numbers in the dtype, numbers in f32.
        for (fields, flops, numbers, singles) in [
            (merge.to_owned(), 0.0, 320.0, 30.0),
            (linear(r#","map":"relu","eps":1e-15"#), 1280.0, 160.0, 0.0),
            (linear(r#","map":"elu+1","eps":1e-6,"causal":true,"states":true"#), 1280.0, 160.0, 160.0),
            (linear(r#","causal":true,"decay":"channel""#), 1280.0, 240.0, 0.0),
            (linear(r#","causal":true,"decay":"token","beta":true,"states":true"#), 1920.0, 180.0, 128.0),
        ] {
            let device = Device::cpu(1).unwrap();
            for dtype in Dtype::FLOATS {
                let mut launch = launch(&fields, &device, dtype).unwrap();
                assert_eq!(launch.flops, flops, "{fields}");
                assert_eq!(launch.bytes, numbers * dtype.size() as f64 + 4.0 * singles, "{fields}");
                (launch.run)(&device).unwrap();
            }
        }
        for (extras, why) in [
            (r#","map":"exp""#, "wanted the map relu or elu+1, got `exp`"),
            (r#","causal":true,"decay":"head""#, "wanted the decay token or channel, got `head`"),
        ] {
            let device = Device::cpu(1).unwrap();
            let error = launch(&linear(extras), &device, Dtype::F32).err().unwrap();
            assert_eq!(error.to_string(), why);
        }
    }
}
