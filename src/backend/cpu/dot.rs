//! Dot products of weight rows with a block of samples: reads each weight once from afar, without packing it first.
//!
//! A general matrix product rearranges the weights for its inner loop, which for a handful of samples costs more than
//! the product itself.

#[cfg(target_arch = "x86_64")]
mod x86;

use super::isa::Isa;

/// Samples that are multiplied together: their rows stay in a core's second-level cache. Others go one by one.
const SAMPLES: usize = 6;

/// Dot products of dense rows `x` with the rows of `weight`, both of length `k`: `out[s·n + j]` is that of row s of `x` with
/// row j of `weight`. Always the same bits, however many rows there are.
pub(super) type Dots = fn(k: usize, x: &[f32], weight: &[f32], n: usize, out: &mut [f32]);

/// The version for the instructions in use.
pub(super) fn select() -> Dots {
    version(Isa::current())
}

/// The version for instructions that the processor has.
fn version(isa: Isa) -> Dots {
    assert!(isa.is_present(), "this processor has no {}", isa.name());
    match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the processor has the extension, as just asked.
        Isa::Avx512 => |k, x, weight, n, out| unsafe { x86::avx512(k, x, weight, n, out) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => |k, x, weight, n, out| unsafe { x86::avx2(k, x, weight, n, out) },
        _ => portable,
    }
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
            for version in Isa::available().map(version) {
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
