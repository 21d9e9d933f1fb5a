//! The engine on the device that was chosen, and what that device offers.

use std::sync::Arc;

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
#[cfg(feature = "cuda")]
use crate::backend::cuda::{self, Cuda};
use crate::device::{Device, Precision};
use crate::engine::{Engine, Floors, LayerTime, Output, Request};
use crate::error::Result;
use crate::frame::Frame;
use crate::models::Network;

/// An engine on the device that was chosen.
pub(crate) enum Runner {
    Cpu(Box<Engine<Cpu>>),
    #[cfg(feature = "cuda")]
    Cuda(Box<Engine<Cuda>>),
}

/// What a device offers to plans.
pub(crate) struct Budget {
    /// Bytes of working memory.
    pub memory: u64,
    /// Bytes beyond which larger batches do not pay.
    pub comfortable: u64,
    /// Patches that keep it busy.
    pub batch: usize,
}

/// The same expression for the engine of every device.
macro_rules! on {
    ($runner:expr, $engine:ident => $value:expr) => {
        match $runner {
            Runner::Cpu($engine) => $value,
            #[cfg(feature = "cuda")]
            Runner::Cuda($engine) => $value,
        }
    };
}

impl Runner {
    /// # Errors
    /// When the device cannot be used or does not have the precision.
    pub fn new(
        network: &Arc<Network>,
        device: Device,
        precision: Option<Precision>,
        threads: usize,
        winograd: bool,
    ) -> Result<Self> {
        let graph = || Arc::new(network.graph.clone());
        #[cfg(feature = "cuda")]
        {
            let new = |number| Cuda::new(graph(), number).map(|cuda| Engine::new(network.clone(), cuda));
            // Where none can be used, the first one's reason is told.
            let other = || (1..cuda::count().unwrap_or(0)).find_map(|number| new(number).ok());
            match device {
                Device::Cuda(number) => {
                    Precision::F16.check(precision, device)?;
                    return Ok(Self::Cuda(Box::new(new(number)?)));
                }
                Device::Auto if precision != Some(Precision::F32) => {
                    match new(0).or_else(|error| other().ok_or(error)) {
                        Ok(engine) => return Ok(Self::Cuda(Box::new(engine))),
                        // Only a GPU has the precision that was asked for.
                        Err(error) if precision.is_some() => return Err(error),
                        // Why there is no GPU is told where it is asked for, by `gpus`.
                        Err(_) => {}
                    }
                }
                Device::Auto | Device::Cpu => {}
            }
        }
        #[cfg(not(feature = "cuda"))]
        if let Device::Cuda(_) = device {
            return Err(crate::device::missing());
        }
        Precision::F32.check(precision, Device::Cpu)?;
        Ok(Self::Cpu(Box::new(Engine::new(network.clone(), Cpu::new(graph(), threads)?.winograd(winograd)))))
    }

    /// # Errors
    /// When the device fails.
    pub fn budget(&self, threads: usize) -> Result<Budget> {
        /// Weights of fully connected layers are read once for as many patches.
        const BATCH: usize = 12;
        /// More would only leave the caches.
        const COMFORTABLE: u64 = 336 << 20;
        Ok(match self {
            Self::Cpu(_) => Budget {
                memory: crate::machine::memory() / 4,
                comfortable: COMFORTABLE,
                batch: (2 * threads).max(BATCH),
            },
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => {
                let memory = engine.backend().free_memory()?;
                Budget { memory, comfortable: u64::MAX, batch: usize::MAX }
            }
        })
    }

    /// As [`Engine::run`].
    pub fn run(
        &mut self,
        request: &Request,
        frame: &Frame<'_>,
        classes: Option<&[usize]>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Output> {
        on!(self, engine => engine.run(request, frame, classes, progress))
    }

    /// As [`Engine::layers`].
    pub fn layers(&mut self) -> Result<Vec<LayerTime>> {
        on!(self, engine => engine.layers())
    }

    /// As [`Engine::floors`].
    pub fn floors(&mut self) -> Result<Option<Floors>> {
        on!(self, engine => engine.floors())
    }

    /// As [`Backend::allocated`].
    pub fn allocated(&self) -> u64 {
        on!(self, engine => engine.backend().allocated())
    }

    /// Where it computes.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu(_) => Device::Cpu,
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => Device::Cuda(engine.backend().number()),
        }
    }

    /// In how many bits activations are stored.
    pub fn precision(&self) -> Precision {
        match self {
            Self::Cpu(_) => Precision::F32,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => Precision::F16,
        }
    }

    /// Why a GPU runs step by step, where it does.
    pub fn note(&self) -> Option<&str> {
        match self {
            Self::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => engine.backend().note(),
        }
    }

    /// The GPU's name, where it is one.
    pub fn gpu_name(&self) -> Option<String> {
        match self {
            Self::Cpu(_) => None,
            #[cfg(feature = "cuda")]
            Self::Cuda(engine) => Some(engine.backend().name().unwrap_or_default()),
        }
    }
}
