//! A UDP packet that claims to be a heartbeat.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_transport::heartbeat::{Heartbeat, vm_hash};

fuzz_target!(|packet: &[u8]| {
    let vm = vm_hash("vm");
    if let Ok(heartbeat) = Heartbeat::decode(packet, vm) {
        assert_eq!(heartbeat.encode(vm).as_slice(), packet);
    }
});
