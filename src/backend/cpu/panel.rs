//! Products of a matrix and a panel of [`PANEL`] columns, on one thread.
//!
//! Every element of a result is a sum of chains of [`CHAIN`] multiply-adds, in the order of k, whatever its row is and
//! whatever the other rows are: the same bits come out however rows are grouped into products. General libraries do not
//! promise that. One long chain would round less well.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::isa::Isa;
use super::simd;
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

impl Rows<'_> {
    /// Has `count` rows from `first` on brought near, as far as there are any.
    #[inline(always)]
    pub fn fetch(&self, first: usize, count: usize) {
        let end = ((first + count) * self.stride).min(self.data.len());
        simd::fetch(&self.data[(first * self.stride).min(end)..end]);
    }
}

/// Rows of a result.
pub(super) struct RowsMut<'a> {
    pub data: &'a mut [f32],
    pub stride: usize,
}

/// `c = a·b` for `m` rows: those of `a` have `k` elements, those of `b` and `c` have [`PANEL`].
pub(super) type Product = fn(m: usize, k: usize, a: Rows<'_>, b: &[f32], c: RowsMut<'_>);

/// The version for the instructions in use.
pub(super) fn select() -> Product {
    version(Isa::current())
}

/// The version for instructions that the processor has.
fn version(isa: Isa) -> Product {
    assert!(isa.is_present(), "this processor has no {}", isa.name());
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the extension, as just asked.
        Isa::Avx512 => |m, k, a, b, c| unsafe { x86::avx512(m, k, a, b, c) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => |m, k, a, b, c| unsafe { x86::avx2(m, k, a, b, c) },
        _ => portable,
    }
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
            for version in Isa::available().map(version) {
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
