//! What a primary tells people about itself is true.

use std::collections::BTreeSet;

use super::*;
use crate::core::primary::EndingAwaits;

#[test]
fn each_phase_and_each_reason_has_a_name_of_its_own() {
    use PrimaryPhase::*;
    let phases = [
        Alone,
        Handshaking,
        Syncing,
        Protected,
        Claiming,
        Fenced,
        Stopped,
    ];
    let names: BTreeSet<_> = phases.map(PrimaryPhase::name).into();
    assert_eq!(names.len(), phases.len());
    assert!(names.contains("protected"));
    use EndingAwaits::*;
    let names: BTreeSet<_> = [Backup, Arbiter, Disks].map(EndingAwaits::name).into();
    assert_eq!(names.len(), 3);
    assert!(names.contains("the arbiter"));
}

#[test]
fn an_epoch_counts_once_it_is_acknowledged_and_a_guest_ends_once_it_has_ended() {
    let mut bench = Bench::capturing();
    assert_eq!(bench.core.acked(), None);
    bench.ship(1);
    assert_eq!(bench.core.acked(), None);
    assert_eq!(bench.core.in_flight(), Some(EpochId(1)));
    bench.ack(1);
    assert_eq!(bench.core.acked(), Some(EpochId(1)));
    assert_eq!(bench.core.in_flight(), None);
    assert!(!bench.core.is_ending());
    bench.give(Input::GuestStopped);
    assert!(bench.core.is_ending());
}

#[test]
fn a_side_that_goes_on_alone_is_opening_until_all_that_was_held_has_left() {
    let mut bench = Bench::welcomed();
    assert!(!bench.core.is_opening());
    let cause = "gone".into();
    bench.give(Input::LinkDown { cause });
    assert_eq!(bench.core.phase(), PrimaryPhase::Alone);
    assert!(bench.core.is_opening());
    bench.give(Input::Opened);
    assert!(!bench.core.is_opening());
}

#[test]
fn it_is_said_what_the_end_waits_for() {
    let mut bench = Bench::protected();
    bench.core = bench.core.with_shared_disks(true);
    assert_eq!(bench.core.ending_awaits(), None);
    bench.give(Input::GuestStopped);
    assert_eq!(bench.core.ending_awaits(), Some(EndingAwaits::Backup));
    bench.ship(2);
    assert_eq!(bench.core.ending_awaits(), Some(EndingAwaits::Backup));
    assert_eq!(bench.ack(2), [Effect::WriteDisks(EpochId(2))]);
    assert_eq!(bench.core.ending_awaits(), Some(EndingAwaits::Disks));
    bench.give(Input::DisksWritten { epoch: EpochId(2) });
    assert_eq!(bench.give(Input::Tick), [claim()]);
    assert_eq!(bench.core.ending_awaits(), Some(EndingAwaits::Arbiter));
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(bench.core.ending_awaits(), None, "it has ended");
    // After a stall, the arbiter is to confirm the generation before anything leaves.
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    bench.ship(2);
    bench.now += 100 * MS;
    bench.ack(2);
    assert_eq!(bench.core.ending_awaits(), Some(EndingAwaits::Arbiter));
    // Without a backup, the arbiter decides, and then the disks have to take what was held.
    let mut bench = Bench::protected();
    bench.give(Input::GuestStopped);
    let cause = "gone".into();
    bench.give(Input::LinkDown { cause });
    assert_eq!(bench.core.ending_awaits(), Some(EndingAwaits::Arbiter));
    bench.give(Input::Verdict(Verdict::Granted(Generation(4))));
    assert_eq!(bench.core.ending_awaits(), Some(EndingAwaits::Disks));
}

#[test]
fn whose_primary_it_is_is_known_from_the_welcome_until_the_backup_is_lost() {
    let of = |bench: &Bench| {
        let (node, host) = (bench.core.backup_node(), bench.core.backup_host());
        (node.map(str::to_owned), host.map(str::to_owned))
    };
    let mut bench = Bench::new();
    bench.give(link_up());
    assert_eq!(of(&bench), (None, None));
    bench.hear(Message::Welcome(Welcome {
        host: Some("2e".into()),
        ..welcome_of_b()
    }));
    assert_eq!(of(&bench), (Some("b".into()), Some("2e".into())));
    let cause = "gone".into();
    bench.give(Input::LinkDown { cause });
    assert_eq!(of(&bench), (None, None));
}
