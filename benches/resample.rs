//! Resampling on the CPU: memory traffic is the limit, so throughput is given in bytes.

use advect::ops::{Resample, ResampleArgs};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn resample(c: &mut Criterion) {
    let device = Device::cpu(0).expect("threads start");
    let mut group = c.benchmark_group("resample");
    for (name, op, [n, ch, h, w]) in [
        ("up_80x32x14x14", Resample::Up2, [80, 32, 14, 14]),
        ("down_8x64x64x64", Resample::Down2, [8, 64, 64, 64]),
    ] {
        let (oh, ow) = if op == Resample::Up2 { (2 * h, 2 * w) } else { (h / 2, w / 2) };
        for (layout, order) in [("nchw", [0, 1, 2, 3]), ("nhwc", [0, 3, 1, 2])] {
            let stored = |s: [usize; 4]| if layout == "nchw" { s } else { [s[0], s[2], s[3], s[1]] };
            let x = Tensor::new(&device, Dtype::F32, &stored([n, ch, h, w])).expect("fits");
            let mut out = Tensor::new(&device, Dtype::F32, &stored([n, ch, oh, ow])).expect("fits");
            group.throughput(Throughput::Bytes(4 * (n * ch * (h * w + oh * ow)) as u64));
            group.bench_function(format!("{name}_{layout}"), |b| {
                b.iter(|| {
                    let x = x.view().permute(&order).expect("an order");
                    let out = out.view_mut().permute(&order).expect("an order");
                    device.run(&op, ResampleArgs { x, out }).expect("runs");
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, resample);
criterion_main!(benches);
