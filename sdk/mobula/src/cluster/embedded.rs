//! Head, agent and host in the author's own process.

use std::{sync::Arc, time::Duration};

use mobula_agent::{
    Agent, HeadLink, LocalLink, SendError,
    detect::{self, Detected},
    launcher::ProcessLauncher,
};
use mobula_head::{EmbeddedHead, Head};
use mobula_host::link::{AgentReceiver, AgentSender, Delivery};
use mobula_proto::{Quantity, Queue};

use super::{Builder, Cluster, Keeper, Program, held, home::Home};
use crate::{Error, ErrorKind, Result};

/// The head and the agent, and the threads that run them.
pub(super) struct Embedded {
    agent: Option<mobula_agent::Handle>,
    head: Option<mobula_head::Handle>,
    io: Option<tokio::runtime::Runtime>,
    _home: Home,
}

/// Threads for the head's and the agent's IO.
const IO_THREADS: usize = 1;
/// Longest that an orderly end may take.
const END_WAIT: Duration = Duration::from_secs(1);

pub(super) fn io_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(IO_THREADS)
        .thread_name("mobula-io")
        .enable_all()
        .build()
        .map_err(|error| Error::new(ErrorKind::Internal, format!("the IO runtime did not start: {error}")))
}

/// What a node of this builder offers.
pub(super) fn detected(builder: &Builder) -> Result<Detected> {
    let amount = |name: &str, amount: f64| {
        Quantity::from_f64(amount)
            .map_err(|error| Error::new(ErrorKind::Infeasible, format!("resource {name}: {error}")))
    };
    let options = detect::Options {
        cpu: builder.cpus.map(|cpus| amount("cpu", cpus)).transpose()?,
        extra_resources: builder
            .resources
            .iter()
            .map(|(name, value)| Ok((name.clone(), amount(name, *value)?)))
            .collect::<Result<_>>()?,
        labels: builder.labels.clone(),
        ..detect::Options::default()
    };
    detect::detect(&options).map_err(|error| Error::new(ErrorKind::Infeasible, error.to_string()))
}

/// The same messages as over a socket, in memory.
pub(super) fn adapt(link: LocalLink) -> (AgentSender, AgentReceiver) {
    let LocalLink { sender, receiver } = link;
    let send = AgentSender::new(move |parcel| {
        let mut parcel = (parcel.message, parcel.descriptors);
        // A full queue is back-pressure: the agent's threads are others than this one.
        while let Err(SendError::Full(back)) = sender.send(parcel.0, parcel.1) {
            parcel = *back;
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    let receive: AgentReceiver = Box::new(move || {
        let (message, descriptors) = receiver.recv().ok()?;
        Some(Delivery { message, descriptors })
    });
    (send, receive)
}

/// Defines the queues of a cluster that has just begun.
pub(super) async fn define_queues(head: &mobula_head::Handle, queues: &[Queue]) -> Result<()> {
    for queue in queues {
        head.set_queue(queue.clone().into()).await.map_err(|error| match error {
            mobula_head::Error::Refused(failure) => failure.into(),
            other => Error::new(ErrorKind::Internal, other.to_string()),
        })?;
    }
    Ok(())
}

pub(super) fn start(builder: &Builder, user: &tokio::runtime::Handle) -> Result<Cluster> {
    let io = io_runtime()?;
    let mut home = Home::new()?;
    let resources = detected(builder)?;
    let spill_to = super::spill::target(builder.spill_to.as_deref(), home.path())?;
    let (head, agent, link) = io.block_on(async {
        let EmbeddedHead { to_head, from_head, handle } = Head::start_embedded()
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        define_queues(&handle, &builder.queues).await?;
        let mut options = mobula_agent::Options::new(
            "embedded",
            home.path(),
            HeadLink::Memory { to_head, from_head },
            resources,
            Arc::new(ProcessLauncher),
        );
        options.in_process_executor = true;
        options.spill_to = spill_to;
        builder.spill.set(&mut options.spill);
        if let Some(bytes) = builder.store_bytes {
            options.store_bytes = bytes;
        }
        let agent = Agent::start(options)
            .await
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        let link = agent.attach();
        Ok::<_, Error>((handle, agent, link))
    })?;
    if let Some(spill) = agent.spill_folder() {
        home.and(spill);
    }
    let program = Program::current(false)?;
    let (runtime, over) = builder.join(adapt(link), program, true, user)?;
    let embedded = Embedded { agent: Some(agent), head: Some(head), io: Some(io), _home: home };
    Ok(Cluster::new(runtime, "embedded", Some(Box::new(embedded)), over))
}

impl Keeper for Embedded {
    fn left(&self) -> Vec<String> {
        let (Some(agent), Some(head), Some(io)) = (&self.agent, &self.head, &self.io) else {
            return Vec::new();
        };
        let mut left = left_with("the agent", agent, io);
        match io.block_on(head.snapshot()) {
            Ok(snapshot) => {
                left.extend(snapshot.jobs.iter().map(|job| format!("{} has not ended", job.job)));
                left.extend(snapshot.groups.iter().map(|group| format!("{} is there", group.group)));
                left.extend(held::in_cluster(&snapshot));
            }
            Err(error) => left.push(format!("the head does not say what is left: {error}")),
        }
        left
    }
}

/// What an agent of this process, which runs on `io`, still holds though it has no job; and what lies in its folder for
/// spilled objects, whatever it says. Descriptors of this process are not looked at: it may have other clusters. Blocks
/// while the agent is asked.
pub(super) fn left_with(
    who: &str,
    agent: &mobula_agent::Handle,
    io: &tokio::runtime::Runtime,
) -> Vec<String> {
    let usage = io.block_on(agent.usage());
    let mut left: Vec<_> = held::in_store(who, &usage).into_iter().collect();
    if usage.store_used_bytes > 0 || usage.hosts > 0 {
        left.push(format!(
            "{who} has {} bytes of its store in use, and {} hosts",
            usage.store_used_bytes, usage.hosts
        ));
    }
    left.extend(
        agent
            .spill_folder()
            .iter()
            .flat_map(|folder| held::spilled(folder))
            .map(|file| format!("{who} left {file}")),
    );
    left
}

impl Drop for Embedded {
    fn drop(&mut self) {
        let (Some(io), Some(agent), Some(head)) = (self.io.take(), self.agent.take(), self.head.take())
        else {
            return;
        };
        end(io, async move {
            drop(agent.shutdown().await);
            head.shutdown().await;
        });
    }
}

/// Runs an orderly end on a thread of its own, since the current one may be running async code.
pub(super) fn end(io: tokio::runtime::Runtime, orderly: impl Future<Output = ()> + Send + 'static) {
    let ended = std::thread::spawn(move || {
        // Running over the time is fine: what is left ends with the runtime.
        let _late = io.block_on(async { tokio::time::timeout(END_WAIT, orderly).await });
        io.shutdown_timeout(END_WAIT);
    });
    if ended.join().is_err() {
        tracing::error!("the embedded cluster did not end in good order");
    }
}
