//! Frame bodies as messages; what is understood must encode to what is understood the same way.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_replication::core::message::Message;

fuzz_target!(|input: (u16, u64, Vec<u8>)| {
    let (kind, epoch, body) = input;
    // Kinds are small numbers; most inputs should hit one.
    let kind = kind % 16;
    let Ok(message) = Message::decode(kind, epoch, body.into()) else {
        return;
    };
    let (kind, epoch, body) = message.encode();
    assert_eq!(
        Message::decode(kind, epoch, body).expect("own encoding"),
        message
    );
});
