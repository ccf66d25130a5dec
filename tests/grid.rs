//! The grid has no hole and no orphan, and no kernel that nobody runs.

use advect::op::{Caps, prepare};
use advect::target::presets;
use advect::verify::{OpVisitor, Verified, each_op};
use advect::{Dtype, Memory};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::Path;

/// Each face: its directory and the ending of its files.
const FACES: [(&str, &str); 8] = [
    ("kernels", "cu"),
    ("shaders", "wgsl"),
    ("src/ops", "rs"),
    ("src/reference", "rs"),
    ("src/cpu", "rs"),
    ("src/cases", "rs"),
    ("tests", "rs"),
    ("benches", "rs"),
];

/// Files that belong to a face as a whole. Everything else is named after an op.
const SHARED: [(&str, &[&str]); 5] = [
    ("src/ops", &["mod", "activation"]),
    ("src/reference", &["mod"]),
    ("src/cpu", &["mod", "activation", "scratch", "simd", "strided"]),
    ("src/cases", &["mod"]),
    ("tests", &["grid", "harness", "contract", "cuda", "simulated", "threads", "wgpu"]),
];

struct Names(BTreeSet<&'static str>);
impl OpVisitor for Names {
    fn visit<T: Verified>(&mut self) {
        assert!(self.0.insert(T::NAME), "two ops are called {}", T::NAME);
    }
}

fn stems(face: &str, ending: &str) -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(face);
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    files
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == ending))
        .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
        .collect()
}

#[test]
fn every_op_has_every_face_and_no_file_is_an_orphan() {
    let mut names = Names(BTreeSet::new());
    each_op(&mut names);
    let mut wrong = Vec::new();
    for (face, ending) in FACES {
        let found = stems(face, ending);
        let shared = SHARED.iter().find(|s| s.0 == face).map_or(&[][..], |s| s.1);
        for op in &names.0 {
            if !found.contains(*op) {
                wrong.push(format!("hole: {face}/{op}.{ending} is missing"));
            }
        }
        for stem in found {
            if !names.0.contains(stem.as_str()) && !shared.contains(&stem.as_str()) {
                wrong.push(format!("orphan: {face}/{stem}.{ending} is named after no op"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The entry points of a kernel file.
fn entries(text: &str, marker: &str, before_name: &str) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for part in text.split(marker).skip(1) {
        let from = part.find(before_name).map_or(0, |at| at + before_name.len());
        let head = &part[from..];
        let end = head.find('(').expect("an entry point has parameters");
        let name = head[..end].rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
        all.insert(name.to_owned());
    }
    all
}

/// Memory without bytes: planning needs only where things are.
struct Nowhere(u64);
impl Memory for Nowhere {
    fn byte_len(&self) -> u64 {
        1 << 40
    }
    fn place(&self) -> (u64, u64) {
        (self.0, 0)
    }
}

/// The entry points that the cases reach on these devices.
fn reached<T: Verified>(devices: &[Caps]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for case in Dtype::FLOATS.into_iter().flat_map(T::cases) {
        let space = Cell::new(0);
        let apart = || Ok(Nowhere(space.replace(space.get() + 1)));
        let args = T::map(case.args, |_, v| v.try_map(|_| apart()), |_, v| v.try_map(|()| apart())).unwrap();
        let (params, signature) = prepare(&case.op, &args).unwrap_or_else(|e| panic!("{}: {e}", case.name));
        for caps in devices {
            if let Ok(plan) = case.op.plan(&params, &signature, caps) {
                let threads: u64 = plan.block.iter().map(|&b| u64::from(b)).product();
                assert!(threads <= caps.max_threads.into(), "{}: {} threads", case.name, threads);
                assert!(plan.shared_bytes <= caps.shared_bytes, "{}: {plan:?} on {}", case.name, caps.name);
                for axis in 0..3 {
                    assert!(plan.grid[axis] <= caps.max_grid[axis], "{}: {plan:?}", case.name);
                    assert!(plan.block[axis] <= caps.max_block[axis], "{}: {plan:?}", case.name);
                }
                all.insert(plan.entry.to_owned());
            }
        }
    }
    all
}

struct Reached;
impl OpVisitor for Reached {
    fn visit<T: Verified>(&mut self) {
        let wgsl = entries(T::WGSL, "@compute", "fn ");
        assert_eq!(wgsl, reached::<T>(&presets::wgsl()), "{}.wgsl: entry points and those reached", T::NAME);
        let cuda = entries(T::CUDA, "__global__", ")");
        assert_eq!(cuda, reached::<T>(&presets::cuda()), "{}.cu: entry points and those reached", T::NAME);
    }
}

#[test]
fn every_kernel_is_reached_by_a_case_and_plans_fit_their_device() {
    each_op(&mut Reached);
}

struct Many(usize);
impl OpVisitor for Many {
    fn visit<T: Verified>(&mut self) {
        for dtype in Dtype::FLOATS {
            let mut names: Vec<String> = T::cases(dtype).into_iter().map(|c| c.name).collect();
            self.0 += names.len();
            names.sort();
            let before = names.len();
            names.dedup();
            assert_eq!(names.len(), before, "{}: case names repeat", T::NAME);
        }
    }
}

#[test]
fn case_names_are_unique_and_there_are_many() {
    let mut count = Many(0);
    each_op(&mut count);
    assert!(count.0 >= 300, "{} cases", count.0);
}
