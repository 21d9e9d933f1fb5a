//! RAP and RSP in `f64`, word for word from `methods.md` 10.4, 12 and 13: slow, and with every mask.

use super::oracle::{Oracle, average, window};
use super::reference::{self as layer, Size, div0, product, sum};
use super::relevance::{Division, Rule};
use ucag::net::{NodeId, Op};

/// Relevance at every node.
pub type Arrived = Vec<Vec<f64>>;

pub(super) fn div9(a: f64, b: f64) -> f64 {
    match b {
        0.0 => 0.0,
        b if b + 1e-9 == 0.0 => a / 1e-9,
        b => a / (b + 1e-9),
    }
}

pub(super) fn quotient(a: &[f64], b: &[f64], div: Division) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| div(*a, *b)).collect()
}

pub(super) fn each(x: &[f64], f: impl Fn(f64) -> f64) -> Vec<f64> {
    x.iter().map(|x| f(*x)).collect()
}

/// `1[x ≠ 0]`
pub(super) fn touched(x: &[f64]) -> Vec<f64> {
    each(x, |x| f64::from(u8::from(x != 0.0)))
}

pub(super) fn largest(x: &[f64]) -> f64 {
    x.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// `x − 1[mask ≠ 0]·total / nnz(mask)`
pub(super) fn shifted(x: &[f64], mask: &[f64], total: f64) -> Vec<f64> {
    let n = mask.iter().filter(|m| **m != 0.0).count() as f64;
    x.iter().zip(mask).map(|(x, m)| if *m != 0.0 { x - total / n } else { *x }).collect()
}

/// `[o, i, ky, kx]`: how input and result of a convolution correlate.
fn correlate(x: &[f64], (h, w, c): Size, dy: &[f64], outputs: usize, window: &layer::Window) -> Vec<f64> {
    let [kh, kw] = window.kernel;
    let (oh, ow) = (window.results(h, 0), window.results(w, 1));
    let weight = |at: usize| {
        let (o, i, ky, kx) = (at / (c * kh * kw), at / (kh * kw) % c, at / kw % kh, at % kw);
        let mut total = 0.0;
        for (oy, ox) in (0..oh).flat_map(|oy| (0..ow).map(move |ox| (oy, ox))) {
            let iy = (oy * window.stride[0] + ky).checked_sub(window.pad[0]).filter(|y| *y < h);
            let ix = (ox * window.stride[1] + kx).checked_sub(window.pad[1]).filter(|x| *x < w);
            if let (Some(iy), Some(ix)) = (iy, ix) {
                total += x[(iy * w + ix) * c + i] * dy[(oy * ow + ox) * outputs + o];
            }
        }
        total
    };
    (0..outputs * c * kh * kw).map(weight).collect()
}

impl Oracle<'_> {
    /// Operation, first input's node, value and size.
    pub(super) fn at(&self, id: NodeId) -> (&Op, NodeId, &[f64], Size) {
        let node = self.graph.node(id);
        let input = node.inputs[0];
        (&node.op, input, &self.values[input.0], self.size(input))
    }

    pub(super) fn hidden(&self, id: NodeId) -> bool {
        matches!(self.graph.node(id).op, Op::Conv { .. } | Op::Linear { .. }) && self.at(id).1 != NodeId(0)
    }

    pub(super) fn pointwise(&self, id: NodeId) -> bool {
        matches!(&self.graph.node(id).op, Op::Conv { window, .. } if window.kernel == [1, 1])
    }

    /// All that is no hidden layer.
    pub(super) fn shared(&self, id: NodeId, r: &[f64], div: Division) -> Vec<Vec<f64>> {
        match self.graph.node(id).op {
            Op::Conv { .. } => self.shares(id, Rule::SampleBox, r),
            Op::Relu => vec![r.to_vec()],
            _ => self.shares(id, Rule::Share(div), r),
        }
    }

    /// `p ⊙ JT_|w|[ div9(R, (|w|*p)·m) ]`
    pub(super) fn by_size(&self, id: NodeId, p: &[f64], r: &[f64]) -> Vec<f64> {
        let (op, .., size) = self.at(id);
        let w = each(self.parameters(op).0, f64::abs);
        let d = product(&self.apply(op, p, size, &w), &touched(r));
        product(p, &self.transposed(op, &quotient(r, &d, div9), size, &w))
    }

    fn bipolar(&self, id: NodeId, r: &[f64], symmetric: bool) -> Vec<f64> {
        let (op, _, x, size) = self.at(id);
        let w = self.trained(op);
        let (wp, wn) = (layer::positive(&w), each(&layer::negative(&w), f64::abs));
        let m = touched(r);
        let (rp, rn) = (layer::positive(r), layer::negative(r));
        let mut total = vec![0.0; x.len()];
        for (x, wp, wn) in [(layer::positive(x), &wp, &wn), (each(&layer::negative(x), f64::abs), &wn, &wp)] {
            let p = product(&self.apply(op, &x, size, wp), &m);
            let q = product(&self.apply(op, &x, size, wn), &m);
            let both = sum(&p, &q);
            let back = |s: Vec<f64>, w: &[f64]| self.transposed(op, &product(&s, &m), size, w);
            let gated = |r: &[f64]| product(&touched(&q), &quotient(r, &both, div0));
            let t = match matches!(op, Op::Conv { .. }) && !symmetric {
                true => back(quotient(&rn, &q, div0), wn),
                false => back(quotient(&rn, &p, div0), wp),
            };
            let terms = [back(quotient(&rp, &p, div0), wp), t, back(gated(&rp), wn), back(gated(&rn), wn)];
            let c = product(&x, &terms.into_iter().reduce(|a, b| sum(&a, &b)).expect("four terms"));
            let excess = c.iter().sum::<f64>() - r.iter().sum::<f64>();
            total = sum(&total, &shifted(&c, &c, excess));
        }
        total
    }

    /// RAP from the logit, or `original`, from the one-hot head.
    pub fn rap(&self, class: usize, original: bool, symmetric: bool) -> Arrived {
        let output = self.graph.output();
        let rule = |id: NodeId, r: &[f64]| match self.hidden(id) {
            true if self.pointwise(id) && !original => vec![self.by_size(id, &each(self.at(id).2, f64::abs), r)],
            true => vec![self.bipolar(id, r, symmetric)],
            false => self.shared(id, r, div0),
        };
        if !original {
            let mut start = vec![0.0; self.logits().len()];
            start[class] = self.logits()[class];
            return self.down(output, &start, rule);
        }
        let (op, input, x, _) = self.at(output);
        let (weight, bias) = self.parameters(op);
        let q = product(x, &weight[class * x.len()..][..x.len()]);
        let (pos, neg) = (layer::positive(&q).iter().sum::<f64>(), layer::negative(&q).iter().sum::<f64>());
        let [bp, bn] = [pos, neg].map(|part| bias[class] * div0(part, pos + neg));
        let q = each(&q, |q| q + if q > 0.0 { bp * div0(q, pos) } else { bn * div0(q, neg) });
        let (size, total) = (q.iter().map(|q| q.abs()).sum::<f64>(), q.iter().sum::<f64>());
        self.down(input, &each(&q, |q| div0(q.abs(), size) * total), rule)
    }

    /// RSP from a layer. `mean_gradient`: of the class's logit, channel by channel.
    pub fn rsp(&self, from: NodeId, class: usize) -> Arrived {
        let (gradient, a) = (&self.gradient(class)[from.0], &self.values[from.0]);
        let channels = self.size(from).2;
        let mean =
            |c: usize| gradient.iter().skip(c).step_by(channels).sum::<f64>() / (gradient.len() / channels) as f64;
        let means: Vec<f64> = (0..channels).map(mean).collect();
        let t: Vec<f64> = a.iter().enumerate().map(|(i, a)| means[i % channels] * a).collect();
        let top = largest(&t);
        self.down(from, &each(&t, |t| div9(t, top)), |id, r| {
            let raise = |x: &[f64]| each(x, |x| x + 1e-9);
            let (op, _, x, size) = self.at(id);
            match op {
                Op::Conv { window: w, param } if self.hidden(id) => {
                    let (x, outputs, w) = (layer::positive(x), self.graph.param(*param).outputs, window(w));
                    let part = |r: &[f64]| {
                        let v = correlate(&x, size, r, outputs, &w);
                        let g = product(&layer::conv(&x, size, &v, outputs, &w), &touched(r));
                        product(&x, &layer::conv_back(&quotient(r, &g, div0), size, &v, outputs, &w))
                    };
                    let (plus, minus) = (part(&layer::positive(r)), part(&each(&layer::negative(r), f64::abs)));
                    let c: Vec<f64> = plus.iter().zip(&minus).map(|(p, m)| p - m).collect();
                    if self.pointwise(id) {
                        return vec![c];
                    }
                    let c = each(&c, |c| 2.0 * c);
                    vec![shifted(&c, &c, r.iter().sum())]
                }
                Op::Add => {
                    let terms = self.graph.node(id).inputs.iter().map(|i| raise(&layer::positive(&self.values[i.0])));
                    let terms: Vec<_> = terms.collect();
                    let s = quotient(r, &sum(&terms[0], &terms[1]), div0);
                    terms.iter().map(|x| product(x, &s)).collect()
                }
                Op::AvgPool(pool) => {
                    let (x, pool) = (raise(&layer::positive(x)), average(pool));
                    let s = quotient(r, &layer::avg_pool(&x, size, &pool), div0);
                    vec![product(&x, &layer::avg_pool_back(&s, size, &pool))]
                }
                Op::MaxPool(_) => {
                    let (x, s) = (raise(x), quotient(r, &raise(&self.values[id.0]), div0));
                    vec![product(&x, &self.rearranged(op, &x, size, &s))]
                }
                _ => self.shared(id, r, div0),
            }
        })
    }
}
