//! The arbiter of the model, in two kinds. The file arbiter reads, decides, and links the next
//! number; its claimant may stand still between any two of these. The other kind does all that at
//! once, as a transaction of etcd does. Either answer may get lost.
//!
//! Must not be done here: being kinder than the arbiters that exist.

use super::Rule;
use crate::arbiter::Mark;

/// A process: a host, and how often it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Process {
    pub(super) host: usize,
    pub(super) life: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    File,
    Etcd,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Ask {
    Claim {
        known: u64,
        mark: Mark,
    },
    Confirm {
        generation: u64,
        beat: u64,
        mark: Option<Mark>,
    },
    Rehearse,
    Start,
}

/// How far a call has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Stage {
    Asked,
    /// About to link this number.
    Linking(u64),
    /// About to replace the mark.
    Noting(u64, Mark),
    Answered(Answer),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Answer {
    Granted(u64),
    Refused(u64),
    Record { generation: u64, mark: Mark },
    Silent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) ask: Ask,
    pub(super) stage: Stage,
}

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Record {
    /// Who holds generation 1, 2, 3 …
    holders: Vec<Process>,
    mark: Mark,
    /// A backup may have a copy.
    backup: bool,
}

/// What both hosts ask. They should see one record.
#[derive(Debug, Clone, Hash)]
pub(super) struct Arbiter {
    pub(super) kind: Kind,
    record: Record,
    /// What is there instead for those who see the past: without the last mark, at least.
    past: Option<Record>,
    /// Who was granted generation 1, 2, 3 … in whatever record.
    granted: Vec<Process>,
    /// A link that a dead claimant had sent off. It may still be made.
    orphan: Option<(Process, u64)>,
    pub(super) broken: Option<Rule>,
}

impl Arbiter {
    pub(super) fn new(kind: Kind, first: Process) -> Self {
        Self {
            kind,
            record: Record {
                holders: vec![first],
                mark: Mark::default(),
                backup: false,
            },
            past: None,
            granted: vec![first],
            orphan: None,
            broken: None,
        }
    }

    pub(super) fn latest(&self) -> (u64, Process) {
        let last = self.granted.len();
        (last as u64, self.granted[last - 1])
    }

    pub(super) fn was_granted(&self, generation: u64, to: Process) -> bool {
        let at = usize::try_from(generation)
            .ok()
            .and_then(|it| it.checked_sub(1));
        at.and_then(|at| self.granted.get(at)) == Some(&to)
    }

    /// Whether somebody else was granted a later generation.
    pub(super) fn has_passed(&self, generation: u64, by: Process) -> bool {
        let later = self.granted.iter().skip(generation as usize);
        later.into_iter().any(|holder| *holder != by)
    }

    pub(super) fn holds_any(&self, process: Process) -> bool {
        self.granted.contains(&process)
    }

    /// From now on there is the record as it was when this generation was granted. Returns whether
    /// that lacks anything.
    pub(super) fn set_back(&mut self, generation: u64) -> bool {
        let holders = self.record.holders[..generation as usize].to_vec();
        let past = Record {
            holders,
            mark: Mark::default(),
            backup: false,
        };
        let lacks = past.holders != self.record.holders || self.record.mark != past.mark;
        if lacks {
            self.past = Some(past);
        }
        lacks
    }

    /// A copy of the record as it is before there is any mark.
    pub(super) fn copy(&mut self) {
        self.past = Some(self.record.clone());
    }

    pub(super) fn put_right(&mut self) {
        self.past = None;
    }

    fn seen(&mut self, past: bool) -> &mut Record {
        match &mut self.past {
            Some(record) if past => record,
            _ => &mut self.record,
        }
    }

    pub(super) fn generation(&mut self, past: bool) -> u64 {
        self.seen(past).holders.len() as u64
    }

    pub(super) fn note_backup(&mut self, past: bool, generation: u64, has_copy: bool) {
        let record = self.seen(past);
        if record.holders.len() as u64 == generation {
            record.backup = has_copy;
        }
    }

    /// The next step of a call of `who`.
    pub(super) fn step(&mut self, who: Process, past: bool, lives: bool, call: &mut Call) {
        match call.stage {
            Stage::Asked => call.stage = self.decide(who, past, lives, call.ask),
            Stage::Linking(generation) => {
                call.stage = match self.link(who, past, generation) {
                    true => Stage::Answered(Answer::Granted(generation)),
                    // What the faster claimant has changes what this one may have.
                    false => Stage::Asked,
                };
            }
            Stage::Noting(generation, mark) => {
                let record = self.seen(past);
                if record.holders.len() as u64 == generation {
                    record.mark = mark;
                }
                call.stage = Stage::Answered(Answer::Granted(generation));
            }
            Stage::Answered(_) => {}
        }
        let goes_on = self.kind == Kind::Etcd && !matches!(call.stage, Stage::Answered(_));
        if goes_on {
            self.step(who, past, lives, call);
        }
    }

    fn decide(&mut self, who: Process, past: bool, lives: bool, ask: Ask) -> Stage {
        let record = self.seen(past).clone();
        let current = record.holders.len() as u64;
        let is_holder = record.holders.last() == Some(&who);
        let answer = match ask {
            Ask::Rehearse => Answer::Record {
                generation: current,
                mark: record.mark,
            },
            Ask::Start if lives || record.backup => Answer::Refused(current),
            Ask::Start => return Stage::Linking(current + 1),
            Ask::Claim { known, .. } if is_holder && current == known + 1 => {
                Answer::Granted(current)
            }
            Ask::Claim { known, .. } if current > known => Answer::Refused(current),
            Ask::Claim { known, .. } if current < known => Answer::Silent,
            Ask::Claim { mark, .. } if !record.mark.shows(mark) => Answer::Silent,
            Ask::Claim { .. } => return Stage::Linking(current + 1),
            Ask::Confirm {
                generation, beat, ..
            } if current < generation
                || (current == generation && record.mark.beat < beat)
                || (current > generation && is_holder) =>
            {
                Answer::Silent
            }
            Ask::Confirm { generation, .. } if current != generation || !is_holder => {
                Answer::Refused(current)
            }
            Ask::Confirm {
                generation, mark, ..
            } => match mark {
                Some(mark) => return Stage::Noting(generation, mark),
                None => Answer::Granted(generation),
            },
        };
        Stage::Answered(answer)
    }

    /// Makes the number's file, unless there is one.
    fn link(&mut self, who: Process, past: bool, generation: u64) -> bool {
        let record = self.seen(past);
        let at = generation as usize - 1;
        if let Some(holder) = record.holders.get(at) {
            return *holder == who;
        }
        record.holders.push(who);
        record.mark = Mark::default();
        record.backup = false;
        match self.granted.get(at) {
            Some(before) if *before != who => self.broken = Some(Rule::GrantedOnce),
            Some(_) => {}
            None => self.granted.push(who),
        }
        true
    }

    pub(super) fn leave_orphan(&mut self, who: Process, generation: u64) {
        self.orphan = Some((who, generation));
    }

    pub(super) fn has_orphan(&self) -> bool {
        self.orphan.is_some()
    }

    /// The link of a dead claimant is made after all, if nobody was faster.
    pub(super) fn link_orphan(&mut self) {
        if let Some((who, generation)) = self.orphan.take() {
            self.link(who, false, generation);
        }
    }
}
