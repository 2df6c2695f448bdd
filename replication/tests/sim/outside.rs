//! What is outside the hosts: the arbiter that grants, and the client that listens. Both keep book
//! and find violations.

use std::collections::HashMap;

use understudy_replication::arbiter::Verdict;
use understudy_replication::ids::Generation;

use super::guest::Output;

/// A process: a host, and how often it was started.
pub type Process = (usize, u64);

/// The arbiter: hands out each generation once.
pub struct Arbiter {
    pub current: Generation,
    pub holders: HashMap<Generation, Process>,
    pub available: bool,
}

/// What a process asks it.
#[derive(Debug, Clone, Copy)]
pub enum Question {
    Claim(Generation),
    Confirm(Generation),
}

impl Arbiter {
    pub fn new(first: Process) -> Self {
        let current = Generation(1);
        Self {
            current,
            holders: HashMap::from([(current, first)]),
            available: true,
        }
    }

    pub fn holder(&self) -> Process {
        self.holders[&self.current]
    }

    pub fn ask(&mut self, who: Process, question: Question) -> Verdict {
        let is_holder = self.holder() == who;
        match question {
            Question::Confirm(generation) if generation == self.current && is_holder => {
                Verdict::Granted(generation)
            }
            Question::Claim(after) if after == self.current => {
                self.current = after.next();
                self.holders.insert(self.current, who);
                Verdict::Granted(self.current)
            }
            Question::Claim(after) if after.next() == self.current && is_holder => {
                Verdict::Granted(self.current)
            }
            _ => Verdict::Refused {
                current: self.current,
                holder: format!("{:?}", self.holder()),
            },
        }
    }
}

/// Everybody the guest talks to.
#[derive(Default)]
pub struct Client {
    /// Values of outputs 1, 2, 3 …
    heard: Vec<u64>,
    last_spoke: Generation,
    pub repeated: u64,
    /// Outputs that an older side repeated after a newer one had spoken.
    pub late: u64,
}

impl Client {
    pub fn heard(&self) -> u64 {
        self.heard.len() as u64
    }

    /// Listens to one output of `who`, who believes to hold `generation`.
    pub fn hear(
        &mut self,
        who: Process,
        generation: Generation,
        output: Output,
        arbiter: &Arbiter,
    ) -> Result<(), String> {
        if arbiter.holders.get(&generation) != Some(&who) {
            return Err(format!(
                "R4: {who:?} speaks in {generation}, which it never got"
            ));
        }
        let late = generation < self.last_spoke;
        self.last_spoke = self.last_spoke.max(generation);
        self.late += u64::from(late);
        let Output { number, value } = output;
        match self.heard.get(number as usize - 1) {
            Some(before) if *before == value => self.repeated += 1,
            Some(before) => {
                return Err(format!(
                    "output {number} is {value:x} and was {before:x} before: \
                     {who:?} continues from a state without it"
                ));
            }
            None if late => {
                return Err(format!(
                    "R4: {who:?} says something new in {generation} after {} spoke",
                    self.last_spoke
                ));
            }
            None if number == self.heard() + 1 => self.heard.push(value),
            None => {
                return Err(format!(
                    "output {number} follows {}: output was lost",
                    self.heard()
                ));
            }
        }
        Ok(())
    }
}
