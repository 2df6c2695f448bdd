//! The guest's end: nothing that it said is lost, and no time-out decides.

use super::*;

fn farewell() -> [Effect; 2] {
    [
        Effect::Send(Message::Bye(Bye::GuestStopped)),
        Effect::CloseLink,
    ]
}

fn go_alone(generation: u64, cause: &str) -> Effect {
    Effect::GoAlone {
        generation: Generation(generation),
        cause: cause.into(),
    }
}

fn lost(bench: &mut Bench) -> Vec<Effect> {
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    })
}

impl Bench {
    /// Lets the epoch that is being captured be acked; returns what follows.
    fn passes(&mut self, epoch: u64) -> Vec<Effect> {
        self.ship(epoch);
        self.ack(epoch)
    }

    /// All has left: it asks that nobody may take over, and ends with the answer.
    fn ends(&mut self) {
        assert_eq!(self.core.next_wakeup(), Some(self.now));
        let effects = self.give(Input::Tick);
        assert!(matches!(effects[..], [Effect::Claim { .. }]), "{effects:?}");
        let granted = Input::Verdict(Verdict::Granted(Generation(4)));
        assert_eq!(self.give(granted), farewell());
        // The backup knows no other.
        assert_eq!(self.core.generation(), GENERATION);
        self.assert_stopped();
    }

    fn assert_stopped(&mut self) {
        assert_eq!(self.core.phase(), PrimaryPhase::Stopped);
        assert_eq!(self.pass(1000 * MS, true, true), []);
        assert_eq!(self.give(Input::CheckpointWanted), []);
        assert_eq!(self.give(Input::GuestStopped), []);
        assert_eq!(self.core.next_wakeup(), None);
    }
}

#[test]
fn what_the_guest_said_last_leaves_before_this_side_ends() {
    let mut bench = Bench::protected();
    assert_eq!(
        bench.give(Input::GuestStopped),
        [Effect::Capture(EpochId(2))]
    );
    assert!(bench.core.is_ending());
    assert_eq!(bench.passes(2), [Effect::Release(EpochId(2))]);
    // Not in the same breath: the release is to be over.
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
    bench.ends();
}

#[test]
fn an_epoch_whose_capture_is_under_way_may_not_have_the_end() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    assert_eq!(bench.give(Input::GuestStopped), []);
    let release_and_go_on = [Effect::Release(EpochId(2)), Effect::Capture(EpochId(3))];
    assert_eq!(bench.passes(2), release_and_go_on);
    assert_eq!(bench.passes(3), [Effect::Release(EpochId(3))]);
    bench.ends();
}

/// Everything has left, and the arbiter is asked.
fn asking() -> Bench {
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    bench.passes(2);
    assert_eq!(bench.give(Input::Tick), [claim()]);
    bench
}

#[test]
fn once_all_has_left_the_end_waits_for_one_answer_whatever_it_is() {
    let mut silent = asking();
    assert_eq!(silent.give(unavailable()), farewell());
    silent.assert_stopped();

    let mut refused = asking();
    let (current, holder) = (Generation(4), "b".into());
    refused.give(Input::Verdict(Verdict::Refused { current, holder }));
    assert_eq!(refused.core.phase(), PrimaryPhase::Fenced);

    // The generation that somebody names may be the one that is just being granted.
    let mut overtaken = asking();
    let generation = Generation(4);
    assert_eq!(
        overtaken.give(Input::HeartbeatHeard {
            session: SESSION,
            generation
        }),
        []
    );
    let granted = Input::Verdict(Verdict::Granted(generation));
    assert_eq!(overtaken.give(granted), farewell());

    let mut without_link = asking();
    assert_eq!(lost(&mut without_link), [Effect::CloseLink]);
    assert_eq!(without_link.give(unavailable()), []);
    without_link.assert_stopped();

    let mut stalled = asking();
    stalled.now += 100 * MS;
    assert!(
        !stalled
            .give(Input::Tick)
            .contains(&Effect::Capture(EpochId(3)))
    );
    let granted = Input::Verdict(Verdict::Granted(Generation(4)));
    assert_eq!(stalled.give(granted), farewell());
}

#[test]
fn without_a_backup_the_end_waits_for_the_arbiter_however_long() {
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    assert!(claims(&lost(&mut bench)));
    for _ in 0..100 {
        bench.give(unavailable());
        assert_eq!(bench.pass(150 * MS, false, false), [claim()]);
    }
    let granted = Input::Verdict(Verdict::Granted(Generation(4)));
    assert_eq!(bench.give(granted), [go_alone(4, "gone")]);
    assert_eq!(bench.pass(1000 * MS, false, false), []);
    // Whoever connects meanwhile is not wanted.
    assert_eq!(bench.give(link_up()), [Effect::CloseLink]);
    assert_eq!(bench.give(Input::Opened), []);
    bench.assert_stopped();
}

#[test]
fn a_guest_that_ends_while_its_primary_claims_ends_with_the_grant() {
    let mut bench = Bench::protected();
    lost(&mut bench);
    assert_eq!(bench.give(Input::GuestStopped), []);
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
    assert_eq!(bench.give(Input::Opened), []);
    bench.assert_stopped();
    // Or is somebody else's.
    let mut bench = Bench::protected();
    lost(&mut bench);
    bench.give(Input::GuestStopped);
    let (current, holder) = (Generation(4), "b".into());
    bench.give(Input::Verdict(Verdict::Refused { current, holder }));
    assert_eq!(bench.core.phase(), PrimaryPhase::Fenced);
}

#[test]
fn a_guest_that_ends_while_its_output_is_let_go_waits_for_that() {
    let mut bench = Bench::protected();
    lost(&mut bench);
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(bench.give(Input::GuestStopped), []);
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
    bench.give(Input::Opened);
    bench.assert_stopped();
}

#[test]
fn a_stall_in_the_last_release_takes_one_more_epoch() {
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    assert_eq!(bench.passes(2), [Effect::Release(EpochId(2))]);
    bench.now += 100 * MS;
    assert_eq!(
        bench.hear(Message::Heartbeat),
        [Effect::Send(Message::Heartbeat), doubt()]
    );
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
    let still_mine = Input::Verdict(Verdict::Granted(GENERATION));
    assert_eq!(bench.give(still_mine), [Effect::Capture(EpochId(3))]);
    assert_eq!(bench.passes(3), [Effect::Release(EpochId(3))]);
    bench.ends();
}

#[test]
fn nothing_is_waited_for_where_nothing_is_held() {
    let mut alone = Bench::new();
    assert_eq!(alone.give(Input::GuestStopped), []);
    alone.assert_stopped();
    let mut handshaking = Bench::new();
    handshaking.give(link_up());
    assert_eq!(handshaking.give(Input::GuestStopped), farewell());
    handshaking.assert_stopped();
}

#[test]
fn a_synchronisation_under_way_is_left_and_what_it_held_let_go() {
    let mut bench = Bench::capturing();
    let (epoch, error) = (EpochId(1), "as ordered".into());
    bench.give(Input::CaptureFailed { epoch, error });
    let mut effects = farewell().to_vec();
    effects.push(go_alone(GENERATION.0, "the guest has ended"));
    assert_eq!(bench.give(Input::GuestStopped), effects);
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
    bench.give(Input::Opened);
    bench.assert_stopped();
}

#[test]
fn who_is_told_to_end_at_once_drops_what_is_held_but_keeps_the_backup_from_taking_over() {
    let granted = || Input::Verdict(Verdict::Granted(Generation(4)));
    for mut bench in [Bench::protected(), Bench::welcomed()] {
        bench.give(Input::GuestStopped);
        if bench.core.phase() == PrimaryPhase::Alone {
            assert_eq!(bench.give(Input::Abandoned), []);
        } else {
            assert_eq!(bench.give(Input::Abandoned), [claim()]);
            assert_eq!(bench.give(granted()), farewell());
        }
        bench.assert_stopped();
    }
    let mut syncing = Bench::welcomed();
    assert_eq!(syncing.give(Input::Abandoned), [claim()]);
    assert_eq!(syncing.give(granted()), farewell());
    syncing.assert_stopped();
    // What is granted lets nothing out any more.
    let mut claiming = Bench::protected();
    lost(&mut claiming);
    claiming.give(Input::GuestStopped);
    assert_eq!(claiming.give(Input::Abandoned), []);
    assert_eq!(claiming.give(granted()), []);
    claiming.assert_stopped();
    let mut between_questions = Bench::protected();
    lost(&mut between_questions);
    between_questions.give(unavailable());
    assert_eq!(between_questions.give(Input::Abandoned), [claim()]);
    between_questions.give(unavailable());
    between_questions.assert_stopped();
}

#[test]
fn the_last_answer_is_not_waited_for_long() {
    for has_link in [true, false] {
        let mut bench = asking();
        if !has_link {
            lost(&mut bench);
        }
        let before = bench.now;
        let mut effects = Vec::new();
        while bench.core.phase() != PrimaryPhase::Stopped {
            assert!(bench.now < before + 600 * MS, "{has_link}");
            bench.now = bench.core.next_wakeup().expect("a deadline runs");
            if has_link {
                effects.extend(bench.hear(Message::Heartbeat));
            }
            effects.extend(bench.give(Input::Tick));
            // Impatience makes it no longer.
            effects.extend(bench.give(Input::Abandoned));
        }
        assert_eq!(bench.now, before + 600 * MS, "{has_link}");
        assert_eq!(effects.ends_with(&farewell()), has_link, "{effects:?}");
        bench.assert_stopped();
    }
}

#[test]
fn a_guest_that_cannot_be_captured_any_more_ends_with_a_grant_and_the_backup_is_told() {
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    let mut effects = Vec::new();
    for _ in 0..CAPTURE_FAILURES_MAX {
        let (epoch, error) = (EpochId(2), "a vCPU has ended".into());
        effects = bench.give(Input::CaptureFailed { epoch, error });
        effects.extend(bench.pass(30 * MS, true, true));
    }
    assert_eq!(effects, [claim()]);
    assert_eq!(bench.give(unavailable()), []);
    assert_eq!(bench.pass(110 * MS, true, true), [claim()]);
    let mut expected = farewell().to_vec();
    expected.push(go_alone(4, "the guest has ended"));
    let granted = Input::Verdict(Verdict::Granted(Generation(4)));
    assert_eq!(bench.give(granted), expected);
    assert_eq!(bench.give(Input::Opened), []);
    bench.assert_stopped();
}
