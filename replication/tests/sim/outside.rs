//! What is outside the hosts: the arbiter that grants, and the client that listens. Both keep book
//! and find violations.

use std::collections::HashMap;

use understudy_replication::arbiter::{ArbiterId, Mark, Record, Verdict};
use understudy_replication::core::backup::BackupInput;
use understudy_replication::core::primary::PrimaryInput;
use understudy_replication::ids::Generation;

use super::events::Event;
use super::guest::Output;
use super::world::{Side, World};

/// A process: a host, and how often it was started.
pub type Process = (usize, u64);

/// The arbiter: hands out each generation once.
pub struct Arbiter {
    pub current: Generation,
    pub holders: HashMap<Generation, Process>,
    pub available: bool,
    /// Its record is read as it was before the last grant.
    pub went_back: bool,
    /// A standby may have a copy of the holder's guest.
    pub standby_noted: bool,
    mark: Mark,
}

/// What a process asks it.
#[derive(Debug, Clone, Copy)]
pub enum Question {
    Claim(Generation, Mark),
    Confirm(Generation, u64, Option<Mark>),
    Rehearse,
}

/// What it answers.
#[derive(Debug)]
pub enum Answer {
    Verdict(Verdict),
    Rehearsed(Record),
    Nothing,
}

/// The name of the only arbiter there is.
pub fn arbiter_id() -> ArbiterId {
    ArbiterId("arbiter".into())
}

impl Arbiter {
    pub fn new(first: Process) -> Self {
        let current = Generation(1);
        Self {
            current,
            holders: HashMap::from([(current, first)]),
            available: true,
            went_back: false,
            standby_noted: false,
            mark: Mark::default(),
        }
    }

    pub fn holder(&self) -> Process {
        self.holders[&self.current]
    }

    pub fn ask(&mut self, who: Process, question: Question) -> Answer {
        if !self.available {
            return Answer::Nothing;
        }
        if self.went_back {
            return self.ask_the_past(question);
        }
        let is_holder = self.holder() == who;
        Answer::Verdict(match question {
            Question::Rehearse => return Answer::Rehearsed(self.record(self.current, self.mark)),
            Question::Confirm(generation, beat, mark)
                if generation == self.current && is_holder =>
            {
                if self.mark.beat < beat {
                    return Answer::Nothing;
                }
                self.mark = mark.unwrap_or(self.mark);
                Verdict::Granted(generation)
            }
            Question::Claim(after, _) if after.next() == self.current && is_holder => {
                Verdict::Granted(self.current)
            }
            Question::Claim(after, mark) if after == self.current => {
                if !self.mark.shows(mark) {
                    return Answer::Nothing;
                }
                Verdict::Granted(self.start(who))
            }
            _ => self.refusal(self.current),
        })
    }

    /// Grants the next generation.
    pub fn start(&mut self, who: Process) -> Generation {
        self.current = self.current.next();
        self.mark = Mark::default();
        self.standby_noted = false;
        self.holders.insert(self.current, who);
        self.current
    }

    /// The holder says whether a standby may have a copy.
    pub fn note(&mut self, generation: Generation, standby: bool) {
        if generation == self.current {
            self.standby_noted = standby;
        }
    }

    /// What it knows of now is forgotten, for a while. It may say so, or pretend that nothing is
    /// wrong.
    fn ask_the_past(&self, question: Question) -> Answer {
        let past = Generation(self.current.0 - 1);
        match question {
            Question::Rehearse => Answer::Rehearsed(self.record(past, Mark::default())),
            Question::Confirm(held, ..) | Question::Claim(held, _) if held > past => {
                Answer::Verdict(self.refusal(past))
            }
            _ => Answer::Nothing,
        }
    }

    fn refusal(&self, current: Generation) -> Verdict {
        Verdict::Refused {
            current,
            holder: format!("{:?}", self.holders.get(&current)),
        }
    }

    fn record(&self, generation: Generation, mark: Mark) -> Record {
        Record {
            arbiter: arbiter_id(),
            generation,
            mark,
            ..Record::default()
        }
    }
}

impl World {
    pub fn ask(&mut self, host: usize, question: Question) {
        self.trace(host, || format!("asks {question:?}"));
        let process = self.process(host);
        self.soon(200, 2_000, Event::Ask(process, question));
    }

    pub fn arbiter_asked(&mut self, who: Process, question: Question) {
        let mut answer = self.arbiter.ask(who, question);
        if matches!(answer, Answer::Rehearsed(_)) && !self.arbiter.went_back {
            self.rehearsed.insert(who.0, self.now);
        }
        if self.rng.chance(self.settings.answers_lost_permille) {
            answer = Answer::Nothing;
        }
        self.soon(200, 2_000, Event::Answer(who, answer));
    }

    pub fn arbiter_answered(&mut self, host: usize, answer: Answer) {
        self.trace(host, || format!("hears from the arbiter: {answer:?}"));
        if matches!(answer, Answer::Nothing) {
            self.count("arbiter silent");
        }
        let why = String::from("simulated");
        match self.hosts[host].side {
            Side::Primary(_) => {
                let input = match answer {
                    Answer::Verdict(verdict) => PrimaryInput::Verdict(verdict),
                    _ => PrimaryInput::ArbiterUnavailable { why },
                };
                self.primary(host, input);
            }
            Side::Backup(_) => {
                let input = match answer {
                    Answer::Verdict(verdict) => BackupInput::Verdict(verdict),
                    Answer::Rehearsed(record) => BackupInput::Rehearsed(record),
                    Answer::Nothing => BackupInput::ArbiterUnavailable { why },
                };
                self.backup(host, input);
            }
            Side::Down => {}
        }
    }

    pub fn takeover(&mut self, host: usize, outcome: Result<(), String>) {
        self.trace(host, || format!("a takeover: {outcome:?}"));
        if outcome.is_err() {
            self.count("takeovers in doubt");
        }
    }
}

/// Everybody the guest talks to.
#[derive(Default)]
pub struct Client {
    /// How often the guest was started from nothing, but for the first time.
    pub starts: u32,
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

    /// The guest begins anew: what the one before says is not listened to any more.
    pub fn begin_anew(&mut self) {
        self.starts += 1;
        self.heard.clear();
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
        if output.start != self.starts {
            return Ok(());
        }
        let late = generation < self.last_spoke;
        self.last_spoke = self.last_spoke.max(generation);
        self.late += u64::from(late);
        let Output { number, value, .. } = output;
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
