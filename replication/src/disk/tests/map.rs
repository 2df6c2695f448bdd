//! The dirty-block map: a mark is durable before its write, and goes only when both sides have the block.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::Rng;

use super::host::*;
use super::session::*;
use crate::arbiter::ArbiterId;
use crate::core::disk::{BLOCKS_MAX, PairId, block_bytes_for, blocks_of};
use crate::disk::DiskMode::Replicated;
use crate::disk::Storage;
use crate::disk::image::header::{BITS_AT, HEADER_BYTES, Header, SLOTS};
use crate::disk::image::map::DirtyMap;
use crate::disk::place::JournalId;
use crate::disk::{DiskError, DiskSet};
use crate::ids::{EpochId, Generation};
use crate::ports::Disks;
use crate::ports::disks::History;

const BYTES: u64 = 8 << 20;
const BLOCK: u64 = 64 << 10;
const MAP: &str = "disk0-map";

fn open(host: &Host) -> DirtyMap {
    DirtyMap::open(
        MAP.into(),
        &*host.storage("disk0"),
        Arc::new(host.files().clone()),
    )
    .unwrap()
}

/// A host with a map of an image that belongs to pair 1.
fn marked_host() -> (Host, DirtyMap) {
    let host = Host::new("a");
    host.make_image("disk0", BYTES, &mut seeded(1));
    let mut map = open(&host);
    map.begin_copy(None, JournalId(7)).unwrap();
    map.in_use(&*host.storage("disk0")).unwrap();
    map.finish_copy(PairId(1)).unwrap();
    (host, map)
}

/// Whether the map says that its image and another one are a pair, and has no marks.
fn is_clean(host: &Host, set: &DiskSet) -> bool {
    let content = host.content(MAP);
    let header =
        |at: &u64| Header::decode(&content[*at as usize..][..HEADER_BYTES].try_into().ok()?);
    let newest = SLOTS
        .iter()
        .filter_map(header)
        .max_by_key(|header| header.number);
    let is_paired = newest.is_some_and(|it| it.current.is_some() && it.candidate.is_none());
    // This waits until whoever clears marks is done with the map.
    is_paired && set.counts().marked_bytes == 0
}

fn marked(map: &DirtyMap) -> Vec<u64> {
    (0..map.bits().len())
        .filter(|at| map.bits().contains(*at))
        .collect()
}

#[test]
fn a_map_is_never_larger_than_its_limit() {
    for bytes in [
        512,
        BLOCK,
        BLOCK + 512,
        BLOCKS_MAX * BLOCK,
        BLOCKS_MAX * BLOCK + 512,
        1 << 50,
    ] {
        assert!(blocks_of(bytes) <= BLOCKS_MAX);
        assert!(blocks_of(bytes) * block_bytes_for(bytes) >= bytes);
    }
    assert_eq!(block_bytes_for(BLOCKS_MAX * BLOCK), BLOCK);
    assert_eq!(block_bytes_for(BLOCKS_MAX * BLOCK + 512), 2 * BLOCK);
}

#[test]
fn marks_survive_a_loss_of_power_at_any_moment() {
    for seed in 0..20 {
        let (host, mut map) = marked_host();
        let mut random = seeded(seed);
        let mut written = Vec::new();
        for _ in 0..30 {
            let block = random.random_range(0..BYTES / BLOCK);
            map.mark(block * BLOCK + 512, 512, Vec::new).unwrap();
            written.push(block);
            let left = host.after_power_loss(&mut random);
            let now = marked(&open(&left));
            assert!(
                written.iter().all(|block| now.contains(block)),
                "seed {seed}"
            );
        }
    }
}

#[test]
fn a_block_is_marked_durably_before_the_image_is_written() {
    let host = Host::new("a");
    host.make_image("disk0", BYTES, &mut seeded(2));
    let other = Host::new("b");
    other.make_image("disk0", BYTES, &mut seeded(3));
    let (set, backup) = (
        host.open(&[Replicated], lazy()),
        other.open(&[Replicated], lazy()),
    );
    set.claim_images().unwrap();
    let _session = Session::protect(&set, &backup, 1);
    until("the marks are cleared", || is_clean(&host, &set));
    host.take_events();
    set.disks()[0].write_at(7 * BLOCK, &[1; 512]).unwrap();
    let events = host.take_events();
    let at = |wanted: &dyn Fn(&Event) -> bool| events.iter().position(wanted).unwrap();
    let mark = at(&|e| matches!(e, Event::Write { name, .. } if name == MAP));
    let durable = at(&|e| matches!(e, Event::Sync { name } if name == MAP));
    let write = at(&|e| matches!(e, Event::Write { name, .. } if name == "disk0"));
    assert!(mark < durable && durable < write, "{events:?}");
    // A block that is marked costs nothing more.
    set.disks()[0].write_at(7 * BLOCK + 512, &[1; 512]).unwrap();
    let touches_map =
        |e: &Event| matches!(e, Event::Write { name, .. } | Event::Sync { name } if name == MAP);
    assert!(!host.take_events().iter().any(touches_map));
}

#[test]
fn writes_in_a_row_are_marked_ahead() {
    let (host, mut map) = marked_host();
    host.take_events();
    for sector in 0..BYTES / 4096 {
        map.mark(sector * 4096, 4096, Vec::new).unwrap();
    }
    let syncs = host
        .take_events()
        .iter()
        .filter(|e| matches!(e, Event::Sync { .. }))
        .count();
    assert_eq!(marked(&map).len() as u64, BYTES / BLOCK);
    assert!(syncs <= 10, "{syncs} flushes for {} blocks", BYTES / BLOCK);
}

/// Marks this, where each flush takes so long. Returns how many it took.
fn mark_slowly(
    host: &Host,
    map: &mut DirtyMap,
    block: u64,
    later: &[u64],
    takes: Duration,
) -> usize {
    let (files, clock) = (host.files().clone(), host.files().clone());
    files.before_sync(move || clock.pass(takes));
    host.take_events();
    let range = |block: &u64| (block * BLOCK, 512);
    let later = || later.iter().map(range).collect();
    map.mark(block * BLOCK, 512, later).unwrap();
    let is_sync = |event: &&Event| matches!(event, Event::Sync { .. });
    host.take_events().iter().filter(is_sync).count()
}

/// The guest waits for it.
#[test]
fn one_flush_marks_what_other_writes_wait_for() {
    let (host, mut map) = marked_host();
    let later = [9, 17, 90];
    assert_eq!(mark_slowly(&host, &mut map, 40, &later, Duration::ZERO), 1);
    assert_eq!(marked(&map), [9, 17, 40, 90]);
    let left = marked(&open(&host.after_power_loss(&mut seeded(1))));
    assert_eq!(left, [9, 17, 40, 90], "durably");
    for block in later {
        assert_eq!(mark_slowly(&host, &mut map, block, &[], Duration::ZERO), 0);
    }
}

#[test]
fn where_flushes_are_slow_one_marks_what_is_copied_in_its_time() {
    let (host, mut map) = marked_host();
    let takes = Duration::from_millis(20);
    // Nothing is known before the first one.
    assert_eq!(mark_slowly(&host, &mut map, 40, &[], takes), 1);
    assert_eq!(marked(&map), [40]);
    let flushes: usize = (0..BYTES / BLOCK)
        .map(|block| mark_slowly(&host, &mut map, block * 37 % (BYTES / BLOCK), &[], takes))
        .sum();
    // In 10 ms, then up to 20 ms, a gigabit network has copied 19 blocks, then up to 38.
    assert!((4..=7).contains(&flushes), "{flushes}");
    assert_eq!(marked(&map).len() as u64, BYTES / BLOCK);
    // Where they are fast again, marks are exact again.
    let (host, mut map) = marked_host();
    assert_eq!(
        mark_slowly(&host, &mut map, 0, &[], Duration::from_micros(200)),
        1
    );
    assert_eq!(
        mark_slowly(&host, &mut map, 64, &[], Duration::from_micros(200)),
        1
    );
    assert_eq!(marked(&map), [0, 64]);
}

#[test]
fn where_flushes_are_slow_marks_are_kept_for_longer() {
    let (host, mut map) = marked_host();
    let (now, kept) = (Instant::now(), Duration::from_secs(1));
    map.begin_session(7, &[PairId(1)], PairId(2)).unwrap();
    mark_slowly(&host, &mut map, 5, &[], Duration::from_millis(80));
    // Half of it counts yet: it may have been an exception.
    let flushes = Duration::from_millis(40 * 100);
    map.rotate(EpochId(1), None, now, kept);
    map.durable(7, EpochId(1)).unwrap();
    assert!(marked(&map).is_empty());
    mark_slowly(&host, &mut map, 5, &[], Duration::from_millis(40));
    map.rotate(EpochId(2), None, now + flushes - kept / 1000, kept);
    map.durable(7, EpochId(2)).unwrap();
    assert!(!marked(&map).is_empty());
    map.rotate(EpochId(3), None, now + flushes, kept);
    map.durable(7, EpochId(3)).unwrap();
    assert!(marked(&map).is_empty());
}

#[test]
fn what_the_guest_has_asked_for_is_marked_with_what_it_writes() {
    let (a, b) = (Host::new("a"), Host::new("b"));
    for (host, seed) in [(&a, 2), (&b, 3)] {
        host.make_image("disk0", BYTES, &mut seeded(seed));
    }
    let sets = [&a, &b].map(|host| host.open(&[Replicated], lazy()));
    sets[0].claim_images().unwrap();
    let _session = Session::protect(&sets[0], &sets[1], 1);
    until("the marks are cleared", || is_clean(&a, &sets[0]));
    let disk = &sets[0].disks()[0];
    for block in [3, 50, 100] {
        disk.will_write(block * BLOCK, 512);
    }
    a.take_events();
    for block in [50, 3, 100] {
        disk.write_at(block * BLOCK, &[1; 512]).unwrap();
    }
    let syncs_map = |event: &&Event| matches!(event, Event::Sync { name } if name == MAP);
    assert_eq!(a.take_events().iter().filter(syncs_map).count(), 1);
    // What is done is not wanted any more, and what is beyond the disk never was.
    disk.will_write(u64::MAX - 511, 1024);
    disk.write_at(20 * BLOCK, &[1; 512]).unwrap();
    assert_eq!(sets[0].counts().marked_bytes, 4 * BLOCK);
}

#[test]
fn only_what_is_durable_is_cleared() {
    let (_host, mut map) = marked_host();
    let now = Instant::now();
    let kept = Duration::from_secs(1);
    map.begin_session(7, &[PairId(1)], PairId(2)).unwrap();
    map.mark(0, 512, Vec::new).unwrap();
    map.rotate(EpochId(1), None, now, kept);
    map.mark(20 * BLOCK, 512, Vec::new).unwrap();
    // Another session's word does not count, nor does epoch 0.
    map.durable(6, EpochId(9)).unwrap();
    map.durable(7, EpochId(0)).unwrap();
    assert_eq!(
        (marked(&map), map.ids()),
        (vec![0, 20], vec![PairId(1), PairId(2)])
    );
    map.durable(7, EpochId(1)).unwrap();
    assert_eq!((marked(&map), map.ids()), (vec![20], vec![PairId(2)]));
    // Too early to be collected again; block 20 is of epoch 2.
    map.rotate(EpochId(2), None, now + kept / 2, kept);
    map.durable(7, EpochId(2)).unwrap();
    assert_eq!(marked(&map), [20]);
    map.rotate(EpochId(3), None, now + kept, kept);
    map.mark(20 * BLOCK, 512, Vec::new).unwrap();
    map.mark(40 * BLOCK, 512, Vec::new).unwrap();
    map.durable(7, EpochId(2)).unwrap();
    assert_eq!(marked(&map), [20, 40]);
    // Written again since then: it stays.
    map.durable(7, EpochId(3)).unwrap();
    assert_eq!(marked(&map), [20, 40]);
    map.rotate(EpochId(4), None, now + 2 * kept, kept);
    map.unsure(40 * BLOCK, 512);
    map.durable(7, EpochId(4)).unwrap();
    assert_eq!(marked(&map), [40]);
}

#[test]
fn what_a_pair_is_survives_a_torn_header() {
    let (host, mut map) = marked_host();
    map.mark(3 * BLOCK, 512, Vec::new).unwrap();
    let before = host.content(MAP);
    map.begin_session(1, &[PairId(1)], PairId(2)).unwrap();
    let after = host.content(MAP);
    let slot = SLOTS.iter().find(|at| {
        let range = **at as usize..**at as usize + HEADER_BYTES;
        before[range.clone()] != after[range]
    });
    let slot = *slot.unwrap() as usize;
    for torn in (0..HEADER_BYTES).step_by(7) {
        let mut mixed = before.clone();
        mixed[slot..slot + torn].copy_from_slice(&after[slot..slot + torn]);
        let left = host.after_kill();
        left.set_content(MAP, mixed.0);
        let map = open(&left);
        assert!(!map.is_damaged());
        assert_eq!(map.ids()[0], PairId(1), "torn after {torn} bytes");
        assert_eq!(marked(&map), [3]);
    }
}

#[test]
fn a_damaged_header_takes_nothing_back() {
    let (host, mut map) = marked_host();
    map.begin_copy(Some(PairId(1)), JournalId(8)).unwrap();
    let place = (Generation(2), EpochId(9));
    map.require(place).unwrap();
    for slot in SLOTS {
        let left = host.after_kill();
        let mut content = left.content(MAP);
        content[slot as usize + 20] ^= 1;
        left.set_content(MAP, content.0);
        let map = open(&left);
        assert!(map.is_unfinished() && !map.is_damaged(), "header at {slot}");
        assert_eq!(
            (map.journal(), map.must_reach()),
            (Some(JournalId(8)), place)
        );
    }
}

fn history(arbiter: &str, generation: u64) -> History {
    History {
        arbiter: ArbiterId(arbiter.into()),
        generation: Generation(generation),
    }
}

#[test]
fn a_map_remembers_who_decides_about_the_guest() {
    let host = Host::new("a");
    host.make_image("disk0", BYTES, &mut seeded(1));
    let (first, second) = (history("one", 3), history("two", 9));
    let known = |of: &DiskSet| -> Vec<History> {
        let all = of.histories().into_iter();
        all.map(|(_, history)| history).collect()
    };
    let set = host.open(&[Replicated], limits());
    assert_eq!(known(&set), [], "it belongs to no guest");
    set.claim_images().unwrap();
    set.note(&first).unwrap();
    drop(set);
    let set = host.open(&[Replicated], limits());
    assert_eq!(known(&set), std::slice::from_ref(&first));
    // A copy is about to begin: that alone need not be durable.
    set.backup().learn(&second);
    assert_eq!(known(&set), std::slice::from_ref(&second));
    drop(set);
    let set = host.open(&[Replicated], limits());
    assert_eq!(known(&set), std::slice::from_ref(&first));
    // That nothing is believed of the other host's image is another matter.
    set.copy_everything().unwrap();
    drop(set);
    assert_eq!(known(&host.open(&[Replicated], limits())), [first]);
}

#[test]
fn any_changed_byte_of_a_header_is_seen() {
    let header = Header {
        number: 5,
        unfinished: true,
        current: Some(PairId(u128::MAX)),
        ..Header::new(BYTES)
    };
    let good = header.encode();
    assert_eq!(Header::decode(&good), Some(header));
    for at in 0..HEADER_BYTES {
        for bit in 0..8 {
            let mut bad = good;
            bad[at] ^= 1 << bit;
            assert_eq!(Header::decode(&bad), None, "byte {at}, bit {bit}");
        }
    }
    // A good checksum does not make left-over bytes, flags or versions right.
    for (at, value) in [(500, 1), (12, 2), (8, 3), (32, 3)] {
        let mut bad = good;
        bad[at] = value;
        let crc = crc32fast::hash(&bad[..508]);
        bad[508..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&bad), None, "byte {at}");
    }
}

#[test]
fn a_header_has_the_bytes_of_its_table() {
    let header = Header {
        number: 0x0102_0304_0506_0708,
        unfinished: true,
        current: Some(PairId(0x1112_1314_1516_1718_191a_1b1c_1d1e_1f20)),
        candidate: Some(PairId(0x2122_2324_2526_2728_292a_2b2c_2d2e_2f30)),
        journal: Some(JournalId(0x3132_3334_3536_3738_393a_3b3c_3d3e_3f40)),
        must_reach: (Generation(0x41), EpochId(0x42)),
        identity: "inode 7".into(),
        history: Some(history("arbiter 8", 0x43)),
        ..Header::new(BYTES)
    };
    let mut golden = b"USTUDYMP\x02\0\0\0\x01\0\0\0".to_vec();
    golden.extend(b"\x08\x07\x06\x05\x04\x03\x02\x01");
    golden.extend(b"\0\0\x80\0\0\0\0\0\0\0\x01\0\0\0\0\0");
    golden.extend((0x11..=0x20).rev());
    golden.extend((0x21..=0x30).rev());
    golden.extend((0x31..=0x40).rev());
    golden.extend(b"\x41\0\0\0\0\0\0\0\x42\0\0\0\0\0\0\0");
    golden.extend(b"inode 7");
    golden.resize(232, 0);
    golden.extend(b"arbiter 8");
    golden.resize(296, 0);
    golden.extend(b"\x43\0\0\0\0\0\0\0");
    golden.resize(508, 0);
    golden.extend(crc32fast::hash(&golden).to_le_bytes());
    assert_eq!(header.encode()[..], golden[..]);
    let mut none = header;
    (none.current, none.candidate, none.journal) = (None, None, None);
    assert!(none.encode()[40..88].iter().all(|byte| *byte == 0));
}

fn pair_of_sets() -> (Host, Host, DiskSet, DiskSet) {
    let (a, b, primary, backup, _) = Setup::new(&[Replicated], BYTES, 0).protected();
    primary.primary().detach();
    (a, b, primary, backup)
}

#[test]
fn a_damaged_or_missing_map_means_that_everything_is_compared() {
    type Harm = fn(&Host);
    let harm: [(&str, Harm); 4] = [
        ("missing", |host| host.remove(MAP)),
        ("empty", |host| host.set_content(MAP, Vec::new())),
        ("cut off", |host| {
            let mut content = host.content(MAP);
            content.truncate(SLOTS[0] as usize + 8);
            host.set_content(MAP, content.0);
        }),
        ("overwritten", |host| {
            host.set_content(MAP, vec![0x5a; 1 << 16])
        }),
    ];
    for (what, harm) in harm {
        let (a, b, primary, backup) = pair_of_sets();
        drop(backup);
        harm(&b);
        let backup = b.open(&[Replicated], limits());
        let owned = backup.claim_images();
        if what == "missing" {
            owned.unwrap();
        } else {
            assert!(matches!(owned, Err(DiskError::MapDamaged { .. })), "{what}");
        }
        let plan = primary
            .primary()
            .begin_sync(&backup.backup().describe().unwrap())
            .unwrap();
        assert!(plan.disks[0].full, "{what}");
        assert_eq!(plan.bytes, BYTES);
        let session = Session::protect(&primary, &backup, 2);
        assert_eq!(session.compared, [true], "{what}");
        assert!(
            session.sent_bytes < BYTES / 8,
            "{what}: equal, so little is sent"
        );
        assert_eq!(a.content("disk0"), b.content("disk0"), "{what}");
        // And the map is good again.
        drop((session, backup));
        b.open(&[Replicated], limits()).claim_images().unwrap();
    }
}

#[test]
fn damaged_bits_of_a_map_count_as_marks() {
    let (host, mut map) = marked_host();
    map.mark(3 * BLOCK, 512, Vec::new).unwrap();
    let content = host.content(MAP);
    let blocks = BYTES / BLOCK;
    let all: Vec<u64> = (0..blocks).collect();
    for bit in 0..blocks.next_multiple_of(8) as usize {
        let mut changed = content.clone();
        changed[BITS_AT as usize + bit / 8] ^= 1 << (bit % 8);
        let left = host.after_kill();
        left.set_content(MAP, changed.0);
        assert_eq!(marked(&open(&left)), all, "bit {bit}");
    }
    // Or they are missing.
    let left = host.after_kill();
    left.set_content(MAP, content[..BITS_AT as usize + 8].to_vec());
    let map = open(&left);
    assert_eq!((marked(&map), map.ids()), (all, vec![PairId(1)]));
}

#[test]
fn a_map_of_an_image_that_has_grown_is_no_pair() {
    let (_a, b, _primary, backup) = pair_of_sets();
    drop(backup);
    b.overwrite("disk0", vec![0; 2 * BYTES as usize], None);
    let grown = open(&b);
    assert_eq!(
        (grown.ids(), grown.is_damaged(), grown.is_unfinished()),
        (vec![], false, false)
    );
}

#[test]
fn a_guest_that_never_had_a_backup_marks_nothing() {
    let host = Host::new("a");
    host.make_image("disk0", BYTES, &mut seeded(2));
    let set = host.open(&[Replicated], limits());
    set.claim_images().unwrap();
    set.disks()[0].write_at(0, &[1; 512]).unwrap();
    assert!(!host.has(MAP));
    assert_eq!(set.counts().marked_bytes, 0);
}

#[test]
fn a_guest_without_its_backup_goes_on_marking_also_after_a_restart() {
    let (a, _b, primary, _backup) = pair_of_sets();
    until("the marks are cleared", || {
        primary.counts().marked_bytes == 0
    });
    primary.disks()[0].write_at(0, &[1; 512]).unwrap();
    drop(primary);
    let again = a.after_kill();
    let set = again.open(&[Replicated], limits());
    set.claim_images().unwrap();
    set.disks()[0].write_at(30 * BLOCK, &[1; 512]).unwrap();
    assert_eq!(set.counts().marked_bytes, 2 * BLOCK);
}

#[test]
fn marks_stay_for_as_long_as_the_file_names_the_old_pair() {
    let (host, mut map) = marked_host();
    map.mark(0, 512, Vec::new).unwrap();
    map.begin_session(1, &[], PairId(2)).unwrap();
    host.fail(MAP, 0, std::io::ErrorKind::StorageFull);
    map.durable(1, EpochId(1)).unwrap_err();
    host.heal();
    let left = open(&host.after_kill());
    assert_eq!(left.ids(), [PairId(1), PairId(2)]);
    assert_eq!(marked(&left), [0]);
    map.durable(1, EpochId(1)).unwrap();
    let left = open(&host.after_kill());
    assert_eq!(left.ids(), [PairId(2)]);
    assert_eq!(marked(&left), [0; 0]);
}

#[test]
fn a_write_that_cannot_be_marked_fails_and_changes_nothing() {
    let (a, _b, primary, _backup) = pair_of_sets();
    until("the marks are cleared", || {
        primary.counts().marked_bytes == 0
    });
    let before = a.content("disk0");
    a.fail(MAP, 0, std::io::ErrorKind::StorageFull);
    let refused = primary.disks()[0].write_at(0, &[1; 512]).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::StorageFull);
    assert!(refused.to_string().contains(MAP), "{refused}");
    assert_eq!(a.content("disk0"), before);
    // Marked, but not durably: the next write must not take it for marked.
    a.heal();
    a.fail(MAP, 1, std::io::ErrorKind::StorageFull);
    assert!(primary.disks()[0].write_at(0, &[1; 512]).is_err());
    assert!(primary.disks()[0].write_at(0, &[1; 512]).is_err());
    assert_eq!(a.content("disk0"), before);
    a.heal();
    primary.disks()[0].write_at(0, &[1; 512]).unwrap();
}
