//! May everything that is built be built? `deny.toml` says what is allowed.

use crate::step::{self, cargo, run};
use anyhow::{Context, Result, bail};
use cargo_metadata::{DependencyKind, Metadata, PackageId};
use serde::Deserialize;
use spdx::{Expression, LicenseReq};
use std::collections::HashSet;
use std::fmt::Write;

/// The part of `deny.toml` that is checked without cargo-deny.
#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
}

#[derive(Deserialize)]
struct Licenses {
    allow: Vec<String>,
}

/// Runs cargo-deny where it is installed (advisories too, where their database is at hand), and otherwise compares
/// the licence of every package that is shipped with the same list.
pub(crate) fn licences() -> Result<()> {
    if step::has("cargo-deny", "--version") {
        let advisories = std::env::var_os("CARGO_HOME")
            .is_some_and(|home| std::path::Path::new(&home).join("advisory-dbs").exists());
        if !advisories {
            println!("advisories: skipped, their database is not at hand (`cargo deny fetch`)");
        }
        let mut checks = vec!["licenses", "bans", "sources"];
        checks.extend(advisories.then_some("advisories"));
        // What is at hand is what is judged: a test does not go to the network.
        return run(cargo("deny --offline --workspace check").args(checks));
    }
    println!("bans, sources, advisories: skipped, there is no cargo-deny (`cargo install cargo-deny`)");
    let text = std::fs::read_to_string(step::root().join("deny.toml")).context("cannot read deny.toml")?;
    let deny: Deny = toml::from_str(&text).context("in deny.toml")?;
    let allowed = allowed(&deny.licenses.allow)?;
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(step::root().join("Cargo.toml"))
        .features(cargo_metadata::CargoOpt::AllFeatures)
        .exec()
        .context("cargo metadata")?;
    let mut refused = String::new();
    let shipped = shipped(&metadata)?;
    for package in metadata.packages.iter().filter(|p| shipped.contains(&p.id)) {
        let licence = package.license.as_deref().unwrap_or_default();
        if let Err(why) = permitted(licence, &allowed) {
            writeln!(refused, "  {} {}: {why}", package.name, package.version)?;
        }
    }
    if !refused.is_empty() {
        bail!("deny.toml does not allow the licence of\n{refused}");
    }
    println!(
        "{} packages, all of licences that deny.toml allows (cargo-deny is not installed)",
        shipped.len()
    );
    Ok(())
}

/// What becomes part of a published package: its dependencies, but those of tests and builds. Hosts are not published.
fn shipped(metadata: &Metadata) -> Result<HashSet<&PackageId>> {
    let resolve = metadata.resolve.as_ref().context("cargo metadata resolved nothing")?;
    let published =
        |id: &&PackageId| metadata[*id].publish.as_ref().is_none_or(|registries| !registries.is_empty());
    let mut open: Vec<&PackageId> = metadata.workspace_members.iter().filter(published).collect();
    let mut all: HashSet<&PackageId> = open.iter().copied().collect();
    while let Some(id) = open.pop() {
        let node = resolve.nodes.iter().find(|n| n.id == *id).context("a package is not in the graph")?;
        let used = node.deps.iter().filter(|d| d.dep_kinds.iter().any(|k| k.kind == DependencyKind::Normal));
        open.extend(used.map(|d| &d.pkg).filter(|d| all.insert(d)));
    }
    Ok(all)
}

fn allowed(names: &[String]) -> Result<Vec<LicenseReq>> {
    let mut all = Vec::new();
    for name in names {
        let expression =
            Expression::parse(name).with_context(|| format!("deny.toml: `{name}` is no licence"))?;
        all.extend(expression.requirements().map(|r| r.req.clone()));
    }
    Ok(all)
}

/// Whether an SPDX expression can be satisfied by the allowed licences alone.
fn permitted(licence: &str, allowed: &[LicenseReq]) -> Result<(), String> {
    if licence.is_empty() {
        return Err("no licence is stated".into());
    }
    // Old packages write `MIT/Apache-2.0`.
    let expression = Expression::parse_mode(licence, spdx::ParseMode::LAX)
        .map_err(|e| format!("`{licence}`: {}", e.reason))?;
    match expression.evaluate(|req| allowed.contains(req)) {
        true => Ok(()),
        false => Err(licence.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_judged_as_a_whole() {
        let allowed =
            allowed(&["MIT".into(), "Zlib".into(), "Apache-2.0 WITH LLVM-exception".into()]).unwrap();
        for fine in [
            "MIT",
            "MIT OR GPL-3.0-only",
            "GPL-2.0-only/MIT",
            "MIT AND Zlib",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert_eq!(permitted(fine, &allowed), Ok(()), "{fine}");
        }
        for wrong in ["", "GPL-3.0-only", "MIT AND GPL-3.0-only", "Apache-2.0", "whatever"] {
            assert!(permitted(wrong, &allowed).is_err(), "{wrong}");
        }
    }
}
