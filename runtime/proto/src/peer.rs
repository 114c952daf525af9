//! Messages between two hosts of a cluster: over a shared-memory ring on one node, through their agents
//! otherwise. Messages from one host to another arrive in the order they were sent.

#![allow(missing_docs, reason = "the derive of rkyv makes mirror types with undocumented fields")]

use rkyv::{Archive, Deserialize, Serialize};

use smallvec::SmallVec;

use crate::{Blob, Failure, HostId, JobId, LeaseId, NodeId, ObjectId, TaskId, limits::Limits};

/// Most arguments of one task, and most values that one task returns. A stream's items are not counted among them.
pub const ARGUMENTS_MAX: usize = 65_536;
/// Most items of one stream.
pub const ITEMS_MAX: u32 = u32::MAX - 1;

/// What one host tells another.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum Message {
    /// Submitter to executor: run this.
    Run(Call),
    /// Submitter to executor: run this, and send each item of its stream as soon as it is made.
    RunStream(Box<StreamCall>),
    /// Executor to submitter: an item of a stream.
    Item(Item),
    /// Submitter to executor: so much of what this attempt sent, or found unread at its start, is unread no more.
    Consumed {
        /// The task.
        task: TaskId,
        /// Which attempt.
        attempt: u32,
        /// Items, since the attempt's start.
        items: u64,
        /// Their bytes.
        bytes: u64,
    },
    /// Executor to submitter: this ended.
    Done(Done),
    /// Executor to submitter: the time given for this ran out, and its code was asked to stop. [`Message::Done`] follows
    /// when that has ended, with what it keeps of its arguments.
    Expired {
        /// The task.
        task: TaskId,
        /// Which attempt.
        attempt: u32,
        /// What its results are from now on.
        failure: Box<Failure>,
    },
    /// Submitter to executor: stop it, or do not start it.
    Cancel {
        /// The task.
        task: TaskId,
        /// Ends the process if it has one of its own.
        force: bool,
    },
    /// Submitter to executor: give back what has not started under this lease.
    Recall {
        /// The lease.
        lease: LeaseId,
    },
    /// Executor to submitter: these have not started, and will not here.
    Recalled {
        /// The lease.
        lease: LeaseId,
        /// The tasks, each with the attempt that it was, in the order in which they were submitted.
        tasks: Vec<(TaskId, u32)>,
    },
    /// Owner to executor: end this incarnation of an actor and drop its state.
    Terminate {
        /// The actor, named by its constructing task.
        actor: TaskId,
        /// Which incarnation.
        incarnation: u32,
    },
    /// Owner to executor: let no more calls in, and end this incarnation once those that are in have ended.
    Retire {
        /// The actor.
        actor: TaskId,
        /// Which incarnation.
        incarnation: u32,
    },
    /// Executor to owner: it is done, and all calls that were let in have ended.
    Retired {
        /// The actor.
        actor: TaskId,
        /// Which incarnation.
        incarnation: u32,
    },
    /// Anyone to the actor's owner: end the actor for good.
    Kill {
        /// The actor.
        actor: TaskId,
    },
    /// Borrower to owner: tell me when this object is final.
    Resolve {
        /// The object.
        object: ObjectId,
    },
    /// Owner to borrower: the object's final state; for an actor, also each later one.
    Resolved {
        /// The object.
        object: ObjectId,
        /// Its state.
        state: State,
    },
    /// Borrower to owner: I hold this object from now on.
    Borrow {
        /// The object.
        object: ObjectId,
        /// Comes back in [`Message::Borrowed`].
        token: u64,
    },
    /// Owner to whoever sent [`Message::Borrow`]: it is noted.
    Borrowed {
        /// From the request.
        token: u64,
    },
    /// Borrower to owner: I hold it no more. Sent once for each time the owner noted this borrower.
    Return {
        /// The object.
        object: ObjectId,
        /// How many of its borrows end.
        count: u32,
    },
    /// Receiver of a value to who sent it: these refs in it, which belong to third parties, are counted for the receiver
    /// now. One for each occurrence.
    Took {
        /// The objects.
        objects: Vec<ObjectId>,
    },
    /// Borrower to owner: this copy cannot be read.
    Lost {
        /// The object.
        object: ObjectId,
        /// The copy, as the borrower was told of it.
        copy: Copy,
    },
    /// Owner to executor, in front of an actor's construction: its limits, where they are not those of its type.
    Limits {
        /// The actor.
        actor: TaskId,
        /// The incarnation that is constructed next.
        incarnation: u32,
        /// Its limits.
        limits: Limits,
    },
    /// Executor to caller: the actor's inbox has no room for this call, nor for any that the caller has sent behind
    /// it; they stay with the caller, which answers with [`Message::WantRoom`].
    NoRoom {
        /// The call.
        task: TaskId,
        /// The inbox: most calls that wait there.
        inbox: u32,
    },
    /// Caller to executor: the caller has used, or does not need, what room it was given.
    WantRoom {
        /// The actor.
        actor: TaskId,
        /// The incarnation that the caller means.
        incarnation: u32,
        /// Whether more calls wait with the caller.
        more: bool,
    },
    /// Executor to caller: there is room for some of the calls that wait with the caller.
    Room {
        /// The actor.
        actor: TaskId,
        /// Which incarnation.
        incarnation: u32,
        /// For so many. 0: all that the actor does has been waiting for others for so long that it may be
        /// waiting for the very calls that find no room.
        calls: u32,
    },
    /// A part of another message, which is longer than one may be on its way. The parts of one come in order and with
    /// none of another's between them.
    Piece {
        /// Whether there is more of it.
        more: bool,
        /// The part, of the encoded message.
        bytes: Vec<u8>,
    },
}

/// A task, an actor's construction or an actor's call, ready to run.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Call {
    /// What the submitter calls it.
    pub task: TaskId,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How many there may be.
    pub attempts_max: u32,
    /// The registered function: the first 8 bytes of the BLAKE3 hash of its name and signature.
    pub function: u64,
    /// What it is and whom it concerns.
    pub target: Target,
    /// Arguments in order.
    pub arguments: SmallVec<[Argument; 1]>,
    /// Time from its start after which it is cancelled; 0 for none.
    pub timeout_ms: u64,
}

/// A call whose result is a stream.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct StreamCall {
    /// The call. Its value with index 0 says that the stream has ended; item `i` is value `i + 1`.
    pub call: Call,
    /// The items before this one are made again but not sent.
    pub skip: u32,
    /// The items before this one had been delivered. Those that are sent again since some of them were lost count as
    /// read when they arrive, and need no room beside what is unread.
    pub delivered: u32,
    /// How much may be made and not yet read.
    pub window: Window,
    /// How much is unread at the start.
    pub unread: Window,
}

/// An amount of items and of bytes.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Items.
    pub items: u32,
    /// Encoded bytes of items.
    pub bytes: u64,
}

/// An item of a stream.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Item {
    /// The task.
    pub task: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// Which item, from 0. An attempt sends them in order.
    pub index: u32,
    /// The item.
    pub returned: Returned,
}

/// What a call is.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A task under a lease.
    Task {
        /// The lease it runs under.
        lease: LeaseId,
        /// How many tasks of that lease may run at once.
        slots: u32,
    },
    /// The construction of an actor, named by the call's task.
    Construct {
        /// The lease that the actor holds.
        lease: LeaseId,
        /// Which incarnation this makes, from 1.
        incarnation: u32,
    },
    /// A call of an actor's method.
    Method {
        /// The actor.
        actor: TaskId,
        /// The incarnation that the caller means.
        incarnation: u32,
    },
}

/// One argument.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum Argument {
    /// One value.
    One(Part),
    /// Several values that form one vector.
    List(Vec<Part>),
}

/// A value given to a call.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum Part {
    /// The encoded value.
    Inline(Blob),
    /// An object in a store, to be read where it lies or pulled.
    Stored {
        /// The object.
        object: ObjectId,
        /// Where and how large.
        copy: Copy,
    },
}

/// Where an object's primary copy lies.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy {
    /// The node whose store holds it.
    pub node: NodeId,
    /// Its encoded size.
    pub bytes: u64,
    /// The attempt that made it; pulls never mix attempts.
    pub attempt: u32,
    /// The job in whose memory it lies.
    pub job: JobId,
}

/// A value that a task returned.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Returned {
    /// The value.
    pub value: Value,
    /// The refs inside it. The executor has seen to it that their owners count the submitter as a borrower
    /// (unless the submitter owns them itself).
    pub contains: Vec<ObjectId>,
}

/// A value, or where it lies.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum Value {
    /// The encoded value.
    Inline(Blob),
    /// In a node's store.
    Stored(Copy),
}

/// What the owner of record of an object, the agent with its primary copy, knows of it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Record {
    /// The copy.
    pub copy: Copy,
    /// How many of the refs inside it other records named before.
    pub at: u32,
    /// Those refs, or some more of them.
    pub contains: Vec<ObjectId>,
    /// Whether there are others, which another record names.
    pub more: bool,
}

/// Most refs inside one value. For one in a store, its agent keeps 32 bytes for each, which is about what they take in the
/// value.
pub const CONTAINS_MAX: usize = 2 << 20;
/// Most objects in one message about claims.
pub const CLAIMS_MAX: usize = 1024;
/// Most refs inside values in one message between agents, or to a host: 128 KiB. Others follow in further ones.
pub const RECORD_REFS_MAX: usize = 4096;

/// How a call ended.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Done {
    /// The task.
    pub task: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// Values, or why there are none.
    pub outcome: Outcome,
    /// Refs among its arguments that the executor still holds and whose owner is the submitter: note the
    /// executor as their borrower before letting go of the arguments.
    pub retained: Vec<ObjectId>,
    /// How long user code ran, in nanoseconds.
    pub nanos: u64,
}

/// A call's values or its failure.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum Outcome {
    /// In the order in which they are indexed.
    Values(SmallVec<[Returned; 1]>),
    /// Why it failed.
    Failed(Box<Failure>),
    /// Of a task or an actor's construction: it has not started, since these of its arguments are not where the submitter
    /// said that they lie, which has to find them or to have them made again. Some of what the call named, so no longer than
    /// that was.
    Lost(Vec<(ObjectId, Copy)>),
}

/// The state of an object as its owner knows it.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq)]
pub enum State {
    /// Not made yet.
    Pending,
    /// The value, encoded, and the refs inside it. The owner has noted the asker as a borrower of those that it
    /// owns itself; for others the asker registers while it still holds this object.
    Inline {
        /// The encoded value.
        bytes: Blob,
        /// The refs inside it.
        contains: Vec<ObjectId>,
    },
    /// In a store.
    Stored(Copy),
    /// A living actor: where it is.
    Actor {
        /// The host that runs it.
        host: HostId,
        /// Which incarnation.
        incarnation: u32,
    },
    /// It failed, was cancelled, freed or lost.
    Failed(Box<Failure>),
}

impl Value {
    /// Its encoded size.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Inline(blob) => blob.len() as u64,
            Self::Stored(copy) => copy.bytes,
        }
    }
}

impl Item {
    /// Its name.
    pub fn object(&self) -> ObjectId {
        self.task.object(self.index.saturating_add(1))
    }
}

impl Returned {
    /// The state of the object that has this value, and the refs inside it.
    pub fn into_state(self) -> (State, Vec<ObjectId>) {
        let state = match self.value {
            Value::Inline(bytes) => State::Inline { bytes, contains: self.contains.clone() },
            Value::Stored(copy) => State::Stored(copy),
        };
        (state, self.contains)
    }
}

impl Outcome {
    /// It failed.
    pub fn failed(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}

impl State {
    /// It failed.
    pub fn failed(failure: Failure) -> Self {
        Self::Failed(Box::new(failure))
    }
}
