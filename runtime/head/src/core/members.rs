//! Which nodes there are.

use std::{collections::BTreeMap, net::SocketAddr};

use mobula_proto::{
    Failure, FailureKind, NodeId,
    head::{Node, Register, ToAgent, Usage},
    resource::check_name,
    wire::{Hello, Role},
};
use mobula_scheduler::{self as scheduler, Millis};
use tracing::{info, warn};

use super::{Core, Effect, KNOWN_NODES_MAX, Link, NODES_MAX, Peer, PeerKind, TEXT_BYTES_MAX, drain::Drain};
use crate::state::Record;

/// A living node.
#[derive(Debug)]
pub(super) struct Member {
    pub node: NodeId,
    pub link: Link,
    pub kind: PeerKind,
    /// Its name in its certificate.
    pub certificate: String,
    pub register: Register,
    pub usage: Usage,
    /// Messages that came from it, by kind.
    pub told: BTreeMap<&'static str, u64>,
    pub drain: Option<Drain>,
    /// Since when it runs nothing, as far as was looked.
    pub idle_since: Option<Millis>,
}

impl Member {
    fn for_peers(&self) -> Node {
        Node { node: self.node, name: self.register.name.clone(), address: self.register.address.clone() }
    }
}

impl Core {
    pub(super) fn register(&mut self, link: Link, peer: Peer, hello: Hello, register: Register) {
        if self.links.contains_key(&link) {
            warn!(peer = peer.name, "ignored a second registration on one link");
            return;
        }
        if let Err(failure) = self.admit(link, peer, hello, register) {
            self.send(link, ToAgent::Refused(failure));
            self.out.push(Effect::Close(link));
        }
    }

    fn admit(&mut self, link: Link, peer: Peer, hello: Hello, mut register: Register) -> Result<(), Failure> {
        let refuse = |e: &dyn std::fmt::Display| {
            Failure::new(FailureKind::Unreachable, format!("this node cannot join: {e}"))
        };
        let roles: &[Role] = match peer.kind {
            PeerKind::Agent => &[Role::Agent],
            PeerKind::Driver => &[Role::Agent, Role::Driver],
        };
        hello.check(roles).map_err(|e| refuse(&e))?;
        if register.name.is_empty() {
            register.name.clone_from(&peer.name);
        }
        check_name(&register.name).map_err(|e| refuse(&e))?;
        if !register.address.is_empty() {
            register.address.parse::<SocketAddr>().map_err(|e| refuse(&format!("its address: {e}")))?;
        }
        if peer.kind == PeerKind::Driver && !register.total.is_empty() {
            return Err(refuse(&"a driver may offer no resources; join as an agent to do so"));
        }
        if register.devices.iter().any(|d| d.model.len().max(d.uuid.len()) > TEXT_BYTES_MAX) {
            return Err(refuse(&format!("a device's model or name is longer than {TEXT_BYTES_MAX} bytes")));
        }
        register.labels.sort();
        let (number, incarnation, record) = self.number_for(&peer)?;
        let node = NodeId { number, incarnation };
        let up = scheduler::Event::NodeUp {
            node,
            total: register.total.clone(),
            devices: register.devices.clone(),
            labels: register.labels.clone(),
        };
        up.validate().map_err(|e| refuse(&e))?;
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&number) {
            return Err(Failure::new(
                FailureKind::Limit,
                format!("the cluster has {NODES_MAX} nodes, the most that it may"),
            ));
        }

        self.next_node = self.next_node.max(number.saturating_add(1));
        if peer.kind == PeerKind::Agent {
            self.known.insert(peer.name.clone(), (number, incarnation));
        }
        self.persist(record);
        if let Some(old) = self.nodes.get(&number).map(|m| m.link) {
            self.out.push(Effect::Close(old));
            self.link_lost(old, "the node registered anew");
        }
        // Names that outlived the head belong to hosts that did not outlive this registration.
        self.drop_names_of_node(number, incarnation);
        info!(%node, name = register.name, address = register.address, resources = %register.total, "node joined");
        let nodes = self.nodes.values().map(Member::for_peers).collect();
        let member = Member {
            node,
            link,
            kind: peer.kind,
            certificate: peer.name,
            register,
            usage: Usage::default(),
            told: BTreeMap::new(),
            drain: None,
            idle_since: None,
        };
        let joined = member.for_peers();
        self.nodes.insert(number, member);
        self.links.insert(link, node);
        self.out.push(Effect::Attach(link));
        self.send(link, ToAgent::Registered { node, nodes });
        self.broadcast(Some(link), ToAgent::NodeUp(joined));
        self.schedule(up);
        self.aim_drains();
        self.drain_again(node);
        Ok(())
    }

    /// The number and incarnation for a peer, and the record that makes them durable. Drivers come and go under
    /// names of their own, so each gets a fresh number and leaves only the counter behind.
    fn number_for(&self, peer: &Peer) -> Result<(u32, u32, Record), Failure> {
        let full = || {
            Failure::new(
                FailureKind::Limit,
                format!("the cluster has known {KNOWN_NODES_MAX} nodes, the most that it may"),
            )
        };
        let fresh = self.next_node;
        if peer.kind == PeerKind::Driver {
            return Ok((fresh, 1, Record::NextNode { number: fresh.checked_add(1).ok_or_else(full)? }));
        }
        let (number, last) = match self.known.get(&peer.name) {
            Some(known) => *known,
            None if self.known.len() >= KNOWN_NODES_MAX || fresh == u32::MAX => return Err(full()),
            None => (fresh, 0),
        };
        let incarnation = last.checked_add(1).ok_or_else(full)?;
        Ok((number, incarnation, Record::Node { name: peer.name.clone(), number, incarnation }))
    }

    pub(super) fn leave(&mut self, link: Link, node: NodeId) {
        self.out.push(Effect::Close(link));
        self.node_lost(link, Failure::new(FailureKind::NodeDied, format!("{node} left the cluster")));
    }

    pub(super) fn link_lost(&mut self, link: Link, why: &str) {
        let Some(node) = self.links.get(&link).copied() else { return };
        self.node_lost(link, Failure::new(FailureKind::NodeDied, format!("{node} was lost: {why}")));
    }

    pub(super) fn node_lost(&mut self, link: Link, failure: Failure) {
        let Some(node) = self.links.remove(&link) else { return };
        let told = |member: &Member| member.drain.as_ref().is_some_and(|drain| !drain.is_idle());
        if let Some(member) = self.nodes.remove(&node.number).filter(told) {
            self.persist(Record::DrainGone { name: member.certificate });
        }
        self.jobs.values_mut().for_each(|entry| entry.left_by(node));
        info!(%node, %failure, "node gone");
        self.broadcast(Some(link), ToAgent::NodeDown { node, failure: failure.clone() });
        self.bury_node(node);
        self.drop_questions_to(node);
        self.groups.forget_waiters(|waiter| waiter.node == node);
        self.leases.forget_owners(|owner| owner.node == node);
        self.schedule(scheduler::Event::NodeDown { node });
        self.drop_names(|_, actor| actor.owner.node == node);
        self.hosts_gone(|host| host.node == node, &failure);
        self.aim_drains();
    }

    pub(super) fn link_of(&self, node: NodeId) -> Option<Link> {
        self.nodes.get(&node.number).filter(|m| m.node == node).map(|m| m.link)
    }
}
