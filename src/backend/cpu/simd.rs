//! Arithmetic on neighbouring channels, and code compiled for the widest registers of the processor.

use std::ops::{Add, Mul, Sub};

/// What channels must be a multiple of for [`Lanes`] of any width.
pub(super) const LANES: usize = 16;

/// A register of numbers. Compilers do not reliably make one of an array.
pub(super) trait Register: Copy {
    /// How many numbers it holds; a divisor of [`LANES`].
    const COUNT: usize;
    fn zero() -> Self;
    /// The first values.
    fn load(values: &[f32]) -> Self;
    fn store(self, values: &mut [f32]);
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn times(self, factor: f32) -> Self;
    /// `self + factor·other`, rounded once where the processor can.
    fn plus(self, factor: f32, other: Self) -> Self;
    /// The first [`COUNT`](Self::COUNT) rows turned over; what the others are means nothing.
    fn transpose(rows: [Self; LANES]) -> [Self; LANES];
}

/// Any processor: compilers make registers of 128 bits of it, which nearly all have.
impl Register for [f32; 4] {
    const COUNT: usize = 4;

    #[inline(always)]
    fn zero() -> Self {
        [0.0; 4]
    }

    #[inline(always)]
    fn load(values: &[f32]) -> Self {
        [values[0], values[1], values[2], values[3]]
    }

    #[inline(always)]
    fn store(self, values: &mut [f32]) {
        values[..4].copy_from_slice(&self);
    }

    #[inline(always)]
    fn add(self, b: Self) -> Self {
        [self[0] + b[0], self[1] + b[1], self[2] + b[2], self[3] + b[3]]
    }

    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        [self[0] - b[0], self[1] - b[1], self[2] - b[2], self[3] - b[3]]
    }

    #[inline(always)]
    fn times(self, factor: f32) -> Self {
        [self[0] * factor, self[1] * factor, self[2] * factor, self[3] * factor]
    }

    #[inline(always)]
    fn plus(self, factor: f32, b: Self) -> Self {
        self.add(b.times(factor))
    }

    #[inline(always)]
    fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|i| std::array::from_fn(|j| rows[j][i % Self::COUNT]))
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{LANES, Register};

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
}

/// Numbers of neighbouring channels.
#[derive(Clone, Copy)]
pub(super) struct Lanes<R>(pub R);

impl<R: Register> Lanes<R> {
    /// `self + factor·other`
    #[inline(always)]
    pub fn plus(self, factor: f32, other: Self) -> Self {
        Self(self.0.plus(factor, other.0))
    }
}

impl<R: Register> Add for Lanes<R> {
    type Output = Self;
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0.add(other.0))
    }
}

impl<R: Register> Sub for Lanes<R> {
    type Output = Self;
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(self.0.sub(other.0))
    }
}

impl<R: Register> Mul<Lanes<R>> for f32 {
    type Output = Lanes<R>;
    #[inline(always)]
    fn mul(self, lanes: Lanes<R>) -> Lanes<R> {
        Lanes(lanes.0.times(self))
    }
}

/// Defines functions that are compiled for each width of registers; a call takes the widest that the processor has. A
/// function `name<R>` gets the type of that [`Register`].
macro_rules! widest {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        widest! {
            @versions [$(#[$doc])*] $name($($arg: $type),*) [body, body, body]
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body($($arg: $type),*) $body
        }
    )*};
    ($($(#[$doc:meta])* fn $name:ident<$register:ident>($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {$(
        widest! {
            @versions [$(#[$doc])*] $name($($arg: $type),*)
            [body::<std::arch::x86_64::__m512>, body::<std::arch::x86_64::__m256>, body::<[f32; 4]>]
            #[inline(always)]
            #[allow(clippy::too_many_arguments)]
            fn body<$register: $crate::backend::cpu::simd::Register>($($arg: $type),*) $body
        }
    )*};
    (@versions [$($doc:tt)*] $name:ident($($arg:ident: $type:ty),*) [$avx512:expr, $avx2:expr, $any:expr] $body:item) => {
        $($doc)*
        #[allow(clippy::too_many_arguments)]
        pub(super) fn $name($($arg: $type),*) {
            $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f")]
                #[allow(clippy::too_many_arguments)]
                fn avx512($($arg: $type),*) {
                    $avx512($($arg),*)
                }

                #[target_feature(enable = "avx2,fma")]
                #[allow(clippy::too_many_arguments)]
                fn avx2($($arg: $type),*) {
                    $avx2($($arg),*)
                }

                if is_x86_feature_detected!("avx512f") {
                    // SAFETY: the processor has the extension, as just asked.
                    return unsafe { avx512($($arg),*) };
                }
                if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                    // SAFETY: as above.
                    return unsafe { avx2($($arg),*) };
                }
            }
            $any($($arg),*)
        }
    };
}
pub(super) use widest;
