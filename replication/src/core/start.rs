//! Who starts a guest that runs nowhere: for example after both hosts have lost their power.
//!
//! The arbiter's record names the last holder and the backup that may have a copy. Memory is lost
//! with the power, but nobody can see that from the record. So a side that is to start the guest
//! asks the other one, at the address that it was given, what it has:
//!
//! | the other one | then |
//! | --- | --- |
//! | has a copy of the generation in force | it takes over |
//! | has none | this side starts the guest, if its disks are the newest, and if the noted backup is one of the two |
//! | cannot be asked | nobody starts the guest, unless a person gives up what the other one may have |
//!
//! A side that may not start the guest waits as a backup. A backup without a copy asks, too, now and
//! then: whoever may start the guest does so in the end, whichever was to be the primary.
//!
//! Must not be done here: asking. And nothing here grants anything: the arbiter decides about each
//! claim that follows, and grants none if anything was granted since the record was read (R10).

use crate::arbiter::{Claim, Record};
use crate::core::message::Holdings;

/// What a side knows of itself when it is to start the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own<'a> {
    /// Its name.
    pub node: &'a str,
    /// What tells its host from others of that name.
    pub host: Option<&'a str>,
    /// Whether each host has images of its own.
    pub has_replicated: bool,
}

/// Whether a backup that has no copy starts the guest when nobody else runs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Starts {
    /// It never does.
    #[default]
    Never,
    /// If the guest ran on its host last, and either a copy was being kept, so that the guest did
    /// not end by itself, or somebody asks for the guest.
    IfItRanHere,
    /// If it may: it was to be the primary.
    IfItMay,
}

/// What a side that is to start the guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It makes this claim.
    Claim(Claim),
    /// It asks the other side first.
    Ask,
    /// The other side has a copy, and takes over.
    Follow,
    /// It does not start the guest: the noted backup is a third one, which may have a copy.
    CopyElsewhere,
    /// It does not start the guest: the other host has the newer disks.
    OlderDisks,
}

impl Own<'_> {
    /// What to do in view of the record. Without another side that could be asked, `Ask` cannot be
    /// done.
    #[must_use]
    pub fn first_step(&self, record: &Record) -> Step {
        if record.generation.0 > 0 && (record.backup.is_some() || !self.has_newest(record)) {
            return Step::Ask;
        }
        let known = record.generation;
        Step::Claim(Claim::Start { known })
    }

    /// What to do after the other side's answer.
    #[must_use]
    pub fn next_step(&self, record: &Record, theirs: &Holdings) -> Step {
        let known = record.generation;
        // A copy of an earlier generation can never take over.
        if theirs.copy.is_some_and(|(copied, _)| copied >= known) {
            return Step::Follow;
        }
        let is_one_of_us = |backup: &str| {
            is_of(backup, self.node, self.host)
                || is_of(backup, &theirs.node, theirs.host.as_deref())
        };
        if !record.backup.as_deref().is_none_or(is_one_of_us) {
            return Step::CopyElsewhere;
        }
        if !self.has_newest(record) {
            return Step::OlderDisks;
        }
        Step::Claim(Claim::Restart { known })
    }

    /// Whether this side, a backup without a copy, is to ask what the other side has, in order to
    /// start the guest. `holder_lives`: somebody runs it. `is_asked_for`: the other side has asked
    /// a moment ago.
    #[must_use]
    pub fn is_to_start(
        &self,
        starts: Starts,
        record: &Record,
        holder_lives: bool,
        is_asked_for: bool,
    ) -> bool {
        if record.generation.0 == 0 || holder_lives {
            return false;
        }
        match starts {
            Starts::Never => false,
            Starts::IfItRanHere => {
                self.ran_here(record) && (record.backup.is_some() || is_asked_for)
            }
            Starts::IfItMay => self.has_newest(record),
        }
    }

    /// Whether no other host can have newer disks.
    #[must_use]
    pub fn has_newest(&self, record: &Record) -> bool {
        !self.has_replicated || record.generation.0 == 0 || self.ran_here(record)
    }

    /// Whether the guest ran here last.
    #[must_use]
    pub fn ran_here(&self, record: &Record) -> bool {
        is_of(&record.holder, self.node, self.host)
    }
}

/// A claimant's name for the arbiter: `NODE (host HOST, pid …)`, with what is unique to the process.
#[must_use]
pub fn claimant(node: &str, host: Option<&str>, process: &str) -> String {
    let host = host.map_or_else(String::new, |host| format!("host {host}, "));
    format!("{node} ({host}{process})")
}

/// A backup's name for the arbiter: `NODE (host HOST)`.
#[must_use]
pub fn backup(node: &str, host: Option<&str>) -> String {
    host.map_or_else(|| node.to_owned(), |host| format!("{node} (host {host})"))
}

/// Whether `named`, a claimant or a backup, is of the host that is called `node` and has the identity
/// `host`. The identity counts, unless one of them has none: hosts that are clones have one name.
#[must_use]
pub fn is_of(named: &str, node: &str, host: Option<&str>) -> bool {
    let (its_node, rest) = named.rsplit_once(" (").unwrap_or((named, ""));
    let its_host = rest
        .strip_prefix("host ")
        .and_then(|rest| rest.split([',', ')']).next());
    match (its_host, host) {
        (Some(its_host), Some(host)) => its_host == host,
        _ => its_node == node,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{EpochId, Generation};

    const A: Own<'static> = Own {
        node: "a",
        host: Some("1f"),
        has_replicated: true,
    };
    const B: Own<'static> = Own {
        node: "b",
        host: Some("2e"),
        has_replicated: true,
    };
    const DISKLESS: Own<'static> = Own {
        has_replicated: false,
        ..A
    };
    const KNOWN: Generation = Generation(3);
    const START: Step = Step::Claim(Claim::Start { known: KNOWN });
    const RESTART: Step = Step::Claim(Claim::Restart { known: KNOWN });

    /// The guest ran last on `holder`; `backup` may have a copy.
    fn record(holder: Own<'_>, backup: Option<&str>) -> Record {
        Record {
            generation: KNOWN,
            holder: claimant(holder.node, holder.host, "pid 7"),
            backup: backup.map(Into::into),
            ..Record::default()
        }
    }

    fn holdings(node: &str, copy: Option<u64>) -> Holdings {
        let copy = copy.map(|generation| (Generation(generation), EpochId(9)));
        let node = node.into();
        let host = None;
        Holdings { node, host, copy }
    }

    #[test]
    fn who_has_all_that_there_is_asks_nobody() {
        let known = Generation(0);
        let first = Step::Claim(Claim::Start { known });
        assert_eq!(A.first_step(&Record::default()), first);
        assert_eq!(A.first_step(&record(A, None)), START);
        assert_eq!(DISKLESS.first_step(&record(B, None)), START);
        assert_eq!(A.first_step(&record(B, None)), Step::Ask, "newer disks");
        assert_eq!(A.first_step(&record(A, Some("b"))), Step::Ask, "a copy");
    }

    #[test]
    fn the_last_holder_starts_once_the_backup_has_said_that_it_has_no_copy() {
        let ran_on_a = record(A, Some("b"));
        let next = |theirs: &Holdings| A.next_step(&ran_on_a, theirs);
        assert_eq!(next(&holdings("b", None)), RESTART);
        assert_eq!(next(&holdings("b", Some(3))), Step::Follow);
        assert_eq!(next(&holdings("b", Some(2))), RESTART, "it is outdated");
        let third = holdings("c", None);
        assert_eq!(next(&third), Step::CopyElsewhere, "b was not asked");
        let ran_on_b = record(B, Some("a"));
        let next = A.next_step(&ran_on_b, &holdings("b", None));
        assert_eq!(next, Step::OlderDisks);
        assert_eq!(B.next_step(&ran_on_b, &holdings("a", None)), RESTART);
        let next = DISKLESS.next_step(&ran_on_b, &holdings("b", None));
        assert_eq!(next, RESTART, "its disks are as good as any");
    }

    #[test]
    fn a_third_host_of_the_same_name_is_not_the_one_that_may_have_a_copy() {
        let noted = backup("b", Some("2e"));
        let ran_on_a = record(A, Some(&noted));
        let answer = |host: Option<&str>| Holdings {
            host: host.map(Into::into),
            ..holdings("b", None)
        };
        assert_eq!(A.next_step(&ran_on_a, &answer(Some("2e"))), RESTART);
        let of_third = answer(Some("3d"));
        assert_eq!(A.next_step(&ran_on_a, &of_third), Step::CopyElsewhere);
        // The host is the same, whatever it is called now.
        let renamed = Holdings {
            node: "renamed".into(),
            ..answer(Some("2e"))
        };
        assert_eq!(A.next_step(&ran_on_a, &renamed), RESTART);
        // Without an identity, the name counts.
        assert_eq!(A.next_step(&ran_on_a, &answer(None)), RESTART);
    }

    #[test]
    fn a_backup_without_a_copy_is_to_start_the_guest_if_it_ran_there_or_was_to_be_primary() {
        let ends = |own: Own<'_>, starts, record: &Record| {
            assert!(!own.is_to_start(starts, record, true, true), "it lives");
            let by_itself = own.is_to_start(starts, record, false, false);
            (by_itself, own.is_to_start(starts, record, false, true))
        };
        let (copied, alone) = (record(B, Some("a")), record(B, None));
        assert_eq!(ends(B, Starts::IfItRanHere, &copied), (true, true));
        // It may have ended by itself.
        assert_eq!(ends(B, Starts::IfItRanHere, &alone), (false, true));
        assert_eq!(ends(B, Starts::IfItMay, &alone), (true, true));
        assert_eq!(ends(A, Starts::IfItMay, &alone), (false, false), "older");
        assert_eq!(ends(A, Starts::IfItRanHere, &copied), (false, false));
        assert_eq!(ends(DISKLESS, Starts::IfItMay, &copied), (true, true));
        assert_eq!(ends(B, Starts::Never, &copied), (false, false));
        let never_ran = Record::default();
        assert_eq!(ends(B, Starts::IfItMay, &never_ran), (false, false));
    }

    #[test]
    fn hosts_are_told_apart_by_what_they_are_and_not_by_what_they_are_called() {
        let of_clone = claimant("web", Some("1f"), "pid 7");
        assert!(is_of(&of_clone, "web", Some("1f")));
        assert!(is_of(&of_clone, "renamed", Some("1f")));
        assert!(
            !is_of(&of_clone, "web", Some("2e")),
            "a clone with the same name"
        );
        // Whoever has no identity goes by the name.
        assert!(is_of(&of_clone, "web", None));
        let nameless = claimant("a (b", None, "pid 7");
        assert!(is_of(&nameless, "a (b", Some("1f")));
        assert!(!is_of(&nameless, "a", None));
        assert!(is_of("another arbiter's", "another arbiter's", None));
    }
}
