//! Who gets which generation, and what an arbiter whose files were tampered with answers.

mod crashes;
mod edges;
mod facts;
mod interleavings;
mod restored;

use super::*;

/// A claim after a generation whose holder wrote no mark.
fn start_after(known: u64) -> Claim {
    let known = Generation(known);
    Claim::Start { known }
}

fn after(known: u64) -> Claim {
    Claim::After {
        known: Generation(known),
        mark: Mark::default(),
    }
}

fn current(arbiter: &FileArbiter) -> (Generation, String) {
    let record = arbiter.record().unwrap();
    (record.generation, record.holder)
}

fn arbiters(directory: &tempfile::TempDir) -> (FileArbiter, FileArbiter) {
    let path = directory.path().join("arbiter");
    (
        FileArbiter::open(&path).unwrap(),
        FileArbiter::open(&path).unwrap(),
    )
}

#[test]
fn each_generation_is_granted_once() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    assert_eq!(
        a.claim(start_after(0), "a").unwrap(),
        Verdict::Granted(Generation(1))
    );
    assert_eq!(
        b.claim(after(1), "b").unwrap(),
        Verdict::Granted(Generation(2))
    );
    assert_eq!(
        a.claim(after(1), "a").unwrap(),
        Verdict::Refused {
            current: Generation(2),
            holder: "b".into()
        }
    );
    assert_eq!(current(&a), (Generation(2), "b".into()));
}

#[test]
fn a_repeated_claim_of_the_holder_gets_the_same_generation() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    for _ in 0..2 {
        assert_eq!(
            b.claim(after(1), "b").unwrap(),
            Verdict::Granted(Generation(2))
        );
    }
}

#[test]
fn a_guest_is_not_started_while_a_holder_lives() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    let known = Generation(1);
    for claim in [start_after(1), Claim::Restart { known }, Claim::StartOver] {
        let Verdict::Refused { current, holder } = b.claim(claim, "b").unwrap() else {
            panic!("{claim:?} was granted");
        };
        assert_eq!(current, Generation(1));
        assert!(holder.starts_with("a, which is alive"), "{holder}");
    }
    drop(a);
    assert_eq!(
        b.claim(start_after(1), "b").unwrap(),
        Verdict::Granted(Generation(2))
    );
}

#[test]
fn a_guest_whose_standby_has_a_copy_is_not_started_from_nothing_by_mistake() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    a.note(Generation(1), Note::Backup("standby-b")).unwrap();
    drop(a);
    let Verdict::Refused { holder, .. } = b.claim(start_after(1), "b").unwrap() else {
        panic!("started although a copy may go on");
    };
    assert!(holder.contains("standby-b has a copy"), "{holder}");
    // The copy itself may, and so may whoever gives it up.
    assert_eq!(
        b.claim(Claim::StartOver, "b").unwrap(),
        Verdict::Granted(Generation(2))
    );
    b.note(Generation(2), Note::Backup("standby-c")).unwrap();
    b.note(Generation(2), Note::NoBackup).unwrap();
    assert!(b.note(Generation(1), Note::NoBackup).is_err());
    drop(b);
    let (c, _) = arbiters(&directory);
    assert_eq!(
        c.claim(start_after(2), "c").unwrap(),
        Verdict::Granted(Generation(3))
    );
}

#[test]
fn a_guest_is_restarted_once_its_backup_has_been_asked_unless_somebody_was_faster() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    a.note(Generation(1), Note::Backup("standby-b")).unwrap();
    drop(a);
    let (c, d) = arbiters(&directory);
    let known = Generation(1);
    let restart = Claim::Restart { known };
    let granted = Verdict::Granted(Generation(2));
    assert_eq!(c.claim(restart, "c").unwrap(), granted);
    assert_eq!(c.claim(restart, "c").unwrap(), granted, "repeated");
    drop(c);
    // What the second one was told is not true any more.
    let Verdict::Refused { current, .. } = d.claim(restart, "d").unwrap() else {
        panic!("granted on the word of a backup of an earlier generation");
    };
    assert_eq!(current, Generation(2));
    let known = Generation(3);
    assert!(
        b.claim(Claim::Restart { known }, "b").is_err(),
        "it went back"
    );
}

#[test]
fn a_start_that_was_decided_by_an_older_record_comes_too_late() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    drop(a);
    // Nobody lives and no backup is noted, but somebody has run the guest meanwhile.
    let Verdict::Refused { current, .. } = b.claim(start_after(0), "b").unwrap() else {
        panic!("started from what may be older disks");
    };
    assert_eq!(current, Generation(1));
    assert!(b.claim(start_after(2), "b").is_err(), "it went back");
}

#[test]
fn of_many_claims_at_once_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    let (first, _) = arbiters(&directory);
    first.claim(start_after(0), "first").unwrap();
    let path = directory.path().join("arbiter");
    let barrier = Arc::new(std::sync::Barrier::new(16));
    let threads: Vec<_> = (0..16)
        .map(|number| {
            let (path, barrier) = (path.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let arbiter = FileArbiter::open(path).unwrap();
                barrier.wait();
                arbiter.claim(after(1), &format!("node-{number}")).unwrap()
            })
        })
        .collect();
    let granted = threads
        .into_iter()
        .map(|thread| thread.join().unwrap())
        .filter(|verdict| matches!(verdict, Verdict::Granted(_)))
        .count();
    assert_eq!(granted, 1);
    assert_eq!(current(&first).0, Generation(2));
}

#[test]
fn an_arbiter_is_made_once_and_found_only_where_one_was_made() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("arbiter");
    let error = FileArbiter::find(&path).unwrap_err();
    assert_eq!(error.what, "there is none");
    assert!(!path.exists(), "looking makes nothing");
    let made = FileArbiter::make(&path).unwrap();
    assert_eq!(FileArbiter::find(&path).unwrap().id(), made.id());
    assert_eq!(FileArbiter::open(&path).unwrap().id(), made.id());
    let error = FileArbiter::make(&path).unwrap_err();
    assert_eq!(error.what, "there is an arbiter already");
}

#[test]
fn nothing_is_granted_at_first() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    assert_eq!(current(&a), (Generation(0), "nobody".into()));
    assert_eq!(a.id(), b.id(), "it is one arbiter");
    assert_eq!(a.record().unwrap().arbiter, *a.id());
    let elsewhere = tempfile::tempdir().unwrap();
    assert_ne!(arbiters(&elsewhere).0.id(), a.id());
}

#[test]
fn a_claimant_that_stalled_does_not_overwrite_a_grant_given_meanwhile() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    let seen = b.store.read().unwrap();
    assert!(b.objection(&seen, after(1)).unwrap().is_none());
    // B has looked, and now stands still. Its lock, if it has one, does not matter.
    let (c, _) = arbiters(&directory);
    assert_eq!(
        c.claim(after(1), "c").unwrap(),
        Verdict::Granted(Generation(2))
    );
    let take = |generation| b.exclusively(|holding| b.take(holding, generation, "b"));
    assert!(!take(seen.generation.next()).unwrap());
    assert_eq!(current(&a), (Generation(2), "c".into()));
    assert_eq!(
        b.claim(after(1), "b").unwrap(),
        Verdict::Refused {
            current: Generation(2),
            holder: "c".into()
        }
    );
    // And a number from long ago stays taken.
    assert!(!take(Generation(1)).unwrap());
    assert_eq!(current(&a), (Generation(2), "c".into()));
}

#[test]
fn a_claim_whose_answer_got_lost_is_granted_again() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    for _ in 0..2 {
        let granted = a.claim(start_after(0), "a").unwrap();
        assert_eq!(granted, Verdict::Granted(Generation(1)));
    }
    assert!(b.holder_lives().unwrap());
}

#[test]
fn a_claimant_that_stands_still_with_its_lock_keeps_nobody_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    let (c, _) = arbiters(&directory);
    c.show_life(true).unwrap();
    let granted = b.claim(after(1), "b").unwrap();
    assert_eq!(granted, Verdict::Granted(Generation(2)));
}

#[test]
fn who_gets_nothing_does_not_look_like_a_holder() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    let take = |generation| b.exclusively(|holding| b.take(holding, generation, "b"));
    a.claim(start_after(0), "a").unwrap();
    assert!(!take(Generation(1)).unwrap());
    drop(a);
    let (c, _) = arbiters(&directory);
    assert!(!c.holder_lives().unwrap());
    // Nor does one that cannot write.
    std::fs::rename(
        directory.path().join("arbiter"),
        directory.path().join("away"),
    )
    .unwrap();
    assert!(take(Generation(2)).is_err());
    std::fs::rename(
        directory.path().join("away"),
        directory.path().join("arbiter"),
    )
    .unwrap();
    assert!(!c.holder_lives().unwrap());
    // One that got a generation keeps its lock when it gets no further one.
    assert!(take(Generation(2)).unwrap());
    assert!(!take(Generation(2)).unwrap_or(true) || c.holder_lives().unwrap());
    assert!(c.holder_lives().unwrap());
}

#[test]
fn a_claim_names_what_the_holder_wrote_last() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    let mark = |session, beat| Mark { session, beat };
    a.note(Generation(1), Note::Backup("b")).unwrap();
    a.note(Generation(1), Note::Mark(mark(7, 3))).unwrap();
    let record = b.rehearse().unwrap();
    assert_eq!((record.mark, record.backup), (mark(7, 3), Some("b".into())));
    let claim = |mark| Claim::After {
        known: Generation(1),
        mark,
    };
    // A copy of the directory, made before the holder wrote that.
    for wrong in [mark(7, 4), mark(8, 1)] {
        let error = b.claim(claim(wrong), "b").unwrap_err();
        assert!(error.what.contains("not the record"), "{error}");
    }
    // The last mark may not have reached the backup.
    assert_eq!(
        b.claim(claim(mark(7, 2)), "b").unwrap(),
        Verdict::Granted(Generation(2))
    );
    assert_eq!(a.record().unwrap().mark, Mark::default());
}

#[test]
fn a_record_that_went_back_refuses_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    b.claim(after(1), "b").unwrap();
    std::fs::remove_file(directory.path().join("arbiter/2")).unwrap();
    let error = b.claim(after(2), "b").unwrap_err();
    assert!(error.what.contains("went back to generation 1"), "{error}");
    let error = b.claim(after(u64::MAX), "b").unwrap_err();
    assert!(error.what.contains("went back"), "{error}");
}

#[test]
fn a_record_that_vanished_is_not_made_anew() {
    let directory = tempfile::tempdir().unwrap();
    let (a, _) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    let path = directory.path().join("arbiter");
    let id = std::fs::read(path.join("id")).unwrap();
    std::fs::remove_file(path.join("id")).unwrap();
    for error in [
        a.record().unwrap_err(),
        a.claim(after(1), "a").unwrap_err(),
        FileArbiter::open(&path).unwrap_err(),
    ] {
        assert!(error.what.contains("vanished"), "{error}");
    }
    assert!(!path.join("id").exists());
    // Another arbiter took its place, for example because nothing is mounted there.
    std::fs::rename(&path, directory.path().join("away")).unwrap();
    assert!(a.record().unwrap_err().what.contains("vanished"));
    FileArbiter::open(&path).unwrap();
    let error = a.claim(after(1), "a").unwrap_err();
    assert!(error.what.contains("another arbiter"), "{error}");
    std::fs::remove_dir_all(&path).unwrap();
    std::fs::rename(directory.path().join("away"), &path).unwrap();
    std::fs::write(path.join("id"), id).unwrap();
    assert_eq!(a.record().unwrap().generation, Generation(1));
}

#[test]
fn a_garbled_record_is_an_error_and_grants_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (a, _) = arbiters(&directory);
    a.claim(start_after(0), "a").unwrap();
    for garbage in [
        "",
        "{\"generation\":7}",
        "{\"generation\":9,\"holder\":\"a\"}",
    ] {
        std::fs::write(directory.path().join("arbiter/1"), garbage).unwrap();
        let error = a.claim(start_after(0), "a").unwrap_err().to_string();
        let is_named = error.contains("not what an arbiter writes") || error.contains("garbled");
        assert!(is_named, "{error}");
    }
    assert!(!directory.path().join("arbiter/2").exists());
}

#[test]
fn what_is_not_a_directory_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "{\"generation\":7}").unwrap();
    let error = FileArbiter::open(&file).unwrap_err();
    assert!(error.to_string().contains("not a directory"), "{error}");
    let error = FileArbiter::open("/nonexistent/arbiter").unwrap_err();
    assert!(
        error.to_string().contains("/nonexistent/arbiter"),
        "{error}"
    );
}

#[test]
fn an_arbiter_that_cannot_be_written_fails_its_rehearsal() {
    let directory = tempfile::tempdir().unwrap();
    let (a, _) = arbiters(&directory);
    a.rehearse().unwrap();
    let names = |path: &Path| std::fs::read_dir(path).unwrap().count();
    let path = directory.path().join("arbiter");
    assert_eq!(names(&path), 2, "nothing is left behind: id, lock");
    std::fs::rename(&path, directory.path().join("away")).unwrap();
    assert!(a.rehearse().is_err());
}
