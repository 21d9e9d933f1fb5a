//! Squares of numbers, turned over.

use super::panel::PANEL;
use super::simd::{LANES, widest};

widest! {
    /// Rows of [`PANEL`] numbers become columns.
    fn transpose<R>(from: &[f32; PANEL * PANEL], to: &mut [f32; PANEL * PANEL]) {
        for row in (0..PANEL).step_by(R::COUNT) {
            for column in (0..PANEL).step_by(R::COUNT) {
                let mut square = [R::zero(); LANES];
                for i in 0..R::COUNT {
                    square[i] = R::load(&from[(row + i) * PANEL + column..]);
                }
                let square = R::transpose(square);
                for i in 0..R::COUNT {
                    square[i].store(&mut to[(column + i) * PANEL + row..]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::simd::Register;
    use super::*;

    #[test]
    fn rows_become_columns() {
        let from: [f32; PANEL * PANEL] = std::array::from_fn(|i| i as f32);
        let expected: [f32; PANEL * PANEL] = std::array::from_fn(|i| (i % PANEL * PANEL + i / PANEL) as f32);
        let mut to = [0.0; PANEL * PANEL];
        transpose(&from, &mut to);
        assert_eq!(to, expected);
        let square: [[f32; 4]; LANES] = std::array::from_fn(|i| std::array::from_fn(|j| (4 * i + j) as f32));
        let turned = <[f32; 4]>::transpose(square);
        assert!((0..4).all(|i| (0..4).all(|j| turned[i][j] == square[j][i])), "{turned:?}");
    }
}
