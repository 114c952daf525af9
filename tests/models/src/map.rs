//! In place of the store's mappings: ordinary memory, beside which accesses are checked.

use std::{
    ptr::NonNull,
    rc::Rc,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{Error, memory::Memory};

pub(crate) const HUGE_PAGE_BYTES: usize = 2 * 1024 * 1024;

loom::lazy_static! {
    /// Where mappings start, and the checks of accesses to them.
    static ref MAPPINGS: Mutex<Vec<(usize, Rc<Memory>)>> = Mutex::default();
}

pub(crate) struct Mapping {
    bytes: Box<[AtomicU8]>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        check(&self.bytes, true);
        let at = self.bytes.as_ptr().addr();
        MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner).retain(|(start, _)| *start != at);
    }
}

impl Mapping {
    pub(crate) fn new(len: usize) -> Self {
        let bytes: Box<[AtomicU8]> = (0..len).map(|_| AtomicU8::new(0)).collect();
        let mut mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.push((bytes.as_ptr().addr(), Rc::new(Memory::new(len))));
        Self { bytes }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn at(&self, offset: usize) -> NonNull<u8> {
        NonNull::from_ref(&self.bytes[offset]).cast()
    }

    pub(crate) fn populate(&self, offset: usize, len: usize) -> Result<bool, Error> {
        // As the kernel does it: whatever is there stays.
        for byte in &self.bytes[offset..offset + len] {
            byte.fetch_or(0, Ordering::Relaxed);
        }
        Ok(true)
    }
}

/// Unmapping counts as a write: nobody may be about to read or write there.
fn check<T>(bytes: &[T], writes: bool) {
    let at = bytes.as_ptr().addr();
    let found = {
        let mappings = MAPPINGS.lock().unwrap_or_else(PoisonError::into_inner);
        mappings.iter().find(|(start, memory)| (*start..start + memory.len()).contains(&at)).cloned()
    };
    assert!(found.is_some(), "memory is used that is not mapped");
    if let Some((start, memory)) = found {
        memory.check(at - start, bytes.len(), writes);
    }
}

/// What lies there; fails the model where a write of another thread is not ordered with this.
pub fn read(bytes: &[u8]) -> &[u8] {
    check(bytes, false);
    bytes
}

/// Fills the bytes; fails the model where an access of another thread is not ordered with this.
pub fn write(bytes: &mut [u8], value: u8) {
    check(bytes, true);
    bytes.fill(value);
}
