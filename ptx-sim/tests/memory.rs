//! Loads, stores, atomics, exchange between lanes, and the counters, on kernels whose answer is known by hand.

mod common;
use common::*;
use ptx_sim::{Class, Counters, Gpu, Launch, Module};

const HEAD: &str = ".version 8.6\n.target sm_90\n.address_size 64\n";

/// `k(in, out)`: %r0 thread, %rd0 in, %rd1 out, %rd2 = out + 4 thread.
fn build(decls: &str, body: &str) -> Module {
    let text = format!(
        "{HEAD}{decls}
.visible .entry k(.param .u64 a, .param .u64 b) {{
.reg .pred %p<16>; .reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .f32 %f<8>; .reg .f64 %fd<8>; .reg .b16 %h<8>;
ld.param.u64 %rd0, [a];
ld.param.u64 %rd1, [b];
mov.u32 %r0, %tid.x;
mul.wide.u32 %rd2, %r0, 4;
add.s64 %rd2, %rd1, %rd2;
{body}
ret;
}}"
    );
    Module::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// Runs one block over given input words; returns what is in the output words.
fn words(decls: &str, body: &str, input: &[u32], threads: u32) -> (Vec<u32>, Counters) {
    let module = build(decls, body);
    let mut gpu = Gpu::new();
    let (a, b) = (upload(&mut gpu, input), upload(&mut gpu, &[0xabab_abab_u32; 128]));
    let params: &[&[u8]] = params![a, b];
    let launch = Launch { block: [threads, 1, 1], params, ..Launch::default() };
    let report = module.launch(&mut gpu, "k", &launch).unwrap_or_else(|e| panic!("{body}\n{e}"));
    (download(&gpu, b, 128), report.counters)
}

fn out(body: &str, input: &[u32], threads: u32) -> Vec<u32> {
    words("", body, input, threads).0[..threads as usize].to_vec()
}

const INPUT: &[u32] = &[0x8081_8283, 0x0405_0607, 0xffff_fffe, 0x7fff_ffff, 5, 6, 7, 8];

#[test]
fn loads_extend_and_vectors_split() {
    let store = "st.global.u32 [%rd1], %r1;\nst.global.u32 [%rd1+4], %r2;\nst.global.u32 [%rd1+8], %r3;\nst.global.u32 [%rd1+12], %r4;";
    let run = |load: &str| words("", &format!("{load}\n{store}"), INPUT, 1).0[..4].to_vec();
    let fill = "mov.u32 %r2, 0; mov.u32 %r3, 0; mov.u32 %r4, 0;";
    assert_eq!(run(&format!("{fill} ld.global.u8 %r1, [%rd0+1];"))[0], 0x82);
    assert_eq!(run(&format!("{fill} ld.global.s8 %r1, [%rd0+1];"))[0], 0xffff_ff82);
    assert_eq!(run(&format!("{fill} ld.global.s16 %r1, [%rd0+2];"))[0], 0xffff_8081);
    assert_eq!(run(&format!("{fill} ld.global.b16 %r1, [%rd0+2];"))[0], 0x8081);
    assert_eq!(run("ld.global.nc.L1::no_allocate.v4.u32 {%r1,%r2,%r3,%r4}, [%rd0+0];"), INPUT[..4]);
    assert_eq!(run(&format!("{fill} ld.global.v2.u32 {{%r1,%r2}}, [%rd0+8];"))[..2], INPUT[2..4]);
    assert_eq!(run("ld.global.v4.u8 {%r1,%r2,%r3,%r4}, [%rd0];"), [0x83, 0x82, 0x81, 0x80]);
    assert_eq!(
        run("ld.global.v2.b64 {%rd5,%rd6}, [%rd0]; mov.b64 {%r1,%r2}, %rd5; mov.b64 {%r3,%r4}, %rd6;"),
        INPUT[..4]
    );
    assert_eq!(
        run(&format!("{fill} ld.global.s32 %rd5, [%rd0+8]; shr.s64 %rd5, %rd5, 8; cvt.u32.u64 %r1, %rd5;"))
            [0],
        0xffff_ffff
    );
    // Generic addresses find their space.
    let shared = ".shared .align 4 .b8 s[64];";
    let body = "cvta.shared.u64 %rd5, s; mov.u32 %r1, s; st.u32 [%rd5+4], 77; ld.shared.u32 %r2, [%r1+4]; st.global.u32 [%rd1], %r2;
        isspacep.shared %p1, %rd5; selp.u32 %r3, 1, 0, %p1; st.global.u32 [%rd1+4], %r3; cvta.to.shared.u64 %rd6, %rd5; ld.shared.u32 %r4, [%rd6+4]; st.global.u32 [%rd1+8], %r4;
        isspacep.global %p1, %rd0; selp.u32 %r3, 1, 0, %p1; st.global.u32 [%rd1+12], %r3;";
    let mov = body.replace("cvta.shared.u64 %rd5, s;", "mov.u64 %rd4, s; cvta.shared.u64 %rd5, %rd4;");
    assert_eq!(words(shared, &mov, INPUT, 1).0[..4], [77, 1, 77, 1]);
    // Both halves of a warp in different spaces with one instruction.
    let mixed = "mov.u64 %rd4, s; cvta.shared.u64 %rd5, %rd4; setp.lt.u32 %p1, %r0, 16; st.shared.u32 [s], 9; bar.warp.sync -1; selp.b64 %rd6, %rd5, %rd0, %p1;
        ld.u32 %r1, [%rd6]; st.global.u32 [%rd2], %r1;";
    assert_eq!(words(shared, mixed, &[3], 32).0[14..18], [9, 9, 3, 3]);
}

#[test]
fn constants_and_globals_of_the_module() {
    let decls = ".const .align 4 .u32 c[3] = {10, 20, 30};\n.global .align 8 .u64 where = generic(g)+4;\n.global .align 4 .b32 g[2] = {1, 2};\n.const .f32 h = 0f3F800000;";
    let body = "ld.const.u32 %r1, [c+8]; ld.global.u64 %rd5, [where]; ld.u32 %r2, [%rd5]; add.u32 %r1, %r1, %r2; st.global.u32 [%rd1], %r1;
        ld.const.f32 %f1, [h]; st.global.f32 [%rd1+4], %f1; ld.global.u32 %r3, [g]; add.u32 %r3, %r3, 1; st.global.u32 [g], %r3; st.global.u32 [%rd1+8], %r3;";
    let module = build(decls, body);
    let mut gpu = Gpu::new();
    let b = upload(&mut gpu, &[0u32; 4]);
    let params: &[&[u8]] = params![b, b];
    for launch in 1..3u32 {
        module.launch(&mut gpu, "k", &Launch { params, ..Launch::default() }).unwrap();
        // Module variables keep their value from launch to launch.
        assert_eq!(download::<u32>(&gpu, b, 3), [32, 0x3f80_0000, 1 + launch]);
    }
    let (g, size) = module.symbol(&mut gpu, "g").unwrap();
    assert_eq!((download::<u32>(&gpu, g, 1)[0], size), (3, 8));
    assert!(module.symbol(&mut gpu, "nothing").is_err());
}

#[test]
fn parameters_by_value_and_dynamic_indices() {
    let text = format!(
        "{HEAD}.visible .entry k(.param .align 8 .b8 s[24], .param .u64 out) {{ .reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .b16 %h<2>;
        mov.b64 %rd1, s; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 4; add.u64 %rd3, %rd1, %rd2; ld.param.u32 %r1, [%rd3];
        cvta.param.u64 %rd4, %rd1; add.u64 %rd4, %rd4, %rd2; ld.u32 %r2, [%rd4]; ld.param.v2.b32 {{%r3, %r4}}, [s+8]; ld.param.u16 %h1, [s+2]; cvt.u32.u16 %r5, %h1;
        add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r4; add.u32 %r1, %r1, %r5; ld.param.u64 %rd5, [out]; add.u64 %rd5, %rd5, %rd2; st.global.u32 [%rd5], %r1; ret; }}"
    );
    let module = Module::parse(&text).unwrap();
    let mut gpu = Gpu::new();
    let p = gpu.alloc(24);
    let mut s = Vec::new();
    [0x0001_0001u32, 2, 3, 4, 5, 6].iter().for_each(|v| v.put(&mut s));
    module
        .launch(
            &mut gpu,
            "k",
            &Launch { block: [6, 1, 1], params: &[&s, &p.to_le_bytes()], ..Launch::default() },
        )
        .unwrap();
    assert_eq!(download::<u32>(&gpu, p, 6), [0x2_0007, 9, 11, 13, 15, 17]);
}

#[test]
fn atomics() {
    let each = |op: &str, start: u32| {
        let global = out(&format!("atom.global.{op};\nst.global.u32 [%rd2], %r1;"), &[start], 4);
        let shared = words(
            ".shared .align 4 .b32 s;",
            &format!(
                "st.shared.u32 [s], {start}; bar.sync 0;\natom.shared.{};\nst.global.u32 [%rd2], %r1;",
                op.replace("%rd0", "s")
            ),
            &[0],
            4,
        );
        assert_eq!(global, shared.0[..4], "{op}");
        global
    };
    assert_eq!(each("add.u32 %r1, [%rd0], %r0", 10), [10, 10, 11, 13]);
    assert_eq!(each("min.s32 %r1, [%rd0], %r0", 2), [2, 0, 0, 0]);
    assert_eq!(each("max.u32 %r1, [%rd0], %r0", 1), [1, 1, 1, 2]);
    assert_eq!(each("and.b32 %r1, [%rd0], %r0", 7), [7, 0, 0, 0]);
    assert_eq!(each("or.b32 %r1, [%rd0], %r0", 8), [8, 8, 9, 11]);
    assert_eq!(each("xor.b32 %r1, [%rd0], %r0", 1), [1, 1, 0, 2]);
    assert_eq!(each("exch.b32 %r1, [%rd0], %r0", 9), [9, 0, 1, 2]);
    assert_eq!(each("cas.b32 %r1, [%rd0], %r0, 3", 0), [0, 3, 3, 3]);
    assert_eq!(each("inc.u32 %r1, [%rd0], 1", 0), [0, 1, 0, 1]);
    assert_eq!(each("dec.u32 %r1, [%rd0], 2", 1), [1, 0, 2, 1]);
    // Sums of f32 flush subnormals in global memory, and do not in shared memory.
    let sum = |space: &str, at: &str| {
        format!(
            "mov.f32 %f1, 0f000116C2; atom.{space}.add.f32 %f2, [{at}], %f1; bar.sync 0;\nld.{space}.u32 %r1, [{at}];\nst.global.u32 [%rd2], %r1;"
        )
    };
    assert_eq!(out(&sum("global", "%rd0"), &[0x116c2], 4), [0; 4]);
    let shared = format!("st.shared.u32 [s], 71362; bar.sync 0;\n{}", sum("shared", "s"));
    assert_eq!(words(".shared .align 4 .b32 s;", &shared, &[0], 4).0[..4], [5 * 0x116c2; 4]);
    let body = "mov.f32 %f1, 0f3f000000; red.global.add.f32 [%rd0], %f1; bar.sync 0; ld.global.f32 %f2, [%rd0]; st.global.f32 [%rd2], %f2;";
    assert_eq!(out(body, &[0], 64), [32f32.to_bits(); 64]);
    let body = "mov.u64 %rd5, 4294967295; atom.global.add.u64 %rd6, [%rd0], %rd5; shr.u64 %rd6, %rd6, 32; cvt.u32.u64 %r1, %rd6; st.global.u32 [%rd2], %r1;";
    assert_eq!(out(body, &[2, 0], 3), [0, 1, 2]);
    let body =
        "mov.b32 %r1, 0x3c004000; atom.global.add.noftz.f16x2 %r2, [%rd0], %r1; st.global.u32 [%rd2], %r2;";
    assert_eq!(out(body, &[0], 2), [0, 0x3c00_4000]);
    // From many blocks at once.
    let module =
        build("", "red.global.add.u32 [%rd1], 1; atom.global.add.f64 %fd1, [%rd1+8], 0d3FF0000000000000;");
    let mut gpu = Gpu::new();
    let b = upload(&mut gpu, &[0u32; 4]);
    let params: &[&[u8]] = params![b, b];
    module
        .launch(&mut gpu, "k", &Launch { grid: [64, 1, 1], block: [128, 1, 1], params, ..Launch::default() })
        .unwrap();
    assert_eq!(download::<u32>(&gpu, b, 1), [64 * 128]);
    assert_eq!(download::<f64>(&gpu, b + 8, 1), [64.0 * 128.0]);
}

#[test]
fn shuffles_against_the_manual() {
    type Mode = (&'static str, fn(i32, i32, i32, i32) -> (i32, bool));
    let modes: [Mode; 4] = [
        ("up", |l, b, max, _| (l - b, l - b >= max)),
        ("down", |l, b, max, _| (l + b, l + b <= max)),
        ("bfly", |l, b, max, _| (l ^ b, (l ^ b) <= max)),
        ("idx", |l, b, max, seg| ((l & seg) | (b & !seg & 31), ((l & seg) | (b & !seg & 31)) <= max)),
    ];
    for (mode, def) in modes {
        for c in [0u32, 31, 0x1c1f, 0x1803, 0x101f, 0x1800] {
            for b in [0u32, 1, 3, 8, 16, 31] {
                let body = format!(
                    "shfl.sync.{mode}.b32 %r1|%p1, %r0, {b}, {c}, 0xffffffff; selp.u32 %r2, 256, 0, %p1; or.b32 %r1, %r1, %r2; st.global.u32 [%rd2], %r1;"
                );
                let want: Vec<u32> = (0..32i32)
                    .map(|l| {
                        let (clamp, seg) = ((c & 31) as i32, (c >> 8 & 31) as i32);
                        let max = (l & seg) | (clamp & !seg);
                        let (j, valid) = def(l, b as i32, max, seg);
                        if valid { j as u32 | 256 } else { l as u32 }
                    })
                    .collect();
                assert_eq!(out(&body, &[0], 32), want, "{mode} {b} {c:#x}");
            }
        }
    }
}

#[test]
fn votes_matches_and_reductions() {
    let data: Vec<u32> = (0..32).map(|i| i * 7 % 5).collect();
    let load = "mul.wide.u32 %rd5, %r0, 4; add.u64 %rd5, %rd0, %rd5; ld.global.u32 %r1, [%rd5]; setp.eq.u32 %p1, %r1, 2;";
    let run = |op: &str| out(&format!("{load} {op} st.global.u32 [%rd2], %r2;"), &data, 32);
    let ballot: u32 = (0..32).map(|i| u32::from(data[i] == 2) << i).sum();
    assert_eq!(run("vote.sync.ballot.b32 %r2, %p1, -1;"), [ballot; 32]);
    assert_eq!(run("vote.sync.any.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2;"), [1; 32]);
    assert_eq!(run("vote.sync.all.pred %p2, !%p1, -1; selp.u32 %r2, 1, 0, %p2;"), [0; 32]);
    assert_eq!(run("vote.sync.uni.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2;"), [0; 32]);
    assert_eq!(run("activemask.b32 %r2;"), [!0; 32]);
    let same: Vec<u32> = (0..32).map(|i| (0..32).map(|j| u32::from(data[i] == data[j]) << j).sum()).collect();
    assert_eq!(run("match.any.sync.b32 %r2, %r1, -1;"), same);
    assert_eq!(run("match.all.sync.b32 %r2|%p2, %r1, -1;"), [0; 32]);
    assert_eq!(run("redux.sync.add.u32 %r2, %r1, -1;"), [data.iter().sum::<u32>(); 32]);
    assert_eq!(run("sub.s32 %r1, %r1, 3; redux.sync.min.s32 %r2, %r1, -1;"), [-3i32 as u32; 32]);
    assert_eq!(run("redux.sync.xor.b32 %r2, %r1, -1;"), [data.iter().fold(0, |a, b| a ^ b); 32]);
    assert_eq!(
        run("elect.sync %r2|%p2, -1; selp.u32 %r3, 100, 0, %p2; add.u32 %r2, %r2, %r3;")[..2],
        [100, 0]
    );
    // Two halves of a warp, each with its own mask, in one instruction.
    let halves = run(
        "setp.lt.u32 %p2, %r0, 16; selp.u32 %r3, 0xffff, 0xffff0000, %p2; redux.sync.add.u32 %r2, %r1, %r3;",
    );
    assert_eq!((halves[0], halves[31]), (data[..16].iter().sum(), data[16..].iter().sum()));
}

#[test]
fn special_registers() {
    let text = format!(
        "{HEAD}.visible .entry k(.param .u64 out) {{ .reg .b32 %r<16>; .reg .b64 %rd<8>;
        mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ntid.y; mov.u32 %r5, %ctaid.z; mov.u32 %r6, %nctaid.z;
        mov.u32 %r7, %laneid; mov.u32 %r8, %warpid; mov.u32 %r9, %lanemask_lt; mov.u32 %r10, %nwarpid; mov.u32 %r11, %dynamic_smem_size;
        mad.lo.u32 %r12, %r3, 3, %r2; mad.lo.u32 %r12, %r12, 10, %r1; mad.lo.u32 %r12, %r5, 60, %r12; mul.wide.u32 %rd2, %r12, 32; ld.param.u64 %rd1, [out]; add.u64 %rd1, %rd1, %rd2;
        st.global.v4.u32 [%rd1], {{%r7, %r8, %r9, %r10}}; st.global.v4.u32 [%rd1+16], {{%r4, %r5, %r6, %r11}}; ret; }}"
    );
    let module = Module::parse(&text).unwrap();
    let mut gpu = Gpu::new();
    let p = gpu.alloc(120 * 32);
    let launch = Launch {
        grid: [1, 1, 2],
        block: [10, 3, 2],
        shared_bytes: 48,
        params: &[&p.to_le_bytes()],
        ..Launch::default()
    };
    module.launch(&mut gpu, "k", &launch).unwrap();
    let got = download::<u32>(&gpu, p, 120 * 8);
    for (i, row) in got.chunks(8).enumerate() {
        let (t, block) = (i as u32 % 60, i as u32 / 60);
        assert_eq!(row, [t % 32, t / 32, (1 << (t % 32)) - 1, 2, 3, block, 2, 48]);
    }
}

#[test]
fn block_reductions_and_indirect_branches_and_calls() {
    let body = "and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; bar.red.popc.u32 %r2, 0, %p1; bar.red.or.pred %p2, 0, %p1; bar.red.and.pred %p3, 0, !%p1;
        selp.u32 %r3, 100, 0, %p2; selp.u32 %r4, 1000, 0, %p3; add.u32 %r2, %r2, %r3; add.u32 %r2, %r2, %r4; st.global.u32 [%rd2], %r2;";
    assert_eq!(out(body, &[0], 64), [132; 64]);
    let body = "rem.u32 %r1, %r0, 3; ts: .branchtargets A, B, C; brx.idx %r1, ts; A: mov.u32 %r2, 7; bra D; B: mov.u32 %r2, 8; bra D; C: mov.u32 %r2, 9; D: bar.sync 0; st.global.u32 [%rd2], %r2;";
    assert_eq!(out(body, &[0], 32)[..4], [7, 8, 9, 7]);
    let decls = ".func (.param .b32 r) twice(.param .b32 x) { .reg .b32 %r<4>; ld.param.b32 %r1, [x]; add.u32 %r1, %r1, %r1; st.param.b32 [r], %r1; ret; }
        .func (.param .b32 r) next(.param .b32 x) { .reg .b32 %r<4>; ld.param.b32 %r1, [x]; add.u32 %r1, %r1, 1; st.param.b32 [r], %r1; ret; }
        .func (.param .b32 r) fact(.param .b32 x) { .reg .b32 %r<4>; .reg .pred %p<2>; ld.param.b32 %r1, [x]; setp.lt.u32 %p1, %r1, 2; @%p1 bra END;
          sub.u32 %r2, %r1, 1; { .param .b32 a; .param .b32 b; st.param.b32 [a], %r2; call.uni (b), fact, (a); ld.param.b32 %r3, [b]; } mul.lo.u32 %r1, %r1, %r3;
          END: st.param.b32 [r], %r1; ret; }";
    let body = "mov.u64 %rd5, twice; mov.u64 %rd6, next; and.b32 %r1, %r0, 1; setp.eq.u32 %p1, %r1, 0; selp.b64 %rd7, %rd5, %rd6, %p1;
        { .param .b32 a; .param .b32 b; st.param.b32 [a], %r0; proto: .callprototype (.param .b32 _) _ (.param .b32 _); call (b), %rd7, (a), proto; ld.param.b32 %r2, [b]; } bar.sync 0; st.global.u32 [%rd2], %r2;";
    assert_eq!(words(decls, body, &[0], 32).0[..6], [0, 2, 4, 4, 8, 6]);
    // Recursion to a depth that differs from lane to lane.
    let body = "{ .param .b32 a; .param .b32 b; st.param.b32 [a], %r0; call (b), fact, (a); ld.param.b32 %r2, [b]; } bar.sync 0; st.global.u32 [%rd2], %r2;";
    assert_eq!(words(decls, body, &[0], 32).0[1..8], [1, 2, 6, 24, 120, 720, 5040]);
}

/// Global accesses with `index` computed from the thread in %r0 into %r1, of `ty` elements.
fn global(index: &str, ty: &str, bytes: u32, regs: &str) -> Counters {
    let body = format!(
        "{index} mul.wide.u32 %rd5, %r1, {bytes}; add.u64 %rd5, %rd0, %rd5; ld.global.{ty} {regs}, [%rd5];"
    );
    words("", &body, &[0; 4096], 32).1
}

#[test]
fn sectors_by_hand() {
    let t = |c: Counters| {
        (c.global_load.requests, c.global_load.sectors, c.global_load.min_sectors, c.global_load.lines)
    };
    assert_eq!(t(global("mov.u32 %r1, %r0;", "u32", 4, "%r2")), (1, 4, 4, 1));
    assert_eq!(t(global("mov.u32 %r1, %r0;", "v4.u32", 16, "{%r2,%r3,%r4,%r5}")), (1, 16, 16, 4));
    assert_eq!(t(global("mov.u32 %r1, 5;", "u32", 4, "%r2")), (1, 1, 1, 1));
    // One element past an aligned start touches a fifth sector.
    assert_eq!(t(global("add.u32 %r1, %r0, 1;", "u32", 4, "%r2")), (1, 5, 4, 2));
    // A stride of 32 bytes wastes seven eighths; of 128 bytes, a line each.
    assert_eq!(t(global("mul.lo.u32 %r1, %r0, 8;", "u32", 4, "%r2")), (1, 32, 4, 8));
    assert_eq!(t(global("mul.lo.u32 %r1, %r0, 32;", "u32", 4, "%r2")), (1, 32, 4, 32));
    // Order does not matter, and bytes are shared.
    assert_eq!(t(global("xor.b32 %r1, %r0, 31;", "u32", 4, "%r2")), (1, 4, 4, 1));
    assert_eq!(t(global("shr.u32 %r1, %r0, 1;", "u32", 4, "%r2")), (1, 2, 2, 1));
    assert_eq!(t(global("mov.u32 %r1, %r0;", "u8", 1, "%r2")), (1, 1, 1, 1));
    let c = global("mul.lo.u32 %r1, %r0, 8;", "u32", 4, "%r2");
    assert_eq!((c.global_load.bytes, c.global_load.efficiency()), (128, 0.125));
}

fn shared(index: &str, ty: &str, bytes: u32, regs: &str) -> Counters {
    let body = format!(
        "mov.u32 %r9, s; {index} mad.lo.u32 %r8, %r1, {bytes}, %r9; mov.u32 %r2, 0; mov.u32 %r3, 0; mov.u32 %r4, 0; mov.u32 %r5, 0; st.shared.{ty} [%r8], {regs};"
    );
    words(".shared .align 16 .b8 s[8192];", &body, &[0], 32).1
}

#[test]
fn bank_conflicts_by_hand() {
    let b = |c: Counters| (c.shared_store.requests, c.shared_store.phases, c.shared_store.cycles);
    assert_eq!(b(shared("mov.u32 %r1, %r0;", "u32", 4, "%r2")), (1, 1, 1));
    // All lanes on one word: a broadcast.
    assert_eq!(b(shared("mov.u32 %r1, 3;", "u32", 4, "%r2")), (1, 1, 1));
    // Strides: 2 words two-way, 32 words all in one bank, 33 words none.
    assert_eq!(b(shared("mul.lo.u32 %r1, %r0, 2;", "u32", 4, "%r2")), (1, 1, 2));
    assert_eq!(b(shared("mul.lo.u32 %r1, %r0, 32;", "u32", 4, "%r2")), (1, 1, 32));
    assert_eq!(b(shared("mul.lo.u32 %r1, %r0, 33;", "u32", 4, "%r2")), (1, 1, 1));
    // 8 bytes a lane in two phases, 16 bytes in four.
    assert_eq!(b(shared("mov.u32 %r1, %r0;", "v2.u32", 8, "{%r2,%r3}")), (1, 2, 2));
    assert_eq!(b(shared("mov.u32 %r1, %r0;", "v4.u32", 16, "{%r2,%r3,%r4,%r5}")), (1, 4, 4));
    // 16 bytes a lane, rows of 64 bytes: lanes 0 and 2 share banks in each phase.
    assert_eq!(b(shared("mul.lo.u32 %r1, %r0, 4;", "v4.u32", 16, "{%r2,%r3,%r4,%r5}")), (1, 4, 16));
    // Rows of 80 bytes, the usual padding: none.
    assert_eq!(b(shared("mul.lo.u32 %r1, %r0, 5;", "v4.u32", 16, "{%r2,%r3,%r4,%r5}")), (1, 4, 4));
    // Halfwords of one word do not conflict.
    assert_eq!(b(shared("mov.u32 %r1, %r0;", "u16", 2, "%r2")), (1, 1, 1));
    assert_eq!(shared("mul.lo.u32 %r1, %r0, 32;", "u32", 4, "%r2").shared_store.conflicts(), 31);
}

#[test]
fn ldmatrix_phases() {
    let run = |pitch: u32| {
        let body = format!(
            "mov.u32 %r9, s; mul.lo.u32 %r8, %r0, {pitch}; add.u32 %r8, %r8, %r9; mov.u32 %r2, 0; st.shared.v4.u32 [%r8], {{%r2,%r2,%r2,%r2}};
            bar.warp.sync -1; ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r3,%r4,%r5,%r6}}, [%r8];"
        );
        let c = words(".shared .align 16 .b8 s[4608];", &body, &[0], 32).1.shared_load;
        (c.requests, c.phases, c.cycles)
    };
    // One phase for each matrix: rows of 16 bytes side by side, rows 128 bytes apart, rows padded to 144.
    assert_eq!(run(16), (1, 4, 4));
    assert_eq!(run(128), (1, 4, 32));
    assert_eq!(run(144), (1, 4, 4));
}

#[test]
fn classes_flops_divergence() {
    let body = "setp.lt.u32 %p1, %r0, 8; @%p1 bra A; mov.f32 %f1, 0f3f800000; bra B; A: mov.f32 %f1, 0f40000000; B: fma.rn.f32 %f2, %f1, %f1, %f1; add.f32 %f2, %f2, %f1; ex2.approx.f32 %f2, %f2; @%p1 st.global.f32 [%rd2], %f2;";
    let (_, c) = words("", body, &[0], 32);
    assert_eq!((c.branches, c.divergent_branches), (2, 1));
    assert_eq!(c.flops, 32 * 3);
    assert_eq!((c.class(Class::Float32), c.class(Class::Special), c.class(Class::Global)), (2, 1, 1));
    assert_eq!(c.global_store.bytes, 32);
    assert_eq!(c.class(Class::Move), 3);
    // 5 before, setp, two branches, two moves, fma, add, ex2, st, ret.
    assert_eq!(c.warp_instructions, 15);
    // All lanes in ten of them, 8 in the branch, the move at A and the store, 24 in the other move and branch.
    assert_eq!(c.thread_instructions, 10 * 32 + 3 * 8 + 2 * 24);
    assert_eq!(c.by_class.iter().sum::<u64>(), c.warp_instructions);
}

#[test]
fn a_default_gpu_has_nothing_at_address_zero() {
    assert_ne!(Gpu::default().alloc(4), 0);
}

#[test]
fn variables_of_many_modules_lie_apart() {
    let text = ".version 7.0\n.target sm_80\n.address_size 64\n.global .align 4 .u32 v;\n";
    let mut gpu = Gpu::new();
    let mut seen = std::collections::HashSet::new();
    for _ in 0..2000 {
        let module = ptx_sim::Module::parse(text).unwrap();
        assert!(seen.insert(module.symbol(&mut gpu, "v").unwrap()));
    }
}

/// Hints and orders change nothing of what one thread reads and writes.
#[test]
fn loads_and_stores_of_every_kind() {
    let copy = |load: &str, store: &str, words: usize| {
        let input: Vec<u32> = (0..16u32).map(|i| (i + 1).wrapping_mul(0x9182_7364)).collect();
        let got = self::words("", &format!("{load}\n{store}"), &input, 1).0;
        assert_eq!(got[..words], input[..words], "{load} {store}");
        assert!(got[words..16].iter().all(|v| *v == 0xabab_abab), "{load} {store}");
    };
    for load in [
        "ldu.global.u32 %r1, [%rd0];",
        "ld.volatile.global.u32 %r1, [%rd0];",
        "ld.relaxed.gpu.global.u32 %r1, [%rd0];",
        "ld.acquire.sys.global.u32 %r1, [%rd0];",
        "ld.weak.global.ca.L1::evict_last.L2::128B.u32 %r1, [%rd0];",
        "ld.global.nc.L1::no_allocate.L2::256B.u32 %r1, [%rd0];",
        "prefetch.global.L2 [%rd0]; prefetchu.L1 [%rd0]; prefetch.L1 [%rd0]; ld.global.cv.b32 %r1, [%rd0];",
        "prefetch.global.L2::evict_last [%rd0]; applypriority.global.L2::evict_normal [%rd0], 128; ld.global.lu.b32 %r1, [%rd0];",
    ] {
        copy(load, "st.volatile.global.u32 [%rd1], %r1;", 1);
    }
    for store in [
        "st.relaxed.cta.global.u32 [%rd1], %r1;",
        "st.release.gpu.global.b32 [%rd1], %r1;",
        "st.global.wt.s32 [%rd1], %r1;",
        "st.weak.global.cs.f32 [%rd1], %r1;",
    ] {
        copy("ld.global.u32 %r1, [%rd0];", store, 1);
    }
    copy("ld.global.v4.u8 {%r1,%r2,%r3,%r4}, [%rd0+0];", "st.global.v4.u8 [%rd1], {%r1,%r2,%r3,%r4};", 1);
    copy(
        "ld.global.v2.b8 {%r1,%r2}, [%rd0]; ld.global.s8 %r3, [%rd0+2]; ld.global.u8 %r4, [%rd0+3];",
        "st.global.v2.s8 [%rd1], {%r1,%r2}; st.global.b8 [%rd1+2], %r3; st.global.u8 [%rd1+3], %r4;",
        1,
    );
    copy("ld.global.v2.b16 {%h1,%h2}, [%rd0];", "st.global.v2.b16 [%rd1], {%h1,%h2};", 1);
    copy("ld.global.v4.u16 {%h1,%h2,%h3,%h4}, [%rd0];", "st.global.v4.f16 [%rd1], {%h1,%h2,%h3,%h4};", 2);
    copy(
        "ld.global.f64 %fd1, [%rd0];",
        "st.global.v2.f64 [%rd1], {%fd1, %fd1}; ld.global.v2.u64 {%rd5,%rd6}, [%rd0]; st.global.u64 [%rd1+8], %rd6;",
        4,
    );
    let eight = "{%r1,%r2,%r3,%r4,%r5,%r6,%r7,%r8}";
    copy(&format!("ld.global.v8.b32 {eight}, [%rd0];"), &format!("st.global.v8.f32 [%rd1], {eight};"), 8);
    let four = "{%rd5,%rd6,%rd7,%rd8}";
    copy(&format!("ld.global.v4.b64 {four}, [%rd0];"), &format!("st.global.v4.u64 [%rd1], {four};"), 8);
}

/// What lies beyond the source size is zero, and all of it where the source is ignored.
#[test]
fn copies_with_a_source_size() {
    let input: Vec<u32> = (0..32).map(|i| 0x0101_0101 * (i + 1)).collect();
    let bytes: Vec<u8> = input.iter().flat_map(|v| v.to_le_bytes()).collect();
    for (size, form) in [(4usize, "ca"), (8, "ca"), (16, "ca"), (16, "cg")] {
        for taken in (0..=size).chain([usize::MAX, usize::MAX - 1]) {
            let operand = match taken {
                usize::MAX => "%p1".to_owned(),
                n if n > size => "!%p1".to_owned(),
                n => n.to_string(),
            };
            let body = format!(
                "setp.eq.u32 %p1, %r0, %r0; mov.u32 %r1, s; cp.async.{form}.shared.global.L2::128B [%r1], [%rd0+16], {size}, {operand};
                cp.async.wait_all; {}",
                (0..size / 4).map(|i| format!("ld.shared.b32 %r2, [s+{}]; st.global.b32 [%rd1+{}], %r2;", 4 * i, 4 * i)).collect::<String>()
            );
            let got = words(".shared .align 16 .b8 s[16];", &body, &input, 1).0;
            let got: Vec<u8> = got[..size / 4].iter().flat_map(|v| v.to_le_bytes()).collect();
            // `%p1` holds: the source is ignored.
            let n = if taken == usize::MAX { 0 } else { taken.min(size) };
            let want: Vec<u8> =
                bytes[16..16 + n].iter().copied().chain(std::iter::repeat(0)).take(size).collect();
            assert_eq!(got, want, "{body}");
        }
    }
}

#[test]
fn copies_count_what_they_read() {
    let decls = ".shared .align 16 .b8 s[1024];";
    let counted = |size: &str| {
        let body = format!(
            "mul.wide.u32 %rd2, %r0, 16; mov.u64 %rd3, s; add.s64 %rd3, %rd3, %rd2; add.s64 %rd2, %rd0, %rd2;
            mov.u32 %r4, 4; setp.lt.u32 %p1, %r0, 3; selp.u32 %r3, 16, %r4, %p1; mov.u32 %r4, 0;
            cp.async.cg.shared.global [%rd3], [%rd2], 16, {size}; cp.async.wait_all;"
        );
        let c = words(decls, &body, &[7; 128], 32).1;
        assert_eq!((c.shared_store.bytes, c.shared_store.phases), (512, 4));
        let t = c.global_load;
        (t.requests, t.bytes, t.sectors, t.lines, t.min_sectors)
    };
    assert_eq!(counted("16"), (1, 512, 16, 4, 16));
    // 4 bytes of every 16.
    assert_eq!(counted("4"), (1, 128, 16, 4, 4));
    // All of the first three lanes, 4 bytes of the others: 48 + 116 bytes.
    assert_eq!(counted("%r3"), (1, 164, 16, 4, 6));
    assert_eq!(counted("%r4"), (0, 0, 0, 0, 0));
}

#[test]
fn spaces_of_generic_addresses() {
    let decls =
        ".const .align 8 .b32 c[4] = {5, 6, 7, 8};\n.global .align 8 .b32 g[2];\n.shared .align 8 .b32 s[2];";
    let body = ".local .align 8 .b8 l[8];
        mov.u64 %rd3, l; cvta.local.u64 %rd3, %rd3; mov.u64 %rd4, s; cvta.shared.u64 %rd4, %rd4; mov.u64 %rd5, c; cvta.const.u64 %rd5, %rd5;
        mov.u64 %rd6, g; cvta.global.u64 %rd6, %rd6; mov.u64 %rd7, b; cvta.param.u64 %rd7, %rd7;
        setp.eq.u32 %p1, %r0, 0; @%p1 mov.u64 %rd8, %rd3; setp.eq.u32 %p1, %r0, 1; @%p1 mov.u64 %rd8, %rd4; setp.eq.u32 %p1, %r0, 2; @%p1 mov.u64 %rd8, %rd5;
        setp.eq.u32 %p1, %r0, 3; @%p1 mov.u64 %rd8, %rd6; setp.eq.u32 %p1, %r0, 4; @%p1 mov.u64 %rd8, %rd7; setp.eq.u32 %p1, %r0, 5; @%p1 mov.u64 %rd8, %rd0;
        isspacep.local %p1, %rd8; selp.u32 %r1, 1, 0, %p1; isspacep.shared %p2, %rd8; selp.u32 %r2, 2, 0, %p2; isspacep.const %p3, %rd8; selp.u32 %r3, 4, 0, %p3;
        isspacep.global %p4, %rd8; selp.u32 %r4, 8, 0, %p4; isspacep.param %p5, %rd8; selp.u32 %r5, 16, 0, %p5;
        add.u32 %r1, %r1, %r2; add.u32 %r1, %r1, %r3; add.u32 %r1, %r1, %r4; add.u32 %r1, %r1, %r5; st.global.u32 [%rd2], %r1;";
    // Local, shared, constant, global, parameter (whose window is part of the global one), memory of the host.
    assert_eq!(words(decls, body, &[0], 6).0[..6], [1, 2, 4, 8, 24, 8]);
    // The last byte of a constant, and the first behind it.
    let ends = "mov.u64 %rd5, c; add.u64 %rd5, %rd5, 15; cvt.u64.u32 %rd6, %r0; add.u64 %rd5, %rd5, %rd6; isspacep.const %p1, %rd5; selp.u32 %r1, 1, 0, %p1; st.global.u32 [%rd2], %r1;";
    assert_eq!(words(decls, ends, &[0], 2).0[..2], [1, 0]);
    // And back from generic addresses.
    let back = "mov.u64 %rd5, c; cvta.const.u64 %rd5, %rd5; ld.u32 %r1, [%rd5+4]; cvta.to.const.u64 %rd6, %rd5; ld.const.u32 %r2, [%rd6+8]; add.u32 %r1, %r1, %r2;
        mov.u64 %rd5, b; cvta.param.u64 %rd5, %rd5; cvta.to.param.u64 %rd6, %rd5; ld.param.u64 %rd7, [%rd6]; cvta.to.global.u64 %rd7, %rd7; st.global.u32 [%rd7], %r1;";
    assert_eq!(words(decls, back, &[0], 1).0[0], 13);
}

/// The registers that only say where a thread is.
#[test]
fn lane_masks_and_sizes() {
    for (name, def) in [
        ("lanemask_eq", (|l| 1 << l) as fn(u32) -> u32),
        ("lanemask_le", |l| u32::MAX >> (31 - l)),
        ("lanemask_lt", |l| (1 << l) - 1),
        ("lanemask_ge", |l| u32::MAX << l),
        ("lanemask_gt", |l| if l == 31 { 0 } else { u32::MAX << (l + 1) }),
        ("laneid", |l| l),
        ("smid", |_| 0),
        ("nsmid", |_| 1),
        ("clusterid.x", |_| 0),
        ("nclusterid.x", |_| 1),
        ("cluster_ctarank", |_| 0),
        ("cluster_nctarank", |_| 1),
        ("cluster_ctaid.y", |_| 0),
        ("cluster_nctaid.z", |_| 1),
        ("is_explicit_cluster", |_| 0),
        ("clock_hi", |_| 0),
        ("total_smem_size", |_| 24),
    ] {
        let body = format!("mov.u32 %r1, %{name}; st.shared.u32 [s], 1; st.global.u32 [%rd2], %r1;");
        let got = words(".shared .align 8 .b8 s[24];", &body, &[0], 32).0;
        assert_eq!(got[..32], (0..32).map(def).collect::<Vec<_>>(), "{name}");
    }
    // Time does not go back.
    for clock in ["u32 %r1, %clock", "u32 %r1, %globaltimer_lo"] {
        let body = format!(
            "mov.{clock}; mov.{}; setp.le.u32 %p1, %r1, %r2; selp.u32 %r1, 1, 0, %p1; st.global.u32 [%rd2], %r1;",
            clock.replace("r1", "r2")
        );
        assert_eq!(out(&body, &[0], 1), [1]);
    }
    let body = "mov.u64 %rd5, %clock64; mov.u64 %rd6, %globaltimer; setp.le.u64 %p1, %rd5, %rd6; selp.u32 %r1, 1, 0, %p1; st.global.u32 [%rd2], %r1;";
    assert_eq!(out(body, &[0], 1), [1]);
}

#[test]
fn exchanges_of_old_forms_and_of_64_bits() {
    let half = "and.b32 %r1, %r0, 15; setp.lt.u32 %p1, %r1, 9;";
    let ballot: u32 = (0..32).filter(|l| l % 16 < 9).map(|l| 1 << l).sum();
    let run = |op: &str| out(&format!("{half} {op} st.global.u32 [%rd2], %r2;"), &[0], 32);
    assert_eq!(run("vote.ballot.b32 %r2, %p1;"), [ballot; 32]);
    assert_eq!(run("vote.all.pred %p2, !%p1; selp.u32 %r2, 1, 0, %p2;"), [0; 32]);
    assert_eq!(run("shfl.idx.b32 %r2, %r0, 5, 31;"), [5; 32]);
    assert_eq!(run("shfl.up.b32 %r2|%p2, %r0, 1, 0;")[..3], [0, 0, 1]);
    // True in all lanes, and in none.
    let always = "setp.eq.u32 %p1, %r0, %r0;";
    for (op, want) in [("all", 1), ("any", 1), ("uni", 1)] {
        let body = format!(
            "{always} vote.sync.{op}.pred %p2, %p1, -1; selp.u32 %r2, 1, 0, %p2; st.global.u32 [%rd2], %r2;"
        );
        assert_eq!(out(&body, &[0], 32), [want; 32], "{op}");
        let never = body.replace(", %p1, -1", ", !%p1, -1");
        assert_eq!(out(&never, &[0], 32), [u32::from(op == "uni"); 32], "{op}");
    }
    // Equal in the low half only.
    let wide = "cvt.u64.u32 %rd5, %r0; shr.u64 %rd5, %rd5, 3; shl.b64 %rd5, %rd5, 32; or.b64 %rd5, %rd5, 7;";
    let group = |l: u32| 0xff << (l / 8 * 8);
    let body = format!("{wide} match.any.sync.b64 %r2, %rd5, -1; st.global.u32 [%rd2], %r2;");
    assert_eq!(out(&body, &[0], 32), (0..32).map(group).collect::<Vec<_>>());
    let all = "match.all.sync.b64 %r2|%p2, %rd5, %r3; selp.u32 %r4, 1, 0, %p2; xor.b32 %r2, %r2, %r4; st.global.u32 [%rd2], %r2;";
    let body = format!("{wide} mov.u32 %r3, -1; {all}");
    assert_eq!(out(&body, &[0], 32), [0; 32]);
    let body = format!("{wide} and.b32 %r3, %r0, 24; shl.b32 %r3, 255, %r3; {all}");
    assert_eq!(out(&body, &[0], 32), (0..32).map(|l| group(l) ^ 1).collect::<Vec<_>>());
    let signed = "sub.s32 %r1, %r0, 16; xor.b32 %r3, %r1, 0x55;";
    let values: Vec<u32> = (0..32u32).map(|l| l.wrapping_sub(16) ^ 0x55).collect();
    let signed_of = |v: &u32| *v as i32;
    for (op, want) in [
        ("add.s32", values.iter().fold(0, |a: u32, b| a.wrapping_add(*b))),
        ("min.u32", *values.iter().min().unwrap()),
        ("max.u32", *values.iter().max().unwrap()),
        ("min.s32", values.iter().map(signed_of).min().unwrap() as u32),
        ("max.s32", values.iter().map(signed_of).max().unwrap() as u32),
        ("and.b32", values.iter().fold(!0, |a, b| a & b)),
        ("or.b32", values.iter().fold(0, |a, b| a | b)),
        ("xor.b32", values.iter().fold(0, |a, b| a ^ b)),
    ] {
        let body = format!("{signed} redux.sync.{op} %r2, %r3, -1; st.global.u32 [%rd2], %r2;");
        assert_eq!(out(&body, &[0], 32), [want; 32], "{op}");
    }
}

#[test]
fn hints_and_ends_of_the_control_flow() {
    let store = "st.global.u32 [%rd2], 1;";
    for hint in [
        "nanosleep.u32 100;",
        "pmevent 3;",
        "pmevent.mask 5;",
        "griddepcontrol.wait; griddepcontrol.launch_dependents;",
        "setmaxnreg.inc.sync.aligned.u32 96;",
        "membar.cta; membar.gl; membar.sys;",
        "fence.sc.cta; fence.acq_rel.gpu; fence.sc.sys; fence.acquire.gpu; fence.release.cta; fence.acq_rel.cluster;",
        "bra.uni NEXT;\nNEXT:",
    ] {
        assert_eq!(out(&format!("{hint} {store}"), &[0], 32), [1; 32], "{hint}");
    }
    // `exit` in a function ends the thread, `ret` only the function.
    let function = |end: &str| format!(".func f() {{ {end} }}");
    let body = "setp.lt.u32 %p1, %r0, 8; st.global.u32 [%rd2], 0; @!%p1 bra ON; call.uni f, ();\nON: st.global.u32 [%rd2], 1;";
    assert_eq!(words(&function("exit;"), body, &[0], 32).0[6..10], [0, 0, 1, 1]);
    assert_eq!(words(&function("ret.uni;"), body, &[0], 32).0[6..10], [1, 1, 1, 1]);
    assert_eq!(
        out(
            "setp.lt.u32 %p1, %r0, 8; st.global.u32 [%rd2], 1; @%p1 exit; st.global.u32 [%rd2], 2;",
            &[0],
            32
        )[6..10],
        [1, 1, 2, 2]
    );
    // Another name of a function, and the text that a kernel prints.
    let decls =
        ".func (.param .b32 r) f() { st.param.b32 [r], 9; ret; }\n.func (.param .b32 r) g();\n.alias g, f;
        .extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);";
    let body = "{ .param .b32 r; call.uni (r), g, (); ld.param.b32 %r1, [r]; }
        { .param .b64 a; .param .b64 b; .param .b32 r; st.param.b64 [a], %rd0; st.param.b64 [b], %rd0; call.uni (r), vprintf, (a, b); ld.param.b32 %r2, [r]; }
        add.u32 %r1, %r1, %r2; st.global.u32 [%rd2], %r1;";
    assert_eq!(words(decls, body, &[0], 32).0[..32], [9; 32]);
}

#[test]
fn a_guarded_indirect_branch_may_diverge() {
    let run = |index: &str, guard: &str| {
        let body = format!(
            "{index} setp.lt.u32 %p1, %r0, 8; setp.lt.u32 %p2, %r0, 32; mov.u32 %r2, 5; ts: .branchtargets A, B; {guard} brx.idx %r1, ts;
            mov.u32 %r2, 6; bra C; A: mov.u32 %r2, 7; bra C; B: mov.u32 %r2, 8; C: st.global.u32 [%rd2], %r2;"
        );
        let (got, c) = words("", &body, &[0], 32);
        (got[0], got[31], c.divergent_branches)
    };
    assert_eq!(run("mov.u32 %r1, 1;", ""), (8, 8, 0));
    assert_eq!(run("and.b32 %r1, %r0, 1;", ""), (7, 8, 1));
    assert_eq!(run("mov.u32 %r1, 1;", "@%p1"), (8, 6, 1));
    assert_eq!(run("and.b32 %r1, %r0, 1;", "@%p1"), (7, 6, 1));
    assert_eq!(run("mov.u32 %r1, 0;", "@%p2"), (7, 7, 0));
    assert_eq!(run("mov.u32 %r1, 0;", "@!%p2"), (6, 6, 0));
}
