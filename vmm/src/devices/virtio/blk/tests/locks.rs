//! Who may use an image beside whom.

use understudy_replication::disk::Storage;

use super::image_of;
use crate::devices::virtio::blk::{Image, ImageError};

#[test]
fn writers_are_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = image_of(directory.path(), "disk", 512);
    let readers = [
        Image::open(&path, true).unwrap(),
        Image::open(&path, true).unwrap(),
    ];
    let error = Image::open(&path, false).unwrap_err();
    assert!(matches!(error, ImageError::Taken { .. }), "{error}");
    drop(readers);
    let writer = Image::open(&path, false).unwrap();
    for read_only in [false, true] {
        let error = Image::open(&path, read_only).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
    }
    drop(writer);
    Image::open(&path, false).unwrap();
}

#[test]
fn shared_images_are_opened_before_they_are_free() {
    let directory = tempfile::tempdir().unwrap();
    let path = image_of(directory.path(), "disk", 512);
    let primary = Image::open(&path, false).unwrap();
    let standby = Image::open_shared(&path).unwrap();
    assert!(!standby.lock().unwrap());
    let error = standby.take().unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    drop(primary);
    assert!(standby.lock().unwrap());
    assert!(standby.lock().unwrap(), "it is held already");
    assert!(Image::open(&path, true).is_err(), "it is held");
    let missing = Image::open_shared(&directory.path().join("none")).unwrap_err();
    let text = missing.to_string();
    assert!(
        text.contains("none") && text.contains("mount the storage"),
        "{text}"
    );
}

#[test]
fn a_writers_lock_is_seen_by_others_only() {
    let directory = tempfile::tempdir().unwrap();
    let path = image_of(directory.path(), "disk", 512);
    let standby = Image::open_shared(&path).unwrap();
    assert!(!standby.is_locked_by_other().unwrap(), "nobody has it");
    let reader = Image::open(&path, true).unwrap();
    assert!(!standby.is_locked_by_other().unwrap(), "it cannot write");
    drop(reader);
    let primary = Image::open(&path, false).unwrap();
    assert!(standby.is_locked_by_other().unwrap());
    assert!(!primary.is_locked_by_other().unwrap(), "it is its own");
    let copy = Image::open_shared(&image_of(directory.path(), "copy", 512)).unwrap();
    assert!(!copy.is_locked_by_other().unwrap(), "another file");
    drop(primary);
    assert!(!standby.is_locked_by_other().unwrap());
    assert!(standby.lock().unwrap(), "looking takes nothing");
    assert!(!standby.is_locked_by_other().unwrap());
}
