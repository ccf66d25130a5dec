//! The report of a mutation run: `xtask/mutants/REPORT.md`.

use super::mutate::{self, Kind};
use super::run::Fate;
use super::{Key, Known, Source, folder, key};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt::Write;

/// `harmless.toml`.
#[derive(Deserialize)]
struct Reasons {
    #[serde(default)]
    harmless: Vec<Reason>,
}

/// Why some mutants change nothing that a result could show.
#[derive(Deserialize)]
struct Reason {
    /// The file below the root.
    file: String,
    /// The line as changed, whitespace collapsed; one text for all lines that read the same.
    changed: Vec<String>,
    /// The argument.
    why: String,
}

#[derive(Default, Clone, Copy)]
struct Count {
    noticed: usize,
    harmless: usize,
    open: usize,
    same: usize,
    refused: usize,
    unknown: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.noticed += other.noticed;
        self.harmless += other.harmless;
        self.open += other.open;
        self.same += other.same;
        self.refused += other.refused;
        self.unknown += other.unknown;
    }

    /// Share noticed of all that ran, harmless ones included.
    fn share(&self) -> f64 {
        100.0 * self.noticed as f64 / (self.noticed + self.harmless + self.open).max(1) as f64
    }

    fn row(&self, name: &str) -> String {
        let Self { noticed, harmless, open, same, refused, .. } = *self;
        let ran = noticed + harmless + open;
        format!(
            "| {name} | {ran} | {noticed} | {:.1} % | {harmless} | {open} | {same} | {refused} |\n",
            self.share()
        )
    }
}

const HEADER: &str = "| | ran | noticed | share | harmless | not explained | same code | refused |\n|---|---|---|---|---|---|---|---|\n";

/// Writes the report and prints its sums.
pub(super) fn write(sources: &[Source], known: &HashMap<Key, Known>) -> Result<()> {
    let path = folder().join("harmless.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let reasons: Reasons = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    let mut by_file: Vec<(String, Count)> = Vec::new();
    let mut by_kind = Kind::ALL.map(|k| (k.name().to_owned(), Count::default()));
    let mut survivors: Vec<(&Known, Option<&str>)> = Vec::new();
    let mut used = vec![false; reasons.harmless.len()];
    for source in sources {
        let mut count = Count::default();
        for mutant in mutate::mutants(&source.text) {
            let mut one = Count::default();
            match known.get(&key(source, &mutant)) {
                None => one.unknown = 1,
                Some(k) if k.fate == Fate::Refused => one.refused = 1,
                Some(k) if k.fate == Fate::Same => one.same = 1,
                Some(k) if k.fate == Fate::Noticed => one.noticed = 1,
                Some(k) => {
                    let reason = reasons
                        .harmless
                        .iter()
                        .position(|r| r.file == k.path && r.changed.contains(&k.changed));
                    if let Some(i) = reason {
                        used[i] = true;
                        one.harmless = 1;
                    } else {
                        one.open = 1;
                    }
                    survivors.push((k, reason.map(|i| reasons.harmless[i].why.as_str())));
                }
            }
            count.add(one);
            if let Some(row) = Kind::ALL.iter().position(|k| *k == mutant.kind) {
                by_kind[row].1.add(one);
            }
        }
        by_file.push((source.path.clone(), count));
    }
    let mut total = Count::default();
    by_file.iter().for_each(|(_, c)| total.add(*c));
    let page = page(&by_file, &by_kind, total, &survivors)?;
    std::fs::write(folder().join("REPORT.md"), page)?;
    println!("{HEADER}{}", total.row("all"));
    for (reason, _) in reasons.harmless.iter().zip(&used).filter(|(_, used)| !**used) {
        println!("no survivor needs the reason for {} {:?}", reason.file, reason.changed);
    }
    if total.unknown > 0 {
        bail!("{} mutants have not run", total.unknown);
    }
    Ok(())
}

fn page(
    by_file: &[(String, Count)],
    by_kind: &[(String, Count)],
    total: Count,
    survivors: &[(&Known, Option<&str>)],
) -> Result<String> {
    let mut page = String::from(
        "# Mutation report\n\n\
         Made by `cargo xtask mutants`. Each mutant is a kernel file with one mistake in it; the cross-check of the\n\
         ops that contain the file runs on it, CUDA on the PTX simulator as sm_80 (what survived there also as sm_75 and\n\
         sm_100), WGSL on SwiftShader and lavapipe, with the listed cases and 30 random ones a dtype.\n\
         `noticed`: a case failed. `harmless`: survived, and the reason stands below.\n\
         The share counts harmless ones as not noticed. Left out of it: `same code`, which compiles to the PTX of\n\
         the unchanged file in every variant, and `refused`, which does not compile.\n\n",
    );
    if total.unknown > 0 {
        writeln!(page, "**Unfinished: {} mutants have not run.**\n", total.unknown)?;
    }
    page += HEADER;
    page += &total.row("**all**");
    for (name, count) in by_kind {
        page += &count.row(name);
    }
    page += "\n";
    page += HEADER;
    for (name, count) in by_file {
        page += &count.row(&format!("`{name}`"));
    }
    page += "\n## Survivors\n";
    let mut file = "";
    for (known, why) in survivors {
        if known.path != file {
            file = &known.path;
            writeln!(page, "\n### `{file}`\n")?;
        }
        let why = why.unwrap_or("**not explained**");
        writeln!(page, "- line {}, {}: `{}`. {why}", known.line, known.kind, known.changed)?;
    }
    Ok(page)
}
