//! The CUDA target: mostly what needs no GPU. What needs NVRTC is skipped, by name, where it is not
//! installed, and fails instead when `ADVECT_NVRTC` says that it is; likewise a GPU and `ADVECT_REQUIRE`.
#![cfg(feature = "cuda")]

use advect::op::Language;
use advect::ops::{Resample, ResampleArgs};
use advect::target::cuda::cache::Cache;
use advect::target::cuda::nvrtc::{Output, Usage, architecture};
use advect::target::cuda::{self, Compiler, Cuda};
use advect::target::presets;
use advect::verify::kernels::{self, Kernel, Make, reached};
use advect::{Device, Dtype, Error, Tensor};
use std::collections::HashSet;

/// The compiler over a cache of its own, if NVRTC is here.
fn compiler(test: &str) -> Option<(Compiler, tempfile::TempDir)> {
    let folder = tempfile::tempdir().unwrap();
    match Compiler::new() {
        Ok(compiler) => Some((compiler.with_cache(Cache::at(folder.path())), folder)),
        Err(error @ Error::Unavailable { .. }) => {
            assert!(std::env::var_os("ADVECT_NVRTC").is_none_or(|v| v.is_empty()), "{error}");
            println!("{test} skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_machine_without_a_gpu_says_so() {
    let devices = match cuda::count() {
        Ok(devices) => devices,
        Err(error) => {
            assert!(matches!(error, Error::Unavailable { target: "cuda", .. }), "{error:?}");
            assert!(error.to_string().contains("use wgpu or the cpu"), "{error}");
            0
        }
    };
    // One past the last is never there.
    let error = Cuda::new(devices).unwrap_err();
    assert!(matches!(error, Error::Unavailable { target: "cuda", .. }), "{error:?}");
}

#[test]
fn presets_are_named_as_nvrtc_names_architectures() {
    let named = presets::cuda().into_iter().map(|caps| match caps.language {
        Language::Cuda { arch } => architecture(arch),
        Language::Wgsl { .. } => panic!("{}", caps.name),
    });
    assert!(named.eq(presets::ARCHITECTURES));
}

/// The first kernel of each entry point, on every architecture.
fn one_of_each_entry() -> Vec<Kernel> {
    let mut seen = HashSet::new();
    let all = reached(&presets::cuda(), None).unwrap();
    all.into_iter().filter(|k| seen.insert((k.device.clone(), k.variant.entry))).collect()
}

#[test]
fn one_kernel_of_each_entry_compiles_for_every_architecture_without_spills() {
    let Some((compiler, _folder)) = compiler("compilation") else { return };
    let kernels = one_of_each_entry();
    assert!(kernels.len() >= 7);
    for (kernel, result) in kernels.iter().zip(kernels::compile(&compiler, &kernels, |_| Make::Cubin, || ()))
    {
        let compiled = result.unwrap_or_else(|e| panic!("{}: {e}", kernel.case));
        assert!(compiled.artifact.bytes.starts_with(b"\x7fELF"), "{}", kernel.variant.entry);
        let usage = compiled.usage.unwrap();
        assert!((1..=255).contains(&usage.registers), "{usage:?}");
        assert_eq!(usage.spill_bytes, 0, "{} on {}", kernel.variant.entry, kernel.device);
    }
}

#[test]
fn ptx_names_the_entry_and_the_target() {
    let Some((compiler, _folder)) = compiler("PTX") else { return };
    let kernels: Vec<_> = one_of_each_entry().into_iter().filter(|k| k.device == "sm_80").collect();
    for (kernel, result) in kernels.iter().zip(kernels::compile(&compiler, &kernels, |_| Make::Ptx, || ())) {
        let text = String::from_utf8(result.unwrap().artifact.bytes).unwrap();
        assert!(text.contains(&format!(".entry {}(", kernel.variant.entry)), "{}", kernel.case);
        assert!(text.contains(".target sm_80") && !text.ends_with('\0'));
    }
}

#[test]
fn machine_code_leaves_the_ptx_of_a_simulator() {
    let Some((compiler, folder)) = compiler("both at once") else { return };
    let kernels: Vec<_> = one_of_each_entry().into_iter().filter(|k| k.device == "sm_100").take(3).collect();
    let all = |make| kernels::compile(&compiler, &kernels, |_| make, || ()).into_iter().map(Result::unwrap);
    let alone: Vec<_> = all(Make::Ptx).map(|c| c.artifact.bytes).collect();
    std::fs::remove_dir_all(folder.path()).unwrap();
    for compiled in all(Make::Both) {
        assert!(compiled.artifact.bytes.starts_with(b"\x7fELF") && compiled.usage.is_some());
    }
    let files = || std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(files(), 2 * kernels.len());
    assert!(all(Make::Ptx).map(|c| c.artifact.bytes).eq(alone), "not the PTX that is made alone");
    assert_eq!(files(), 2 * kernels.len(), "PTX was compiled again");
}

const GOOD: &str = "extern \"C\" __global__ void good(float* x) { x[threadIdx.x] = 1.0f; }";

#[test]
fn a_warm_start_compiles_nothing() {
    let Some((compiler, folder)) = compiler("the cache") else { return };
    let compile = |output| compiler.compile("test", GOOD, "80", output).unwrap();
    let (cubin, ptx) = (compile(Output::Cubin), compile(Output::Ptx));
    assert!(cubin.bytes.starts_with(b"\x7fELF") && ptx.bytes.is_ascii());
    let files = || {
        let mut all: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|f| (f.as_ref().unwrap().path(), f.unwrap().metadata().unwrap().modified().unwrap()))
            .collect();
        all.sort();
        all
    };
    let before = files();
    assert_eq!(before.len(), 2);
    // The log says how long the compilation took, so a second one would differ.
    assert!(compile(Output::Cubin) == cubin && compile(Output::Ptx) == ptx);
    assert_eq!(files(), before, "an entry was written again");
    assert!(Usage::parse(&cubin.log, "good").is_some(), "the log is part of the entry");
    for (file, _) in &before {
        std::fs::write(file, &std::fs::read(file).unwrap()[..60]).unwrap();
    }
    assert!(compile(Output::Cubin).bytes == cubin.bytes, "a damaged entry is compiled again");
}

#[test]
fn a_kernel_that_does_not_compile_keeps_the_log() {
    let Some((compiler, folder)) = compiler("compile errors") else { return };
    let broken = GOOD.replace("1.0f", "undeclared");
    let log = |source: &str, arch: &str| match compiler.compile("test", source, arch, Output::Cubin) {
        Err(Error::Compile { op: "test", language: "CUDA", target, log }) => {
            assert_eq!(target, format!("sm_{arch}"));
            log
        }
        other => panic!("{other:?}"),
    };
    assert!(log(&broken, "80").contains("undeclared"));
    // Only ptxas sees what is wrong with inline PTX.
    let bad_asm = GOOD.replace("x[", "asm(\"no.such.instruction;\"); x[");
    assert!(log(&bad_asm, "90a").to_lowercase().contains("ptx"), "{}", log(&bad_asm, "90a"));
    assert!(log(GOOD, "42").contains("arch"), "{}", log(GOOD, "42"));
    assert!(log("\0", "80").contains("nul"), "{}", log("\0", "80"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "failures are not kept");
}

#[test]
fn a_gpu_without_room_says_how_much_was_wanted() {
    let device = match Device::cuda(0) {
        Ok(device) => device,
        Err(why) => {
            assert!(!advect::verify::required().iter().any(|face| face == "cuda"), "{why}");
            return println!("skipped: {why}");
        }
    };
    let error = device.alloc(1 << 50).unwrap_err();
    assert!(
        matches!(error, Error::Driver { .. }) && error.to_string().contains(&(1u64 << 50).to_string()),
        "{error}"
    );
    // The device is none the worse for it.
    let ones = Tensor::from_f32(&device, Dtype::F32, &[1, 1, 2, 2], &[1.0; 4]).unwrap();
    let mut out = Tensor::new(&device, Dtype::F32, &[1, 1, 4, 4]).unwrap();
    device.run(&Resample::Up2, ResampleArgs { x: ones.view(), out: out.view_mut() }).unwrap();
    assert_eq!(out.to_f32(&device).unwrap(), [1.0; 16]);
}

/// Two handles of one GPU have streams of their own, and each its memory in the order of its stream.
#[test]
fn memory_of_another_handle_is_refused() {
    let cuda = match Cuda::new(0) {
        Ok(cuda) => cuda,
        Err(why) => {
            assert!(!advect::verify::required().iter().any(|face| face == "cuda"), "{why}");
            return println!("skipped: {why}");
        }
    };
    let other = Cuda::new(0).unwrap();
    assert_eq!(cuda.context(), other.context());
    let mut buffer = cuda.alloc(4).unwrap();
    for error in
        [other.write(&mut buffer, &[1; 4]).unwrap_err(), other.read(&buffer, &mut [0; 4]).unwrap_err()]
    {
        assert!(error.to_string().contains("`buffer`: wanted memory of this device"), "{error}");
    }
    cuda.write(&mut buffer, &[1; 4]).unwrap();
}
