//! Each rule of the backup's transition table.

use std::sync::atomic::Ordering;

use super::*;
use crate::core::codec::{BatchWriter, Encoder};
use crate::core::disk::{DiskBatchWriter, DiskSyncPlan, DiskWrite, PairId, What};
use crate::core::message::{EpochSummary, EpochTally, Hello, Refusal};
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
            |refusal| matches!(refusal, Refusal::Differs(d) if d[0].key() == "memory.layout"),
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

const DISK_BYTES: u64 = 1 << 20;

fn disk_write(fill: u8) -> DiskWrite {
    DiskWrite {
        disk: 0,
        offset: 512,
        what: What::Data(vec![fill; 512].into()),
    }
}

fn disk_batch(write: &DiskWrite) -> Bytes {
    let mut writer = DiskBatchWriter::new(1 << 16);
    writer.push(write, |_| panic!("one batch is enough"));
    writer.finish().expect("a write").body
}

fn plan(disks: usize) -> Message {
    Message::SyncDisks(vec![
        DiskSyncPlan {
            candidate: PairId(7),
            full: true,
            from: None,
        };
        disks
    ])
}

/// An epoch that fills page 100 and sector 1 of disk 0.
fn epoch_with_disk(epoch: u64, fill: u8, flush: bool) -> Vec<Message> {
    let mut messages = epoch_messages(epoch, fill);
    let epoch = EpochId(epoch);
    let disk = disk_batch(&disk_write(fill));
    let (pages, count) = batch(100, fill);
    let mut tally = EpochTally::new();
    tally.batch(&pages, count);
    tally.disk_batch(&disk);
    tally.state(&STATE);
    tally.output(&SealedOutput::default());
    let summary = EpochSummary {
        flush,
        written_through: EpochId(0),
        ..tally.summary()
    };
    *messages.last_mut().expect("an end") = Message::EpochEnd { epoch, summary };
    messages.insert(1, Message::EpochDisk { epoch, batch: disk });
    messages
}

impl Bench {
    /// Syncing with one disk; the plan has come.
    fn copying() -> Self {
        let mut bench = Self::new();
        bench.core.identity.disks = vec![DISK_BYTES];
        bench.give(Input::LinkUp);
        let hello = bench.hello();
        bench.hear(Message::Hello(hello));
        let effects = bench.hear(plan(1));
        assert!(matches!(&effects[..], [Effect::BeginCopy(plan)] if plan.len() == 1));
        bench
    }

    /// Hears an epoch with disk writes; returns the ticket of its persisting.
    fn persisting(&mut self, epoch: u64, fill: u8) -> u64 {
        let mut effects = Vec::new();
        for message in epoch_with_disk(epoch, fill, true) {
            effects.extend(self.hear(message));
        }
        let [
            Effect::Persist {
                ticket,
                epoch: of,
                batches,
                flush,
                ..
            },
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert_eq!(*of, EpochId(epoch));
        assert_eq!(*batches, [disk_batch(&disk_write(fill))]);
        assert!(*flush);
        *ticket
    }

    fn persisted(&mut self, ticket: u64) -> Vec<Effect> {
        let outcome = Ok(());
        self.give(Input::Persisted { ticket, outcome })
    }

    /// Standby with one disk, epoch 1 committed.
    fn standby_with_disk() -> Self {
        let mut bench = Self::copying();
        let ticket = bench.persisting(1, 1);
        assert_eq!(bench.persisted(ticket), [ack(1, 0)]);
        assert_eq!(bench.give(Input::Tick), [Effect::Committed(EpochId(1))]);
        bench
    }
}

#[test]
fn an_epoch_with_disk_writes_is_acked_and_committed_only_once_they_are_persisted() {
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.persisting(2, 2);
    assert_eq!(bench.pass(100 * MS, true, false), [], "not persisted yet");
    assert_eq!(bench.fill(), 1);
    assert_eq!(bench.persisted(ticket - 1), [], "another ticket");
    bench.give(Input::DisksDurable { epoch: EpochId(1) });
    assert_eq!(bench.persisted(ticket), [ack(2, 1)]);
    assert_eq!(bench.give(Input::Tick), [Effect::Committed(EpochId(2))]);
    assert_eq!(bench.fill(), 2);
    // One without disk writes does not wait, but for a flush of what was written before.
    let effects: Vec<_> = epoch_messages(3, 3)
        .into_iter()
        .flat_map(|message| bench.hear(message))
        .collect();
    assert_eq!(effects, [ack(3, 1)]);
    let mut messages = epoch_messages(4, 4);
    if let Some(Message::EpochEnd { summary, .. }) = messages.last_mut() {
        summary.flush = true;
    }
    let effects: Vec<_> = messages
        .into_iter()
        .flat_map(|message| bench.hear(message))
        .filter(|effect| !matches!(effect, Effect::Committed(_)))
        .collect();
    assert!(matches!(&effects[..], [Effect::Persist { batches, .. }] if batches.is_empty()));
}

#[test]
fn the_first_epoch_is_always_persisted_as_it_completes_the_copy() {
    let mut bench = Bench::copying();
    let effects: Vec<_> = epoch_messages(1, 1)
        .into_iter()
        .flat_map(|message| bench.hear(message))
        .collect();
    assert!(matches!(&effects[..], [Effect::Persist { batches, .. }] if batches.is_empty()));
}

#[test]
fn what_is_durable_is_never_said_to_be_more_than_what_is_acked() {
    let mut bench = Bench::standby_with_disk();
    bench.give(Input::DisksDurable { epoch: EpochId(9) });
    let ticket = bench.persisting(2, 2);
    assert_eq!(bench.persisted(ticket), [ack(2, 2)]);
}

/// Whatever ends the session while disk writes are being persisted, memory and disks are of one epoch.
#[test]
fn a_claim_waits_for_what_is_being_persisted() {
    let ends: [fn() -> Input; 3] = [
        || Input::LinkClosed,
        || Input::PromotionWanted,
        || Input::LinkBroken { cause: "so".into() },
    ];
    for end in ends {
        for good in [true, false] {
            let mut bench = Bench::standby_with_disk();
            let ticket = bench.persisting(2, 2);
            let mut effects = bench.give(end());
            effects.extend(bench.pass(500 * MS, false, false));
            let claims = |effect: &Effect| matches!(effect, Effect::Claim(_));
            assert!(!effects.iter().any(claims), "{effects:?}");
            let outcome = if good { Ok(()) } else { Err("no".into()) };
            let mut effects = bench.give(Input::Persisted { ticket, outcome });
            effects.extend(bench.give(Input::Tick));
            effects.extend(bench.give(Input::Tick));
            assert_eq!(effects.iter().filter(|e| claims(e)).count(), 1);
            let acked = |effect: &Effect| matches!(effect, Effect::Send(Message::Ack { .. }));
            assert!(!effects.iter().any(acked), "{effects:?}");
            let epoch = if good { 2 } else { 1 };
            let granted = Input::Verdict(Verdict::Granted(Generation(4)));
            assert!(bench.give(granted).iter().any(
                |effect| matches!(effect, Effect::Promote { epoch: of, .. } if of.0 == epoch)
            ));
            assert_eq!(u64::from(bench.fill()), epoch);
        }
    }
}

#[test]
fn what_was_being_persisted_for_a_copy_given_up_acks_nothing_of_the_next() {
    let mut bench = Bench::copying();
    let old = bench.persisting(1, 1);
    assert!(matches!(
        bench.give(Input::LinkClosed)[..],
        [
            Effect::CloseLink,
            Effect::Discarded { .. },
            Effect::Reset { .. }
        ]
    ));
    bench.give(Input::LinkUp);
    let hello = bench.hello();
    bench.hear(Message::Hello(hello));
    bench.hear(plan(1));
    let new = bench.persisting(1, 5);
    assert_eq!(bench.persisted(old), []);
    assert_eq!(bench.persisted(new), [ack(1, 0)]);
}

#[test]
fn disks_that_fail_end_the_session_with_the_reason_and_keep_what_is_committed() {
    let told = |effects: &[Effect]| {
        matches!(effects, [Effect::Send(Message::Bye(Bye::Unable(why))), Effect::CloseLink, ..]
            if why == "full")
    };
    let error = || "full".to_owned();
    let mut bench = Bench::copying();
    let effects = bench.give(Input::DisksFailed { error: error() });
    assert!(told(&effects), "{effects:?}");
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.persisting(2, 2);
    let outcome = Err(error());
    let effects = bench.give(Input::Persisted { ticket, outcome });
    assert!(matches!(&effects[0], Effect::Discarded { epoch, .. } if epoch.0 == 2));
    assert!(told(&effects[1..]), "{effects:?}");
    assert_eq!(bench.core.phase(), BackupPhase::Standby);
    assert_eq!(
        (bench.core.committed_epoch(), bench.fill()),
        (Some(EpochId(1)), 1)
    );
}

#[test]
fn plans_and_disk_writes_that_do_not_fit_are_violations() {
    let violates = |bench: &mut Bench, message: Message| {
        let effects = bench.hear(message);
        assert!(
            matches!(&effects[0], Effect::Send(Message::Bye(Bye::Protocol(_)))),
            "{effects:?}"
        );
    };
    let sync = || Message::SyncDisk(disk_batch(&disk_write(1)));
    violates(&mut Bench::syncing(), plan(0));
    violates(&mut Bench::syncing(), plan(1));
    violates(&mut Bench::syncing(), sync());
    violates(&mut Bench::copying(), plan(1));
    let outside = DiskWrite {
        offset: DISK_BYTES,
        ..disk_write(1)
    };
    violates(
        &mut Bench::copying(),
        Message::SyncDisk(disk_batch(&outside)),
    );
    let epoch = EpochId(1);
    let batch = disk_batch(&outside);
    violates(&mut Bench::copying(), Message::EpochDisk { epoch, batch });
    let batch = disk_batch(&disk_write(1));
    violates(&mut Bench::syncing(), Message::EpochDisk { epoch, batch });
    let mut bench = Bench::copying();
    let effects = bench.hear(sync());
    assert_eq!(effects, [Effect::SyncDisk(disk_batch(&disk_write(1)))]);
    bench.hear(epoch_messages(1, 1).remove(0));
    violates(&mut bench, sync());
    // A primary that says nothing of disks although there are some.
    let mut bench = Bench::new();
    bench.core.identity.disks = vec![DISK_BYTES];
    bench.give(Input::LinkUp);
    let hello = bench.hello();
    bench.hear(Message::Hello(hello));
    let mut messages = epoch_messages(1, 1);
    let end = messages.pop().expect("an end");
    messages
        .into_iter()
        .for_each(|message| drop(bench.hear(message)));
    violates(&mut bench, end);
}

#[test]
fn a_side_that_does_not_read_does_not_judge_silence() {
    let mut bench = Bench::copying();
    for _ in 0..100 {
        bench.now += 20 * MS;
        bench.give(Input::NotReading);
    }
    assert_eq!(bench.core.phase(), BackupPhase::Syncing);
    bench.pass(151 * MS, false, false);
    assert_eq!(bench.core.phase(), BackupPhase::Listening);
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
