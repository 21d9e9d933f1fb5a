//! Arithmetic on neighbouring channels, and code compiled for the widest registers of the processor.

#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Add, Mul, Sub};

/// What channels must be a multiple of for [`Lanes`] of any width.
pub(super) const LANES: usize = 16;

/// Has values that are needed soon brought into the second-level cache, on processors that can be asked to.
#[inline(always)]
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
pub(super) fn fetch(values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    x86::fetch(values);
}

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

/// Defines functions that are compiled for each width of registers; a call takes the widest that is in use. A function
/// `name<R>` gets the type of that [`Register`].
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
                use $crate::backend::cpu::isa::Isa;

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

                match Isa::current() {
                    // SAFETY: the processor has the current instructions.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Portable => {}
                }
            }
            $any($($arg),*)
        }
    };
}
pub(super) use widest;
