//! Dot products by the vector instructions of x86-64 processors.

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
