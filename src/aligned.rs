//! Numbers that begin at a page.

use std::ops::{Deref, DerefMut};

/// Numbers of a page of memory.
pub(crate) const PAGE: usize = 1024;

/// Numbers that begin at a page, so that no register's worth of them lies in two cache lines where rows are whole lines.
#[derive(Default)]
pub(crate) struct Aligned {
    memory: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// So many zeros, which take no memory until they are touched.
    pub(crate) fn zeros(len: usize) -> Self {
        let memory = vec![0.0; len + PAGE];
        let start = memory.as_ptr().align_offset(PAGE * size_of::<f32>()).min(PAGE);
        Self { memory, start, len }
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut clone = Self::zeros(self.len);
        clone.copy_from_slice(self);
        clone
    }
}

impl std::fmt::Debug for Aligned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self[..].fmt(f)
    }
}

impl Deref for Aligned {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begins_at_a_page() {
        for len in [0, 1, 1000, 1 << 20] {
            let mut numbers = Aligned::zeros(len);
            numbers.iter_mut().enumerate().for_each(|(i, to)| *to = i as f32);
            let copies = [numbers.clone(), numbers];
            assert!(copies.iter().all(|copy| copy.len() == len && copy.as_ptr().addr().is_multiple_of(4 * PAGE)));
            assert_eq!(copies[0][..], copies[1][..]);
        }
        assert!(Aligned::default().is_empty());
    }
}
