//! What a map notes while its image is in use, and what it is told meanwhile.

use std::io::ErrorKind::Other;
use std::sync::Arc;
use std::time::Duration;

use super::host::*;
use super::session::*;
use crate::arbiter::ArbiterId;
use crate::core::disk::PairId;
use crate::disk::DiskMode::Replicated;
use crate::disk::image::map::DirtyMap;
use crate::disk::image::stamp::SYNC_EVERY;
use crate::disk::place::JournalId;
use crate::disk::{DiskSet, Storage};
use crate::files::simulated::Content as Survives;
use crate::ids::Generation;
use crate::ports::disks::History;

const BYTES: u64 = 2 << 20;
const MAP: &str = "disk0-map";
const SECOND: Duration = Duration::from_secs(1);

fn image(host: &Host) -> Box<dyn Storage> {
    host.storage("disk0")
}

fn open(host: &Host) -> DirtyMap {
    let files = Arc::new(host.files().clone());
    DirtyMap::open(MAP.into(), &*image(host), files).unwrap()
}

/// A host with an image that belongs to pair 1. Nobody uses it any more.
fn paired() -> Host {
    let host = Host::new("a");
    host.make_image("disk0", BYTES, &mut seeded(1));
    let mut map = open(&host);
    map.begin_copy(None, JournalId(7)).unwrap();
    map.finish_copy(PairId(1)).unwrap();
    map.in_use(&*image(&host)).unwrap();
    map.close(&*image(&host));
    host.pass(1000 * SECOND);
    host
}

fn is_trusted(host: &Host) -> bool {
    open(host).distrust().is_none()
}

fn syncs_of_map(host: &Host) -> usize {
    let calls = host.take_events();
    let of_map = |call: &&Event| matches!(call, Event::Sync { name } if name == MAP);
    calls.iter().filter(of_map).count()
}

/// At any moment, whether nothing or all of what was not synced is left.
#[test]
fn an_image_that_is_written_for_long_is_known_as_its_own_after_a_loss_of_power() {
    let host = paired();
    let mut map = open(&host);
    let storage = image(&host);
    map.in_use(&*storage).unwrap();
    host.take_events();
    for second in 0..300 {
        map.about_to_write(&*storage);
        storage.write_at(0, &[1; 512]).unwrap();
        storage.flush().unwrap();
        for survives in [Survives::Nothing, Survives::Everything] {
            assert!(is_trusted(&host.without_power(survives)), "{second} s");
        }
        assert!(is_trusted(&host.after_kill()), "{second} s");
        host.pass(SECOND);
    }
    let most = 300 / SYNC_EVERY.as_secs() as usize + 1;
    let syncs = syncs_of_map(&host);
    assert!((1..=most).contains(&syncs), "{syncs}");
}

#[test]
fn an_image_that_was_left_in_order_may_be_looked_at() {
    let host = paired();
    let mut map = open(&host);
    map.in_use(&*image(&host)).unwrap();
    image(&host).write_at(0, &[1; 512]).unwrap();
    map.close(&*image(&host));
    // Its owner is changed, say, long after.
    host.pass(1000 * SECOND);
    let content_ns = image(&host).changed().unwrap().unwrap().content_ns;
    host.overwrite("disk0", host.content("disk0").0, Some(content_ns));
    assert!(is_trusted(&host));
}

#[test]
fn a_set_that_is_dropped_leaves_its_images_in_order() {
    let (a, _b, primary, backup, session) = Setup::new(&[Replicated], BYTES, 1).protected();
    drop((session, backup));
    primary.primary().detach();
    primary.disks()[0].write_at(0, &[1; 512]).unwrap();
    drop(primary);
    a.pass(1000 * SECOND);
    let content_ns = image(&a).changed().unwrap().unwrap().content_ns;
    a.overwrite("disk0", a.content("disk0").0, Some(content_ns));
    assert!(is_trusted(&a));
}

#[test]
fn who_only_looked_at_an_image_does_not_say_how_it_was_left() {
    let host = paired();
    let mut map = open(&host);
    host.overwrite("disk0", vec![1; BYTES as usize], None);
    map.close(&*image(&host));
    assert!(!is_trusted(&host));
}

#[test]
fn an_image_that_is_not_trusted_does_not_become_so_by_being_written() {
    let host = paired();
    host.overwrite("disk0", vec![1; BYTES as usize], None);
    let mut map = open(&host);
    assert!(map.distrust().is_some());
    map.about_to_write(&*image(&host));
    map.close(&*image(&host));
    assert!(!is_trusted(&host));
    assert_eq!(map.ids(), []);
}

fn history(generation: u64) -> History {
    History {
        arbiter: ArbiterId("one".into()),
        generation: Generation(generation),
    }
}

fn open_set(host: &Host) -> DiskSet {
    host.open(&[Replicated], limits())
}

fn known(host: &Host) -> Vec<History> {
    let all = open_set(&host.after_kill()).histories().into_iter();
    all.map(|(_, history)| history).collect()
}

/// Whoever runs the guest on it says so, and that must not make it one of the pair that it was of.
#[test]
fn an_image_that_was_changed_is_no_part_of_its_pair_once_its_guest_runs_again() {
    let (a, b, primary, backup) = Setup::new(&[Replicated], BYTES, 1).sets();
    primary.note(&history(1)).unwrap();
    drop(Session::protect(&primary, &backup, 1));
    drop(primary);
    a.pass(1000 * SECOND);
    a.overwrite("disk0", vec![1; BYTES as usize], None);
    let primary = open_set(&a);
    primary.claim_images().unwrap();
    primary.note(&history(1)).unwrap();
    drop(primary);
    let primary = open_set(&a);
    primary.claim_images().unwrap();
    let session = Session::protect(&primary, &backup, 2);
    assert_eq!(session.compared, [true]);
    assert_eq!(a.content("disk0"), b.content("disk0"));
}

#[test]
fn the_history_of_a_guest_is_durable_when_it_is_noted() {
    let host = Host::new("a");
    host.make_image("disk0", BYTES, &mut seeded(1));
    let set = open_set(&host);
    set.claim_images().unwrap();
    // It is known already, but there is no file.
    set.backup().learn(&history(1));
    set.note(&history(1)).unwrap();
    assert_eq!(known(&host), [history(1)]);
    set.note(&history(2)).unwrap();
    assert_eq!(known(&host), [history(2)]);
    // What could not be noted is noted by the next attempt.
    host.fail(MAP, 0, Other);
    set.note(&history(3)).unwrap_err();
    host.heal();
    set.note(&history(3)).unwrap();
    assert_eq!(known(&host), [history(3)]);
}
