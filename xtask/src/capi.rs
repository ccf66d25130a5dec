//! The C interface: its header, and an installation that C programs find.

use crate::step::{self, cargo, run};
use anyhow::{Context, Result};
use std::path::Path;

/// Writes the header from the sources.
pub(crate) fn header() -> Result<()> {
    // That test alone: the others hold the header as it was when they were compiled.
    let mut write =
        cargo("test --quiet --package advect-capi --test header -- --exact the_header_is_not_stale");
    run(write.env("ADVECT_WRITE_HEADER", "1"))
}

/// The libraries as cargo names them, and as they are installed: where there is a version, a link without it.
fn libraries() -> &'static [(&'static str, &'static str)] {
    if cfg!(target_os = "windows") {
        &[("advect_capi.dll", "advect_capi.dll"), ("advect_capi.dll.lib", "advect.lib")]
    } else if cfg!(target_os = "macos") {
        &[("libadvect_capi.dylib", "libadvect.VERSION.dylib"), ("libadvect_capi.a", "libadvect.a")]
    } else {
        &[("libadvect_capi.so", "libadvect.so.VERSION"), ("libadvect_capi.a", "libadvect.a")]
    }
}

/// Builds the optimised libraries and copies them to `prefix`, with the header and a file for pkg-config.
pub(crate) fn install(prefix: &Path) -> Result<()> {
    run(&mut cargo("build --release --package advect-capi --lib"))?;
    let prefix = step::root().join(prefix);
    let (lib, include) = (prefix.join("lib"), prefix.join("include"));
    std::fs::create_dir_all(lib.join("pkgconfig"))
        .with_context(|| format!("cannot make {}", lib.display()))?;
    std::fs::create_dir_all(&include)?;
    let version = env!("CARGO_PKG_VERSION");
    let abi = version.rsplit_once('.').map_or(version, |(abi, _patch)| abi);
    let copy = |from: &Path, to: &Path| {
        std::fs::copy(from, to)
            .map(drop)
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
    };
    for (built, name) in libraries() {
        let to = lib.join(name.replace("VERSION", abi));
        copy(&step::target().join("release").join(built), &to)?;
        #[cfg(unix)]
        if name.contains("VERSION") {
            let link = lib.join(name.replace(".VERSION", ""));
            if link.symlink_metadata().is_ok() {
                std::fs::remove_file(&link)?;
            }
            std::os::unix::fs::symlink(to.file_name().context("a file has a name")?, &link)?;
        }
    }
    copy(&step::root().join("capi/include/advect.h"), &include.join("advect.h"))?;
    let at = prefix.display();
    let description = format!(
        "prefix={at}\nlibdir=${{prefix}}/lib\nincludedir=${{prefix}}/include\n\nName: advect\nDescription: Fused \
         kernels for attention, convolution and ODE/SDE steps\nVersion: {version}\nLibs: -L${{libdir}} \
         -ladvect\nLibs.private: -lpthread -ldl -lm -lgcc_s -lrt\nCflags: -I${{includedir}}\n"
    );
    std::fs::write(lib.join("pkgconfig/advect.pc"), description)?;
    println!("installed libadvect {version} in {at}");
    Ok(())
}
