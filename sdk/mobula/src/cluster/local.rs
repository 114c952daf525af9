//! A head and agents as processes on this machine: this program, executed again.

use std::path::PathBuf;

use mobula_host::link;

use super::{
    Builder, Cluster, Keeper, Program,
    home::Home,
    roles::{Offer, Process, Ready, Task},
};
use crate::{Error, ErrorKind, Result};

/// Most nodes of a local cluster.
pub const NODES_MAX: u32 = 64;

/// The process of a node, and the folder that it spills to, where that is a folder.
type Node = (Process, Option<PathBuf>);

/// The processes, in the order in which they end.
pub(super) struct Processes {
    /// With the folder for spilled objects of each.
    nodes: Vec<Node>,
    head: Option<Process>,
    _home: Home,
}

impl Keeper for Processes {
    fn left(&self) -> Vec<String> {
        let nodes = (1..).zip(&self.nodes);
        let nodes = nodes.flat_map(|(at, (node, spill))| node.left(&format!("node {at}"), spill.as_deref()));
        nodes.chain(self.head.iter().flat_map(|head| head.left("the head", None))).collect()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        for (node, _) in &mut self.nodes {
            node.ask_to_end();
        }
        self.nodes.clear();
        self.head.take();
    }
}

pub(super) fn start(builder: &Builder, nodes: u32, user: &tokio::runtime::Handle) -> Result<Cluster> {
    if nodes == 0 || nodes > NODES_MAX {
        return Err(Error::new(
            ErrorKind::Limit,
            format!("a local cluster has 1 to {NODES_MAX} nodes, not {nodes}"),
        ));
    }
    let program = std::env::current_exe()
        .map_err(|error| Error::new(ErrorKind::Binary, format!("this program's own file: {error}")))?;
    let program = mobula_agent::service::own_program(program);
    let home = Home::new()?;
    let arguments = builder.arguments.clone();
    let unexpected = |ready: Ready| Error::new(ErrorKind::Internal, format!("a process said {ready:?}"));
    let task = Task::Head { home: home.path().join("head"), tokens: nodes, queues: builder.queues.clone() };
    let (head, ready) = Process::start(&program, &arguments, &task)?;
    let Ready::Head { quic, tokens, .. } = ready else { return Err(unexpected(ready)) };
    let offer = Offer {
        cpus: builder.cpus,
        resources: builder.resources.clone(),
        labels: builder.labels.clone(),
        store_bytes: builder.store_bytes,
        mtu: builder.mtu,
        spill_to: builder.spill_to.clone(),
        spill: builder.spill,
        // Its jobs run as the person who started it.
        job_uids: None,
    };
    let started: Vec<Result<(Process, Ready)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = tokens
            .into_iter()
            .zip(1u32..)
            .map(|(token, number)| {
                let home = home.path().join(format!("node-{number}"));
                let task = Task::Node {
                    home,
                    head: quic,
                    token,
                    name: format!("local-{number}"),
                    offer: Box::new(offer.clone()),
                };
                let (program, arguments) = (&program, &arguments);
                scope.spawn(move || Process::start(program, arguments, &task))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread.join().unwrap_or_else(|_| {
                    Err(Error::new(ErrorKind::Internal, "a thread that starts a node panicked"))
                })
            })
            .collect()
    });
    let mut processes = Processes { nodes: Vec::new(), head: Some(head), _home: home };
    let mut first = None;
    for node in started {
        let (node, ready) = node?;
        let Ready::Node { socket, spill, .. } = ready else { return Err(unexpected(ready)) };
        processes.nodes.push((node, spill));
        first.get_or_insert(socket);
    }
    let socket = first.ok_or_else(|| Error::new(ErrorKind::Internal, "the local cluster has no node"))?;
    let stream = std::os::unix::net::UnixStream::connect(&socket).map_err(|error| {
        Error::new(ErrorKind::Unreachable, format!("the agent's socket {}: {error}", socket.display()))
    })?;
    let (runtime, over) = builder.join(link::over_socket(stream), Program::current(true)?, true, user)?;
    Ok(Cluster::new(runtime, "local", Some(Box::new(processes)), over))
}
