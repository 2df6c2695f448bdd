//! R1 and the rhythm of epochs: when they end, and what an acknowledgement lets go.

use super::*;

#[test]
fn pre_copy_goes_on_until_little_is_left_or_the_rounds_are_used_up() {
    let mut bench = Bench::welcomed();
    for _ in 0..7 {
        let effects = bench.give(Input::SyncRoundShipped {
            pages_left: 5000,
            disk_bytes_left: 0,
            left_takes: Duration::ZERO,
        });
        assert_eq!(effects, [Effect::SyncRound]);
    }
    let effects = bench.give(Input::SyncRoundShipped {
        pages_left: 5000,
        disk_bytes_left: 0,
        left_takes: Duration::ZERO,
    });
    assert_eq!(effects, [Effect::Capture(EpochId(1))]);
    assert_eq!(bench.core.phase(), PrimaryPhase::Syncing);
    assert_eq!(bench.core.backup_node(), Some("b"));
}

#[test]
fn nothing_is_released_before_its_ack() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    assert_eq!(bench.pass(50 * MS, true, false), [], "epoch 1 is not acked");
    assert_eq!(bench.core.in_flight(), Some(EpochId(1)));
    assert_eq!(
        bench.ack(1),
        [Effect::Release(EpochId(1)), Effect::Capture(EpochId(2))],
        "the next end is long due"
    );
    let mut bench = Bench::protected();
    assert_eq!(bench.core.phase(), PrimaryPhase::Protected);
    assert_eq!(
        bench.pass(25 * MS, true, false),
        [Effect::Capture(EpochId(2))]
    );
    bench.ship(2);
    assert_eq!(bench.pass(40 * MS, true, false), []);
    assert_eq!(
        bench.ack(2),
        [Effect::Release(EpochId(2)), Effect::Capture(EpochId(3))]
    );
}

#[test]
fn an_ack_that_overtakes_the_report_of_shipping_waits_for_it() {
    let mut bench = Bench::capturing();
    let epoch = EpochId(1);
    assert_eq!(
        bench.give(Input::Captured {
            epoch,
            pause: Pause::default(),
        }),
        []
    );
    assert_eq!(bench.ack(1), []);
    assert_eq!(
        bench.give(Input::Shipped { epoch, bytes: 0 }),
        [Effect::Release(epoch)]
    );
}

#[test]
fn acks_of_other_epochs_cut_the_link_and_release_nothing() {
    for acked in [0, 1, 3, u64::MAX] {
        let mut bench = Bench::protected();
        bench.pass(25 * MS, true, false);
        bench.ship(2);
        let effects = bench.ack(acked);
        assert!(matches!(
            &effects[0],
            Effect::Send(Message::Bye(Bye::Protocol(_)))
        ));
        assert!(claims(&effects[1..]), "{acked}: {effects:?}");
    }
    // Nothing in flight at all.
    let effects = Bench::protected().ack(1);
    assert!(claims(&effects[1..]), "{effects:?}");
}

/// Ships and acknowledges epoch `number`, whose pause cost the guest `lost`. Returns what then ends.
fn finish(bench: &mut Bench, number: u64, lost: Duration, output_waits: bool) -> Vec<Effect> {
    let epoch = EpochId(number);
    bench.give(Input::Captured {
        epoch,
        pause: Pause {
            took: lost,
            idle: lost.is_zero(),
        },
    });
    if output_waits {
        bench.give(Input::OutputWaiting);
    }
    bench.give(Input::Shipped { epoch, bytes: 0 });
    let mut effects = bench.ack(number);
    assert_eq!(effects.remove(0), Effect::Release(epoch));
    effects
}

#[test]
fn output_of_an_idle_guest_ends_its_epoch_at_once() {
    let mut bench = Bench::protected();
    for number in 2..200 {
        assert_eq!(
            bench.give(Input::OutputWaiting),
            [Effect::Capture(EpochId(number))]
        );
        let effects = finish(&mut bench, number, Duration::ZERO, false);
        assert_eq!(effects, [], "it was sealed with the epoch");
    }
}

#[test]
fn output_that_comes_while_an_epoch_is_in_flight_ends_the_next_as_soon_as_it_may_end() {
    let mut bench = Bench::protected();
    bench.give(Input::OutputWaiting);
    let effects = finish(&mut bench, 2, Duration::ZERO, true);
    assert_eq!(effects, [Effect::Capture(EpochId(3))]);
}

/// How often epochs of a guest end within a second whose output always waits, and whose pauses cost it `lost`.
fn epochs_in_a_second(overhead_percent: u32, lost: Duration) -> u64 {
    let mut bench = Bench::protected();
    bench.core.policy.overhead_percent = overhead_percent;
    let (end, mut number) = (bench.now + 1000 * MS, 2);
    let mut effects = bench.give(Input::OutputWaiting);
    while bench.now < end {
        if effects.is_empty() {
            effects = bench.pass(MS, true, false);
            continue;
        }
        assert_eq!(effects, [Effect::Capture(EpochId(number))]);
        effects = finish(&mut bench, number, lost, true);
        number += 1;
    }
    number - 2
}

#[test]
fn pauses_for_output_take_no_more_of_a_busy_guests_time_than_they_may() {
    // Of a second, and of 20 ms that count as passed already.
    for (percent, lost, pauses) in [(10, MS, 102), (50, 2 * MS, 255), (5, MS / 2, 102)] {
        let epochs = epochs_in_a_second(percent, lost);
        assert!(
            (pauses - 3..=pauses + 1).contains(&epochs),
            "{percent} %: {epochs} epochs, not {pauses}"
        );
    }
    // A pause so long that the timer is sooner.
    assert!((39..=41).contains(&epochs_in_a_second(10, 10 * MS)));
    // Only the timer ends epochs.
    assert!((39..=40).contains(&epochs_in_a_second(0, Duration::ZERO)));
}

#[test]
fn a_busy_time_is_soon_forgotten_once_the_guest_is_idle() {
    let mut bench = Bench::protected();
    for number in 2..60 {
        let effects = bench.pass(25 * MS, true, false);
        assert_eq!(effects, [Effect::Capture(EpochId(number))]);
        finish(&mut bench, number, 10 * MS, false);
    }
    // The timer ends one more, and the debt is paid.
    let effects = bench.pass(25 * MS, true, false);
    assert_eq!(effects, [Effect::Capture(EpochId(60))]);
    finish(&mut bench, 60, Duration::ZERO, false);
    let effects = bench.give(Input::OutputWaiting);
    assert_eq!(effects, [Effect::Capture(EpochId(61))]);
}

#[test]
fn a_guest_that_only_looks_idle_runs_as_long_as_it_stood_still() {
    let mut bench = Bench::protected();
    bench.give(Input::OutputWaiting);
    let epoch = EpochId(2);
    bench.give(Input::Captured {
        epoch,
        pause: Pause {
            took: 5 * MS,
            idle: true,
        },
    });
    bench.give(Input::OutputWaiting);
    bench.give(Input::Shipped { epoch, bytes: 0 });
    assert_eq!(bench.ack(2), [Effect::Release(epoch)]);
    assert_eq!(bench.pass(4 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(3))]);
}

#[test]
fn a_checkpoint_that_is_wanted_does_not_look_at_what_it_costs() {
    let mut bench = Bench::protected();
    for number in 2..50 {
        let effects = bench.give(Input::CheckpointWanted);
        assert_eq!(effects, [Effect::Capture(EpochId(number))]);
        finish(&mut bench, number, 20 * MS, false);
    }
}

#[test]
fn a_capture_that_fails_with_output_waiting_is_tried_again_at_the_timer() {
    let mut bench = Bench::protected();
    bench.give(Input::OutputWaiting);
    let effects = bench.give(Input::CaptureFailed {
        epoch: EpochId(2),
        error: "no frame".into(),
    });
    assert_eq!(effects, []);
    assert_eq!(bench.pass(24 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(2))]);
}

#[test]
fn a_wanted_checkpoint_waits_for_the_epoch_in_flight() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    assert_eq!(bench.give(Input::CheckpointWanted), []);
    assert_eq!(
        bench.ack(1),
        [Effect::Release(EpochId(1)), Effect::Capture(EpochId(2))]
    );
}

#[test]
fn a_failed_capture_of_epoch_1_takes_back_the_need_for_a_grant() {
    let mut bench = Bench::capturing();
    let failed = || Input::CaptureFailed {
        epoch: EpochId(1),
        error: "no frame".into(),
    };
    assert_eq!(bench.give(failed()), []);
    assert_eq!(bench.core.phase(), PrimaryPhase::Syncing);
    assert_eq!(
        bench.pass(25 * MS, true, false),
        [Effect::Capture(EpochId(1))]
    );
    bench.give(failed());
    let effects = bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert!(matches!(
        &effects[..],
        [
            Effect::CloseLink,
            Effect::GoAlone {
                generation: GENERATION,
                ..
            }
        ]
    ));
}

#[test]
fn a_failed_capture_is_tried_again_and_given_up_in_the_end() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    for attempt in 1..=5 {
        let effects = bench.give(Input::CaptureFailed {
            epoch: EpochId(2),
            error: "no frame".into(),
        });
        if attempt < 5 {
            assert_eq!(effects, []);
            assert_eq!(
                bench.pass(25 * MS, true, false),
                [Effect::Capture(EpochId(2))]
            );
        } else {
            assert!(claims(&effects), "{effects:?}");
        }
    }
}

#[test]
fn the_timer_keeps_its_beat_unless_it_is_far_behind() {
    let mut bench = Bench::protected();
    assert_eq!(
        bench.pass(25 * MS, true, false),
        [Effect::Capture(EpochId(2))]
    );
    let lasting = |bench: &mut Bench, epoch, capture: Duration| {
        assert_eq!(bench.pass(capture, true, false), []);
        bench.ship(epoch);
        let released = Effect::Release(EpochId(epoch));
        assert_eq!(bench.ack(epoch), [released]);
    };
    // Neither a long capture nor a late look at the timer is carried on.
    lasting(&mut bench, 2, 3 * MS);
    assert_eq!(bench.pass(21 * MS, true, false), []);
    bench.now += 2 * MS;
    let effects = bench.pass(MS, true, false);
    assert_eq!(effects, [Effect::Capture(EpochId(3))]);
    lasting(&mut bench, 3, Duration::ZERO);
    assert_eq!(bench.pass(22 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(4))]);
    // So far behind that the beat starts afresh.
    lasting(&mut bench, 4, 45 * MS);
    assert_eq!(bench.pass(12 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(5))]);
    lasting(&mut bench, 5, Duration::ZERO);
    assert_eq!(bench.pass(24 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(6))]);
}

#[test]
fn a_new_session_starts_over_at_epoch_1() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    bench.give(Input::Opened);
    bench.give(link_up());
    let mut welcome = welcome_of_b();
    welcome.node = "c".into();
    bench.hear(Message::Welcome(welcome));
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    // Marks are counted on.
    bench.hear(Message::Seen(mark(2)));
    let effects = bench.give(Input::SyncRoundShipped {
        pages_left: 0,
        disk_bytes_left: 0,
        left_takes: Duration::ZERO,
    });
    assert_eq!(effects, [Effect::Capture(EpochId(1))]);
    bench.ship(1);
    assert_eq!(bench.ack(1), [Effect::Release(EpochId(1))]);
}

#[test]
fn a_runtime_that_reports_the_wrong_epoch_loses_protection_not_the_guest() {
    let mut bench = Bench::capturing();
    let effects = bench.give(Input::Captured {
        epoch: EpochId(7),
        pause: Pause::default(),
    });
    assert!(claims(&effects), "{effects:?}");
}
