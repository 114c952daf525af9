//! Disks for spilled objects that are full, or change what was written to them.

use std::{
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use mobula::{ErrorKind, NodeId, Result, prelude::*};
use mobula_e2e::{
    Env, Witness,
    env::{on, witness},
    skipped,
};

use super::pressure::{BYTES, bytes, check, is_right, make};

/// So many are two stores full.
const COUNT: usize = 20;

/// The folder in which this node has its spill files.
fn spill_folder(env: &Env, node: NodeId) -> PathBuf {
    let rig = env.rig().unwrap();
    let place = usize::from(rig.number(0).unwrap() != node.number);
    rig.home(place).unwrap().join("spill")
}

#[mobula::task]
fn make_noted(place: String, seed: usize) -> Result<Tensor> {
    witness::note(&place);
    Tensor::from_vec(&[BYTES], bytes(seed))
}

#[mobula::data]
struct Holding(ObjectRef<Tensor>);

/// Puts, in a host: nothing is known from which that could be made again.
#[mobula::task]
fn give(seed: usize) -> Result<Holding> {
    Ok(Holding(mobula::put(&Tensor::from_vec(&[BYTES], bytes(seed))?)?))
}

/// Does this to each spill file in the folder; says how many there were.
fn spoil(folder: &Path, how: fn(&Path) -> std::io::Result<()>) -> std::io::Result<usize> {
    let files: Vec<_> = std::fs::read_dir(folder)?.collect::<std::io::Result<_>>()?;
    for file in &files {
        how(&file.path())?;
    }
    Ok(files.len())
}

/// Flips a bit in each page.
fn flip(path: &Path) -> std::io::Result<()> {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    for at in (0..file.metadata()?.len()).step_by(4096) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 1], at)?;
    }
    Ok(())
}

/// Leaves a file of which nothing can be read.
fn empty(path: &Path) -> std::io::Result<()> {
    std::fs::OpenOptions::new().write(true).truncate(true).open(path).map(drop)
}

/// Wrong bytes are never handed out.
pub async fn a_spoiled_disk_is_found_out(env: Env) -> Result<()> {
    is_found_out(env, flip).await
}

/// Files that somebody removed are no loss but of what is nowhere else.
pub async fn missing_files_are_found_out(env: Env) -> Result<()> {
    is_found_out(env, |path| std::fs::remove_file(path)).await
}

/// Nor are those that end before what should lie there.
pub async fn files_that_were_cut_are_found_out(env: Env) -> Result<()> {
    is_found_out(env, empty).await
}

/// When all that was spilled is spoiled like this, results are made again, and what cannot be is lost.
async fn is_found_out(env: Env, how: fn(&Path) -> std::io::Result<()>) -> Result<()> {
    let witness = Witness::new()?;
    let node: NodeId = env.nodes().await?[0];
    let given: Vec<Holding> = {
        let all: Vec<_> = (0..4).map(|seed| give.options().strategy(on(node)).remote(seed)).collect();
        mobula::get_all(&all).await?
    };
    let made: Vec<_> = (0..COUNT)
        .map(|seed| make_noted.options().strategy(on(node)).remote(witness.place("made"), seed))
        .collect();
    mobula::wait(&made, COUNT, None).await?;
    let before = witness.count("made");
    assert!(spoil(&spill_folder(&env, node), how).unwrap() > 0, "nothing was spilled");
    let mut lost = 0;
    for (seed, held) in given.iter().enumerate() {
        match check.options().strategy(on(node)).remote(&held.0, seed).await {
            Ok(right) => assert!(right, "object {seed} that was put is another"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::ObjectLost, "{error}");
                lost += 1;
            }
        }
    }
    assert!(lost > 0, "what was put first was spilled first, and spoiled");
    for seed in (0..COUNT).rev() {
        let right = match seed % 2 {
            0 => is_right(&(&made[seed]).await?, seed),
            // As an argument of what may not be tried again.
            _ => check.options().strategy(on(node)).retries(0).remote(&made[seed], seed).await?,
        };
        assert!(right, "object {seed} is another");
    }
    assert!(witness.count("made") > before, "none was made again");
    drop((made, given));
    env.stores_empty().await
}

/// What cannot be read back where it was put is had from who read it before, wherever it is wanted; and all of it goes with
/// its last ref.
pub async fn what_others_have_of_a_spoiled_disk_is_not_lost(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    let (here, there) = (nodes[0], nodes[1]);
    let given: Vec<Holding> = {
        let all: Vec<_> = (0..4).map(|seed| give.options().strategy(on(here)).remote(seed)).collect();
        mobula::get_all(&all).await?
    };
    for (seed, held) in given.iter().enumerate() {
        assert!(check.options().strategy(on(there)).remote(&held.0, seed).await?);
    }
    let fills: Vec<_> = (0..COUNT).map(|seed| make.options().strategy(on(here)).remote(seed)).collect();
    mobula::wait(&fills, COUNT, None).await?;
    assert!(spoil(&spill_folder(&env, here), flip).unwrap() > 0, "nothing was spilled");
    drop(fills);
    for (seed, held) in given.iter().enumerate() {
        assert!(check.options().strategy(on(here)).remote(&held.0, seed).await?, "object {seed} is another");
    }
    drop(given);
    env.stores_empty().await
}

/// Values of a task, and tasks: 72 MiB in all.
const VALUES: usize = 3;
const TASKS: usize = 8;

#[mobula::task(returns)]
fn make_several(place: String, first: usize) -> Result<Vec<Tensor>> {
    witness::note(&place);
    (first..first + VALUES).map(|seed| Tensor::from_vec(&[BYTES], bytes(seed))).collect()
}

/// A task that runs again for one of its values makes the others once more, too: what there is of those stays.
pub async fn what_is_made_again_takes_nothing_along(env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let node: NodeId = env.nodes().await?[0];
    let task = make_several.options().strategy(on(node)).returns(VALUES as u32).retries(2 * VALUES as u32);
    let made: Vec<_> =
        (0..TASKS).flat_map(|at| task.clone().remote(witness.place("made"), at * VALUES)).collect();
    mobula::wait(&made, made.len(), None).await?;
    assert!(spoil(&spill_folder(&env, node), flip).unwrap() > 0, "nothing was spilled");
    let read_all = async || {
        for (seed, object) in made.iter().enumerate() {
            assert!(is_right(&object.await?, seed), "object {seed} is another");
        }
        Ok::<_, mobula::Error>(witness.count("made"))
    };
    let again = read_all().await?;
    assert!(again > TASKS, "none was made again");
    assert_eq!(read_all().await?, again, "some that were there were lost");
    drop(made);
    env.stores_empty().await
}

/// A small file system over a folder, until this is dropped.
struct Small(PathBuf);

impl Small {
    /// `None` where this process may not mount.
    fn over(folder: PathBuf, mib: usize) -> Option<Self> {
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mib}m,mode=700"), "tmpfs"]).arg(&folder);
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self(folder))
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: files of it may still be open.
        let _gone = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

/// What neither memory nor the disk holds is a typed error for who puts and for whose result it is; nothing that lies there
/// is lost, and what is freed makes room.
pub async fn a_full_disk_says_so(env: Env) -> Result<()> {
    const DISK_MIB: usize = 16;
    let node: NodeId = env.nodes().await?[0];
    let Some(small) = Small::over(spill_folder(&env, node), DISK_MIB) else {
        // Without the right to mount there is no small disk to be had.
        skipped("this process may not mount a file system");
        return Ok(());
    };
    let mut held = Vec::new();
    let error = loop {
        let made = give.options().strategy(on(node)).remote(held.len());
        match made.await {
            Ok(made) => held.push(made),
            Err(error) => break error,
        }
        assert!(held.len() < COUNT, "{COUNT} objects fit into 32 MiB and {DISK_MIB} MiB of disk");
    };
    let text = error.to_string();
    assert!(text.contains("nothing is spilled") && text.contains("No space left on device"), "{text}");
    let error = make.options().strategy(on(node)).retries(0).remote(0).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StoreFull, "{error}");
    assert!(held.len() > 10, "the disk took nothing: {} objects fitted", held.len());
    // A part of the store is for what comes back from disk, so that what lies there is read even now.
    assert!(is_right(&(&held[0].0).await?, 0), "what was put first is another");
    held.truncate(2);
    for (seed, object) in held.iter().enumerate() {
        assert!(is_right(&(&object.0).await?, seed), "object {seed} is another");
    }
    for seed in 0..4 {
        assert!(
            check
                .options()
                .strategy(on(node))
                .remote(make.options().strategy(on(node)).remote(seed), seed)
                .await?
        );
    }
    drop(held);
    env.stores_empty().await?;
    drop(small);
    Ok(())
}
