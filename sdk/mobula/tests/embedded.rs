//! The author's experience in an embedded cluster.

use mobula::{prelude::*, rkyv::rancor};

#[mobula::task]
fn square(x: u64) -> u64 {
    x * x
}

#[mobula::task]
fn total(all: Vec<u64>) -> u64 {
    all.iter().sum()
}

#[mobula::task]
async fn add(a: u64, b: u64) -> mobula::Result<u64> {
    tokio::task::yield_now().await;
    Ok(a + b)
}

#[mobula::task(retries = 0)]
fn explode(x: u64) -> u64 {
    assert!(x == 0, "x is {x}");
    x
}

#[mobula::task]
fn refuse() -> Result<u64, std::io::Error> {
    Err(std::io::Error::other("no such luck"))
}

#[mobula::task]
fn fibonacci(n: u64) -> mobula::Result<u64> {
    if n < 2 {
        return Ok(n);
    }
    let (a, b) = (fibonacci.remote(n - 1), fibonacci.remote(n - 2));
    Ok(a.get()? + b.get()?)
}

struct Counter {
    hits: u64,
}

#[mobula::actor]
impl Counter {
    fn new(start: u64) -> Self {
        Self { hits: start }
    }

    fn add(&mut self, by: u64) -> u64 {
        self.hits += by;
        self.hits
    }

    async fn peek(&self) -> u64 {
        self.hits
    }
}

#[mobula::test]
async fn tasks_and_graphs() -> mobula::Result<()> {
    assert_eq!(square.remote(7).await?, 49);
    let squares: Vec<ObjectRef<u64>> = (0..1000).map(|i| square.remote(i)).collect();
    let sum = total.remote(&squares[..]);
    assert_eq!(add.remote(&sum, 1).await?, 332_833_501);
    Ok(())
}

#[mobula::test]
async fn failures_name_their_place() -> mobula::Result<()> {
    let error = square.remote(&explode.remote(3)).await.unwrap_err().to_string();
    assert!(error.contains("an argument failed"), "{error}");
    assert!(error.contains("explode#"), "{error}");
    assert!(error.contains("sdk/mobula/tests/embedded.rs:"), "{error}");
    let error = refuse.remote().await.unwrap_err();
    assert_eq!(error.kind(), mobula::ErrorKind::Returned);
    assert!(error.to_string().contains("no such luck"), "{error}");
    Ok(())
}

#[mobula::test(cpus = 1)]
async fn nested_tasks_on_one_cpu() -> mobula::Result<()> {
    assert_eq!(fibonacci.remote(12).await?, 144);
    Ok(())
}

#[mobula::test]
async fn actors_keep_order() -> mobula::Result<()> {
    let counter = Counter::spawn(10).name("hits").await?;
    let results: Vec<ObjectRef<u64>> = (0..100).map(|_| counter.add(1)).collect();
    let values = mobula::get_all(&results).await?;
    assert_eq!(values, (11..111).collect::<Vec<u64>>());
    let again: CounterHandle = mobula::find_actor::<Counter>("hits", "").await?;
    assert_eq!(again.peek().await?, 110);
    drop(counter);
    assert_eq!(again.add(&square.remote(3)).await?, 119);
    again.kill();
    let error = again.add(1).await.unwrap_err();
    assert_eq!(error.kind(), mobula::ErrorKind::ActorDied, "{error}");
    Ok(())
}

#[mobula::test]
async fn tensors_share_memory() -> mobula::Result<()> {
    let tensor = Tensor::from_vec(&[512, 1024], vec![1.5f32; 512 * 1024])?;
    let object = mobula::put(&tensor)?;
    let (one, two) = (object.clone().await?, object.clone().await?);
    assert_eq!(one.as_bytes()?.as_ptr(), two.as_bytes()?.as_ptr());
    assert_eq!(one, tensor);
    Ok(())
}

#[mobula::test]
async fn blocking_in_async_code_is_refused() -> mobula::Result<()> {
    let error = square.remote(2).get().unwrap_err();
    assert_eq!(error.kind(), mobula::ErrorKind::BlockingInAsync);
    Ok(())
}

/// What a ref's own encoding answers, with its type.
#[derive(Clone, Debug)]
struct Caught {
    outside: bool,
    text: String,
}

impl std::fmt::Display for Caught {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Caught {}

impl rancor::Trace for Caught {
    fn trace<R: std::fmt::Debug + std::fmt::Display + Send + Sync + 'static>(self, _trace: R) -> Self {
        self
    }
}

impl rancor::Source for Caught {
    fn new<T: std::error::Error + Send + Sync + 'static>(source: T) -> Self {
        let found = (&source as &dyn std::any::Any).downcast_ref();
        let outside = matches!(found, Some(mobula_host::codec::Error::OutsideContext));
        Self { outside, text: source.to_string() }
    }
}

#[mobula::data]
struct Holder(ObjectRef<u64>);

/// Encodes and decodes what holds a ref, a handle or a tensor, and neither as an argument nor as a result: four errors.
fn refused(held: &Holder, counter: &CounterHandle, tensor: &Tensor) -> Vec<Caught> {
    use mobula::rkyv::{from_bytes, to_bytes};
    // A ref's archive is its name, and the place of its value if that is in a store.
    let placed = (held.0.id(), None::<mobula_proto::peer::Copy>);
    let Ok(name) = to_bytes::<rancor::Error>(&placed) else { return Vec::new() };
    let encoded = [to_bytes::<Caught>(held), to_bytes(counter), to_bytes(tensor)];
    let decoded = from_bytes::<Holder, Caught>(&name);
    encoded.into_iter().filter_map(Result::err).chain(decoded.err()).collect()
}

#[mobula::task]
fn refused_in_a_task(held: Holder, counter: CounterHandle, tensor: Tensor) -> u64 {
    let all = refused(&held, &counter, &tensor);
    all.iter().filter(|error| error.outside).count() as u64
}

#[mobula::test]
async fn refs_outside_of_calls_are_a_typed_error() -> mobula::Result<()> {
    let (held, counter) = (Holder(mobula::put(&7u64)?), Counter::spawn(1).await?);
    let tensor = Tensor::from_vec(&[4], vec![1u8; 4])?;
    // On a thread of the cluster, on one that has none, and in a task.
    let elsewhere = std::thread::scope(|scope| scope.spawn(|| refused(&held, &counter, &tensor)).join());
    let all = [refused(&held, &counter, &tensor), elsewhere.unwrap_or_default()].concat();
    assert_eq!(all.len(), 8);
    for error in all {
        assert!(error.outside, "{error}");
        assert!(error.text.contains("[MOB1002]") && error.text.contains("`put`"), "{error}");
    }
    assert_eq!(refused_in_a_task.remote(Holder(held.0.clone()), counter.clone(), tensor).await?, 4);
    // None of that counts as a holder, and nothing was given back that was not taken: the value is there, and goes.
    assert_eq!((&held.0).await?, 7);
    Ok(())
}

static GATE: (std::sync::Mutex<bool>, std::sync::Condvar) =
    (std::sync::Mutex::new(false), std::sync::Condvar::new());

#[mobula::task(cpu = 0)]
fn pass_the_gate() -> bool {
    let limit = std::time::Duration::from_secs(60);
    match GATE.0.lock().map(|open| GATE.1.wait_timeout_while(open, limit, |open| !*open)) {
        Ok(Ok((open, _))) => *open,
        _ => false,
    }
}

#[mobula::task]
fn size_behind(open: bool, bytes: Vec<u8>) -> Option<usize> {
    open.then_some(bytes.len())
}

#[mobula::test]
async fn many_arguments_lie_in_the_store(cluster: Cluster) -> mobula::Result<()> {
    const BYTES: usize = 90_000;
    const CALLS: usize = 800;
    let open = pass_the_gate.remote();
    let sizes: Vec<_> = (0..CALLS).map(|_| size_behind.remote(&open, vec![7; BYTES])).collect();
    let in_store = cluster.leftovers().store_bytes;
    // 64 MiB stay in the process.
    assert!(in_store >= (CALLS * BYTES) as u64 - (64 << 20), "{in_store}");
    assert!(in_store < (CALLS * BYTES) as u64 / 2, "{in_store}");
    if let Ok(mut open) = GATE.0.lock() {
        *open = true;
    }
    GATE.1.notify_all();
    assert_eq!(mobula::get_all(&sizes).await?, vec![Some(BYTES); CALLS]);
    Ok(())
}

#[tokio::test]
async fn a_packet_size_that_no_path_carries_is_refused() {
    for (start, bytes) in [(Cluster::embedded(), 1199), (Cluster::local().nodes(2), 65_001)] {
        let error = start.mtu(bytes).start().await.err().unwrap();
        assert_eq!(error.kind(), mobula::ErrorKind::Limit, "{error}");
        assert!(error.to_string().contains("1200 to 65000 bytes, not"), "{error}");
    }
}

#[tokio::test]
async fn a_share_of_the_store_that_is_none_is_refused() {
    for start in [Cluster::embedded(), Cluster::local().nodes(2)] {
        let error = start.spill_above(1.5).start().await.err().unwrap();
        assert_eq!(error.kind(), mobula::ErrorKind::Limit, "{error}");
        assert!(
            error.to_string().contains("spill_above is a share of the store, 0 to 1, not 1.5"),
            "{error}"
        );
    }
}

/// What `#[mobula::test]` looks for, in the cluster and on its disk, beside what its own process holds.
#[test]
fn what_a_test_leaves_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let spill = folder.path().to_owned();
    let builder = Cluster::embedded().spill_to(&spill);
    let wait = std::time::Duration::from_millis(100);
    let (outcome, left) = mobula::private::drive_within(wait, builder, async move |_| {
        // Nothing in this process holds it: only the head knows of it.
        let group = mobula::PlacementGroup::pack().bundles(1, &[("cpu", 1.0)]);
        group.name("left").namespace("shelf").detached().reserve().await?;
        // As if the agent had forgotten a file.
        let own = std::fs::read_dir(&spill).unwrap().next().unwrap().unwrap().path();
        std::fs::write(own.join("7.spill"), b"left").unwrap();
        Ok::<_, mobula::Error>(())
    })
    .unwrap();
    outcome.unwrap();
    let left = left.join("; ");
    for named in ["the placement group shelf/left", "\"CPU\": ", "/7.spill"] {
        assert!(left.contains(named), "no {named} in {left}");
    }
}

/// Whether it exits, or is killed and somebody else tidies up after it.
#[tokio::test]
async fn a_folder_for_spilled_objects_outlives_its_process_only_until_the_next_one() {
    const FOLDER: &str = "MOBULA_TEST_FOLDER";
    const HOW: &str = "MOBULA_TEST_HOW";
    if let (Some(folder), Some(how)) = (std::env::var_os(FOLDER), std::env::var_os(HOW)) {
        let _cluster = Cluster::embedded().spill_to(folder).start().await.unwrap();
        if how == "exit" {
            std::process::exit(7);
        }
        std::process::abort();
    }
    let folder = tempfile::tempdir().unwrap();
    let there =
        || std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let run = |how| {
        let mut program = std::process::Command::new(std::env::current_exe().unwrap());
        program
            .args(["a_folder_for_spilled_objects_outlives_its_process_only_until_the_next_one", "--exact"]);
        program.env(FOLDER, folder.path()).env(HOW, how).output().unwrap()
    };
    let exited = run("exit");
    assert!(exited.status.code() == Some(7) && there().is_empty(), "{exited:?} left {:?}", there());
    run("abort");
    let left = there();
    assert_eq!(left.len(), 1, "{left:?}");
    let cluster = Cluster::embedded().spill_to(folder.path()).start().await.unwrap();
    let now = there();
    assert!(now.len() == 1 && now != left, "{left:?}, then {now:?}");
    drop(cluster);
    assert_eq!(there(), Vec::<std::path::PathBuf>::new());
}
