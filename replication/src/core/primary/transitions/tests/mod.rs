//! Each rule of the primary's transition table.

mod disks;
mod ending;

use super::*;
use crate::arbiter::Verdict;
use crate::core::message::{EpochSummary, Welcome};

const MS: Duration = Duration::from_millis(1);
const GENERATION: Generation = Generation(3);

fn hello() -> Hello {
    Hello {
        vm: "vm0".into(),
        node: "a".into(),
        fingerprint: Default::default(),
        layout: Default::default(),
    }
}

fn welcome_of_b() -> Welcome {
    Welcome {
        node: "b".into(),
        disks: Vec::new(),
    }
}

/// A primary with a clock of its own.
struct Bench {
    core: PrimaryCore,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        let now = 1000 * MS;
        Self {
            core: PrimaryCore::new(Policy::default(), hello(), GENERATION, now),
            now,
        }
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        self.core.handle(self.now, input)
    }

    fn hear(&mut self, message: Message) -> Vec<Effect> {
        let generation = self.core.generation();
        self.give(Input::Received {
            generation,
            message,
        })
    }

    fn ack(&mut self, epoch: u64) -> Vec<Effect> {
        let epoch = EpochId(epoch);
        let durable = EpochId(0);
        self.hear(Message::Ack { epoch, durable })
    }

    /// Lets time pass in small steps, the backup giving signs of life over the link or not.
    fn pass(&mut self, time: Duration, link: bool, path: bool) -> Vec<Effect> {
        let end = self.now + time;
        let mut out = Vec::new();
        while self.now < end {
            self.now += MS;
            if link {
                out.extend(self.hear(Message::Heartbeat));
            }
            if path {
                let generation = self.core.generation();
                out.extend(self.give(Input::HeartbeatHeard { generation }));
            }
            out.extend(self.give(Input::Tick));
        }
        out.retain(|effect| *effect != Effect::Send(Message::Heartbeat));
        out
    }

    fn welcomed() -> Self {
        let mut bench = Self::new();
        assert_eq!(
            bench.give(Input::LinkUp),
            [Effect::Send(Message::Hello(hello()))]
        );
        let welcome = Message::Welcome(welcome_of_b());
        let disks = Vec::new();
        assert_eq!(bench.hear(welcome), [Effect::StartSync { disks }]);
        bench
    }

    /// Synced; epoch 1 is to be captured.
    fn capturing() -> Self {
        let mut bench = Self::welcomed();
        let effects = bench.give(Input::SyncRoundShipped {
            pages_left: 0,
            disk_bytes_left: 0,
        });
        assert_eq!(effects, [Effect::Capture(EpochId(1))]);
        bench
    }

    fn ship(&mut self, epoch: u64) {
        let epoch = EpochId(epoch);
        assert_eq!(self.give(Input::Captured { epoch }), []);
        assert_eq!(self.give(Input::Shipped { epoch }), []);
    }

    /// Epoch 1 is acked.
    fn protected() -> Self {
        let mut bench = Self::capturing();
        bench.ship(1);
        assert_eq!(bench.ack(1), [Effect::Release(EpochId(1))]);
        bench
    }
}

fn claims(effects: &[Effect]) -> bool {
    effects == [Effect::CloseLink, Effect::Claim(GENERATION)]
}

#[test]
fn pre_copy_goes_on_until_little_is_left_or_the_rounds_are_used_up() {
    let mut bench = Bench::welcomed();
    for _ in 0..7 {
        let effects = bench.give(Input::SyncRoundShipped {
            pages_left: 5000,
            disk_bytes_left: 0,
        });
        assert_eq!(effects, [Effect::SyncRound]);
    }
    let effects = bench.give(Input::SyncRoundShipped {
        pages_left: 5000,
        disk_bytes_left: 0,
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
    assert_eq!(bench.give(Input::Captured { epoch }), []);
    assert_eq!(bench.ack(1), []);
    assert_eq!(
        bench.give(Input::Shipped { epoch }),
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

#[test]
fn an_epoch_ends_when_output_has_waited_quietly() {
    let mut bench = Bench::protected();
    bench.pass(5 * MS, true, false);
    bench.give(Input::OutputWaiting);
    assert_eq!(bench.core.next_wakeup(), Some(bench.now + MS));
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(2))]);
}

#[test]
fn no_epoch_is_shorter_than_the_minimum_but_for_a_checkpoint_wanted() {
    let mut bench = Bench::protected();
    bench.give(Input::OutputWaiting);
    assert_eq!(bench.pass(MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(2))]);
    let mut bench = Bench::protected();
    let effects = bench.give(Input::CheckpointWanted);
    assert_eq!(effects, [Effect::Capture(EpochId(2))]);
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
fn losing_the_backup_before_epoch_1_ends_needs_no_grant() {
    for (mut bench, cause) in [(Bench::welcomed(), "gone"), (Bench::new(), "no answer")] {
        bench.give(Input::LinkUp);
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
        assert_eq!(bench.give(Input::LinkUp), [Effect::CloseLink], "too early");
        bench.give(Input::Opened);
        assert!(matches!(
            bench.give(Input::LinkUp)[..],
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
        assert_eq!(bench.give(Input::Shipped { epoch: EpochId(1) }), []);
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
fn an_epoch_in_flight_needs_life_on_the_link_itself() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.pass(100 * MS, false, true);
    bench.ship(2);
    assert_eq!(bench.pass(149 * MS, false, true), []);
    assert!(claims(&bench.pass(MS, false, true)));
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
    assert_eq!(bench.pass(MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(5))]);
    lasting(&mut bench, 5, Duration::ZERO);
    assert_eq!(bench.pass(24 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Capture(EpochId(6))]);
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
fn a_stalled_primary_releases_nothing_before_its_generation_is_confirmed() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.now += 76 * MS;
    let effects = bench.ack(1);
    assert!(
        effects.contains(&Effect::Confirm(GENERATION)),
        "{effects:?}"
    );
    assert!(!effects.contains(&Effect::Release(EpochId(1))));
    assert!(bench.core.is_in_doubt());
    assert_eq!(
        bench.give(Input::Verdict(Verdict::Granted(GENERATION))),
        [Effect::Release(EpochId(1)), Effect::Capture(EpochId(2))]
    );
    assert!(!bench.core.is_in_doubt());
}

#[test]
fn a_confirmation_older_than_the_last_stall_is_worth_nothing() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.ship(2);
    bench.now += 100 * MS;
    bench.give(Input::Tick);
    bench.now += 100 * MS;
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert!(
        effects.contains(&Effect::Confirm(GENERATION)),
        "asked again: {effects:?}"
    );
    // The ack may be as old as the stall: this answer is too old for it, too.
    let effects = bench.ack(2);
    assert!(!effects.contains(&Effect::Release(EpochId(2))));
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects, [Effect::Confirm(GENERATION)]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects[0], Effect::Release(EpochId(2)));
}

#[test]
fn a_confirmation_is_asked_for_again_while_the_arbiter_is_silent() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.now += 100 * MS;
    assert!(
        bench
            .give(Input::Tick)
            .contains(&Effect::Confirm(GENERATION))
    );
    assert_eq!(bench.hear(Message::Heartbeat), []);
    assert_eq!(bench.give(Input::ArbiterUnavailable), []);
    assert_eq!(bench.pass(99 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [Effect::Confirm(GENERATION)]);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "b".into(),
    }));
    assert!(matches!(effects.last(), Some(Effect::Fenced { reason }) if reason.contains("b")));
}

#[test]
fn a_claim_waits_for_the_answer_to_an_open_confirmation() {
    let mut bench = Bench::protected();
    bench.now += 100 * MS;
    assert!(
        bench
            .give(Input::Tick)
            .contains(&Effect::Confirm(GENERATION))
    );
    let effects = bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(effects, [Effect::CloseLink]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects, [Effect::Claim(GENERATION)]);
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
fn a_claim_is_repeated_while_the_arbiter_is_silent_and_a_refusal_fences() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(bench.give(Input::ArbiterUnavailable), []);
    assert!(bench.core.next_wakeup().is_some());
    assert_eq!(
        bench.pass(100 * MS, false, false),
        [Effect::Claim(GENERATION)]
    );
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "b".into(),
    }));
    assert!(matches!(&effects[..], [Effect::Fenced { .. }]));
    assert_eq!(bench.core.phase(), PrimaryPhase::Fenced);
    assert_eq!(bench.core.next_wakeup(), None);
    assert_eq!(bench.give(Input::LinkUp), [Effect::CloseLink]);
    assert_eq!(bench.pass(1000 * MS, true, true), []);
}

#[test]
fn a_later_generation_heard_of_while_claiming_may_be_our_own() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    let generation = Generation(4);
    assert_eq!(bench.give(Input::HeartbeatHeard { generation }), []);
    let effects = bench.give(Input::Verdict(Verdict::Granted(generation)));
    assert!(matches!(&effects[..], [Effect::GoAlone { .. }]));
}

#[test]
fn no_epoch_ends_in_doubt() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.now += 76 * MS;
    assert!(bench.ack(1).contains(&Effect::Confirm(GENERATION)));
    assert_eq!(bench.pass(50 * MS, true, true), []);
    assert_eq!(
        bench.give(Input::Verdict(Verdict::Granted(GENERATION))),
        [Effect::Release(EpochId(1)), Effect::Capture(EpochId(2))]
    );
}

#[test]
fn an_ack_after_long_silence_on_the_link_waits_for_confirmation() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    assert_eq!(bench.pass(76 * MS, false, true), []);
    assert_eq!(bench.ack(1), [Effect::Confirm(GENERATION)]);
    assert!(bench.core.is_in_doubt());
}

#[test]
fn a_stall_right_before_does_not_shorten_the_links_silence() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.now += 100 * MS;
    bench.give(Input::Tick);
    bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert!(!bench.core.is_in_doubt());
    assert_eq!(bench.pass(10 * MS, false, true), []);
    assert_eq!(bench.ack(1), [Effect::Confirm(GENERATION)]);
}

#[test]
fn a_grant_that_is_no_later_generation_fences() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert!(matches!(&effects[..], [Effect::Fenced { .. }]));
}

#[test]
fn a_verdict_nobody_asked_for_changes_nothing() {
    let mut bench = Bench::protected();
    let verdict = Verdict::Granted(Generation(9));
    assert_eq!(bench.give(Input::Verdict(verdict)), []);
    assert_eq!(bench.core.generation(), GENERATION);
}

#[test]
fn a_later_generation_fences_wherever_it_is_seen() {
    let later = Generation(4);
    let seen = [
        Input::Received {
            generation: later,
            message: Message::Heartbeat,
        },
        Input::HeartbeatHeard { generation: later },
        Input::Received {
            generation: GENERATION,
            message: Message::Bye(Bye::Fenced { current: later }),
        },
    ];
    for input in seen {
        let mut bench = Bench::protected();
        let effects = bench.give(input);
        assert!(
            matches!(
                &effects[..],
                [
                    Effect::Send(Message::Bye(Bye::Fenced { .. })),
                    Effect::CloseLink,
                    Effect::Fenced { .. }
                ]
            ),
            "{effects:?}"
        );
    }
    let mut bench = Bench::new();
    bench.give(Input::LinkUp);
    let effects = bench.hear(Message::Refuse(Refusal::Stale { current: later }));
    assert!(matches!(effects.last(), Some(Effect::Fenced { .. })));
}

#[test]
fn an_older_generation_is_told_so_and_ignored() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    let effects = bench.give(Input::Received {
        generation: Generation(2),
        message: Message::Ack {
            epoch: EpochId(1),
            durable: EpochId(0),
        },
    });
    let bye = Bye::Fenced {
        current: GENERATION,
    };
    assert_eq!(effects, [Effect::Send(Message::Bye(bye))]);
    assert_eq!(bench.core.in_flight(), Some(EpochId(1)));
    assert_eq!(
        bench.give(Input::HeartbeatHeard {
            generation: Generation(2)
        }),
        []
    );
}

#[test]
fn a_refusal_of_another_virtual_machine_fences_nobody() {
    let mut bench = Bench::new();
    bench.give(Input::LinkUp);
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
    bench.give(Input::LinkUp);
    let effects = bench.pass(1500 * MS, false, true);
    assert!(matches!(
        &effects[..],
        [Effect::CloseLink, Effect::GoAlone { .. }]
    ));
}

#[test]
fn deadlines_are_met_by_wakeups_alone() {
    let mut handshaking = Bench::new();
    handshaking.give(Input::LinkUp);
    let mut claiming = Bench::protected();
    claiming.give(Input::LinkDown {
        cause: "gone".into(),
    });
    claiming.give(Input::ArbiterUnavailable);
    for (mut bench, time, what) in [
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
                Some(Effect::GoAlone { .. } | Effect::Claim(_))
            ),
            "{what}: {effects:?}"
        );
    }
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
fn a_new_session_starts_over_at_epoch_1() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    bench.give(Input::Opened);
    bench.give(Input::LinkUp);
    let mut welcome = welcome_of_b();
    welcome.node = "c".into();
    bench.hear(Message::Welcome(welcome));
    let effects = bench.give(Input::SyncRoundShipped {
        pages_left: 0,
        disk_bytes_left: 0,
    });
    assert_eq!(effects, [Effect::Capture(EpochId(1))]);
    bench.ship(1);
    assert_eq!(bench.ack(1), [Effect::Release(EpochId(1))]);
}

#[test]
fn a_runtime_that_reports_the_wrong_epoch_loses_protection_not_the_guest() {
    let mut bench = Bench::capturing();
    let effects = bench.give(Input::Captured { epoch: EpochId(7) });
    assert!(claims(&effects), "{effects:?}");
}
