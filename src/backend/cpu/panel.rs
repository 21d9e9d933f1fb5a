//! Products of a matrix and a panel of [`PANEL`] columns, on one thread.
//!
//! Every element of a result is a sum of chains of [`CHAIN`] multiply-adds, in the order of k, whatever its row is and
//! whatever the other rows are: the same bits come out however rows are grouped into products. General libraries do not
//! promise that. One long chain would round less well.

/// Columns of a panel.
pub(super) use crate::net::PANEL;

/// Rows that are multiplied at once; other numbers work as well, a little slower.
pub(super) const ROWS: usize = 12;

/// Terms that are summed by themselves.
const CHAIN: usize = 256;

/// Rows of a matrix, which begin `stride` elements apart.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub data: &'a [f32],
    pub stride: usize,
}

/// Rows of a result.
pub(super) struct RowsMut<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
}

/// `c = a·b` for `m` rows: those of `a` have `k` elements, those of `b` and `c` have [`PANEL`].
pub(super) type Product = fn(m: usize, k: usize, a: Rows<'_>, b: &[f32], c: RowsMut<'_>);

/// The fastest version for this processor.
pub(super) fn select() -> Product {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the extension, as just asked.
            return |m, k, a, b, c| unsafe { x86::avx512(m, k, a, b, c) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return |m, k, a, b, c| unsafe { x86::avx2(m, k, a, b, c) };
        }
    }
    portable
}

/// Calls `block` with blocks of rows of `a` and `c`: as many at once as one of `counts`, the largest that fits first.
#[inline(always)]
fn by_rows(
    m: usize,
    a: Rows<'_>,
    c: RowsMut<'_>,
    counts: &[usize],
    mut block: impl FnMut(usize, Rows<'_>, RowsMut<'_>),
) {
    let mut row = 0;
    while let Some(count) = counts.iter().find(|n| row + **n <= m) {
        let data = &mut c.data[row * c.stride..];
        block(*count, Rows { data: &a.data[row * a.stride..], ..a }, RowsMut { data, stride: c.stride });
        row += count;
    }
}

fn portable(m: usize, k: usize, a: Rows<'_>, b: &[f32], c: RowsMut<'_>) {
    by_rows(m, a, c, &[1], |_, a, c| {
        let c = &mut c.data[..PANEL];
        c.fill(0.0);
        for (a, b) in a.data[..k].chunks(CHAIN).zip(b.chunks(CHAIN * PANEL)) {
            let mut sums = [0.0; PANEL];
            for (a, b) in a.iter().zip(b.chunks_exact(PANEL)) {
                sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
            }
            c.iter_mut().zip(sums).for_each(|(c, sum)| *c += sum);
        }
    });
}

#[cfg(target_arch = "x86_64")]
mod x86 {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every version, and every way to group rows, gives the same sums.
    #[test]
    fn products() {
        let number = |i: usize| ((i * 7919) % 1009) as f32 / 504.5 - 1.0;
        for (m, k) in [(1, 1), (5, 7), (12, 64), (31, 33), (60, 200), (13, 600)] {
            let a: Vec<f32> = (0..m * k).map(number).collect();
            let b: Vec<f32> = (0..k * PANEL).map(|i| number(i + 31)).collect();
            let sum =
                |i: usize, j: usize| (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * PANEL + j])).sum::<f64>();
            let product = |product: Product, rows: std::ops::Range<usize>| {
                let mut c = vec![f32::NAN; rows.len() * PANEL];
                let a = Rows { data: &a[rows.start * k..rows.end * k], stride: k };
                product(rows.len(), k, a, &b, RowsMut { data: &mut c, stride: PANEL });
                c
            };
            for version in [select(), portable] {
                let c = product(version, 0..m);
                for (at, c) in c.iter().enumerate() {
                    let expected = sum(at / PANEL, at % PANEL);
                    assert!((f64::from(*c) - expected).abs() < 1e-5 * k as f64, "{m}×{k}: {c}, expected {expected}");
                }
                let one_by_one: Vec<f32> = (0..m).flat_map(|i| product(version, i..i + 1)).collect();
                assert_eq!(c, one_by_one, "{m}×{k}, row by row");
            }
        }
    }
}
