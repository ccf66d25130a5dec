//! Merging parts of attention on the CPU: memory traffic is the limit, so throughput is given in bytes.

use advect::ops::{Merge, MergeArgs};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn merge(c: &mut Criterion) {
    let device = Device::cpu(0).expect("threads start");
    let mut group = c.benchmark_group("merge");
    for (name, [s, b, h, n, d]) in
        [("split_kv_16x8x32x1x128", [16, 8, 32, 1, 128]), ("ring_2x1x16x4096x64", [2, 1, 16, 4096, 64])]
    {
        let tensor = |shape: &[usize]| Tensor::new(&device, Dtype::F32, shape).expect("fits");
        let (parts, lses, mut out) = (tensor(&[s, b, h, n, d]), tensor(&[s, b, h, n]), tensor(&[b, h, n, d]));
        group.throughput(Throughput::Bytes(4 * (b * h * n * ((s + 1) * d + s)) as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let args =
                    MergeArgs { parts: parts.view(), lses: lses.view(), out: out.view_mut(), lse: None };
                device.run(&Merge, args).expect("runs");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, merge);
criterion_main!(benches);
