//! From one declaration in Rust to the text that a kernel compiler sees: generated prelude, then the
//! kernel file with its includes.
//!
//! Both languages get the struct `Params`, the constants, and for each operand `x` whether it was given
//! (`HAS_X`). In CUDA an operand is a typed pointer `const x_t* x`. WGSL has no pointers into storage,
//! so the prelude writes the accessors `load_x(i)` and `store_x(i, v)`, which also unpack 16-bit
//! storage where the adapter has no f16.

use crate::dtype::Dtype;
use crate::op::{Consts, Language, Op, Plan, Scalar, Scalars, Signature, Slot};
use std::borrow::Cow;
use std::fmt::Write;

/// What the CUDA prelude needs itself.
const ELEMENT: &str = "common/element.cuh";

/// Files that kernels may include, by the name they use.
const INCLUDES: &[(&str, &str)] = &[
    (ELEMENT, include_str!("../kernels/common/element.cuh")),
    ("common/reduce.cuh", include_str!("../kernels/common/reduce.cuh")),
    ("common/activation.cuh", include_str!("../kernels/common/activation.cuh")),
    ("common/span.cuh", include_str!("../kernels/common/span.cuh")),
    ("common/mma.cuh", include_str!("../kernels/common/mma.cuh")),
    ("common/philox.cuh", include_str!("../kernels/common/philox.cuh")),
    ("common/philox.wgsl", include_str!("../shaders/common/philox.wgsl")),
    ("common/activation.wgsl", include_str!("../shaders/common/activation.wgsl")),
];

/// A kernel that is compiled by itself: all that its source depends on besides the language.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Variant {
    /// The op.
    pub op: &'static str,
    /// The kernel's name in its file.
    pub entry: &'static str,
    /// Dtype and presence of each operand.
    pub signature: Signature,
    /// The constants.
    pub consts: Consts,
}

impl Variant {
    /// The kernel that a plan of the op `T` launches.
    pub fn new<T: Op>(plan: &Plan, signature: Signature) -> Self {
        let signature = signature.without_alignment();
        Self { op: T::NAME, entry: plan.entry, signature, consts: plan.consts.clone() }
    }
}

/// The complete source of a kernel of `T`, as its compiler sees it.
pub fn source<T: Op>(signature: &Signature, consts: &Consts, language: Language) -> String {
    match language {
        Language::Cuda { .. } => {
            let name = format!("{}.cu", T::NAME);
            let text = expand(&name, T::CUDA, Lines::Marked, &mut Vec::new());
            cuda_prelude(T::Params::FIELDS, signature, consts)
                + &conditional(&text, &defines(signature, consts), Lines::Marked)
        }
        Language::Wgsl { f16, subgroups, immediates } => {
            let consts = consts.clone().set("SUBGROUPS", u32::from(subgroups)).set("F16", u32::from(f16));
            let immediate = params_bytes::<T>(signature) <= immediates;
            let prelude = wgsl_prelude(T::Params::FIELDS, signature, &consts, f16, immediate);
            let name = format!("{}.wgsl", T::NAME);
            let text = expand(&name, T::WGSL, Lines::Plain, &mut Vec::new());
            prelude + &conditional(&text, &defines(signature, &consts), Lines::Plain)
        }
    }
}

/// Bytes of the WGSL struct `Params`: the op's scalars and the start of each operand that was given.
pub fn params_bytes<T: Op>(signature: &Signature) -> u32 {
    let starts = signature.slots().iter().filter(|s| s.dtype.is_some()).count();
    4 * (T::Params::FIELDS.len() + starts) as u32
}

/// Whether the text says which line of which file follows.
#[derive(Clone, Copy, PartialEq)]
enum Lines {
    /// By `#line`, so that compilers and line information name the kernel file, not this expansion of it.
    Marked,
    /// WGSL has no such thing.
    Plain,
}

/// The file `name` with each `#include "name"` line replaced by that file, once.
fn expand(name: &str, built_in: &str, lines: Lines, seen: &mut Vec<String>) -> String {
    let text = overridden(name).unwrap_or(Cow::Borrowed(built_in));
    let mut out = String::with_capacity(text.len());
    let mark = |out: &mut String, line: usize| {
        if lines == Lines::Marked {
            let _ = writeln!(out, "#line {line} \"kernels/{name}\"");
        }
    };
    mark(&mut out, 1);
    for (number, line) in text.lines().enumerate() {
        let included = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match included {
            Some(file) if seen.iter().any(|s| s == file) => out.push('\n'),
            Some(file) => {
                out += &include(file, lines, seen);
                mark(&mut out, number + 2);
            }
            None => {
                out += line;
                out.push('\n');
            }
        }
    }
    out
}

/// One of the files that kernels may include.
fn include(file: &str, lines: Lines, seen: &mut Vec<String>) -> String {
    seen.push(file.to_owned());
    let body = INCLUDES.iter().find(|(name, _)| *name == file);
    body.map_or_else(|| format!("#error no file {file}\n"), |(_, body)| expand(file, body, lines, seen))
}

/// In builds for tests, `ADVECT_KERNELS` names a folder; the files that it has in `kernels/` and `shaders/`
/// take the place of the built-in ones, so that a kernel can be changed without building anything.
#[cfg(feature = "ptx-sim")]
fn overridden(name: &str) -> Option<Cow<'static, str>> {
    let folder = std::path::PathBuf::from(std::env::var_os("ADVECT_KERNELS")?);
    let path = folder.join(if name.ends_with(".wgsl") { "shaders" } else { "kernels" }).join(name);
    std::fs::read_to_string(path).ok().map(Cow::Owned)
}

#[cfg(not(feature = "ptx-sim"))]
fn overridden(_: &str) -> Option<Cow<'static, str>> {
    None
}

/// What `#if` may ask: the constants, and `HAS_X` for each operand.
fn defines(signature: &Signature, consts: &Consts) -> Vec<(String, u32)> {
    let has = signature.slots().iter().map(|s| (has_name(s), u32::from(s.dtype.is_some())));
    consts.iter().map(|(n, v)| (n.to_owned(), v)).chain(has).collect()
}

/// Keeps or drops the lines between `#if NAME` (or `#if !NAME`), `#else` and `#endif`. WGSL has no preprocessor, and
/// code that uses a missing extension does not validate even when it is never reached; in CUDA, what is left is what
/// a kernel consists of. Dropped lines leave empty ones, so that numbers stay. What is not a name that is known
/// here counts as 0 in WGSL, and is left to the compiler in CUDA.
fn conditional(text: &str, defines: &[(String, u32)], lines: Lines) -> String {
    let value = |condition: &str| {
        let (name, negated) = match condition.strip_prefix('!') {
            Some(name) => (name, true),
            None => (condition, false),
        };
        let set = defines.iter().find(|(n, _)| n == name).map(|(_, v)| *v != 0);
        set.or((lines == Lines::Plain).then_some(false)).map(|set| set != negated)
    };
    let mut out = String::with_capacity(text.len());
    // Each open `#if`: whether its lines are kept, or None where the compiler decides.
    let mut open: Vec<Option<bool>> = Vec::new();
    for line in text.lines() {
        let directive = line.trim_start();
        let handled = if let Some(condition) = directive.strip_prefix("#if ") {
            open.push(value(condition.trim()));
            open.last().is_some_and(Option::is_some)
        } else if directive == "#else" {
            if let Some(last) = open.last_mut() {
                *last = last.map(|keep| !keep);
            }
            open.last().is_some_and(Option::is_some)
        } else if directive == "#endif" {
            open.pop().is_some_and(|last| last.is_some())
        } else {
            false
        };
        if !handled && open.iter().all(|keep| *keep != Some(false)) {
            out += line;
        }
        out.push('\n');
    }
    out
}

fn has_name(slot: &Slot) -> String {
    format!("HAS_{}", slot.name.to_uppercase())
}

fn cuda_prelude(fields: &[(&str, Scalar)], signature: &Signature, consts: &Consts) -> String {
    let mut s = String::new();
    for dtype in Dtype::ALL {
        let _ = writeln!(s, "#define {} {}", dtype.name().to_uppercase(), dtype as u32);
    }
    for (name, value) in consts.iter() {
        let _ = writeln!(s, "#define {name} {value}");
    }
    s += &include(ELEMENT, Lines::Marked, &mut Vec::new());
    s += "#line 1 \"prelude\"\n";
    s += "struct Params {\n";
    for (name, scalar) in fields {
        let ty = match scalar {
            Scalar::U32 => "unsigned",
            Scalar::F32 => "float",
        };
        let _ = writeln!(s, "    {ty} {name};");
    }
    s += "};\n";
    let mut arguments = Vec::new();
    for slot in signature.slots() {
        let dtype = slot.dtype.unwrap_or(Dtype::F32);
        let element = match dtype {
            Dtype::F32 => "float",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::I32 => "int",
            Dtype::U8 => "u8",
        };
        let Slot { name, output, .. } = *slot;
        let _ = writeln!(s, "typedef {element} {name}_t;");
        let _ = writeln!(s, "#define {}_DTYPE {}", name.to_uppercase(), dtype as u32);
        let _ = writeln!(s, "#define {} {}", has_name(slot), u32::from(slot.dtype.is_some()));
        let constness = if output { "" } else { "const " };
        arguments.push(format!("{constness}{name}_t* __restrict__ {name}"));
    }
    let _ = writeln!(s, "#define OPERANDS {}", arguments.join(", "));
    s
}

fn wgsl_prelude(
    fields: &[(&str, Scalar)],
    signature: &Signature,
    consts: &Consts,
    f16: bool,
    immediate: bool,
) -> String {
    let native = |slot: &Slot| f16 && slot.dtype == Some(Dtype::F16);
    let mut s = String::new();
    if f16 {
        s += "enable f16;\n";
    }
    for (name, value) in consts.iter() {
        let _ = writeln!(s, "const {name}: u32 = {value}u;");
    }
    s += "struct Params {\n";
    for (name, scalar) in fields {
        let ty = match scalar {
            Scalar::U32 => "u32",
            Scalar::F32 => "f32",
        };
        let _ = writeln!(s, "    {name}: {ty},");
    }
    // Bindings start at aligned offsets; what is left of an operand's offset comes with the params.
    let given = || signature.slots().iter().filter(|slot| slot.dtype.is_some());
    for slot in given() {
        let _ = writeln!(s, "    {}_start: u32,", slot.name);
    }
    s += "}\n";
    s += if immediate {
        "var<immediate> p: Params;\n"
    } else {
        "@group(0) @binding(0) var<uniform> p: Params;\n"
    };
    for (binding, slot) in given().enumerate() {
        accessors(&mut s, slot, binding + 1, native(slot));
    }
    for slot in signature.slots() {
        let _ = writeln!(s, "const {}: bool = {};", has_name(slot), slot.dtype.is_some());
        if slot.dtype.is_none() && !slot.output {
            let _ = writeln!(s, "fn load_{}(i: u32) -> f32 {{ return 0.0; }}", slot.name);
        }
    }
    s
}

/// Binding and accessors of one operand.
fn accessors(s: &mut String, slot: &Slot, binding: usize, native_f16: bool) {
    let Slot { name, output, .. } = *slot;
    let dtype = slot.dtype.unwrap_or(Dtype::F32);
    let access = if output { "read_write" } else { "read" };
    let packed = dtype.size() < 4 && !native_f16;
    let element = match (packed, output, dtype) {
        (true, true, _) => "atomic<u32>",
        (true, false, _) => "u32",
        (false, _, Dtype::F32) => "f32",
        (false, _, Dtype::I32) => "i32",
        (false, ..) => "f16",
    };
    let _ = writeln!(s, "@group(0) @binding({binding}) var<storage, {access}> {name}_buf: array<{element}>;");
    if !dtype.is_float() {
        // Integers are read as such, and written by no kernel.
        let _ = match dtype.size() {
            4 => writeln!(s, "fn load_{name}(i: u32) -> i32 {{ return {name}_buf[p.{name}_start + i]; }}"),
            _ => writeln!(
                s,
                "fn load_{name}(i: u32) -> u32 {{ let at = p.{name}_start + i; \
                 return ({name}_buf[at >> 2u] >> ((at & 3u) * 8u)) & 0xffu; }}"
            ),
        };
        return;
    }
    if output {
        let store = match (packed, dtype) {
            (false, Dtype::F32) => format!("{name}_buf[p.{name}_start + i] = v;"),
            (false, _) => format!("{name}_buf[p.{name}_start + i] = f16(v);"),
            // Two elements share a word, and two invocations may write them: each clears and sets its own half.
            (true, _) => format!(
                "let at = p.{name}_start + i; let shift = (at & 1u) * 16u; \
                 atomicAnd(&{name}_buf[at >> 1u], 0xffff0000u >> shift); \
                 atomicOr(&{name}_buf[at >> 1u], {name}_bits(v) << shift);"
            ),
        };
        match (packed, dtype) {
            (true, Dtype::F16) => {
                // What packing makes of more than the largest number is left open, and some make NaN of it.
                let _ = writeln!(
                    s,
                    "fn {name}_bits(v: f32) -> u32 {{ \
                     let most = select(v, sign(v) * 65504.0, abs(v) > 65504.0); \
                     return pack2x16float(vec2<f32>(most, 0.0)) & 0xffffu; }}"
                );
            }
            (true, _) => {
                // Round to nearest even by integer arithmetic; a NaN must not round up to infinity.
                let _ = writeln!(
                    s,
                    "fn {name}_bits(v: f32) -> u32 {{ let u = bitcast<u32>(v); \
                     if ((u & 0x7fffffffu) > 0x7f800000u) {{ return (u >> 16u) | 64u; }} \
                     return (u + 0x7fffu + ((u >> 16u) & 1u)) >> 16u; }}"
                );
            }
            _ => {}
        }
        let _ = writeln!(s, "fn store_{name}(i: u32, v: f32) {{ {store} }}");
        let both = match packed {
            // A whole word, when the caller knows that the first element starts one.
            true => format!(
                "atomicStore(&{name}_buf[(p.{name}_start + i) >> 1u], {name}_bits(a) | ({name}_bits(b) << 16u));"
            ),
            false => format!("store_{name}(i, a); store_{name}(i + 1u, b);"),
        };
        let _ = writeln!(s, "fn store2_{name}(i: u32, a: f32, b: f32) {{ {both} }}");
    } else {
        let load = match (packed, dtype) {
            (false, Dtype::F32) => format!("return {name}_buf[p.{name}_start + i];"),
            (false, _) => format!("return f32({name}_buf[p.{name}_start + i]);"),
            (true, Dtype::F16) => format!(
                "let at = p.{name}_start + i; \
                 return unpack2x16float({name}_buf[at >> 1u] >> ((at & 1u) * 16u)).x;"
            ),
            (true, _) => format!(
                "let at = p.{name}_start + i; \
                 return bitcast<f32>(({name}_buf[at >> 1u] >> ((at & 1u) * 16u)) << 16u);"
            ),
        };
        let _ = writeln!(s, "fn load_{name}(i: u32) -> f32 {{ {load} }}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str, lines: Lines) -> String {
        conditional(text, &[("ON".into(), 2), ("OFF".into(), 0)], lines).replace('\n', ";")
    }

    #[test]
    fn lines_are_kept_by_known_names() {
        for lines in [Lines::Marked, Lines::Plain] {
            assert_eq!(kept("#if ON\na\n#else\nb\n#endif\nc", lines), ";a;;;;c;");
            assert_eq!(kept("#if OFF\na\n#else\nb\n#endif\nc", lines), ";;;b;;c;");
            assert_eq!(kept("#if !OFF\na\n#endif", lines), ";a;;");
            assert_eq!(kept("#if OFF\n#if ON\na\n#endif\nb\n#endif\nc", lines), ";;;;;;c;");
            assert_eq!(kept("  #if ON\na\n  #endif", lines), ";a;;");
        }
    }

    #[test]
    fn other_conditions_are_the_compilers() {
        let text = "#if ON\n#if ARCH >= 800\na\n#else\nb\n#endif\n#endif\n#if OFF\n#if X\nc\n#endif\n#endif";
        assert_eq!(kept(text, Lines::Marked), ";#if ARCH >= 800;a;#else;b;#endif;;;;;;;");
        assert_eq!(kept("#if UNKNOWN\na\n#else\nb\n#endif", Lines::Plain), ";;;b;;");
    }
}
