//! What the code on the current thread belongs to: which cluster, which call, and whether it is async.

use std::{
    cell::RefCell,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use mobula_proto::{
    Failure, FailureKind, HostId, JobId, LeaseId, NodeId, ObjectId, TaskId, resource::DeviceGrant,
};
use parking_lot::Mutex;
use smallvec::SmallVec;

use crate::{inbox::Seat, runtime::Runtime, stream::Producer, wait::Parker};

/// A call that runs.
#[derive(Debug)]
pub struct Context {
    /// Its name.
    pub task: TaskId,
    /// The registered function.
    pub function: &'static str,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How many there may be.
    pub attempts_max: u32,
    /// The actor, in its methods and constructor.
    pub actor: Option<TaskId>,
    /// Of the actor; 0 in tasks.
    pub(crate) incarnation: u32,
    /// Who submitted it.
    pub caller: HostId,
    /// The executing host.
    pub host: HostId,
    /// The job.
    pub job: JobId,
    /// Devices that the process was granted.
    pub devices: Vec<DeviceGrant>,
    pub(crate) lease: Option<LeaseId>,
    /// In an actor's method: how it runs.
    pub(crate) seat: Option<Seat>,
    pub(crate) cancelled: AtomicBool,
    /// Of a call with a timeout: it has ended, or its time ran out, whichever came first.
    pub(crate) finished: AtomicBool,
    /// What waits for that time to run out.
    pub(crate) timer: OnceLock<tokio::task::AbortHandle>,
    /// What it waits for with its slot given up.
    pub(crate) waiting: AtomicU32,
    /// Waits of its async code, which count in `waiting` while none of it is polled.
    pub(crate) awaits: AtomicU32,
    /// A wait has ended since its actor was told last that it waits.
    pub(crate) moved: AtomicBool,
    /// Its code has begun.
    pub(crate) begun: AtomicBool,
    /// How many of its threads wait for room in the store.
    pub(crate) lacking: AtomicU32,
    /// Bytes of stored arguments that were admitted for it.
    pub(crate) admitted: AtomicU64,
    pub(crate) abort: Mutex<Option<futures_util::future::AbortHandle>>,
    pub(crate) refs: Mutex<Vec<ObjectId>>,
    /// Its threads that wait for something.
    pub(crate) parked: Mutex<SmallVec<[Arc<Parker>; 1]>>,
    /// For calls that give a stream.
    pub(crate) producer: Option<Arc<Producer>>,
}

impl Context {
    /// The node on which it runs.
    pub fn node(&self) -> NodeId {
        self.host.node
    }

    /// Whether somebody gave up on it. Sync code that runs long should look now and then and return early.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Asks its code to stop, which async code does at its next await and a stream's before its next item. Where sync code
    /// waits, that fails.
    pub(crate) fn stop(&self, runtime: &Runtime) {
        self.cancelled.store(true, Ordering::Relaxed);
        if let Some(abort) = self.abort.lock().as_ref() {
            abort.abort();
        }
        if let Some(producer) = &self.producer {
            producer.wake(runtime);
        }
        let mut others = false;
        for parker in self.parked.lock().iter() {
            others |= parker.interrupt();
        }
        if others {
            // One of them may lead, and sleep on the doorbell.
            runtime.peers().nudge();
        }
    }

    /// Waits on this thread, as `park` does, until that is over or the call is stopped: then it says so.
    pub(crate) fn park(&self, parker: &Arc<Parker>, park: impl FnOnce()) -> Result<(), Failure> {
        let stopped = || Err(Failure::new(FailureKind::Cancelled, "it was cancelled"));
        {
            let mut parked = self.parked.lock();
            // Under the lock: `stop` finds whoever has not seen that it was called.
            if self.cancelled() {
                return stopped();
            }
            parked.push(parker.clone());
        }
        park();
        self.parked.lock().retain(|other| !Arc::ptr_eq(other, parker));
        if self.cancelled() { stopped() } else { Ok(()) }
    }

    /// Whether it makes progress, as far as is known: it has begun, and waits neither for an object nor for room.
    pub(crate) fn moves(&self) -> bool {
        self.begun.load(Ordering::Acquire)
            && self.waiting.load(Ordering::Acquire) == 0
            && self.lacking.load(Ordering::Acquire) == 0
    }

    pub(crate) fn received(&self, object: ObjectId) {
        self.refs.lock().push(object);
    }
}

#[derive(Clone, Default)]
struct Ambient {
    runtime: Option<Arc<Runtime>>,
    task: Option<Arc<Context>>,
    is_async: bool,
}

thread_local! {
    static AMBIENT: RefCell<Ambient> = const { RefCell::new(Ambient { runtime: None, task: None, is_async: false }) };
}

/// The runtime for threads that belong to none: the one that started last in this process.
static FALLBACK: Mutex<Weak<Runtime>> = Mutex::new(Weak::new());

/// The runtime of the current thread.
pub fn runtime() -> Option<Arc<Runtime>> {
    AMBIENT.with_borrow(|ambient| ambient.runtime.clone()).or_else(|| FALLBACK.lock().upgrade())
}

pub(crate) fn set_fallback(runtime: &Arc<Runtime>) {
    *FALLBACK.lock() = Arc::downgrade(runtime);
}

/// The call that the current thread runs.
pub fn task() -> Option<Arc<Context>> {
    AMBIENT.with_borrow(|ambient| ambient.task.clone())
}

/// Whether the current thread runs a call.
pub fn is_in_call() -> bool {
    AMBIENT.with_borrow(|ambient| ambient.task.is_some())
}

/// Whether the current thread runs a task; methods of actors are none.
pub fn is_task() -> bool {
    AMBIENT.with_borrow(|ambient| ambient.task.as_ref().is_some_and(|task| task.actor.is_none()))
}

/// Whether user async code is being polled, where a blocking wait would stop everything else.
pub fn is_async() -> bool {
    AMBIENT.with_borrow(|ambient| ambient.is_async)
}

/// What a blocking wait inside async code gets.
pub(crate) fn refuse_async() -> Result<(), Failure> {
    if is_async() {
        return Err(Failure::new(
            FailureKind::BlockingInAsync,
            "a blocking wait inside async code would stop everything that runs on the same thread: use `.await`",
        ));
    }
    Ok(())
}

/// Undoes [`enter`] when dropped.
pub struct Entered(Ambient);

/// Makes the current thread belong to a runtime and a call until the result is dropped.
pub fn enter(runtime: &Arc<Runtime>, task: Option<Arc<Context>>, is_async: bool) -> Entered {
    let ambient = Ambient { runtime: Some(runtime.clone()), task, is_async };
    Entered(AMBIENT.with_borrow_mut(|current| std::mem::replace(current, ambient)))
}

impl Drop for Entered {
    fn drop(&mut self) {
        let before = std::mem::take(&mut self.0);
        // Not dropped while borrowed: the last reference to a runtime may be among it.
        drop(AMBIENT.with_borrow_mut(|current| std::mem::replace(current, before)));
    }
}
