//! What another node is to be told of objects that may go there. It is kept as a set beside the queue to that node, each
//! object once, so that a burst of any length is told in full, however long the node cannot be reached: what waits is never
//! more than there were objects, or claims on them.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{HostId, JobId, ObjectId, head::Between, peer::Copy};

/// For one node. To be told twice, or late, changes nothing: an object that is garbage stays so. Claims are counted there, so
/// one that is taken back is told once for each time, and behind what waited in the queue by then: a claim that came first
/// must not find that the object went with the one before it.
#[derive(Debug, Default)]
pub(super) struct Garbage {
    freed: BTreeMap<ObjectId, Copy>,
    /// First value, last index, attempt, in whose memory.
    discarded: BTreeSet<(ObjectId, u32, u32, Option<JobId>)>,
    dropped: BTreeMap<(ObjectId, JobId), u32>,
    /// How often it was claimed in vain.
    unclaimed: BTreeMap<(HostId, ObjectId), u32>,
    /// Those of them that may be told once `behind` more messages have left the queue.
    due: BTreeMap<(HostId, ObjectId), u32>,
    behind: usize,
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
            Between::Discard { object, last, attempt, job } => {
                self.discarded.insert((object, last, attempt, job));
                Ok(())
            }
            Between::Drop { object, attempt, job } => {
                let known = self.dropped.entry((object, job)).or_default();
                *known = attempt.max(*known);
                Ok(())
            }
            Between::Unclaim { host, object } => {
                *self.unclaimed.entry((host, object)).or_default() += 1;
                Ok(())
            }
            other => Err(other),
        }
    }

    /// Messages were taken out of the queue, and some are left there.
    pub(super) fn queue_moved(&mut self, taken: usize, left: usize) {
        if self.due.is_empty() {
            self.due = std::mem::take(&mut self.unclaimed);
            self.behind = left;
        } else {
            // Some may have been taken out elsewhere.
            self.behind = self.behind.saturating_sub(taken).min(left);
        }
    }

    /// The next that is to be told.
    pub(super) fn next(&mut self) -> Option<Between> {
        if let Some((object, copy)) = self.freed.pop_first() {
            return Some(Between::Free { object, copy });
        }
        if let Some((object, last, attempt, job)) = self.discarded.pop_first() {
            return Some(Between::Discard { object, last, attempt, job });
        }
        if let Some(((object, job), attempt)) = self.dropped.pop_first() {
            return Some(Between::Drop { object, attempt, job });
        }
        if self.behind > 0 {
            return None;
        }
        let mut next = self.due.first_entry()?;
        let (host, object) = *next.key();
        *next.get_mut() -= 1;
        if *next.get() == 0 {
            next.remove();
        }
        Some(Between::Unclaim { host, object })
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

    #[tokio::test]
    async fn a_burst_of_claims_is_taken_back_as_often_as_they_were_made() {
        let (outbox, mut queue) = PeerOutbox::new(Default::default());
        let host = HostId { node: NodeId::EMBEDDED, seq: 2 };
        for _ in 0..2 {
            for seq in 0..MANY {
                assert_eq!(outbox.tell(Between::Unclaim { host, object: object(seq) }), Ok(()));
            }
        }
        drop(outbox);
        let mut told: BTreeMap<ObjectId, u32> = BTreeMap::new();
        while let Some(batch) = queue.next().await {
            for item in batch {
                let Between::Unclaim { host: for_whom, object } = item.message else {
                    panic!("nobody said {:?}", item.message)
                };
                assert_eq!(for_whom, host);
                *told.entry(object).or_default() += 1;
            }
        }
        assert_eq!(told.len() as u64, MANY);
        assert!(told.values().all(|times| *times == 2));
    }

    #[tokio::test]
    async fn a_claim_is_taken_back_behind_the_claims_that_were_made_before() {
        /// More than are taken together.
        const CLAIMS: u64 = 200;
        let (outbox, mut queue) = PeerOutbox::new(Default::default());
        let host = HostId { node: NodeId::EMBEDDED, seq: 2 };
        let claim = |number| Between::Claim { host, number, objects: vec![object(1)], gone: vec![] };
        for number in 0..CLAIMS {
            assert_eq!(outbox.tell(claim(number)), Ok(()));
        }
        assert_eq!(outbox.tell(Between::Unclaim { host, object: object(1) }), Ok(()));
        let (mut claims, mut at) = (0, None);
        while at.is_none() || claims <= CLAIMS {
            for item in queue.next().await.unwrap() {
                match item.message {
                    Between::Claim { .. } => {
                        claims += 1;
                        // It does not wait for those that come later, too.
                        if claims == CLAIMS / 2 {
                            assert_eq!(outbox.tell(claim(CLAIMS)), Ok(()));
                        }
                    }
                    Between::Unclaim { .. } => at = Some(claims),
                    other => panic!("nobody said {other:?}"),
                }
            }
        }
        assert!((CLAIMS..=CLAIMS + 1).contains(&at.unwrap()), "it came behind {at:?} claims");
    }
}
