//! A guest that is handed over.

use understudy_replication::ports::Machine;
use understudy_replication::runtime::Ended;

use super::{assert_counts_up, pair, promoted};

/// In some of so many, the last epoch has output.
const HANDOVERS: usize = 20;

#[test]
fn what_a_guest_is_given_while_it_is_handed_over_follows_it() {
    (0..HANDOVERS).for_each(|_| hand_over());
}

fn hand_over() {
    let directory = tempfile::tempdir().unwrap();
    let pair = pair(directory.path());
    assert!(pair.primary.handle().hand_over("this host is to stop"));
    let mut promoted = promoted(pair.standby);
    let ended = pair.primary.wait().unwrap();
    assert!(matches!(ended, Ended::HandedOver { .. }), "{ended:?}");
    let (step, waiting) = pair.standby_gate.found();
    // All that came after the last epoch, until the old host was told that the guest is here.
    let expected: Vec<u64> = (step + 1..).take(waiting.len()).collect();
    assert_eq!(waiting, expected, "after step {step}");
    assert!(!waiting.is_empty(), "the guest ran on for a moment");
    promoted.machine.stop();
    promoted.machine.assert_consistent();
    // Nothing of it comes twice.
    let mut said = pair.primary_gate.out();
    said.extend(pair.standby_gate.out());
    assert_counts_up(&said);
}
