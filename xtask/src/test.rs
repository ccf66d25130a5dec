//! Everything that must hold before a commit lands: `cargo xtask test`.

use crate::kernels;
use crate::setup::{self, Found};
use crate::step::{self, Steps, cargo, run};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// The feature sets that must build, lint clean and test: both, each alone, none.
const FEATURES: [(&str, &str); 4] = [
    ("default features and the simulator", "--workspace --features advect/ptx-sim"),
    ("no features", "--package advect --no-default-features"),
    ("cuda alone", "--package advect --no-default-features --features cuda"),
    ("wgpu alone", "--package advect --no-default-features --features wgpu"),
];

/// Sets up and runs every step; stops at the first that fails.
pub(crate) fn test() -> Result<()> {
    let mut steps = Steps::default();
    let mut found = None;
    steps.step("set-up", || {
        found = Some(setup::setup()?);
        Ok(())
    })?;
    let Some(found) = found else { return Ok(()) };
    steps.step("format", || run(&mut cargo("fmt --all --check")))?;
    for (name, flags) in FEATURES {
        steps.step(&format!("lints: {name}"), || {
            run(cargo("clippy --quiet --all-targets")
                .args(flags.split_whitespace())
                .args(["--", "-D", "warnings"]))
        })?;
    }
    // One build for both runs: everything on the CPU, SwiftShader and the PTX simulator; then the devices'
    // tests again on lavapipe, which has f16 and wider subgroups.
    let everything = "test --quiet --workspace --features advect/ptx-sim";
    steps.step("tests: CPU, SwiftShader, PTX simulator", || {
        let faces = "cpu,wgpu,ptx-sim";
        run(&mut on(cargo(everything), &found, &found.swiftshader, faces))
    })?;
    steps.step("tests: lavapipe", || {
        let mut command = cargo(everything);
        for name in device_tests()? {
            command.args(["--test", &name]);
        }
        run(&mut on(command, &found, &found.lavapipe, "wgpu"))
    })?;
    for (name, flags) in &FEATURES[1..] {
        let faces = if flags.contains("wgpu") { "cpu,wgpu" } else { "cpu" };
        steps.step(&format!("tests: {name}"), || {
            let mut command = cargo("test --quiet --test contract --test harness --test resample");
            command.args(flags.split_whitespace());
            if flags.ends_with("cuda") {
                command.args(["--test", "cuda"]);
            }
            run(&mut on(command, &found, &found.swiftshader, faces))
        })?;
    }
    steps.step("host: an engine on wgpu", || {
        let run_it = cargo("run --quiet --package advect-host-wgpu-engine");
        run(&mut on(run_it, &found, &found.swiftshader, "wgpu"))
    })?;
    steps.step("host: CUDA graphs", || {
        let run_it = cargo("run --quiet --package advect-host-cuda-graph");
        // It says that it is skipped where there is no GPU.
        run(on(run_it, &found, &found.swiftshader, "cuda").env_remove("ADVECT_REQUIRE"))
    })?;
    steps.step("docs", || {
        run(cargo("doc --quiet --no-deps --workspace").env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    steps.step("kernel matrix", || kernels::kernels(&found.nvrtc, false))?;
    steps.summary();
    Ok(())
}

/// A test command on one Vulkan driver and on these faces, of which none may be missing.
fn on(mut command: Command, found: &Found, driver: &Path, faces: &str) -> Command {
    command
        .env("VK_ICD_FILENAMES", driver)
        // Mesa's device-select layer complains where there is no desktop.
        .env("NODEVICE_SELECT", "1")
        .env("WGPU_BACKEND", "vulkan")
        .env("ADVECT_NVRTC", &found.nvrtc)
        .env("ADVECT_CACHE_DIR", step::kernel_cache())
        .env("ADVECT_FACES", faces)
        .env("ADVECT_REQUIRE", faces);
    command
}

/// The tests that run on devices: one per op, and that of the wgpu target. They are found, not listed, so
/// that a new op is not forgotten.
fn device_tests() -> Result<Vec<String>> {
    let mut names = vec!["wgpu".to_owned()];
    for file in std::fs::read_dir(step::root().join("src/ops"))? {
        let path = file?.path();
        let Some(stem) = path.file_stem().map(|s| s.to_string_lossy().into_owned()) else { continue };
        if step::root().join("tests").join(format!("{stem}.rs")).exists() {
            names.push(stem);
        }
    }
    names.sort();
    Ok(names)
}
