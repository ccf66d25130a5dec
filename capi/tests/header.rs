//! The checked-in header is the one that the sources make.

use std::path::Path;

fn generated() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    // It follows `mod` from there: a file given beside it would be declared twice.
    let builder = cbindgen::Builder::new().with_config(config).with_src(root.join("src/lib.rs"));
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

/// With `ADVECT_WRITE_HEADER` set the header is written instead: `cargo xtask header` does that.
#[test]
fn the_header_is_not_stale() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/advect.h");
    let wanted = generated();
    if std::env::var_os("ADVECT_WRITE_HEADER").is_some() {
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap();
    let differs = wanted.lines().zip(found.lines()).position(|(a, b)| a != b);
    assert!(wanted == found, "capi/include/advect.h is stale (line {differs:?}): run `cargo xtask header`");
}

/// Every op can be called from C.
#[test]
fn every_op_is_in_the_header() {
    let header = include_str!("../include/advect.h");
    for op in advect::verify::op_names() {
        for function in [format!("advect_{op}("), format!("advect_{op}_plan("), format!("advect_{op}_warm(")]
        {
            assert!(header.contains(&function), "{function}..) is missing: docs/add-an-op.md, step 8");
        }
    }
}

/// The version in the header is that of the package, whose minor version names the ABI.
#[test]
fn the_version_is_the_packages() {
    use advect_capi::{ADVECT_VERSION_MAJOR, ADVECT_VERSION_MINOR, ADVECT_VERSION_PATCH, advect_version};
    let [major, minor, patch] = [ADVECT_VERSION_MAJOR, ADVECT_VERSION_MINOR, ADVECT_VERSION_PATCH];
    assert_eq!(format!("{major}.{minor}.{patch}"), env!("CARGO_PKG_VERSION"));
    assert_eq!(advect_version(), major << 16 | minor << 8 | patch);
}
