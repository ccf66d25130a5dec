//! Matrix fragments against tables that are laid out like the matrices (tests/ptx/fragments.txt).

mod common;
use common::*;
use half::{bf16, f16};
use ptx_sim::{Error, Gpu, Launch, Module};

/// Lane and element of every entry of a fragment, by row and column.
fn table(name: &str) -> Vec<Vec<(usize, usize)>> {
    let text = include_str!("ptx/fragments.txt");
    let start = text.find(&format!("[{name}]")).unwrap() + name.len() + 2;
    let place = |s: &str| {
        let (lane, element) = s.split_once('.').unwrap();
        (lane.parse().unwrap(), element.parse().unwrap())
    };
    text[start..]
        .trim_start()
        .lines()
        .take_while(|l| !l.trim().is_empty())
        .map(|l| l.split_whitespace().map(place).collect())
        .collect()
}

/// Runs an instruction whose operands are vectors of 32-bit registers, one value a lane and register.
fn run_vectors(template: &str, inputs: &[Vec<[u32; 32]>], outputs: usize) -> Vec<[u32; 32]> {
    let mut body = String::new();
    let mut text = template.to_owned();
    let mut next = 0;
    for (k, input) in inputs.iter().enumerate() {
        let names: Vec<String> = input.iter().enumerate().map(|(i, _)| format!("%a{}", next + i)).collect();
        for (i, name) in names.iter().enumerate() {
            body += &format!("ld.global.b32 {name}, [%rd1+{}];\n", (next + i) * 128);
        }
        text = text.replace(&format!("${}", k + 1), &format!("{{{}}}", names.join(",")));
        next += input.len();
    }
    let outs: Vec<String> = (0..outputs).map(|i| format!("%d{i}")).collect();
    text = text.replace("$d", &format!("{{{}}}", outs.join(",")));
    body += &format!("{text};\n");
    for (i, name) in outs.iter().enumerate() {
        body += &format!("st.global.b32 [%rd2+{}], {name};\n", i * 128);
    }
    let ptx = format!(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 d) {{
.reg .b32 %a<64>; .reg .b32 %d<16>; .reg .b32 %r<8>; .reg .b64 %rd<8>;
ld.param.u64 %rd1, [a]; ld.param.u64 %rd2, [d]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4;
add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;\n{body}ret;\n}}"
    );
    let module = Module::parse(&ptx).unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    let mut gpu = Gpu::new();
    let all: Vec<u32> = inputs.iter().flatten().flatten().copied().collect();
    let (a, d) = (upload(&mut gpu, &all), gpu.alloc(outputs * 128));
    let params: &[&[u8]] = params![a, d];
    module
        .launch(&mut gpu, "k", &Launch { block: [32, 1, 1], params, ..Launch::default() })
        .unwrap_or_else(|e| panic!("{e}\n{ptx}"));
    let out = download::<u32>(&gpu, d, outputs * 32);
    out.chunks(32).map(|c| c.try_into().unwrap()).collect()
}

/// Puts a matrix into registers of `bits` wide elements.
fn scatter(name: &str, bits: u32, value: impl Fn(usize, usize) -> u64) -> Vec<[u32; 32]> {
    let table = table(name);
    let elements = table.iter().flatten().map(|p| p.1).max().unwrap() + 1;
    let mut regs = vec![[0u32; 32]; elements * bits as usize / 32];
    for (row, line) in table.iter().enumerate() {
        for (col, &(lane, element)) in line.iter().enumerate() {
            let at = element * bits as usize;
            regs[at / 32][lane] |= (value(row, col) as u32) << (at % 32);
            if bits == 64 {
                regs[at / 32 + 1][lane] = (value(row, col) >> 32) as u32;
            }
        }
    }
    regs
}

fn a(row: usize, col: usize) -> i64 {
    (row * 7 + col * 3) as i64 % 11 - 5
}
fn b(row: usize, col: usize) -> i64 {
    (row * 5 + col * 2) as i64 % 9 - 4
}
fn c(row: usize, col: usize) -> i64 {
    (row * 8 + col) as i64 - 60
}

/// `to` encodes operands, `acc` and `back` the accumulators.
fn check(
    op: &str,
    names: [&str; 3],
    k: usize,
    bits: [u32; 2],
    to: impl Fn(i64) -> u64,
    acc: impl Fn(i64) -> u64,
) {
    let inputs = [
        scatter(names[0], bits[0], |r, c| to(a(r, c))),
        scatter(names[1], bits[0], |r, c| to(b(r, c))),
        scatter(names[2], bits[1], |row, col| acc(c(row, col))),
    ];
    let got = run_vectors(&format!("{op} $d, $1, $2, $3"), &inputs, inputs[2].len());
    let want = scatter(names[2], bits[1], |row, col| {
        acc(c(row, col) + (0..k).map(|i| a(row, i) * b(i, col)).sum::<i64>())
    });
    assert_eq!(got, want, "{op}");
}

#[test]
fn mma_fragments() {
    let h = |v: i64| u64::from(f16::from_f64(v as f64).to_bits());
    let bf = |v: i64| u64::from(bf16::from_f64(v as f64).to_bits());
    let s = |v: i64| u64::from((v as f32).to_bits());
    let byte = |v: i64| v as u64 & 0xff;
    let int = |v: i64| v as u64 & 0xffff_ffff;
    let k16 = ["f16 m16n8k16 A", "f16 m16n8k16 B", "f32 m16n8 C"];
    let k8 = ["f16 m16n8k8 A", "f16 m16n8k8 B", "f32 m16n8 C"];
    check("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", k16, 16, [16, 32], h, s);
    check("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", k16, 16, [16, 32], bf, s);
    check("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16", k16, 16, [16, 16], h, h);
    check("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32", k8, 8, [16, 32], h, s);
    check("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32", k8, 8, [16, 32], bf, s);
    let tf = |k: &'static str| -> [&'static str; 3] {
        if k == "4" {
            ["tf32 m16n8k4 A", "tf32 m16n8k4 B", "f32 m16n8 C"]
        } else {
            ["tf32 m16n8k8 A", "tf32 m16n8k8 B", "f32 m16n8 C"]
        }
    };
    check("mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32", tf("4"), 4, [32, 32], s, s);
    check("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32", tf("8"), 8, [32, 32], s, s);
    let i16 = ["s8 m16n8k16 A", "s8 m16n8k16 B", "f32 m16n8 C"];
    let i32 = ["s8 m16n8k32 A", "s8 m16n8k32 B", "f32 m16n8 C"];
    check("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32", i16, 16, [8, 32], byte, int);
    check("mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32", i32, 32, [8, 32], byte, int);
    let small = ["s8 m8n8k16 A", "s8 m8n8k16 B", "f64 m8n8 C"];
    check("mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32", small, 16, [8, 32], byte, int);
}

/// The registers of f64 operands are pairs of those that are loaded and stored.
#[test]
fn mma_fragments_of_f64() {
    let bits = |v: i64| (v as f64).to_bits();
    for (shape, c_name, k) in [
        ("m8n8k4", "f64 m8n8 C", 4),
        ("m16n8k4", "f32 m16n8 C", 4),
        ("m16n8k8", "f32 m16n8 C", 8),
        ("m16n8k16", "f32 m16n8 C", 16),
    ] {
        let inputs = [
            scatter(&format!("f64 {shape} A"), 64, |r, col| bits(a(r, col))),
            scatter(&format!("f64 {shape} B"), 64, |r, col| bits(b(r, col))),
            scatter(c_name, 64, |r, col| bits(c(r, col))),
        ];
        let (mut text, mut lists, mut next) = ("{ .reg .b64 x<32>, y<8>;\n".to_owned(), Vec::new(), 0);
        for input in &inputs {
            let names: Vec<String> = (next..next + input.len() / 2).map(|i| format!("x{i}")).collect();
            for (i, name) in names.iter().enumerate() {
                text += &format!("mov.b64 {name}, {{%a{}, %a{}}};\n", 2 * (next + i), 2 * (next + i) + 1);
            }
            next += names.len();
            lists.push(format!("{{{}}}", names.join(",")));
        }
        let n = inputs[2].len() / 2;
        let d: Vec<String> = (0..n).map(|i| format!("y{i}")).collect();
        text += &format!(
            "mma.sync.aligned.{shape}.row.col.f64.f64.f64.f64 {{{}}}, {};\n",
            d.join(","),
            lists.join(", ")
        );
        for i in 0..n {
            text += &format!("mov.b64 {{%d{}, %d{}}}, y{i};\n", 2 * i, 2 * i + 1);
        }
        let got = run_vectors(&format!("{text} }}"), &inputs, 2 * n);
        let want = scatter(c_name, 64, |row, col| {
            bits(c(row, col) + (0..k).map(|i| a(row, i) * b(i, col)).sum::<i64>())
        });
        assert_eq!(got, want, "{shape}");
    }
}

/// Shapes and types that are not implemented, or not in the manual, say so.
#[test]
fn other_mma_are_refused() {
    for form in [
        "m8n8k4.row.col.f32.f16.f16.f32",
        "m16n8k4.row.col.f32.f16.f16.f32",
        "m16n8k16.row.row.f32.f16.f16.f32",
        "m16n8k16.col.row.f32.f16.f16.f32",
        "m16n8k16.row.col.f16.f16.f16.f32",
        "m16n8k16.row.col.f32.f16.bf16.f32",
        "m16n8k16.row.col.satfinite.f32.f16.f16.f32",
        "m16n8k16.row.col.f32.tf32.tf32.f32",
        "m16n8k8.row.col.bf16.bf16.bf16.bf16",
        "m16n8k32.row.col.f32.e4m3.e4m3.f32",
        "m8n8k32.row.col.s32.s4.s4.s32",
        "m16n8k64.row.col.s32.u4.u4.s32",
        "m16n8k256.row.col.s32.b1.b1.s32.and.popc",
        "m8n8k16.row.col.f64.f64.f64.f64",
        "m16n8k32.row.col.f64.f64.f64.f64",
        "m16n8k8.row.col.s32.s8.s8.s32",
        "m8n8k32.row.col.s32.s8.s8.s32",
    ] {
        let text = format!(
            ".version 8.6\n.target sm_100\n.address_size 64\n.visible .entry k() {{ .reg .b32 %r<4>;
mma.sync.aligned.{form} {{%r0}}, {{%r0}}, {{%r0}}, {{%r0}};\nret; }}"
        );
        let result = Module::parse(&text);
        assert!(matches!(result, Err(Error::Unsupported { line: 5, .. })), "{form}: {result:?}");
    }
    // As many registers as the fragments have.
    for lists in ["{%r0}, {%r0}, {%r0}, {%r0,%r0}", "{%r0,%r0}, {%r0,%r0}, {%r0}, {%r0,%r0}"] {
        let text = format!(
            ".version 8.6\n.target sm_100\n.address_size 64\n.visible .entry k() {{ .reg .b32 %r<4>;
mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32 {lists};\nret; }}"
        );
        assert!(matches!(Module::parse(&text), Err(Error::Parse { line: 5, .. })), "{lists}");
    }
}

/// Unsigned operands, and both kinds of overflow.
#[test]
fn integer_mma_signs_and_saturation() {
    let large = ("m16n8k16", ["s8 m16n8k16 A", "s8 m16n8k16 B", "f32 m16n8 C"], 4);
    let small = ("m8n8k16", ["s8 m8n8k16 A", "s8 m8n8k16 B", "f64 m8n8 C"], 2);
    for (shape, names, outputs) in [large, small] {
        signs_and_saturation(shape, names, outputs);
    }
}

fn signs_and_saturation(shape: &str, names: [&str; 3], outputs: usize) {
    for (types, sa, sb) in [("u8.s8", false, true), ("s8.u8", true, false), ("u8.u8", false, false)] {
        let inputs = [
            scatter(names[0], 8, |r, c| 0x80 + (r + c) as u64),
            scatter(names[1], 8, |r, c| 0xf0 + (r ^ c) as u64),
            scatter(names[2], 32, |_, _| 0),
        ];
        let got = run_vectors(
            &format!("mma.sync.aligned.{shape}.row.col.s32.{types}.s32 $d, $1, $2, $3"),
            &inputs,
            outputs,
        );
        let value = |v: u64, signed: bool| {
            if signed { i64::from(v as u8 as i8) } else { v as i64 }
        };
        let want = scatter(names[2], 32, |row, col| {
            let sum: i64 = (0..16)
                .map(|i| value(0x80 + (row + i) as u64, sa) * value(0xf0 + (i ^ col) as u64, sb))
                .sum();
            sum as u64 & 0xffff_ffff
        });
        assert_eq!(got, want, "{types}");
    }
    for (sat, want) in
        [("", 0x8000_0000u32.wrapping_add(15 * 127 * 127 + 127 * 127 - 1)), (".satfinite", 0x7fff_ffff)]
    {
        let inputs = [
            scatter(names[0], 8, |_, _| 127),
            scatter(names[1], 8, |_, _| 127),
            scatter(names[2], 32, |_, _| 0x7fff_ffff),
        ];
        let got = run_vectors(
            &format!("mma.sync.aligned.{shape}.row.col{sat}.s32.s8.s8.s32 $d, $1, $2, $3"),
            &inputs,
            outputs,
        );
        assert_eq!(got, vec![[want; 32]; outputs]);
    }
}

/// Special values pass through; the low bits of a tf32 operand do not count.
#[test]
fn mma_special_values() {
    let names = ["tf32 m16n8k8 A", "tf32 m16n8k8 B", "f32 m16n8 C"];
    let run = |x: u32, y: u32| {
        let inputs = [
            scatter(names[0], 32, |r, c| if (r, c) == (0, 0) { u64::from(x) } else { 0 }),
            scatter(names[1], 32, |r, c| if (r, c) == (0, 0) { u64::from(y) } else { 0 }),
            scatter(names[2], 32, |_, _| 0),
        ];
        run_vectors("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 $d, $1, $2, $3", &inputs, 4)[0][0]
    };
    assert_eq!(run(0x3f80_1fff, 0x4000_0000), 0x4000_0000);
    assert_eq!(run(0x7f80_0000, 0x3f80_0000), 0x7f80_0000);
    assert_eq!(run(0x7f80_0000, 0), 0x7fff_ffff);
}

/// ldmatrix of each form, from a shared tile whose 16-bit elements are numbered through.
#[test]
fn ldmatrix_stmatrix_movmatrix() {
    let table = table("ldmatrix");
    for count in [1usize, 2, 4] {
        for trans in [false, true] {
            let modifier = if trans { ".trans" } else { "" };
            let list = |p: &str| (0..count).map(|i| format!("%{p}{i}")).collect::<Vec<_>>().join(",");
            // Rows 80 bytes apart; lane l gives row l.
            let fill = "{ .reg .b32 x, y, z; .shared .align 16 .b8 s[2560]; mov.u32 x, s; mov.u32 y, %tid.x; mad.lo.u32 x, y, 80, x;
                mul.lo.u32 z, y, 8; ";
            let mut text = fill.to_owned();
            for i in 0..4 {
                // Elements 2 i and 2 i + 1 of the row: numbers row * 8 + column.
                text += &format!(
                    "{{ .reg .b32 p, q; add.u32 p, z, {}; add.u32 q, p, 1; shl.b32 q, q, 16; or.b32 p, p, q; st.shared.b32 [x+{}], p; }}\n",
                    2 * i,
                    4 * i
                );
            }
            text += "bar.warp.sync -1;\n";
            text += &format!(
                "ldmatrix.sync.aligned.m8n8.x{count}{modifier}.shared.b16 {{{}}}, [x]; }}",
                list("d")
            );
            let got = run_vectors(&text, &[vec![[0; 32]]], count);
            let mut want = vec![[0u32; 32]; count];
            for (m, regs) in want.iter_mut().enumerate() {
                for (row, line) in table.iter().enumerate() {
                    for (col, &(lane, element)) in line.iter().enumerate() {
                        let (r, c) = if trans { (col, row) } else { (row, col) };
                        regs[lane] |= (((m * 8 + r) * 8 + c) as u32) << (16 * element);
                    }
                }
            }
            assert_eq!(got, want, "x{count}{modifier}");
            // stmatrix is its inverse: store the fragments, read the rows back.
            let text = format!(
                "{{ .reg .b32 x, y; .shared .align 16 .b8 s[2560]; mov.u32 x, s; mov.u32 y, %tid.x; mad.lo.u32 x, y, 80, x;
                st.shared.v4.b32 [x], {{0, 0, 0, 0}}; bar.warp.sync -1;
                stmatrix.sync.aligned.m8n8.x{count}{modifier}.shared.b16 [x], $1; bar.warp.sync -1;
                ld.shared.v4.b32 {{%d0,%d1,%d2,%d3}}, [x]; }}"
            );
            let rows = run_vectors(&text, &[want], 4);
            for (i, part) in rows.iter().enumerate() {
                for (row, &got) in part[..count * 8].iter().enumerate() {
                    let number = (row * 8 + 2 * i) as u32;
                    assert_eq!(got, (number + 1) << 16 | number, "stmatrix x{count}{modifier}");
                }
            }
        }
    }
    let fragment = scatter("ldmatrix", 16, |r, c| (r * 8 + c) as u64);
    let got = run_vectors("movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a0;/* $1 */", &[fragment], 1);
    assert_eq!(got, scatter("ldmatrix", 16, |r, c| (c * 8 + r) as u64));
}
