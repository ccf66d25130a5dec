//! Integer and logic instructions against definitions in 128-bit arithmetic, over edge values.

mod common;
use common::lab::{I16, I32, I64, exact};

fn values(bits: u32) -> &'static [u64] {
    match bits {
        16 => I16,
        32 => I32,
        _ => I64,
    }
}

/// The value that a type gives to bits.
fn value(v: u64, bits: u32, signed: bool) -> i128 {
    let v = i128::from(v) & ((1 << bits) - 1);
    if signed && v >> (bits - 1) != 0 { v - (1 << bits) } else { v }
}

/// Every width and sign: the name of the type, its bits, whether it is signed.
const TYPES: [(&str, u32, bool); 6] = [
    ("u16", 16, false),
    ("s16", 16, true),
    ("u32", 32, false),
    ("s32", 32, true),
    ("u64", 64, false),
    ("s64", 64, true),
];

#[test]
fn two_operands() {
    type Def = fn(i128, i128, u32) -> i128;
    let ops: [(&str, Def); 11] = [
        ("add", |a, b, _| a + b),
        ("sub", |a, b, _| a - b),
        ("mul.lo", |a, b, _| a.wrapping_mul(b)),
        ("mul.hi", |a, b, bits| if bits == 64 { high(a, b) } else { (a * b) >> bits }),
        ("min", |a, b, _| a.min(b)),
        ("max", |a, b, _| a.max(b)),
        ("div", |a, b, _| a / b),
        ("rem", |a, b, _| a % b),
        ("and", |a, b, _| a & b),
        ("or", |a, b, _| a | b),
        ("xor", |a, b, _| a ^ b),
    ];
    for (name, bits, signed) in TYPES {
        for (op, def) in ops {
            let ty = if matches!(op, "and" | "or" | "xor") { format!("b{bits}") } else { name.to_owned() };
            let nonzero: Vec<u64> =
                values(bits).iter().copied().filter(|v| *v != 0 || !matches!(op, "div" | "rem")).collect();
            exact(&format!("{op}.{ty}"), bits, &[bits, bits], &[values(bits), &nonzero], |v| {
                def(value(v[0], bits, signed), value(v[1], bits, signed), bits) as u64
            });
        }
    }
    fn high(a: i128, b: i128) -> i128 {
        // By halves: the full product of u64 does not fit i128.
        let (al, ah) = (a & 0xffff_ffff, a >> 32);
        let (bl, bh) = (b & 0xffff_ffff, b >> 32);
        let middle = ((al * bl) >> 32) + ((ah * bl) & 0xffff_ffff) + ((al * bh) & 0xffff_ffff);
        (ah * bh) + ((ah * bl) >> 32) + ((al * bh) >> 32) + (middle >> 32)
    }
}

#[test]
fn saturating_and_one_operand() {
    let clamp = |v: i128| v.clamp(i128::from(i32::MIN), i128::from(i32::MAX)) as u64;
    let s = |v: u64| value(v, 32, true);
    exact("mad.hi.sat.s32", 32, &[32; 3], &[I32, I32, I32], |v| clamp(((s(v[0]) * s(v[1])) >> 32) + s(v[2])));
    exact("add.sat.s32", 32, &[32, 32], &[I32, I32], |v| clamp(s(v[0]) + s(v[1])));
    exact("sub.sat.s32", 32, &[32, 32], &[I32, I32], |v| clamp(s(v[0]) - s(v[1])));
    exact("max.s32.relu", 32, &[32; 2], &[I32, I32], |v| s(v[0]).max(s(v[1])).max(0) as u64);
    exact("min.s32.relu", 32, &[32; 2], &[I32, I32], |v| s(v[0]).min(s(v[1])).max(0) as u64);
    exact("{.reg.b32 t; mov.b32 t, $1; mov.b32 $d, t; }", 32, &[32], &[I32], |v| v[0]);
    for (name, bits, signed) in TYPES {
        let val = move |v: &[u64]| value(v[0], bits, signed);
        if signed {
            exact(&format!("abs.{name}"), bits, &[bits], &[values(bits)], |v| val(v).unsigned_abs() as u64);
            exact(&format!("neg.{name}"), bits, &[bits], &[values(bits)], |v| -val(v) as u64);
        }
        let all = (1u128 << bits) - 1;
        exact(&format!("not.b{bits}"), bits, &[bits], &[values(bits)], |v| !v[0]);
        exact(&format!("cnot.b{bits}"), bits, &[bits], &[values(bits)], |v| {
            u64::from(u128::from(v[0]) & all == 0)
        });
        if bits == 16 {
            continue;
        }
        let bit = |v: u64, i: u32| v >> i & 1;
        exact(&format!("popc.b{bits}"), 32, &[bits], &[values(bits)], |v| {
            (0..bits).map(|i| bit(v[0], i)).sum()
        });
        exact(&format!("clz.b{bits}"), 32, &[bits], &[values(bits)], |v| {
            (0..bits).rev().take_while(|&i| bit(v[0], i) == 0).count() as u64
        });
        exact(&format!("brev.b{bits}"), bits, &[bits], &[values(bits)], |v| {
            (0..bits).map(|i| bit(v[0], i) << (bits - 1 - i)).sum()
        });
        // The highest bit that differs from the sign.
        let found = move |v: u64| {
            let sign = if signed { bit(v, bits - 1) } else { 0 };
            (0..bits).rev().find(|&i| bit(v, i) != sign)
        };
        exact(&format!("bfind.{name}"), 32, &[bits], &[values(bits)], |v| found(v[0]).map_or(!0, u64::from));
        exact(&format!("bfind.shiftamt.{name}"), 32, &[bits], &[values(bits)], |v| {
            found(v[0]).map_or(!0, |i| u64::from(bits - 1 - i))
        });
    }
}

#[test]
fn products_and_sums() {
    for (name, bits, signed) in TYPES {
        let val = move |v: u64| value(v, bits, signed);
        let vs = values(bits);
        exact(&format!("mad.lo.{name}"), bits, &[bits; 3], &[vs, vs, vs], |v| {
            val(v[0]).wrapping_mul(val(v[1])).wrapping_add(val(v[2])) as u64
        });
        exact(&format!("sad.{name}"), bits, &[bits; 3], &[vs, vs, vs], |v| {
            (val(v[2]) + (val(v[0]) - val(v[1])).abs()) as u64
        });
        if bits == 64 {
            continue;
        }
        exact(&format!("mul.wide.{name}"), bits * 2, &[bits; 2], &[vs, vs], |v| {
            (val(v[0]) * val(v[1])) as u64
        });
        let wide = values(bits * 2);
        exact(&format!("mad.wide.{name}"), bits * 2, &[bits, bits, bits * 2], &[vs, vs, wide], |v| {
            (val(v[0]) * val(v[1]) + value(v[2], bits * 2, signed)) as u64
        });
        exact(&format!("mad.hi.{name}"), bits, &[bits; 3], &[vs, vs, vs], |v| {
            (((val(v[0]) * val(v[1])) >> bits) + val(v[2])) as u64
        });
    }
    for (name, signed) in [("u32", false), ("s32", true)] {
        let low24 = move |v: u64| value(v & 0xff_ffff, 24, signed);
        exact(&format!("mul24.lo.{name}"), 32, &[32; 2], &[I32, I32], |v| (low24(v[0]) * low24(v[1])) as u64);
        exact(&format!("mul24.hi.{name}"), 32, &[32; 2], &[I32, I32], |v| {
            ((low24(v[0]) * low24(v[1])) >> 16) as u64
        });
        exact(&format!("mad24.lo.{name}"), 32, &[32; 3], &[I32, I32, I32], |v| {
            ((low24(v[0]) * low24(v[1])) as u64).wrapping_add(v[2])
        });
        exact(&format!("mad24.hi.{name}"), 32, &[32; 3], &[I32, I32, I32], |v| {
            (((low24(v[0]) * low24(v[1])) >> 16) as u64).wrapping_add(v[2])
        });
        for (other, b_signed) in [("u32", false), ("s32", true)] {
            exact(&format!("dp4a.{name}.{other}"), 32, &[32; 3], &[I32, I32, I32], |v| {
                let byte = |v: u64, i: u32, s: bool| value(v >> (8 * i) & 0xff, 8, s);
                (i128::from(v[2])
                    + (0..4).map(|i| byte(v[0], i, signed) * byte(v[1], i, b_signed)).sum::<i128>())
                    as u64
            });
            for (part, at) in [("lo", 0), ("hi", 2)] {
                exact(&format!("dp2a.{part}.{name}.{other}"), 32, &[32; 3], &[I32, I32, I32], |v| {
                    let sum: i128 = (0..2)
                        .map(|i| {
                            value(v[0] >> (16 * i) & 0xffff, 16, signed)
                                * value(v[1] >> (8 * (i + at)) & 0xff, 8, b_signed)
                        })
                        .sum();
                    (i128::from(v[2]) + sum) as u64
                });
            }
        }
    }
}

#[test]
fn shifts_and_fields() {
    const AMOUNTS: &[u64] = &[0, 1, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 0xffff_ffff];
    for (name, bits, signed) in TYPES {
        let vs = values(bits);
        exact(&format!("shr.{name}"), bits, &[bits, 32], &[vs, AMOUNTS], |v| {
            (value(v[0], bits, signed) >> v[1].min(127)) as u64
        });
        exact(&format!("shr.b{bits}"), bits, &[bits, 32], &[vs, AMOUNTS], |v| {
            if v[1] >= u64::from(bits) { 0 } else { v[0] >> v[1] }
        });
        exact(&format!("shl.b{bits}"), bits, &[bits, 32], &[vs, AMOUNTS], |v| {
            if v[1] >= u64::from(bits) { 0 } else { v[0] << v[1] }
        });
        if bits == 16 {
            continue;
        }
        // The manual's loop, bit by bit.
        exact(&format!("bfe.{name}"), bits, &[bits, 32, 32], &[vs, AMOUNTS, AMOUNTS], |v| {
            let (pos, len) = ((v[1] & 0xff) as u32, (v[2] & 0xff) as u32);
            let bit = |i: u32| v[0] >> i & 1;
            let sign = if !signed || len == 0 { 0 } else { bit((pos + len - 1).min(bits - 1)) };
            (0..bits).map(|i| (if i < len && pos + i < bits { bit(pos + i) } else { sign }) << i).sum()
        });
        exact(
            &format!("bfi.b{bits}"),
            bits,
            &[bits, bits, 32, 32],
            &[&vs[..12], &vs[6..], AMOUNTS, AMOUNTS],
            |v| {
                let (pos, len) = ((v[2] & 0xff) as u32, (v[3] & 0xff) as u32);
                let mut out = v[1];
                for i in 0..len.min(bits) {
                    if pos + i < bits {
                        out = out & !(1 << (pos + i)) | (v[0] >> i & 1) << (pos + i);
                    }
                }
                out
            },
        );
    }
    for (mode, wrap) in [("clamp", false), ("wrap", true)] {
        let n = move |c: u64| if wrap { c & 31 } else { c.min(32) };
        exact(&format!("shf.l.{mode}.b32"), 32, &[32; 3], &[I32, I32, AMOUNTS], |v| {
            ((u128::from(v[1]) << 32 | u128::from(v[0])) << n(v[2]) >> 32) as u64
        });
        exact(&format!("shf.r.{mode}.b32"), 32, &[32; 3], &[I32, I32, AMOUNTS], |v| {
            ((u128::from(v[1]) << 32 | u128::from(v[0])) >> n(v[2])) as u64
        });
        exact(&format!("bmsk.{mode}.b32"), 32, &[32; 2], &[AMOUNTS, AMOUNTS], |v| {
            let (pos, len) = if wrap { (v[0] & 31, v[1] & 31) } else { (v[0], v[1]) };
            (0..32)
                .filter(|i| *i >= pos && u128::from(*i) < u128::from(pos) + u128::from(len))
                .map(|i| 1 << i)
                .sum()
        });
        for (name, signed) in [("u32", false), ("s32", true)] {
            exact(&format!("szext.{mode}.{name}"), 32, &[32; 2], &[I32, AMOUNTS], |v| {
                let n = n(v[1]) as u32;
                if n == 0 { 0 } else { value(v[0] & ((1u64 << n) - 1), n, signed) as u64 }
            });
        }
    }
}

#[test]
fn three_input_logic_and_permutes() {
    for table in [0u64, 0x80, 0x96, 0xe8, 0xca, 0xfe, 0xff, 0x1b] {
        exact(
            &format!("lop3.b32 $d, $1, $2, $3, {table}"),
            32,
            &[32; 3],
            &[I32, &I32[8..], &I32[4..]],
            |v| {
                (0..32)
                    .map(|i| {
                        let at = (v[0] >> i & 1) << 2 | (v[1] >> i & 1) << 1 | (v[2] >> i & 1);
                        (table >> at & 1) << i
                    })
                    .sum()
            },
        );
    }
    const SELECT: &[u64] = &[0, 0x3210, 0x7654, 0x5410, 0x0123, 0x8888, 0xfedc, 0x1234_7531, 1, 2, 3];
    let bytes = |v: &[u64]| {
        let all = (v[1] << 32 | v[0]).to_le_bytes();
        (all, v[2])
    };
    exact("prmt.b32", 32, &[32; 3], &[I32, I32, SELECT], |v| {
        let (all, c) = bytes(v);
        let mut out = [0; 4];
        for (i, out) in out.iter_mut().enumerate() {
            let s = (c >> (4 * i) & 0xf) as usize;
            *out = if s & 8 == 0 {
                all[s]
            } else if all[s & 7] >> 7 == 1 {
                0xff
            } else {
                0
            };
        }
        u64::from(u32::from_le_bytes(out))
    });
    // The manual's tables: byte selected for d.b3 b2 b1 b0, by the low two bits of c.
    let tables: [(&str, [[usize; 4]; 4]); 6] = [
        ("f4e", [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]]),
        ("b4e", [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]]),
        ("rc8", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecl", [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]]),
        ("ecr", [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]]),
        ("rc16", [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]]),
    ];
    for (mode, table) in tables {
        exact(&format!("prmt.b32.{mode}"), 32, &[32; 3], &[I32, I32, SELECT], |v| {
            let (all, c) = bytes(v);
            let row = table[(c & 3) as usize];
            (0..4).map(|i| u64::from(all[row[3 - i]]) << (8 * i)).sum()
        });
    }
}

#[test]
fn carry_chains() {
    let sum = "{ .reg .b32 t; add.cc.u32 t, $1, $2; addc.u32 $d, $3, 0; }";
    exact(sum, 32, &[32; 3], &[I32, I32, I32], |v| v[2] + ((v[0] + v[1]) >> 32));
    let difference = "{ .reg .b32 t; sub.cc.u32 t, $1, $2; subc.u32 $d, $3, 0; }";
    exact(difference, 32, &[32; 3], &[I32, I32, I32], |v| v[2].wrapping_sub(u64::from(v[0] < v[1])));
    let product = "{ .reg .b32 t; mad.lo.cc.u32 t, $1, $2, $3; madc.hi.u32 $d, $1, $2, 0; }";
    exact(product, 32, &[32; 3], &[I32, I32, I32], |v| {
        ((u128::from(v[0]) * u128::from(v[1]) + u128::from(v[2])) >> 32) as u64
    });
    let wide = "{ .reg .b64 t; add.cc.u64 t, $1, $2; addc.u64 $d, $3, 0; }";
    exact(wide, 64, &[64; 3], &[I64, I64, I64], |v| {
        v[2].wrapping_add(((u128::from(v[0]) + u128::from(v[1])) >> 64) as u64)
    });
}

/// Chains of three words: the middle one takes a carry in and passes one on. All words, and the flag, are wanted.
#[test]
fn carry_chains_of_three_words() {
    const WORDS: &[u64] = &[0, 1, 2, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff];
    let limbs = |v: u128, n: u32| (v >> (32 * n)) as u64;
    for (ty, n) in ["u32", "s32"].iter().flat_map(|ty| (0..3).map(move |n| (ty, n))) {
        let select = ["mov.b32 $d, a;", "mov.b32 $d, b;", "mov.b32 $d, c;"][n as usize];
        // {x, y, ~x} and {z, x, y}, of which the lower two words decide what is carried.
        let chain = |op: &str| {
            format!(
                "{{ .reg .b32 a, b, c, n; not.b32 n, $1; {op}.cc.{ty} a, $1, $3; {op}c.cc.{ty} b, $2, $1; {op}c.{ty} c, n, $2; {select} }}"
            )
        };
        let left =
            |v: &[u64]| u128::from(!v[0] & 0xffff_ffff) << 64 | u128::from(v[1]) << 32 | u128::from(v[0]);
        let right = |v: &[u64]| u128::from(v[1]) << 64 | u128::from(v[0]) << 32 | u128::from(v[2]);
        exact(&chain("add"), 32, &[32; 3], &[WORDS; 3], |v| limbs(left(v).wrapping_add(right(v)), n));
        exact(&chain("sub"), 32, &[32; 3], &[WORDS; 3], |v| limbs(left(v).wrapping_sub(right(v)), n));
    }
    // A word times two words, plus two words.
    for n in 0..3 {
        let select = ["mov.b32 $d, a;", "mov.b32 $d, b;", "mov.b32 $d, c;"][n as usize];
        let product = format!(
            "{{ .reg .b32 a, b, c; mad.lo.cc.u32 a, $1, $2, $3; madc.hi.cc.u32 b, $1, $2, $2; addc.u32 c, 0, 0;
            mad.lo.cc.u32 b, $1, $3, b; madc.hi.u32 c, $1, $3, c; {select} }}"
        );
        exact(&product, 32, &[32; 3], &[WORDS; 3], |v| {
            let [x, y, z] = [v[0], v[1], v[2]].map(u128::from);
            limbs(x * (z << 32 | y) + (y << 32 | z), n)
        });
    }
    let low = "{ .reg .b32 t; sub.cc.u32 t, $1, $2; madc.lo.cc.s32 t, $1, $2, $3; addc.u32 $d, 0, 0; }";
    exact(low, 32, &[32; 3], &[WORDS; 3], |v| {
        (((v[0] * v[1]) & 0xffff_ffff) + v[2] + u64::from(v[0] < v[1])) >> 32
    });
    let high = "{ .reg .b32 t; add.cc.u32 t, $1, $2; madc.hi.s32 $d, $1, $2, $3; }";
    exact(high, 32, &[32; 3], &[WORDS; 3], |v| {
        let product = value(v[0], 32, true) * value(v[1], 32, true);
        ((product >> 32) as u64).wrapping_add(v[2]).wrapping_add((v[0] + v[1]) >> 32)
    });
}

/// Two 16-bit integers in a register.
#[test]
fn packed_halves() {
    let pairs: Vec<u64> = I16.iter().zip(I16.iter().cycle().skip(5)).map(|(a, b)| a << 16 | b).collect();
    let check = |op: &str, signed: bool, def: fn(i128, i128) -> i128| {
        exact(op, 32, &[32; 2], &[&pairs, &pairs], |v| {
            let half = |s: u32| {
                let [a, b] = [v[0], v[1]].map(|v| value(v >> s & 0xffff, 16, signed));
                def(a, b) as u64 & 0xffff
            };
            half(16) << 16 | half(0)
        });
    };
    for (ty, signed) in [("u16x2", false), ("s16x2", true)] {
        check(&format!("add.{ty}"), signed, |a, b| a + b);
        check(&format!("min.{ty}"), signed, i128::min);
        check(&format!("max.{ty}"), signed, i128::max);
    }
    check("min.relu.s16x2", true, |a, b| a.min(b).max(0));
    check("max.relu.s16x2", true, |a, b| a.max(b).max(0));
}

#[test]
fn comparisons_and_selections() {
    type Def = fn(i128, i128) -> bool;
    let cmps: [(&str, Def); 6] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
    ];
    for (name, bits, signed) in TYPES {
        let vs = values(bits);
        if !signed {
            for (cmp, def) in &cmps[..2] {
                exact(&format!("setp.{cmp}.b{bits}"), 1, &[bits; 2], &[vs, vs], |v| {
                    u64::from(def(v[0].into(), v[1].into()))
                });
            }
        }
        for (cmp, def) in cmps {
            let holds = |v: &[u64]| def(value(v[0], bits, signed), value(v[1], bits, signed));
            exact(&format!("setp.{cmp}.{name}"), 1, &[bits; 2], &[vs, vs], |v| u64::from(holds(v)));
            exact(&format!("setp.{cmp}.{name} %p6|$d, $1, $2"), 1, &[bits; 2], &[vs, vs], |v| {
                u64::from(!holds(v))
            });
            exact(
                &format!("setp.{cmp}.and.{name} $d, $1, $2, !$3"),
                1,
                &[bits, bits, 1],
                &[vs, vs, &[0, 1]],
                |v| u64::from(holds(v) && v[2] == 0),
            );
            for (op, join) in [("or", (|a, b| a || b) as fn(bool, bool) -> bool), ("xor", |a, b| a != b)] {
                let values = &[&vs[..9], vs, &[0, 1]];
                exact(&format!("setp.{cmp}.{op}.{name}"), 1, &[bits, bits, 1], values, |v| {
                    u64::from(join(holds(v), v[2] == 1))
                });
                exact(&format!("set.{cmp}.{op}.f32.{name}"), 32, &[bits, bits, 1], values, |v| {
                    if join(holds(v), v[2] == 1) { 0x3f80_0000 } else { 0 }
                });
            }
            exact(
                &format!("set.{cmp}.u32.{name}"),
                32,
                &[bits; 2],
                &[vs, vs],
                |v| if holds(v) { !0 } else { 0 },
            );
        }
        exact(&format!("selp.b{bits}"), bits, &[bits, bits, 1], &[vs, vs, &[0, 1]], |v| {
            if v[2] != 0 { v[0] } else { v[1] }
        });
    }
    for (lo, def) in [("lo", cmps[2].1), ("ls", cmps[3].1), ("hi", cmps[4].1), ("hs", cmps[5].1)] {
        exact(&format!("setp.{lo}.u32"), 1, &[32; 2], &[I32, I32], |v| {
            u64::from(def(v[0].into(), v[1].into()))
        });
    }
    exact(
        "slct.b64.s32",
        64,
        &[64, 64, 32],
        &[I64, I64, I32],
        |v| {
            if v[2] >> 31 & 1 == 0 { v[0] } else { v[1] }
        },
    );
    // Of f32 the zeros are equal, and a NaN is no number that is 0 or more.
    const SELECTORS: &[u64] = &[
        0,
        0x8000_0000,
        1,
        0x8000_0001,
        0x3f80_0000,
        0xbf80_0000,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0xffc0_0000,
        0x7f80_0001,
    ];
    for (ty, bits, values) in [
        ("b16", 16, I16),
        ("u16", 16, I16),
        ("b32", 32, I32),
        ("s32", 32, I32),
        ("f32", 32, I32),
        ("u64", 64, I64),
        ("f64", 64, I64),
    ] {
        let first = |c: u64, ftz: bool| {
            let c = f32::from_bits(c as u32);
            c >= 0.0 || ftz && c.is_subnormal()
        };
        let choose = |v: &[u64], first: bool| if first { v[0] } else { v[1] };
        let all = &[&values[..9], &values[8..], SELECTORS];
        exact(&format!("slct.{ty}.f32"), bits, &[bits, bits, 32], all, |v| choose(v, first(v[2], false)));
        exact(&format!("slct.ftz.{ty}.f32"), bits, &[bits, bits, 32], all, |v| choose(v, first(v[2], true)));
        exact(&format!("slct.{ty}.s32"), bits, &[bits, bits, 32], all, |v| choose(v, v[2] >> 31 == 0));
    }
    for (op, def) in
        [("and", (|a, b| a & b) as fn(u64, u64) -> u64), ("or", |a, b| a | b), ("xor", |a, b| a ^ b)]
    {
        exact(&format!("{op}.pred"), 1, &[1; 2], &[&[0, 1], &[0, 1]], |v| def(v[0], v[1]));
    }
    exact("not.pred", 1, &[1], &[&[0, 1]], |v| 1 - v[0]);
}

#[test]
fn integer_conversions() {
    let mut types = TYPES.to_vec();
    types.extend([("u8", 8, false), ("s8", 8, true)]);
    for (to, to_bits, to_signed) in types.clone() {
        for (from, bits, signed) in types.clone() {
            // 8-bit values live in 16-bit registers.
            let (src, dst) = (bits.max(16), to_bits.max(16));
            exact(&format!("cvt.{to}.{from}"), dst, &[src], &[values(src)], |v| {
                let cut = value(value(v[0], bits, signed) as u64, to_bits, to_signed);
                cut as u64
            });
            exact(&format!("cvt.sat.{to}.{from}"), dst, &[src], &[values(src)], |v| {
                let (min, max) = if to_signed {
                    (-(1 << (to_bits - 1)), (1 << (to_bits - 1)) - 1)
                } else {
                    (0, (1 << to_bits) - 1)
                };
                value(v[0], bits, signed).clamp(min, max) as u64
            });
        }
    }
}

#[test]
fn moves_pack_and_unpack() {
    exact("mov.b64 $d, {$1, $2}", 64, &[32; 2], &[I32, I32], |v| v[1] << 32 | v[0]);
    exact("mov.b32 $d, {$1, $2}", 32, &[16; 2], &[I16, I16], |v| v[1] << 16 | v[0]);
    exact("mov.b64 $d, {$1, $2, $1, $2}", 64, &[16; 2], &[I16, I16], |v| (v[1] << 16 | v[0]) * 0x1_0000_0001);
    exact("mov.b64 {_, $d}, $1", 32, &[64], &[I64], |v| v[0] >> 32);
    exact("mov.b32 {$d, _}, $1", 16, &[32], &[I32], |v| v[0]);
    exact("mov.b64 {_, _, $d, _}, $1", 16, &[64], &[I64], |v| v[0] >> 32);
    exact("mov.b64 {_, _, _, $d}, $1", 16, &[64], &[I64], |v| v[0] >> 48);
    exact("mov.b32 $d, {$1, $2, $2, $1}", 32, &[16; 2], &[I16, I16], |v| {
        ((v[0] & 0xff) * 0x0100_0001) | ((v[1] & 0xff) * 0x0001_0100)
    });
    exact("mov.b32 {_, $d, _, _}, $1", 16, &[32], &[I32], |v| v[0] >> 8 & 0xff);
    exact("mov.pred", 1, &[1], &[&[0, 1]], |v| v[0]);
    exact("{ .reg .f64 t; mov.f64 t, $1; mov.b64 $d, t; }", 64, &[64], &[I64], |v| v[0]);
    exact("{ .reg .f32 t; mov.f32 t, $1; mov.b32 $d, t; }", 32, &[32], &[I32], |v| v[0]);
    exact("mov.u16", 16, &[16], &[I16], |v| v[0]);
    exact("add.u32 $d, $1, WARP_SZ", 32, &[32], &[I32], |v| v[0] + 32);
}

#[test]
fn positions_of_set_bits() {
    exact("fns.b32", 32, &[32; 3], &[I32, &[0, 5, 31], &[0, 1, 2, 0xffff_ffff, 0xffff_fffe]], |v| {
        let (mask, base, n) = (v[0], v[1] as i64, v[2] as u32 as i32);
        let set = |i: &i64| mask >> i & 1 == 1;
        let found = match n {
            0 => Some(base).filter(set),
            n if n > 0 => (base..32).filter(set).nth(n as usize - 1),
            n => (0..=base).rev().filter(set).nth(n.unsigned_abs() as usize - 1),
        };
        found.map_or(!0, |i| i as u64)
    });
}
