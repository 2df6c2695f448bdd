//! When a backup counts as lost, and what that takes.

use super::*;

#[test]
fn losing_the_backup_before_epoch_1_ends_needs_no_grant() {
    for (mut bench, cause) in [(Bench::welcomed(), "gone"), (Bench::new(), "no answer")] {
        bench.give(link_up());
        bench = if cause == "gone" {
            Bench::welcomed()
        } else {
            bench
        };
        let effects = bench.give(Input::LinkDown {
            cause: cause.into(),
        });
        let alone = Effect::GoAlone {
            generation: GENERATION,
            cause: cause.into(),
        };
        assert_eq!(effects, [Effect::CloseLink, alone]);
        assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
        assert_eq!(bench.give(link_up()), [Effect::CloseLink], "too early");
        bench.give(Input::Opened);
        assert!(matches!(
            bench.give(link_up())[..],
            [Effect::Send(Message::Hello(_))]
        ));
    }
}

#[test]
fn losing_the_backup_from_the_capture_of_epoch_1_on_needs_a_grant() {
    let cause = || Input::LinkDown {
        cause: "gone".into(),
    };
    for mut bench in [Bench::capturing(), Bench::protected()] {
        assert!(claims(&bench.give(cause())));
        assert_eq!(bench.core.phase(), PrimaryPhase::Claiming);
        assert_eq!(
            bench.pass(1000 * MS, false, false),
            [],
            "one question at a time"
        );
        // Late reports of the lost session change nothing.
        assert_eq!(
            bench.give(Input::Shipped {
                epoch: EpochId(1),
                bytes: 0
            }),
            []
        );
        assert_eq!(bench.ack(1), []);
        assert_eq!(
            bench.give(Input::Verdict(Verdict::Granted(Generation(4)))),
            [Effect::GoAlone {
                generation: Generation(4),
                cause: "gone".into()
            }]
        );
        assert_eq!(bench.core.generation(), Generation(4));
    }
}

#[test]
fn why_a_backup_left_is_said_in_its_own_words() {
    let mut bench = Bench::protected();
    let bye = Bye::Unable("its disk is full".into());
    let cause = bye.to_string();
    assert!(claims(&bench.hear(Message::Bye(bye))));
    let generation = Generation(4);
    let effects = bench.give(Input::Verdict(Verdict::Granted(generation)));
    assert_eq!(effects, [Effect::GoAlone { generation, cause }]);
}

#[test]
fn silence_on_every_path_loses_the_backup_and_one_living_path_does_not() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    assert_eq!(bench.pass(400 * MS, true, false), [], "link lives");
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    assert_eq!(
        bench.pass(400 * MS, false, true),
        [],
        "path lives, nothing in flight"
    );
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    assert_eq!(bench.pass(149 * MS, false, false), []);
    assert!(claims(&bench.pass(MS, false, false)));
}

#[test]
fn a_backup_whose_heartbeats_came_in_time_counts_as_lost_earlier() {
    let shortest = Policy::default().shortest_timeout();
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.pass(400 * MS, false, true);
    assert_eq!(bench.core.silence_timeout(), shortest);
    assert_eq!(bench.pass(shortest - MS, false, false), []);
    assert!(claims(&bench.pass(MS, false, false)));
    let longer = bench.core.silence_timeout();
    assert_eq!(longer, 2 * shortest, "the next time");
}

#[test]
fn an_epoch_in_flight_needs_life_on_the_link_itself() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.pass(100 * MS, false, true);
    bench.ship(2);
    assert_eq!(bench.pass(149 * MS, false, true), []);
    assert!(claims(&bench.pass(MS, false, true)));
}

#[test]
fn a_stall_does_not_count_as_the_backups_silence() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.now += 1000 * MS;
    let effects = bench.give(Input::Tick);
    assert!(!effects.contains(&Effect::CloseLink), "{effects:?}");
    assert!(
        bench
            .pass(150 * MS, false, false)
            .contains(&Effect::CloseLink)
    );
}

#[test]
fn a_refusal_of_another_virtual_machine_fences_nobody() {
    let mut bench = Bench::new();
    bench.give(link_up());
    let effects = bench.give(Input::Received {
        generation: Generation(99),
        message: Message::Refuse(Refusal::OtherVm { vm: "vm1".into() }),
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
fn an_unanswered_introduction_ends_alone() {
    let mut bench = Bench::new();
    bench.give(link_up());
    let effects = bench.pass(1500 * MS, false, true);
    assert!(matches!(
        &effects[..],
        [Effect::CloseLink, Effect::GoAlone { .. }]
    ));
}

#[test]
fn messages_out_of_place_cut_the_link() {
    let epoch = EpochId(2);
    let misplaced = [
        Message::Hello(hello()),
        Message::Welcome(welcome_of_b()),
        Message::SyncPages(Default::default()),
        Message::EpochEnd {
            epoch,
            summary: EpochSummary {
                pages: 0,
                batches: 0,
                disk_batches: 0,
                flush: false,
                written_through: EpochId(0),
                digest: 0,
            },
        },
        Message::Bye(Bye::GuestStopped),
        Message::Refuse(Refusal::Busy("?".into())),
    ];
    for message in misplaced {
        let effects = Bench::protected().hear(message);
        assert!(matches!(
            &effects[0],
            Effect::Send(Message::Bye(Bye::Protocol(_)))
        ));
        assert!(claims(&effects[1..]), "{effects:?}");
    }
}

#[test]
fn a_backup_that_leaves_is_lost() {
    let effects = Bench::protected().hear(Message::Bye(Bye::BackupStopped));
    assert!(claims(&effects));
}

#[test]
fn heartbeats_are_sent_in_their_interval() {
    let mut bench = Bench::welcomed();
    let mut sent = 0;
    for _ in 0..100 {
        bench.now += MS;
        bench.hear(Message::Heartbeat);
        sent += bench
            .give(Input::Tick)
            .iter()
            .filter(|effect| **effect == Effect::Send(Message::Heartbeat))
            .count();
        assert!(bench.core.next_wakeup().expect("timers") <= bench.now + 20 * MS);
    }
    // `hear` looks at the timers as well; it got some of the five.
    assert!(sent <= 5);
    let mut bench = Bench::welcomed();
    bench.now += 20 * MS;
    assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
    assert_eq!(bench.give(Input::Tick), []);
}

#[test]
fn deadlines_are_met_by_wakeups_alone() {
    let mut handshaking = Bench::new();
    handshaking.give(link_up());
    let mut claiming = Bench::protected();
    claiming.give(Input::LinkDown {
        cause: "gone".into(),
    });
    claiming.give(unavailable());
    // The longest heartbeats that a time-out allows.
    let mut slow = Bench::protected();
    slow.core.policy.heartbeat_interval = slow.core.policy.heartbeat_timeout / 3;
    for (mut bench, time, what) in [
        (slow, 150, "claims"),
        (handshaking, 1500, "goes alone"),
        (Bench::welcomed(), 150, "goes alone"),
        (Bench::protected(), 150, "claims"),
        (claiming, 100, "claims"),
    ] {
        let end = bench.now + time * MS;
        let mut effects = Vec::new();
        while bench.now < end {
            bench.now = bench.core.next_wakeup().expect("a deadline runs");
            effects.extend(bench.give(Input::Tick));
        }
        assert_eq!(bench.now, end, "{what}");
        assert!(
            matches!(
                effects.last(),
                Some(Effect::GoAlone { .. } | Effect::Claim { .. })
            ),
            "{what}: {effects:?}"
        );
    }
}
