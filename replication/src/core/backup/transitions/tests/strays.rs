//! What comes at a wrong moment, twice, or about something else: it costs no copy, and starts nothing.

use super::*;
use crate::core::disk::{DiskSyncPlan, PairId};
use crate::core::start::{Starts, claimant};

fn breaks_the_protocol(effects: &[Effect]) -> bool {
    let bye = effects.first();
    matches!(bye, Some(Effect::Send(Message::Bye(Bye::Protocol(_)))))
}

fn promoted(bench: &mut Bench) -> Vec<Effect> {
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))))
}

#[test]
fn a_stall_of_this_side_is_no_silence_of_the_primary() {
    let mut bench = Bench::standby();
    let timeout = bench.core.policy.heartbeat_timeout;
    for stall in [timeout * 3 / 2, timeout * 100] {
        bench.now += stall;
        assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
        assert_eq!(bench.core.phase(), BackupPhase::Standby, "{stall:?}");
    }
    bench.pass(timeout, false, false);
    assert_eq!(bench.core.phase(), BackupPhase::Claiming);
}

#[test]
fn once_it_is_promoted_it_asks_nothing_more_and_does_not_stop_as_a_backup() {
    let mut bench = Bench::standby();
    assert_eq!(bench.hear(Message::Marked(mark(2))), [Effect::Rehearse]);
    // Another mark is to be looked for after this one.
    assert_eq!(bench.hear(Message::Marked(mark(3))), []);
    bench.give(Input::PromotionWanted);
    let known = GENERATION;
    let asked = bench.give(Input::Rehearsed(record(3, 2)));
    let mark = mark(3);
    assert_eq!(asked, [Effect::Claim { known, mark }]);
    let effects = promoted(&mut bench);
    assert!(
        matches!(effects.last(), Some(Effect::Promote { .. })),
        "{effects:?}"
    );
    assert_eq!(bench.core.next_wakeup(), None);
    assert_eq!(bench.give(Input::Tick), []);
    assert_eq!(bench.give(Input::StopWanted), [], "the guest runs here");
}

#[test]
fn a_side_that_ends_claims_nothing_any_more() {
    let mut bench = Bench::standby();
    let timeout = bench.core.policy.heartbeat_timeout;
    assert_eq!(bench.pass(timeout - MS, false, false), []);
    // In the moment in which the primary counts as lost, too.
    bench.now += MS;
    let farewell = Effect::Send(Message::Bye(Bye::BackupStopped));
    let effects = bench.give(Input::StopWanted);
    assert_eq!(effects, [farewell, Effect::CloseLink, Effect::Stop]);
    assert_eq!(bench.pass(timeout, false, false), []);
    assert_eq!(bench.give(Input::PromotionWanted), []);
}

#[test]
fn a_grant_that_is_not_later_than_what_it_knows_promotes_nobody() {
    for granted in [2, 3] {
        let mut bench = Bench::standby();
        bench.give(Input::LinkClosed);
        let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(granted))));
        assert_eq!(effects, [], "{granted}");
        assert_eq!(bench.core.phase(), BackupPhase::Claiming);
        assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
    }
}

#[test]
fn a_primary_that_is_being_replaced_is_told_nothing_about_the_arbiter() {
    let mut bench = Bench::standby();
    bench.hear(Message::Marked(mark(2)));
    assert_eq!(bench.give(Input::PromotionWanted), []);
    assert_eq!(
        bench.give(unavailable()),
        [Effect::Claim {
            known: GENERATION,
            mark: mark(2)
        }]
    );
}

#[test]
fn disks_are_planned_before_anything_else_of_the_copy() {
    let plan = || {
        Message::SyncDisks(vec![DiskSyncPlan {
            from: None,
            full: true,
            candidate: PairId(7),
        }])
    };
    let syncing = || {
        let mut bench = Bench::syncing();
        bench.core.identity.disks = vec![1 << 20];
        bench
    };
    assert!(matches!(syncing().hear(plan())[..], [Effect::BeginCopy(_)]));
    let mut begun = syncing();
    begun.hear(epoch_messages(1, 1).remove(0));
    assert!(breaks_the_protocol(&begun.hear(plan())));
    let mut planned = syncing();
    planned.hear(plan());
    assert!(breaks_the_protocol(&planned.hear(plan())));
}

#[test]
fn who_names_no_generation_or_no_session_breaks_the_protocol() {
    for (generation, session) in [(0, SESSION), (3, 0)] {
        let mut bench = Bench::new();
        bench.give(link_up());
        let hello = Hello {
            session,
            ..bench.hello()
        };
        let effects = bench.hear_from(Generation(generation), Message::Hello(hello));
        assert!(breaks_the_protocol(&effects), "{effects:?}");
    }
}

/// A backup without a copy where the guest ran last.
fn ran_here(record: Record, holder_lives: bool) -> Input {
    let record = Record {
        holder: claimant("b", None, "pid 1"),
        ..record
    };
    Input::Looked {
        record,
        holder_lives,
    }
}

fn looking() -> Bench {
    let mut bench = Bench::new();
    bench.core.identity.starts = Starts::IfItRanHere;
    assert_eq!(bench.give(Input::Tick), [Effect::Look]);
    bench
}

#[test]
fn nobody_looks_whether_to_start_the_guest_while_somebody_is_served() {
    let mut bench = Bench::new();
    bench.core.identity.starts = Starts::IfItRanHere;
    assert_eq!(bench.give(link_up()), [], "it may be the primary");
    assert_eq!(bench.give(Input::Tick), []);
    assert_eq!(bench.give(Input::LinkClosed).last(), Some(&Effect::Look));
}

#[test]
fn a_record_as_old_as_what_it_knows_counts_and_an_older_one_does_not() {
    // The core knows generation 2.
    let with_copy_of_a = |generation| Record {
        backup: Some("a".into()),
        ..record(generation, 0)
    };
    assert_eq!(
        looking().give(ran_here(with_copy_of_a(2), false)),
        [Effect::Inquire]
    );
    assert_eq!(looking().give(ran_here(with_copy_of_a(1), false)), []);
}

#[test]
fn a_guest_that_lives_or_ran_elsewhere_is_not_reported_as_ended() {
    let elsewhere = || Input::Looked {
        record: record(3, 0),
        holder_lives: false,
    };
    let never = || ran_here(record(2, 0), true);
    let cases: [&dyn Fn() -> Input; 2] = [&elsewhere, &never];
    for case in cases {
        let mut bench = looking();
        for _ in 0..30 {
            assert_eq!(bench.give(case()), []);
            bench.now += bench.core.policy.arbiter_check;
            bench.give(Input::Tick);
        }
    }
}
