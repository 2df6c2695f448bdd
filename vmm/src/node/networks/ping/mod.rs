//! Whether a network's ping targets answer this host: it asks all of them about once a second, through the bridge that the
//! guest's tap is part of, or by this host's routes if there is no such bridge.
//!
//! One that answers is enough. Whether they are silent because they are cut off, or because nobody ever was there, is told
//! by whether they have answered before. What must not be done here: wait.

mod echo;
mod probe;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;

use self::probe::Probe;

/// Looks from one round to the next: a second, by [`LOOK`](super::LOOK).
pub(super) const ROUND_LOOKS: u32 = 2;
/// So many rounds without an answer in a row show that it lasts.
const ROUNDS_CUT: u32 = 3;

/// What is known by the answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::node) enum Answers {
    /// There are no targets.
    #[default]
    NotAsked,
    /// There was none yet, and it is too early to say so.
    NotYet,
    /// There has never been one.
    Never,
    /// There has been one, so a silence means something.
    Some,
}

/// The targets stopped answering.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Silence {
    /// In plain words.
    pub(super) why: String,
    /// It is not over in a moment.
    pub(super) lasts: bool,
}

/// Asks one network's targets.
#[derive(Debug)]
pub(super) struct Pings {
    targets: Vec<IpAddr>,
    /// In this round; `None` before the first one.
    asked: Option<Vec<Probe>>,
    /// Until the next one begins.
    looks_left: u32,
    /// Tells this round's answers from all others.
    token: u64,
    rounds: Rounds,
}

/// What the rounds so far have shown.
#[derive(Debug, Default)]
struct Rounds {
    has_answered: bool,
    /// Without an answer, in a row.
    silent: u32,
}

impl Rounds {
    fn end(&mut self, is_answered: bool) {
        self.has_answered |= is_answered;
        self.silent = match is_answered {
            true => 0,
            false => self.silent.saturating_add(1),
        };
    }

    fn answers(&self) -> Answers {
        match self.has_answered {
            true => Answers::Some,
            false if self.silent < ROUNDS_CUT => Answers::NotYet,
            false => Answers::Never,
        }
    }

    /// `Some` if there is a silence that means something, and whether it lasts.
    fn silence(&self) -> Option<bool> {
        let means_something = self.has_answered && self.silent > 0;
        means_something.then_some(self.silent >= ROUNDS_CUT)
    }
}

impl Pings {
    pub(super) fn new(targets: &[IpAddr]) -> Self {
        Self {
            targets: targets.to_vec(),
            asked: None,
            looks_left: 0,
            token: RandomState::new().build_hasher().finish(),
            rounds: Rounds::default(),
        }
    }

    /// To be called at each look, with the bridge that the tap is part of.
    pub(super) fn look(&mut self, bridge: Option<&str>) {
        if self.targets.is_empty() {
            return;
        }
        if self.looks_left == 0 {
            if let Some(asked) = &self.asked {
                let answered = asked.iter().find(|probe| probe.is_answered());
                if let Some(probe) = answered
                    && !self.rounds.has_answered
                {
                    tracing::info!(address = %probe.target(), "the ping target answers");
                }
                self.rounds.end(answered.is_some());
            }
            self.ask(bridge);
            self.looks_left = ROUND_LOOKS;
        }
        self.looks_left -= 1;
    }

    fn ask(&mut self, bridge: Option<&str>) {
        self.token = self.token.wrapping_add(1);
        let ask = |target: &IpAddr| match Probe::send(*target, bridge, self.token) {
            Ok(probe) => Some(probe),
            Err(error) => {
                // As good as no answer.
                tracing::debug!(address = %target, bridge, %error, "cannot ping");
                None
            }
        };
        self.asked = Some(self.targets.iter().filter_map(ask).collect());
    }

    pub(super) fn answers(&self) -> Answers {
        match self.targets.is_empty() {
            true => Answers::NotAsked,
            false => self.rounds.answers(),
        }
    }

    /// What was answered once and is not any more.
    pub(super) fn silence(&self) -> Option<Silence> {
        let lasts = self.rounds.silence()?;
        let targets = in_words(&self.targets);
        let why = format!("no ping target answers any more ({targets})");
        Some(Silence { why, lasts })
    }
}

/// Addresses as people write them.
pub(in crate::node) fn in_words(targets: &[IpAddr]) -> String {
    let targets: Vec<String> = targets.iter().map(IpAddr::to_string).collect();
    targets.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(rounds: &[bool]) -> Rounds {
        let mut all = Rounds::default();
        rounds.iter().for_each(|answered| all.end(*answered));
        all
    }

    #[test]
    fn a_silence_means_something_once_there_was_an_answer() {
        for (rounds, answers, silence) in [
            (&[][..], Answers::NotYet, None),
            (&[false, false], Answers::NotYet, None),
            (&[false, false, false], Answers::Never, None),
            (&[false, false, false, true], Answers::Some, None),
            (&[true, false], Answers::Some, Some(false)),
            (&[true, false, false, true], Answers::Some, None),
            (
                &[true, false, true, false, false],
                Answers::Some,
                Some(false),
            ),
            (&[true, false, false, false], Answers::Some, Some(true)),
        ] {
            let after = after(rounds);
            assert_eq!(
                (after.answers(), after.silence()),
                (answers, silence),
                "{rounds:?}"
            );
        }
    }

    #[test]
    fn nobody_is_asked_where_there_are_no_targets() {
        let mut pings = Pings::new(&[]);
        (0..9).for_each(|_| pings.look(None));
        assert_eq!(
            (pings.answers(), pings.silence()),
            (Answers::NotAsked, None)
        );
    }
}
