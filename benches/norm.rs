//! Normalisation on the CPU: throughput in bytes, each operand once.

use advect::ops::{Activation, Norm, NormArgs, NormKind};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

const GROUPS: NormKind = NormKind::Group { groups: 8 };

fn norm(c: &mut Criterion) {
    let device = Device::cpu(0).expect("threads start");
    let mut group = c.benchmark_group("norm");
    // Shapes are (sample, channel, row, column), or (sample, token, channel).
    for (name, kind, shape, channels_last, film) in [
        ("unet_80x16x28x28", GROUPS, vec![80, 16, 28, 28], true, true),
        ("unet_80x32x14x14", GROUPS, vec![80, 32, 14, 14], true, true),
        ("unet_160x96x7x7", GROUPS, vec![160, 96, 7, 7], true, true),
        ("unet_160x192x7x7", GROUPS, vec![160, 192, 7, 7], true, false),
        ("gn_silu_1x320x64x64_g32", NormKind::Group { groups: 32 }, vec![1, 320, 64, 64], false, false),
        ("gn_silu_1x320x64x64_g32_nhwc", NormKind::Group { groups: 32 }, vec![1, 320, 64, 64], true, false),
        ("ln_adaln_1x1024x1152", NormKind::Layer, vec![1, 1024, 1152], false, true),
    ] {
        let activation = if kind == NormKind::Layer { Activation::None } else { Activation::Silu };
        let channels = if kind == NormKind::Layer { shape[2] } else { shape[1] };
        let stored: Vec<usize> =
            if channels_last { vec![shape[0], shape[2], shape[3], shape[1]] } else { shape.clone() };
        let order: Vec<usize> = if channels_last { vec![0, 3, 1, 2] } else { (0..shape.len()).collect() };
        let total: usize = shape.iter().product();
        let values: Vec<f32> = (0..total).map(|i| ((i * 7919) % 1009) as f32 * 0.005 - 2.5).collect();
        let x = Tensor::from_f32(&device, Dtype::F32, &stored, &values).expect("fits");
        let mut out = Tensor::new(&device, Dtype::F32, &stored).expect("fits");
        let weight = Tensor::new(&device, Dtype::F32, &[channels]).expect("fits");
        let both = Tensor::new(&device, Dtype::F32, &[shape[0], 2 * channels]).expect("fits");
        let op = Norm { kind, eps: 1e-5, activation };
        group.throughput(Throughput::Bytes(8 * total as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                let half = |from: usize| both.view().slice(1, from..from + channels).expect("a half");
                let args = NormArgs {
                    x: x.view().permute(&order).expect("an order"),
                    weight: (kind != NormKind::Layer).then(|| weight.view()),
                    bias: (kind != NormKind::Layer).then(|| weight.view()),
                    scale: film.then(|| half(0)),
                    shift: film.then(|| half(channels)),
                    out: out.view_mut().permute(&order).expect("an order"),
                };
                device.run(&op, args).expect("runs");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, norm);
criterion_main!(benches);
