//! Golden bytes, round trips, and everything that must be refused.

use proptest::prelude::*;

use super::*;
use crate::arbiter::{ArbiterId, Mark};
use crate::core::disk::{DiskSyncPlan, PairId, PeerDisk};
use crate::core::message::{
    Bye, EpochSummary, Hello, Holdings, Inquiry, Refusal, Trouble, Welcome,
};
use crate::fingerprint::Fingerprint;
use crate::ids::{Generation, PageIndex};
use crate::output::{ConsoleOutput, ConsoleProgress, NetworkFrame, SealedOutput};
use crate::page_set::{MemoryLayout, Region};

fn hello() -> Hello {
    let mut fingerprint = Fingerprint::new();
    fingerprint.set("cpu", 7);
    fingerprint.need("C", "fpu");
    fingerprint.measure("t", 300);
    Hello {
        vm: "vm0".into(),
        node: "a".into(),
        fingerprint,
        layout: MemoryLayout::new(vec![Region {
            first: PageIndex(0),
            pages: 300,
        }]),
        arbiter: ArbiterId("ab".into()),
        session: 300,
    }
}

fn mark() -> Mark {
    Mark {
        session: 300,
        beat: 9,
    }
}

fn output() -> SealedOutput {
    SealedOutput {
        frames: vec![NetworkFrame {
            device: 1,
            bytes: Bytes::from_static(&[0xaa, 0xbb]),
        }],
        console: vec![ConsoleOutput {
            device: 0,
            position: 200,
            bytes: Bytes::from_static(b"hi"),
        }],
        sent_through: EpochId(7),
        written: vec![ConsoleProgress {
            device: 2,
            position: 300,
        }],
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A message with its number, epoch and body as they are on the wire.
type Golden = (Message, u16, u64, &'static str);

/// Every kind of message. A change here is a change of the protocol version.
fn golden() -> Vec<Golden> {
    let mut all = golden_session();
    all.extend(golden_inquiry());
    all.extend(golden_synchronisation());
    all.extend(golden_epoch(EpochId(9)));
    all
}

fn take_over() -> Message {
    Message::TakeOver {
        why: "x".into(),
        machine_broke: true,
        left_through: EpochId(300),
    }
}

fn golden_session() -> Vec<Golden> {
    vec![
        (
            Message::Hello(hello()),
            1,
            0,
            "03766d300161010363707501370101430103667075010174ac020100ac02026162ac02",
        ),
        (
            Message::Welcome(Welcome {
                node: "b".into(),
                host: Some("2e".into()),
                session: 300,
                disks: vec![PeerDisk {
                    name: "root".into(),
                    bytes: 65536,
                    ids: vec![PairId(300)],
                    unfinished: true,
                    replace: false,
                    block_bytes: 65536,
                    dirty: Bytes::from_static(&[1]),
                }],
            }),
            2,
            0,
            "016201023265ac020104726f6f7480800401ac0201008080040101",
        ),
        (
            Message::Refuse(Refusal::OtherVm { vm: "x".into() }),
            3,
            0,
            "000178",
        ),
        (
            Message::Refuse(Refusal::OtherArbiter {
                arbiter: ArbiterId("x".into()),
                current: Generation(5),
            }),
            3,
            0,
            "04017805",
        ),
        (
            Message::Refuse(Refusal::NoArbiter("x".into())),
            3,
            0,
            "050178",
        ),
        (Message::Heartbeat, 10, 0, ""),
        (Message::Marked(mark()), 15, 0, "ac0209"),
        (Message::Seen(mark()), 16, 0, "ac0209"),
        (Message::NoArbiter("x".into()), 17, 0, "0178"),
        (take_over(), 21, 0, "017801ac02"),
        (Message::Arrived(output().frames), 23, 0, "010102aabb"),
        (
            Message::Health(vec![Trouble::new("n", "x")]),
            22,
            0,
            "01016e0178",
        ),
        (Message::Compared(vec![false, true]), 18, 0, "020001"),
        (
            Message::Bye(Bye::Fenced {
                current: Generation(5),
            }),
            11,
            0,
            "0205",
        ),
        (Message::Bye(Bye::Unable("x".into())), 11, 0, "040178"),
    ]
}

fn golden_inquiry() -> Vec<Golden> {
    vec![
        (
            Message::Inquiry(Inquiry {
                vm: "v".into(),
                node: "a".into(),
                arbiter: ArbiterId("x".into()),
            }),
            19,
            0,
            "017601610178",
        ),
        (
            Message::Holdings(Holdings {
                node: "b".into(),
                host: None,
                copy: Some((Generation(5), EpochId(300))),
            }),
            20,
            0,
            "0162000105ac02",
        ),
    ]
}

fn golden_synchronisation() -> Vec<Golden> {
    vec![
        (
            Message::SyncPages(Bytes::from_static(&[1, 2, 3])),
            4,
            0,
            "010203",
        ),
        (
            Message::SyncDisks(vec![DiskSyncPlan {
                candidate: PairId(5),
                full: false,
                from: Some(PairId(4)),
            }]),
            12,
            0,
            "0105000104",
        ),
        (Message::SyncDisk(Bytes::from_static(&[8])), 13, 0, "08"),
    ]
}

fn golden_epoch(epoch: EpochId) -> Vec<Golden> {
    vec![
        (
            Message::EpochPages {
                epoch,
                batch: Bytes::from_static(&[4, 5]),
            },
            5,
            9,
            "0405",
        ),
        (
            Message::EpochState {
                epoch,
                state: Bytes::from_static(&[6]),
            },
            6,
            9,
            "06",
        ),
        (
            Message::EpochOutput {
                epoch,
                output: output(),
            },
            7,
            9,
            "010102aabb0100c801026869070102ac02",
        ),
        (
            Message::EpochEnd {
                epoch,
                summary: EpochSummary {
                    pages: 300,
                    batches: 2,
                    disk_batches: 3,
                    flush: true,
                    written_through: EpochId(7),
                    digest: 0x0102_0304,
                },
            },
            8,
            9,
            "ac020203010784868808",
        ),
        (
            Message::Ack {
                epoch,
                durable: EpochId(300),
            },
            9,
            9,
            "ac02",
        ),
        (
            Message::EpochDisk {
                epoch,
                batch: Bytes::from_static(&[9]),
            },
            14,
            9,
            "09",
        ),
        (Message::Flushed(epoch), 24, 9, ""),
    ]
}

/// Whether a body of this kind is not measured by what is in it.
fn is_raw(kind: u16) -> bool {
    [SYNC_PAGES, EPOCH_PAGES, EPOCH_STATE, SYNC_DISK, EPOCH_DISK].contains(&kind)
}

#[test]
fn every_kind_has_its_golden_bytes_and_comes_back() {
    for (message, kind, epoch, body) in golden() {
        let encoded = message.encode();
        assert_eq!(
            (encoded.0, encoded.1, hex(&encoded.2)),
            (kind, epoch, body.to_owned()),
            "{message:?}"
        );
        assert_eq!(
            Message::decode(encoded.0, encoded.1, encoded.2).expect("decodes"),
            message
        );
    }
}

/// They go into logs, and into the arbiter's record.
#[test]
fn what_a_peer_calls_itself_is_made_fit_to_be_shown() {
    let name = format!("a\n{}", "x".repeat(1000));
    let fit = for_people(&name, NAME_CHARS_MAX);
    let hello = Message::Hello(Hello {
        node: name.clone(),
        ..hello()
    });
    let welcome = Message::Welcome(Welcome {
        node: name.clone(),
        host: Some(name),
        session: 1,
        disks: Vec::new(),
    });
    for message in [hello, welcome] {
        let (kind, epoch, body) = message.encode();
        let shown = match Message::decode(kind, epoch, body) {
            Ok(Message::Hello(hello)) => vec![hello.node],
            Ok(Message::Welcome(welcome)) => vec![welcome.node, welcome.host.unwrap()],
            other => panic!("{other:?}"),
        };
        assert!(shown.iter().all(|shown| *shown == fit), "{shown:?}");
    }
}

#[test]
fn troubles_that_do_not_fit_into_a_message_are_said_to_be_left_out() {
    let troubles = |count: usize| {
        let all = (0..count).map(|number| Trouble::new(&format!("disk {number}"), "it fails"));
        Trouble::bounded(all.collect())
    };
    assert_eq!(troubles(TROUBLES_MAX).len(), TROUBLES_MAX);
    assert!(!troubles(TROUBLES_MAX).iter().any(Trouble::is_further));
    let mut bounded = troubles(TROUBLES_MAX + 3);
    let last = bounded.pop().unwrap();
    assert!(
        last.is_further() && last.why.starts_with("4 further"),
        "{last:?}"
    );
    assert_eq!(bounded, troubles(TROUBLES_MAX)[..TROUBLES_MAX - 1]);
}

#[test]
fn a_byte_too_many_is_an_error_wherever_the_length_is_known() {
    for (message, kind, epoch, _) in golden() {
        let raw = is_raw(kind);
        let mut body = message.encode().2.to_vec();
        body.push(0);
        let decoded = Message::decode(kind, epoch, body.into());
        assert_eq!(decoded.is_ok(), raw, "{message:?}: {decoded:?}");
    }
}

#[test]
fn a_byte_too_few_is_an_error_wherever_the_length_is_known() {
    for (message, kind, epoch, _) in golden() {
        let raw = is_raw(kind);
        let mut body = message.encode().2.to_vec();
        if raw || body.pop().is_none() {
            continue;
        }
        assert!(
            matches!(
                Message::decode(kind, epoch, body.into()),
                Err(MessageError::Malformed { .. })
            ),
            "{message:?}"
        );
    }
}

#[test]
fn epoch_numbers_must_be_where_they_belong_and_nowhere_else() {
    for (message, kind, epoch, _) in golden() {
        let body = message.encode().2;
        let other = if epoch == 0 { 3 } else { 0 };
        let error = Message::decode(kind, other, body).expect_err("wrong epoch");
        let expected = if epoch == 0 {
            matches!(error, MessageError::UnexpectedEpoch { .. })
        } else {
            matches!(error, MessageError::MissingEpoch { .. })
        };
        assert!(expected, "{message:?}: {error}");
    }
}

#[test]
fn unknown_kinds_and_oversized_bodies_are_named() {
    for kind in [0, 25, 0xffff] {
        assert_eq!(
            Message::decode(kind, 0, Bytes::new()),
            Err(MessageError::UnknownKind(kind))
        );
    }
    for kind in 1..=24 {
        let (name, has_epoch, limit) = properties(kind).expect("known");
        let body = Bytes::from(vec![0; limit + 1]);
        assert_eq!(
            Message::decode(kind, u64::from(has_epoch), body),
            Err(MessageError::TooLong {
                kind: name,
                bytes: limit + 1,
                limit
            })
        );
    }
}

#[test]
fn batches_and_state_are_not_copied() {
    let state = Bytes::from(vec![7; 1000]);
    let message = Message::EpochState {
        epoch: EpochId(1),
        state: state.clone(),
    };
    assert_eq!(message.encode().2.as_ptr(), state.as_ptr());
    let decoded = Message::decode(EPOCH_STATE, 1, state.clone()).expect("decodes");
    assert!(
        matches!(decoded, Message::EpochState { state: got, .. } if got.as_ptr() == state.as_ptr())
    );
}

proptest! {
    /// Whatever a peer sends, decoding ends with a message or an error, and a message means exactly
    /// the bytes it came from or shorter ones (postcard accepts long-winded numbers).
    #[test]
    fn arbitrary_bytes_never_panic(kind in 0u16..16, epoch in 0u64..3, body in proptest::collection::vec(any::<u8>(), 0..200)) {
        let length = body.len();
        if let Ok(message) = Message::decode(kind, epoch, body.into()) {
            let (kind_again, epoch_again, body_again) = message.encode();
            prop_assert_eq!((kind_again, epoch_again), (kind, epoch));
            prop_assert!(body_again.len() <= length);
            prop_assert_eq!(Message::decode(kind, epoch, body_again).expect("own bytes"), message);
        }
    }
}
