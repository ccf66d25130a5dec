//! `--device`: which device a command runs on.

use advect::Device;
use anyhow::Result;
use std::str::FromStr;

/// A device as named on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Choice {
    /// The first of: an NVIDIA GPU, a hardware adapter of wgpu, the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The adapter of this number.
    Wgpu(usize),
    /// The NVIDIA GPU of this number.
    Cuda(usize),
    /// A simulated NVIDIA GPU: of this architecture, or all that the tests use.
    PtxSim(Option<u32>),
}

/// The architectures that kernels are compiled for.
const ARCHITECTURES: [u32; 7] = [75, 80, 86, 89, 90, 100, 120];

impl FromStr for Choice {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let (kind, index) = s.split_once(':').map_or((s, None), |(kind, index)| (kind, Some(index)));
        let number =
            || index.unwrap_or("0").parse().map_err(|_| format!("`{s}`: a number follows the colon"));
        match kind {
            "auto" if index.is_none() => Ok(Self::Auto),
            "cpu" if index.is_none() => Ok(Self::Cpu),
            "wgpu" => Ok(Self::Wgpu(number()?)),
            "cuda" => Ok(Self::Cuda(number()?)),
            "ptx-sim" if index.is_none() => Ok(Self::PtxSim(None)),
            "ptx-sim" => {
                let arch = number().ok().and_then(|n| u32::try_from(n).ok());
                match arch.filter(|arch| ARCHITECTURES.contains(arch)) {
                    Some(arch) => Ok(Self::PtxSim(Some(arch))),
                    None => Err(format!("`{s}`: one of {ARCHITECTURES:?} follows the colon")),
                }
            }
            _ => Err("wanted auto, cpu, wgpu, wgpu:N, cuda, cuda:N, ptx-sim or ptx-sim:ARCH".into()),
        }
    }
}

/// `--threads`: few enough that they start at once.
pub(crate) fn threads(s: &str) -> Result<usize, String> {
    s.parse().ok().filter(|&n| n <= 512).ok_or_else(|| "wanted a number of threads from 0 to 512".into())
}

impl Choice {
    /// Opens the device; `threads` (0: one a core) is for the CPU.
    pub(crate) fn open(self, threads: usize) -> Result<Device> {
        let device = match self {
            Self::Auto => match nvidia_gpu().or_else(hardware_adapter) {
                Some(device) => device,
                None => Device::cpu(threads)?,
            },
            Self::Cpu => Device::cpu(threads)?,
            Self::Wgpu(index) => wgpu(index)?,
            Self::Cuda(index) => cuda(index)?,
            Self::PtxSim(arch) => ptx_sim(arch.unwrap_or(80))?,
        };
        Ok(device)
    }

    /// All the devices that this names: several for `ptx-sim`, of different architectures and orders of warps.
    pub(crate) fn open_all(self) -> Result<Vec<Device>> {
        match self {
            Self::PtxSim(None) => simulators(),
            one => Ok(vec![one.open(0)?]),
        }
    }
}

#[cfg(feature = "wgpu")]
fn wgpu(index: usize) -> Result<Device> {
    Ok(Device::wgpu(index)?)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu(_: usize) -> Result<Device> {
    anyhow::bail!("this advect was built without wgpu; build it with `--features wgpu`, or use --device cpu")
}

#[cfg(feature = "ptx-sim")]
fn ptx_sim(arch: u32) -> Result<Device> {
    Ok(Device::ptx_sim(arch)?)
}

#[cfg(feature = "ptx-sim")]
fn simulators() -> Result<Vec<Device>> {
    Ok(advect::verify::simulators()?)
}

#[cfg(not(feature = "ptx-sim"))]
fn simulators() -> Result<Vec<Device>> {
    ptx_sim(80).map(|device| vec![device])
}

#[cfg(not(feature = "ptx-sim"))]
fn ptx_sim(_: u32) -> Result<Device> {
    anyhow::bail!("this advect was built without the simulator; build it with `--features ptx-sim`")
}

#[cfg(feature = "cuda")]
fn cuda(ordinal: usize) -> Result<Device> {
    Ok(Device::cuda(ordinal)?)
}

#[cfg(not(feature = "cuda"))]
fn cuda(_: usize) -> Result<Device> {
    anyhow::bail!("this advect was built without cuda; build it with `--features cuda`, or use --device cpu")
}

/// The first NVIDIA GPU. One that is there and cannot be used is worth a word.
#[cfg(feature = "cuda")]
fn nvidia_gpu() -> Option<Device> {
    let there = advect::target::cuda::count().is_ok_and(|n| n > 0);
    let device = Device::cuda(0);
    if let Some(error) = device.as_ref().err().filter(|_| there) {
        eprintln!("note: the NVIDIA GPU is not used: {error}");
    }
    device.ok()
}

#[cfg(not(feature = "cuda"))]
fn nvidia_gpu() -> Option<Device> {
    None
}

/// The first adapter that is not a CPU in disguise.
#[cfg(feature = "wgpu")]
fn hardware_adapter() -> Option<Device> {
    use ::wgpu::DeviceType;
    let hardware = |a: &::wgpu::Adapter| {
        matches!(a.get_info().device_type, DeviceType::DiscreteGpu | DeviceType::IntegratedGpu)
    };
    let index = advect::target::wgpu::adapters().iter().position(hardware)?;
    Device::wgpu(index).ok()
}

#[cfg(not(feature = "wgpu"))]
fn hardware_adapter() -> Option<Device> {
    None
}

#[cfg(test)]
mod tests {
    use super::Choice;

    #[test]
    fn names() {
        let parsed = |s: &str| s.parse::<Choice>().ok();
        assert_eq!(parsed("auto"), Some(Choice::Auto));
        assert_eq!(parsed("cpu"), Some(Choice::Cpu));
        assert_eq!(parsed("wgpu"), Some(Choice::Wgpu(0)));
        assert_eq!(parsed("cuda:3"), Some(Choice::Cuda(3)));
        assert_eq!(parsed("ptx-sim"), Some(Choice::PtxSim(None)));
        assert_eq!(parsed("ptx-sim:75"), Some(Choice::PtxSim(Some(75))));
        for wrong in ["", "gpu", "cpu:0", "wgpu:", "wgpu:-1", "cuda:x", "auto:1", "ptx-sim:", "ptx-sim:81"] {
            assert_eq!(parsed(wrong), None, "{wrong}");
        }
    }
}
