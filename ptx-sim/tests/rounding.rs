//! Floating-point instructions of every format, in every rounding mode and with every modifier that the manual
//! gives them, against exact values (`common/round.rs`).

mod common;
use common::lab::{self, I16, I32, I64, results};
use common::round::{BF16, F16, F32, F64, Format, Num, int, mul, negate};

const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];

/// Operands of a type: its name, format, bits, and edge values.
type Type = (&'static str, Format, u32, &'static [u64]);
const HALF: Type = ("f16", F16, 16, lab::F16);
const BRAIN: Type = ("bf16", BF16, 16, lab::BF16);
const SINGLE: Type = ("f32", F32, 32, lab::F32);
const DOUBLE: Type = ("f64", F64, 64, lab::F64);

/// Wants the bits of the definition; in f64, where the manual names none, any NaN.
fn same(op: &str, f: Format, dst: u32, srcs: &[u32], values: &[&[u64]], want: impl Fn(&[u64]) -> u64) {
    for (v, got) in results(op, dst, srcs, values) {
        let want = want(&v);
        let any_nan = f == F64 && f.is_nan(want) && f.is_nan(got);
        assert!(got == want || any_nan, "{op} of {v:#x?}: got {got:#x}, wanted {want:#x}");
    }
}

/// What an arithmetic instruction gives for each element.
#[derive(Clone, Copy)]
struct Def<'a> {
    op: &'a str,
    mode: &'a str,
    ftz: bool,
    sat: bool,
    relu: bool,
}

impl Def<'_> {
    fn of(self, f: Format, v: &[u64]) -> u64 {
        let v: Vec<Num> = v.iter().map(|&v| f.value(if self.ftz { f.flush(v) } else { v })).collect();
        let mode = self.mode;
        let r = match self.op {
            "add" => f.add(mode, v[0], v[1]),
            "sub" => f.add(mode, v[0], negate(v[1])),
            "mul" => f.fit(mode, mul(v[0], v[1])),
            "fma" | "mad" => f.add(mode, mul(v[0], v[1]), v[2]),
            "div" => f.div(mode, v[0], v[1]),
            "rcp" => f.div(mode, int(1), v[0]),
            _ => f.sqrt(mode, v[0]),
        };
        let r = if self.ftz { f.flush(r) } else { r };
        let r = if self.sat { f.saturate(r) } else { r };
        if self.relu { f.relu(r) } else { r }
    }

    fn operands(self) -> usize {
        match self.op {
            "fma" | "mad" => 3,
            "rcp" | "sqrt" => 1,
            _ => 2,
        }
    }

    fn name(self, ty: &str) -> String {
        let part = |on: bool, name: &str| if on { format!(".{name}") } else { String::new() };
        let (ftz, sat, relu) = (part(self.ftz, "ftz"), part(self.sat, "sat"), part(self.relu, "relu"));
        format!("{}.{}{ftz}{sat}{relu}.{ty}", self.op, self.mode)
    }

    /// Over all combinations of edge values.
    fn check(self, (name, f, bits, values): Type) {
        let n = self.operands();
        same(&self.name(name), f, bits, &vec![bits; n], &vec![values; n], |v| self.of(f, v));
    }

    /// Two elements in a register: each value meets all others in both places.
    fn check_packed(self, (name, f, bits, values): Type) {
        let n = self.operands();
        let turned = values.iter().cycle().skip(7);
        let pairs: Vec<u64> = values.iter().zip(turned).map(|(low, high)| high << bits | low).collect();
        let mask = (1 << bits) - 1;
        same(&self.name(&format!("{name}x2")), f, 2 * bits, &vec![2 * bits; n], &vec![&pairs[..]; n], |v| {
            let half = |s: u32| self.of(f, &v.iter().map(|v| v >> s & mask).collect::<Vec<_>>());
            half(bits) << bits | half(0)
        });
    }
}

const PLAIN: Def<'_> = Def { op: "add", mode: "rn", ftz: false, sat: false, relu: false };

/// Every third value, and what is special: for operations of three operands.
fn fewer(values: &'static [u64]) -> &'static [u64] {
    let mut list: Vec<u64> = values.iter().copied().step_by(3).collect();
    list.extend(&values[values.len() - 5..]);
    list.leak()
}

#[test]
fn f32_and_its_pairs() {
    for mode in MODES {
        for ftz in [false, true] {
            for op in ["add", "sub", "mul", "fma"] {
                let def = Def { op, mode, ftz, ..PLAIN };
                let ty = if op == "fma" { ("f32", F32, 32, fewer(lab::F32)) } else { SINGLE };
                def.check_packed(ty);
                def.check(ty);
                Def { sat: true, ..def }.check(ty);
            }
            for op in ["div", "rcp", "sqrt"] {
                Def { op, mode, ftz, ..PLAIN }.check(SINGLE);
            }
        }
        Def { op: "mad", mode, ..PLAIN }.check(("f32", F32, 32, fewer(lab::F32)));
    }
}

#[test]
fn f64() {
    for mode in MODES {
        for op in ["add", "sub", "mul", "div", "rcp", "sqrt"] {
            Def { op, mode, ..PLAIN }.check(DOUBLE);
        }
        Def { op: "fma", mode, ..PLAIN }.check(("f64", F64, 64, fewer(lab::F64)));
    }
}

#[test]
fn halves() {
    for op in ["add", "sub", "mul", "fma"] {
        for ftz in [false, true] {
            let def = Def { op, ftz, ..PLAIN };
            for sat in [false, true] {
                Def { sat, ..def }.check(HALF);
                Def { sat, ..def }.check_packed(HALF);
            }
            if op == "fma" {
                Def { relu: true, ..def }.check(HALF);
                Def { relu: true, ..def }.check_packed(HALF);
            }
        }
        for relu in [false, true] {
            if op == "fma" || !relu {
                Def { op, relu, ..PLAIN }.check(BRAIN);
                Def { op, relu, ..PLAIN }.check_packed(BRAIN);
            }
        }
    }
}

/// -0 is less than +0; a NaN loses, but with `.NaN` it wins; `.xorsign.abs` is left out for a NaN result.
fn extreme(f: Format, is_max: bool, nan: bool, xorsign: bool, a: u64, b: u64) -> u64 {
    let (x, y) = if xorsign { (a & !f.sign(), b & !f.sign()) } else { (a, b) };
    let order = |v: u64| if v & f.sign() == 0 { i128::from(v) } else { -1 - i128::from(v & !f.sign()) };
    let out = match (f.is_nan(x), f.is_nan(y)) {
        (true, true) => return f.nan,
        (true, false) | (false, true) if nan => return f.nan,
        (true, false) => y,
        (false, true) => x,
        _ if is_max == (order(x) > order(y)) => x,
        _ => y,
    };
    if xorsign { out & !f.sign() | (a ^ b) & f.sign() } else { out }
}

#[test]
fn minima_and_maxima() {
    for (op, is_max) in [("min", false), ("max", true)] {
        same(&format!("{op}.f64"), F64, 64, &[64; 2], &[lab::F64; 2], |v| {
            extreme(F64, is_max, false, false, v[0], v[1])
        });
        for (name, f, bits, values) in [HALF, BRAIN, SINGLE] {
            for (ftz, nan, xorsign) in (0..8).map(|i| (i & 1 > 0, i & 2 > 0, i & 4 > 0)) {
                if ftz && f == BF16 {
                    continue;
                }
                let mut full = op.to_owned();
                for (on, part) in [(ftz, ".ftz"), (nan, ".NaN"), (xorsign, ".xorsign.abs")] {
                    full += if on { part } else { "" };
                }
                let def = |a: u64, b: u64| {
                    let flush = |v| if ftz { f.flush(v) } else { v };
                    extreme(f, is_max, nan, xorsign, flush(a), flush(b))
                };
                same(&format!("{full}.{name}"), f, bits, &[bits; 2], &[values; 2], |v| def(v[0], v[1]));
                if bits == 16 {
                    let pairs: Vec<u64> =
                        values.iter().zip(values.iter().rev()).map(|(a, b)| a << 16 | b).collect();
                    same(&format!("{full}.{name}x2"), f, 32, &[32; 2], &[&pairs[..]; 2], |v| {
                        def(v[0] >> 16, v[1] >> 16) << 16 | def(v[0] & 0xffff, v[1] & 0xffff)
                    });
                }
            }
        }
    }
}

#[test]
fn signs_and_tests() {
    for (name, f, bits, values) in [SINGLE, DOUBLE] {
        same(&format!("copysign.{name}"), f, bits, &[bits; 2], &[values; 2], |v| {
            v[0] & f.sign() | v[1] & (f.sign() - 1)
        });
        type Test = fn(Format, u64) -> bool;
        let tests: [(&str, Test); 6] = [
            ("finite", |f, v| v < f.inf()),
            ("infinite", |f, v| v == f.inf()),
            ("number", |f, v| v <= f.inf()),
            ("notanumber", |f, v| v > f.inf()),
            // The manual: zeros are considered normal.
            ("normal", |f, v| v == 0 || v >= 1 << f.man_bits && v < f.inf()),
            ("subnormal", |f, v| v != 0 && v < 1 << f.man_bits),
        ];
        for (test, def) in tests {
            same(&format!("testp.{test}.{name}"), f, 1, &[bits], &[values], |v| {
                u64::from(def(f, v[0] & (f.sign() - 1)))
            });
        }
    }
    for (name, f, bits, values) in [HALF, SINGLE] {
        for (op, flip) in [("neg", f.sign()), ("abs", 0)] {
            same(&format!("{op}.ftz.{name}"), f, bits, &[bits], &[values], |v| match f.flush(v[0]) {
                x if f.is_nan(x) => f.nan,
                x if op == "abs" => x & !f.sign(),
                x => x ^ flip,
            });
        }
    }
}

/// Values at, and beside, the numbers and ties of a narrower format.
fn near(narrow: Format, wide: Format) -> Vec<u64> {
    let step = narrow.inf() / 60;
    let mut out = Vec::new();
    for bits in (0..20).chain((0..60).map(|i| i * step)).chain(narrow.inf() - 4..narrow.inf()) {
        let at = wide.fit("rz", narrow.value(bits));
        let next = if bits + 1 < narrow.inf() {
            wide.fit("rz", narrow.value(bits + 1))
        } else {
            at + (1 << (wide.man_bits - narrow.man_bits))
        };
        let tie = at + (next - at) / 2;
        for v in [at, at + 1, tie - 1, tie, tie + 1, next - 1] {
            out.extend([v, v | wide.sign()]);
        }
    }
    out
}

#[test]
fn conversions_that_round() {
    let pairs: [(Type, Type); 7] = [
        (SINGLE, HALF),
        (SINGLE, BRAIN),
        (DOUBLE, HALF),
        (DOUBLE, BRAIN),
        (DOUBLE, SINGLE),
        (HALF, BRAIN),
        (BRAIN, HALF),
    ];
    for ((from, f, bits, edge), (to, t, dst, _)) in pairs {
        let mut values = edge.to_vec();
        if f.man_bits > t.man_bits && bits > dst {
            values.extend(near(t, f));
        } else {
            values = (0..0x1_0000).step_by(37).chain(values).collect();
        }
        for mode in MODES {
            let def = |v: u64| t.fit(mode, f.value(v));
            same(&format!("cvt.{mode}.{to}.{from}"), t, dst, &[bits], &[&values], |v| def(v[0]));
            if t != BF16 {
                same(&format!("cvt.{mode}.sat.{to}.{from}"), t, dst, &[bits], &[&values], |v| {
                    t.saturate(def(v[0]))
                });
            }
            if t == F32 {
                same(&format!("cvt.{mode}.ftz.{to}.{from}"), t, dst, &[bits], &[&values], |v| {
                    t.flush(def(v[0]))
                });
            }
            if f == F32 {
                same(&format!("cvt.{mode}.ftz.{to}.{from}"), t, dst, &[bits], &[&values], |v| {
                    def(f.flush(v[0]))
                });
            }
        }
    }
}

/// One and two at a time, with the modifiers that only these have.
#[test]
fn conversions_from_f32_to_halves() {
    for (to, t, ..) in [HALF, BRAIN] {
        let mut values = lab::F32.to_vec();
        values.extend(near(t, F32));
        for mode in ["rn", "rz"] {
            for (relu, satfinite) in [(false, false), (false, true), (true, false), (true, true)] {
                let def = |v: u64| {
                    let r = t.fit(mode, F32.value(v));
                    let r = if satfinite && r & !t.sign() == t.inf() { r - 1 } else { r };
                    if relu { t.relu(r) } else { r }
                };
                let mut op = format!("cvt.{mode}");
                op += if relu { ".relu" } else { "" };
                op += if satfinite { ".satfinite" } else { "" };
                same(&format!("{op}.{to}.f32"), t, 16, &[32], &[&values], |v| def(v[0]));
                same(&format!("{op}.{to}x2.f32"), t, 32, &[32; 2], &[&values[20..60], &values], |v| {
                    def(v[0]) << 16 | def(v[1])
                });
            }
        }
    }
    // To tf32, which is an f32 without its lowest 13 bits.
    let tf32 = Format { exp_bits: 8, man_bits: 10, nan: 0x3_ffff };
    let mut values = lab::F32.to_vec();
    values.extend(near(tf32, F32));
    for (op, mode, relu, satfinite) in [
        ("cvt.rna.tf32.f32", "rna", false, false),
        ("cvt.rna.satfinite.tf32.f32", "rna", false, true),
        ("cvt.rn.tf32.f32", "rn", false, false),
        ("cvt.rz.relu.tf32.f32", "rz", true, false),
        ("cvt.rn.relu.satfinite.tf32.f32", "rn", true, true),
    ] {
        same(op, F32, 32, &[32], &[&values], |v| {
            let r = tf32.fit(mode, F32.value(v[0]));
            let r = if satfinite && r & !tf32.sign() == tf32.inf() { r - 1 } else { r };
            if relu { tf32.relu(r) << 13 } else { r << 13 }
        });
    }
}

#[test]
fn conversions_that_are_exact() {
    for ((from, f, bits, values), (to, t, dst, _)) in
        [(HALF, SINGLE), (HALF, DOUBLE), (BRAIN, SINGLE), (BRAIN, DOUBLE), (SINGLE, DOUBLE)]
    {
        let def = |v: u64| t.fit("rz", f.value(v));
        same(&format!("cvt.{to}.{from}"), t, dst, &[bits], &[values], |v| def(v[0]));
        same(&format!("cvt.sat.{to}.{from}"), t, dst, &[bits], &[values], |v| t.saturate(def(v[0])));
        if t == F32 {
            same(&format!("cvt.ftz.{to}.{from}"), t, dst, &[bits], &[values], |v| t.flush(def(v[0])));
        }
        if f == F32 {
            same(&format!("cvt.ftz.{to}.{from}"), t, dst, &[bits], &[values], |v| def(f.flush(v[0])));
        }
    }
    for (name, f, bits, values) in [HALF, SINGLE, DOUBLE] {
        same(&format!("cvt.sat.{name}.{name}"), f, bits, &[bits], &[values], |v| f.saturate(v[0]));
    }
}

const INTS: [(&str, u32, bool, &[u64]); 8] = [
    ("u8", 8, false, I16),
    ("s8", 8, true, I16),
    ("u16", 16, false, I16),
    ("s16", 16, true, I16),
    ("u32", 32, false, I32),
    ("s32", 32, true, I32),
    ("u64", 64, false, I64),
    ("s64", 64, true, I64),
];

fn int_value(v: u64, bits: u32, signed: bool) -> i128 {
    let v = i128::from(v) & ((1 << bits) - 1);
    if signed && v >> (bits - 1) != 0 { v - (1 << bits) } else { v }
}

#[test]
fn integers_to_floats() {
    for (from, bits, signed, values) in INTS {
        for (to, t, dst, _) in [HALF, BRAIN, SINGLE, DOUBLE] {
            for mode in MODES {
                let def = |v: u64| t.fit(mode, int(int_value(v, bits, signed)));
                let src = bits.max(16);
                same(&format!("cvt.{mode}.{to}.{from}"), t, dst, &[src], &[values], |v| def(v[0]));
                if t != BF16 {
                    same(&format!("cvt.{mode}.sat.{to}.{from}"), t, dst, &[src], &[values], |v| {
                        t.saturate(def(v[0]))
                    });
                }
            }
        }
    }
}

/// A value as f64, which holds those of all formats.
fn host(f: Format, v: u64) -> f64 {
    f64::from_bits(F64.fit("rz", f.value(v)))
}

type Integral = (&'static str, fn(f64) -> f64);
const INTEGRAL: [Integral; 4] =
    [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];

/// Halves of integers beside what is special: ties, and the ends of the integer types.
fn for_integers(f: Format, values: &[u64]) -> Vec<u64> {
    let mut out = values.to_vec();
    for v in [1i128, 3, 5, 7, 254, 255, 509, 510, 511, 65534, 65535, 131_071, 131_072] {
        out.extend([f.fit("rz", Num::Of(false, v as u128, -1)), f.fit("rz", Num::Of(true, v as u128, -1))]);
    }
    for e in [7, 8, 15, 16, 31, 32, 63, 64] {
        let at = f.fit("rz", int(1 << e));
        out.extend([at - 1, at, at + 1, (at - 1) | f.sign(), at | f.sign(), (at + 1) | f.sign()]);
    }
    out
}

#[test]
fn floats_to_integers() {
    for (from, f, bits, values) in [HALF, BRAIN, SINGLE, DOUBLE] {
        let values = for_integers(f, values);
        for (to, to_bits, signed, _) in INTS {
            let (min, max) = if signed {
                (-(1i128 << (to_bits - 1)), (1 << (to_bits - 1)) - 1)
            } else {
                (0, (1 << to_bits) - 1)
            };
            // The manual: 0, but from or to 64 bits the highest bit alone.
            let nan = if f == F64 || to_bits == 64 { 1u64 << (to_bits - 1) } else { 0 };
            let mask = u64::MAX >> (64 - to_bits);
            for (mode, def) in INTEGRAL {
                let want = |v: u64| match host(f, v) {
                    x if x.is_nan() => nan,
                    x => (def(x) as i128).clamp(min, max) as u64 & mask,
                };
                // 8-bit values extend into registers of 16.
                let extend = |v: u64| if signed { int_value(v, to_bits, true) as u64 } else { v };
                let dst = to_bits.max(16);
                let cut = u64::MAX >> (64 - dst);
                let op = format!("cvt.{mode}.{to}.{from}");
                same(&op, f, dst, &[bits], &[&values], |v| extend(want(v[0])) & cut);
                if f == F32 {
                    let op = format!("cvt.{mode}.ftz.{to}.{from}");
                    same(&op, f, dst, &[bits], &[&values], |v| extend(want(f.flush(v[0]))) & cut);
                }
            }
        }
    }
}

#[test]
fn floats_to_integral_floats() {
    for (name, f, bits, values) in [HALF, BRAIN, SINGLE, DOUBLE] {
        let values = for_integers(f, values);
        for (mode, def) in INTEGRAL {
            let want = |v: u64| match host(f, v) {
                x if x.is_nan() => f.nan,
                x => f.fit("rz", F64.value(def(x).to_bits())),
            };
            let op = |modifier: &str| format!("cvt.{mode}{modifier}.{name}.{name}");
            same(&op(""), f, bits, &[bits], &[&values], |v| want(v[0]));
            if f != BF16 {
                same(&op(".sat"), f, bits, &[bits], &[&values], |v| f.saturate(want(v[0])));
            }
            if f == F32 {
                same(&op(".ftz"), f, bits, &[bits], &[&values], |v| want(f.flush(v[0])));
            }
        }
    }
}

/// The functions that have a bound instead of a definition: every f16 and bf16 there is.
#[test]
fn approximations_of_halves() {
    let all: Vec<u64> = (0..0x1_0000).collect();
    let check = |op: &str, f: Format, def: fn(f64) -> f64, relative: f64, absolute: f64| {
        let ftz = op.contains("ftz");
        let one = |v: u64, got: u64, name: &str| {
            let x = if ftz { f.flush(v) } else { v };
            let want = def(host(f, x));
            if want.is_nan() {
                return assert_eq!(got, f.nan, "{name} of {v:#x}");
            }
            // The largest number there is, and the step of the smallest.
            let largest = host(f, f.inf() - 1);
            let tiny = host(f, 1) / 2.0;
            let y = host(f, got);
            let flushed = ftz && want < host(f, 1 << f.man_bits) && got == 0;
            let close = (y - want).abs() <= (want.abs() * relative).max(absolute).max(tiny);
            let beyond = want > largest * (1.0 - relative) && y == f64::INFINITY;
            assert!(flushed || close || beyond, "{name} of {v:#x}: {y}, wanted {want}");
            if ftz {
                assert!(f.flush(got) == got, "{name} of {v:#x}: {got:#x}");
            }
            // What is exact by the manual's tables.
            if want == 0.0 || want == 1.0 && absolute == 0.0 || want.is_infinite() {
                assert_eq!(y.to_bits(), want.to_bits(), "{name} of {v:#x}");
            }
        };
        for (v, got) in results(op, 16, &[16], &[&all]) {
            one(v[0], got, op);
        }
        let packed = format!("{op}x2");
        let pairs: Vec<u64> = all.iter().step_by(5).map(|v| (v ^ 0x9234) << 16 | v).collect();
        for (v, got) in results(&packed, 32, &[32], &[&pairs]) {
            one(v[0] & 0xffff, got & 0xffff, &packed);
            one(v[0] >> 16, got >> 16, &packed);
        }
    };
    check("ex2.approx.f16", F16, f64::exp2, 2f64.powf(-9.9), 0.0);
    check("ex2.approx.ftz.bf16", BF16, f64::exp2, 2f64.powi(-7), 0.0);
    check("tanh.approx.f16", F16, f64::tanh, 0.0, 2f64.powf(-10.987));
    check("tanh.approx.bf16", BF16, f64::tanh, 0.0, 2f64.powi(-8));
}

/// The reciprocals of f64 that look at the upper word of their operand, and give one.
#[test]
fn coarse_reciprocals_of_f64() {
    let mut values = lab::F64.to_vec();
    // Signaling NaNs, the upper word all that is left, both ends of the range of reciprocals.
    values.extend([
        0xfff0_0001_0000_0000,
        0x7ff4_0000_0000_0000,
        0x3ff0_0000_ffff_ffff,
        0x400f_ffff_ffff_ffff,
    ]);
    values.extend([
        0x7fd0_0000_0000_0000,
        0x7fd0_0000_0000_0001,
        0x7fd0_0001_0000_0000,
        0x8000_0000_ffff_ffff,
    ]);
    let down = |v: u64| v & !0xffff_ffff;
    for (op, root) in [("rcp.approx.ftz.f64", false), ("rsqrt.approx.ftz.f64", true)] {
        for (v, got) in results(op, 64, &[64], &[&values]) {
            let x = f64::from_bits(F64.flush(down(v[0])));
            let want = if root { 1.0 / x.sqrt() } else { 1.0 / x };
            assert_eq!(got & 0xffff_ffff, 0, "{op} of {:#x}: {got:#x}", v[0]);
            let y = f64::from_bits(got);
            if want.is_nan() {
                assert!(y.is_nan(), "{op} of {:#x}: {got:#x}", v[0]);
            } else if want.is_subnormal() || want == 0.0 || want.is_infinite() {
                assert_eq!(got, F64.flush(want.to_bits()), "{op} of {:#x}", v[0]);
            } else {
                assert!((y / want - 1.0).abs() < 2f64.powi(-19), "{op} of {:#x}: {y}, {want}", v[0]);
            }
        }
    }
    for (v, got) in results("rsqrt.approx.f64", 64, &[64], &[&values]) {
        let (want, got) = (1.0 / f64::from_bits(v[0]).sqrt(), f64::from_bits(got));
        let close = (got / want - 1.0).abs() < 1e-15;
        assert!(close || got.to_bits() == want.to_bits() || want.is_nan() && got.is_nan(), "{:#x}", v[0]);
    }
}

/// What the tables of the manual say of f32: signs of zeros, infinities, NaN, subnormal operands.
#[test]
fn approximations_of_f32_where_they_are_exact() {
    const INF: u64 = 0x7f80_0000;
    const NAN: u64 = 0x7fff_ffff;
    const MINUS: u64 = 1 << 31;
    const ONE: u64 = 0x3f80_0000;
    // Of -inf, -subnormal (flushed), -0, +0, +subnormal (flushed), +inf, NaN.
    let values = [MINUS | INF, MINUS | 5, MINUS, 0, 5, INF, 0x7fc0_0000];
    for (op, want) in [
        ("rcp", [MINUS, MINUS | INF, MINUS | INF, INF, INF, 0, NAN]),
        ("sqrt", [NAN, MINUS, MINUS, 0, 0, INF, NAN]),
        ("rsqrt", [NAN, MINUS | INF, MINUS | INF, INF, INF, 0, NAN]),
        ("sin", [NAN, MINUS, MINUS, 0, 0, NAN, NAN]),
        ("cos", [NAN, ONE, ONE, ONE, ONE, NAN, NAN]),
        ("lg2", [NAN, MINUS | INF, MINUS | INF, MINUS | INF, MINUS | INF, INF, NAN]),
        ("ex2", [0, ONE, ONE, ONE, ONE, INF, NAN]),
    ] {
        same(&format!("{op}.approx.ftz.f32"), F32, 32, &[32], &[&values], |v| {
            want[values.iter().position(|x| *x == v[0]).unwrap()]
        });
    }
    let tanh = [MINUS | ONE, MINUS, 0, ONE, NAN];
    let values = [MINUS | INF, MINUS, 0, INF, 0x7fc0_0000];
    same("tanh.approx.f32", F32, 32, &[32], &[&values], |v| {
        tanh[values.iter().position(|x| *x == v[0]).unwrap()]
    });
}
