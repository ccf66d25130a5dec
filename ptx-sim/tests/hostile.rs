//! Malformed, truncated, mutated and excessive PTX gives errors: no panic, no endless loop or memory.

mod common;
use common::*;
use proptest::prelude::*;
use ptx_sim::{Error, FindingKind, Gpu, Launch, Module};

/// Parses, and runs what parses with parameters that are plausible for it.
fn survive(text: &str) {
    let Ok(module) = Module::parse(text) else {
        return;
    };
    let kernels: Vec<_> = module.kernels().collect();
    for kernel in kernels {
        let mut gpu = Gpu::new();
        let data = upload(&mut gpu, &[0u32; 1024]);
        let params: Vec<Vec<u8>> = kernel
            .param_sizes
            .iter()
            .map(|&n| {
                let word = if n == 8 { data } else { 3 };
                let mut bytes = word.to_le_bytes().to_vec();
                bytes.resize(n as usize, 1);
                bytes
            })
            .collect();
        let params: Vec<&[u8]> = params.iter().map(Vec::as_slice).collect();
        let launch = Launch {
            block: [48, 1, 1],
            params: &params,
            shared_bytes: 64,
            host_threads: 1,
            step_limit: 2000,
            ..Launch::default()
        };
        let _ = module.launch(&mut gpu, &kernel.name, &launch);
    }
}

#[test]
fn every_truncation_is_an_error_or_a_shorter_module() {
    for text in [BASIC[0], BASIC[1], TENSOR[0], TENSOR[1]] {
        for at in (0..text.len()).step_by(997) {
            if text.is_char_boundary(at) {
                survive(&text[..at]);
            }
        }
    }
}

/// Opcodes and operands to build nonsense from.
const PIECES: &[&str] = &[
    "add",
    "mul",
    "mad",
    "mov",
    "cvt",
    "ld",
    "st",
    "setp",
    "bra",
    "call",
    "ret",
    "shfl.sync",
    "mma.sync.aligned",
    ".s32",
    ".u64",
    ".f16x2",
    ".b16",
    ".global",
    ".shared",
    ".v4",
    ".wide",
    ".rn",
    ".sat",
    ".param",
    ".local",
    ".reg",
    ".align 16",
    ".b8 x[4]",
    ".entry",
    ".func",
    "{",
    "}",
    "(",
    ")",
    "[",
    "]",
    ";",
    ",",
    "|",
    "@%p0",
    "@!%p1",
    "%r0",
    "%r1",
    "%rd0",
    "%f9",
    "%tid.x",
    "%p0",
    "0",
    "-1",
    "0xffffffff",
    "99999999999999999999",
    "0f3f800000",
    "0d3ff0000000000000",
    "L:",
    "L",
    "p",
    "+",
    "+-4",
    "<",
    ">",
    "=",
    "\"x\"",
    "/*",
    "*/",
    "//",
    "\n",
    ".loc 1 2 3",
    "_",
    "WARP_SZ",
    "cp.async.ca.shared.global",
    "bar.sync",
    "atom.global.add.u32",
    ".pragma",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nonsense_in_a_kernel(picks in prop::collection::vec(prop::sample::select(PIECES), 0..60)) {
        survive(&format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p) {{\n.reg .pred %p<4>;\n.reg .b32 %r<8>;\n.reg .b64 %rd<8>;\n.reg .f32 %f<10>;\n{}\n}}",
            picks.join(" ")
        ));
    }

    #[test]
    fn nonsense_alone(picks in prop::collection::vec(prop::sample::select(PIECES), 0..40)) {
        survive(&picks.join(" "));
    }

    #[test]
    fn any_text(text in "\\PC{0,200}") {
        survive(&text);
    }

    #[test]
    fn mutated_kernels(which in 0usize..4, edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..4), 1..6)) {
        let mut bytes = [BASIC[0], BASIC[1], TENSOR[0], TENSOR[1]][which].as_bytes().to_vec();
        for (at, byte, kind) in edits {
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte & 0x7f,
                1 => _ = bytes.remove(at),
                2 => bytes.insert(at, byte & 0x7f),
                // A line twice.
                _ => {
                    let start = bytes[..at].iter().rposition(|b| *b == b'\n').map_or(0, |i| i + 1);
                    let end = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |i| at + i);
                    let line = bytes[start..end].to_vec();
                    bytes.splice(end..end, std::iter::once(b'\n').chain(line));
                }
            }
        }
        survive(&String::from_utf8_lossy(&bytes));
    }

    /// One instruction with another's modifiers and operands.
    #[test]
    fn crossed_instructions(a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(), swap_operands in any::<bool>()) {
        let text = TENSOR[0].to_owned() + &BASIC[0][BASIC[0].find(".visible").unwrap()..].replace("row_softmax", "soft");
        let lines: Vec<&str> = text.lines().collect();
        let mut changed = lines.clone();
        let (i, j) = (a.index(lines.len()), b.index(lines.len()));
        let joined;
        match (lines[i].trim().split_once(char::is_whitespace), lines[j].trim().split_once(char::is_whitespace)) {
            (Some((op, _)), Some((_, operands))) if swap_operands => {
                joined = format!("{op} {operands}");
                changed[i] = &joined;
            }
            _ => changed[i] = lines[j],
        }
        survive(&changed.join("\n"));
    }
}

#[test]
fn what_ptx_does_not_have_is_refused() {
    let head = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { .reg .pred %p<2>; .reg .b32 %r<4>; .reg .b64 %rd<4>;";
    for line in [
        "mov.b64 {%rd1}, %rd2;",
        "mov.b64 %rd1, {%rd2};",
        "setp.ltu.s32 %p1, %r1, %r2;",
        "setp.nan.u32 %p1, %r1, %r2;",
        "setp.lo.s32 %p1, %r1, %r2;",
        "setp.lt.b32 %p1, %r1, %r2;",
    ] {
        assert!(Module::parse(&format!("{head} {line} ret; }}")).is_err(), "{line}");
    }
}

#[test]
fn errors_name_the_line() {
    let body = |line: &str| {
        format!(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() {{\n.reg .b32 %r<4>;\n.reg .b64 %rd<4>;\n{line}\n}}"
        )
    };
    let unsupported = |line: &str| match Module::parse(&body(line)) {
        Err(Error::Unsupported { line: 7, instruction, .. }) => instruction,
        other => panic!("{line}: {other:?}"),
    };
    assert_eq!(unsupported("wgmma.fence.sync.aligned;"), "wgmma.fence.sync.aligned");
    unsupported("mbarrier.init.shared.b64 [%r1], 1;");
    unsupported("cp.async.bulk.commit_group;");
    unsupported("tex.2d.v4.f32.f32 {%r1,%r1,%r1,%r1}, [t, {%r1,%r1}];");
    unsupported("add.mystery.s32 %r1, %r1, %r1;");
    unsupported(
        "mma.sync.aligned.m16n8k64.row.col.s32.s4.s4.s32 {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%r1}, {%r1,%r1,%r1,%r1};",
    );
    let parse = |line: &str| match Module::parse(&body(line)) {
        Err(Error::Parse { line: 7, message }) => message,
        other => panic!("{line}: {other:?}"),
    };
    assert!(parse("add.s32 %r1, %r9, 1;").contains("%r9"));
    assert!(parse("bra NOWHERE;").contains("NOWHERE"));
    parse("add.s32 %r1, 1;");
    parse("mov.b32 %r1, undeclared;");
    parse("ld.global.v2.u32 {%r1,%r2,%r3}, [%rd1];");
    parse("@%r1 mov.b32 %r1, 0;");
    parse("selp.b32 %r1, %r2, %r3, %r0;");
}

#[test]
fn huge_demands_are_refused_or_cost_nothing() {
    let head = ".version 8.0\n.target sm_80\n.address_size 64\n";
    // A billion registers declared, none used.
    let module =
        Module::parse(&format!("{head}.visible .entry k() {{ .reg .b32 %r<1000000000>; ret; }}")).unwrap();
    module.launch(&mut Gpu::new(), "k", &Launch::default()).unwrap();
    let cases = [
        ".global .b8 x[4294967296];".to_owned(),
        ".global .b8 x[1000000000];.global .b8 y[1000000000];.global .b8 z[1000000000];.global .b8 w[1000000000];.global .b8 v[1000000000];".to_owned(),
        ".visible .entry k() { .local .b8 l[100000000]; ret; }".to_owned(),
        ".visible .entry k(.param .b8 p[100000]) { ret; }".to_owned(),
        format!(".visible .entry k() {} ret; {}", "{".repeat(10_000), "}".repeat(10_000)),
        format!(".visible .entry k() {{ .reg .b32 %r<4>; mov.b32 %r1, {}%r2{}; }}", "{".repeat(5000), "}".repeat(5000)),
        format!(".global .b32 x[4] = {}1{};", "{".repeat(5000), "}".repeat(5000)),
    ];
    for text in cases {
        assert!(Module::parse(&format!("{head}{text}")).is_err(), "{}", &text[..60.min(text.len())]);
    }
    // Branch tables, variables without a size and empty scopes: little text each, much memory together.
    let labels: String =
        (0..20_000).map(|i| if i == 0 { "L".to_owned() } else { ", L".to_owned() }).collect();
    let tables = "brx.idx %r1, T;\n".repeat(400);
    let branches = format!(
        ".visible .entry k() {{ .reg .b32 %r<2>; mov.u32 %r1, 0; L: \nT: .branchtargets {labels};\n{tables} ret; }}"
    );
    let empty: String = (0..30_000).map(|i| format!(".shared .align 4096 .b8 a{i}[0];")).collect();
    let scopes = format!(".visible .entry k() {{ {} ret; }}", "{}".repeat(300_000));
    let few = ".visible .entry k() { .reg .b32 %r<2>; {} {} .shared .align 4096 .b8 a[0]; mov.u32 %r1, 0; L: \nT: .branchtargets L, L;\nbrx.idx %r1, T; ret; }";
    Module::parse(&format!("{head}{few}")).unwrap();
    for text in [branches, format!("{empty}.visible .entry k() {{ ret; }}"), scopes] {
        assert!(Module::parse(&format!("{head}{text}")).is_err(), "{}", &text[..60]);
    }
    // A function that calls itself, with many registers.
    let many: String = (0..20_000).map(|i| format!("mov.u32 %r{i}, {i};\n")).collect();
    let deep = format!(
        "{head}.func f() {{ .reg .b32 %r<20000>; {many} call f; ret; }}.visible .entry k() {{ call f; ret; }}"
    );
    let deep = Module::parse(&deep).unwrap();
    let launch = Launch { block: [1024, 1, 1], step_limit: 1 << 24, ..Launch::default() };
    assert!(matches!(deep.launch(&mut Gpu::new(), "k", &launch), Err(Error::Findings(_))));
    let module =
        Module::parse(&format!("{head}.visible .entry k() {{ .shared .b8 s[1000000]; ret; }}")).unwrap();
    assert!(matches!(module.launch(&mut Gpu::new(), "k", &Launch::default()), Err(Error::Launch { .. })));
    // Many variables, addresses of them, and functions.
    let many = |f: fn(usize) -> String| (0..20_000).map(f).collect::<String>();
    for text in [
        many(|i| format!(".global .u64 a{i};")) + ".visible .entry k() { ret; }",
        format!(
            ".visible .entry k() {{ {} .global .u64 t[20000] = {{{}}}; ret; }}",
            many(|i| format!(".global .u64 a{i};")),
            many(|i| format!("a{i},"))
        ),
        many(|i| format!(".func f{i}() {{ ret; }}"))
            + ".visible .entry k() {"
            + &many(|i| format!("call f{i};"))
            + "ret; }",
    ] {
        let module = Module::parse(&format!("{head}{text}")).unwrap();
        module.launch(&mut Gpu::new(), "k", &Launch::default()).unwrap();
    }
    // A loop of calls that each clear a large frame.
    let frames = ".func f() { .local .b8 l[200000]; ret; }\n.visible .entry k() { L: call f; bra L; }";
    let module = Module::parse(&format!("{head}{frames}")).unwrap();
    let launch = Launch { block: [32, 1, 1], step_limit: 1 << 16, ..Launch::default() };
    assert_eq!(kinds(&findings(module.launch(&mut Gpu::new(), "k", &launch))), [FindingKind::RunawayLoop]);
    // Many blocks, loops in loops: linear enough.
    let mut code = String::new();
    for i in 0..20_000 {
        code += &format!("L{i}: @%p1 bra L{};\n", i / 2);
    }
    let module =
        Module::parse(&format!("{head}.visible .entry k() {{ .reg .pred %p<2>; {code} ret; }}")).unwrap();
    let _ = module.launch(&mut Gpu::new(), "k", &Launch { step_limit: 1000, ..Launch::default() });
}

/// What a kernel does not come to does not matter; what it comes to is named.
#[test]
fn functions_without_a_body_matter_where_they_are_called() {
    let text = |n: u32| {
        format!(
            ".version 8.0\n.target sm_90\n.address_size 64\n.extern .func free (.param .b64 p);\n.extern .func pure();
.global .u64 table[2] = {{pure, f}};\n.func f() {{ .param .b64 q; .reg .b64 %rd<2>; mov.b64 %rd1, 0; st.param.b64 [q], %rd1;
call.uni free, (q);\nret; }}\n.visible .entry k() {{ .reg .b64 %rd<4>; mov.u64 %rd1, table; ld.global.u64 %rd2, [%rd1+{n}];
{} ret; }}",
            if n == 16 { "" } else { "P: .callprototype _ ();\ncall %rd2, P;" }
        )
        .replace("ld.global.u64 %rd2, [%rd1+16];", "")
    };
    let launch = |n| Module::parse(&text(n)).unwrap().launch(&mut Gpu::new(), "k", &Launch::default());
    launch(16).unwrap();
    match launch(8) {
        Err(Error::Unsupported { line: 8, reason, .. }) => assert!(reason.contains("`free`"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(kinds(&findings(launch(0))), [FindingKind::InvalidOperand]);
}

#[test]
fn clusters_are_refused() {
    let text = |dims: &str| {
        format!(
            ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry k() .explicitcluster .reqnctapercluster {dims} {{ ret; }}"
        )
    };
    let launch = |dims| Module::parse(&text(dims)).unwrap().launch(&mut Gpu::new(), "k", &Launch::default());
    launch("1, 1, 1").unwrap();
    for dims in ["2", "1, 2, 1", "2, 1, 1"] {
        assert!(matches!(launch(dims), Err(Error::Unsupported { line: 4, .. })), "{dims}");
    }
}

/// Variables that cannot have the value they should have are errors of the text, with the line.
#[test]
fn variables_without_a_value() {
    let head = ".version 8.0\n.target sm_80\n.address_size 64\n";
    let parse = |decls: &str| Module::parse(&format!("{head}{decls}\n.visible .entry k() {{ ret; }}"));
    for (decls, line, what) in [
        (".extern .global .align 4 .b32 x;", 4, "`x` is .extern"),
        (".extern .const .align 4 .b8 x[4];", 4, "`x` is .extern"),
        ("\n.extern .global .align 4 .b8 x[];", 5, "`x` is .extern"),
        (".extern .shared .align 4 .b32 s[4];", 4, "`s` is .extern"),
        (".global .u64 p = nobody;", 4, "`nobody` is no variable"),
        (".global .u64 a;\n.global .u64 p[2] = {a, generic(nobody)+4};", 5, "`nobody` is no variable"),
        (".shared .u32 s;\n.global .u64 p = s;", 5, "`s` is no variable"),
        (".global .u64 a;\n.global .u32 p = a;", 5, "needs 8 bytes"),
        (".shared .u32 s = 5;", 4, "initial values"),
        (".global .u32 x;\n.global .u32 x;", 5, "defined twice"),
        (".visible .entry f() { .global .u64 p = nobody;\nret; }", 4, "`nobody` is no variable"),
        (".visible .entry f() { .local .u32 l = 5;\nret; }", 4, "initial values"),
    ] {
        match parse(decls) {
            Err(Error::Parse { line: got, message }) => {
                assert!(got == line && message.contains(what), "{decls}: line {got}, {message}");
            }
            other => panic!("{decls}: {other:?}"),
        }
    }
    // Declared first and defined later, in either order of what names what.
    let text = format!(
        "{head}.extern .global .align 4 .b32 x;\n.global .u64 p[3] = {{x, f, q+8}};\n.global .align 4 .b32 x = 7;\n.global .u64 q[2];
.func f() {{ ret; }}\n.visible .entry k(.param .u64 out) {{ .reg .b32 %r<2>; .reg .b64 %rd<8>;
ld.param.u64 %rd0, [out];\nld.global.u64 %rd1, [p];\nld.u32 %r0, [%rd1];\ncvt.u64.u32 %rd1, %r0;\nst.global.u64 [%rd0], %rd1;
ld.global.u64 %rd2, [p+8];\nmov.u64 %rd3, f;\nsub.u64 %rd2, %rd2, %rd3;\nst.global.u64 [%rd0+8], %rd2;
ld.global.u64 %rd2, [p+16];\nmov.u64 %rd3, q;\nsub.u64 %rd2, %rd2, %rd3;\nst.global.u64 [%rd0+16], %rd2;\nret; }}"
    );
    let module = Module::parse(&text).unwrap();
    let mut gpu = Gpu::new();
    let out = upload(&mut gpu, &[1u64; 3]);
    module.launch(&mut gpu, "k", &Launch { params: params![out], ..Launch::default() }).unwrap();
    assert_eq!(download::<u64>(&gpu, out, 3), [7, 0, 8]);
}
