//! What should be conserved on the way down, in numbers.

use super::program::Audit;

/// Two sums that are equal where nothing is lost: relevance into a node and out of it, or a logit and what a method makes
/// of it.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Check {
    /// The node, or what is summed.
    pub node: String,
    /// What comes in.
    pub expected: f64,
    /// What goes out.
    pub found: f64,
}

impl Check {
    /// The check of one class. Sums of one lane count for all classes.
    pub(super) fn new(audit: &Audit<Vec<f32>>, class: usize) -> Self {
        // A lane is a sum and a count.
        let term = |lanes: &Vec<f32>| f64::from(lanes[2 * class % lanes.len()]);
        let sum = |terms: &[Vec<f32>]| terms.iter().map(term).sum::<f64>();
        Self { node: audit.node.clone(), expected: sum(&audit.expected), found: sum(&audit.found) - sum(&audit.less) }
    }

    /// The part of what comes in that does not go out; negative where more goes out.
    pub fn lost(&self) -> f64 {
        let lost = self.expected - self.found;
        if lost == 0.0 { 0.0 } else { lost / self.expected }
    }
}
