//! What the head decides: [`Core::step`] takes an [`Event`] and the time and returns [`Effect`]s.
//!
//! It has no clock, no socket and no randomness, and iterates over nothing but sorted collections, so the same
//! events give the same effects (invariant I2).
//!
//! # Invariants
//!
//! - **H1** A node keeps its number for ever and gets a new incarnation with each registration; what carries an
//!   older one, or speaks about another node's hosts, changes nothing.
//! - **H2** A lease is announced to its owner only after the granting node has named a host for it. Until then the
//!   core renews it, for at most [`RESERVE_MS_MAX`], and a loss puts the owner's wish back in the queue.
//!   One that has a process of its own ends because of its owner's silence only when that node says that nothing
//!   runs in it.
//! - **H3** What a node, host or job held ends with it: demands, leases, names, questions in flight.
//! - **H4** A record precedes, in the list of effects, every message that promises what it holds.
//! - **H5** Each table has a limit with a name; reaching it is a typed failure to whoever asked.

mod burials;
mod drain;
mod groups;
mod jobs;
mod leases;
mod members;
mod names;
mod queues;
mod refused;
pub mod scaling;
mod snapshot;
#[cfg(test)]
mod tests;
mod tokens;
mod why;

use std::collections::BTreeMap;

use mobula_proto::{
    Failure, GroupId, HostId, JobId, NodeId, Queue,
    head::{Explanation, Register, ScalingSnapshot, ToAgent, ToHead},
    host::{Answer, Question, Request},
    wire::Hello,
};
use mobula_scheduler::{Millis, Scheduler, autoscale::NodeType};
use tracing::warn;

use crate::state::{Record, TokenId};

pub use drain::{DRAIN_GRACE_MS, DRAIN_MS_MAX};
pub(crate) use snapshot::{amounts, shape};
pub use tokens::{Redeemed, Token};

/// Most living nodes, drivers' own included.
pub const NODES_MAX: usize = 10_000;
/// Most node names remembered; each costs about 200 bytes of memory and disk.
pub const KNOWN_NODES_MAX: usize = 100_000;
/// Longest name of a class's function or of a device's model, in bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Longest message of a failure that is passed on, in bytes; a longer one is cut.
pub const FAILURE_BYTES_MAX: usize = 16 * 1024;
/// Most causes of a failure that are passed on; the innermost ones are cut.
pub const FAILURE_CAUSES_MAX: usize = 32;
/// Most running jobs.
pub const JOBS_MAX: usize = 10_000;
/// Most files that travel with one job.
pub const JOB_FILES_MAX: usize = 1024;
/// Most arguments that a job's hosts are started with, and the most bytes that all of them have together.
pub const JOB_ARGUMENTS_MAX: (usize, usize) = (256, 64 * 1024);
/// Longest name of a job's file, in bytes.
pub const FILE_NAME_BYTES_MAX: usize = 4096;
/// Most named actors.
pub const NAMES_MAX: usize = 100_000;
/// Most classes of all owners together that wait for slots or for a host.
pub const DEMANDS_MAX: usize = 200_000;
/// Most join tokens not yet expired.
pub const TOKENS_MAX: usize = 10_000;
/// Most hosts that wait for one job's steward.
pub const STEWARD_WAITERS_MAX: usize = 4096;
/// How long a node may take to name a host for a lease, in milliseconds. Starting a large program on a busy machine
/// takes seconds; a lease whose node stays silent longer goes back to the queue.
pub const RESERVE_MS_MAX: u64 = 60_000;
/// How long a steward may take to start, in milliseconds; who waits for it is then told.
pub const STEWARD_START_MS_MAX: u64 = 60_000;
/// How long after a restart names of detached actors, and wishes that a node leaves, wait for that node to come back, in
/// milliseconds.
pub const RECOVERY_MS: u64 = 60_000;
/// Most placement groups.
pub const GROUPS_MAX: usize = 100_000;
/// Most hosts that wait for one placement group.
pub const GROUP_WAITERS_MAX: usize = 4096;
/// Numbers of placement groups are reserved on disk in blocks of so many, so that most are made without a write.
pub const GROUP_NUMBERS_BLOCK: u64 = 4096;
/// Job numbers are reserved on disk in blocks of so many, so that most jobs start without a write.
pub const JOB_NUMBERS_BLOCK: u64 = 64;
/// Each start of the head counts its leases from a multiple of this, so that no number is used twice.
pub const LEASES_PER_START: u64 = 1 << 40;

/// A connection, as the service numbers them; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link(pub u64);

/// What a peer's certificate says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerKind {
    /// A machine's agent.
    Agent,
    /// A driver outside the cluster, with the agent it carries. It may offer no resources.
    Driver,
}

/// Who is at the other end of a link, as proved by its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it may be.
    pub kind: PeerKind,
    /// Its name in the certificate.
    pub name: String,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first message of a peer.
    Register {
        /// Its connection.
        link: Link,
        /// Who it is.
        peer: Peer,
        /// Its hello.
        hello: Hello,
        /// What it offers.
        node: Box<Register>,
    },
    /// A later message. Ignored unless the link is registered.
    Message {
        /// Its connection.
        link: Link,
        /// What it says.
        message: ToHead,
    },
    /// A connection is gone.
    Lost {
        /// Which.
        link: Link,
        /// Why, for people.
        why: String,
    },
    /// Somebody at the service wants to know why something waits. Answered with [`Effect::Explained`].
    Explain {
        /// Pairs with the answer.
        ticket: u64,
        /// What is meant: see [`mobula_proto::head::Explanation`].
        id: String,
    },
    /// Time passed; see [`Core::next_tick`].
    Tick,
    /// The head ends in good order.
    Shutdown,
}

/// Something to be done, in the order given.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Write this down durably before any later effect.
    Persist(Record),
    /// Tell the agent at the other end of a link.
    Send {
        /// The link.
        to: Link,
        /// The message.
        message: ToAgent,
    },
    /// Tell every registered agent but one.
    Broadcast {
        /// The one that is not told.
        except: Option<Link>,
        /// The message.
        message: ToAgent,
    },
    /// Answer to [`Event::Explain`].
    Explained {
        /// From the question.
        ticket: u64,
        /// Why, or why that is not known.
        answer: Result<Explanation, Failure>,
    },
    /// The link takes part in broadcasts from now on.
    Attach(Link),
    /// Nothing more will be said: close the link once what was sent has left.
    Close(Link),
}

/// How a core starts.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The cluster's name, for snapshots.
    pub cluster: String,
    /// Passed to the scheduler, for breaking ties.
    pub seed: u64,
    /// Nodes that may be started: what one of them could hold waits for it.
    pub node_types: Vec<NodeType>,
    /// Unix time in milliseconds when the core's clock showed nought, or would have if it had not stood still since: what
    /// is on disk counts by it.
    pub begun_unix_ms: u64,
}

/// The head's state. See the text of the module.
pub struct Core {
    options: Options,
    now: Millis,
    scheduler: Scheduler,
    /// Living nodes by number, and the number behind each registered link.
    nodes: BTreeMap<u32, members::Member>,
    links: BTreeMap<Link, NodeId>,
    /// Every agent that ever registered or got a certificate: number and last incarnation, by certificate name.
    known: BTreeMap<String, (u32, u32)>,
    next_node: u32,
    jobs: BTreeMap<JobId, jobs::Entry>,
    next_job: u64,
    /// Job numbers below this are reserved on disk.
    reserved_jobs: u64,
    leases: leases::Table,
    names: names::Directory,
    queues: BTreeMap<String, Queue>,
    groups: groups::Groups,
    recovered: drain::Recovered,
    burials: burials::Burials,
    tokens: BTreeMap<TokenId, Token>,
    questions: why::Questions,
    scaling: Option<ScalingSnapshot>,
    refused: refused::Refused,
    out: Vec<Effect>,
}

impl Core {
    /// A core that continues from `records`. Returns the records to append before anything else is done.
    pub fn new(options: Options, records: Vec<Record>, now: Millis) -> (Self, Vec<Record>) {
        let mut starts = 0;
        let (mut known, mut tokens, mut names) =
            (BTreeMap::new(), BTreeMap::new(), names::Directory::default());
        let (mut queues, mut groups) = (BTreeMap::new(), groups::Groups::default());
        let mut recovered = drain::Recovered::new(now.plus(Millis(RECOVERY_MS)));
        let (mut next_node, mut next_job) = (1, 1);
        for record in records {
            match record {
                Record::Start { count } => starts = count,
                Record::Node { name, number, incarnation } => {
                    next_node = next_node.max(number.saturating_add(1));
                    known.insert(name, (number, incarnation));
                }
                Record::NextNode { number } => next_node = next_node.max(number),
                Record::NextJob { number } => next_job = number,
                Record::Token { id, token } => drop(tokens.insert(id, token)),
                Record::Name { namespace, name, actor, actor_type } => {
                    names.recover((namespace, name), actor, actor_type);
                }
                Record::Queue { queue } => drop(queues.insert(queue.name.clone(), queue)),
                Record::NextGroup { number } => groups.numbers_from(number),
                Record::Group { number, namespace, name, group } => {
                    groups.recover(GroupId { number }, (namespace, name), group);
                }
                Record::Drain { name, until_unix_ms } => recovered.insert(name, until_unix_ms),
                Record::TokenGone { .. }
                | Record::NameGone { .. }
                | Record::QueueGone { .. }
                | Record::GroupGone { .. }
                | Record::DrainGone { .. }
                | Record::Admin { .. } => {}
            }
        }
        names.recovery_ends(now.plus(Millis(RECOVERY_MS)));
        let scheduler = Scheduler::new(mobula_scheduler::Options {
            seed: options.seed,
            first_lease: starts.saturating_mul(LEASES_PER_START).saturating_add(1),
            ..Default::default()
        });
        let mut core = Self {
            options,
            now,
            scheduler,
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            known,
            next_node,
            jobs: BTreeMap::new(),
            next_job,
            reserved_jobs: next_job,
            leases: leases::Table::default(),
            names,
            queues,
            groups,
            recovered,
            burials: burials::Burials::default(),
            tokens,
            questions: why::Questions::default(),
            scaling: None,
            refused: refused::Refused::default(),
            out: Vec::new(),
        };
        core.announce_queues();
        core.announce_groups();
        (core, vec![Record::Start { count: starts.saturating_add(1) }])
    }

    /// What follows from `event`, in the order in which it must be done. A `now` before an earlier one counts as
    /// the earlier one.
    pub fn step(&mut self, event: Event, now: Millis) -> Vec<Effect> {
        self.now = self.now.max(now);
        match event {
            Event::Register { link, peer, hello, node } => self.register(link, peer, hello, *node),
            Event::Message { link, message } => self.message(link, message),
            Event::Lost { link, why } => self.link_lost(link, &why),
            Event::Explain { ticket, id } => self.explain(&id, why::Curious::Outside(ticket)),
            Event::Tick => self.tick(),
            Event::Shutdown => self.out.push(Effect::Broadcast { except: None, message: ToAgent::Shutdown }),
        }
        std::mem::take(&mut self.out)
    }

    /// The core's clock stood still for so long: see [`Options::begun_unix_ms`].
    pub fn stood_still(&mut self, by: Millis) {
        self.options.begun_unix_ms = self.options.begun_unix_ms.saturating_add(by.0);
    }

    /// When [`Event::Tick`] is next of use; `None` while the cluster is idle.
    pub fn next_tick(&self) -> Option<Millis> {
        let stewards = self.jobs.values().filter_map(jobs::Entry::deadline).min();
        let own = [
            self.leases.next_deadline(),
            self.names.deadline(),
            self.questions.deadline(),
            self.drain_deadline(),
            stewards,
        ];
        own.into_iter().chain([self.scheduler.next_tick()]).flatten().min()
    }

    /// The scheduler's part of [`Self::next_tick`]: cheap enough to ask for after each message.
    pub fn next_look(&self) -> Option<Millis> {
        self.scheduler.next_tick()
    }

    fn tick(&mut self) {
        self.renew_pending();
        self.ask_of_overdue();
        self.schedule(mobula_scheduler::Event::Tick);
        self.time_out_stewards();
        self.time_out_names();
        self.time_out_questions();
        self.time_out_drains();
    }

    /// The node at the other end of a link, if it is a member.
    pub fn node_at(&self, link: Link) -> Option<NodeId> {
        self.links.get(&link).copied()
    }

    fn message(&mut self, link: Link, message: ToHead) {
        let Some(&from) = self.links.get(&link) else {
            // Late, not wrong: the node was declared dead while the message was on its way.
            return;
        };
        if let Some(member) = self.nodes.get_mut(&from.number) {
            *member.told.entry(message.kind()).or_default() += 1;
        }
        match message {
            ToHead::Register { .. } => warn!(node = %from, "ignored a second registration on one link"),
            ToHead::JobStart { request, driver, name, namespace, queue, binary, arguments, files } => {
                if self.speaks_for(from, driver) {
                    self.job_start(
                        link,
                        jobs::Start { request, driver, name, namespace, queue, binary, arguments, files },
                    );
                }
            }
            ToHead::JobEnd { job, failure } => self.job_end(from, job, cut(failure)),
            ToHead::Demand { owner, job, key, class, backlog, locality } => {
                if self.speaks_for(from, owner) {
                    self.demand(leases::Wish { owner, job, key, class, backlog, locality });
                }
            }
            ToHead::Renew { leases } => self.renew(from, &leases),
            ToHead::Release { lease } => self.release(from, lease),
            ToHead::Shrink { lease, keep } => self.shrink(from, lease, keep),
            ToHead::Block { lease, slots } => self.block(from, lease, slots, true),
            ToHead::Unblock { lease, slots } => self.block(from, lease, slots, false),
            ToHead::LeaseReady { lease, host } => {
                if self.speaks_for(from, host) {
                    self.lease_ready(link, from, lease, host);
                }
            }
            ToHead::LeaseFailed { lease, failure } => self.lease_failed(from, lease, cut(failure)),
            ToHead::AtRest { lease } => self.at_rest(from, lease),
            ToHead::HostEnded { host, job, failure } => {
                if self.speaks_for(from, host) {
                    self.host_ended(host, job, cut(failure));
                }
            }
            ToHead::Mourned { host } => self.mourned(from, host),
            ToHead::Ask { host, job, request, question } => {
                if self.speaks_for(from, host) {
                    self.ask(Asker { link, host, job, request }, question);
                }
            }
            ToHead::StewardReady { job, host } => {
                if self.speaks_for(from, host) {
                    self.steward_ready(job, host);
                }
            }
            ToHead::Usage(usage) => {
                if let Some(member) = self.nodes.get_mut(&from.number) {
                    member.usage = usage;
                }
            }
            ToHead::Explained { request, found } => self.owner_explained(from, request, found),
            // Taken by the service.
            ToHead::Stock { .. } => {}
            ToHead::Draining(left) => self.draining(from, left),
            ToHead::Leave => self.leave(link, from),
        }
    }

    fn ask(&mut self, asker: Asker, question: Question) {
        if !self.jobs.contains_key(&asker.job) {
            let failure =
                Failure::new(mobula_proto::FailureKind::JobEnded, format!("{} has ended", asker.job));
            return self.answer(asker, Answer::Failed(failure));
        }
        match question {
            Question::NameClaim { namespace, name, actor, actor_type } => {
                self.name_claim(asker, namespace, name, actor, actor_type);
            }
            Question::NameFind { namespace, name } => self.name_find(asker, namespace, name),
            Question::NameDrop { namespace, name, actor } => self.name_drop(asker, namespace, name, actor),
            Question::Snapshot => {
                let answer = match serde_json::to_string(&self.snapshot()) {
                    Ok(json) => Answer::Json(json),
                    Err(e) => {
                        Answer::Failed(Failure::new(mobula_proto::FailureKind::Internal, e.to_string()))
                    }
                };
                self.answer(asker, answer);
            }
            Question::Why { id } => self.explain(&id, why::Curious::Host(asker)),
            Question::Steward => self.steward_wanted(asker),
            Question::GroupCreate { group, name, namespace, detached } => {
                self.group_create(asker, group, (namespace, name), detached);
            }
            Question::GroupReady { group } => self.group_ready(asker, group),
            Question::GroupFind { namespace, name } => self.group_find(asker, namespace, name),
            Question::GroupRemove { group } => self.group_remove(asker, group),
        }
    }

    fn answer(&mut self, asker: Asker, answer: Answer) {
        let Asker { link, host, request, .. } = asker;
        self.send(link, ToAgent::Answered { host, request, answer });
    }

    /// Whether `host` is one of the sender's own; a message about another node's is logged and ignored.
    fn speaks_for(&self, from: NodeId, host: HostId) -> bool {
        let own = host.node == from && !host.is_agent();
        if !own {
            warn!(node = %from, %host, "ignored a message about a host that is not the sender's");
        }
        own
    }

    fn send(&mut self, to: Link, message: ToAgent) {
        self.out.push(Effect::Send { to, message });
    }

    /// Tells the agent of a host, if its node lives.
    fn send_to_agent_of(&mut self, node: NodeId, message: ToAgent) {
        if let Some(link) = self.link_of(node) {
            self.send(link, message);
        }
    }

    fn broadcast(&mut self, except: Option<Link>, message: ToAgent) {
        self.out.push(Effect::Broadcast { except, message });
    }

    fn persist(&mut self, record: Record) {
        self.out.push(Effect::Persist(record));
    }
}

/// A failure short enough to be told to everyone.
fn cut(mut failure: Failure) -> Failure {
    let shorten = |text: &mut String| {
        if text.len() > FAILURE_BYTES_MAX {
            text.truncate(text.floor_char_boundary(FAILURE_BYTES_MAX));
            text.push('…');
        }
    };
    failure.causes.truncate(FAILURE_CAUSES_MAX);
    failure.causes.iter_mut().for_each(shorten);
    [&mut failure.message, &mut failure.what, &mut failure.place].into_iter().for_each(shorten);
    failure
}

/// Who asked, and how it is answered.
#[derive(Clone, Copy, Debug)]
struct Asker {
    link: Link,
    host: HostId,
    job: JobId,
    request: Request,
}
