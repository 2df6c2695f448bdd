//! A batch of disk writes, for two disks. Nothing reaches beyond them, and what was understood says the same
//! when it is written again.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use understudy_replication::core::disk::{DISK_BATCH_BYTES_MAX, DiskBatchWriter, decode_batch};

const DISKS: [u64; 2] = [64 << 10, 1 << 30];

fuzz_target!(|bytes: &[u8]| {
    let mut writes = Vec::new();
    let Ok(count) = decode_batch(&Bytes::copy_from_slice(bytes), &DISKS, |write| {
        writes.push(write)
    }) else {
        assert!(writes.is_empty(), "a bad batch was taken in part");
        return;
    };
    assert_eq!(count as usize, writes.len());
    let mut writer = DiskBatchWriter::new(DISK_BATCH_BYTES_MAX);
    for write in &writes {
        assert!(write.offset + write.bytes() <= DISKS[usize::from(write.disk)]);
        writer.push(write, |_| {});
    }
    assert!(writer.finish().is_some());
});
