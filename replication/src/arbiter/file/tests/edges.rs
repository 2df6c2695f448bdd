//! What a person is told about a directory that is no arbiter, or one that cannot be used, and what a holder gets.

use std::io::ErrorKind;

use nix::libc;

use super::super::*;
use super::facts::PATH;
use super::{after, start_after};
use crate::files::simulated::{Call, Failure, SimulatedFiles};

fn open(files: &SimulatedFiles) -> Result<FileArbiter, ArbiterError> {
    FileArbiter::open_in(Arc::new(files.clone()), PATH.into())
}

#[test]
fn an_arbiter_exists_from_when_it_was_made_until_its_record_vanishes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arbiter");
    assert!(!FileArbiter::exists(&path).unwrap());
    std::fs::create_dir(&path).unwrap();
    assert!(!FileArbiter::exists(&path).unwrap(), "an empty directory");
    let arbiter = FileArbiter::make(&path).unwrap();
    assert!(FileArbiter::exists(&path).unwrap());
    arbiter.claim(start_after(0), "a").unwrap();
    assert!(FileArbiter::exists(&path).unwrap());
    drop(arbiter);
    std::fs::remove_file(path.join("id")).unwrap();
    let vanished = FileArbiter::exists(&path).unwrap_err();
    assert!(vanished.to_string().contains("vanished"), "{vanished}");
}

#[test]
fn a_holder_that_asks_for_the_next_generation_does_not_get_its_own_again() {
    let files = SimulatedFiles::default();
    let arbiter = open(&files).unwrap();
    for (claim, granted) in [
        (start_after(0), 1),
        (after(1), 2),
        (after(2), 3),
        (after(2), 3),
    ] {
        let verdict = arbiter.claim(claim, "a").unwrap();
        assert_eq!(verdict, Verdict::Granted(Generation(granted)), "{claim:?}");
    }
}

/// Whoever is told that a record has vanished is also told to remove what is left: it had better be true.
#[test]
fn what_cannot_be_read_has_not_vanished() {
    let files = SimulatedFiles::default();
    let arbiter = open(&files).unwrap();
    arbiter.claim(start_after(0), "a").unwrap();
    arbiter.note(Generation(1), Note::Backup("b")).unwrap();
    files.take_calls();
    arbiter.record().unwrap();
    let calls = files.take_calls();
    assert!(calls.len() > 4, "{calls:?}");
    for (at, call) in (0..).zip(&calls) {
        files.fail_at(at, Failure::NotDone(libc::EIO));
        let error = arbiter.record().expect_err("it cannot be read");
        assert!(!error.to_string().contains("vanished"), "{call:?}: {error}");
        files.heal();
    }
    assert_eq!(arbiter.record().unwrap().backup.as_deref(), Some("b"));
}

/// Only who was slower tries the next generation; what failed is an error, or a full disk would be tried for ever.
#[test]
fn a_link_that_fails_is_not_taken_for_somebody_elses_grant() {
    let claimed = |fails: Option<u64>| {
        let files = SimulatedFiles::default();
        let arbiter = open(&files).unwrap();
        files.take_calls();
        if let Some(at) = fails {
            files.fail_at(at, Failure::NotDone(libc::EIO));
        }
        let verdict = arbiter.claim(start_after(0), "a");
        (verdict, files.take_calls())
    };
    let (granted, calls) = claimed(None);
    granted.unwrap();
    let link = calls.iter().position(|it| matches!(it, Call::Link { .. }));
    let (failed, _) = claimed(link.map(|at| at as u64));
    failed.expect_err("the grant cannot be linked");
}

/// On NFS, a file that was replaced between opening and reading it is opened again.
#[test]
fn a_file_that_was_replaced_while_it_was_read_is_read_again() {
    let files = SimulatedFiles::default();
    let arbiter = open(&files).unwrap();
    arbiter.claim(start_after(0), "a").unwrap();
    files.take_calls();
    let record = arbiter.record().unwrap();
    let mut read_again = 0;
    for (at, _) in (0..).zip(files.take_calls()) {
        files.fail_at(at, Failure::NotDone(libc::ESTALE));
        if let Ok(found) = arbiter.record() {
            assert_eq!(found, record);
            read_again += 1;
        }
        files.heal();
    }
    // The identity and the grant, at least.
    assert!(read_again > 1, "{read_again}");
}

/// Whoever could be the holder is shown to live, or another one could be started.
#[test]
fn a_claim_without_an_answer_that_was_granted_all_the_same_has_a_living_holder() {
    let mut granted = 0;
    for at in 0.. {
        let files = SimulatedFiles::default();
        let arbiter = open(&files).unwrap();
        let other = FileArbiter::open_in(Arc::new(files.another_process()), PATH.into()).unwrap();
        files.fail_at(at, Failure::Unanswered(libc::EIO));
        let claimed = arbiter.claim(start_after(0), "a");
        if other.record().unwrap().generation == Generation(1) {
            assert!(other.holder_lives().unwrap(), "call {at}: {claimed:?}");
            granted += u32::from(claimed.is_err());
        }
        files.heal();
        files.take_calls();
        if claimed.is_ok() {
            break;
        }
    }
    assert!(granted > 0);
}

#[test]
fn storage_that_takes_nothing_grants_nothing_and_says_so_beforehand() {
    let files = SimulatedFiles::default();
    let arbiter = open(&files).unwrap();
    arbiter.claim(start_after(0), "a").unwrap();
    assert!(arbiter.rehearse().is_ok());
    files.fail_from("", 0, ErrorKind::StorageFull);
    arbiter.rehearse().unwrap_err();
    arbiter.claim(after(1), "a").unwrap_err();
}

#[test]
fn a_place_where_no_directory_can_be_made_is_not_called_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let nowhere = FileArbiter::open(directory.path().join("missing/arbiter"));
    let error = nowhere.map(drop).unwrap_err();
    assert_eq!(error.what, "cannot make the directory");
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = FileArbiter::open(&file).map(drop).unwrap_err();
    assert_eq!(error.what, "this is not a directory");
}

#[test]
fn marks_are_counted_and_shown() {
    let mark = Mark {
        session: 0xab,
        beat: 4,
    };
    assert_eq!(mark.next().beat, 5);
    assert_eq!(mark.next().session, 0xab);
    assert!(mark.to_string().contains('4'), "{mark}");
}
