//! The `mobula` binary: what operators run.
//!
//! | module | what |
//! |---|---|
//! | `args`, `settings`, `values` | the command line, and what a file or variable may say instead |
//! | `head`, `node`, `up` | commands that run something |
//! | `local` | nodes that the head starts by itself on its machine |
//! | `down`, `token`, `status`, `memory`, `why`, `queue`, `groups`, `drain`, `config`, `explain` | commands that ask or tell |
//! | `simulate` | a trace replayed on a cluster that is not there |
//! | `home`, `process`, `signals`, `ready` | the folder, processes, and what they tell one another |
//! | `api` | the head's HTTP API |
//!
//! Exit codes: 0 fine, 1 it failed, 2 it was asked wrongly.

#![forbid(unsafe_code)]

mod api;
mod args;
mod config;
mod down;
mod drain;
mod error;
mod explain;
mod groups;
mod head;
mod home;
mod local;
mod memory;
mod node;
mod process;
mod queue;
mod ready;
mod settings;
mod signals;
mod simulate;
mod status;
mod token;
mod up;
mod values;
mod why;

use std::{process::ExitCode, time::Duration};

use clap::{
    Parser,
    error::{ContextKind, ErrorKind},
};
use mobula_net::code;

use crate::{
    args::{ByUp, Cli, Command, QueueCommand, TokenCommand},
    error::Error,
    ready::Ready,
    settings::Log,
};

/// Most threads for the IO of a head or node.
const IO_THREADS_MAX: usize = 4;
/// How long the runtime may take to end after all it ran for is done.
const RUNTIME_END_WAIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // A cluster that runs on must not hold what its starter had open: a lock, the other end of a pipe.
    if let Err(error) = mobula_host::descriptors::close_inherited() {
        eprintln!("mobula: inherited descriptors stay open: {error}");
    }
    let command = match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(told) => return asked_wrongly(&told),
    };
    let by_up = match &command {
        Command::Head(args) => args.by_up,
        Command::Node(args) => args.by_up,
        _ => None,
    };
    match run(command, by_up) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Error::Arguments(told)) => asked_wrongly(&told),
        Err(error) => {
            // On the terminal that both share, the `up` that waits for this process says it.
            if by_up != Some(ByUp::Attached) || Ready::said() {
                eprintln!("error: {}\n  help: {}", error.text(), error.cure());
            }
            if by_up.is_some() {
                Ready::failed(&error).say();
            }
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints what clap has to say: the help that was asked for, or what is wrong with the arguments.
fn asked_wrongly(told: &clap::Error) -> ExitCode {
    // Whoever closed the terminal needs no answer.
    let _gone = told.print();
    match told.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => ExitCode::from(2),
        _ => {
            let given = |kind| told.get(kind).map(ToString::to_string).unwrap_or_default();
            let variable = config::variable(&given(ContextKind::InvalidArg));
            // Clap names the option alone, also where the value is a variable's.
            if let Some(variable) = variable.filter(|name| {
                std::env::var(name).is_ok_and(|set| set.contains(&given(ContextKind::InvalidValue)))
            }) {
                eprintln!("The value may come from the variable {variable}.");
            }
            eprintln!("[{code}] `mobula explain {code}` says more.", code = code::SETTING);
            ExitCode::from(2)
        }
    }
}

fn run(command: Command, by_up: Option<ByUp>) -> Result<(), Error> {
    if by_up == Some(ByUp::Detached) {
        // Away from the terminal and its signals. It fails only for one that leads a session already.
        let _leader = rustix::process::setsid();
    }
    match command {
        Command::Head(mut args) => {
            let home = args.settle()?;
            blocking(by_up, &args.log, head::run(&args, &home))
        }
        Command::Node(mut args) => {
            let home = args.settle()?;
            blocking(by_up, &args.log, node::run(&args, &home))
        }
        Command::Up(mut args) => {
            let home = args.settle()?;
            let log = args.log.clone();
            blocking(by_up, &log, up::run(args, home))
        }
        Command::Down(args) => down::run(&args),
        Command::Token(args) => match args.command {
            TokenCommand::Create(args) => token::create(&args),
        },
        Command::Status(args) => status::run(&args),
        Command::Memory(args) => memory::run(&args),
        Command::Why(args) => why::run(&args),
        Command::Groups(args) => groups::run(&args),
        Command::Queue(args) => match args.command {
            QueueCommand::Set(args) => queue::set(args),
            QueueCommand::List(args) => queue::list(&args),
            QueueCommand::Remove(args) => queue::remove(&args),
        },
        Command::Drain(args) => drain::run(&args),
        Command::Simulate(args) => simulate::run(&args),
        Command::Config(args) => config::run(&args),
        Command::Explain(args) => explain::run(&args),
    }
}

/// Runs what needs a runtime.
fn blocking(
    by_up: Option<ByUp>,
    log: &Log,
    command: impl Future<Output = Result<(), Error>>,
) -> Result<(), Error> {
    // A terminal shows what matters; a file, what there was.
    let default = if by_up == Some(ByUp::Attached) { "warn" } else { "info" };
    mobula_telemetry::log::init_at(log.level.as_deref().unwrap_or(default));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(IO_THREADS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("mobula-io")
        .enable_all()
        .build()
        .map_err(error::system("start the runtime"))?;
    let result = runtime.block_on(command);
    runtime.shutdown_timeout(RUNTIME_END_WAIT);
    result
}
