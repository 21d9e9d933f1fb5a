//! AGF in `f64`, word for word from `methods.md` 14: slow, and with every mask.

use super::bipolar::{Arrived, div9, each, largest, quotient, shifted, touched};
use super::oracle::Oracle;
use super::reference::{self as layer, div0, product, sum};
use ucag::net::Op;

/// `fact(U, φ)`, rectified: one number a pixel.
fn fact(u: &[f64], phi: &[f64], channels: usize) -> Vec<f64> {
    let top = largest(u);
    let u = each(u, |u| 1.0 / (1.0 + (-10.0 * div9(u, top)).exp()));
    let mean = |c: usize, keep: &dyn Fn(f64) -> bool| {
        let pixels: Vec<usize> = (0..phi.len()).filter(|p| keep(phi[*p])).collect();
        let total: f64 = pixels.iter().map(|p| u[p * channels + c]).sum();
        div0(total, pixels.len() as f64)
    };
    let q: Vec<[f64; 2]> = (0..channels).map(|c| [mean(c, &|p| p < 0.0), mean(c, &|p| p > 0.0)]).collect();
    let mut m = [[1.0, 0.0], [0.0, 1.0]];
    for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        m[a][b] += q.iter().map(|q| q[a] * q[b]).sum::<f64>();
    }
    let det = m[0][0] * m[1][1] - m[0][1] * m[1][0];
    let inverse = [[m[1][1] / det, -m[0][1] / det], [-m[1][0] / det, m[0][0] / det]];
    let fit = |u: &[f64], row: usize| {
        let qu = [0, 1].map(|a| q.iter().zip(u).map(|(q, u)| q[a] * u).sum::<f64>());
        (inverse[row][0] * qu[0] + inverse[row][1] * qu[1]).max(0.0)
    };
    u.chunks_exact(channels).map(|u| (fit(u, 1) - fit(u, 0)).max(0.0)).collect()
}

/// `q_t` of AGF's head.
fn softened(y: &[f64], target: usize) -> f64 {
    let d = each(y, |v| v - y[target]);
    let sigma = d.iter().fold(0.0, |m: f64, d| m.max(d.abs()));
    layer::softmax(&each(&d, |d| y[target] * (-0.5 * (d / sigma).powi(2)).exp()))[target]
}

impl Oracle<'_> {
    /// Gradient of the softened head at every node: at the logits by differences, below by the chain rule.
    fn softened_gradient(&self, class: usize) -> Arrived {
        const STEP: f64 = 1e-4;
        let moved = |j: usize, by: f64| {
            let mut y = self.logits().to_vec();
            y[j] += by;
            softened(&y, class)
        };
        let odd = |j: usize, h: f64| moved(j, h) - moved(j, -h);
        let slope = |j: usize| (8.0 * odd(j, STEP) - odd(j, 2.0 * STEP)) / (12.0 * STEP);
        let start: Vec<f64> = (0..self.logits().len()).map(slope).collect();
        self.gradient_from(&start, |y, g| if y > 0.0 { g } else { 0.0 })
    }

    /// AGF's class map before the final division, with some settings other than by default.
    pub fn agf(&self, class: usize, changed: &[&str]) -> Arrived {
        let without = |term: &str| changed.contains(&term);
        let gradient = self.softened_gradient(class);
        let features = self.at(self.graph.output()).1;
        let start = product(&self.values[features.0], &gradient[features.0]);
        self.down(features, &start, |id, phi| {
            let (op, input, x, size) = self.at(id);
            if !self.hidden(id) {
                let phi =
                    if matches!(op, Op::Relu) { product(phi, &touched(&self.values[id.0])) } else { phi.to_vec() };
                return self.shared(id, &phi, div9);
            }
            let c = self.by_size(id, &each(x, f64::abs), phi);
            let flattened = matches!(self.graph.node(input).op, Op::Flatten);
            if self.pointwise(id) || (matches!(op, Op::Linear { .. }) && !flattened) {
                return vec![c];
            }
            let wide = |map: &[f64], channels: usize| (0..map.len() * channels).map(|i| map[i / channels]).collect();
            let mean = |x: &[f64], channels: usize| -> Vec<f64> {
                x.chunks_exact(channels).map(|x| x.iter().sum::<f64>() / channels as f64).collect()
            };
            let by_largest = |x: &[f64]| quotient(x, &vec![largest(x); x.len()], div9);
            let weighted = product(x, &self.transposed(op, &gradient[id.0], size, self.parameters(op).0));
            let rest = if flattened {
                let size = self.at(input).3;
                let m: Vec<f64> = wide(&mean(&layer::flatten_back(&weighted, size), size.2), size.2);
                by_largest(&product(&layer::relu(&layer::flatten(&m, size)), &touched(&c)))
            } else {
                let phi_map = mean(&c, size.2);
                let keep = |term: &str, map: Vec<f64>| each(&map, |v| if without(term) { 0.0 } else { v });
                let m = keep("m", wide(&by_largest(&layer::relu(&mean(&weighted, size.2))), size.2));
                let gm = product(&touched(phi), &gradient[id.0]);
                let gm = self.transposed(op, &gm, size, self.parameters(op).0);
                let fdx = keep("fdx", wide(&fact(&gm, &phi_map, size.2), size.2));
                let fx = keep("fx", wide(&fact(x, &phi_map, size.2), size.2));
                let a = keep("a", self.by_size(id, &vec![1.0; x.len()], phi));
                let damp = |c: f64| if without("regulariser") { 1.0 } else { 1.0 / (1.0 + (-c).exp()) };
                let residual = if changed.contains(&"grad_cam") {
                    let pixels = gm.len() / size.2;
                    let weight = |c: usize| gm.iter().skip(c).step_by(size.2).sum::<f64>() / pixels as f64;
                    let weights: Vec<f64> = (0..size.2).map(weight).collect();
                    let map =
                        mean(&x.iter().enumerate().map(|(i, x)| x * weights[i % size.2]).collect::<Vec<_>>(), size.2);
                    wide(&layer::relu(&map), size.2)
                } else {
                    sum(&fx, &m)
                };
                let inner = product(&residual, &each(&c, damp));
                product(&sum(&sum(&inner, &fdx), &a), &touched(&c))
            };
            vec![shifted(&sum(&c, &rest), &c, rest.iter().sum())]
        })
    }
}
