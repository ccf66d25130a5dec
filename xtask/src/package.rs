//! The crates as they would be published.

use crate::step::{self, cargo, run};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a registry takes at most is 10 MiB; this leaves room.
const LARGEST: u64 = 8_000_000;

/// Packs both crates, and with `whole` builds and tests what was packed, by itself.
pub(crate) fn package(whole: bool) -> Result<()> {
    // What is packed is the checkout as it is, so that this can be run before a commit.
    run(&mut cargo("package --quiet --allow-dirty --no-verify --package ptx-sim --package advect"))?;
    let [simulator, advect] = ["ptx-sim", "advect"].map(crate_file);
    for file in [&simulator?, &advect?] {
        let bytes = file.metadata()?.len();
        println!("{}: {bytes} bytes", file.display());
        if bytes > LARGEST {
            bail!("{} has more than {LARGEST} bytes", file.display());
        }
        if whole {
            unpack(file)?;
        }
    }
    if whole {
        test()?;
    }
    Ok(())
}

fn version() -> &'static str {
    env!("CARGO_PKG_VERSION")
}

fn crate_file(name: &str) -> Result<PathBuf> {
    let file = step::target().join(format!("package/{name}-{}.crate", version()));
    file.exists().then_some(file).with_context(|| format!("cargo package made no {name}"))
}

fn unpacked() -> PathBuf {
    step::target().join("unpacked")
}

fn unpack(file: &Path) -> Result<()> {
    std::fs::create_dir_all(unpacked())?;
    run(Command::new("tar").arg("xzf").arg(file).current_dir(unpacked()))?;
    let manifest = unpacked().join(file.file_stem().unwrap_or_default()).join("Cargo.toml");
    // It stands by itself: cargo would take it for a part of the workspace that the target folder is in.
    let text = std::fs::read_to_string(&manifest).with_context(|| format!("no {}", manifest.display()))?;
    std::fs::write(manifest, text + "\n[workspace]\n").context("the packed manifest cannot be changed")
}

/// The tests of the packed crate, with the packed simulator in the place of the registry's, outside of the workspace.
fn test() -> Result<()> {
    let patch = format!("patch.crates-io.ptx-sim.path=\"../ptx-sim-{}\"", version());
    let mut command = cargo("test --quiet --config");
    command
        .arg(patch)
        .current_dir(unpacked().join(format!("advect-{}", version())))
        .env("CARGO_TARGET_DIR", step::target().join("unpacked-target"));
    run(&mut command)
}
