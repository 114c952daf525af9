//! Measures Mobula and what the machine would allow, in the same run. See README.md.

#![forbid(unsafe_code)]

mod limits;
mod markdown;
mod measure;
mod peer;
mod report;
mod row;
mod run;
mod subjects;
mod system;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};

use crate::{
    measure::{Result, Scale},
    subjects::Subject,
};

/// Measures Mobula.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Calls, objects, starts and idle costs of the core.
    Core(Options),
    /// The object store: between nodes, and under pressure.
    Objects(Options),
    /// The scheduler: alone, on clusters that there are not, and in a head with many agents.
    Scheduler(Options),
    /// Prints BENCHMARKS.md, made from the JSON of runs, of one subject or of several; a section for each.
    Report {
        /// What `--json` wrote.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    #[command(hide = true, name = limits::pair::SOCKET_ROLE)]
    PeerSocket,
    #[command(hide = true, name = limits::pair::RING_ROLE)]
    PeerRing,
    #[command(hide = true, name = limits::quic::ROLE)]
    PeerQuic { folder: PathBuf, bytes: usize, mtu: u16 },
    #[command(hide = true, name = subjects::scale::ROLE)]
    MeasureMemory { what: String },
    #[command(hide = true, name = subjects::scheduler::ROLE)]
    MeasureSchedulerMemory,
    #[command(hide = true, name = subjects::agents::ROLE)]
    CrowdOfAgents { head: std::net::SocketAddr, tasks: u64 },
    #[command(hide = true, name = subjects::starts::ROLE)]
    FirstResult { mode: String },
}

/// What is measured, and how long.
#[derive(Args, Clone)]
pub struct Options {
    /// Where the results go, as JSON; written anew after each round.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Only rows whose name contains this, and the limits that they are held against.
    #[arg(long, default_value = "")]
    rows: String,
    /// How often everything is measured, the order alternating.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Ray's loops too, in the same rounds; Ray is installed into the user's cache the first time.
    #[arg(long)]
    against_ray: bool,
    /// Short windows, small transfers, one round: to see that everything works. The numbers mean little.
    #[arg(long)]
    quick: bool,
    /// Milliseconds that one measurement of a rate lasts; 500, or 200 with `--quick`. Long ones suit a profiler.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=600_000))]
    window: Option<u64>,
    /// Seconds after which a row is given up; each subject has a default of its own.
    #[arg(long)]
    limit: Option<u64>,
}

impl Options {
    fn scale(&self) -> Scale {
        let scale = if self.quick { Scale::QUICK } else { Scale::FULL };
        Scale { window: self.window.map_or(scale.window, Duration::from_millis), ..scale }
    }

    fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds.max(1) }
    }

    fn limit(&self, subject: &Subject) -> Duration {
        self.limit.map_or(subject.limit, Duration::from_secs)
    }
}

#[mobula::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::PeerSocket => limits::pair::serve_socket(),
        Command::PeerRing => limits::pair::serve_ring(),
        Command::PeerQuic { folder, bytes, mtu } => limits::quic::serve(&folder, bytes, mtu).await,
        Command::Report { files } => {
            print!("{}", markdown::page(&files)?);
            Ok(())
        }
        Command::MeasureMemory { what } => subjects::scale::serve(what).await,
        Command::MeasureSchedulerMemory => subjects::scheduler::serve(),
        Command::CrowdOfAgents { head, tasks } => subjects::agents::crowd::serve(head, tasks).await,
        Command::FirstResult { mode } => subjects::starts::serve(&mode).await,
        Command::Core(options) => measure(&subjects::core::SUBJECT, options).await,
        Command::Objects(options) => measure(&subjects::objects::SUBJECT, options).await,
        Command::Scheduler(options) => measure(&subjects::scheduler::SUBJECT, options).await,
    }
}

async fn measure(subject: &'static Subject, options: Options) -> Result<()> {
    let runtime = tokio::runtime::Handle::current();
    // Probes are plain threads' code, as most drivers are: they block.
    tokio::task::spawn_blocking(move || run::subject(subject, &options, &runtime)).await?
}
