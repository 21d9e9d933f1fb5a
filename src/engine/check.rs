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
    /// What does not go out, negative where more does, as a part of what the method began with: where parts of either sign
    /// meet, what comes into a node may be next to nothing.
    pub lost: f64,
}

impl Check {
    /// The checks of one class, from the output down. Sums of one lane count for all classes.
    pub(super) fn all(audits: &[Audit<Vec<f32>>], class: usize) -> Vec<Self> {
        // A lane is a sum and a count.
        let term = |lanes: &Vec<f32>| f64::from(lanes[2 * class % lanes.len()]);
        let sum = |terms: &[Vec<f32>]| terms.iter().map(term).sum::<f64>();
        let begin = audits.first().map_or(0.0, |audit| sum(&audit.expected).abs());
        let check = |audit: &Audit<Vec<f32>>| {
            let (expected, found) = (sum(&audit.expected), sum(&audit.found) - sum(&audit.less));
            let lost = expected - found;
            Self { node: audit.node.clone(), expected, found, lost: if lost == 0.0 { 0.0 } else { lost / begin } }
        };
        audits.iter().map(check).collect()
    }
}
