//! The vector registers of x86-64 processors.

use std::arch::x86_64::*;

use super::{LANES, Register};

/// Numbers of a line of the cache.
const LINE: usize = 16;

#[inline(always)]
pub(super) fn fetch(values: &[f32]) {
    for line in values.chunks(LINE) {
        // SAFETY: every processor of the target has the instruction, which reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

/// Turns 4×4 squares over: number L of group g of four rows becomes part g of rows 4L, 4L + 1 and so on, which are left
/// to be put together.
macro_rules! squares {
    ($rows:ident, $lo:ident, $hi:ident, $lo_pd:ident, $hi_pd:ident, $to_pd:ident, $to_ps:ident) => {
        for group in $rows.as_chunks_mut::<4>().0 {
            let [a, b, c, d] = *group;
            let [ab, cd] = [$lo(a, b), $lo(c, d)].map(|x| $to_pd(x));
            let [ab_hi, cd_hi] = [$hi(a, b), $hi(c, d)].map(|x| $to_pd(x));
            let turned = [$lo_pd(ab, cd), $hi_pd(ab, cd), $lo_pd(ab_hi, cd_hi), $hi_pd(ab_hi, cd_hi)];
            *group = turned.map(|x| $to_ps(x));
        }
    };
}

#[target_feature(enable = "avx512f")]
#[inline]
fn transpose512(mut rows: [__m512; LANES]) -> [__m512; LANES] {
    #[rustfmt::skip]
    squares!(rows, _mm512_unpacklo_ps, _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpackhi_pd, _mm512_castps_pd, _mm512_castpd_ps);
    for j in 0..4 {
        let [a, b, c, d] = [rows[j], rows[4 + j], rows[8 + j], rows[12 + j]];
        let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
        let (ab_hi, cd_hi) = (_mm512_shuffle_f32x4::<0xEE>(a, b), _mm512_shuffle_f32x4::<0xEE>(c, d));
        rows[j] = _mm512_shuffle_f32x4::<0x88>(ab, cd);
        rows[4 + j] = _mm512_shuffle_f32x4::<0xDD>(ab, cd);
        rows[8 + j] = _mm512_shuffle_f32x4::<0x88>(ab_hi, cd_hi);
        rows[12 + j] = _mm512_shuffle_f32x4::<0xDD>(ab_hi, cd_hi);
    }
    rows
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn transpose256(mut rows: [__m256; LANES]) -> [__m256; LANES] {
    #[rustfmt::skip]
    squares!(rows, _mm256_unpacklo_ps, _mm256_unpackhi_ps, _mm256_unpacklo_pd, _mm256_unpackhi_pd, _mm256_castps_pd, _mm256_castpd_ps);
    for j in 0..4 {
        let [a, b] = [rows[j], rows[4 + j]];
        rows[j] = _mm256_permute2f128_ps::<0x20>(a, b);
        rows[4 + j] = _mm256_permute2f128_ps::<0x31>(a, b);
    }
    rows
}

macro_rules! register {
    ($type:ident, $count:literal, $zero:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $set:ident, $fma:ident, $transpose:ident) => {
        // SAFETY of all: code with these registers is part of functions compiled for them, which run only where the
        // processor has them; loads and stores are in bounds, as asserted.
        impl Register for $type {
            const COUNT: usize = $count;

            #[inline(always)]
            fn zero() -> Self {
                // SAFETY: as above.
                unsafe { $zero() }
            }

            #[inline(always)]
            fn load(values: &[f32]) -> Self {
                assert!(values.len() >= $count);
                // SAFETY: as above.
                unsafe { $load(values.as_ptr()) }
            }

            #[inline(always)]
            fn store(self, values: &mut [f32]) {
                assert!(values.len() >= $count);
                // SAFETY: as above.
                unsafe { $store(values.as_mut_ptr(), self) }
            }

            #[inline(always)]
            fn add(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { $sub(self, other) }
            }

            #[inline(always)]
            fn times(self, factor: f32) -> Self {
                // SAFETY: as above.
                unsafe { $mul(self, $set(factor)) }
            }

            #[inline(always)]
            fn plus(self, factor: f32, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { $fma($set(factor), other, self) }
            }

            #[inline(always)]
            fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
                // SAFETY: as above.
                unsafe { $transpose(rows) }
            }
        }
    };
}

#[rustfmt::skip]
register!(__m512, 16, _mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps, _mm512_sub_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_fmadd_ps, transpose512);
#[rustfmt::skip]
register!(__m256, 8, _mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps, _mm256_sub_ps, _mm256_mul_ps, _mm256_set1_ps, _mm256_fmadd_ps, transpose256);
