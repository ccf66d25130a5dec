//! The ceilings of a device, measured by an op of its own: how fast it multiplies and adds, and how fast
//! it moves memory. Percentages in reports are of these.

use super::timing::{Timing, time};
use crate::cpu::simd::{Kernel, Simd};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::op::{Caps, Consts, Cost, Op, Plan, Signature, check, fold_grid};
use crate::target::cpu::Cpu;
use crate::tensor::{Device, Tensor};
use crate::view::View;

/// What to measure.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Probe {
    /// Every element runs [`CHAINS`] independent chains of this many fused multiply-adds.
    Fma(u32),
    /// `out = x`.
    Copy,
}

/// Independent chains per element: enough to hide the latency of two FMA pipes of four cycles.
const CHAINS: u32 = 8;

crate::operands! {
    /// Operands of the probe.
    pub struct ProbeArgs {
        /// Copied; absent when multiply-adds are measured.
        x: optional,
        /// One element per thread.
        out: output,
    }
}

crate::params! {
    /// Scalars of the probe.
    pub struct ProbeParams {
        /// Elements.
        total: u32,
        /// Multiply-adds of each chain.
        loops: u32,
    }
}

const NAME: &str = "probe";

// SAFETY: every kernel stays inside the extents of its operands: the cross-check runs each of them between
// fences of NaN, and on a simulator that checks every access.
unsafe impl Op for Probe {
    const NAME: &'static str = NAME;
    const CUDA: &'static str = include_str!("../../kernels/common/probe.cu");
    const WGSL: &'static str = include_str!("../../shaders/common/probe.wgsl");
    type Args<I, O> = ProbeArgs<I, O>;
    type Params = ProbeParams;

    fn check<I, O>(&self, args: &ProbeArgs<I, O>) -> Result<ProbeParams> {
        let loops = match *self {
            Self::Fma(loops) => loops,
            Self::Copy => 0,
        };
        Ok(ProbeParams { total: check::scalar(NAME, "out", args.out.len())?, loops })
    }

    fn plan(&self, p: &ProbeParams, _: &Signature, caps: &Caps) -> Result<Plan> {
        let threads = 256.min(caps.max_threads);
        Ok(Plan {
            entry: NAME,
            consts: Consts::new().set("THREADS", threads).set("FMA", u32::from(p.loops > 0)),
            grid: fold_grid(NAME, u64::from(p.total).div_ceil(u64::from(threads)), caps)?,
            block: [threads, 1, 1],
            shared_bytes: 0,
        })
    }

    fn cost(&self, p: &ProbeParams, _: &Signature) -> Cost {
        let total = f64::from(p.total);
        match self {
            Self::Fma(loops) => Cost { flops: total * f64::from(CHAINS * loops) * 2.0, bytes: 4.0 * total },
            Self::Copy => Cost { flops: 0.0, bytes: 8.0 * total },
        }
    }

    unsafe fn cpu(&self, p: &ProbeParams, mut args: ProbeArgs<&[u8], &mut [u8]>, cpu: &Cpu) -> Result<()> {
        use crate::cpu::strided::{In, Out};
        let (total, pieces) = (p.total as usize, cpu.threads() * 4);
        let x = args.x.as_ref().map(In::<f32>::new);
        let out = Out::<f32>::new(&mut args.out);
        cpu.each(pieces, |i| {
            let range = total * i / pieces..total * (i + 1) / pieces;
            match x {
                // SAFETY: the pieces cut `total` elements of contiguous arrays, one piece a task.
                Some(x) => unsafe {
                    std::ptr::copy_nonoverlapping(x.at(range.start), out.at(range.start), range.len());
                },
                None => {
                    // SAFETY: as above.
                    let piece = unsafe { std::slice::from_raw_parts_mut(out.at(range.start), range.len()) };
                    cpu.isa().run(Chains { out: piece, loops: p.loops });
                }
            }
        });
        Ok(())
    }

    fn map<I, O, J, P>(
        args: ProbeArgs<I, O>,
        input: impl FnMut(&'static str, View<I>) -> Result<View<J>>,
        output: impl FnMut(&'static str, View<O>) -> Result<View<P>>,
    ) -> Result<ProbeArgs<J, P>> {
        args.try_map(input, output)
    }
}

/// The multiply-adds on the CPU: a register holds one chain of as many elements as it has lanes.
struct Chains<'a> {
    out: &'a mut [f32],
    loops: u32,
}

impl Kernel for Chains<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for chunk in self.out.chunks_mut(S::LANES) {
            // SAFETY: the caller has the instructions of S; the chunk has `chunk.len()` lanes.
            unsafe {
                // Opaque, or every chunk would be known to give the same and be computed once.
                let mut chains = [S::splat(std::hint::black_box(1.0)); CHAINS as usize];
                let (a, b) = (S::splat(0.999_9), S::splat(1e-4));
                for _ in 0..self.loops {
                    for chain in &mut chains {
                        *chain = S::fma(*chain, a, b);
                    }
                }
                let sum = chains.into_iter().fold(S::splat(0.0), |s, c| S::add(s, c));
                S::store_n(chunk.as_mut_ptr(), sum, chunk.len());
            }
        }
    }
}

/// The ceilings of a device, from the best of several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ceilings {
    /// f32 multiply-adds outside tensor cores, in GFLOP/s.
    pub gflops: f64,
    /// Copying between two arrays much larger than the caches, in GB/s (read plus written).
    pub gbs: f64,
}

/// Measures the ceilings of `device`; takes about a second.
///
/// # Errors
/// Whatever the device finds wrong; [`Error::Driver`] when it is out of memory.
pub fn ceilings(device: &Device) -> Result<Ceilings, Error> {
    // 16 MiB per array is past the last-level cache share of a core on software devices and large
    // enough to fill a GPU; multiply-adds need threads, not memory.
    let (wide, many) = (1 << 24, 1 << 16);
    let x = Tensor::new(device, Dtype::F32, &[wide])?;
    let mut out = Tensor::new(device, Dtype::F32, &[wide])?;
    let copy = measure(device, Probe::Copy, Some(&x), &mut out)?;
    let loops = if device.face() == "cpu" || device.is_software() { 1 << 8 } else { 1 << 14 };
    let mut small = Tensor::new(device, Dtype::F32, &[many])?;
    let fma = measure(device, Probe::Fma(loops), None, &mut small)?;
    let flops = f64::from(many as u32) * f64::from(CHAINS * loops) * 2.0;
    Ok(Ceilings { gflops: flops / fma.ms_min / 1e6, gbs: 8.0 * wide as f64 / copy.ms_min / 1e6 })
}

fn measure(device: &Device, probe: Probe, x: Option<&Tensor>, out: &mut Tensor) -> Result<Timing> {
    time(device, 0.4, || device.run(&probe, ProbeArgs { x: x.map(Tensor::view), out: out.view_mut() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_computes_what_its_recurrence_says() {
        let device = Device::cpu(2).unwrap();
        let mut out = Tensor::new(&device, Dtype::F32, &[1003]).unwrap();
        device.run(&Probe::Fma(50), ProbeArgs { x: None, out: out.view_mut() }).unwrap();
        let chain = (0..50).fold(1.0f64, |c, _| c * 0.9999 + 1e-4);
        for y in out.to_f32(&device).unwrap() {
            assert!((f64::from(y) - 8.0 * chain).abs() < 1e-4, "{y}");
        }
    }

    #[test]
    fn a_copy_copies() {
        let device = Device::cpu(2).unwrap();
        let values: Vec<f32> = (0..1003).map(|i| i as f32).collect();
        let x = Tensor::from_f32(&device, Dtype::F32, &[1003], &values).unwrap();
        let mut out = Tensor::new(&device, Dtype::F32, &[1003]).unwrap();
        device.run(&Probe::Copy, ProbeArgs { x: Some(x.view()), out: out.view_mut() }).unwrap();
        assert_eq!(out.to_f32(&device).unwrap(), values);
    }
}
