//! Reading many objects in async code.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll},
};

use mobula_host::{
    codec::Data,
    runtime::{ASKED_TOGETHER_BYTES_MAX, ASKED_TOGETHER_MAX},
};
use mobula_store::Object;

use super::{ObjectRef, Raw, Reading};
use crate::Result;

/// All the values, in order; the first failure otherwise. Where several in a row are ready they are brought here together,
/// up to 64 of them or 64 MiB.
pub async fn get_all<T: Data>(refs: &[ObjectRef<T>]) -> Result<Vec<T>> {
    let mut values = Vec::with_capacity(refs.len());
    let mut reads = Reads::default();
    for (at, one) in refs.iter().enumerate() {
        let object = poll_fn(|poller| reads.poll(refs[at..].iter().map(|one| &one.raw), poller)).await?;
        values.push(one.decode(object)?);
    }
    Ok(values)
}

/// What is being read, of objects in a row.
#[derive(Default)]
struct Reads {
    first: VecDeque<Read>,
    bytes: u64,
}

struct Read {
    /// In a store, as far as they are known: they are pinned until it is handed out.
    bytes: u64,
    state: State,
}

enum State {
    UnderWay(Reading),
    Over(Result<Object>),
}

impl Read {
    fn begin(raw: &Raw, poller: &mut Context<'_>) -> Self {
        let state = match raw.runtime.read_here(raw.id) {
            Some(result) => State::Over(result.map_err(Into::into)),
            None => State::UnderWay(Reading::new(raw.clone())),
        };
        let mut read = Self { bytes: 0, state };
        read.go_on(raw, poller);
        read
    }

    fn go_on(&mut self, raw: &Raw, poller: &mut Context<'_>) {
        let waited = self.waits();
        if let State::UnderWay(reading) = &mut self.state
            && let Poll::Ready(result) = Pin::new(reading).poll(poller)
        {
            self.state = State::Over(result);
        }
        if waited {
            self.bytes = raw.runtime.stored_bytes(raw.id).unwrap_or(0);
        }
    }

    fn waits(&self) -> bool {
        matches!(&self.state, State::UnderWay(reading) if reading.waits())
    }
}

impl Reads {
    /// The first of these objects, of which others were handed out before.
    fn poll<'a>(
        &mut self,
        raws: impl Iterator<Item = &'a Raw>,
        poller: &mut Context<'_>,
    ) -> Poll<Result<Object>> {
        let mut raws = raws.peekable();
        if let (Some(first), Some(raw)) = (self.first.front_mut(), raws.peek()) {
            self.bytes -= first.bytes;
            first.go_on(raw, poller);
            self.bytes += first.bytes;
        }
        // Behind one that is not made yet nothing is read, since that would be pinned for as long.
        for raw in raws.skip(self.first.len()) {
            if self.first.len() == ASKED_TOGETHER_MAX || self.first.back().is_some_and(Read::waits) {
                break;
            }
            let bytes = raw.runtime.stored_bytes(raw.id);
            let is_more = bytes.is_none_or(|bytes| self.bytes + bytes > ASKED_TOGETHER_BYTES_MAX);
            if is_more && !self.first.is_empty() {
                break;
            }
            let read = Read::begin(raw, poller);
            self.bytes += read.bytes;
            self.first.push_back(read);
        }
        match self.first.pop_front() {
            Some(Read { bytes, state: State::Over(result) }) => {
                self.bytes -= bytes;
                Poll::Ready(result)
            }
            first => {
                first.into_iter().for_each(|first| self.first.push_front(first));
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        sync::mpsc::{Receiver, Sender, channel},
        task::Waker,
        time::Duration,
    };

    use mobula_host::{
        link::{self, AgentSender, Delivery},
        peers::Peers,
        registry::Registry,
        runtime::Runtime,
    };
    use mobula_proto::{
        Failure, FailureKind, HostId, JobId, NodeId, ObjectId, TaskId,
        host::{ToAgent, ToHost, Welcome},
        peer::{Copy, Message, State},
        wire,
    };

    use super::*;

    const NODE: NodeId = NodeId { number: 1, incarnation: 1 };
    const FAR: HostId = HostId { node: NodeId { number: 2, incarnation: 1 }, seq: 1 };
    const MIB: u64 = 1 << 20;

    /// A host whose agent is the test.
    struct Bench {
        runtime: std::sync::Arc<Runtime>,
        told: Receiver<ToAgent>,
        tell: Sender<Delivery>,
        user: tokio::runtime::Runtime,
    }

    impl Bench {
        fn new() -> Self {
            let me = HostId { node: NODE, seq: 1 };
            let welcome = Welcome {
                host: me,
                job: JobId { number: 1 },
                driver: me,
                namespace: String::new(),
                cpus: 1,
                store_bytes: 1 << 30,
                devices: Vec::new(),
                shared: false,
            };
            let (says, told) = channel();
            let (tell, hears) = channel::<Delivery>();
            let agent = AgentSender::new(move |parcel| drop(says.send(parcel.message)));
            let user = tokio::runtime::Runtime::new().unwrap();
            let registry = Registry::new(std::iter::empty()).unwrap();
            let runtime =
                Runtime::new(welcome, registry, agent, Peers::new(None, None), user.handle().clone());
            link::pump(&runtime, Box::new(move || hears.recv().ok()), || ()).unwrap();
            Self { runtime, told, tell, user }
        }

        fn hears(&self, message: ToHost) {
            self.tell.send(Delivery { message, descriptors: Vec::new() }).unwrap();
        }

        /// A ref to an object of another host, about which nothing is known.
        fn ref_to(&self, seq: u64) -> ObjectRef<u64> {
            let id = TaskId::numbered(FAR, seq).object(0);
            self.runtime.borrow(id);
            ObjectRef::adopt(self.runtime.clone(), id)
        }

        /// The objects of these are final from now on.
        fn are(&self, refs: &[ObjectRef<u64>], state: impl Fn(ObjectId) -> State) {
            for one in refs {
                let object = one.raw.id;
                let body = wire::encode(&Message::Resolved { object, state: state(object) }).unwrap();
                self.hears(ToHost::Relayed { from: FAR, same_job: true, body: body.to_vec() });
            }
            let end = std::time::Instant::now() + Duration::from_secs(20);
            while refs.iter().any(|one| !one.is_ready()) {
                assert!(std::time::Instant::now() < end, "the news does not come");
                std::thread::yield_now();
            }
        }

        /// What the agent was asked to open since it was looked at last.
        fn asked(&self) -> Vec<u64> {
            let opens = self.told.try_iter().filter_map(|told| match told {
                ToAgent::Open { object, .. } => Some(object.seq),
                _ => None,
            });
            opens.collect()
        }
    }

    fn stored(bytes: u64) -> impl Fn(ObjectId) -> State {
        move |_| State::Stored(Copy { node: FAR.node, bytes, attempt: 1, job: JobId { number: 1 } })
    }

    fn inline(value: u64) -> State {
        let encoded = mobula_host::codec::encode(&value).unwrap().encoded;
        State::Inline { bytes: encoded.to_blob().unwrap(), contains: Vec::new() }
    }

    fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn what_is_ready_is_brought_here_together_within_bounds() {
        for (bytes, together) in [(MIB / 2, 64), (16 * MIB, 4), (100 * MIB, 1)] {
            let bench = Bench::new();
            let refs: Vec<_> = (1..=100).map(|seq| bench.ref_to(seq)).collect();
            let mut all = pin!(get_all(&refs));
            assert!(poll(all.as_mut()).is_pending());
            bench.are(&refs[1..], stored(bytes));
            assert!(poll(all.as_mut()).is_pending());
            assert!(bench.asked().is_empty(), "the first is not made yet");
            bench.are(&refs[..1], stored(bytes));
            assert!(poll(all.as_mut()).is_pending());
            assert_eq!(bench.asked(), (1..=together).collect::<Vec<_>>());
            assert!(poll(all.as_mut()).is_pending());
            assert!(bench.asked().is_empty(), "no more than that");
        }
    }

    #[test]
    fn values_come_in_order_and_the_first_failure_instead() {
        let bench = Bench::new();
        let refs: Vec<_> = (1..=200).map(|seq| bench.ref_to(seq)).collect();
        bench.are(&refs[..150], |object| inline(object.seq));
        let mut all = pin!(get_all(&refs));
        assert!(poll(all.as_mut()).is_pending());
        bench.are(&refs[151..], |object| inline(object.seq));
        assert!(poll(all.as_mut()).is_pending());
        bench.are(&refs[150..151], |object| inline(object.seq));
        let Poll::Ready(values) = poll(all.as_mut()) else { panic!("all are there") };
        assert_eq!(values.unwrap(), (1..=200).collect::<Vec<_>>());
        let none: Result<Vec<u64>> = bench.user.block_on(get_all(&[]));
        assert!(none.unwrap().is_empty());

        let refs: Vec<_> = (301..=303).map(|seq| bench.ref_to(seq)).collect();
        bench.are(&refs[..1], |object| inline(object.seq));
        bench.are(&refs[1..2], |_| State::failed(Failure::new(FailureKind::Returned, "no")));
        let failed = poll(pin!(get_all(&refs)));
        let Poll::Ready(Err(error)) = failed else { panic!("it waits for the last") };
        assert_eq!(error.kind(), crate::ErrorKind::Returned);
    }
}
