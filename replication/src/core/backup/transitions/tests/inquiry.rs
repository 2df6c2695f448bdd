//! What a backup tells a side that is to start the guest, and how it starts the guest itself.

use super::*;
use crate::core::message::{Holdings, Inquiry};
use crate::core::start::claimant;

fn inquiry() -> Message {
    Message::Inquiry(Inquiry {
        vm: "vm0".into(),
        node: "a".into(),
        arbiter: arbiter(),
    })
}

fn holdings(node: &str, copy: Option<u64>) -> Holdings {
    let copy = copy.map(|epoch| (GENERATION, EpochId(epoch)));
    let node = node.into();
    let host = None;
    Holdings { node, host, copy }
}

/// The guest ran last on `holder`, and `backup` may have a copy. Nobody runs it.
fn ran_on(holder: &str, backup: Option<&str>) -> Input {
    Input::Looked {
        record: Record {
            holder: claimant(holder, None, "pid 1"),
            backup: backup.map(Into::into),
            ..record(3, 0)
        },
        holder_lives: false,
    }
}

fn inquired(theirs: Result<Holdings, String>) -> Input {
    let disks = Ok(());
    Input::Inquired { theirs, disks }
}

fn asks(bench: &mut Bench) -> Vec<Effect> {
    assert_eq!(bench.give(link_up()), []);
    bench.hear_from(Generation(0), inquiry())
}

/// A backup that has no copy, and looks at the arbiter whether it is to start the guest.
fn looking(starts: Starts) -> Bench {
    let mut bench = Bench::new();
    bench.core.identity.starts = starts;
    bench.core.identity.has_replicated = true;
    assert_eq!(bench.give(Input::Tick), [Effect::Look]);
    bench
}

/// Lets the time until the next look pass.
fn looks_again(bench: &mut Bench) {
    bench.now += bench.core.policy.arbiter_check;
    assert_eq!(bench.give(Input::Tick), [Effect::Look]);
}

#[test]
fn who_asks_is_told_of_a_copy_or_that_there_is_none() {
    let tells = |copy| {
        let told = Message::Holdings(holdings("b", copy));
        [Effect::Send(told), Effect::CloseLink]
    };
    assert_eq!(asks(&mut Bench::new()), tells(None));
    let mut bench = Bench::standby();
    // Its primary lives as far as this side knows; the link was cut.
    let cause = "garbage".into();
    bench.give(Input::LinkBroken { cause });
    assert_eq!(asks(&mut bench), tells(Some(1)));
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)), "it is kept");
    assert_eq!(bench.core.phase(), BackupPhase::Standby);
}

#[test]
fn who_asks_about_another_guest_or_arbiter_is_refused() {
    for (vm, id) in [("vm1", arbiter()), ("vm0", ArbiterId("another".into()))] {
        let mut bench = Bench::new();
        bench.give(link_up());
        let wrong = Message::Inquiry(Inquiry {
            vm: vm.into(),
            node: "a".into(),
            arbiter: id,
        });
        let effects = bench.hear_from(Generation(0), wrong);
        assert!(
            matches!(
                effects[..],
                [Effect::Send(Message::Refuse(_)), Effect::CloseLink]
            ),
            "{effects:?}"
        );
    }
}

#[test]
fn a_backup_to_which_nothing_happens_looks_whether_it_is_to_start_the_guest() {
    let bench = Bench::new();
    let core = |starts| {
        let identity = BackupIdentity {
            starts,
            ..bench.core.identity.clone()
        };
        BackupCore::new(Policy::default(), identity, Generation(2), bench.now)
    };
    assert_eq!(core(Starts::IfItRanHere).next_wakeup(), Some(bench.now));
    assert_eq!(core(Starts::Never).next_wakeup(), None);
}

#[test]
fn without_a_copy_anywhere_the_host_that_ran_the_guest_last_starts_it() {
    let known = GENERATION;
    let mut bench = looking(Starts::IfItRanHere);
    assert_eq!(bench.give(ran_on("b", Some("a"))), [Effect::Inquire]);
    // The other one is not there yet.
    let effects = bench.give(inquired(Err("nobody there".into())));
    assert!(matches!(&effects[..], [Effect::CannotStart { why }] if why == "nobody there"));
    looks_again(&mut bench);
    assert_eq!(bench.give(ran_on("b", Some("a"))), [Effect::Inquire]);
    let still = bench.give(inquired(Err("nobody there".into())));
    assert_eq!(still, [], "that is known");
    // Nor could it be asked at all.
    looks_again(&mut bench);
    assert_eq!(bench.give(ran_on("b", Some("a"))), [Effect::Inquire]);
    assert_eq!(bench.give(unavailable()), []);
    looks_again(&mut bench);
    assert_eq!(bench.give(ran_on("b", Some("a"))), [Effect::Inquire]);
    let effects = bench.give(inquired(Ok(holdings("a", None))));
    assert_eq!(effects, [Effect::StartGuest { known }]);
}

#[test]
fn a_guest_is_not_started_over_a_copy_a_third_hosts_or_one_that_lives() {
    let mut bench = looking(Starts::IfItRanHere);
    bench.give(ran_on("b", Some("a")));
    let a_takes_over = inquired(Ok(holdings("a", Some(9))));
    assert_eq!(bench.give(a_takes_over), []);
    looks_again(&mut bench);
    assert_eq!(bench.give(ran_on("b", Some("c"))), [Effect::Inquire]);
    let effects = bench.give(inquired(Ok(holdings("a", None))));
    assert!(matches!(&effects[..], [Effect::CannotStart { why }] if why.contains("c may have")));
    looks_again(&mut bench);
    assert_eq!(bench.give(ran_on("a", Some("b"))), [], "older disks");
    looks_again(&mut bench);
    let Input::Looked { record, .. } = ran_on("b", Some("a")) else {
        unreachable!()
    };
    let holder_lives = true;
    let lives = Input::Looked {
        record,
        holder_lives,
    };
    assert_eq!(bench.give(lives), []);
    // Nor from disks that cannot be run.
    looks_again(&mut bench);
    bench.give(ran_on("b", Some("a")));
    let (theirs, disks) = (Ok(holdings("a", None)), Err("unfinished".into()));
    let effects = bench.give(Input::Inquired { theirs, disks });
    assert!(matches!(&effects[..], [Effect::CannotStart { why }] if why == "unfinished"));
}

#[test]
fn a_guest_that_may_have_ended_on_purpose_is_started_only_if_somebody_asks_for_it() {
    let mut bench = looking(Starts::IfItRanHere);
    for _ in 1..10 {
        assert_eq!(bench.give(ran_on("b", None)), []);
        looks_again(&mut bench);
    }
    let effects = bench.give(ran_on("b", None));
    assert!(matches!(&effects[..], [Effect::CannotStart { .. }]), "told");
    asks(&mut bench);
    looks_again(&mut bench);
    assert_eq!(bench.give(ran_on("b", None)), [Effect::Inquire]);
}

#[test]
fn a_primary_that_comes_meanwhile_is_served_and_nothing_is_started() {
    let mut bench = looking(Starts::IfItMay);
    assert_eq!(bench.give(ran_on("b", Some("a"))), [Effect::Inquire]);
    assert_eq!(bench.introduce(GENERATION), [welcomed()]);
    assert_eq!(bench.give(inquired(Ok(holdings("a", None)))), []);
    assert_eq!(bench.core.phase(), BackupPhase::Syncing);
}

#[test]
fn nothing_follows_from_an_arbiter_that_gives_no_answer_or_an_old_one() {
    let mut bench = looking(Starts::IfItMay);
    assert_eq!(bench.give(unavailable()), []);
    looks_again(&mut bench);
    let (record, holder_lives) = (record(1, 0), false);
    let old = Input::Looked {
        record,
        holder_lives,
    };
    assert_eq!(bench.give(old), []);
    looks_again(&mut bench);
}
