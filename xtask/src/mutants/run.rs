//! The cross-check of one mutant, in processes of its own: a mutant may hang, crash or exhaust memory.

use super::Source;
use super::mutate::Mutant;
use crate::setup::Found;
use crate::step::{self, cargo};
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What became of a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Fate {
    /// The cross-check failed.
    Noticed,
    /// The compiler refused it.
    Refused,
    /// It compiles to exactly the code of the unchanged file, in every variant: nothing can tell them apart.
    Same,
    /// Every case passed.
    Survived,
}

/// On which devices a mutant has to pass to survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Devices {
    /// The first: sm_80, or SwiftShader.
    First,
    /// WGSL on both drivers; CUDA on sm_80, and on the other architectures when the file asks for which it is compiled.
    Usual,
    /// All of the file's language.
    All,
}

/// A mutant's fate and what brought it about.
pub(crate) struct Ran {
    pub(crate) fate: Fate,
    pub(crate) by: String,
    pub(crate) seconds: f64,
}

/// How many times the processor time of the unchanged file's cross-check, with nothing compiled before, a mutant's may take,
/// and what on top: what runs into it counts as noticed. Other work on the machine does not count.
const TIMES: u32 = 2;
const MORE: Duration = Duration::from_secs(30);

/// Of a process that does not end and does nothing either.
const WALL_LIMIT: Duration = Duration::from_secs(4 * 3600);

pub(crate) struct Runner {
    advect: PathBuf,
    nvrtc: PathBuf,
    drivers: [PathBuf; 2],
    store: PathBuf,
    /// Of all kernel files.
    hash: u64,
    /// Held while originals are compiled, so that it happens once.
    compiling: Mutex<()>,
}

/// One device's turn.
struct Stage<'a> {
    device: &'static str,
    driver: Option<&'a Path>,
}

impl Runner {
    /// Builds the program, and keeps a copy, so that work on the checkout can go on meanwhile.
    pub(crate) fn new(found: &Found, sources: &[Source], store: &Path) -> Result<Self> {
        step::run(&mut cargo("build --quiet --release --features ptx-sim"))?;
        let store = store.canonicalize().context("the store is not there")?;
        // A name of its own for every run: one before it may still be there.
        let advect = store.join(format!("advect-{}", std::process::id()));
        std::fs::copy(step::target().join("release/advect"), &advect).context("the build left no program")?;
        Ok(Self {
            advect,
            nvrtc: found.nvrtc.clone(),
            drivers: [found.swiftshader.clone(), found.lavapipe.clone()],
            store,
            compiling: Mutex::default(),
            hash: {
                let mut hasher = DefaultHasher::new();
                sources.iter().for_each(|s| s.text.hash(&mut hasher));
                hasher.finish()
            },
        })
    }

    /// Runs every case on devices of the file's language, until one fails.
    pub(crate) fn run(&self, job: usize, source: &Source, mutant: &Mutant, devices: Devices) -> Result<Ran> {
        let start = Instant::now();
        let folder = self.store.join(format!("job{job}"));
        let file = folder.join(&source.path);
        let cache = folder.join("cache");
        std::fs::create_dir_all(file.parent().unwrap_or(&folder))?;
        std::fs::create_dir_all(&cache)?;
        let by_architecture = source.text.contains("__CUDA_ARCH__");
        let stages: Vec<Stage> = if source.path.ends_with(".wgsl") {
            let drivers = self.drivers.iter().map(|driver| Stage { device: "wgpu", driver: Some(driver) });
            drivers.take(if devices == Devices::First { 1 } else { 2 }).collect()
        } else {
            // Code that the file has for one architecture only is most likely the oldest's.
            let all = match by_architecture {
                true => ["ptx-sim:75", "ptx-sim:80", "ptx-sim:100"],
                false => ["ptx-sim:80", "ptx-sim:75", "ptx-sim:100"],
            };
            let all = all.map(|device| Stage { device, driver: None });
            all.into_iter().take(if devices == Devices::All || by_architecture { 3 } else { 1 }).collect()
        };
        // A variant that the change does not reach is what it was.
        let originals = self.originals(source, &stages)?;
        for original in &originals {
            for entry in std::fs::read_dir(original)? {
                let entry = entry?;
                // Ops share what they both include.
                let _ = std::fs::hard_link(entry.path(), cache.join(entry.file_name()));
            }
        }
        std::fs::write(&file, mutant.apply(&source.text))?;
        let mut ran = (Fate::Survived, String::new());
        'all: for (i, stage) in stages.iter().enumerate() {
            for op in &source.ops {
                let limit = TIMES * self.usual(stage, op)? + MORE;
                let (fate, by, _) = self.verify(stage, op, &folder, &cache, limit)?;
                ran = (fate, by);
                if ran.0 != Fate::Survived {
                    break 'all;
                }
            }
            // What compiles to the same on one architecture does on all, unless it asks.
            if stage.driver.is_none() && (!by_architecture || i + 1 == stages.len()) {
                let mut same = HashSet::new();
                for original in &originals {
                    same.extend(kernels(original)?);
                }
                if kernels(&cache)?.is_subset(&same) {
                    ran.0 = Fate::Same;
                    break;
                }
            }
        }
        std::fs::remove_dir_all(&folder)?;
        Ok(Ran { fate: ran.0, by: ran.1, seconds: start.elapsed().as_secs_f64() })
    }

    /// Folders with the PTX of the unchanged file's ops for the simulators among the stages, compiled once. On every stage
    /// the unchanged file has to pass first: where nothing runs, everything would count as noticed.
    fn originals(&self, source: &Source, stages: &[Stage]) -> Result<Vec<PathBuf>> {
        let _one_at_a_time = self.compiling.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for stage in stages {
            for op in &source.ops {
                let folder = self.original(stage, op);
                if !folder.exists() {
                    // It gets its name when it is complete.
                    let begun = self.store.join("original/begun");
                    let _ = std::fs::remove_dir_all(&begun);
                    let nothing_changed = begun.join("none");
                    std::fs::create_dir_all(&nothing_changed)?;
                    let cache = begun.join("cache");
                    let (fate, why, time) = self.verify(stage, op, &nothing_changed, &cache, WALL_LIMIT)?;
                    if fate != Fate::Survived {
                        bail!("the cross-check of the unchanged {op} on {} fails: {why}", stage.device);
                    }
                    std::fs::write(begun.join("seconds"), time.as_secs().to_string())?;
                    std::fs::rename(&begun, &folder)?;
                }
                if stage.driver.is_none() {
                    all.push(folder.join("cache"));
                }
            }
        }
        Ok(all)
    }

    /// Where what is known of an unchanged op is kept.
    fn original(&self, stage: &Stage, op: &str) -> PathBuf {
        let driver = stage.driver.and_then(Path::file_stem).unwrap_or_default().to_string_lossy();
        let name = format!("{op}-{}{driver}-{:x}", stage.device.replace(':', "-"), self.hash);
        self.store.join("original").join(name)
    }

    /// The processor time of its cross-check.
    fn usual(&self, stage: &Stage, op: &str) -> Result<Duration> {
        let seconds = std::fs::read_to_string(self.original(stage, op).join("seconds"))?;
        Ok(Duration::from_secs(seconds.trim().parse()?))
    }

    /// The cross-check of one op on one device, with the changed file in `folder`: how it ended, why, and what processor
    /// time it took.
    fn verify(
        &self,
        stage: &Stage,
        op: &str,
        folder: &Path,
        cache: &Path,
        limit: Duration,
    ) -> Result<(Fate, String, Duration)> {
        let said = folder.join("said.txt");
        let mut command = Command::new(&self.advect);
        command
            .args(["verify", "--fail-fast", "--fuzz", "30", "--op", op])
            .env("ADVECT_KERNELS", folder)
            .env("ADVECT_CACHE_DIR", cache)
            .env("ADVECT_NVRTC", &self.nvrtc)
            .env("WGPU_BACKEND", "vulkan")
            .env("NODEVICE_SELECT", "1")
            // Mesa's own cache would fill with mutants.
            .env("MESA_SHADER_CACHE_DISABLE", "true")
            .stdout(std::fs::File::create(&said)?)
            .stderr(Stdio::null());
        match stage.driver {
            // The device of the tests, which folds grids.
            Some(driver) => command
                .env("VK_ICD_FILENAMES", driver)
                .env("ADVECT_FACES", "wgpu")
                .env("ADVECT_REQUIRE", "wgpu")
                .env("ADVECT_ADAPTERS", "1"),
            None => command.args(["--device", stage.device]),
        };
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.advect.display()))?;
        let (start, mut time) = (Instant::now(), Duration::ZERO);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            time = time.max(processor_time(child.id()));
            if time > limit || start.elapsed() > WALL_LIMIT {
                child.kill()?;
                child.wait()?;
                return Ok((Fate::Noticed, "it does not end".into(), time));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if status.success() {
            return Ok((Fate::Survived, String::new(), time));
        }
        let said = String::from_utf8_lossy(&std::fs::read(&said)?).into_owned();
        let Some(failure) = said.split_once("\nFAIL ").map(|(_, f)| f) else {
            return Ok((Fate::Noticed, format!("the process dies: {status}"), time));
        };
        let fate = if failure.contains("kernel did not compile") { Fate::Refused } else { Fate::Noticed };
        let lines: Vec<&str> = failure.lines().take(2).map(str::trim).collect();
        Ok((fate, lines.join(" ").chars().take(300).collect(), time))
    }
}

/// What all threads of a running process have used, as Linux counts it: in hundredths of a second, user and system.
fn processor_time(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // The program's name stands in parentheses and may hold spaces; behind it stand the fields from the third.
    let fields = stat.rsplit_once(')').map(|(_, rest)| rest).unwrap_or_default();
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 10)
}

/// Hashes of the compiled kernels in a cache, line information left out: it has columns in it.
fn kernels(cache: &Path) -> Result<HashSet<u64>> {
    let mut all = HashSet::new();
    for entry in std::fs::read_dir(cache).with_context(|| format!("no kernel in {}", cache.display()))? {
        let bytes = std::fs::read(entry?.path())?;
        let text = String::from_utf8_lossy(&bytes);
        let (_, ptx) = text.split_once(".version").context("an entry of the kernel cache is not PTX")?;
        let code = ptx.split(".section").next().unwrap_or(ptx).lines().filter(|line| {
            let line = line.trim_start();
            !(line.starts_with(".loc") || line.starts_with(".file") || line.starts_with("//"))
        });
        let mut hasher = DefaultHasher::new();
        code.for_each(|line| line.hash(&mut hasher));
        all.insert(hasher.finish());
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_works_uses_time() {
        let start = Instant::now();
        while processor_time(std::process::id()) < Duration::from_millis(50) {
            assert!(start.elapsed() < Duration::from_secs(60), "no time is counted");
        }
        assert_eq!(processor_time(u32::MAX), Duration::ZERO);
    }
}
