//! Dot products of one weight row with a block of samples: reads each weight once, without packing it first.
//!
//! A general matrix product rearranges the weights for its inner loop, which for a handful of samples costs more than
//! the product itself.

/// Samples of one block.
pub(super) const BLOCK: usize = 8;

/// Sums kept side by side for each sample; two or more registers' worth would not fit.
const LANES: usize = 8;

/// Dot products of each of [`BLOCK`] dense rows with a weight row.
pub(super) type Dots = fn(&[f32], &[f32]) -> [f32; BLOCK];

/// The fastest version for this processor.
pub(super) fn select() -> Dots {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has both extensions, as just asked.
        return |rows, weight| unsafe { dots_avx2(rows, weight) };
    }
    #[cfg(target_arch = "aarch64")]
    return |rows, weight| dots(rows, weight, f32::mul_add);
    #[cfg(not(target_arch = "aarch64"))]
    |rows, weight| dots(rows, weight, |w, x, sum| w * x + sum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dots_avx2(rows: &[f32], weight: &[f32]) -> [f32; BLOCK] {
    dots(rows, weight, f32::mul_add)
}

/// Always in the same order: lane by lane along the row, then over the lanes, then the rest.
#[inline(always)]
fn dots(rows: &[f32], weight: &[f32], multiply_add: impl Fn(f32, f32, f32) -> f32) -> [f32; BLOCK] {
    let rows: [&[f32]; BLOCK] = std::array::from_fn(|s| &rows[s * weight.len()..][..weight.len()]);
    let parts = rows.map(|row| row.as_chunks::<LANES>());
    let (chunks, rest) = weight.as_chunks::<LANES>();
    let mut sums = [[0.0_f32; LANES]; BLOCK];
    for (i, w) in chunks.iter().enumerate() {
        for (sums, (row, _)) in sums.iter_mut().zip(&parts) {
            let x = &row[i];
            (0..LANES).for_each(|l| sums[l] = multiply_add(w[l], x[l], sums[l]));
        }
    }
    std::array::from_fn(|s| {
        let tail: f32 = parts[s].1.iter().zip(rest).map(|(x, w)| x * w).sum();
        sums[s].iter().sum::<f32>() + tail
    })
}
