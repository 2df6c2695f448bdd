//! A machine that has broken: nothing more of it is captured, and the backup goes on from what it has.

use super::*;

const WHY: &str = "vCPU 0 cannot go on";

fn broke() -> Input {
    Input::MachineBroke { why: WHY.into() }
}

fn told() -> Effect {
    Effect::TakeOver {
        why: WHY.into(),
        machine_broke: true,
    }
}

fn patience() -> Duration {
    let policy = Policy::default();
    policy.arbiter_check + 10 * policy.heartbeat_timeout
}

/// Ends without a word, so that the backup claims the guest.
fn leaves(effects: &[Effect]) -> bool {
    matches!(
        effects,
        [.., Effect::CloseLink, Effect::LeftToBackup { why }] if why.contains(WHY)
    )
}

fn captures(effects: &[Effect]) -> bool {
    effects.iter().any(|it| matches!(it, Effect::Capture(_)))
}

#[test]
fn the_backup_goes_on_at_once_from_the_last_epoch() {
    let mut bench = Bench::protected();
    assert_eq!(bench.give(broke()), [told()]);
    bench.give(Input::OutputWaiting);
    bench.give(Input::CheckpointWanted);
    assert_eq!(bench.pass(100 * MS, true, true), []);
    let current = Generation(4);
    let holder = "b".into();
    let effects = bench.give(Input::Verdict(Verdict::Refused { current, holder }));
    assert_eq!(effects, [], "nothing was asked");
    // It says that it was granted the guest. Whether that is so does not matter here any more.
    assert!(leaves(&bench.hear(Message::Bye(Bye::Fenced { current }))));
    assert_eq!(bench.core.phase(), PrimaryPhase::Stopped);
}

#[test]
fn what_is_captured_already_is_still_acknowledged_and_leaves() {
    let mut bench = Bench::protected().in_capture();
    assert_eq!(bench.give(broke()), [], "it is on its way");
    bench.ship(2);
    assert_eq!(bench.ack(2), [Effect::Release(EpochId(2)), told()]);
}

#[test]
fn a_capture_that_fails_with_the_machine_is_not_tried_again() {
    let mut bench = Bench::protected().in_capture();
    bench.give(broke());
    let error = "the machine has broken".into();
    let epoch = EpochId(2);
    let effects = bench.give(Input::CaptureFailed { epoch, error });
    assert_eq!(effects, [told()]);
    assert!(!captures(&bench.pass(100 * MS, true, true)));
}

#[test]
fn a_backup_that_takes_too_long_is_left_to_itself_and_nothing_is_claimed_from_it() {
    // What is on its way is not acknowledged.
    let mut bench = Bench::protected().in_capture();
    bench.ship(2);
    bench.give(broke());
    let effects = bench.pass(patience() - MS, true, true);
    assert!(
        !effects.contains(&told()) && !captures(&effects),
        "{effects:?}"
    );
    assert_eq!(bench.pass(MS, true, true), [told()]);
    // It was told, and nothing comes of it.
    let mut effects = bench.pass(patience(), false, false);
    effects.retain(|it| !matches!(it, Effect::Confirm { .. }));
    assert!(leaves(&effects), "{effects:?}");
}

#[test]
fn a_backup_that_is_lost_meanwhile_may_still_have_the_guest_and_nothing_is_claimed_from_it() {
    let lost = || Input::LinkDown {
        cause: "reset".into(),
    };
    let mut bench = Bench::protected().in_capture();
    bench.give(broke());
    let effects = bench.give(lost());
    // If it hears of this, it knows why it goes on.
    assert!(leaves(&effects) && effects.contains(&told()), "{effects:?}");
    let mut bench = Bench::protected();
    bench.give(broke());
    assert!(leaves(&bench.give(lost())));
    // Nobody asks for anything any more.
    assert_eq!(bench.pass(patience(), false, false), []);
}

#[test]
fn an_arbiter_that_is_away_keeps_no_backup_from_trying() {
    let mut bench = Bench::protected();
    bench.hear(Message::NoArbiter("it is away".into()));
    assert_eq!(bench.give(broke()), [told()]);
}

#[test]
fn a_stall_has_the_arbiter_asked_before_anything_leaves() {
    let mut bench = Bench::protected().in_capture();
    bench.ship(2);
    bench.give(broke());
    bench.now += Policy::default().heartbeat_timeout;
    assert_eq!(bench.pass(MS, false, false), [doubt()]);
    assert_eq!(bench.ack(2), [], "held in doubt");
    let (current, holder) = (Generation(4), "b".into());
    let effects = bench.give(Input::Verdict(Verdict::Refused { current, holder }));
    assert!(
        matches!(
            &effects[..],
            [
                ..,
                Effect::Fenced {
                    handed_over: false,
                    ..
                }
            ]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_side_in_doubt_tells_the_backup_once_the_arbiter_has_confirmed_its_generation() {
    let mut bench = Bench::protected();
    bench.now += Policy::default().heartbeat_timeout;
    assert_eq!(bench.pass(MS, false, false), [doubt()]);
    assert_eq!(bench.give(broke()), []);
    assert_eq!(bench.give(confirmed()), [told()]);
}

#[test]
fn a_machine_that_breaks_where_the_guest_is_no_more_is_no_news() {
    let mut bench = claiming();
    assert!(is_fenced(&bench.give(refused())));
    assert_eq!(bench.give(broke()), []);
}

#[test]
fn without_a_whole_copy_elsewhere_the_guest_stays_and_is_captured_no_more() {
    let stays = |effects: &[Effect]| matches!(effects, [Effect::NotHandedOver { .. }]);
    assert!(stays(&Bench::new().give(broke())), "alone");
    let mut bench = Bench::welcomed();
    assert!(stays(&bench.give(broke())), "synchronising");
    let effects = bench.give(Input::SyncRoundShipped {
        pages_left: 0,
        disk_bytes_left: 0,
        left_takes: Duration::ZERO,
    });
    assert!(!captures(&effects), "{effects:?}");
    // The first epoch is never whole.
    let mut bench = Bench::capturing();
    assert_eq!(bench.give(broke()), []);
    let (epoch, error) = (EpochId(1), "the machine has broken".into());
    let effects = bench.give(Input::CaptureFailed { epoch, error });
    assert!(stays(&effects), "{effects:?}");
    assert!(!captures(&bench.pass(100 * MS, true, true)));
}

/// The backup is lost, and the arbiter has the claim before it.
fn claiming() -> Bench {
    let mut bench = Bench::protected();
    let cause = "reset".into();
    assert!(claims(&bench.give(Input::LinkDown { cause })));
    bench
}

/// A person wants another backup, and the arbiter has the claim before it.
fn dismissing() -> Bench {
    let mut bench = Bench::protected();
    let cause = "another one is wanted".into();
    assert_eq!(bench.give(Input::BackupDismissed { cause }), [claim()]);
    bench
}

fn refused() -> Input {
    let (current, holder) = (Generation(4), "b".into());
    Input::Verdict(Verdict::Refused { current, holder })
}

fn is_fenced(effects: &[Effect]) -> bool {
    matches!(effects, [.., Effect::Fenced { .. }])
}

#[test]
fn a_claim_that_is_about_to_be_repeated_is_withdrawn() {
    // The guest may be the backup's, which asks, too.
    let mut bench = claiming();
    assert_eq!(bench.give(unavailable()), []);
    let effects = bench.give(broke());
    assert!(
        matches!(&effects[..], [Effect::LeftToBackup { why }] if why.contains("reset")),
        "{effects:?}"
    );
    assert_eq!(bench.core.phase(), PrimaryPhase::Stopped);
    assert_eq!(bench.pass(patience(), false, false), []);
    // A backup that was to go is needed now.
    let mut bench = dismissing();
    assert_eq!(bench.give(unavailable()), []);
    assert_eq!(bench.give(broke()), [told()]);
    let effects = bench.pass(patience() - MS, true, true);
    assert!(!effects.contains(&claim()), "{effects:?}");
}

#[test]
fn a_backup_that_was_told_to_take_over_is_not_dismissed_once_the_machine_has_broken() {
    let mut bench = Bench::protected();
    let why = "this host is to stop".into();
    bench.give(Input::HandOver { why });
    bench.ship(2);
    let effects = bench.ack(2);
    assert!(
        matches!(effects[..], [_, Effect::TakeOver { .. }, _]),
        "{effects:?}"
    );
    let cause = "another one is wanted".into();
    assert_eq!(bench.give(Input::BackupDismissed { cause }), [claim()]);
    bench.give(unavailable());
    assert_eq!(bench.give(broke()), []);
    let effects = bench.pass(patience() - MS, true, true);
    assert!(!effects.contains(&claim()), "{effects:?}");
}

#[test]
fn a_claim_that_the_arbiter_has_before_it_is_not_repeated() {
    let mut bench = claiming();
    assert_eq!(bench.give(broke()), []);
    let effects = bench.give(unavailable());
    assert!(
        matches!(effects[..], [Effect::LeftToBackup { .. }]),
        "{effects:?}"
    );
    let mut bench = dismissing();
    assert_eq!(bench.give(broke()), []);
    assert_eq!(bench.give(unavailable()), [told()]);
    // The link is lost before the arbiter answers.
    let mut bench = dismissing();
    bench.give(broke());
    let cause = "reset".into();
    let effects = bench.give(Input::LinkDown { cause });
    assert_eq!(effects, [Effect::CloseLink]);
    let effects = bench.give(unavailable());
    assert!(
        matches!(effects[..], [Effect::LeftToBackup { .. }]),
        "{effects:?}"
    );
}

#[test]
fn an_arbiter_that_hangs_does_not_keep_a_broken_machine_for_ever() {
    let mut bench = claiming();
    bench.give(broke());
    assert_eq!(bench.pass(patience() - MS, false, false), []);
    let effects = bench.pass(MS, false, false);
    assert!(
        matches!(effects[..], [Effect::LeftToBackup { .. }]),
        "{effects:?}"
    );
    assert_eq!(bench.give(refused()), [], "it has ended");
    let mut bench = dismissing();
    bench.give(broke());
    assert!(leaves(&bench.pass(patience(), true, true)));
}

#[test]
fn the_answer_to_a_claim_that_was_before_the_arbiter_decides() {
    for begin in [claiming, dismissing] {
        let mut bench = begin();
        bench.give(broke());
        assert!(is_fenced(&bench.give(refused())), "the backup has it");
        // Nobody else can go on with it, and its owner is told so. What it said leaves.
        let mut bench = begin();
        bench.give(broke());
        let effects = bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
        assert!(
            matches!(
                &effects[..],
                [
                    ..,
                    Effect::GoAlone {
                        generation: Generation(4),
                        ..
                    },
                    Effect::NotHandedOver { .. }
                ]
            ),
            "{effects:?}"
        );
        bench.give(Input::GuestStopped);
        bench.give(Input::Opened);
        assert_eq!(bench.core.phase(), PrimaryPhase::Stopped);
    }
}

#[test]
fn a_machine_whose_backup_is_to_go_is_captured_no_more_once_it_has_broken() {
    let mut bench = dismissing();
    assert_eq!(bench.give(broke()), []);
    assert!(!captures(&bench.give(Input::CheckpointWanted)));
    assert!(!captures(&bench.pass(100 * MS, true, true)));
}

#[test]
fn a_backup_that_is_needed_is_not_dismissed() {
    let mut bench = Bench::protected().in_capture();
    bench.give(broke());
    let cause = "another one is wanted".into();
    assert_eq!(bench.give(Input::BackupDismissed { cause }), []);
    bench.ship(2);
    assert_eq!(bench.ack(2), [Effect::Release(EpochId(2)), told()]);
}

#[test]
fn a_backup_that_says_that_it_stops_is_left_nothing() {
    let mut bench = Bench::protected();
    assert_eq!(bench.give(broke()), [told()]);
    let effects = bench.hear(Message::Bye(Bye::BackupStopped));
    // But somebody may have forged that: nothing of what is held leaves.
    assert!(
        matches!(
            effects[..],
            [Effect::CloseLink, Effect::NotHandedOver { .. }]
        ),
        "{effects:?}"
    );
    assert_eq!(bench.core.phase(), PrimaryPhase::Stopped);
    let mut bench = Bench::protected();
    bench.give(broke());
    assert!(leaves(&bench.hear(Message::Bye(Bye::Protocol("?".into())))));
}

/// What it has committed stays valid until the arbiter has named another side: it may go on from that.
#[test]
fn a_backup_that_cannot_keep_its_copy_may_go_on_from_what_it_has() {
    let mut bench = Bench::protected();
    bench.give(broke());
    let effects = bench.hear(Message::Bye(Bye::Unable("its disk failed".into())));
    assert!(leaves(&effects), "{effects:?}");
    let Some(Effect::LeftToBackup { why }) = effects.last() else {
        panic!("{effects:?}");
    };
    assert!(
        why.contains("its disk failed; it goes on if it still has one"),
        "{why}"
    );
    assert!(!why.contains("if its copy is whole"), "it was: {why}");
}

#[test]
fn a_backup_that_has_acknowledged_nothing_may_have_nothing() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.give(broke());
    let cause = "reset".into();
    let effects = bench.give(Input::LinkDown { cause });
    let Some(Effect::LeftToBackup { why }) = effects.last() else {
        panic!("{effects:?}");
    };
    assert!(why.contains("if its copy is whole"), "{why}");
}

/// Who ends a guest on purpose ends it everywhere, whatever its machine is like.
#[test]
fn a_guest_that_ends_has_its_last_words_by_a_grant() {
    let granted = || Input::Verdict(Verdict::Granted(Generation(4)));
    // It ended first.
    let mut bench = Bench::protected();
    assert!(captures(&bench.give(Input::GuestStopped)));
    let effects = bench.give(broke());
    assert!(
        matches!(
            effects[..],
            [Effect::NotHandedOver { .. }, Effect::Claim { .. }]
        ),
        "{effects:?}"
    );
    let effects = bench.give(granted());
    assert!(
        effects
            .iter()
            .any(|it| matches!(it, Effect::GoAlone { .. }))
    );
    // It ended, the backup was lost, and the arbiter is away.
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    let cause = "reset".into();
    assert!(claims(&bench.give(Input::LinkDown { cause })));
    assert_eq!(bench.give(unavailable()), []);
    let effects = bench.give(broke());
    assert!(
        matches!(effects[..], [Effect::NotHandedOver { .. }]),
        "{effects:?}"
    );
    assert_eq!(bench.pass(patience(), false, false), [claim()]);
    // Somebody stops it before the backup was told.
    let mut bench = Bench::protected().in_capture();
    bench.give(broke());
    let effects = bench.give(Input::GuestStopped);
    assert!(
        matches!(
            effects[..],
            [Effect::Claim { .. }, Effect::NotHandedOver { .. }]
        ),
        "{effects:?}"
    );
    let effects = bench.give(granted());
    assert!(
        effects
            .iter()
            .any(|it| matches!(it, Effect::GoAlone { .. }))
    );
}

#[test]
fn a_handover_that_has_begun_goes_on_without_another_epoch() {
    let mut bench = Bench::protected();
    let why = "this host is to stop".into();
    let effects = bench.give(Input::HandOver { why });
    let ends = [Effect::KeepArrivals, Effect::Capture(EpochId(2))];
    assert_eq!(effects, ends);
    assert_eq!(bench.give(broke()), []);
    let (epoch, error) = (EpochId(2), "the machine has broken".into());
    let effects = bench.give(Input::CaptureFailed { epoch, error });
    assert_eq!(effects, [told()]);
    assert_eq!(bench.give(broke()), [], "that is known");
}
