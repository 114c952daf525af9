//! The table of objects.

use mobula_proto::{IdMap, Names, ObjectId, SeqMap};

use crate::entry::Entry;

/// Entries by object. Most are the first values of tasks of this host, which count up.
#[derive(Debug)]
pub(crate) struct Objects {
    names: Names,
    first: SeqMap<Entry>,
    others: IdMap<ObjectId, Entry>,
}

impl Objects {
    pub(crate) fn new(names: Names) -> Self {
        Self { names, first: SeqMap::default(), others: IdMap::default() }
    }

    #[inline]
    fn is_first(&self, object: &ObjectId) -> bool {
        object.index == 0 && object.owner == self.names.owner()
    }

    #[inline]
    pub(crate) fn get(&self, object: &ObjectId) -> Option<&Entry> {
        if self.is_first(object) { self.first.get(&object.seq) } else { self.others.get(object) }
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, object: &ObjectId) -> Option<&mut Entry> {
        if self.is_first(object) { self.first.get_mut(&object.seq) } else { self.others.get_mut(object) }
    }

    pub(crate) fn insert(&mut self, object: ObjectId, entry: Entry) {
        if self.is_first(&object) {
            self.first.insert(object.seq, entry);
        } else {
            self.others.insert(object, entry);
        }
    }

    pub(crate) fn remove(&mut self, object: &ObjectId) -> Option<Entry> {
        if self.is_first(object) { self.first.remove(&object.seq) } else { self.others.remove(object) }
    }

    /// In no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ObjectId, &Entry)> {
        let first = self.first.iter().map(|(seq, entry)| (self.names.task(seq).object(0), entry));
        first.chain(self.others.iter().map(|(object, entry)| (*object, entry)))
    }

    /// In no order.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (ObjectId, &mut Entry)> {
        let Self { names, first, others } = self;
        let first = first.iter_mut().map(|(seq, entry)| (names.task(seq).object(0), entry));
        first.chain(others.iter_mut().map(|(object, entry)| (*object, entry)))
    }
}
