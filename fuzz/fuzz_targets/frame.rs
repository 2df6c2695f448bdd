//! Bytes of the logging channel, in any chunking.
#![no_main]

use libfuzzer_sys::fuzz_target;
use understudy_transport::{FrameDecoder, Limits};

fuzz_target!(|input: (u8, Vec<u8>)| {
    let (chunk, bytes) = input;
    let mut decoder = FrameDecoder::new(Limits::default());
    for piece in bytes.chunks(usize::from(chunk).max(1)) {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
});
