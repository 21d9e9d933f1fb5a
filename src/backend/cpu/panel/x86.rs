//! Products by the vector instructions of x86-64 processors.

use std::arch::x86_64::*;

use super::{CHAIN, PANEL, ROWS, Rows, RowsMut, by_rows};

/// A kernel of `R` rows and two registers of columns, the columns beginning at `$from`.
macro_rules! kernel {
    ($name:ident, $feature:literal, $lanes:literal, $zero:ident, $load:ident, $set:ident, $fma:ident, $add:ident, $store:ident) => {
        #[target_feature(enable = $feature)]
        fn $name<const R: usize>(k: usize, from: usize, a: Rows<'_>, b: &[f32], c: RowsMut<'_>) {
            assert!(a.data.len() >= (R - 1) * a.stride + k && b.len() >= k * PANEL);
            assert!(c.data.len() >= (R - 1) * c.stride + PANEL && from + 2 * $lanes <= PANEL);
            let mut first = 0;
            loop {
                let last = (first + CHAIN).min(k);
                let mut sums = [[$zero(); 2]; R];
                for j in first..last {
                    // SAFETY: columns `from..from + 2·lanes` of row j of the panel.
                    let [b0, b1] = [0, $lanes].map(|at| unsafe { $load(b.as_ptr().add(j * PANEL + from + at)) });
                    for (i, sums) in sums.iter_mut().enumerate() {
                        // Addresses wrap so that builds for tests do not check each for overflow.
                        let x = a.data.as_ptr().wrapping_add(i.wrapping_mul(a.stride).wrapping_add(j));
                        // SAFETY: row i < R and column j < k of `a`.
                        let x = $set(unsafe { x.read_unaligned() });
                        *sums = [$fma(x, b0, sums[0]), $fma(x, b1, sums[1])];
                    }
                }
                for (i, sums) in sums.into_iter().enumerate() {
                    for (v, sum) in sums.into_iter().enumerate() {
                        // SAFETY: columns `from..from + 2·lanes` of row i of the result.
                        unsafe {
                            let c = c.data.as_mut_ptr().add(i * c.stride + from + v * $lanes);
                            $store(c, if first == 0 { sum } else { $add($load(c), sum) });
                        }
                    }
                }
                first = last;
                if first == k {
                    break;
                }
            }
        }
    };
}

#[rustfmt::skip]
kernel!(rows512, "avx512f", 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_fmadd_ps, _mm512_add_ps, _mm512_storeu_ps);
#[rustfmt::skip]
kernel!(rows256, "avx2,fma", 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_fmadd_ps, _mm256_add_ps, _mm256_storeu_ps);

#[target_feature(enable = "avx512f")]
pub fn avx512(m: usize, k: usize, a: Rows<'_>, b: &[f32], c: RowsMut<'_>) {
    by_rows(m, a, c, &[ROWS, 4, 1], |count, a, c| match count {
        ROWS => rows512::<ROWS>(k, 0, a, b, c),
        4 => rows512::<4>(k, 0, a, b, c),
        _ => rows512::<1>(k, 0, a, b, c),
    });
}

#[target_feature(enable = "avx2,fma")]
pub fn avx2(m: usize, k: usize, a: Rows<'_>, b: &[f32], c: RowsMut<'_>) {
    const HALF: usize = ROWS / 2;
    by_rows(m, a, c, &[HALF, 2, 1], |count, a, c| {
        for from in [0, PANEL / 2] {
            let c = RowsMut { data: &mut *c.data, ..c };
            match count {
                HALF => rows256::<HALF>(k, from, a, b, c),
                2 => rows256::<2>(k, from, a, b, c),
                _ => rows256::<1>(k, from, a, b, c),
            }
        }
    });
}
