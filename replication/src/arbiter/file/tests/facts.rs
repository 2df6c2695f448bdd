//! What an arbiter has answered, and that it stays true whatever has happened to its storage since.

use std::sync::{Arc, Mutex};

use super::super::*;
use crate::files::simulated::{Content, SimulatedFiles};

pub(super) const PATH: &str = "arbiter";

/// An answer, or what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fact {
    Id(ArbiterId),
    Granted(Generation, String),
    /// This was, or was about to be, in the note of this generation.
    Noting(Generation, HolderNote),
    /// The last one noted of this generation.
    Noted(Generation),
}

/// All answers that were given. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts(Arc<Mutex<Vec<Fact>>>);

impl Facts {
    fn push(&self, fact: Fact) {
        self.0.lock().unwrap().push(fact);
    }

    fn all(&self) -> Vec<Fact> {
        self.0.lock().unwrap().clone()
    }

    pub(super) fn granted(&self) -> Vec<(Generation, String)> {
        let facts = self.all().into_iter();
        let granted = facts.filter_map(|fact| match fact {
            Fact::Granted(generation, holder) => Some((generation, holder)),
            _ => None,
        });
        granted.collect()
    }

    pub(super) fn open(&self, files: &SimulatedFiles) -> Result<FileArbiter, ArbiterError> {
        let arbiter = FileArbiter::open_in(Arc::new(files.clone()), PATH.into())?;
        self.push(Fact::Id(arbiter.id().clone()));
        Ok(arbiter)
    }

    pub(super) fn claim(
        &self,
        arbiter: &FileArbiter,
        claim: Claim,
        claimant: &str,
    ) -> Result<Verdict, ArbiterError> {
        let verdict = arbiter.claim(claim, claimant)?;
        if let Verdict::Granted(generation) = verdict {
            self.push(Fact::Granted(generation, claimant.into()));
        }
        Ok(verdict)
    }

    pub(super) fn note(
        &self,
        arbiter: &FileArbiter,
        generation: u64,
        note: Note<'_>,
    ) -> Result<(), ArbiterError> {
        let generation = Generation(generation);
        let mut new = self.notes(generation).pop().unwrap_or_default();
        match note {
            Note::Backup(name) => new.backup = Some(name.into()),
            Note::NoBackup => new.backup = None,
            Note::Mark(mark) => new.mark = mark,
        }
        self.push(Fact::Noting(generation, new));
        arbiter.note(generation, note)?;
        self.push(Fact::Noted(generation));
        Ok(())
    }

    /// What the note of a generation may be: as it was noted last, or as it was to be since.
    fn notes(&self, generation: Generation) -> Vec<HolderNote> {
        let mut may_be = vec![HolderNote::default()];
        for fact in self.all() {
            match fact {
                Fact::Noting(of, note) if of == generation => may_be.push(note),
                Fact::Noted(of) if of == generation => may_be = may_be.split_off(may_be.len() - 1),
                _ => {}
            }
        }
        may_be
    }

    /// Checks that all of it is still so, for whoever comes next.
    pub(super) fn hold(&self, files: &SimulatedFiles, what: &str) {
        let arbiter = match FileArbiter::open_in(Arc::new(files.another_process()), PATH.into()) {
            Ok(arbiter) => arbiter,
            Err(error) => panic!("{what}: it cannot be opened: {error}: {:?}", error.source),
        };
        let record = arbiter.record().unwrap();
        let granted = self.granted();
        for fact in self.all() {
            if let Fact::Id(id) = &fact {
                assert_eq!(arbiter.id(), id, "{what}: another identity");
            }
        }
        for (generation, holder) in &granted {
            assert!(
                record.generation >= *generation,
                "{what}: {generation} is lost"
            );
            let twice = granted
                .iter()
                .any(|(other, who)| other == generation && who != holder);
            assert!(!twice, "{what}: {generation} was granted twice");
            if record.generation == *generation {
                assert_eq!(record.holder, *holder, "{what}");
            }
        }
        let note = HolderNote {
            backup: record.backup.clone(),
            mark: record.mark,
        };
        if record.generation.0 > 0 {
            let may_be = self.notes(record.generation);
            assert!(
                may_be.contains(&note),
                "{what}: {note:?}, none of {may_be:?}"
            );
        }
    }

    /// The same, now and after whoever comes next has been granted something: what that is told holds, too.
    pub(super) fn hold_for_the_next(&self, files: &SimulatedFiles, what: &str) {
        self.hold(files, what);
        let next = files.after_kill();
        let later = Self(Arc::new(Mutex::new(self.all())));
        let arbiter = later.open(&next).unwrap();
        let record = arbiter.record().unwrap();
        let claim = Claim::After {
            known: record.generation,
            mark: record.mark,
        };
        let verdict = later.claim(&arbiter, claim, "next").unwrap();
        let generation = record.generation.next();
        assert_eq!(verdict, Verdict::Granted(generation), "{what}");
        later
            .note(&arbiter, generation.0, Note::Backup("its"))
            .unwrap();
        drop(arbiter);
        let left = next.after_power_loss(|_| false, |_| Content::Nothing);
        later.hold(
            &left,
            &format!("{what}, then granted to the next, and power lost"),
        );
    }
}

/// Everything that a loss of power may leave, as far as these files go.
pub(super) fn all_that_may_be_left(
    files: &SimulatedFiles,
    mut each: impl FnMut(&SimulatedFiles, &str),
) {
    let names = files.unsynced_names();
    assert!(names <= 10, "too many to be walked");
    let contents = [
        Content::Nothing,
        Content::Everything,
        Content::Torn(1),
        Content::Torn(2),
    ];
    for kept in 0..1 << names {
        for content in contents {
            let left = files.after_power_loss(|name| kept & (1 << name) != 0, |_| content);
            each(&left, &format!("power lost, names {kept:b}, {content:?}"));
        }
    }
}
