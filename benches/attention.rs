//! Attention on the CPU: the blocks of the sampler's network, windows, image transformers, long sequences.
//! Throughput is in floating-point operations: criterion's `Gelem/s` are GFLOP/s.

use advect::ops::{Attention, AttentionArgs};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Stored row-major in this order of the axes (batch, head, token, element), and the same permutation
/// undone.
const LAYOUTS: [(&str, [usize; 4]); 3] =
    [("heads", [0, 1, 2, 3]), ("tokens", [0, 2, 1, 3]), ("channels", [0, 1, 3, 2])];

fn attention(c: &mut Criterion) {
    let mut group = c.benchmark_group("attention");
    for threads in [1, 2] {
        let device = Device::cpu(threads).expect("threads start");
        for (name, dtype, [b, h, nq, nk, d]) in [
            ("unet_160x1x196x32", Dtype::F32, [160, 1, 196, 196, 32]),
            ("unet_160x3x49x32", Dtype::F32, [160, 3, 49, 49, 32]),
            ("1x8x1024x64", Dtype::F32, [1, 8, 1024, 1024, 64]),
            ("1x8x1024x64", Dtype::Bf16, [1, 8, 1024, 1024, 64]),
            ("win_16x4x49x32", Dtype::F32, [16, 4, 49, 49, 32]),
            ("dit_1x16x256x72", Dtype::F32, [1, 16, 256, 256, 72]),
            ("cross_1x8x4096x77x40", Dtype::F32, [1, 8, 4096, 77, 40]),
            ("decode_1x32x4096x128", Dtype::F32, [1, 32, 1, 4096, 128]),
        ] {
            for (layout, order) in LAYOUTS {
                let stored = |n: usize| order.map(|axis| [b, h, n, d][axis]);
                let tensor = |n| Tensor::new(&device, dtype, &stored(n)).expect("fits");
                let (q, k, v, mut out) = (tensor(nq), tensor(nk), tensor(nk), tensor(nq));
                group.throughput(Throughput::Elements(4 * (b * h * nq * nk * d) as u64));
                group.bench_function(format!("{name}_{layout}_{dtype}_{threads}t"), |bench| {
                    bench.iter(|| {
                        // Each order swaps two axes at most, so it is its own reverse.
                        let args = AttentionArgs::new(
                            q.view().permute(&order).expect("an order"),
                            k.view().permute(&order).expect("an order"),
                            v.view().permute(&order).expect("an order"),
                            out.view_mut().permute(&order).expect("an order"),
                        );
                        device.run(&Attention::new(d), args).expect("runs");
                    });
                });
            }
        }
    }
    group.finish();
}

criterion_group!(benches, attention);
criterion_main!(benches);
