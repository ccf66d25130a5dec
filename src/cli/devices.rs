//! `advect devices`: what is here, with what it can do.

use advect::Isa;
use anyhow::Result;
use std::io::Write;
use std::process::ExitCode;

pub(crate) fn run() -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let sets: Vec<&str> = Isa::available().into_iter().rev().map(Isa::name).collect();
    let threads = advect::Cpu::new()?.threads();
    writeln!(out, "cpu      {threads} threads; instruction sets, the first is used: {}", sets.join(", "))?;
    wgpu(&mut out)?;
    cuda(&mut out)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "wgpu")]
fn wgpu(out: &mut impl Write) -> Result<()> {
    use ::wgpu::Features;
    let adapters = advect::target::wgpu::adapters();
    if adapters.is_empty() {
        let remedy = "install a driver for your GPU, or mesa-vulkan-drivers for a software adapter";
        writeln!(out, "wgpu     no adapter: {remedy}")?;
    }
    for (index, adapter) in adapters.iter().enumerate() {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let has = |feature, yes: &str, no: &str| if features.contains(feature) { yes } else { no }.to_owned();
        writeln!(out, "wgpu:{index:<3} {} ({}, {:?})", info.name, info.backend, info.device_type)?;
        if !info.driver_info.is_empty() {
            writeln!(out, "         driver {} {}", info.driver, info.driver_info)?;
        }
        let subgroups = match features.contains(Features::SUBGROUP) {
            true => format!("subgroups of {} to {}", info.subgroup_min_size, info.subgroup_max_size),
            false => "no subgroups".into(),
        };
        writeln!(
            out,
            "         {}, {subgroups}, {}",
            has(Features::SHADER_F16, "f16 arithmetic", "no f16 arithmetic (packed f16 storage works)"),
            has(Features::IMMEDIATES, "immediates", "no immediates"),
        )?;
        writeln!(
            out,
            "         workgroup {} threads, {} KiB; {} storage buffers of {} MiB, offsets aligned to {} bytes",
            limits.max_compute_invocations_per_workgroup,
            limits.max_compute_workgroup_storage_size >> 10,
            limits.max_storage_buffers_per_shader_stage,
            limits.max_storage_buffer_binding_size >> 20,
            limits.min_storage_buffer_offset_alignment,
        )?;
    }
    Ok(())
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(out: &mut impl Write) -> Result<()> {
    Ok(writeln!(out, "wgpu     built without; build with `--features wgpu`")?)
}

#[cfg(feature = "cuda")]
fn cuda(out: &mut impl Write) -> Result<()> {
    use advect::target::cuda::{Compiler, Cuda, count};
    match Compiler::new() {
        Ok(compiler) => {
            let (major, minor) = compiler.nvrtc().version();
            writeln!(out, "nvrtc    {major}.{minor}, which compiles the CUDA kernels")?;
        }
        Err(why) => writeln!(out, "nvrtc    {why}")?,
    }
    match count() {
        Ok(0) => writeln!(out, "cuda     no NVIDIA GPU")?,
        Err(why) => writeln!(out, "cuda     {why}")?,
        Ok(n) => {
            for ordinal in 0..n {
                match Cuda::new(ordinal) {
                    Err(why) => writeln!(out, "cuda:{ordinal:<3} {why}")?,
                    Ok(cuda) => {
                        let caps = cuda.caps();
                        writeln!(out, "cuda:{ordinal:<3} {}", caps.name)?;
                        writeln!(
                            out,
                            "         block {} threads, {} KiB of shared memory",
                            caps.max_threads,
                            caps.shared_bytes >> 10
                        )?;
                    }
                }
            }
        }
    }
    Ok(())
}

#[cfg(not(feature = "cuda"))]
fn cuda(out: &mut impl Write) -> Result<()> {
    Ok(writeln!(out, "cuda     built without; build with `--features cuda`")?)
}
