//! The ops against candle's own on the same device, which compute in f64 from the very values that ours get, within
//! the bound that advect's definitions derive for arithmetic in f32. Odd sizes, and layouts that are not contiguous.

mod devices;

use advect::ops::{
    Activation, Attention, AttentionArgs, Coefficients, Conv, ConvArgs, Noise, Norm, NormArgs, NormKind,
    Step, StepArgs,
};
use advect::reference::{self, Dense, Expected};
use advect::{Dtype, View};
use advect_candle::{ConvInputs, NormInputs, attention, conv, norm, step};
use candle_core::{D, DType, Device, Error, Result, Tensor, Var};
use candle_nn::Module;
use devices::everywhere;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

const DTYPES: [(DType, Dtype); 3] =
    [(DType::F32, Dtype::F32), (DType::F16, Dtype::F16), (DType::BF16, Dtype::Bf16)];

/// Every dtype on every device.
fn places() -> impl Iterator<Item = (Device, DType, Dtype)> {
    everywhere().into_iter().flat_map(|device| DTYPES.map(|(candle, dtype)| (device.clone(), candle, dtype)))
}

/// The error without the backtrace that candle adds where `RUST_BACKTRACE` says so.
fn refused(result: Result<Tensor>) -> Error {
    match result.map(|t| t.shape().clone()).unwrap_err() {
        Error::WithBacktrace { inner, .. } => *inner,
        error => error,
    }
}

/// Numbers around 0, rounded to the dtype, in which everything is then computed exactly as given.
fn random(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    Tensor::randn(0f32, 1f32, shape, device).unwrap().to_dtype(dtype).unwrap()
}

/// In double precision, and contiguous: what candle computes with.
fn exact(t: &Tensor) -> Tensor {
    t.to_dtype(DType::F64).unwrap().contiguous().unwrap()
}

/// As advect's definitions take it.
fn dense(t: &Tensor, dtype: Dtype) -> View<Dense> {
    let data = exact(t).flatten_all().unwrap().to_vec1().unwrap();
    View::contiguous(Dense { shape: t.dims().to_vec(), data }, dtype, t.dims()).unwrap()
}

/// `ours` is as near to candle's result in f64 as the definition's bound and the rounding to its dtype allow.
#[track_caller]
fn judge(ours: &Tensor, theirs: &Tensor, bound: Expected, dtype: Dtype) {
    assert_eq!(ours.dims(), theirs.dims());
    let place = theirs.device().location();
    let ours: Vec<f64> = exact(ours).flatten_all().unwrap().to_vec1().unwrap();
    let theirs: Vec<f64> = exact(theirs).flatten_all().unwrap().to_vec1().unwrap();
    assert!(!ours.is_empty() && bound.error.len() == ours.len());
    for (i, ((a, b), error)) in ours.iter().zip(&theirs).zip(&bound.error).enumerate() {
        // candle's own error in f64 is 2^-29 of ours.
        let computed = error * (1.0 + 1e-6) + b.abs() * 1e-15;
        let rounded = dtype.unit_roundoff() * (b.abs() + computed) + dtype.smallest() / 2.0;
        let wrong = format!("{place:?}, element {i}: {a} and candle's {b} are more than {computed:e} apart");
        assert!((a - b).abs() <= computed + rounded, "{wrong}");
    }
}

#[test]
fn attention_is_candles() -> Result<()> {
    for (device, candle, dtype) in places() {
        let random = |shape: &[usize]| random(&device, candle, shape);
        // A packed projection (b, n, 3, h, d); keys of their own, of one head that all share.
        let (b, n, h, d) = (2, 37, 3, 20);
        let packed = random(&[b, n, 3, h, d]);
        let part = |i| packed.narrow(2, i, 1)?.squeeze(2)?.transpose(1, 2);
        let shared = |t: Tensor| t.broadcast_as((b, h, 11, d));
        let cases = [
            (part(0)?, part(1)?, part(2)?),
            (part(0)?, shared(random(&[b, 1, 11, d]))?, shared(random(&[b, 1, 11, d]))?),
            // Heads whose elements are the slow axis: pixels of an image.
            (
                random(&[1, 2, 7, 33]).transpose(2, 3)?,
                random(&[1, 2, 7, 5]).transpose(2, 3)?,
                random(&[1, 2, 5, 7]),
            ),
        ];
        for (q, k, v) in cases {
            let op = Attention::new(q.dim(3)?);
            let ours = attention(op, &q, &k, &v)?;
            let scores = (exact(&q).matmul(&exact(&k).t()?)? * f64::from(op.softmax_scale))?;
            let theirs = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&exact(&v))?;
            let out = View::contiguous((), dtype, q.dims()).unwrap();
            let (q, k, v) = (dense(&q, dtype), dense(&k, dtype), dense(&v, dtype));
            let [bound, _] = reference::attention::attention(&op, &AttentionArgs::new(q, k, v, out));
            judge(&ours, &theirs, bound, dtype);
        }
        // Causal, with fewer heads of keys and values: candle's repeats them and adds minus infinity.
        let (q, k, v) = (random(&[1, 4, 9, d]), random(&[1, 2, 9, d]), random(&[1, 2, 9, d]));
        let op = Attention::new(d).causal();
        let ours = attention(op, &q, &k, &v)?;
        let repeated = |x: &Tensor| Tensor::stack(&[&exact(x); 2], 2)?.reshape((1, 4, 9, d));
        let hidden: Vec<f64> = (0..81).map(|e| if e % 9 > e / 9 { f64::NEG_INFINITY } else { 0.0 }).collect();
        let hidden = Tensor::from_vec(hidden, (9, 9), &device)?;
        let scores = (exact(&q).matmul(&repeated(&k)?.t()?)? * f64::from(op.softmax_scale))?;
        let scores = scores.broadcast_add(&hidden)?;
        let theirs = candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&repeated(&v)?)?;
        let out = View::contiguous((), dtype, q.dims()).unwrap();
        let (q, k, v) = (dense(&q, dtype), dense(&k, dtype), dense(&v, dtype));
        let [bound, _] = reference::attention::attention(&op, &AttentionArgs::new(q, k, v, out));
        judge(&ours, &theirs, bound, dtype);
        // The result lies as the queries do: (b, n, h, d) again.
        let out = attention(Attention::new(d), &part(0)?, &part(1)?, &part(2)?)?;
        assert!(out.transpose(1, 2)?.is_contiguous());
    }
    Ok(())
}

#[test]
fn conv_is_candles() -> Result<()> {
    for (device, candle, dtype) in places() {
        let random = |shape: &[usize]| random(&device, candle, shape);
        let wide = random(&[2, 9, 13, 12]);
        let nhwc = random(&[2, 11, 7, 6]).permute((0, 3, 1, 2))?;
        let cases = [
            (random(&[1, 5, 9, 7]), random(&[3, 5, 3, 3]), 1, 1, 1, 1, false),
            // Channels sliced out of more, stride, dilation.
            (wide.narrow(1, 2, 6)?, random(&[4, 3, 3, 3]), 2, 2, 2, 2, true),
            (nhwc, random(&[8, 6, 1, 1]), 0, 1, 1, 1, true),
            // Depthwise, with weights stored (kh, kw, out, in).
            (random(&[1, 4, 8, 8]), random(&[5, 5, 4, 1]).permute((2, 3, 0, 1))?, 2, 1, 1, 4, true),
        ];
        for (x, weight, padding, stride, dilation, groups, extras) in cases {
            let (n, o) = (x.dim(0)?, weight.dim(0)?);
            let plain = exact(&x).conv2d(&exact(&weight), padding, stride, dilation, groups)?;
            let bias = extras.then(|| random(&[o]));
            // A time embedding, the second half of a projection.
            let sample_bias = extras.then(|| random(&[n, 2 * o]).narrow(1, o, o)).transpose()?;
            let residual = extras.then(|| random(plain.dims()));
            let activation = if extras { Activation::Silu } else { Activation::None };
            let pair = |v| [v, v];
            let op = Conv {
                stride: pair(stride),
                padding: pair(padding),
                dilation: pair(dilation),
                groups,
                activation,
            };
            let (bias, sample_bias, residual) = (bias.as_ref(), sample_bias.as_ref(), residual.as_ref());
            let ours = conv(op, ConvInputs { x: &x, weight: &weight, bias, sample_bias, residual })?;

            let mut theirs = plain;
            if let (Some(bias), Some(sample_bias), Some(residual)) = (bias, sample_bias, residual) {
                theirs = theirs.broadcast_add(&exact(bias).reshape((1, o, 1, 1))?)?;
                theirs = theirs.broadcast_add(&exact(sample_bias).reshape((n, o, 1, 1))?)?;
                theirs = (theirs.silu()? + exact(residual))?;
            }
            let view = |t: Option<&Tensor>| t.map(|t| dense(t, dtype));
            let args = ConvArgs {
                x: dense(&x, dtype),
                weight: dense(&weight, dtype),
                bias: view(bias),
                sample_bias: view(sample_bias),
                residual: view(residual),
                out: View::contiguous((), dtype, theirs.dims()).unwrap(),
            };
            judge(&ours, &theirs, reference::conv::conv(&op, &args), dtype);
        }
    }
    Ok(())
}

#[test]
fn channels_last_in_channels_last_out() -> Result<()> {
    for (device, candle, _) in places() {
        let x = random(&device, candle, &[1, 5, 4, 3]).permute((0, 3, 1, 2))?;
        let weight = random(&device, candle, &[7, 3, 3, 3]);
        let none = None;
        let inputs = ConvInputs { x: &x, weight: &weight, bias: none, sample_bias: none, residual: none };
        let out = conv(Conv::default(), inputs)?;
        assert_eq!((out.dims(), out.permute((0, 2, 3, 1))?.is_contiguous()), (&[1, 7, 3, 2][..], true));
    }
    Ok(())
}

#[test]
fn group_norm_is_candles() -> Result<()> {
    for (device, candle, dtype) in places() {
        let random = |shape: &[usize]| random(&device, candle, shape);
        let cases = [
            (random(&[2, 6, 5, 7]), 3),
            (random(&[3, 9, 11, 6]).permute((0, 3, 2, 1))?.narrow(2, 1, 9)?, 2),
            (random(&[1, 4, 13]), 4),
        ];
        for (x, groups) in cases {
            let (n, c) = (x.dim(0)?, x.dim(1)?);
            let [weight, bias] = [random(&[c]), random(&[c])];
            let [scale, shift] = [random(&[n, c]), random(&[n, c])];
            let op = Norm { kind: NormKind::Group { groups }, eps: 1e-5, activation: Activation::Silu };
            let ours = norm(
                op,
                NormInputs {
                    x: &x,
                    weight: Some(&weight),
                    bias: Some(&bias),
                    scale: Some(&scale),
                    shift: Some(&shift),
                },
            )?;

            let eps = f64::from(op.eps);
            let layer = candle_nn::GroupNorm::new(exact(&weight), exact(&bias), c, groups, eps)?;
            let mut per_sample = vec![1; x.rank()];
            per_sample[..2].copy_from_slice(&[n, c]);
            let [scale64, shift64] = [&scale, &shift].map(|t| exact(t).reshape(&per_sample[..]));
            let modulated = layer.forward(&exact(&x))?.broadcast_mul(&(scale64? + 1.0)?)?;
            let theirs = modulated.broadcast_add(&shift64?)?.silu()?;
            let args = NormArgs {
                x: dense(&x, dtype),
                weight: Some(dense(&weight, dtype)),
                bias: Some(dense(&bias, dtype)),
                scale: Some(dense(&scale, dtype)),
                shift: Some(dense(&shift, dtype)),
                out: View::contiguous((), dtype, x.dims()).unwrap(),
            };
            judge(&ours, &theirs, reference::norm::norm(&op, &args), dtype);
        }
    }
    Ok(())
}

#[test]
fn step_is_candles() -> Result<()> {
    for (device, candle, dtype) in places() {
        let random = |shape: &[usize]| random(&device, candle, shape);
        let shape = [2, 3, 5, 7];
        let transposed = random(&[2, 3, 7, 5]).transpose(2, 3)?;
        let buffers: Vec<Tensor> = (0..7).map(|_| random(&shape)).chain([transposed]).collect();
        let all: Vec<&Tensor> = buffers.iter().collect();
        let x = [0.5, -1.25, 2.0, 0.125, -0.75, 1.5, 3.0, -2.5];
        let op = Step { coefficients: Coefficients::Values { x, noise: 0.0 }, noise: None };
        let ours = step(op, &all)?;
        let mut theirs = exact(&buffers[0]).zeros_like()?;
        for (buffer, c) in buffers.iter().zip(x) {
            theirs = (theirs + (exact(buffer) * f64::from(c))?)?;
        }
        let dense = buffers.iter().map(|b| dense(b, dtype));
        let args = StepArgs::over(dense, View::contiguous((), dtype, &shape).unwrap()).unwrap();
        judge(&ours, &theirs, reference::step::step(&op, &args), dtype);
    }
    Ok(())
}

#[test]
fn noise_belongs_to_the_sample_not_to_its_place_in_the_batch() -> Result<()> {
    let noisy = |stream| Step {
        coefficients: Coefficients::Values { x: [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], noise: 0.5 },
        noise: Some(Noise { seed: 7, stream }),
    };
    let apart = |a: &Tensor, b: &Tensor| (a - b)?.abs()?.max_all()?.to_scalar::<f32>();
    for device in everywhere() {
        let x = random(&device, DType::F32, &[3, 4, 5]);
        let last = x.narrow(0, 2, 1)?;
        let batch = step(noisy(10), &[&x])?.narrow(0, 2, 1)?;
        let alone = step(noisy(12), &[&last])?;
        assert_eq!(apart(&batch, &alone)?, 0.0);
        assert!(apart(&batch, &last)? > 0.1);
    }
    Ok(())
}

/// Nothing in, nothing out; one element that stands for all; a tensor without axes.
#[test]
fn empty_repeated_and_scalar_tensors() -> Result<()> {
    for device in everywhere() {
        let t = |shape: &[usize]| random(&device, DType::F32, shape);
        let none = t(&[0, 2, 3, 4]);
        assert_eq!(attention(Attention::new(4), &none, &none, &none)?.dims(), [0, 2, 3, 4]);
        let (x, weight, bias) = (t(&[0, 3, 5, 5]), t(&[2, 3, 3, 3]), None);
        let inputs = ConvInputs { x: &x, weight: &weight, bias, sample_bias: None, residual: None };
        assert_eq!(conv(Conv::default(), inputs)?.dims(), [0, 2, 3, 3]);
        let op = Norm { kind: NormKind::Group { groups: 3 }, eps: 1e-5, activation: Activation::None };
        let inputs = NormInputs { x: &x, weight: None, bias: None, scale: None, shift: None };
        assert_eq!(norm(op, inputs)?.dims(), [0, 3, 5, 5]);
        let two = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        let sum = Step { coefficients: Coefficients::Values { x: two, noise: 0.0 }, noise: None };
        assert_eq!(step(sum, &[&x, &x])?.dims(), [0, 3, 5, 5]);

        let one = t(&[1, 1]);
        let all = one.broadcast_as((3, 4))?;
        let twice = step(sum, &[&all, &all])?;
        assert!(twice.is_contiguous());
        assert_eq!((twice - (all * 2.0)?)?.abs()?.sum_all()?.to_scalar::<f32>()?, 0.0);
        let scalar = one.reshape(())?;
        let error = refused(step(sum, &[&scalar]));
        assert!(matches!(error, Error::UnexpectedNumberOfDims { got: 0, .. }), "{error}");
        let error = refused(attention(Attention::new(4), &scalar, &none, &none));
        assert!(matches!(error, Error::UnexpectedNumberOfDims { got: 0, .. }), "{error}");
    }
    Ok(())
}

#[test]
fn bad_input_is_an_error_of_candles() -> Result<()> {
    everywhere().iter().try_for_each(bad_input)
}

fn bad_input(device: &Device) -> Result<()> {
    let t = |shape: &[usize]| random(device, DType::F32, shape);
    let op = Attention::new(4);
    let q = t(&[1, 2, 3, 4]);
    let error = refused(attention(op, &q, &t(&[1, 2, 3]), &q));
    assert!(matches!(error, Error::UnexpectedNumberOfDims { expected: 4, got: 3, .. }), "{error}");
    let error = refused(attention(op, &q, &t(&[1, 2, 6, 5]), &q));
    assert!(
        matches!(error, Error::UnexpectedShape { .. }) && error.to_string().contains("attention: k"),
        "{error}"
    );
    let error = refused(attention(op, &q, &q, &q.to_dtype(DType::F16)?));
    assert!(matches!(error, Error::DTypeMismatchBinaryOp { op: "attention", .. }), "{error}");
    if !device.is_cpu() {
        let error = refused(attention(op, &q, &q.to_device(&Device::Cpu)?, &q));
        assert!(matches!(error, Error::DeviceMismatchBinaryOp { op: "attention", .. }), "{error}");
    }
    let whole = q.to_dtype(DType::I64)?;
    let error = refused(attention(op, &whole, &whole, &whole));
    assert!(matches!(error, Error::UnsupportedDTypeForOp(DType::I64, "attention")), "{error}");

    // What only advect knows comes as its own error, inside candle's.
    let advects = |error: Error| match error {
        Error::WrappedContext { wrapped, .. } => wrapped.downcast_ref::<advect::Error>().cloned(),
        other => panic!("{other}"),
    };
    let error = advects(refused(attention(Attention::scaled(f32::NAN), &q, &q, &q)));
    assert!(matches!(error, Some(advect::Error::Argument { arg: "softmax_scale", .. })), "{error:?}");
    let inputs = NormInputs { x: &q, weight: None, bias: None, scale: None, shift: None };
    for (groups, eps, name) in [(0, 1e-5, "groups"), (3, 1e-5, "groups"), (2, -1.0, "eps")] {
        let op = Norm { kind: NormKind::Group { groups }, eps, activation: Activation::None };
        let error = advects(refused(norm(op, inputs)));
        assert!(matches!(error, Some(advect::Error::Argument { arg, .. }) if arg == name), "{error:?}");
    }

    let none = None;
    let weight = t(&[6, 2, 3, 3]);
    let inputs = ConvInputs { x: &q, weight: &weight, bias: none, sample_bias: none, residual: none };
    for op in [
        Conv { stride: [0, 1], ..Conv::default() },
        Conv { dilation: [1, 0], ..Conv::default() },
        Conv { groups: 0, ..Conv::default() },
        Conv { groups: 2, ..Conv::default() },
        Conv { padding: [usize::MAX, 0], ..Conv::default() },
        // Fewer rows than the window has.
        Conv { dilation: [4, 1], ..Conv::default() },
    ] {
        assert!(conv(op, inputs).is_err(), "{op:?}");
    }
    let bias = t(&[5]);
    let error = refused(conv(Conv::default(), ConvInputs { bias: Some(&bias), ..inputs }));
    assert!(matches!(error, Error::UnexpectedShape { .. }), "{error}");

    let values = |noise| Coefficients::Values { x: [1.0; 8], noise };
    let op = Step { coefficients: values(0.0), noise: None };
    let error = refused(step(op, &[]));
    assert!(matches!(error, Error::OpRequiresAtLeastOneTensor { op: "step" }), "{error}");
    let error = refused(step(op, &[&q, &t(&[1, 2, 3, 5])]));
    assert!(matches!(error, Error::ShapeMismatchBinaryOp { op: "step", .. }), "{error}");
    assert!(step(op, &[&q; 9]).is_err());
    assert!(step(Step { coefficients: Coefficients::Table, noise: None }, &[&q]).is_err());
    Ok(())
}

#[test]
fn a_backward_pass_is_refused_whichever_operand_it_starts_from() -> Result<()> {
    for device in everywhere() {
        let x = random(&device, DType::F32, &[1, 2, 5, 5]);
        let weight = random(&device, DType::F32, &[2, 2, 1, 1]);
        let residual = Var::from_tensor(&x)?;
        let (bias, sample_bias, residual) = (None, None, Some(residual.as_tensor()));
        let out = conv(Conv::default(), ConvInputs { x: &x, weight: &weight, bias, sample_bias, residual })?;
        let error = out.sum_all()?.backward().map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("backward is not supported for conv"), "{error}");
    }
    Ok(())
}

#[test]
fn nothing_is_copied() -> Result<()> {
    // Half of a batch, transposed: candle's own ops would make it contiguous first.
    let x = random(&Device::Cpu, DType::F32, &[2, 3, 400, 300]).transpose(2, 3)?.narrow(0, 1, 1)?;
    let x2 = [2.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    let op = Step { coefficients: Coefficients::Values { x: x2, noise: 0.0 }, noise: None };
    step(op, &[&x, &x])?; // The threads start.
    let before = ALLOCATED.get();
    let out = step(op, &[&x, &x])?;
    let allocated = ALLOCATED.get() - before;
    let result = out.elem_count() * 4;
    assert!((result..result + (16 << 10)).contains(&allocated), "{allocated} bytes for a result of {result}");
    Ok(())
}

/// The system's allocator, with this thread's requests counted.
struct Counting;

thread_local! {
    static ALLOCATED: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call is handed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.set(ALLOCATED.get() + layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;
