//! Sets of small numbers, a bit for each.

/// A set that grows as it must. What is missing at its end is not in it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub fn contains(&self, at: u32) -> bool {
        self.0.get(at as usize / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    pub fn insert(&mut self, at: u32) {
        let word = at as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (at % 64);
    }

    pub fn remove(&mut self, at: u32) {
        if let Some(word) = self.0.get_mut(at as usize / 64) {
            *word &= !(1 << (at % 64));
        }
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Whether any is in both.
    pub fn meets(&self, other: &Self) -> bool {
        // All of it, two words at a time: sooner done than looking at each.
        self.0.iter().zip(&other.0).fold(0, |both, (a, b)| both | a & b) != 0
    }

    /// Becomes like another, in the memory that it has.
    pub fn copy(&mut self, other: &Self) {
        self.0.clear();
        self.0.extend_from_slice(&other.0);
    }

    /// Keeps what is in another, too.
    pub fn keep(&mut self, other: &Self) {
        self.0.truncate(other.0.len());
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= b);
    }

    /// Takes out what is in another.
    pub fn without(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a &= !b);
    }

    /// Adds what is in another.
    pub fn add(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(a, b)| *a |= b);
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0_u32..).zip(&self.0).flat_map(|(at, word)| {
            let mut left = *word;
            std::iter::from_fn(move || {
                let bit = (left != 0).then(|| left.trailing_zeros())?;
                left &= left - 1;
                Some(at * 64 + bit)
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::Bits;
    use crate::sim::Random;

    fn set(random: &mut Random) -> (Bits, BTreeSet<u32>) {
        let (mut bits, mut set) = (Bits::new(), BTreeSet::new());
        for _ in 0..random.below(60) {
            let at = random.below(300) as u32;
            if random.chance(70) {
                bits.insert(at);
                set.insert(at);
            } else {
                bits.remove(at);
                set.remove(&at);
            }
        }
        (bits, set)
    }

    #[test]
    fn they_do_as_sets_do() {
        let mut random = Random::new(1);
        for _ in 0..500 {
            let ((a, one), (b, two)) = (set(&mut random), set(&mut random));
            let list = |bits: &Bits| bits.iter().collect::<BTreeSet<u32>>();
            let mut sum = a.clone();
            sum.add(&b);
            let (mut both, mut rest, mut copy) = (a.clone(), a.clone(), a.clone());
            both.keep(&b);
            rest.without(&b);
            copy.copy(&b);
            assert_eq!(list(&a), one);
            assert_eq!(list(&copy), two);
            assert_eq!(list(&sum), &one | &two);
            assert_eq!(list(&both), &one & &two);
            assert_eq!(list(&rest), &one - &two);
            assert_eq!(a.meets(&b), !one.is_disjoint(&two));
            assert_eq!(a.is_empty(), one.is_empty());
            assert!((0..310).all(|at| a.contains(at) == one.contains(&at)));
        }
    }
}
