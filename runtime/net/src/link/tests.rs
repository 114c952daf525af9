use std::{
    io::{IoSlice, Read, Write},
    mem::MaybeUninit,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use super::*;

fn pair() -> (Sender, Receiver) {
    let (a, b) = UnixStream::pair().unwrap();
    (split(a).0, split(b).1)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8).collect()
}

/// A frame's bytes, however wrong.
fn raw(length: u32, descriptors: u8, flags: u8, reserved: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend([descriptors, flags]);
    bytes.extend(reserved.to_le_bytes());
    bytes.extend(body);
    bytes
}

/// Sends bytes with descriptors, outside any framing.
fn push(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
    }
    let sent =
        rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
    assert_eq!(sent, bytes.len());
}

/// One end of a socket pair to pass; the other end reads its end of file once every duplicate is closed.
struct Probe {
    here: UnixStream,
    passed: UnixStream,
}

impl Probe {
    fn new() -> Self {
        let (here, passed) = UnixStream::pair().unwrap();
        Self { here, passed }
    }

    /// Checks that nobody holds the passed end any more.
    fn assert_closed(mut self) {
        drop(self.passed);
        self.here.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        assert_eq!(self.here.read(&mut [0; 1]).expect("a descriptor was left open"), 0);
    }
}

#[test]
fn messages_arrive_whole_and_in_order() {
    let (mut sender, mut receiver) = pair();
    let lengths =
        [0, 1, 7, 100, FRAME_BODY_BYTES_MAX, FRAME_BODY_BYTES_MAX + 1, 0, 1_000_000, 3, MESSAGE_BYTES_MAX];
    let sending = std::thread::spawn(move || {
        for length in lengths {
            sender.send(&pattern(length), &[]).unwrap();
        }
        let error = sender.send(&vec![0; MESSAGE_BYTES_MAX + 1], &[]).unwrap_err();
        assert!(matches!(error, Error::TooLong { limit: MESSAGE_BYTES_MAX, .. }));
        sender.send(b"last", &[]).unwrap();
    });
    for length in lengths {
        let message = receiver.recv().unwrap().unwrap();
        assert_eq!(message.body[..], pattern(length), "{length}");
        assert!(length == 0 || (message.body.as_ptr() as usize).is_multiple_of(16));
    }
    assert_eq!(receiver.recv().unwrap().unwrap().body[..], *b"last");
    sending.join().unwrap();
    assert!(receiver.recv().unwrap().is_none());
    assert!(receiver.recv().unwrap().is_none());
}

#[test]
fn descriptors_travel_with_their_message() {
    let (mut sender, mut receiver) = pair();
    let probes: Vec<Probe> = (0..DESCRIPTORS_MAX).map(|_| Probe::new()).collect();
    let all: Vec<BorrowedFd<'_>> = probes.iter().map(|p| p.passed.as_fd()).collect();
    std::thread::scope(|scope| {
        let all = &all;
        scope.spawn(move || {
            // Long ones and full sets next to one another: a set waits while its frame's rest arrives.
            for round in 0..50 {
                let length = [0, 10, FRAME_BODY_BYTES_MAX, 300_000][round % 4];
                sender.send(&pattern(length), &all[..round % 9]).unwrap();
            }
        });
        for round in 0..50 {
            let message = receiver.recv().unwrap().unwrap();
            assert_eq!(message.body.len(), [0, 10, FRAME_BODY_BYTES_MAX, 300_000][round % 4]);
            assert_eq!(message.descriptors.len(), round % 9);
            for (i, descriptor) in message.descriptors.into_iter().enumerate() {
                let flags = rustix::io::fcntl_getfd(&descriptor).unwrap();
                assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
                UnixStream::from(descriptor).write_all(&[round as u8, i as u8]).unwrap();
                let mut got = [0; 2];
                (&probes[i].here).read_exact(&mut got).unwrap();
                assert_eq!(got, [round as u8, i as u8]);
            }
        }
        assert!(receiver.recv().unwrap().is_none());
    });
    drop(all);
    probes.into_iter().for_each(Probe::assert_closed);
}

#[test]
fn too_many_descriptors_are_refused_before_anything_is_sent() {
    let (mut sender, mut receiver) = pair();
    let probe = Probe::new();
    let error = sender.send(b"x", &[probe.passed.as_fd(); DESCRIPTORS_MAX + 1]).unwrap_err();
    assert!(matches!(error, Error::TooManyDescriptors { count: 9 }));
    sender.send(b"y", &[]).unwrap();
    assert_eq!(receiver.recv().unwrap().unwrap().body[..], *b"y");
}

/// What a receiver makes of bytes, with and without the end of the stream after them.
fn received(bytes: &[u8]) -> Error {
    let (stream, theirs) = UnixStream::pair().unwrap();
    push(&stream, bytes, &[]);
    drop(stream);
    let mut receiver = split(theirs).1;
    loop {
        match receiver.recv() {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the end of the stream"),
            Err(error) => return error,
        }
    }
}

#[test]
fn every_malformed_frame_is_its_own_error() {
    let limit = FRAME_BODY_BYTES_MAX as u32;
    assert!(
        matches!(received(&raw(1, 0, 2, 0, b"x")), Error::Malformed { detail } if detail.contains("flag"))
    );
    assert!(
        matches!(received(&raw(1, 0, 0, 1, b"x")), Error::Malformed { detail } if detail.contains("reserved"))
    );
    assert!(
        matches!(received(&raw(1, 9, 0, 0, b"x")), Error::Malformed { detail } if detail.contains("more descriptors"))
    );
    assert!(
        matches!(received(&raw(0, 0, 1, 0, b"")), Error::Malformed { detail } if detail.contains("empty frame"))
    );
    assert!(matches!(
        received(&[raw(1, 0, 1, 0, b"x"), raw(1, 1, 0, 0, b"x")].concat()),
        Error::Malformed { detail } if detail.contains("middle")
    ));
    assert!(
        matches!(received(&raw(limit + 1, 0, 0, 0, b"")), Error::TooLong { bytes, .. } if bytes == limit as usize + 1)
    );
    assert!(matches!(
        received(&raw(u32::MAX, 0, 0, 0, b"")),
        Error::TooLong { limit: FRAME_BODY_BYTES_MAX, .. }
    ));
    assert!(matches!(
        received(&raw(1, 2, 0, 0, b"x")),
        Error::MissingDescriptors { announced: 2, arrived: 0 }
    ));
}

#[test]
fn a_stream_that_ends_inside_a_message_is_truncated() {
    let whole = raw(3, 0, 0, 0, b"abc");
    for cut in 1..whole.len() {
        assert!(matches!(received(&whole[..cut]), Error::Truncated), "{cut}");
    }
    assert!(matches!(received(&raw(3, 0, 1, 0, b"abc")), Error::Truncated), "more was announced");
}

#[test]
fn a_message_over_the_limit_is_refused_while_it_comes() {
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let sending = std::thread::spawn(move || {
        let frame = raw(FRAME_BODY_BYTES_MAX as u32, 0, 1, 0, &vec![0; FRAME_BODY_BYTES_MAX]);
        // Endless, until the other side has had enough.
        while stream.write_all(&frame).is_ok() {}
    });
    let mut receiver = split(theirs).1;
    assert!(matches!(receiver.recv(), Err(Error::TooLong { limit: MESSAGE_BYTES_MAX, .. })));
    drop(receiver);
    sending.join().unwrap();
}

#[test]
fn descriptors_that_no_frame_announced_are_closed() {
    let frame = raw(1, 0, 0, 0, b"x");
    let (announced, partial) = (raw(1, 1, 0, 0, b"x"), raw(100, 1, 0, 0, b"x"));
    let cases: [(&str, &[u8], usize); 4] = [
        ("none announced", &frame, 1),
        ("one announced, three sent", &announced, 3),
        ("with half a header", &frame[..4], 2),
        ("in a frame that never ends", &partial, 1),
    ];
    for (what, bytes, count) in cases {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let probe = Probe::new();
        push(&stream, bytes, &vec![probe.passed.as_fd(); count]);
        drop(stream);
        let mut receiver = split(theirs).1;
        let error = receiver.recv().map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::UnexpectedDescriptors | Error::Truncated), "{what}: {error}");
        drop(receiver);
        probe.assert_closed();
    }
}

#[test]
fn a_message_whose_descriptors_the_kernel_drops_says_so_and_the_link_goes_on() {
    let (stream, theirs) = UnixStream::pair().unwrap();
    let (probe, lost) = (Probe::new(), Probe::new());
    let mut receiver = split(theirs).1;
    // More than one message may have.
    let too_many = [lost.passed.as_fd(); 20];
    push(&stream, &raw(1, 1, 0, 0, b"a"), &[probe.passed.as_fd()]);
    push(&stream, &raw(1, 8, 0, 0, b"b"), &too_many);
    push(&stream, &raw(1, 0, 0, 0, b"c"), &[]);
    push(&stream, &raw(1, 1, 0, 0, b"d"), &[probe.passed.as_fd()]);
    for (body, descriptors, is_lost) in
        [(b"a", 1, false), (b"b", 0, true), (b"c", 0, false), (b"d", 1, false)]
    {
        let got = receiver.recv().unwrap().unwrap();
        assert_eq!((&got.body[..], got.descriptors.len(), got.lost), (&body[..], descriptors, is_lost));
        assert_eq!(got.whole().is_err(), is_lost);
    }
    // What comes in parts, whose descriptors come with the first.
    let [whole, next] = [raw(2, 8, 0, 0, b"ef"), raw(1, 1, 0, 0, b"g")];
    push(&stream, &whole[..9], &too_many);
    push(&stream, &whole[9..], &[]);
    push(&stream, &next, &[probe.passed.as_fd()]);
    let got = receiver.recv().unwrap().unwrap();
    assert_eq!((&got.body[..], got.lost), (&b"ef"[..], true));
    let got = receiver.recv().unwrap().unwrap();
    assert_eq!((&got.body[..], got.descriptors.len(), got.lost), (&b"g"[..], 1, false));
    // Some that nobody announced are none the less.
    push(&stream, &raw(1, 0, 0, 0, b"x"), &too_many);
    assert!(matches!(receiver.recv(), Err(Error::UnexpectedDescriptors)));
    drop((got, receiver));
    probe.assert_closed();
    lost.assert_closed();
}

#[test]
fn a_closed_link_says_so() {
    let (mut sender, receiver) = pair();
    drop(receiver);
    assert!(matches!(sender.send(b"x", &[]), Err(Error::Closed)));

    // What was sent before the end is read, even where the sender left messages of ours unread.
    let (a, b) = UnixStream::pair().unwrap();
    let (mut a, mut b) = (split(a), split(b));
    a.0.send(b"last words", &[]).unwrap();
    b.0.send(b"never read", &[]).unwrap();
    drop(a);
    assert_eq!(b.1.recv().unwrap().unwrap().body[..], *b"last words");
    assert!(b.1.recv().unwrap().is_none());

    // A thread that waits wakes.
    let (a, _b) = UnixStream::pair().unwrap();
    let (sender, mut receiver) = split(a);
    let waiting = std::thread::spawn(move || receiver.recv().unwrap().is_none());
    sender.shutdown();
    assert!(waiting.join().unwrap());
}

#[test]
fn bytes_may_come_one_at_a_time() {
    let (mut stream, theirs) = UnixStream::pair().unwrap();
    let sending = std::thread::spawn(move || {
        for byte in [raw(3, 0, 1, 0, b"abc"), raw(2, 0, 0, 0, b"de"), raw(0, 0, 0, 0, b"")].concat() {
            stream.write_all(&[byte]).unwrap();
        }
    });
    let mut receiver = split(theirs).1;
    assert_eq!(receiver.recv().unwrap().unwrap().body[..], *b"abcde");
    assert!(receiver.recv().unwrap().unwrap().body.is_empty());
    assert!(receiver.recv().unwrap().is_none());
    sending.join().unwrap();
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn both_halves_speak_the_same() {
    let (a, b) = UnixStream::pair().unwrap();
    let host = std::thread::spawn(move || {
        let (mut sender, mut receiver) = split(a);
        while let Some(message) = receiver.recv().unwrap() {
            let descriptors: Vec<_> = message.descriptors.iter().map(|d| d.as_fd()).collect();
            sender.send(&message.body, &descriptors).unwrap();
        }
    });
    runtime().block_on(async {
        let (mut sender, mut receiver) = split_async(b).unwrap();
        let probe = Probe::new();
        for length in [0, 5, FRAME_BODY_BYTES_MAX + 1, 3_000_000] {
            let body = pattern(length);
            let passed = [probe.passed.as_fd(); 3];
            let (sent, got) = tokio::join!(sender.send(&body, &passed), receiver.recv());
            sent.unwrap();
            let got = got.unwrap().unwrap();
            assert_eq!(got.body[..], body);
            assert_eq!(got.descriptors.len(), 3);
        }
        sender.shutdown();
        assert!(receiver.recv().await.unwrap().is_none());
        assert!(matches!(sender.send(b"x", &[]).await, Err(Error::Closed)));
        host.join().unwrap();
        drop((sender, receiver));
        probe.assert_closed();
    });
}

#[test]
fn a_receive_that_is_dropped_loses_nothing() {
    runtime().block_on(async {
        let (mut stream, b) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = split_async(b).unwrap();
        for byte in [raw(3, 0, 1, 0, b"abc"), raw(2, 0, 0, 0, b"de")].concat() {
            stream.write_all(&[byte]).unwrap();
            // Polled until it has to wait, then dropped.
            let dropped = tokio::select! {
                biased;
                got = receiver.recv() => Some(got),
                () = tokio::task::yield_now() => None,
            };
            if let Some(got) = dropped {
                assert_eq!(got.unwrap().unwrap().body[..], *b"abcde");
                return;
            }
        }
        assert_eq!(receiver.recv().await.unwrap().unwrap().body[..], *b"abcde");
    });
}

#[test]
fn a_send_that_is_dropped_half_way_ends_the_link() {
    runtime().block_on(async {
        let (_unread, b) = UnixStream::pair().unwrap();
        let (mut sender, _receiver) = split_async(b).unwrap();
        let long = vec![0; 4_000_000];
        tokio::select! {
            biased;
            _ = sender.send(&long, &[]) => panic!("nobody reads"),
            () = tokio::task::yield_now() => {}
        }
        assert!(matches!(sender.send(b"x", &[]).await, Err(Error::Interrupted)));
    });
}

#[test]
fn malformed_frames_are_errors_in_the_asynchronous_half_too() {
    runtime().block_on(async {
        let (stream, b) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = split_async(b).unwrap();
        let probe = Probe::new();
        push(&stream, &raw(1, 0, 0, 0, b"x"), &[probe.passed.as_fd()]);
        assert!(matches!(receiver.recv().await, Err(Error::UnexpectedDescriptors)));
        let (mut stream, b) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = split_async(b).unwrap();
        stream.write_all(&raw(1, 0, 0, 0, b"")).unwrap();
        drop(stream);
        assert!(matches!(receiver.recv().await, Err(Error::Truncated)));
    });
}

#[test]
fn a_side_that_has_hung_up_is_seen_before_its_last_words_are_read() {
    runtime().block_on(async {
        let (a, b) = UnixStream::pair().unwrap();
        let (_sender, mut receiver) = split_async(b).unwrap();
        split(a.try_clone().unwrap()).0.send(b"goodbye", &[]).unwrap();
        assert!(!receiver.is_hung_up());
        a.shutdown(std::net::Shutdown::Both).unwrap();
        assert!(receiver.is_hung_up());
        assert_eq!(receiver.recv().await.unwrap().unwrap().body[..], *b"goodbye");
        assert!(receiver.recv().await.unwrap().is_none() && receiver.is_hung_up());
    });
}

#[test]
fn descriptors_come_out_of_a_lane_as_they_were_put_in_and_close_on_exec() {
    let (give, taker) = lane().unwrap();
    let giver = Giver::new(give).unwrap();
    assert!(matches!(taker.take(), Err(Error::System { .. })), "nothing is in it, and it does not wait");
    let mut probes: Vec<_> = (0..3).map(|_| Probe::new()).collect();
    for probe in &probes {
        assert!(giver.give(probe.passed.as_fd()));
    }
    for (number, probe) in (1..).zip(&mut probes) {
        let mut taken = UnixStream::from(taker.take().unwrap());
        assert!(rustix::io::fcntl_getfd(&taken).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        taken.write_all(&[number]).unwrap();
        let mut byte = [0];
        probe.here.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [number]);
    }
    probes.into_iter().for_each(Probe::assert_closed);
}

#[test]
fn a_lane_that_is_full_or_left_takes_nothing_and_a_lost_descriptor_does_not_shift_the_others() {
    let (give, taker) = lane().unwrap();
    let giver = Giver::new(give).unwrap();
    let probe = Probe::new();
    let given = (0..100_000).take_while(|_| giver.give(probe.passed.as_fd())).count();
    assert!((1..100_000).contains(&given), "{given}");
    for _ in 0..given {
        taker.take().unwrap();
    }
    rustix::net::send(&giver.0, &[0], SendFlags::NOSIGNAL).unwrap();
    assert!(giver.give(probe.passed.as_fd()));
    assert!(matches!(taker.take(), Err(Error::MissingDescriptors { .. })));
    taker.take().unwrap();
    assert!(giver.give(probe.passed.as_fd()));
    drop(taker);
    assert!(!giver.give(probe.passed.as_fd()));
    probe.assert_closed();
}

#[test]
fn what_is_no_lane_is_not_taken_for_one() {
    let null = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(Giver::new(null.into()), Err(Error::System { .. })));
    let (stream, _other) = UnixStream::pair().unwrap();
    assert!(matches!(Giver::new(stream.into()), Err(Error::Malformed { .. })));
}
