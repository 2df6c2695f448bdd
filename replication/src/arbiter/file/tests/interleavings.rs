//! Claimants whose calls are mixed in every order, also with an NFS client that remembers names, and with locks that
//! get lost.

use std::collections::BTreeMap;

use super::super::*;
use super::facts::{Facts, PATH};
use super::start_after;
use crate::files::simulated::{Content, Orders, SimulatedFiles, Turns};

type Verdicts = BTreeMap<&'static str, Verdict>;

/// What one of the processes does with its files, and with the arbiter if it has it open already.
type Doing =
    fn(&SimulatedFiles, &Facts, Option<FileArbiter>) -> Result<Option<Verdict>, ArbiterError>;

/// A storage, and what is done to it at once.
struct Scene<'a> {
    /// What was there before.
    before: fn(&SimulatedFiles, &Facts) -> Vec<FileArbiter>,
    /// Whether all have opened the arbiter before.
    opened: bool,
    at_once: &'a [(&'static str, Doing)],
    /// What does not change, or does not matter, here.
    same: &'static [&'static str],
    /// So often processes are interrupted at most. `usize::MAX` for every order.
    interruptions: usize,
    nfs: bool,
}

impl Scene<'_> {
    /// Runs it in every order. `check` sees what each was told. Returns the number of orders.
    fn walk(&self, mut check: impl FnMut(&Verdicts)) -> u64 {
        let (mut orders, mut walked) = (Orders::new(self.interruptions), 0);
        loop {
            let (files, facts) = (SimulatedFiles::default(), Facts::default());
            let before = (self.before)(&files, &facts);
            let turns = Turns::new(self.at_once.len(), orders);
            let verdicts = std::thread::scope(|scope| {
                let start = |(number, (name, doing)): (usize, &(&'static str, Doing))| {
                    let (own, facts) = (files.another_process(), facts.clone());
                    let (name, doing, turns) = (*name, *doing, turns.clone());
                    if self.nfs {
                        own.remember_names();
                    }
                    let opened = self.opened.then(|| open(&own, &facts));
                    own.take_turns(&turns, number, self.same);
                    scope.spawn(move || {
                        let told = turns.run(number, || doing(&own, &facts, opened)).unwrap();
                        own.take_no_turns();
                        told.map(|verdict| (name, verdict))
                    })
                };
                let threads: Vec<_> = self.at_once.iter().enumerate().map(start).collect();
                let told = threads
                    .into_iter()
                    .filter_map(|thread| thread.join().unwrap());
                told.collect::<Verdicts>()
            });
            check(&verdicts);
            drop(before);
            facts.hold_for_the_next(&files.after_kill(), "all are done");
            let left = files.after_power_loss(|_| false, |_| Content::Nothing);
            facts.hold_for_the_next(&left, "all are done, and power lost");
            walked += 1;
            orders = turns.into_orders();
            if !orders.next() {
                return walked;
            }
        }
    }
}

fn open(files: &SimulatedFiles, facts: &Facts) -> FileArbiter {
    facts.open(files).unwrap()
}

fn claims(
    files: &SimulatedFiles,
    facts: &Facts,
    opened: Option<FileArbiter>,
    claim: Claim,
    claimant: &str,
) -> Result<Option<Verdict>, ArbiterError> {
    let arbiter = opened.map_or_else(|| facts.open(files), Ok)?;
    let verdict = facts.claim(&arbiter, claim, claimant)?;
    // It lives on: its lock stays. Its files must not keep its turns.
    files.take_no_turns();
    std::mem::forget(arbiter);
    Ok(Some(verdict))
}

fn after(known: u64) -> Claim {
    Claim::After {
        known: Generation(known),
        mark: Mark::default(),
    }
}

/// A holder of generation 1 that lives, with a backup.
fn protected(files: &SimulatedFiles, facts: &Facts) -> Vec<FileArbiter> {
    let a = open(files, facts);
    facts.claim(&a, start_after(0), "a").unwrap();
    facts.note(&a, 1, Note::Backup("b")).unwrap();
    vec![a]
}

/// A holder of generation 1 that has died without a backup.
fn ended(files: &SimulatedFiles, facts: &Facts) -> Vec<FileArbiter> {
    let a = open(files, facts);
    facts.claim(&a, start_after(0), "a").unwrap();
    Vec::new()
}

fn granted(verdicts: &Verdicts) -> usize {
    let granted = verdicts
        .values()
        .filter(|v| matches!(v, Verdict::Granted(_)));
    granted.count()
}

/// Both sides of a pair lose the other one.
const SPLIT: [(&str, Doing); 2] = [
    ("a", |files, facts, opened| {
        claims(files, facts, opened, after(1), "a again")
    }),
    ("b", |files, facts, opened| {
        claims(files, facts, opened, after(1), "b")
    }),
];
const ID: &str = "arbiter/id";
const LOCK: &str = "arbiter/lock";

#[test]
fn of_two_that_claim_in_any_order_one_is_granted() {
    for nfs in [false, true] {
        let scene = Scene {
            before: protected,
            opened: true,
            at_once: &SPLIT,
            same: &[ID, LOCK],
            interruptions: usize::MAX,
            nfs,
        };
        let orders = scene.walk(|verdicts| {
            assert_eq!(granted(verdicts), 1, "{verdicts:?}");
            let refused =
                |v: &Verdict| matches!(v, Verdict::Refused { current, .. } if current.0 == 2);
            assert!(verdicts.values().any(refused), "{verdicts:?}");
        });
        assert!(orders > 500, "{orders}");
    }
}

#[test]
fn of_two_that_make_an_arbiter_in_any_order_both_get_the_same() {
    const OPENS: Doing = |files, facts, _| facts.open(files).map(|_| None);
    for nfs in [false, true] {
        let scene = Scene {
            before: |_, _| Vec::new(),
            opened: false,
            at_once: &[("a", OPENS), ("b", OPENS)],
            same: &[LOCK],
            interruptions: if nfs { 4 } else { usize::MAX },
            nfs,
        };
        let orders = scene.walk(|_| ());
        assert!(orders > 500, "{orders}");
    }
}

#[test]
fn of_two_that_start_from_nothing_one_is_granted() {
    const STARTS: [(&str, Doing); 2] = [
        ("b", |files, facts, opened| {
            let known = u64::from(opened.is_some());
            claims(files, facts, opened, start_after(known), "b")
        }),
        ("c", |files, facts, opened| {
            claims(files, facts, opened, Claim::StartOver, "c")
        }),
    ];
    for opened in [false, true] {
        let scene = Scene {
            before: if opened { ended } else { |_, _| Vec::new() },
            opened,
            at_once: &STARTS,
            same: &[],
            interruptions: 3,
            nfs: true,
        };
        let orders = scene.walk(|verdicts| assert_eq!(granted(verdicts), 1, "{verdicts:?}"));
        assert!(orders > 500, "{orders}");
    }
}

#[test]
fn of_three_that_claim_one_is_granted() {
    let c: Doing = |files, facts, opened| claims(files, facts, opened, after(1), "c");
    let scene = Scene {
        before: protected,
        opened: true,
        at_once: &[SPLIT[0], SPLIT[1], ("c", c)],
        same: &[ID, LOCK],
        interruptions: 3,
        nfs: true,
    };
    let orders = scene.walk(|verdicts| assert_eq!(granted(verdicts), 1, "{verdicts:?}"));
    assert!(orders > 500, "{orders}");
}

/// Locks decide about starts alone, and even then each generation is granted once.
#[test]
fn lost_locks_do_not_grant_anything_twice() {
    let start: Doing = |files, facts, opened| claims(files, facts, opened, Claim::StartOver, "c");
    let lost: Doing = |files, _, _| {
        // One call, so that it has a turn.
        let _ = files.names(PATH.as_ref());
        files.lose_locks();
        Ok(None)
    };
    let scene = Scene {
        before: protected,
        opened: true,
        at_once: &[SPLIT[1], ("c", start), ("the server", lost)],
        same: &[ID],
        interruptions: 3,
        nfs: false,
    };
    let mut both = 0;
    let orders = scene.walk(|verdicts| both += u64::from(granted(verdicts) == 2));
    assert!(orders > 500, "{orders}");
    assert!(both > 0, "no lock was lost at a time when it matters");
}

/// A holder notes what it does while its backup claims.
#[test]
fn notes_and_claims_do_not_disturb_each_other() {
    let notes: Doing = |_, facts, opened| {
        let mark = Mark::default().next();
        // It may come too late.
        let _ = facts.note(&opened.expect("it is open"), 1, Note::Mark(mark));
        Ok(None)
    };
    for nfs in [false, true] {
        let scene = Scene {
            before: protected,
            opened: true,
            at_once: &[SPLIT[1], ("a", notes)],
            same: &[ID, LOCK],
            interruptions: usize::MAX,
            nfs,
        };
        let orders = scene.walk(|verdicts| assert_eq!(granted(verdicts), 1, "{verdicts:?}"));
        assert!(orders > 100, "{orders}");
    }
}
