//! The guest flushes: when the journal is, and what that keeps waiting.

use super::disks::{epoch_with_disk, gives_up};
use super::*;

impl Bench {
    /// Hears an epoch in which the guest flushed, persists it, and returns what follows from that.
    fn flushed_epoch(&mut self, epoch: u64) -> Vec<Effect> {
        let mut effects = Vec::new();
        for message in epoch_with_disk(epoch, epoch as u8, true) {
            effects.extend(self.hear(message));
        }
        let Some(Effect::Persist { ticket, .. }) = effects.last() else {
            panic!("{effects:?}");
        };
        self.persisted(*ticket)
    }

    /// The same; returns the ticket of the flush that begins.
    fn flushing(&mut self, epoch: u64) -> u64 {
        let effects = self.flushed_epoch(epoch);
        let durable = u64::from(self.core.has_disks());
        let [acked, Effect::FlushJournal { ticket, epoch: of }] = &effects[..] else {
            panic!("{effects:?}");
        };
        assert_eq!(*acked, ack(epoch, durable));
        assert_eq!(*of, EpochId(epoch));
        *ticket
    }

    fn flushed(&mut self, ticket: u64, outcome: Result<(), String>) -> Vec<Effect> {
        let mut effects = self.give(Input::Flushed { ticket, outcome });
        effects.retain(|effect| !matches!(effect, Effect::Committed(_)));
        effects
    }
}

fn told(epoch: u64) -> Effect {
    Effect::Send(Message::Flushed(EpochId(epoch)))
}

/// The guest's output waits for acknowledgements only.
#[test]
fn an_epoch_is_acked_before_it_is_flushed_and_epochs_go_on_meanwhile() {
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.flushing(2);
    assert_eq!(bench.give(Input::Tick), [Effect::Committed(EpochId(2))]);
    let next = bench.persisting(3, 3);
    assert_eq!(bench.persisted(next), [ack(3, 1)]);
    assert_eq!(bench.flushed(ticket - 1, Ok(())), [], "another ticket");
    assert_eq!(bench.flushed(ticket, Ok(())), [told(2)]);
    assert_eq!(bench.flushed(ticket, Ok(())), [], "said once");
}

#[test]
fn one_flush_is_under_way_and_the_next_covers_all_that_came_meanwhile() {
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.flushing(2);
    for epoch in [3, 4] {
        let mut effects = bench.flushed_epoch(epoch);
        effects.retain(|effect| !matches!(effect, Effect::Committed(_)));
        assert_eq!(effects, [ack(epoch, 1)]);
    }
    // One that is not acked yet is not covered.
    let mut effects = Vec::new();
    for message in epoch_with_disk(5, 5, true) {
        effects.extend(bench.hear(message));
    }
    let Some(Effect::Persist { ticket: last, .. }) = effects.last() else {
        panic!("{effects:?}");
    };
    assert_eq!(bench.flushed(ticket, Ok(())), [told(2)]);
    let effects = bench.persisted(*last);
    let [acked, Effect::FlushJournal { ticket, epoch }] = &effects[..] else {
        panic!("{effects:?}");
    };
    assert_eq!((acked, *epoch), (&ack(5, 1), EpochId(5)));
    // If all are acked, it begins at once.
    bench.give(Input::Tick);
    assert_eq!(bench.flushed_epoch(6), [ack(6, 1)]);
    let effects = bench.flushed(*ticket, Ok(()));
    assert!(
        matches!(&effects[..], [said, Effect::FlushJournal { epoch, .. }] if *said == told(5) && epoch.0 == 6),
        "{effects:?}"
    );
}

/// The guest waits for it.
#[test]
fn a_flush_that_hangs_or_fails_ends_the_session_and_keeps_what_was_acked() {
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.flushing(2);
    assert_eq!(
        bench.pass(599 * MS, true, false),
        [Effect::Committed(EpochId(2))]
    );
    let effects = bench.pass(2 * MS, true, false);
    assert!(gives_up(&effects), "{effects:?}");
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(2)));
    assert_eq!(bench.flushed(ticket, Ok(())), [], "the link is cut");
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.flushing(2);
    let effects = bench.flushed(ticket, Err("full".into()));
    assert!(
        matches!(&effects[..], [Effect::Send(Message::Bye(Bye::Unable(why))), Effect::CloseLink, ..]
            if why == "full"),
        "{effects:?}"
    );
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(2)));
}

/// Epochs that do not wait for storage do not hide that a flush does.
#[test]
fn epochs_that_go_on_do_not_excuse_a_flush_that_hangs() {
    let mut bench = Bench::standby_with_disk();
    bench.flushing(2);
    for epoch in 3..8 {
        bench.pass(100 * MS, true, false);
        let ticket = bench.persisting(epoch, epoch as u8);
        assert_eq!(bench.persisted(ticket), [ack(epoch, 1)]);
    }
    bench.pass(99 * MS, true, false);
    let effects = bench.pass(2 * MS, true, false);
    assert!(gives_up(&effects), "{effects:?}");
}

#[test]
fn the_first_flush_may_take_as_long_as_a_copy_and_sleep_does_not_count() {
    let mut bench = Bench::copying();
    bench.flushing(1);
    bench.give(Input::Tick);
    assert_eq!(bench.pass(59_999 * MS, true, false), []);
    let effects = bench.pass(2 * MS, true, false);
    let told = effects
        .iter()
        .any(|it| matches!(it, Effect::Send(Message::Bye(Bye::Unable(_)))));
    assert!(told, "{effects:?}");
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.flushing(2);
    bench.now += 10_000 * MS;
    bench.hear(Message::Heartbeat);
    assert_eq!(bench.pass(500 * MS, true, false), []);
    assert_eq!(bench.flushed(ticket, Ok(())), [self::told(2)]);
}

/// A promotion makes the journal durable itself.
#[test]
fn a_claim_waits_for_no_flush_and_says_nothing_of_it() {
    let mut bench = Bench::standby_with_disk();
    let ticket = bench.flushing(2);
    let effects = bench.give(Input::PromotionWanted);
    let claims = |effect: &Effect| matches!(effect, Effect::Claim { .. });
    assert!(effects.iter().any(claims), "{effects:?}");
    assert_eq!(bench.flushed(ticket, Ok(())), []);
    let granted = Input::Verdict(Verdict::Granted(Generation(4)));
    let effects = bench.give(granted);
    assert!(
        effects
            .iter()
            .any(|it| matches!(it, Effect::Promote { epoch, .. } if epoch.0 == 2))
    );
}

#[test]
fn a_flush_of_a_copy_given_up_says_nothing_in_the_next() {
    let mut bench = Bench::copying();
    let old = bench.flushing(1);
    bench.give(Input::Tick);
    bench.give(Input::DisksFailed { error: "so".into() });
    bench.introduce(GENERATION);
    bench.prove();
    bench.hear(Message::SyncDisks(vec![crate::core::disk::DiskSyncPlan {
        candidate: crate::core::disk::PairId(7),
        full: true,
        from: None,
    }]));
    let new = bench.flushing(1);
    assert_eq!(bench.flushed(old, Ok(())), []);
    assert_eq!(bench.flushed(new, Ok(())), [told(1)]);
}
