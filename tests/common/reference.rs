//! The oracle: layers in `f64`, word for word from their definitions, slow and obvious.
//!
//! Values of one sample, row-major with channels innermost. Convolution weights as in the file, `[o, i, ky, kx]`.
//! Backward passes scatter: each result hands its share to everything it was computed from.

/// Rows, columns, channels.
pub type Size = (usize, usize, usize);

/// Kernel, stride and padding, rows and columns.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub pad: [usize; 2],
}

impl Window {
    pub fn results(&self, n: usize, axis: usize) -> usize {
        (n + 2 * self.pad[axis] - self.kernel[axis]) / self.stride[axis] + 1
    }

    /// Every (result row, result column, kernel row, kernel column, source row, source column) that lies inside.
    fn visits(&self, (h, w, _): Size, mut visit: impl FnMut([usize; 6])) {
        for oy in 0..self.results(h, 0) {
            for ox in 0..self.results(w, 1) {
                for ky in 0..self.kernel[0] {
                    for kx in 0..self.kernel[1] {
                        let iy = (oy * self.stride[0] + ky).checked_sub(self.pad[0]).filter(|y| *y < h);
                        let ix = (ox * self.stride[1] + kx).checked_sub(self.pad[1]).filter(|x| *x < w);
                        if let (Some(iy), Some(ix)) = (iy, ix) {
                            visit([oy, ox, ky, kx, iy, ix]);
                        }
                    }
                }
            }
        }
    }
}

/// `w*x`, without bias.
pub fn conv(x: &[f64], size: Size, weight: &[f64], outputs: usize, window: &Window) -> Vec<f64> {
    let (h, w, c) = size;
    let [kh, kw] = window.kernel;
    let (oh, ow) = (window.results(h, 0), window.results(w, 1));
    let mut y = vec![0.0; oh * ow * outputs];
    window.visits(size, |[oy, ox, ky, kx, iy, ix]| {
        for o in 0..outputs {
            let mut sum = 0.0;
            for i in 0..c {
                sum += weight[((o * c + i) * kh + ky) * kw + kx] * x[(iy * w + ix) * c + i];
            }
            y[(oy * ow + ox) * outputs + o] += sum;
        }
    });
    y
}

/// `JT_w[dy]`: what each result owes to each input.
pub fn conv_back(dy: &[f64], size: Size, weight: &[f64], outputs: usize, window: &Window) -> Vec<f64> {
    let (h, w, c) = size;
    let [kh, kw] = window.kernel;
    let ow = window.results(w, 1);
    let mut dx = vec![0.0; h * w * c];
    window.visits(size, |[oy, ox, ky, kx, iy, ix]| {
        for o in 0..outputs {
            let dy = dy[(oy * ow + ox) * outputs + o];
            for i in 0..c {
                dx[(iy * w + ix) * c + i] += weight[((o * c + i) * kh + ky) * kw + kx] * dy;
            }
        }
    });
    dx
}

/// `W·x`, `weight` being `[outputs, inputs]`.
pub fn linear(x: &[f64], weight: &[f64]) -> Vec<f64> {
    weight.chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

/// `Wᵀ·dy`
pub fn linear_back(dy: &[f64], weight: &[f64]) -> Vec<f64> {
    let inputs = weight.len() / dy.len();
    (0..inputs).map(|i| dy.iter().enumerate().map(|(o, dy)| weight[o * inputs + i] * dy).sum()).collect()
}

/// Maxima and, for each, the position in its window (row-major) of the first value that reaches it.
pub fn max_pool(x: &[f64], size: Size, window: &Window) -> (Vec<f64>, Vec<f64>) {
    let (h, w, c) = size;
    let (oh, ow) = (window.results(h, 0), window.results(w, 1));
    let mut y = vec![f64::NEG_INFINITY; oh * ow * c];
    let mut index = vec![0.0; oh * ow * c];
    window.visits(size, |[oy, ox, ky, kx, iy, ix]| {
        for i in 0..c {
            let (at, x) = ((oy * ow + ox) * c + i, x[(iy * w + ix) * c + i]);
            if x > y[at] {
                (y[at], index[at]) = (x, (ky * window.kernel[1] + kx) as f64);
            }
        }
    });
    (y, index)
}

/// Sends each `dy` to its window's winner.
pub fn max_pool_back(dy: &[f64], index: &[f64], size: Size, window: &Window) -> Vec<f64> {
    let (h, w, c) = size;
    let ow = window.results(w, 1);
    let mut dx = vec![0.0; h * w * c];
    window.visits(size, |[oy, ox, ky, kx, iy, ix]| {
        for i in 0..c {
            let at = (oy * ow + ox) * c + i;
            if index[at] == (ky * window.kernel[1] + kx) as f64 {
                dx[(iy * w + ix) * c + i] += dy[at];
            }
        }
    });
    dx
}

/// Average pooling as torch has it.
#[derive(Debug, Clone, Copy)]
pub enum Average {
    /// A sliding window that divides by the whole kernel, padding included.
    Window(Window),
    /// Bins `[floor(i·n/bins), ceil((i+1)·n/bins))`, which overlap when they do not divide.
    Adaptive(usize, usize),
}

impl Average {
    pub fn results(&self, h: usize, w: usize) -> (usize, usize) {
        match self {
            Self::Window(window) => (window.results(h, 0), window.results(w, 1)),
            Self::Adaptive(bh, bw) => (*bh, *bw),
        }
    }

    /// Every (result row, result column, source row, source column) with its share.
    fn visits(&self, (h, w, c): Size, mut visit: impl FnMut([usize; 4], f64)) {
        match self {
            Self::Window(window) => {
                let share = 1.0 / (window.kernel[0] * window.kernel[1]) as f64;
                window.visits((h, w, c), |[oy, ox, _, _, iy, ix]| visit([oy, ox, iy, ix], share));
            }
            Self::Adaptive(bh, bw) => {
                let bin = |i: usize, n: usize, bins: usize| {
                    let floor = (i as f64 * n as f64 / bins as f64).floor() as usize;
                    floor..((i + 1) as f64 * n as f64 / bins as f64).ceil() as usize
                };
                for (oy, ox) in (0..*bh).flat_map(|oy| (0..*bw).map(move |ox| (oy, ox))) {
                    let (rows, cols) = (bin(oy, h, *bh), bin(ox, w, *bw));
                    let share = 1.0 / (rows.len() * cols.len()) as f64;
                    for iy in rows {
                        cols.clone().for_each(|ix| visit([oy, ox, iy, ix], share));
                    }
                }
            }
        }
    }
}

pub fn avg_pool(x: &[f64], size: Size, pool: &Average) -> Vec<f64> {
    let (h, w, c) = size;
    let (oh, ow) = pool.results(h, w);
    let mut y = vec![0.0; oh * ow * c];
    pool.visits(size, |[oy, ox, iy, ix], share| {
        (0..c).for_each(|i| y[(oy * ow + ox) * c + i] += share * x[(iy * w + ix) * c + i]);
    });
    y
}

pub fn avg_pool_back(dy: &[f64], size: Size, pool: &Average) -> Vec<f64> {
    let (h, w, c) = size;
    let (_, ow) = pool.results(h, w);
    let mut dx = vec![0.0; h * w * c];
    pool.visits(size, |[oy, ox, iy, ix], share| {
        (0..c).for_each(|i| dx[(iy * w + ix) * c + i] += share * dy[(oy * ow + ox) * c + i]);
    });
    dx
}

/// To torch's order: channel, row, column.
pub fn flatten(x: &[f64], (h, w, c): Size) -> Vec<f64> {
    (0..c * h * w).map(|i| x[i % (h * w) * c + i / (h * w)]).collect()
}

/// And back.
pub fn flatten_back(dy: &[f64], (h, w, c): Size) -> Vec<f64> {
    (0..h * w * c).map(|i| dy[i % c * h * w + i / c]).collect()
}

pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - top).exp()).sum();
    logits.iter().map(|l| (l - top).exp() / sum).collect()
}

/// `a / (b + e·sgn(b))`, sgn(0) = 1.
pub fn divs(a: f64, b: f64, e: f64) -> f64 {
    a / if b >= 0.0 { b + e } else { b - e }
}

/// `a / b`, 0 where b = 0.
pub fn div0(a: f64, b: f64) -> f64 {
    if b == 0.0 { 0.0 } else { a / b }
}

pub fn relu(x: &[f64]) -> Vec<f64> {
    positive(x)
}

pub fn positive(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.max(0.0)).collect()
}

pub fn negative(x: &[f64]) -> Vec<f64> {
    x.iter().map(|x| x.min(0.0)).collect()
}

pub fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

pub fn product(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

pub fn quotient(a: &[f64], b: &[f64], e: f64) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| divs(*a, *b, e)).collect()
}

/// One number per channel added to every pixel.
pub fn biased(x: &[f64], bias: &[f64]) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| x + bias[i % bias.len()]).collect()
}

/// Bilinear, half-pixel: pixel `at` of a map of `from` rows and columns resized to `to` (`methods.md` 1.4).
pub fn bilinear(map: &[f64], from: (usize, usize), to: (usize, usize), at: (usize, usize)) -> f64 {
    between(map, from, to, at, |d, from, to| ((d + 0.5) * from / to - 0.5).max(0.0))
}

/// Bilinear, corners on corners.
pub fn aligned(map: &[f64], from: (usize, usize), to: (usize, usize), at: (usize, usize)) -> f64 {
    between(map, from, to, at, |d, from, to| if to == 1.0 { 0.0 } else { d * (from - 1.0) / (to - 1.0) })
}

/// Linear between neighbours on both axes, `position(d, from, to)` being where result `d` lies.
fn between(
    map: &[f64],
    from: (usize, usize),
    to: (usize, usize),
    at: (usize, usize),
    position: impl Fn(f64, f64, f64) -> f64,
) -> f64 {
    let axis = |d: usize, from: usize, to: usize| {
        let s = position(d as f64, from as f64, to as f64);
        let lo = (s.floor() as usize).min(from - 1);
        (lo, (lo + 1).min(from - 1), s - lo as f64)
    };
    let (y0, y1, v) = axis(at.0, from.0, to.0);
    let (x0, x1, u) = axis(at.1, from.1, to.1);
    let row = |y: usize| (1.0 - u) * map[y * from.1 + x0] + u * map[y * from.1 + x1];
    (1.0 - v) * row(y0) + v * row(y1)
}

/// Bicubic (Keys, a = −0.75) at position `(y, x)` of a picture of `size` rows and columns, one channel given by
/// `value(row, column)`; taps clamp at the border (`methods.md` 1.4).
pub fn bicubic(value: impl Fn(usize, usize) -> f64, size: (usize, usize), (y, x): (f64, f64)) -> f64 {
    let kernel = |d: f64| {
        let (a, d) = (-0.75, d.abs());
        if d <= 1.0 {
            (a + 2.0) * d.powi(3) - (a + 3.0) * d.powi(2) + 1.0
        } else if d < 2.0 {
            a * (d.powi(3) - 5.0 * d.powi(2) + 8.0 * d - 4.0)
        } else {
            0.0
        }
    };
    let taps = |s: f64, n: usize| {
        let first = s.floor() - 1.0;
        let tap = move |i: i32| {
            let at = first + f64::from(i);
            (at.clamp(0.0, n as f64 - 1.0) as usize, kernel(s - at))
        };
        (0..4).map(tap).collect::<Vec<_>>()
    };
    let rows = taps(y, size.0);
    let columns = taps(x, size.1);
    rows.iter().map(|(r, v)| v * columns.iter().map(|(c, u)| u * value(*r, *c)).sum::<f64>()).sum()
}
