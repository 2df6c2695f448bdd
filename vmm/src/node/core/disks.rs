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
    /// Disks whose failures have been told and are not over.
    told: BTreeMap<String, String>,
}

impl HeldRequests {
    pub(super) fn due(&self) -> Option<Duration> {
        self.retry_at
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
        self.held.disks.insert(device, Held { what, waits });
        if self.may_escape() || self.is_leaving {
            self.host_fails(now, &topic, trouble, effects);
        } else {
            self.guest_stays(now, effects);
        }
    }

    /// The guest is not handed over: what is held is answered, or waits for its next try.
    pub(super) fn guest_stays(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        let mut waiting = BTreeMap::new();
        for (device, held) in std::mem::take(&mut self.held.disks) {
            self.host_works(&topic(&device));
            if !held.waits {
                effects.push(Effect::AnswerFailed(device));
                continue;
            }
            self.held.retry_at.get_or_insert(now + RETRY);
            let told = self.held.told.insert(device.clone(), held.what.clone());
            if told.is_none() {
                let what = held.what.clone();
                let device = device.clone();
                self.alarm(EventKind::DiskWaits { device, what }, effects);
            }
            waiting.insert(device, held);
        }
        self.held.disks = waiting;
    }

    /// The time of [`HeldRequests::due`] may have come.
    pub(super) fn retry_held(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.held.retry_at.is_some_and(|at| at <= now) {
            self.held.retry_at = None;
            let disks = std::mem::take(&mut self.held.disks);
            effects.extend(disks.into_keys().map(Effect::RetryFailed));
        }
    }

    /// The disk answers, or has done what it failed before.
    pub(super) fn disk_works(&mut self, device: &str) {
        self.host_works(device);
        if let Some(what) = self.held.told.remove(device) {
            let device = device.to_owned();
            let told = EventKind::DiskWaits { device, what }.to_string();
            self.alarm.take_if(|alarm| *alarm == told);
        }
    }
}
