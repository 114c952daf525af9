use std::sync::Arc;

use mobula_telemetry::task;

use super::*;
use crate::quic::testing::Pair;

const STALL: Duration = Duration::from_secs(20);

fn pattern(bytes: usize) -> Bytes {
    (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect::<Vec<_>>().into()
}

/// Serves every bulk stream of the pair's accepted connection: requests are `offset..end` of `source`.
fn serve_ranges(connection: Connection, source: Bytes) {
    let source = Arc::new(source);
    task::spawn("test-serve", async move {
        while let Ok((kind, sender, receiver)) = connection.accept_stream().await {
            assert_eq!(kind, StreamKind::Bulk);
            let source = source.clone();
            task::spawn("test-serve-one", async move {
                serve(
                    (sender, receiver),
                    async |request: AlignedVec| {
                        let text = String::from_utf8(request.to_vec()).unwrap();
                        if text == "there" {
                            return Ok(Answer::Elsewhere(b"over there".to_vec()));
                        }
                        if text == "busy" {
                            return Err(Refusal::Busy("no descriptor left".to_owned()));
                        }
                        let absent = || Refusal::Absent("no such object".to_owned());
                        let (from, to) = text.split_once("..").ok_or_else(absent)?;
                        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                        Ok(Answer::Range(b"note".to_vec(), Range::whole(source.slice(..to), from as u64)))
                    },
                    STALL,
                    &mut 0,
                )
                .await
            });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_range_arrives_whole() {
    let pair = Pair::new().await;
    let source = pattern(64 << 20);
    serve_ranges(pair.accepted.clone(), source.clone());
    let mut dest = vec![0; source.len()];
    let request = format!("0..{}", source.len());
    Pair::soon(pull(&pair.dialled, request.as_bytes(), &mut dest, STALL, &mut ())).await.unwrap();
    assert_eq!(blake3::hash(&dest), blake3::hash(&source));
}

#[tokio::test]
async fn a_range_of_this_process_is_copied() {
    let source = pattern(3 * PIECE_BYTES + 7);
    let mut dest = vec![0; source.len() - 5];
    copy(Range::whole(source.clone(), 5), &mut dest, &mut ()).await.unwrap();
    assert_eq!(dest, source[5..]);
    let short = copy(Range::whole(source, 5), &mut [0; 8], &mut ()).await.unwrap_err();
    assert!(matches!(short, Error::Length { want: 8, .. }), "{short}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_ranges_at_once_and_empty_ones() {
    let pair = Pair::new().await;
    let source = pattern(8 << 20);
    serve_ranges(pair.accepted.clone(), source.clone());
    let mut dest = vec![0; source.len()];
    let pulls = dest.chunks_mut(1 << 20).enumerate().map(|(i, part)| {
        let (from, to) = (i << 20, (i << 20) + part.len());
        let dialled = pair.dialled.clone();
        async move { pull(&dialled, format!("{from}..{to}").as_bytes(), part, STALL, &mut ()).await }
    });
    for result in Pair::soon(futures_util::future::join_all(pulls)).await {
        result.unwrap();
    }
    assert_eq!(dest, source);
    Pair::soon(pull(&pair.dialled, b"5..5", &mut [], STALL, &mut ())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_wrong_lengths_are_told() {
    let pair = Pair::new().await;
    serve_ranges(pair.accepted.clone(), pattern(1 << 20));
    let refused = Pair::soon(pull(&pair.dialled, b"what", &mut [0; 8], STALL, &mut ())).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { reason } if reason == "no such object"), "{refused}");
    let busy = Pair::soon(pull(&pair.dialled, b"busy", &mut [0; 8], STALL, &mut ())).await.unwrap_err();
    assert!(matches!(&busy, Error::Busy { reason } if reason == "no descriptor left"), "{busy}");
    assert!(busy.retryable() && !refused.retryable());
    let elsewhere = Pair::soon(pull(&pair.dialled, b"there", &mut [0; 8], STALL, &mut ())).await.unwrap_err();
    assert!(matches!(&elsewhere, Error::Elsewhere { note } if note == b"over there"), "{elsewhere}");
    let wrong =
        Pair::soon(pull(&pair.dialled, b"0..1048576", &mut [0; 8], STALL, &mut ())).await.unwrap_err();
    assert!(matches!(wrong, Error::Length { want: 8, got: 1_048_576 }), "{wrong}");
    let long = Pair::soon(pull(&pair.dialled, &[0; REQUEST_BYTES_MAX + 1], &mut [], STALL, &mut ())).await;
    assert!(matches!(long, Err(Error::Net(quic::Error::TooLong { .. }))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_that_breaks_the_rules_is_an_error() {
    let replies: [(&[u8], &str); 4] = [
        (&[0; 9], "inside a message"),
        (&[7, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], "bad header"),
        (&[0, 1, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4], "bad header"),
        (&[0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3], "inside a message"),
    ];
    let pair = Pair::new().await;
    for (reply, expected) in replies
        .into_iter()
        .chain([(&[0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5][..], "bad header")])
    {
        let accepted = pair.accepted.clone();
        let server = task::spawn("test-serve", async move {
            let (_, mut sender, mut receiver) = accepted.accept_stream().await.unwrap();
            receiver.recv().await.unwrap();
            sender.stream().write_all(reply).await.unwrap();
            // The reader may have given up already.
            let _over = sender.finish().await;
            let _over = sender.delivered().await;
        });
        let error = Pair::soon(pull(&pair.dialled, b"x", &mut [0; 4], STALL, &mut ())).await.unwrap_err();
        assert!(error.to_string().contains(expected), "{reply:?}: {error}");
        Pair::soon(server).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pull_ends_when_the_peer_goes() {
    let pair = Pair::new().await;
    let accepted = pair.accepted.clone();
    task::spawn("test-serve", async move {
        let (_, mut sender, _receiver) = accepted.accept_stream().await.unwrap();
        sender.stream().write_all(&[0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1]).await.unwrap();
        accepted.close("the node is draining");
    });
    let error = Pair::soon(pull(&pair.dialled, b"x", &mut [0; 4], STALL, &mut ())).await.unwrap_err();
    assert!(error.to_string().contains("draining") && error.retryable(), "{error}");
}

/// What a pull says.
#[derive(Default)]
struct Heard {
    note: Vec<u8>,
    filled: u64,
}

impl Sink for Heard {
    fn note(&mut self, note: &[u8]) {
        self.note = note.to_vec();
    }

    fn filled(&mut self, bytes: u64) {
        self.filled += bytes;
    }
}

/// Serves one range of which a part is there, and gives what left for the reader.
fn serve_part(
    connection: Connection,
    source: Bytes,
    ready: watch::Receiver<Progress>,
    from: u64,
) -> tokio::task::JoinHandle<u64> {
    task::spawn("test-serve", async move {
        let (_, sender, receiver) = connection.accept_stream().await.unwrap();
        let mut sent = 0;
        let len = source.len() as u64;
        let slice = move |at: u64, len: usize| Ok(source.slice(at as usize..at as usize + len));
        let range = Range::growing(len, from, ready, slice);
        // The reader may leave.
        let _left =
            serve((sender, receiver), async |_| Ok(Answer::Range(vec![7], range)), STALL, &mut sent).await;
        sent
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_is_served_as_it_comes_in() {
    let pair = Pair::new().await;
    let source = pattern(3 << 20);
    let (progress, ready) = watch::channel(Progress::Have(0));
    let serving = serve_part(pair.accepted.clone(), source.clone(), ready, 0);
    let grow = task::spawn("test-grow", async move {
        for have in [1, 300_000, 1 << 20, 3 << 20] {
            progress.send_replace(Progress::Have(have));
            tokio::task::yield_now().await;
        }
        progress
    });
    let (mut dest, mut heard) = (vec![0; source.len()], Heard::default());
    Pair::soon(pull(&pair.dialled, b"x", &mut dest, STALL, &mut heard)).await.unwrap();
    assert!(dest == source, "it is the same");
    assert_eq!((heard.note, heard.filled), (vec![7], 3 << 20));
    assert_eq!(Pair::soon(serving).await.unwrap(), 3 << 20);
    drop(Pair::soon(grow).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_server_goes_on_where_one_left_off() {
    let pair = Pair::new().await;
    let source = pattern(3 << 20);
    let (progress, ready) = watch::channel(Progress::Have(1 << 20));
    let first = serve_part(pair.accepted.clone(), source.clone(), ready, 0);
    let fails = task::spawn("test-fail", async move {
        progress.closed().await;
        progress.send_replace(Progress::Failed);
    });
    let (mut dest, mut heard) = (vec![0; source.len()], Heard::default());
    // Nothing more comes in, and the reader's patience ends first.
    let stall = Duration::from_millis(300);
    let error = Pair::soon(pull(&pair.dialled, b"x", &mut dest, stall, &mut heard)).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }) && error.retryable(), "{error}");
    assert!(heard.filled > 0 && heard.filled <= 1 << 20, "{}", heard.filled);
    assert!(Pair::soon(first).await.unwrap() <= 1 << 20);
    Pair::soon(fails).await.unwrap();
    // Failing, it says so at once.
    let (progress, ready) = watch::channel(Progress::Have(2 << 20));
    let second = serve_part(pair.accepted.clone(), source.clone(), ready, heard.filled);
    let pulling = task::spawn("test-pull", {
        let dialled = pair.dialled.clone();
        async move {
            let from = heard.filled as usize;
            let result = pull(&dialled, b"x", &mut dest[from..], STALL, &mut heard).await;
            (dest, heard, result)
        }
    });
    progress.send_replace(Progress::Failed);
    let (mut dest, mut heard, result) = Pair::soon(pulling).await.unwrap();
    assert!(result.unwrap_err().retryable());
    Pair::soon(second).await.unwrap();
    let (_progress, ready) = watch::channel(Progress::Have(3 << 20));
    let third = serve_part(pair.accepted.clone(), source.clone(), ready, heard.filled);
    let from = heard.filled as usize;
    Pair::soon(pull(&pair.dialled, b"x", &mut dest[from..], STALL, &mut heard)).await.unwrap();
    assert!(dest == source, "it is the same");
    assert_eq!(Pair::soon(third).await.unwrap(), (3 << 20) - from as u64);
}

/// However long it takes until the server has it, in which it says from time to time that it goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_still_getting_it_is_waited_for() {
    const PAUSE: Duration = Duration::from_millis(5);
    let pair = Pair::new().await;
    let (ready, is_ready) = tokio::sync::oneshot::channel::<()>();
    let accepted = pair.accepted.clone();
    let server = task::spawn("test-serve", async move {
        let (_, sender, receiver) = accepted.accept_stream().await.unwrap();
        let source = async |_: AlignedVec| {
            is_ready.await.unwrap();
            Ok(Answer::Range(Vec::new(), Range::whole(pattern(8), 0)))
        };
        serve((sender, receiver), source, PAUSE, &mut 0).await
    });
    let (mut sender, mut receiver) = pair.dialled.open_quietly(StreamKind::Bulk).await.unwrap();
    sender.send(b"x").await.unwrap();
    sender.finish().await.unwrap();
    for _ in 0..3 {
        let mut header = [0; HEADER_BYTES];
        Pair::soon(receiver.stream().read_exact(&mut header)).await.unwrap();
        assert_eq!(header, wait_header());
    }
    ready.send(()).unwrap();
    let mut dest = [0; 8];
    Pair::soon(answer(receiver.stream(), &mut dest, STALL, &mut ())).await.unwrap();
    assert_eq!(dest, pattern(8)[..]);
    Pair::soon(server).await.unwrap().unwrap();
}
