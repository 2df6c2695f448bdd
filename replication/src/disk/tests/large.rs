//! Images that are too large for a test to keep them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::host::*;
use crate::core::disk::{BLOCK_BYTES_MIN, DiskWrite, PairId};
use crate::disk::image::header::BITS_AT;
use crate::disk::image::map::DirtyMap;
use crate::disk::place::JournalId;
use crate::disk::{Changed, DiskMode, DiskSet, DiskSpec, Storage};
use crate::ids::EpochId;
use crate::ports::Disks;

const MAP: &str = "map";
const BLOCK: u64 = BLOCK_BYTES_MIN;
/// The bits of so many blocks are in a sector of a map.
const SECTOR_BLOCKS: u64 = 508 * 8;

/// An image of so many bytes that are all the same.
struct Large(u64);

impl Storage for Large {
    fn bytes(&self) -> u64 {
        self.0
    }

    fn read_at(&self, _offset: u64, data: &mut [u8]) -> io::Result<()> {
        data.fill(7);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _data: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _bytes: u64, _may_unmap: bool) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }

    fn is_locked_by_other(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn identity(&self) -> io::Result<Option<String>> {
        Ok(None)
    }

    fn changed(&self) -> io::Result<Option<Changed>> {
        Ok(None)
    }
}

#[test]
fn each_mark_of_a_large_image_has_its_place_in_the_map() {
    let host = Host::new("a");
    let blocks = 3 * SECTOR_BLOCKS + 100;
    let open = |host: &Host| {
        let files = Arc::new(host.files().clone());
        DirtyMap::open(MAP.into(), &Large(blocks * BLOCK), files).unwrap()
    };
    let marked = |map: &DirtyMap| {
        let all = 0..map.bits().len();
        all.filter(|at| map.bits().contains(*at))
            .collect::<Vec<_>>()
    };
    let mut map = open(&host);
    map.begin_copy(None, JournalId(7)).unwrap();
    map.finish_copy(PairId(1)).unwrap();
    let mut first = [
        0,
        SECTOR_BLOCKS,
        SECTOR_BLOCKS - 1,
        2 * SECTOR_BLOCKS + 9,
        3 * SECTOR_BLOCKS + 99,
    ];
    for block in first {
        map.mark(block * BLOCK, 512, Vec::new).unwrap();
    }
    first.sort_unstable();
    assert_eq!(marked(&map), first);
    assert_eq!(marked(&open(&host.after_kill())), first);
    // All marks of the second sector go, and of the others none: nothing else is written.
    let later = [
        0,
        SECTOR_BLOCKS - 1,
        2 * SECTOR_BLOCKS + 9,
        3 * SECTOR_BLOCKS + 99,
    ];
    map.begin_session(1, &[PairId(1)], PairId(2)).unwrap();
    for block in later {
        map.unsure(block * BLOCK, 512);
    }
    map.mark(SECTOR_BLOCKS * BLOCK, 512, Vec::new).unwrap();
    map.rotate(EpochId(1), None, Instant::now(), Duration::ZERO);
    host.take_events();
    map.durable(1, EpochId(1)).unwrap();
    assert_eq!(marked(&map), later);
    assert_eq!(marked(&open(&host.after_kill())), later);
    let bits = host
        .take_events()
        .into_iter()
        .filter_map(|call| match call {
            Event::Write { offset, bytes, .. } if offset >= BITS_AT => Some((offset, bytes)),
            _ => None,
        });
    assert_eq!(bits.collect::<Vec<_>>(), [(BITS_AT + 512, 512)]);
    // A sector that is missing counts as marks of its own blocks.
    let left = host.after_kill();
    let mut content = left.content(MAP).0;
    content.truncate(BITS_AT as usize + 3 * 512);
    left.set_content(MAP, content);
    let mut expected = later[..3].to_vec();
    expected.extend(3 * SECTOR_BLOCKS..blocks);
    assert_eq!(marked(&open(&left)), expected);
}

/// Nothing is equal at first. Much of what comes later might be.
#[test]
fn after_much_that_was_sent_unasked_a_sample_is_compared_again() {
    let (host, mib) = (Host::new("a"), 1 << 20);
    let spec = DiskSpec {
        name: "disk0".into(),
        storage: Box::new(Large(300 * mib)),
        mode: DiskMode::Replicated,
        map_path: MAP.into(),
    };
    let files = Arc::new(host.files().clone());
    let set = DiskSet::open_in(vec![spec], Some("journal".into()), limits(), files).unwrap();
    set.claim_images().unwrap();
    let peer = set.backup().describe().unwrap();
    let primary = set.primary();
    primary.begin_sync(&peer).unwrap();
    let (mut sent, mut asked) = (0, 0);
    while asked <= 8 * mib {
        let step = primary.sync_some().unwrap();
        let checks = step.writes.iter().filter(|write| write.is_check());
        let checked: u64 = checks.clone().map(DiskWrite::bytes).sum();
        primary.compared(&vec![true; checks.count()]).unwrap();
        asked += checked;
        sent += step.writes.iter().map(DiskWrite::bytes).sum::<u64>() - checked;
    }
    // What was asked for first was found to differ.
    assert_eq!(sent, (8 + 256) * mib);
}
