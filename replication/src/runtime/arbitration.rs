//! Asks the arbiter without blocking the driver. Each call runs on a thread of its own, because
//! storage that hangs must not stop the heartbeats.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::clock::monotonic_ns;
use crate::arbiter::{Arbiter, ArbiterError, Claim, Verdict};
use crate::ids::Generation;

/// A question to the arbiter.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question {
    /// May I have the generation after this one?
    Claim(Generation),
    /// Is this generation, which I hold, still in force?
    Confirm(Generation),
}

/// An arbiter's answer.
pub(super) type Answer = Result<Verdict, ArbiterError>;

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

/// A claimant's name for the arbiter. It is unique to this process, so that a restarted process is
/// not taken for the one before.
pub(super) fn claimant(node: &str) -> String {
    format!(
        "{node}{CLAIMANT_PROCESS}{}, {:x})",
        std::process::id(),
        monotonic_ns()
    )
}

/// What follows the node's name in a claimant's name.
const CLAIMANT_PROCESS: &str = " (pid ";

/// The node whose process a claimant was.
pub(super) fn node_of(claimant: &str) -> &str {
    claimant
        .rsplit_once(CLAIMANT_PROCESS)
        .map_or(claimant, |(node, _)| node)
}

fn answer(
    arbiter: &dyn Arbiter,
    claimant: &str,
    question: Question,
) -> Result<Verdict, ArbiterError> {
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
