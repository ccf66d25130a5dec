//! Linear attention on the CPU, with the decays and rules of a few models.

use advect::ops::{FeatureMap, LinearAttention, LinearAttentionArgs};
use advect::{Device, Dtype, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

/// What a model has besides queries, keys and values.
struct Model {
    name: &'static str,
    op: LinearAttention,
    /// Axes of the decays: none, tokens, tokens and channels.
    decay: usize,
    beta: bool,
    /// Batch, heads, tokens, elements of a head.
    shape: [usize; 4],
}

fn linear_attention(c: &mut Criterion) {
    let device = Device::cpu(0).expect("threads start");
    let mut group = c.benchmark_group("linear_attention");
    let causal = LinearAttention::new(64).causal();
    let sana = LinearAttention::scaled(1.0).feature_map(FeatureMap::Relu).normalize(1e-6);
    let shape = [1, 8, 1024, 64];
    for Model { name, op, decay, beta, shape } in [
        Model { name: "sana_2x20x1024x32", op: sana, decay: 0, beta: false, shape: [2, 20, 1024, 32] },
        Model { name: "causal_1x8x1024x64", op: causal, decay: 0, beta: false, shape },
        Model { name: "retnet_1x8x1024x64", op: causal, decay: 1, beta: false, shape },
        Model { name: "gla_1x8x1024x64", op: causal, decay: 2, beta: false, shape },
        Model { name: "deltanet_1x8x1024x64", op: causal, decay: 0, beta: true, shape },
        Model { name: "gated_deltanet_1x8x1024x64", op: causal, decay: 1, beta: true, shape },
    ] {
        let [b, h, n, d] = shape;
        let tensor = |shape: &[usize], low: f32, high: f32| {
            let count: usize = shape.iter().product();
            let value = |i: usize| low + (high - low) * ((i * 7919 % 4001) as f32 / 4000.0);
            let values: Vec<f32> = (0..count).map(value).collect();
            Tensor::from_f32(&device, Dtype::F32, shape, &values).expect("fits")
        };
        // Keys of length 1 at most.
        let length = (d as f32).sqrt().recip();
        let (q, k, v) =
            (tensor(&shape, -1.0, 1.0), tensor(&shape, -length, length), tensor(&shape, -1.0, 1.0));
        let decays = (decay > 0).then(|| tensor(&shape[..2 + decay], -0.1, 0.0));
        let betas = beta.then(|| tensor(&shape[..3], 0.0, 1.0));
        let mut out = Tensor::new(&device, Dtype::F32, &shape).expect("fits");
        group.throughput(Throughput::Elements((b * h * n) as u64));
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let mut args = LinearAttentionArgs::new(q.view(), k.view(), v.view(), out.view_mut());
                args.log_decay = decays.as_ref().map(Tensor::view);
                args.beta = betas.as_ref().map(Tensor::view);
                device.run(&op, args).expect("runs");
            });
        });
    }
    group.finish();
}

criterion_group!(benches, linear_attention);
criterion_main!(benches);
