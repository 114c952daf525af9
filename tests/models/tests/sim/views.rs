//! Models of a host's views of an object that another process wrote: the host's code, the agent's real table, the writer's
//! heap, and messages that cross between them.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc, time::Instant};

use loom::{
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};
use mobula_agent::core::objects::{Gone, Limits, Objects, Want};
use mobula_models::{
    bytes::Bytes,
    heap::{Extent, Heap, Options},
    host::{
        AgentSender, Said,
        views::{MAPPED_TIME, Place, Views},
    },
    read,
    region::{Writer, mapped},
    write,
};
use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, ObjectId, RegionId, TaskId, host::ToAgent, peer::Copy,
};

use super::model;

const BYTES: u64 = 64;
const ONES: [u8; BYTES as usize] = [1; BYTES as usize];
const JOB: JobId = JobId { number: 1 };
const WRITER: HostId = HostId { node: NodeId::EMBEDDED, seq: 1 };
const HOST: HostId = HostId { node: NodeId::EMBEDDED, seq: 2 };
const REGION: RegionId = RegionId { writer: WRITER, seq: 1 };
const COPY: Copy = Copy { node: NodeId::EMBEDDED, bytes: BYTES, attempt: 1, job: JOB };

fn object() -> ObjectId {
    TaskId::numbered(WRITER, 1).object(0)
}

/// What the agent says: over the socket where something is to be unmapped, through the ring, which may overtake that,
/// otherwise; what carries a descriptor goes either way.
enum Delivery {
    Opened(u64, Place, Option<OwnedFd>),
    Unmap,
    /// Nothing more will be said.
    End,
}

/// Until the end.
fn deliver_all(views: &Views, said: &Receiver<Delivery>, now: Instant) {
    loop {
        match said.recv().unwrap() {
            Delivery::End => return,
            delivery => deliver(views, delivery, now),
        }
    }
}

fn deliver(views: &Views, delivery: Delivery, now: Instant) {
    match delivery {
        Delivery::Opened(request, place, descriptor) => {
            views.opened(request, place, descriptor.map(Ok), now);
        }
        Delivery::Unmap => views.unmap(REGION),
        Delivery::End => {}
    }
}

/// The agent, the writer of the one object, and what they hear.
struct There {
    objects: Objects,
    heap: Heap,
    extent: Option<Extent>,
    heard: Receiver<Said>,
    /// The threads that read the host's socket and its ring; without them, this one does.
    socket: Option<Sender<Delivery>>,
    ring: Option<Sender<Delivery>>,
    /// Whether descriptors lie in a lane beside the ring.
    lane: bool,
    now: Instant,
    gone: bool,
    /// Whether it takes the object for what somebody waits for; `None` before it was asked for it.
    waited_for: Option<bool>,
}

struct Here {
    views: Arc<Views>,
    agent: AgentSender,
}

impl Here {
    /// Opens the object, reads it, and says that it is done.
    fn read(&self, ahead: bool) {
        self.open_and_say(ahead, |result| assert_eq!(read(&result.unwrap()), ONES));
    }

    fn open_and_say(&self, ahead: bool, then: impl FnOnce(Result<Bytes, Failure>) + Send + 'static) {
        let agent = self.agent.clone();
        self.open(ahead, move |result| {
            then(result);
            agent.say(Said::Done);
        });
    }

    fn open(&self, ahead: bool, then: impl FnOnce(Result<Bytes, Failure>) + Send + 'static) {
        self.views.open(object(), COPY, ahead, Box::new(then));
    }
}

impl Clone for Here {
    fn clone(&self) -> Self {
        Self { views: Arc::clone(&self.views), agent: self.agent.clone() }
    }
}

/// An object of ones lies in the writer's region.
fn start() -> (There, Here) {
    let heap = Heap::new(Options { region_bytes_min: BYTES });
    let region = Writer::create(BYTES);
    let descriptor = region.share().unwrap();
    heap.add_region(REGION.seq, region).unwrap();
    let mut block = heap.allocate(BYTES).unwrap();
    write(&mut block, 1);
    let extent = Some(block.seal());
    let now = Instant::now();
    let mut objects = Objects::new(BYTES, Limits::default());
    assert_eq!(objects.want(WRITER, 1, BYTES, now, 0), Want::Granted);
    objects.add_region(REGION, 1, JOB, BYTES, Arc::new(descriptor)).unwrap();
    objects.seal(object(), 1, REGION, 0, BYTES, None).unwrap();
    let (sender, heard) = channel();
    let agent = AgentSender::new(sender);
    let there = There {
        objects,
        heap,
        extent,
        heard,
        socket: None,
        ring: None,
        lane: true,
        now,
        gone: false,
        waited_for: None,
    };
    (there, Here { views: Arc::new(Views::new(agent.clone())), agent })
}

impl There {
    /// Until so many are done.
    fn serve(&mut self, views: &Views, dones: usize) {
        let mut left = dones;
        while left > 0 {
            left -= usize::from(self.hear(views));
        }
    }

    /// What was said before and not heard yet.
    fn rest(&mut self, views: &Views) {
        // Nobody else sends: the last handle is here.
        while let Ok(said) = self.heard.try_recv() {
            self.take(views, said);
        }
    }

    fn hear(&mut self, views: &Views) -> bool {
        let said = self.heard.recv().unwrap();
        self.take(views, said)
    }

    fn take(&mut self, views: &Views, said: Said) -> bool {
        match said {
            Said::Done => return true,
            Said::Gone => self.gone = true,
            _ if self.gone => {}
            Said::Free => {
                let gone = self.objects.free(object(), 0..=1, None);
                self.gone(views, gone);
            }
            Said::Host(ToAgent::Open { request, object, copy, ahead }) => {
                let hurried = self.waited_for.replace(!ahead) == Some(true);
                assert!(!(hurried && ahead), "asked again as if nobody waited for it");
                self.open(views, request, (object, copy.attempt, JOB));
            }
            Said::Host(ToAgent::Hurry { .. }) => self.waited_for = self.waited_for.map(|_| true),
            Said::Host(ToAgent::Unpin { object }) => {
                let gone = self.objects.unpin(object, HOST);
                self.gone(views, gone);
            }
            Said::Host(ToAgent::Mapped { region }) => {
                let gone = self.objects.mapped(region, JOB, HOST);
                self.gone(views, gone);
            }
            Said::Host(ToAgent::Unmapped { region }) => self.objects.unmapped(region, HOST),
            Said::Host(other) => panic!("unexpected: {other:?}"),
        }
        if self.objects.used() == 0 {
            assert_eq!(mapped(), 0, "memory counts as free that is mapped");
        }
        false
    }

    fn open(&mut self, views: &Views, request: u64, key: (ObjectId, u32, JobId)) {
        let Some(place) = self.objects.pin(key, HOST) else {
            return views.open_failed(request, Failure::new(FailureKind::ObjectLost, "freed"));
        };
        let descriptor = self.objects.region_fd_for(place.region, HOST).map(|fd| fd.try_clone().unwrap());
        let mobula_agent::core::objects::Place { region, region_bytes, offset, bytes, .. } = place;
        let place = Place { region, region_bytes, offset, bytes };
        let way = if descriptor.is_none() || self.lane { &self.ring } else { &self.socket };
        let delivery = Delivery::Opened(request, place, descriptor);
        match way {
            Some(way) => way.send(delivery).unwrap(),
            None => deliver(views, delivery, self.now),
        }
    }

    /// The writer uses memory anew as soon as it may, and then gives its region back.
    fn gone(&mut self, views: &Views, gone: Gone) {
        let Gone { reclaim, drop_at, unmap, delete } = gone;
        assert!(drop_at.is_empty() && delete.is_empty());
        if !reclaim.is_empty() {
            assert_eq!(reclaim, BTreeMap::from([(WRITER, vec![(object(), 1, JOB)])]));
            self.extent = None;
            write(&mut self.heap.allocate(BYTES).unwrap(), 2);
            assert_eq!(self.heap.remove_empty_regions(0), [REGION.seq]);
            let gone = self.objects.remove_region(REGION).unwrap();
            return self.gone(views, gone);
        }
        for (host, region) in unmap {
            assert_eq!((host, region), (HOST, REGION));
            match &self.socket {
                Some(socket) => socket.send(Delivery::Unmap).unwrap(),
                None => views.unmap(region),
            }
        }
    }

    /// All that was pinned is unpinned, and all memory comes free once the object does and regions are unmapped.
    fn finish(mut self, here: Here) {
        let views = here.views;
        drop(here.agent);
        (self.socket, self.ring) = (None, None);
        self.rest(&views);
        assert_eq!(self.objects.pinned(), 0);
        let gone = self.objects.free(object(), 0..=1, None);
        self.gone(&views, gone);
        self.rest(&views);
        assert_eq!((self.objects.used(), mapped()), (0, 0));
    }
}

/// Long enough for a region without views to be unmapped.
fn later(there: &There) -> Instant {
    there.now + MAPPED_TIME
}

/// VW-1: the agent answers without a descriptor, and the region is unmapped meanwhile.
#[test]
fn what_is_opened_while_its_region_is_unmapped_is_opened_all_the_same() {
    model(Some(3), 5_000, || {
        let (mut there, here) = start();
        here.read(false);
        there.serve(&here.views, 1);
        there.rest(&here.views);
        assert_eq!(mapped(), 1);
        let later = later(&there);
        let reader = thread::spawn({
            let here = here.clone();
            move || here.read(false)
        });
        let tidier = thread::spawn({
            let here = here.clone();
            move || {
                here.views.tidy(later);
                here.agent.say(Said::Done);
            }
        });
        there.serve(&here.views, 2);
        reader.join().unwrap();
        tidier.join().unwrap();
        there.finish(here);
    });
}

/// VW-1 and VW-2: two open an object anew while the last view of it goes.
#[test]
fn an_object_is_opened_by_two_while_its_last_view_goes() {
    model(Some(3), 10_000, || {
        let (mut there, here) = start();
        let (kept, held) = std::sync::mpsc::channel();
        here.open(false, move |result| kept.send(result.unwrap()).unwrap());
        there.rest(&here.views);
        let held = held.recv().unwrap();
        let first = thread::spawn({
            let here = here.clone();
            move || {
                drop(held);
                here.read(false);
            }
        });
        let second = thread::spawn({
            let here = here.clone();
            move || here.read(false)
        });
        there.serve(&here.views, 2);
        first.join().unwrap();
        second.join().unwrap();
        there.finish(here);
    });
}

/// VW-2 and VW-3: the object is freed, its memory written anew and its region given back while it is opened and the last
/// view of it goes, all on threads of their own, as what comes over the ring and over the socket is. Nothing is read that is written anew, and nothing is
/// mapped that counts as free.
#[test]
fn memory_that_counts_as_free_is_free() {
    freed_while_it_is_opened(true);
}

/// The same where the lane is full, so that descriptors go through the socket.
#[test]
fn memory_that_counts_as_free_is_free_if_descriptors_come_late() {
    freed_while_it_is_opened(false);
}

fn freed_while_it_is_opened(lane: bool) {
    model(Some(4), 20_000, move || {
        let (mut there, here) = start();
        there.lane = lane;
        let (kept, held) = std::sync::mpsc::channel();
        here.open(false, move |result| kept.send(result.unwrap()).unwrap());
        there.rest(&here.views);
        let held = held.recv().unwrap();
        let (socket, socket_says) = channel();
        let (ring, ring_says) = channel();
        (there.socket, there.ring) = (Some(socket.clone()), Some(ring.clone()));
        let now = there.now;
        let link = thread::spawn({
            let here = here.clone();
            move || deliver_all(&here.views, &socket_says, now)
        });
        let dropper = thread::spawn({
            let here = here.clone();
            move || {
                assert_eq!(read(&held), ONES);
                drop(held);
                here.agent.say(Said::Free);
            }
        });
        let reader = thread::spawn({
            let here = here.clone();
            move || {
                here.open(false, move |result| {
                    if let Ok(bytes) = result {
                        assert_eq!(read(&bytes), ONES);
                    }
                    ring.send(Delivery::End).unwrap();
                });
                deliver_all(&here.views, &ring_says, now);
                here.agent.say(Said::Done);
            }
        });
        let mut is_done = false;
        while !is_done || there.objects.used() > 0 {
            is_done |= there.hear(&here.views);
        }
        dropper.join().unwrap();
        reader.join().unwrap();
        socket.send(Delivery::End).unwrap();
        link.join().unwrap();
        there.rest(&here.views);
        assert_eq!((there.objects.used(), there.objects.pinned(), mapped()), (0, 0, 0));
    });
}

/// VW-1: the agent pinned the object, and the descriptor of its region was lost on the way.
#[test]
fn what_cannot_be_mapped_is_answered_and_unpinned() {
    model(None, 1, || {
        let (mut there, here) = start();
        here.open_and_say(false, |result| assert_eq!(result.unwrap_err().kind, FailureKind::Internal));
        let Said::Host(ToAgent::Open { request, .. }) = there.heard.recv().unwrap() else { panic!() };
        let place = there.objects.pin((object(), 1, JOB), HOST).unwrap();
        let mobula_agent::core::objects::Place { region, region_bytes, offset, bytes, .. } = place;
        let place = Place { region, region_bytes, offset, bytes };
        let lost = Failure::new(FailureKind::Internal, "too many open files");
        here.views.opened(request, place, Some(Err(lost)), there.now);
        there.serve(&here.views, 1);
        here.read(false);
        there.serve(&here.views, 1);
        there.finish(here);
    });
}

/// VW-1: whoever waits when the connection ends, or comes later, hears of that, and nobody hears twice.
#[test]
fn everybody_is_answered_when_the_connection_ends() {
    model(Some(3), 25_000, || {
        let (mut there, here) = start();
        let openers: Vec<_> = (0..2)
            .map(|_| {
                let here = here.clone();
                thread::spawn(move || {
                    here.open_and_say(false, |result| match result {
                        Ok(bytes) => assert_eq!(read(&bytes), ONES),
                        Err(failure) => assert_eq!(failure.kind, FailureKind::JobEnded),
                    });
                })
            })
            .collect();
        let ender = thread::spawn({
            let here = here.clone();
            move || {
                here.agent.say(Said::Gone);
                here.views.end(&Failure::new(FailureKind::JobEnded, "over"));
            }
        });
        there.serve(&here.views, 2);
        for opener in openers {
            opener.join().unwrap();
        }
        ender.join().unwrap();
        while let Ok(said) = there.heard.try_recv() {
            assert!(!there.take(&here.views, said), "it was answered twice");
        }
    });
}

/// VW-4: one opens an object ahead of need while another comes to need it.
#[test]
fn the_agent_knows_what_is_waited_for() {
    model(None, 20, || {
        let (mut there, here) = start();
        let ahead = thread::spawn({
            let here = here.clone();
            move || here.read(true)
        });
        here.read(false);
        ahead.join().unwrap();
        there.rest(&here.views);
        assert_eq!(there.waited_for, Some(true), "it takes it for what nobody waits for");
        there.finish(here);
    });
}

/// VW-4: the same where the agent has to be asked again, since the region is being unmapped.
#[test]
fn the_agent_knows_what_is_waited_for_when_it_is_asked_again() {
    model(Some(3), 5_000, || {
        let (mut there, here) = start();
        here.read(false);
        there.serve(&here.views, 1);
        there.rest(&here.views);
        there.waited_for = None;
        let later = later(&there);
        let tidier = thread::spawn({
            let here = here.clone();
            move || here.views.tidy(later)
        });
        here.read(true);
        there.hear(&here.views);
        here.read(false);
        there.serve(&here.views, 2);
        tidier.join().unwrap();
        there.finish(here);
    });
}
