//! In place of the store's regions.

use std::os::fd::OwnedFd;

use crate::{
    Error,
    bytes::{Bytes, Pin},
    free::Space,
    map::Mapping,
    sync::Arc,
};

/// As in the store.
pub const BYTES_MAX: u64 = 1 << 46;

/// The only writer of a region.
pub struct Writer {
    mapping: Arc<Mapping>,
    space: Space,
}

impl Writer {
    /// A region of so many bytes.
    pub fn create(bytes: u64) -> Self {
        Self { mapping: Arc::new(Mapping::new(bytes as usize)), space: Space::new(bytes) }
    }

    /// What another process maps.
    pub fn reader(&self) -> Reader {
        Reader { mapping: Arc::clone(&self.mapping) }
    }

    /// Its size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "as in the store")]
    pub fn len(&self) -> u64 {
        self.space.size()
    }

    pub(crate) fn share(&self) -> Result<OwnedFd, Error> {
        Err(Error::NotARegion)
    }

    pub(crate) fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    pub(crate) fn space_mut(&mut self) -> &mut Space {
        &mut self.space
    }
}

/// A mapping of a region that another process writes.
pub struct Reader {
    mapping: Arc<Mapping>,
}

impl Reader {
    /// As in the store, without its check of bounds.
    pub fn bytes(self, offset: u64, len: u64, pin: Option<Pin>) -> Bytes {
        Bytes::mapped(Arc::new(self), offset as usize, len as usize, pin)
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }
}
