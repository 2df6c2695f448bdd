//! A guest that runs nowhere any more, for example after both hosts have lost their power: who
//! starts it, without a person.

use understudy_replication::core::start::Starts;

use super::*;

const KNOWN: Generation = Generation(1);

/// The guest has run on `holder`, of which `backup` may have a copy; then both lost their power.
fn both_lost_power(directory: &Path, holder: &str, backup: &str) {
    let arbiter = arbiter(directory);
    let holder = format!("{holder} (pid 1)");
    let granted = arbiter.claim(START, &holder).unwrap();
    assert_eq!(granted, Verdict::Granted(KNOWN));
    arbiter.note(KNOWN, Note::Backup(backup)).unwrap();
}

fn refusal(primary: PrimaryBuilder<Fake>) -> RuntimeError {
    match primary.protect() {
        Err(error) => error,
        Ok(_) => panic!("it was started"),
    }
}

fn watchful() -> Policy {
    Policy {
        arbiter_check: Duration::from_millis(100),
        ..patient()
    }
}

#[test]
fn the_last_holder_starts_the_guest_again_once_its_standby_has_said_that_it_has_no_copy() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    both_lost_power(directory, "a", "b");
    // The standby is not up yet.
    let error = refusal(primary(directory, Fake::new()));
    assert!(matches!(error, RuntimeError::NotAsked { .. }), "{error}");
    let lost = "the copy of the guest's memory that b may have";
    assert!(error.to_string().contains(lost), "{error}");
    let standby = standby(directory, Fake::new()).start().unwrap();
    let primary = primary(directory, Fake::new()).protect().unwrap();
    let handle = primary.handle();
    wait_for("protected", || handle.status(), |status| status.protected);
    assert_eq!(handle.status().generation, 2);
    assert!(standby.handle().stop());
    handle.stop();
    primary.wait().unwrap();
}

#[test]
fn of_two_standbys_the_one_where_the_guest_ran_last_starts_it() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    both_lost_power(directory, "b", "a");
    let at = |name: &str| Endpoint::Unix(directory.join(name));
    let start = |node: &str, other: &str| {
        let standby = standby(directory, Fake::new()).policy(watchful());
        let standby = standby.node(node).listen(at(node));
        let standby = standby.starts(Starts::IfItRanHere, Some(at(other)));
        standby.start().unwrap()
    };
    let b = start("b", "a");
    let nobody = |status: &Status| {
        let alarm = status.alarm.as_deref().unwrap_or_default();
        alarm.contains("cannot be started here")
    };
    wait_for("nobody to ask", || b.handle().status(), nobody);
    let a = start("a", "b");
    let Outcome::Starts { known } = b.await_promotion().unwrap() else {
        panic!("it does not start the guest");
    };
    assert_eq!(known, KNOWN);
    let started = Primary::attach(Origin::Fresh(Fake::new()))
        .arbiter(arbiter(directory))
        .backup(at("a"))
        .node("b")
        .restart(known)
        .protect()
        .unwrap();
    let handle = started.handle();
    wait_for("protected", || handle.status(), |status| status.protected);
    // What was said then is true no more.
    let late = refusal(primary(directory, Fake::new()).restart(known));
    assert!(matches!(late, RuntimeError::Owned { .. }), "{late}");
    assert!(a.handle().stop());
    handle.stop();
    started.wait().unwrap();
}

#[test]
fn a_guest_is_not_started_while_a_third_host_may_have_a_copy() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    both_lost_power(directory, "a", "c");
    let standby = standby(directory, Fake::new()).start().unwrap();
    let error = refusal(primary(directory, Fake::new()));
    assert!(
        error.to_string().contains("its standby c has a copy"),
        "{error}"
    );
    assert!(standby.handle().stop());
    assert!(matches!(
        standby.await_promotion().unwrap(),
        Outcome::Stopped
    ));
    // A person knows that host c is gone for good.
    let primary = primary(directory, Fake::new()).start_over();
    let primary = primary.protect().unwrap();
    primary.handle().stop();
    primary.wait().unwrap();
}

#[test]
fn a_first_start_finds_out_that_the_other_host_knows_the_guest_from_another_arbiter() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    both_lost_power(there.path(), "b", "a");
    let standby = Standby::builder(Fake::new())
        .arbiter(arbiter(there.path()))
        .listen(endpoint(here.path()))
        .node("b");
    let standby = standby.start().unwrap();
    let error = refusal(primary(here.path(), Fake::new()));
    assert!(
        matches!(error, RuntimeError::KnownElsewhere { .. }),
        "{error}"
    );
    assert!(standby.handle().stop());
}
