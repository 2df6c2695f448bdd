//! Asks the arbiter without blocking the driver. Each call runs on a thread of its own, because
//! storage that hangs must not stop the heartbeats.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::clock::monotonic_ns;
use crate::arbiter::{Arbiter, ArbiterError, Claim, Mark, Note, Record, Verdict};
use crate::ids::Generation;

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
}

/// One side's questions to the arbiter. The core asks one at a time, so at most one answer is
/// waiting.
pub(super) struct Arbitration {
    arbiter: Arc<dyn Arbiter>,
    claimant: String,
    answers: UnboundedSender<Answer>,
    answered: UnboundedReceiver<Answer>,
}

impl Arbitration {
    pub(super) fn new(arbiter: Arc<dyn Arbiter>, claimant: String) -> Self {
        let (answers, answered) = unbounded_channel();
        Self {
            arbiter,
            claimant,
            answers,
            answered,
        }
    }

    /// Asks a question; [`Arbitration::answer`] returns the answer.
    pub(super) fn ask(&self, question: Question) {
        let (arbiter, claimant) = (Arc::clone(&self.arbiter), self.claimant.clone());
        let answers = self.answers.clone();
        let asking = move || {
            // A driver that has ended needs no answer.
            let _ = answers.send(answer(arbiter.as_ref(), &claimant, question));
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

    /// Waits for the answer to the last question, forever if there was none. Cancel safe.
    pub(super) async fn answer(&mut self) -> Answer {
        match self.answered.recv().await {
            Some(answer) => answer,
            // Cannot happen: `self` holds a sender.
            None => std::future::pending().await,
        }
    }
}

/// A random number for a session, not 0.
pub(super) fn session_number() -> u64 {
    rand::random::<u64>().max(1)
}

/// A claimant's name for the arbiter: `NODE (host HOST, pid …)`. It is unique to this process, so
/// that a restarted process is not taken for the one before.
pub(super) fn claimant(node: &str, host: Option<&str>) -> String {
    let host = host.map_or_else(String::new, |host| format!("host {host}, "));
    let (process, now) = (std::process::id(), monotonic_ns());
    format!("{node} ({host}pid {process}, {now:x})")
}

/// Whether `claimant` was a process of the host that is called `node` and has the identity `host`.
/// The identity counts, unless one of them has none: hosts that are clones have one name.
pub(super) fn was_here(claimant: &str, node: &str, host: Option<&str>) -> bool {
    let (its_node, rest) = claimant.rsplit_once(" (").unwrap_or((claimant, ""));
    let its_host = rest
        .strip_prefix("host ")
        .and_then(|rest| rest.split(',').next());
    match (its_host, host) {
        (Some(its_host), Some(host)) => its_host == host,
        _ => its_node == node,
    }
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
    fn hosts_are_told_apart_by_what_they_are_and_not_by_what_they_are_called() {
        let of_clone = claimant("web", Some("1f"));
        assert!(was_here(&of_clone, "web", Some("1f")));
        assert!(was_here(&of_clone, "renamed", Some("1f")));
        assert!(
            !was_here(&of_clone, "web", Some("2e")),
            "a clone with the same name"
        );
        // Whoever has no identity goes by the name.
        assert!(was_here(&of_clone, "web", None));
        let nameless = claimant("a (b", None);
        assert!(was_here(&nameless, "a (b", Some("1f")));
        assert!(!was_here(&nameless, "a", None));
        assert!(was_here(
            "some other arbiter's",
            "some other arbiter's",
            None
        ));
    }

    #[test]
    fn an_outdated_record_confirms_nothing_and_one_that_names_the_asker_later_refuses_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("arbiter");
        let arbiter = crate::arbiter::FileArbiter::open(&path).unwrap();
        arbiter.claim(Claim::Start, "a").unwrap();
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
