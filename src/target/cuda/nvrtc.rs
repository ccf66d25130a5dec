//! NVRTC, NVIDIA's run-time compiler: found at run time, never linked.
//!
//! Looked for in this order:
//!
//! 1. the file or folder in the environment variable `ADVECT_NVRTC`; when that is set nothing else counts,
//! 2. the names that the system's loader knows: `libnvrtc.so.13`, `libnvrtc.so.12`, `libnvrtc.so`,
//! 3. the folders in `CUDA_PATH` and `CUDA_HOME`.
//!
//! No GPU and no driver is needed to compile.

use crate::error::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, OsString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

type Handle = *mut c_void;
type Status = c_int;

const SUCCESS: Status = 0;

/// Declares the functions of the library that are used.
macro_rules! functions {
    ($( $field:ident: $symbol:literal ( $($ty:ty),* ) -> $out:ty; )*) => {
        struct Functions { $( $field: unsafe extern "C" fn($($ty),*) -> $out, )* }

        impl Functions {
            fn find(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: these are the signatures of nvrtc.h, unchanged since the version that first had
                // each of them.
                unsafe { Ok(Self { $( $field: *library.get($symbol)?, )* }) }
            }
        }
    };
}

functions! {
    version: b"nvrtcVersion"(*mut c_int, *mut c_int) -> Status;
    count_architectures: b"nvrtcGetNumSupportedArchs"(*mut c_int) -> Status;
    architectures: b"nvrtcGetSupportedArchs"(*mut c_int) -> Status;
    error_string: b"nvrtcGetErrorString"(Status) -> *const c_char;
    create: b"nvrtcCreateProgram"(
        *mut Handle, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char
    ) -> Status;
    destroy: b"nvrtcDestroyProgram"(*mut Handle) -> Status;
    compile: b"nvrtcCompileProgram"(Handle, c_int, *const *const c_char) -> Status;
    log_size: b"nvrtcGetProgramLogSize"(Handle, *mut usize) -> Status;
    log: b"nvrtcGetProgramLog"(Handle, *mut c_char) -> Status;
    ptx_size: b"nvrtcGetPTXSize"(Handle, *mut usize) -> Status;
    ptx: b"nvrtcGetPTX"(Handle, *mut c_char) -> Status;
    cubin_size: b"nvrtcGetCUBINSize"(Handle, *mut usize) -> Status;
    cubin: b"nvrtcGetCUBIN"(Handle, *mut c_char) -> Status;
}

/// The loaded compiler. NVRTC may be called from several threads at once.
pub struct Nvrtc {
    functions: Functions,
    version: (u32, u32),
    architectures: Vec<u32>,
    /// Keeps the functions' code mapped.
    _library: Library,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvrtc")
            .field("version", &self.version)
            .field("architectures", &self.architectures)
            .finish()
    }
}

/// What to compile to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Output {
    /// Machine code. `ptxas` runs, so its resource usage is in the log.
    Cubin,
    /// PTX text, as `ptxas` would have been given it.
    Ptx,
}

/// The result of a compilation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// The CUBIN, or the PTX text without a final NUL.
    pub bytes: Vec<u8>,
    /// What the compiler said: warnings and, for CUBINs, resource usage.
    pub log: String,
}

/// The first version known to have `-minimal`.
const MINIMAL: (u32, u32) = (13, 0);

/// PTX is for the simulator, whose findings name the line of the kernel file.
const LINES: &str = "--generate-line-info";

/// The options with which machine code and PTX come from one compilation.
pub fn options_of_both(arch: &str, version: (u32, u32)) -> Vec<String> {
    let mut all = options(arch, Output::Cubin, version);
    all.push(LINES.into());
    all
}

/// The options a kernel is compiled with for an architecture as NVRTC names it (`75`, `90a`) by a version of it.
pub fn options(arch: &str, output: Output, version: (u32, u32)) -> Vec<String> {
    let (machine, last) = match output {
        Output::Cubin => ("sm", "--ptxas-options=-v"),
        Output::Ptx => ("compute", LINES),
    };
    let mut all = vec![
        format!("--gpu-architecture={machine}_{arch}"),
        "--std=c++17".into(),
        "-default-device".into(),
        last.into(),
    ];
    // Leaves out what CUDA declares without being asked: kernels include nothing, and first launches wait for NVRTC.
    if version >= MINIMAL {
        all.push("-minimal".into());
    }
    // Beside a driver it has a cache of its own from 12.9 on, and what comes from there has no log.
    if version >= (12, 9) {
        all.push("--no-cache".into());
    }
    all
}

/// The name that NVRTC has for an architecture: from 9.0 on with the features of exactly this one, which
/// is safe since kernels are compiled for the device they run on.
pub fn architecture(arch: u32) -> String {
    if arch >= 90 { format!("{arch}a") } else { arch.to_string() }
}

impl Nvrtc {
    /// The library of this process, looked for once.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not there or too old.
    pub fn get() -> Result<&'static Self> {
        static NVRTC: OnceLock<Result<Nvrtc>> = OnceLock::new();
        let set = std::env::var_os("ADVECT_NVRTC").filter(|v| !v.is_empty());
        NVRTC.get_or_init(|| Self::open(set.as_deref().map(Path::new))).as_ref().map_err(Clone::clone)
    }

    /// Loads the library from `place` (a file, or a folder to be searched), or from where it is usually.
    ///
    /// # Errors
    /// [`Error::Unavailable`] when it is not there or too old.
    pub fn open(place: Option<&Path>) -> Result<Self> {
        let candidates: Vec<OsString> = match place {
            Some(place) if place.is_file() => vec![place.into()],
            Some(place) => match search(place, 4) {
                Some(file) => vec![file.into()],
                None => {
                    let why = format!("there is no NVRTC library in ADVECT_NVRTC={}", place.display());
                    return Err(unavailable(why));
                }
            },
            None => {
                let folders = ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(std::env::var_os);
                let files = folders.filter_map(|f| search(Path::new(&f), 3)).map(OsString::from);
                NAMES.iter().map(OsString::from).chain(files).collect()
            }
        };
        let mut reasons = Vec::new();
        for candidate in &candidates {
            // SAFETY: NVRTC's initialisers only set up its own state.
            match unsafe { Library::new(candidate) } {
                Ok(library) => return Self::from_library(library),
                Err(error) => reasons.push(because(&error)),
            }
        }
        Err(unavailable(format!("NVRTC could not be loaded ({})", reasons.join("; "))))
    }

    fn from_library(library: Library) -> Result<Self> {
        let too_old = |e: libloading::Error| unavailable(format!("this NVRTC is too old: {}", because(&e)));
        let functions = Functions::find(&library).map_err(too_old)?;
        let (mut major, mut minor, mut count) = (0, 0, 0);
        let mut architectures: Vec<c_int>;
        // SAFETY: the out-parameters are valid for the call, and the array is as long as NVRTC said.
        unsafe {
            (functions.version)(&mut major, &mut minor);
            (functions.count_architectures)(&mut count);
            architectures = vec![0; count.max(0) as usize];
            (functions.architectures)(architectures.as_mut_ptr());
        }
        Ok(Self {
            functions,
            version: (major as u32, minor as u32),
            architectures: architectures.into_iter().map(|a| a as u32).collect(),
            _library: library,
        })
    }

    /// Major and minor version.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// The architectures it compiles for: 75, 80, ..
    pub fn architectures(&self) -> &[u32] {
        &self.architectures
    }

    /// Compiles one complete source. `op` names it in messages.
    ///
    /// # Errors
    /// [`Error::Compile`] with the compiler's log.
    pub fn compile(&self, op: &'static str, source: &str, arch: &str, output: Output) -> Result<Artifact> {
        self.program(op, source, arch, options(arch, output, self.version))?.artifact(output)
    }

    /// Compiles to machine code, and keeps the PTX on the way: what [`Nvrtc::compile`] makes of either, for little more than
    /// the machine code alone.
    ///
    /// # Errors
    /// As [`Nvrtc::compile`].
    pub fn compile_both(&self, op: &'static str, source: &str, arch: &str) -> Result<[Artifact; 2]> {
        let program = self.program(op, source, arch, options_of_both(arch, self.version))?;
        Ok([program.artifact(Output::Cubin)?, program.artifact(Output::Ptx)?])
    }

    fn program(
        &self,
        op: &'static str,
        source: &str,
        arch: &str,
        options: Vec<String>,
    ) -> Result<Program<'_>> {
        let mut program = Program { nvrtc: self, op, arch: arch.to_owned(), handle: std::ptr::null_mut() };
        let c_string = |s: String| CString::new(s).map_err(|e| program.failed(e.to_string()));
        let (text, name) = (c_string(source.to_owned())?, c_string(format!("{op}.cu"))?);
        let options = options.into_iter().map(c_string).collect::<Result<Vec<_>>>()?;
        let options: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: the strings outlive the calls, the handle is destroyed with the program; there are no headers.
        let status = unsafe {
            let no_headers = std::ptr::null();
            (self.functions.create)(
                &mut program.handle,
                text.as_ptr(),
                name.as_ptr(),
                0,
                no_headers,
                no_headers,
            )
        };
        if status != SUCCESS {
            return Err(program.failed(self.says(status)));
        }
        // SAFETY: the program was created above and the options are as many strings as is said.
        let status =
            unsafe { (self.functions.compile)(program.handle, options.len() as c_int, options.as_ptr()) };
        if status != SUCCESS {
            return Err(program.failed(format!("{}\n{}", self.says(status), program.log())));
        }
        Ok(program)
    }

    fn says(&self, status: Status) -> String {
        // SAFETY: NVRTC gives a static string for every status.
        unsafe { CStr::from_ptr((self.functions.error_string)(status)) }.to_string_lossy().into_owned()
    }
}

/// A program, destroyed when it goes out of scope.
struct Program<'a> {
    nvrtc: &'a Nvrtc,
    op: &'static str,
    arch: String,
    handle: Handle,
}

type Size = unsafe extern "C" fn(Handle, *mut usize) -> Status;
type Get = unsafe extern "C" fn(Handle, *mut c_char) -> Status;

impl Program<'_> {
    /// What was compiled.
    fn artifact(&self, output: Output) -> Result<Artifact> {
        let Functions { cubin_size, cubin, ptx_size, ptx, .. } = self.nvrtc.functions;
        let (size, get) = match output {
            Output::Cubin => (cubin_size, cubin),
            Output::Ptx => (ptx_size, ptx),
        };
        let mut bytes = self.text(size, get).map_err(|status| self.failed(self.nvrtc.says(status)))?;
        if output == Output::Ptx {
            while bytes.last() == Some(&0) {
                bytes.pop();
            }
        }
        Ok(Artifact { bytes, log: self.log() })
    }

    fn log(&self) -> String {
        let Functions { log_size, log, .. } = self.nvrtc.functions;
        let log = self.text(log_size, log).unwrap_or_default();
        String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n']).to_owned()
    }

    fn failed(&self, log: String) -> Error {
        Error::Compile { op: self.op, language: "CUDA", target: format!("sm_{}", self.arch), log }
    }

    /// One of the program's texts: its size, then its bytes.
    fn text(&self, size: Size, get: Get) -> Result<Vec<u8>, Status> {
        let mut bytes = 0;
        // SAFETY: the program is alive and `bytes` is valid for the call.
        let status = unsafe { size(self.handle, &mut bytes) };
        if status != SUCCESS {
            return Err(status);
        }
        let mut text = vec![0u8; bytes];
        // SAFETY: the buffer has the size that NVRTC asked for.
        let status = unsafe { get(self.handle, text.as_mut_ptr().cast()) };
        if status == SUCCESS { Ok(text) } else { Err(status) }
    }
}

impl Drop for Program<'_> {
    fn drop(&mut self) {
        if !self.handle.is_null() {
            // SAFETY: created by `nvrtcCreateProgram` and destroyed only here.
            unsafe { (self.nvrtc.functions.destroy)(&mut self.handle) };
        }
    }
}

const NAMES: &[&str] = if cfg!(windows) {
    &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
} else {
    &["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"]
};

/// The NVRTC library in a folder or up to `depth` folders below it.
fn search(folder: &Path, depth: usize) -> Option<PathBuf> {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.filter_map(|e| Some(e.ok()?.path())).collect();
    entries.sort();
    let is_nvrtc = |path: &&PathBuf| {
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let versioned = |prefix, ending: &str| {
            name.strip_prefix(prefix).is_some_and(|rest: &str| rest.contains(ending)) && path.is_file()
        };
        if cfg!(windows) {
            versioned("nvrtc64_", "_0.dll") && !name.contains("alt")
        } else {
            versioned("libnvrtc.so", "")
        }
    };
    if let Some(file) = entries.iter().rev().find(is_nvrtc) {
        return Some(file.clone());
    }
    let deeper = depth.checked_sub(1)?;
    entries.iter().filter(|e| e.is_dir()).find_map(|e| search(e, deeper))
}

/// The innermost cause of a failure to load.
fn because(error: &libloading::Error) -> String {
    let mut innermost: &dyn std::error::Error = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}

fn unavailable(why: String) -> Error {
    let remedy = "install the CUDA toolkit, or the Python package nvidia-cuda-nvrtc and set ADVECT_NVRTC to \
                  its folder (in advect's repository `cargo xtask setup` does that)";
    Error::Unavailable { target: "cuda", why, remedy: remedy.into() }
}

/// What `ptxas` says that a kernel uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: u32,
    /// Static shared memory of a block in bytes.
    pub shared_bytes: u32,
    /// Bytes of registers that are spilled to memory, stores and loads together.
    pub spill_bytes: u32,
    /// Local memory of a thread in bytes: spills, and arrays that are not in registers.
    pub stack_bytes: u32,
}

impl Usage {
    /// The usage of the kernel `entry` from a log made with `--ptxas-options=-v`; `None` when the log
    /// does not have it.
    pub fn parse(log: &str, entry: &str) -> Option<Self> {
        let start = format!("Compiling entry function '{entry}'");
        let mut lines = log.lines().skip_while(|l| !l.contains(&start)).skip(1);
        let mut usage = Self::default();
        for line in lines.by_ref().take_while(|l| !l.contains("Compiling entry function")) {
            let amount = |unit: &str| {
                let before = line[..line.find(unit)?].trim_end();
                before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse::<u32>().ok()
            };
            if let (Some(stores), Some(loads)) = (amount("bytes spill stores"), amount("bytes spill loads")) {
                usage.spill_bytes = stores + loads;
                usage.stack_bytes = amount("bytes stack frame").unwrap_or(0);
            }
            if let Some(registers) = amount("registers") {
                usage.registers = registers;
                usage.shared_bytes = amount("bytes smem").unwrap_or(0);
            }
        }
        (usage.registers > 0).then_some(usage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size, 1024 bytes smem, 388 bytes cmem[0]
ptxas info    : Compile time = 3.061 ms
ptxas info    : Compiling entry function 'first_other' for 'sm_80'
ptxas info    : Function properties for first_other
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 360 bytes cmem[0]";

    #[test]
    fn usage_is_read_from_the_log_of_the_right_kernel() {
        let first = Usage { registers: 255, shared_bytes: 1024, spill_bytes: 20, stack_bytes: 16 };
        assert_eq!(Usage::parse(LOG, "first"), Some(first));
        assert_eq!(Usage::parse(LOG, "first_other"), Some(Usage { registers: 8, ..Usage::default() }));
        assert_eq!(Usage::parse(LOG, "second"), None);
        assert_eq!(Usage::parse("", "first"), None);
    }

    #[test]
    fn a_missing_library_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        for place in [folder.path().to_owned(), folder.path().join("nothing")] {
            let error = Nvrtc::open(Some(&place)).unwrap_err();
            assert!(matches!(error, Error::Unavailable { target: "cuda", .. }), "{error:?}");
            assert!(error.to_string().contains("ADVECT_NVRTC"), "{error}");
        }
        let broken = folder.path().join("libnvrtc.so.13");
        std::fs::write(&broken, "no library").unwrap();
        let error = Nvrtc::open(Some(folder.path())).unwrap_err();
        assert!(error.to_string().contains("could not be loaded"), "{error}");
    }

    #[test]
    fn the_library_is_found_below_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let lib = folder.path().join("nvidia/cu13/lib");
        std::fs::create_dir_all(&lib).unwrap();
        let name = if cfg!(windows) { "nvrtc64_130_0.dll" } else { "libnvrtc.so.13" };
        for file in [name, "libnvrtc-builtins.so.13.5", "libother.so"] {
            std::fs::write(lib.join(file), "").unwrap();
        }
        assert_eq!(search(folder.path(), 4), Some(lib.join(name)));
        assert_eq!(search(folder.path(), 1), None);
    }

    #[test]
    fn architectures_are_named_as_nvrtc_does() {
        assert_eq!([75, 89, 90, 120].map(architecture), ["75", "89", "90a", "120a"]);
        assert_eq!(options("90a", Output::Cubin, (13, 0))[0], "--gpu-architecture=sm_90a");
        assert_eq!(options("75", Output::Ptx, (12, 0))[0], "--gpu-architecture=compute_75");
        let no_cache = |version| options("75", Output::Ptx, version).contains(&"--no-cache".to_owned());
        assert_eq!([(12, 8), (12, 9), (13, 0)].map(no_cache), [false, true, true]);
    }
}
