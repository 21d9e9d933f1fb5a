//! Where to compute, and what there is to compute on.

use std::fmt;
use std::str::FromStr;

use crate::error::{ErrorKind, Result};

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The first usable GPU, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |n: &str| n.parse().map(Self::Cuda).ok();
        let known = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(number),
        };
        known.ok_or_else(|| format!("expected auto, cpu, cuda or cuda:N, found `{text}`"))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// In how many bits a network's activations are stored. Sums, gradients, relevance and maps have 32 everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits, on the CPU.
    F32,
    /// 16 bits, on GPUs.
    F16,
}

impl Precision {
    /// Fails where a device does not store activations in the precision asked for.
    pub(crate) fn check(self, asked: Option<Self>, device: Device) -> Result<()> {
        match asked {
            Some(asked) if asked != self => {
                let problem = format!("{device} stores activations in {self}, not in {asked}");
                Err(ErrorKind::Option { option: "precision", problem }.into())
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        })
    }
}

/// A GPU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number, as [`Device::Cuda`] takes it.
    pub number: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of its memory, and how many of them are free; zeros where it cannot be opened.
    pub memory: (u64, u64),
    /// Why it cannot be used, if so.
    pub problem: Option<String>,
}

/// All GPUs of this machine.
///
/// # Errors
/// Says why there can be none: no driver, one that is too old, or a build without the feature `cuda`.
pub fn gpus() -> Result<Vec<Gpu>> {
    #[cfg(feature = "cuda")]
    return crate::backend::cuda::gpus();
    #[cfg(not(feature = "cuda"))]
    Err(missing())
}

/// This build cannot use GPUs.
#[cfg(not(feature = "cuda"))]
pub(crate) fn missing() -> crate::Error {
    let problem = "this program was built without GPU support; build it with `--features cuda`".into();
    ErrorKind::Device { device: "cuda".into(), problem }.into()
}
