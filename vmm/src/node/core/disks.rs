//! Disks of this host that fail, or do not answer, and what becomes of the guest's requests.
//!
//! A guest with a standby goes on there, and does not hear of it. Requests that this host's storage has failed are held
//! meanwhile. If the guest stays, it sees the errors, or waits and has them done again. What must not be done here:
//! decide whether it can be handed over.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{Effect, NodeCore};
use crate::node::events::EventKind;

/// How soon a request is done again that waits for storage which fails.
const RETRY: Duration = Duration::from_secs(1);

/// A disk whose requests were done again, and that has failed none for so long, works.
const WORKS_AFTER: Duration = Duration::from_secs(3);

/// A disk that holds requests.
#[derive(Debug)]
struct Held {
    what: String,
    /// Without a standby they wait; else the guest sees an error then.
    waits: bool,
}

/// The disks that hold requests.
#[derive(Debug, Default)]
pub(super) struct HeldRequests {
    disks: BTreeMap<String, Held>,
    /// When those that wait are done again.
    retry_at: Option<Duration>,
    /// Disks of which a person was told that the guest waits for them.
    told: BTreeMap<String, Told>,
}

#[derive(Debug)]
struct Told {
    alarm: String,
    /// It works then, unless it fails something before.
    works_at: Option<Duration>,
}

impl HeldRequests {
    /// Whether the guest waits for a disk of this host.
    pub(super) fn has_guest_wait(&self) -> bool {
        !self.told.is_empty()
    }

    pub(super) fn due(&self) -> Option<Duration> {
        let works = self.told.values().filter_map(|told| told.works_at);
        self.retry_at.into_iter().chain(works).min()
    }
}

fn topic(device: &str) -> String {
    format!("{device} fails")
}

impl NodeCore {
    pub(super) fn disk_holds(
        &mut self,
        now: Duration,
        device: String,
        what: String,
        waits: bool,
        effects: &mut Vec<Effect>,
    ) {
        let trouble = format!("{device} fails: {what}");
        let topic = topic(&device);
        if let Some(told) = self.held.told.get_mut(&device) {
            told.works_at = None;
        }
        self.held.disks.insert(device, Held { what, waits });
        if (self.may_escape() && self.failing.may_try_soon(now)) || self.is_leaving {
            self.host_fails(now, &topic, trouble, effects);
        } else {
            self.guest_stays(now, effects);
        }
    }

    /// The guest is not handed over: what is held is answered, or waits for its next try.
    pub(super) fn guest_stays(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let mut waiting = BTreeMap::new();
        for (device, held) in std::mem::take(&mut self.held.disks) {
            // It does not work: there is nothing left to be done elsewhere.
            self.failing.end(&topic(&device));
            if !held.waits {
                effects.push(Effect::AnswerFailed(device));
                continue;
            }
            self.held.retry_at.get_or_insert(now + RETRY);
            if !self.held.told.contains_key(&device) {
                let (name, device, what) = (device.clone(), device.clone(), held.what.clone());
                let event = EventKind::DiskWaits { device, what };
                let (alarm, works_at) = (event.to_string(), None);
                let told = Told { alarm, works_at };
                self.held.told.insert(name, told);
                self.alarm(event, effects);
            }
            waiting.insert(device, held);
        }
        self.held.disks = waiting;
    }

    /// The time of [`HeldRequests::due`] may have come.
    pub(super) fn retry_held(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.held.retry_at.is_some_and(|at| at <= now) {
            self.held.retry_at = None;
            for device in std::mem::take(&mut self.held.disks).into_keys() {
                if let Some(told) = self.held.told.get_mut(&device) {
                    told.works_at = Some(now + WORKS_AFTER);
                }
                effects.push(Effect::RetryFailed(device));
            }
        }
        let works = |_: &String, told: &mut Told| told.works_at.is_some_and(|at| at <= now);
        let over: Vec<_> = self.held.told.extract_if(.., works).collect();
        if !over.is_empty() {
            self.forget_if_all_works();
        }
        for (device, told) in over {
            self.alarm.take_if(|alarm| *alarm == told.alarm);
            let what = "it has done what it had failed".to_owned();
            self.tell(EventKind::DiskAnswers { device, what }, effects);
        }
    }
}
