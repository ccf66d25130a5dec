//! What devices can do, written down, so that planning and kernel text can be checked without them.

use crate::op::{Caps, Language};

/// WGSL devices at both ends: the least that WebGPU promises, and a desktop GPU with every extension.
pub fn wgsl() -> Vec<Caps> {
    let least = Caps {
        name: "WebGPU's least limits".into(),
        language: Language::Wgsl { f16: false, subgroups: false, immediates: 0 },
        shared_bytes: 16 << 10,
        max_threads: 256,
        max_block: [256, 256, 64],
        max_grid: [65535; 3],
        subgroup: [1, 1],
        multiprocessors: 1,
        max_operands: 8,
        max_binding: 128 << 20,
    };
    let desktop = Caps {
        name: "a desktop GPU".into(),
        language: Language::Wgsl { f16: true, subgroups: true, immediates: 256 },
        shared_bytes: 48 << 10,
        max_threads: 1024,
        max_block: [1024, 1024, 64],
        max_grid: [65535; 3],
        subgroup: [32, 32],
        multiprocessors: 1,
        max_operands: 32,
        max_binding: 2 << 30,
    };
    let f16_alone = Caps {
        name: "an adapter with f16 and without subgroups".into(),
        language: Language::Wgsl { f16: true, subgroups: false, immediates: 128 },
        shared_bytes: 32 << 10,
        subgroup: [1, 1],
        max_operands: 16,
        ..desktop.clone()
    };
    let subgroups_alone = Caps {
        name: "an adapter with narrow subgroups and without f16".into(),
        language: Language::Wgsl { f16: false, subgroups: true, immediates: 128 },
        shared_bytes: 32 << 10,
        max_threads: 256,
        subgroup: [4, 4],
        max_operands: 10,
        ..desktop.clone()
    };
    vec![least, desktop, f16_alone, subgroups_alone]
}

/// The architectures that every CUDA kernel must compile for, as NVRTC names them (`sm_90a`).
pub const ARCHITECTURES: [&str; 7] = ["75", "80", "86", "89", "90a", "100a", "120a"];

/// The architectures that the simulators of the tests execute: every CUDA code path, and both dialects of PTX. sm_75 has no
/// tensor-core path, sm_80 typed PTX, sm_100 untyped PTX.
pub const SIMULATED: [u32; 3] = [75, 80, 100];

/// The one of [`SIMULATED`] that executes every case; the others leave out most of what it executes as well.
pub const SIMULATED_WHOLE: u32 = 80;

/// A CUDA device of an architecture (75, 80, ..): limits from the CUDA C++ Programming Guide, "Technical
/// Specifications per Compute Capability"; as many multiprocessors as the smallest common ones have, so that small cases
/// reach large tiles.
pub fn cuda_for(arch: u32) -> Caps {
    let shared_kib = match arch {
        75 => 64,
        80 => 163,
        90 | 100 => 227,
        _ => 99,
    };
    Caps {
        name: format!("sm_{arch}"),
        language: Language::Cuda { arch },
        shared_bytes: shared_kib << 10,
        max_threads: 1024,
        max_block: [1024, 1024, 64],
        max_grid: [i32::MAX as u32, 65535, 65535],
        subgroup: [32, 32],
        multiprocessors: 20,
        max_operands: u32::MAX,
        max_binding: u64::MAX,
    }
}

/// One CUDA device of each of [`ARCHITECTURES`].
pub fn cuda() -> Vec<Caps> {
    [75, 80, 86, 89, 90, 100, 120].map(cuda_for).to_vec()
}
