//! Normal noise whose numbers depend on seed, draw, patch and element, and on nothing else.

use super::operands::GRAIN;
use super::{Target, View, Workers};

/// Which numbers are drawn.
pub(super) struct Noise {
    /// Standard deviation as a part of the sample's range.
    pub sigma: f32,
    pub seed: u64,
    /// Draw of the first lane.
    pub draw: u32,
    /// Patch of the batch's first sample.
    pub first: usize,
}

impl Noise {
    /// One number for an element of a patch in a lane.
    fn at(&self, patch: usize, lane: usize, element: usize) -> f32 {
        let stream = mix(mix(self.seed) ^ ((patch as u64) << 32 | u64::from(self.draw + lane as u32)));
        let bits = mix(stream ^ element as u64);
        const UNIT: f64 = 1.0 / 4_294_967_296.0;
        // The first lies in (0, 1], so that it has a logarithm.
        let (u, v) = (((bits >> 32) as f64 + 1.0) * UNIT, (bits & 0xffff_ffff) as f64 * UNIT);
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }
}

/// The finaliser of splitmix64.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Adds noise to the first `own` of every `stored` channels, in proportion to the sample's range.
pub(super) fn perturb(
    workers: &Workers,
    noise: &Noise,
    (stored, own): (usize, usize),
    x: View<'_>,
    range: View<'_>,
    y: Target<'_>,
) {
    let lanes = y.lanes;
    y.parts(workers, GRAIN.next_multiple_of(stored), |b, start, y| {
        let (x, range) = (&x.of(b, lanes)[start..], range.of(b, lanes));
        let sigma = noise.sigma * (range[1] - range[0]);
        let (patch, lane) = (noise.first + b / lanes, b % lanes);
        for (pixel, (y, x)) in y.chunks_exact_mut(stored).zip(x.chunks_exact(stored)).enumerate() {
            let element = (start / stored + pixel) * own;
            y.copy_from_slice(x);
            y[..own].iter_mut().enumerate().for_each(|(c, y)| *y += sigma * noise.at(patch, lane, element + c));
        }
    });
}
