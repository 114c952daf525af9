//! What travels with a job: its program and its files.

use std::fs;

use mobula::{Builder, Cluster, ErrorKind, NodeId, Result, private};
use mobula_e2e::{
    Witness,
    env::{on, witness},
    eventually,
};
use mobula_rig::Rig;

use super::driver::{self, Outcome};

#[mobula::task]
fn read(name: String) -> Result<String, std::io::Error> {
    fs::read_to_string(name)
}

async fn read_everywhere(nodes: &[NodeId], name: &str, content: &str) -> Result<()> {
    for node in nodes {
        for isolation in ["shared", "process"] {
            let there = read.options().strategy(on(*node)).isolation(isolation);
            assert_eq!(there.remote(name).await?, content);
        }
    }
    Ok(())
}

/// Runs as a driver in every mode that starts processes; each builder is given what the mode is called.
fn in_modes(rig: &Rig, mut run: impl FnMut(&str, Builder) -> Outcome) -> Outcome {
    run("local", Cluster::local().nodes(2).cpus(2.0))?;
    run("network", Cluster::connect(&rig.address()).token(&rig.driver_token()?))?;
    run("socket", Cluster::connect(&rig.socket(1)?))
}

pub fn files_travel_with_the_job() -> Outcome {
    let rig = Rig::nodes(2).cpus(2.0).start()?;
    let folder = tempfile::tempdir()?;
    in_modes(&rig, |mode, builder| {
        // Of the same name, and not the same content.
        let path = folder.path().join("rays.txt");
        let (content, other) = (format!("manta {mode}"), "x".repeat(3_000_000));
        let large = folder.path().join("large.txt");
        fs::write(&path, &content)?;
        fs::write(&large, &other)?;
        let builder = builder.file(&path).file(&large).quiet();
        let (outcome, _) = private::drive(builder, async |cluster: Cluster| {
            let nodes = cluster.nodes().await?;
            read_everywhere(&nodes, "rays.txt", &content).await?;
            read_everywhere(&nodes, "large.txt", &other).await?;
            let error = read.remote("none.txt").await.unwrap_err();
            assert!(error.to_string().contains("No such file"), "{error}");
            Ok::<_, mobula::Error>(())
        })?;
        Ok(outcome?)
    })?;
    // Embedded, the working folder is the program's.
    let path = folder.path().join("rays.txt");
    let place = path.to_string_lossy().into_owned();
    let builder = Cluster::embedded().cpus(2.0).file(&path).quiet();
    let (outcome, _) = private::drive(builder, async |cluster: Cluster| {
        read_everywhere(&cluster.nodes().await?, &place, "manta socket").await
    })?;
    outcome?;
    rig.finish()?;
    Ok(())
}

/// A file that is another one by the time a node needs it is not used.
pub fn a_changed_file_is_refused() -> Outcome {
    let rig = Rig::nodes(2).cpus(2.0).start()?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("rays.txt");
    in_modes(&rig, |mode, builder| {
        fs::write(&path, format!("manta {mode}"))?;
        let builder = builder.file(&path).quiet();
        let (outcome, _) = private::drive(builder, async |_: Cluster| {
            fs::write(&path, "eagle").unwrap();
            read.remote("rays.txt").await
        })?;
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Binary, "{mode}: {error}");
        for part in ["rays.txt", "changed", "start the job again", "[MOB7001]"] {
            assert!(error.to_string().contains(part), "{mode}: {part:?} is not in {error}");
        }
        Ok(())
    })?;
    let missing = folder.path().join("missing.txt");
    let builder = Cluster::local().file(&missing).quiet();
    let error = private::drive(builder, async |_: Cluster| ()).map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Binary, "{error}");
    assert!(error.to_string().contains("missing.txt"), "{error}");
    rig.finish()?;
    Ok(())
}

#[mobula::task]
fn which_program(isolated: bool) -> u32 {
    // What runs in place of this program would not know the answer.
    if isolated { 2 } else { 1 }
}

/// Part of a driver whose program is replaced when it has said that it runs.
pub async fn outlive_the_program(cluster: Cluster) -> Result<()> {
    println!("it runs");
    let replaced = std::env::var(driver::SEEN_VARIABLE).unwrap_or_default();
    eventually("the program to be replaced", async || Ok(witness::noted(&replaced))).await?;
    for node in cluster.nodes().await? {
        let there = which_program.options().strategy(on(node));
        assert_eq!(there.remote(false).await?, 1);
        assert_eq!(there.isolation("process").remote(true).await?, 2);
    }
    Ok(())
}

/// Hosts run what the driver runs, whatever has become of the file that it was started from.
pub fn a_replaced_program_goes_on() -> Outcome {
    let rig = Rig::nodes(2).cpus(2.0).start()?;
    let ways = [
        ("embedded", None),
        ("local", None),
        ("network", Some((rig.address(), rig.driver_token()?))),
        ("socket", Some((rig.socket(1)?, String::new()))),
    ];
    for (way, address) in ways {
        for gone in [false, true] {
            let address = match &address {
                // A token is for one.
                Some((place, token)) if !token.is_empty() => Some((place.clone(), rig.driver_token()?)),
                other => other.clone(),
            };
            replaced(way, address, gone).map_err(|error| format!("{way}, {gone}: {error}"))?;
        }
    }
    rig.finish()?;
    Ok(())
}

fn replaced(way: &str, address: Option<(String, String)>, gone: bool) -> Outcome {
    let folder = tempfile::tempdir()?;
    let witness = Witness::new()?;
    let program = folder.path().join("program");
    let own = std::env::current_exe()?;
    // As good as a copy, since it is only ever replaced as a whole. On another file system it has to be one.
    fs::hard_link(&own, &program).or_else(|_| {
        // Never the rig's own file for hashes: the content is the same, and that is what counts.
        fs::copy(&own, &program).map(drop)
    })?;
    let mut command = driver::command_of(&program, "outlive", address);
    command.env(driver::SEEN_VARIABLE, witness.place("replaced"));
    if way == "local" {
        command.env(driver::LOCAL_VARIABLE, "");
    }
    let mut child = command.spawn()?;
    driver::wait_for_line(&mut child, "it runs")?;
    if gone {
        fs::remove_file(&program)?;
    } else {
        let newer = folder.path().join("newer");
        fs::copy("/bin/true", &newer)?;
        fs::rename(&newer, &program)?;
    }
    witness.say("replaced");
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into())
}

#[mobula::task]
fn open_files() -> Result<Vec<String>, std::io::Error> {
    let links = fs::read_dir("/proc/self/fd")?.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(links.map(|link| link.to_string_lossy().into_owned()).collect())
}

pub fn open_files_stay_with_their_opener() -> Outcome {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("secret.txt");
    let secret = fs::File::create(&path)?;
    // As a shell opens it: programs that are started from now on inherit it.
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty())?;
    let rig = Rig::nodes(2).cpus(2.0).start()?;
    let path = path.to_string_lossy().into_owned();
    in_modes(&rig, |mode, builder| {
        let (outcome, _) = private::drive(builder.quiet(), async |cluster: Cluster| {
            for node in cluster.nodes().await? {
                let open = open_files.options().strategy(on(node)).remote().await?;
                assert!(!open.is_empty() && !open.contains(&path), "{mode}: {open:?}");
            }
            Ok::<_, mobula::Error>(())
        })?;
        Ok(outcome?)
    })?;
    rig.finish()?;
    Ok(())
}
