//! The framing against everything a peer, or a bad wire, can make of it. No I/O: frames are encoded
//! and decoded in memory.
#![allow(
    clippy::unwrap_used,
    reason = "clippy does not know helpers of tests as tests"
)]

use proptest::prelude::*;
use understudy_transport::frame::MAGIC;
use understudy_transport::{
    Frame, FrameDecoder, HEADER_BYTES, Limits, LinkError, PROTOCOL_VERSION,
};

const LIMITS: Limits = Limits {
    body_bytes_max: 1 << 16,
};

fn any_frame() -> impl Strategy<Value = Frame> {
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        (0usize..20_000, any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
    ];
    (any::<u16>(), any::<u64>(), any::<u64>(), body).prop_map(|(kind, generation, epoch, body)| {
        Frame {
            kind,
            generation,
            epoch,
            body: body.into(),
        }
    })
}

fn some_frames() -> impl Strategy<Value = Vec<Frame>> {
    prop::collection::vec(any_frame(), 1..6)
}

fn encode(frames: &[Frame]) -> Vec<u8> {
    encode_numbered(frames.iter().zip(0..))
}

fn encode_numbered<'a>(frames: impl IntoIterator<Item = (&'a Frame, u64)>) -> Vec<u8> {
    let mut stream = Vec::new();
    for (frame, sequence) in frames {
        stream.extend(frame.encode_header(sequence, LIMITS).unwrap());
        stream.extend(&frame.body);
    }
    stream
}

/// All frames the stream gives, and how it ends.
fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> (Vec<Frame>, LinkError) {
    let mut decoder = FrameDecoder::new(LIMITS);
    let mut frames = Vec::new();
    for piece in pieces {
        decoder.feed(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(error) => return (frames, error),
            }
        }
    }
    (frames, decoder.end_of_stream())
}

fn frame_of(body_bytes: usize) -> Frame {
    Frame {
        body: vec![1; body_bytes].into(),
        ..Frame::default()
    }
}

/// The header of an empty frame with `bytes` at `at`, its checksum made right again.
fn doctored_header(at: usize, bytes: &[u8]) -> [u8; HEADER_BYTES] {
    let mut header = Frame::default().encode_header(0, LIMITS).unwrap();
    header[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32fast::hash(&header[..44]);
    header[44..].copy_from_slice(&crc.to_le_bytes());
    header
}

proptest! {
    #[test]
    fn frames_survive_any_chunking(
        frames in some_frames(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40),
    ) {
        let stream = encode(&frames);
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let (decoded, end) = decode(cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]));
        prop_assert_eq!(decoded, frames);
        prop_assert!(matches!(end, LinkError::Closed), "{}", end);
    }

    #[test]
    fn one_damaged_byte_is_an_error_and_spoils_nothing_before_it(
        frames in some_frames(),
        at in any::<prop::sample::Index>(),
        flip in 1u8..,
    ) {
        let mut stream = encode(&frames);
        let at = at.index(stream.len());
        stream[at] ^= flip;
        let (decoded, error) = decode([&stream[..]]);
        prop_assert!(error.is_protocol(), "{}", error);
        let mut whole_bytes = 0;
        let whole = frames.iter().take_while(|frame| {
            whole_bytes += frame.wire_bytes();
            whole_bytes <= at
        });
        prop_assert_eq!(&decoded[..], &frames[..whole.count()]);
    }

    #[test]
    fn truncation_is_seen(frames in some_frames(), at in any::<prop::sample::Index>()) {
        let stream = encode(&frames);
        let at = at.index(stream.len());
        let (decoded, end) = decode([&stream[..at]]);
        let decoded_bytes: usize = decoded.iter().map(Frame::wire_bytes).sum();
        prop_assert_eq!(&decoded[..], &frames[..decoded.len()]);
        match &end {
            LinkError::Closed => prop_assert_eq!(decoded_bytes, at),
            LinkError::Truncated { got, expected } => {
                prop_assert_eq!(decoded_bytes + got, at);
                prop_assert!(got < expected);
            }
            other => prop_assert!(false, "{other}"),
        }
        prop_assert!(end.is_peer_gone() && !end.is_protocol());
    }

    #[test]
    fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 4..4096)) {
        prop_assume!(garbage[..4] != MAGIC.to_le_bytes());
        let (decoded, error) = decode(garbage.chunks(7));
        prop_assert!(decoded.is_empty());
        prop_assert!(matches!(error, LinkError::BadMagic { .. }), "{}", error);
    }

    /// Garbage that gets past magic, version and header checksum.
    #[test]
    fn garbage_with_a_good_checksum_is_refused_or_awaits_its_body(
        fields in prop::array::uniform32(any::<u8>()),
        rest in prop::collection::vec(any::<u8>(), 0..512),
    ) {
        let header = doctored_header(6, &fields);
        let mut stream = header.to_vec();
        stream.extend(rest);
        let (decoded, end) = decode(stream.chunks(13));
        prop_assert!(decoded.len() <= 1);
        prop_assert!(end.is_protocol() || matches!(end, LinkError::Truncated { .. }), "{}", end);
    }
}

#[test]
fn other_version_is_told_with_both_numbers_from_six_bytes() {
    let mut stream = encode(&[Frame::default()]);
    let other = PROTOCOL_VERSION + 1;
    stream[4..6].copy_from_slice(&other.to_le_bytes());
    let (_, error) = decode([&stream[..6]]);
    let LinkError::Version { ours, theirs } = error else {
        panic!("{error}");
    };
    assert_eq!((ours, theirs), (PROTOCOL_VERSION, other));
    let text = error.to_string();
    let both = format!("version {other}, this side {PROTOCOL_VERSION}");
    assert!(text.contains(&both), "{text}");
}

#[test]
fn lost_repeated_and_reordered_frames_are_named() {
    let frames = [1, 2, 3].map(|epoch| Frame {
        epoch,
        ..Frame::default()
    });
    for (order, expected_wrong, got_wrong) in [
        (&[0, 2][..], 1, 2),
        (&[0, 1, 1], 2, 1),
        (&[1, 0], 0, 1),
        (&[0, u64::MAX], 1, u64::MAX),
    ] {
        let stream = encode_numbered(order.iter().map(|at| (&frames[*at as usize % 3], *at)));
        let (decoded, error) = decode([&stream[..]]);
        let LinkError::Sequence { expected, got } = error else {
            panic!("{order:?}: {error}");
        };
        assert_eq!((expected, got), (expected_wrong, got_wrong));
        assert_eq!(decoded.len() as u64, expected);
    }
}

#[test]
fn reserved_field_must_be_zero() {
    let (_, error) = decode([&doctored_header(40, &[0, 0, 1, 0])[..]]);
    assert!(
        matches!(
            error,
            LinkError::Reserved {
                sequence: 0,
                got: 0x10000
            }
        ),
        "{error}"
    );
}

#[test]
fn announced_length_over_the_limit_is_refused_before_any_body() {
    let len = LIMITS.body_bytes_max + 1;
    let (_, error) = decode([&doctored_header(32, &len.to_le_bytes())[..]]);
    assert_eq!(
        error.to_string(),
        "frame 0: body of 65537 bytes is over the limit of 65536"
    );
}

#[test]
fn error_stays_whatever_comes_after() {
    let good = encode(&[frame_of(5000), frame_of(5000)]);
    let damaged_at = |at: usize| {
        let mut stream = good.clone();
        stream[at] ^= 1;
        stream
    };
    // In the second frame: magic, version, header, body. Then a lost frame.
    let mut streams: Vec<_> = [5048, 5052, 5060, 6000].map(damaged_at).into();
    streams.push(encode_numbered([(&frame_of(5000), 0), (&frame_of(9), 2)]));
    for stream in streams {
        let mut decoder = FrameDecoder::new(LIMITS);
        decoder.feed(&stream);
        assert!(decoder.next_frame().unwrap().is_some());
        let error = decoder.next_frame().unwrap_err().to_string();
        decoder.feed(&good);
        assert_eq!(decoder.next_frame().unwrap_err().to_string(), error);
        assert_eq!(decoder.next_frame().unwrap_err().to_string(), error);
    }
}
