//! How a guest is handed over to its backup, and what happens if that comes to nothing.

use super::*;

/// Protected; the guest is to be handed over.
fn handing_over() -> Bench {
    let mut bench = Bench::protected();
    let why = "this host is to stop".into();
    let effects = bench.give(Input::HandOver { why });
    let ends = [Effect::KeepArrivals, Effect::Capture(EpochId(2))];
    assert_eq!(effects, ends, "the epoch ends");
    bench
}

/// The last epoch is released, and the backup is told.
fn let_go() -> Bench {
    let mut bench = handing_over();
    bench.ship(2);
    let effects = bench.ack(2);
    let why = "this host is to stop".into();
    let told = Effect::TakeOver {
        why,
        machine_broke: false,
    };
    let all = [Effect::Release(EpochId(2)), told, Effect::SendArrivals];
    assert_eq!(effects, all);
    bench
}

fn refused() -> Input {
    let current = Generation(4);
    let holder = "b".into();
    Input::Verdict(Verdict::Refused { current, holder })
}

fn patience() -> Duration {
    let policy = Policy::default();
    policy.arbiter_check + 10 * policy.heartbeat_timeout
}

/// A millisecond in which nothing is heard, but that the arbiter confirms what it is asked about.
fn silence(bench: &mut Bench) -> Vec<Effect> {
    let mut effects = bench.pass(MS, false, false);
    if effects
        .iter()
        .any(|it| matches!(it, Effect::Confirm { .. }))
    {
        bench.give(confirmed());
    }
    effects.retain(|it| !matches!(it, Effect::Confirm { .. }));
    effects
}

/// After so many marks.
fn claim_with(beat: u64) -> Effect {
    Effect::Claim {
        known: GENERATION,
        mark: mark(beat),
    }
}

fn is_not_handed_over(effects: &[Effect]) -> bool {
    matches!(effects.last(), Some(Effect::NotHandedOver { .. }))
}

#[test]
fn once_the_backup_is_told_nothing_more_ends_or_leaves_here() {
    let mut bench = let_go();
    bench.give(Input::OutputWaiting);
    bench.give(Input::CheckpointWanted);
    assert_eq!(bench.pass(100 * MS, true, true), []);
    // The backup was granted the guest.
    let current = Generation(4);
    let effects = bench.hear(Message::Bye(Bye::Fenced { current }));
    assert!(claims(&effects), "{effects:?}");
    let effects = bench.give(refused());
    assert!(
        matches!(
            &effects[..],
            [Effect::Fenced {
                handed_over: true,
                ..
            }]
        ),
        "{effects:?}"
    );
}

#[test]
fn the_arbiter_decides_and_not_what_the_backup_says() {
    let mut bench = let_go();
    let current = Generation(4);
    bench.hear(Message::Bye(Bye::Fenced { current }));
    let effects = bench.give(Input::Verdict(Verdict::Granted(current)));
    assert!(
        matches!(
            &effects[..],
            [Effect::GoAlone { .. }, Effect::NotHandedOver { .. }]
        ),
        "{effects:?}"
    );
    assert!(bench.core.handover.is_none());
}

#[test]
fn a_backup_that_does_not_take_the_guest_over_in_time_does_not_keep_it_silent() {
    let mut bench = let_go();
    // It says nothing at all while it claims.
    let mut effects = Vec::new();
    for _ in 0..patience().as_millis() - 1 {
        effects.extend(silence(&mut bench));
    }
    assert_eq!(effects, []);
    let effects = silence(&mut bench);
    let asks = [Effect::CloseLink, claim_with(2)];
    assert_eq!(effects, asks);
    let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert!(is_not_handed_over(&effects), "{effects:?}");
}

#[test]
fn a_last_epoch_that_is_not_acknowledged_in_time_calls_it_off() {
    let mut bench = handing_over();
    bench.ship(2);
    let effects = bench.pass(patience(), true, true);
    assert!(is_not_handed_over(&effects), "{effects:?}");
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
    let goes_on = [Effect::Release(EpochId(2)), Effect::Capture(EpochId(3))];
    assert_eq!(bench.ack(2), goes_on);
}

#[test]
fn who_is_not_protected_hands_nothing_over() {
    let why = || "so".into();
    let mut bench = Bench::new();
    let effects = bench.give(Input::HandOver { why: why() });
    assert!(is_not_handed_over(&effects), "alone");
    let mut bench = Bench::capturing();
    let effects = bench.give(Input::HandOver { why: why() });
    assert!(is_not_handed_over(&effects), "no copy yet");
    let mut bench = Bench::protected();
    bench.hear(Message::NoArbiter("it is away".into()));
    let effects = bench.give(Input::HandOver { why: why() });
    assert!(is_not_handed_over(&effects), "it would not be granted");
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    let effects = bench.give(Input::HandOver { why: why() });
    assert!(is_not_handed_over(&effects), "the guest has ended");
}

#[test]
fn a_backup_that_is_lost_meanwhile_is_replaced_as_ever() {
    for bench in [handing_over(), let_go()] {
        let mut bench = bench;
        let cause = "reset".into();
        let effects = bench.give(Input::LinkDown { cause });
        assert!(claims(&effects), "{effects:?}");
        let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
        assert!(is_not_handed_over(&effects), "{effects:?}");
    }
    // It took the guest over without having been told.
    let mut bench = handing_over();
    let cause = "reset".into();
    bench.give(Input::LinkDown { cause });
    let effects = bench.give(refused());
    assert!(
        matches!(
            &effects[..],
            [Effect::Fenced {
                handed_over: false,
                ..
            }]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_stall_before_the_backup_is_told_has_the_arbiter_asked_first() {
    let mut bench = handing_over();
    bench.ship(2);
    bench.now += Policy::default().heartbeat_timeout;
    assert_eq!(bench.pass(MS, false, false), [doubt()]);
    assert_eq!(bench.ack(2), [], "held in doubt");
    // What came after such a silence is newer than the question.
    assert_eq!(bench.give(confirmed()), [doubt()]);
    let effects = bench.give(confirmed());
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Release(_),
                Effect::TakeOver { .. },
                Effect::SendArrivals
            ]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_guest_that_ends_meanwhile_is_not_handed_over() {
    // It is stopped while its last epoch is on its way.
    let mut bench = handing_over();
    let effects = bench.give(Input::GuestStopped);
    assert!(is_not_handed_over(&effects), "{effects:?}");
    bench.ship(2);
    let told = |effects: &[Effect]| {
        let is_told = |it: &Effect| matches!(it, Effect::TakeOver { .. });
        effects.iter().any(is_told)
    };
    let effects = bench.ack(2);
    assert!(!told(&effects), "{effects:?}");
    // It is to have another standby.
    let mut bench = handing_over();
    let cause = "another one is wanted".into();
    let effects = bench.give(Input::BackupDismissed { cause });
    assert!(is_not_handed_over(&effects), "{effects:?}");
}

#[test]
fn a_backup_that_would_not_be_granted_the_guest_any_more_is_not_told() {
    let mut bench = handing_over();
    bench.hear(Message::NoArbiter("it is away".into()));
    bench.ship(2);
    assert_eq!(bench.ack(2)[0], Effect::Release(EpochId(2)));
    let effects = bench.pass(patience(), true, true);
    let is_told = |it: &Effect| matches!(it, Effect::TakeOver { .. });
    assert!(!effects.iter().any(is_told), "{effects:?}");
    let is_off =
        |it: &Effect| matches!(it, Effect::NotHandedOver { why } if why.contains("granted"));
    assert!(effects.iter().any(is_off), "{effects:?}");
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
}

#[test]
fn a_side_that_slept_has_not_waited_for_its_backup() {
    let mut bench = handing_over();
    bench.ship(2);
    bench.now += patience();
    let effects = bench.pass(MS, true, true);
    assert!(!is_not_handed_over(&effects), "{effects:?}");
    let effects = bench.pass(patience() - MS, true, true);
    assert!(!is_not_handed_over(&effects), "{effects:?}");
    assert!(is_not_handed_over(&bench.pass(MS, true, true)));
}

/// Nothing is due while only the arbiter is waited for.
#[test]
fn a_claim_that_takes_longer_than_a_handover_may_keeps_nobody_busy() {
    let mut bench = let_go();
    let cause = "reset".into();
    assert!(claims(&bench.give(Input::LinkDown { cause })));
    assert_eq!(bench.pass(2 * patience(), false, false), []);
    let next = bench.core.next_wakeup();
    assert!(next.is_none_or(|at| at > bench.now), "{next:?}");
}
