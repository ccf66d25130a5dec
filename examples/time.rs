use advect::ops::{Activation, Matmul, MatmulArgs};
use advect::{Cpu, Dtype, Isa, View};
use std::time::Instant;
fn main() {
    let want = std::env::args().nth(1).unwrap_or_default();
    let isas: Vec<Isa> =
        if std::env::args().nth(2).is_some() { Isa::available() } else { vec![Isa::detect()] };
    for isa in isas {
        for threads in [1, 2] {
            let cpu = Cpu::with(threads, isa).unwrap();
            for (name, d, [m, n, k], t, act) in [
                ("sq1024", Dtype::F32, [1024, 1024, 1024], false, Activation::None),
                ("sq1024nt", Dtype::F32, [1024, 1024, 1024], true, Activation::None),
                ("sq1024", Dtype::Bf16, [1024, 1024, 1024], false, Activation::None),
                ("sq2048", Dtype::F32, [2048, 2048, 2048], false, Activation::None),
                ("tune", Dtype::F32, [168, 512, 1024], false, Activation::None),
                ("sq256", Dtype::F32, [256, 256, 256], false, Activation::None),
                ("sq128", Dtype::F32, [128, 128, 128], false, Activation::None),
                ("linear80", Dtype::F32, [80, 128, 64], true, Activation::Silu),
                ("linear80n", Dtype::F32, [80, 128, 64], true, Activation::None),
                ("linear80b", Dtype::F32, [80, 128, 128], true, Activation::None),
                ("proj", Dtype::F32, [80 * 49, 192, 64], true, Activation::None),
                ("gemv_nt", Dtype::F32, [1, 1024, 1024], true, Activation::None),
                ("gemv_nn", Dtype::F32, [1, 1024, 1024], false, Activation::None),
                ("skinny8", Dtype::F32, [8, 1024, 1024], true, Activation::None),
                ("skinny8n", Dtype::F32, [8, 1024, 1024], false, Activation::None),
            ] {
                if !name.contains(&want) {
                    continue;
                }
                let s = d.size();
                let mk = |n: usize| -> Vec<f32> {
                    (0..n * s / 4 + 1)
                        .map(|i| if s == 4 { (i % 7) as f32 * 0.1 } else { f32::from_bits(0x3f803f80) })
                        .collect()
                };
                let (a, b, bias, mut o) = (mk(m * k), mk(k * n), mk(n), mk(m * n));
                let mut run = || {
                    let sh = if t { [n, k] } else { [k, n] };
                    let bv = View::contiguous(bytemuck::cast_slice(&b[..]), d, &sh).unwrap();
                    let bv = if t { bv.permute(&[1, 0]).unwrap() } else { bv };
                    cpu.run(
                        &Matmul { activation: act },
                        MatmulArgs {
                            a: View::contiguous(bytemuck::cast_slice(&a[..]), d, &[m, k]).unwrap(),
                            b: bv,
                            bias: Some(View::contiguous(bytemuck::cast_slice(&bias[..]), d, &[n]).unwrap()),
                            residual: None,
                            out: View::contiguous(bytemuck::cast_slice_mut(&mut o[..]), d, &[m, n]).unwrap(),
                        },
                    )
                    .unwrap();
                };
                run();
                let flops = 2.0 * (m * n * k) as f64;
                let reps = ((5e7 / flops) as usize).clamp(1, 2000);
                let mut best = f64::MAX;
                let start = Instant::now();
                while start.elapsed().as_secs_f64() < 0.6 {
                    let t = Instant::now();
                    for _ in 0..reps {
                        run();
                    }
                    best = best.min(t.elapsed().as_secs_f64() / reps as f64);
                }
                println!(
                    "{:?} {threads}t {name:10} {d}: {:9.2} us  {:6.1} GFLOP/s",
                    isa,
                    best * 1e6,
                    flops / best * 1e-9
                );
            }
        }
    }
}
