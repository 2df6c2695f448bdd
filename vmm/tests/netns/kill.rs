//! The primary is lost under a download: its process alone, or its host with everything on it.

use super::client::Download;
use super::pair::{Pair, announced_first, one_speaker};
use super::sniffer::Kind;
use super::topology::{GUEST_MAC, Side, Way};
use super::{DEADLINE, alone, await_some};

/// Far more than fits into all buffers between the guest and the test.
const BYTES: u64 = 24 << 20;

/// The kernel of the host lives: it closes the logging channel.
#[test]
fn a_download_survives_the_death_of_the_primary() {
    survive(|pair| pair.a.kill().unwrap());
}

/// Nothing says that the primary is gone but silence.
#[test]
fn a_download_survives_a_host_that_falls_silent() {
    survive(|pair| {
        let topology = &pair.topology;
        for way in [Way::Channel, Way::Beat] {
            topology.cut(way, Side::A);
        }
        topology.host(Side::A).ip("link set uplink down");
        pair.a.kill().unwrap();
    });
}

fn survive(lose: impl FnOnce(&mut Pair)) {
    let _alone = alone();
    let mut pair = Pair::protected();
    let mut download = Download::start(&pair.topology.client, BYTES);
    download.read_to(BYTES / 4);
    assert_eq!(pair.topology.guest_port(), Some(Side::A));
    assert_eq!(pair.sniffer.count(Side::B), 0, "the standby is silent");

    lose(&mut pair);
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
    // Said again and again, for switches that learn late.
    await_some("six announcements", || {
        let spoken = pair.sniffer.so_far();
        let rarps = spoken.iter().filter(|frame| frame.kind == Kind::Rarp);
        (rarps.filter(|frame| frame.side == Side::B).count() >= 6).then_some(())
    });

    let spoken = pair.finish();
    let [of_a, of_b] = one_speaker(&spoken);
    assert!(of_a > 0 && of_b > 0, "{of_a} frames of a, {of_b} of b");
    announced_first(&spoken);
}
