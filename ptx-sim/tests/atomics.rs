//! Atomics of every operation and type against definitions: the value returned, and the value left, in global and
//! shared memory and through generic addresses.

mod common;
use common::lab::{self, I16, I32, I64};
use common::round::{BF16, F16, F32, F64, Format};
use common::*;
use ptx_sim::{Gpu, Launch, Module};

/// Each thread has 8 bytes of its own, at `old` and in `s`, and its operands at `b` and `c`.
fn kernel(op: &str, ty: &str, bits: u32, space: &str, operands: usize, returns: bool) -> Module {
    let r = match bits {
        16 => "%h",
        32 => "%r",
        _ => "%rd",
    };
    let at = match space {
        "shared" => "%rd13",
        "generic shared" => "%rd14",
        _ => "%rd1",
    };
    let space = if space.starts_with("generic") { String::new() } else { format!(".{space}") };
    let c = if operands == 2 { format!(", {r}4") } else { String::new() };
    let (name, d) = if returns { ("atom", format!("{r}5, ")) } else { ("red", String::new()) };
    let text = format!(
        ".version 8.6\n.target sm_100\n.address_size 64\n.shared .align 8 .b8 s[512];
.visible .entry k(.param .u64 old, .param .u64 b, .param .u64 c, .param .u64 ret) {{
.reg .b16 %h<8>; .reg .b32 %r<12>; .reg .b64 %rd<20>;
mov.u32 %r10, %tid.x; mov.u32 %r11, %ctaid.x; mad.lo.u32 %r11, %r11, 64, %r10; mul.wide.u32 %rd10, %r11, 8; mul.wide.u32 %rd11, %r10, 8;
ld.param.u64 %rd1, [old]; add.u64 %rd1, %rd1, %rd10; ld.param.u64 %rd2, [b]; add.u64 %rd2, %rd2, %rd10;
ld.param.u64 %rd6, [c]; add.u64 %rd6, %rd6, %rd10; ld.param.u64 %rd7, [ret]; add.u64 %rd7, %rd7, %rd10;
mov.u64 %rd12, s; add.u64 %rd13, %rd12, %rd11; cvta.shared.u64 %rd14, %rd13; ld.global.u64 %rd15, [%rd1]; st.shared.u64 [%rd13], %rd15;
ld.global.b{bits} {r}3, [%rd2]; ld.global.b{bits} {r}4, [%rd6];
{name}{space}.{op}.{ty} {d}[{at}], {r}3{c};
{} ld.b{bits} {r}8, [{}]; st.global.b{bits} [%rd1], {r}8; ret; }}",
        if returns { format!("st.global.b{bits} [%rd7], {r}5;") } else { String::new() },
        if at == "%rd13" { "%rd14" } else { at },
    )
    .replace(&format!("{r}8"), &format!("{r}{}", if bits == 64 { 18 } else { 7 }));
    Module::parse(&text).unwrap_or_else(|e| panic!("{op}.{ty}: {e}\n{text}"))
}

/// All combinations of the value in memory and the operands; `same` compares what the type leaves open.
fn check(
    op: &str,
    ty: &str,
    bits: u32,
    values: &[u64],
    operands: usize,
    same: impl Fn(u64, u64) -> bool,
    def: impl Fn(u64, u64, u64, bool) -> u64,
) {
    let n = values.len();
    let all: Vec<[u64; 3]> = if operands == 2 {
        // What is compared with is what is there in one case of three.
        (0..3 * n * n)
            .map(|i| {
                [values[i % n], values[if i / n / n == 0 { i % n } else { i / n % n }], values[i / n % n]]
            })
            .collect()
    } else {
        (0..n * n).map(|i| [values[i % n], values[i / n], 0]).collect()
    };
    let blocks = all.len().div_ceil(64);
    let column = |k: usize| -> Vec<u64> {
        all.iter().map(|row| row[k]).chain(std::iter::repeat(0)).take(blocks * 64).collect()
    };
    let mask = u64::MAX >> (64 - bits);
    for space in ["global", "shared", "generic", "generic shared"] {
        for returns in [true, false] {
            if !returns && matches!(op, "exch" | "cas") {
                continue;
            }
            let module = kernel(op, ty, bits, space, operands, returns);
            let mut gpu = Gpu::new();
            let [old, b, c] = [0, 1, 2].map(|k| upload(&mut gpu, &column(k)));
            let ret = upload(&mut gpu, &vec![0u64; blocks * 64]);
            let launch = Launch {
                grid: [blocks as u32, 1, 1],
                block: [64, 1, 1],
                params: params![old, b, c, ret],
                ..Launch::default()
            };
            module.launch(&mut gpu, "k", &launch).unwrap_or_else(|e| panic!("{op}.{ty} {space}: {e}"));
            let (left, got) = (download::<u64>(&gpu, old, all.len()), download::<u64>(&gpu, ret, all.len()));
            for (i, row) in all.iter().enumerate() {
                let [x, b, c] = row.map(|v| v & mask);
                let want = def(x, b, c, !space.ends_with("shared")) & mask;
                let at = format!("{op}.{ty} {space} of {row:#x?}");
                assert!(same(left[i] & mask, want), "{at}: left {:#x}, wanted {want:#x}", left[i]);
                assert!(!returns || got[i] == x, "{at}: returned {:#x}", got[i]);
                // Nothing beside it has changed.
                assert_eq!(left[i] & !mask, row[0] & !mask, "{at}");
            }
        }
    }
}

fn equal(a: u64, b: u64) -> bool {
    a == b
}

#[test]
fn integers() {
    // Bytes beside a narrow value, so that it is seen when they change.
    let wide = |values: &[u64]| values.iter().map(|v| v | 0xa5a5_a5a5 << 32).collect::<Vec<_>>();
    type Def = fn(u64, u64) -> u64;
    let words: [(&str, Def); 3] = [("and", |a, b| a & b), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)];
    for (bits, values) in [(32, wide(I32)), (64, I64.to_vec())] {
        for (op, def) in words {
            check(op, &format!("b{bits}"), bits, &values, 1, equal, |a, b, _, _| def(a, b));
        }
        check("exch", &format!("b{bits}"), bits, &values, 1, equal, |_, b, _, _| b);
        check("cas", &format!("b{bits}"), bits, &values, 2, equal, |a, b, c, _| if a == b { c } else { a });
        let sign = move |v: u64| (v << (64 - bits)) as i64;
        for ty in ["u", "s"] {
            let ty = format!("{ty}{bits}");
            check("add", &ty, bits, &values, 1, equal, |a, b, _, _| a.wrapping_add(b));
            let less = |a: u64, b: u64| if ty.starts_with('s') { sign(a) < sign(b) } else { a < b };
            check("min", &ty, bits, &values, 1, equal, |a, b, _, _| if less(a, b) { a } else { b });
            check("max", &ty, bits, &values, 1, equal, |a, b, _, _| if less(a, b) { b } else { a });
        }
    }
    check("inc", "u32", 32, &wide(I32), 1, equal, |a, b, _, _| if a >= b { 0 } else { a + 1 });
    check("dec", "u32", 32, &wide(I32), 1, equal, |a, b, _, _| if a == 0 || a > b { b } else { a - 1 });
    let narrow: Vec<u64> = I16.iter().map(|v| v | 0x5a5a_a5a5_5a5a << 16).collect();
    check("cas", "b16", 16, &narrow, 2, equal, |a, b, c, _| if a == b { c } else { a });
}

#[test]
fn sums_of_floats() {
    let sum = |f: Format, a: u64, b: u64| f.add("rn", f.value(a), f.value(b));
    let as_f64 = |a: u64, b: u64| a == b || F64.is_nan(a) && F64.is_nan(b);
    // Global memory flushes subnormal f32, shared memory does not.
    check("add", "f32", 32, lab::F32, 1, equal, |a, b, _, is_global| {
        let flush = |v| if is_global { F32.flush(v) } else { v };
        flush(sum(F32, flush(a), flush(b)))
    });
    check("add", "f64", 64, lab::F64, 1, as_f64, |a, b, _, _| sum(F64, a, b));
    for (ty, f, values) in [("f16", F16, lab::F16), ("bf16", BF16, lab::BF16)] {
        check("add.noftz", ty, 16, values, 1, equal, |a, b, _, _| sum(f, a, b));
        let pairs: Vec<u64> =
            values.iter().zip(values.iter().cycle().skip(3)).map(|(a, b)| a << 16 | b).collect();
        check("add.noftz", &format!("{ty}x2"), 32, &pairs, 1, equal, |a, b, _, _| {
            sum(f, a >> 16, b >> 16) << 16 | sum(f, a & 0xffff, b & 0xffff)
        });
    }
}

/// All lanes on one address: each sees what those before it have left, and what is left is the sum of all.
#[test]
fn lanes_take_turns() {
    let text = ".version 8.6\n.target sm_100\n.address_size 64\n.shared .align 8 .b8 s[16];
.visible .entry k(.param .u64 p) { .reg .b16 %h<4>; .reg .b32 %r<8>; .reg .b64 %rd<8>;
ld.param.u64 %rd1, [p]; mov.u32 %r0, %tid.x; mul.wide.u32 %rd2, %r0, 8; add.u64 %rd2, %rd1, %rd2; cvt.u64.u32 %rd3, %r0; add.u64 %rd3, %rd3, 1; shl.b64 %rd3, %rd3, 30;
mov.u64 %rd4, 0; st.shared.u64 [s], %rd4; bar.warp.sync -1;
atom.shared.add.u64 %rd5, [s], %rd3; atom.global.exch.b64 %rd6, [%rd1+256], %rd3; add.u64 %rd5, %rd5, %rd6; st.global.u64 [%rd2], %rd5;
cvt.u16.u32 %h1, %r0; add.u16 %h2, %h1, 1; atom.global.cas.b16 %h3, [%rd1+266], %h1, %h2; ret; }";
    let module = Module::parse(text).unwrap();
    let mut gpu = Gpu::new();
    let p = upload(&mut gpu, &[0u64; 34]);
    module
        .launch(&mut gpu, "k", &Launch { block: [32, 1, 1], params: params![p], ..Launch::default() })
        .unwrap();
    let got = download::<u64>(&gpu, p, 34);
    for l in 0..32u64 {
        // The sum of those before, and the one before.
        assert_eq!(got[l as usize], (l * (l + 1) / 2 + l) << 30, "lane {l}");
    }
    assert_eq!((got[32], got[33]), (32 << 30, 32 << 16));
}
