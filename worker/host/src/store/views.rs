//! Views into regions that others wrote: which objects are open, which regions are mapped, and what the agent is asked.
//!
//! What this process and the agent tell each other crosses on the way: a region may be unmapped here while the agent says
//! that something lies in it, without its descriptor, since as far as the agent knows it is mapped.
//!
//! - **VW-1** Whoever opens an object is answered, once, whatever is unmapped, dropped or over meanwhile.
//! - **VW-2** A view keeps its object pinned and its region mapped until its last bytes are dropped, whoever drops them
//!   and whoever opens the object anew at that moment.
//! - **VW-3** By the time the agent hears that an object is unpinned, this process has its region mapped only if the agent
//!   knows that; by the time it hears that a region is unmapped as well, not any more. So memory that the agent counts as
//!   free is free.
//! - **VW-4** The agent knows of each object that somebody waits for, also where it was opened before anybody did.
//!
//! There is no clock here, and no thread. Models run this file in every order in which threads can meet (`tests/models`).

use std::{
    collections::HashMap,
    fmt::Display,
    os::fd::OwnedFd,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use mobula_proto::{Failure, FailureKind, ObjectId, RegionId, host::ToAgent, peer::Copy as Whence};

use super::{
    AgentSender, Bytes, Reader,
    sync::{Arc, Mutex, Weak, pin},
};

/// How long a region without views stays mapped after something was opened in it: what is opened there meanwhile comes
/// without a descriptor, and is not mapped again.
pub const MAPPED_TIME: Duration = Duration::from_secs(1);

/// Where an opened object lies.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Its region.
    pub region: RegionId,
    /// That region's size.
    pub region_bytes: u64,
    /// Where in it.
    pub offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// Keeps an object pinned at the agent; gives the pin back when dropped.
struct Pinned {
    object: ObjectId,
    agent: AgentSender,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.agent.tell(ToAgent::Unpin { object: self.object });
    }
}

/// What hears of an object that was opened, or why it was not.
pub type Callback = Box<dyn FnOnce(Result<Bytes, Failure>) + Send>;

enum View {
    /// Who waits, and whether nothing needs it yet.
    Opening(Vec<Callback>, bool),
    Open {
        pin: Weak<Pinned>,
        reader: Weak<Reader>,
        place: Place,
    },
}

/// A region of another's, mapped to be read.
struct Mapping {
    /// `None` while it is being unmapped.
    reader: Option<Arc<Reader>>,
    /// When something was opened in it last.
    opened: Instant,
    /// Requests that the agent answered meanwhile, to be sent again when it knows better.
    again: Vec<u64>,
}

/// What the agent is asked to open: which copy. Or why nothing is answered any more.
type Requests = Result<HashMap<u64, (ObjectId, Whence)>, Failure>;

/// See the module's text.
pub struct Views {
    agent: AgentSender,
    next_request: AtomicU64,
    views: Mutex<HashMap<ObjectId, View>>,
    requests: Mutex<Requests>,
    /// The agent knows of each, or will before it hears anything else of it.
    readers: Mutex<HashMap<RegionId, Mapping>>,
}

impl Views {
    /// Nothing is open.
    pub fn new(agent: AgentSender) -> Self {
        Self {
            agent,
            next_request: AtomicU64::new(1),
            views: Mutex::default(),
            requests: Mutex::new(Ok(HashMap::new())),
            readers: Mutex::default(),
        }
    }

    /// Makes an object readable, then calls `done`. `ahead`: nothing needs it yet.
    pub fn open(&self, object: ObjectId, copy: Whence, ahead: bool, done: Callback) {
        let mut views = self.views.lock();
        match views.get_mut(&object) {
            Some(View::Opening(callbacks, was_ahead)) => {
                callbacks.push(done);
                let hurries = *was_ahead && !ahead;
                *was_ahead &= ahead;
                drop(views);
                if hurries {
                    self.agent.tell(ToAgent::Hurry { object });
                }
                return;
            }
            Some(View::Open { pin, reader, place }) => {
                // While the object is pinned its region may be held (VW-3).
                let both = pin.upgrade().and_then(|pin| Some((reader.upgrade()?, pin)));
                if let Some((reader, pin)) = both {
                    let place = *place;
                    drop(views);
                    return done(view(reader, place, pin));
                }
            }
            None => {}
        }
        views.insert(object, View::Opening(vec![done], ahead));
        drop(views);
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let noted = match &mut *self.requests.lock() {
            Ok(requests) => {
                requests.insert(request, (object, copy));
                Ok(())
            }
            Err(over) => Err(over.clone()),
        };
        match noted {
            Ok(()) => self.ask(request),
            Err(over) => self.answer(object, &Err(over)),
        }
    }

    /// Sends a request that was noted, for the first time or again.
    fn ask(&self, request: u64) {
        let Some((object, copy)) = self.request(request) else { return };
        let ahead = self.is_ahead(object);
        self.agent.tell(ToAgent::Open { request, object, copy, ahead });
        // Whoever came to need it meanwhile may have said so before the agent knew what it was about.
        if ahead && !self.is_ahead(object) {
            self.agent.tell(ToAgent::Hurry { object });
        }
    }

    fn is_ahead(&self, object: ObjectId) -> bool {
        matches!(self.views.lock().get(&object), Some(View::Opening(_, true)))
    }

    fn request(&self, request: u64) -> Option<(ObjectId, Whence)> {
        self.requests.lock().as_ref().ok()?.get(&request).copied()
    }

    fn take_request(&self, request: u64) -> Option<(ObjectId, Whence)> {
        self.requests.lock().as_mut().ok()?.remove(&request)
    }

    /// The agent has pinned what was asked for, and says where it lies; a descriptor of that region comes along, unless
    /// the agent takes it to be mapped here, or the reason why that did not arrive.
    pub fn opened(
        &self,
        request: u64,
        place: Place,
        descriptor: Option<Result<OwnedFd, Failure>>,
        now: Instant,
    ) {
        let Some((object, _)) = self.request(request) else { return };
        let pin = Arc::new(Pinned { object, agent: self.agent.clone() });
        let reader = match self.reader(request, place, descriptor, now) {
            Ok(Some(reader)) => reader,
            // It is asked for again, and pinned again.
            Ok(None) => return,
            Err(failure) => {
                self.take_request(request);
                return self.answer(object, &Err(failure));
            }
        };
        let callbacks = match self.take_request(request) {
            None => Vec::new(),
            Some(_) => {
                let open = View::Open { pin: Arc::downgrade(&pin), reader: Arc::downgrade(&reader), place };
                match self.views.lock().insert(object, open) {
                    Some(View::Opening(callbacks, _)) => callbacks,
                    _ => Vec::new(),
                }
            }
        };
        for callback in callbacks {
            callback(view(reader.clone(), place, pin.clone()));
        }
        // As bytes do (VW-3).
        drop(reader);
        drop(pin);
    }

    /// The region of an object, mapped. `None` where it was unmapped while the agent answered without a descriptor; then
    /// the agent is asked again as soon as it knows.
    fn reader(
        &self,
        request: u64,
        place: Place,
        descriptor: Option<Result<OwnedFd, Failure>>,
        now: Instant,
    ) -> Result<Option<Arc<Reader>>, Failure> {
        let mut readers = self.readers.lock();
        if let Some(mapping) = readers.get_mut(&place.region) {
            mapping.opened = now;
            if mapping.reader.is_none() {
                mapping.again.push(request);
            }
            return Ok(mapping.reader.clone());
        }
        let Some(descriptor) = descriptor else {
            drop(readers);
            self.ask(request);
            return Ok(None);
        };
        let reader =
            Reader::map(descriptor?, place.region_bytes).map_err(|error| unmappable(error.kind(), &error))?;
        let mapping = Mapping { reader: Some(reader.clone()), opened: now, again: Vec::new() };
        readers.insert(place.region, mapping);
        // In front of the unpinning of what is opened here, as long as which the agent need not know.
        self.agent.mention(ToAgent::Mapped { region: place.region });
        Ok(Some(reader))
    }

    /// The agent could not open what was asked for.
    pub fn open_failed(&self, request: u64, failure: Failure) {
        if let Some((object, _)) = self.take_request(request) {
            self.answer(object, &Err(failure));
        }
    }

    fn answer(&self, object: ObjectId, result: &Result<Bytes, Failure>) {
        let callbacks = match self.views.lock().remove(&object) {
            Some(View::Opening(callbacks, _)) => callbacks,
            _ => Vec::new(),
        };
        for callback in callbacks {
            callback(result.clone());
        }
    }

    /// The agent wants the memory of a region in which nothing lies any more.
    pub fn unmap(&self, region: RegionId) {
        let reader = {
            let mut readers = self.readers.lock();
            match readers.get_mut(&region) {
                Some(mapping) => mapping.reader.take(),
                // What said so before is on its way; once more does no harm.
                None => return self.agent.tell(ToAgent::Unmapped { region }),
            }
        };
        // Otherwise another thread is at it.
        if let Some(reader) = reader {
            self.unmapped(region, reader);
        }
    }

    /// Unmaps a region, without a lock since that takes its time where it is large, and says so.
    fn unmapped(&self, region: RegionId, reader: Arc<Reader>) {
        drop(reader);
        let again = {
            let mut readers = self.readers.lock();
            self.agent.tell(ToAgent::Unmapped { region });
            readers.remove(&region).map(|mapping| mapping.again).unwrap_or_default()
        };
        for request in again {
            self.ask(request);
        }
    }

    /// Now and then: forgets views that nobody holds, and unmaps regions in which nothing was open for [`MAPPED_TIME`].
    pub fn tidy(&self, now: Instant) {
        self.views.lock().retain(|_, view| match view {
            View::Opening(..) => true,
            View::Open { pin, .. } => pin.strong_count() > 0,
        });
        let idle = |mapping: &mut Mapping| {
            let long = now.saturating_duration_since(mapping.opened) >= MAPPED_TIME;
            mapping.reader.take_if(|reader| long && Arc::strong_count(reader) == 1)
        };
        let idle: Vec<_> = {
            let mut readers = self.readers.lock();
            readers.iter_mut().filter_map(|(region, mapping)| Some((*region, idle(mapping)?))).collect()
        };
        for (region, reader) in idle {
            self.unmapped(region, reader);
        }
    }

    /// Nothing will be answered any more, since `failure`.
    pub fn end(&self, failure: &Failure) {
        let waiting = std::mem::replace(&mut *self.requests.lock(), Err(failure.clone()));
        let mut waiting = Vec::from_iter(waiting.unwrap_or_default());
        waiting.sort_unstable_by_key(|(request, _)| *request);
        for (_, (object, _)) in waiting {
            self.answer(object, &Err(failure.clone()));
        }
    }
}

/// The mapping's handle goes before any bytes do (VW-3).
fn view(reader: Arc<Reader>, place: Place, pinned: Arc<Pinned>) -> Result<Bytes, Failure> {
    reader
        .bytes(place.offset, place.bytes, Some(pin(pinned)))
        .map_err(|error| unmappable(error.kind(), &error))
}

/// What this process cannot map is no lost object: others may, and so may this one later.
fn unmappable(kind: FailureKind, error: &dyn Display) -> Failure {
    Failure::new(kind, format!("this process cannot map it: {error}"))
}
