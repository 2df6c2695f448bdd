//! Claimants that stand still while somebody restores an earlier state of the directory.

use std::path::Path;
use std::sync::Arc;

use super::super::*;
use super::facts::PATH;
use super::start_after;
use crate::files::simulated::SimulatedFiles;

const SESSION: u64 = 7;

fn after(beat: u64) -> Claim {
    let session = SESSION;
    Claim::After {
        known: Generation(1),
        mark: Mark { session, beat },
    }
}

fn open(files: &SimulatedFiles) -> FileArbiter {
    FileArbiter::open_in(Arc::new(files.another_process()), PATH.into()).unwrap()
}

/// A holder of generation 1 that has written its second mark. Returns the note with the first one.
fn marked(files: &SimulatedFiles) -> (FileArbiter, Vec<u8>) {
    let a = open(files);
    a.claim(start_after(0), "a").unwrap();
    let note = |beat| {
        let session = SESSION;
        a.note(Generation(1), Note::Mark(Mark { session, beat }))
            .unwrap();
        files.content(in_directory("1.note")).unwrap()
    };
    let first = note(1);
    note(2);
    (a, first)
}

fn in_directory(name: &str) -> std::path::PathBuf {
    Path::new(PATH).join(name)
}

#[test]
fn who_looked_before_the_record_went_back_is_granted_nothing() {
    type Restore = fn(&SimulatedFiles, Vec<u8>);
    let to_the_first_mark: Restore = |files, first| {
        files.unlink(in_directory("2"));
        files.overwrite(in_directory("1.note"), first, None);
    };
    let to_nothing: Restore = |files, _| {
        for name in ["1", "1.note", "2"] {
            files.unlink(in_directory(name));
        }
    };
    for restore in [to_the_first_mark, to_nothing] {
        for claim in [after(2), start_after(1)] {
            let files = SimulatedFiles::default();
            let (a, first) = marked(&files);
            drop(a);
            let own = files.another_process();
            let frozen = FileArbiter::open_in(Arc::new(own.clone()), PATH.into()).unwrap();
            // It has looked. While it prepares its grant, the same number is granted to another one, who dies, and
            // then somebody restores what was before.
            let elsewhere = files.clone();
            own.before_write(move || {
                let granted = open(&elsewhere).claim(after(2), "b").unwrap();
                assert_eq!(granted, Verdict::Granted(Generation(2)));
                restore(&elsewhere, first);
            });
            let error = frozen.claim(claim, "c").expect_err("granted twice");
            assert!(error.what.contains("went back"), "{error}");
            if claim == after(2) {
                let error = frozen.claim(claim, "c").expect_err("granted in the end");
                assert!(error.what.contains("went back"), "{error}");
            }
        }
    }
}

#[test]
fn a_grant_on_what_is_still_there_is_given_again() {
    let files = SimulatedFiles::default();
    let (_a, _) = marked(&files);
    let b = open(&files);
    for _ in 0..2 {
        let granted = b.claim(after(2), "b").unwrap();
        assert_eq!(granted, Verdict::Granted(Generation(2)));
    }
}
