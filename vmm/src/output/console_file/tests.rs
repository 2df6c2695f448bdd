//! Console files behind a gate.

use std::time::Duration;

use understudy_replication::EpochId;
use understudy_replication::output::{ConsolePort, OutputGate};

use super::ConsoleFile;

const DEADLINE: Duration = Duration::from_secs(20);

fn attach(gate: &OutputGate, file: ConsoleFile) -> ConsolePort {
    gate.add_console(Box::new(file), || ()).unwrap()
}

#[test]
fn console_files_are_begun_and_continued() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    std::fs::write(&path, "of an older guest").unwrap();
    let contents = || std::fs::read_to_string(&path).unwrap();
    let old = OutputGate::default();
    let new = OutputGate::default();
    let old_tty = attach(&old, ConsoleFile::create(&path).unwrap());
    let new_tty = attach(&new, ConsoleFile::join(&path).unwrap());
    // Until the guest speaks, it may run elsewhere.
    assert_eq!(contents(), "of an older guest");
    old_tty.write(b"boot ").unwrap();
    // Otherwise the epoch has it as a run of its own, which a backup joins with the next.
    assert!(old.flush_consoles(DEADLINE));
    old.hold();
    old_tty.write(b"hello ").unwrap();
    let output = old.seal(EpochId(1));
    // The primary releases, and dies: the file has it all.
    assert!(old.release(EpochId(1), || true));
    assert!(old.flush_consoles(DEADLINE));
    assert_eq!(contents(), "boot hello ");
    new_tty.set_position(11);
    new.repeat(&output);
    new_tty.write(b"again").unwrap();
    assert!(new.flush_consoles(DEADLINE));
    assert_eq!(contents(), "boot hello again");
}

#[test]
fn a_longer_console_file_than_the_guest_can_have_written_swallows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("console");
    std::fs::write(&path, "of an older guest, on this host. ").unwrap();
    let gate = OutputGate::default();
    let tty = attach(&gate, ConsoleFile::join(&path).unwrap());
    tty.set_position(5);
    tty.write(b"hello").unwrap();
    assert!(gate.flush_consoles(DEADLINE));
    let text = std::fs::read_to_string(&path).unwrap();
    assert_eq!(text, "of an older guest, on this host. hello");
}
