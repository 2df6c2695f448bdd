//! Asks the arbiter without blocking the driver: each call runs on a thread of its own, because
//! storage that hangs must not hang heartbeats.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

use crate::arbiter::{Arbiter, ArbiterError, Claim, Verdict};
use crate::ids::Generation;

/// What came of a question.
pub(super) type Answer = Result<Verdict, ArbiterError>;

/// A question to the arbiter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    /// May I have the generation after this one?
    Claim(Generation),
    /// Is this generation, which I hold, still in force?
    Confirm(Generation),
}

/// Asks `question`; the answer is sent through `answers`. The core asks one question at a time, so
/// the channel holds at most one answer.
pub(super) fn ask(
    arbiter: &Arc<dyn Arbiter>,
    claimant: &str,
    question: Question,
    answers: &UnboundedSender<Answer>,
) {
    let (arbiter, claimant) = (Arc::clone(arbiter), claimant.to_owned());
    let to_driver = answers.clone();
    let asking = move || {
        // A driver that has ended needs no answer.
        let _ = to_driver.send(answer(arbiter.as_ref(), &claimant, question));
    };
    if let Err(error) = std::thread::Builder::new()
        .name("arbiter".into())
        .spawn(asking)
    {
        let _ = answers.send(Err(ArbiterError {
            arbiter: "any".into(),
            what: "cannot start a thread to ask".into(),
            source: Some(error.into()),
        }));
    }
}

/// An arbiter's error with all its causes, for a person.
pub(super) fn causes(error: &ArbiterError) -> String {
    let mut text = error.to_string();
    let mut next = std::error::Error::source(error);
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn answer(arbiter: &dyn Arbiter, claimant: &str, question: Question) -> Answer {
    match question {
        Question::Claim(known) => arbiter.claim(Claim::After(known), claimant),
        Question::Confirm(mine) => arbiter.current().map(|(current, holder)| {
            if current == mine {
                Verdict::Granted(mine)
            } else {
                Verdict::Refused { current, holder }
            }
        }),
    }
}
