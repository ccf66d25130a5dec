//! The PTX simulator beside a GPU: every case of every op, the same PTX with the same arguments on both. Skipped
//! where there is no GPU, unless `ADVECT_REQUIRE` asks for `cuda`.
#![cfg(feature = "ptx-sim")]

use advect::target::cuda::Cuda;
use advect::verify::judge::Rounding;
use advect::verify::run::execute;
use advect::verify::{OpVisitor, Prepared, Verified, each_op, required};
use advect::{Device, Dtype};

/// How alike the memories were that both left.
#[derive(Default)]
struct Alike {
    cases: usize,
    /// Cases whose outputs are the same in every bit.
    same: usize,
    bytes: usize,
    same_bytes: usize,
}

struct Both {
    gpu: Device,
    simulated: Device,
    failures: Vec<String>,
}

impl OpVisitor for Both {
    fn visit<T: Verified>(&mut self) {
        for dtype in Dtype::FLOATS {
            let mut alike = Alike::default();
            for case in T::cases(dtype) {
                let prepared = Prepared::new(&case);
                let mut run = |device: &Device| {
                    let outputs = execute(device, &prepared).map_err(|e| e.to_string());
                    let judged =
                        outputs.and_then(|outputs| match prepared.judge(&outputs, Rounding::Exact).fault {
                            Some(fault) => Err(fault),
                            None => Ok(outputs.concat()),
                        });
                    judged
                        .map_err(|why| {
                            self.failures.push(format!(
                                "{} {dtype} [{}] {}: {why}",
                                T::NAME,
                                device.name(),
                                case.name
                            ));
                        })
                        .ok()
                };
                let (Some(a), Some(b)) = (run(&self.gpu), run(&self.simulated)) else { continue };
                alike.cases += 1;
                alike.same += usize::from(a == b);
                alike.bytes += a.len();
                alike.same_bytes += a.iter().zip(&b).filter(|(a, b)| a == b).count();
            }
            println!(
                "{} {dtype} on {}: {} of {} cases the same in every bit, {:.4} % of the bytes",
                T::NAME,
                self.gpu.name(),
                alike.same,
                alike.cases,
                100.0 * alike.same_bytes as f64 / alike.bytes.max(1) as f64
            );
        }
    }
}

fn compare(arch: u32) {
    let gpu = match Cuda::with_ptx(0, arch) {
        Ok(gpu) => Device::Cuda(gpu),
        Err(why) => {
            assert!(!required().iter().any(|face| face == "cuda"), "{why}");
            return println!("skipped: {why}");
        }
    };
    let simulated = Device::ptx_sim(arch).expect("NVRTC is here, as the GPU has it");
    let mut both = Both { gpu, simulated, failures: Vec::new() };
    each_op(&mut both);
    assert!(both.failures.is_empty(), "{}", both.failures.join("\n"));
}

#[test]
fn sm_75_computes_what_a_gpu_does() {
    compare(75);
}

#[test]
fn sm_80_computes_what_a_gpu_does() {
    compare(80);
}

#[test]
fn sm_90_computes_what_a_gpu_does() {
    compare(90);
}
