//! One command of a chore: announced, timed, and its failure named.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

/// The checkout.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The target folder, also when it was moved by `CARGO_TARGET_DIR`.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Where compiled kernels are kept: not in the user's cache, and gone after `cargo clean`.
pub(crate) fn kernel_cache() -> PathBuf {
    target().join("kernel-cache")
}

/// A cargo command in the checkout.
pub(crate) fn cargo(words: &str) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words.split_whitespace()).current_dir(root());
    command
}

/// All packages, with the simulator. The host on burn has its wgpu backend in `cargo xtask burn` only, whose dependencies
/// alone build for as long as everything else.
pub(crate) const EVERYTHING: &str = "--workspace --features advect/ptx-sim";

/// The same with burn's wgpu backend and candle's CUDA, for lints and documents, which generate no code.
pub(crate) const LINTED: &str = "--workspace --features advect/ptx-sim,advect-burn/wgpu,advect-candle/cuda";

/// A program of the workspace, built with the features of [`EVERYTHING`]: those of its package alone would build the
/// library, and much of what it depends on, once more.
pub(crate) fn program(name: &str) -> Result<Command> {
    let mut build = cargo("build --quiet");
    run(build.args(EVERYTHING.split_whitespace()).args(["--bin", name]))?;
    Ok(built(name))
}

/// A program that was built with all others and the tests. Without the tests, whose dependencies want more of some crates,
/// the library would be another one.
pub(crate) fn built(name: &str) -> Command {
    let path = target().join("debug").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let mut command = Command::new(path);
    command.current_dir(root());
    command
}

/// Runs a command that shows its own output; an exit status other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let shown = show(command);
    let status = command.status().with_context(|| format!("`{shown}` could not be started"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Whether a program can be started.
pub(crate) fn has(program: &str, argument: &str) -> bool {
    Command::new(program).arg(argument).output().is_ok_and(|o| o.status.success())
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ")
}

/// The steps of a chore, with how long each took.
#[derive(Default)]
pub(crate) struct Steps(Vec<(String, f64)>);

impl Steps {
    /// Announces and runs one step.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        work().with_context(|| format!("step `{name}`"))?;
        self.0.push((name.to_owned(), start.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Prints the table of times.
    pub(crate) fn summary(&self) {
        println!("\n   seconds  step");
        for (name, seconds) in &self.0 {
            println!("{seconds:10.1}  {name}");
        }
        println!("{:10.1}  all {} steps passed", self.0.iter().map(|s| s.1).sum::<f64>(), self.0.len());
    }
}
