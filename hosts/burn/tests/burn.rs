//! The ops against burn's own, which compute in f64 on Flex from the very values that ours get, within the bound
//! that advect's definitions derive for arithmetic in f32: on Flex, and on a wgpu device that is shared with burn.

#[path = "../denoise.rs"]
mod example;

use advect::ops::{
    Activation, Attention, AttentionArgs, Coefficients, Conv, ConvArgs, Norm, NormArgs, NormKind, Step,
    StepArgs,
};
use advect::reference::{self, Dense, Expected};
use advect::{Dtype, View};
use advect_burn::{Advect, ConvInputs, Error, NormInputs};
#[cfg(feature = "wgpu")]
use burn::backend::wgpu::{MemoryConfiguration, WgpuSetup, wgpu};
use burn::tensor::ops::ConvOptions;
use burn::tensor::{DType, Device, Distribution, Tensor, activation, module};

/// Whether the tests were told to run on wgpu, and found it.
#[cfg(feature = "wgpu")]
fn with_wgpu() -> Option<wgpu::Adapter> {
    let says = |variable| std::env::var(variable).unwrap_or_default();
    let faces = says("ADVECT_FACES");
    if !faces.is_empty() && !faces.split(',').any(|f| f == "wgpu") {
        return None;
    }
    let adapter = advect::target::wgpu::adapters().into_iter().next();
    let required = says("ADVECT_REQUIRE").split(',').any(|f| f == "wgpu");
    assert!(adapter.is_some() || !required, "no adapter for wgpu, and ADVECT_REQUIRE asks for one");
    adapter
}

/// A device, the kernels for it and the dtypes it has, as burn and as advect name them.
type Place = (Device, Advect, Vec<(DType, Dtype)>);

/// Where to test, with the dtypes that are there: Flex, and wgpu devices of the application's own that burn is
/// given, one to pack tensors into shared buffers, as is its default, and one to give each its own.
fn everywhere() -> Vec<Place> {
    let f32 = (DType::F32, Dtype::F32);
    let cpu = Advect::cpu();
    let sixteen = [(DType::F16, Dtype::F16), (DType::BF16, Dtype::Bf16)];
    #[cfg_attr(not(feature = "wgpu"), expect(unused_mut))]
    let mut all = vec![(Device::flex(), cpu.clone(), [&[f32][..], &sixteen].concat())];
    #[cfg(feature = "wgpu")]
    for (device, setup) in
        [MemoryConfiguration::default(), MemoryConfiguration::ExclusivePages].into_iter().filter_map(shared)
    {
        let mut dtypes = vec![f32];
        if setup.device.features().contains(wgpu::Features::SHADER_F16) {
            dtypes.push((DType::F16, Dtype::F16));
        }
        all.push((device.clone(), cpu.clone().wgpu(&device, &setup), dtypes));
    }
    all
}

#[cfg(feature = "wgpu")]
fn shared(memory: MemoryConfiguration) -> Option<(Device, WgpuSetup)> {
    let adapter = with_wgpu()?;
    // The instance is only kept alive by burn; any will do.
    let instance = wgpu::Instance::default();
    // burn generates code for what the adapter can do: the device must have been made with all of it.
    let descriptor = wgpu::DeviceDescriptor {
        required_features: adapter.features() - wgpu::Features::all_experimental_mask(),
        required_limits: adapter.limits(),
        ..Default::default()
    };
    let (device, queue) = burn::cubecl::future::block_on(adapter.request_device(&descriptor)).unwrap();
    let backend = adapter.get_info().backend;
    let setup = WgpuSetup { instance, adapter, device, queue, backend };
    let options = Device::wgpu_options().memory_config(memory);
    Some((options.setup(setup.clone()).init().unwrap(), setup))
}

/// Numbers around 0, rounded to the dtype, in which everything is then computed exactly as given.
fn random<const D: usize>(device: &Device, dtype: DType, shape: [usize; D]) -> Tensor<D> {
    let values = Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex());
    values.cast(dtype).to_device(device)
}

/// On Flex in double precision: what burn computes with.
fn exact<const D: usize>(t: &Tensor<D>) -> Tensor<D> {
    t.clone().to_device(&Device::flex()).cast(DType::F64)
}

fn values<const D: usize>(t: &Tensor<D>) -> Vec<f64> {
    exact(t).into_data().try_to_vec::<f64>().unwrap()
}

/// As advect's definitions take it.
fn dense<const D: usize>(t: &Tensor<D>, dtype: Dtype) -> View<Dense> {
    View::contiguous(Dense { shape: t.dims().to_vec(), data: values(t) }, dtype, &t.dims()).unwrap()
}

/// `ours` is as near to burn's result in f64 as the definition's bound and the rounding to its dtype allow.
#[track_caller]
fn judge<const D: usize>(ours: &Tensor<D>, theirs: &Tensor<D>, bound: Expected, dtype: Dtype) {
    assert_eq!(ours.dims(), theirs.dims());
    let (ours, theirs) = (values(ours), values(theirs));
    assert!(!ours.is_empty() && bound.error.len() == ours.len());
    for (i, ((a, b), error)) in ours.iter().zip(&theirs).zip(&bound.error).enumerate() {
        // burn's own error in f64 is 2^-29 of ours. WGSL may flush numbers below the smallest normal one, and
        // round to 16 bits either way.
        let computed = error * (1.0 + 1e-6) + b.abs() * 1e-15 + 1e-37;
        let (unit, tiny) = match dtype {
            Dtype::F32 => (dtype.unit_roundoff(), 0.0),
            _ => (2.0 * dtype.unit_roundoff(), 1e-4),
        };
        let rounded = unit * (b.abs() + computed) + tiny * unit;
        let wrong = format!("element {i}: {a} and burn's {b} are more than {computed:e} apart");
        assert!((a - b).abs() <= computed + rounded, "{wrong}");
    }
}

#[test]
fn attention_is_burns() {
    for (device, advect, dtypes) in everywhere() {
        for (burn, dtype) in dtypes {
            let (b, n, h, d) = (2, 37, 3, 20);
            let packed = random(&device, burn, [b, n, 3 * h, d]);
            let part = |i: usize| packed.clone().narrow(2, h * i, h).swap_dims(1, 2);
            let image = |n| random(&device, burn, [1, 2, 7, n]).swap_dims(2, 3);
            let cases =
                [(part(0), part(1), part(2)), (image(33), image(5), random(&device, burn, [1, 2, 5, 7]))];
            for (q, k, v) in cases {
                let op = Attention::new(q.dims()[3]);
                let ours = advect.attention(op, q.clone(), k.clone(), v.clone()).unwrap();
                let scores = exact(&q).matmul(exact(&k).swap_dims(2, 3)) * f64::from(op.softmax_scale);
                let theirs = activation::softmax(scores, 3).matmul(exact(&v));
                let out = View::contiguous((), dtype, &q.dims()).unwrap();
                let args = AttentionArgs::new(dense(&q, dtype), dense(&k, dtype), dense(&v, dtype), out);
                let [expected, _] = reference::attention::attention(&op, &args);
                judge(&ours, &theirs, expected, dtype);
            }
        }
    }
}

#[test]
fn conv_is_burns() {
    for (device, advect, dtypes) in everywhere() {
        for (burn, dtype) in dtypes {
            let nhwc = random(&device, burn, [2, 11, 7, 6]).permute([0, 3, 1, 2]);
            let sliced = random(&device, burn, [2, 9, 13, 12]).narrow(1, 2, 6);
            let cases = [
                (random(&device, burn, [1, 5, 9, 7]), random(&device, burn, [3, 5, 3, 3]), 1, 1, 1, 1),
                (sliced, random(&device, burn, [4, 3, 3, 3]), 2, 2, 2, 2),
                (nhwc, random(&device, burn, [8, 6, 1, 1]), 0, 1, 1, 1),
                (random(&device, burn, [1, 4, 8, 8]), random(&device, burn, [4, 1, 5, 5]), 2, 1, 1, 4),
            ];
            for (i, (x, weight, padding, stride, dilation, groups)) in cases.into_iter().enumerate() {
                let options = ConvOptions::new([stride; 2], [padding; 2], [dilation; 2], groups);
                let plain = module::conv2d(exact(&x), exact(&weight), None, options);
                let [n, o, _, _] = plain.dims();
                let extras = i > 0;
                let bias = extras.then(|| random(&device, burn, [o]));
                let sample_bias = extras.then(|| random(&device, burn, [n, 2 * o]).narrow(1, o, o));
                let residual = extras.then(|| random(&device, burn, plain.dims()));
                let activation = if extras { Activation::Silu } else { Activation::None };
                let op = Conv {
                    stride: [stride; 2],
                    padding: [padding; 2],
                    dilation: [dilation; 2],
                    groups,
                    activation,
                };
                let inputs = ConvInputs {
                    x: x.clone(),
                    weight: weight.clone(),
                    bias: bias.clone(),
                    sample_bias: sample_bias.clone(),
                    residual: residual.clone(),
                };
                let ours = advect.conv(op, inputs).unwrap();
                let mut theirs = plain;
                if let (Some(bias), Some(sample_bias), Some(residual)) = (&bias, &sample_bias, &residual) {
                    let biases = exact(bias).unsqueeze::<2>() + exact(sample_bias);
                    theirs = theirs + biases.unsqueeze_dims(&[2, 3]);
                    theirs = activation::silu(theirs) + exact(residual);
                }
                let args = ConvArgs {
                    x: dense(&x, dtype),
                    weight: dense(&weight, dtype),
                    bias: bias.map(|t| dense(&t, dtype)),
                    sample_bias: sample_bias.map(|t| dense(&t, dtype)),
                    residual: residual.map(|t| dense(&t, dtype)),
                    out: View::contiguous((), dtype, &theirs.dims()).unwrap(),
                };
                judge(&ours, &theirs, reference::conv::conv(&op, &args), dtype);
            }
        }
    }
}

#[test]
fn group_norm_is_burns() {
    for (device, advect, dtypes) in everywhere() {
        for (burn, dtype) in dtypes {
            let sliced = random(&device, burn, [3, 9, 11, 6]).permute([0, 3, 2, 1]).narrow(2, 1, 9);
            for (x, groups) in [(random(&device, burn, [2, 6, 5, 7]), 3), (sliced, 2)] {
                let [n, c, h, w] = x.dims();
                let per_channel = || random(&device, burn, [c]);
                let per_sample = || random(&device, burn, [n, c]);
                let (weight, bias, scale, shift) = (per_channel(), per_channel(), per_sample(), per_sample());
                let op = Norm { kind: NormKind::Group { groups }, eps: 1e-5, activation: Activation::Silu };
                let inputs = NormInputs {
                    x: x.clone(),
                    weight: Some(weight.clone()),
                    bias: Some(bias.clone()),
                    scale: Some(scale.clone()),
                    shift: Some(shift.clone()),
                };
                let ours = advect.norm(op, inputs).unwrap();

                // burn has group normalisation as a module of weights in its default dtype only: its own ops.
                let rows = exact(&x).reshape([n, groups, c / groups * h * w]);
                let centred = rows.clone() - rows.mean_dim(2);
                let variance = centred.clone().powi_scalar(2).mean_dim(2);
                let normal = (centred / (variance + f64::from(op.eps)).sqrt()).reshape([n, c, h, w]);
                let channel = |t: &Tensor<1>| exact(t).reshape([1, c, 1, 1]);
                let sample = |t: &Tensor<2>| exact(t).reshape([n, c, 1, 1]);
                let affine = normal * channel(&weight) + channel(&bias);
                let theirs = activation::silu(affine * (sample(&scale) + 1.0) + sample(&shift));
                let args = NormArgs {
                    x: dense(&x, dtype),
                    weight: Some(dense(&weight, dtype)),
                    bias: Some(dense(&bias, dtype)),
                    scale: Some(dense(&scale, dtype)),
                    shift: Some(dense(&shift, dtype)),
                    out: View::contiguous((), dtype, &x.dims()).unwrap(),
                };
                judge(&ours, &theirs, reference::norm::norm(&op, &args), dtype);
            }
        }
    }
}

/// `a x + b y`.
fn combine(a: f32, b: f32) -> Step {
    let x = [a, b, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    Step { coefficients: Coefficients::Values { x, noise: 0.0 }, noise: None }
}

#[test]
fn step_is_burns() {
    for (device, advect, dtypes) in everywhere() {
        for (burn, dtype) in dtypes {
            // An axis that runs backwards is the one layout that Flex's bytes are copied for.
            let x = random(&device, burn, [2, 3, 5, 7]).flip([1]);
            let y = random(&device, burn, [2, 3, 7, 5]).swap_dims(2, 3);
            let op = combine(0.5, -1.25);
            let ours = advect.step(op, &[x.clone(), y.clone()]).unwrap();
            let theirs = exact(&x) * 0.5 - exact(&y) * 1.25;
            let buffers = [dense(&x, dtype), dense(&y, dtype)];
            let args = StepArgs::over(buffers, View::contiguous((), dtype, &x.dims()).unwrap()).unwrap();
            judge(&ours, &theirs, reference::step::step(&op, &args), dtype);
        }
    }
}

/// burn's work on a tensor, ours and burn's again, none of them waited for: each must see what came before.
#[test]
fn work_keeps_its_order_on_the_shared_queue() {
    for (device, advect, _) in everywhere() {
        let mut x = Tensor::<2>::ones([3, 50], &device);
        let mut want = 1.0;
        for i in 0..40 {
            x = x * 1.5 - 1.0;
            x = advect.step(combine(0.5, 0.25), &[x.clone(), x]).unwrap();
            want = (want * 1.5 - 1.0) * 0.75;
            if i % 2 == 0 {
                // Frees memory that burn uses again while our work on it is under way.
                let other = advect.step(combine(1.0, 1.0), &[x.clone(), x.clone()]).unwrap();
                drop(other + 1.0);
            }
        }
        let apart = values(&x).into_iter().map(|v| (v - want).abs()).fold(0.0, f64::max);
        assert!(apart < 1e-4 * f64::abs(want), "{apart:e} from {want}");

        // A tensor that another thread has made, on burn's stream of that thread.
        let maker = std::thread::spawn({
            let device = device.clone();
            move || Tensor::<2>::ones([3, 50], &device) * 3.0 + 4.0
        });
        let made = maker.join().unwrap();
        let ours = advect.step(combine(2.0, 0.0), &[made.clone(), made]).unwrap();
        assert_eq!(values(&ours), [14.0; 150]);
    }
}

#[test]
fn bad_input_is_a_typed_error() {
    for (device, advect, _) in everywhere() {
        let t = |shape| random(&device, DType::F32, shape);
        let op = Attention::new(4);
        let q = t([1, 2, 3, 4]);
        let error = advect.attention(op, q.clone(), t([1, 2, 6, 5]), q.clone()).unwrap_err();
        assert!(matches!(error, Error::Advect(advect::Error::Argument { arg: "k", .. })), "{error}");
        let inputs = ConvInputs {
            x: q.clone(),
            weight: t([6, 2, 3, 3]),
            bias: None,
            sample_bias: None,
            residual: None,
        };
        for op in [
            Conv { stride: [0, 1], ..Conv::default() },
            Conv { groups: 0, ..Conv::default() },
            Conv { padding: [usize::MAX, 0], ..Conv::default() },
            Conv { dilation: [4, 1], ..Conv::default() },
        ] {
            let error = advect.conv(op, inputs.clone()).unwrap_err();
            assert!(matches!(error, Error::Advect(advect::Error::Argument { .. })), "{op:?}: {error}");
        }
        let error = advect.step::<4>(combine(1.0, 0.0), &[]).unwrap_err();
        assert!(matches!(error, Error::Advect(advect::Error::Argument { arg: "buffers", .. })), "{error}");
        assert!(advect.step(combine(1.0, 0.0), &[const { 0 }; 9].map(|_| q.clone())).is_err());

        #[cfg(feature = "wgpu")]
        if device != Device::flex() {
            // Operands of two backends, and a device that advect was not given.
            let here = random(&Device::flex(), DType::F32, [1, 2, 3, 4]);
            let error = advect.attention(op, q.clone(), here, q.clone()).unwrap_err();
            assert!(matches!(error, Error::Backend { op: "attention", .. }), "{error}");
            let error = Advect::cpu().step(combine(1.0, 0.0), std::slice::from_ref(&q)).unwrap_err();
            assert!(error.to_string().contains("Advect::wgpu"), "{error}");
        }
        if device == Device::flex() {
            let error = advect.step(combine(1.0, 0.0), &[q.cast(DType::F64)]).unwrap_err();
            assert!(matches!(error, Error::Dtype { op: "step", dtype: DType::F64 }), "{error}");
        }
    }
}

#[test]
fn the_example_runs() {
    #[cfg(feature = "wgpu")]
    if with_wgpu().is_none() {
        return;
    }
    example::main().unwrap();
}
