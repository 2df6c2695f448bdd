//! States that are loaded on trial while a guest works that reads its clock all the time.

use super::alone;
use super::client::Stream;
use super::pair::{Pair, STREAM_BYTES_PER_S};

/// In this time, two states are tried: one every ten seconds.
const SECONDS: u64 = 25;

/// KVM writes a guest's kvmclock to memory, and a copy that is not what it should be is given up.
#[test]
fn a_copy_is_still_exact_when_states_were_tried() {
    let _alone = alone();
    let pair = Pair::protected();
    let stream = Stream::start(&pair.topology.client);
    stream.await_more(SECONDS * STREAM_BYTES_PER_S);
    let a = pair.a.status().expect("the primary answers");
    assert!(a.protected && a.generation == 1, "{a:?}\n{}", pair.logs());
    assert!(!pair.a.log().contains("lost"), "{}", pair.logs());
    drop(stream);
}
