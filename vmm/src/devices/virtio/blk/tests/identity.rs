//! What an image is: its format, and what tells it from another one in its place.

use std::path::Path;

use understudy_replication::disk::{Changed, Storage};

use super::image_of;
use crate::devices::virtio::blk::{Image, ImageError};

fn look(path: &Path) -> (Option<String>, Changed) {
    let image = Image::open(path, false).unwrap();
    (image.identity().unwrap(), image.changed().unwrap().unwrap())
}

#[test]
fn a_file_in_the_place_of_another_is_told_from_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = image_of(directory.path(), "disk", 512);
    let (was, changed) = look(&path);
    assert!(was.is_some());
    assert_eq!(look(&path), (was.clone(), changed));
    // Its content changes, and somebody makes that look as old as before.
    let image = Image::open(&path, false).unwrap();
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    image.write_at(0, &[1; 512]).unwrap();
    drop(image);
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(modified).unwrap();
    let (is, later) = look(&path);
    assert_eq!((&is, later.content_ns), (&was, changed.content_ns));
    assert!(later.anything_ns >= changed.anything_ns);
    // A copy takes its name, after which the number of the old file may be given again.
    let copy = directory.path().join("copy");
    std::fs::copy(&path, &copy).unwrap();
    std::fs::rename(&copy, &path).unwrap();
    assert_ne!(look(&path).0, was);
    std::fs::remove_file(&path).unwrap();
    image_of(directory.path(), "disk", 512);
    assert_ne!(look(&path).0, was);
}

#[test]
fn an_image_in_another_format_is_not_taken_for_a_raw_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = image_of(directory.path(), "disk", 1024);
    for (magic, at, name) in [
        (&b"QFI\xfb"[..], 0, "qcow2"),
        (b"KDMV", 0, "VMDK"),
        (b"vhdxfile", 0, "VHDX"),
        (&[0x7f, 0x10, 0xda, 0xbe], 64, "VDI"),
    ] {
        let mut content = vec![0; 1024];
        content[at..at + magic.len()].copy_from_slice(magic);
        std::fs::write(&path, &content).unwrap();
        for read_only in [false, true] {
            let refused = Image::open(&path, read_only).unwrap_err();
            assert!(
                matches!(refused, ImageError::Format { format, .. } if format == name),
                "{refused}"
            );
        }
        // Elsewhere it is the guest's own.
        content.rotate_right(512);
        std::fs::write(&path, content).unwrap();
        Image::open(&path, false).unwrap();
    }
}
