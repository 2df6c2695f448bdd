//! The codec of writes, there and back, and against anything a peer may send.

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

const DISKS: [u64; 2] = [1 << 20, 64 << 10];

fn write() -> impl Strategy<Value = DiskWrite> {
    (0..2u16, 0..100u64, 1..28u64, 0..5u8, any::<u8>()).prop_map(|(disk, at, count, kind, fill)| {
        let bytes = count * SECTOR_BYTES;
        let what = match kind {
            0 => What::Zero { bytes },
            1 => What::Discard { bytes },
            2 => What::Check {
                bytes,
                digest: [fill; DIGEST_BYTES],
            },
            _ => What::Data(vec![fill; bytes as usize].into()),
        };
        DiskWrite {
            disk,
            offset: at * SECTOR_BYTES,
            what,
        }
    })
}

fn encode(writes: &[DiskWrite], bytes_max: usize) -> Vec<DiskBatch> {
    let mut writer = DiskBatchWriter::new(bytes_max);
    let mut batches = Vec::new();
    for write in writes {
        writer.push(write, |batch| batches.push(batch));
    }
    batches.extend(writer.finish());
    batches
}

fn decode(batch: &Bytes) -> Result<Vec<DiskWrite>, DiskBatchError> {
    let mut writes = Vec::new();
    let count = decode_batch(batch, &DISKS, |write| writes.push(write))?;
    assert_eq!(count as usize, writes.len());
    Ok(writes)
}

/// What the disks look like after these writes.
fn applied(writes: &[DiskWrite]) -> Vec<Vec<u8>> {
    let mut disks = DISKS.map(|bytes| vec![0xff; bytes as usize]).to_vec();
    for write in writes {
        let range = write.offset as usize..(write.offset + write.bytes()) as usize;
        let place = &mut disks[usize::from(write.disk)][range];
        match &write.what {
            What::Data(data) => place.copy_from_slice(data),
            What::Zero { .. } | What::Discard { .. } => place.fill(0),
            What::Check { .. } => {}
        }
    }
    disks
}

#[test]
fn a_batch_has_these_bytes() {
    let writes = [
        DiskWrite {
            disk: 1,
            offset: 0x400,
            what: What::Discard { bytes: 0x200 },
        },
        DiskWrite {
            disk: 0,
            offset: 0,
            what: What::Data(vec![7; 512].into()),
        },
        DiskWrite {
            disk: 0,
            offset: 0x200,
            what: What::Check {
                bytes: 0x400,
                digest: [9; DIGEST_BYTES],
            },
        },
    ];
    let batch = encode(&writes, DISK_BATCH_BYTES_DEFAULT).remove(0);
    let mut expected = vec![3, 0, 0, 0];
    expected.extend([2, 0, 1, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    expected.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    expected.extend([7; 512]);
    expected.extend([3, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0]);
    expected.extend([9; 16]);
    assert_eq!((&batch.body[..], batch.writes), (&expected[..], 3));
}

proptest! {
    #[test]
    fn writes_arrive_as_they_were_sent(
        writes in prop::collection::vec(write(), 1..20), bytes_max in 0..40_000usize
    ) {
        let batches = encode(&writes, bytes_max);
        let mut received = Vec::new();
        for batch in &batches {
            prop_assert!(batch.body.len() <= bytes_max.max(4 + 20 + 512));
            let decoded = decode(&batch.body).unwrap();
            prop_assert_eq!(decoded.len() as u32, batch.writes);
            received.extend(decoded);
        }
        prop_assert!(applied(&received) == applied(&writes));
    }

    #[test]
    fn a_batch_that_is_cut_or_lengthened_is_refused(
        writes in prop::collection::vec(write(), 1..6), cut in any::<prop::sample::Index>(), more in 1..600usize
    ) {
        let body = encode(&writes, DISK_BATCH_BYTES_MAX).remove(0).body;
        prop_assert!(decode(&body.slice(..cut.index(body.len()))).is_err());
        let mut long = body.to_vec();
        long.resize(body.len() + more, 0);
        let left_over = matches!(decode(&long.into()), Err(DiskBatchError::LeftOver { bytes, .. }) if bytes == more);
        prop_assert!(left_over);
    }

    #[test]
    fn a_batch_with_other_bytes_is_refused_or_within_the_disks(
        writes in prop::collection::vec(write(), 1..6),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        headers_only in any::<bool>(),
    ) {
        let mut body = encode(&writes, DISK_BATCH_BYTES_MAX).remove(0).body.to_vec();
        for (at, value) in changes {
            let length = if headers_only { 24 } else { body.len() };
            body[at.index(length)] = value;
        }
        // It panics if a write is not on its disk.
        if let Ok(writes) = decode(&body.into()) {
            applied(&writes);
        }
    }

    #[test]
    fn anything_is_refused_or_within_the_disks(body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(writes) = decode(&body.into()) {
            applied(&writes);
        }
    }

    #[test]
    fn a_part_is_what_the_whole_has_there(write in write(), from in 0..140u64, count in 0..30u64) {
        let (from, to) = (from * SECTOR_BYTES, (from + count) * SECTOR_BYTES);
        let end = write.offset + write.bytes();
        match write.part(from, to) {
            None if write.is_check() => prop_assert!(from > write.offset || to < end),
            None => prop_assert!(to <= write.offset || from >= end || from == to),
            Some(part) => {
                prop_assert_eq!(part.offset, from.max(write.offset));
                prop_assert_eq!(part.offset + part.bytes(), to.min(end));
                prop_assert_eq!(std::mem::discriminant(&part.what), std::mem::discriminant(&write.what));
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let batch = |records: u32, kind: u16, disk: u16, start: u64, length: u64| {
        let mut body = records.to_le_bytes().to_vec();
        body.extend(kind.to_le_bytes());
        body.extend(disk.to_le_bytes());
        body.extend(start.to_le_bytes());
        body.extend(length.to_le_bytes());
        decode(&body.into())
    };
    assert_eq!(batch(1, 1, 0, 0, 512).unwrap().len(), 1);
    assert!(matches!(
        batch(0, 1, 0, 0, 512),
        Err(DiskBatchError::Empty { bytes: 24 })
    ));
    assert!(matches!(
        batch(2, 1, 0, 0, 512),
        Err(DiskBatchError::Truncated { record: 1, .. })
    ));
    assert!(matches!(
        batch(u32::MAX, 1, 0, 0, 512),
        Err(DiskBatchError::Truncated { .. })
    ));
    assert!(matches!(
        batch(1, 3, 0, 0, 512),
        Err(DiskBatchError::Truncated { missing: 16, .. })
    ));
    assert!(matches!(
        batch(1, 4, 0, 0, 512),
        Err(DiskBatchError::UnknownKind { kind: 4, .. })
    ));
    assert!(matches!(
        batch(1, 0x100, 0, 0, 512),
        Err(DiskBatchError::UnknownKind { .. })
    ));
    assert!(matches!(
        batch(1, 1, 2, 0, 512),
        Err(DiskBatchError::NoDisk {
            disk: 2,
            disks: 2,
            ..
        })
    ));
    for (start, length) in [
        (1, 512),
        (0, 511),
        (0, 0),
        (1 << 20, 512),
        (u64::MAX - 511, 1024),
        (0, 2 << 20),
    ] {
        let refused = batch(1, 1, 0, start, length);
        assert!(
            matches!(refused, Err(DiskBatchError::Range { .. })),
            "{start}, {length}"
        );
    }
    // A length of data that is far from there: nothing is allocated for it, and the error says so.
    let far = batch(1, 0, 0, 0, 1 << 20);
    assert!(matches!(far, Err(DiskBatchError::Truncated { missing, .. }) if missing == 1 << 20));
    assert!(matches!(
        decode(&Bytes::new()),
        Err(DiskBatchError::Empty { bytes: 0 })
    ));
    let long = vec![0; DISK_BATCH_BYTES_MAX + 1];
    assert!(matches!(
        decode(&long.into()),
        Err(DiskBatchError::TooLong { .. })
    ));
}

#[test]
fn how_much_is_missing_is_named() {
    // Four bytes of a record's header, of a digest, and of a sector's data.
    let cut = |kind: u8| {
        let mut body = [&[1, 0, 0, 0, kind][..], &[0; 19]].concat();
        body[17] = 2;
        body.extend([0; 4]);
        decode(&body.into())
    };
    for (error, expected) in [
        (decode(&vec![1, 0, 0, 0, 9, 9, 9, 9].into()), 16),
        (cut(3), 12),
        (cut(0), 508),
    ] {
        assert!(
            matches!(error, Err(DiskBatchError::Truncated { missing, .. }) if missing == expected),
            "{error:?}"
        );
    }
}

#[test]
fn a_decoded_batch_shares_the_memory_it_came_in() {
    let write = DiskWrite {
        disk: 0,
        offset: 0,
        what: What::Data(vec![1; 4096].into()),
    };
    let body = encode(&[write], DISK_BATCH_BYTES_MAX).remove(0).body;
    let decoded = decode(&body).unwrap();
    let What::Data(data) = &decoded[0].what else {
        panic!("data");
    };
    assert!(body.as_ptr_range().contains(&data.as_ptr()));
}

#[test]
fn nothing_of_a_bad_batch_is_given_away() {
    let good = DiskWrite {
        disk: 0,
        offset: 0,
        what: What::Zero { bytes: 512 },
    };
    let bad = DiskWrite {
        disk: 9,
        ..good.clone()
    };
    let body = encode(&[good, bad], DISK_BATCH_BYTES_MAX).remove(0).body;
    let refused = decode_batch(&body, &DISKS, |_| panic!("given"));
    assert!(matches!(
        refused,
        Err(DiskBatchError::NoDisk { disk: 9, .. })
    ));
}

/// What a batch of these checks is refused for, for a disk of 4 GiB.
fn refused_checks(checks: &[(u64, u64)]) -> DiskBatchError {
    let mut body = (checks.len() as u32).to_le_bytes().to_vec();
    for (offset, bytes) in checks {
        body.extend([3, 0, 0, 0]);
        body.extend(offset.to_le_bytes());
        body.extend(bytes.to_le_bytes());
        body.extend([0; DIGEST_BYTES]);
    }
    decode_batch(&body.into(), &[4 << 30], |_| panic!("given")).unwrap_err()
}

#[test]
fn a_peer_cannot_have_more_checked_than_it_may() {
    let range = |refused| matches!(refused, DiskBatchError::Range { .. });
    assert!(range(refused_checks(&[(4 << 30, 512)])), "not on the disk");
    assert!(range(refused_checks(&[(u64::MAX - 511, 512)])));
    assert!(range(refused_checks(&[(0, 0)])));
    assert!(range(refused_checks(&[(7, 512)])));
    assert_eq!(
        refused_checks(&[(0, CHECK_BYTES_MAX + 512)]),
        DiskBatchError::CheckTooLong {
            offset: 4,
            length: CHECK_BYTES_MAX + 512,
            before: 0
        }
    );
    // Each is allowed, but not all of them in one message.
    let count = CHECKED_BYTES_MAX / CHECK_BYTES_MAX;
    let mut many = vec![(0, CHECK_BYTES_MAX); count as usize];
    many.push((0, 512));
    assert_eq!(
        refused_checks(&many),
        DiskBatchError::CheckTooLong {
            offset: 4 + 36 * count as usize,
            length: 512,
            before: CHECKED_BYTES_MAX
        }
    );
}

#[test]
fn a_writer_ends_a_batch_that_has_enough_to_check() {
    let count = (CHECKED_BYTES_MAX / CHECK_BYTES_MAX) as usize;
    for (bytes, checks, expected) in [
        (CHECK_BYTES_MAX, 2 * count, 2),
        (CHECK_BYTES_MAX, 2 * count + 1, 3),
        // They never come to the most that is allowed.
        (CHECK_BYTES_MAX - SECTOR_BYTES, 2 * count + 1, 3),
    ] {
        let check = DiskWrite {
            disk: 0,
            offset: 0,
            what: What::Check {
                bytes,
                digest: [1; DIGEST_BYTES],
            },
        };
        let batches = encode(&vec![check; checks], DISK_BATCH_BYTES_MAX);
        assert_eq!(batches.len(), expected);
        for batch in batches {
            decode(&batch.body).unwrap();
        }
    }
}

#[test]
fn a_batch_takes_all_that_fits() {
    let data = |offset: u64, sectors: usize| DiskWrite {
        disk: 0,
        offset,
        what: What::Data(vec![1; sectors * 512].into()),
    };
    let writes_of = |writes: &[DiskWrite], bytes_max: usize| {
        let batches = encode(writes, bytes_max).into_iter();
        batches.map(|batch| batch.writes).collect::<Vec<_>>()
    };
    // Two that fill it.
    assert_eq!(
        writes_of(&[data(0, 1), data(512, 1)], 4 + 2 * (20 + 512)),
        [2]
    );
    // A long one in the longest pieces of whole sectors.
    assert_eq!(writes_of(&[data(0, 12)], 4 + 20 + 4 * 512 + 100), [1, 1, 1]);
}

#[test]
fn what_is_kept_of_a_write_is_counted() {
    let itself = size_of::<DiskWrite>() as u64;
    let of = |what| {
        let write = DiskWrite {
            disk: 0,
            offset: 0,
            what,
        };
        (write.memory_bytes() - itself, write.is_check())
    };
    assert_eq!(of(What::Data(vec![1; 4096].into())), (4096, false));
    assert_eq!(of(What::Discard { bytes: 4096 }), (0, false));
    let (bytes, digest) = (4096, [1; DIGEST_BYTES]);
    assert_eq!(of(What::Check { bytes, digest }), (0, true));
}

#[test]
fn a_map_has_no_more_blocks_than_it_may() {
    let largest = BLOCK_BYTES_MIN * BLOCKS_MAX;
    assert_eq!(block_bytes_for(SECTOR_BYTES), BLOCK_BYTES_MIN);
    assert_eq!(block_bytes_for(largest), BLOCK_BYTES_MIN);
    assert_eq!(block_bytes_for(largest + SECTOR_BYTES), 2 * BLOCK_BYTES_MIN);
    assert_eq!(block_bytes_for(16 * largest), 16 * BLOCK_BYTES_MIN);
}

#[test]
fn a_backup_cannot_describe_what_is_no_disk() {
    let good = PeerDisk {
        name: "root".into(),
        bytes: 1 << 20,
        ids: vec![PairId(1), PairId(2)],
        unfinished: false,
        replace: false,
        block_bytes: block_bytes_for(1 << 20),
        dirty: vec![0xff; 2].into(),
    };
    good.check().unwrap();
    assert_eq!(good.ids[1].to_string(), format!("{:0>32}", 2));
    let bad: [fn(&mut PeerDisk); 5] = [
        |disk| disk.bytes = 0,
        |disk| disk.bytes += 1,
        |disk| disk.ids.push(PairId(3)),
        |disk| disk.ids[0] = PairId(0),
        |disk| disk.dirty = vec![0; 3].into(),
    ];
    for (number, harm) in bad.iter().enumerate() {
        let mut disk = good.clone();
        harm(&mut disk);
        assert!(disk.check().is_err(), "{number}");
    }
}
