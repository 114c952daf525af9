//! The task that pulls one copy: from the node with the primary one, from others that it names, for readers of another job
//! from this very node, or, where this node cannot read its primary copy any more, from those that pulled it.
//!
//! A copy counts as lost only where the node with the primary one says that it has none, or is declared dead, and where it
//! is this node, only where all those say so or are. Whatever
//! else goes wrong is trouble of the moment: it is tried again for [`Pulls::reach`], and then is an error that says what
//! could not be reached, after which the copy is as good as before.

use std::{
    io::IoSlice,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use mobula_net::bulk::{self, Progress};
use mobula_proto::{
    FailureKind, NodeId, ObjectId,
    head::{Pull, SOURCE_REFS_MAX, SOURCES_MAX, Sources},
    peer::Copy,
    wire,
};
use mobula_store::heap::Block;
use smallvec::SmallVec;
use tokio::sync::watch;
use tracing::debug;

use super::{
    actor::Post,
    peers::{Line, Peers},
    transfer::Answer,
};
use crate::core::{
    objects::Key,
    transfer::{Pulls, Search, Wish},
};

/// Between two tries at first, and at most.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// Why a pull came to nothing.
pub(super) struct Unpulled {
    pub(super) kind: FailureKind,
    pub(super) why: String,
}

impl Unpulled {
    fn lost(why: impl Into<String>) -> Self {
        Self { kind: FailureKind::ObjectLost, why: why.into() }
    }

    pub(super) fn no_memory(why: impl Into<String>) -> Self {
        Self { kind: FailureKind::StoreFull, why: why.into() }
    }

    /// Its readers are gone.
    pub(super) fn unwanted() -> Self {
        Self { kind: FailureKind::Unreachable, why: "nobody waited for it any more".to_owned() }
    }

    fn defect(why: impl std::fmt::Display) -> Self {
        Self { kind: FailureKind::Internal, why: why.to_string() }
    }
}

/// What a pull hears, kept from one source to the next.
struct Filled<'a> {
    progress: &'a watch::Sender<Progress>,
    bytes: u64,
    others: Option<Vec<NodeId>>,
    refs: Option<Vec<ObjectId>>,
}

impl bulk::Sink for Filled<'_> {
    fn note(&mut self, note: &[u8]) {
        self.others = self.sources(note);
    }

    fn filled(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.progress.send_replace(Progress::Have(self.bytes));
    }
}

impl Filled<'_> {
    /// Who else has it; keeps the refs inside it.
    fn sources(&mut self, note: &[u8]) -> Option<Vec<NodeId>> {
        // As long as the reader allows; and copied to where its parts are aligned.
        let mut aligned = rkyv::util::AlignedVec::<16>::with_capacity(note.len());
        aligned.extend_from_slice(note);
        let Sources { nodes, refs } = wire::decode(&aligned).ok()?;
        if let Some(refs) = refs.filter(|refs| refs.len() <= SOURCE_REFS_MAX) {
            self.refs = Some(refs);
        }
        (nodes.len() <= SOURCES_MAX).then_some(nodes)
    }
}

/// What is still to be filled of a block.
struct Rest<'a> {
    block: &'a mut Block,
    from: u64,
    end: u64,
}

impl bulk::Dest for Rest<'_> {
    fn bytes(&self) -> u64 {
        self.end - self.from
    }

    fn put(&mut self, at: u64, parts: &[Bytes]) -> Result<(), String> {
        let parts: SmallVec<[IoSlice<'_>; 16]> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.block.write_at(self.from + at, &parts).map_err(|error| error.to_string())
    }
}

/// One pull.
pub(super) struct Pulling<'a> {
    pub(super) peers: &'a Arc<Peers>,
    pub(super) post: &'a Post,
    pub(super) pulls: Pulls,
    pub(super) me: NodeId,
    /// What it will be here.
    pub(super) key: Key,
    /// The primary copy.
    pub(super) copy: Copy,
    /// Where it is to be here, and cannot be read any more: who may have one.
    pub(super) among: Option<Vec<NodeId>>,
}

/// How one search for a source ended.
enum Ended {
    /// There is none (any more).
    Lost(String),
    /// There may be one later.
    NotNow(String),
}

impl Pulling<'_> {
    /// Fills the block. Returns the refs inside, where it was told of them.
    pub(super) async fn run(
        &self,
        block: &mut Block,
        progress: &watch::Sender<Progress>,
    ) -> Result<Option<Vec<ObjectId>>, Unpulled> {
        let mut sink = Filled { progress, bytes: 0, others: None, refs: None };
        let (mut since, mut have, mut pause) = (Instant::now(), 0, PAUSES.0);
        loop {
            let ended = if self.copy.node == self.me && self.among.is_none() {
                self.copy_from_here(block, &mut sink).await?
            } else {
                self.search(block, &mut sink).await?
            };
            let why = match ended {
                None => return Ok(sink.refs),
                Some(Ended::Lost(why)) => return Err(Unpulled::lost(why)),
                Some(Ended::NotNow(why)) => why,
            };
            if sink.bytes > have {
                (since, have, pause) = (Instant::now(), sink.bytes, PAUSES.0);
            }
            let tried = since.elapsed();
            if tried >= self.pulls.reach {
                let why = format!("{why}; tried for {tried:.0?}, and it is no less there: try again later");
                return Err(Unpulled { kind: FailureKind::Unreachable, why });
            }
            debug!(object = %self.key.0, have, %why, "a pull waits for a moment");
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn rest<'b>(&self, block: &'b mut Block, from: u64) -> Rest<'b> {
        Rest { block, from, end: self.copy.bytes }
    }

    /// From a copy in memory of another job.
    async fn copy_from_here(
        &self,
        block: &mut Block,
        sink: &mut Filled<'_>,
    ) -> Result<Option<Ended>, Unpulled> {
        let (object, ..) = self.key;
        let wish = Wish { object, copy: self.copy, by: self.me, tried: Vec::new(), whole: true };
        let mut answer = self.post.serve(wish, sink.bytes).await;
        while let Ok(Answer::Later(later)) = answer {
            answer = Post::answered(later).await;
        }
        let (range, _lent) = match answer {
            Ok(Answer::Range(_, range, lent)) => (range, lent),
            Ok(Answer::Elsewhere(_) | Answer::Later(_)) => {
                return Err(Unpulled::defect("it was sent elsewhere from here"));
            }
            Err(bulk::Refusal::Absent(why)) => return Ok(Some(Ended::Lost(why))),
            Err(bulk::Refusal::Busy(why)) => return Ok(Some(Ended::NotNow(why))),
        };
        match bulk::copy(range, &mut self.rest(block, sink.bytes), sink).await {
            Ok(()) => Ok(None),
            Err(bulk::Error::Place { reason }) => Err(Unpulled::no_memory(reason)),
            Err(error) => Ok(Some(Ended::NotNow(error.to_string()))),
        }
    }

    /// From whichever node has it, as far as one search goes.
    async fn search(&self, block: &mut Block, sink: &mut Filled<'_>) -> Result<Option<Ended>, Unpulled> {
        let (object, ..) = self.key;
        let (me, copy) = (self.me, self.copy);
        let mut search = match &self.among {
            Some(nodes) if nodes.is_empty() => {
                return Ok(Some(Ended::Lost("no other node has a copy".to_owned())));
            }
            Some(nodes) => Search::among(me, nodes.clone()),
            None => Search::new(copy.node),
        };
        // What the node with the primary copy said last; without one, any that may have it later.
        let mut primary = None;
        loop {
            let wish = Pull::Object {
                object,
                copy,
                by: me,
                from: sink.bytes,
                tried: search.tried().to_vec(),
                whole: search.whole(),
            };
            let request = wire::encode(&wish).map_err(Unpulled::defect)?;
            let mut dest = self.rest(block, sink.bytes);
            let at_primary = search.at() == copy.node;
            let (ended, goes_on) = match self.peers.connection(search.at(), Line::Bulk).await {
                Err(error) => {
                    debug!(%object, source = %search.at(), %error, "a source is not reached");
                    let why = error.to_string();
                    let gone = self.peers.has_gone(search.at());
                    let ended = if gone { Ended::Lost(why) } else { Ended::NotNow(why) };
                    (ended, search.failed(false))
                }
                Ok(connection) => {
                    let result = bulk::pull(&connection, &request, &mut dest, self.pulls.stall, sink).await;
                    if let Some(others) = sink.others.take() {
                        search.others(others);
                    }
                    match result {
                        Ok(()) => return Ok(None),
                        Err(bulk::Error::Place { reason }) => return Err(Unpulled::no_memory(reason)),
                        Err(bulk::Error::Elsewhere { note }) => {
                            let nodes = sink.sources(&note).unwrap_or_default();
                            let why = "nobody is named who has it".to_owned();
                            (Ended::NotNow(why), search.elsewhere(nodes))
                        }
                        Err(error) => {
                            debug!(%object, source = %search.at(), have = sink.bytes, %error, "a source is left");
                            let why = error.to_string();
                            // Who has just said that it cannot is asked after a pause.
                            let (ended, again) = match error {
                                bulk::Error::Refused { .. } | bulk::Error::Length { .. } => {
                                    (Ended::Lost(why), false)
                                }
                                bulk::Error::Busy { .. } => (Ended::NotNow(why), false),
                                _ => (Ended::NotNow(why), true),
                            };
                            (ended, search.failed(again))
                        }
                    }
                }
            };
            if at_primary || self.among.is_some() && !matches!(primary, Some(Ended::NotNow(_))) {
                primary = Some(ended);
            }
            if !goes_on {
                let never = || Ended::NotNow("its node was not asked".to_owned());
                return Ok(Some(primary.unwrap_or_else(never)));
            }
        }
    }
}
