//! The primary is killed under a download.

use super::DEADLINE;
use super::alone;
use super::client::Download;
use super::pair::{Pair, announced_first, one_speaker};
use super::topology::{GUEST_MAC, Side};

/// Far more than fits into all buffers between the guest and the test.
const BYTES: u64 = 24 << 20;

#[test]
fn a_download_survives_the_death_of_the_primary() {
    let _alone = alone();
    let mut pair = Pair::protected();
    let mut download = Download::start(&pair.topology.client, BYTES);
    download.read_to(BYTES / 4);
    assert_eq!(pair.topology.guest_port(), Some(Side::A));
    assert_eq!(pair.sniffer.count(Side::B), 0, "the standby is silent");

    pair.a.kill().unwrap();
    let status = pair
        .b
        .await_status("promoted", DEADLINE, |status| status.failover.is_some())
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(status.generation, 2, "{}", pair.logs());
    // `read_to` and `finish` compare every byte.
    download.read_to(BYTES / 2);
    assert_eq!(pair.topology.guest_port(), Some(Side::B));
    let neighbour = pair.topology.neighbour();
    assert!(neighbour.contains(GUEST_MAC), "{neighbour}");
    for lost in ["FAILED", "INCOMPLETE"] {
        assert!(!neighbour.contains(lost), "{neighbour}");
    }
    let (bytes, exit) = download.finish();
    assert!(exit.success(), "curl: {exit}");
    assert_eq!(bytes, BYTES, "the file is complete");

    let spoken = pair.finish();
    let [of_a, of_b] = one_speaker(&spoken);
    assert!(of_a > 0 && of_b > 0, "{of_a} frames of a, {of_b} of b");
    announced_first(&spoken);
}
