//! Which copies are primary ones, and which were pulled from where: both change when a node leaves, or dies.

use mobula_proto::{HostId, NodeId, ObjectId, peer as wire};

use super::{Entry, Key, Objects, Origin, of_owner, up_to};

impl Objects {
    /// Where a copy was pulled from; `None` for a primary one, or none.
    pub fn origin(&self, key: Key) -> Option<Origin> {
        self.copies.get(&key).and_then(|entry| entry.origin)
    }

    /// A copy that came from elsewhere is the primary one from now on. Its bytes; `None` where there is none.
    pub fn promote(&mut self, key: Key) -> Option<u64> {
        let entry = self.copies.get_mut(&key).filter(|entry| !entry.freed)?;
        let bytes = entry.bytes;
        if entry.origin.take().is_some() {
            let memory = entry.memory;
            self.count_primary(true, bytes, true);
            // What was pulled lies in no file.
            if let Some(region) = memory.and_then(|(id, _)| self.regions.get_mut(&id)) {
                region.secondary -= 1;
                region.dirty += 1;
                region.dirty_bytes += bytes;
                self.disk.dirty_bytes += bytes;
            }
        }
        Some(bytes)
    }

    /// A copy is no primary one any more, but as if pulled from there. `false` where it is not, or lies in a file, as only
    /// primary ones may.
    pub fn demote(&mut self, key: Key, origin: Origin) -> bool {
        let entry =
            self.copies.get_mut(&key).filter(|entry| !entry.freed && entry.is_dirty() && !entry.spilling);
        let Some(entry) = entry else { return false };
        let (bytes, memory) = (entry.bytes, entry.memory);
        entry.origin = Some(origin);
        self.count_primary(true, bytes, false);
        if let Some(region) = memory.and_then(|(id, _)| self.regions.get_mut(&id)) {
            region.secondary += 1;
            region.dirty -= 1;
            region.dirty_bytes -= bytes;
            self.disk.dirty_bytes -= bytes;
        }
        true
    }

    /// What was pulled from a node of what a host owns, in memory of the job in which it lay there.
    pub fn pulled_from(&self, node: NodeId, owner: HostId) -> Vec<Key> {
        let came =
            |key: &Key, entry: &Entry| !entry.freed && entry.origin == Some(Origin { node, job: key.2 });
        let all = self.copies.range(of_owner(owner));
        all.filter(|(key, entry)| key.0.owner == owner && came(key, entry)).map(|(key, _)| *key).collect()
    }

    /// The length of a primary copy; `None` where there is none.
    pub fn primary_bytes(&self, key: Key) -> Option<u64> {
        let entry = self.copies.get(&key).filter(|entry| !entry.freed && entry.origin.is_none())?;
        Some(entry.bytes)
    }

    /// Another node has the primary copy now: who copied this one, to be told by that node from now on.
    pub fn give_away(&mut self, key: Key) -> Vec<NodeId> {
        let entry = self.copies.get_mut(&key);
        entry.map(|entry| std::mem::take(&mut entry.holders).nodes().collect()).unwrap_or_default()
    }

    /// These have copies of a primary one that came from elsewhere. Its length; `None` where it has gone meanwhile.
    pub fn held_by(&mut self, key: Key, nodes: &[NodeId]) -> Option<u64> {
        let entry = self.copies.get_mut(&key).filter(|entry| !entry.freed)?;
        entry.holders.add(nodes);
        Some(entry.bytes)
    }

    /// The primary copy of what was pulled is this one, wherever it was then. One that was freed and is still read is of use
    /// again. Whether its node does not know of any, since where they came from is gone, or they had been freed.
    pub fn pulled_of(
        &mut self,
        object: ObjectId,
        copy: &wire::Copy,
        is_gone: impl Fn(NodeId) -> bool,
    ) -> bool {
        let mut unknown = false;
        let all = self.copies.range_mut(up_to(object, copy.attempt)).filter(|(key, _)| key.1 == copy.attempt);
        for (_, entry) in all {
            if let Some(origin) = entry.origin.as_mut().filter(|origin| origin.job == copy.job) {
                unknown |= origin.node != copy.node && is_gone(origin.node) || entry.freed;
                (origin.node, entry.freed) = (copy.node, false);
            }
        }
        unknown
    }
}
