//! Each rule of the backup's transition table.

mod disks;

use std::sync::atomic::Ordering;

use super::*;
use crate::core::codec::{BatchWriter, Encoder};
use crate::core::epoch::tally::EpochTally;
use crate::core::message::{Hello, Refusal};
use crate::core::testing::TestMemory;
use crate::ids::{PAGE_BYTES, PageIndex};

const MS: Duration = Duration::from_millis(1);
const GENERATION: Generation = Generation(3);
const STATE: Bytes = Bytes::from_static(b"state");

/// A backup with a clock and memory of its own.
struct Bench {
    core: BackupCore,
    memory: TestMemory,
    now: Duration,
}

fn ack(epoch: u64, durable: u64) -> Effect {
    Effect::Send(Message::Ack {
        epoch: EpochId(epoch),
        durable: EpochId(durable),
    })
}

fn batch(page: u64, fill: u8) -> (Bytes, u32) {
    let mut writer = BatchWriter::new(1 << 20);
    let frame = Box::new([fill; PAGE_BYTES]);
    let _ = Encoder::new(0).encode(PageIndex(page), frame, &mut writer);
    let batch = writer.finish().expect("a page");
    (batch.body, batch.pages)
}

/// The messages of an epoch that fills page 100.
fn epoch_messages(epoch: u64, fill: u8) -> Vec<Message> {
    let epoch = EpochId(epoch);
    let (batch, pages) = batch(100, fill);
    let mut tally = EpochTally::new();
    tally.batch(&batch, pages);
    tally.state(&STATE);
    let output = SealedOutput::default();
    tally.output(&output);
    let summary = tally.summary();
    vec![
        Message::EpochPages { epoch, batch },
        Message::EpochState {
            epoch,
            state: STATE,
        },
        Message::EpochOutput { epoch, output },
        Message::EpochEnd { epoch, summary },
    ]
}

impl Bench {
    fn new() -> Self {
        let memory = TestMemory::new(4);
        let now = 1000 * MS;
        let identity = BackupIdentity {
            vm: "vm0".into(),
            node: "b".into(),
            fingerprint: Fingerprint::new(),
            layout: memory.layout().clone(),
            disks: Vec::new(),
        };
        Self {
            core: BackupCore::new(Policy::default(), identity, Generation(2), now),
            memory,
            now,
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            vm: "vm0".into(),
            node: "a".into(),
            fingerprint: Fingerprint::new(),
            layout: self.memory.layout().clone(),
        }
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        self.core.handle(self.now, input, &self.memory)
    }

    fn hear_from(&mut self, generation: Generation, message: Message) -> Vec<Effect> {
        self.give(Input::Received {
            generation,
            message,
        })
    }

    fn hear(&mut self, message: Message) -> Vec<Effect> {
        self.hear_from(GENERATION, message)
    }

    fn pass(&mut self, time: Duration, link: bool, path: bool) -> Vec<Effect> {
        let end = self.now + time;
        let mut out = Vec::new();
        while self.now < end {
            self.now += MS;
            if link {
                out.extend(self.hear(Message::Heartbeat));
            }
            if path {
                let generation = GENERATION;
                out.extend(self.give(Input::HeartbeatHeard { generation }));
            }
            out.extend(self.give(Input::Tick));
        }
        out.retain(|effect| *effect != Effect::Send(Message::Heartbeat));
        out
    }

    fn fill(&self) -> u8 {
        self.memory.content()[0][0]
    }

    fn syncing() -> Self {
        let mut bench = Self::new();
        assert_eq!(bench.give(Input::LinkUp), []);
        let hello = bench.hello();
        let node = "b".into();
        assert_eq!(
            bench.hear(Message::Hello(hello)),
            [Effect::Welcome { node }]
        );
        assert_eq!(bench.core.generation(), GENERATION);
        bench
    }

    fn receive(&mut self, epoch: u64, fill: u8) {
        let mut effects = Vec::new();
        for message in epoch_messages(epoch, fill) {
            effects.extend(self.hear(message));
        }
        let epoch = EpochId(epoch);
        assert_eq!(effects, [ack(epoch.0, 0)]);
        assert_eq!(self.core.next_wakeup(), Some(self.now), "commit at once");
        assert_eq!(self.give(Input::Tick), [Effect::Committed(epoch)]);
    }

    fn standby() -> Self {
        let mut bench = Self::syncing();
        bench.receive(1, 1);
        bench
    }

    /// Standby, and epoch 2 has begun to arrive.
    fn torn() -> Self {
        let mut bench = Self::standby();
        bench.hear(epoch_messages(2, 2).remove(0));
        bench
    }
}

fn refused(effects: &[Effect]) -> &Refusal {
    match effects {
        [Effect::Send(Message::Refuse(refusal)), Effect::CloseLink] => refusal,
        other => panic!("no refusal: {other:?}"),
    }
}

/// Asserts that the effects close the link, discard epoch 2 and claim, in this order.
#[track_caller]
fn assert_discards_and_claims(effects: &[Effect]) {
    match effects {
        [
            Effect::CloseLink,
            Effect::Discarded { epoch, why },
            Effect::Claim(GENERATION),
        ] => {
            assert_eq!(*epoch, EpochId(2));
            assert!(!why.is_empty());
        }
        other => panic!("no discard and claim: {other:?}"),
    }
}

#[track_caller]
fn assert_resets(effects: &[Effect]) {
    assert!(
        matches!(effects, [Effect::CloseLink, .., Effect::Reset { .. }]),
        "{effects:?}"
    );
}

#[test]
fn the_introduction_must_fit() {
    let mut bench = Bench::new();
    let hello = bench.hello();
    let mut fingerprint = Fingerprint::new();
    fingerprint.set("cpu", 1);
    let layout = TestMemory::new(5).layout().clone();
    type Expected = fn(&Refusal) -> bool;
    let cases: [(Hello, u64, Expected); 4] = [
        (
            Hello {
                vm: "vm1".into(),
                ..hello.clone()
            },
            3,
            |refusal| matches!(refusal, Refusal::OtherVm { vm } if vm == "vm0"),
        ),
        (
            Hello {
                fingerprint,
                ..hello.clone()
            },
            3,
            |refusal| matches!(refusal, Refusal::Differs(d) if d[0].key() == "cpu"),
        ),
        (
            Hello {
                layout,
                ..hello.clone()
            },
            3,
            |refusal| matches!(refusal, Refusal::Differs(d) if d[0].key() == "memory"),
        ),
        (hello.clone(), 1, |refusal| {
            matches!(
                refusal,
                Refusal::Stale {
                    current: Generation(2)
                }
            )
        }),
    ];
    for (hello, generation, expected) in cases {
        bench.give(Input::LinkUp);
        let effects = bench.hear_from(Generation(generation), Message::Hello(hello));
        assert!(expected(refused(&effects)), "{effects:?}");
        assert_eq!(bench.core.phase(), BackupPhase::Listening);
        assert_eq!(bench.core.generation(), Generation(2));
    }
    bench.give(Input::LinkUp);
    let effects = bench.hear_from(Generation(2), Message::Hello(hello));
    assert!(
        matches!(&effects[..], [Effect::Welcome { .. }]),
        "the last known is good"
    );
}

#[test]
fn only_an_introduction_may_come_first() {
    let mut bench = Bench::new();
    bench.give(Input::LinkUp);
    let effects = bench.hear(Message::Heartbeat);
    assert!(matches!(
        &effects[..],
        [
            Effect::Send(Message::Bye(Bye::Protocol(_))),
            Effect::CloseLink
        ]
    ));
    let mut bench = Bench::new();
    bench.give(Input::LinkUp);
    assert_eq!(bench.pass(1499 * MS, false, false), []);
    assert_eq!(bench.pass(MS, false, false), [Effect::CloseLink]);
}

#[test]
fn initial_pages_go_to_memory_at_once_and_epochs_only_when_whole() {
    let mut bench = Bench::syncing();
    assert_eq!(bench.hear(Message::SyncPages(batch(100, 9).0)), []);
    assert_eq!(bench.fill(), 9);
    for message in epoch_messages(1, 1) {
        bench.hear(message);
        assert_eq!((bench.fill(), bench.core.committed_epoch()), (9, None));
    }
    bench.give(Input::Tick);
    assert_eq!(bench.fill(), 1);
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
    assert_eq!(bench.core.committed_state(), &STATE);
    assert_eq!(bench.core.phase(), BackupPhase::Standby);
    bench.receive(2, 2);
    assert_eq!(bench.fill(), 2);
}

#[test]
fn an_epoch_acked_is_committed_even_if_the_link_closes_next() {
    let mut bench = Bench::standby();
    for message in epoch_messages(2, 2) {
        bench.hear(message);
    }
    let effects = bench.give(Input::LinkClosed);
    assert_eq!(
        effects,
        [
            Effect::Committed(EpochId(2)),
            Effect::CloseLink,
            Effect::Claim(GENERATION)
        ]
    );
}

#[test]
fn an_epoch_1_acked_is_committed_even_if_the_link_closes_next() {
    let mut bench = Bench::syncing();
    for message in epoch_messages(1, 1) {
        bench.hear(message);
    }
    let effects = bench.give(Input::LinkClosed);
    assert_eq!(effects[0], Effect::Committed(EpochId(1)));
    assert_eq!(effects.last(), Some(&Effect::Claim(GENERATION)));
}

#[test]
fn losing_the_primary_before_epoch_1_never_claims() {
    assert_resets(&Bench::syncing().give(Input::LinkClosed));
    let broken = Input::LinkBroken {
        cause: "bad frame".into(),
    };
    let effects = Bench::syncing().give(broken);
    assert_resets(&effects[1..]);
    let mut bench = Bench::syncing();
    assert_resets(&bench.pass(150 * MS, false, false));
    assert_eq!(bench.pass(1000 * MS, false, false), []);
    let mut bench = Bench::syncing();
    assert_eq!(bench.give(Input::PromotionWanted), []);
    // Epoch 1 torn.
    bench.hear(epoch_messages(1, 1).remove(0));
    let effects = bench.give(Input::LinkClosed);
    assert!(
        matches!(
            &effects[..],
            [
                Effect::CloseLink,
                Effect::Discarded {
                    epoch: EpochId(1),
                    ..
                },
                Effect::Reset { .. }
            ]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_closed_link_is_acted_on_at_once_and_the_torn_epoch_named() {
    let mut bench = Bench::torn();
    assert_discards_and_claims(&bench.give(Input::LinkClosed));
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(
        effects,
        [Effect::Promote {
            generation: Generation(4),
            epoch: EpochId(1),
            cause: "the primary closed the link".into()
        }]
    );
    assert_eq!(bench.fill(), 1, "nothing of epoch 2");
    assert_eq!(bench.core.generation(), Generation(4));
    assert_eq!(bench.give(Input::LinkUp), [Effect::CloseLink]);
}

#[test]
fn silence_on_every_path_claims_and_one_living_path_does_not() {
    let mut bench = Bench::torn();
    assert_eq!(bench.pass(400 * MS, false, true), []);
    assert_eq!(bench.pass(400 * MS, true, false), []);
    assert_eq!(bench.pass(149 * MS, false, false), []);
    assert_discards_and_claims(&bench.pass(MS, false, false));
}

#[test]
fn a_broken_link_claims_only_after_silence_on_every_path() {
    let mut bench = Bench::torn();
    let effects = bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Send(Message::Bye(Bye::Protocol(_))),
                Effect::CloseLink,
                Effect::Discarded { epoch: EpochId(2), why }
            ] if why == "bad frame"
        ),
        "{effects:?}"
    );
    assert_eq!(bench.pass(400 * MS, false, true), [], "the primary lives");
    let effects = bench.pass(150 * MS, false, false);
    assert_eq!(effects, [Effect::Claim(GENERATION)]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert!(matches!(&effects[..], [Effect::Promote { cause, .. }] if cause.contains("bad frame")));
}

#[test]
fn epochs_out_of_order_or_corrupt_are_discarded_whole_and_cut_the_link() {
    let corrupt = |mutate: fn(&mut Vec<Message>)| {
        let mut messages = epoch_messages(2, 2);
        mutate(&mut messages);
        messages
    };
    let cases = [
        corrupt(|messages| drop(messages.remove(0))),
        corrupt(|messages| drop(messages.remove(1))),
        corrupt(|messages| drop(messages.remove(2))),
        corrupt(|messages| messages.swap(1, 2)),
        corrupt(|messages| {
            messages[0] = Message::EpochPages {
                epoch: EpochId(2),
                batch: Bytes::from_static(b"junk"),
            };
        }),
        epoch_messages(1, 1),
        epoch_messages(3, 3),
        vec![Message::SyncPages(batch(100, 9).0)],
    ];
    for messages in cases {
        let mut bench = Bench::standby();
        let effects: Vec<_> = messages
            .iter()
            .flat_map(|message| bench.hear(message.clone()))
            .collect();
        assert!(
            effects.contains(&Effect::CloseLink),
            "{messages:?}: {effects:?}"
        );
        assert!(
            !effects
                .iter()
                .any(|e| matches!(e, Effect::Send(Message::Ack { .. })))
        );
        bench.give(Input::Tick);
        assert_eq!(bench.fill(), 1, "{messages:?}");
        assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
        assert_eq!(bench.core.phase(), BackupPhase::Standby);
    }
}

#[test]
fn a_stall_does_not_count_as_the_primarys_silence() {
    let mut bench = Bench::standby();
    bench.now += 1000 * MS;
    assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
    let effects = bench.pass(150 * MS, false, false);
    assert_eq!(effects, [Effect::CloseLink, Effect::Claim(GENERATION)]);
}

#[test]
fn a_claim_is_repeated_while_the_arbiter_is_silent_and_a_refusal_resets() {
    let mut bench = Bench::standby();
    bench.give(Input::LinkClosed);
    assert_eq!(bench.give(Input::ArbiterUnavailable), []);
    assert_eq!(bench.pass(99 * MS, false, false), []);
    assert_eq!(bench.pass(MS, false, false), [Effect::Claim(GENERATION)]);
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "a".into(),
    }));
    assert!(matches!(&effects[..], [Effect::Reset { reason }] if reason.contains('a')));
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
    assert_eq!(bench.core.generation(), Generation(4));
    assert_eq!(bench.core.committed_state(), &Bytes::new());
}

#[test]
fn promotion_when_asked_for_claims_from_the_committed_epoch() {
    let mut bench = Bench::torn();
    let effects = bench.give(Input::PromotionWanted);
    // The link stays open: a primary that sees it closed claims itself.
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Discarded {
                    epoch: EpochId(2),
                    ..
                },
                Effect::Claim(GENERATION)
            ]
        ),
        "{effects:?}"
    );
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    let current = Generation(4);
    assert_eq!(
        effects,
        [
            Effect::Send(Message::Bye(Bye::Fenced { current })),
            Effect::CloseLink,
            Effect::Promote {
                generation: current,
                epoch: EpochId(1),
                cause: "promotion was asked for".into()
            }
        ]
    );
    assert_eq!(bench.fill(), 1, "nothing of epoch 2");
}

#[test]
fn nothing_is_acknowledged_or_staged_once_promotion_was_asked_for() {
    let mut bench = Bench::standby();
    assert_eq!(
        bench.give(Input::PromotionWanted),
        [Effect::Claim(GENERATION)]
    );
    for message in epoch_messages(2, 2) {
        assert_eq!(bench.hear(message), [], "an ack would release output");
    }
    assert_eq!(bench.hear(Message::Bye(Bye::GuestStopped)), []);
    bench.now += 60 * MS;
    assert_eq!(bench.give(Input::Tick), [], "no sign of life either");
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
    assert_eq!(bench.fill(), 1);
}

#[test]
fn a_primary_that_lives_does_not_wait_for_an_arbiter_that_is_silent_here() {
    let mut bench = Bench::standby();
    bench.give(Input::PromotionWanted);
    assert_eq!(bench.give(Input::ArbiterUnavailable), [Effect::CloseLink]);
    assert_eq!(
        bench.pass(100 * MS, false, false),
        [Effect::Claim(GENERATION)]
    );
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
}

#[test]
fn a_refused_promotion_resets_and_closes_the_link() {
    let mut bench = Bench::standby();
    bench.give(Input::PromotionWanted);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "a".into(),
    }));
    assert!(
        matches!(&effects[..], [Effect::CloseLink, Effect::Reset { .. }]),
        "{effects:?}"
    );
}

#[test]
fn a_guest_that_stopped_leaves_nothing_to_take_over() {
    let mut bench = Bench::standby();
    assert_resets(&bench.hear(Message::Bye(Bye::GuestStopped)));
    assert_eq!(bench.give(Input::LinkClosed), []);
    assert_eq!(bench.pass(1000 * MS, false, false), []);
}

#[test]
fn a_fenced_primary_leaves_nothing_to_take_over() {
    let current = Generation(7);
    let mut bench = Bench::standby();
    assert_resets(&bench.hear(Message::Bye(Bye::Fenced { current })));
    assert_eq!(bench.core.generation(), current);
}

#[test]
fn older_and_later_generations_within_a_session() {
    let mut bench = Bench::standby();
    let effects = bench.hear_from(Generation(2), epoch_messages(2, 2).remove(0));
    let current = GENERATION;
    assert_eq!(
        effects,
        [Effect::Send(Message::Bye(Bye::Fenced { current }))]
    );
    let effects = bench.hear_from(Generation(4), Message::Heartbeat);
    assert!(effects.contains(&Effect::CloseLink));
}

#[test]
fn heartbeats_of_other_generations_are_no_sign_of_life() {
    for generation in [2, 4] {
        let mut bench = Bench::standby();
        let mut effects = Vec::new();
        for _ in 0..150 {
            bench.now += MS;
            effects.extend(bench.give(Input::HeartbeatHeard {
                generation: Generation(generation),
            }));
        }
        assert!(effects.contains(&Effect::Claim(GENERATION)), "{generation}");
    }
}

#[test]
fn the_next_generation_starts_afresh_after_a_cut() {
    let mut bench = Bench::torn();
    bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    assert_eq!(bench.give(Input::LinkUp), []);
    let hello = bench.hello();
    let effects = bench.hear(Message::Hello(hello.clone()));
    assert!(
        matches!(refused(&effects), Refusal::Busy(_)),
        "same generation"
    );
    bench.give(Input::LinkUp);
    let effects = bench.hear_from(Generation(4), Message::Hello(hello));
    assert!(
        matches!(&effects[..], [Effect::Reset { .. }, Effect::Welcome { .. }]),
        "{effects:?}"
    );
    assert_eq!(bench.core.committed_epoch(), None);
    assert_eq!(bench.core.phase(), BackupPhase::Syncing);
}

#[test]
fn a_session_of_the_same_generation_starts_afresh_too() {
    let mut bench = Bench::syncing();
    bench.hear(epoch_messages(1, 5).remove(0));
    bench.give(Input::LinkClosed);
    bench.give(Input::LinkUp);
    let hello = bench.hello();
    bench.hear(Message::Hello(hello));
    bench.receive(1, 1);
    assert_eq!(bench.fill(), 1);
}

#[test]
fn a_strangers_link_does_not_keep_the_old_primary_alive() {
    let mut bench = Bench::standby();
    bench.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    bench.give(Input::LinkUp);
    let effects = bench.pass(150 * MS, false, false);
    assert_eq!(effects, [Effect::CloseLink, Effect::Claim(GENERATION)]);
}

#[test]
fn deadlines_are_met_by_wakeups_alone() {
    let mut stranger = Bench::new();
    stranger.give(Input::LinkUp);
    let mut cut = Bench::standby();
    cut.give(Input::LinkBroken {
        cause: "bad frame".into(),
    });
    let mut claiming = Bench::standby();
    claiming.give(Input::LinkClosed);
    claiming.give(Input::ArbiterUnavailable);
    for (mut bench, time, expected) in [
        (stranger, 1500, Effect::CloseLink),
        (Bench::standby(), 150, Effect::Claim(GENERATION)),
        (cut, 150, Effect::Claim(GENERATION)),
        (claiming, 100, Effect::Claim(GENERATION)),
    ] {
        let end = bench.now + time * MS;
        let mut effects = Vec::new();
        while bench.now < end {
            bench.now = bench.core.next_wakeup().expect("a deadline runs");
            effects.extend(bench.give(Input::Tick));
        }
        assert_eq!((bench.now, effects.last()), (end, Some(&expected)));
    }
}

#[test]
fn memory_that_cannot_be_committed_makes_the_standby_unusable() {
    let mut bench = Bench::standby();
    for message in epoch_messages(2, 2) {
        bench.hear(message);
    }
    bench.memory.broken.store(true, Ordering::Relaxed);
    let effects = bench.give(Input::LinkClosed);
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Discarded { epoch: EpochId(2), .. },
                Effect::Send(Message::Bye(Bye::BackupStopped)),
                Effect::CloseLink,
                Effect::Reset { reason }
            ] if reason.contains("unusable")
        ),
        "{effects:?}"
    );
    assert_eq!(bench.pass(1000 * MS, false, false), [], "never a claim");
}

#[test]
fn heartbeats_are_sent_once_welcomed() {
    let mut bench = Bench::syncing();
    bench.now += 20 * MS;
    assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
    assert_eq!(bench.give(Input::Tick), []);
    assert_eq!(bench.core.next_wakeup(), Some(bench.now + 20 * MS));
}

#[test]
fn a_huge_epoch_is_committed_in_slices_and_signs_of_life_go_on() {
    let mut bench = Bench::new();
    let pages = COMMIT_PAGES_MAX as u64 * 2 + 1;
    bench.memory = TestMemory::new(pages);
    bench.core = BackupCore::new(
        Policy::default(),
        BackupIdentity {
            layout: bench.memory.layout().clone(),
            ..bench.core.identity.clone()
        },
        Generation(2),
        bench.now,
    );
    bench.give(Input::LinkUp);
    let hello = bench.hello();
    bench.hear(Message::Hello(hello));
    let epoch = EpochId(1);
    let mut tally = EpochTally::new();
    let mut writer = BatchWriter::new(1 << 20);
    let mut encoder = Encoder::new(0);
    for page in 0..pages {
        drop(encoder.encode(
            PageIndex(100 + page),
            Box::new([7; PAGE_BYTES]),
            &mut writer,
        ));
    }
    let body = writer.finish().expect("pages");
    tally.batch(&body.body, body.pages);
    bench.hear(Message::EpochPages {
        epoch,
        batch: body.body,
    });
    tally.state(&STATE);
    bench.hear(Message::EpochState {
        epoch,
        state: STATE,
    });
    let output = SealedOutput::default();
    tally.output(&output);
    bench.hear(Message::EpochOutput { epoch, output });
    let summary = tally.summary();
    assert_eq!(
        bench.hear(Message::EpochEnd { epoch, summary }),
        [ack(1, 0)]
    );
    for _ in 0..2 {
        bench.now += 30 * MS;
        assert!(bench.core.commit_is_due());
        assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
    }
    assert_eq!(bench.give(Input::Tick), [Effect::Committed(epoch)]);
    assert!(bench.memory.content().iter().all(|page| page[9] == 7));
}
