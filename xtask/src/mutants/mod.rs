//! `cargo xtask mutants`: is the cross-check able to fail?
//!
//! Plants one mistake after the other in the kernels, runs the cross-check on each changed file, and writes
//! down which mistakes it noticed. Those that it did not notice are harmless or unobservable, with the reason kept in
//! `harmless.toml`, or show what case is missing. What was found once is kept, so that the run can be broken
//! off and go on, and after a change only the files changed run again.

mod mutate;
mod report;
mod run;

use crate::setup::Found;
use crate::step;
use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use mutate::Mutant;
use run::{Devices, Fate, Runner};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Arguments of `cargo xtask mutants`.
#[derive(clap::Args)]
pub(crate) struct MutantsArgs {
    /// Only files whose path contains one of these, in this order: `conv`, `.wgsl`, `shaders/norm`
    filters: Vec<String>,
    /// Mutants at once
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Run survivors again, and CUDA on sm_75 and sm_100 too: after cases were added. With `--explained` only those for
    /// which there is no reason.
    #[arg(long)]
    survivors: bool,
    /// WGSL on SwiftShader only: lavapipe takes the longest, and is of use for the survivors for which no reason is found
    #[arg(long, conflicts_with = "survivors")]
    first: bool,
    /// Only write the report from what is known
    #[arg(long)]
    report: bool,
    /// First take over from the report before what the journal does not know, of files that have not changed since
    #[arg(long)]
    carry: bool,
    /// Only mutants whose line as changed contains one of these
    #[arg(long)]
    line: Vec<String>,
    /// Run again what was only taken over
    #[arg(long)]
    carried: bool,
    /// Count what `harmless.toml` explains, and does not only predict, as survived without trying it: survivors take the
    /// longest, since every case runs. The report can be no better for it.
    #[arg(long)]
    explained: bool,
    /// Of what it only predicts too
    #[arg(long, requires = "explained")]
    predicted: bool,
}

/// A kernel file and the ops whose cross-check runs it.
pub(crate) struct Source {
    /// Below the root, `kernels/conv.cu`.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) ops: Vec<String>,
    /// The first digits of what git calls the file's contents, by which the report knows whether it has changed.
    pub(crate) blob: String,
}

impl Source {
    fn hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.text.hash(&mut hasher);
        hasher.finish()
    }
}

/// What became of one mutant, as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) path: String,
    file_hash: u64,
    start: usize,
    pub(crate) line: usize,
    pub(crate) kind: String,
    pub(crate) changed: String,
    pub(crate) fate: Fate,
    pub(crate) by: String,
    pub(crate) seconds: f64,
    /// Taken over from a report, not run.
    #[serde(default)]
    pub(crate) carried: bool,
    /// Taken for a survivor since there is a reason for it, not run.
    #[serde(default)]
    pub(crate) explained: bool,
}

impl Known {
    fn new(source: &Source, mutant: &Mutant, fate: Fate) -> Self {
        Self {
            path: source.path.clone(),
            file_hash: source.hash(),
            start: mutant.at.start,
            line: mutant.line(&source.text),
            kind: mutant.kind.name().to_owned(),
            changed: mutant.changed_line(&source.text),
            fate,
            by: String::new(),
            seconds: 0.0,
            carried: false,
            explained: false,
        }
    }
}

/// Runs all mutants whose fate is not known, and writes the report.
pub(crate) fn mutants(found: &Found, args: &MutantsArgs) -> Result<()> {
    let sources = sources()?;
    let store = step::target().join("mutants");
    std::fs::create_dir_all(&store)?;
    let journal = store.join("fates.jsonl");
    let mut known = read(&journal)?;
    if args.carry {
        let mut file = appending(&journal)?;
        for carried in report::carried(&sources)? {
            if let Entry::Vacant(place) = known.entry(key_of(&carried)) {
                writeln!(file, "{}", serde_json::to_string(&carried)?)?;
                place.insert(carried);
            }
        }
    }
    let place = |s: &Source| {
        args.filters.iter().position(|f| s.path.contains(f.as_str())).unwrap_or(args.filters.len())
    };
    let mut work: Vec<(&Source, Mutant)> = sources
        .iter()
        .filter(|s| place(s) < args.filters.len().max(1))
        .flat_map(|s| mutate::mutants(&s.text).into_iter().map(move |m| (s, m)))
        .filter(|(s, m)| match known.get(&key(s, m)) {
            None => true,
            Some(k) => (args.survivors && k.fate == Fate::Survived) || (args.carried && k.carried),
        })
        .filter(|(s, m)| {
            let changed = m.changed_line(&s.text);
            args.line.is_empty() || args.line.iter().any(|l| changed.contains(l.as_str()))
        })
        .collect();
    // In no order, so that what has run of a file when the run is broken off speaks for the rest. What will survive comes
    // last: it takes the longest.
    let reasons = report::Reasons::read()?;
    work.sort_by_cached_key(|(s, m)| {
        let mut hasher = DefaultHasher::new();
        key(s, m).hash(&mut hasher);
        (place(s), reasons.of(s, m).is_some(), hasher.finish())
    });
    if args.explained {
        let mut file = appending(&journal)?;
        let (explained, rest) = work
            .into_iter()
            .partition(|(s, m)| reasons.of(s, m).is_some_and(|(r, _)| args.predicted || !r.predicted));
        work = rest;
        let explained: Vec<(&Source, Mutant)> = explained;
        for (source, mutant) in &explained {
            let one = Known { explained: true, ..Known::new(source, mutant, Fate::Survived) };
            if let Entry::Vacant(place) = known.entry(key_of(&one)) {
                writeln!(file, "{}", serde_json::to_string(&one)?)?;
                place.insert(one);
            }
        }
    }
    if !args.report {
        let runner = Runner::new(found, &sources, &store)?;
        let new = all(&runner, &work, &journal, args)?;
        known.extend(new.into_iter().map(|k| (key_of(&k), k)));
    }
    report::write(&sources, &known)
}

/// A mutant's name in the journal: the file as it was, where, and what took its place.
type Key = (String, u64, usize, String, String);

fn key(source: &Source, mutant: &Mutant) -> Key {
    let changed = mutant.changed_line(&source.text);
    (source.path.clone(), source.hash(), mutant.at.start, mutant.kind.name().to_owned(), changed)
}

fn key_of(known: &Known) -> Key {
    (known.path.clone(), known.file_hash, known.start, known.kind.clone(), known.changed.clone())
}

fn read(journal: &Path) -> Result<HashMap<Key, Known>> {
    let Ok(text) = std::fs::read_to_string(journal) else { return Ok(HashMap::new()) };
    // The last line may be half written, when a run was broken off.
    let lines = text.lines().filter_map(|l| serde_json::from_str::<Known>(l).ok());
    Ok(lines.map(|k| (key_of(&k), k)).collect())
}

fn appending(journal: &Path) -> Result<std::fs::File> {
    let file = std::fs::OpenOptions::new().create(true).append(true).open(journal);
    file.with_context(|| format!("cannot write {}", journal.display()))
}

fn all(
    runner: &Runner,
    work: &[(&Source, Mutant)],
    journal: &Path,
    args: &MutantsArgs,
) -> Result<Vec<Known>> {
    let file = Mutex::new(appending(journal)?);
    let style = ProgressStyle::with_template("{pos}/{len} [{elapsed_precise}, {eta} left] {msg}")?;
    let bar = ProgressBar::new(work.len() as u64).with_style(style);
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let devices = match args {
        MutantsArgs { survivors: true, .. } => Devices::All,
        MutantsArgs { first: true, .. } => Devices::First,
        _ => Devices::Usual,
    };
    let worker = |job: usize| -> Result<()> {
        while let Some((source, mutant)) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            let ran = runner.run(job, source, mutant, devices)?;
            let known = Known { by: ran.by, seconds: ran.seconds, ..Known::new(source, mutant, ran.fate) };
            if known.fate == Fate::Survived {
                bar.println(format!(
                    "survived: {}:{} ({}) {}",
                    known.path, known.line, known.kind, known.changed
                ));
            }
            bar.set_message(format!("{}:{}", known.path, known.line));
            bar.inc(1);
            let line = serde_json::to_string(&known)?;
            writeln!(file.lock().unwrap_or_else(std::sync::PoisonError::into_inner), "{line}")?;
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(known);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..args.jobs.max(1)).map(|job| scope.spawn(move || worker(job))).collect();
        workers.into_iter().try_for_each(|w| w.join().expect("a worker does not panic"))
    })?;
    bar.finish_and_clear();
    Ok(done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Every kernel file, with the ops that contain it. The probe measures ceilings and is no op.
fn sources() -> Result<Vec<Source>> {
    let mut files = Vec::new();
    for folder in ["kernels", "kernels/common", "shaders", "shaders/common"] {
        for entry in std::fs::read_dir(step::root().join(folder))? {
            let path = entry?.path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_file() && !name.starts_with("probe.") {
                files.push((format!("{folder}/{name}"), std::fs::read_to_string(&path)?));
            }
        }
    }
    files.sort();
    let includes = |text: &str, name: &str| text.contains(&format!("#include \"{name}\""));
    let ops_of = |path: &str| -> Vec<String> {
        let stem =
            |p: &str| Path::new(p).file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((folder, name)) = path.split_once("/common/") else { return vec![stem(path)] };
        let name = format!("common/{name}");
        // Files that include it, or that include a file that does; what the prelude includes is in all.
        let direct: Vec<&(String, String)> =
            files.iter().filter(|(p, t)| p.starts_with(folder) && includes(t, &name)).collect();
        let within = |text: &str| {
            includes(text, &name) || direct.iter().any(|(p, _)| includes(text, &p[folder.len() + 1..]))
        };
        let everywhere = name == "common/element.cuh";
        let own = files.iter().filter(|(p, _)| p.starts_with(folder) && !p.contains("/common/"));
        own.filter(|(_, text)| everywhere || within(text)).map(|(p, _)| stem(p)).collect()
    };
    let with_ops =
        files.iter().map(|(path, text)| (path, text, ops_of(path))).filter(|(.., ops)| !ops.is_empty());
    with_ops
        .map(|(path, text, ops)| {
            Ok(Source { path: path.clone(), text: text.clone(), ops, blob: blob(path)? })
        })
        .collect()
}

/// What git calls the contents of a file, shortened.
fn blob(path: &str) -> Result<String> {
    let mut git = std::process::Command::new("git");
    let output = git.args(["hash-object", path]).current_dir(step::root()).output().context("git")?;
    let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let short = name.get(..12).with_context(|| format!("git has no name for {path}"))?;
    Ok(short.to_owned())
}

/// Where reasons and report are kept.
pub(crate) fn folder() -> PathBuf {
    step::root().join("xtask/mutants")
}
