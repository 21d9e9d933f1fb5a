//! Rank correlation of two maps.

/// Spearman's rank correlation.
pub fn spearman(a: &[f32], b: &[f32]) -> f64 {
    let ranks = |v: &[f32]| {
        let mut order: Vec<usize> = (0..v.len()).collect();
        order.sort_by(|i, j| v[*i].total_cmp(&v[*j]));
        let mut ranks = vec![0.0; v.len()];
        // Equal values share the mean of their ranks.
        for group in order.chunk_by(|i, j| v[*i] == v[*j]).scan(0, |first, group| {
            *first += group.len();
            Some((*first - group.len(), group))
        }) {
            let mean = group.0 as f64 + (group.1.len() - 1) as f64 / 2.0;
            group.1.iter().for_each(|i| ranks[*i] = mean);
        }
        ranks
    };
    let (a, b) = (ranks(a), ranks(b));
    let mean = (a.len() - 1) as f64 / 2.0;
    let product = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum::<f64>();
    product(&a, &b) / (product(&a, &a) * product(&b, &b)).sqrt()
}
