//! What the cores do at best: a matrix product that stays in their caches, and a copy that does not.

use std::time::Instant;

use super::Workers;
use super::matmul::{Matrix, matmul};
use crate::backend::Ceilings;

/// Runs of which the fastest counts.
const RUNS: usize = 5;

impl Workers {
    pub(super) fn ceilings(&self) -> Ceilings {
        let threads = self.scratch.len();
        Ceilings { flops: self.product_rate(threads), bytes: self.copy_rate(threads) }
    }

    /// Operations a second of all threads, each with a product of its own.
    fn product_rate(&self, threads: usize) -> f64 {
        const SIDE: usize = 512;
        let numbers = vec![1.0_f32; SIDE * SIDE];
        let matrix = Matrix { data: &numbers, row: SIDE, col: 1 };
        let product = |_: usize| matmul(SIDE, SIDE, SIDE, &mut vec![0.0; SIDE * SIDE], matrix, matrix);
        fastest(|| self.each(threads * 4, product), (threads * 4 * 2 * SIDE * SIDE * SIDE) as f64)
    }

    /// Bytes a second, read and written, of all threads together.
    fn copy_rate(&self, threads: usize) -> f64 {
        use rayon::prelude::*;

        const LEN: usize = 64 << 20;
        let source = vec![1_u8; LEN];
        let mut copy = vec![0_u8; LEN];
        let part = LEN.div_ceil(threads);
        let run = || {
            self.pool.install(|| {
                let parts = copy.par_chunks_mut(part).zip(source.par_chunks(part));
                parts.for_each(|(to, from)| to.copy_from_slice(from));
            });
        };
        fastest(run, 2.0 * LEN as f64)
    }
}

/// The rate of the fastest of some runs that each do `work`.
fn fastest(mut run: impl FnMut(), work: f64) -> f64 {
    let mut rate = || {
        let start = Instant::now();
        run();
        work / start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(|_| rate()).fold(0.0, f64::max)
}
