//! What the tests need beyond Rust: two software Vulkan drivers, NVRTC, and NumPy for the Python program.
//!
//! Drivers come from the system's packages, where this may install them. NVRTC comes as one wheel from
//! PyPI, unpacked into the target folder; it is NVIDIA's, under NVIDIA's licence, and never committed. NumPy
//! comes in the same way, where Python has none.

use crate::step;
use anyhow::{Context, Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of NVRTC that the compile matrix was last checked with.
const NVRTC_WHEEL: &str = "nvidia-cuda-nvrtc==13.5.37";

/// The oldest NumPy whose `from_dlpack` knows version 1 of DLPack; pip picks the newest for its Python.
const NUMPY_WHEEL: &str = "numpy>=2.1";

/// Mesa's software driver.
const LAVAPIPE: &[&str] = &[
    "/usr/share/vulkan/icd.d/lvp_icd.x86_64.json",
    "/usr/share/vulkan/icd.d/lvp_icd.aarch64.json",
    "/usr/share/vulkan/icd.d/lvp_icd.json",
];

/// Google's software driver, which Debian ships inside Chromium.
const SWIFTSHADER: &[&str] =
    &["/usr/lib/chromium/vk_swiftshader_icd.json", "/usr/lib64/chromium-browser/vk_swiftshader_icd.json"];

/// What is there now.
pub(crate) struct Found {
    /// The driver manifest of lavapipe.
    pub(crate) lavapipe: PathBuf,
    /// The driver manifest of SwiftShader.
    pub(crate) swiftshader: PathBuf,
    /// The folder with `libnvrtc.so`.
    pub(crate) nvrtc: PathBuf,
    /// The folder with NumPy; none where Python has its own.
    pub(crate) numpy: Option<PathBuf>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "lavapipe     {}", self.lavapipe.display())?;
        writeln!(f, "SwiftShader  {}", self.swiftshader.display())?;
        writeln!(f, "NVRTC        {}", self.nvrtc.display())?;
        let numpy = self.numpy.as_ref().map(|folder| folder.display().to_string());
        write!(f, "NumPy        {}", numpy.as_deref().unwrap_or("Python's own"))
    }
}

/// Finds or installs everything.
pub(crate) fn setup() -> Result<Found> {
    Ok(Found {
        lavapipe: driver(LAVAPIPE, &["mesa-vulkan-drivers", "libvulkan1"])?,
        swiftshader: driver(SWIFTSHADER, &["chromium", "libvulkan1"])?,
        nvrtc: nvrtc()?,
        numpy: numpy()?,
    })
}

fn first(paths: &[&str]) -> Option<PathBuf> {
    paths.iter().map(PathBuf::from).find(|p| p.exists())
}

/// A Vulkan driver's manifest, installing `packages` where apt is there and this runs as root.
fn driver(manifests: &[&str], packages: &[&str]) -> Result<PathBuf> {
    if let Some(found) = first(manifests) {
        return Ok(found);
    }
    let wanted = packages.join(" ");
    if !(step::has("apt-get", "--version") && is_root()) {
        bail!(
            "a Vulkan driver is missing: install the packages {wanted} (Debian's names), for example with `sudo apt-get install {wanted}`"
        );
    }
    println!("installing {wanted}");
    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        step::run(command.args(words).env("DEBIAN_FRONTEND", "noninteractive"))
    };
    apt(&["update", "-qq"])?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(packages);
    apt(&install)?;
    first(manifests).with_context(|| format!("{wanted} installed, yet none of {manifests:?} is there"))
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.starts_with(b"0\n"))
}

/// The folder with NVRTC: the one that `ADVECT_NVRTC` names, or the wheel unpacked into the target folder.
pub(crate) fn nvrtc() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("ADVECT_NVRTC") {
        return Ok(PathBuf::from(given));
    }
    let folder = step::target().join("nvrtc");
    let library = folder.join("nvidia/cu13/lib");
    if library.join("libnvrtc.so.13").exists() {
        return Ok(library);
    }
    if !step::has("python3", "--version") {
        bail!(
            "NVRTC is fetched with Python: install the packages python3 and python3-pip, or set ADVECT_NVRTC to the folder that holds libnvrtc.so"
        );
    }
    println!("fetching {NVRTC_WHEEL} (60 MB, under NVIDIA's licence) into {}", folder.display());
    let remedy = "Or set ADVECT_NVRTC to a folder that holds libnvrtc.so";
    fetch(NVRTC_WHEEL, &folder, remedy)?;
    // The last thing a complete unpacking leaves is checked, so that an interrupted one is repeated.
    if !library.join("libnvrtc.so.13").exists() {
        bail!("the wheel {NVRTC_WHEEL} has no libnvrtc.so.13");
    }
    Ok(library)
}

/// The folder with a NumPy for the Python program: none where Python has one that is new enough.
fn numpy() -> Result<Option<PathBuf>> {
    let works = |folder: &Path| {
        let mut python = Command::new("python3");
        python.args(["-c", "import numpy; assert int(numpy.__version__[0]) >= 2"]).env("PYTHONPATH", folder);
        python.output().is_ok_and(|o| o.status.success())
    };
    if works(Path::new("")) {
        return Ok(None);
    }
    let folder = step::target().join("numpy");
    if !works(&folder) {
        println!("fetching {NUMPY_WHEEL} into {}", folder.display());
        fetch(NUMPY_WHEEL, &folder, "Or install the package python3-numpy")?;
        if !works(&folder) {
            bail!("the wheel {NUMPY_WHEEL} was unpacked into {}, and is no NumPy", folder.display());
        }
    }
    Ok(Some(folder))
}

/// Unpacks a wheel beside the folder and moves it into place, so that a half-unpacked one is never used.
fn fetch(wheel: &str, folder: &Path, remedy: &str) -> Result<()> {
    let fresh = folder.with_extension(format!("new-{}", std::process::id()));
    let wheels = fresh.join("wheel");
    std::fs::create_dir_all(&wheels).with_context(|| format!("cannot make {}", wheels.display()))?;
    let python = |words: &[&str]| Command::new("python3").args(words).current_dir(&fresh).status();
    let pip = ["-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", "wheel", wheel];
    if !python(&pip)?.success() {
        bail!("pip could not download {wheel}: is python3-pip installed, and does it reach PyPI? {remedy}");
    }
    for wheel in std::fs::read_dir(&wheels)? {
        let wheel = wheel?.path();
        let done = python(&["-m", "zipfile", "-e", &wheel.to_string_lossy(), "."])?;
        if !done.success() {
            bail!("{} could not be unpacked", wheel.display());
        }
    }
    std::fs::remove_dir_all(&wheels)?;
    if folder.exists() {
        std::fs::remove_dir_all(folder)?;
    }
    std::fs::rename(&fresh, folder).with_context(|| format!("cannot move into {}", folder.display()))
}
