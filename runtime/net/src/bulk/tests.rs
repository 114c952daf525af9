use std::sync::Arc;

use mobula_telemetry::task;

use super::*;
use crate::quic::testing::Pair;

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
                serve((sender, receiver), async |request: AlignedVec| {
                    let text = String::from_utf8(request.to_vec()).unwrap();
                    let (from, to) = text.split_once("..").ok_or("no such object")?;
                    let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap());
                    Ok(source.slice(from..to))
                })
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
    Pair::soon(pull(&pair.dialled, request.as_bytes(), &mut dest)).await.unwrap();
    assert_eq!(blake3::hash(&dest), blake3::hash(&source));
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
        async move { pull(&dialled, format!("{from}..{to}").as_bytes(), part).await }
    });
    for result in Pair::soon(futures_util::future::join_all(pulls)).await {
        result.unwrap();
    }
    assert_eq!(dest, source);
    Pair::soon(pull(&pair.dialled, b"5..5", &mut [])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_and_wrong_lengths_are_told() {
    let pair = Pair::new().await;
    serve_ranges(pair.accepted.clone(), pattern(1 << 20));
    let refused = Pair::soon(pull(&pair.dialled, b"what", &mut [0; 8])).await.unwrap_err();
    assert!(matches!(&refused, Error::Refused { reason } if reason == "no such object"), "{refused}");
    let wrong = Pair::soon(pull(&pair.dialled, b"0..1048576", &mut [0; 8])).await.unwrap_err();
    assert!(matches!(wrong, Error::Length { want: 8, got: 1_048_576 }), "{wrong}");
    let long = Pair::soon(pull(&pair.dialled, &[0; REQUEST_BYTES_MAX + 1], &mut [])).await;
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
        let error = Pair::soon(pull(&pair.dialled, b"x", &mut [0; 4])).await.unwrap_err();
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
    let error = Pair::soon(pull(&pair.dialled, b"x", &mut [0; 4])).await.unwrap_err();
    assert!(error.to_string().contains("draining") && error.retryable(), "{error}");
}
