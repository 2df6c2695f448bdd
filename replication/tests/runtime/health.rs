//! What fails on a standby's host is known on the primary's.

use std::sync::Arc;
use std::sync::mpsc::channel;

use understudy_replication::core::message::TROUBLES_MAX;
use understudy_replication::ports::Machine;
use understudy_replication::runtime::Trouble;

use super::fake::Fake;
use super::hang::Heals;
use super::{PATIENCE, pair, primary, promoted, standby, wait_for};

#[test]
fn what_fails_on_the_standbys_host_is_known_to_the_primary_until_it_loses_it() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    let (primary, standby) = (pair.primary.handle(), pair.standby.handle());
    assert_eq!(primary.status().backup_troubles, None, "it has not said so");
    // More than fit are cut off, and what a terminal would obey is not passed on.
    let many =
        |topic: &str| vec![Trouble::new(topic, "the cable\u{1b}[2J is out"); TROUBLES_MAX + 9];
    assert!(standby.report_health(many("net0")));
    wait_for(
        "troubles",
        || primary.status(),
        |status| match &status.backup_troubles {
            None => false,
            Some(troubles) => {
                assert_eq!(troubles.len(), TROUBLES_MAX);
                let further = troubles.last().unwrap();
                assert!(further.is_further(), "{further:?}");
                assert!(further.why.starts_with("10 further"), "{further:?}");
                assert!(!troubles[0].why.contains('\u{1b}'), "{troubles:?}");
                troubles[0].topic == "net0"
            }
        },
    );
    assert!(standby.report_health(Vec::new()));
    wait_for(
        "none",
        || primary.status(),
        |status| status.backup_troubles == Some(Vec::new()),
    );
    assert!(standby.promote());
    let mut promoted = promoted(pair.standby);
    pair.primary.wait().unwrap();
    promoted.machine.stop();
    promoted.machine.assert_consistent();
}

#[test]
fn who_reports_never_waits_for_a_standby_that_hangs_and_the_newest_counts() {
    let directory = tempfile::tempdir().unwrap();
    let copy = Fake::new();
    let heals = Heals(Arc::clone(&copy.write_hangs));
    let standby = standby(directory.path(), copy).start().unwrap();
    let primary = primary(directory.path(), Fake::new()).protect().unwrap();
    let handle = primary.handle();
    wait_for("protected", || handle.status(), |status| status.protected);
    heals.0.set(true);
    let hangs = Arc::clone(&heals.0);
    wait_for(
        "a standby that hangs",
        || handle.status(),
        |_| hangs.has_held(),
    );
    let (tell, told) = channel();
    let reports = standby.handle();
    // More than there is room for in any queue.
    let reporter = std::thread::spawn(move || {
        for number in 0..1_000 {
            let trouble = Trouble::new("net0", &format!("the cable is out, look {number}"));
            assert!(reports.report_health(vec![trouble]));
        }
        tell.send(()).unwrap();
    });
    told.recv_timeout(PATIENCE)
        .expect("it waits for the standby");
    reporter.join().unwrap();
    drop(heals);
    wait_for(
        "the newest",
        || handle.status(),
        |status| {
            let troubles = status.backup_troubles.as_deref().unwrap_or_default();
            troubles.iter().any(|it| it.why.ends_with("look 999"))
        },
    );
    assert!(standby.handle().stop());
    drop(standby.await_promotion());
    handle.stop();
    primary.wait().unwrap();
}
