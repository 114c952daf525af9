//! With real users where the tests run as root; elsewhere those tests say that they did nothing.

use std::{
    os::unix::{fs::chown, process::CommandExt},
    process::{Command, Stdio},
};

use mobula_proto::JobId;

use super::*;
use crate::skipped::skipped;

/// How long anything here may take before it has hung.
const DEADLINE: Duration = Duration::from_secs(30);

fn job(number: u64) -> JobId {
    JobId { number }
}

#[track_caller]
fn is_root() -> bool {
    let is = rustix::process::geteuid().is_root();
    if !is {
        skipped("it takes root to give jobs users of their own");
    }
    is
}

/// Two users that no other test has, and a home that the users of jobs can reach.
fn home(first: u32) -> (Uids, tempfile::TempDir) {
    let home = tempfile::Builder::new().prefix("mobula-users-").tempdir_in("/tmp").unwrap();
    fs::create_dir(home.path().join("jobs")).unwrap();
    (Uids { first, last: first + 1 }, home)
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("waited for {what}"))
}

#[test]
fn ranges_are_read_and_refused() {
    for good in ["1000-1000", "2000000-2065535", "1000-4294967294"] {
        assert_eq!(good.parse::<Uids>().unwrap().to_string(), good);
    }
    for bad in
        ["", "5", "999-2000", "0-0", "2000-1999", "a-b", "1000-4294967295", "-1000-2000", "1000-2000-3000"]
    {
        let error = bad.parse::<Uids>().unwrap_err();
        assert!(error.is_setting() && error.to_string().contains("write FIRST-LAST"), "{error}");
    }
}

#[tokio::test]
async fn without_root_it_is_refused() {
    if rustix::process::geteuid().is_root() {
        return skipped("this is root");
    }
    let (uids, home) = home(1_900_000_000);
    assert!(matches!(Users::new(uids, home.path()), Err(Error::NotRoot)));
}

#[tokio::test]
async fn what_jobs_could_not_use_is_found_at_the_start() {
    if !is_root() {
        return;
    }
    let (uids, home) = home(1_900_000_010);
    let nobody = Uids { first: 65_000, last: 66_000 };
    let error = Users::new(nobody, home.path()).unwrap_err();
    assert!(matches!(&error, Error::Taken { uid: 65_534, name } if name == "nobody"), "{error}");
    let closed = home.path().join("closed");
    fs::create_dir_all(closed.join("home/jobs")).unwrap();
    make_passable(home.path()).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    let error = Users::new(uids, &closed.join("home")).unwrap_err();
    assert!(matches!(&error, Error::Closed { path, mode: 0o700 } if *path == closed), "{error}");
    assert!(!error.is_setting());
}

#[tokio::test]
async fn a_user_is_anothers_only_when_all_of_the_job_is_gone() {
    if !is_root() {
        return;
    }
    let (uids, home) = home(1_900_000_020);
    let users = Users::new(uids, home.path()).unwrap();
    let one = users.of(job(1));
    let uid = one.uid().await.unwrap();
    assert_eq!(users.of(job(1)).uid().await.unwrap(), uid, "for the life of the job");
    let other = users.of(job(2));
    assert_eq!((uid, other.uid().await.unwrap()), (uids.first, uids.last));
    let none = users.of(job(3)).uid().await.unwrap_err();
    assert!(none.kind == FailureKind::Limit && none.message.contains("job_uids"), "{none:?}");
    users.job_gone(job(3));

    // What a job leaves: a process in a session of its own, its folder, and files where everybody may write.
    let mut left = Command::new("/bin/sleep");
    let mut left = left.arg("600").uid(uid).gid(uid).process_group(0).stdin(Stdio::null()).spawn().unwrap();
    let folder = home.path().join("jobs/1");
    let temporary = folder.join(".tmp");
    fs::create_dir_all(folder.join("data")).unwrap();
    give_folder(&folder, &temporary, uid).unwrap();
    assert!(is_of(&folder, uid) && is_of(&folder.join("data"), uid) && is_of(&temporary, uid));
    let shared = Path::new("/tmp").join(format!("mobula-users-test-{}", std::process::id()));
    fs::create_dir_all(shared.join("below")).unwrap();
    chown(&shared, Some(uid), Some(uid)).unwrap();
    assert!(users.dirty().unwrap().contains(&uid));

    users.job_gone(job(1));
    assert!(folder.exists() && left.try_wait().unwrap().is_none(), "a host of it still runs");
    drop(one);
    within("the job to be cleared away", users.held.subscribe().wait_for(|held| *held == 1)).await.unwrap();
    assert!(!folder.exists() && !shared.exists());
    let status = left.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    let next = users.of(job(4));
    assert_eq!(next.uid().await.unwrap(), uid, "it is free again");
    drop((next, other));
    within("everything to be gone", users.all_gone()).await;
}

#[tokio::test]
async fn a_user_who_left_something_is_passed_over() {
    if !is_root() {
        return;
    }
    let (uids, home) = home(1_900_000_030);
    let users = Users::new(uids, home.path()).unwrap();
    // Somebody else's, or of a node that was killed.
    let mut left = Command::new("/bin/sleep");
    let mut left = left.arg("600").uid(uids.first).gid(uids.first).stdin(Stdio::null()).spawn().unwrap();
    let one = users.of(job(1));
    assert_eq!(one.uid().await.unwrap(), uids.last);
    left.kill().unwrap();
    left.wait().unwrap();
    let other = users.of(job(2));
    assert_eq!(other.uid().await.unwrap(), uids.first, "by now it is clean");
    drop((one, other));
    within("everything to be gone", users.all_gone()).await;
}
