//! Explains the decision of an image classifier: class activation maps, gradients and layer-wise relevance propagation,
//! sharpened by UCAG (Hong, Nam, Jeon and Lee, *Unfold and Conquer Attribution Guidance*, AAAI 2023). On NVIDIA GPUs with
//! the feature `cuda`, on the CPU everywhere.
//!
//! ```no_run
//! use ucag::{Explainer, Target, io::Photo};
//!
//! let mut explainer = Explainer::builder("weights/vgg16-everyday.safetensors").method("grad-cam").build()?;
//! let photo = Photo::open("cat.jpg")?;
//! let explanation = explainer.explain(&photo.frame(), &Target::Top(1))?;
//! let class = &explanation.classes[0];
//! println!("{}: {:.1} %, map of {}×{}", class.label, 100.0 * class.probability, class.map().w, class.map().h);
//! # Ok::<(), ucag::Error>(())
//! ```
//!
//! One direction, from pixels to a map. Each arrow is one step with one type on either side:
//!
//! ```text
//! Frame            borrowed pixels, any stride                                  frame
//!   │ resize       antialiased, to the size at which the picture is explained
//! Working
//!   │ unfold       crop + scale + normalise, all patches of the grid            grid, backend
//! [S, h, w, 3]
//!   │ forward      fused convolutions; keeps what the method reads              net, models, engine
//! logits [S, classes], activations
//!   │ method       walk down by rules, reductions over channels                 methods, engine
//! maps [S·K, h', w'], probabilities [S, K]
//!   │ fold         weight exp(p), scale back, overlap-add ÷ coverage            grid, backend
//! Explanation      raw signed map [H, W] for each of K classes                  explainer, map
//!   │ render       normalise, colour, lay over the photo                        render, palette, io
//! Picture
//! ```
//!
//! The library never prints, and every input error is an [`Error`] that names the object, what was expected and what was
//! found.

mod aligned;
#[doc(hidden)]
pub mod backend;
mod builder;
mod device;
#[doc(hidden)]
pub mod engine;
mod error;
mod explainer;
mod explanation;
mod frame;
pub mod grid;
pub mod io;
mod machine;
mod map;
pub mod methods;
pub mod models;
pub mod net;
pub mod palette;
pub mod render;
mod resize;
mod runner;

pub use backend::{Ceilings, Work};
pub use builder::Builder;
pub use device::{Device, Gpu, Precision, gpus};
pub use engine::{Check, Floor, Floors, LayerTime, StageTimes};
pub use error::{Error, ErrorKind, Misfit, Result};
pub use explainer::{Explainer, Maps, Target};
pub use explanation::{ClassExplanation, Explanation, Times};
pub use frame::{Fit, Frame, PixelFormat, Working};
pub use grid::{Grid, Mode};
pub use map::{Map, Status};
pub use models::Network;
pub use resize::resize;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
