//! Runs one instruction over all combinations of operand values, and compares with a scalar definition.

use ptx_sim::{Gpu, Launch, Module};

use super::{download, upload};

fn register(bits: u32) -> &'static str {
    match bits {
        1 => "%p",
        16 => "%h",
        32 => "%r",
        _ => "%rd",
    }
}

/// PTX that loads operands of these widths, executes `op`, and stores its result as 64 bits.
fn text(op: &str, dst: u32, srcs: &[u32]) -> String {
    let mut body = String::new();
    let mut operands = format!("{}0", register(dst));
    for (i, bits) in srcs.iter().enumerate() {
        let n = i + 1;
        body += &format!(
            "ld.param.u64 %rd8, [p{n}];\nadd.s64 %rd8, %rd8, %rd9;\nld.global.u64 %rd{n}, [%rd8];\n"
        );
        body += &match bits {
            1 => format!("setp.ne.u64 %p{n}, %rd{n}, 0;\n"),
            16 => format!("cvt.u16.u64 %h{n}, %rd{n};\n"),
            32 => format!("cvt.u32.u64 %r{n}, %rd{n};\n"),
            _ => String::new(),
        };
        operands += &format!(", {}{n}", register(*bits));
    }
    // `$d`, `$1`, ... place operands by hand.
    if op.contains('$') {
        let mut text = op.replace("$d", &format!("{}0", register(dst)));
        for (i, bits) in srcs.iter().enumerate() {
            text = text.replace(&format!("${}", i + 1), &format!("{}{}", register(*bits), i + 1));
        }
        body += &format!("{text};\n");
    } else {
        body += &format!("{op} {operands};\n");
    }
    body += match dst {
        1 => "selp.u64 %rd0, 1, 0, %p0;\n",
        16 => "cvt.u64.u16 %rd0, %h0;\n",
        32 => "cvt.u64.u32 %rd0, %r0;\n",
        _ => "",
    };
    format!(
        ".version 8.6\n.target sm_100\n.address_size 64
.visible .entry k(.param .u64 p0, .param .u64 p1, .param .u64 p2, .param .u64 p3, .param .u64 p4, .param .u32 n) {{
.reg .pred %p<8>; .reg .b16 %h<8>; .reg .b32 %r<16>; .reg .b64 %rd<16>;
mov.u32 %r10, %tid.x;\nmov.u32 %r11, %ctaid.x;\nmad.lo.u32 %r10, %r11, 256, %r10;
ld.param.u32 %r12, [n];\nsetp.ge.u32 %p7, %r10, %r12;\n@%p7 ret;
mul.wide.u32 %rd9, %r10, 8;\n{body}
ld.param.u64 %rd8, [p0];\nadd.s64 %rd8, %rd8, %rd9;\nst.global.u64 [%rd8], %rd0;\nret;\n}}\n"
    )
}

/// What parsing says of an instruction with operands of these widths.
pub fn parse(op: &str, dst: u32, srcs: &[u32]) -> Result<Module, ptx_sim::Error> {
    Module::parse(&text(op, dst, srcs))
}

/// All combinations of the values of the operands, executed; the operands and the result of each.
pub fn results(op: &str, dst: u32, srcs: &[u32], values: &[&[u64]]) -> Vec<(Vec<u64>, u64)> {
    assert_eq!(srcs.len(), values.len(), "{op}");
    let text = text(op, dst, srcs);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{op}: {e}\n{text}"));
    let n: usize = values.iter().map(|v| v.len()).product();
    let combination = |mut i: usize| -> Vec<u64> {
        values
            .iter()
            .map(|v| {
                let value = v[i % v.len()];
                i /= v.len();
                value
            })
            .collect()
    };
    let mut gpu = Gpu::new();
    let out = gpu.alloc(n * 8);
    let mut params: Vec<Vec<u8>> = vec![out.to_le_bytes().to_vec()];
    for k in 0..4 {
        let column: Vec<u64> = (0..n).map(|i| combination(i).get(k).copied().unwrap_or(0)).collect();
        params.push(upload(&mut gpu, &column).to_le_bytes().to_vec());
    }
    params.push((n as u32).to_le_bytes().to_vec());
    let params: Vec<&[u8]> = params.iter().map(Vec::as_slice).collect();
    let launch = Launch {
        grid: [n.div_ceil(256) as u32, 1, 1],
        block: [256, 1, 1],
        params: &params,
        ..Launch::default()
    };
    module.launch(&mut gpu, "k", &launch).unwrap_or_else(|e| panic!("{op}: {e}\n{text}"));
    (0..n).map(combination).zip(download::<u64>(&gpu, out, n)).collect()
}

/// Wants bit for bit what the definition says.
pub fn exact(op: &str, dst: u32, srcs: &[u32], values: &[&[u64]], want: impl Fn(&[u64]) -> u64) {
    let mask = if dst == 64 { !0 } else { (1 << dst) - 1 };
    for (operands, got) in results(op, dst, srcs, values) {
        let want = want(&operands) & mask;
        assert_eq!(got, want, "{op} of {operands:#x?}: got {got:#x}, wanted {want:#x}");
    }
}

pub const I16: &[u64] =
    &[0, 1, 2, 7, 15, 16, 0x7f, 0x80, 0xff, 0x100, 0x1234, 0x7ffe, 0x7fff, 0x8000, 0x8001, 0xfffe, 0xffff];
pub const I32: &[u64] = &[
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    33,
    0x7f,
    0x80,
    0xff,
    0xffff,
    0x1_0000,
    0x1234_5678,
    0x00ff_ffff,
    0x0100_0000,
    0x7fff_fffe,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xdead_beef,
    0xffff_0000,
    0xffff_fffe,
    0xffff_ffff,
];
pub const I64: &[u64] = &[
    0,
    1,
    2,
    3,
    31,
    32,
    63,
    64,
    0xff,
    0xffff_ffff,
    0x1_0000_0000,
    0x0123_4567_89ab_cdef,
    0x7fff_ffff_ffff_fffe,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0x8000_0000_0000_0001,
    0xffff_ffff_0000_0000,
    !1,
    !0,
];
/// Zeros, subnormals, the ends of the normal range, ties, infinities, NaNs.
pub const F32: &[u64] = &[
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x8000_0001,
    0x007f_ffff,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0000,
    0x0080_0001,
    0x3f80_0000,
    0xbf80_0000,
    0x3f80_0001,
    0x3f7f_ffff,
    0x3fc0_0000,
    0x4020_0000,
    0xc020_0000,
    0x3f00_0000,
    0x4b00_0000,
    0x4b00_0001,
    0x4b80_0001,
    0x3380_0000,
    0x3380_0001,
    0x3400_0000,
    0x4049_0fdb,
    0xc2f6_e979,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0x7f80_0001,
    0xffff_ffff,
];
pub const F64: &[u64] = &[
    0,
    1 << 63,
    1,
    0x000f_ffff_ffff_ffff,
    0x0010_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff0_0000_0000_0000,
    0x3ff0_0000_0000_0001,
    0x3fef_ffff_ffff_ffff,
    0x4004_0000_0000_0000,
    0x3ca0_0000_0000_0000,
    0x3ca0_0000_0000_0001,
    0x4009_21fb_5444_2d18,
    0xc05e_dd2f_1a9f_be77,
    0x4330_0000_0000_0001,
    0x41df_ffff_ffe0_0000,
    0xc3e0_0000_0000_0000,
    0x7fef_ffff_ffff_ffff,
    0xffef_ffff_ffff_ffff,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0000,
];
pub const F16: &[u64] = &[
    0, 0x8000, 1, 0x8001, 0x03ff, 0x0400, 0x8400, 0x0401, 0x3c00, 0xbc00, 0x3c01, 0x3bff, 0x3e00, 0x4100,
    0xc100, 0x1400, 0x6400, 0x6401, 0x7bff, 0xfbff, 0x7c00, 0xfc00, 0x7e00, 0x7c01,
];
pub const BF16: &[u64] = &[
    0, 0x8000, 1, 0x8001, 0x007f, 0x0080, 0x3f80, 0xbf80, 0x3f81, 0x3f7f, 0x3fc0, 0x4020, 0xc020, 0x3b80,
    0x4300, 0x4301, 0x7f7f, 0xff7f, 0x7f80, 0xff80, 0x7fc0, 0x7f81,
];
