//! Shared by the tests: fixtures in both dialects, and arrays in simulated memory.
#![allow(dead_code, unreachable_pub, clippy::too_many_arguments, reason = "each test binary uses its part")]

use ptx_sim::{Error, Finding, FindingKind, Gpu, Launch, Module, Report, Schedule};

pub const BASIC: [&str; 2] =
    [include_str!("../ptx/basic.sm_80.ptx"), include_str!("../ptx/basic.sm_100.ptx")];
pub const TENSOR: [&str; 2] =
    [include_str!("../ptx/tensor.sm_80.ptx"), include_str!("../ptx/tensor.sm_100.ptx")];

pub const SCHEDULES: [Schedule; 4] =
    [Schedule::FirstWarpFirst, Schedule::LastWarpFirst, Schedule::Random(1), Schedule::Random(2)];

pub trait Scalar: Copy {
    const SIZE: usize;
    fn put(self, out: &mut Vec<u8>);
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! scalar {
    ($($t:ty),*) => {$(
        impl Scalar for $t {
            const SIZE: usize = size_of::<$t>();
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                Self::from_le_bytes(bytes.try_into().unwrap())
            }
        }
    )*};
}
scalar!(u8, u16, u32, u64, i32, i64, f32, f64);

pub fn upload<T: Scalar>(gpu: &mut Gpu, values: &[T]) -> u64 {
    let mut bytes = Vec::new();
    values.iter().for_each(|v| v.put(&mut bytes));
    let p = gpu.alloc(bytes.len());
    gpu.write(p, &bytes).unwrap();
    p
}

pub fn download<T: Scalar>(gpu: &Gpu, p: u64, n: usize) -> Vec<T> {
    let mut bytes = vec![0; n * T::SIZE];
    gpu.read(p, &mut bytes).unwrap();
    bytes.chunks(T::SIZE).map(T::get).collect()
}

/// Launch parameters of different types as raw bytes.
#[macro_export]
macro_rules! params {
    ($($v:expr),* $(,)?) => { &[$(&$v.to_le_bytes()[..]),*] };
}

pub fn run(
    module: &Module,
    gpu: &mut Gpu,
    kernel: &str,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    params: &[&[u8]],
    schedule: Schedule,
) -> Result<Report, Error> {
    let launch = Launch { grid, block, shared_bytes: shared, params, schedule, ..Launch::default() };
    module.launch(gpu, kernel, &launch)
}

pub fn findings(result: Result<Report, Error>) -> Vec<Finding> {
    match result {
        Err(Error::Findings(list)) => list,
        other => panic!("expected findings, got {other:?}"),
    }
}

pub fn kinds(list: &[Finding]) -> Vec<FindingKind> {
    list.iter().map(|f| f.kind).collect()
}

/// Repeatable numbers in -1..1.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}
pub mod lab;
pub mod round;
