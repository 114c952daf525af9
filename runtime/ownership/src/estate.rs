//! The owner of record: what an agent does for the objects of dead owners whose values lie in its store, and for the
//! hosts of its node that hold refs to such objects.

use std::collections::{BTreeMap, BTreeSet};

use mobula_proto::{
    HostId, NodeId, ObjectId,
    peer::{CLAIMS_MAX, RECORD_REFS_MAX, Record},
};

use crate::dead::Dead;

/// Answers to claims, for one host.
pub type Answers = Vec<(ObjectId, Option<Record>)>;

/// What an agent must do after a call. In order.
#[derive(Clone, Debug, PartialEq)]
pub enum Act {
    /// Ask another agent to keep these for a host here: [`Estate::on_claim`] there.
    Ask {
        /// The other agent's node.
        node: NodeId,
        /// The host.
        host: HostId,
        /// Pairs with the answer.
        number: u64,
        /// At most [`CLAIMS_MAX`].
        objects: Vec<ObjectId>,
    },
    /// The answer to that: [`Estate::on_claimed`] there.
    Answer {
        /// Who asked.
        node: NodeId,
        /// For this host.
        host: HostId,
        /// From the question.
        number: u64,
        /// What is kept for it; what has many refs inside comes in parts.
        answers: Answers,
    },
    /// Tell a host here what became of its claims.
    Tell {
        /// The host.
        host: HostId,
        /// What is kept for it; what has many refs inside comes in parts.
        answers: Answers,
    },
    /// Another agent need not keep an object for a host here any more: [`Estate::unclaim`] there.
    Unclaim {
        /// The other agent's node.
        node: NodeId,
        /// The host.
        host: HostId,
        /// The object.
        object: ObjectId,
    },
    /// Tell the head that every host here has mourned.
    Mourned {
        /// The dead; an agent stands for the hosts of its node.
        host: HostId,
    },
    /// Nobody holds the object, nor will anybody again: its copies here go.
    Free {
        /// The object.
        object: ObjectId,
    },
}

/// A claim of a host here that no agent has granted yet.
#[derive(Debug)]
struct Seek {
    /// Who has not answered.
    asked: BTreeMap<NodeId, Asked>,
    /// Whether more than the likeliest was asked.
    everywhere: bool,
    /// Whether it was there at the last [`Estate::ask_again`].
    old: bool,
}

/// A question to another agent.
#[derive(Debug)]
struct Asked {
    number: u64,
    /// The refs inside the value that the answer has named so far.
    contains: Vec<ObjectId>,
}

/// Questions to ask: of whom, about what.
type Questions = BTreeMap<NodeId, Vec<ObjectId>>;

/// The claims that one agent knows of: those of anybody on what its own store has, and those of its hosts on what others
/// have that are not granted yet. There are at most as many of the former as objects here times hosts that hold them.
///
/// Claims are counted, and questions have numbers: so a question may be asked again whose answer is late or lost, and each
/// answer that is not wanted any more takes back the one claim that it stands for.
///
/// - **R-1** What is claimed is not freed before its last claim is taken back, or its claimants are buried.
/// - **R-2** What nobody has claimed is not freed before its owner is buried: until then, a claim may be on its way.
/// - **R-3** Once its owner is buried, what nobody claims is freed; also what is sealed only then.
/// - **R-4** A host that does not say in time what it holds holds up nobody's burial ([`Estate::waited`]): what it claims later
///   it is given if that is still here.
#[derive(Debug)]
pub struct Estate {
    me: NodeId,
    /// Most refs in one message.
    part_refs: usize,
    /// For whom an object is kept, and how often they claimed it.
    claims: BTreeMap<ObjectId, BTreeMap<HostId, u32>>,
    next_number: u64,
    seeks: BTreeMap<(HostId, ObjectId), Seek>,
    /// The dead, and who of the hosts here has not mourned them yet.
    mourning: BTreeMap<HostId, BTreeSet<HostId>>,
    unburied: BTreeSet<HostId>,
    buried: Dead,
}

impl Estate {
    /// Nobody has died yet.
    pub fn new(me: NodeId) -> Self {
        Self::with_parts(me, RECORD_REFS_MAX)
    }

    /// The same, where a message names at most so many refs inside values (at least one).
    pub fn with_parts(me: NodeId, part_refs: usize) -> Self {
        Self {
            me,
            part_refs: part_refs.max(1),
            claims: BTreeMap::new(),
            next_number: 1,
            seeks: BTreeMap::new(),
            mourning: BTreeMap::new(),
            unburied: BTreeSet::new(),
            buried: Dead::default(),
        }
    }

    /// A host died, or the hosts of a node, for which its agent stands: these hosts here were told, and mourn.
    pub fn died(&mut self, dead: HostId, hosts: impl IntoIterator<Item = HostId>, acts: &mut Vec<Act>) {
        self.unburied.insert(dead);
        self.mourning.insert(dead, hosts.into_iter().filter(|host| *host != dead).collect());
        self.look(dead, acts);
    }

    /// Who is dead and not buried: to be told to a host that begins only now, before it hears anything else. It holds
    /// nothing yet, so it need not mourn.
    pub fn unburied(&self) -> impl Iterator<Item = HostId> {
        self.unburied.iter().copied()
    }

    /// A host here has mourned.
    pub fn mourned(&mut self, by: HostId, dead: HostId, acts: &mut Vec<Act>) {
        if self.mourning.get_mut(&dead).is_some_and(|hosts| hosts.remove(&by)) {
            self.look(dead, acts);
        }
    }

    /// Hosts here had long enough to mourn: those who did not, which are returned, are not waited for.
    pub fn waited(&mut self, dead: HostId, acts: &mut Vec<Act>) -> BTreeSet<HostId> {
        let silent = self.mourning.get_mut(&dead).map(std::mem::take).unwrap_or_default();
        self.look(dead, acts);
        silent
    }

    fn look(&mut self, dead: HostId, acts: &mut Vec<Act>) {
        if self.mourning.get(&dead).is_some_and(BTreeSet::is_empty) {
            self.mourning.remove(&dead);
            acts.push(Act::Mourned { host: dead });
        }
    }

    /// A host here is gone: it mourns nobody, and asks for nothing any more.
    pub fn host_gone(&mut self, host: HostId, acts: &mut Vec<Act>) {
        let all: Vec<HostId> = self.mourning.keys().copied().collect();
        for dead in all {
            self.mourned(host, dead, acts);
        }
        self.seeks.retain(|(by, _), _| *by != host);
    }

    /// A host here claims these, the last that it knew of each being on that node. `nodes` are the other living ones.
    pub fn claim(
        &mut self,
        host: HostId,
        objects: Vec<(ObjectId, Option<NodeId>)>,
        nodes: &BTreeSet<NodeId>,
        find: impl Fn(ObjectId) -> Option<Record>,
        acts: &mut Vec<Act>,
    ) {
        let (mut answers, mut ask) = (Vec::new(), Questions::new());
        for (object, hint) in objects {
            if let Some(record) = self.keep(host, object, &find) {
                answers.push((object, Some(record)));
                continue;
            }
            let hint = hint.filter(|hint| nodes.contains(hint));
            let whom = hint.map_or_else(|| nodes.clone(), |hint| BTreeSet::from([hint]));
            if whom.is_empty() {
                answers.push((object, None));
                continue;
            }
            let seek =
                Seek { asked: self.ask_for(object, whom, &mut ask), everywhere: hint.is_none(), old: false };
            self.seeks.insert((host, object), seek);
        }
        self.ask(host, ask, acts);
        tell(answers, self.part_refs, |answers| acts.push(Act::Tell { host, answers }));
    }

    /// Notes that these are to be asked, with the next number.
    fn ask_for(
        &self,
        object: ObjectId,
        nodes: impl IntoIterator<Item = NodeId>,
        ask: &mut Questions,
    ) -> BTreeMap<NodeId, Asked> {
        let number = self.next_number;
        let mut asked = BTreeMap::new();
        for node in nodes {
            ask.entry(node).or_default().push(object);
            asked.insert(node, Asked { number, contains: Vec::new() });
        }
        asked
    }

    /// Asks, and takes another number for whatever comes next.
    fn ask(&mut self, host: HostId, ask: Questions, acts: &mut Vec<Act>) {
        let number = self.next_number;
        self.next_number += u64::from(!ask.is_empty());
        for (node, objects) in ask {
            for objects in objects.chunks(CLAIMS_MAX) {
                acts.push(Act::Ask { node, host, number, objects: objects.to_vec() });
            }
        }
    }

    /// Asks once more for what nobody has answered since the last call.
    pub fn ask_again(&mut self, acts: &mut Vec<Act>) {
        let mut ask: BTreeMap<HostId, Questions> = BTreeMap::new();
        for ((host, object), seek) in &mut self.seeks {
            if std::mem::replace(&mut seek.old, true) {
                for (node, asked) in &mut seek.asked {
                    *asked = Asked { number: self.next_number, contains: Vec::new() };
                    ask.entry(*host).or_default().entry(*node).or_default().push(*object);
                }
            }
        }
        let number = self.next_number;
        for (host, ask) in ask {
            self.next_number = number;
            self.ask(host, ask, acts);
        }
    }

    /// Whether somebody has not answered yet.
    pub fn is_asking(&self) -> bool {
        !self.seeks.is_empty()
    }

    /// Keeps an object for a host from now on, if it is here. What is buried claims nothing.
    fn keep(
        &mut self,
        host: HostId,
        object: ObjectId,
        find: impl Fn(ObjectId) -> Option<Record>,
    ) -> Option<Record> {
        let record = find(object).filter(|_| !self.buried.host(host))?;
        *self.claims.entry(object).or_default().entry(host).or_default() += 1;
        Some(record)
    }

    /// Another agent claims these for a host of its own.
    pub fn on_claim(
        &mut self,
        host: HostId,
        number: u64,
        objects: Vec<ObjectId>,
        find: impl Fn(ObjectId) -> Option<Record>,
        acts: &mut Vec<Act>,
    ) {
        let answers = objects.into_iter().map(|object| (object, self.keep(host, object, &find))).collect();
        tell(answers, self.part_refs, |answers| {
            acts.push(Act::Answer { node: host.node, host, number, answers })
        });
    }

    /// The answer of another agent, or a part of it, to the question of that number for a host here.
    pub fn on_claimed(
        &mut self,
        from: NodeId,
        (host, number): (HostId, u64),
        answers: Answers,
        nodes: &BTreeSet<NodeId>,
        find: impl Fn(ObjectId) -> Option<Record>,
        acts: &mut Vec<Act>,
    ) {
        let (mut known, mut ask) = (Vec::new(), Questions::new());
        for (object, found) in answers {
            // Of what lacks a part, the rest does not count: it is asked for again.
            let at = found.as_ref().map_or(0, |record| record.at as usize);
            let seek = self.seeks.get_mut(&(host, object));
            let asked = seek
                .and_then(|seek| seek.asked.get_mut(&from))
                .filter(|asked| asked.number == number && asked.contains.len() == at);
            match (found, asked) {
                (Some(Record { copy, contains, more, .. }), Some(asked)) => {
                    asked.contains.extend(contains);
                    if !more {
                        let contains = std::mem::take(&mut asked.contains);
                        known.push((object, Some(Record { copy, at: 0, contains, more })));
                        self.seeks.remove(&(host, object));
                    }
                }
                // Another was faster, or the host is gone.
                (Some(Record { more: false, .. }), None) => {
                    acts.push(Act::Unclaim { node: from, host, object });
                }
                (None, Some(_)) => self.not_there(from, (host, object), nodes, &find, &mut known, &mut ask),
                (Some(_) | None, None) => {}
            }
        }
        self.ask(host, ask, acts);
        tell(known, self.part_refs, |answers| acts.push(Act::Tell { host, answers }));
    }

    /// A node does not have what a host here claims: asks others, once nobody is left who was asked.
    fn not_there(
        &mut self,
        node: NodeId,
        (host, object): (HostId, ObjectId),
        nodes: &BTreeSet<NodeId>,
        find: impl Fn(ObjectId) -> Option<Record>,
        answers: &mut Answers,
        ask: &mut Questions,
    ) {
        let Some(seek) = self.seeks.get_mut(&(host, object)) else { return };
        seek.asked.remove(&node);
        if !seek.asked.is_empty() {
            return;
        }
        if !std::mem::replace(&mut seek.everywhere, true) {
            let others = nodes.iter().copied().filter(|other| *other != node);
            let asked = self.ask_for(object, others, ask);
            if !asked.is_empty() {
                if let Some(seek) = self.seeks.get_mut(&(host, object)) {
                    seek.asked = asked;
                }
                return;
            }
        }
        self.seeks.remove(&(host, object));
        // It may have been given to this node meanwhile.
        let found = self.keep(host, object, find);
        answers.push((object, found));
    }

    /// A node is gone, and is not among `nodes` any more: it answers nothing, and may have given what is claimed to
    /// any other, or to this one.
    pub fn node_gone(
        &mut self,
        node: NodeId,
        nodes: &BTreeSet<NodeId>,
        find: impl Fn(ObjectId) -> Option<Record>,
        acts: &mut Vec<Act>,
    ) {
        let waiting: Vec<(HostId, ObjectId)> = self
            .seeks
            .iter()
            .filter(|(_, seek)| seek.asked.contains_key(&node))
            .map(|(key, _)| *key)
            .collect();
        for (host, object) in waiting {
            let (mut answers, mut ask) = (Vec::new(), Questions::new());
            if let Some(seek) = self.seeks.get_mut(&(host, object)) {
                seek.everywhere = false;
            }
            self.not_there(node, (host, object), nodes, &find, &mut answers, &mut ask);
            self.ask(host, ask, acts);
            tell(answers, self.part_refs, |answers| acts.push(Act::Tell { host, answers }));
        }
    }

    /// A host holds an object no more that `node` keeps for it.
    pub fn release(&mut self, host: HostId, object: ObjectId, node: NodeId, acts: &mut Vec<Act>) {
        if node == self.me {
            self.unclaim(host, object, acts);
        } else {
            acts.push(Act::Unclaim { node, host, object });
        }
    }

    /// An object that is here need not be kept for this host any more.
    pub fn unclaim(&mut self, host: HostId, object: ObjectId, acts: &mut Vec<Act>) {
        let Some(hosts) = self.claims.get_mut(&object) else { return };
        let Some(count) = hosts.get_mut(&host) else { return };
        *count -= 1;
        if *count == 0 {
            hosts.remove(&host);
        }
        if hosts.is_empty() {
            self.claims.remove(&object);
            if self.buried.host(object.owner) {
                acts.push(Act::Free { object });
            }
        }
    }

    /// Every living host has mourned. `owned` are the objects of the dead that are here.
    pub fn buried(&mut self, dead: HostId, owned: impl IntoIterator<Item = ObjectId>, acts: &mut Vec<Act>) {
        self.unburied.remove(&dead);
        if dead.is_agent() {
            self.buried.add_node(dead.node);
        } else {
            self.buried.add_host(dead);
        }
        let gone = |host: &HostId| *host == dead || dead.is_agent() && host.node == dead.node;
        let mut held: Vec<(HostId, ObjectId)> = Vec::new();
        for (object, hosts) in &mut self.claims {
            for (host, count) in hosts.iter_mut().filter(|(host, _)| gone(host)) {
                *count = 1;
                held.push((*host, *object));
            }
        }
        let mut unheld: BTreeSet<ObjectId> =
            owned.into_iter().filter(|object| !self.claims.contains_key(object)).collect();
        for (host, object) in held {
            self.unclaim(host, object, acts);
            unheld.remove(&object);
        }
        acts.extend(unheld.into_iter().map(|object| Act::Free { object }));
    }

    /// Whether the object, which was sealed here just now, is of no use to anybody, and to be freed.
    pub fn is_late(&self, object: ObjectId) -> bool {
        self.buried.host(object.owner) && !self.claims.contains_key(&object)
    }

    /// Whether this agent is the object's owner of record.
    pub fn has(&self, object: ObjectId) -> bool {
        self.claims.contains_key(&object)
    }

    /// Whom an object is kept for; `None` where this node is not its owner of record.
    pub fn claimants(&self, object: ObjectId) -> Option<impl Iterator<Item = HostId>> {
        self.claims.get(&object).map(|hosts| hosts.keys().copied())
    }

    /// An object, which is here, is kept for the agent of a node that has it too, and is to leave: until that takes it
    /// back ([`Estate::unclaim`]) or is buried. To say so twice changes nothing.
    pub fn claim_for_agent(&mut self, node: NodeId, object: ObjectId) {
        self.claims.entry(object).or_default().insert(node.agent(), 1);
    }

    /// A job has ended, and its objects have gone: these are still here.
    pub fn retain(&mut self, is_here: impl Fn(ObjectId) -> bool) {
        self.claims.retain(|object, _| is_here(*object));
    }
}

/// Answers in parts that fit into a message, with so many refs inside values at most.
fn tell(answers: Answers, refs_max: usize, mut tell: impl FnMut(Answers)) {
    let (mut part, mut room) = (Vec::new(), refs_max);
    let mut push = |object, found, refs: usize| {
        part.push((object, found));
        room -= refs;
        if part.len() >= CLAIMS_MAX || room == 0 {
            tell(std::mem::take(&mut part));
            room = refs_max;
        }
        room
    };
    let mut room = refs_max;
    for (object, found) in answers {
        let Some(Record { copy, contains, .. }) = found else {
            room = push(object, None, 0);
            continue;
        };
        let (mut left, mut at) = (contains.into_iter(), 0);
        loop {
            let contains: Vec<ObjectId> = left.by_ref().take(room).collect();
            let (refs, more) = (contains.len(), left.len() > 0);
            room = push(object, Some(Record { copy, at, contains, more }), refs);
            at += u32::try_from(refs).unwrap_or(u32::MAX);
            if !more {
                break;
            }
        }
    }
    if !part.is_empty() {
        tell(part);
    }
}
