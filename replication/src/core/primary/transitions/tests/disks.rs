//! What comes before what where there are disks.

use super::*;

#[test]
fn disks_are_copied_before_rounds_of_memory_count() {
    let mut bench = Bench::welcomed();
    for disk_bytes_left in (1..100).rev() {
        let effects = bench.give(Input::SyncRoundShipped {
            pages_left: 0,
            disk_bytes_left,
            left_takes: Duration::ZERO,
        });
        assert_eq!(effects, [Effect::SyncRound]);
    }
    for _ in 0..7 {
        let effects = bench.give(Input::SyncRoundShipped {
            pages_left: 5000,
            disk_bytes_left: 0,
            left_takes: Duration::ZERO,
        });
        assert_eq!(effects, [Effect::SyncRound], "all rounds are left");
    }
    let effects = bench.give(Input::SyncRoundShipped {
        pages_left: 5000,
        disk_bytes_left: 0,
        left_takes: Duration::ZERO,
    });
    assert_eq!(effects, [Effect::Capture(EpochId(1))]);
}

impl Bench {
    /// Protected, with shared disks; epoch 1 has been written and released.
    fn sharing() -> Self {
        let mut bench = Self::new();
        bench.core = bench.core.with_shared_disks(true);
        bench.give(link_up());
        bench.hear(Message::Welcome(welcome_of_b()));
        bench.give(confirmed());
        bench.hear(Message::Seen(mark(1)));
        bench.give(Input::SyncRoundShipped {
            pages_left: 0,
            disk_bytes_left: 0,
            left_takes: Duration::ZERO,
        });
        bench.ship(1);
        assert_eq!(bench.ack(1), [Effect::WriteDisks(EpochId(1))]);
        let written = Input::DisksWritten { epoch: EpochId(1) };
        assert_eq!(bench.give(written), [Effect::Release(EpochId(1))]);
        bench
    }
}

#[test]
fn shared_disks_are_written_before_frames_leave_and_the_next_epoch_waits_for_both() {
    let mut bench = Bench::sharing();
    bench.pass(25 * MS, true, false);
    bench.ship(2);
    assert_eq!(bench.ack(2), [Effect::WriteDisks(EpochId(2))]);
    assert_eq!(bench.pass(100 * MS, true, false), [], "not written yet");
    assert_eq!(bench.give(Input::CheckpointWanted), []);
    let epoch = EpochId(2);
    assert_eq!(
        bench.give(Input::DisksWritten { epoch }),
        [Effect::Release(epoch), Effect::Capture(EpochId(3))]
    );
    // Reported twice, or of another epoch: the runtime and the core do not mean the same.
    for epoch in [2, 3] {
        let mut bench = Bench::sharing();
        bench.pass(25 * MS, true, false);
        bench.ship(2);
        bench.ack(2);
        bench.give(Input::DisksWritten { epoch: EpochId(2) });
        let effects = bench.give(Input::DisksWritten {
            epoch: EpochId(epoch),
        });
        assert!(claims(&effects), "{epoch}: {effects:?}");
    }
}

#[test]
fn a_stall_while_shared_disks_are_written_holds_the_frames_until_the_arbiter_confirms() {
    let mut bench = Bench::sharing();
    bench.pass(25 * MS, true, false);
    bench.ship(2);
    assert_eq!(bench.ack(2), [Effect::WriteDisks(EpochId(2))]);
    bench.now += 100 * MS;
    let epoch = EpochId(2);
    let effects = bench.give(Input::DisksWritten { epoch });
    assert!(effects.contains(&doubt()));
    assert!(!effects.contains(&Effect::Release(epoch)), "{effects:?}");
    let effects = bench.give(Input::Verdict(Verdict::Granted(GENERATION)));
    assert!(effects.contains(&Effect::Release(epoch)), "{effects:?}");
}

#[test]
fn what_is_durable_moves_on_and_never_beyond_what_is_acked() {
    let ack = |bench: &mut Bench, epoch, durable| {
        let (epoch, durable) = (EpochId(epoch), EpochId(durable));
        bench.hear(Message::Ack { epoch, durable })
    };
    let mut bench = Bench::capturing();
    bench.ship(1);
    assert_eq!(
        ack(&mut bench, 1, 1),
        [Effect::Durable(EpochId(1)), Effect::Release(EpochId(1))]
    );
    bench.pass(25 * MS, true, false);
    bench.ship(2);
    assert_eq!(ack(&mut bench, 2, 1), [Effect::Release(EpochId(2))]);
    for durable in [0, 4, u64::MAX] {
        let mut bench = Bench::capturing();
        bench.ship(1);
        ack(&mut bench, 1, 1);
        bench.pass(25 * MS, true, false);
        bench.ship(2);
        let effects = ack(&mut bench, 2, durable);
        assert!(claims(&effects[1..]), "{durable}: {effects:?}");
    }
}

#[test]
fn a_backup_that_cannot_keep_its_copy_is_lost_and_says_why() {
    let mut bench = Bench::welcomed();
    let effects = bench.hear(Message::Bye(Bye::Unable("disk full".into())));
    assert!(
        matches!(&effects[..], [Effect::CloseLink, Effect::GoAlone { cause, .. }]
            if cause.contains("disk full")),
        "{effects:?}"
    );
    let mut bench = Bench::protected();
    let effects = bench.hear(Message::Bye(Bye::Unable("disk full".into())));
    assert!(claims(&effects), "{effects:?}");
}

#[test]
fn what_the_backup_found_goes_to_the_disks_and_must_be_possible() {
    let found = || Message::Compared(vec![true]);
    for mut bench in [Bench::welcomed(), Bench::protected()] {
        assert_eq!(bench.hear(found()), [Effect::Compared(vec![true])]);
        let misreported = || Input::DisksMisreported {
            what: "not asked".into(),
        };
        let effects = bench.give(misreported());
        assert!(
            matches!(&effects[..], [Effect::Send(Message::Bye(Bye::Protocol(what))), Effect::CloseLink, ..]
                if what.contains("not asked")),
            "{effects:?}"
        );
        assert_eq!(bench.give(misreported()), [], "of a session that has ended");
    }
    // Before the copy there is nothing to compare.
    let mut bench = Bench::new();
    bench.give(link_up());
    let effects = bench.hear(found());
    assert!(matches!(
        &effects[..],
        [
            Effect::Send(Message::Bye(Bye::Protocol(_))),
            Effect::CloseLink,
            ..
        ]
    ));
}

/// The guest is told only of what the backup has said and acknowledged.
#[test]
fn what_is_flushed_moves_on_and_never_beyond_what_is_acked() {
    let flushed = |epoch| Message::Flushed(EpochId(epoch));
    let mut bench = Bench::protected();
    bench.pass(25 * MS, true, false);
    bench.ship(2);
    assert_eq!(bench.hear(flushed(1)), [Effect::Flushed(EpochId(1))]);
    bench.ack(2);
    assert_eq!(bench.hear(flushed(2)), [Effect::Flushed(EpochId(2))]);
    // Said before it is acked, again, or of one before.
    for epoch in [1, 2, 3, u64::MAX] {
        let mut bench = Bench::protected();
        bench.pass(25 * MS, true, false);
        bench.ship(2);
        bench.ack(2);
        bench.hear(flushed(2));
        bench.pass(25 * MS, true, false);
        bench.ship(3);
        let effects = bench.hear(flushed(epoch));
        assert!(claims(&effects[1..]), "{epoch}: {effects:?}");
    }
    let effects = Bench::welcomed().hear(flushed(1));
    assert!(
        matches!(
            &effects[..],
            [Effect::Send(Message::Bye(Bye::Protocol(_))), ..]
        ),
        "{effects:?}"
    );
}

/// What the backup says may be read before the report that the epoch is shipped.
#[test]
fn an_epoch_may_be_flushed_before_it_is_reported_as_shipped() {
    let mut bench = Bench::protected();
    bench.pass(25 * MS, true, false);
    let epoch = EpochId(2);
    bench.give(Input::Captured {
        epoch,
        pause: Pause::default(),
    });
    assert_eq!(bench.ack(2), []);
    assert_eq!(
        bench.hear(Message::Flushed(epoch)),
        [Effect::Flushed(epoch)]
    );
}
