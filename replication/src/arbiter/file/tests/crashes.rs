//! An arbiter whose process or whose storage fails at any call.

use nix::libc;

use super::super::*;
use super::facts::{Facts, PATH, all_that_may_be_left};
use super::start_after;
use crate::files::simulated::{Call, Content, Failure, SimulatedFiles};

const B_KNOWS: Mark = Mark {
    session: 7,
    beat: 1,
};

/// All that two sides do with an arbiter, as the runtime does it: what fails is tried again. Ends early if it cannot go
/// on.
fn life(files: &SimulatedFiles, facts: &Facts, tries: usize) -> Result<(), ArbiterError> {
    let again = |what: &mut dyn FnMut() -> Result<(), ArbiterError>| {
        let mut done = what();
        for _ in 1..tries {
            done = done.or_else(|_| what());
        }
        if done.is_ok() {
            // It was answered, so it is durable.
            let left = files.after_power_loss(|_| false, |_| Content::Nothing);
            facts.hold(&left, "power lost after an answer");
        }
        done
    };
    let open = || {
        let mut opened = None;
        again(&mut || {
            opened = Some(facts.open(files)?);
            Ok(())
        })?;
        Ok(opened.expect("it was opened"))
    };
    let granted = |arbiter: &FileArbiter, claim, claimant, wanted| {
        again(&mut || {
            let verdict = facts.claim(arbiter, claim, claimant)?;
            assert_eq!(verdict, Verdict::Granted(Generation(wanted)));
            Ok(())
        })
    };
    let note = |arbiter: &FileArbiter, generation, note| {
        again(&mut || facts.note(arbiter, generation, note))
    };
    let after = |known, mark| Claim::After {
        known: Generation(known),
        mark,
    };
    let a = open()?;
    granted(&a, start_after(0), "a", 1)?;
    note(&a, 1, Note::Backup("b"))?;
    note(&a, 1, Note::Mark(B_KNOWS))?;
    let b = open()?;
    again(&mut || b.rehearse().map(drop))?;
    note(&a, 1, Note::Mark(B_KNOWS.next()))?;
    granted(&b, after(1, B_KNOWS), "b", 2)?;
    granted(&b, after(1, B_KNOWS), "b", 2)?;
    note(&b, 2, Note::Backup("a"))?;
    note(&b, 2, Note::NoBackup)?;
    note(&b, 2, Note::NoBackup)?;
    drop((a, b));
    let c = open()?;
    granted(&c, start_after(2), "c", 3)?;
    note(&c, 3, Note::Backup("d"))?;
    drop(c);
    let d = open()?;
    granted(&d, Claim::StartOver, "d", 4)
}

/// The calls of a life without faults.
fn calls() -> Vec<Call> {
    let (files, facts) = (SimulatedFiles::default(), Facts::default());
    life(&files, &facts, 1).unwrap();
    facts.hold_for_the_next(&files, "nothing has failed");
    files.take_calls()
}

#[test]
fn whatever_call_the_process_dies_at_all_that_was_answered_stays_so() {
    let (mut points, mut ends) = (0, 0);
    for (at, call) in (0..).zip(calls()) {
        // After a call that changes nothing, everything is as it was before it.
        let torn = matches!(call, Call::Write { .. });
        for torn in [false, true].into_iter().take(1 + usize::from(torn)) {
            let (files, facts) = (SimulatedFiles::default(), Facts::default());
            files.end_at(at, torn);
            assert!(life(&files, &facts, 1).is_err() || matches!(call, Call::Remove { .. }));
            points += 1;
            let here = format!("killed at call {at}, {call:?}, torn {torn}");
            facts.hold_for_the_next(&files.after_kill(), &here);
            all_that_may_be_left(&files, |left, what| {
                ends += 1;
                facts.hold_for_the_next(left, &format!("{here}, {what}"));
            });
        }
    }
    assert!(points > 150 && ends > 1000, "{points} points, {ends} ends");
}

#[test]
fn whatever_call_fails_all_that_was_answered_stays_so_and_the_next_try_succeeds() {
    let failures = [libc::EIO, libc::ENOSPC, libc::EINTR, libc::ESTALE]
        .into_iter()
        .flat_map(|errno| [Failure::NotDone(errno), Failure::Unanswered(errno)])
        .chain([Failure::Dropped(libc::EIO)]);
    let mut failed = 0;
    for failure in failures {
        for (at, call) in (0..).zip(calls()) {
            let (files, facts) = (SimulatedFiles::default(), Facts::default());
            files.fail_at(at, failure);
            let here = format!("call {at}, {call:?}, {failure:?}");
            if let Err(error) = life(&files, &facts, 2) {
                panic!("{here}: {error}: {:?}", error.source);
            }
            failed += 1;
            facts.hold_for_the_next(&files, &here);
            let left = files.after_power_loss(|_| false, |_| Content::Nothing);
            facts.hold_for_the_next(&left, &format!("{here}, and power lost"));
        }
    }
    assert!(failed > 1000, "{failed}");
}

#[test]
fn what_a_killed_claimant_leaves_is_removed_once_it_is_nobodys() {
    let leftovers = |files: &SimulatedFiles| {
        let names = files.names(PATH.as_ref()).unwrap();
        let names = names.iter().map(|name| name.to_string_lossy());
        names.filter(|name| name.starts_with(".new-")).count()
    };
    let mut seen = 0;
    for (at, call) in (0..).zip(calls()) {
        let (files, facts) = (SimulatedFiles::default(), Facts::default());
        files.end_at(at, false);
        let _ = life(&files, &facts, 1);
        let left = files.after_kill();
        let here = format!("killed at call {at}, {call:?}");
        let open = || FileArbiter::open_in(Arc::new(left.clone()), PATH.into()).unwrap();
        if left.exists(PATH) {
            let before = leftovers(&left);
            open();
            assert_eq!(leftovers(&left), before, "{here}: it may be in use");
            seen += before;
        }
        left.pass(std::time::Duration::from_secs(2 * 3600));
        open();
        assert_eq!(leftovers(&left), 0, "{here}");
        facts.hold_for_the_next(&left, &here);
    }
    assert!(seen > 10, "nothing was left to be removed");
}
