//! What the manual does not have is refused when it is parsed: a modifier that does nothing would be a mistake in a
//! kernel that nobody sees.

mod common;
use common::lab::parse;
use ptx_sim::Error;

fn refused(op: &str, dst: u32, srcs: &[u32]) {
    match parse(op, dst, srcs) {
        Err(Error::Unsupported { line, .. } | Error::Parse { line, .. }) => {
            assert!(line > 8, "{op}: line {line}")
        }
        Ok(_) => panic!("{op} is accepted"),
        Err(other) => panic!("{op}: {other:?}"),
    }
}

fn taken(op: &str, dst: u32, srcs: &[u32]) {
    if let Err(e) = parse(op, dst, srcs) {
        panic!("{op}: {e}");
    }
}

#[test]
fn modifiers_of_float_arithmetic() {
    for op in ["add", "sub", "mul"] {
        for form in ["sat.f64", "ftz.f64", "relu.f32", "NaN.f32", "approx.f32", "full.f32"] {
            let bits = if form.ends_with("64") { 64 } else { 32 };
            refused(&format!("{op}.{form}"), bits, &[bits; 2]);
        }
        for form in ["sat.f32x2", "relu.f32x2"] {
            refused(&format!("{op}.rn.{form}"), 64, &[64; 2]);
        }
        for form in ["rz.f16", "rm.bf16", "ftz.bf16", "sat.bf16", "relu.f16"] {
            refused(&format!("{op}.{form}"), 16, &[16; 2]);
        }
    }
    for form in ["fma.f32", "mad.f32", "fma.rn.relu.f32", "fma.rn.xorsign.abs.f32"] {
        refused(form, 32, &[32; 3]);
    }
    for form in ["mad.rn.f16", "fma.f16", "fma.rn.sat.bf16", "fma.rn.sat.relu.f16", "fma.rn.ftz.relu.bf16"] {
        refused(form, 16, &[16; 3]);
    }
    for form in ["fma.rn.sat.f64", "mad.f64", "mad.rn.f32x2", "fma.rn.sat.f32x2"] {
        refused(form, 64, &[64; 3]);
    }
    for form in ["min.sat.f32", "max.rn.f32", "min.relu.f32", "max.xorsign.f32", "min.approx.f32"] {
        refused(form, 32, &[32; 2]);
    }
    for form in
        ["min.NaN.f64", "max.xorsign.abs.f64", "min.ftz.f64", "max.f32x2", "div.f64", "div.approx.f64"]
    {
        refused(form, 64, &[64; 2]);
    }
    for form in ["div.approx.rn.f32", "div.full.approx.f32", "div.rn.sat.f32", "div.f32", "copysign.ftz.f32"]
    {
        refused(form, 32, &[32; 2]);
    }
    for form in ["min.ftz.bf16", "copysign.f16", "div.rn.f16"] {
        refused(form, 16, &[16; 2]);
    }
}

#[test]
fn modifiers_of_functions() {
    for form in [
        "rcp.approx.f64",
        "sqrt.approx.f64",
        "sqrt.approx.ftz.f64",
        "rcp.rn.ftz.f64",
        "ex2.approx.f64",
        "sin.approx.f64",
        "neg.ftz.f64",
        "abs.sat.f64",
    ] {
        refused(form, 64, &[64]);
    }
    for form in [
        "rcp.f32",
        "rcp.approx.rn.f32",
        "rsqrt.rn.f32",
        "rsqrt.f32",
        "ex2.f32",
        "sin.f32",
        "lg2.rn.f32",
        "tanh.f32",
        "tanh.approx.ftz.f32",
        "ex2.approx.sat.f32",
        "abs.rn.f32",
        "neg.approx.f32",
        "testp.normal.subnormal.f32",
    ] {
        refused(form, 32, &[32]);
    }
    for form in [
        "ex2.approx.ftz.f16",
        "ex2.approx.bf16",
        "tanh.approx.ftz.f16",
        "sin.approx.f16",
        "rcp.approx.f16",
        "neg.ftz.bf16",
        "testp.normal.f16",
    ] {
        refused(form, 16, &[16]);
    }
}

#[test]
fn conversions() {
    // A rounding mode where nothing is rounded, none where something is, and one of the wrong kind.
    for (form, dst, src) in [
        ("cvt.f16.f32", 16, 32),
        ("cvt.f32.f64", 32, 64),
        ("cvt.bf16.f16", 16, 16),
        ("cvt.f32.s32", 32, 32),
        ("cvt.s32.f32", 32, 32),
        ("cvt.tf32.f32", 32, 32),
        ("cvt.rn.f64.f32", 64, 32),
        ("cvt.rz.f32.f16", 32, 16),
        ("cvt.rn.f32.f32", 32, 32),
        ("cvt.rn.s32.f32", 32, 32),
        ("cvt.rni.f32.s32", 32, 32),
        ("cvt.rzi.f16.f32", 16, 32),
        ("cvt.rzi.f64.f32", 64, 32),
        ("cvt.rni.s32.s64", 32, 64),
        ("cvt.rn.s32.s64", 32, 64),
        ("cvt.rna.f16.f32", 16, 32),
        ("cvt.rna.f32.f64", 32, 64),
        ("cvt.rni.tf32.f32", 32, 32),
        // Modifiers of other types.
        ("cvt.rn.ftz.f16.f64", 16, 64),
        ("cvt.rni.ftz.s32.f64", 32, 64),
        ("cvt.ftz.s64.s32", 64, 32),
        ("cvt.rna.ftz.tf32.f32", 32, 32),
        ("cvt.rn.relu.f32.f64", 32, 64),
        ("cvt.rn.relu.f16.f64", 16, 64),
        ("cvt.rn.satfinite.f32.f64", 32, 64),
        ("cvt.rni.relu.s32.f32", 32, 32),
        ("cvt.satfinite.u16.u32", 16, 32),
        ("cvt.rn.sat.bf16.f32", 16, 32),
        ("cvt.rna.sat.tf32.f32", 32, 32),
        ("cvt.rn.satfinite.e4m3x2.f32", 16, 32),
        ("cvt.rn.f16x2.e4m3x2", 32, 16),
        ("cvt.rn.f16x2.f16x2", 32, 32),
        ("cvt.u32.f16x2", 32, 32),
    ] {
        refused(form, dst, &[src]);
    }
    for form in ["cvt.rn.ftz.f16x2.f32", "cvt.rn.sat.bf16x2.f32", "cvt.f16x2.f32", "cvt.rm.relu.u16x2.f32"] {
        refused(form, 32, &[32; 2]);
    }
}

#[test]
fn comparisons_and_integers() {
    refused("setp.lo.s32", 1, &[32; 2]);
    refused("setp.equ.s32", 1, &[32; 2]);
    refused("setp.lt.b32", 1, &[32; 2]);
    refused("setp.ftz.lt.s32", 1, &[32; 2]);
    refused("setp.lt.ftz.f64", 1, &[64; 2]);
    refused("setp.lt.ftz.bf16", 1, &[16; 2]);
    refused("setp.lt.u8", 1, &[16; 2]);
    refused("set.lt.f64.f64", 64, &[64; 2]);
    refused("set.lt.u64.f16x2", 64, &[32; 2]);
    refused("set.lt.f32.f16x2", 32, &[32; 2]);
    refused("set.lt.f16x2.f32", 32, &[32; 2]);
    refused("set.lt.u16.f32", 16, &[32; 2]);
    refused("slct.ftz.b32.s32", 32, &[32; 3]);
    refused("slct.b32.f64", 32, &[32, 32, 64]);
    refused("slct.b32.u32", 32, &[32; 3]);
    refused("add.sat.u32", 32, &[32; 2]);
    refused("sub.s16x2", 32, &[32; 2]);
    refused("min.relu.u16x2", 32, &[32; 2]);
    refused("min.relu.s64", 64, &[64; 2]);
    refused("addc.b32", 32, &[32; 2]);
    refused("add.cc.u16", 16, &[16; 2]);
    refused("mad.lo.sat.s32", 32, &[32; 3]);
    refused("mad.wide.cc.u32", 64, &[32, 32, 64]);
    refused("mul.u32", 32, &[32; 2]);
    refused("mul.wide.u64", 64, &[64; 2]);
    refused("lop3.or.b32 $d|%p6, $1, $2, $3, 1, %p5", 32, &[32; 3]);
    refused("isspacep", 1, &[64]);
    refused("isspacep.shared::cluster", 1, &[64]);
    refused("cvta.u64", 64, &[64]);
}

#[test]
fn memory() {
    let address = |form: &str| refused(&form.replace("[]", "[$1]"), 32, &[64]);
    for form in [
        "red.global.exch.b32 [], $d",
        "red.global.cas.b32 [], $d, $d",
        "red.global.add.noftz.u32 [], $d",
        "red.global.add.f16x2 [], $d",
        "red.global.inc.u64 [], %rd1",
        "red.global.min.f32 [], $d",
        "red.global.and.u16 [], %h1",
        "red.local.add.u32 [], $d",
        "red.global.v2.f32.add [], {$d, $d}",
        "red.global.add.L2::cache_hint.u32 [], $d, %rd1",
        "ld.global.L2::cache_hint.b32 $d, [], %rd1",
        "ld.global.v4.b64 {$d, $d, $d}, []",
        "ld.global.v16.b8 $d, []",
        "ld.global.b128 $d, []",
        "st.const.b32 [], $d",
        "st.param.b32 [p0], $d",
        "discard.global.L2 [], 128",
        "prefetch.global.L3 []",
        "cp.async.cg.shared.global [$1], [$1], 8",
        "cp.async.ca.shared.global [$1], [$1], 2",
        "cp.async.ca.global.shared [$1], [$1], 4",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {$d,$d,$d}, []",
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {$d}, []",
        "ldmatrix.sync.aligned.m8n8.x1.b16 {$d}, []",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8 {$d}, []",
    ] {
        address(form);
    }
}

/// What is accepted is no less for it: the nearest forms that there are.
#[test]
fn the_forms_beside_them() {
    for form in
        ["add.rn.ftz.sat.f32", "div.full.ftz.f32", "div.approx.ftz.f32", "min.ftz.NaN.xorsign.abs.f32"]
    {
        taken(form, 32, &[32; 2]);
    }
    for form in ["sqrt.approx.ftz.f32", "rcp.rz.ftz.f32", "cvt.rn.relu.satfinite.tf32.f32", "abs.ftz.f32"] {
        taken(form, 32, &[32]);
    }
    taken("fma.rn.ftz.relu.f16x2", 32, &[32; 3]);
    taken("fma.rn.ftz.sat.f16", 16, &[16; 3]);
    taken("red.global.add.noftz.bf16x2 [$1], $d", 32, &[64]);
    taken("red.relaxed.gpu.global.add.u32 [$1], $d", 32, &[64]);
    taken("isspacep.shared::cta", 1, &[64]);
    taken("isspacep.param::entry", 1, &[64]);
}
