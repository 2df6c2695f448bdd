//! Who is listened to, who has to go, and what is counted. Time is tokio's, and paused.

use understudy_transport::memory::{Faults, pair};
use understudy_transport::{Frame, LinkError};

use super::*;
use crate::core::message::Hello;
use crate::page_set::MemoryLayout;
use crate::runtime::status::{Side, StrangerCounts};

struct Bench {
    strangers: Strangers,
    metrics: Metrics,
}

impl Bench {
    fn new() -> Self {
        let metrics = Metrics::new(Side::Standby, "vm", "b");
        Self {
            strangers: Strangers::new(1 << 20, metrics.clone()),
            metrics,
        }
    }

    /// Somebody connects from `host`. Returns the other end.
    fn connects(&mut self, host: &str) -> Link {
        let (theirs, mut ours) = pair(1, Faults::default());
        ours.peer = format!("tcp:{host}:4711");
        self.strangers.listen_to(ours, Generation(3));
        theirs
    }

    /// Lets everything happen that can happen within `time`. Nobody introduces itself.
    async fn pass(&mut self, time: Duration) {
        let introduced = tokio::time::timeout(time, self.strangers.introduced()).await;
        assert!(introduced.is_err(), "somebody has introduced itself");
    }

    fn counts(&self) -> StrangerCounts {
        self.metrics.status().strangers
    }
}

fn hello() -> Frame {
    let (kind, epoch, body) = Message::Hello(Hello {
        vm: "vm".into(),
        node: "a".into(),
        fingerprint: Default::default(),
        layout: MemoryLayout::new(Vec::new()),
        arbiter: Default::default(),
        session: 1,
    })
    .encode();
    Frame {
        kind,
        generation: 7,
        epoch,
        body,
    }
}

const SOON: Duration = Duration::from_millis(10);

#[tokio::test(start_paused = true)]
async fn silent_ones_keep_nobody_out_and_whoever_fills_all_places_takes_them_from_itself() {
    let mut bench = Bench::new();
    let mut shy = bench.connects("10.0.0.2");
    let crowd: Vec<_> = (0..3 * STRANGERS_MAX)
        .map(|_| bench.connects("10.0.0.66"))
        .collect();
    bench.pass(SOON).await;
    let mut late = bench.connects("10.0.0.3");
    for link in [&mut late, &mut shy] {
        link.writer.send(&hello()).await.unwrap();
        let introduced = bench.strangers.introduced().await;
        assert_eq!(introduced.generation, Generation(7));
        assert!(matches!(introduced.hello, Message::Hello(_)));
    }
    let closed = crowd.into_iter().filter_map(|mut link| {
        let read = link.reader.try_recv();
        read.err()
    });
    let turned_away = 2 * STRANGERS_MAX + 2;
    assert_eq!(closed.count(), turned_away);
    let expected = StrangerCounts {
        connections: 3 * STRANGERS_MAX as u64 + 2,
        turned_away: turned_away as u64,
        ..StrangerCounts::default()
    };
    assert_eq!(bench.counts(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_a_stranger_is_counted() {
    let mut bench = Bench::new();
    let mut silent = bench.connects("10.0.0.2");
    drop(bench.connects("10.0.0.3"));
    let mut odd = bench.connects("10.0.0.4");
    odd.writer.send(&Frame::default()).await.unwrap();
    bench.pass(SOON).await;
    let answer = odd.reader.recv().await.unwrap();
    let answer = Message::decode(answer.kind, answer.epoch, answer.body).unwrap();
    assert!(
        matches!(answer, Message::Bye(Bye::Protocol(_))),
        "{answer:?}"
    );
    let mut huge = bench.connects("10.0.0.5");
    huge.writer
        .send(&Frame {
            body: vec![0; BODY_BYTES_MAX as usize + 1].into(),
            ..hello()
        })
        .await
        .unwrap();
    bench.pass(PATIENCE - 3 * SOON).await;
    assert!(matches!(silent.reader.try_recv(), Ok(None)), "too early");
    bench.pass(3 * SOON).await;
    let end = silent.reader.recv().await;
    assert!(matches!(end, Err(LinkError::Closed)), "{end:?}");
    let expected = StrangerCounts {
        connections: 4,
        gone: 1,
        silent: 1,
        malformed: 2,
        ..StrangerCounts::default()
    };
    assert_eq!(bench.counts(), expected);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_is_told_so_and_a_crowd_is_not() {
    let mut bench = Bench::new();
    let (mut refused, mut all) = (Vec::new(), Vec::new());
    for _ in 0..=FAREWELLS_MAX {
        let mut link = bench.connects("10.0.0.2");
        link.writer.send(&hello()).await.unwrap();
        all.push(bench.strangers.introduced().await);
        refused.push(link);
    }
    for introduced in all {
        let refusal = Refusal::Busy("it serves a".into());
        bench.strangers.refuse(introduced, Generation(3), refusal);
    }
    assert_eq!(bench.counts().refused, FAREWELLS_MAX as u64 + 1);
    bench.pass(SOON).await;
    let told = refused
        .iter_mut()
        .filter_map(|link| link.reader.try_recv().ok().flatten());
    assert_eq!(told.count(), FAREWELLS_MAX);
}
