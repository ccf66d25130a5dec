//! One vector type per instruction set, chosen at run time.
//!
//! A kernel is written once, as [`Kernel::run`] over any [`Simd`]; [`Isa::run`] enters it through a
//! function compiled for the instruction set. Everything below `run` must be `#[inline(always)]`, or it
//! would be compiled without those instructions.

use crate::dtype::{Dtype, Float};
use half::{bf16, f16};

/// The instruction sets that the CPU kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Isa {
    /// Whatever the compiler makes of arrays of eight floats.
    Plain,
    /// AArch64 Advanced SIMD, 4 lanes.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// x86-64 AVX2 with FMA and F16C, 8 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 AVX-512 F, BW, DQ and VL, 16 lanes.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// The same with AVX512_BF16: attention multiplies bf16 without converting it.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Isa {
    /// The instruction sets that this machine has, plainest first.
    pub fn available() -> Vec<Self> {
        let mut all = vec![Self::Plain];
        #[cfg(target_arch = "aarch64")]
        all.push(Self::Neon);
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::is_x86_feature_detected as has;
            let avx2 = has!("avx2") && has!("fma") && has!("f16c");
            if avx2 {
                all.push(Self::Avx2);
            }
            if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
                all.push(Self::Avx512);
                if has!("avx512bf16") {
                    all.push(Self::Avx512Bf16);
                }
            }
        }
        all
    }

    /// The widest instruction set that this machine has, but for those that are known to be slow.
    pub fn detect() -> Self {
        let mut all = Self::available();
        #[cfg(target_arch = "x86_64")]
        if !dots_are_fast() {
            all.retain(|&isa| isa != Self::Avx512Bf16);
        }
        all.pop().unwrap_or(Self::Plain)
    }

    /// The name used on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    ///
    /// The set must be one that [`Isa::available`] lists: [`Cpu`](crate::target::cpu::Cpu) sees to it.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn avx512<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: this function has the instructions that Avx512 uses.
            unsafe { kernel.run::<x86::Avx512>() }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        fn avx512bf16<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: this function has the instructions that Avx512Bf16 uses.
            unsafe { kernel.run::<x86::Avx512Bf16>() }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        fn avx2<K: Kernel>(kernel: K) -> K::Output {
            // SAFETY: this function has the instructions that Avx2 uses.
            unsafe { kernel.run::<x86::Avx2>() }
        }
        match self {
            // SAFETY: Plain needs no instruction beyond the baseline.
            Self::Plain => unsafe { kernel.run::<Plain>() },
            // SAFETY: AArch64 has Advanced SIMD in its baseline.
            #[cfg(target_arch = "aarch64")]
            Self::Neon => unsafe { kernel.run::<arm::Neon>() },
            // SAFETY: the caller's Isa comes from `available`, which asked the CPU.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16 if K::PAIRS => unsafe { avx512bf16(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx512Bf16 => unsafe { avx512(kernel) },
        }
    }
}

/// Whether a dot product of pairs of bf16 is taken to be worth it: on AMD's CPUs only. On Intel's Emerald Rapids it takes four
/// times as long as a multiply-add of f32, which does half its work (benches/README.md).
#[cfg(target_arch = "x86_64")]
fn dots_are_fast() -> bool {
    #[allow(unused_unsafe, reason = "older compilers ask for it")]
    // SAFETY: every x86-64 CPU has the instruction.
    let id = unsafe { std::arch::x86_64::__cpuid(0) };
    [id.ebx, id.edx, id.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD"
}

/// Orders what [`Simd::stream`] wrote before all that this thread writes later.
#[inline]
pub(crate) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is in the baseline of x86-64.
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

/// A computation that can be compiled for any instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Output;
    /// Whether it asks for [`Simd::dot`]: others are not compiled once more for the sets that have it.
    const PAIRS: bool = false;
    /// The computation. Implementations are `#[inline(always)]`.
    ///
    /// # Safety
    /// The CPU has the instructions of `S`.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// A vector of `LANES` floats.
///
/// # Safety of its functions
/// The CPU has the instruction set, and pointers are valid for the lanes they touch; no alignment beyond
/// that of the element is needed.
#[allow(clippy::missing_safety_doc, reason = "one contract for all functions, stated on the trait")]
pub(crate) trait Simd: Copy + 'static {
    /// The register.
    type V: Copy;
    /// Floats in a register.
    const LANES: usize;
    /// Registers that a kernel may keep live.
    const REGISTERS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// The first `n` lanes; the others are 0 and their memory is not touched.
    unsafe fn load_n(p: *const f32, n: usize) -> Self::V;
    /// The first `n` lanes; the memory of the others is not touched.
    unsafe fn store_n(p: *mut f32, v: Self::V, n: usize);
    /// As `store`, past the caches where the hardware can; `p` is aligned to the register, and [`fence`]
    /// comes before another thread reads.
    #[inline(always)]
    unsafe fn stream(p: *mut f32, v: Self::V) {
        // SAFETY: the caller's contract.
        unsafe { Self::store(p, v) }
    }
    unsafe fn load_f16(p: *const f16) -> Self::V;
    unsafe fn store_f16(p: *mut f16, v: Self::V);
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    unsafe fn store_bf16(p: *mut bf16, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`, rounded once where the hardware can.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The larger; a NaN in `b` is kept, one in `a` gives `b`.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; a NaN in `b` is kept, one in `a` gives `b`.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    /// `a` where `x <= limit`, elsewhere `b`; what is not chosen does not matter, be it NaN.
    unsafe fn choose(x: Self::V, limit: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// The magnitude of `a` with the sign of `b`.
    unsafe fn copysign(a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^a` for integral `a` in -126..=127; 0 of -127.
    unsafe fn pow2(a: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;

    /// Whether there are [`Simd::pair`] and [`Simd::dot`]: nobody may call them where there are not.
    const PAIRS: bool = false;
    /// Each lane the bits of two bf16, `low` in the lower half, rounded to nearest; what is below the smallest normal number
    /// becomes 0.
    #[inline(always)]
    unsafe fn pair(_low: Self::V, _high: Self::V) -> Self::V {
        unreachable!("asked for what `PAIRS` says is not there")
    }
    /// `a.low * b.low + a.high * b.high + c` of pairs, accumulated in f32; what is below the smallest normal number counts as 0.
    #[inline(always)]
    unsafe fn dot(_a: Self::V, _b: Self::V, _c: Self::V) -> Self::V {
        unreachable!("asked for what `PAIRS` says is not there")
    }

    /// A full register from any dtype.
    #[inline(always)]
    unsafe fn get<T: Float>(p: *const T) -> Self::V {
        // SAFETY: the caller's contract; the dtype says which type T is.
        unsafe {
            match T::DTYPE {
                Dtype::F32 => Self::load(p.cast()),
                Dtype::F16 => Self::load_f16(p.cast()),
                Dtype::Bf16 => Self::load_bf16(p.cast()),
                Dtype::I32 | Dtype::U8 => unreachable!("no float"),
            }
        }
    }

    /// The first `n` lanes from any dtype; the others are 0.
    #[inline(always)]
    unsafe fn get_n<T: Float>(p: *const T, n: usize) -> Self::V {
        // SAFETY: the caller's contract; `all` holds a whole register of T.
        unsafe {
            if T::DTYPE as u8 == Dtype::F32 as u8 {
                return Self::load_n(p.cast(), n);
            }
            let mut all = [0u16; 16];
            std::ptr::copy_nonoverlapping(p.cast::<u16>(), all.as_mut_ptr(), n);
            Self::get(all.as_ptr().cast::<T>())
        }
    }

    /// A full register to any dtype, rounded to nearest even.
    #[inline(always)]
    unsafe fn put<T: Float>(p: *mut T, v: Self::V) {
        // SAFETY: the caller's contract; the dtype says which type T is.
        unsafe {
            match T::DTYPE {
                Dtype::F32 => Self::store(p.cast(), v),
                Dtype::F16 => Self::store_f16(p.cast(), v),
                Dtype::Bf16 => Self::store_bf16(p.cast(), v),
                Dtype::I32 | Dtype::U8 => unreachable!("no float"),
            }
        }
    }

    /// The first `n` lanes to any dtype, rounded to nearest even.
    #[inline(always)]
    unsafe fn put_n<T: Float>(p: *mut T, v: Self::V, n: usize) {
        // SAFETY: the caller's contract; `all` holds a whole register of T.
        unsafe {
            if T::DTYPE as u8 == Dtype::F32 as u8 {
                return Self::store_n(p.cast(), v, n);
            }
            let mut all = [0u16; 16];
            Self::put(all.as_mut_ptr().cast::<T>(), v);
            std::ptr::copy_nonoverlapping(all.as_ptr(), p.cast::<u16>(), n);
        }
    }

    /// Transposes `LANES` rows of `LANES` elements: element j of row i goes to `to + j * to_row + i`.
    /// Columns are written in ascending order, so they may overlap.
    #[inline(always)]
    unsafe fn transpose<T: Float>(from: *const T, from_row: usize, to: *mut f32, to_row: usize) {
        // SAFETY: the caller's contract, for LANES rows of LANES elements on both sides.
        unsafe {
            for j in 0..Self::LANES {
                for i in 0..Self::LANES {
                    *to.add(j * to_row + i) = (*from.add(i * from_row + j)).to_f32();
                }
            }
        }
    }

    /// e^a to within 2 ulp for a in -87..=88; 0 below, the largest power above; NaN stays NaN.
    ///
    /// Cody and Waite's reduction to |r| <= ln2/2, then a degree-6 Taylor-minimax polynomial.
    #[inline(always)]
    unsafe fn exp(a: Self::V) -> Self::V {
        // SAFETY: the caller's contract.
        unsafe {
            // min/max keep the second operand when the first is NaN, so `a` goes second.
            let x = Self::min(Self::splat(88.37), Self::max(Self::splat(-87.33), a));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut q = Self::splat(1.987_569_1e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                q = Self::fma(q, r, Self::splat(c));
            }
            let e = Self::add(Self::fma(q, Self::mul(r, r), r), Self::splat(1.0));
            // 2^n in two factors: n reaches 127.5 rounded to 128, which one factor cannot hold.
            let half = Self::round(Self::mul(n, Self::splat(0.5)));
            Self::mul(Self::mul(e, Self::pow2(half)), Self::pow2(Self::sub(n, half)))
        }
    }
}

/// Eight floats in an array: the fallback, and the form that Miri can run.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Plain {
    #[inline(always)]
    fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
        std::array::from_fn(|i| f(a[i], b[i]))
    }
}

// SAFETY of the bodies: pointers are valid for the lanes touched, by the trait's contract.
#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract covers every body")]
impl Simd for Plain {
    type V = [f32; 8];
    const LANES: usize = 8;
    // Sixteen of 4 lanes, in pairs.
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_n(p: *const f32, n: usize) -> [f32; 8] {
        let mut v = [0.0; 8];
        unsafe { std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n) };
        v
    }
    #[inline(always)]
    unsafe fn store_n(p: *mut f32, v: [f32; 8], n: usize) {
        unsafe { std::ptr::copy_nonoverlapping(v.as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> [f32; 8] {
        unsafe { p.cast::<[f16; 8]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: [f32; 8]) {
        unsafe { p.cast::<[f16; 8]>().write_unaligned(v.map(f16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> [f32; 8] {
        unsafe { p.cast::<[bf16; 8]>().read_unaligned() }.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: [f32; 8]) {
        unsafe { p.cast::<[bf16; 8]>().write_unaligned(v.map(bf16::from_f32)) }
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| a / b)
    }
    // Two roundings: without FMA hardware `mul_add` is a library call per lane.
    #[inline(always)]
    unsafe fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn choose(x: [f32; 8], limit: [f32; 8], a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| if x[i] <= limit[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn abs(a: [f32; 8]) -> [f32; 8] {
        a.map(f32::abs)
    }
    #[inline(always)]
    unsafe fn copysign(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        Self::zip(a, b, f32::copysign)
    }
    #[inline(always)]
    unsafe fn round(a: [f32; 8]) -> [f32; 8] {
        // Adding and taking away 1.5 * 2^23 rounds |a| < 2^22 to nearest even without a library call.
        a.map(|x| (x + 12_582_912.0) - 12_582_912.0)
    }
    #[inline(always)]
    unsafe fn pow2(a: [f32; 8]) -> [f32; 8] {
        a.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn sum(a: [f32; 8]) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Float, Simd, bf16, f16};
    use std::arch::x86_64::*;
    use std::mem::transmute;

    /// 16 lanes, with or without products of pairs of bf16.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512With<const PAIRS: bool>;
    pub(crate) type Avx512 = Avx512With<false>;
    pub(crate) type Avx512Bf16 = Avx512With<true>;
    /// 8 lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2;

    #[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract covers every body")]
    impl<const PAIRS: bool> Simd for Avx512With<PAIRS> {
        type V = __m512;
        const LANES: usize = 16;
        const REGISTERS: usize = 32;
        const PAIRS: bool = PAIRS;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn stream(p: *mut f32, v: __m512) {
            unsafe { _mm512_stream_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> __m512 {
            unsafe { _mm512_maskz_loadu_ps(((1u32 << n) - 1) as __mmask16, p) }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: __m512, n: usize) {
            unsafe { _mm512_mask_storeu_ps(p, ((1u32 << n) - 1) as __mmask16, v) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> __m512 {
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
        }
        #[inline(always)]
        unsafe fn store_f16(p: *mut f16, v: __m512) {
            unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut bf16, v: __m512) {
            unsafe {
                let u = _mm512_castps_si512(v);
                let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(u), _mm512_set1_epi32(1));
                let up = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
                // A NaN must not round up to infinity: set its quiet bit instead.
                let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
                let quiet = _mm512_or_si512(u, _mm512_set1_epi32(1 << 22));
                let r = _mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(up, nan, quiet));
                _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(r));
            }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn choose(x: __m512, limit: __m512, a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LE_OQ>(x, limit), b, a) }
        }
        #[inline(always)]
        unsafe fn abs(a: __m512) -> __m512 {
            unsafe { _mm512_abs_ps(a) }
        }
        #[inline(always)]
        unsafe fn copysign(a: __m512, b: __m512) -> __m512 {
            unsafe {
                let sign = _mm512_set1_ps(-0.0);
                _mm512_or_ps(_mm512_andnot_ps(sign, a), _mm512_and_ps(sign, b))
            }
        }
        #[inline(always)]
        unsafe fn round(a: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<0>(a) }
        }
        #[inline(always)]
        unsafe fn pow2(a: __m512) -> __m512 {
            unsafe {
                let n = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(n))
            }
        }
        #[inline(always)]
        unsafe fn pair(low: __m512, high: __m512) -> __m512 {
            unsafe {
                let low = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(low));
                let high = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(high));
                let high = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high));
                _mm512_castsi512_ps(_mm512_or_si512(_mm512_cvtepu16_epi32(low), high))
            }
        }
        #[inline(always)]
        unsafe fn dot(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_dpbf16_ps(c, transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) }
        }
        #[inline(always)]
        unsafe fn sum(a: __m512) -> f32 {
            unsafe { _mm512_reduce_add_ps(a) }
        }
        #[inline(always)]
        unsafe fn transpose<T: Float>(from: *const T, from_row: usize, to: *mut f32, to_row: usize) {
            unsafe {
                // Four rows at a time as 4x4 blocks: r[4q + c] then holds, in its 128-bit lane b, column
                // 4b + c of rows 4q..4q+4.
                let mut r = [_mm512_setzero_ps(); 16];
                for q in 0..4 {
                    let row = |i: usize| Self::get(from.add((4 * q + i) * from_row));
                    let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                    let (ab, cd) = (_mm512_unpacklo_ps(a, b), _mm512_unpacklo_ps(c, d));
                    r[4 * q] = _mm512_shuffle_ps::<0x44>(ab, cd);
                    r[4 * q + 1] = _mm512_shuffle_ps::<0xee>(ab, cd);
                    let (ab, cd) = (_mm512_unpackhi_ps(a, b), _mm512_unpackhi_ps(c, d));
                    r[4 * q + 2] = _mm512_shuffle_ps::<0x44>(ab, cd);
                    r[4 * q + 3] = _mm512_shuffle_ps::<0xee>(ab, cd);
                }
                // Then the 128-bit lanes as a 4x4 block of their own.
                let mut t = [_mm512_setzero_ps(); 16];
                for c in 0..4 {
                    let lo = _mm512_shuffle_f32x4::<0x44>(r[c], r[4 + c]);
                    let hi = _mm512_shuffle_f32x4::<0xee>(r[c], r[4 + c]);
                    let lo2 = _mm512_shuffle_f32x4::<0x44>(r[8 + c], r[12 + c]);
                    let hi2 = _mm512_shuffle_f32x4::<0xee>(r[8 + c], r[12 + c]);
                    t[c] = _mm512_shuffle_f32x4::<0x88>(lo, lo2);
                    t[4 + c] = _mm512_shuffle_f32x4::<0xdd>(lo, lo2);
                    t[8 + c] = _mm512_shuffle_f32x4::<0x88>(hi, hi2);
                    t[12 + c] = _mm512_shuffle_f32x4::<0xdd>(hi, hi2);
                }
                for (j, column) in t.into_iter().enumerate() {
                    Self::store(to.add(j * to_row), column);
                }
            }
        }
    }

    impl Avx2 {
        /// All ones in the first `n` lanes.
        #[inline(always)]
        unsafe fn mask(n: usize) -> __m256i {
            static ONES_THEN_ZEROS: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
            // SAFETY: n <= 8 by the trait's contract, so eight words from 8 - n on are inside the table.
            unsafe { _mm256_loadu_si256(ONES_THEN_ZEROS.as_ptr().add(8 - n).cast()) }
        }
    }

    #[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract covers every body")]
    impl Simd for Avx2 {
        type V = __m256;
        const LANES: usize = 8;
        const REGISTERS: usize = 16;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m256 {
            unsafe { _mm256_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m256 {
            unsafe { _mm256_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m256) {
            unsafe { _mm256_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn stream(p: *mut f32, v: __m256) {
            unsafe { _mm256_stream_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> __m256 {
            unsafe { _mm256_maskload_ps(p, Self::mask(n)) }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: __m256, n: usize) {
            unsafe { _mm256_maskstore_ps(p, Self::mask(n), v) }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> __m256 {
            unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
        }
        #[inline(always)]
        unsafe fn store_f16(p: *mut f16, v: __m256) {
            unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> __m256 {
            unsafe {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut bf16, v: __m256) {
            unsafe {
                let u = _mm256_castps_si256(v);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(u), _mm256_set1_epi32(1));
                let up = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
                // A NaN must not round up to infinity: set its quiet bit instead.
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
                let quiet = _mm256_or_si256(u, _mm256_set1_epi32(1 << 22));
                let r = _mm256_srli_epi32::<16>(_mm256_blendv_epi8(up, quiet, nan));
                // packus works within halves of the register: gather the two useful quarters.
                let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(r, r));
                _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
            }
        }
        #[inline(always)]
        unsafe fn add(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_sub_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
            unsafe { _mm256_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn max(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn choose(x: __m256, limit: __m256, a: __m256, b: __m256) -> __m256 {
            unsafe { _mm256_blendv_ps(b, a, _mm256_cmp_ps::<_CMP_LE_OQ>(x, limit)) }
        }
        #[inline(always)]
        unsafe fn abs(a: __m256) -> __m256 {
            unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), a) }
        }
        #[inline(always)]
        unsafe fn copysign(a: __m256, b: __m256) -> __m256 {
            unsafe {
                let sign = _mm256_set1_ps(-0.0);
                _mm256_or_ps(_mm256_andnot_ps(sign, a), _mm256_and_ps(sign, b))
            }
        }
        #[inline(always)]
        unsafe fn round(a: __m256) -> __m256 {
            unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        unsafe fn pow2(a: __m256) -> __m256 {
            unsafe {
                let n = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(n))
            }
        }
        #[inline(always)]
        unsafe fn transpose<T: Float>(from: *const T, from_row: usize, to: *mut f32, to_row: usize) {
            unsafe {
                // r[4q + c] holds, in its 128-bit lane b, column 4b + c of rows 4q..4q+4.
                let mut r = [_mm256_setzero_ps(); 8];
                for q in 0..2 {
                    let row = |i: usize| Self::get(from.add((4 * q + i) * from_row));
                    let (a, b, c, d) = (row(0), row(1), row(2), row(3));
                    let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
                    r[4 * q] = _mm256_shuffle_ps::<0x44>(ab, cd);
                    r[4 * q + 1] = _mm256_shuffle_ps::<0xee>(ab, cd);
                    let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
                    r[4 * q + 2] = _mm256_shuffle_ps::<0x44>(ab, cd);
                    r[4 * q + 3] = _mm256_shuffle_ps::<0xee>(ab, cd);
                }
                for c in 0..4 {
                    Self::store(to.add(c * to_row), _mm256_permute2f128_ps::<0x20>(r[c], r[4 + c]));
                }
                for c in 0..4 {
                    Self::store(to.add((4 + c) * to_row), _mm256_permute2f128_ps::<0x31>(r[c], r[4 + c]));
                }
            }
        }
        #[inline(always)]
        unsafe fn sum(a: __m256) -> f32 {
            unsafe {
                let q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
                let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
                _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::{Simd, bf16, f16};
    use std::arch::aarch64::*;

    /// 4 lanes.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon;

    #[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract covers every body")]
    impl Simd for Neon {
        type V = float32x4_t;
        const LANES: usize = 4;
        const REGISTERS: usize = 32;

        #[inline(always)]
        unsafe fn splat(x: f32) -> float32x4_t {
            unsafe { vdupq_n_f32(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> float32x4_t {
            unsafe { vld1q_f32(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: float32x4_t) {
            unsafe { vst1q_f32(p, v) }
        }
        #[inline(always)]
        unsafe fn load_n(p: *const f32, n: usize) -> float32x4_t {
            let mut v = [0.0f32; 4];
            unsafe {
                std::ptr::copy_nonoverlapping(p, v.as_mut_ptr(), n);
                vld1q_f32(v.as_ptr())
            }
        }
        #[inline(always)]
        unsafe fn store_n(p: *mut f32, v: float32x4_t, n: usize) {
            let mut all = [0.0f32; 4];
            unsafe {
                vst1q_f32(all.as_mut_ptr(), v);
                std::ptr::copy_nonoverlapping(all.as_ptr(), p, n);
            }
        }
        #[inline(always)]
        unsafe fn load_f16(p: *const f16) -> float32x4_t {
            let v = unsafe { p.cast::<[f16; 4]>().read_unaligned() }.map(f16::to_f32);
            unsafe { vld1q_f32(v.as_ptr()) }
        }
        #[inline(always)]
        unsafe fn store_f16(p: *mut f16, v: float32x4_t) {
            let mut all = [0.0f32; 4];
            unsafe {
                vst1q_f32(all.as_mut_ptr(), v);
                p.cast::<[f16; 4]>().write_unaligned(all.map(f16::from_f32));
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const bf16) -> float32x4_t {
            unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn store_bf16(p: *mut bf16, v: float32x4_t) {
            let mut all = [0.0f32; 4];
            unsafe {
                vst1q_f32(all.as_mut_ptr(), v);
                p.cast::<[bf16; 4]>().write_unaligned(all.map(bf16::from_f32));
            }
        }
        #[inline(always)]
        unsafe fn add(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vaddq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn sub(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vsubq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vmulq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vdivq_f32(a, b) }
        }
        #[inline(always)]
        unsafe fn fma(a: float32x4_t, b: float32x4_t, c: float32x4_t) -> float32x4_t {
            unsafe { vfmaq_f32(c, a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
        }
        #[inline(always)]
        unsafe fn choose(x: float32x4_t, limit: float32x4_t, a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vcleq_f32(x, limit), a, b) }
        }
        #[inline(always)]
        unsafe fn abs(a: float32x4_t) -> float32x4_t {
            unsafe { vabsq_f32(a) }
        }
        #[inline(always)]
        unsafe fn copysign(a: float32x4_t, b: float32x4_t) -> float32x4_t {
            unsafe { vbslq_f32(vdupq_n_u32(1 << 31), b, a) }
        }
        #[inline(always)]
        unsafe fn round(a: float32x4_t) -> float32x4_t {
            unsafe { vrndnq_f32(a) }
        }
        #[inline(always)]
        unsafe fn pow2(a: float32x4_t) -> float32x4_t {
            unsafe {
                let n = vaddq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(n))
            }
        }
        #[inline(always)]
        unsafe fn sum(a: float32x4_t) -> f32 {
            unsafe { vaddvq_f32(a) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp<'a>(&'a [f32], &'a mut [f32]);
    impl Kernel for Exp<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for (x, y) in self.0.chunks(S::LANES).zip(self.1.chunks_mut(S::LANES)) {
                // SAFETY: both chunks have `x.len()` lanes.
                unsafe { S::store_n(y.as_mut_ptr(), S::exp(S::load_n(x.as_ptr(), x.len())), x.len()) }
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp_everywhere() {
        let x: Vec<f32> = (0..=175_000).map(|i| -87.0 + i as f32 * 0.001).collect();
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; x.len()];
            isa.run(Exp(&x, &mut y));
            for (&x, &y) in x.iter().zip(&y) {
                let want = f64::from(x).exp();
                let error = (f64::from(y) - want).abs() / want * (1u64 << 23) as f64;
                assert!(error < 2.0, "{} exp({x}) = {y}, {error} ulp off", isa.name());
            }
            let mut edge = [0.0; 4];
            isa.run(Exp(&[f32::NAN, f32::NEG_INFINITY, -1e30, 100.0], &mut edge));
            assert!(edge[0].is_nan() && edge[1] < 2e-38 && edge[2] < 2e-38 && edge[3] > 1e38, "{edge:?}");
        }
    }

    struct Choose<'a>(&'a [f32; 16], &'a mut [f32; 16]);
    impl Kernel for Choose<'_> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for i in (0..16).step_by(S::LANES) {
                // SAFETY: both sides hold 16 floats, a multiple of the lanes.
                unsafe {
                    let x = S::load(self.0.as_ptr().add(i));
                    let y = S::choose(x, S::splat(1.0), S::splat(-7.0), S::mul(x, S::splat(2.0)));
                    S::store(self.1.as_mut_ptr().add(i), y);
                }
            }
        }
    }

    #[test]
    fn choosing_keeps_nothing_of_what_is_not_chosen() {
        let x = [
            1.0,
            1.0000001,
            f32::NEG_INFINITY,
            f32::NAN,
            3.0,
            -0.0,
            f32::INFINITY,
            0.5,
            1.0,
            2.0,
            0.0,
            9.0,
            -1.0,
            5.0,
            1.5,
            f32::NAN,
        ];
        let want = x.map(|x| if x <= 1.0 { -7.0 } else { 2.0 * x });
        for isa in Isa::available() {
            let mut y = [0.0; 16];
            isa.run(Choose(&x, &mut y));
            assert_eq!(y.map(f32::to_bits), want.map(f32::to_bits), "{}", isa.name());
        }
    }

    struct Transpose<'a, T>(&'a [T], &'a mut [f32]);
    impl<T: Float> Kernel for Transpose<'_, T> {
        type Output = usize;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> usize {
            assert!(self.0.len() >= S::LANES * 17 && self.1.len() >= S::LANES * 19);
            // SAFETY: both sides hold LANES rows of LANES elements at these strides.
            unsafe { S::transpose(self.0.as_ptr(), 17, self.1.as_mut_ptr(), 19) };
            S::LANES
        }
    }

    fn transposes<T: Float>() {
        let x: Vec<T> = (0..17 * 16).map(|i| T::from_f32((i % 251) as f32)).collect();
        for isa in Isa::available() {
            let mut y = vec![f32::NAN; 19 * 16];
            let lanes = isa.run(Transpose(&x, &mut y));
            for (i, j) in (0..lanes * lanes).map(|e| (e / lanes, e % lanes)) {
                assert_eq!(y[j * 19 + i], x[i * 17 + j].to_f32(), "{} row {i} column {j}", isa.name());
            }
        }
    }

    #[test]
    fn blocks_transpose() {
        transposes::<f32>();
        transposes::<f16>();
        transposes::<bf16>();
    }

    struct Through<'a, T>(&'a [f32], &'a mut [T], &'a mut [f32]);
    impl<T: Float> Kernel for Through<'_, T> {
        type Output = ();
        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            let n = self.0.len();
            for i in (0..n).step_by(S::LANES) {
                let m = S::LANES.min(n - i);
                // SAFETY: lanes i..i+m are inside all three slices.
                unsafe {
                    S::put_n(self.1.as_mut_ptr().add(i), S::load_n(self.0.as_ptr().add(i), m), m);
                    S::store_n(self.2.as_mut_ptr().add(i), S::get_n(self.1.as_ptr().add(i), m), m);
                }
            }
        }
    }

    struct Dot<'a>(&'a [f32; 64], &'a mut [f32; 16]);
    impl Kernel for Dot<'_> {
        type Output = bool;
        const PAIRS: bool = true;
        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> bool {
            if S::PAIRS {
                // SAFETY: both arrays hold whole registers of no more than 16 lanes.
                unsafe {
                    let x = self.0.as_ptr();
                    let a = S::pair(S::load(x), S::load(x.add(16)));
                    let b = S::pair(S::load(x.add(32)), S::load(x.add(48)));
                    S::store(self.1.as_mut_ptr(), S::dot(a, b, S::splat(0.5)));
                }
            }
            S::PAIRS
        }
    }

    #[test]
    fn pairs_are_multiplied() {
        let mut x = [0.0; 64];
        for (i, x) in x.iter_mut().enumerate() {
            *x = (i as f32 * 0.37).sin() * 3.0;
        }
        x[5] = f32::INFINITY;
        x[6] = f32::NAN;
        let b = |i: usize| bf16::from_f32(x[i]).to_f32();
        for isa in Isa::available() {
            let mut y = [0.0; 16];
            if !isa.run(Dot(&x, &mut y)) {
                continue;
            }
            for (i, y) in y.into_iter().enumerate() {
                let want = 0.5 + b(i) * b(32 + i) + b(16 + i) * b(48 + i);
                assert!(
                    (y - want).abs() < 1e-5 || y == want || y.is_nan() && want.is_nan(),
                    "{i}: {y} {want}"
                );
            }
        }
    }

    fn conversions_match<T: Float + PartialEq + std::fmt::Debug>() {
        let x: Vec<f32> = (0..10_007u32)
            .map(|i| f32::from_bits(i.wrapping_mul(429_496_729)))
            .chain([
                0.0,
                -0.0,
                65_519.9,
                65_520.0,
                f32::INFINITY,
                f32::NAN,
                f32::from_bits(0x7f80_0001),
                1e-45,
            ])
            .collect();
        for isa in Isa::available() {
            let mut y = vec![T::from_f32(0.0); x.len()];
            let mut z = vec![0.0; x.len()];
            isa.run(Through(&x, &mut y, &mut z));
            for ((&x, &y), &z) in x.iter().zip(&y).zip(&z) {
                let want = T::from_f32(x);
                let same = y == want || (x.is_nan() && y.to_f32().is_nan());
                assert!(same, "{} {x:e} became {y:?}, wanted {want:?}", isa.name());
                assert!(z == y.to_f32() || z.is_nan() && y.to_f32().is_nan());
            }
        }
    }

    #[test]
    fn sixteen_bit_conversions_round_to_nearest_even() {
        conversions_match::<f16>();
        conversions_match::<bf16>();
        conversions_match::<f32>();
    }
}
