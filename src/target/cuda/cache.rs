//! Compiled kernels on disk.
//!
//! An entry is a file named after the SHA-256 of everything that the result depends on. Entries are
//! written beside their place and renamed into it, so that a reader, in this process or another, sees a
//! whole entry or none. A damaged entry does not match its checksum and counts as missing. A folder that
//! cannot be written is no error: kernels are then compiled every time. The folder may be deleted at any
//! time.

use super::nvrtc::Artifact;
use etcetera::base_strategy::{BaseStrategy, choose_native_strategy};
use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::{Path, PathBuf};

/// The first bytes of an entry; the number is the version of the format.
const MAGIC: &[u8; 8] = b"advect\x01\n";
/// Magic, key, checksum of all that follows, length of the log; then the log, then the artifact.
const HEADER: usize = 8 + 32 + 32 + 8;

/// A folder of compiled kernels, or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cache {
    folder: Option<PathBuf>,
}

/// What identifies an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of everything that a result depends on, in order.
    pub fn new<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            // The length keeps ("ab", "c") apart from ("a", "bc").
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// In hexadecimal.
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl Cache {
    /// In a folder of the caller's choice.
    pub fn at(folder: impl Into<PathBuf>) -> Self {
        Self { folder: Some(folder.into()) }
    }

    /// Nowhere: every kernel is compiled.
    pub fn nowhere() -> Self {
        Self::default()
    }

    /// In `ADVECT_CACHE_DIR`, or else in the user's cache folder; nowhere when that variable is empty or
    /// there is no such folder.
    pub fn from_env() -> Self {
        let folder = match std::env::var_os("ADVECT_CACHE_DIR") {
            Some(folder) => (!folder.is_empty()).then(|| folder.into()),
            None => choose_native_strategy().ok().map(|dirs| dirs.cache_dir().join("advect")),
        };
        Self { folder }
    }

    /// Where it is.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    fn file(&self, key: &Key) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(key.hex() + ".kernel"))
    }

    /// The entry of `key`, or what `make` makes, which is then kept.
    ///
    /// # Errors
    /// Only those of `make`.
    pub fn get_or<E>(&self, key: &Key, make: impl FnOnce() -> Result<Artifact, E>) -> Result<Artifact, E> {
        if let Some(found) = self.read(key) {
            return Ok(found);
        }
        let made = make()?;
        // A full disk or a read-only folder only costs the next start its time.
        let _ = self.write(key, &made);
        Ok(made)
    }

    fn read(&self, key: &Key) -> Option<Artifact> {
        decode(key, &std::fs::read(self.file(key)?).ok()?)
    }

    fn write(&self, key: &Key, artifact: &Artifact) -> std::io::Result<()> {
        let (Some(folder), Some(place)) = (&self.folder, self.file(key)) else { return Ok(()) };
        std::fs::create_dir_all(folder)?;
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&encode(key, artifact))?;
        file.persist(place)?;
        Ok(())
    }
}

fn encode(key: &Key, artifact: &Artifact) -> Vec<u8> {
    let mut body = (artifact.log.len() as u64).to_le_bytes().to_vec();
    body.extend_from_slice(artifact.log.as_bytes());
    body.extend_from_slice(&artifact.bytes);
    let checksum: [u8; 32] = Sha256::digest(&body).into();
    [&MAGIC[..], &key.0, &checksum, &body].concat()
}

/// `None` when anything about the entry is not as it was written.
fn decode(key: &Key, entry: &[u8]) -> Option<Artifact> {
    let (header, rest) = (entry.get(..HEADER)?, entry.get(HEADER..)?);
    let checksum: [u8; 32] = Sha256::digest(&entry[HEADER - 8..]).into();
    if header[..8] != *MAGIC || header[8..40] != key.0 || header[40..72] != checksum {
        return None;
    }
    let log = usize::try_from(u64::from_le_bytes(header[72..].try_into().ok()?)).ok()?;
    let text = std::str::from_utf8(rest.get(..log)?).ok()?;
    Some(Artifact { bytes: rest[log..].to_vec(), log: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn artifact(size: usize) -> Artifact {
        Artifact { bytes: (0..size).map(|i| i as u8).collect(), log: "ptxas info: ähnlich".into() }
    }

    fn key() -> Key {
        Key::new([&b"source"[..], b"options"])
    }

    /// The entry, and whether it had to be made.
    fn get(cache: &Cache, size: usize) -> (Artifact, bool) {
        let mut made = false;
        let got = cache.get_or(&key(), || {
            made = true;
            Ok::<_, Infallible>(artifact(size))
        });
        (got.unwrap(), made)
    }

    #[test]
    fn a_second_request_compiles_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path().join("made/on/demand"));
        assert_eq!(get(&cache, 5000), (artifact(5000), true));
        assert_eq!(get(&cache, 1), (artifact(5000), false));
        assert_eq!(get(&Cache::at(cache.folder().unwrap()), 1), (artifact(5000), false));
        let other =
            cache.get_or(&Key::new([&b"sourceo"[..], b"ptions"]), || Ok::<_, Infallible>(artifact(2)));
        assert_eq!(other, Ok(artifact(2)));
        assert_eq!(get(&Cache::nowhere(), 3), (artifact(3), true));
    }

    #[test]
    fn errors_are_passed_on_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        assert_eq!(cache.get_or(&key(), || Err("broken")), Err("broken"));
        assert_eq!(get(&cache, 4), (artifact(4), true));
    }

    #[test]
    fn every_truncation_and_every_flipped_byte_is_noticed() {
        let whole = encode(&key(), &artifact(40));
        assert_eq!(decode(&key(), &whole), Some(artifact(40)));
        for length in 0..whole.len() {
            assert_eq!(decode(&key(), &whole[..length]), None, "cut to {length}");
        }
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_eq!(decode(&key(), &damaged), None, "byte {at}");
        }
        assert_eq!(decode(&key(), &[&whole[..], b"x"].concat()), None);
        assert_eq!(decode(&Key::new([&b"another"[..]]), &whole), None);
    }

    #[test]
    fn a_damaged_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        get(&cache, 100);
        let file = cache.file(&key()).unwrap();
        let whole = std::fs::read(&file).unwrap();
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for damaged in [&whole[..50], &[], &flipped, b"advect\x01\nnonsense"] {
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(get(&cache, 100), (artifact(100), true));
            assert_eq!(std::fs::read(&file).unwrap(), whole);
            assert_eq!(get(&cache, 100), (artifact(100), false));
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file");
        std::fs::write(&file, "").unwrap();
        // No folder can be made below a file, whoever asks (permissions do not stop root).
        let cache = Cache::at(file.join("cache"));
        assert_eq!(get(&cache, 10), (artifact(10), true));
        assert_eq!(get(&cache, 10), (artifact(10), true));
    }

    #[test]
    fn an_entry_that_is_a_folder_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        std::fs::create_dir(cache.file(&key()).unwrap()).unwrap();
        assert_eq!(get(&cache, 10), (artifact(10), true));
    }

    /// Reads, damages and rewrites one entry; whatever comes back must be whole.
    fn contend(cache: &Cache) {
        for round in 0..100 {
            assert_eq!(get(cache, 20_000).0, artifact(20_000));
            if round % 7 == 0 {
                // Truncating in place is what a crash or a full disk may leave.
                let _ = std::fs::write(cache.file(&key()).unwrap(), [0; 100]);
            }
        }
    }

    const CONTEND: &str = "ADVECT_TEST_CONTEND";

    /// The part of the next test that its child processes run; nothing on its own.
    #[test]
    fn contender() {
        if let Some(folder) = std::env::var_os(CONTEND) {
            contend(&Cache::at(folder));
        }
    }

    #[test]
    fn several_threads_and_processes_share_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let children: Vec<_> = (0..3)
            .map(|_| {
                std::process::Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "target::cuda::cache::tests::contender"])
                    .env(CONTEND, folder.path())
                    .stdout(std::process::Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| contend(&Cache::at(folder.path())));
            }
        });
        for child in children {
            let output = child.wait_with_output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
        }
        // No temporary file is left behind.
        assert!(std::fs::read_dir(folder.path()).unwrap().count() <= 1);
    }
}
