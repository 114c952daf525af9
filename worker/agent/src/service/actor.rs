//! The actor around [`Core`]: it takes messages, lets the core decide, and does what comes of it. All waiting is
//! done by the tasks that send to it; each holds a permit for every message of its that is not handled yet.

use std::{
    collections::BTreeMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, OnceLock, Weak},
    time::Instant,
};

use mobula_net::{bulk, ring};
use mobula_proto::{
    Failure, FailureKind, HostId, JobId, NodeId, RegionId,
    head::{self, Between, ToHead, Usage},
    host::{self, ToAgent, ToHost},
    peer::Copy,
};
use mobula_store::{
    heap::{Block, Extent},
    region::{check_shared, seal},
    spill::Target,
};
use mobula_telemetry::task;
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tracing::{debug, info, warn};

use super::{
    disk::Disk,
    launch::{self, Launching},
    memory::{self, Memory, Step, Wanted},
    peers::Peers,
    provision::Provision,
    routes::{Outbox, Routes, Undelivered},
    transfer::{Answered, Pulled, Transfers},
};
use crate::{
    core::{Config, Core, Effect, Launch, objects::Key, transfer::Wish},
    launcher::memory::{Group, Limits},
    users::Users,
};

/// Most messages of one sender that the actor has not handled yet.
pub const PERMITS: usize = 512;

pub(super) type Permit = OwnedSemaphorePermit;

/// What the actor is told.
pub(super) enum Message {
    /// The descriptors are the first one's.
    Host(HostId, Vec<ToAgent>, Vec<OwnedFd>, Permit),
    Head(Box<head::ToAgent>, Permit),
    Peer(Between, Permit),
    /// A host here and one elsewhere count each other as dead. Said once for each pair.
    Severed {
        here: HostId,
        there: HostId,
    },
    DriverArrived(Outbox, Arc<Notify>, bool, oneshot::Sender<Result<HostId, Failure>>),
    /// With what limits its memory.
    Linked(HostId, Outbox, Option<Arc<Group>>),
    Ended(HostId, Failure),
    Pulled(Key, Copy, Result<Pulled, Failure>),
    /// Of a pull for a job that came to nothing: its memory in that region, of so many bytes, is let go of.
    PullLeft(JobId, RegionId, u64),
    Restored(Wanted, Result<Block, Failure>),
    /// A read for a job that was given up before ([`Message::Restored`]) has let go of its memory.
    ReadLeft(JobId),
    Spilled(u64, Result<(), String>),
    /// A file of spilled objects is gone.
    Deleted(u64),
    /// From an offset on.
    Serve(Box<Wish>, u64, oneshot::Sender<Answered>),
    /// To this node, and so many bytes of it.
    Served(Key, NodeId, u64),
    Tick,
    Usage(oneshot::Sender<Usage>),
    Report,
    /// Ends everything; the reply comes when no host is left.
    Stop(Failure, oneshot::Sender<()>),
}

/// What the actor works on, once it has started. What a host says, and the actor would do at once, is done by who read
/// it ([`Post::at_once`]).
pub(super) type Desk = Arc<OnceLock<Weak<Mutex<State>>>>;

/// The way to the actor.
#[derive(Clone)]
pub(super) struct Post {
    actor: ActorRef<Message>,
    desk: Desk,
}

impl Post {
    pub(super) fn new(actor: ActorRef<Message>, desk: Desk) -> Self {
        Self { actor, desk }
    }

    /// Handles what a host says on the caller's own task, which saves a waking and two turns of the runtime. Gives it back
    /// where the actor is at work, or has yet to handle what the host said before.
    pub(super) fn at_once(
        &self,
        permits: &Arc<Semaphore>,
        host: HostId,
        said: Vec<ToAgent>,
        fds: Vec<OwnedFd>,
    ) -> Result<(), (Vec<ToAgent>, Vec<OwnedFd>)> {
        if permits.available_permits() < PERMITS {
            return Err((said, fds));
        }
        let Some(desk) = self.desk.get().and_then(Weak::upgrade) else { return Err((said, fds)) };
        let Some(mut state) = desk.try_lock() else { return Err((said, fds)) };
        state.host_said(host, said, fds, Instant::now());
        state.settle();
        Ok(())
    }

    /// A sender's permits.
    pub(super) fn permits(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(PERMITS))
    }

    /// Sends once there is a permit. Where the actor is gone, so is everything that the message is about.
    pub(super) async fn send(&self, permits: &Arc<Semaphore>, message: impl FnOnce(Permit) -> Message) {
        if let Ok(permit) = Arc::clone(permits).acquire_owned().await {
            self.cast(message(permit));
        }
    }

    pub(super) fn cast(&self, message: Message) {
        if self.actor.cast(message).is_err() {
            debug!("the agent has ended");
        }
    }

    pub(super) fn linked(&self, host: HostId, outbox: Outbox, memory: Option<Arc<Group>>) {
        self.cast(Message::Linked(host, outbox, memory));
    }

    pub(super) fn ended(&self, host: HostId, failure: Failure) {
        self.cast(Message::Ended(host, failure));
    }

    pub(super) fn report(&self) {
        self.cast(Message::Report);
    }

    pub(super) async fn driver_arrived(
        &self,
        outbox: Outbox,
        close: Arc<Notify>,
        in_process: bool,
    ) -> Result<HostId, Failure> {
        let (reply, answer) = oneshot::channel();
        self.cast(Message::DriverArrived(outbox, close, in_process, reply));
        answer.await.unwrap_or_else(|_| Err(Failure::new(FailureKind::Unreachable, "the agent has ended")))
    }

    pub(super) async fn serve(&self, wish: Wish, from: u64) -> Answered {
        let (reply, answer) = oneshot::channel();
        self.cast(Message::Serve(Box::new(wish), from, reply));
        Self::answered(answer).await
    }

    /// What comes of [`super::transfer::Answer::Later`], and of each question.
    pub(super) async fn answered(answer: oneshot::Receiver<Answered>) -> Answered {
        answer.await.unwrap_or_else(|_| Err(bulk::Refusal::Busy("the agent has ended".to_owned())))
    }

    pub(super) fn pulled(&self, key: Key, copy: Copy, result: Result<Pulled, Failure>) {
        self.cast(Message::Pulled(key, copy, result));
    }

    pub(super) async fn usage(&self) -> Option<Usage> {
        let (reply, answer) = oneshot::channel();
        self.cast(Message::Usage(reply));
        answer.await.ok()
    }

    pub(super) async fn stop(&self, failure: Failure) {
        let (reply, answer) = oneshot::channel();
        self.cast(Message::Stop(failure, reply));
        // An actor that is gone has nobody left.
        let _gone = answer.await;
    }

    /// The other agents, once the actor has started.
    #[cfg(test)]
    pub(super) fn peers(&self) -> Option<Arc<Peers>> {
        let desk = self.desk.get().and_then(Weak::upgrade)?;
        let peers = Arc::clone(&desk.lock().peers);
        Some(peers)
    }

    /// Ends the actor itself.
    pub(super) fn halt(&self) {
        self.actor.stop(None);
    }
}

/// What the actor starts with.
pub(super) struct Arguments {
    pub(super) config: Config,
    pub(super) desk: Desk,
    pub(super) spill: Option<Arc<dyn Target>>,
    pub(super) ring_bytes: u32,
    pub(super) nodes: Vec<head::Node>,
    pub(super) to_head: mpsc::Sender<ToHead>,
    pub(super) routes: Arc<Routes>,
    pub(super) provision: Arc<Provision>,
    pub(super) endpoint: Option<Arc<mobula_net::quic::Endpoint>>,
    pub(super) listens: bool,
    /// Everything of [`Launching`] but the way to this actor.
    pub(super) launcher: Arc<dyn crate::launcher::Launcher>,
    pub(super) devices: Arc<Vec<mobula_proto::resource::Device>>,
    pub(super) tpu_chips: u32,
    pub(super) env: Arc<Vec<(String, String)>>,
    pub(super) limits: Option<Arc<Limits>>,
    pub(super) users: Option<Arc<Users>>,
}

pub(super) struct State {
    pub(super) core: Core,
    pub(super) memory: Memory,
    pub(super) disk: Disk,
    pub(super) transfers: Transfers,
    ring_bytes: u32,
    to_head: mpsc::Sender<ToHead>,
    routes: Arc<Routes>,
    provision: Arc<Provision>,
    pub(super) peers: Arc<Peers>,
    launching: Launching,
    links: BTreeMap<HostId, Outbox>,
    /// What ends a driver's link.
    closing: BTreeMap<HostId, Arc<Notify>>,
    /// What ends a launched host.
    killing: BTreeMap<HostId, watch::Sender<bool>>,
    /// What limits the memory of a launched host.
    limited: BTreeMap<HostId, Arc<Group>>,
    timer: Option<(Instant, task::Guard)>,
    reported: Usage,
    stopping: Option<oneshot::Sender<()>>,
    pub(super) post: Post,
    _accepting: Option<task::Guard>,
}

pub(super) struct Service;

impl Actor for Service {
    type Msg = Message;
    type State = Arc<Mutex<State>>;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        arguments: Arguments,
    ) -> Result<Arc<Mutex<State>>, ActorProcessingErr> {
        let desk = Arc::clone(&arguments.desk);
        let post = Post::new(myself, Arc::clone(&desk));
        let Arguments { config, ring_bytes, nodes, to_head, routes, provision, endpoint, listens, .. } =
            arguments;
        let accepts = endpoint.is_some() && listens;
        let (me, store_bytes, pulls) = (config.node, config.store_bytes, config.pulls);
        let disk = Disk::new(arguments.spill, config.spill.stall, post.clone());
        let peers = Peers::new(
            me,
            endpoint,
            listens,
            Arc::clone(&routes),
            Arc::clone(&provision),
            post.clone(),
            pulls.stall,
        );
        provision.set_peers(&peers);
        let launching = Launching {
            launcher: arguments.launcher,
            provision: Arc::clone(&provision),
            routes: Arc::clone(&routes),
            post: post.clone(),
            devices: arguments.devices,
            tpu_chips: arguments.tpu_chips,
            env: arguments.env,
            limits: arguments.limits,
            users: arguments.users,
        };
        let accepting = accepts.then(|| task::scoped("peer-accept", Arc::clone(&peers).accept()));
        let mut core = Core::new(config);
        core.objects.limit_descriptors(mobula_net::raise_descriptor_limit());
        for node in nodes {
            peers.node_up(node.clone());
            core.node_up(node);
        }
        let state = Arc::new(Mutex::new(State {
            core,
            memory: Memory::new(store_bytes),
            disk,
            transfers: Transfers::new(pulls),
            ring_bytes,
            to_head,
            routes,
            provision,
            peers,
            launching,
            links: BTreeMap::new(),
            closing: BTreeMap::new(),
            killing: BTreeMap::new(),
            limited: BTreeMap::new(),
            timer: None,
            reported: Usage::default(),
            stopping: None,
            post,
            _accepting: accepting,
        }));
        // It is set here alone.
        let _unset = desk.set(Arc::downgrade(&state));
        Ok(state)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Message>,
        message: Message,
        state: &mut Arc<Mutex<State>>,
    ) -> Result<(), ActorProcessingErr> {
        let mut state = state.lock();
        state.handle(message);
        state.settle();
        Ok(())
    }
}

impl State {
    fn handle(&mut self, message: Message) {
        let now = Instant::now();
        self.core.objects.at(now);
        match message {
            Message::Host(host, said, fds, _permit) => self.host_said(host, said, fds, now),
            Message::Head(said, _permit) => {
                match &*said {
                    head::ToAgent::NodeUp(node) => self.peers.node_up(node.clone()),
                    head::ToAgent::HostEnded { host, .. } => self.routes.host_gone(*host),
                    head::ToAgent::NodeDown { node, .. } => {
                        self.peers.node_down(*node);
                        let (gone, steps) = self.memory.without(*node);
                        for wanted in gone {
                            let text = format!("{node}, which held it, is gone");
                            self.lost(wanted, Failure::new(FailureKind::ObjectLost, text));
                        }
                        self.steps(steps);
                    }
                    _ => {}
                }
                self.core.from_head(*said, now);
            }
            Message::Peer(said, _permit) => self.core.from_peer(said),
            Message::Severed { here, there } => {
                if self.core.is_of_driver(here, there) {
                    warn!(host = %here, driver = %there, "a host is ended: its driver is not reached, and counts it as dead");
                    self.end(here);
                }
            }
            Message::DriverArrived(outbox, close, in_process, reply) => {
                let arrived = if self.stopping.is_some() {
                    Err(Failure::new(FailureKind::Unreachable, "the agent is ending"))
                } else {
                    self.core.driver_arrived(in_process)
                };
                if let Ok(host) = arrived {
                    self.links.insert(host, outbox);
                    self.closing.insert(host, close);
                }
                // A driver that left meanwhile ends its link next.
                let _left = reply.send(arrived);
            }
            Message::Linked(host, outbox, memory) => {
                self.links.insert(host, outbox);
                self.limited.extend(memory.map(|group| (host, group)));
            }
            Message::Ended(host, failure) => self.ended(host, failure),
            Message::Pulled(key, copy, result) => self.pulled(key, copy, result),
            Message::PullLeft(job, region, bytes) => {
                self.core.pull_left(region, bytes);
                self.came_free(job);
            }
            Message::Restored(wanted, result) => self.restored(wanted, result),
            Message::ReadLeft(job) => self.came_free(job),
            Message::Spilled(file, result) => self.core.spilled(file, result, now),
            Message::Deleted(file) => self.core.file_deleted(file),
            Message::Serve(wish, from, reply) => {
                // Who asked may have left: what it was lent comes back.
                let _left = reply.send(self.serve(*wish, from));
            }
            Message::Served(key, by, bytes) => self.core.served(key, by, bytes),
            Message::Tick => {
                self.timer = None;
                self.core.tick(now);
            }
            Message::Usage(reply) => {
                // Whoever asked may have left.
                let _left = reply.send(self.core.usage());
            }
            Message::Report => {
                let usage = self.core.usage();
                if usage != self.reported {
                    self.core.effects.push(Effect::Head(ToHead::Usage(usage)));
                }
            }
            Message::Stop(failure, reply) => {
                self.stopping = Some(reply);
                self.core.end_all(&failure);
            }
        }
    }

    /// Does all that follows from what was handled.
    fn settle(&mut self) {
        self.apply();
        self.set_timer();
        self.check_stopped();
    }

    /// The descriptors are the first message's.
    fn host_said(&mut self, host: HostId, said: Vec<ToAgent>, mut fds: Vec<OwnedFd>, now: Instant) {
        for said in said {
            let fds = std::mem::take(&mut fds);
            match &said {
                ToAgent::Hello { pid, driver: Some(driver), .. } => self.provision.driver(host, *pid, driver),
                ToAgent::RegionAdded { bytes, .. } => {
                    // Others map it, and so does the agent, without another look: its seals hold, and its size is what the
                    // store accounts for.
                    let checked = fds.first().map(|fd| check_shared(fd.as_fd(), *bytes));
                    if let Some(Err(error)) = checked {
                        warn!(%host, %error, "a region is not what it should be; its host is ended");
                        self.end(host);
                        return;
                    }
                }
                _ => {}
            }
            self.core.from_host(host, said, fds, now);
        }
    }

    fn ended(&mut self, host: HostId, failure: Failure) {
        info!(%host, why = %failure.message, "host ended");
        self.links.remove(&host);
        self.closing.remove(&host);
        self.killing.remove(&host);
        self.limited.remove(&host);
        self.routes.remove_host(host);
        self.provision.driver_gone(host);
        self.core.host_ended(host, failure, Instant::now());
    }

    fn end(&mut self, host: HostId) {
        if let Some(kill) = self.killing.get(&host) {
            kill.send_replace(true);
        } else if let Some(close) = self.closing.get(&host) {
            close.notify_one();
        }
    }

    /// Does what the core decided, and what follows from that, until nothing is left to do.
    fn apply(&mut self) {
        loop {
            let effects = std::mem::take(&mut self.core.effects);
            if effects.is_empty() {
                if !self.sweep() && !self.core.own_empty(self.memory.empty_bytes()) {
                    return;
                }
                continue;
            }
            for effect in effects {
                self.perform(effect);
            }
        }
    }

    /// Gives back memory of the agent's own; says whether that changed anything.
    fn sweep(&mut self) -> bool {
        let short = self.core.objects.short_of_own() > 0;
        let (agent, now) = (self.core.node().agent(), Instant::now());
        if let Some(bytes) = self.memory.drop_spare(short, now) {
            self.core.spare_dropped(bytes);
            return true;
        }
        let removed = self.memory.sweep(agent, short, now);
        for region in &removed {
            self.core.own_region_removed(*region);
        }
        !removed.is_empty()
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Tell(host, message, fds) => self.tell(host, message, fds),
            Effect::Head(message) => {
                if let ToHead::Usage(usage) = &message {
                    self.reported = usage.clone();
                }
                if self.to_head.try_send(message).is_err() {
                    warn!("a message to the head is lost: its link is gone, or too far behind");
                }
            }
            Effect::Peer(node, message) => {
                let sent = self.peers_outbox(node).map(|outbox| outbox.tell(message));
                if sent == Some(Err(Undelivered::Full)) {
                    warn!(%node, "a message to a node is lost: too many wait for it");
                }
            }
            Effect::Launch(launch) => self.launch(*launch),
            Effect::Kill(host) | Effect::Close(host) => self.end(host),
            Effect::Ready(host, job) => {
                if let Some(outbox) = self.links.get(&host) {
                    self.routes.add_host(host, job, outbox.clone());
                }
            }
            Effect::Rings(pair) => self.rings(pair),
            Effect::Pull(key, copy, ahead) => {
                self.want(Wanted { key, bytes: copy.bytes, from: memory::From::Node(copy), ahead });
            }
            Effect::Hurry(key) => {
                let steps = self.memory.hurry(key);
                self.steps(steps);
            }
            Effect::Recall(key) => {
                if let Some(steps) = self.memory.unwant(key) {
                    self.core.pull_recalled(key);
                    self.steps(steps);
                }
            }
            Effect::EndPull(key) => self.end_pull(key),
            Effect::Restore(key, bytes, slot, ahead) => {
                self.want(Wanted { key, bytes, from: memory::From::Disk(slot), ahead });
            }
            Effect::Spill(spill) => {
                self.disk.write(spill, |region| Some(self.core.objects.region(region)?.0))
            }
            Effect::DeleteFile(file) => self.disk.delete(file),
            Effect::Serve(key, served) => self.serve_waiting(key, &served),
            Effect::Reclaim(copies) => {
                let steps = self.memory.reclaim(&copies);
                self.steps(steps);
            }
            Effect::Room(request, result) => self.room(request, result),
            Effect::JobGone(job) => {
                for request in self.memory.job_gone(job) {
                    self.core.unwant_region(self.core.node().agent(), request);
                }
                match &self.launching.users {
                    // The folder goes with its user, after the last host.
                    Some(users) => users.job_gone(job),
                    None => {
                        let provision = Arc::clone(&self.provision);
                        drop(tokio::task::spawn_blocking(move || provision.job_gone(job)));
                    }
                }
            }
        }
    }

    fn peers_outbox(&self, node: NodeId) -> Option<super::delivery::PeerOutbox> {
        self.routes.peer(node)
    }

    fn tell(&mut self, host: HostId, message: ToHost, fds: Vec<Arc<OwnedFd>>) {
        // One of this agent's own may not be sealed yet, and never leaves without.
        if let ToHost::Opened { region, .. } = message
            && let Some(error) = fds.iter().find_map(|fd| seal(fd).err())
        {
            warn!(%host, %region, %error, "a region cannot be shared with a host, which is ended");
            return self.end(host);
        }
        // Before it touches a page of the region.
        if matches!(message, ToHost::RegionGranted { .. })
            && let Some(group) = self.limited.get(&host)
            && let Err(error) = group.allow(self.core.objects.of_writer(host))
        {
            warn!(%host, %error, "a host's memory limit cannot be raised by its regions of the store");
        }
        let Some(outbox) = self.links.get(&host) else { return };
        match outbox.tell(message, fds) {
            // Its end is on the way to here.
            Ok(()) | Err(Undelivered::Closed) => {}
            Err(Undelivered::Full) => {
                warn!(%host, "a host does not read what it is told, and is ended");
                self.end(host);
            }
        }
    }

    fn launch(&mut self, launch: Launch) {
        let (kill, killed) = watch::channel(false);
        self.killing.insert(launch.host, kill);
        let user = self.launching.users.as_ref().map(|users| users.of(launch.job.job));
        drop(task::spawn("host", launch::run(self.launching.clone(), launch, user, killed)));
    }

    fn rings(&mut self, [(one, one_bell), (other, other_bell)]: [(HostId, Arc<OwnedFd>); 2]) {
        let made =
            (|| Ok::<_, ring::Error>((ring::create(self.ring_bytes)?, ring::create(self.ring_bytes)?)))();
        match made {
            Ok((forth, back)) => {
                let (forth, back) = (Arc::new(forth), Arc::new(back));
                let fds = vec![Arc::clone(&back), Arc::clone(&forth), other_bell];
                self.tell(one, ToHost::Rings { peer: other }, fds);
                self.tell(other, ToHost::Rings { peer: one }, vec![forth, back, one_bell]);
            }
            // They go on through the agent.
            Err(error) => warn!(%one, %other, %error, "no rings between two hosts"),
        }
    }

    fn want(&mut self, wanted: Wanted) {
        let steps = self.memory.want(wanted);
        self.steps(steps);
    }

    pub(super) fn steps(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Start(wanted, block) => match wanted.from {
                    memory::From::Node(copy) => self.pull(wanted.key, copy, block),
                    memory::From::Disk(slot) => self.disk.read(wanted, slot, block),
                },
                Step::Unask(request) => self.core.unwant_region(self.core.node().agent(), request),
                Step::Ask(request, bytes, spare) => {
                    let agent = self.core.node().agent();
                    if let Some(spare) = spare {
                        // It is counted in that region's name from now on.
                        self.core.objects.unreserve(agent, spare);
                    }
                    self.core.want_region(agent, request, bytes, memory::ROOM_WAIT, Instant::now());
                }
            }
        }
    }

    fn room(&mut self, request: host::Request, result: Result<(), Failure>) {
        let agent = self.core.node().agent();
        let Some(job) = self.memory.asked(request) else { return };
        let granted = result.is_ok();
        let made = result.and_then(|()| self.memory.make_region(request));
        let added = made.and_then(|(seq, len, fd)| {
            let region = RegionId { writer: agent, seq };
            self.core
                .objects
                .add_region(region, request, job, len, Arc::new(fd))
                .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
        });
        let steps = match added {
            Ok(()) => self.memory.granted(request),
            Err(failure) => {
                if granted {
                    self.core.objects.ungrant(agent, request);
                }
                let (lost, steps) = self.memory.refused(request);
                if let Some(lost) = lost {
                    self.lost(lost, failure);
                }
                steps
            }
        };
        self.steps(steps);
    }

    /// There will be no memory for a copy, or nobody to get it from.
    fn lost(&mut self, lost: Wanted, failure: Failure) {
        match lost.from {
            memory::From::Node(_) => {
                self.core.pulled(lost.key, Err(failure));
            }
            memory::From::Disk(_) => {
                self.core.restored(lost.key, Err(failure));
            }
        }
    }

    /// A copy was read back from disk, or not.
    fn restored(&mut self, wanted: Wanted, result: Result<Block, Failure>) {
        let extent = result.map(Block::seal);
        let place = extent.as_ref().map(Extent::location).map_err(Failure::clone);
        let agent = self.core.node().agent();
        let place = place.map(|place| (RegionId { writer: agent, seq: place.region_seq }, place.offset));
        let kept = self.core.restored(wanted.key, place);
        match extent {
            Ok(extent) if kept => self.memory.keep(wanted.key, extent),
            extent => {
                drop(extent);
                self.came_free(wanted.key.2);
            }
        }
    }

    /// Memory came free of a copy that never was in the table: who waits may have it, rather than a region of its own.
    fn came_free(&mut self, job: JobId) {
        let steps = self.memory.steps(job);
        self.steps(steps);
    }

    fn set_timer(&mut self) {
        let Some(next) = self.core.next_deadline() else {
            self.timer = None;
            return;
        };
        if self.timer.as_ref().is_some_and(|(at, _)| *at <= next) {
            return;
        }
        let post = self.post.clone();
        let guard = task::scoped("agent-timer", async move {
            tokio::time::sleep_until(next.into()).await;
            post.cast(Message::Tick);
        });
        self.timer = Some((next, guard));
    }

    fn check_stopped(&mut self) {
        if self.stopping.is_some()
            && self.core.hosts().is_empty()
            && let Some(reply) = self.stopping.take()
        {
            // Whoever asked may have left.
            let _left = reply.send(());
        }
    }
}
