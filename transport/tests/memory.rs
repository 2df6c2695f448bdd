//! The faulty links themselves: each fault does what it says, and a seed replays a run.

mod common;

use std::time::Duration;

use common::soon;
use tokio::time::Instant;
use understudy_transport::memory::{Faults, FaultyNetwork, pair, pair_with};
use understudy_transport::{Frame, Limits, Link, LinkError};

fn frame(epoch: u64, body_bytes: usize) -> Frame {
    Frame {
        epoch,
        body: vec![epoch as u8; body_bytes].into(),
        ..Frame::default()
    }
}

/// What a receiver saw, and when.
type Trace = Vec<(Duration, Result<u64, String>)>;

/// Sends 40 frames and records what arrives until the link ends.
async fn run((near, mut far): (Link, Link)) -> Trace {
    let began = Instant::now();
    let (_reader, mut writer) = near.split();
    tokio::spawn(async move {
        for epoch in 0..40 {
            if writer.send(&frame(epoch, 500)).await.is_err() {
                break;
            }
        }
    });
    let mut trace = Vec::new();
    loop {
        let seen = soon(far.reader.recv()).await.map(|frame| frame.epoch);
        let ended = seen.is_err();
        trace.push((began.elapsed(), seen.map_err(|error| error.to_string())));
        if ended {
            return trace;
        }
    }
}

fn rough() -> Faults {
    Faults {
        delay_min: Duration::from_millis(1),
        delay_max: Duration::from_millis(30),
        piece_bytes_max: Some(97),
        corrupt_one_in_bytes: Some(20_000),
        in_flight_bytes_max: 3000,
        ..Faults::default()
    }
}

#[tokio::test(start_paused = true)]
async fn same_seed_gives_the_same_run() {
    let mut traces = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let trace = run(pair(seed, rough())).await;
        assert_eq!(trace, run(pair(seed, rough())).await, "seed {seed}");
        traces.insert(trace);
    }
    assert_eq!(traces.len(), 20, "each seed has its own run");
}

#[tokio::test(start_paused = true)]
async fn without_faults_everything_arrives_at_once() {
    let trace = run(pair(3, Faults::default())).await;
    let expected: Trace = (0..40)
        .map(Ok)
        .chain([Err("link closed".into())])
        .map(|seen| (Duration::ZERO, seen))
        .collect();
    assert_eq!(trace, expected);
}

#[tokio::test(start_paused = true)]
async fn delay_stays_in_its_range() {
    let faults = Faults {
        delay_min: Duration::from_millis(10),
        delay_max: Duration::from_millis(20),
        ..Faults::default()
    };
    let (mut near, mut far) = pair(1, faults);
    for epoch in 0..20 {
        let began = Instant::now();
        near.writer.send(&frame(epoch, 10)).await.unwrap();
        assert_eq!(far.reader.try_recv().unwrap(), None);
        soon(far.reader.recv()).await.unwrap();
        let took = began.elapsed();
        // Header and body are two pieces, the later of which counts.
        assert!(
            took >= Duration::from_millis(10) && took <= Duration::from_millis(21),
            "{took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn lost_connection_delivers_what_came_before_and_hits_both_directions() {
    let faults = Faults {
        lose_after_bytes: Some(2 * 548 + 100),
        ..Faults::default()
    };
    let (near, far) = pair_with(1, faults, Faults::default(), Limits::default());
    let (mut near_reader, mut near_writer) = near.split();
    let (mut far_reader, mut far_writer) = far.split();
    assert!(
        near_writer
            .send_all(&[0, 1, 2].map(|epoch| frame(epoch, 500)))
            .await
            .is_err()
    );
    assert_eq!(soon(far_reader.recv()).await.unwrap().epoch, 0);
    assert_eq!(soon(far_reader.recv()).await.unwrap().epoch, 1);
    assert!(matches!(
        soon(far_reader.recv()).await,
        Err(LinkError::Reset)
    ));
    assert!(matches!(
        soon(near_reader.recv()).await,
        Err(LinkError::Reset)
    ));
    assert!(
        far_writer
            .send(&frame(0, 0))
            .await
            .unwrap_err()
            .is_peer_gone()
    );
}

#[tokio::test(start_paused = true)]
async fn truncated_stream_ends_within_a_frame() {
    let faults = Faults {
        truncate_after_bytes: Some(548 + 100),
        ..Faults::default()
    };
    let (mut near, mut far) = pair(1, faults);
    assert!(
        near.writer
            .send_all(&[frame(0, 500), frame(1, 500)])
            .await
            .is_err()
    );
    assert_eq!(soon(far.reader.recv()).await.unwrap().epoch, 0);
    let end = soon(far.reader.recv()).await.unwrap_err();
    assert!(
        matches!(
            end,
            LinkError::Truncated {
                got: 100,
                expected: 548
            }
        ),
        "{end}"
    );
}

#[tokio::test(start_paused = true)]
async fn chosen_byte_is_corrupted() {
    for (offset, expected) in [
        (548, "starts with"),
        (553, "version"),
        (560, "header"),
        (600, "body"),
    ] {
        let faults = Faults {
            corrupt_offsets: vec![offset],
            piece_bytes_max: Some(50),
            ..Faults::default()
        };
        let (mut near, mut far) = pair(offset, faults);
        near.writer
            .send_all(&[frame(0, 500), frame(1, 500)])
            .await
            .unwrap();
        assert_eq!(soon(far.reader.recv()).await.unwrap(), frame(0, 500));
        let error = soon(far.reader.recv()).await.unwrap_err();
        assert!(
            error.is_protocol() && error.to_string().contains(expected),
            "{error}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn messages_on_different_links_overtake_each_other() {
    let mut orders = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let mut network = FaultyNetwork::new(seed, Faults::default(), Duration::from_millis(50));
        let (mut first, mut first_far) = network.link(Limits::default());
        let (mut second, mut second_far) = network.link(Limits::default());
        first.writer.send(&frame(1, 10)).await.unwrap();
        second.writer.send(&frame(2, 10)).await.unwrap();
        let earlier = tokio::select! {
            biased;
            got = first_far.reader.recv() => got,
            got = second_far.reader.recv() => got,
        };
        orders.insert(earlier.unwrap().epoch);
    }
    assert_eq!(orders.into_iter().collect::<Vec<_>>(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn cut_link_is_reset_at_both_ends_and_the_others_live() {
    let mut network = FaultyNetwork::new(1, Faults::default(), Duration::from_millis(50));
    let (mut near, mut far) = network.link(Limits::default());
    let (mut other_near, mut other_far) = network.link(Limits::default());
    near.writer.send(&frame(1, 10)).await.unwrap();
    other_near.writer.send(&frame(2, 10)).await.unwrap();
    // The reader already waits for what is on its way.
    let waiting = tokio::spawn(async move { soon(far.reader.recv()).await });
    tokio::task::yield_now().await;
    let cut = Instant::now();
    network.cut(0);
    network.cut(7);
    assert!(matches!(
        soon(waiting).await.unwrap(),
        Err(LinkError::Reset)
    ));
    assert_eq!(
        cut.elapsed(),
        Duration::ZERO,
        "not when it would have arrived"
    );
    assert!(matches!(
        soon(near.reader.recv()).await,
        Err(LinkError::Reset)
    ));
    assert_eq!(soon(other_far.reader.recv()).await.unwrap().epoch, 2);
}
