//! The interface as its users meet it: C programs made by the system's compiler, and a Python program.

mod common;

use advect_capi::*;
use std::io::Write as _;
use std::mem::offset_of;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const WARNINGS: [&str; 6] = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-Wredundant-decls"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The folder with the libraries that belong to this test: cargo has built them beside it.
fn built() -> PathBuf {
    std::env::current_exe().unwrap().ancestors().nth(2).unwrap().to_path_buf()
}

/// A folder with the shared library under its own names, as an installation would have it.
fn installed(folder: &Path) {
    let (major, minor) = (ADVECT_VERSION_MAJOR, ADVECT_VERSION_MINOR);
    for name in ["libadvect.so".to_owned(), format!("libadvect.so.{major}.{minor}")] {
        std::os::unix::fs::symlink(built().join("deps/libadvect_capi.so"), folder.join(name)).unwrap();
    }
}

/// The system's C compiler, or a word about its absence, which `ADVECT_REQUIRE_HOSTS=c` does not accept.
fn compiler() -> Option<&'static str> {
    let found = ["cc", "clang", "gcc"].into_iter().find(|c| runs(Command::new(c).arg("--version")));
    absent(found.is_none(), "c", "C compiler (cc)");
    found
}

fn runs(command: &mut Command) -> bool {
    command.output().is_ok_and(|o| o.status.success())
}

/// Says that a test is skipped, unless it may not be. Past the capture of a test's output, so that it is seen.
fn absent(is: bool, name: &str, what: &str) {
    if is {
        let required = std::env::var("ADVECT_REQUIRE_HOSTS").is_ok_and(|v| v.split(',').any(|f| f == name));
        assert!(!required, "ADVECT_REQUIRE_HOSTS={name}: there is no {what}");
        // Nobody is left to tell when standard error is closed.
        let _ = writeln!(std::io::stderr(), "skipped: there is no {what}");
    }
}

#[track_caller]
fn succeeded(what: &str, output: &Output) -> String {
    let text = [&output.stdout, &output.stderr].map(|t| String::from_utf8_lossy(t).into_owned()).concat();
    assert!(output.status.success(), "{what}: {}\n{text}", output.status);
    println!("{what}:\n{text}");
    text
}

fn cc(compiler: &str, source: &Path, to: &Path) -> Command {
    let mut command = Command::new(compiler);
    command.args(WARNINGS).arg("-g").arg("-I").arg(root().join("capi/include")).arg(source).arg("-o").arg(to);
    command
}

/// What `cc` links with the shared library in `folder`.
fn shared(command: &mut Command, folder: &Path) {
    let rpath = format!("-Wl,-rpath,{}", folder.display());
    command.arg("-L").arg(folder).args(["-ladvect", "-lpthread", "-lm", &rpath]);
}

/// The checkers that a small program shows to work here, with the flags that make them.
fn sanitizers(compiler: &str, folder: &Path) -> Vec<&'static str> {
    let probe = folder.join("probe.c");
    std::fs::write(&probe, "#include <stdlib.h>\nint main(void) { free(malloc(1)); return 0; }\n").unwrap();
    let works = |flag: &str| {
        let program = folder.join("probe");
        runs(cc(compiler, &probe, &program).arg(flag)) && runs(&mut Command::new(&program))
    };
    let found: Vec<_> =
        ["-fsanitize=address", "-fsanitize=undefined"].into_iter().filter(|f| works(f)).collect();
    absent(!found.contains(&"-fsanitize=address"), "asan", "AddressSanitizer");
    found
}

/// Draws digits in C, checked for leaks and wrong addresses, on the CPU and on an adapter if there is one.
#[test]
fn digits_in_c() {
    let Some(compiler) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    installed(folder.path());
    let program = folder.path().join("digits");
    let mut command = cc(compiler, &root().join("hosts/c/digits.c"), &program);
    command.args(sanitizers(compiler, folder.path()));
    shared(&mut command, folder.path());
    succeeded("cc", &command.output().unwrap());
    let run = |device: &str, images: &str, samples: &str| {
        let picture = folder.path().join("digits.pgm");
        let mut command = Command::new(&program);
        command.arg(root()).args([device, images, samples]).arg(&picture);
        if device.starts_with("cuda") {
            // NVIDIA's driver maps memory where the address checker wants none, and keeps what it allocates.
            command.env("ASAN_OPTIONS", "protect_shadow_gap=0:detect_leaks=0");
        }
        let output = command.output().unwrap();
        let text = succeeded("digits", &output);
        assert!(text.contains("largest difference"), "{text}");
        let bytes = std::fs::read(picture).unwrap();
        assert!(bytes.starts_with(b"P5 28 ") && bytes.len() > 28 * 28);
    };
    run("cpu", "4", "heun10.cond");
    run("cpu", "4", "midpoint10.cfg1.5");
    for gpu in common::asked().into_iter().filter(|name| *name != "cpu") {
        run(gpu, "1", "euler10.cond");
    }
}

/// The small program in C, which the README shows whole.
#[test]
fn conv_in_c() {
    let source = root().join("hosts/c/conv.c");
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let program = std::fs::read_to_string(&source).unwrap();
    assert!(readme.contains(&format!("```c\n{program}```\n")), "README.md and hosts/c/conv.c differ");
    let Some(compiler) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    installed(folder.path());
    let program = folder.path().join("conv");
    let mut command = cc(compiler, &source, &program);
    command.args(sanitizers(compiler, folder.path()));
    shared(&mut command, folder.path());
    succeeded("cc", &command.output().unwrap());
    let text = succeeded("conv", &Command::new(&program).output().unwrap());
    assert!(text.contains("wanted shape [1, 1, 3, 5], got [1, 1, 5, 7]"), "{text}");
    assert!(text.contains("0 0 1 2 1 0 0\n0 0 2 4 2 0 0\n0 0 1 2 1 0 0\n"), "{text}");
}

/// The examples are short enough to be read.
#[test]
fn examples_have_less_than_150_lines() {
    const ALL: [&str; 8] = [
        "burn/denoise.rs",
        "c/conv.c",
        "c/digits.c",
        "candle/vae.rs",
        "cuda-graph/src/main.rs",
        "python/conv.py",
        "python/digits.py",
        "wgpu-engine/src/main.rs",
    ];
    for name in ALL {
        let lines = std::fs::read_to_string(root().join("hosts").join(name)).unwrap().lines().count();
        assert!(lines < 150, "hosts/{name} has {lines} lines");
    }
}

/// The static library links into a C program as well, given the system libraries that Rust needs.
#[test]
fn the_static_library_links() {
    let Some(compiler) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("version.c"), folder.path().join("version"));
    std::fs::write(
        &source,
        "#include <advect.h>\n#include <stdio.h>\nint main(void) {\n    advect_device *device;\n    \
         if (advect_device_open(\"cpu\", NULL, &device)) return 1;\n    puts(advect_version_string());\n    \
         return advect_device_destroy(device);\n}\n",
    )
    .unwrap();
    let mut command = cc(compiler, &source, &program);
    let archive = built().join("deps/libadvect_capi.a");
    command.arg(archive).args(["-lpthread", "-ldl", "-lm", "-lgcc_s", "-lrt"]);
    succeeded("cc", &command.output().unwrap());
    let text = succeeded("version", &Command::new(&program).output().unwrap());
    assert_eq!(text.trim(), env!("CARGO_PKG_VERSION"));
}

/// The header is C++ too, may be included twice, and gets on with `dlpack.h` in either order.
#[test]
fn the_header_is_cplusplus_too() {
    let Some(_) = compiler() else { return };
    let cpp = ["c++", "clang++", "g++"].into_iter().find(|c| runs(Command::new(c).arg("--version")));
    absent(cpp.is_none(), "c++", "C++ compiler");
    let Some(cpp) = cpp else { return };
    let folder = tempfile::tempdir().unwrap();
    let dlpack = "typedef struct DLManagedTensor { int x; } DLManagedTensor;\n\
                  typedef struct DLManagedTensorVersioned { int x; } DLManagedTensorVersioned;\n";
    let twice = "#include <advect.h>\n#include <advect.h>\n";
    for (i, text) in [[dlpack, twice].concat(), [twice, dlpack].concat()].iter().enumerate() {
        let source = folder.path().join(format!("{i}.cpp"));
        std::fs::write(&source, format!("{text}int main() {{ return (int)advect_version() & 0; }}\n"))
            .unwrap();
        let mut command = Command::new(cpp);
        command.args(["-std=c++11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]);
        command.arg("-I").arg(root().join("capi/include")).arg(&source);
        succeeded("c++", &command.output().unwrap());
    }
}

/// Sizes and offsets of every struct, as the C compiler lays them out and as the library does.
#[test]
fn structs_lie_as_c_lays_them() {
    let Some(compiler) = compiler() else { return };
    let mut rust = String::new();
    let mut c =
        String::from("#include <advect.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {\n");
    macro_rules! layout {
        ($($name:ident { $($field:ident),* })*) => { $(
            rust += &format!("{} {}", stringify!($name), size_of::<$name>());
            c += &format!("    printf(\"{0} %zu\", sizeof({0}));\n", stringify!($name));
            $(
                rust += &format!(" {} {}", stringify!($field), offset_of!($name, $field));
                c += &format!("    printf(\" {1} %zu\", offsetof({0}, {1}));\n", stringify!($name), stringify!($field));
            )*
            rust += "\n";
            c += "    puts(\"\");\n";
        )* };
    }
    layout! {
        advect_error { struct_size, status, reserved, message, op, argument, wanted, got }
        advect_device_options { struct_size, threads, reserved }
        advect_device_info { struct_size, kind, index, threads, software, name, description }
        advect_view { tensor, offset, shape, strides, rank, dtype }
        advect_plan { struct_size, scratch_bytes, flops, bytes, grid, block, shared_bytes, reserved, kernel }
        advect_matmul_args { struct_size, a, b, bias, residual, out, activation, reserved }
        advect_conv_args {
            struct_size, x, weight, bias, sample_bias, residual, out, stride, padding, dilation, groups, activation
        }
        advect_norm_args { struct_size, x, weight, bias, scale, shift, out, kind, groups, eps, activation }
        advect_attention_args {
            struct_size, q, k, v, bias, mask, q_lengths, k_lengths, cu_seqlens_q, cu_seqlens_k, block_table, slopes, sinks, out, lse, softmax_scale, softcap, window, window_left, window_right, max_seqlen_q, max_seqlen_k, splits
        }
        advect_merge_args { struct_size, parts, lses, out, lse }
        advect_linear_attention_args {
            struct_size, q, k, v, log_decay, beta, initial_state, out, final_state, scale, eps, causal, feature_map, normalize, reserved
        }
        advect_resample_args { struct_size, x, out, mode, reserved }
        advect_step_args {
            struct_size, x, table, out, seed, stream, coefficients, noise_coefficient, noise
        }
        advect_solver_options {
            struct_size, method, steps, times, times_count, guided, stages, guidance_scale, a, b, order, reserved
        }
        advect_solver_info { struct_size, states, stages, branches, order, evaluations }
        advect_term { coefficient, source, index, branch, reserved }
        advect_ask { struct_size, kind, state, stage, term_count, t, terms }
    }
    c += "    return 0;\n}\n";
    let header = std::fs::read_to_string(root().join("capi/include/advect.h")).unwrap();
    let structs = header.matches("typedef struct advect_").count() - 3;
    assert_eq!(
        rust.lines().count(),
        structs,
        "every struct of the header is compared, less its three handles"
    );
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("layout.c"), folder.path().join("layout"));
    std::fs::write(&source, c).unwrap();
    succeeded("cc", &cc(compiler, &source, &program).output().unwrap());
    let output = Command::new(&program).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), rust);
    if cfg!(target_pointer_width = "64") {
        // The ABI of 64-bit machines, written down: a change here breaks programs that were compiled before.
        let sizes = [56, 16, 312, 152, 128, 56, 88, 72, 152, 40, 96, 32, 144, 72, 32, 24, 224];
        let found: Vec<usize> = rust.lines().map(|l| l.split(' ').nth(1).unwrap().parse().unwrap()).collect();
        assert_eq!(found, sizes);
    }
}

/// Programs find the library by the name of its version, and see the interface's functions and no others.
#[test]
fn exported_names() {
    if !cfg!(target_os = "linux") || !runs(Command::new("nm").arg("--version")) {
        return absent(true, "nm", "nm (binutils)");
    }
    let library = built().join("deps/libadvect_capi.so");
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut names: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().nth(2)).collect();
    names.sort_unstable();
    let header = std::fs::read_to_string(root().join("capi/include/advect.h")).unwrap();
    let declared = |name: &str| header.contains(&format!("{name}("));
    let strangers: Vec<&&str> = names.iter().filter(|n| !declared(n)).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    assert!(names.len() > 40, "{names:?}");
}

/// A program that loads the library, leaves threads and an error behind, and closes it, several times over.
#[test]
fn the_library_may_be_closed() {
    let Some(compiler) = compiler() else { return };
    if !cfg!(target_os = "linux") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    installed(folder.path());
    let (source, program) = (folder.path().join("close.c"), folder.path().join("close"));
    let text = r#"
        #include <dlfcn.h>
        #include <pthread.h>
        #include <stdio.h>
        static const char *library;
        static void *use(void *none) {
            (void)none;
            void *handle = dlopen(library, RTLD_NOW);
            if (!handle) return puts(dlerror()), (void *)1;
            int (*open)(const char *, const void *, void **);
            *(void **)&open = dlsym(handle, "advect_device_open");
            void *device;
            if (!open || open("cpu", NULL, &device) != 0 || open("nothing", NULL, &device) != 1) return (void *)1;
            dlclose(handle);
            return NULL;
        }
        int main(int argc, char **argv) {
            library = argv[argc - 1];
            for (int i = 0; i < 4; i++) {
                pthread_t thread;
                void *failed;
                pthread_create(&thread, NULL, use, NULL);
                pthread_join(thread, &failed);
                if (failed) return 1;
            }
            return 0;
        }"#;
    std::fs::write(&source, text).unwrap();
    succeeded("cc", &cc(compiler, &source, &program).args(["-ldl", "-lpthread"]).output().unwrap());
    let output = Command::new(&program).arg(folder.path().join("libadvect.so")).output().unwrap();
    succeeded("close", &output);
}

/// A hostile C program: see the file.
#[test]
fn hostile_in_c() {
    let Some(compiler) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    installed(folder.path());
    let program = folder.path().join("hostile");
    let mut command = cc(compiler, &root().join("capi/tests/hostile.c"), &program);
    command.args(sanitizers(compiler, folder.path()));
    shared(&mut command, folder.path());
    succeeded("cc", &command.output().unwrap());
    succeeded("hostile", &Command::new(&program).output().unwrap());
}

/// What a Python program prints, if there is Python with NumPy; `ADVECT_NUMPY` names a folder with it.
fn python(program: &str) -> Option<String> {
    let numpy = std::env::var_os("ADVECT_NUMPY").unwrap_or_default();
    let python = || {
        let mut command = Command::new("python3");
        command.env("PYTHONDONTWRITEBYTECODE", "1").env("PYTHONPATH", &numpy);
        command
    };
    let found = runs(python().args(["-c", "import numpy; numpy.from_dlpack"]));
    absent(!found, "python", "Python with NumPy (`cargo xtask setup` fetches it)");
    found.then(|| {
        let mut command = python();
        command.arg(root().join(program)).arg(root()).arg(built().join("deps/libadvect_capi.so"));
        succeeded(program, &command.output().unwrap())
    })
}

/// The small program in Python, which the README shows whole.
#[test]
fn conv_in_python() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let program = std::fs::read_to_string(root().join("hosts/python/conv.py")).unwrap();
    assert!(
        readme.contains(&format!("```python\n{program}```\n")),
        "README.md and hosts/python/conv.py differ"
    );
    let Some(text) = python("hosts/python/conv.py") else { return };
    assert!(text.contains("wanted shape [1, 1, 3, 5], got [1, 1, 5, 7]"), "{text}");
    assert!(text.contains(" [0. 0. 1. 2. 1. 0. 0.]\n [0. 0. 2. 4. 2. 0. 0.]\n"), "{text}");
}

/// Draws digits in Python.
#[test]
fn digits_in_python() {
    python("hosts/python/digits.py");
}

/// A careless Python program: see the file.
#[test]
fn misuse_in_python() {
    python("capi/tests/misuse.py");
}
