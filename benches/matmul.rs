//! Matrix products on the CPU: square ones, linear layers of the sampler's network, one row. Throughput is
//! in floating-point operations: criterion's `Gelem/s` are GFLOP/s.

use advect::ops::{Activation, Matmul, MatmulArgs};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn matmul(c: &mut Criterion) {
    let mut group = c.benchmark_group("matmul");
    for threads in [1, 2] {
        let device = Device::cpu(threads).expect("threads start");
        for (name, dtype, [m, n, k], transposed, activation) in [
            ("square_1024", Dtype::F32, [1024, 1024, 1024], false, Activation::None),
            ("square_1024_nt", Dtype::F32, [1024, 1024, 1024], true, Activation::None),
            ("square_1024", Dtype::Bf16, [1024, 1024, 1024], false, Activation::None),
            ("linear_80x128x64", Dtype::F32, [80, 128, 64], true, Activation::Silu),
            ("linear_1x1024x1024", Dtype::F32, [1, 1024, 1024], true, Activation::None),
            ("row_1x1024x1024", Dtype::F32, [1, 1024, 1024], false, Activation::None),
        ] {
            let tensor = |shape: &[usize]| Tensor::new(&device, dtype, shape).expect("fits");
            let (a, bias, mut out) = (tensor(&[m, k]), tensor(&[n]), tensor(&[m, n]));
            let b = if transposed { tensor(&[n, k]) } else { tensor(&[k, n]) };
            group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
            group.bench_function(format!("{name}_{dtype}_{threads}t"), |bench| {
                bench.iter(|| {
                    let b = b.view();
                    let b = if transposed { b.permute(&[1, 0]).expect("an order") } else { b };
                    let args = MatmulArgs {
                        a: a.view(),
                        b,
                        bias: Some(bias.view()),
                        residual: None,
                        out: out.view_mut(),
                    };
                    device.run(&Matmul { activation }, args).expect("runs");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, matmul);
criterion_main!(benches);
