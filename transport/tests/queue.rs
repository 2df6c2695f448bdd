//! The send queue: bounded, fair, and failing at once when the link breaks.
//!
//! Under the paused clock, `stuck` expires exactly when every task waits for something else: that is
//! how a test knows that a sender is blocked, without waiting and guessing.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::soon;
use understudy_transport::memory::{Faults, pair_with};
use understudy_transport::{Frame, HEADER_BYTES, Limits, Link, LinkError, LinkReader, SendQueue};

const IN_FLIGHT_BYTES: usize = 10_000;

/// Two ends with a fixed amount of room between them.
fn ends() -> (Link, Link) {
    let faults = Faults {
        in_flight_bytes_max: IN_FLIGHT_BYTES,
        ..Faults::default()
    };
    pair_with(1, faults.clone(), faults, Limits::default())
}

fn frame(epoch: u64, body_bytes: usize) -> Frame {
    Frame {
        epoch,
        body: vec![epoch as u8; body_bytes].into(),
        ..Frame::default()
    }
}

async fn expect_closed(reader: &mut LinkReader) {
    let end = soon(reader.recv()).await;
    assert!(matches!(end, Err(LinkError::Closed)), "{end:?}");
}

async fn stuck() {
    tokio::time::sleep(Duration::from_secs(3600)).await;
}

/// Sends frames of 1 KiB until nothing moves any more; returns how many were taken.
async fn send_until_stuck(queue: &SendQueue) -> u64 {
    let mut taken = 0;
    loop {
        tokio::select! {
            biased;
            sent = queue.send(frame(taken, 1024)) => sent.expect("the link works"),
            () = stuck() => return taken,
        }
        taken += 1;
    }
}

#[tokio::test(start_paused = true)]
async fn stuck_reader_bounds_what_is_queued_and_blocks_the_sender() {
    const ROOM_BYTES: u32 = 50_000;
    let (near, mut far) = ends();
    let (queue, task) = SendQueue::new(near.writer, ROOM_BYTES);
    let running = tokio::spawn(task.run());
    let taken = send_until_stuck(&queue).await;
    let taken_bytes = taken as usize * (1024 + HEADER_BYTES);
    assert!(queue.queued_bytes() <= ROOM_BYTES as usize);
    assert!(
        taken_bytes <= ROOM_BYTES as usize + IN_FLIGHT_BYTES,
        "{taken_bytes}"
    );
    // It is the limit that blocks: half of the room at least is in use.
    assert!(taken_bytes > ROOM_BYTES as usize / 2, "{taken_bytes}");

    // The reader moves on, and so does the sender; nothing is lost.
    let sending = tokio::spawn({
        let queue = queue.clone();
        async move {
            for epoch in taken..taken + 200 {
                queue.send(frame(epoch, 1024)).await.unwrap();
            }
        }
    });
    for epoch in 0..taken + 200 {
        assert_eq!(soon(far.reader.recv()).await.unwrap(), frame(epoch, 1024));
    }
    soon(sending).await.unwrap();
    drop(queue);
    expect_closed(&mut far.reader).await;
    soon(running).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn what_cannot_wait_is_queued_although_there_is_no_room_and_is_bounded_too() {
    let (near, mut far) = ends();
    let (queue, task) = SendQueue::new(near.writer, 20_000);
    let running = tokio::spawn(task.run());
    let taken = send_until_stuck(&queue).await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.send(frame(1_000_000, 1024)).await }
    });
    tokio::task::yield_now().await;
    let full = queue.queued_bytes();
    let mut urgent = 0;
    while queue.send_now(frame(taken + urgent, 1024)).unwrap() {
        urgent += 1;
    }
    assert!(urgent > 100, "{urgent}");
    assert!(queue.queued_bytes() - full <= 256 << 10);
    // It comes behind what was queued, and before what waits for room.
    for epoch in 0..taken + urgent {
        assert_eq!(soon(far.reader.recv()).await.unwrap(), frame(epoch, 1024));
    }
    assert_eq!(soon(far.reader.recv()).await.unwrap().epoch, 1_000_000);
    soon(waiting).await.unwrap().unwrap();
    assert!(
        queue.send_now(frame(0, 1024)).unwrap(),
        "there is room again"
    );
    running.abort();
    let _ = running.await;
    let closed = queue.send_now(frame(0, 1024));
    assert!(matches!(closed, Err(LinkError::Closed)), "{closed:?}");
}

#[tokio::test(start_paused = true)]
async fn who_waits_until_all_is_written_waits_for_the_reader_or_the_end_of_the_link() {
    let (near, mut far) = ends();
    let (queue, task) = SendQueue::new(near.writer, 20_000);
    let running = tokio::spawn(task.run());
    soon(queue.written()).await.expect("nothing was queued");
    let taken = send_until_stuck(&queue).await;
    let wait = || {
        let queue = queue.clone();
        tokio::spawn(async move { queue.written().await })
    };
    let waiting = wait();
    stuck().await;
    assert!(!waiting.is_finished());
    for _ in 0..taken {
        soon(far.reader.recv()).await.unwrap();
    }
    soon(waiting).await.unwrap().unwrap();

    send_until_stuck(&queue).await;
    let waiting = wait();
    stuck().await;
    assert!(!waiting.is_finished());
    running.abort();
    let ended = soon(waiting).await.unwrap();
    assert!(matches!(ended, Err(LinkError::Closed)), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn frame_larger_than_the_queue_goes_through_alone() {
    let (near, mut far) = ends();
    let (queue, task) = SendQueue::new(near.writer, 1000);
    tokio::spawn(task.run());
    let sending = queue.send(frame(1, 300_000));
    let (sent, got) = soon(async { tokio::join!(sending, far.reader.recv()) }).await;
    sent.unwrap();
    assert_eq!(got.unwrap().body.len(), 300_000);
}

#[test]
fn blocking_sender_waits_for_room_on_its_own_thread() {
    const FRAMES: u64 = 200;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (near, mut far) = ends();
        let (queue, task) = SendQueue::new(near.writer, 20_000);
        let running = tokio::spawn(task.run());
        let sent = Arc::new(AtomicUsize::new(0));
        let encoder = std::thread::spawn({
            let sent = sent.clone();
            move || {
                for epoch in 0..FRAMES {
                    queue.blocking_send(frame(epoch, 1024)).unwrap();
                    sent.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        for epoch in 0..FRAMES {
            // The sender is ahead by what fits on the way and into the reader's hands, and no more.
            // (A frame may be here before its sender has counted it.)
            let ahead = sent.load(Ordering::SeqCst).saturating_sub(epoch as usize);
            let ahead_bytes = ahead * (1024 + HEADER_BYTES);
            assert!(ahead_bytes <= 20_000 + 2 * IN_FLIGHT_BYTES + 1024 + HEADER_BYTES);
            assert_eq!(soon(far.reader.recv()).await.unwrap().epoch, epoch);
        }
        encoder.join().unwrap();
        expect_closed(&mut far.reader).await;
        soon(running).await.unwrap().unwrap();
    });
}

#[tokio::test(start_paused = true)]
async fn control_frame_overtakes_nothing_and_is_not_starved() {
    let (near, mut far) = ends();
    let (queue, task) = SendQueue::new(near.writer, 20_000);
    tokio::spawn(task.run());
    let queued = send_until_stuck(&queue).await;
    // Waiting in this order: ten large frames, the control frame, ten more large frames.
    let mut waiting = Vec::new();
    for place in 0..21 {
        let queue = queue.clone();
        let body_bytes = if place == 10 { 0 } else { 15_000 };
        waiting.push(tokio::spawn(async move {
            queue.send(frame(1000 + place, body_bytes)).await.unwrap();
        }));
        tokio::task::yield_now().await;
    }
    drop(queue);
    let mut order = Vec::new();
    while let Ok(frame) = soon(far.reader.recv()).await {
        order.push(frame.epoch);
    }
    let expected: Vec<u64> = (0..queued).chain(1000..1021).collect();
    assert_eq!(order, expected);
    for sender in waiting {
        sender.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn broken_link_fails_waiting_and_later_sends() {
    let (near, far) = ends();
    let (queue, task) = SendQueue::new(near.writer, 20_000);
    let running = tokio::spawn(task.run());
    send_until_stuck(&queue).await;
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.send(frame(0, 15_000)).await }
    });
    tokio::task::yield_now().await;
    drop(far);
    assert!(matches!(
        soon(waiting).await.unwrap(),
        Err(LinkError::Reset)
    ));
    assert!(matches!(
        soon(running).await.unwrap(),
        Err(LinkError::Reset)
    ));
    let later = queue.send(frame(0, 0)).await.unwrap_err();
    assert!(later.is_peer_gone(), "{later}");
}

#[tokio::test(start_paused = true)]
async fn reason_learned_by_the_reader_ends_a_write_that_hangs() {
    let (near, _far) = ends();
    let (queue, task) = SendQueue::new(near.writer, 20_000);
    let running = tokio::spawn(task.run());
    send_until_stuck(&queue).await;
    let reason = LinkError::Sequence {
        expected: 4,
        got: 6,
    };
    queue.fail(reason);
    for outcome in [soon(running).await.unwrap(), queue.send(frame(0, 0)).await] {
        assert!(matches!(
            outcome,
            Err(LinkError::Sequence {
                expected: 4,
                got: 6
            })
        ));
    }
}

#[tokio::test(start_paused = true)]
async fn reason_learned_by_the_reader_fails_sends_before_the_task_notices() {
    let (near, _far) = ends();
    // Not run, so that nothing but the queue itself can tell the senders.
    let (queue, _task) = SendQueue::new(near.writer, 2000);
    assert_eq!(send_until_stuck(&queue).await, 1);
    let waiting = tokio::spawn({
        let queue = queue.clone();
        async move { queue.send(frame(0, 1024)).await }
    });
    tokio::task::yield_now().await;
    queue.fail(LinkError::Reset);
    queue.fail(LinkError::Closed);
    for outcome in [soon(waiting).await.unwrap(), queue.send(frame(0, 0)).await] {
        assert!(
            matches!(outcome, Err(LinkError::Reset)),
            "the first reason stays"
        );
    }
}

/// Also over a stream whose writing half does not close it when dropped.
#[tokio::test(start_paused = true)]
async fn dropped_queue_is_written_out_and_closes_the_direction() {
    let (near, far) = tokio::io::duplex(1000);
    let (near_reader, near_writer) = tokio::io::split(near);
    let (far_reader, far_writer) = tokio::io::split(far);
    let near = Link::new(near_reader, near_writer, "duplex", Limits::default());
    let mut far = Link::new(far_reader, far_writer, "duplex", Limits::default());
    let (_near_reader, near_writer) = near.split();
    let (queue, task) = SendQueue::new(near_writer, 20_000);
    for epoch in 0..10 {
        soon(queue.send(frame(epoch, 1024))).await.unwrap();
    }
    drop(queue);
    let running = tokio::spawn(task.run());
    for epoch in 0..10 {
        assert_eq!(soon(far.reader.recv()).await.unwrap().epoch, epoch);
    }
    expect_closed(&mut far.reader).await;
    soon(running).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn blocked_thread_is_freed_when_the_task_goes() {
    let (near, _far) = ends();
    let (queue, task) = SendQueue::new(near.writer, 2000);
    // Never run: nothing is ever written.
    let encoder = std::thread::spawn({
        let queue = queue.clone();
        move || {
            let mut taken = 0;
            while queue.blocking_send(frame(taken, 1024)).is_ok() {
                taken += 1;
            }
            taken
        }
    });
    while queue.queued_bytes() == 0 {
        std::thread::yield_now();
    }
    drop(task);
    assert_eq!(encoder.join().unwrap(), 1);
}

#[tokio::test]
async fn oversize_frame_is_refused_before_it_waits() {
    let limits = Limits {
        body_bytes_max: 100,
    };
    let (near, mut far) = pair_with(0, Faults::default(), Faults::default(), limits);
    let (queue, task) = SendQueue::new(near.writer, 20_000);
    tokio::spawn(task.run());
    let error = queue.send(frame(1, 101)).await.unwrap_err();
    assert!(
        matches!(error, LinkError::OversizeSend { len: 101, .. }),
        "{error}"
    );
    queue.send(frame(2, 100)).await.unwrap();
    assert_eq!(soon(far.reader.recv()).await.unwrap().epoch, 2);
}
