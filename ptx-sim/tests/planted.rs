//! Mistakes put into correct kernels on purpose: each must be found, and named for what it is.

mod common;
use common::*;
use ptx_sim::{Class, Error, Finding, FindingKind, Gpu, Launch, Module, Schedule};

const HEAD: &str = ".version 8.0\n.target sm_80\n.address_size 64\n";

/// A kernel `k` with one pointer parameter in %rd0, the thread in %r0 and its 4-byte slot in %rd1.
fn kernel(decls: &str, body: &str) -> Module {
    let text = format!(
        "{HEAD}{decls}
.visible .entry k(.param .u64 p) {{
.reg .pred %p<16>; .reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .f32 %f<8>; .reg .b16 %h<4>;
ld.param.u64 %rd0, [p];
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd1, %r0, 4;
add.s64 %rd1, %rd0, %rd1;
{body}
ret;
}}"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn launch(
    module: &Module,
    gpu: &mut Gpu,
    p: u64,
    grid: u32,
    block: u32,
    schedule: Schedule,
) -> Result<ptx_sim::Report, Error> {
    let params: &[&[u8]] = params![p];
    let launch = Launch {
        grid: [grid, 1, 1],
        block: [block, 1, 1],
        params,
        schedule,
        step_limit: 100_000,
        ..Launch::default()
    };
    module.launch(gpu, "k", &launch)
}

/// Runs one block over 64 written words and wants findings of one kind, the same under every schedule.
fn one(decls: &str, body: &str, grid: u32, block: u32) -> Finding {
    let module = kernel(decls, body);
    let mut found = Vec::new();
    for schedule in SCHEDULES {
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &[0u32; 64]);
        let list = findings(launch(&module, &mut gpu, p, grid, block, schedule));
        assert!(list.iter().all(|f| f.kind == list[0].kind), "{schedule:?}: {list:?}");
        found.push(list.into_iter().next().unwrap());
    }
    assert!(found.iter().all(|f| f.kind == found[0].kind), "{found:?}");
    found.swap_remove(0)
}

fn clean(decls: &str, body: &str, grid: u32, block: u32) {
    let module = kernel(decls, body);
    for schedule in SCHEDULES {
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &[0u32; 64]);
        launch(&module, &mut gpu, p, grid, block, schedule).unwrap();
    }
}

const SHARED: &str = ".shared .align 4 .b8 s[256];";

#[test]
fn out_of_bounds_names_allocation_thread_and_line() {
    let f = one("", "st.global.u32 [%rd1+16], %r0;", 1, 64);
    assert_eq!(f.kind, FindingKind::OutOfBounds);
    assert_eq!((f.thread, f.block, f.count), ([60, 0, 0], [0, 0, 0], 4));
    assert!(f.message.contains("offset 256 of an allocation of 256 bytes"), "{f}");
    assert_eq!(f.ptx_line, 11);
    assert!(f.to_string().contains("PTX line 11"));
    let f = one("", "ld.global.u32 %r1, [%rd0+-4];", 1, 1);
    assert_eq!(f.kind, FindingKind::OutOfBounds);
}

#[test]
fn null_and_shared_and_local_and_param_bounds() {
    assert_eq!(one("", "mov.u64 %rd2, 0;\nld.global.u32 %r1, [%rd2];", 1, 1).kind, FindingKind::OutOfBounds);
    let f = one(SHARED, "mov.u32 %r1, s;\nst.shared.u32 [%r1+256], %r0;", 1, 1);
    assert_eq!(f.kind, FindingKind::OutOfBounds);
    assert!(f.message.contains("at offset 256 of a shared variable of 256 bytes"), "{}", f.message);
    // Just past its end, in the next variable's gap, and far away; through a generic address too.
    let declared = ".local .align 4 .b8 l[16];\n.local .align 4 .b8 next[16];\nmov.u64 %rd2, l;\n";
    for store in ["st.local.u32 [%rd2+16], %r0;", "st.local.u32 [%rd2+64], %r0;"] {
        assert_eq!(one("", &format!("{declared}{store}"), 1, 1).kind, FindingKind::OutOfBounds, "{store}");
    }
    let generic = format!("{declared}cvta.local.u64 %rd3, %rd2;\nst.u32 [%rd3+16], %r0;");
    assert_eq!(one("", &generic, 1, 1).kind, FindingKind::OutOfBounds);
    clean("", &format!("{declared}st.local.u32 [%rd2+12], %r0;\nld.local.u32 %r1, [%rd2+12];"), 1, 1);
    assert_eq!(one("", "ld.param.u64 %rd2, [p+8];", 1, 1).kind, FindingKind::OutOfBounds);
    // Past one parameter and inside the next.
    let text = format!(
        "{HEAD}.visible .entry k(.param .u32 a, .param .u32 b) {{ .reg .b32 %r<2>; .reg .b64 %rd<2>;\nld.param.u64 %rd1, [a];\nret; }}"
    );
    let params: &[&[u8]] = params![1u32, 2u32];
    let list = findings(Module::parse(&text).unwrap().launch(
        &mut Gpu::new(),
        "k",
        &Launch { params, ..Launch::default() },
    ));
    assert_eq!(kinds(&list), [FindingKind::OutOfBounds]);
}

#[test]
fn misaligned_access() {
    assert_eq!(one("", "st.global.u32 [%rd0+2], %r0;", 1, 1).kind, FindingKind::Misaligned);
    assert_eq!(one("", "ld.global.v4.u32 {%r1,%r2,%r3,%r4}, [%rd0+8];", 1, 1).kind, FindingKind::Misaligned);
    assert_eq!(
        one(SHARED, "mov.b16 %h0, 1;\nmov.u32 %r1, s;\nst.shared.u16 [%r1+1], %h0;", 1, 1).kind,
        FindingKind::Misaligned
    );
    // Memory is aligned as it is declared, and not better.
    let pair = "mov.u32 %r1, s;\nst.shared.v2.u32 [%r1], {%r0, %r0};";
    assert_eq!(one(SHARED, pair, 1, 1).kind, FindingKind::Misaligned);
    clean(".shared .align 8 .b8 s[256];", pair, 1, 1);
    let dynamic = "mov.u32 %r1, s;\nst.shared.v2.u32 [%r1], {%r0, %r0};";
    let module = kernel(".extern .shared .align 4 .b8 s[];", dynamic);
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u32; 64]);
    let params: &[&[u8]] = params![p];
    let list =
        findings(module.launch(&mut gpu, "k", &Launch { params, shared_bytes: 64, ..Launch::default() }));
    assert_eq!(kinds(&list), [FindingKind::Misaligned]);
    let local = ".local .align 4 .b8 l[16];\nmov.u64 %rd2, l;\nst.local.v2.u32 [%rd2], {%r0, %r0};";
    assert_eq!(one("", local, 1, 1).kind, FindingKind::Misaligned);
    clean("", &local.replace(".align 4", ".align 8"), 1, 1);
}

#[test]
fn freed_memory() {
    let module = kernel("", "ld.global.u32 %r1, [%rd1];\nst.global.u32 [%rd1], %r1;");
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u32; 64]);
    gpu.free(p).unwrap();
    let list = findings(launch(&module, &mut gpu, p, 1, 32, Schedule::FirstWarpFirst));
    assert_eq!(kinds(&list), [FindingKind::UseAfterFree, FindingKind::UseAfterFree]);
    assert!(gpu.free(p).is_err() && gpu.read(p, &mut [0]).is_err());
}

#[test]
fn memory_never_written() {
    let module = kernel("", "ld.global.u32 %r1, [%rd1];\nst.global.u32 [%rd1], %r1;");
    let mut gpu = Gpu::new();
    let p = gpu.alloc(256);
    gpu.write(p, &[0; 248]).unwrap();
    let list = findings(launch(&module, &mut gpu, p, 1, 64, Schedule::FirstWarpFirst));
    assert_eq!(kinds(&list), [FindingKind::UninitializedMemory]);
    assert_eq!((list[0].thread, list[0].count, list[0].address), ([62, 0, 0], 2, Some(p + 248)));
    let f = one(SHARED, "mov.u32 %r1, s;\nld.shared.u32 %r2, [%r1];", 1, 1);
    assert_eq!(f.kind, FindingKind::UninitializedMemory);
    // Local memory carries it on until it matters.
    let local =
        ".local .align 4 .b8 l[16];\nmov.u64 %rd2, l;\nld.local.u32 %r1, [%rd2];\nst.global.u32 [%rd1], %r1;";
    assert_eq!(one("", local, 1, 1).kind, FindingKind::UninitializedRegister);
}

#[test]
fn register_never_written() {
    let f = one("", "add.s32 %r2, %r1, 1;\nst.global.u32 [%rd1], %r2;", 1, 1);
    assert_eq!((f.kind, f.ptx_line), (FindingKind::UninitializedRegister, 12));
    let f = one("", "setp.eq.s32 %p1, %r1, 0;\n@%p1 bra L;\nL:", 1, 1);
    assert_eq!((f.kind, f.ptx_line), (FindingKind::UninitializedRegister, 12));
    // In half of the lanes only.
    let f = one("", "setp.lt.u32 %p1, %r0, 16;\n@%p1 mov.u32 %r1, 5;\nst.global.u32 [%rd1], %r1;", 1, 32);
    assert_eq!((f.kind, f.thread), (FindingKind::UninitializedRegister, [16, 0, 0]));
    // Used, but not in what leaves the kernel.
    clean("", "add.s32 %r2, %r1, 1;\nst.global.u32 [%rd1], %r0;", 1, 1);
    for body in [
        "bar.red.or.pred %p1, 0, %p2;",
        "bar.red.popc.u32 %r1, 0, %p2;",
        "setp.eq.u32 %p1, %r0, %r0;\nset.eq.and.u32.u32 %r1, %r0, %r0, %p2;\nst.global.u32 [%rd1], %r1;",
    ] {
        assert_eq!(one("", body, 1, 32).kind, FindingKind::UninitializedRegister, "{body}");
    }
    // Barrier numbers and counts that were never written are most often invalid as well.
    for body in ["bar.sync %r1;", "bar.sync 0, %r1;"] {
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &[0u32; 64]);
        let result = launch(&kernel("", body), &mut gpu, p, 1, 32, Schedule::FirstWarpFirst);
        assert!(kinds(&findings(result)).contains(&FindingKind::UninitializedRegister), "{body}");
    }
    let copy = "cp.async.ca.shared.global [s], [%rd0], 4, %p2;\ncp.async.wait_all;";
    assert_eq!(one(SHARED, copy, 1, 1).kind, FindingKind::UninitializedRegister);
}

/// A struct with padding, or with a member that is not set, travels in wide registers and vectors.
#[test]
fn the_written_half_of_a_register_may_be_used() {
    const LOCAL: &str = ".local .align 16 .b8 l[16];\nmov.u64 %rd3, l;\nmov.b32 %r1, 7;\n";
    for (body, written, other) in [
        ("mov.b64 %rd2, {%r0, %r2};\nmov.b64 %rd4, %rd2;\nmov.b64 {%r3, %r4}, %rd4;", "%r3", "%r4"),
        ("mov.b64 %rd2, {%r2, %r0};\nmov.b64 {%r4, %r3}, %rd2;", "%r3", "%r4"),
        (
            "mov.b16 %h0, 1;\nmov.b32 %r2, {%h0, %h1};\nmov.b32 {%h2, %h3}, %r2;\ncvt.u32.u16 %r3, %h2;\ncvt.u32.u16 %r4, %h3;",
            "%r3",
            "%r4",
        ),
        (
            "mov.b64 %rd2, {%r0, %r2};\ncvt.u32.u64 %r3, %rd2;\nshr.u64 %rd4, %rd2, 32;\ncvt.u32.u64 %r4, %rd4;",
            "%r3",
            "%r4",
        ),
        (
            ".local .align 16 .b8 l[16];\nmov.u64 %rd3, l;\nst.local.v2.b32 [%rd3], {%r0, %r2};\nld.local.v2.b32 {%r3, %r4}, [%rd3];",
            "%r3",
            "%r4",
        ),
        (
            ".local .align 16 .b8 l[16];\nmov.u64 %rd3, l;\nmov.b64 %rd2, {%r2, %r0};\nst.local.b64 [%rd3], %rd2;\nld.local.b64 %rd4, [%rd3];\nmov.b64 {%r4, %r3}, %rd4;",
            "%r3",
            "%r4",
        ),
    ] {
        clean("", &format!("{body}\nst.global.u32 [%rd1], {written};"), 1, 32);
        let f = one("", &format!("{body}\nst.global.u32 [%rd1], {other};"), 1, 32);
        assert_eq!(f.kind, FindingKind::UninitializedRegister, "{body}");
    }
    let vector =
        format!("{LOCAL}st.local.b32 [%rd3+4], %r1;\nld.local.v4.b32 {{%r2, %r3, %r4, %r5}}, [%rd3];");
    clean("", &format!("{vector}\nst.global.u32 [%rd1], %r3;"), 1, 32);
    assert_eq!(
        one("", &format!("{vector}\nst.global.u32 [%rd1], %r4;"), 1, 32).kind,
        FindingKind::UninitializedRegister
    );
    // All of a register that holds half of a value counts.
    let whole = "mov.b64 %rd2, {%r0, %r2};\nst.global.b64 [%rd0], %rd2;";
    assert_eq!(one("", whole, 1, 1).kind, FindingKind::UninitializedRegister);
    // A register that is written anew forgets what it held.
    let anew = "mov.b64 %rd2, {%r0, %r2};\nadd.s64 %rd2, %rd4, 1;\nmov.b64 {%r3, %r4}, %rd2;\nst.global.u32 [%rd1], %r3;";
    assert_eq!(one("", anew, 1, 1).kind, FindingKind::UninitializedRegister);
}

/// A carry that nothing has set, in these lanes or at all, or that comes from what nothing has written.
#[test]
fn carry_never_set() {
    for body in [
        "addc.u32 %r2, %r0, %r0;\nst.global.u32 [%rd1], %r2;",
        "subc.u32 %r2, %r0, %r0;\nst.global.u32 [%rd1], %r2;",
        "madc.lo.u32 %r2, %r0, %r0, %r0;\nst.global.u32 [%rd1], %r2;",
        "addc.u64 %rd2, %rd1, %rd1;\nst.global.u64 [%rd0], %rd2;",
        "add.cc.u32 %r2, %r1, %r0;\naddc.u32 %r2, %r0, 0;\nst.global.u32 [%rd1], %r2;",
        // Passed on by an instruction that takes it and gives one.
        "addc.cc.u32 %r2, %r0, %r0;\naddc.u32 %r2, %r0, 0;\nst.global.u32 [%rd1], %r2;",
    ] {
        assert_eq!(one("", body, 1, 1).kind, FindingKind::UninitializedRegister, "{body}");
    }
    let half = "setp.lt.u32 %p1, %r0, 16;\n@%p1 add.cc.u32 %r2, %r0, 1;\naddc.u32 %r2, %r0, 0;\n";
    let f = one("", &format!("{half}st.global.u32 [%rd1], %r2;"), 1, 32);
    assert_eq!((f.kind, f.thread), (FindingKind::UninitializedRegister, [16, 0, 0]));
    clean("", &format!("{half}@%p1 st.global.u32 [%rd1], %r2;"), 1, 32);
    clean(
        "",
        "add.cc.u32 %r2, %r0, 1;\naddc.cc.u32 %r2, %r0, 0;\naddc.u32 %r2, %r0, 0;\nst.global.u32 [%rd1], %r2;",
        1,
        64,
    );
    // A call does not preserve it, neither on the way in nor back.
    let f = ".func f() { .reg .b32 %r<2>;\nmov.u32 %r0, 1;\nadd.cc.u32 %r0, %r0, 1;\nret; }";
    let body = "add.cc.u32 %r2, %r0, 1;\ncall.uni f, ();\naddc.u32 %r2, %r0, 0;\nst.global.u32 [%rd1], %r2;";
    assert_eq!(one(f, body, 1, 1).kind, FindingKind::UninitializedRegister);
    let f =
        ".func (.param .b32 r) f() { .reg .b32 %r<2>;\naddc.u32 %r0, 1, 1;\nst.param.b32 [r], %r0;\nret; }";
    let body = "add.cc.u32 %r2, %r0, 1;\n{ .param .b32 r;\ncall.uni (r), f, ();\nld.param.b32 %r2, [r];\n}\nst.global.u32 [%rd1], %r2;";
    assert_eq!(one(f, body, 1, 1).kind, FindingKind::UninitializedRegister);
}

/// The kernel of `texts` with one line that contains `what` removed, by its number among them.
fn without(text: &str, kernel: &str, what: &str, number: usize) -> Option<String> {
    let start = text.find(&format!(".entry {kernel}("))?;
    let end = text[start..].find("\n}").map(|e| start + e)?;
    let (at, _) = text[start..end].match_indices(what).nth(number)?;
    let line_end = text[start + at..].find('\n')? + start + at;
    Some(format!("{}{}", &text[..start + at], &text[line_end..]))
}

/// Removes each barrier in turn; returns how often that is a shared race under every schedule, of how many.
fn barriers_removed(
    text: &str,
    kernel: &str,
    launch: impl Fn(&Module, &mut Gpu, Schedule) -> Result<ptx_sim::Report, Error>,
) -> (usize, usize) {
    let (mut number, mut noticed) = (0, 0);
    while let Some(ptx) = without(text, kernel, "bar.sync", number) {
        number += 1;
        let module = Module::parse(&ptx).unwrap();
        let results: Vec<_> = SCHEDULES.into_iter().map(|s| launch(&module, &mut Gpu::new(), s)).collect();
        if results.iter().all(Result::is_ok) {
            continue;
        }
        noticed += 1;
        for list in results.into_iter().map(findings) {
            let race = list.iter().find(|f| f.kind == FindingKind::SharedRace).expect("a race");
            assert_eq!(race.source.as_ref().unwrap().file, "basic.cu");
        }
    }
    (noticed, number)
}

#[test]
fn every_missing_block_barrier_is_a_race_in_both_dialects() {
    for text in BASIC {
        let (noticed, all) = barriers_removed(text, "tiled_matmul", |module, gpu, schedule| {
            // Seven tiles, so that unrolled code and its remainder both run.
            let a = upload(gpu, &noise(112 * 112, 1));
            let out = gpu.alloc(112 * 112 * 4);
            run(module, gpu, "tiled_matmul", [1, 1, 1], [16, 16, 1], 0, params![a, a, out, 112u32], schedule)
        });
        // Nothing follows the barrier of the last tile where that is a barrier of its own.
        assert!(noticed >= 2 && noticed + 1 >= all, "{noticed} of {all}");
        let counts = barriers_removed(text, "row_softmax", |module, gpu, schedule| {
            let x = upload(gpu, &noise(200, 1));
            let out = gpu.alloc(800);
            run(module, gpu, "row_softmax", [1, 1, 1], [128, 1, 1], 16, params![x, out, 200u32], schedule)
        });
        assert_eq!(counts, (3, 3));
    }
}

#[test]
fn every_missing_wait_and_barrier_of_the_async_pipeline_is_found() {
    let launch = |ptx: &str| {
        let module = Module::parse(ptx).unwrap();
        let mut gpu = Gpu::new();
        let a = upload(&mut gpu, &vec![0x3c00u16; 16 * 112]);
        let b = upload(&mut gpu, &vec![0x3c00u16; 112 * 8]);
        let out = gpu.alloc(16 * 8 * 4);
        let params = params![a, b, out, 16u32, 8u32, 112u32];
        run(&module, &mut gpu, "gemm_f16", [1, 1, 1], [32, 1, 1], 0, params, Schedule::FirstWarpFirst)
    };
    let cases = [
        ("cp.async.wait_group", Class::Async, FindingKind::AsyncNotWaited),
        ("bar.sync", Class::Barrier, FindingKind::SharedRace),
    ];
    for text in TENSOR {
        let whole = launch(text).unwrap().counters;
        for (what, class, kind) in cases {
            let (mut number, mut noticed, mut harmless) = (0, 0, 0);
            while let Some(ptx) = without(text, "gemm_f16", what, number) {
                number += 1;
                match launch(&ptx) {
                    Err(Error::Findings(list)) => {
                        noticed += 1;
                        assert!(list.iter().any(|f| f.kind == kind), "{what} {number}: {list:?}");
                    }
                    // Of the code unrolled by four, not every copy runs.
                    other => {
                        harmless += u32::from(other.unwrap().counters.class(class) != whole.class(class))
                    }
                }
            }
            assert!(noticed >= 2, "{what}: {noticed} of {number}");
            // The last barrier has nothing behind it.
            assert!(harmless <= u32::from(class == Class::Barrier), "{what}: {harmless} of {number}");
        }
    }
}

#[test]
fn shared_races_of_each_kind() {
    let body = "mov.u32 %r1, s;\nshl.b32 %r2, %r0, 2;\nadd.u32 %r3, %r1, %r2;\nst.shared.u32 [%r3], %r0;";
    // Read of a neighbour's word, in the other warp.
    let f = one(
        SHARED,
        &format!(
            "{body}\nbar.sync 0;\nxor.b32 %r4, %r2, 128;\nadd.u32 %r4, %r1, %r4;\nst.shared.u32 [%r4], %r2;\nld.shared.u32 %r5, [%r3];"
        ),
        1,
        64,
    );
    assert_eq!(f.kind, FindingKind::SharedRace);
    // Two writers of different values to one word, in one instruction.
    let f = one(SHARED, "mov.u32 %r1, s;\nst.shared.u32 [%r1], %r0;", 1, 32);
    assert_eq!(f.kind, FindingKind::SharedRace);
    // The same value: harmless.
    clean(SHARED, "mov.u32 %r1, s;\nst.shared.u32 [%r1], 7;", 1, 64);
    // Within a warp, without bar.warp.sync, and with it.
    let near =
        "xor.b32 %r4, %r2, 4;\nadd.u32 %r4, %r1, %r4;\nld.shared.u32 %r5, [%r4];\nst.global.u32 [%rd1], %r5;";
    assert_eq!(one(SHARED, &format!("{body}\n{near}"), 1, 32).kind, FindingKind::SharedRace);
    clean(SHARED, &format!("{body}\nbar.warp.sync -1;\n{near}"), 1, 64);
    // Atomics do not race with each other, but with plain accesses.
    let zero = "mov.u32 %r1, s;\nst.shared.u32 [%r1], 0;\nbar.sync 0;\natom.shared.add.u32 %r2, [%r1], 1;";
    clean(SHARED, zero, 1, 64);
    assert_eq!(
        one(SHARED, &format!("{zero}\nld.shared.u32 %r3, [%r1];"), 1, 64).kind,
        FindingKind::SharedRace
    );
    // Bytes of one word in different threads are no race.
    clean(SHARED, "mov.u32 %r1, s;\nadd.u32 %r1, %r1, %r0;\nst.shared.u8 [%r1], %r0;", 1, 64);
}

#[test]
fn named_barriers_order_only_those_who_meet() {
    let body = |id: &str| {
        format!(
            "mov.u32 %r1, s;\nshl.b32 %r2, %r0, 2;\nadd.u32 %r3, %r1, %r2;\nst.shared.u32 [%r3], %r0;
shr.u32 %r6, %r0, 6;\nadd.u32 %r6, %r6, 1;\nbar.sync {id};
xor.b32 %r4, %r2, 128;\nadd.u32 %r4, %r1, %r4;\nld.shared.u32 %r5, [%r4];"
        )
    };
    let big = ".shared .align 4 .b8 s[512];";
    // Warps 0 and 1 meet at barrier 1, warps 2 and 3 at barrier 2, and each reads its partner's words.
    clean(big, &body("%r6, 64"), 1, 128);
    // Reading from the other pair is not ordered by that.
    let crossed = body("%r6, 64").replace("%r2, 128", "%r2, 256");
    let module = kernel(big, &crossed);
    for schedule in SCHEDULES {
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &[0u32; 64]);
        // Which of the pairs comes first decides whether the words have been written at all.
        let list = findings(launch(&module, &mut gpu, p, 1, 128, schedule));
        assert!(kinds(&list).contains(&FindingKind::SharedRace), "{schedule:?}: {list:?}");
    }
}

#[test]
fn global_races_within_and_across_blocks() {
    let f = one("", "st.global.u32 [%rd0], %r0;", 1, 64);
    assert_eq!(f.kind, FindingKind::GlobalRace);
    let f = one("", "mov.u32 %r1, %ctaid.x;\nst.global.u32 [%rd1], %r1;", 2, 32);
    assert_eq!(f.kind, FindingKind::GlobalRace);
    assert!(f.message.contains("nothing orders blocks"), "{f}");
    // One block reads what another writes.
    let body = "mov.u32 %r1, %ctaid.x;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 st.global.u32 [%rd1], 5;\n@!%p1 ld.global.u32 %r2, [%rd1];";
    assert_eq!(one("", body, 2, 32).kind, FindingKind::GlobalRace);
    // Ordered by a barrier in the block.
    let body = "st.global.u32 [%rd1], %r0;\nbar.sync 0;\nxor.b32 %r1, %r0, 32;\nmul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd2, %rd0, %rd2;\nld.global.u32 %r2, [%rd2];";
    clean("", body, 1, 64);
    assert_eq!(one("", &body.replace("bar.sync 0;", ""), 1, 64).kind, FindingKind::GlobalRace);
    clean("", "red.global.add.u32 [%rd0], 1;", 4, 64);
}

/// Several lanes or warps have read a word: only they must be ordered before a write of it.
#[test]
fn global_writes_wait_for_those_who_read() {
    let only =
        |warps: &str, body: &str| format!("setp.ge.u32 %p1, %r0, {warps};\n@%p1 bra DONE;\n{body}\nDONE:");
    let write = "setp.ne.u32 %p2, %r0, 0;\n@!%p2 st.global.u32 [%rd0], 5;";
    // One warp of two reads, meets, and writes; the other is gone.
    let read = "ld.global.u32 %r1, [%rd0];";
    clean("", &only("32", &format!("{read}\nbar.warp.sync -1;\n{write}")), 1, 64);
    assert_eq!(one("", &only("32", &format!("{read}\n{write}")), 1, 64).kind, FindingKind::GlobalRace);
    // Two warps of four meet at a barrier of their own.
    clean("", &only("64", &format!("{read}\nbar.sync 1, 64;\n{write}")), 1, 128);
    assert_eq!(one("", &only("64", &format!("{read}\n{write}")), 1, 128).kind, FindingKind::GlobalRace);
    // One warp has been at more barriers than the other before both meet.
    let ahead = format!(
        "setp.lt.u32 %p3, %r0, 32;\n@!%p3 bra ON;\nbar.warp.sync -1;\nbar.warp.sync -1;\nON:\n{read}\nbar.sync 0;\n{write}"
    );
    clean("", &ahead, 1, 64);
    // A warp that reads afterwards is in nobody's barrier.
    let late = format!("{read}\nbar.sync 0;\n{read}\n{write}");
    assert_eq!(one("", &late, 1, 64).kind, FindingKind::GlobalRace);
}

/// The alignment behind `.ptr` is that of what is pointed to.
#[test]
fn pointer_parameters_keep_their_own_alignment() {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u32 n, .param .u64 .ptr .align 1 p) {{
.reg .b32 %r<4>; .reg .b64 %rd<4>;
ld.param.u32 %r0, [n];\nld.param.u64 %rd0, [p];\nst.global.u32 [%rd0], %r0;\nret;\n}}"
    );
    let module = Module::parse(&text).unwrap();
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u32; 4]);
    let params: &[&[u8]] = params![7u32, p];
    module.launch(&mut gpu, "k", &Launch { params, ..Launch::default() }).unwrap();
    assert_eq!(download::<u32>(&gpu, p, 1), [7]);
}

#[test]
fn copies_that_nothing_waits_for_end_a_kernel() {
    let body = "mov.u32 %r1, s;\nL:\ncp.async.ca.shared.global [%r1], [%rd0], 4;\nbra L;";
    let module = kernel(SHARED, body);
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u32; 64]);
    let params: &[&[u8]] = params![p];
    let launch = Launch { params, block: [32, 1, 1], step_limit: 1 << 25, ..Launch::default() };
    let list = findings(module.launch(&mut gpu, "k", &launch));
    assert!(kinds(&list).contains(&FindingKind::RunawayLoop), "{list:?}");
}

#[test]
fn the_last_block_may_read_what_fences_and_an_atomic_order() {
    let body = |fence: &str| {
        format!(
            "mov.u32 %r1, %ctaid.x;\nmul.wide.u32 %rd2, %r1, 4;\nadd.s64 %rd2, %rd0, %rd2;
setp.ne.u32 %p1, %r0, 0;\n@%p1 ret;\nst.global.u32 [%rd2+4], %r1;\n{fence}
atom.global.add.u32 %r2, [%rd0], 1;\nmov.u32 %r3, %nctaid.x;\nsub.u32 %r3, %r3, 1;
setp.ne.u32 %p2, %r2, %r3;\n@%p2 ret;\n{fence}\nld.global.u32 %r4, [%rd0+4];\nld.global.u32 %r5, [%rd0+8];\nadd.u32 %r4, %r4, %r5;\nst.global.u32 [%rd0+64], %r4;"
        )
    };
    clean("", &body("membar.gl;"), 2, 32);
    // The atomic may order by itself.
    let atomic = |order: &str| body("").replace("atom.global.add", &format!("atom{order}.global.add"));
    clean("", &atomic(".acq_rel.gpu"), 2, 32);
    // No fence, one of the block, and atomics of the block.
    let of_block = body("membar.gl;").replace("atom.global.add", "atom.relaxed.cta.global.add");
    for without in [body(""), body("membar.cta;"), atomic(".acq_rel.cta"), atomic(".relaxed.gpu"), of_block] {
        let module = kernel("", &without);
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &[0u32; 64]);
        let list = findings(launch(&module, &mut gpu, p, 2, 32, Schedule::FirstWarpFirst));
        assert!(kinds(&list).iter().all(|k| *k == FindingKind::GlobalRace), "{without}: {list:?}");
    }
}

#[test]
fn the_last_block_may_overwrite_what_all_blocks_have_read() {
    // All threads read a word; after a barrier, one thread of each block takes a ticket, and the last block's
    // overwrites the word.
    let body = |fence: &str, tickets: &str| {
        format!(
            "ld.global.u32 %r1, [%rd0+4];\nbar.sync 0;\nsetp.ne.u32 %p1, %r0, 0;\n@%p1 ret;\n{fence}
atom.global.add.u32 %r2, [%rd0], 1;\nmov.u32 %r3, %nctaid.x;\nsub.u32 %r3, %r3, {tickets};
setp.ne.u32 %p2, %r2, %r3;\n@%p2 ret;\n{fence}\nadd.u32 %r1, %r1, 1;\nst.global.u32 [%rd0+4], %r1;"
        )
    };
    clean("", &body("membar.gl;", "1"), 5, 64);
    assert_eq!(one("", &body("", "1"), 5, 64).kind, FindingKind::GlobalRace);
    // The last but one does not wait for the last.
    assert_eq!(one("", &body("membar.gl;", "2"), 5, 64).kind, FindingKind::GlobalRace);
}

/// Critical sections, hand-overs by a flag, the last warp of a block: fences and atomics order warps of one block too.
#[test]
fn fences_and_atomics_order_the_warps_of_a_block() {
    // Lane 0 of each warp takes a lock, adds to a word, and gives the lock back.
    let lock = |space: &str, base: &str, fence: &str| {
        format!(
            "and.b32 %r1, %r0, 31;\nsetp.ne.u32 %p1, %r1, 0;\n@%p1 ret;
L: atom.{space}.cas.b32 %r2, [{base}], 0, 1;\nsetp.ne.u32 %p2, %r2, 0;\n@%p2 bra L;\n{fence}
ld.{space}.u32 %r3, [{base}+4];\nadd.u32 %r3, %r3, 1;\nst.{space}.u32 [{base}+4], %r3;\n{fence}
atom.{space}.exch.b32 %r4, [{base}], 0;"
        )
    };
    let zeroed = "setp.ne.u32 %p3, %r0, 0;\n@!%p3 st.shared.v2.u32 [s], {0, 0};\nbar.sync 0;\n";
    let zeros = ".shared .align 8 .b8 s[8];";
    for fence in ["membar.gl;", "membar.cta;", "fence.acq_rel.cta;"] {
        clean("", &lock("global", "%rd0", fence), 1, 64);
        clean(zeros, &format!("{zeroed}{}", lock("shared", "s", fence)), 1, 64);
    }
    assert_eq!(one("", &lock("global", "%rd0", ""), 1, 64).kind, FindingKind::GlobalRace);
    assert_eq!(
        one(zeros, &format!("{zeroed}{}", lock("shared", "s", "")), 1, 64).kind,
        FindingKind::SharedRace
    );
    // One of the two fences is not enough.
    let text = lock("global", "%rd0", "membar.gl;");
    let (first, last) = (text.find("membar.gl;").unwrap(), text.rfind("membar.gl;").unwrap());
    for at in [first, last] {
        let mut text = text.clone();
        text.replace_range(at..at + 10, "");
        assert_eq!(one("", &text, 1, 64).kind, FindingKind::GlobalRace);
    }
    // A flag that a warp sets, and another waits for.
    let flag = |store: &str, load: &str| {
        format!(
            "setp.eq.u32 %p1, %r0, 32;\nsetp.eq.u32 %p2, %r0, 0;\n@%p2 bra L;\n@!%p1 ret;\nst.global.u32 [%rd0+4], 5;
{store} [%rd0], 1;\nret;\nL: {load} %r1, [%rd0];\nsetp.eq.u32 %p3, %r1, 0;\n@%p3 bra L;
ld.global.u32 %r2, [%rd0+4];\nst.global.u32 [%rd0+8], %r2;"
        )
    };
    clean("", &flag("st.release.gpu.global.u32", "ld.acquire.gpu.global.u32"), 1, 64);
    clean("", &flag("st.release.cta.global.u32", "ld.acquire.cta.global.u32"), 1, 64);
    for (store, load) in [
        ("st.release.gpu.global.u32", "ld.relaxed.gpu.global.u32"),
        ("st.relaxed.gpu.global.u32", "ld.acquire.gpu.global.u32"),
        ("st.volatile.global.u32", "ld.volatile.global.u32"),
        ("st.release.gpu.global.u32", "ld.volatile.global.u32"),
    ] {
        assert_eq!(one("", &flag(store, load), 1, 64).kind, FindingKind::GlobalRace, "{store} {load}");
    }
    // The same between blocks, by a load and a store that count as atomics.
    let ticket = "mov.u32 %r1, %ctaid.x;\nsetp.ne.u32 %p1, %r1, 0;\nld.relaxed.gpu.global.u32 %r2, [%rd0];\nst.relaxed.gpu.global.u32 [%rd0], %r1;";
    clean("", ticket, 4, 1);
    assert_eq!(one("", &ticket.replace("st.relaxed.gpu", "st"), 4, 1).kind, FindingKind::GlobalRace);
}

/// The loop that makes any update atomic starts from a plain load, as the programming guide writes it.
#[test]
fn a_plain_load_may_feed_a_compare_and_swap() {
    let update =
        "ld.global.u32 %r1, [%rd0];\nL: add.u32 %r2, %r1, %r0;\natom.global.cas.b32 %r3, [%rd0], %r1, %r2;
setp.ne.u32 %p1, %r1, %r3;\nmov.u32 %r1, %r3;\n@%p1 bra L;";
    clean("", update, 3, 64);
    let elsewhere = format!("{update}\nadd.s64 %rd2, %rd0, 0;\nld.global.u32 %r4, [%rd2];");
    assert_eq!(one("", &elsewhere, 3, 64).kind, FindingKind::GlobalRace);
}

#[test]
fn atomics_of_a_block_race_with_those_of_another() {
    clean("", "red.relaxed.cta.global.add.u32 [%rd0], 1;", 1, 64);
    clean("", "red.relaxed.gpu.global.add.u32 [%rd0], 1;", 3, 64);
    let f = one("", "red.relaxed.cta.global.add.u32 [%rd0], 1;", 2, 32);
    assert_eq!(f.kind, FindingKind::GlobalRace);
}

const TILE: &str = ".shared .align 16 .b8 s[256];";

#[test]
fn async_copies() {
    let copy = "mov.u32 %r1, s;\nshl.b32 %r2, %r0, 2;\nadd.u32 %r3, %r1, %r2;\ncp.async.ca.shared.global [%r3], [%rd1], 4;";
    let read = "ld.shared.u32 %r4, [%r3];\nst.global.u32 [%rd1], %r4;";
    clean(TILE, &format!("{copy}\ncp.async.commit_group;\ncp.async.wait_group 0;\n{read}"), 1, 32);
    clean(TILE, &format!("{copy}\ncp.async.wait_all;\n{read}"), 1, 32);
    let kind = |body: String| one(TILE, &body, 1, 32).kind;
    assert_eq!(kind(format!("{copy}\n{read}")), FindingKind::AsyncNotWaited);
    assert_eq!(
        kind(format!("{copy}\ncp.async.commit_group;\ncp.async.wait_group 1;\n{read}")),
        FindingKind::AsyncNotWaited
    );
    // Waited for, but without a commit the group is open.
    assert_eq!(kind(format!("{copy}\ncp.async.wait_group 0;\n{read}")), FindingKind::AsyncNotWaited);
    // Overwritten while another thread may still read it.
    let next =
        "add.u32 %r5, %r3, 0;\nxor.b32 %r2, %r2, 128;\nadd.u32 %r5, %r1, %r2;\nld.shared.u32 %r4, [%r5];";
    let again = "cp.async.ca.shared.global [%r3], [%rd1], 4;\ncp.async.wait_all;";
    let body = format!("{copy}\ncp.async.wait_all;\nbar.sync 0;\n{next}\n{again}");
    assert_eq!(one(TILE, &body, 1, 64).kind, FindingKind::SharedRace);
    clean(TILE, &format!("{copy}\ncp.async.wait_all;\nbar.sync 0;\n{next}\nbar.sync 0;\n{again}"), 1, 64);
}

#[test]
fn barrier_misuse() {
    let f = one("", "setp.lt.u32 %p1, %r0, 16;\n@%p1 bar.sync 0;", 1, 32);
    assert_eq!(f.kind, FindingKind::DivergentBarrier);
    let f = one("", "setp.lt.u32 %p1, %r0, 16;\n@%p1 ret;\nbar.sync 0;", 1, 32);
    assert_eq!(f.kind, FindingKind::DivergentBarrier);
    let f = one("", "setp.lt.u32 %p1, %r0, 32;\n@%p1 ret;\nbar.sync 0;", 1, 64);
    assert_eq!(f.kind, FindingKind::MissingWarps);
    let f = one("", "bar.sync 0, 48;", 1, 64);
    assert_eq!(f.kind, FindingKind::BarrierCount);
    let f = one("", "bar.sync 0, 128;", 1, 64);
    assert_eq!(f.kind, FindingKind::BarrierCount);
    let counts = "setp.lt.u32 %p1, %r0, 32;\n@%p1 bra A;\nbar.sync 0, 128;\nret;\nA: bar.sync 0, 96;";
    assert_eq!(one("", counts, 1, 128).kind, FindingKind::BarrierCount);
    let f = one("", "mov.u32 %r1, 16;\nbar.sync %r1;", 1, 32);
    assert_eq!(f.kind, FindingKind::InvalidOperand);
    // Each half waits for the other at another barrier.
    let f = kernel(
        "",
        "setp.lt.u32 %p1, %r0, 32;\n@%p1 bra A;\nbar.sync 1, 64;\nbar.sync 2, 64;\nret;\nA: bar.sync 2, 64;\nbar.sync 1, 64;",
    );
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u32; 64]);
    let list = findings(launch(&f, &mut gpu, p, 1, 64, Schedule::FirstWarpFirst));
    assert!(kinds(&list).iter().all(|k| *k == FindingKind::Deadlock), "{list:?}");
    clean(
        "",
        "bar.sync 0;\nbarrier.sync 1;\nsetp.lt.u32 %p1, %r0, 64;\n@%p1 bar.arrive 2, 128;\n@!%p1 bar.sync 2, 128;",
        1,
        128,
    );
    clean(
        "",
        "setp.lt.u32 %p1, %r0, 64;\nbarrier.cta.sync.aligned 0;\nbarrier.cta.red.popc.aligned.u32 %r1, 1, %p1;\n\
         barrier.cta.red.and.pred %p2, 2, 128, !%p1;\nselp.u32 %r2, 1, 0, %p2;\nadd.u32 %r1, %r1, %r2;\n\
         setp.ne.u32 %p3, %r1, 64;\n@%p3 trap;\n@%p1 barrier.cta.arrive.aligned 3, 128;\n@!%p1 barrier.cta.sync 3, 128;",
        1,
        128,
    );
    // Threads arrive where nobody ever waits, complete or not; a pipeline may end with an arrival.
    for arrive in ["bar.arrive 1, 64;", "bar.arrive 1, 128;", "bar.sync 2;\nbarrier.arrive 1, 128;"] {
        let f = one("", arrive, 1, 64 + 64 * u32::from(arrive.contains("128")));
        assert_eq!(f.kind, FindingKind::MissingWarps, "{arrive}");
    }
    assert_eq!(one("", "setp.lt.u32 %p1, %r0, 32;\n@%p1 bar.arrive 3, 64;", 1, 64).thread, [0, 0, 0]);
    clean(
        "",
        "setp.lt.u32 %p1, %r0, 32;\n@%p1 bar.arrive 1, 64;\n@!%p1 bar.sync 1, 64;\nbar.sync 0;\n@%p1 bar.arrive 1, 64;",
        1,
        64,
    );
    // The same threads arrive twice; a reduction joins a plain barrier.
    let twice = "bar.arrive 1, 64;\nbar.sync 1, 64;";
    assert_eq!(one("", twice, 1, 32).kind, FindingKind::BarrierCount);
    assert_eq!(one("", twice, 1, 64).kind, FindingKind::InvalidOperand);
    let mixed =
        "setp.lt.u32 %p1, %r0, 32;\n@%p1 bra A;\nbar.sync 0;\nbra B;\nA:\nbar.red.popc.u32 %r1, 0, %p1;\nB:";
    assert_eq!(one("", mixed, 1, 64).kind, FindingKind::InvalidOperand);
    // A last warp of 16 threads, which arrives in two halves.
    let halves = "and.b32 %r1, %r0, 8;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 bra A;\nbarrier.sync 0;\nbra B;\nA:\nbarrier.sync 0;\nB:";
    clean("", halves, 1, 48);
}

#[test]
fn warp_masks() {
    let f = one("", "setp.lt.u32 %p1, %r0, 16;\n@%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, -1;", 1, 32);
    assert_eq!(f.kind, FindingKind::WarpMask);
    let f = one("", "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 65535;", 1, 32);
    assert_eq!(f.kind, FindingKind::WarpMask);
    let f = one("", "setp.lt.u32 %p1, %r0, 16;\n@%p1 shfl.sync.idx.b32 %r1, %r0, 20, 31, 65535;", 1, 32);
    assert_eq!(f.kind, FindingKind::WarpMask);
    let f = one("", "setp.lt.u32 %p1, %r0, 8;\n@%p1 bra A;\nbar.warp.sync -1;\nA:", 1, 32);
    assert_eq!(f.kind, FindingKind::WarpMask);
    clean("", "setp.lt.u32 %p1, %r0, 16;\n@%p1 shfl.sync.bfly.b32 %r1, %r0, 1, 31, 65535;", 1, 32);
    // Halves with masks of their own at one instruction: a lane may read in its half only.
    let halves = |step: u32, clamp: u32| {
        format!(
            "setp.lt.u32 %p1, %r0, 16;\nselp.b32 %r2, 65535, -65536, %p1;\nshfl.sync.down.b32 %r1, %r0, {step}, {clamp}, %r2;"
        )
    };
    clean("", &halves(8, 0x100f), 1, 32);
    assert_eq!(one("", &halves(8, 31), 1, 32).kind, FindingKind::WarpMask);
    // After an early return the rest is together again.
    clean("", "setp.lt.u32 %p1, %r0, 8;\n@%p1 ret;\nvote.sync.ballot.b32 %r1, %p1, -1;", 1, 32);
    let nested = "setp.lt.u32 %p1, %r0, 8;\n@!%p1 bra Y;\nsetp.lt.u32 %p2, %r0, 4;\n@%p2 ret;\nadd.u32 %r1, %r0, 1;\nY: vote.sync.ballot.b32 %r2, %p1, -1;";
    clean("", nested, 1, 32);
}

/// Lanes may meet at different instructions, and some without the others: that orders what they do, and nothing else.
#[test]
fn parts_of_a_warp_meet() {
    // Each lane writes its word; then either half of the warp has a barrier of its own, and reads a partner's word.
    let halves = |partner: u32, [high, low]: [&str; 2]| {
        format!(
            "mov.u32 %r1, s;\nshl.b32 %r2, %r0, 2;\nadd.u32 %r3, %r1, %r2;\nst.shared.u32 [%r3], %r0;\nst.global.u32 [%rd1], %r0;
xor.b32 %r4, %r0, {partner};\nshl.b32 %r4, %r4, 2;\nadd.u32 %r5, %r1, %r4;\ncvt.u64.u32 %rd2, %r4;\nadd.s64 %rd2, %rd0, %rd2;
setp.lt.u32 %p1, %r0, 16;\n@%p1 bra A;\nbar.warp.sync {high};\nREAD\nbra B;
A:\nadd.u32 %r7, %r0, 1;\nbar.warp.sync {low};\nREAD\nB:"
        )
    };
    let [shared, global] = ["ld.shared.u32 %r6, [%r5];", "ld.global.u32 %r6, [%rd2];"];
    let [all, low, high] = ["-1", "65535", "-65536"];
    for (read, race) in [(shared, FindingKind::SharedRace), (global, FindingKind::GlobalRace)] {
        let body = |partner: u32, masks: [&str; 2]| halves(partner, masks).replace("READ", read);
        // The two halves wait for each other.
        clean(SHARED, &body(16, [all, all]), 1, 32);
        clean(SHARED, &body(1, [all, all]), 1, 32);
        // They do not, and that suffices for partners in one half.
        clean(SHARED, &body(1, [high, low]), 1, 32);
        assert_eq!(one(SHARED, &body(16, [high, low]), 1, 32).kind, race);
        // The lower half does not wait for the upper, which waits in vain.
        let f = one(SHARED, &body(1, [all, low]), 1, 32);
        assert_eq!(f.kind, FindingKind::WarpMask);
        assert!(f.to_string().contains("0x0000ffff"), "{f}");
        // One barrier with the masks of both halves; what they order adds up over several.
        let together = |partner: u32, steps: &[u32]| {
            let steps: String = steps
                .iter()
                .map(|step| {
                    // A lane's mask: all lanes whose numbers differ from its own in the bits of the step only.
                    format!("not.b32 %r8, {step};\nand.b32 %r8, %r8, %r0;\nmov.u32 %r9, {step};\nGROUP bar.warp.sync %r10;\n")
                        .replace("GROUP", "mov.u32 %r10, 0;\nmov.u32 %r11, 0;\nLOOP: and.b32 %r12, %r11, %r9;\nor.b32 %r12, %r12, %r8;\nshl.b32 %r12, 1, %r12;\nor.b32 %r10, %r10, %r12;\nadd.u32 %r11, %r11, 1;\nsetp.lt.u32 %p2, %r11, 32;\n@%p2 bra LOOP;\n")
                        .replace("LOOP", &format!("L{step}_"))
                        .replace("shl.b32 %r12, 1, %r12", "mov.u32 %r13, 1;\nshl.b32 %r12, %r13, %r12")
                })
                .collect();
            let body = halves(partner, [all, all]);
            format!("{}{steps}{read}", body.split("setp.lt.u32 %p1").next().unwrap())
        };
        clean(SHARED, &together(1, &[1]), 1, 32);
        clean(SHARED, &together(6, &[2, 4]), 1, 32);
        clean(SHARED, &together(31, &[1, 2, 4, 8, 16]), 1, 32);
        assert_eq!(one(SHARED, &together(2, &[1]), 1, 32).kind, race);
        assert_eq!(one(SHARED, &together(31, &[1, 2, 4, 16]), 1, 32).kind, race);
    }
    // A write after a neighbour's read needs the barrier as well.
    let write_back = |mask: &str| {
        format!(
            "setp.lt.u32 %p1, %r0, 16;\nselp.b32 %r8, {low}, {high}, %p1;\nxor.b32 %r4, %r0, 1;\nmul.wide.u32 %rd2, %r4, 4;
add.s64 %rd2, %rd0, %rd2;\nld.global.u32 %r6, [%rd2];\n{mask}\nadd.u32 %r6, %r6, 1;\nst.global.u32 [%rd1], %r6;"
        )
    };
    clean("", &write_back("bar.warp.sync %r8;"), 1, 32);
    assert_eq!(one("", &write_back(""), 1, 32).kind, FindingKind::GlobalRace);
    // Who waits for lanes that have left, or that wait at another barrier, waits for ever.
    let left = "setp.lt.u32 %p1, %r0, 16;\n@%p1 bra A;\nbar.warp.sync -1;\nA:\nret;";
    assert_eq!(one("", left, 1, 32).kind, FindingKind::WarpMask);
    let crossed = "setp.lt.u32 %p1, %r0, 16;\n@%p1 bra A;\nbar.warp.sync -1;\nbra B;\nA:\nbar.warp.sync 0x7fffffff;\nB:";
    assert_eq!(one("", crossed, 1, 32).kind, FindingKind::WarpMask);
    // Lanes that have left are not waited for.
    clean(
        "",
        "setp.lt.u32 %p1, %r0, 8;\n@%p1 ret;\nsetp.lt.u32 %p1, %r0, 16;\n@%p1 bra A;\nbar.warp.sync -1;\nret;\nA:\nbar.warp.sync -1;",
        1,
        32,
    );
}

#[test]
fn loops_traps_and_stacks_end() {
    assert_eq!(one("", "L: bra L;", 1, 32).kind, FindingKind::RunawayLoop);
    assert_eq!(one("", "trap;", 1, 32).kind, FindingKind::Trap);
    assert_eq!(one("", "brkpt;", 1, 32).kind, FindingKind::Trap);
    let assert = "{ .param .b64 m; .param .b64 f; .param .b32 l; .param .b64 n; .param .b64 s;
st.param.b64 [m], %rd0;\ncall.uni __assertfail, (m, f, l, n, s);\n}";
    let decl = ".extern .func __assertfail(.param .b64 m, .param .b64 f, .param .b32 l, .param .b64 n, .param .b64 s);";
    let f = one(decl, assert, 1, 32);
    assert!(f.kind == FindingKind::Trap && f.message.contains("assertion"), "{f}");
    let f = one(".func f() { call.uni f, ();\nret; }", "call.uni f, ();", 1, 32);
    assert_eq!(f.kind, FindingKind::StackOverflow);
    assert_eq!(
        one(".const .align 4 .u32 c = 5;", "mov.u64 %rd2, c;\nst.u32 [%rd2], %r0;", 1, 1).kind,
        FindingKind::ReadOnly
    );
}

#[test]
fn one_runaway_block_ends_the_launch() {
    let module = kernel("", "L: bra L;");
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u32; 64]);
    // Two million blocks of a hundred thousand steps each would take hours.
    let list = findings(launch(&module, &mut gpu, p, 1 << 21, 32, Schedule::FirstWarpFirst));
    assert_eq!(kinds(&list), [FindingKind::RunawayLoop]);
}

#[test]
fn a_warp_may_wait_for_another_in_a_loop() {
    for waiter in [0, 32] {
        let body = format!(
            "setp.ne.u32 %p1, %r0, {waiter};\nsetp.ne.u32 %p2, %r0, {};
@%p2 bra A;\natom.global.exch.b32 %r1, [%rd0], 1;\nA: @%p1 ret;
L: atom.global.add.u32 %r1, [%rd0], 0;\nsetp.eq.u32 %p3, %r1, 0;\n@%p3 bra L;",
            32 - waiter
        );
        clean("", &body, 1, 64);
    }
}

/// Each lane takes a lock in a loop of its own and leaves it to work: the others must let it come to its end.
#[test]
fn lanes_of_a_warp_may_wait_for_one_that_holds_a_lock() {
    for (take, free) in
        [("atom.global.cas.b32 %r2, [%rd0], 0, 1;", "0"), ("atom.global.exch.b32 %r2, [%rd0], 1;", "0")]
    {
        let body = format!(
            "L: {take}\nsetp.ne.u32 %p2, %r2, 0;\n@%p2 bra L;\nmembar.gl;
ld.global.u32 %r3, [%rd0+4];\nadd.u32 %r3, %r3, 1;\nst.global.u32 [%rd0+4], %r3;\nmembar.gl;
atom.global.exch.b32 %r4, [%rd0], {free};\nbar.warp.sync -1;"
        );
        let module = kernel("", &body);
        for schedule in SCHEDULES {
            let mut gpu = Gpu::new();
            let p = upload(&mut gpu, &[0u32; 64]);
            let params: &[&[u8]] = params![p];
            module
                .launch(&mut gpu, "k", &Launch { block: [64, 1, 1], params, schedule, ..Launch::default() })
                .unwrap();
            assert_eq!(download::<u32>(&gpu, p, 2), [0, 64]);
        }
    }
    // One lane of each of many blocks, several of which run at once.
    let body = "L: atom.global.cas.b32 %r2, [%rd0], 0, 1;\nsetp.ne.u32 %p2, %r2, 0;\n@%p2 bra L;\nmembar.gl;
ld.global.u32 %r3, [%rd0+4];\nadd.u32 %r3, %r3, 1;\nst.global.u32 [%rd0+4], %r3;\nmembar.gl;
atom.global.exch.b32 %r4, [%rd0], 0;";
    let module = kernel("", body);
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u32; 64]);
    let params: &[&[u8]] = params![p];
    module
        .launch(&mut gpu, "k", &Launch { grid: [64, 1, 1], params, host_threads: 4, ..Launch::default() })
        .unwrap();
    assert_eq!(download::<u32>(&gpu, p, 2), [0, 64]);
    // Without an end, it is still a runaway.
    let forever = "L: atom.global.cas.b32 %r2, [%rd0], 1, 1;\nsetp.ne.u32 %p2, %r2, 1;\n@%p2 bra L;";
    assert_eq!(one("", forever, 1, 32).kind, FindingKind::RunawayLoop);
}

#[test]
fn wrong_launches() {
    let module = kernel("", "");
    let mut gpu = Gpu::new();
    let p = 0u64;
    let good: &[&[u8]] = params![p];
    let base = Launch { params: good, ..Launch::default() };
    let cases = [
        ("nothing", base),
        ("k", Launch { params: &[], ..base }),
        ("k", Launch { params: &[&[0; 4]], ..base }),
        ("k", Launch { block: [1025, 1, 1], ..base }),
        ("k", Launch { block: [0, 1, 1], ..base }),
        ("k", Launch { block: [u32::MAX, u32::MAX, 4], ..base }),
        ("k", Launch { grid: [0, 1, 1], ..base }),
        ("k", Launch { grid: [1, 70000, 1], ..base }),
        ("k", Launch { shared_bytes: u32::MAX, ..base }),
    ];
    for (name, launch) in cases {
        let result = module.launch(&mut gpu, name, &launch);
        assert!(matches!(result, Err(Error::Launch { .. })), "{name} {launch:?}: {result:?}");
    }
    let many = Launch { grid: [1 << 30, 1, 1], ..base };
    assert!(matches!(module.launch(&mut gpu, "k", &many), Err(Error::Limit(_))));
}

#[test]
fn findings_add_up_over_blocks_and_keep_the_first() {
    let module = kernel("", "st.global.u32 [%rd1+4096], %r0;");
    for schedule in SCHEDULES {
        let mut gpu = Gpu::new();
        let p = upload(&mut gpu, &[0u32; 64]);
        let list = findings(launch(&module, &mut gpu, p, 10, 32, schedule));
        assert_eq!((list.len(), list[0].count, list[0].block), (1, 320, [0, 0, 0]));
    }
}
