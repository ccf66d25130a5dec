//! The solver step on the CPU: throughput in bytes, each buffer once.

use advect::ops::{Coefficients, Noise, Step, StepArgs};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn step(c: &mut Criterion) {
    let device = Device::cpu(0).expect("threads start");
    let mut group = c.benchmark_group("step");
    let four = [0.9, 0.3, -0.2, 0.05, 0.0, 0.0, 0.0, 0.0];
    let two = [1.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    for (name, dtype, [b, len], buffers, x, noise) in [
        ("lincomb4_4M", Dtype::F32, [1, 4 << 20], 4, four, 0.0),
        ("lincomb4_4M_bf16", Dtype::Bf16, [1, 4 << 20], 4, four, 0.0),
        ("unet_euler_80x784", Dtype::F32, [80, 784], 2, two, 0.0),
        ("sde_80x784", Dtype::F32, [80, 784], 2, two, 0.5),
        ("randn_16M", Dtype::F32, [1, 16 << 20], 0, [0.0; 8], 1.0),
    ] {
        let tensors: Vec<Tensor> =
            (0..buffers.max(1)).map(|_| Tensor::new(&device, dtype, &[b, len]).expect("fits")).collect();
        let mut out = Tensor::new(&device, dtype, &[b, len]).expect("fits");
        let op = Step {
            coefficients: Coefficients::Values { x, noise },
            noise: (noise != 0.0).then_some(Noise { seed: 1, stream: 0 }),
        };
        group.throughput(Throughput::Bytes(((buffers + 1) * b * len * dtype.size()) as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let x = |j: usize| tensors.get(j).map(Tensor::view);
                let args = StepArgs {
                    x0: tensors[0].view(),
                    x1: x(1),
                    x2: x(2),
                    x3: x(3),
                    x4: None,
                    x5: None,
                    x6: None,
                    x7: None,
                    table: None,
                    out: out.view_mut(),
                };
                device.run(&op, args).expect("runs");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, step);
criterion_main!(benches);
