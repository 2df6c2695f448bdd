//! How much the guest may run.

use super::*;
use crate::core::throttle::RunShare;

/// What an epoch of a busy guest needs on the wire.
const MUCH: u64 = 4 << 20;

fn throttled(effects: &[Effect]) -> Option<RunShare> {
    let mut shares = effects.iter().filter_map(|effect| match effect {
        Effect::Throttle(share) => Some(*share),
        _ => None,
    });
    shares.next_back()
}

fn round(bench: &mut Bench, pages_left: u64, left_takes: Duration) -> Vec<Effect> {
    bench.give_all(Input::SyncRoundShipped {
        pages_left,
        disk_bytes_left: 0,
        left_takes,
    })
}

/// An epoch ends, is shipped, and acknowledged after so long. Returns the share of the guest while it is awaited and
/// afterwards, as far as they are new.
fn epoch(bench: &mut Bench, number: u64, took: Duration) -> [Option<RunShare>; 2] {
    let epoch = EpochId(number);
    let pause = Pause::default();
    bench.give(Input::CheckpointWanted);
    bench.give(Input::Captured { epoch, pause });
    bench.give(Input::Shipped { epoch, bytes: MUCH });
    let mut effects = Vec::new();
    let ended_at = bench.now;
    while bench.now < ended_at + took {
        bench.now += MS;
        let generation = GENERATION;
        let message = Message::Heartbeat;
        effects.extend(bench.give_all(Input::Received {
            generation,
            message,
        }));
    }
    let awaited = throttled(&effects);
    let ack = bench.give_all(Input::Received {
        generation: GENERATION,
        message: Message::Ack {
            epoch,
            durable: EpochId(0),
        },
    });
    assert!(ack.contains(&Effect::Release(epoch)), "{ack:?}");
    [awaited, throttled(&ack)]
}

#[test]
fn an_epoch_in_time_slows_nobody_and_a_late_one_does_while_it_is_awaited_and_afterwards() {
    let mut bench = Bench::protected();
    let target = bench.core.policy.latency_target;
    assert_eq!(epoch(&mut bench, 2, target - MS), [None, None]);
    let half = RunShare::FULL.divided(2);
    let [awaited, after] = epoch(&mut bench, 3, target + MS);
    assert_eq!(awaited, Some(half));
    // It took three times what is wanted.
    let after = after.expect("it was late");
    assert!((0.30..0.34).contains(&after.fraction()), "{after:?}");
    let [awaited, _] = epoch(&mut bench, 4, 3 * target);
    assert_eq!(
        awaited,
        Some(after.divided(32)),
        "once, and each half of the target"
    );
}

#[test]
fn a_guest_that_was_slowed_runs_at_full_speed_without_a_backup() {
    let mut bench = Bench::protected();
    bench.now += 10 * MS;
    epoch(&mut bench, 2, 200 * MS);
    let cause = "gone".into();
    let effects = bench.give_all(Input::LinkDown { cause });
    assert_eq!(throttled(&effects), Some(RunShare::FULL));
}

#[test]
fn time_that_this_side_slept_is_not_held_against_the_guest() {
    let mut bench = Bench::protected();
    let epoch = EpochId(2);
    bench.give(Input::CheckpointWanted);
    let pause = Pause::default();
    bench.give(Input::Captured { epoch, pause });
    bench.give(Input::Shipped { epoch, bytes: MUCH });
    bench.now += 1000 * MS;
    let effects = bench.give_all(Input::Tick);
    assert_eq!(throttled(&effects), None);
    let durable = EpochId(0);
    let effects = bench.give_all(Input::Received {
        generation: GENERATION,
        message: Message::Ack { epoch, durable },
    });
    assert_eq!(throttled(&effects), None);
}

#[test]
fn memory_is_copied_until_what_is_left_can_be_shipped_in_time_and_the_guest_is_slowed_for_it() {
    let mut bench = Bench::welcomed();
    let target = bench.core.policy.latency_target;
    let rounds = bench.core.policy.sync_rounds_max;
    let second = 1000 * MS;
    bench.pass(second, true, true);
    let effects = round(&mut bench, 50_000, second);
    assert!(effects.contains(&Effect::SyncRound), "{effects:?}");
    let slowed = throttled(&effects).expect("it changes as much as is shipped");
    // Few pages, but the link is slow.
    for _ in 2..rounds {
        bench.pass(second, true, true);
        let effects = round(&mut bench, 10, second / 3);
        assert!(effects.contains(&Effect::SyncRound), "{effects:?}");
        assert_eq!(throttled(&effects), None, "less is left at {slowed:?}");
    }
    let effects = round(&mut bench, 10, target / 3);
    assert!(
        effects.contains(&Effect::Capture(EpochId(1))),
        "{effects:?}"
    );
}

#[test]
fn a_guest_that_outruns_every_round_at_its_slowest_is_protected_all_the_same() {
    let mut bench = Bench::welcomed();
    let second = 1000 * MS;
    let mut rounds = 0;
    let share = loop {
        bench.pass(second, true, true);
        let effects = round(&mut bench, 50_000, second);
        rounds += 1;
        if effects.contains(&Effect::Capture(EpochId(1))) {
            break bench.core.throttle.share();
        }
    };
    assert_eq!(share, RunShare::LEAST);
    assert_eq!(rounds, bench.core.policy.sync_rounds_max);
}

#[test]
fn rounds_that_become_shorter_but_never_short_enough_end_all_the_same() {
    let mut bench = Bench::welcomed();
    let second = 1000 * MS;
    let rounds = (1..).take_while(|_| {
        bench.pass(second, true, true);
        let effects = round(&mut bench, 10, second / 3);
        !effects.contains(&Effect::Capture(EpochId(1)))
    });
    let rounds = rounds.count() as u32;
    assert!(rounds < 2 * bench.core.policy.sync_rounds_max, "{rounds}");
    assert_eq!(bench.core.throttle.share(), RunShare::LEAST);
}

#[test]
fn the_time_of_the_first_copy_is_none_of_the_first_epochs() {
    let mut bench = Bench::welcomed();
    let second = 1000 * MS;
    bench.pass(second, true, true);
    round(&mut bench, 10, second);
    let slowed = bench.core.throttle.share();
    assert!(!slowed.is_full());
    bench.pass(100 * second, true, true);
    let effects = round(&mut bench, 0, Duration::ZERO);
    assert!(
        effects.contains(&Effect::Capture(EpochId(1))),
        "{effects:?}"
    );
    // So it says something of the guest.
    bench.now += 9 * MS;
    bench.ship(1);
    bench.ack(1);
    epoch(&mut bench, 2, 300 * MS);
    // It is late, and the guest has not run for minutes in it.
    let share = bench.core.throttle.share();
    assert!(share < slowed, "{share:?} after {slowed:?}");
}

#[test]
fn the_time_that_disks_take_is_none_of_memorys() {
    let mut bench = Bench::welcomed();
    let second = 1000 * MS;
    for _ in 0..3 {
        bench.pass(second, true, true);
        let effects = bench.give(Input::SyncRoundShipped {
            pages_left: 0,
            disk_bytes_left: 1,
            left_takes: Duration::ZERO,
        });
        assert_eq!(effects, [Effect::SyncRound]);
    }
    bench.pass(second, true, true);
    let effects = round(&mut bench, 50_000, second * 9 / 10);
    assert!(throttled(&effects).is_some(), "{effects:?}");
}
