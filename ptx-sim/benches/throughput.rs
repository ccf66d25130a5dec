//! How fast kernels of different kinds execute, all checks on: `cargo bench -p ptx-sim`.
//!
//! An element is an instruction that one thread executes, so `Gelem/s` are billions of thread-instructions a
//! second. Blocks run in parallel on all cores: `taskset -c 0 cargo bench -p ptx-sim` measures one.

#[path = "../tests/common/mod.rs"]
mod common;

use common::*;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ptx_sim::{Gpu, Launch, Module};

/// A launch of one kernel over memory that it can run over again and again.
struct Work {
    kernel: &'static str,
    module: Module,
    gpu: Gpu,
    params: Vec<Vec<u8>>,
    grid: [u32; 3],
    block: [u32; 3],
    shared_bytes: u32,
}

impl Work {
    fn new(
        kernel: &'static str,
        text: &str,
        mut gpu: Gpu,
        fill: impl FnOnce(&mut Gpu) -> Vec<Vec<u8>>,
    ) -> Self {
        let module = Module::parse(text).expect("the fixtures are valid");
        let params = fill(&mut gpu);
        Self { kernel, module, gpu, params, grid: [1; 3], block: [1; 3], shared_bytes: 0 }
    }

    fn sized(self, grid: [u32; 3], block: [u32; 3], shared_bytes: u32) -> Self {
        Self { grid, block, shared_bytes, ..self }
    }

    /// Runs it once; the number of thread-instructions.
    fn run(&mut self) -> u64 {
        let params: Vec<&[u8]> = self.params.iter().map(Vec::as_slice).collect();
        let launch = Launch {
            grid: self.grid,
            block: self.block,
            shared_bytes: self.shared_bytes,
            params: &params,
            ..Launch::default()
        };
        let report =
            self.module.launch(&mut self.gpu, self.kernel, &launch).expect("the kernels are correct");
        report.counters.thread_instructions
    }
}

/// Parameters of different types.
macro_rules! own {
    ($($v:expr),* $(,)?) => { vec![$($v.to_le_bytes().to_vec()),*] };
}

fn all() -> Vec<Work> {
    let floats = |gpu: &mut Gpu, n: usize, seed: u64| upload(gpu, &noise(n, seed));
    let halves = |gpu: &mut Gpu, n: usize, seed: u64| {
        let bits: Vec<u16> = noise(n, seed).iter().map(|v| half::f16::from_f32(*v).to_bits()).collect();
        upload(gpu, &bits)
    };
    vec![
        Work::new("vector_add", BASIC[0], Gpu::new(), |gpu| {
            let n = 1 << 18;
            own![floats(gpu, n, 1), floats(gpu, n, 2), gpu.alloc(n * 4), n as u32]
        })
        .sized([1 << 11, 1, 1], [128, 1, 1], 0),
        Work::new("tiled_matmul", BASIC[0], Gpu::new(), |gpu| {
            let n = 128;
            own![floats(gpu, n * n, 1), floats(gpu, n * n, 2), gpu.alloc(n * n * 4), n as u32]
        })
        .sized([8, 8, 1], [16, 16, 1], 0),
        Work::new("row_softmax", BASIC[0], Gpu::new(), |gpu| {
            let (rows, cols) = (128, 1000);
            own![floats(gpu, rows * cols, 3), gpu.alloc(rows * cols * 4), cols as u32]
        })
        .sized([128, 1, 1], [128, 1, 1], 16),
        Work::new("philox", BASIC[0], Gpu::new(), |gpu| {
            let n = 1 << 16;
            own![gpu.alloc(n * 16), 1u64, n as u32]
        })
        .sized([1 << 9, 1, 1], [128, 1, 1], 0),
        Work::new("collatz", BASIC[0], Gpu::new(), |gpu| {
            let n = 1 << 13;
            own![gpu.alloc(n * 4), n as u32]
        })
        .sized([1 << 6, 1, 1], [128, 1, 1], 0),
        Work::new("gemm_f16", TENSOR[0], Gpu::new(), |gpu| {
            let n = 256;
            own![
                halves(gpu, n * n, 5),
                halves(gpu, n * n, 6),
                gpu.alloc(n * n * 4),
                n as u32,
                n as u32,
                n as u32
            ]
        })
        .sized([32, 16, 1], [32, 1, 1], 0),
    ]
}

fn throughput(c: &mut Criterion) {
    let mut group = c.benchmark_group("thread-instructions");
    group.sample_size(10);
    for mut work in all() {
        let instructions = work.run();
        group.throughput(Throughput::Elements(instructions));
        group.bench_function(BenchmarkId::from_parameter(work.kernel), |b| b.iter(|| work.run()));
    }
    // The kernels one after the other: equal time for each kind would flatter those that are fast.
    let mut mixture = all();
    let instructions = mixture.iter_mut().map(Work::run).sum();
    group.throughput(Throughput::Elements(instructions));
    group.bench_function("all six", |b| b.iter(|| mixture.iter_mut().map(Work::run).sum::<u64>()));
    group.finish();
}

criterion_group!(benches, throughput);
criterion_main!(benches);
