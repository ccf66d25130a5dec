//! Everything that must hold before a commit lands: `cargo xtask test`.

use crate::candle::Compiler;
use crate::setup::{self, Found};
use crate::step::{self, EVERYTHING, LINTED, Steps, cargo, run};
use crate::{kernels, licences, package};
use anyhow::{Result, ensure};
use std::path::Path;
use std::process::Command;

const NO_FEATURES: &str = "--package advect --package advect-capi --no-default-features";

/// The feature sets that must lint clean, with all targets: all, each alone, none.
const FEATURES: [(&str, &str); 5] = [
    ("default features, the simulator, burn on wgpu, candle on CUDA", LINTED),
    ("no features", NO_FEATURES),
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
    let compiler = Compiler::new()?;
    for (name, flags) in FEATURES {
        steps.step(&format!("lints: {name}"), || {
            let mut clippy = compiler.find(cargo("clippy --quiet --all-targets"));
            run(clippy.args(flags.split_whitespace()).args(["--", "-D", "warnings"]))
        })?;
    }
    // Of what the lints have checked, so that dependencies are not checked once more.
    steps.step("docs", || {
        let mut doc = compiler.find(cargo("doc --quiet --no-deps"));
        run(doc.args(LINTED.split_whitespace()).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    compiler.forget()?;
    steps.step("build", || {
        let mut build = cargo("build --quiet --bins --tests");
        run(build.args(EVERYTHING.split_whitespace()))
    })?;
    // On all cores, and before the tests, which would compile one kernel after the other what they execute.
    steps.step("kernel matrix", || {
        kernels::kernels(step::built("advect"), &found.nvrtc, &["--cover", "--simulated"])
    })?;
    let everything = || {
        let mut command = cargo("test --quiet");
        command.args(EVERYTHING.split_whitespace());
        command
    };
    // Both drivers in one process: lavapipe has f16 and wider subgroups, SwiftShader strict limits.
    steps.step("tests: CPU, SwiftShader, lavapipe, PTX simulator", || {
        let drivers = std::env::join_paths([&found.swiftshader, &found.lavapipe])?;
        let mut command = on(everything(), &found, Path::new(&drivers), "cpu,wgpu,ptx-sim");
        run(command.env("ADVECT_ADAPTERS", "2"))
    })?;
    steps.step("tests: the wgpu target on lavapipe", || {
        let mut command = everything();
        command.args(["--test", "wgpu"]);
        run(&mut on(command, &found, &found.lavapipe, "wgpu"))
    })?;
    // What differs between feature sets is what is compiled, which the lints have seen; the smallest also runs.
    steps.step("tests: no features", || {
        let mut command = cargo("test --quiet --test contract --test harness --test resample");
        // They compute little, and the optimizer would take longer than all that these tests do.
        command.args(["--config", "profile.dev.package.advect.opt-level=0"]);
        command.args(NO_FEATURES.split_whitespace());
        run(&mut on(command, &found, &found.swiftshader, "cpu"))
    })?;
    steps.step("host: an engine on wgpu", || {
        let engine = step::built("advect-host-wgpu-engine");
        run(&mut on(engine, &found, &found.swiftshader, "wgpu"))
    })?;
    steps.step("host: CUDA graphs", || {
        let graph = step::built("advect-host-cuda-graph");
        // It says that it is skipped where there is no GPU.
        run(on(graph, &found, &found.swiftshader, "cuda").env_remove("ADVECT_REQUIRE"))
    })?;
    steps.step("CUDA device", || cuda(&found, everything))?;
    steps.step("minimum Rust version", minimum_rust)?;
    steps.step("package", || package::package(false))?;
    steps.summary();
    Ok(())
}

/// Where there is an NVIDIA GPU, everything once more on it, and candle's kernels beside ours where they can be compiled.
fn cuda(found: &Found, everything: impl Fn() -> Command) -> Result<()> {
    let devices = step::built("advect").arg("devices").output()?;
    ensure!(
        devices.status.success(),
        "`advect devices` failed: {}",
        String::from_utf8_lossy(&devices.stderr)
    );
    if !String::from_utf8_lossy(&devices.stdout).lines().any(|line| line.starts_with("cuda:")) {
        println!("skipped: there is no CUDA device");
        return Ok(());
    }
    let on_cuda = |command| on(command, found, &found.swiftshader, "cpu,cuda");
    run(&mut on_cuda(everything()))?;
    if !step::has("nvcc", "--version") {
        println!("candle on CUDA: skipped, its kernels want nvcc");
        return Ok(());
    }
    run(&mut on_cuda(cargo("test --quiet --package advect-candle --features cuda")))
}

/// The host on burn with its wgpu backend: lints, tests on SwiftShader, and its example.
pub(crate) fn burn() -> Result<()> {
    let found = setup::setup()?;
    let mut steps = Steps::default();
    let burn = |words: &str| {
        let mut command = cargo(words);
        command.args(["--quiet", "--package", "advect-burn", "--features", "wgpu"]);
        on(command, &found, &found.swiftshader, "cpu,wgpu")
    };
    steps.step("lints", || run(burn("clippy --all-targets").args(["--", "-D", "warnings"])))?;
    steps.step("tests", || run(&mut burn("test")))?;
    steps.step("example", || run(&mut burn("run --example denoise")))?;
    steps.summary();
    Ok(())
}

/// A test command on a Vulkan driver, or a list of them, and on these faces, of which none may be missing.
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
        // The C and Python programs of `hosts/`, which the tests of `capi` compile and run, and what else the caller says.
        .env("ADVECT_REQUIRE_HOSTS", std::env::var("ADVECT_REQUIRE_HOSTS").unwrap_or("c,python".into()))
        .env("ADVECT_NUMPY", found.numpy.as_deref().unwrap_or(Path::new("")));
    command
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
    command.args([&toolchain, "check", "--quiet", "--all-targets"]).args(EVERYTHING.split_whitespace());
    run(command.current_dir(step::root()))
}
