//! Waiting for objects, on a thread or in async code.

use std::{
    sync::{Arc, atomic::Ordering},
    task::Waker,
    time::Instant,
};

use mobula_proto::{Failure, FailureKind, ObjectId};
use mobula_store::Object;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::{Blocked, Runtime, is_final};
use crate::{
    context,
    core::Core,
    wait::{Parker, Waiter},
};

impl Runtime {
    /// Whether the object's state is final.
    pub fn is_ready(&self, object: ObjectId) -> bool {
        self.ended.lock().is_some() || is_final(self.core.lock().objects.state(object))
    }

    /// Waits on this thread until `count` of the objects are final, and gives the positions of the first so many that
    /// are; of fewer only after the deadline. A slot that the calling task holds serves others meanwhile. Fails where that
    /// task is cancelled before enough are. Refused inside async code.
    pub fn wait(
        self: &Arc<Self>,
        objects: &[ObjectId],
        count: usize,
        deadline: Option<Instant>,
    ) -> Result<Ready, Failure> {
        context::refuse_async()?;
        if count >= objects.len() && objects.len() > PORTION {
            return self.wait_for_all(objects, deadline);
        }
        self.wait_for_some(objects, count, deadline).map(|(ready, _)| ready)
    }

    /// [`Self::wait`], and whether any was missing at first.
    fn wait_for_some(
        self: &Arc<Self>,
        objects: &[ObjectId],
        count: usize,
        deadline: Option<Instant>,
    ) -> Result<(Ready, bool), Failure> {
        let mut waits = false;
        loop {
            let mut parker = None;
            // A thread counts each of its objects, so one that is there twice wakes it twice.
            let ready = self.first_ready(objects, count, true, |missing| {
                Waiter::Thread(parker.insert(Parker::new(missing)).clone())
            });
            let Some(parker) = parker else { return Ok((ready, waits)) };
            waits = true;
            let waited = self.park(&parker, &mut None, deadline);
            self.unregister(objects, |waiter| waiter.is(&parker));
            let ready = ready_among(&self.core.lock(), objects, count);
            if ready.len() >= count.min(objects.len()) {
                return Ok((ready, waits));
            }
            waited?;
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok((ready, waits));
            }
            // Some that were final have been lost meanwhile, and are looked for or made again.
        }
    }

    /// [`Self::wait`] for all of very many. The last ones first: when they are final most others are, for which nobody
    /// need be registered then. What is lost while others are waited for is found by looking at all once more.
    fn wait_for_all(
        self: &Arc<Self>,
        objects: &[ObjectId],
        deadline: Option<Instant>,
    ) -> Result<Ready, Failure> {
        if objects.iter().any(|object| object.owner != self.me()) {
            // What other hosts have to say about theirs comes meanwhile.
            self.step(|core, out| {
                for object in objects.iter().filter(|object| object.owner != self.me()) {
                    core.want(*object, out);
                }
            });
        }
        let mut waited = true;
        while std::mem::take(&mut waited) {
            for portion in objects.rchunks(PORTION) {
                let (ready, waits) = self.wait_for_some(portion, portion.len(), deadline)?;
                if ready.len() < portion.len() {
                    return Ok(ready_among(&self.core.lock(), objects, objects.len()));
                }
                waited |= waits;
            }
        }
        Ok((0..objects.len()).collect())
    }

    /// The values of the first of these objects, or why there are none, in order; of at least one, and no more than should
    /// be pinned together. Their states were final. Those that are not in this process are asked for together; meanwhile
    /// this thread waits, and the slot of the calling task with it. Fails where that task is cancelled meanwhile. Refused
    /// inside async code.
    pub fn read_some(
        self: &Arc<Self>,
        objects: &[ObjectId],
    ) -> Result<Vec<Result<Object, Failure>>, Failure> {
        context::refuse_async()?;
        let here = self.read_some_here(objects);
        let missing: Vec<_> =
            here.iter().enumerate().filter(|(_, here)| here.is_none()).map(|(at, _)| at).collect();
        let parker = Parker::new(missing.len());
        let found = Arc::new(Mutex::new(here));
        for at in missing.iter().copied() {
            let (found, answered) = (found.clone(), Answered(self.clone(), parker.clone()));
            self.read(objects[at], move |result| {
                // The reader is gone where the job ended meanwhile.
                if let Some(place) = found.lock().get_mut(at) {
                    *place = Some(result);
                }
                drop(answered);
            });
        }
        if !parker.is_woken() && self.is_any_near(missing.iter().map(|at| objects[*at])) {
            self.peers.expect();
        }
        let waited = Self::interruptible(&parker, || self.park_here(&parker));
        let found = std::mem::take(&mut *found.lock());
        if found.iter().any(Option::is_none) {
            waited?;
        }
        let dropped = || {
            Err(self
                .ended()
                .unwrap_or_else(|| Failure::new(FailureKind::Internal, "the runtime dropped a read")))
        };
        Ok(found.into_iter().map(|found| found.unwrap_or_else(dropped)).collect())
    }

    /// Whether one of them lies on this node, so that the agent says at once where.
    fn is_any_near(&self, mut objects: impl Iterator<Item = ObjectId>) -> bool {
        let core = self.core.lock();
        objects.any(|object| core.copy(object).is_some_and(|copy| copy.node == self.me().node))
    }

    /// Waits on this thread until it is woken or the job has ended; a slot of the calling task stays with it.
    pub(crate) fn park_here(self: &Arc<Self>, parker: &Arc<Parker>) {
        self.peers.ring_all(true);
        while !parker.is_woken() && !self.stopped.load(Ordering::Relaxed) {
            if !self.peers.lead_until(self, parker, false, None) {
                parker.park(None);
            }
        }
    }

    /// Waits on this thread, as `park` does, and fails where the calling task is cancelled meanwhile.
    fn interruptible(parker: &Arc<Parker>, park: impl FnOnce()) -> Result<(), Failure> {
        match context::task() {
            Some(call) => call.park(parker, park),
            None => {
                park();
                Ok(())
            }
        }
    }

    /// Waits on this thread until it is woken; fails where the calling task is cancelled. Its slot serves others meanwhile,
    /// for as long as `blocked` lives.
    pub(crate) fn park(
        self: &Arc<Self>,
        parker: &Arc<Parker>,
        blocked: &mut Option<Blocked>,
        deadline: Option<Instant>,
    ) -> Result<(), Failure> {
        Self::interruptible(parker, || self.park_lending(parker, blocked, deadline))
    }

    fn park_lending(
        self: &Arc<Self>,
        parker: &Arc<Parker>,
        blocked: &mut Option<Blocked>,
        deadline: Option<Instant>,
    ) {
        // What is waited for may depend on a result whose receiver has not been woken yet.
        self.peers.ring_all(true);
        while !parker.is_woken() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            if !self.peers.lead_until(self, parker, blocked.is_none(), deadline) {
                match blocked {
                    // Look again after the slot was lent out: what was waited for may have come meanwhile.
                    None if context::task().is_some() => *blocked = Blocked::enter(self, true),
                    _ => parker.park(deadline),
                }
            }
        }
    }

    /// The positions of the first `count` objects that are final. Where there are fewer, whatever `waiter` makes of
    /// the number that is missing is woken by each of the others; with `new` it is not among them yet. Once the job is over
    /// nothing is waited for.
    fn first_ready(
        self: &Arc<Self>,
        objects: &[ObjectId],
        count: usize,
        new: bool,
        waiter: impl FnOnce(usize) -> Waiter,
    ) -> Ready {
        self.step(|core, out| {
            let ready = ready_among(core, objects, count);
            if ready.len() >= count.min(objects.len()) {
                return ready;
            }
            let mut waiters = self.waiters.lock();
            // Under this lock, so that the job's end finds whoever is registered.
            if self.ended.lock().is_some() {
                return ready;
            }
            let waiter = waiter(count.min(objects.len()) - ready.len());
            for object in objects {
                if is_final(core.objects.state(*object)) {
                    continue;
                }
                core.want(*object, out);
                let list = waiters.entry(*object).or_default();
                match list.iter_mut().find(|other| !new && other.is_same(&waiter)) {
                    Some(before) => *before = waiter.clone(),
                    None => list.push(waiter.clone()),
                }
            }
            ready
        })
    }

    /// [`Self::first_ready`] for async code: `None` where there are fewer than `count`, and `waker` is woken by each of
    /// the others for as long as `waiting` lives, which is this wait's alone.
    pub fn poll_ready_among(
        self: &Arc<Self>,
        objects: &[ObjectId],
        count: usize,
        waiting: &mut Waiting,
        waker: &Waker,
    ) -> Option<Ready> {
        let mut number = waiting.0.as_ref().map(|place| place.number);
        let ready = self.first_ready(objects, count, number.is_none(), |_| {
            Waiter::Wait(*number.get_or_insert_with(|| self.number()), waker.clone())
        });
        if ready.len() >= count.min(objects.len()) || self.ended.lock().is_some() {
            if let ([_], Some(place)) = (objects, &mut waiting.0) {
                // Whoever made it final wakes all, and has forgotten them by now or soon.
                place.objects.clear();
            }
            waiting.0 = None;
            return Some(ready);
        }
        if let (None, Some(number)) = (&waiting.0, number) {
            waiting.0 = Some(Place { runtime: self.clone(), number, objects: objects.into() });
        }
        None
    }

    /// The positions of the first `count` that are final.
    pub fn ready_among(&self, objects: &[ObjectId], count: usize) -> Ready {
        ready_among(&self.core.lock(), objects, count)
    }

    /// Wakes `waiter` when the object's state changes, or a stream's of that name. Called inside a step that looked. Says no
    /// where the job has ended, since nothing changes any more.
    pub(crate) fn await_change(&self, object: ObjectId, waiter: Waiter) -> bool {
        let mut waiters = self.waiters.lock();
        if self.ended.lock().is_some() {
            return false;
        }
        let list = waiters.entry(object).or_default();
        if !list.iter().any(|other| other.is_same(&waiter)) {
            list.push(waiter);
        }
        true
    }

    pub(crate) fn unregister(&self, objects: &[ObjectId], is_gone: impl Fn(&Waiter) -> bool) {
        let mut waiters = self.waiters.lock();
        for object in objects {
            if let Some(list) = waiters.get_mut(object) {
                list.retain(|waiter| !is_gone(waiter));
                if list.is_empty() {
                    waiters.remove(object);
                }
            }
        }
    }

    /// [`Self::poll_ready_among`] for one object: whether its state is final.
    pub fn poll_ready(self: &Arc<Self>, object: ObjectId, waiting: &mut Waiting, waker: &Waker) -> bool {
        self.poll_ready_among(&[object], 1, waiting, waker).is_some()
    }

    /// For how many waits something is to be woken, counted once for each object; for tests.
    pub fn waits(&self) -> usize {
        self.waiters.lock().values().map(SmallVec::len).sum()
    }
}

/// The place of a wait in async code among those who are woken, which it gives up when this is dropped. So a wait that is
/// given up keeps nothing of its task alive, however long the object takes.
#[derive(Default)]
pub struct Waiting(Option<Place>);

struct Place {
    runtime: Arc<Runtime>,
    number: u64,
    objects: SmallVec<[ObjectId; 1]>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.objects.is_empty() {
            let own = |waiter: &Waiter| matches!(waiter, Waiter::Wait(number, _) if *number == self.number);
            self.runtime.unregister(&self.objects, own);
        }
    }
}

/// A wait of async code. As long as there is any of its call, the call's slot serves others while none of its code is
/// polled: what is polled may do anything besides.
pub struct Awaited(By);

/// Who polls the code that waits.
enum By {
    /// [`crate::guarded::Polled`], which looks whether there are any.
    Call(Arc<context::Context>),
    /// Sync code, in a way of its own.
    Thread { _blocked: Blocked },
}

impl Awaited {
    /// From now on; `None` outside a call.
    pub fn begin(runtime: &Arc<Runtime>) -> Option<Self> {
        if !context::is_async() {
            return Blocked::enter(runtime, false).map(|blocked| Self(By::Thread { _blocked: blocked }));
        }
        let context = context::task()?;
        context.awaits.fetch_add(1, Ordering::AcqRel);
        Some(Self(By::Call(context)))
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let By::Call(context) = &self.0 {
            context.awaits.fetch_sub(1, Ordering::AcqRel);
            context.moved.store(true, Ordering::Release);
        }
    }
}

/// Wakes a thread that waits for so many of these, when it is dropped.
struct Answered(Arc<Runtime>, Arc<Parker>);

impl Drop for Answered {
    fn drop(&mut self) {
        if Waiter::Thread(self.1.clone()).wake() {
            // It may lead, and sleep on the doorbell.
            self.0.peers.nudge();
        }
    }
}

/// Most objects for which a thread is registered at once, where it waits for all.
const PORTION: usize = 1024;

/// Positions of objects that are final, in order.
pub type Ready = SmallVec<[usize; 4]>;

fn ready_among(core: &Core, objects: &[ObjectId], count: usize) -> Ready {
    let ready = objects.iter().enumerate().filter(|(_, object)| is_final(core.objects.state(**object)));
    ready.map(|(at, _)| at).take(count).collect()
}

#[cfg(test)]
mod tests {
    use std::thread::ScopedJoinHandle;

    use mobula_proto::{
        JobId, NodeId,
        peer::{Copy, State},
    };

    use super::*;
    use crate::{codec::Output, core::Action, testing::alone};

    fn over() -> Failure {
        Failure::new(FailureKind::JobEnded, "its driver left")
    }

    fn copy(node: NodeId) -> Copy {
        Copy { node, bytes: 9, attempt: 1, job: JobId { number: 1 } }
    }

    /// Objects that lie on another node.
    fn stored(runtime: &Arc<Runtime>, node: NodeId, count: usize) -> Vec<ObjectId> {
        let put = |core: &mut Core, out: &mut Vec<Action>| {
            let object = core.next_task().object(0);
            let place = State::Stored(copy(node));
            core.own(out, |objects, fx| objects.put(object, place, Vec::new(), fx));
            object
        };
        (0..count).map(|_| runtime.step(put)).collect()
    }

    fn dies(runtime: &Arc<Runtime>, node: NodeId) {
        let failure = Failure::new(FailureKind::NodeDied, "no power");
        runtime.step(|core, out| core.node_died(node, &failure, out));
    }

    /// Other copies of what lay on the node that died lie here.
    fn are_found(runtime: &Arc<Runtime>, node: NodeId, objects: &[ObjectId]) {
        let found: Vec<_> = objects.iter().map(|object| (*object, copy(runtime.me().node))).collect();
        runtime.step(|core, out| {
            core.own(out, |objects, fx| objects.salvaged(node, &found, false, fx));
        });
    }

    fn output(value: u64) -> Output {
        crate::codec::encode(&value).unwrap()
    }

    /// Until so many waits are registered; fails where what waits has ended.
    fn until_waits<T>(runtime: &Runtime, waits: usize, waiter: &ScopedJoinHandle<'_, T>) {
        while runtime.waits() != waits {
            assert!(!waiter.is_finished(), "it did not wait");
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_is_lost_while_others_are_waited_for_is_waited_for_again() {
        let alone = alone(&[]);
        let runtime = &alone.runtime;
        // One wait for all, or one for each portion.
        for (number, count) in [(2, 2), (3, PORTION)] {
            let node = NodeId { number, incarnation: 1 };
            let mut objects = vec![runtime.pending()];
            objects.extend(stored(runtime, node, count));
            std::thread::scope(|scope| {
                let waiter = scope.spawn(|| runtime.wait(&objects, objects.len(), None));
                until_waits(runtime, 1, &waiter);
                dies(runtime, node);
                assert_eq!(runtime.waits(), 1, "it was there, and nobody looks yet");
                runtime.fulfil(objects[0], &output(1)).unwrap();
                until_waits(runtime, count, &waiter);
                are_found(runtime, node, &objects[1..]);
                assert_eq!(waiter.join().unwrap().unwrap().len(), objects.len());
            });
            assert_eq!(runtime.waits(), 0);
        }
    }

    #[test]
    fn what_is_lost_before_it_is_read_is_read_when_it_is_there_again() {
        let alone = alone(&[]);
        let runtime = &alone.runtime;
        let object = runtime.pending();
        let (tell, told) = std::sync::mpsc::channel();
        runtime.read(object, move |result| drop(tell.send(result.map(drop))));
        assert!(told.try_recv().is_err(), "it is being made");
        // It is kept until then, whoever lets go.
        runtime.drop_ref(object);
        runtime.fulfil(object, &output(7)).unwrap();
        assert_eq!(told.recv().unwrap(), Ok(()));
        while runtime.counts().owned > 0 {
            std::thread::yield_now();
        }
        let (tell, told) = std::sync::mpsc::channel();
        runtime.read(object, move |result| drop(tell.send(result.map(drop))));
        assert_eq!(told.recv().unwrap().unwrap_err().kind, FailureKind::ObjectFreed);
    }

    #[test]
    fn the_jobs_end_is_missed_by_nobody_who_is_about_to_wait() {
        let alone = alone(&[]);
        let runtime = &alone.runtime;
        let object = runtime.pending();
        std::thread::scope(|scope| {
            // It has looked, and is about to register; meanwhile the job ends.
            let waiters = runtime.waiters.lock();
            let asker = scope.spawn(|| runtime.poll_ready(object, &mut Waiting::default(), Waker::noop()));
            while runtime.core.try_lock().is_some() {
                std::thread::yield_now();
            }
            *runtime.ended.lock() = Some(over());
            drop(waiters);
            assert!(asker.join().unwrap(), "who is not woken is told at once");
        });
        runtime.end(over());
        assert!(runtime.poll_ready(object, &mut Waiting::default(), Waker::noop()));
        let among = runtime.poll_ready_among(&[object], 1, &mut Waiting::default(), Waker::noop());
        assert_eq!(among, Some(Ready::new()));
        assert_eq!(runtime.wait(&[object], 1, None), Ok(Ready::new()));
        assert!(!runtime.await_change(object, Waiter::Task(Waker::noop().clone())));
        assert_eq!(runtime.next_item(object), Ok(None));
        assert_eq!(runtime.waits(), 0);
        let asked = alone.user.block_on(runtime.ask_and_wait(mobula_proto::host::Question::Steward));
        assert!(matches!(asked, mobula_proto::host::Answer::Failed(failure) if failure == over()));
        assert!(runtime.questions.lock().is_empty());
    }
}
