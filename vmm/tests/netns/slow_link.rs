//! A logging channel that ships less than the guest changes.

use super::alone;
use super::client::Stream;
use super::pair::{Pair, STREAM_BYTES_PER_S};
use super::topology::{Topology, Way};

/// The first copy of what the guest rewrites takes 2.7 s then.
const MBIT_PER_S: u32 = 100;
/// 32 MiB of noise, again and again.
const REWRITES: &str = ",dirty dirty.pages=8192 dirty.rate=0 dirty.mode=page";

/// It is slowed until its epochs are in time: without that, no copy of it ever ends, or its clients wait for ever.
#[test]
fn a_guest_that_changes_more_than_the_link_ships_is_protected_and_serves_its_clients() {
    let _alone = alone();
    let topology = Topology::new();
    topology.slow_down(Way::Channel, MBIT_PER_S);
    let pair = Pair::working(topology, "", REWRITES);
    let slowed = pair.a.status().expect("the primary answers").slowed_percent;
    assert!(slowed > 50.0, "by {slowed} %\n{}", pair.logs());
    let stream = Stream::start(&pair.topology.client);
    stream.await_more(3 * STREAM_BYTES_PER_S);
    let a = pair.a.status().expect("the primary answers");
    assert!(a.protected && a.generation == 1, "{a:?}\n{}", pair.logs());
    // In one piece: the link was never given up.
    assert!(!pair.a.log().contains("no standby"), "{}", pair.logs());
    drop(stream);
}
