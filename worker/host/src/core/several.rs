//! Calls with several results: a number of values that is known beforehand, or a stream of items.
//!
//! Value 0 of a stream says that it has ended, or why it failed; item `i` is value `i + 1`. An item is an object
//! like any other, of which the core holds a reference until it is read.
//!
//! - **C-6** Items are accepted in order, each once, whatever the number of attempts.
//! - **C-7** At most a stream's [`Window`] is accepted and unread, but for what one item has beyond its bytes.
//! - **C-8** A task can be run again as long as one of its stored values lives, if it has attempts left.

use std::collections::{BTreeSet, VecDeque};

use mobula_ownership::Ownership;
use mobula_proto::{
    Failure, FailureKind, HostId, ObjectId, TaskId,
    peer::{Call, Item, Message, Returned, State, StreamCall, Window},
};

use super::{Action, Core, Phase, Returns, is_final};

/// So many items are brought from other nodes ahead of a reader that looks at each.
const AHEAD_ITEMS: u32 = 4;
/// And of those that one is brought ahead of which are at least so large together, no more. Unit: bytes.
const AHEAD_BYTES: u64 = 32 << 20;

/// The results of one call that has several.
#[derive(Debug)]
pub(super) enum Several {
    /// A number of values, of which so many are left.
    Values { count: u32, live: u32 },
    /// A stream.
    Stream(Box<Stream>),
}

/// What is known of a stream here.
#[derive(Debug, Default)]
pub(super) struct Stream {
    window: Window,
    /// Items accepted, over all attempts.
    received: u32,
    /// Sizes of the last of those: of what is unread.
    unread: VecDeque<u64>,
    unread_bytes: u64,
    /// What the attempt that runs need not count as unread any more.
    consumed: Progress,
    /// As much of it as its executor was told.
    reported: Progress,
    /// The items before this one are brought here as soon as they are made, and those before that one have been.
    ahead: u32,
    fetched: u32,
    /// Items (by their value's index) in stores that somebody holds.
    stored: BTreeSet<u32>,
    /// Those among them that are gone, and being made again.
    lost: BTreeSet<u32>,
    /// The attempt that runs was stopped, since items that it did not make had been lost.
    restarting: bool,
    /// Nobody reads it any more.
    closed: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    items: u64,
    bytes: u64,
}

/// What [`Core::take_item`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// The next item; its reference is the caller's from now on.
    Item(ObjectId),
    /// It is not there yet.
    NotYet,
    /// There will be none: the stream's own object says why.
    End,
}

impl Stream {
    fn consume(&mut self, bytes: u64) {
        self.consumed.items += 1;
        self.consumed.bytes += bytes;
    }

    /// What to tell the executor, once it is worth a message. Whoever waits for room is told before everything is
    /// read: half a window at a time.
    fn report(&mut self) -> Option<Progress> {
        let items = self.consumed.items - self.reported.items;
        let bytes = self.consumed.bytes - self.reported.bytes;
        if items < u64::from(self.window.items.div_ceil(2)) && bytes < self.window.bytes.div_ceil(2) {
            return None;
        }
        self.reported = self.consumed;
        Some(self.consumed)
    }
}

/// Whether a value that was there is nowhere any more.
fn is_gone(objects: &Ownership, object: ObjectId) -> bool {
    matches!(objects.state(object), Some(State::Pending)) && !objects.is_sought(object)
}

impl Core {
    pub(super) fn create_results(&mut self, task: TaskId, returns: Returns, rebuildable: bool) {
        let several = match returns {
            Returns::One => return self.objects.create(task.object(0), rebuildable),
            Returns::Many(0) => return,
            Returns::Many(count) => {
                for index in 0..count {
                    self.objects.create(task.object(index), rebuildable);
                }
                Several::Values { count, live: count }
            }
            Returns::Stream(window) => {
                self.objects.create(task.object(0), false);
                Several::Stream(Box::new(Stream { window, ..Stream::default() }))
            }
        };
        self.several.insert(task.seq, several);
    }

    /// The values that the task's current attempt has still to bring, of those that may lie in a store: the first of some, and
    /// the index of the last of them.
    pub(super) fn not_here(&self, task: TaskId, returns: Returns) -> Vec<(ObjectId, u32)> {
        match returns {
            Returns::One => vec![(task.object(0), 0)],
            Returns::Many(count) => {
                count.checked_sub(1).map(|last| (task.object(0), last)).into_iter().collect()
            }
            Returns::Stream(_) => {
                let Some(Several::Stream(stream)) = self.several.get(&task.seq) else { return Vec::new() };
                let again = stream.lost.iter().map(|index| (task.object(*index), *index));
                again.chain([(task.object(stream.received.saturating_add(1)), u32::MAX)]).collect()
            }
        }
    }

    /// What of a task's results is not final fails.
    pub(super) fn fail_results(&mut self, task: TaskId, returns: Returns, failure: &Failure) {
        match returns {
            Returns::One | Returns::Stream(_) => {
                self.objects.fail(task.object(0), failure.clone(), &mut self.effects);
            }
            Returns::Many(count) => {
                for index in 0..count {
                    self.fail_pending(task.object(index), failure);
                }
            }
        }
    }

    fn fail_pending(&mut self, object: ObjectId, failure: &Failure) {
        // What may still be found elsewhere fails only if it is not.
        if is_gone(&self.objects, object) {
            self.objects.fail(object, failure.clone(), &mut self.effects);
        }
    }

    /// Values of `from` arrived that are not as many as were asked for: they go, and every ref says why.
    pub(super) fn wrong_count(
        &mut self,
        from: HostId,
        seq: u64,
        wanted: u32,
        values: impl ExactSizeIterator<Item = Returned>,
        out: &mut Vec<Action>,
    ) {
        let task = self.ids.task(seq);
        let failure = Failure::new(
            FailureKind::ReturnCount,
            format!("it returned {} values where its caller asked for {wanted}", values.len()),
        );
        self.conclude(seq, failure, out);
        for (index, returned) in values.enumerate() {
            let (state, contains) = returned.into_state();
            self.objects.complete(from, task.object(index as u32), state, contains, &mut self.effects);
        }
    }

    /// The message that starts an attempt at a stream.
    pub(super) fn stream_call(&mut self, call: Call) -> Message {
        let Some(Several::Stream(stream)) = self.several.get_mut(&call.task.seq) else {
            return Message::Run(call);
        };
        (stream.consumed, stream.reported) = (Progress::default(), Progress::default());
        stream.restarting = false;
        // What was lost is made again with all that follows; what is not needed of that goes when it arrives. So does what may
        // still be found elsewhere.
        let objects = &self.objects;
        let pending = |index: &&u32| matches!(objects.state(call.task.object(**index)), Some(State::Pending));
        stream.lost = stream.stored.iter().filter(pending).copied().collect();
        let skip = stream.lost.first().map_or(stream.received, |index| index - 1);
        let unread = Window { items: stream.unread.len() as u32, bytes: stream.unread_bytes };
        Message::RunStream(Box::new(StreamCall {
            call,
            skip,
            delivered: stream.received,
            window: stream.window,
            unread,
        }))
    }

    pub(super) fn on_item(&mut self, from: HostId, item: Item, out: &mut Vec<Action>) {
        if item.task.owner != self.me {
            return;
        }
        let seq = item.task.seq;
        let current = self.tasks.get(&seq).is_some_and(|task| {
            matches!(task.phase, Phase::Pushed { host, .. } if host == from)
                && task.attempt == item.attempt
                && !self.is_discarded(seq, task, from)
                && matches!(task.spec.template.returns, Returns::Stream(_))
        });
        let (object, bytes) = (item.object(), item.returned.value.bytes());
        let over = is_final(self.objects.state(item.task.object(0)));
        let (state, contains) = item.returned.into_state();
        if !current && matches!(self.objects.state(object), Some(State::Pending)) {
            // An earlier attempt's, whose place is kept for this one's.
            self.objects.decline(from, object, state, contains, &mut self.effects);
            return;
        }
        if let Some(Several::Stream(stream)) = self.several.get_mut(&seq).filter(|_| current) {
            let room = stream.unread.len() < stream.window.items as usize;
            if item.index == stream.received && !over && room {
                stream.received += 1;
                stream.unread.push_back(bytes);
                stream.unread_bytes += bytes;
                if matches!(state, State::Stored(_)) {
                    stream.stored.insert(object.index);
                }
                let rebuildable = self.tasks.get(&seq).is_some_and(|task| task.spec.kind.is_task());
                self.objects.create(object, rebuildable);
                out.push(Action::Wake(item.task.object(0)));
            } else {
                stream.lost.remove(&object.index);
                let enough = over && stream.lost.is_empty();
                stream.consume(bytes);
                if enough {
                    self.stop_stream(seq, out);
                } else {
                    self.report(seq, out);
                }
            }
        }
        // Frees it where nobody waits for it.
        self.objects.complete(from, object, state, contains, &mut self.effects);
        self.fetch_items(seq, out);
    }

    /// All that is needed of a stream is there.
    fn stop_stream(&mut self, seq: u64, out: &mut Vec<Action>) {
        let id = self.ids.task(seq);
        if let Some(task) = self.tasks.get_mut(&seq)
            && let Phase::Pushed { host, .. } = task.phase
            && !std::mem::replace(&mut task.cancelled, true)
        {
            out.push(Action::Send { to: host, message: Message::Cancel { task: id, force: false } });
        }
    }

    fn report(&mut self, seq: u64, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get(&seq) else { return };
        let Phase::Pushed { host, .. } = task.phase else { return };
        let attempt = task.attempt;
        if let Some(Several::Stream(stream)) = self.several.get_mut(&seq)
            && let Some(Progress { items, bytes }) = stream.report()
        {
            let task = self.ids.task(seq);
            out.push(Action::Send { to: host, message: Message::Consumed { task, attempt, items, bytes } });
        }
    }

    /// Takes the next item of a stream submitted here.
    pub fn take_item(&mut self, stream: ObjectId, out: &mut Vec<Action>) -> Taken {
        let seq = stream.seq;
        if let Some(Several::Stream(state)) = self.several.get_mut(&seq)
            && let Some(bytes) = state.unread.pop_front()
        {
            let index = state.received - state.unread.len() as u32;
            state.unread_bytes -= bytes;
            state.consume(bytes);
            self.report(seq, out);
            return Taken::Item(stream.task().object(index));
        }
        if is_final(self.objects.state(stream)) { Taken::End } else { Taken::NotYet }
    }

    /// The reader looks at the value of the item that it took last: the next ones are brought here meanwhile, so that it
    /// does not wait for the way to another node with each.
    pub fn fetch_ahead(&mut self, stream: ObjectId, out: &mut Vec<Action>) {
        if let Some(Several::Stream(state)) = self.several.get_mut(&stream.seq) {
            state.ahead = (state.received - state.unread.len() as u32).saturating_add(AHEAD_ITEMS);
            self.fetch_items(stream.seq, out);
        }
    }

    fn fetch_items(&mut self, seq: u64, out: &mut Vec<Action>) {
        let Some(Several::Stream(stream)) = self.several.get_mut(&seq) else { return };
        let taken = stream.received - stream.unread.len() as u32;
        stream.fetched = stream.fetched.max(taken);
        let task = self.ids.task(seq);
        let mut bytes: u64 = stream.unread.iter().take((stream.fetched - taken) as usize).sum();
        while stream.fetched < stream.received.min(stream.ahead) && bytes < AHEAD_BYTES {
            bytes += stream.unread[(stream.fetched - taken) as usize];
            stream.fetched += 1;
            let object = task.object(stream.fetched);
            if let Some(State::Stored(copy)) = self.objects.state(object)
                && copy.node != self.me.node
            {
                out.push(Action::Fetch(object));
            }
        }
    }

    /// Nobody reads the stream any more: it is cancelled if it has not ended, and what is unread goes.
    pub fn close_stream(&mut self, stream: ObjectId, out: &mut Vec<Action>) {
        self.cancel(stream, false, out);
        self.drop_unread(stream.task());
        if let Some(Several::Stream(state)) = self.several.get_mut(&stream.seq) {
            state.closed = true;
        }
        self.drain(out);
        self.tidy_stream(stream.seq, out);
        self.drain(out);
    }

    /// Gives up what a stream holds for its reader.
    pub(super) fn drop_unread(&mut self, task: TaskId) {
        let Some(Several::Stream(state)) = self.several.get_mut(&task.seq) else { return };
        let last = state.received;
        let first = last - state.unread.len() as u32;
        state.unread.clear();
        state.unread_bytes = 0;
        for index in first..last {
            self.objects.drop_ref(task.object(index + 1), &mut self.effects);
        }
    }

    /// Whether the object is an item of a stream, which no cancellation concerns.
    pub(super) fn is_item(&self, object: ObjectId) -> bool {
        object.index > 0 && matches!(self.several.get(&object.seq), Some(Several::Stream(_)))
    }

    /// One of several results is forgotten. The task may go with the last (C-8).
    pub(super) fn part_forgotten(&mut self, object: ObjectId, out: &mut Vec<Action>) {
        let seq = object.seq;
        match self.several.get_mut(&seq) {
            Some(Several::Values { live, .. }) => {
                *live = live.saturating_sub(1);
                if *live == 0 {
                    self.several.remove(&seq);
                    self.forget_kept(seq);
                }
            }
            Some(Several::Stream(stream)) => {
                stream.stored.remove(&object.index);
                stream.lost.remove(&object.index);
                self.tidy_stream(seq, out);
            }
            None => {}
        }
    }

    fn forget_kept(&mut self, seq: u64) {
        if self.tasks.get(&seq).is_some_and(|task| task.phase == Phase::Kept)
            && let Some(task) = self.tasks.remove(&seq)
        {
            self.release(&task.spec);
        }
    }

    /// Forgets a stream that nobody reads and of which nothing has to be made again; what still runs ends first.
    fn tidy_stream(&mut self, seq: u64, out: &mut Vec<Action>) {
        let Some(Several::Stream(stream)) = self.several.get(&seq) else { return };
        if !stream.closed || !stream.stored.is_empty() {
            return;
        }
        match self.tasks.get(&seq).map(|task| task.phase) {
            Some(Phase::Pushed { .. }) => return self.stop_stream(seq, out),
            Some(Phase::Waiting | Phase::Queued) => {
                self.withdraw(seq);
                self.conclude(seq, Failure::new(FailureKind::Cancelled, "nobody reads it any more"), out);
            }
            Some(Phase::Kept) => self.forget_kept(seq),
            None => {}
        }
        self.several.remove(&seq);
    }

    /// Whether a task that has ended is kept since some of its values may have to be made again (C-8).
    pub(super) fn keeps(&self, seq: u64, any_stored: bool) -> bool {
        let Some(task) = self.tasks.get(&seq) else { return false };
        let again = task.spec.kind.is_task() && task.may_run_again();
        let wanted = || match task.spec.template.returns {
            Returns::One => any_stored && self.objects.state(self.ids.task(seq).object(0)).is_some(),
            Returns::Many(_) => any_stored && self.several.contains_key(&seq),
            Returns::Stream(_) => {
                matches!(self.several.get(&seq), Some(Several::Stream(stream)) if !stream.stored.is_empty())
            }
        };
        again && wanted()
    }

    /// A stored value is gone. Notes which items of a stream are, and sees to it that an attempt that is under way is
    /// followed by one that makes them.
    pub(super) fn note_lost(&mut self, id: TaskId, out: &mut Vec<Action>) {
        let Some(Several::Stream(stream)) = self.several.get_mut(&id.seq) else { return };
        let objects = &self.objects;
        let gone = |index: &&u32| is_gone(objects, id.object(**index));
        let before = stream.lost.len();
        stream.lost.extend(stream.stored.iter().filter(gone));
        let Some(task) = self.tasks.get(&id.seq) else { return };
        let Phase::Pushed { host, .. } = task.phase else { return };
        if stream.lost.len() == before {
            // The attempt that runs makes them.
        } else if !task.may_run_again() {
            self.fail_lost(id);
        } else if !std::mem::replace(&mut stream.restarting, true) {
            out.push(Action::Send { to: host, message: Message::Cancel { task: id, force: false } });
        }
    }

    /// Whether an attempt at a stream failed because it was stopped to be made again.
    pub(super) fn is_restarting(&self, seq: u64) -> bool {
        matches!(self.several.get(&seq), Some(Several::Stream(stream)) if stream.restarting)
    }

    /// A stream failed for good, but what it gave before may have to be made again (C-8).
    pub(super) fn keep_failed(&mut self, id: TaskId, failure: Failure, out: &mut Vec<Action>) {
        let Some(task) = self.tasks.get_mut(&id.seq) else { return };
        let was_kept = std::mem::replace(&mut task.phase, Phase::Kept) == Phase::Kept;
        let (key, failure) = (task.key, failure.of(task.spec.title(id)));
        if !was_kept {
            self.one_finished(out);
        }
        self.objects.fail(id.object(0), failure, &mut self.effects);
        self.stream_ended(id, out);
        self.pump(key, out);
    }

    /// A task's values were lost, and it cannot be run again.
    pub(super) fn fail_lost(&mut self, task: TaskId) {
        let failure = Failure::new(
            FailureKind::ObjectLost,
            "every copy of the object is gone and its task cannot run again",
        );
        match self.several.get_mut(&task.seq) {
            None => self.objects.fail(task.object(0), failure, &mut self.effects),
            // None of them is on its way, but some may still be found elsewhere.
            Some(Several::Values { count, .. }) => {
                for index in 0..*count {
                    self.fail_pending(task.object(index), &failure);
                }
            }
            Some(Several::Stream(stream)) => {
                for index in std::mem::take(&mut stream.lost) {
                    self.fail_pending(task.object(index), &failure);
                }
            }
        }
    }

    /// An attempt at a stream has ended, one way or another.
    pub(super) fn stream_ended(&mut self, task: TaskId, out: &mut Vec<Action>) {
        let Some(Several::Stream(stream)) = self.several.get(&task.seq) else { return };
        if stream.lost.is_empty() {
            self.tidy_stream(task.seq, out);
        } else if self.tasks.get(&task.seq).is_none_or(|task| task.phase == Phase::Kept) {
            // Lost after the attempt had passed them, or never made again.
            self.rebuild(task, out);
        }
    }
}
