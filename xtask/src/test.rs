//! Everything that must hold before a commit lands: `cargo xtask test`.

use crate::setup::{self, Found};
use crate::step::{self, EVERYTHING, Steps, cargo, run};
use crate::{kernels, licences, package};
use anyhow::Result;
use std::path::Path;
use std::process::Command;

/// The feature sets that must build, lint clean and test: all, each alone, none.
const FEATURES: [(&str, &str); 5] = [
    ("default features and the simulator", EVERYTHING),
    ("no features", "--package advect --package advect-capi --no-default-features"),
    ("the command line alone", "--package advect --no-default-features --features cli"),
    ("cuda alone", "--package advect --package advect-capi --no-default-features --features cuda"),
    ("wgpu alone", "--package advect --package advect-capi --no-default-features --features wgpu"),
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
    steps.step("licences", licences::licences)?;
    for (name, flags) in FEATURES {
        steps.step(&format!("lints: {name}"), || {
            run(cargo("clippy --quiet --all-targets")
                .args(flags.split_whitespace())
                .args(["--", "-D", "warnings"]))
        })?;
    }
    steps.step("build", || {
        let mut build = cargo("build --quiet --bins --tests");
        run(build.args(EVERYTHING.split_whitespace()))
    })?;
    steps.step("PTX for the simulator", || kernels::simulated(step::built("advect"), &found.nvrtc))?;
    // One build for both runs: everything on the CPU, SwiftShader and the PTX simulator; then the devices'
    // tests again on lavapipe, which has f16 and wider subgroups. Of bf16 no WGSL knows: it is the same code on both.
    let everything = || {
        let mut command = cargo("test --quiet");
        command.args(EVERYTHING.split_whitespace());
        command
    };
    steps.step("tests: CPU, SwiftShader, PTX simulator", || {
        let faces = "cpu,wgpu,ptx-sim";
        run(&mut on(everything(), &found, &found.swiftshader, faces))
    })?;
    steps.step("tests: lavapipe", || {
        let mut command = everything();
        for name in device_tests()? {
            command.args(["--test", &name]);
        }
        run(on(command, &found, &found.lavapipe, "wgpu").env("ADVECT_DTYPES", "f32,f16"))
    })?;
    // The program alone has the library of no features, which is tested as that.
    for (name, flags) in FEATURES[1..].iter().filter(|(_, flags)| !flags.ends_with("cli")) {
        let faces = if flags.contains("wgpu") { "cpu,wgpu" } else { "cpu" };
        steps.step(&format!("tests: {name}"), || {
            let mut command = cargo("test --quiet --test contract --test harness --test resample");
            // They compute little, and the optimizer would take longer than all that these tests do.
            command.args(["--config", "profile.dev.package.advect.opt-level=0"]);
            command.args(flags.split_whitespace());
            if flags.ends_with("cuda") {
                command.args(["--test", "cuda"]);
            }
            run(&mut on(command, &found, &found.swiftshader, faces))
        })?;
    }
    steps.step("host: an engine on wgpu", || {
        let engine = step::built("advect-host-wgpu-engine");
        run(&mut on(engine, &found, &found.swiftshader, "wgpu"))
    })?;
    steps.step("host: CUDA graphs", || {
        let graph = step::built("advect-host-cuda-graph");
        // It says that it is skipped where there is no GPU.
        run(on(graph, &found, &found.swiftshader, "cuda").env_remove("ADVECT_REQUIRE"))
    })?;
    steps.step("docs", || {
        run(cargo("doc --quiet --no-deps --workspace --exclude advect-burn")
            .env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    steps.step("minimum Rust version", minimum_rust)?;
    steps.step("package", || package::package(false))?;
    steps.step("kernel matrix", || kernels::kernels(step::built("advect"), &found.nvrtc, false))?;
    steps.summary();
    Ok(())
}

/// The host on burn: lints, tests on SwiftShader, and its example.
pub(crate) fn burn() -> Result<()> {
    let found = setup::setup()?;
    let mut steps = Steps::default();
    let burn = |words: &str| {
        let mut command = cargo(words);
        command.args(["--quiet", "--package", "advect-burn"]);
        on(command, &found, &found.swiftshader, "cpu,wgpu")
    };
    steps.step("lints", || run(burn("clippy --all-targets").args(["--", "-D", "warnings"])))?;
    steps.step("tests", || run(&mut burn("test")))?;
    steps.step("example", || run(&mut burn("run --example denoise")))?;
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
        .env("ADVECT_REQUIRE", faces)
        // The C and Python programs of `hosts/`, which the tests of `capi` compile and run.
        .env("ADVECT_REQUIRE_HOSTS", "c,python")
        .env("ADVECT_NUMPY", found.numpy.as_deref().unwrap_or(Path::new("")));
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

/// The oldest Rust that is promised checks everything, unless it is the one that has just done so.
fn minimum_rust() -> Result<()> {
    let promised = env!("CARGO_PKG_RUST_VERSION");
    let output = Command::new("rustc").arg("--version").output()?;
    let active = String::from_utf8_lossy(&output.stdout).into_owned();
    let active = active.split_whitespace().nth(1).unwrap_or_default();
    if active.starts_with(promised) {
        println!("this is Rust {active}: all steps ran on it");
        return Ok(());
    }
    let toolchain = format!("+{promised}");
    if !Command::new("cargo").args([&toolchain, "--version"]).output().is_ok_and(|o| o.status.success()) {
        println!("skipped: `rustup toolchain install {promised}` gets the oldest Rust that is promised");
        return Ok(());
    }
    let mut command = Command::new("cargo");
    command.args([&toolchain, "check", "--quiet", "--package", "advect", "--all-features", "--all-targets"]);
    run(command.current_dir(step::root()))
}
