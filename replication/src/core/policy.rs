//! When epochs end and when a silent peer counts as lost: the numbers that both cores use.
//!
//! Must not be done here: reading configuration. A core takes any policy. Code that reads one from
//! a person checks the ranges given here.

use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many times [`Policy::storage_timeout`] a backup's storage may take for what a copy begins and
/// ends with: opening and comparing images, and making all of the copy safe.
pub const FIRST_STORAGE_TIMEOUTS: u32 = 100;

/// How often a standby tries whether its machine could load the state that it has.
pub(crate) const TRY_EVERY: Duration = Duration::from_secs(10);

/// How epochs are made of a running guest. All but the first are there to be compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Checkpointing {
    /// As this library does it: hot pages stay open, output ends its epoch, what has changed is encoded while the
    /// guest runs, and a guest that changes too much is slowed.
    #[default]
    Adaptive,
    /// As Remus did it (Cully et al., "Remus: High Availability via Asynchronous Virtual Machine Replication", NSDI
    /// 2008): at a fixed interval the guest is stopped, its changed pages are copied to a buffer, and sent as they are
    /// while it runs on. Output leaves when the backup has acknowledged.
    Remus,
    /// At a fixed interval the guest is stopped until its changed pages have been sent as they are.
    StopAndSend,
}

impl FromStr for Checkpointing {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "adaptive" => Ok(Self::Adaptive),
            "remus" => Ok(Self::Remus),
            "stop-and-send" => Ok(Self::StopAndSend),
            _ => Err("expected one of: adaptive, remus, stop-and-send".into()),
        }
    }
}

impl Checkpointing {
    /// The policy by which epochs are made like this.
    #[must_use]
    pub fn policy(self, policy: Policy) -> Policy {
        let policy = Policy {
            checkpointing: self,
            ..policy
        };
        match self {
            Self::Adaptive => policy,
            Self::Remus | Self::StopAndSend => Policy {
                overhead_percent: 0,
                latency_target: Duration::ZERO,
                ..policy
            },
        }
    }
}

/// When epochs end, and when a silent peer counts as lost.
///
/// The two hosts may have different policies. Each side uses its own.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// How epochs are made. To be set by [`Checkpointing::policy`], since it is more than one number.
    pub checkpointing: Checkpointing,
    /// The longest epoch. Output waits at most about this long for its end.
    ///
    /// Default 25 ms, range 1 ms to 10 s.
    pub epoch_interval: Duration,
    /// Sync on output: output that waits ends its epoch at once, as long as the pauses of the guest take at
    /// most so much of its time, in percent. A pause in which the guest had nothing to do costs nothing, so an
    /// idle guest's answers leave at once, and a busy guest is not paused all the time. With 0, only the timer
    /// ends epochs. What faults cost that a short epoch makes more of does not count.
    ///
    /// Default 10, range 0 to 100; more counts as 100.
    pub overhead_percent: u32,
    /// How long an epoch may take from its end to its acknowledgement, beyond what any takes. A guest whose
    /// changes take longer to ship is slowed ([`throttle`](super::throttle)). With zero, none is.
    ///
    /// Default 100 ms, at most 10 s.
    pub latency_target: Duration,
    /// The longest time between two heartbeats that are sent.
    ///
    /// Default 10 ms, range 1 ms to a third of [`heartbeat_timeout`](Self::heartbeat_timeout): two
    /// late packets must not cause a failover.
    pub heartbeat_interval: Duration,
    /// The peer counts as lost after at most this long without a sign of life on any path, and after less, but
    /// not before [`shortest_timeout`](Self::shortest_timeout), if its heartbeats have always come in time
    /// ([`Patience`](super::heartbeats::Patience)). A backup also counts as lost if it is silent on the link for
    /// this long while an epoch waits for its acknowledgement.
    ///
    /// Default 150 ms, range 10 ms to 10 min.
    pub heartbeat_timeout: Duration,
    /// How long this side's storage may leave undone what the guest, or an acknowledgement, waits
    /// for before it counts as failed: a backup is given up then. What a copy begins and ends with
    /// may take [`FIRST_STORAGE_TIMEOUTS`] times as long.
    ///
    /// Default 600 ms, range 10 ms to 10 min.
    pub storage_timeout: Duration,
    /// How long to wait before asking an arbiter again that gave no answer.
    ///
    /// Default 100 ms, range 1 ms to 10 min.
    pub arbiter_retry: Duration,
    /// How often both sides make sure, while nothing is wrong, that the arbiter would grant a
    /// takeover now. If they cannot for twice as long, that is an alarm.
    ///
    /// Default 2 s, range 1 ms to 10 min.
    pub arbiter_check: Duration,
    /// Pre-copy ends when a round leaves at most this many dirty pages, and they can be shipped in a third of
    /// [`latency_target`](Self::latency_target).
    ///
    /// Default 4096 pages (16 MiB), any number.
    pub sync_pages_left: u64,
    /// After this many rounds, however much is left, pre-copy ends as soon as that can be shipped in time, or the guest is
    /// slowed as far as it can be, and each further round slows it. After twice as many it ends.
    ///
    /// Default 8 rounds, range 1 and up; 0 counts as 1.
    pub sync_rounds_max: u32,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            checkpointing: Checkpointing::Adaptive,
            epoch_interval: Duration::from_millis(25),
            overhead_percent: 10,
            latency_target: Duration::from_millis(100),
            heartbeat_interval: Duration::from_millis(10),
            heartbeat_timeout: Duration::from_millis(150),
            storage_timeout: Duration::from_millis(600),
            arbiter_retry: Duration::from_millis(100),
            arbiter_check: Duration::from_secs(2),
            sync_pages_left: 4096,
            sync_rounds_max: 8,
        }
    }
}

/// A host that is well may stand still for 40 ms, and its last heartbeat was one interval before that.
const SHORTEST_TIMEOUT: Duration = Duration::from_millis(70);

impl Policy {
    /// The least time of silence after which the peer may count as lost: 70 ms, or two fifths of
    /// [`heartbeat_timeout`](Self::heartbeat_timeout) or three heartbeats if that is more.
    #[must_use]
    pub fn shortest_timeout(&self) -> Duration {
        let longest = self.heartbeat_timeout;
        let shortest = SHORTEST_TIMEOUT.max(longest * 2 / 5);
        shortest.max(self.heartbeat_interval * 3).min(longest)
    }

    /// Whoever did nothing for longer than this may have been replaced meanwhile, or has not read yet what came: a peer
    /// with the same policy waits twice as long before it acts.
    pub(crate) fn stalls_after(&self) -> Duration {
        self.shortest_timeout() / 2
    }

    /// While a timer runs, a core is called at least so often: often enough to be told from a side that did nothing.
    pub(crate) fn looks_every(&self) -> Duration {
        self.heartbeat_interval.min(self.stalls_after() / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For all time-outs and heartbeats that a configuration may have.
    #[test]
    fn whoever_is_called_in_time_is_told_from_who_slept() {
        for timeout_ms in [10, 70, 150, 1000, 600_000] {
            for parts in [3, 4, 15, 600] {
                let timeout = Duration::from_millis(timeout_ms);
                let policy = Policy {
                    heartbeat_timeout: timeout,
                    heartbeat_interval: (timeout / parts).max(Duration::from_millis(1)),
                    ..Policy::default()
                };
                let shortest = policy.shortest_timeout();
                assert!(shortest <= timeout && shortest >= policy.heartbeat_interval * 3);
                assert!(policy.looks_every() * 2 <= policy.stalls_after());
                assert!(policy.stalls_after() * 2 <= shortest);
            }
        }
    }
}
