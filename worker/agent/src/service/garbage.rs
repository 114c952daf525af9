//! What another node is to be told of objects that may go there. It is kept as a set beside the queue to that node, each
//! object once, so that a burst of any length is told in full, however long the node cannot be reached: what waits is never
//! more than there were objects.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{JobId, ObjectId, head::Between, peer::Copy};

/// For one node. To be told twice, or late, changes nothing: an object that is garbage stays so.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    freed: BTreeMap<ObjectId, Copy>,
    /// First value, last index, attempt.
    discarded: BTreeSet<(ObjectId, u32, u32)>,
    dropped: BTreeMap<(ObjectId, JobId), u32>,
}

impl Garbage {
    /// Takes what says that an object may go; gives anything else back.
    pub(super) fn add(&mut self, message: Between) -> Result<(), Between> {
        match message {
            Between::Free { object, copy } => {
                let known = self.freed.entry(object).or_insert(copy);
                // Earlier attempts go with it.
                if known.attempt < copy.attempt {
                    *known = copy;
                }
                Ok(())
            }
            Between::Discard { object, last, attempt } => {
                self.discarded.insert((object, last, attempt));
                Ok(())
            }
            Between::Drop { object, attempt, job } => {
                let known = self.dropped.entry((object, job)).or_default();
                *known = attempt.max(*known);
                Ok(())
            }
            other => Err(other),
        }
    }

    /// The next that is to be told.
    pub(super) fn next(&mut self) -> Option<Between> {
        if let Some((object, copy)) = self.freed.pop_first() {
            return Some(Between::Free { object, copy });
        }
        if let Some((object, last, attempt)) = self.discarded.pop_first() {
            return Some(Between::Discard { object, last, attempt });
        }
        let ((object, job), attempt) = self.dropped.pop_first()?;
        Some(Between::Drop { object, attempt, job })
    }
}

#[cfg(test)]
mod tests {
    use mobula_proto::{HostId, NodeId, TaskId};

    use super::{super::delivery::PeerOutbox, *};

    /// More than the queue to a node has places for.
    const MANY: u64 = 40_000;
    const JOB: JobId = JobId { number: 1 };

    fn object(seq: u64) -> ObjectId {
        TaskId::numbered(HostId { node: NodeId::EMBEDDED, seq: 1 }, seq).object(0)
    }

    fn free(seq: u64, attempt: u32) -> Between {
        let copy = Copy { node: NodeId::EMBEDDED, bytes: 1, attempt, job: JOB };
        Between::Free { object: object(seq), copy }
    }

    #[tokio::test]
    async fn a_burst_is_told_in_full_and_each_once() {
        let (outbox, mut queue) = PeerOutbox::new(Default::default());
        for attempt in [2, 1] {
            for seq in 0..MANY {
                assert_eq!(outbox.tell(free(seq, attempt)), Ok(()));
            }
        }
        for seq in 0..MANY {
            let dropped = Between::Drop { object: object(seq), attempt: 1, job: JOB };
            assert_eq!(outbox.tell(dropped), Ok(()));
        }
        drop(outbox);
        let (mut freed, mut dropped) = (BTreeSet::new(), 0);
        while let Some(batch) = queue.next().await {
            for item in batch {
                match item.message {
                    Between::Free { object, copy } => {
                        assert_eq!(copy.attempt, 2);
                        assert!(freed.insert(object), "{object} is told twice");
                    }
                    Between::Drop { .. } => dropped += 1,
                    other => panic!("nobody said {other:?}"),
                }
            }
        }
        assert_eq!((freed.len() as u64, dropped), (MANY, MANY));
    }
}
