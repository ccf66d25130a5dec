//! Every op through the C interface gives, bit for bit, what the Rust interface gives.

mod common;

use advect::op::Op;
use advect::ops::*;
use advect::{Device, Dtype, Storage, Tensor, View};
use advect_capi::*;
use common::*;
use std::ffi::CStr;

const DTYPES: [(advect_dtype, Dtype); 3] =
    [(ADVECT_F32, Dtype::F32), (ADVECT_F16, Dtype::F16), (ADVECT_BF16, Dtype::Bf16)];

/// A device on both sides of the interface.
struct Pair {
    c: *mut advect_device,
    rust: Device,
}

fn pairs() -> Vec<Pair> {
    let pair = |c: *mut advect_device| {
        let mut info: advect_device_info = sized();
        // SAFETY: the struct says its size.
        ok(unsafe { advect_device_describe(c, &raw mut info) });
        let rust = match info.kind {
            #[cfg(feature = "wgpu")]
            ADVECT_DEVICE_WGPU => Device::wgpu(0),
            #[cfg(feature = "cuda")]
            ADVECT_DEVICE_CUDA => Device::cuda(0),
            _ => Device::cpu(2),
        };
        Pair { c, rust: rust.unwrap() }
    };
    devices().into_iter().map(pair).collect()
}

/// Inputs on both sides, and an output on each.
struct Operands {
    c: Vec<advect_view>,
    rust: Vec<Tensor>,
    out: advect_view,
    out_rust: Tensor,
}

impl Pair {
    fn operands(&self, dtype: (advect_dtype, Dtype), inputs: &[&[u64]], out: &[u64]) -> Operands {
        let inputs: Vec<_> = inputs.iter().map(|&shape| (dtype, shape)).collect();
        self.typed(&inputs, dtype, out)
    }

    /// Inputs of dtypes of their own; integers are small.
    fn typed(
        &self,
        inputs: &[((advect_dtype, Dtype), &[u64])],
        dtype: (advect_dtype, Dtype),
        out: &[u64],
    ) -> Operands {
        let sizes = |shape: &[u64]| shape.iter().map(|&n| n as usize).collect::<Vec<_>>();
        let made = inputs.iter().enumerate().map(|(i, &(dtype, shape))| {
            let count = shape.iter().product::<u64>() as usize;
            let values = match dtype.1.is_float() {
                true => noise(i as u64 + 1, count),
                false => (0..count).map(|i| ((i + 4) % 5) as f32).collect(),
            };
            let rust = Tensor::from_f32(&self.rust, dtype.1, &sizes(shape), &values).unwrap();
            (view(with_values(self.c, dtype.0, shape, &values)), rust)
        });
        let (c, rust) = made.unzip();
        let out_rust = Tensor::new(&self.rust, dtype.1, &sizes(out)).unwrap();
        Operands { c, rust, out: view(tensor(self.c, dtype.0, out)), out_rust }
    }

    /// Runs the op in Rust and compares with what C wrote.
    fn same<T: Op>(
        &self,
        op: &T,
        o: &mut Operands,
        args: impl for<'a> FnOnce(
            Vec<View<&'a Storage>>,
            View<&'a mut Storage>,
        ) -> T::Args<&'a Storage, &'a mut Storage>,
    ) {
        let inputs = o.rust.iter().map(Tensor::view).collect();
        self.rust.run(op, args(inputs, o.out_rust.view_mut())).unwrap();
        let wanted = o.out_rust.to_f32(&self.rust).unwrap();
        let got = values(o.out.tensor, wanted.len());
        assert!(wanted.iter().any(|x| *x != 0.0));
        assert!(
            got.iter().zip(&wanted).all(|(a, b)| a.to_bits() == b.to_bits()),
            "{} {got:?} {wanted:?}",
            T::NAME
        );
        // SAFETY: handles of this test.
        unsafe {
            o.c.iter().for_each(|v| ok(advect_tensor_destroy(v.tensor)));
            ok(advect_tensor_destroy(o.out.tensor));
        }
    }
}

/// Calls an op with its plan and its warm-up, which must agree that the call is good.
macro_rules! call {
    ($pair:expr, $args:expr, $run:ident, $plan:ident, $warm:ident) => {{
        let mut plan: advect_plan = sized();
        // SAFETY: structs say their size, and views are of living tensors.
        unsafe {
            ok($plan($pair.c, &raw const $args, &raw mut plan));
            ok($warm($pair.c, &raw const $args));
            ok($run($pair.c, &raw const $args));
        }
        // SAFETY: text that ends.
        let kernel = unsafe { CStr::from_ptr(plan.kernel.as_ptr()) };
        let cpu = matches!($pair.rust, Device::Cpu(_));
        assert!(plan.flops >= 0.0 && plan.bytes > 0.0 && plan.scratch_bytes == 0);
        assert_eq!((kernel.is_empty(), plan.grid == [0; 3]), (cpu, cpu));
    }};
}

#[test]
fn matmul() {
    for pair in pairs() {
        for dtype in DTYPES {
            let mut o = pair.operands(dtype, &[&[2, 5, 7], &[7, 3], &[3], &[2, 5, 3]], &[2, 5, 3]);
            let args = advect_matmul_args {
                a: &raw const o.c[0],
                b: &raw const o.c[1],
                bias: &raw const o.c[2],
                residual: &raw const o.c[3],
                out: &raw const o.out,
                activation: ADVECT_ACTIVATION_GELU,
                ..sized()
            };
            call!(pair, args, advect_matmul, advect_matmul_plan, advect_matmul_warm);
            pair.same(&Matmul { activation: Activation::Gelu }, &mut o, |v, out| {
                let [a, b, bias, residual] = v.try_into().unwrap();
                MatmulArgs { a, b, bias: Some(bias), residual: Some(residual), out }
            });
        }
    }
}

#[test]
fn conv() {
    for pair in pairs() {
        for dtype in DTYPES {
            let inputs: &[&[u64]] = &[&[2, 4, 9, 7], &[6, 2, 3, 1], &[6], &[2, 6], &[2, 6, 5, 4]];
            let mut o = pair.operands(dtype, inputs, &[2, 6, 5, 4]);
            let mut args = advect_conv_args {
                x: &raw const o.c[0],
                weight: &raw const o.c[1],
                bias: &raw const o.c[2],
                sample_bias: &raw const o.c[3],
                residual: &raw const o.c[4],
                out: &raw const o.out,
                stride: [2, 2],
                padding: [2, 0],
                dilation: [2, 1],
                groups: 2,
                activation: ADVECT_ACTIVATION_SILU,
                ..sized()
            };
            call!(pair, args, advect_conv, advect_conv_plan, advect_conv_warm);
            let op = Conv {
                stride: [2; 2],
                padding: [2, 0],
                dilation: [2, 1],
                groups: 2,
                activation: Activation::Silu,
            };
            pair.same(&op, &mut o, |v, out| {
                let [x, weight, bias, sample_bias, residual] = v.try_into().unwrap();
                let (bias, sample_bias, residual) = (Some(bias), Some(sample_bias), Some(residual));
                ConvArgs { x, weight, bias, sample_bias, residual, out }
            });
            // Zeros are defaults, NULL is absent.
            let mut o = pair.operands(dtype, &[&[1, 2, 4, 4], &[3, 2, 3, 3]], &[1, 3, 2, 2]);
            args = advect_conv_args {
                x: &raw const o.c[0],
                weight: &raw const o.c[1],
                out: &raw const o.out,
                ..sized()
            };
            call!(pair, args, advect_conv, advect_conv_plan, advect_conv_warm);
            pair.same(&Conv::default(), &mut o, |v, out| {
                let [x, weight] = v.try_into().unwrap();
                ConvArgs { x, weight, bias: None, sample_bias: None, residual: None, out }
            });
        }
    }
}

#[test]
fn norm() {
    for pair in pairs() {
        for dtype in DTYPES {
            for (kind, groups, rust) in [
                (ADVECT_NORM_GROUP, 2, NormKind::Group { groups: 2 }),
                (ADVECT_NORM_LAYER, 0, NormKind::Layer),
                (ADVECT_NORM_RMS, 0, NormKind::Rms),
            ] {
                let shape: &[u64] = if kind == ADVECT_NORM_GROUP { &[2, 6, 3] } else { &[2, 3, 6] };
                let mut o = pair.operands(dtype, &[shape, &[6], &[6], &[2, 6], &[2, 6]], shape);
                let args = advect_norm_args {
                    x: &raw const o.c[0],
                    weight: &raw const o.c[1],
                    bias: &raw const o.c[2],
                    scale: &raw const o.c[3],
                    shift: &raw const o.c[4],
                    out: &raw const o.out,
                    kind,
                    groups,
                    eps: 1e-3,
                    activation: ADVECT_ACTIVATION_SILU,
                    ..sized()
                };
                call!(pair, args, advect_norm, advect_norm_plan, advect_norm_warm);
                let op = Norm { kind: rust, eps: 1e-3, activation: Activation::Silu };
                pair.same(&op, &mut o, |v, out| {
                    let [x, weight, bias, scale, shift] = v.try_into().unwrap();
                    let (weight, bias) = (Some(weight), Some(bias));
                    NormArgs { x, weight, bias, scale: Some(scale), shift: Some(shift), out }
                });
            }
        }
    }
}

#[test]
fn attention() {
    for pair in pairs() {
        for dtype in DTYPES {
            let all = u32::MAX;
            for (scale, softcap, window, [window_left, window_right]) in [
                (0.0, 0.0, ADVECT_WINDOW_ALL, [0, 0]),
                (0.25, 0.0, ADVECT_WINDOW_CAUSAL, [0, 0]),
                (f32::MIN_POSITIVE, 0.0, ADVECT_WINDOW_SIDES, [2, 1]),
                (0.0, 3.0, ADVECT_WINDOW_SIDES, [all, 3]),
                (0.0, 0.0, ADVECT_WINDOW_SIDES, [1, all]),
            ] {
                let kv: &[u64] = &[1, 1, 9, 16];
                let mut o = pair.operands(dtype, &[&[1, 2, 5, 16], kv, kv], &[1, 2, 5, 16]);
                let args = advect_attention_args {
                    q: &raw const o.c[0],
                    k: &raw const o.c[1],
                    v: &raw const o.c[2],
                    out: &raw const o.out,
                    softmax_scale: scale,
                    softcap,
                    window,
                    window_left,
                    window_right,
                    ..sized()
                };
                call!(pair, args, advect_attention, advect_attention_plan, advect_attention_warm);
                let op = if scale == 0.0 { Attention::new(16) } else { Attention::scaled(scale) };
                let side = |n| (n != all).then_some(n);
                let op = match window {
                    ADVECT_WINDOW_CAUSAL => op.causal(),
                    ADVECT_WINDOW_SIDES => op.window(side(window_left), side(window_right)),
                    _ => op,
                };
                let op = op.softcap(softcap);
                pair.same(&op, &mut o, |v, out| {
                    let [q, k, v] = v.try_into().unwrap();
                    AttentionArgs::new(q, k, v, out)
                });
            }
        }
    }
}

#[test]
fn attention_with_everything() {
    for pair in pairs() {
        for dtype in DTYPES {
            let (f32, i32, u8) = (DTYPES[0], (ADVECT_I32, Dtype::I32), (ADVECT_U8, Dtype::U8));
            let scores: &[u64] = &[1, 2, 5, 9];
            let operands: [(_, &[u64]); 9] = [
                (dtype, &[1, 2, 5, 16]),
                (dtype, &[1, 1, 9, 16]),
                (dtype, &[1, 1, 9, 24]),
                (f32, scores),
                (u8, scores),
                (i32, &[1]),
                (i32, &[1]),
                (f32, &[1, 2]),
                (f32, &[2]),
            ];
            let mut o = pair.typed(&operands, dtype, &[1, 2, 5, 24]);
            let lse = view(tensor(pair.c, ADVECT_F32, &[1, 2, 5]));
            let args = advect_attention_args {
                q: &raw const o.c[0],
                k: &raw const o.c[1],
                v: &raw const o.c[2],
                bias: &raw const o.c[3],
                mask: &raw const o.c[4],
                q_lengths: &raw const o.c[5],
                k_lengths: &raw const o.c[6],
                slopes: &raw const o.c[7],
                sinks: &raw const o.c[8],
                out: &raw const o.out,
                lse: &raw const lse,
                ..sized()
            };
            // WebGPU's least is 8 buffers, and these are 11.
            let mut plan: advect_plan = sized();
            // SAFETY: structs say their size, and views are of living tensors.
            let status = unsafe { advect_attention_plan(pair.c, &raw const args, &raw mut plan) };
            if status != ADVECT_OK {
                assert!(!matches!(pair.rust, Device::Cpu(_)));
                assert_eq!(status, ADVECT_ERROR_LIMIT);
                continue;
            }
            call!(pair, args, advect_attention, advect_attention_plan, advect_attention_warm);
            pair.same(&Attention::new(16), &mut o, |v, out| {
                let [q, k, v, bias, mask, q_lengths, k_lengths, slopes, sinks] = v.try_into().unwrap();
                AttentionArgs {
                    bias: Some(bias),
                    mask: Some(mask),
                    q_lengths: Some(q_lengths),
                    k_lengths: Some(k_lengths),
                    slopes: Some(slopes),
                    sinks: Some(sinks),
                    ..AttentionArgs::new(q, k, v, out)
                }
            });
            // Four queries are inside the sequence.
            let lse = values(lse.tensor, 10);
            assert!(lse.iter().enumerate().all(|(i, x)| x.is_finite() == (i % 5 < 4)), "{lse:?}");
        }
    }
}

#[test]
fn attention_of_packed_queries_and_paged_keys_in_parts() {
    for pair in pairs() {
        for dtype in DTYPES {
            let i32 = (ADVECT_I32, Dtype::I32);
            // Integers are 4, 0, 1: the last two of them are the places, of one sequence with one query. Its pages are 4, 0, 1.
            let operands: [(_, &[u64]); 5] = [
                (dtype, &[1, 2, 5, 16]),
                (dtype, &[5, 1, 3, 16]),
                (dtype, &[5, 1, 3, 16]),
                (i32, &[3]),
                (i32, &[1, 3]),
            ];
            let mut o = pair.typed(&operands, dtype, &[2, 1, 2, 5, 16]);
            (o.c[3].offset, o.c[3].shape[0]) = (1, 2);
            let lse = view(tensor(pair.c, ADVECT_F32, &[2, 1, 2, 5]));
            let args = advect_attention_args {
                q: &raw const o.c[0],
                k: &raw const o.c[1],
                v: &raw const o.c[2],
                cu_seqlens_q: &raw const o.c[3],
                block_table: &raw const o.c[4],
                out: &raw const o.out,
                lse: &raw const lse,
                window: ADVECT_WINDOW_CAUSAL,
                max_seqlen_q: 2,
                splits: 2,
                ..sized()
            };
            call!(pair, args, advect_attention, advect_attention_plan, advect_attention_warm);
            let op = Attention { max_seqlen_q: Some(2), ..Attention::new(16).causal().splits(2) };
            let rust_args = |v: Vec<View<_>>, out| {
                let [q, k, v, cu_seqlens_q, block_table] = <[_; 5]>::try_from(v).unwrap();
                let mut args = AttentionArgs::new(q, k, v, out);
                (args.cu_seqlens_q, args.block_table) =
                    (Some(cu_seqlens_q.slice(0, 1..3).unwrap()), Some(block_table));
                args
            };
            let mut of_rust = Tensor::new(&pair.rust, Dtype::F32, &[2, 1, 2, 5]).unwrap();
            let mut out = Tensor::new(&pair.rust, dtype.1, &[2, 1, 2, 5, 16]).unwrap();
            let mut args = rust_args(o.rust.iter().map(Tensor::view).collect(), out.view_mut());
            args.lse = Some(of_rust.view_mut());
            pair.rust.run(&op, args).unwrap();
            let got = values(lse.tensor, 20);
            assert_eq!(got, of_rust.to_f32(&pair.rust).unwrap());
            assert!(got[0].is_finite() && got[10] == f32::NEG_INFINITY, "{got:?}");
            let wanted = out.to_f32(&pair.rust).unwrap();
            assert_eq!(values(o.out.tensor, wanted.len()), wanted);
            assert!(wanted.iter().any(|x| *x != 0.0));
            // SAFETY: handles of this test.
            unsafe {
                o.c.iter().for_each(|v| ok(advect_tensor_destroy(v.tensor)));
                ok(advect_tensor_destroy(o.out.tensor));
            }
        }
    }
}

#[test]
fn merge() {
    for pair in pairs() {
        for dtype in DTYPES {
            let operands: [(_, &[u64]); 2] = [(DTYPES[0], &[3, 1, 2, 5, 16]), (DTYPES[0], &[3, 1, 2, 5])];
            let mut o = pair.typed(&operands, dtype, &[1, 2, 5, 16]);
            let lse = view(tensor(pair.c, ADVECT_F32, &[1, 2, 5]));
            let args = advect_merge_args {
                parts: &raw const o.c[0],
                lses: &raw const o.c[1],
                out: &raw const o.out,
                lse: &raw const lse,
                ..sized()
            };
            call!(pair, args, advect_merge, advect_merge_plan, advect_merge_warm);
            pair.same(&Merge, &mut o, |v, out| {
                let [parts, lses] = v.try_into().unwrap();
                MergeArgs { parts, lses, out, lse: None }
            });
            assert!(values(lse.tensor, 10).iter().all(|x| x.is_finite()));
        }
    }
}

#[test]
fn linear_attention_by_the_gated_delta_rule() {
    for pair in pairs() {
        for dtype in DTYPES {
            // The same numbers serve as logarithms of decays, some of which then grow, and as betas.
            let f32 = DTYPES[0];
            let shape: &[u64] = &[1, 2, 5, 16];
            let operands = [
                (dtype, shape),
                (dtype, shape),
                (dtype, shape),
                (dtype, &[1, 2, 5][..]),
                (f32, &[1, 2, 16, 16]),
            ];
            let mut o = pair.typed(&operands, dtype, shape);
            let last = view(tensor(pair.c, ADVECT_F32, &[1, 2, 16, 16]));
            let args = advect_linear_attention_args {
                q: &raw const o.c[0],
                k: &raw const o.c[1],
                v: &raw const o.c[2],
                log_decay: &raw const o.c[3],
                beta: &raw const o.c[3],
                initial_state: &raw const o.c[4],
                out: &raw const o.out,
                final_state: &raw const last,
                causal: 1,
                ..sized()
            };
            // WebGPU's least is 8 buffers, which these are.
            call!(
                pair,
                args,
                advect_linear_attention,
                advect_linear_attention_plan,
                advect_linear_attention_warm
            );
            pair.same(&LinearAttention::new(16).causal(), &mut o, |v, out| {
                let [q, k, v, beta, initial_state] = v.try_into().unwrap();
                let mut args = LinearAttentionArgs::new(q, k, v, out);
                args.log_decay = Some(beta.clone());
                (args.beta, args.initial_state) = (Some(beta), Some(initial_state));
                args
            });
            assert!(values(last.tensor, 2 * 16 * 16).iter().all(|x| x.is_finite() && *x != 0.0));
        }
    }
}

#[test]
fn linear_attention_of_features_normalized() {
    for pair in pairs() {
        for dtype in DTYPES {
            let shape: &[u64] = &[1, 2, 5, 16];
            let mut o = pair.operands(dtype, &[shape, &[1, 1, 7, 16], &[1, 1, 7, 16]], shape);
            let args = advect_linear_attention_args {
                q: &raw const o.c[0],
                k: &raw const o.c[1],
                v: &raw const o.c[2],
                out: &raw const o.out,
                scale: 1.5,
                eps: 1e-3,
                feature_map: ADVECT_FEATURE_MAP_ELU_PLUS_ONE,
                normalize: 1,
                ..sized()
            };
            call!(
                pair,
                args,
                advect_linear_attention,
                advect_linear_attention_plan,
                advect_linear_attention_warm
            );
            let wrong = [
                ("causal", advect_linear_attention_args { causal: 2, ..args }),
                ("normalize", advect_linear_attention_args { normalize: 2, ..args }),
                ("eps", advect_linear_attention_args { normalize: 0, ..args }),
                ("feature_map", advect_linear_attention_args { feature_map: 3, ..args }),
                ("reserved", advect_linear_attention_args { reserved: 1, ..args }),
            ];
            for (argument, wrong) in wrong {
                // SAFETY: structs say their size, and views are of living tensors.
                let status = unsafe { advect_linear_attention(pair.c, &raw const wrong) };
                refused(status, ADVECT_ERROR_ARGUMENT, &format!("`{argument}`"));
            }
            let op = LinearAttention::scaled(1.5).feature_map(FeatureMap::EluPlusOne).normalize(1e-3);
            pair.same(&op, &mut o, |v, out| {
                let [q, k, v] = v.try_into().unwrap();
                LinearAttentionArgs::new(q, k, v, out)
            });
        }
    }
}

#[test]
fn resample() {
    for pair in pairs() {
        for dtype in DTYPES {
            for (mode, op, out) in [
                (ADVECT_RESAMPLE_UP2, Resample::Up2, [2, 3, 8, 10]),
                (ADVECT_RESAMPLE_DOWN2, Resample::Down2, [2, 3, 2, 2]),
            ] {
                let mut o = pair.operands(dtype, &[&[2, 3, 4, 5]], &out);
                let args =
                    advect_resample_args { x: &raw const o.c[0], out: &raw const o.out, mode, ..sized() };
                call!(pair, args, advect_resample, advect_resample_plan, advect_resample_warm);
                pair.same(&op, &mut o, |v, out| {
                    let [x] = v.try_into().unwrap();
                    ResampleArgs { x, out }
                });
            }
        }
    }
}

#[test]
fn step() {
    for pair in pairs() {
        for dtype in DTYPES {
            let mut o = pair.operands(dtype, &[&[2, 33], &[2, 33]], &[2, 33]);
            let mut args = advect_step_args {
                out: &raw const o.out,
                noise: 1,
                seed: 1 << 40 | 3,
                stream: u64::MAX,
                coefficients: [0.5, 0.0, -2.0, 0.0, 0.0, 0.0, 0.0, 0.0],
                noise_coefficient: 0.125,
                ..sized()
            };
            (args.x[0], args.x[2]) = (&raw const o.c[0], &raw const o.c[1]);
            call!(pair, args, advect_step, advect_step_plan, advect_step_warm);
            let coefficients = Coefficients::Values { x: args.coefficients, noise: 0.125 };
            let op = Step { coefficients, noise: Some(Noise { seed: args.seed, stream: args.stream }) };
            pair.same(&op, &mut o, |v, out| {
                let [x0, x2] = v.try_into().unwrap();
                let (x1, x3, x4, x5, x6, x7) = (None, None, None, None, None, None);
                StepArgs { x0, x1, x2: Some(x2), x3, x4, x5, x6, x7, table: None, out }
            });
        }
        // Coefficients from a table.
        let f32s = DTYPES[0];
        let mut o = pair.operands(f32s, &[&[2, 33], &[2, 9]], &[2, 33]);
        let mut args = advect_step_args {
            table: &raw const o.c[1],
            out: &raw const o.out,
            noise: 1,
            seed: 9,
            ..sized()
        };
        args.x[0] = &raw const o.c[0];
        call!(pair, args, advect_step, advect_step_plan, advect_step_warm);
        let op = Step { coefficients: Coefficients::Table, noise: Some(Noise { seed: 9, stream: 0 }) };
        pair.same(&op, &mut o, |v, out| {
            let [x0, table] = v.try_into().unwrap();
            let (x1, x2, x3, x4, x5, x6, x7) = (None, None, None, None, None, None, None);
            StepArgs { x0, x1, x2, x3, x4, x5, x6, x7, table: Some(table), out }
        });
    }
}

/// One buffer of the caller, read in one half and written in the other, channels last.
#[test]
fn memory_of_the_caller_is_used_in_place() {
    let device = open("cpu");
    let mut memory = noise(5, 2 * 8 * 4 * 4);
    let before = memory.clone();
    let mut tensor = std::ptr::null_mut();
    let shape: [u64; 4] = [2, 4, 4, 8];
    // SAFETY: the memory outlives the tensor; nothing else touches it meanwhile.
    unsafe {
        let bytes = size_of_val(&*memory);
        ok(advect_tensor_from_host(
            memory.as_mut_ptr().cast(),
            bytes,
            ADVECT_F32,
            4,
            shape.as_ptr(),
            0,
            &raw mut tensor,
        ));
        let mut x = view(tensor);
        ok(advect_view_permute(&raw mut x, [0, 3, 1, 2].as_ptr(), 4));
        let mut out = x;
        ok(advect_view_slice(&raw mut x, 1, 0, 2));
        ok(advect_view_slice(&raw mut x, 0, 0, 1));
        ok(advect_view_slice(&raw mut out, 1, 2, 4));
        ok(advect_view_slice(&raw mut out, 0, 1, 2));
        ok(advect_view_slice(&raw mut x, 2, 0, 2));
        ok(advect_view_slice(&raw mut x, 3, 0, 2));
        assert_eq!((x.offset, &x.shape[..4], &x.strides[..4]), (0, &[1, 2, 2, 2][..], &[128, 1, 32, 8][..]));
        assert_eq!(out.offset, 128 + 2);
        let args = advect_resample_args {
            x: &raw const x,
            out: &raw const out,
            mode: ADVECT_RESAMPLE_UP2,
            ..sized()
        };
        ok(advect_resample(device, &raw const args));
        let mut data = std::ptr::null_mut();
        ok(advect_tensor_data(tensor, &raw mut data));
        assert_eq!(data, memory.as_mut_ptr().cast());
        ok(advect_tensor_destroy(tensor));
        ok(advect_device_destroy(device));
    }
    for (i, (&now, &was)) in memory.iter().zip(&before).enumerate() {
        let (sample, row, column, channel) = (i / 128, i / 32 % 4, i / 8 % 4, i % 8);
        let written = sample == 1 && (2..4).contains(&channel);
        let from = ((row / 2) * 32 + (column / 2) * 8 + channel).saturating_sub(2);
        assert_eq!(now, if written { before[from] } else { was }, "element {i}");
    }
}

/// `dx/dt = -x`, with the slopes made by `advect_step`, ends where the Rust solver's closure ends.
#[test]
fn solver_sessions() {
    for device in devices() {
        let times = [0.0, 0.1, 0.25, 0.5, 1.0];
        let row_a = [0.5, 0.0, 0.5, 0.0, 0.0, 1.0];
        let row_b = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0];
        let named = |method| advect_solver_options { method, steps: 8, ..sized() };
        let all = [
            named(ADVECT_METHOD_EULER),
            named(ADVECT_METHOD_MIDPOINT),
            named(ADVECT_METHOD_HEUN),
            advect_solver_options { guided: 1, guidance_scale: 1.5, ..named(ADVECT_METHOD_RK4) },
            advect_solver_options {
                method: ADVECT_METHOD_TABLEAU,
                stages: 4,
                order: 4,
                a: row_a.as_ptr(),
                b: row_b.as_ptr(),
                times: times.as_ptr(),
                times_count: times.len(),
                ..sized()
            },
        ];
        for (i, options) in all.into_iter().enumerate() {
            let mut solver = std::ptr::null_mut();
            let (mut info, mut ask): (advect_solver_info, advect_ask) = (sized(), sized());
            // SAFETY: structs say their size; views are of living tensors.
            unsafe {
                ok(advect_solver_new(&raw const options, &raw mut solver));
                ok(advect_solver_describe(solver, &raw mut info));
                let make = |_| view(tensor(device, ADVECT_F32, &[1, 3]));
                let states: Vec<advect_view> = (0..info.states).map(make).collect();
                let slopes: Vec<advect_view> = (0..info.stages * info.branches).map(make).collect();
                for _round in 0..2 {
                    ok(advect_tensor_upload_f32(states[0].tensor, [1.0f32, 2.0, -3.0].as_ptr(), 3));
                    let mut evaluations = 0;
                    loop {
                        ok(advect_solver_next(solver, &raw mut ask));
                        match ask.kind {
                            ADVECT_ASK_EVAL => {
                                evaluations += 1;
                                for branch in 0..info.branches {
                                    // Guidance mixes -x/2 and -x into -x/2 + 1.5 (-x + x/2) = -1.25 x.
                                    let c = if branch + 1 == info.branches { -1.0 } else { -0.5 };
                                    let mut args = advect_step_args {
                                        out: &raw const slopes[(ask.stage * info.branches + branch) as usize],
                                        ..sized()
                                    };
                                    args.x[0] = &raw const states[ask.state as usize];
                                    args.coefficients[0] = c;
                                    ok(advect_step(device, &raw const args));
                                }
                            }
                            ADVECT_ASK_COMBINE => ok(advect_solver_combine(
                                solver,
                                device,
                                &raw const ask,
                                states.as_ptr(),
                                states.len(),
                                slopes.as_ptr(),
                                slopes.len(),
                            )),
                            _ => break,
                        }
                    }
                    assert_eq!((ask.kind, evaluations), (ADVECT_ASK_DONE, info.evaluations));
                    let rate: f64 = if info.branches == 2 { -1.25 } else { -1.0 };
                    let error = match info.order {
                        1 => 0.05,
                        2 => 0.002,
                        _ => 5e-4,
                    };
                    for (got, start) in
                        values(states[ask.state as usize].tensor, 3).iter().zip([1.0, 2.0, -3.0])
                    {
                        let off = (f64::from(*got) / start - rate.exp()).abs();
                        assert!(off < error, "case {i}: {got} from {start} is off by {off}");
                    }
                    ok(advect_solver_reset(solver));
                }
                states.iter().chain(&slopes).for_each(|v| ok(advect_tensor_destroy(v.tensor)));
                ok(advect_solver_destroy(solver));
            }
        }
    }
}
