//! What waits for disks, and what a primary must not say of them.

use super::*;
use crate::core::disk::{DiskBatchWriter, DiskSyncPlan, DiskWrite, PairId, What};

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
pub(super) fn epoch_with_disk(epoch: u64, fill: u8, flush: bool) -> Vec<Message> {
    let disks = EpochDisks {
        writes: &[disk_write(fill)],
        flush,
        ..EpochDisks::default()
    };
    epoch_with(epoch, 1, fill, disks)
}

impl Bench {
    /// Syncing with one disk; the plan has come.
    pub(super) fn copying() -> Self {
        let mut bench = Self::new();
        bench.core.identity.disks = vec![DISK_BYTES];
        bench.introduce(GENERATION);
        bench.prove();
        let effects = bench.hear(plan(1));
        assert!(matches!(&effects[..], [Effect::BeginCopy(plan)] if plan.len() == 1));
        bench
    }

    /// Hears an epoch with disk writes; returns the ticket of its persisting.
    pub(super) fn persisting(&mut self, epoch: u64, fill: u8) -> u64 {
        let mut effects = Vec::new();
        for message in epoch_with_disk(epoch, fill, false) {
            effects.extend(self.hear(message));
        }
        let [
            Effect::Persist {
                ticket,
                epoch: of,
                batches,
                ..
            },
        ] = &effects[..]
        else {
            panic!("{effects:?}");
        };
        assert_eq!(*of, EpochId(epoch));
        assert_eq!(*batches, [disk_batch(&disk_write(fill))]);
        *ticket
    }

    pub(super) fn persisted(&mut self, ticket: u64) -> Vec<Effect> {
        let outcome = Ok(());
        self.give(Input::Persisted { ticket, outcome })
    }

    /// Standby with one disk, epoch 1 committed, whose copy is not whole yet.
    pub(super) fn standby_with_part_of_disk() -> Self {
        let mut bench = Self::copying();
        let ticket = bench.persisting(1, 1);
        assert_eq!(bench.persisted(ticket), [ack(1, 0)]);
        assert_eq!(bench.give(Input::Tick), [Effect::Committed(EpochId(1))]);
        bench
    }

    /// Standby with one disk, epoch 1 committed.
    pub(super) fn standby_with_disk() -> Self {
        let mut bench = Self::standby_with_part_of_disk();
        bench.give(Input::DisksDurable { epoch: EpochId(1) });
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
    // One without disk writes does not wait, unless the guest flushed in it.
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

/// Whatever ends the session while disk writes are being persisted, memory and disks are of one
/// epoch.
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
            let claims = |effect: &Effect| matches!(effect, Effect::Claim { .. });
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
    bench.introduce(GENERATION);
    bench.prove();
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

/// What was copied before the first epoch cannot be had again, so nobody must lose a living primary
/// for it.
#[test]
fn a_side_whose_disks_fail_before_their_copy_is_whole_claims_nothing() {
    let failed = || Input::DisksFailed {
        error: "I/O error".into(),
    };
    let is_over = |bench: &mut Bench, effects: &[Effect]| {
        let reset = |effect: &Effect| matches!(effect, Effect::Reset { .. });
        assert!(effects.iter().any(reset), "{effects:?}");
        assert_eq!(bench.pass(500 * MS, false, false), []);
        assert_eq!(bench.core.committed_epoch(), None);
    };
    let mut bench = Bench::standby_with_part_of_disk();
    let effects = bench.give(failed());
    assert!(
        matches!(&effects[0], Effect::Send(Message::Bye(Bye::Unable(why))) if why == "I/O error")
    );
    is_over(&mut bench, &effects);
    // The link is cut already.
    let mut bench = Bench::standby_with_part_of_disk();
    bench.give(Input::LinkBroken { cause: "so".into() });
    let effects = bench.give(failed());
    is_over(&mut bench, &effects);
    // A claim that waits for what is being persisted.
    let mut bench = Bench::standby_with_part_of_disk();
    let ticket = bench.persisting(2, 2);
    bench.give(Input::LinkClosed);
    let outcome = Err("I/O error".into());
    let effects = bench.give(Input::Persisted { ticket, outcome });
    is_over(&mut bench, &effects);
    // A claim that was made may have been granted.
    let mut bench = Bench::standby_with_part_of_disk();
    bench.give(Input::LinkClosed);
    assert_eq!(bench.give(failed()), []);
    let granted = Input::Verdict(Verdict::Granted(Generation(4)));
    assert!(matches!(bench.give(granted)[..], [Effect::Promote { .. }]));
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
    // What is not acknowledged cannot be on a shared image yet.
    for through in [1, u64::MAX] {
        let mut bench = Bench::copying();
        let mut messages = epoch_with_disk(1, 1, false);
        let mut end = messages.pop().expect("an end");
        if let Message::EpochEnd { summary, .. } = &mut end {
            summary.written_through = EpochId(through);
        }
        messages
            .into_iter()
            .for_each(|message| drop(bench.hear(message)));
        violates(&mut bench, end);
    }
    // A primary that says nothing of disks although there are some.
    let mut bench = Bench::new();
    bench.core.identity.disks = vec![DISK_BYTES];
    bench.introduce(GENERATION);
    bench.prove();
    let mut messages = epoch_messages(1, 1);
    let end = messages.pop().expect("an end");
    messages
        .into_iter()
        .for_each(|message| drop(bench.hear(message)));
    violates(&mut bench, end);
}

/// Whether this side has told the primary that its storage hangs, and has cut the link.
pub(super) fn gives_up(effects: &[Effect]) -> bool {
    matches!(effects, [.., Effect::Send(Message::Bye(Bye::Unable(why))), Effect::CloseLink]
        if why.contains("storage has not answered"))
}

/// The guest's output waits for it.
#[test]
fn storage_that_hangs_ends_the_session_and_what_it_does_at_last_counts() {
    for good in [true, false] {
        let mut bench = Bench::standby_with_disk();
        let ticket = bench.persisting(2, 2);
        assert_eq!(bench.pass(599 * MS, true, false), []);
        let effects = bench.pass(2 * MS, true, false);
        assert!(gives_up(&effects), "{effects:?}");
        assert_eq!(bench.core.phase(), BackupPhase::Standby);
        assert_eq!(bench.pass(100 * MS, false, true), [], "said once");
        let outcome = if good { Ok(()) } else { Err("no".into()) };
        let mut effects = bench.give(Input::Persisted { ticket, outcome });
        effects.extend(bench.give(Input::Tick));
        let epoch = EpochId(if good { 2 } else { 1 });
        assert!(
            matches!(
                (&effects[..], good),
                ([Effect::Committed(_)], true) | ([Effect::Discarded { .. }], false)
            ),
            "{effects:?}"
        );
        assert_eq!(bench.core.committed_epoch(), Some(epoch));
        assert_eq!(u64::from(bench.fill()), epoch.0);
    }
}

/// A whole image may have to be made safe at the end of the copy.
#[test]
fn storage_may_take_long_for_a_copy_but_not_for_ever() {
    let mut bench = Bench::copying();
    bench.persisting(1, 1);
    assert_eq!(bench.pass(59_999 * MS, true, false), []);
    let effects = bench.pass(2 * MS, true, false);
    let [told @ .., Effect::Reset { .. }] = &effects[..] else {
        panic!("{effects:?}");
    };
    let [told @ .., Effect::Discarded { .. }] = told else {
        panic!("{effects:?}");
    };
    assert!(gives_up(told), "{effects:?}");
}

#[test]
fn time_that_this_process_slept_is_not_its_storages() {
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.persisting(2, 2);
    bench.now += 10_000 * MS;
    let beat = Effect::Send(Message::Heartbeat);
    assert_eq!(bench.hear(Message::Heartbeat), [beat]);
    assert_eq!(bench.pass(500 * MS, true, false), []);
    assert_eq!(bench.persisted(ticket), [ack(2, 1)]);
}

/// From the claim on, only the storage can tell what the guest's last state is.
#[test]
fn a_claim_waits_for_storage_that_hangs() {
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.persisting(2, 2);
    bench.pass(100 * MS, true, false);
    bench.give(Input::PromotionWanted);
    assert_eq!(bench.pass(499 * MS, false, false), []);
    let effects = bench.pass(2 * MS, false, false);
    assert!(
        matches!(&effects[..], [Effect::ClaimWaits { why }] if why.contains("storage")),
        "{effects:?}"
    );
    assert_eq!(bench.pass(2_000 * MS, false, false), [], "said once");
    let effects = bench.persisted(ticket);
    let effects = [effects, bench.give(Input::Tick)].concat();
    let claims = |effect: &Effect| matches!(effect, Effect::Claim { .. });
    assert!(effects.iter().any(claims), "{effects:?}");
}

#[test]
fn storage_that_takes_nothing_of_a_copy_any_more_ends_it() {
    let hold = |bench: &mut Bench, seconds: u32| {
        let mut effects = Vec::new();
        for _ in 0..50 * seconds {
            bench.now += 20 * MS;
            effects.extend(bench.give(Input::NotReading));
        }
        effects.retain(|effect| *effect != Effect::Send(Message::Heartbeat));
        effects
    };
    let mut bench = Bench::copying();
    assert_eq!(hold(&mut bench, 59), []);
    bench.hear(Message::Heartbeat);
    assert_eq!(hold(&mut bench, 59), [], "it took something meanwhile");
    let effects = hold(&mut bench, 2);
    assert!(
        matches!(&effects[..], [told @ .., Effect::Reset { .. }] if gives_up(told)),
        "{effects:?}"
    );
}

#[test]
fn storage_that_slept_with_its_host_has_not_hung() {
    let mut bench = Bench::copying();
    bench.give(Input::NotReading);
    bench.now += 100_000 * MS;
    assert_eq!(bench.pass(MS, true, true), []);
    assert_eq!(bench.core.phase(), BackupPhase::Syncing);
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
fn what_checks_found_is_told_only_in_a_session_that_copies() {
    let found = || Input::Compared(vec![true, false]);
    let told = Effect::Send(Message::Compared(vec![true, false]));
    let mut bench = Bench::copying();
    assert_eq!(bench.give(found()), [told]);
    // Nobody has said what is copied, so nothing can have been checked.
    assert_eq!(Bench::syncing().give(found()), []);
    assert_eq!(Bench::new().give(found()), []);
    let mut claiming = Bench::copying();
    let ticket = claiming.persisting(1, 1);
    claiming.give(Input::Persisted {
        ticket,
        outcome: Ok(()),
    });
    claiming.give(Input::PromotionWanted);
    assert_eq!(
        claiming.give(found()),
        [],
        "from the claim on, nothing is said"
    );
}

#[test]
fn checks_beyond_a_disk_end_the_session() {
    for (offset, bytes) in [(DISK_BYTES, 512), (0, DISK_BYTES + 512), (512, DISK_BYTES)] {
        let mut bench = Bench::copying();
        let check = DiskWrite {
            disk: 0,
            offset,
            what: What::Check {
                bytes,
                digest: [0; 16],
            },
        };
        let effects = bench.hear(Message::SyncDisk(disk_batch(&check)));
        assert!(
            matches!(
                &effects[..],
                [
                    Effect::Send(Message::Bye(Bye::Protocol(_))),
                    Effect::CloseLink,
                    ..
                ]
            ),
            "{effects:?}"
        );
    }
}
