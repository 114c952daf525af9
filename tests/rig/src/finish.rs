//! The end of a rig: everything is given back, or the test has failed.

use std::time::{Duration, Instant};

use mobula::roles::{files, mapped_bytes};
use mobula_proto::{
    head::{NodeSnapshot, Snapshot},
    inventory::Store,
};

use crate::{
    LOOK_INTERVAL, Node, Part, Rig,
    error::{Error, Result},
    processes,
};

/// How long what a job held may take to come back, as the head sees it: use is reported every two seconds.
const TIDY_WAIT: Duration = Duration::from_secs(10);
/// How long hosts may outlive their agent.
const GONE_WAIT: Duration = Duration::from_secs(5);

impl Rig {
    /// Waits until the head knows of no job, lease, name or waiting class, and every resource is free.
    pub fn idle(&mut self) -> Result<()> {
        self.look(in_use)
    }

    /// Waits for what [`Rig::idle`] waits for, and until no node has an object, a host or memory in use. It takes
    /// up to two seconds until agents have said so.
    pub fn settle(&mut self) -> Result<()> {
        self.look(|snapshot, members| {
            let mut left = in_use(snapshot, members);
            left.extend(snapshot.nodes.iter().filter_map(kept_on));
            left
        })
    }

    /// Waits for what [`Rig::idle`] waits for, and until no store has an object, a pin, a byte or a file in use, as the
    /// agents themselves say now; then until the system says so too: that no running agent has a host, a file of spilled
    /// objects, memory of the store mapped, or a descriptor open that was not at its start, and the head none either. Far
    /// faster than [`Rig::settle`], which waits for what agents report by themselves.
    pub fn emptied(&mut self) -> Result<()> {
        self.idle()?;
        if self.head.is_some() {
            look_until(TIDY_WAIT, || match self.memory() {
                Ok(inventory) => {
                    let silent =
                        inventory.silent.iter().map(|node| format!("{node} does not say what it has"));
                    inventory.stores.iter().filter_map(stored).chain(silent).collect()
                }
                Err(error) => vec![error.to_string()],
            })?;
        }
        look_until(GONE_WAIT, || {
            let nodes = self.nodes.iter().enumerate().flat_map(still_there);
            nodes.chain(self.head.iter().flat_map(|head| head.left("the head", None))).collect()
        })
    }

    fn look(&mut self, left: impl Fn(&Snapshot, usize) -> Vec<String>) -> Result<()> {
        if self.head.is_none() {
            return Ok(());
        }
        let members = self.nodes.iter().filter(|node| node.process.is_some()).count();
        look_until(TIDY_WAIT, || match self.snapshot() {
            Ok(snapshot) => left(&snapshot, members),
            Err(error) => vec![error.to_string()],
        })
    }

    /// Ends the cluster and checks that nothing is left: what [`Rig::settle`] and [`Rig::emptied`] say, no process, no folder of a
    /// job or for spilled objects, no control group of a host, and in this process no memory of the store and no descriptor
    /// that was not open before.
    pub fn finish(mut self) -> Result<()> {
        self.settle()?;
        self.emptied()?;
        let pids: Vec<u32> = self
            .nodes
            .iter()
            .filter_map(|node| node.process.as_ref())
            .chain(&self.head)
            .map(mobula::roles::Process::id)
            .collect();
        let mut all = std::mem::take(&mut self.seen);
        for pid in pids {
            all.extend(processes::Process::find(pid));
            all.extend(processes::children(pid));
        }
        for node in &mut self.nodes {
            if let Some(process) = &mut node.process {
                process.ask_to_end();
            }
        }
        // What was killed could not tidy up after itself.
        let mut ended = Vec::new();
        for node in &mut self.nodes {
            if let Some(process) = node.process.take() {
                ended.push((node.home.join("jobs"), node.spill.take(), process.id()));
            }
        }
        drop(self.head.take());
        look_until(GONE_WAIT, || {
            all.iter()
                .filter(|process| process.is_alive())
                .map(|process| format!("process {} still runs", process.pid))
                .collect()
        })?;
        for (jobs, spill, agent) in ended {
            let mut left = files(&jobs);
            left.extend(spill.filter(|spill| spill.exists()).map(|spill| spill.display().to_string()));
            left.extend(processes::groups_of(agent).iter().map(|group| group.display().to_string()));
            if !left.is_empty() {
                return Err(Error::Leftovers { waited: GONE_WAIT, left });
            }
        }
        if let Some(before) = self.descriptors.take() {
            look_until(GONE_WAIT, || {
                let now = processes::descriptors();
                let mut left = Vec::new();
                if now.len() > before.len() {
                    let new: Vec<_> = now.iter().filter(|target| !before.contains(target)).collect();
                    let (now, before) = (now.len(), before.len());
                    left.push(format!("{now} descriptors are open, {before} were: {new:?}"));
                }
                match mapped_bytes(std::process::id()) {
                    0 => {}
                    bytes => left.push(format!("this process has {bytes} bytes of a store mapped")),
                }
                left
            })?;
        }
        Ok(())
    }
}

/// Looks until nothing is left, or the time is up.
fn look_until(wait: Duration, mut look: impl FnMut() -> Vec<String>) -> Result<()> {
    let deadline = Instant::now() + wait;
    loop {
        let left = look();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(Error::Leftovers { waited: wait, left });
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

fn in_use(snapshot: &Snapshot, members: usize) -> Vec<String> {
    let mut left = Vec::new();
    if snapshot.nodes.len() != members {
        let names: Vec<_> = snapshot.nodes.iter().map(|node| &node.name).collect();
        left.push(format!("{} nodes are known, {members} run: {names:?}", snapshot.nodes.len()));
    }
    left.extend(snapshot.jobs.iter().map(|job| format!("job {} of {} has not ended", job.job, job.driver)));
    if snapshot.leases > 0 {
        left.push(format!("{} leases are held", snapshot.leases));
    }
    left.extend(snapshot.waiting.iter().map(|class| format!("{} waits: {}", class.function, class.why)));
    left.extend(snapshot.names.iter().map(|name| format!("the name {} is taken", name.name)));
    let taken = snapshot.nodes.iter().filter(|node| node.available != node.total);
    left.extend(taken.map(|node| format!("{} has {:?} of {:?}", node.name, node.available, node.total)));
    left
}

fn kept_on(node: &NodeSnapshot) -> Option<String> {
    let usage = &node.usage;
    let none = usage.store_used_bytes == 0
        && usage.spill_used_bytes == 0
        && usage.objects == 0
        && usage.pinned == 0
        && usage.hosts == 0;
    (!none).then(|| {
        format!(
            "{} has {} bytes in its store, {} spilled, {} objects, {} pinned, and {} hosts",
            node.name,
            usage.store_used_bytes,
            usage.spill_used_bytes,
            usage.objects,
            usage.pinned,
            usage.hosts
        )
    })
}

fn stored(store: &Store) -> Option<String> {
    let none = store.used_bytes == 0
        && store.spill_used_bytes == 0
        && store.waiting == 0
        && store.groups.is_empty()
        && store.more_groups == 0;
    (!none).then(|| {
        format!(
            "the store of {} has {} bytes in use, {} of files, {} requests that wait, and {:?}",
            store.node, store.used_bytes, store.spill_used_bytes, store.waiting, store.groups
        )
    })
}

/// What a running agent has, whatever it says itself.
fn still_there((at, node): (usize, &Node)) -> Vec<String> {
    let Some(process) = &node.process else { return Vec::new() };
    let who = Part::Node(at).to_string();
    let hosts = processes::children(process.id());
    let hosts = hosts.iter().map(|host| format!("{who} has the process {}", host.pid));
    process.left(&who, node.spill.as_deref()).into_iter().chain(hosts).collect()
}
