//! R4: claims, confirmations, and who is fenced.

use super::*;

#[test]
fn a_stalled_primary_releases_nothing_before_its_generation_is_confirmed() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    // A backup with the same policy waits twice as long before it claims.
    bench.now += Policy::default().shortest_timeout() / 2 + MS;
    let effects = bench.ack(1);
    assert!(effects.contains(&doubt()), "{effects:?}");
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
    assert!(effects.contains(&doubt()), "asked again: {effects:?}");
    // The ack may be as old as the stall: this answer is too old for it, too.
    let effects = bench.ack(2);
    assert!(!effects.contains(&Effect::Release(EpochId(2))));
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects, [doubt()]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects[0], Effect::Release(EpochId(2)));
}

#[test]
fn a_confirmation_is_asked_for_again_while_the_arbiter_is_silent() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    bench.now += 100 * MS;
    assert!(bench.give(Input::Tick).contains(&doubt()));
    assert_eq!(bench.hear(Message::Heartbeat), []);
    assert_eq!(bench.give(unavailable()), []);
    assert_eq!(bench.pass(99 * MS, true, false), []);
    assert_eq!(bench.pass(MS, true, false), [doubt()]);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "b".into(),
    }));
    assert!(matches!(effects.last(), Some(Effect::Fenced { reason, .. }) if reason.contains("b")));
}

#[test]
fn a_claim_waits_for_the_answer_to_an_open_confirmation() {
    let mut bench = Bench::protected();
    bench.now += 100 * MS;
    assert!(bench.give(Input::Tick).contains(&doubt()));
    let effects = bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(effects, [Effect::CloseLink]);
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert_eq!(effects, [claim()]);
}

#[test]
fn a_claim_is_repeated_while_the_arbiter_is_silent_and_a_refusal_fences() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(bench.give(unavailable()), []);
    assert!(bench.core.next_wakeup().is_some());
    assert_eq!(bench.pass(100 * MS, false, false), [claim()]);
    let effects = bench.give(Input::Verdict(Verdict::Refused {
        current: Generation(4),
        holder: "b".into(),
    }));
    assert!(matches!(&effects[..], [Effect::Fenced { .. }]));
    assert_eq!(bench.core.phase(), PrimaryPhase::Fenced);
    assert_eq!(bench.core.next_wakeup(), None);
    assert_eq!(bench.give(link_up()), [Effect::CloseLink]);
    assert_eq!(bench.pass(1000 * MS, true, true), []);
}

#[test]
fn a_later_generation_heard_of_while_claiming_may_be_our_own() {
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    let generation = Generation(4);
    assert_eq!(
        bench.give(Input::HeartbeatHeard {
            session: SESSION,
            generation
        }),
        []
    );
    let effects = bench.give(Input::Verdict(Verdict::Granted(generation)));
    assert!(matches!(&effects[..], [Effect::GoAlone { .. }]));
}

#[test]
fn no_epoch_ends_in_doubt() {
    let mut bench = Bench::capturing();
    bench.ship(1);
    bench.now += 76 * MS;
    assert!(bench.ack(1).contains(&doubt()));
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
    assert_eq!(bench.ack(1), [doubt()]);
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
    assert_eq!(bench.ack(1), [doubt()]);
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

/// A later generation, in each way that a peer can say so.
fn hearsay() -> [Input; 4] {
    let later = Generation(u64::MAX);
    let from = |generation, message| Input::Received {
        generation,
        message,
    };
    [
        from(later, Message::Heartbeat),
        from(GENERATION, Message::Bye(Bye::Fenced { current: later })),
        Input::HeartbeatHeard {
            session: SESSION,
            generation: later,
        },
        from(later, Message::Refuse(Refusal::Stale { current: later })),
    ]
}

#[test]
fn what_anyone_says_about_generations_only_has_the_arbiter_asked() {
    for input in hearsay() {
        for mut bench in [Bench::protected(), Bench::welcomed(), Bench::new()] {
            bench.pass(200 * MS, true, true);
            let mut effects = bench.give(input.clone());
            let fences = |effects: &[Effect]| {
                let is_end = |effect: &Effect| matches!(effect, Effect::Fenced { .. });
                effects.iter().any(is_end)
            };
            assert!(!fences(&effects), "{input:?}: {effects:?}");
            assert!(!matches!(
                bench.core.phase(),
                PrimaryPhase::Fenced | PrimaryPhase::Stopped
            ));
            effects.extend(bench.give(Input::Opened));
            let asks = effects
                .iter()
                .any(|effect| matches!(effect, Effect::Confirm { .. } | Effect::Claim { .. }));
            if bench.core.session() == SESSION {
                assert!(asks, "{input:?}: {effects:?}");
                let refused = Verdict::Refused {
                    current: Generation(4),
                    holder: "b".into(),
                };
                let effects = bench.give(Input::Verdict(refused));
                assert!(fences(&effects), "the arbiter's word is another thing");
            }
        }
    }
}

#[test]
fn who_says_so_over_and_over_does_not_keep_the_guest_silent() {
    let mut bench = Bench::protected();
    bench.pass(200 * MS, true, true);
    let heard = || Input::HeartbeatHeard {
        session: SESSION,
        generation: Generation(9),
    };
    assert_eq!(bench.give(heard()), [doubt()]);
    assert!(bench.core.is_in_doubt());
    bench.give(confirmed());
    for _ in 0..100 {
        bench.now += MS;
        bench.hear(Message::Heartbeat);
        bench.give(heard());
        assert!(!bench.core.is_in_doubt());
    }
}

#[test]
fn heartbeats_of_strangers_mean_nothing() {
    let mut bench = Bench::protected();
    bench.give(Input::CheckpointWanted);
    let mut effects = Vec::new();
    for _ in 0..150 {
        bench.now += MS;
        for generation in [GENERATION, Generation(u64::MAX)] {
            let session = SESSION + 1;
            effects.extend(bench.give(Input::HeartbeatHeard {
                session,
                generation,
            }));
        }
    }
    assert!(
        effects.ends_with(&[Effect::CloseLink, claim()]),
        "{effects:?}"
    );
}

#[test]
fn an_arbiter_that_names_an_earlier_generation_fences_nobody() {
    let refused = || {
        Input::Verdict(Verdict::Refused {
            current: Generation(2),
            holder: "nobody".into(),
        })
    };
    let mut bench = Bench::protected();
    bench.give(Input::LinkDown {
        cause: "gone".into(),
    });
    assert_eq!(bench.give(refused()), []);
    assert_eq!(bench.pass(100 * MS, false, false), [claim()], "asked again");
    let mut bench = Bench::new();
    assert!(
        bench
            .pass(2000 * MS, false, false)
            .contains(&Effect::Confirm {
                generation: GENERATION,
                beat: 0,
                mark: None
            }),
        "a lone primary makes sure from time to time"
    );
    assert_eq!(bench.give(refused()), []);
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
}

#[test]
fn nothing_is_copied_before_the_first_mark_is_in_the_record() {
    let mut bench = Bench::new();
    bench.give(link_up());
    let effects = bench.hear(Message::Welcome(welcome_of_b()));
    assert_eq!(effects, [confirm(1)]);
    let effects = bench.give(unavailable());
    assert!(
        matches!(
            &effects[..],
            [Effect::CloseLink, Effect::GoAlone { cause, .. }] if cause.contains("no answer")
        ),
        "{effects:?}"
    );
}

#[test]
fn protected_means_that_the_backup_has_seen_the_last_mark() {
    let mut bench = Bench::protected();
    let generation = GENERATION;
    let says = |message| Input::Received {
        generation,
        message,
    };
    assert!(bench.core.is_protected());
    let why = String::from("the directory is read-only");
    let effects = bench.give_all(says(Message::NoArbiter(why)));
    assert!(
        matches!(&effects[..], [Effect::Takeover(Err(why))] if why.contains("read-only")),
        "{effects:?}"
    );
    assert!(!bench.core.is_protected());
    bench.hear(Message::Seen(mark(1)));
    assert!(bench.core.is_protected());
    // Marks go on being written, but nobody sees them.
    let patience = 2 * Policy::default().arbiter_check;
    let end = bench.now + patience;
    while bench.now < end {
        assert!(bench.core.is_protected() || bench.now + MS >= end);
        if bench.pass(MS, true, true).contains(&confirm(2)) {
            let told = bench.give_all(confirmed());
            assert!(
                told.contains(&Effect::Send(Message::Marked(mark(2)))),
                "{told:?}"
            );
        }
    }
    assert!(!bench.core.is_protected());
    let future = bench.hear(Message::Seen(mark(9)));
    assert!(matches!(
        future.first(),
        Some(Effect::Send(Message::Bye(Bye::Protocol(_))))
    ));
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
            session: SESSION,
            generation: Generation(2)
        }),
        []
    );
}

#[test]
fn a_slow_backup_that_has_seen_the_mark_before_the_last_proves_its_time() {
    let mut bench = Bench::protected();
    let check = Policy::default().arbiter_check;
    let effects = bench.pass(check, true, true);
    assert!(effects.contains(&confirm(2)), "{effects:?}");
    bench.give(confirmed());
    bench.hear(Message::Seen(mark(1)));
    assert!(bench.core.is_protected());
    // The first mark was written with the handshake.
    bench.pass(check, true, true);
    assert!(!bench.core.is_protected());
}

#[test]
fn a_primary_to_which_nothing_happens_confirms_its_generation() {
    let mut bench = Bench::new();
    let mut effects = Vec::new();
    while effects.is_empty() {
        bench.now = bench.core.next_wakeup().expect("a timer");
        effects = bench.give(Input::Tick);
    }
    let confirm = Effect::Confirm {
        generation: GENERATION,
        beat: 0,
        mark: None,
    };
    assert_eq!(effects, [confirm]);
    assert_eq!(bench.now, 1000 * MS + Policy::default().arbiter_check);
}

#[test]
fn nothing_is_copied_before_the_backup_has_found_the_first_mark() {
    let mut bench = Bench::new();
    bench.give(link_up());
    bench.hear(Message::Welcome(welcome_of_b()));
    // It cannot have seen what is not written.
    let effects = bench.hear(Message::Seen(mark(0)));
    assert!(
        matches!(
            effects.first(),
            Some(Effect::Send(Message::Bye(Bye::Protocol(_))))
        ),
        "{effects:?}"
    );
    let mut bench = Bench::new();
    bench.give(link_up());
    bench.hear(Message::Welcome(welcome_of_b()));
    assert_eq!(bench.give(confirmed()), []);
    let refusal = Refusal::NoArbiter("it is a copy".into());
    let effects = bench.hear(Message::Refuse(refusal));
    assert!(
        matches!(
            &effects[..],
            [Effect::CloseLink, Effect::GoAlone { cause, .. }] if cause.contains("it is a copy")
        ),
        "{effects:?}"
    );
}

#[test]
fn the_number_of_a_session_is_chosen_by_both_sides() {
    let mut bench = Bench::new();
    bench.give(link_up());
    let session = 1;
    let welcome = Welcome {
        session,
        ..welcome_of_b()
    };
    let effects = bench.hear(Message::Welcome(welcome));
    let session = SESSION ^ session;
    assert_eq!(bench.core.session(), session);
    let mark = Some(Mark { session, beat: 1 });
    assert!(
        matches!(&effects[..], [Effect::Confirm { mark: written, .. }] if *written == mark),
        "{effects:?}"
    );
}

#[test]
fn a_backup_that_never_looks_for_the_mark_is_given_up() {
    let mut bench = Bench::new();
    bench.give(link_up());
    bench.hear(Message::Welcome(welcome_of_b()));
    bench.give(confirmed());
    // Marks go on being written, and it lives.
    let patience = 10 * Policy::default().heartbeat_timeout;
    let mut effects = Vec::new();
    for _ in 0..patience.as_millis() / 50 {
        effects.extend(bench.pass(50 * MS, true, true));
        bench.core.confirm_at = Some(bench.now);
        bench.give(Input::Tick);
        bench.give(confirmed());
    }
    assert!(
        effects
            .iter()
            .any(|it| matches!(it, Effect::GoAlone { .. })),
        "{effects:?}"
    );
}

#[test]
fn a_first_mark_that_was_seen_long_ago_promises_nothing_for_longer() {
    let mut bench = Bench::new();
    bench.give(link_up());
    bench.hear(Message::Welcome(welcome_of_b()));
    bench.give(confirmed());
    let (written, check) = (bench.now, Policy::default().arbiter_check);
    // The next one is written before the backup's answer to the first one arrives.
    bench.core.confirm_at = Some(written + check / 2);
    bench.pass(check / 2, true, true);
    bench.give(confirmed());
    bench.hear(Message::Seen(mark(1)));
    bench.give(Input::SyncRoundShipped {
        pages_left: 0,
        disk_bytes_left: 0,
        left_takes: Duration::ZERO,
    });
    bench.ship(1);
    bench.ack(1);
    assert!(bench.core.is_protected());
    let mut lasted = 0;
    while bench.core.is_protected() {
        bench.pass(MS, true, true);
        lasted += 1;
        assert!(lasted < 10_000, "for ever");
    }
    assert_eq!(bench.now - written, 2 * check, "since the first mark");
}
