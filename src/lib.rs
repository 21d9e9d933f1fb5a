//! `ucag` explains the decision of an image classifier.
#[doc(hidden)]
pub mod backend;
#[doc(hidden)]
pub mod engine;
mod error;
mod explainer;
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

pub use error::{Error, ErrorKind, Misfit, Result};
pub use explainer::{Builder, ClassExplanation, Explainer, Explanation, Maps, Target, Times};
pub use frame::{Fit, Frame, PixelFormat, Working};
pub use grid::{Grid, Mode};
pub use map::{Map, Status};
pub use models::Network;
pub use resize::resize;
