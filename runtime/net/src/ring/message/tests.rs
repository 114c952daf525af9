use super::*;
use crate::ring;

fn pair(capacity: u32) -> (Sender, Receiver) {
    let fd = ring::create(capacity).unwrap();
    (Sender::map(fd.try_clone().unwrap()).unwrap(), Receiver::map(fd).unwrap())
}

fn pattern(index: usize, length: usize) -> Vec<u8> {
    (0..length).map(|i| (index * 131 + i * 7 + i / 251) as u8).collect()
}

#[test]
fn messages_of_every_length_arrive_in_order() {
    let (mut sender, mut receiver) = pair(16 * 1024);
    let lengths = [0, 1, 15, 16, 8175, 8176, 8177, 20_000, 0, 65_536, 3, 200_000, 0, 0, 5, 1_000_000, 7];
    for (i, &length) in lengths.iter().enumerate() {
        let bytes = pattern(i, length);
        let (head, body) = bytes.split_at(length / 3);
        sender.send(head, body).unwrap();
    }
    assert!(sender.overflow_bytes() > 1_000_000);
    let mut got = 0;
    while got < lengths.len() {
        let expected = pattern(got, lengths[got]);
        let right = if got.is_multiple_of(2) {
            receiver.recv_with(|body| {
                assert!((body.as_ptr() as usize).is_multiple_of(16));
                body == expected
            })
        } else {
            let message = receiver.recv().unwrap();
            Ok(message.map(|m| {
                let right = (m.is_empty() || (m.as_ptr() as usize).is_multiple_of(16)) && *m == *expected;
                receiver.recycle(m);
                right
            }))
        };
        match right.unwrap() {
            Some(right) => {
                assert!(right, "message {got}");
                got += 1;
            }
            None => {
                assert!(receiver.take_space_wanted(), "the sender waits, and the ring is empty");
                sender.flush().unwrap();
            }
        }
    }
    assert!(sender.flush().unwrap() && sender.is_drained());
    assert_eq!(sender.overflow_bytes(), 0);
    assert!(receiver.recv().unwrap().is_none());
}

#[test]
fn the_overflow_is_bounded_and_returns_the_payload() {
    let (mut sender, mut receiver) = pair(4096);
    sender.overflow_bytes_max = 10_000;
    let mut sent = 0;
    let refused = loop {
        match sender.send(&[], &pattern(sent, 500)) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert!(refused.is_full());
    assert!(sender.overflow_bytes() <= 10_000 && sender.overflow_bytes() > 9_000);
    assert_eq!(sent, 7 + 17);
    // One message leaves the ring: not the sign yet. Half of them: the next send flushes by itself.
    let mut got = 0;
    while got < sent {
        while let Some(right) = receiver.recv_with(|b| b == pattern(got, 500)).unwrap() {
            assert!(right);
            got += 1;
        }
        assert_eq!(receiver.take_space_wanted(), sender.overflow_bytes() > 0 || got == 7);
        sender.flush().unwrap();
    }
    sender.send(&[], b"again").unwrap();
    assert_eq!(sender.overflow_bytes(), 0);
}

#[test]
fn empty_messages_do_not_stay_behind_or_grow_without_bound() {
    let (mut sender, mut receiver) = pair(4096);
    sender.overflow_bytes_max = 100 * OVERFLOW_ENTRY_BYTES;
    let mut sent = 0;
    while sender.send(&[], &[]).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, 256 + 100);
    let mut got = 0;
    loop {
        while receiver.recv_with(|b| assert!(b.is_empty())).unwrap().is_some() {
            got += 1;
        }
        if sender.flush().unwrap() && receiver.is_empty() {
            break;
        }
    }
    assert_eq!(got, sent);
    sender.send(&[], &[]).unwrap();
    assert_eq!(sender.overflow_bytes(), 0);
    assert!(receiver.recv().unwrap().is_some());
}

#[test]
fn too_long_a_message_is_refused_before_anything_is_sent() {
    let (mut sender, mut receiver) = pair(4096);
    let long = vec![0; MESSAGE_BYTES_MAX];
    let error = sender.send(&[0], &long).unwrap_err();
    assert!(matches!(error, Error::TooLong { limit: MESSAGE_BYTES_MAX, .. }), "{error}");
    assert!(receiver.recv().unwrap().is_none());
    sender.send(&[], b"next").unwrap();
    assert_eq!(receiver.recv().unwrap().unwrap()[..], *b"next");
}

#[test]
fn frames_that_do_not_make_a_message_are_corrupt() {
    /// A frame: body, announced length, flags.
    fn check(what: &str, frames: &[(usize, usize, u16)]) {
        let fd = ring::create(16 * 1024).unwrap();
        let mut producer = Producer::map(fd.try_clone().unwrap()).unwrap();
        let mut receiver = Receiver::map(fd).unwrap();
        for &(body, message, flags) in frames {
            producer.push(&[&vec![1; body]], body, message, flags).unwrap();
        }
        for _ in 0..2 {
            let got = receiver.recv();
            assert!(matches!(got, Err(Error::Corrupt { .. })), "{what}: {got:?}");
        }
    }
    check("continued out of nothing", &[(10, 20, CONTINUED)]);
    check("whole inside another", &[(10, 20, MORE), (10, 10, 0)]);
    check("first inside another", &[(10, 20, MORE), (10, 20, MORE)]);
    check("another length", &[(10, 20, MORE), (10, 21, CONTINUED)]);
    check("too little", &[(10, 20, MORE), (9, 20, CONTINUED)]);
    check("too much", &[(10, 20, MORE), (11, 20, CONTINUED)]);
    check("goes on when whole", &[(10, 20, MORE), (10, 20, CONTINUED | MORE)]);
    check("empty part", &[(10, 20, MORE), (0, 20, CONTINUED | MORE)]);
    check("announced too long", &[(10, MESSAGE_BYTES_MAX + 1, MORE)]);
    check("announced empty", &[(10, 0, MORE)]);
}

#[test]
fn a_message_whose_handler_panics_is_received_once() {
    let (mut sender, mut receiver) = pair(4096);
    for length in [10, 5000] {
        sender.send(&[], &vec![1; length]).unwrap();
        sender.send(&[], b"after").unwrap();
        let mut panicked = false;
        while !panicked {
            panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let got = receiver.recv_with(|_| std::panic::resume_unwind(Box::new(())));
                assert!(got.unwrap().is_none());
            }))
            .is_err();
            sender.flush().unwrap();
        }
        assert_eq!(receiver.recv().unwrap().unwrap()[..], *b"after");
    }
}

#[test]
fn buffers_are_reused() {
    let (mut sender, mut receiver) = pair(4096);
    sender.send(&[], &[1; 100]).unwrap();
    sender.send(&[], &[2; 50]).unwrap();
    let first = receiver.recv().unwrap().unwrap();
    let place = first.as_ptr();
    receiver.recycle(first);
    let second = receiver.recv().unwrap().unwrap();
    assert_eq!(second.as_ptr(), place);
    assert_eq!(second[..], [2; 50]);
}

#[test]
fn copies_are_what_was_sent_one_behind_the_other() {
    let (mut sender, mut receiver) = pair(16 * 1024);
    let lengths = [0, 1, 7, 8, 9, 8175, 8176, 8177, 20_000, 0, 65_536, 3, 200_000, 5];
    for (i, &length) in lengths.iter().enumerate() {
        sender.send(&[], &pattern(i, length)).unwrap();
    }
    let (mut got, mut expected, mut count) = (b"before".to_vec(), b"before".to_vec(), 0);
    while count < lengths.len() {
        assert!(receiver.ready_bytes() <= 16 * 1024);
        match receiver.recv_copy(&mut got).unwrap() {
            Some(bytes) => {
                assert_eq!(bytes, lengths[count]);
                expected.extend_from_slice(&pattern(count, bytes));
                count += 1;
            }
            None => {
                assert!(receiver.take_space_wanted());
                sender.flush().unwrap();
            }
        }
    }
    assert!(got == expected);
    assert_eq!((receiver.recv_copy(&mut got).unwrap(), receiver.ready_bytes()), (None, 0));
}

#[test]
fn frames_that_do_not_make_a_message_are_not_copied() {
    for (flags, message) in [(CONTINUED, 8), (MORE, 8), (MORE, 0), (MORE, MESSAGE_BYTES_MAX + 1)] {
        let fd = ring::create(4096).unwrap();
        let mut producer = Producer::map(fd.try_clone().unwrap()).unwrap();
        let mut receiver = Receiver::map(fd).unwrap();
        producer.push(&[&[1; 8]], 8, message, flags).unwrap();
        let mut out = Vec::new();
        for _ in 0..2 {
            assert!(matches!(receiver.recv_copy(&mut out), Err(Error::Corrupt { .. })), "{flags} {message}");
        }
        assert!(out.is_empty());
    }
}
