//! Convolutions on the CPU, in f32: those of the demo's U-Net for a batch of 80 (channels last), then the
//! usual yardsticks in both orders. Throughput counts a multiply-add as two, taps on padding included.
//! `ADVECT_THREADS` sets the threads.

use advect::ops::{Activation, Conv, ConvArgs};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// Batch, input channels, output channels, rows, columns, window, stride, padding, groups.
type Size = [usize; 9];

const UNET: [Size; 21] = [
    [80, 1, 16, 28, 28, 3, 1, 1, 1],
    [80, 16, 16, 28, 28, 3, 1, 1, 1],
    [80, 32, 16, 28, 28, 3, 1, 1, 1],
    [80, 16, 16, 28, 28, 3, 2, 1, 1],
    [80, 16, 32, 14, 14, 3, 1, 1, 1],
    [80, 32, 32, 14, 14, 3, 1, 1, 1],
    [80, 64, 32, 14, 14, 3, 1, 1, 1],
    [80, 96, 32, 14, 14, 3, 1, 1, 1],
    [80, 32, 32, 14, 14, 3, 2, 1, 1],
    [80, 32, 96, 7, 7, 3, 1, 1, 1],
    [80, 96, 96, 7, 7, 3, 1, 1, 1],
    [80, 192, 96, 7, 7, 3, 1, 1, 1],
    [80, 16, 1, 28, 28, 3, 1, 1, 1],
    [80, 96, 288, 7, 7, 1, 1, 0, 1],
    [80, 96, 96, 7, 7, 1, 1, 0, 1],
    [80, 192, 96, 7, 7, 1, 1, 0, 1],
    [80, 32, 96, 14, 14, 1, 1, 0, 1],
    [80, 32, 32, 14, 14, 1, 1, 0, 1],
    [80, 64, 32, 14, 14, 1, 1, 0, 1],
    [80, 16, 32, 14, 14, 1, 1, 0, 1],
    [80, 32, 16, 28, 28, 1, 1, 0, 1],
];

const YARDSTICKS: [Size; 7] = [
    [1, 320, 320, 64, 64, 3, 1, 1, 1],
    [16, 64, 64, 28, 28, 3, 1, 1, 1],
    [16, 128, 128, 14, 14, 3, 1, 1, 1],
    [1, 320, 320, 64, 64, 1, 1, 0, 1],
    [1, 320, 320, 64, 64, 3, 2, 1, 1],
    [1, 512, 512, 32, 32, 3, 1, 1, 512],
    [1, 256, 256, 56, 56, 7, 1, 3, 256],
];

fn conv(c: &mut Criterion) {
    let threads = std::env::var("ADVECT_THREADS").ok().and_then(|t| t.parse().ok()).unwrap_or(0);
    let device = Device::cpu(threads).expect("threads start");
    let mut group = c.benchmark_group("conv");
    let all = UNET.iter().map(|s| (s, "nhwc"));
    let all = all.chain(YARDSTICKS.iter().flat_map(|s| [(s, "nchw"), (s, "nhwc")]));
    for (&[n, c_in, c_out, h, w, k, stride, padding, groups], layout) in all {
        let op = Conv {
            stride: [stride; 2],
            padding: [padding; 2],
            groups,
            activation: Activation::None,
            ..Conv::default()
        };
        let out_size = |size: usize| (size + 2 * padding - k) / stride + 1;
        let (oh, ow) = (out_size(h), out_size(w));
        let order = if layout == "nchw" { [0, 1, 2, 3] } else { [0, 3, 1, 2] };
        let stored = |[n, c, h, w]: [usize; 4]| if layout == "nchw" { [n, c, h, w] } else { [n, h, w, c] };
        let tensor = |shape: &[usize]| Tensor::new(&device, Dtype::F32, shape).expect("fits");
        let x = tensor(&stored([n, c_in, h, w]));
        let weight = tensor(&[c_out, c_in / groups, k, k]);
        let bias = tensor(&[c_out]);
        let mut out = tensor(&stored([n, c_out, oh, ow]));
        let multiply_adds = n * c_out * oh * ow * k * k * c_in / groups;
        group.throughput(Throughput::Elements(2 * multiply_adds as u64));
        let name = format!("{k}x{k}_{n}x{c_in}x{h}x{w}_{c_out}_s{stride}_g{groups}_{layout}");
        group.bench_function(name, |b| {
            b.iter(|| {
                let args = ConvArgs {
                    x: x.view().permute(&order).expect("an order"),
                    weight: weight.view(),
                    bias: Some(bias.view()),
                    sample_bias: None,
                    residual: None,
                    out: out.view_mut().permute(&order).expect("an order"),
                };
                device.run(&op, args).expect("runs");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, conv);
criterion_main!(benches);
