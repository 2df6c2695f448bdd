//! Links over real sockets on this host, and what a reader and a writer promise about them.
#![allow(
    clippy::unwrap_used,
    reason = "clippy does not know helpers of tests as tests"
)]

mod common;

use bytes::Bytes;
use common::soon;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};
use understudy_transport::memory::{Faults, pair_with};
use understudy_transport::{
    ConnectError, Endpoint, Frame, Limits, Link, LinkError, Listener, PROTOCOL_VERSION, connect,
};

fn frame(epoch: u64, body_bytes: usize) -> Frame {
    Frame {
        kind: 3,
        generation: 9,
        epoch,
        body: (0..body_bytes)
            .map(|at| (at as u64 ^ epoch) as u8)
            .collect(),
    }
}

async fn linked(endpoint: &Endpoint) -> (Link, Link, Listener) {
    let listener = Listener::bind(endpoint, Limits::default()).await.unwrap();
    let (near, far) = soon(async {
        tokio::join!(
            connect(listener.local_endpoint(), Limits::default()),
            listener.accept()
        )
    })
    .await;
    (near.unwrap(), far.unwrap(), listener)
}

fn tcp_endpoint() -> Endpoint {
    "tcp:127.0.0.1:0".parse().unwrap()
}

fn unix_endpoint(directory: &tempfile::TempDir) -> Endpoint {
    Endpoint::Unix(directory.path().join("link.sock"))
}

/// Frames of all sizes there, an answer to each back, then a clean close.
async fn exchange(endpoint: Endpoint) {
    let (near, far, _listener) = linked(&endpoint).await;
    assert!(!near.peer.is_empty() && !far.peer.is_empty());
    let (mut near_reader, mut near_writer) = near.split();
    let (mut far_reader, mut far_writer) = far.split();
    let counters = near_writer.counters();
    let sizes = [
        0,
        1,
        100,
        4096,
        4097,
        70_000,
        256 << 10,
        1 << 20,
        4 << 20,
        5,
    ];
    let answering = async {
        for (epoch, size) in (0..).zip(sizes) {
            let got = far_reader.recv().await.unwrap();
            assert_eq!(got, frame(epoch, size));
            far_writer
                .send(&Frame {
                    body: Bytes::new(),
                    ..got
                })
                .await
                .unwrap();
        }
        let end = far_reader.recv().await.unwrap_err();
        assert!(matches!(end, LinkError::Closed), "{end}");
        assert!(end.is_peer_gone());
    };
    let asking = async {
        let frames: Vec<_> = (0..)
            .zip(sizes)
            .map(|(epoch, size)| frame(epoch, size))
            .collect();
        near_writer.send(&frames[0]).await.unwrap();
        near_writer.send_all(&frames[1..]).await.unwrap();
        for epoch in 0..sizes.len() as u64 {
            assert_eq!(near_reader.recv().await.unwrap().epoch, epoch);
        }
        near_writer.shutdown().await.unwrap();
    };
    soon(async { tokio::join!(answering, asking) }).await;
    let sent = counters.snapshot();
    assert_eq!((sent.frames_out, sent.frames_in), (10, 10));
    assert_eq!(sent.bytes_in, 10 * 48);
    assert_eq!(
        sent.bytes_out,
        (10 * 48 + sizes.iter().sum::<usize>()) as u64
    );
}

#[tokio::test]
async fn tcp_carries_frames_both_ways() {
    exchange(tcp_endpoint()).await;
}

#[tokio::test]
async fn unix_socket_carries_frames_both_ways() {
    let directory = tempfile::tempdir().unwrap();
    exchange(unix_endpoint(&directory)).await;
}

/// What the primary relies on: everything that has arrived, a close included, shows without a turn of
/// the runtime's driver. There is no `await` between the close and the last `try_recv`.
async fn try_recv_sees_the_close(endpoint: Endpoint) {
    let (mut near, mut far, _listener) = linked(&endpoint).await;
    assert_eq!(near.reader.try_recv().unwrap(), None);
    far.writer
        .send_all(&[frame(1, 10), frame(2, 100_000)])
        .await
        .unwrap();
    drop(far);
    assert_eq!(near.reader.try_recv().unwrap(), Some(frame(1, 10)));
    assert_eq!(near.reader.try_recv().unwrap(), Some(frame(2, 100_000)));
    for _ in 0..2 {
        let end = near.reader.try_recv().unwrap_err();
        assert!(matches!(end, LinkError::Closed), "{end}");
    }
    assert!(soon(near.reader.recv()).await.unwrap_err().is_peer_gone());
}

#[tokio::test]
async fn try_recv_sees_the_close_behind_buffered_frames_on_tcp() {
    try_recv_sees_the_close(tcp_endpoint()).await;
}

#[tokio::test]
async fn try_recv_sees_the_close_behind_buffered_frames_on_unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    try_recv_sees_the_close(unix_endpoint(&directory)).await;
}

#[tokio::test]
async fn try_recv_sees_the_close_behind_buffered_frames_on_any_stream() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (near_reader, near_writer) = tokio::io::split(near);
    let mut near = Link::new(near_reader, near_writer, "duplex", Limits::default());
    let (far_reader, far_writer) = tokio::io::split(far);
    let mut far = Link::new(far_reader, far_writer, "duplex", Limits::default());
    far.writer.send(&frame(1, 100_000)).await.unwrap();
    assert_eq!(near.reader.try_recv().unwrap(), Some(frame(1, 100_000)));
    assert_eq!(near.reader.try_recv().unwrap(), None);
    drop(far);
    assert!(near.reader.try_recv().unwrap_err().is_peer_gone());
}

/// After `try_recv` has read past the runtime, the runtime still wakes for what comes later.
#[tokio::test]
async fn recv_and_try_recv_mix() {
    let (mut near, mut far, _listener) = linked(&tcp_endpoint()).await;
    for epoch in 0..200 {
        far.writer.send(&frame(2 * epoch, 10)).await.unwrap();
        if near.reader.try_recv().unwrap().is_none() {
            soon(near.reader.recv()).await.unwrap();
        }
        assert_eq!(near.reader.try_recv().unwrap(), None);
        let (got, sent) = soon(async {
            tokio::join!(near.reader.recv(), async {
                tokio::task::yield_now().await;
                far.writer.send(&frame(2 * epoch + 1, 10)).await
            })
        })
        .await;
        sent.unwrap();
        assert_eq!(got.unwrap().epoch, 2 * epoch + 1);
    }
}

#[tokio::test]
async fn reset_is_a_lost_peer() {
    let (mut near, mut far, _listener) = linked(&tcp_endpoint()).await;
    // Closing with unread data makes the kernel reset the connection.
    near.writer.send(&frame(1, 10)).await.unwrap();
    soon(async {
        while far.reader.counters().snapshot().bytes_in == 0 {
            let _ = far.reader.try_recv().unwrap();
            near.writer.send(&frame(1, 10)).await.unwrap();
        }
    })
    .await;
    near.writer.send(&frame(2, 100_000)).await.unwrap();
    drop(far);
    let end = soon(near.reader.recv()).await.unwrap_err();
    assert!(end.is_peer_gone() && !end.is_protocol(), "{end}");
    let failed = soon(async {
        loop {
            if let Err(error) = near.writer.send(&frame(3, 10)).await {
                break error;
            }
        }
    })
    .await;
    assert!(failed.is_peer_gone(), "{failed}");
}

#[tokio::test]
async fn peer_of_another_kind_or_version_is_told_apart() {
    let both = format!("version 65535, this side {PROTOCOL_VERSION}");
    for (greeting, expected) in [
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "not an Understudy peer"),
        (b"USTY\xff\xff", &both),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::Tcp(listener.local_addr().unwrap().to_string());
        let mut link = connect(&endpoint, Limits::default()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(greeting).await.unwrap();
        let error = soon(link.reader.recv()).await.unwrap_err();
        assert!(error.is_protocol());
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[tokio::test]
async fn dropped_futures_lose_and_tear_nothing() {
    // A stream so narrow that sending and receiving take many turns.
    let narrow = Faults {
        piece_bytes_max: Some(7),
        in_flight_bytes_max: 40,
        ..Faults::default()
    };
    let (mut near, mut far) = pair_with(5, narrow.clone(), narrow, Limits::default());
    let receiving = tokio::spawn(async move {
        let mut epochs = Vec::new();
        while epochs.last() != Some(&99) {
            tokio::select! {
                biased;
                got = far.reader.recv() => epochs.push(got.unwrap().epoch),
                () = tokio::task::yield_now() => {}
            }
        }
        epochs
    });
    for epoch in 0..99 {
        let frame = frame(epoch, 200);
        tokio::select! {
            biased;
            sent = near.writer.send(&frame) => sent.unwrap(),
            () = async { for _ in 0..epoch % 5 { tokio::task::yield_now().await } } => {}
        }
    }
    near.writer.send(&frame(99, 0)).await.unwrap();
    let epochs = soon(receiving).await.unwrap();
    assert!(epochs.is_sorted(), "{epochs:?}");
    assert!(epochs.len() > 1);
}

#[tokio::test]
async fn oversize_frame_does_not_harm_the_link() {
    let limits = Limits {
        body_bytes_max: 1000,
    };
    let (mut near, mut far) = pair_with(0, Faults::default(), Faults::default(), limits);
    let error = near
        .writer
        .send_all(&[frame(1, 10), frame(2, 1001)])
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            LinkError::OversizeSend {
                len: 1001,
                limit: 1000
            }
        ),
        "{error}"
    );
    near.writer.send(&frame(3, 1000)).await.unwrap();
    assert_eq!(soon(far.reader.recv()).await.unwrap(), frame(3, 1000));
}

#[tokio::test]
async fn stale_socket_file_is_replaced_and_removed_in_the_end() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = unix_endpoint(&directory);
    let Endpoint::Unix(path) = &endpoint else {
        unreachable!()
    };
    // What a killed process leaves: tokio's listener does not remove its file.
    drop(UnixListener::bind(path).unwrap());
    assert!(path.exists());
    let (_near, _far, listener) = linked(&endpoint).await;
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn living_listener_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    for endpoint in [unix_endpoint(&directory), tcp_endpoint()] {
        let first = Listener::bind(&endpoint, Limits::default()).await.unwrap();
        let error = Listener::bind(first.local_endpoint(), Limits::default())
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectError::InUse { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains(&first.local_endpoint().to_string())
        );
        let near = connect(first.local_endpoint(), Limits::default()).await;
        assert!(near.is_ok(), "the first listener still answers");
    }
}

/// A listener too busy to take one more connection is alive all the same.
#[tokio::test]
async fn busy_listener_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = unix_endpoint(&directory);
    let Endpoint::Unix(path) = &endpoint else {
        unreachable!()
    };
    let address = SockAddr::unix(path).unwrap();
    let busy = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    busy.bind(&address).unwrap();
    busy.listen(0).unwrap();
    let waiting = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    waiting.connect(&address).unwrap();
    let error = Listener::bind(&endpoint, Limits::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::InUse { .. }), "{error}");
    assert!(path.exists());
}

#[tokio::test]
async fn other_files_are_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = unix_endpoint(&directory);
    let Endpoint::Unix(path) = &endpoint else {
        unreachable!()
    };
    std::fs::write(path, "precious").unwrap();
    let error = Listener::bind(&endpoint, Limits::default())
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::NotASocket { .. }), "{error}");
    assert_eq!(std::fs::read_to_string(path).unwrap(), "precious");

    // A file that took the socket's place while the listener ran is not the listener's to remove.
    std::fs::remove_file(path).unwrap();
    let listener = Listener::bind(&endpoint, Limits::default()).await.unwrap();
    std::fs::remove_file(path).unwrap();
    std::fs::write(path, "precious").unwrap();
    drop(listener);
    assert!(path.exists());
}

#[tokio::test]
async fn failure_to_connect_names_the_endpoint() {
    let directory = tempfile::tempdir().unwrap();
    let endpoint = unix_endpoint(&directory);
    let error = connect(&endpoint, Limits::default()).await.unwrap_err();
    assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
}
