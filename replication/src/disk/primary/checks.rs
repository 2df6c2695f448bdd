//! What the backup was asked to compare, and whether asking pays off.
//!
//! What must not be done here: I/O, or taking a block for equal that the backup has not found equal.

use std::collections::VecDeque;

/// At least so much is compared before it is judged whether most of it differs.
const SAMPLE_BYTES: u64 = 8 << 20;
/// At most so much waits for its answer.
pub(super) const ASKED_BYTES_MAX: u64 = 64 << 20;
/// Where most differs, so much is sent without asking before a sample is compared again.
const UNASKED_BYTES: u64 = 256 << 20;

/// A range of a disk that the backup was asked to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) disk: u16,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

/// The checks of a session. The backup answers them in order.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    asked: VecDeque<Check>,
    asked_bytes: u64,
    /// Answered: the content differs.
    differing: Vec<Check>,
    differing_bytes: u64,
    /// How much was found equal.
    equal_bytes: u64,
}

impl Checks {
    pub(crate) fn ask(&mut self, check: Check) {
        self.asked.push_back(check);
        self.asked_bytes += check.bytes;
    }

    /// How much waits for an answer.
    pub(crate) fn asked_bytes(&self) -> u64 {
        self.asked_bytes
    }

    /// How much waits for an answer, or was found to differ and is not taken yet.
    pub(crate) fn open_bytes(&self) -> u64 {
        self.asked_bytes + self.differing_bytes
    }

    pub(crate) fn equal_bytes(&self) -> u64 {
        self.equal_bytes
    }

    /// Takes the backup's answers to the oldest checks: whether each found a difference. Returns how much was equal
    /// and how much was not, or `None` if fewer checks are open.
    pub(crate) fn answer(&mut self, differ: &[bool]) -> Option<(u64, u64)> {
        if differ.len() > self.asked.len() {
            return None;
        }
        let (mut equal, mut differing) = (0, 0);
        for (check, differs) in self.asked.drain(..differ.len()).zip(differ) {
            if *differs {
                differing += check.bytes;
                self.differing.push(check);
            } else {
                equal += check.bytes;
            }
        }
        self.asked_bytes -= equal + differing;
        self.differing_bytes += differing;
        self.equal_bytes += equal;
        Some((equal, differing))
    }

    /// Takes what was found to differ.
    pub(crate) fn take_differing(&mut self) -> Vec<Check> {
        self.differing_bytes = 0;
        std::mem::take(&mut self.differing)
    }
}

/// What is to be done with the next blocks of which nothing is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The backup is asked to compare them.
    Ask,
    /// They are sent.
    Send,
    /// Answers must come first.
    Wait,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Nothing is known yet.
    First,
    /// Most was equal.
    Asking,
    /// Most differed. So much is still sent unasked, and then so much is compared as a sample.
    Sending { unasked: u64, sample: u64 },
}

/// Judges whether it pays off to ask. Where everything differs, asking costs a read on both sides, and a wait.
#[derive(Debug)]
pub(crate) struct Pace {
    mode: Mode,
    /// Answers since the last judgement.
    equal: u64,
    differing: u64,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            mode: Mode::First,
            equal: 0,
            differing: 0,
        }
    }
}

impl Pace {
    /// What comes next while `asked_bytes` wait for answers.
    pub(super) fn next(&self, asked_bytes: u64) -> Next {
        match self.mode {
            Mode::First if asked_bytes >= SAMPLE_BYTES => Next::Wait,
            Mode::Asking if asked_bytes >= ASKED_BYTES_MAX => Next::Wait,
            Mode::First | Mode::Asking | Mode::Sending { unasked: 0, .. } => Next::Ask,
            Mode::Sending { .. } => Next::Send,
        }
    }

    /// So much was asked for or sent, as [`next`](Self::next) said.
    pub(super) fn done(&mut self, bytes: u64) {
        let Mode::Sending { unasked, sample } = &mut self.mode else {
            return;
        };
        if *unasked > 0 {
            *unasked = unasked.saturating_sub(bytes);
        } else {
            *sample = sample.saturating_sub(bytes);
        }
        if *sample == 0 {
            self.mode = SENDING;
        }
    }

    /// The backup has answered. Little is no sample: it may all be of one place.
    pub(super) fn answered(&mut self, (equal, differing): (u64, u64)) {
        self.equal += equal;
        self.differing += differing;
        if self.equal + self.differing < SAMPLE_BYTES {
            return;
        }
        if self.equal >= self.differing {
            self.mode = Mode::Asking;
        } else if !matches!(self.mode, Mode::Sending { .. }) {
            self.mode = SENDING;
        }
        (self.equal, self.differing) = (0, 0);
    }
}

const SENDING: Mode = Mode::Sending {
    unasked: UNASKED_BYTES,
    sample: SAMPLE_BYTES,
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_everything_differs_little_is_asked() {
        let mut pace = Pace::default();
        let (mut asked, mut waiting, mut waits) = (0_u64, 0, 0);
        let mut left: u64 = 10 << 30;
        while left > 0 {
            let next = pace.next(waiting);
            if next == Next::Wait {
                waits += 1;
                pace.answered((0, waiting));
                waiting = 0;
                continue;
            }
            if next == Next::Ask {
                asked += 1 << 20;
                waiting += 1 << 20;
            }
            pace.done(1 << 20);
            left -= 1 << 20;
            // Answers come late.
            if waiting >= SAMPLE_BYTES && left.is_multiple_of(32 << 20) {
                pace.answered((0, waiting));
                waiting = 0;
            }
        }
        assert_eq!(waits, 1, "only at the beginning");
        assert!(asked < (10 << 30) / 30, "{asked}");
    }

    #[test]
    fn where_most_is_equal_all_is_asked() {
        let mut pace = Pace::default();
        let mut waiting = 0;
        for _ in 0..10_000 {
            match pace.next(waiting) {
                Next::Send => panic!("sent unasked"),
                Next::Wait => {
                    pace.answered((waiting - (1 << 20), 1 << 20));
                    waiting = 0;
                }
                Next::Ask => {
                    waiting += 1 << 20;
                    pace.done(1 << 20);
                }
            }
            assert!(waiting <= ASKED_BYTES_MAX);
        }
    }

    #[test]
    fn a_sample_that_is_equal_has_more_asked() {
        let mut pace = Pace::default();
        pace.answered((0, SAMPLE_BYTES));
        assert_eq!(pace.next(0), Next::Send);
        pace.done(UNASKED_BYTES);
        assert_eq!(pace.next(0), Next::Ask);
        pace.done(SAMPLE_BYTES);
        assert_eq!(pace.next(0), Next::Send, "until the answers are here");
        pace.answered((SAMPLE_BYTES, 0));
        assert_eq!(pace.next(0), Next::Ask);
    }

    #[test]
    fn more_answers_than_checks_are_refused() {
        let mut checks = Checks::default();
        let check = Check {
            disk: 0,
            offset: 0,
            bytes: 512,
        };
        checks.ask(check);
        assert_eq!(checks.answer(&[false, false]), None);
        assert_eq!(checks.answer(&[true]), Some((0, 512)));
        assert_eq!(checks.open_bytes(), 512);
        assert_eq!(checks.take_differing(), [check]);
        assert_eq!(checks.answer(&[true]), None);
        assert_eq!(checks.open_bytes(), 0);
    }

    #[test]
    fn answers_are_counted_by_what_they_say() {
        let mut checks = Checks::default();
        for number in 0..4 {
            checks.ask(Check {
                disk: 0,
                offset: number * 4096,
                bytes: 512 << number,
            });
        }
        assert_eq!(checks.answer(&[true, false]), Some((1024, 512)));
        assert_eq!(checks.answer(&[true, true]), Some((0, 2048 + 4096)));
        assert_eq!(checks.open_bytes(), 512 + 2048 + 4096);
        assert_eq!((checks.asked_bytes(), checks.equal_bytes()), (0, 1024));
        assert_eq!(checks.take_differing().len(), 3);
        assert_eq!(checks.open_bytes(), 0);
    }
}
