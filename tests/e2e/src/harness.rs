//! Cases, modes, and running them.

use std::{
    future::Future,
    io::Write,
    panic::Location,
    path::Path,
    pin::Pin,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use mobula::{Cluster, JobQueue, private};
use mobula_rig::Rig;

use crate::env::{Env, Mode};

/// A scenario that is known to fail, and why.
pub type Known = (&'static str, &'static str);

type Scenario = fn(Env) -> Pin<Box<dyn Future<Output = mobula::Result<()>>>>;

/// A scenario and what it needs.
#[derive(Clone)]
pub struct Case {
    name: &'static str,
    run: Scenario,
    modes: &'static [Mode],
    cpus: f64,
    resources: &'static [(&'static str, f64)],
    labels: &'static [(&'static str, &'static str)],
    store_bytes: Option<u64>,
    budget: Option<usize>,
    spill_to: Option<&'static str>,
    queues: fn() -> Vec<JobQueue>,
    fresh: bool,
}

/// Rigs that wait for the next case that wants one like them, with what they were made for.
static RIGS: Mutex<Vec<(String, Rig)>> = Mutex::new(Vec::new());

fn rigs() -> MutexGuard<'static, Vec<(String, Rig)>> {
    RIGS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The modes of a scenario that says nothing else.
const MODES: [Mode; 3] = [Mode::Embedded, Mode::Local, Mode::Remote];
/// Longest that a scenario may take.
const SCENARIO_WAIT: Duration = Duration::from_secs(60);

impl Case {
    /// On two CPUs for each node, in all three modes.
    pub const fn new(name: &'static str, run: Scenario) -> Self {
        Self {
            name,
            run,
            modes: &MODES,
            cpus: 2.0,
            resources: &[],
            labels: &[],
            store_bytes: None,
            budget: None,
            spill_to: None,
            queues: Vec::new,
            fresh: false,
        }
    }

    /// In these modes only.
    pub const fn modes(mut self, modes: &'static [Mode]) -> Self {
        self.modes = modes;
        self
    }

    /// With so many CPUs on each node.
    pub const fn cpus(mut self, cpus: f64) -> Self {
        self.cpus = cpus;
        self
    }

    /// With these custom resources on each node.
    pub const fn resources(mut self, resources: &'static [(&'static str, f64)]) -> Self {
        self.resources = resources;
        self
    }

    /// With these labels on each node; each node of a rig has `rig` = its place besides.
    pub const fn labels(mut self, labels: &'static [(&'static str, &'static str)]) -> Self {
        self.labels = labels;
        self
    }

    /// With so large a store on each node.
    pub const fn store_bytes(mut self, bytes: u64) -> Self {
        self.store_bytes = Some(bytes);
        self
    }

    /// With so many calls that the program may have unfinished.
    pub const fn budget(mut self, calls: usize) -> Self {
        self.budget = Some(calls);
        self
    }

    /// Where each node spills to.
    pub const fn spill_to(mut self, place: &'static str) -> Self {
        self.spill_to = Some(place);
        self
    }

    /// With these queues, each after those of which it is a part.
    pub const fn queues(mut self, queues: fn() -> Vec<JobQueue>) -> Self {
        self.queues = queues;
        self
    }

    /// With a rig of its own, because it changes it.
    pub const fn fresh(mut self) -> Self {
        self.fresh = true;
        self
    }

    fn trial(&self, mode: Mode, alone: bool) -> Result<(), Failed> {
        let rig = match mode {
            Mode::Embedded | Mode::Local => None,
            Mode::Remote | Mode::Socket => Some(Arc::new(Mutex::new(self.rig(alone)?))),
        };
        let builder = self.builder(mode, rig.as_deref())?;
        let run = self.run;
        let in_env = rig.clone();
        let (outcome, left) = private::drive(builder, move |cluster| async move {
            let env = Env { cluster, mode, rig: in_env };
            match tokio::time::timeout(SCENARIO_WAIT, run(env.clone())).await {
                Ok(result) => result.map_err(|error| error.to_string())?,
                Err(_) => return Err(format!("it took longer than {SCENARIO_WAIT:?}")),
            }
            // While the job goes on: with it, what nobody holds any more would go as well.
            let left = async { env.hosts_empty().await.and(env.stores_empty().await) };
            left.await.map_err(|error| format!("afterwards: {error}"))
        })?;
        outcome?;
        if !left.is_empty() {
            return Err(format!("the driver still holds {left:?}").into());
        }
        if let Some(rig) = rig {
            let rig = Arc::try_unwrap(rig).map_err(|_| "the scenario kept the rig")?;
            let mut rig = rig.into_inner().unwrap_or_else(PoisonError::into_inner);
            if self.fresh {
                rig.finish()?;
            } else {
                rig.emptied()?;
                rigs().push((self.made_for(), rig));
            }
        }
        Ok(())
    }

    /// Cases for which this is the same can share a rig, one after the other.
    fn made_for(&self) -> String {
        format!(
            "{} {:?} {:?} {:?} {:?} {:?}",
            self.cpus,
            self.resources,
            self.labels,
            self.store_bytes,
            self.spill_to,
            (self.queues)()
        )
    }

    fn rig(&self, alone: bool) -> Result<Rig, Failed> {
        let made_for = self.made_for();
        if !self.fresh {
            let mut rigs = rigs();
            if let Some(at) = rigs.iter().position(|(other, _)| *other == made_for) {
                return Ok(rigs.swap_remove(at).1);
            }
        }
        let mut builder = Rig::nodes(2).cpus(self.cpus);
        for at in 0..2 {
            builder = builder.node(at, |offer| offer.labels.push(("rig".to_owned(), at.to_string())));
        }
        for (name, amount) in self.resources {
            builder = builder.resource(name, *amount);
        }
        for (key, value) in self.labels {
            builder = builder.label(key, value);
        }
        if let Some(bytes) = self.store_bytes {
            builder = builder.store_bytes(bytes);
        }
        if let Some(place) = self.spill_to {
            builder = builder.spill_to(Path::new(place));
        }
        for queue in (self.queues)() {
            builder = builder.queue(queue);
        }
        Ok(if alone && self.fresh { builder.alone() } else { builder }.start()?)
    }

    fn builder(&self, mode: Mode, rig: Option<&Mutex<Rig>>) -> Result<mobula::Builder, Failed> {
        let mut builder = match mode {
            Mode::Embedded => Cluster::embedded(),
            Mode::Local => Cluster::local().nodes(2),
            Mode::Remote | Mode::Socket => {
                let rig = rig.ok_or("this mode has a rig")?.lock().unwrap_or_else(PoisonError::into_inner);
                if mode == Mode::Remote {
                    Cluster::connect(&rig.address()).token(&rig.driver_token()?)
                } else {
                    Cluster::connect(&rig.socket(0)?)
                }
            }
        };
        builder = builder.cpus(self.cpus).quiet();
        for (name, amount) in self.resources {
            builder = builder.resource(name, *amount);
        }
        for (key, value) in self.labels {
            builder = builder.label(key, value);
        }
        if let Some(bytes) = self.store_bytes {
            builder = builder.store_bytes(bytes);
        }
        if let Some(calls) = self.budget {
            builder = builder.budget(calls);
        }
        if let Some(place) = self.spill_to {
            builder = builder.spill_to(place);
        }
        for queue in (self.queues)() {
            builder = builder.define_queue(queue);
        }
        Ok(builder)
    }
}

/// A scenario that starts what it needs by itself.
#[derive(Clone, Copy)]
pub struct Solo {
    /// Its name.
    pub name: &'static str,
    /// What it does.
    pub run: fn() -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
}

/// The life of the test binary, once it is neither a host nor a head nor an agent.
pub fn run(cases: &[Case], solos: &[Solo], known: &'static [Known]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Each scenario starts processes enough to fill two cores; and alone, its descriptors can be counted.
    let threads = *arguments.test_threads.get_or_insert(1);
    let alone = threads == 1 && keep_what_runtimes_share();
    let fails = |name: &str| known.iter().any(|(known, _)| *known == name);
    let mut trials = Vec::new();
    for case in cases {
        for mode in case.modes {
            let name = format!("{}::{mode}", case.name);
            let (case, mode, known) = (case.clone(), *mode, fails(&name));
            trials.push(marked(Trial::test(name, move || case.trial(mode, alone)), known));
        }
    }
    for solo in solos {
        let run = solo.run;
        let trial = Trial::test(solo.name, move || run().map_err(|error| error.to_string().into()));
        trials.push(marked(trial, fails(solo.name)));
    }
    if !arguments.list {
        for (name, reason) in known {
            eprintln!("known failing: {name}: {reason}");
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    let mut tidy = true;
    for (made_for, rig) in std::mem::take(&mut *rigs()) {
        if let Err(error) = rig.finish() {
            eprintln!("the rig of {made_for}, when all its scenarios were over: {error}");
            tidy = false;
        }
    }
    if tidy { conclusion.exit_code() } else { ExitCode::FAILURE }
}

/// The first async runtime of a process opens descriptors that it never closes. From here on they are there.
fn keep_what_runtimes_share() -> bool {
    tokio::runtime::Builder::new_current_thread().enable_all().build().is_ok()
}

/// Where `tests/run` gathers what was not run; see [`skipped`].
pub const SKIPPED: &str = "MOBULA_SKIPPED";

/// A scenario looks at nothing, because of what this machine lacks: says so in the output, which is shown for what fails
/// only, and in the file that [`SKIPPED`] names, so that whoever ran all of them hears of it.
#[track_caller]
pub fn skipped(why: &str) {
    let place = Location::caller();
    let line = format!("{}:{}: {why}", place.file(), place.line());
    eprintln!("not run: {line}");
    if let Some(file) = std::env::var_os(SKIPPED)
        && let Err(error) = note(Path::new(&file), &line)
    {
        eprintln!("{SKIPPED}={}: {error}", file.display());
    }
}

fn note(file: &Path, line: &str) -> std::io::Result<()> {
    // In one piece, among others that do the same.
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(file)?
        .write_all(format!("{line}\n").as_bytes())
}

/// A trial that is known to fail is reported as ignored.
fn marked(trial: Trial, known: bool) -> Trial {
    if known { trial.with_kind("known").with_ignored_flag(true) } else { trial }
}
