//! Whole kernels as NVRTC compiles them, in both dialects and under every schedule, against plain Rust.

mod common;
use common::*;
use half::{bf16, f16};
use ptx_sim::{Gpu, Module};

fn each(texts: [&str; 2], mut f: impl FnMut(&Module, ptx_sim::Schedule)) {
    for text in texts {
        let module = Module::parse(text).unwrap();
        SCHEDULES.into_iter().for_each(|s| f(&module, s));
    }
}

#[test]
fn vector_add() {
    each(BASIC, |module, schedule| {
        let n = 1000;
        let (a, b) = (noise(n, 1), noise(n, 2));
        let mut gpu = Gpu::new();
        let (pa, pb) = (upload(&mut gpu, &a), upload(&mut gpu, &b));
        let out = gpu.alloc(n * 4);
        let params = params![pa, pb, out, n as u32];
        let report =
            run(module, &mut gpu, "vector_add", [8, 1, 1], [128, 1, 1], 0, params, schedule).unwrap();
        let want: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
        assert_eq!(download::<f32>(&gpu, out, n), want);
        assert_eq!(report.counters.global_store.sectors, 125);
        assert_eq!(report.counters.global_load.efficiency(), 1.0);
        assert_eq!(report.counters.blocks, 8);
    });
}

#[test]
fn affine_takes_a_struct_by_value() {
    each(BASIC, |module, schedule| {
        let n = 100;
        let a = noise(n * 4, 1);
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &a);
        let out = gpu.alloc(n * 16);
        let mut spec = Vec::new();
        2.0f32.put(&mut spec);
        1.0f32.put(&mut spec);
        (n as u32).put(&mut spec);
        let params: &[&[u8]] = &[&p.to_le_bytes(), &out.to_le_bytes(), &spec];
        run(module, &mut gpu, "affine", [2, 1, 1], [64, 1, 1], 0, params, schedule).unwrap();
        let want: Vec<f32> = a.iter().map(|a| a.mul_add(2.0, 1.0)).collect();
        assert_eq!(download::<f32>(&gpu, out, n * 4), want);
    });
}

#[test]
fn tiled_matmul() {
    each(BASIC, |module, schedule| {
        let n = 32;
        let (a, b) = (noise(n * n, 1), noise(n * n, 2));
        let mut gpu = Gpu::new();
        let (pa, pb) = (upload(&mut gpu, &a), upload(&mut gpu, &b));
        let out = gpu.alloc(n * n * 4);
        let params = params![pa, pb, out, n as u32];
        let report =
            run(module, &mut gpu, "tiled_matmul", [2, 2, 1], [16, 16, 1], 0, params, schedule).unwrap();
        let got = download::<f32>(&gpu, out, n * n);
        for i in 0..n {
            for j in 0..n {
                let want = (0..n).fold(0f32, |s, k| a[i * n + k].mul_add(b[k * n + j], s));
                assert_eq!(got[i * n + j], want);
            }
        }
        assert_eq!(report.counters.barriers, 4 * 4);
    });
}

#[test]
fn row_softmax() {
    each(BASIC, |module, schedule| {
        let (rows, cols) = (3, 200);
        let x = noise(rows * cols, 3);
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &x);
        let out = gpu.alloc(rows * cols * 4);
        let params = params![p, out, cols as u32];
        run(module, &mut gpu, "row_softmax", [rows as u32, 1, 1], [128, 1, 1], 16, params, schedule).unwrap();
        let got = download::<f32>(&gpu, out, rows * cols);
        for r in 0..rows {
            let row = &x[r * cols..][..cols];
            let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            for (c, v) in row.iter().enumerate() {
                let want = f64::from(*v).exp() / sum;
                assert!((f64::from(got[r * cols + c]) - want).abs() < 1e-6 * want);
            }
        }
    });
}

#[test]
fn histogram() {
    each(BASIC, |module, schedule| {
        let n = 5000;
        let data: Vec<u8> = (0..n).map(|i| (i * i % 251) as u8).collect();
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &data);
        let bins = upload(&mut gpu, &[0u32; 64]);
        let params = params![p, bins, n as u32];
        run(module, &mut gpu, "histogram", [4, 1, 1], [96, 1, 1], 0, params, schedule).unwrap();
        let mut want = vec![0u32; 64];
        data.iter().for_each(|d| want[usize::from(d & 63)] += 1);
        assert_eq!(download::<u32>(&gpu, bins, 64), want);
    });
}

#[test]
fn philox() {
    fn reference(counter: u32, seed: u64) -> [u32; 4] {
        let (mut c, mut k) = ([counter, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
        for _ in 0..10 {
            let (a, b) = (u64::from(c[0]) * 0xD251_1F53, u64::from(c[2]) * 0xCD9E_8D57);
            c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }
    // Known answer of Philox4x32-10 (counter and key zero).
    assert_eq!(reference(0, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    each(BASIC, |module, schedule| {
        let (n, seed) = (70u32, 0x1234_5678_9abc_def0u64);
        let mut gpu = Gpu::new();
        let out = gpu.alloc(n as usize * 16);
        run(module, &mut gpu, "philox", [3, 1, 1], [32, 1, 1], 0, params![out, seed, n], schedule).unwrap();
        let want: Vec<u32> = (0..n).flat_map(|i| reference(i, seed)).collect();
        assert_eq!(download::<u32>(&gpu, out, n as usize * 4), want);
    });
}

#[test]
fn local_arrays_and_calls() {
    each(BASIC, |module, schedule| {
        let n = 50;
        let x = noise(n, 4);
        let pick: Vec<i32> = (0..n as i32).map(|i| i * 5 % 8).collect();
        let mut gpu = Gpu::new();
        let (px, pp) = (upload(&mut gpu, &x), upload(&mut gpu, &pick));
        let out = gpu.alloc(n * 4);
        let params = params![px, out, pp, n as u32];
        run(module, &mut gpu, "local_poly", [1, 1, 1], [64, 1, 1], 0, params, schedule).unwrap();
        let got = download::<f32>(&gpu, out, n);
        for i in 0..n {
            let k = pick[i] as usize;
            let mut c: Vec<f32> = (0..8).map(|k| x[i] + k as f32).collect();
            c[k] = 3.0;
            let want = c[..=k].iter().rev().fold(0f32, |y, c| y.mul_add(0.5, *c));
            assert_eq!(got[i], want, "{i}");
        }
    });
}

#[test]
fn divergent_loops_reconverge() {
    each(BASIC, |module, schedule| {
        let n = 100;
        let mut gpu = Gpu::new();
        let out = gpu.alloc(n * 4);
        let report =
            run(module, &mut gpu, "collatz", [1, 1, 1], [128, 1, 1], 0, params![out, n as u32], schedule)
                .unwrap();
        let steps = |mut v: u32| {
            let mut s = 0;
            while v != 1 {
                v = if v & 1 == 1 { 3 * v + 1 } else { v / 2 };
                s += 1;
            }
            s
        };
        let want: Vec<i32> = (1..=n as u32).map(steps).collect();
        assert_eq!(download::<i32>(&gpu, out, n), want);
        assert!(report.counters.divergent_branches > 0);
        // One store a warp: the lanes are together again.
        assert_eq!(report.counters.global_store.requests, 4);
    });
}

#[test]
fn library_functions() {
    each(BASIC, |module, schedule| {
        let n = 64;
        let x: Vec<f32> = (0..n).map(|i| (i as f32 - 31.5) * 0.37).collect();
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &x);
        let out = gpu.alloc(n * 10 * 4);
        run(module, &mut gpu, "libm", [1, 1, 1], [64, 1, 1], 0, params![p, out, n as u32], schedule).unwrap();
        let got = download::<f32>(&gpu, out, n * 10);
        for i in 0..n {
            let v = f64::from(x[i]);
            let want = [
                v.sin(),
                (f64::from(x[i].abs() + 1e-3)).ln(),
                v.tanh(),
                f64::NAN,
                v.abs().powf(f64::from(1.7f32)),
                1.0 / (v * v + 1.0).sqrt(),
                (v * v + 2.0).sqrt(),
                1.0 / (v * v + 3.0),
                (v * 0.25).exp(),
                v.floor() + v.round_ties_even(),
            ];
            for (k, want) in want.into_iter().enumerate().filter(|(_, w)| !w.is_nan()) {
                let got = f64::from(got[k * n + i]);
                assert!(
                    (got - want).abs() <= 1e-6 * want.abs().max(0.1),
                    "function {k} of {v}: {got}, wanted {want}"
                );
            }
        }
    });
}

#[test]
fn tensor_core_gemm_with_tails() {
    let (m, n, k) = (24usize, 16, 40);
    let (a, b) = (noise(m * k, 5), noise(k * n, 6));
    type Half = (&'static str, fn(f32) -> u16, fn(u16) -> f32);
    let types: [Half; 2] = [
        ("gemm_f16", |v| f16::from_f32(v).to_bits(), |v| f16::from_bits(v).to_f32()),
        ("gemm_bf16", |v| bf16::from_f32(v).to_bits(), |v| bf16::from_bits(v).to_f32()),
    ];
    for (kernel, to, from) in types {
        let a: Vec<u16> = a.iter().map(|v| to(*v)).collect();
        let b: Vec<u16> = b.iter().map(|v| to(*v)).collect();
        each(TENSOR, |module, schedule| {
            let mut gpu = Gpu::new();
            let (pa, pb) = (upload(&mut gpu, &a), upload(&mut gpu, &b));
            let out = gpu.alloc(m * n * 4);
            let params = params![pa, pb, out, m as u32, n as u32, k as u32];
            let report = run(module, &mut gpu, kernel, [2, 2, 1], [32, 1, 1], 0, params, schedule).unwrap();
            let got = download::<f32>(&gpu, out, m * n);
            for i in 0..m {
                for j in 0..n {
                    let want: f64 =
                        (0..k).map(|l| f64::from(from(a[i * k + l])) * f64::from(from(b[l * n + j]))).sum();
                    assert!((f64::from(got[i * n + j]) - want).abs() < 1e-5, "{kernel} {i} {j}");
                }
            }
            assert_eq!(report.counters.tensor_flops, 4 * 3 * 4096);
        });
    }
}

#[test]
fn conversions() {
    let x: Vec<f32> = noise(64, 7)
        .into_iter()
        .chain([0.0, -0.0, 65504.0, 65520.0, 1e-7, 6e-8, 1e30, f32::INFINITY])
        .collect();
    let n = x.len();
    each(TENSOR, |module, schedule| {
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &x);
        let (h, b, packed, back) = (gpu.alloc(n * 2), gpu.alloc(n * 2), gpu.alloc(n * 4), gpu.alloc(n * 4));
        let params = params![p, h, b, packed, back, n as u32];
        run(module, &mut gpu, "convert", [3, 1, 1], [32, 1, 1], 0, params, schedule).unwrap();
        let bits = |v: f32| f16::from_f32(v).to_bits();
        assert_eq!(download::<u16>(&gpu, h, n), x.iter().map(|v| bits(*v)).collect::<Vec<_>>());
        assert_eq!(
            download::<u16>(&gpu, b, n),
            x.iter().map(|v| bf16::from_f32(*v).to_bits()).collect::<Vec<_>>()
        );
        let want: Vec<u32> = x.iter().map(|v| u32::from(bits(-v)) << 16 | u32::from(bits(*v))).collect();
        assert_eq!(download::<u32>(&gpu, packed, n), want);
        assert_eq!(
            download::<f32>(&gpu, back, n),
            x.iter().map(|v| f16::from_f32(*v).to_f32()).collect::<Vec<_>>()
        );
    });
}

#[test]
fn async_copies_fill_with_zeros() {
    each(TENSOR, |module, schedule| {
        let n = 50;
        let x = noise(n, 8);
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &x);
        let out = gpu.alloc(n * 4);
        run(module, &mut gpu, "copy_async4", [1, 1, 1], [64, 1, 1], 256, params![p, out, n as u32], schedule)
            .unwrap();
        assert_eq!(download::<f32>(&gpu, out, n), x);
    });
}
