//! Bytes that several threads share, each access to which is checked against those of other threads.

use std::sync::{Mutex, OnceLock, PoisonError};

use loom::cell::UnsafeCell;

/// How finely accesses are told apart, in bytes: no two threads may write to one such piece at once.
const PIECE_BYTES: usize = 16;

/// Plain memory; it starts as zeros.
pub(crate) struct Memory {
    bytes: Mutex<Vec<u8>>,
    pieces: Vec<OnceLock<UnsafeCell<()>>>,
}

impl Memory {
    pub(crate) fn new(len: usize) -> Self {
        let pieces = (0..len.div_ceil(PIECE_BYTES)).map(|_| OnceLock::new()).collect();
        Self { bytes: Mutex::new(vec![0; len]), pieces }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Fails the model where another thread's access is not ordered with this one.
    pub(crate) fn check(&self, offset: usize, len: usize, writes: bool) {
        for piece in offset / PIECE_BYTES..(offset + len).div_ceil(PIECE_BYTES) {
            let cell = self.pieces[piece].get_or_init(|| UnsafeCell::new(()));
            match writes {
                true => cell.with_mut(|_| ()),
                false => cell.with(|_| ()),
            }
        }
    }

    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        self.check(offset, from.len(), true);
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        bytes[offset..offset + from.len()].copy_from_slice(from);
    }

    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        self.check(offset, len, false);
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)[offset..offset + len].to_vec()
    }
}
