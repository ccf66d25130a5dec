//! The report of a mutation run, `xtask/mutants/REPORT.md`, and what is taken over from the one before.

use super::mutate::{self, Kind, Mutant};
use super::run::Fate;
use super::{Key, Known, Source, folder, key};
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::fmt::Write;

/// `harmless.toml`.
#[derive(Deserialize)]
pub(super) struct Reasons {
    /// No result could show the change, by the rules of the language and of `plan`.
    #[serde(default)]
    harmless: Vec<Reason>,
    /// The change breaks those rules, and no result on the devices at hand shows it.
    #[serde(default)]
    unobservable: Vec<Reason>,
}

impl Reasons {
    pub(super) fn read() -> Result<Self> {
        let path = folder().join("harmless.toml");
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    /// The reason for a mutant, and whether it is that of a harmless one.
    pub(super) fn of(&self, source: &Source, mutant: &Mutant) -> Option<(&Reason, bool)> {
        let entries = entries(source, mutant);
        self.all().find(|(r, _)| r.file == source.path && r.changed.iter().any(|c| entries.contains(c)))
    }

    fn all(&self) -> impl Iterator<Item = (&Reason, bool)> {
        let harmless = self.harmless.iter().map(|r| (r, true));
        harmless.chain(self.unobservable.iter().map(|r| (r, false)))
    }
}

/// Why some mutants survive.
#[derive(Deserialize)]
pub(super) struct Reason {
    /// The file below the root.
    file: String,
    /// The line as changed, whitespace collapsed. Where lines that differed read the same then, `before ==> after`.
    changed: Vec<String>,
    /// The argument.
    why: String,
    /// No run has seen them survive yet.
    #[serde(default)]
    pub(super) predicted: bool,
}

/// What may stand for a mutant in `harmless.toml`.
fn entries(source: &Source, mutant: &Mutant) -> Vec<String> {
    let of = |m: &Mutant| (m.original_line(&source.text), m.changed_line(&source.text));
    let (before, after) = of(mutant);
    let is_another = |other: &Mutant| {
        let other = of(other);
        other.1 == after && other.0 != before
    };
    let whole = format!("{before} ==> {after}");
    if mutate::mutants(&source.text).iter().any(is_another) { vec![whole] } else { vec![after, whole] }
}

#[derive(Default, Clone, Copy)]
struct Count {
    noticed: usize,
    harmless: usize,
    unobservable: usize,
    open: usize,
    same: usize,
    refused: usize,
    unknown: usize,
    carried: usize,
    explained: usize,
}

impl Count {
    fn add(&mut self, other: Self) {
        self.noticed += other.noticed;
        self.harmless += other.harmless;
        self.unobservable += other.unobservable;
        self.open += other.open;
        self.same += other.same;
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.carried += other.carried;
        self.explained += other.explained;
    }

    fn row(&self, name: &str) -> String {
        let Self { noticed, harmless, unobservable, open, same, refused, .. } = *self;
        let faults = noticed + unobservable + open;
        let share = |of: usize| match of {
            0 => "-".to_owned(),
            _ => format!("{:.1} %", 100.0 * noticed as f64 / of as f64),
        };
        format!(
            "| {name} | {} | {noticed} | {harmless} | {unobservable} | {open} | {} | {} | {same} | {refused} |\n",
            faults + harmless,
            share(faults + harmless),
            share(faults)
        )
    }
}

/// What is said of mutants that are none.
const SAME: &str = "same code";
const REFUSED: &str = "refused";
const NOT_RUN: &str = "not run";

/// The table's head, but for what files have besides.
const HEADER: &str = "| | ran | noticed | harmless | unobservable | not explained | of all | of faults | same code | refused |\n|---|---|---|---|---|---|---|---|---|---|\n";

/// What the report before says of each mutant of the files that are what they were: its survivors survived, what is
/// named as the same code, as refused or as not run was that, all others were noticed. A survivor for which there is no
/// reason any more has to run again.
pub(super) fn carried(sources: &[Source]) -> Result<Vec<Known>> {
    let path = folder().join("REPORT.md");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let unchanged = |source: &&Source| {
        let row = format!("| `{}` |", source.path);
        let end = format!("| `{}` |", source.blob);
        text.lines().any(|line| line.starts_with(&row) && line.ends_with(&end))
    };
    // A kind of mistake that it does not count has not been tried.
    let tried = |kind: Kind| text.contains(&format!("\n| {} |", kind.name()));
    let mut named = HashMap::new();
    let mut file = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("### `") {
            file = name.trim_end_matches('`');
        } else if let Some((name, why)) = said(line) {
            let fate = match why {
                NOT_RUN => None,
                SAME => Some(Fate::Same),
                REFUSED => Some(Fate::Refused),
                _ => Some(Fate::Survived),
            };
            named.insert((file, name.to_owned()), fate);
        }
    }
    let reasons = Reasons::read()?;
    let mut all = Vec::new();
    for source in sources.iter().filter(unchanged) {
        let fates = mutate::mutants(&source.text).into_iter().filter(|m| tried(m.kind)).filter_map(|m| {
            let fate = named.get(&(source.path.as_str(), name(source, &m))).copied();
            Some((fate.unwrap_or(Some(Fate::Noticed))?, m))
        });
        let known = fates.filter(|(fate, m)| *fate != Fate::Survived || reasons.of(source, m).is_some());
        all.extend(known.map(|(fate, m)| Known { carried: true, ..Known::new(source, &m, fate) }));
    }
    Ok(all)
}

/// A mutant's line in the report.
fn say_of(name: &str, why: &str) -> String {
    format!("- {name}. {why}")
}

/// The name and the fate in a line of [`say_of`].
fn said(line: &str) -> Option<(&str, &str)> {
    let (name, why) = line.strip_prefix("- ")?.split_once("`. ")?;
    line.get(2..name.len() + 3).map(|name| (name, why))
}

/// A mutant's name in the report: it ends with a backtick.
fn name(source: &Source, mutant: &Mutant) -> String {
    format!(
        "line {}, {}: `{}`",
        mutant.line(&source.text),
        mutant.kind.name(),
        mutant.changed_line(&source.text)
    )
}

/// Writes the report and prints its sums.
pub(super) fn write(sources: &[Source], known: &HashMap<Key, Known>) -> Result<()> {
    let reasons = Reasons::read()?;
    let mut by_file: Vec<(&Source, Count)> = Vec::new();
    let mut by_kind = Kind::ALL.map(|k| (k.name().to_owned(), Count::default()));
    let mut named: Vec<(&str, String)> = Vec::new();
    let mut used = HashSet::new();
    for source in sources {
        let mut count = Count::default();
        for mutant in mutate::mutants(&source.text) {
            let mut one = Count::default();
            let found = known.get(&key(source, &mutant));
            one.carried = found.is_some_and(|k| k.carried).into();
            one.explained = found.is_some_and(|k| k.explained).into();
            let mut say = |why: &str| {
                named.push((&source.path, say_of(&name(source, &mutant), why)));
            };
            match found.map(|k| k.fate) {
                Some(Fate::Noticed) => one.noticed = 1,
                None => {
                    one.unknown = 1;
                    say(NOT_RUN);
                }
                Some(Fate::Refused) => {
                    one.refused = 1;
                    say(REFUSED);
                }
                Some(Fate::Same) => {
                    one.same = 1;
                    say(SAME);
                }
                Some(Fate::Survived) => {
                    match reasons.of(source, &mutant) {
                        None => {
                            one.open = 1;
                            say("**not explained**");
                        }
                        Some((reason, true)) => {
                            one.harmless = 1;
                            say(&reason.why);
                        }
                        Some((reason, false)) => {
                            one.unobservable = 1;
                            say(&format!("**unobservable**: {}", reason.why));
                        }
                    }
                    used.extend(entries(source, &mutant).into_iter().map(|e| (source.path.as_str(), e)));
                }
            }
            count.add(one);
            if let Some(row) = Kind::ALL.iter().position(|k| *k == mutant.kind) {
                by_kind[row].1.add(one);
            }
        }
        by_file.push((source, count));
    }
    let mut total = Count::default();
    by_file.iter().for_each(|(_, c)| total.add(*c));
    let page = page(&by_file, &by_kind, total, &named)?;
    std::fs::write(folder().join("REPORT.md"), page)?;
    println!("{HEADER}{}", total.row("all"));
    for (reason, _) in reasons.all() {
        let unused = |c: &&String| !used.contains(&(reason.file.as_str(), (*c).clone()));
        for changed in reason.changed.iter().filter(unused) {
            println!("no survivor needs the reason for {} {changed:?}", reason.file);
        }
    }
    if total.unknown > 0 {
        bail!("{} mutants have not run", total.unknown);
    }
    Ok(())
}

fn page(
    by_file: &[(&Source, Count)],
    by_kind: &[(String, Count)],
    total: Count,
    named: &[(&str, String)],
) -> Result<String> {
    let mut page = String::from(
        "# Mutation report\n\n\
         Made by `cargo xtask mutants`. Each mutant is a kernel file with one mistake in it; the cross-check of the\n\
         ops that contain the file runs on it with the listed cases and 30 random ones a dtype: CUDA on the PTX simulator\n\
         as sm_80, WGSL on SwiftShader; what survives there and is not harmless also as sm_75 and sm_100, or on lavapipe.\n\
         `noticed`: a case failed. `harmless`: survived, since no result can show it. `unobservable`: a fault that\n\
         survived, since the devices at hand do not show it, though others might. The reasons stand below.\n\
         `of faults` leaves out what is harmless. Not among those that ran: `same code`, which compiles to the PTX of\n\
         the unchanged file in every variant, and `refused`, which does not compile.\n\n",
    );
    if total.carried > 0 {
        writeln!(page, "Of {} mutants this is what runs before found, on the same files.\n", total.carried)?;
    }
    if total.explained > 0 {
        let explained = total.explained;
        writeln!(page, "{explained} count as survivors, untried on these files, for the reasons below.\n")?;
    }
    if total.unknown > 0 {
        writeln!(page, "**Unfinished: {} mutants have not run.**\n", total.unknown)?;
    }
    page += HEADER;
    page += &total.row("**all**");
    for (name, count) in by_kind {
        page += &count.row(name);
    }
    page += "\n";
    // Files have two columns more: what did not run, and their contents, by git's name.
    let mut lines = HEADER.lines();
    writeln!(page, "{} not run | blob |", lines.next().unwrap_or_default())?;
    writeln!(page, "{}---|---|", lines.next().unwrap_or_default())?;
    for (source, count) in by_file {
        let row = count.row(&format!("`{}`", source.path));
        writeln!(page, "{} {} | `{}` |", row.trim_end(), count.unknown, source.blob)?;
    }
    page += "\n## Survivors, and what did not run\n";
    let mut file = "";
    for (path, line) in named {
        if *path != file {
            file = path;
            writeln!(page, "\n### `{file}`\n")?;
        }
        writeln!(page, "{line}")?;
    }
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_as_it_was_written() {
        let text = "if (i < n) { y[i] = x[i]; }\n__syncthreads();\n";
        let source = Source {
            path: "kernels/some.cu".into(),
            text: text.into(),
            ops: Vec::new(),
            blob: String::new(),
        };
        let mutants = mutate::mutants(text);
        assert!(mutants.len() > 3);
        for mutant in &mutants {
            let name = name(&source, mutant);
            for why in [NOT_RUN, SAME, REFUSED, "**unobservable**: `x`. Why."] {
                assert_eq!(said(&say_of(&name, why)), Some((&*name, why)));
            }
        }
    }
}
