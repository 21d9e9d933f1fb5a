//! What an [`Explainer`](crate::Explainer) says of a picture.

use std::time::Duration;

use crate::engine::{Check, StageTimes};
use crate::frame::Working;
use crate::grid::GridPlan;
use crate::map::{Map, Status};
use crate::methods::{Level, Method};
use crate::render::Picture;

/// The explanation of one picture.
#[derive(Debug, Clone)]
pub struct Explanation {
    /// One entry for each explained class and method: all methods of the first class, then those of the next.
    pub classes: Vec<ClassExplanation>,
    /// The five most probable classes of the whole picture with their probabilities, most probable first.
    pub top: Vec<(usize, f32)>,
    /// The picture at the size at which it was explained; maps have this size.
    pub working: Working,
    /// The grid of patches, where UCAG was asked for.
    pub grid: Option<GridPlan>,
    /// Where the time went.
    pub times: Times,
}

/// The explanation of one class by one method.
#[derive(Debug, Clone)]
pub struct ClassExplanation {
    /// Index of the class.
    pub class: usize,
    /// Its name.
    pub label: String,
    /// Its probability for the whole picture.
    pub probability: f32,
    /// The method.
    pub method: &'static Method,
    /// The layer that it read, if any.
    pub layer: Option<String>,
    /// UCAG's map; raw and signed in mode `paper`.
    pub ucag: Option<Map>,
    /// The method's own map of the whole picture, raw and signed.
    pub plain: Option<Map>,
    /// The map over the frame, where [`Builder::overlay`](crate::Builder::overlay) asked for it.
    pub overlay: Option<Picture>,
    /// Its probability in each patch, row by row.
    pub patch_probabilities: Vec<f32>,
    /// What should be conserved in the whole picture, from the output down, where
    /// [`Builder::check`](crate::Builder::check) asked for it; nothing for methods that conserve nothing.
    pub checks: Vec<Check>,
    /// Whether the map says anything: UCAG's, or the plain one where there is no other.
    pub status: Status,
}

impl ClassExplanation {
    /// UCAG's map, or the plain one where there is no other.
    pub fn map(&self) -> &Map {
        match (&self.ucag, &self.plain) {
            (Some(map), _) | (None, Some(map)) => map,
            (None, None) => unreachable!("every explanation has a map"),
        }
    }

    /// The status in words, which name the layer of a map that lives there.
    pub fn verdict(&self) -> String {
        match (self.status, &self.layer) {
            (Status::Empty, Some(layer)) => format!("empty: nothing at `{layer}` speaks for this class"),
            (Status::Flat, Some(layer)) if self.method.level == Level::Layer => {
                format!("flat: all places of `{layer}` matter alike")
            }
            (status, _) => status.to_string(),
        }
    }
}

/// Time from the decoded picture to its maps.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Times {
    /// The stages of the engine.
    pub stages: StageTimes,
    /// All of it.
    pub total: Duration,
}
