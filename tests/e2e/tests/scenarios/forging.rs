//! A job that says to its agent what no honest program says, to get at what another job has.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::{fs::MetadataExt, net::UnixStream},
    },
    path::Path,
    time::{Duration, Instant},
};

use mobula::{Cluster, ErrorKind, NodeId, Result, prelude::*};
use mobula_e2e::env::on;
use mobula_host::link::{self, AgentReceiver, AgentSender};
use mobula_proto::{
    BinaryHash, Failure, JobId, ObjectId,
    host::{Driver, ToAgent, ToHost},
    peer::Copy,
    wire::{Hello, Role},
};
use mobula_rig::{Part, Rig};

use super::{detaching, driver::Outcome};

const BYTES: usize = 1 << 20;
/// Longest that an agent may take for an answer. It waits two seconds for an object that may be on its way.
const WAIT: Duration = Duration::from_secs(20);
/// Users of the jobs on both nodes, so many on each, where this process may give them some.
const JOB_UIDS: (u32, u32) = (1_960_000_000, 4);

#[mobula::task]
fn make(byte: u8) -> Result<Tensor> {
    Tensor::from_vec(&[BYTES], vec![byte; BYTES])
}

/// A driver that speaks by hand.
struct Forger {
    agent: AgentSender,
    hears: AgentReceiver,
    job: JobId,
    requests: u64,
}

impl Forger {
    fn new(socket: &Path) -> std::io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(WAIT))?;
        let (agent, hears) = link::over_socket(stream);
        let driver = Driver {
            name: "forger".to_owned(),
            namespace: String::new(),
            queue: String::new(),
            program: std::env::current_exe()?.display().to_string(),
            binary: BinaryHash([7; 32]),
            arguments: Vec::new(),
            files: Vec::new(),
        };
        let hello = Hello::new(Role::Driver);
        agent.tell(ToAgent::Hello { hello, pid: std::process::id(), driver: Some(driver), registry: 0 });
        let mut forger = Self { agent, hears, job: JobId { number: 0 }, requests: 0 };
        forger.job = forger.hear(|message, _| match message {
            ToHost::Welcome(welcome) => Ok(welcome.job),
            other => Err(other),
        });
        Ok(forger)
    }

    /// The first thing of this kind that the agent says.
    fn hear<T>(&mut self, find: impl Fn(ToHost, Vec<OwnedFd>) -> std::result::Result<T, ToHost>) -> T {
        loop {
            let Some(heard) = (self.hears)() else { panic!("the agent says nothing more") };
            if let ToHost::Mark { number } = heard.message {
                // One that is silent would only be told that nothing is known yet.
                self.agent.tell(ToAgent::Marked { number });
                continue;
            }
            match find(heard.message, heard.descriptors) {
                Ok(found) => return found,
                Err(ToHost::Refused(failure)) => panic!("refused: {failure}"),
                Err(_) => {}
            }
        }
    }

    /// What the agent gives for each of these, in order: descriptors, or a reason. All are asked for before the first answer
    /// comes, which may take as long as an object may be on its way.
    fn open<const N: usize>(
        &mut self,
        asked: [(ObjectId, Copy); N],
    ) -> [std::result::Result<Vec<OwnedFd>, Failure>; N] {
        let first = self.requests;
        for (object, copy) in asked {
            self.agent.tell(ToAgent::Open { ahead: false, request: self.requests, object, copy });
            self.requests += 1;
        }
        let mut answers = [const { None }; N];
        while answers.iter().any(Option::is_none) {
            let (request, answer) = self.hear(|message, descriptors| match message {
                ToHost::Opened { request, .. } => Ok((request, Ok(descriptors))),
                ToHost::OpenFailed { request, failure } => {
                    assert_eq!(descriptors.len(), 0, "what is refused comes with no descriptor");
                    Ok((request, Err(failure)))
                }
                other => Err(other),
            });
            answers[(request - first) as usize] = Some(answer);
        }
        answers.map(Option::unwrap)
    }

    /// Whether any node keeps that for this job.
    fn claims(&mut self, object: ObjectId, last: NodeId) -> bool {
        self.agent.tell(ToAgent::Claim { objects: vec![(object, Some(last))] });
        self.hear(|message, _| match message {
            ToHost::Claimed { answers } => {
                Ok(answers.iter().any(|(found, record)| *found == object && record.is_some()))
            }
            other => Err(other),
        })
    }

    /// Whether the agent has ended this link, as it does with who breaks the protocol.
    fn ends(mut self) -> bool {
        let began = Instant::now();
        while (self.hears)().is_some() {}
        // Where it had not, reading would have ended with the time.
        began.elapsed() < WAIT
    }
}

/// The regions that this process has a descriptor of.
fn regions(pid: u32) -> Vec<u64> {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let is_region = |path: &Path| {
        fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:mobula-region"))
    };
    all.filter(|path| is_region(path)).filter_map(|path| Some(fs::metadata(path).ok()?.ino())).collect()
}

/// Names that are guessed, and places that are made up, give a typed refusal and no descriptor, whether the object lies on the
/// node that is asked or on another. Who was told a name gets a copy in memory of its own job, and never the region of the
/// other; and may neither free nor replace what is not its own.
pub fn a_job_forges_in_vain() -> Outcome {
    let (first, each) = JOB_UIDS;
    let builder = Rig::nodes(2).cpus(2.0);
    let builder = if rustix::process::geteuid().is_root() { builder.job_uids(first, each) } else { builder };
    let rig = builder.start()?;
    let socket = rig.socket(0)?.trim_start_matches("unix:").to_owned();
    let agents = [rig.pid(Part::Node(0))?, rig.pid(Part::Node(1))?];
    let builder = Cluster::connect(&rig.socket(0)?);
    let seen = &rig;
    detaching::drive(builder, async move |cluster| {
        let nodes = cluster.nodes().await?;
        let mut theirs = Vec::new();
        for (byte, node) in (1..).zip(nodes) {
            let made = make.options().strategy(on(node)).remote(byte);
            mobula::wait(std::slice::from_ref(&made), 1, None).await?;
            theirs.push((byte, node, made));
        }
        let job = cluster.snapshot().await?.jobs[0].job.trim_start_matches("job-").parse().unwrap();
        let stored = seen.memory().unwrap().stores;
        let bytes = stored[0].groups[0].bytes / stored[0].groups[0].objects;
        let before: Vec<u64> = agents.into_iter().flat_map(regions).collect();
        assert!(before.len() >= 2, "there is nothing that one could try to get");
        let named: Vec<_> = theirs.iter().map(|(_, node, made)| (made.id(), *node)).collect();
        let forging = tokio::task::spawn_blocking(move || {
            for (object, node) in named {
                let mut forger = Forger::new(Path::new(&socket)).unwrap();
                let copy = Copy { node, bytes, attempt: 1, job: JobId { number: job } };
                assert!(copy.job != forger.job, "it is another job");
                let guessed = ObjectId { key: object.key ^ 1, ..object };
                let forged = [
                    (guessed, copy),
                    (ObjectId { seq: object.seq + 1, ..object }, copy),
                    (object, Copy { job: forger.job, ..copy }),
                    (object, Copy { attempt: 2, ..copy }),
                ];
                for (answer, forged) in forger.open(forged).into_iter().zip(forged) {
                    let failure = answer.map(|descriptors| descriptors.len()).unwrap_err();
                    assert_eq!(failure.kind, ErrorKind::ObjectLost, "{forged:?} on {node}: {failure}");
                }
                assert!(!forger.claims(guessed, node), "a guessed name is claimed");
                // All that keeps the others out is the name.
                let [told] = forger.open([(object, copy)]);
                let [descriptor] = &told.unwrap()[..] else { panic!("one of its copy's region") };
                let region = rustix::fs::fstat(descriptor).unwrap().st_ino;
                assert!(!before.contains(&region), "it got the region of another job on {node}");
                forger.agent.tell(ToAgent::Free { object, copy });
                assert!(forger.ends(), "who frees what is another's is ended");
            }
        });
        forging.await.unwrap();
        for (byte, _, made) in theirs {
            let tensor = made.await?;
            assert!(tensor.as_slice::<u8>()?.iter().all(|found| *found == byte), "it is another");
        }
        Ok(())
    })?;
    rig.finish()?;
    Ok(())
}
