//! That the guest is to go on at the standby, and what became of that if it is still here.
//!
//! What must not be done here: find out what fails.

use std::time::Duration;

use super::{Effect, NodeCore, SyncState};
use crate::config::OnSigterm;
use crate::node::events::EventKind;
use crate::node::status::NotHandedOver;

/// Who is to go on with a guest that nobody could take.
const NOBODY: &str = "no standby is in sync";

/// The guest was to be handed over.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// Why it is being.
    wanted: Option<Wanted>,
    /// It was tried, and came to nothing.
    failed: Option<(Wanted, NotHandedOver)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Because {
    /// Something of this host fails: it is tried again as long as it does.
    HostFails,
    /// Somebody wants it.
    Asked,
}

#[derive(Debug, Clone)]
struct Wanted {
    because: Because,
    why: String,
}

impl NodeCore {
    pub(super) fn may_hand_over(&self, sync: &SyncState) -> bool {
        self.rules.on_sigterm == OnSigterm::Handover && sync.in_sync && self.ending.is_none()
    }

    /// Somebody wants it.
    pub(super) fn hand_over(&mut self, why: &str) -> Vec<Effect> {
        self.hand_over_because(Because::Asked, why.to_owned())
    }

    fn hand_over_because(&mut self, because: Because, why: String) -> Vec<Effect> {
        let told = EventKind::HandingOver { why: why.clone() };
        let effects = vec![Effect::Tell(told), Effect::HandOver(why.clone())];
        self.handover.wanted = Some(Wanted { because, why });
        effects
    }

    /// Something of this host fails that the standby's may have: the guest is to go on there, now or as soon as there is
    /// one in sync. `topic` tells it from everything else that may fail.
    pub(super) fn host_fails(
        &mut self,
        now: Duration,
        topic: &str,
        what: String,
        effects: &mut Vec<Effect>,
    ) {
        self.failing.begin(topic, what);
        self.escape(now, effects);
    }

    /// It works again.
    pub(super) fn host_works(&mut self, topic: &str) {
        if self.failing.end(topic) {
            self.forget_if_all_works();
        }
    }

    /// Something works again: with the last reason goes the alarm that the guest is still here.
    pub(super) fn forget_if_all_works(&mut self) {
        if self.failing.in_words().is_none() && !self.held.has_guest_wait() {
            self.forget_failed(Because::HostFails);
        }
    }

    /// Whether a guest may be handed over because of what fails here.
    pub(super) fn may_escape(&self) -> bool {
        self.protected && self.would_escape()
    }

    /// The same, if only there were somebody to take it.
    fn would_escape(&self) -> bool {
        let stays = self.ending.is_some() || self.is_leaving || self.broken.is_so();
        self.is_primary() && !stays
    }

    pub(super) fn escape(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.may_escape()
            && let Some(why) = self.failing.escape(now)
        {
            effects.extend(self.hand_over_because(Because::HostFails, why));
        }
    }

    /// It could not be.
    pub(super) fn handover_failed(&mut self, why: &str) {
        if let Some(wanted) = self.handover.wanted.take() {
            let failed = NotHandedOver {
                wanted: wanted.why.clone(),
                why: why.to_owned(),
            };
            self.handover.failed = Some((wanted, failed));
        }
    }

    /// The guest is protected anew: what still fails leads to another try, and who asked may ask again.
    pub(super) fn handover_is_possible(&mut self) {
        self.forget_failed(Because::Asked);
        if self.failing.in_words().is_none() {
            self.forget_failed(Because::HostFails);
        }
    }

    fn forget_failed(&mut self, because: Because) {
        (self.handover.failed).take_if(|(wanted, _)| wanted.because == because);
    }

    /// What was to be and is not.
    pub(super) fn not_handed_over(&self) -> Option<NotHandedOver> {
        if !self.is_primary() {
            return None;
        }
        let waits = || {
            let wanted = self.failing.in_words().filter(|_| self.would_escape())?;
            let why = NOBODY.to_owned();
            (!self.protected).then_some(NotHandedOver { wanted, why })
        };
        let failed = self.handover.failed.as_ref();
        failed.map(|(_, failed)| failed.clone()).or_else(waits)
    }
}
