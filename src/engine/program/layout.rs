//! Where a program's registers lie in the arena: values that are alive at the same time lie apart.

use std::collections::HashMap;

use super::{Reg, RegInfo, Writer};
use crate::backend::{ALIGN, Access, Scope, Slot, Step};

impl Writer<'_> {
    /// Lays the program out from byte `base` of the arena on, for batches of up to `batch` samples. Returns the
    /// program and the first byte after it.
    pub fn lay_out(&self, base: usize, batch: usize) -> (Vec<Step<Slot>>, usize) {
        let (places, place_of) = self.places(batch);
        // The largest first leaves the least gaps mostly, in order of their use now and then.
        let by_size = Place::lay_out(&places, base, |place| std::cmp::Reverse(place.bytes));
        let by_use = Place::lay_out(&places, base, |place| place.first);
        let (offsets, end) = if by_use.1 < by_size.1 { by_use } else { by_size };
        let slot = |reg: Reg| {
            let RegInfo { len, lanes, dtype, fixed } = self.regs[reg.0];
            let offset = || place_of.get(&reg).map(|place| offsets[*place]);
            let batch = || Some(Slot { offset: offset()?, len, lanes, dtype, scope: Scope::Batch });
            fixed.or_else(batch).unwrap_or_else(|| unreachable!("register {reg:?} is read before it is written"))
        };
        let step =
            |step: &Step<Reg>| Step { node: step.node.clone(), instr: step.instr.clone().map(|reg, _| slot(reg)) };
        (self.steps.iter().map(step).collect(), end)
    }

    /// The places that registers need, and which one has which.
    fn places(&self, batch: usize) -> (Vec<Place>, HashMap<Reg, usize>) {
        let mut last_use: HashMap<Reg, usize> = HashMap::new();
        for (at, step) in self.steps.iter().enumerate() {
            step.instr.clone().map(|reg, _| last_use.insert(reg, at));
        }
        let bytes = |info: &RegInfo| (info.len * info.lanes * info.dtype.bytes() * batch).next_multiple_of(ALIGN);
        let mut places: Vec<Place> = vec![];
        let mut place_of: HashMap<Reg, usize> = HashMap::new();
        for (at, step) in self.steps.iter().enumerate() {
            // A term added in place hands its memory on when nobody else reads it, here or later.
            let mut reads: Vec<Reg> = vec![];
            step.instr.clone().map(|reg, _| reads.push(reg));
            let mut heir = None;
            step.instr.clone().map(|reg, access| {
                let info = &self.regs[reg.0];
                if info.fixed.is_some() {
                    return;
                }
                let once = reads.iter().filter(|r| **r == reg).count() == 1;
                if access == Access::ReadInPlace && last_use[&reg] == at && once {
                    heir = Some(reg);
                }
                if access == Access::Write && !place_of.contains_key(&reg) {
                    let same = |h: &Reg| {
                        let from = &self.regs[h.0];
                        (from.len, from.lanes, from.dtype) == (info.len, info.lanes, info.dtype)
                    };
                    let place = heir.take().filter(same).map_or(places.len(), |h| place_of[&h]);
                    if place == places.len() {
                        places.push(Place { bytes: bytes(info), first: at, last: at });
                    }
                    places[place].last = last_use[&reg];
                    place_of.insert(reg, place);
                }
            });
        }
        (places, place_of)
    }
}

/// Memory for a value, or for several that follow one another in it.
struct Place {
    bytes: usize,
    /// The steps from which to which it is needed.
    first: usize,
    last: usize,
}

impl Place {
    /// Offsets from `base` on, and the first byte after all. One after the other, each is put into the smallest gap that
    /// those before it leave while it is needed.
    fn lay_out<K: Ord>(places: &[Self], base: usize, key: impl Fn(&Self) -> K) -> (Vec<usize>, usize) {
        let mut order: Vec<usize> = (0..places.len()).collect();
        order.sort_by_key(|i| key(&places[*i]));
        let mut offsets = vec![base; places.len()];
        for (done, i) in order.iter().enumerate() {
            let place = &places[*i];
            let meets = |j: &&usize| places[**j].first <= place.last && place.first <= places[**j].last;
            let used = order[..done].iter().filter(meets).map(|j| (offsets[*j], places[*j].bytes)).collect();
            offsets[*i] = free_range(base, place.bytes, used);
        }
        let end = places.iter().zip(&offsets).map(|(place, offset)| offset + place.bytes).max().unwrap_or(base);
        (offsets, end)
    }
}

/// The smallest gap between used ranges that holds `size` bytes.
fn free_range(base: usize, size: usize, mut used: Vec<(usize, usize)>) -> usize {
    used.sort_unstable();
    let (mut best, mut start) = (None, base);
    for (offset, len) in used {
        if offset >= start + size && best.is_none_or(|(gap, _)| offset - start < gap) {
            best = Some((offset - start, start));
        }
        start = start.max(offset + len);
    }
    best.map_or(start, |(_, offset)| offset)
}
