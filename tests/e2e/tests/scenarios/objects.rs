//! Values, views, tensors, and waiting for them.

use std::time::{Duration, Instant};

use mobula::{Dtype, Element, ErrorKind, Result, prelude::*, safetensors};
use mobula_e2e::{
    Env, Witness,
    env::{on, shared_place, witness},
    eventually,
};

#[mobula::data]
#[derive(Clone, Debug, PartialEq)]
struct Record {
    name: String,
    numbers: Vec<u64>,
    nested: Option<Box<(i8, f64)>>,
}

fn record(numbers: usize) -> Record {
    Record { name: "manta".to_owned(), numbers: vec![3; numbers], nested: Some(Box::new((-1, 0.5))) }
}

pub async fn put_and_get(_env: Env) -> Result<()> {
    for numbers in [0, 10, 100_000] {
        let value = record(numbers);
        let object = mobula::put(&value)?;
        assert_eq!((&object).await?, value);
        assert_eq!(object.clone().await?, value);
        assert!(object.is_ready());
        // Blocking is for other threads than those that run async code.
        let elsewhere = object.clone();
        let got = tokio::task::spawn_blocking(move || elsewhere.get()).await.unwrap()?;
        assert_eq!(got, value);
    }
    let objects: Vec<_> = (0..20).map(|i| mobula::put(&i)).collect::<Result<_>>()?;
    assert_eq!(mobula::get_all(&objects).await?, (0..20).collect::<Vec<i32>>());
    let got = tokio::task::spawn_blocking(move || mobula::blocking::get_all(&objects)).await.unwrap()?;
    assert_eq!(got.len(), 20);
    Ok(())
}

#[mobula::task]
fn look(record: View<Record>) -> (u64, u64) {
    (record.numbers.iter().map(|n| n.to_native()).sum(), record.bytes())
}

#[mobula::task]
fn make(numbers: usize) -> Record {
    record(numbers)
}

#[mobula::task]
async fn same_bytes(object: Vec<ObjectRef<Record>>) -> Result<bool> {
    let views = (object[0].fetch_view().await?, object[0].fetch_view().await?);
    Ok(views.0.numbers.as_ptr() == views.1.numbers.as_ptr() && views.0.numbers.len() == 3)
}

/// However small, it lies in the store: counted there, and looked at in place by every host.
pub async fn small_values_are_shared(env: Env) -> Result<()> {
    let object = mobula::put_shared(&record(3))?;
    eventually("the store to count it", async || {
        Ok(env.cluster.snapshot().await?.nodes.iter().map(|node| node.usage.objects).sum::<u64>() == 1)
    })
    .await?;
    assert_eq!((&object).await?, record(3));
    for node in env.nodes().await? {
        assert!(same_bytes.options().strategy(on(node)).remote(vec![object.clone()]).await?);
    }
    drop(object);
    env.stores_empty().await
}

/// However fast a program makes and drops objects of the store, it is not ended for what it is told of them.
pub async fn many_small_values_come_and_go(env: Env) -> Result<()> {
    const VALUES: u64 = 30_000;
    for value in 0..VALUES {
        drop(mobula::put_shared(&value)?);
    }
    let values: Vec<_> = (0..VALUES).map(|value| mobula::put_shared(&value)).collect::<Result<_>>()?;
    assert_eq!(mobula::get_all(&values).await?, (0..VALUES).collect::<Vec<_>>());
    drop(values);
    env.stores_empty().await
}

pub async fn views_look_in_place(_env: Env) -> Result<()> {
    let object = mobula::put(&record(100_000))?;
    let (one, two) = (object.fetch_view().await?, object.fetch_view().await?);
    assert_eq!(one.numbers.as_ptr(), two.numbers.as_ptr(), "both look at the same memory");
    assert_eq!(one.name, "manta");
    assert!(one.bytes() > 800_000);
    drop(object);
    assert_eq!(two.numbers.len(), 100_000, "a view keeps its value alive");
    assert_eq!(look.remote(record(4)).await?.0, 12);
    let (sum, bytes) = look.remote(&make.remote(50_000)).await?;
    assert_eq!(sum, 150_000);
    assert!(bytes > 400_000);
    Ok(())
}

#[mobula::task]
async fn once_noted(place: String, value: u32) -> u32 {
    while !witness::noted(&place) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    value
}

pub async fn waiting_for_some(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let refs: Vec<_> =
        (0..4).map(|i| once_noted.options().cpu(0.0).remote(witness.place(&i.to_string()), i)).collect();
    witness.say("2");
    let (ready, rest) = mobula::wait(&refs, 1, None).await?;
    assert_eq!((ready, rest), (vec![2], vec![0, 1, 3]));
    witness.say("0");
    let (ready, _) = mobula::wait(&refs, 2, Some(Duration::from_secs(20))).await?;
    assert_eq!(ready, [0, 2]);
    // No more than was asked for, and one that is there twice counts twice.
    assert_eq!(mobula::wait(&refs, 1, None).await?, (vec![0], vec![1, 2, 3]));
    assert_eq!(mobula::wait(&[refs[2].clone(), refs[2].clone()], 2, None).await?.0, [0, 1]);
    assert_eq!(mobula::wait(&refs, 0, None).await?, (vec![], vec![0, 1, 2, 3]));
    witness.say("1");
    witness.say("3");
    let elsewhere = refs.clone();
    let blocking = tokio::task::spawn_blocking(move || mobula::blocking::wait(&elsewhere, 4, None));
    assert_eq!(blocking.await.unwrap()?.0.len(), 4);
    assert_eq!(mobula::get_all(&refs).await?, [0, 1, 2, 3]);
    Ok(())
}

pub async fn a_timeout_is_an_answer(_env: Env) -> Result<()> {
    let witness = Witness::new()?;
    let refs = [mobula::put(&7u32)?, once_noted.remote(witness.place("go"), 1)];
    let began = Instant::now();
    let (ready, rest) = mobula::wait(&refs, 2, Some(Duration::from_millis(50))).await?;
    assert_eq!((ready, rest), (vec![0], vec![1]));
    assert!(began.elapsed() >= Duration::from_millis(50) && began.elapsed() < Duration::from_secs(10));
    let elsewhere = refs.clone();
    let blocking = tokio::task::spawn_blocking(move || {
        mobula::blocking::wait(&elsewhere, 2, Some(Duration::from_millis(20)))
    });
    assert_eq!(blocking.await.unwrap()?.1, [1]);
    witness.say("go");
    assert_eq!(mobula::get_all(&refs).await?, [7, 1]);
    Ok(())
}

#[mobula::task]
fn double(tensor: Tensor) -> Result<Tensor> {
    fn doubled<T: Element + std::ops::Add<Output = T>>(tensor: &Tensor) -> Result<Tensor> {
        let view = tensor.view::<T>()?;
        Ok(Tensor::from_array(&view.mapv(|x| x + x)))
    }
    match tensor.dtype() {
        Dtype::F32 => doubled::<f32>(&tensor),
        Dtype::F64 => doubled::<f64>(&tensor),
        Dtype::I8 => doubled::<i8>(&tensor),
        Dtype::I64 => doubled::<i64>(&tensor),
        Dtype::U8 => doubled::<u8>(&tensor),
        Dtype::U16 => doubled::<u16>(&tensor),
        _ => Ok(tensor),
    }
}

async fn doubles<T>(shape: &[usize], values: Vec<T>) -> Result<()>
where
    T: Element + PartialEq + std::fmt::Debug + std::ops::Add<Output = T> + Copy,
{
    let expected: Vec<T> = values.iter().map(|x| *x + *x).collect();
    let tensor = Tensor::from_vec(shape, values)?;
    let there = double.remote(tensor).await?;
    assert_eq!(there.shape(), shape);
    assert_eq!(there.as_slice::<T>()?, &expected[..]);
    Ok(())
}

pub async fn tensors_of_every_kind(_env: Env) -> Result<()> {
    doubles(&[3], vec![1.5f32, -2.0, 0.25]).await?;
    doubles(&[2, 2], vec![1.0f64, 2.0, 3.0, 1e300]).await?;
    doubles(&[2, 1, 2], vec![1i8, -2, 3, -4]).await?;
    doubles(&[512, 300], (0..512 * 300).collect::<Vec<i64>>()).await?;
    doubles(&[0, 5], Vec::<u16>::new()).await?;
    doubles(&[1 << 20], vec![21u8; 1 << 20]).await?;
    let bools = Tensor::from_bools(&[3], &[true, false, true])?;
    assert_eq!(double.remote(bools.clone()).await?, bools);
    let wrong = bools.as_slice::<f32>().unwrap_err();
    assert!(wrong.to_string().contains("bool") && wrong.to_string().contains("f32"), "{wrong}");
    Ok(())
}

#[mobula::task]
fn built(elements: usize) -> Result<Tensor> {
    Tensor::build(&[elements], |all: &mut [u32]| all.fill(7))
}

pub async fn tensors_are_built_in_place(_env: Env) -> Result<()> {
    let tensor = Tensor::build(&[500, 1000], |all: &mut [u16]| {
        for (at, one) in all.iter_mut().enumerate() {
            *one = (at % 1000) as u16;
        }
    })?;
    let object = mobula::put(&tensor)?;
    let seen = object.fetch_view().await?.tensor()?;
    assert_eq!(seen.as_bytes()?.as_ptr(), tensor.as_bytes()?.as_ptr(), "it was copied");
    // Whoever holds it only in another shape gets a copy.
    let row = mobula::put(&tensor.reshape(&[500_000])?)?.await?;
    assert_ne!(row.as_bytes()?.as_ptr(), tensor.as_bytes()?.as_ptr());
    assert_eq!(row.as_bytes()?, tensor.as_bytes()?);
    drop((object, seen));
    let again = mobula::put(&tensor)?;
    drop(tensor);
    assert_eq!(again.await?.view::<u16>()?[[499, 999]], 999);
    for elements in [0, 10, 1_000_000] {
        let tensor = built.remote(elements).await?;
        assert_eq!(tensor.shape(), [elements]);
        assert!(tensor.as_slice::<u32>()?.iter().all(|one| *one == 7));
    }
    let error = Tensor::build(&[usize::MAX, 2], |_: &mut [f64]| {}).unwrap_err();
    assert!(error.to_string().contains("too large"), "{error}");
    Ok(())
}

/// Says where its data lies.
#[mobula::task]
fn built_and_told(elements: usize, told: String) -> Result<Tensor> {
    let tensor = built.local(elements)?;
    tell(&told, tensor.as_bytes()?);
    Ok(tensor)
}

/// Several at once, of which each says where its data lies.
#[mobula::task(returns = 2)]
fn several_built_and_told(elements: usize, told: Vec<String>) -> Result<Vec<Tensor>> {
    told.into_iter().map(|told| built_and_told.local(elements, told)).collect()
}

fn tell(told: &str, bytes: &[u8]) {
    std::fs::write(told, format!("{:?}", shared_place(bytes))).expect("the test's own folder");
}

/// Where it finds the data of what it is given, and whether that is what was built.
#[mobula::task(cpu = 0)]
fn found(tensor: View<Tensor>, elements: usize) -> Result<String> {
    let again = tensor.tensor()?;
    let all = again.as_slice::<u32>()?;
    assert!(all.len() == elements && all.iter().all(|one| *one == 7));
    Ok(format!("{:?}", shared_place(again.as_bytes()?)))
}

/// What a task builds in place is never copied on its node: another process there, and the driver where it is there
/// itself, see the very bytes that the task wrote. The driver of another node sees its own node's copy where that lies.
pub async fn what_a_task_built_is_read_where_it_lies(env: Env) -> Result<()> {
    const ELEMENTS: usize = 300_000;
    let own = mobula::put(&0u8)?.id().owner.node;
    for node in env.nodes().await? {
        let witness = Witness::new()?;
        let (here, names) = (on(node), ["one", "two", "three"]);
        let told = names.map(|name| witness.place(name));
        let mut tensors =
            vec![built_and_told.options().strategy(here.clone()).remote(ELEMENTS, told[0].clone())];
        tensors.extend(
            several_built_and_told.options().strategy(here.clone()).remote(ELEMENTS, told[1..].to_vec()),
        );
        assert_eq!(tensors.len(), names.len());
        for (tensor, told) in tensors.iter().zip(&told) {
            let elsewhere = found.options().strategy(here.clone()).isolation("process");
            let seen = elsewhere.remote(tensor, ELEMENTS).await?;
            let written = std::fs::read_to_string(told).unwrap();
            assert!(written.starts_with("Some"), "it was not built in shared memory");
            assert_eq!(seen, written, "another process got a copy");
            let view = tensor.fetch_view().await?;
            let mine = view.tensor()?;
            let place = shared_place(mine.as_bytes()?);
            assert!(place.is_some(), "the driver got a copy");
            assert_eq!(shared_place(tensor.fetch_view().await?.tensor()?.as_bytes()?), place);
            if node == own {
                assert_eq!(format!("{place:?}"), written, "the driver got a copy");
            }
        }
    }
    env.stores_empty().await
}

#[mobula::task]
fn corner(tensor: Tensor) -> Result<Tensor> {
    tensor.transpose(0, 1)?.slice(0, ..2)?.slice(1, 500..)
}

pub async fn parts_of_tensors(env: Env) -> Result<()> {
    let whole = Tensor::build(&[1000, 1000], |all: &mut [u32]| {
        for (at, one) in all.iter_mut().enumerate() {
            *one = at as u32;
        }
    })?;
    let expected = |x: usize, y: usize| (y * 1000 + x) as u32;
    // There and back, in an order of its own each time.
    let there = corner.remote(whole.transpose(0, 1)?).await?;
    assert_eq!((there.shape(), there.is_contiguous()), (&[2, 500][..], true));
    let view = there.view::<u32>()?;
    assert!(view.indexed_iter().all(|(at, one)| *one == expected(500 + at[1], at[0])));
    // A part alone keeps its object, and gives it back.
    let object = mobula::put(&whole)?;
    let part = object.fetch_view().await?.tensor()?.select(1, 999)?;
    drop((object, whole, there));
    overwrite().await?;
    let view = part.view::<u32>()?;
    assert!(view.iter().enumerate().all(|(at, one)| *one == expected(999, at)), "its memory was used again");
    drop(part);
    env.stores_empty().await
}

#[mobula::task]
fn load(path: String, name: String) -> Result<Tensor, safetensors::Error> {
    safetensors::File::open(path)?.tensor(&name)
}

fn unreadable(error: safetensors::Error) -> mobula::Error {
    mobula::Error::new(mobula::ErrorKind::Returned, error.to_string())
}

pub async fn tensors_in_files(env: Env) -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors").display().to_string();
    let weights = Tensor::build(&[300, 1000], |all: &mut [f32]| all.fill(0.5))?;
    let bias = Tensor::from_vec(&[3], vec![1i64, 2, 3])?;
    safetensors::write(&path, [("weights", &weights), ("bias", &bias)], [("step", "7")])
        .map_err(unreadable)?;
    assert_eq!(load.remote(path.clone(), "weights".to_owned()).await?, weights);
    assert_eq!(load.remote(path.clone(), "bias".to_owned()).await?, bias);
    // What is read lies in the store already.
    let read = safetensors::File::open(&path).and_then(|file| file.tensor("weights")).map_err(unreadable)?;
    let seen = mobula::put(&read)?.fetch_view().await?.tensor()?;
    assert_eq!(seen.as_bytes()?.as_ptr(), read.as_bytes()?.as_ptr(), "it was copied");
    let error = load.remote(path, "none".to_owned()).await.unwrap_err().to_string();
    assert!(error.contains("has no tensor `none`"), "{error}");
    drop((weights, read, seen));
    env.stores_empty().await
}

/// Fills as much of the store again as one object has.
async fn overwrite() -> Result<()> {
    for _ in 0..4 {
        let tensor = Tensor::build(&[1 << 20], |all: &mut [u32]| all.fill(0))?;
        let there = mobula::put(&tensor)?;
        assert_eq!(built.remote(1 << 20).await?.len(), there.await?.len());
    }
    Ok(())
}

pub async fn a_view_keeps_its_object(env: Env) -> Result<()> {
    for put_here in [true, false] {
        let object = if put_here {
            mobula::put(&Tensor::build(&[1 << 20], |all: &mut [u32]| all.fill(7))?)?
        } else {
            built.remote(1 << 20)
        };
        let view = object.fetch_view().await?;
        drop(object);
        // The view alone holds it, over waits and on another thread; then a tensor that shares its bytes does.
        overwrite().await?;
        let tensor = tokio::task::spawn_blocking(move || view.tensor()).await.unwrap()?;
        overwrite().await?;
        assert!(tensor.as_slice::<u32>()?.iter().all(|one| *one == 7), "its memory was used again");
        drop(tensor);
        env.stores_empty().await?;
    }
    Ok(())
}

#[mobula::data]
struct Held {
    tensor: ObjectRef<Tensor>,
}

/// Holds on to nothing but a view, from call to call.
struct Onlooker {
    view: Option<View<Tensor>>,
}

#[mobula::actor(isolation = "process")]
impl Onlooker {
    fn new() -> Self {
        Self { view: None }
    }

    async fn look_at(&mut self, held: Held) -> Result<()> {
        self.view = Some(held.tensor.fetch_view().await?);
        Ok(())
    }

    /// Looks once more, on another thread, and then no more.
    async fn is_unchanged(&mut self) -> Result<bool> {
        let view = self.view.take().expect("it looks at something");
        let compare =
            move || -> Result<bool> { Ok(view.tensor()?.as_slice::<u32>()?.iter().all(|one| *one == 7)) };
        tokio::task::spawn_blocking(compare).await.expect("it does not panic")
    }
}

/// The same in a process that neither made the object nor owns it, when nobody else holds it any more.
pub async fn a_view_in_an_actor_keeps_its_object(env: Env) -> Result<()> {
    for node in env.nodes().await? {
        let build = built.options().strategy(on(node));
        let onlooker = Onlooker::spawn().options(|options| options.strategy(on(node))).await?;
        onlooker.look_at(Held { tensor: build.clone().remote(1 << 20) }).await?;
        // Where it was built, other objects of its size come and go.
        for _ in 0..4 {
            mobula::wait(&[build.clone().remote(1 << 20)], 1, None).await?;
        }
        assert!(onlooker.is_unchanged().await?, "its memory was used again");
        // While the actor lives.
        env.stores_empty().await?;
    }
    Ok(())
}

#[mobula::task]
fn sums(tensor: View<Tensor>) -> Result<Vec<f64>> {
    let tensor = tensor.tensor()?;
    let view = tensor.view::<f64>()?;
    assert_eq!(tensor.as_bytes()?.as_ptr() as usize % 64, 0, "buffers are aligned");
    Ok(view.outer_iter().map(|row| row.iter().sum()).collect())
}

#[mobula::task]
fn made(rows: usize, columns: usize) -> Result<Tensor> {
    Tensor::from_vec(&[rows, columns], (0..rows * columns).map(|i| (i / columns) as f64).collect())
}

pub async fn tensors_cross_nodes(env: Env) -> Result<()> {
    let nodes = env.nodes().await?;
    assert_eq!(nodes.len(), if env.has_processes() { 2 } else { 1 });
    let expected: Vec<f64> = (0..8).map(|row| f64::from(row) * 40_000.0).collect();
    for from in &nodes {
        let tensor = made.options().strategy(on(*from)).remote(8, 40_000);
        for to in &nodes {
            assert_eq!(sums.options().strategy(on(*to)).remote(&tensor).await?, expected);
        }
        let here = tensor.await?;
        assert_eq!(here.shape(), [8, 40_000]);
        assert_eq!(here.view::<f64>()?[[7, 39_999]], 7.0);
        // And back again, from the driver's own store.
        let put = mobula::put(&here)?;
        assert_eq!(sums.options().strategy(on(*from)).remote(&put).await?, expected);
    }
    Ok(())
}

#[mobula::data]
struct Parcel {
    content: ObjectRef<Vec<u64>>,
}

#[mobula::task]
async fn unpack(parcel: Parcel) -> Result<Vec<u64>> {
    parcel.content.await
}

#[mobula::task]
fn total(all: Vec<u64>) -> u64 {
    all.iter().sum()
}

/// No program comes by such a ref except by the death of whoever passed it on; here one reference too many is dropped.
pub async fn a_freed_object_says_so(_env: Env) -> Result<()> {
    let runtime = mobula_host::context::runtime().unwrap();
    for elements in [3, 100_000] {
        let object = mobula::put(&vec![1u64; elements])?;
        assert_eq!((&object).await?.len(), elements);
        runtime.drop_ref(object.id());
        let errors = [
            (&object).await.map(drop).unwrap_err(),
            object.fetch_view().await.map(drop).unwrap_err(),
            mobula::get_all(std::slice::from_ref(&object)).await.map(drop).unwrap_err(),
            total.remote(&object).await.map(drop).unwrap_err(),
        ];
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::ObjectFreed, "{error}");
        }
        let error = (&object).await.unwrap_err();
        assert!(error.to_string().contains("keep a ref"), "{error}");
        // Elsewhere it is what a task fails with that waits for it.
        let error = unpack.remote(Parcel { content: object.clone() }).await.unwrap_err();
        assert!(error.to_string().contains("it was freed"), "{error}");
        // It stands for no reference any more: nothing is counted down with it.
        drop(object);
    }
    Ok(())
}

#[mobula::task]
async fn blocks_inside() -> Result<u32> {
    mobula::put(&1u32)?.get()
}

pub async fn blocking_inside_async_is_refused(_env: Env) -> Result<()> {
    let object = mobula::put(&1u32)?;
    for error in [
        object.get().unwrap_err(),
        object.view().unwrap_err(),
        mobula::blocking::get_all(std::slice::from_ref(&object)).unwrap_err(),
        mobula::blocking::wait(std::slice::from_ref(&object), 1, None).unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::BlockingInAsync, "{error}");
        assert!(error.to_string().contains(".await"), "{error}");
    }
    let error = blocks_inside.remote().await.unwrap_err().to_string();
    assert!(error.contains("blocking"), "{error}");
    assert_eq!(object.await?, 1);
    Ok(())
}
