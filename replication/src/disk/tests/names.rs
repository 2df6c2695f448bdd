//! What disks say of themselves, and what a map's file says to whoever asks without opening a set.

use std::fs;

use super::session::*;
use crate::arbiter::ArbiterId;
use crate::disk::DiskMode::{self, Replicated, Shared};
use crate::disk::image::header::{BITS_AT, Header, SLOTS, kept_history, kept_identity};
use crate::disk::{DiskSet, Storage, history};
use crate::ids::Generation;
use crate::ports::disks::{DiskStatus, History};

const BYTES: u64 = 64 << 10;

#[test]
fn a_mode_has_a_name_by_which_it_is_found() {
    let names = DiskMode::ALL.map(DiskMode::name);
    assert_eq!(names, ["replicated", "shared"]);
    for mode in DiskMode::ALL {
        assert_eq!(DiskMode::named(mode.name()), Some(mode));
        assert_eq!(mode.to_string(), mode.name());
    }
    assert_eq!(DiskMode::named("both"), None);
}

#[test]
fn a_set_lists_its_disks() {
    let (_a, _b, primary, _backup) = Setup::new(&[Replicated, Shared], BYTES, 1).sets();
    let status = |name: &str, mode: &str| DiskStatus {
        name: name.into(),
        mode: mode.into(),
        bytes: BYTES,
    };
    assert_eq!(
        primary.list(),
        [status("disk0", "replicated"), status("disk1", "shared")]
    );
    assert_eq!(primary.primary().names(), ["disk0", "disk1"]);
    let shown = format!("{primary:?}");
    assert!(shown.contains("0: disk0, replicated"), "{shown}");
    let kinds = |set: &DiskSet| (set.has_replicated(), set.has_shared(), set.is_empty());
    assert_eq!(kinds(&primary), (true, true, false));
    let none = DiskSet::empty();
    assert_eq!(kinds(&none), (false, false, true));
    assert_eq!(none.list(), []);
    let (_a, _b, shared, _backup) = Setup::new(&[Shared], BYTES, 1).sets();
    assert_eq!(kinds(&shared), (false, true, false));
}

/// A device may ask it for all that it may ask any storage for.
#[test]
fn a_disk_answers_for_its_image() {
    let (a, b, primary, backup) = Setup::new(&[Shared], BYTES, 1).sets();
    let (disk, image) = (&primary.disks()[0], a.storage("disk0"));
    assert_eq!((disk.name(), disk.mode()), ("disk0", Shared));
    assert_eq!(disk.bytes(), BYTES);
    assert_eq!(disk.identity().unwrap(), image.identity().unwrap());
    assert!(disk.identity().unwrap().is_some());
    assert_eq!(disk.changed().unwrap(), image.changed().unwrap());
    assert!(disk.changed().unwrap().is_some());
    let other = &backup.disks()[0];
    assert_eq!((disk.lock().unwrap(), other.lock().unwrap()), (true, false));
    assert!(!disk.is_locked_by_other().unwrap());
    assert!(other.is_locked_by_other().unwrap());
    a.unlock();
    assert!(other.lock().unwrap());
    b.unlock();
}

fn known() -> History {
    History {
        arbiter: ArbiterId("one".into()),
        generation: Generation(3),
    }
}

#[test]
fn the_history_of_an_image_is_read_from_its_map_alone() {
    let directory = tempfile::tempdir().unwrap();
    let map = directory.path().join("map");
    assert_eq!(history(&map).unwrap(), None, "there is no map");
    let mut content = vec![0; BITS_AT as usize];
    fs::write(&map, &content).unwrap();
    assert_eq!(history(&map).unwrap(), None, "it is damaged");
    let header = Header {
        history: Some(known()),
        ..Header::new(BYTES)
    };
    let slot = SLOTS[1] as usize;
    let encoded = header.encode();
    content[slot..slot + encoded.len()].copy_from_slice(&encoded);
    fs::write(&map, &content).unwrap();
    assert_eq!(history(&map).unwrap(), Some(known()));
    // A map that cannot be read is not one that is missing.
    history(&map.join("below")).unwrap_err();
}

#[test]
fn a_header_keeps_whole_characters_of_what_is_too_long() {
    for shift in 0..4 {
        let long = format!("{}{}", "x".repeat(shift), "€".repeat(100));
        let identity = kept_identity(long.clone());
        assert!(long.starts_with(&identity) && (126..=128).contains(&identity.len()));
        let history = kept_history(&History {
            arbiter: ArbiterId(long.clone()),
            ..known()
        });
        assert!(long.starts_with(&history.arbiter.0));
        assert!((62..=64).contains(&history.arbiter.0.len()));
        let header = Header {
            identity,
            history: Some(history),
            ..Header::new(BYTES)
        };
        assert_eq!(Header::decode(&header.encode()), Some(header));
    }
    assert_eq!(kept_identity("short".into()), "short");
    // Nor does an image of no bytes have one.
    assert_eq!(Header::decode(&Header::new(0).encode()), None);
}
