//! A backup that is dismissed gives its copy up only once it cannot take over any more.

use super::*;

fn dismiss(bench: &mut Bench) -> Vec<Effect> {
    let cause = "another one".into();
    bench.give(Input::BackupDismissed { cause })
}

fn granted(bench: &mut Bench) -> Vec<Effect> {
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))))
}

#[test]
fn a_whole_copy_is_dismissed_under_a_grant_and_told_so_before_the_link_is_closed() {
    let mut bench = Bench::protected();
    assert_eq!(dismiss(&mut bench), [claim()]);
    // A second wish changes nothing but the reason.
    assert_eq!(dismiss(&mut bench), []);
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
    let current = Generation(4);
    assert_eq!(
        granted(&mut bench),
        [
            Effect::Send(Message::Bye(Bye::Fenced { current })),
            Effect::CloseLink,
            claim(),
        ]
    );
    // What is sent on the way still has the session's generation.
    assert_eq!(bench.core.generation(), GENERATION);
    assert_eq!(
        granted(&mut bench),
        [Effect::GoAlone {
            generation: current,
            cause: "another one".into(),
        }]
    );
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
    assert_eq!(bench.core.generation(), current);
}

#[test]
fn epochs_go_on_until_the_arbiter_has_answered_and_it_is_asked_again() {
    let mut bench = Bench::protected();
    dismiss(&mut bench);
    assert_eq!(bench.give(unavailable()), []);
    let retry = Policy::default().arbiter_retry;
    let effects = bench.pass(retry, true, true);
    assert!(effects.contains(&claim()), "{effects:?}");
    assert!(
        effects.contains(&Effect::Capture(EpochId(2))),
        "{effects:?}"
    );
}

#[test]
fn a_dismissed_backup_that_was_faster_owns_the_guest() {
    let mut bench = Bench::protected();
    dismiss(&mut bench);
    let refused = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "b".into(),
    }));
    assert!(matches!(refused.last(), Some(Effect::Fenced { .. })));
}

#[test]
fn without_a_whole_copy_no_grant_is_needed() {
    let mut bench = Bench::welcomed();
    let effects = dismiss(&mut bench);
    assert_eq!(effects.first(), Some(&Effect::CloseLink));
    assert_eq!(bench.core.generation(), GENERATION);
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
    bench.give(Input::Opened);
    assert_eq!(dismiss(&mut bench), []);
}

#[test]
fn a_claim_that_may_have_been_granted_is_repeated_before_the_record_is_looked_at() {
    let mut bench = Bench::protected();
    assert_eq!(dismiss(&mut bench), [claim()]);
    // A stall while the answer gets lost: the record may name this side under the next generation.
    bench.now += 100 * MS;
    bench.give(Input::Tick);
    bench.give(unavailable());
    let retry = Policy::default().arbiter_retry;
    let effects = bench.pass(retry, true, true);
    assert_eq!(effects, [claim()], "and nothing is released meanwhile");
}

#[test]
fn a_grant_that_comes_when_nobody_waits_for_it_any_more_is_held_all_the_same() {
    let mut bench = Bench::capturing();
    dismiss(&mut bench);
    let (epoch, error) = (EpochId(1), String::from("so"));
    bench.give(Input::CaptureFailed { epoch, error });
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
    bench.give(Input::Opened);
    let effects = granted(&mut bench);
    assert!(
        matches!(
            &effects[..],
            [Effect::GoAlone { generation, .. }] if generation.0 == 4
        ),
        "{effects:?}"
    );
    assert_eq!(bench.core.generation(), Generation(4));
}
