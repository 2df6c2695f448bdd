//! Asks the arbiter without blocking the driver. Each call runs on a thread of its own, because
//! storage that hangs must not stop the heartbeats.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::time::Instant;
use understudy_transport::Endpoint;

use super::clock::{monotonic_ns, until};
use super::inquiry::{PATIENCE, ask};
use crate::arbiter::{Arbiter, ArbiterError, Claim, Mark, Note, Record, Verdict};
use crate::causes::causes;
use crate::core::message::{Holdings, Inquiry};
use crate::core::start;
use crate::ids::Generation;
use crate::ports::Disks;

/// A question to the arbiter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    /// May I have the generation after this one?
    Claim { known: Generation, mark: Mark },
    /// Is this generation, which I hold, still in force? Then the mark is written.
    /// A record that shows fewer than `beat` marks is an outdated one.
    Confirm {
        generation: Generation,
        beat: u64,
        mark: Option<Mark>,
    },
    /// What does the record say, and could a claim be granted?
    Rehearse,
}

/// An arbiter's answer to a question.
pub(super) type Answer = Result<Answered, ArbiterError>;

#[derive(Debug)]
pub(super) enum Answered {
    Verdict(Verdict),
    Rehearsed(Record),
    Looked {
        record: Record,
        holder_lives: bool,
    },
    /// What the other side has, and whether this side's disks could be run.
    Inquired {
        theirs: Result<Holdings, String>,
        disks: Result<(), String>,
    },
}

/// One side's questions to the arbiter. The core asks one at a time, so at most one answer is
/// waiting.
pub(super) struct Arbitration {
    arbiter: Arc<dyn Arbiter>,
    claimant: String,
    answers: UnboundedSender<Answer>,
    answered: UnboundedReceiver<Answer>,
    /// How long an answer may take before people are told.
    patience: Duration,
    /// When they are to be told; `None` if no question is open, or they have been.
    overdue_at: Option<Instant>,
}

/// What comes of a question.
pub(super) enum Reply {
    Answer(Answer),
    /// Nothing for this long. The answer may still come.
    Overdue(Duration),
}

impl Arbitration {
    pub(super) fn new(arbiter: Arc<dyn Arbiter>, claimant: String, patience: Duration) -> Self {
        let (answers, answered) = unbounded_channel();
        Self {
            arbiter,
            claimant,
            answers,
            answered,
            patience,
            overdue_at: None,
        }
    }

    /// Asks a question; [`Arbitration::reply`] returns the answer.
    pub(super) fn ask(&mut self, question: Question) {
        let (arbiter, claimant) = (Arc::clone(&self.arbiter), self.claimant.clone());
        self.send(move || answer(arbiter.as_ref(), &claimant, question));
    }

    /// What does the record say, and does a holder live?
    pub(super) fn look(&mut self) {
        let arbiter = Arc::clone(&self.arbiter);
        self.send(move || {
            let record = arbiter.record()?;
            let holder_lives = arbiter.holder_lives()?;
            Ok(Answered::Looked {
                record,
                holder_lives,
            })
        });
    }

    /// What does the other side have of the guest, and could these disks be run? This is no
    /// question to the arbiter, and may be open beside one.
    pub(super) fn inquire(
        &self,
        endpoint: Option<Endpoint>,
        inquiry: Inquiry,
        disks: Arc<dyn Disks>,
    ) {
        self.spawn(move || {
            let asked = match endpoint {
                Some(endpoint) => ask(&endpoint, inquiry, PATIENCE).map_err(|error| causes(&error)),
                None => Err("it is not said where to reach the other host".into()),
            };
            let theirs = asked.and_then(|theirs| theirs.map_err(|why| why.to_string()));
            let disks = disks.check_whole().map_err(|error| causes(&error));
            Ok(Answered::Inquired { theirs, disks })
        });
    }

    fn send(&mut self, ask: impl FnOnce() -> Answer + Send + 'static) {
        self.overdue_at = Some(Instant::now() + self.patience);
        self.spawn(ask);
    }

    fn spawn(&self, ask: impl FnOnce() -> Answer + Send + 'static) {
        let answers = self.answers.clone();
        let asking = move || {
            // A driver that has ended needs no answer.
            let _ = answers.send(ask());
        };
        if let Err(error) = std::thread::Builder::new()
            .name("arbiter".into())
            .spawn(asking)
        {
            // This cannot fail: `self` holds the receiver.
            let _ = self.answers.send(Err(ArbiterError {
                arbiter: "any".into(),
                what: "cannot start a thread to ask".into(),
                source: Some(error.into()),
            }));
        }
    }

    /// Waits for the answer to the last question, forever if there was none. Says once if it takes
    /// too long. Cancel safe.
    pub(super) async fn reply(&mut self) -> Reply {
        tokio::select! {
            biased;
            // There is always an answer or none yet: `self` holds a sender.
            Some(answer) = self.answered.recv() => {
                if !matches!(answer, Ok(Answered::Inquired { .. })) {
                    self.overdue_at = None;
                }
                Reply::Answer(answer)
            }
            () = until(self.overdue_at) => {
                self.overdue_at = None;
                Reply::Overdue(self.patience)
            }
        }
    }
}

/// What to tell people of an answer that takes so long.
pub(super) fn overdue(time: Duration) -> String {
    format!("the arbiter has not answered for {time:?}; it may hang")
}

/// One side's part of a session's number, not 0.
pub(super) fn part_of_session() -> u64 {
    rand::random::<u64>().max(1)
}

/// A claimant's name for the arbiter. It is unique to this process, so that a restarted process is
/// not taken for the one before.
pub(super) fn claimant(node: &str, host: Option<&str>) -> String {
    let (process, now) = (std::process::id(), monotonic_ns());
    start::claimant(node, host, &format!("pid {process}, {now:x}"))
}

fn answer(
    arbiter: &dyn Arbiter,
    claimant: &str,
    question: Question,
) -> Result<Answered, ArbiterError> {
    match question {
        Question::Claim { known, mark } => {
            let claim = Claim::After { known, mark };
            arbiter.claim(claim, claimant).map(Answered::Verdict)
        }
        Question::Confirm {
            generation,
            beat,
            mark,
        } => {
            let record = arbiter.record()?;
            let is_outdated = record.generation < generation
                || (record.generation == generation && record.mark.beat < beat);
            // The answer to this side's own claim got lost: the claim must be repeated.
            let is_own = record.generation > generation && record.holder == claimant;
            if is_outdated || is_own {
                let found = format!(
                    "{}, {}, held by {}",
                    record.generation, record.mark, record.holder
                );
                return Err(ArbiterError {
                    arbiter: format!("{:?}", record.arbiter.0),
                    what: format!("its record does not fit: {generation}, {beat} marks"),
                    source: Some(found.into()),
                });
            }
            if record.generation != generation || record.holder != claimant {
                return Ok(Answered::Verdict(Verdict::Refused {
                    current: record.generation,
                    holder: record.holder,
                }));
            }
            if let Some(mark) = mark {
                arbiter.note(generation, Note::Mark(mark))?;
            }
            Ok(Answered::Verdict(Verdict::Granted(generation)))
        }
        Question::Rehearse => arbiter.rehearse().map(Answered::Rehearsed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outdated_record_confirms_nothing_and_one_that_names_the_asker_later_refuses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbiter");
        let arbiter = crate::arbiter::FileArbiter::open(&path).unwrap();
        let known = Generation(0);
        arbiter.claim(Claim::Start { known }, "a").unwrap();
        let confirm = |generation, beat, mark: Option<u64>| {
            let mark = mark.map(|beat| Mark { session: 7, beat });
            let generation = Generation(generation);
            answer(
                &arbiter,
                "a",
                Question::Confirm {
                    generation,
                    beat,
                    mark,
                },
            )
        };
        let granted = |answer: Answer| matches!(answer, Ok(Answered::Verdict(Verdict::Granted(_))));
        assert!(granted(confirm(1, 0, Some(1))));
        let old = std::fs::read(path.join("1.note")).unwrap();
        assert!(granted(confirm(1, 1, Some(2))));
        // Restored from a copy.
        std::fs::write(path.join("1.note"), old).unwrap();
        assert!(confirm(1, 2, Some(3)).is_err());
        assert_eq!(arbiter.record().unwrap().mark.beat, 1, "nothing is written");
        assert!(granted(confirm(1, 1, None)));
        assert!(confirm(2, 0, None).is_err(), "it went back");
        let claim = Claim::After {
            known: Generation(1),
            mark: Mark::default(),
        };
        arbiter
            .note(Generation(1), Note::Mark(Mark::default()))
            .unwrap();
        arbiter.claim(claim, "a").unwrap();
        assert!(confirm(1, 0, None).is_err(), "this side's own grant");
    }
}
