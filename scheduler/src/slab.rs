//! Values under small numbers, which are used again.

#[derive(Debug)]
pub(crate) struct Slab<T> {
    slots: Vec<Option<T>>,
    vacant: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Slab<T> {
    pub fn new() -> Self {
        Self { slots: Vec::new(), vacant: Vec::new() }
    }

    pub fn insert(&mut self, value: T) -> u32 {
        if let Some(at) = self.vacant.pop() {
            self.slots[at as usize] = Some(value);
            return at;
        }
        self.slots.push(Some(value));
        u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
    }

    pub fn remove(&mut self, at: u32) -> Option<T> {
        let value = self.slots.get_mut(at as usize)?.take()?;
        self.vacant.push(at);
        Some(value)
    }

    /// Takes a value out for a moment: its number stays its own.
    pub fn lend(&mut self, at: u32) -> Option<T> {
        self.slots.get_mut(at as usize)?.take()
    }

    /// Puts back what was lent.
    pub fn give_back(&mut self, at: u32, value: T) {
        if let Some(slot) = self.slots.get_mut(at as usize) {
            *slot = Some(value);
        }
    }

    pub fn get(&self, at: u32) -> Option<&T> {
        self.slots.get(at as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, at: u32) -> Option<&mut T> {
        self.slots.get_mut(at as usize)?.as_mut()
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.vacant.len()
    }

    /// All numbers are below this one.
    pub fn places(&self) -> usize {
        self.slots.len()
    }

    /// By number.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..).zip(&self.slots).filter_map(|(at, slot)| Some((at, slot.as_ref()?)))
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut T)> {
        (0..).zip(&mut self.slots).filter_map(|(at, slot)| Some((at, slot.as_mut()?)))
    }
}
