//! Dot products of weight rows with a block of samples: reads each weight once from afar, without packing it first.
//!
//! A general matrix product rearranges the weights for its inner loop, which for a handful of samples costs more than
//! the product itself.

/// Samples that are multiplied together: their rows stay in a core's second-level cache. Others go one by one.
const SAMPLES: usize = 6;

/// Dot products of dense rows `x` with the rows of `weight`, both of length `k`: `out[s·n + j]` is that of row s of `x` with
/// row j of `weight`. Always the same bits, however many rows there are.
pub(super) type Dots = fn(k: usize, x: &[f32], weight: &[f32], n: usize, out: &mut [f32]);

/// The fastest version for this processor.
pub(super) fn select() -> Dots {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the extension, as just asked.
            return |k, x, weight, n, out| unsafe { x86::avx512(k, x, weight, n, out) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return |k, x, weight, n, out| unsafe { x86::avx2(k, x, weight, n, out) };
        }
    }
    portable
}

/// Calls `tile(samples, rows, x, weight, out)` for all samples and rows: [`SAMPLES`] samples at a time and then one by one,
/// `rows` rows at a time and then one by one.
#[inline(always)]
fn tiles(
    [k, rows]: [usize; 2],
    x: &[f32],
    weight: &[f32],
    n: usize,
    out: &mut [f32],
    mut tile: impl FnMut(usize, usize, &[f32], &[f32], &mut [f32]),
) {
    let count = x.len() / k;
    for (sample, samples) in parts(count, SAMPLES) {
        let (x, out) = (&x[sample * k..(sample + samples) * k], &mut out[sample * n..]);
        for (row, rows) in parts(weight.len() / k, rows) {
            tile(samples, rows, x, &weight[row * k..(row + rows) * k], &mut out[row..]);
        }
    }
}

/// Start and length of the parts of `count` things, `most` or one in each.
fn parts(count: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let whole = count / most * most;
    (0..whole).step_by(most).map(move |start| (start, most)).chain((whole..count).map(|start| (start, 1)))
}

/// Each product is summed lane by lane along the row, then over the lanes, then the rest.
fn portable(k: usize, x: &[f32], weight: &[f32], n: usize, out: &mut [f32]) {
    const LANES: usize = 8;
    tiles([k, 1], x, weight, n, out, |_, _, x, weight, out| {
        for (s, x) in x.chunks_exact(k).enumerate() {
            let mut sums = [0.0_f32; LANES];
            let (x, w) = (x.as_chunks::<LANES>(), weight.as_chunks::<LANES>());
            for (x, w) in x.0.iter().zip(w.0) {
                sums.iter_mut().zip(x).zip(w).for_each(|((sum, x), w)| *sum += x * w);
            }
            out[s * n] = sums.iter().sum::<f32>() + rest(x.1, w.1);
        }
    });
}

fn rest(x: &[f32], w: &[f32]) -> f32 {
    x.iter().zip(w).map(|(x, w)| x * w).sum()
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{SAMPLES, rest, tiles};

    /// A kernel of `S` samples and `R` rows of weights, whose sums are as those of [`portable`](super::portable).
    macro_rules! kernel {
        ($name:ident, $feature:literal, $lanes:literal, $zero:ident, $load:ident, $fma:ident, $store:ident) => {
            #[target_feature(enable = $feature)]
            fn $name<const S: usize, const R: usize>(k: usize, n: usize, x: &[f32], weight: &[f32], out: &mut [f32]) {
                assert!(x.len() == S * k && weight.len() == R * k);
                let mut sums = [[$zero(); S]; R];
                let whole = k / $lanes * $lanes;
                for i in (0..whole).step_by($lanes) {
                    // SAFETY: lanes `i..i + lanes` of rows r < R and samples s < S, each of length k.
                    let w: [_; R] = std::array::from_fn(|r| unsafe { $load(weight.as_ptr().add(r * k + i)) });
                    for s in 0..S {
                        // SAFETY: as above.
                        let x = unsafe { $load(x.as_ptr().add(s * k + i)) };
                        (0..R).for_each(|r| sums[r][s] = $fma(w[r], x, sums[r][s]));
                    }
                }
                for (r, (sums, weight)) in sums.iter().zip(weight.chunks_exact(k)).enumerate() {
                    for (s, (sum, x)) in sums.iter().zip(x.chunks_exact(k)).enumerate() {
                        let mut lanes = [0.0; $lanes];
                        // SAFETY: as many lanes as the array has.
                        unsafe { $store(lanes.as_mut_ptr(), *sum) };
                        out[s * n + r] = lanes.iter().sum::<f32>() + rest(&x[whole..], &weight[whole..]);
                    }
                }
            }
        };
    }

    kernel!(rows512, "avx512f", 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_fmadd_ps, _mm512_storeu_ps);
    kernel!(rows256, "avx2,fma", 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_fmadd_ps, _mm256_storeu_ps);

    #[target_feature(enable = "avx512f")]
    pub fn avx512(k: usize, x: &[f32], weight: &[f32], n: usize, out: &mut [f32]) {
        tiles([k, 4], x, weight, n, out, |samples, rows, x, weight, out| match (samples, rows) {
            (SAMPLES, 4) => rows512::<SAMPLES, 4>(k, n, x, weight, out),
            (SAMPLES, _) => rows512::<SAMPLES, 1>(k, n, x, weight, out),
            (_, 4) => rows512::<1, 4>(k, n, x, weight, out),
            _ => rows512::<1, 1>(k, n, x, weight, out),
        });
    }

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2(k: usize, x: &[f32], weight: &[f32], n: usize, out: &mut [f32]) {
        tiles([k, 2], x, weight, n, out, |samples, rows, x, weight, out| match (samples, rows) {
            (SAMPLES, 2) => rows256::<SAMPLES, 2>(k, n, x, weight, out),
            (SAMPLES, _) => rows256::<SAMPLES, 1>(k, n, x, weight, out),
            (_, 2) => rows256::<1, 2>(k, n, x, weight, out),
            _ => rows256::<1, 1>(k, n, x, weight, out),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every version gives the products, and the same bits wherever a row is.
    #[test]
    fn products() {
        let number = |i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0;
        for (samples, k, n) in [(1, 1, 1), (13, 7, 3), (6, 16, 4), (3, 100, 9), (8, 515, 6)] {
            let x: Vec<f32> = (0..samples * k).map(number).collect();
            let weight: Vec<f32> = (0..n * k).map(|i| number(i + 31)).collect();
            for version in [select(), portable] {
                let product = |x: &[f32], weight: &[f32]| {
                    let mut out = vec![f32::NAN; x.len() / k * (weight.len() / k)];
                    version(k, x, weight, weight.len() / k, &mut out);
                    out
                };
                for (at, found) in product(&x, &weight).iter().enumerate() {
                    let (x, w) = (&x[at / n * k..][..k], &weight[at % n * k..][..k]);
                    let expected: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
                    assert!((f64::from(*found) - expected).abs() < 1e-5 * k as f64, "{k}: {found}, not {expected}");
                    assert_eq!(*found, product(x, w)[0], "{samples}×{n}×{k}, element {at} alone");
                }
            }
        }
    }
}
