//! The end of jobs: their hosts die, and what these printed last reaches the driver before it hears of the end.
//!
//! Lines travel in order from a host's pipes to the driver: past the agent's actor where both are here, over the relay
//! stream between two agents else. So whoever says "that was all" behind the last line of its hosts is right. A node
//! says so to the driver's agent with [`Between::OutputEnded`]; the driver's agent, when every node has said it and its
//! own hosts of the job are gone, to the driver with [`ToHost::JobEnded`]. The driver does not wait for that for ever.

use std::collections::BTreeSet;

use mobula_proto::{Failure, HostId, JobId, NodeId, head::Between, host::ToHost};

use super::{Core, Effect, hosts::Kind};

/// A job that has ended, and of which something is still to come.
#[derive(Debug)]
pub(super) struct Ending {
    driver: HostId,
    failure: Failure,
    /// Where the driver is here: the other nodes that may still send its output.
    nodes: BTreeSet<NodeId>,
}

impl Core {
    /// The job is over. `nodes` are the others that were asked for hosts of it, where the driver is here.
    pub(super) fn end_job(&mut self, job: JobId, failure: Failure, nodes: &[NodeId]) {
        let Some(state) = self.jobs.remove(&job) else {
            // It ran nothing here, but a node that drained may have given its objects to this one.
            return self.forget_objects_of(job);
        };
        self.leases.job_gone(job);
        for id in self.hosts.of_job(job) {
            if self.hosts.get(id).is_some_and(|host| host.kind.is_launched()) {
                self.effects.push(Effect::Kill(id));
            }
        }
        self.forget_objects_of(job);
        let driver = state.job.driver;
        if driver.node == self.config.node && self.hosts.get(driver).is_none() {
            // Nobody is left to be told.
            return self.pump();
        }
        let loud = |node: &&NodeId| self.nodes.contains_key(node) && !state.silent.contains(node);
        let nodes = nodes.iter().filter(loud).copied().collect();
        self.endings.insert(job, Ending { driver, failure, nodes });
        self.look_at_ending(job);
        self.pump();
    }

    fn forget_objects_of(&mut self, job: JobId) {
        self.drop_pulls(job);
        let due = self.early.job_gone(job);
        self.wishes_due(due);
        let gone = self.objects.job_gone(job);
        self.gone(gone);
        self.estate_without();
        self.restores_without();
        self.noting_without();
        self.effects.push(Effect::JobGone(job));
        self.pump();
    }

    /// Says that all was said, once it was.
    fn look_at_ending(&mut self, job: JobId) {
        let Some(ending) = self.endings.get(&job) else { return };
        let runs = |id: &HostId| self.hosts.get(*id).is_some_and(|host| host.kind.is_launched());
        if !ending.nodes.is_empty() || self.hosts.of_job(job).iter().any(runs) {
            return;
        }
        let Some(Ending { driver, failure, .. }) = self.endings.remove(&job) else { return };
        if driver.node != self.config.node {
            let message = Between::OutputEnded { job, node: self.config.node };
            self.effects.push(Effect::Peer(driver.node, message));
        } else if self.hosts.get(driver).is_some_and(|host| host.ready) {
            self.effects.push(Effect::Tell(driver, ToHost::JobEnded(failure), Vec::new()));
        }
    }

    /// A host of the job is gone.
    pub(super) fn ending_without(&mut self, job: JobId, kind: Kind) {
        if kind.is_driver() {
            // Nobody is left to be told.
            self.endings.remove(&job);
        } else {
            self.look_at_ending(job);
        }
    }

    /// A node has sent all that the job's hosts there printed.
    pub(super) fn output_ended(&mut self, job: JobId, node: NodeId) {
        if let Some(ending) = self.endings.get_mut(&job) {
            ending.nodes.remove(&node);
            self.look_at_ending(job);
        } else if let Some(state) = self.jobs.get_mut(&job)
            && state.job.driver.node == self.config.node
            && self.nodes.contains_key(&node)
        {
            state.silent.insert(node);
        }
    }

    /// A node is gone: nothing more comes from there, and a driver there wants to know nothing.
    pub(super) fn endings_without(&mut self, node: NodeId) {
        self.endings.retain(|_, ending| ending.driver.node != node);
        let jobs: Vec<JobId> = self.endings.keys().copied().collect();
        for job in jobs {
            if self.endings.get_mut(&job).is_some_and(|ending| ending.nodes.remove(&node)) {
                self.look_at_ending(job);
            }
        }
        for state in self.jobs.values_mut() {
            state.silent.remove(&node);
        }
    }

    /// The head ends a driver, but not its job: detached actors keep that.
    pub(super) fn driver_dismissed(&mut self, driver: HostId, failure: Failure) {
        if self.hosts.get(driver).is_some_and(|host| host.ready && host.kind.is_driver()) {
            self.effects.push(Effect::Tell(driver, ToHost::JobEnded(failure), Vec::new()));
        }
    }
}
