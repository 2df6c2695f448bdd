//! What fails on a standby's host is known on the primary's.

use understudy_replication::core::message::TROUBLES_MAX;
use understudy_replication::ports::Machine;
use understudy_replication::runtime::Trouble;

use super::{pair, promoted, wait_for};

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
