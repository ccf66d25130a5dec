//! Floating-point instructions against scalar definitions, over edge values and all rounding modes.
//!
//! The definition of a rounded result shares nothing with the executor: the host rounds to nearest, exact
//! f64 arithmetic tells on which side of that the true result lies, and the neighbour is chosen from there.

#![allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::double_comparisons,
    reason = "unordered comparisons are defined by that"
)]

mod common;
use common::lab::{BF16, F16, F32, F64, I16, I32, I64, exact, results};
use half::{bf16, f16};

fn f(v: u64) -> f32 {
    f32::from_bits(v as u32)
}

fn d(v: u64) -> f64 {
    f64::from_bits(v)
}

/// Any NaN stands for all.
fn bits32(v: f32) -> u64 {
    if v.is_nan() { 0x7fff_ffff } else { u64::from(v.to_bits()) }
}

const MODES: [&str; 4] = ["rn", "rz", "rm", "rp"];

/// The f32 to which `nearest` changes in a mode, given the sign of (true value - nearest).
fn directed(mode: &str, nearest: f32, side: f64) -> f32 {
    if nearest.is_nan() || side == 0.0 {
        return nearest;
    }
    let down = match mode {
        "rm" => true,
        "rp" => false,
        "rz" => nearest > 0.0 || nearest == 0.0 && side > 0.0,
        _ => return nearest,
    };
    match (down, side < 0.0) {
        (true, true) => nearest.next_down(),
        (false, false) => nearest.next_up(),
        _ => nearest,
    }
}

/// The sign of x + y - r, exactly: all three are f64 that add without loss pairwise.
fn side_of_sum(x: f64, y: f64, r: f32) -> f64 {
    let s = x + y;
    // Knuth's two-sum.
    let t = s - x;
    let e = (x - (s - t)) + (y - t);
    let r = f64::from(r);
    if r.is_infinite() {
        return if s.is_infinite() { 0.0 } else { -r };
    }
    if s == r {
        e
    } else if s > r {
        1.0
    } else {
        -1.0
    }
}

/// An exact zero takes the sign that the rounding mode gives it.
fn zero_sign(mode: &str, v: f32, x: f64, y: f64) -> f32 {
    if v == 0.0 && x == -y && mode == "rm" && !(x == 0.0 && x.is_sign_positive() && y.is_sign_positive()) {
        -0.0
    } else {
        v
    }
}

#[test]
fn f32_arithmetic_in_every_rounding_mode() {
    for mode in MODES {
        exact(&format!("add.{mode}.f32"), 32, &[32; 2], &[F32, F32], |v| {
            let (x, y) = (f64::from(f(v[0])), f64::from(f(v[1])));
            let r = f(v[0]) + f(v[1]);
            if x.is_infinite() || y.is_infinite() {
                return bits32(r);
            }
            bits32(zero_sign(mode, directed(mode, r, side_of_sum(x, y, r)), x, y))
        });
        exact(&format!("sub.{mode}.f32"), 32, &[32; 2], &[F32, F32], |v| {
            let (x, y) = (f64::from(f(v[0])), -f64::from(f(v[1])));
            let r = f(v[0]) - f(v[1]);
            if x.is_infinite() || y.is_infinite() {
                return bits32(r);
            }
            bits32(zero_sign(mode, directed(mode, r, side_of_sum(x, y, r)), x, y))
        });
        exact(&format!("mul.{mode}.f32"), 32, &[32; 2], &[F32, F32], |v| {
            let r = f(v[0]) * f(v[1]);
            let product = f64::from(f(v[0])) * f64::from(f(v[1]));
            let side = if product.is_infinite() { 0.0 } else { product - f64::from(r) };
            bits32(directed(mode, r, side))
        });
        exact(&format!("fma.{mode}.f32"), 32, &[32; 3], &[F32, F32, F32], |v| {
            let r = f(v[0]).mul_add(f(v[1]), f(v[2]));
            let (product, z) = (f64::from(f(v[0])) * f64::from(f(v[1])), f64::from(f(v[2])));
            if product.is_infinite() || z.is_infinite() {
                return bits32(r);
            }
            bits32(zero_sign(mode, directed(mode, r, side_of_sum(product, z, r)), product, z))
        });
        exact(&format!("div.{mode}.f32"), 32, &[32; 2], &[F32, F32], |v| {
            let (a, b) = (f64::from(f(v[0])), f64::from(f(v[1])));
            let r = f(v[0]) / f(v[1]);
            if a.is_infinite() || b.is_infinite() || b == 0.0 || a == 0.0 {
                return bits32(r);
            }
            // a / b - r has the sign of (a - r b) / b; r b is exact in f64.
            let side = if r.is_infinite() { -f64::from(r) } else { (a - f64::from(r) * b) * b.signum() };
            bits32(directed(mode, r, side))
        });
        exact(&format!("rcp.{mode}.f32"), 32, &[32], &[F32], |v| {
            let b = f64::from(f(v[0]));
            let r = 1.0 / f(v[0]);
            if b.is_infinite() || b == 0.0 {
                return bits32(r);
            }
            let side = if r.is_infinite() { -f64::from(r) } else { (1.0 - f64::from(r) * b) * b.signum() };
            bits32(directed(mode, r, side))
        });
        exact(&format!("sqrt.{mode}.f32"), 32, &[32], &[F32], |v| {
            let r = f(v[0]).sqrt();
            let side = if r.is_infinite() || r == 0.0 {
                0.0
            } else {
                f64::from(f(v[0])) - f64::from(r) * f64::from(r)
            };
            bits32(directed(mode, r, side))
        });
    }
}

#[test]
fn f32_flush_saturate_sign_and_extremes() {
    let flush = |v: f32| {
        if v.is_subnormal() { 0f32.copysign(v) } else { v }
    };
    let sat = |v: f32| {
        if v.is_nan() || v <= 0.0 { 0.0 } else { v.min(1.0) }
    };
    exact("add.ftz.f32", 32, &[32; 2], &[F32, F32], |v| bits32(flush(flush(f(v[0])) + flush(f(v[1])))));
    exact("mul.ftz.f32", 32, &[32; 2], &[F32, F32], |v| bits32(flush(flush(f(v[0])) * flush(f(v[1])))));
    exact("add.sat.f32", 32, &[32; 2], &[F32, F32], |v| bits32(sat(f(v[0]) + f(v[1]))));
    exact("fma.rn.sat.f32", 32, &[32; 3], &[F32, F32, &F32[9..16]], |v| {
        bits32(sat(f(v[0]).mul_add(f(v[1]), f(v[2]))))
    });
    exact("abs.f32", 32, &[32], &[F32], |v| bits32(f(v[0]).abs()));
    exact("neg.f32", 32, &[32], &[F32], |v| bits32(-f(v[0])));
    exact("abs.ftz.f32", 32, &[32], &[F32], |v| bits32(flush(f(v[0])).abs()));
    exact("copysign.f32", 32, &[32; 2], &[F32, F32], |v| v[0] & 0x8000_0000 | v[1] & 0x7fff_ffff);
    let order = |a: f32, b: f32| a < b || a == b && a.is_sign_negative();
    let min = move |a: f32, b: f32| {
        if a.is_nan() {
            b
        } else if b.is_nan() || order(a, b) {
            a
        } else {
            b
        }
    };
    let max = move |a: f32, b: f32| {
        if a.is_nan() {
            b
        } else if b.is_nan() || order(b, a) {
            a
        } else {
            b
        }
    };
    exact("min.f32", 32, &[32; 2], &[F32, F32], |v| bits32(min(f(v[0]), f(v[1]))));
    exact("max.f32", 32, &[32; 2], &[F32, F32], |v| bits32(max(f(v[0]), f(v[1]))));
    let nan = |v: &[u64]| f(v[0]).is_nan() || f(v[1]).is_nan();
    exact("min.NaN.f32", 32, &[32; 2], &[F32, F32], |v| {
        if nan(v) { 0x7fff_ffff } else { bits32(min(f(v[0]), f(v[1]))) }
    });
    exact("max.xorsign.abs.f32", 32, &[32; 2], &[F32, F32], |v| {
        let r = max(f(v[0]).abs(), f(v[1]).abs());
        if r.is_nan() { 0x7fff_ffff } else { bits32(r) & 0x7fff_ffff | (v[0] ^ v[1]) & 0x8000_0000 }
    });
    for (test, def) in [
        ("finite", (|v| v.is_finite()) as fn(f32) -> bool),
        ("infinite", |v| v.is_infinite()),
        ("number", |v| !v.is_nan()),
        ("notanumber", |v| v.is_nan()),
        ("normal", |v| v.is_normal() || v == 0.0),
        ("subnormal", |v| v.is_subnormal()),
    ] {
        exact(&format!("testp.{test}.f32"), 1, &[32], &[F32], |v| u64::from(def(f(v[0]))));
    }
}

#[test]
fn f64_arithmetic() {
    let same = |op: &str, n: usize, def: &dyn Fn(&[u64]) -> f64| {
        for (v, got) in results(op, 64, &vec![64; n], &vec![F64; n]) {
            let want = def(&v);
            assert!(
                d(got).to_bits() == want.to_bits() || want.is_nan() && d(got).is_nan(),
                "{op} {v:x?}: {got:x}, {want}"
            );
        }
    };
    same("add.f64", 2, &|v| d(v[0]) + d(v[1]));
    same("sub.rn.f64", 2, &|v| d(v[0]) - d(v[1]));
    same("mul.f64", 2, &|v| d(v[0]) * d(v[1]));
    same("fma.rn.f64", 3, &|v| d(v[0]).mul_add(d(v[1]), d(v[2])));
    same("div.rn.f64", 2, &|v| d(v[0]) / d(v[1]));
    same("rcp.rn.f64", 1, &|v| 1.0 / d(v[0]));
    same("sqrt.rn.f64", 1, &|v| d(v[0]).sqrt());
    same("neg.f64", 1, &|v| -d(v[0]));
    same("abs.f64", 1, &|v| d(v[0]).abs());
    // Directed rounding brackets the nearest, and lies on it exactly where the operation is exact.
    let values: &[u64] = &[
        0x3ff0_0000_0000_0000,
        0x3ff0_0000_0000_0001,
        0xbff8_0000_0000_0003,
        0x4009_21fb_5444_2d18,
        0xc05e_dd2f_1a9f_be77,
        0x3ca0_0000_0000_0001,
        0x4330_0000_0000_0001,
    ];
    type Op = (&'static str, fn(f64, f64) -> f64, fn(f64, f64, f64) -> f64);
    let ops: [Op; 4] = [
        (
            "add",
            |a, b| a + b,
            |a, b, r| {
                let t = r - a;
                (a - (r - t)) + (b - t)
            },
        ),
        (
            "sub",
            |a, b| a - b,
            |a, b, r| {
                let t = r - a;
                (a - (r - t)) + (-b - t)
            },
        ),
        ("mul", |a, b| a * b, |a, b, r| a.mul_add(b, -r)),
        ("div", |a, b| a / b, |a, b, r| (-r).mul_add(b, a) * b.signum()),
    ];
    for (op, def, residual) in ops {
        for mode in MODES {
            for (v, got) in results(&format!("{op}.{mode}.f64"), 64, &[64; 2], &[values, values]) {
                let (a, b) = (d(v[0]), d(v[1]));
                let r = def(a, b);
                let side = residual(a, b, r);
                let down = mode == "rm" || mode == "rz" && r > 0.0;
                let want = match mode {
                    "rn" => r,
                    _ if down && side < 0.0 => r.next_down(),
                    _ if !down && side > 0.0 => r.next_up(),
                    _ => r,
                };
                assert!(d(got) == want, "{op}.{mode} {a} {b}: {}, wanted {want}", d(got));
            }
        }
    }
}

fn approx(op: &str, values: &[u64], relative: f64, absolute: f64, def: fn(f64) -> f64) {
    for (v, got) in results(op, 32, &[32], &[values]) {
        let (want, got) = (def(f64::from(f(v[0]))), f64::from(f(got)));
        let close = (got - want).abs() <= (want.abs() * relative).max(absolute);
        let same = want.is_nan() && got.is_nan()
            || (want as f32) as f64 == got
            || want.abs() > f64::from(f32::MAX) && got.is_infinite();
        assert!(close || same, "{op} of {}: {got}, wanted {want}", f(v[0]));
    }
}

/// Within what the PTX manual documents.
#[test]
fn approximations() {
    let two = 2f64.powi(-22);
    let sweep: Vec<u64> = (0..2000)
        .map(|i| u64::from((-8.0 + 0.008f32 * i as f32).to_bits()))
        .chain(F32.iter().copied())
        .collect();
    approx("ex2.approx.f32", &sweep, two, 0.0, f64::exp2);
    approx("lg2.approx.f32", &sweep, two, two, f64::log2);
    approx("sin.approx.f32", &sweep[..1000], 0.0, 2f64.powf(-20.5), f64::sin);
    approx("cos.approx.f32", &sweep[..1000], 0.0, 2f64.powf(-20.5), f64::cos);
    approx("rsqrt.approx.f32", &sweep, 2f64.powf(-22.9), 0.0, |x| 1.0 / x.sqrt());
    approx("rcp.approx.f32", &sweep, 2f64.powi(-23), 0.0, |x| 1.0 / x);
    approx("sqrt.approx.f32", &sweep, 2f64.powi(-23), 0.0, f64::sqrt);
    approx("tanh.approx.f32", &sweep, 2f64.powi(-11), 0.0, f64::tanh);
    for (v, got) in results("div.approx.f32", 32, &[32; 2], &[&sweep[..200], &sweep[1100..1200]]) {
        let want = f64::from(f(v[0])) / f64::from(f(v[1]));
        assert!((f64::from(f(got)) - want).abs() <= want.abs() * 2f64.powi(-22));
    }
    // Subnormal operands count as zero with .ftz.
    exact("rcp.approx.ftz.f32", 32, &[32], &[&F32[..6]], |v| {
        if v[0] >> 31 == 0 { 0x7f80_0000 } else { 0xff80_0000 }
    });
}

/// To f32 by rounding to odd, from which one more rounding, to a half, is right.
fn odd(v: f64) -> f32 {
    let r = v as f32;
    if f64::from(r) == v || r.is_nan() || r.to_bits() & 1 == 1 {
        return r;
    }
    if f64::from(r) < v { r.next_up() } else { r.next_down() }
}

#[test]
fn half_precision_arithmetic() {
    type Fmt = (&'static str, &'static [u64], fn(u64) -> f64, fn(f64) -> u64);
    let h: Fmt =
        ("f16", F16, |v| f16::from_bits(v as u16).to_f64(), |v| u64::from(f16::from_f32(odd(v)).to_bits()));
    let b: Fmt = (
        "bf16",
        BF16,
        |v| bf16::from_bits(v as u16).to_f64(),
        |v| u64::from(bf16::from_f32(odd(v)).to_bits()),
    );
    for (name, values, to, from) in [h, b] {
        let check = |op: &str, n: usize, def: &dyn Fn(&[u64]) -> f64| {
            for (v, got) in results(&format!("{op}.{name}"), 16, &vec![16; n], &vec![values; n]) {
                let want = def(&v);
                // A sum of two, or a product, of short significands is exact in f64: one rounding.
                let same = if want.is_nan() { got == 0x7fff } else { got == from(want) };
                assert!(same, "{op}.{name} {v:x?}: got {got:x}, wanted {want} = {:x}", from(want));
            }
        };
        check("add", 2, &|v| to(v[0]) + to(v[1]));
        check("sub.rn", 2, &|v| to(v[0]) - to(v[1]));
        check("mul", 2, &|v| to(v[0]) * to(v[1]));
        check("neg", 1, &|v| -to(v[0]));
        check("abs", 1, &|v| to(v[0]).abs());
        if name == "f16" {
            // The spread of f16 fits f64 with a product in it.
            check("fma.rn", 3, &|v| to(v[0]).mul_add(to(v[1]), to(v[2])));
            check("fma.rn.relu", 3, &|v| {
                let r = to(v[0]).mul_add(to(v[1]), to(v[2]));
                if r.is_sign_negative() && !r.is_nan() { 0.0 } else { r }
            });
        }
        let pairs: Vec<u64> = values.iter().zip(values.iter().rev()).map(|(a, b)| a << 16 | b).collect();
        for (op, def) in [("add", (|a, b| a + b) as fn(f64, f64) -> f64), ("mul", |a, b| a * b)] {
            for (v, got) in results(&format!("{op}.{name}x2"), 32, &[32; 2], &[&pairs, &pairs]) {
                for s in [0, 16] {
                    let want = def(to(v[0] >> s & 0xffff), to(v[1] >> s & 0xffff));
                    let got = got >> s & 0xffff;
                    assert!(
                        if want.is_nan() { got == 0x7fff } else { got == from(want) },
                        "{op}.{name}x2 {v:x?}"
                    );
                }
            }
        }
        for (cmp, def) in [
            ("lt", (|a, b| a < b) as fn(f64, f64) -> bool),
            ("geu", |a, b| !(a < b)),
            ("nan", |a, b| a.is_nan() || b.is_nan()),
        ] {
            exact(&format!("setp.{cmp}.{name}"), 1, &[16; 2], &[values, values], |v| {
                u64::from(def(to(v[0]), to(v[1])))
            });
        }
        exact(&format!("max.{name}"), 16, &[16; 2], &[values, values], |v| {
            let (a, b) = (to(v[0]), to(v[1]));
            match (a.is_nan(), b.is_nan()) {
                (true, true) => 0x7fff,
                (true, false) => v[1],
                (false, true) => v[0],
                _ if a > b || a == b && a.is_sign_positive() => v[0],
                _ => v[1],
            }
        });
    }
}

#[test]
fn comparisons() {
    type Def = fn(f64, f64) -> bool;
    let cmps: [(&str, Def); 14] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a < b || a > b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
        ("equ", |a, b| !(a < b || a > b)),
        ("neu", |a, b| a != b),
        ("ltu", |a, b| !(a >= b)),
        ("leu", |a, b| !(a > b)),
        ("gtu", |a, b| !(a <= b)),
        ("geu", |a, b| !(a < b)),
        ("num", |a, b| !a.is_nan() && !b.is_nan()),
        ("nan", |a, b| a.is_nan() || b.is_nan()),
    ];
    for (cmp, def) in cmps {
        exact(&format!("setp.{cmp}.f32"), 1, &[32; 2], &[F32, F32], |v| {
            u64::from(def(f(v[0]).into(), f(v[1]).into()))
        });
        exact(&format!("setp.{cmp}.f64"), 1, &[64; 2], &[F64, F64], |v| u64::from(def(d(v[0]), d(v[1]))));
        exact(&format!("set.{cmp}.f32.f32"), 32, &[32; 2], &[F32, F32], |v| {
            if def(f(v[0]).into(), f(v[1]).into()) { 0x3f80_0000 } else { 0 }
        });
    }
    exact("setp.eq.ftz.f32", 1, &[32; 2], &[&F32[..6], &F32[..6]], |_| 1);
    // The types that a result may have: all bits or 1, of the width of one or two halves.
    let h = |v: u64| f16::from_bits(v as u16).to_f64();
    let b = |v: u64| bf16::from_bits(v as u16).to_f64();
    for (cmp, def) in cmps {
        let pick = |holds: bool, yes: u64| if holds { yes } else { 0 };
        for (to, bits, yes) in [("u32", 32, 0xffff_ffff), ("s32", 32, 0xffff_ffff), ("f32", 32, 0x3f80_0000)]
        {
            exact(&format!("set.{cmp}.{to}.f32"), bits, &[32; 2], &[F32, F32], |v| {
                pick(def(f(v[0]).into(), f(v[1]).into()), yes)
            });
            exact(&format!("set.{cmp}.{to}.f64"), bits, &[64; 2], &[F64, F64], |v| {
                pick(def(d(v[0]), d(v[1])), yes)
            });
        }
        for (to, bits, yes) in [("u16", 16, 0xffff), ("u32", 32, 0xffff_ffff), ("f16", 16, 0x3c00)] {
            exact(&format!("set.{cmp}.{to}.f16"), bits, &[16; 2], &[F16, F16], |v| {
                pick(def(h(v[0]), h(v[1])), yes)
            });
        }
        exact(&format!("set.{cmp}.bf16.bf16"), 16, &[16; 2], &[BF16, BF16], |v| {
            pick(def(b(v[0]), b(v[1])), 0x3f80)
        });
        let pairs = |values: &[u64]| -> Vec<u64> {
            values.iter().zip(values.iter().cycle().skip(3)).map(|(x, y)| x << 16 | y).collect()
        };
        type Half<'a> = (&'a str, &'a [u64], &'a dyn Fn(u64) -> f64, u64);
        let types: [Half<'_>; 2] = [("f16x2", F16, &h, 0x3c00), ("bf16x2", BF16, &b, 0x3f80)];
        for (ty, values, value, one) in types {
            let list = pairs(values);
            for (to, yes) in [(ty, one), ("u32", 0xffff), ("s32", 0xffff)] {
                exact(&format!("set.{cmp}.{to}.{ty}"), 32, &[32; 2], &[&list, &list], |v| {
                    let half = |s: u32| pick(def(value(v[0] >> s), value(v[1] >> s)), yes);
                    half(16) << 16 | half(0)
                });
            }
            // One predicate for each half.
            for (text, s) in [("$d|_", 0), ("_|$d", 16)] {
                exact(&format!("setp.{cmp}.{ty} {text}, $1, $2"), 1, &[32; 2], &[&list, &list], |v| {
                    u64::from(def(value(v[0] >> s), value(v[1] >> s)))
                });
            }
        }
    }
}

#[test]
fn conversions_between_floats() {
    let flush = |v: f32| {
        if v.is_subnormal() { 0f32.copysign(v) } else { v }
    };
    let nan16 = |v: u64, nan: bool| if nan { 0x7fff } else { v };
    exact("cvt.rn.f16.f32", 16, &[32], &[F32], |v| {
        nan16(f16::from_f32(f(v[0])).to_bits().into(), f(v[0]).is_nan())
    });
    exact("cvt.rn.bf16.f32", 16, &[32], &[F32], |v| {
        nan16(bf16::from_f32(f(v[0])).to_bits().into(), f(v[0]).is_nan())
    });
    exact("cvt.f32.f16", 32, &[16], &[F16], |v| bits32(f16::from_bits(v[0] as u16).to_f32()));
    exact("cvt.f32.bf16", 32, &[16], &[BF16], |v| bits32(bf16::from_bits(v[0] as u16).to_f32()));
    exact("cvt.rn.f32.f64", 32, &[64], &[F64], |v| bits32(d(v[0]) as f32));
    for (v, got) in results("cvt.f64.f32", 64, &[32], &[F32]) {
        assert!(d(got) == f64::from(f(v[0])) || f(v[0]).is_nan() && d(got).is_nan());
    }
    exact("cvt.ftz.f32.f32", 32, &[32], &[F32], |v| bits32(flush(f(v[0]))));
    exact("cvt.sat.f32.f32", 32, &[32], &[F32], |v| {
        let x = f(v[0]);
        bits32(if x.is_nan() || x <= 0.0 { 0.0 } else { x.min(1.0) })
    });
    // Every f16 there is, and every f32 near a boundary between two of them, in all modes.
    let all: Vec<u64> = (0..0x1_0000).collect();
    exact("cvt.f32.f16", 32, &[16], &[&all], |v| bits32(f16::from_bits(v[0] as u16).to_f32()));
    let near: Vec<u64> = (0..0x7c00u64)
        .step_by(7)
        .flat_map(|h| {
            let (a, b) = (f16::from_bits(h as u16).to_f32(), f16::from_bits(h as u16 + 1).to_f32());
            let middle = if b.is_finite() { (a + b) / 2.0 } else { 65520.0 };
            [middle.next_down(), middle, middle.next_up(), a, -middle, a.next_up()]
                .map(|v| u64::from(v.to_bits()))
        })
        .collect();
    exact("cvt.rn.f16.f32", 16, &[32], &[&near], |v| f16::from_f32(f(v[0])).to_bits().into());
    for mode in MODES {
        exact(&format!("cvt.{mode}.f16.f32"), 16, &[32], &[&near], |v| {
            let x = f(v[0]);
            let r = f16::from_f32(x);
            let step = |r: f16, up: bool| {
                // Next in the order of values.
                let bits = r.to_bits();
                let toward_zero = up == r.is_sign_negative();
                if bits & 0x7fff == 0 && toward_zero {
                    f16::from_bits(if up { 1 } else { 0x8001 })
                } else if toward_zero {
                    f16::from_bits(bits - 1)
                } else {
                    f16::from_bits(bits + 1)
                }
            };
            let (over, under) = (r.to_f32() > x, r.to_f32() < x);
            let down = mode == "rm" || mode == "rz" && x > 0.0;
            u64::from(
                match mode {
                    "rn" => r,
                    _ if down && over => step(r, false),
                    _ if !down && under => step(r, true),
                    _ => r,
                }
                .to_bits(),
            )
        });
    }
    exact("cvt.rn.f16x2.f32", 32, &[32; 2], &[&near[..60], &near[60..120]], |v| {
        u64::from(f16::from_f32(f(v[0])).to_bits()) << 16 | u64::from(f16::from_f32(f(v[1])).to_bits())
    });
    exact("cvt.rn.bf16x2.f32", 32, &[32; 2], &[&near[..60], &near[60..120]], |v| {
        u64::from(bf16::from_f32(f(v[0])).to_bits()) << 16 | u64::from(bf16::from_f32(f(v[1])).to_bits())
    });
    exact("cvt.rn.relu.f16.f32", 16, &[32], &[&near], |v| {
        if f(v[0]) < 0.0 { 0 } else { f16::from_f32(f(v[0])).to_bits().into() }
    });
    // Flushing is of f32: it leaves subnormal results of f16 alone.
    exact("cvt.rn.ftz.f16.f32", 16, &[32], &[&near], |v| {
        let x = if f(v[0]).is_subnormal() { 0.0f32.copysign(f(v[0])) } else { f(v[0]) };
        f16::from_f32(x).to_bits().into()
    });
    // Clamped at 0 below, and at the largest number above, of both halves.
    exact("cvt.rn.relu.satfinite.f16x2.f32", 32, &[32; 2], &[F32, F32], |v| {
        let one = |v: u64| match f(v) {
            x if x.is_nan() => 0x7fff,
            x => u64::from(f16::from_f32(x.clamp(0.0, 65504.0)).to_bits() & 0x7fff),
        };
        one(v[0]) << 16 | one(v[1])
    });
    // To tf32: 13 bits go, ties away from zero.
    exact("cvt.rna.tf32.f32", 32, &[32], &[F32], |v| {
        let x = f(v[0]);
        if x.is_nan() {
            0x7fff_e000
        } else if x.is_infinite() {
            v[0]
        } else {
            (v[0] + 0x1000) & !0x1fff
        }
    });
}

#[test]
fn conversions_to_and_from_integers() {
    for (name, bits, values) in
        [("s32", 32, I32), ("u32", 32, I32), ("s64", 64, I64), ("u64", 64, I64), ("s16", 16, I16)]
    {
        let value = |v: u64| match name {
            "s32" => i128::from(v as u32 as i32),
            "u32" => i128::from(v as u32),
            "s64" => i128::from(v as i64),
            "s16" => i128::from(v as u16 as i16),
            _ => i128::from(v),
        };
        exact(&format!("cvt.rn.f32.{name}"), 32, &[bits], &[values], |v| bits32(value(v[0]) as f32));
        exact(&format!("cvt.rn.f64.{name}"), 64, &[bits], &[values], |v| (value(v[0]) as f64).to_bits());
        for mode in MODES {
            exact(&format!("cvt.{mode}.f32.{name}"), 32, &[bits], &[values], |v| {
                let r = value(v[0]) as f32;
                bits32(directed(mode, r, (value(v[0]) - r as i128) as f64))
            });
        }
        let (min, max) = match name {
            "s32" => (i128::from(i32::MIN), i128::from(i32::MAX)),
            "u32" => (0, i128::from(u32::MAX)),
            "s64" => (i128::from(i64::MIN), i128::from(i64::MAX)),
            "s16" => (i128::from(i16::MIN), i128::from(i16::MAX)),
            _ => (0, i128::from(u64::MAX)),
        };
        type Rounding = (&'static str, fn(f64) -> f64);
        let roundings: [Rounding; 4] =
            [("rni", f64::round_ties_even), ("rzi", f64::trunc), ("rmi", f64::floor), ("rpi", f64::ceil)];
        // What a NaN becomes from or to 64 bits; otherwise 0.
        let highest = 1u64 << (bits - 1);
        let nan = if bits == 64 { highest } else { 0 };
        for (mode, def) in roundings {
            let to_int = |x: f64, nan: u64| {
                if x.is_nan() { nan } else { (def(x) as i128).clamp(min, max) as u64 }
            };
            exact(&format!("cvt.{mode}.{name}.f32"), bits, &[32], &[F32], |v| to_int(f(v[0]).into(), nan));
            exact(&format!("cvt.{mode}.{name}.f64"), bits, &[64], &[F64], |v| to_int(d(v[0]), highest));
            exact(&format!("cvt.{mode}.{name}.f16"), bits, &[16], &[F16], |v| {
                to_int(f16::from_bits(v[0] as u16).into(), nan)
            });
            exact(&format!("cvt.{mode}.f32.f32"), 32, &[32], &[F32], |v| bits32(def(f(v[0]).into()) as f32));
        }
    }
    // ex2 splits its argument like this.
    exact("cvt.rmi.ftz.f32.f32", 32, &[32], &[&F32[..9]], |v| {
        if v[0] == 0x8080_0000 {
            bits32(-1.0)
        } else if v[0] >> 31 == 1 {
            0x8000_0000
        } else {
            0
        }
    });
}

#[test]
fn approximations_where_they_are_not_close() {
    let (large, small): (u64, u64) = (bits32(2f32.powi(127)), bits32(2f32.powi(126)));
    let values: &[u64] = &[bits32(1.0), bits32(-3.0), bits32(f32::INFINITY), bits32(2f32.powi(127))];
    // Beyond 2^126 the quotient is 0, and of an infinity no number.
    exact("div.approx.f32", 32, &[32; 2], &[values, &[large, large | 1 << 31, small]], |v| {
        let (a, b) = (f(v[0]), f(v[1]));
        if b.abs() <= 2f32.powi(126) {
            bits32(a / b)
        } else if a.is_infinite() {
            0x7fff_ffff
        } else {
            (v[0] ^ v[1]) & 0x8000_0000
        }
    });
    exact("div.full.f32", 32, &[32; 2], &[values, &[large, small]], |v| bits32(f(v[0]) / f(v[1])));
    // In f64 the form that flushes has the upper word only.
    exact(
        "rsqrt.approx.f64",
        64,
        &[64],
        &[&[3.0f64.to_bits(), 1e-310f64.to_bits(), 4.0f64.to_bits()]],
        |v| (1.0 / d(v[0]).sqrt()).to_bits(),
    );
    exact("rsqrt.approx.ftz.f64", 64, &[64], &[&[1e-310f64.to_bits(), 4.0f64.to_bits()]], |v| {
        if d(v[0]) < 1.0 { f64::INFINITY.to_bits() } else { 0.5f64.to_bits() }
    });
}

#[test]
fn comparisons_of_halves_flush_and_combine() {
    let holds = |x: bool| u64::from(x);
    exact("setp.eq.ftz.f16", 1, &[16; 2], &[&[0, 1, 0x8001, 0x3c00], &[0, 1, 0x3c00]], |v| {
        let of = |v: u64| if v & 0x7c00 == 0 { 0.0 } else { f16::from_bits(v as u16).to_f32() };
        holds(of(v[0]) == of(v[1]))
    });
    // Both halves are combined with the predicate.
    let packed: &[u64] = &[0x3c00_4000, 0x4000_3c00, 0];
    exact("set.lt.and.f16x2.f16x2", 32, &[32, 32, 1], &[packed, packed, &[0, 1]], |v| {
        let half = |v: u64, n: u64| f16::from_bits((v >> (16 * n)) as u16);
        let one = |n: u64| if v[2] != 0 && half(v[0], n) < half(v[1], n) { 0x3c00 << (16 * n) } else { 0 };
        one(0) | one(1)
    });
}
