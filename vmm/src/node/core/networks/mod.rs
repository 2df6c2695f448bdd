//! What follows when the guest's clients do not reach it any more although nothing else is wrong: a network is cut on
//! this host, on the standby's, or on both.
//!
//! | cut here | at the standby | what follows, on a primary |
//! | --- | --- | --- |
//! | yes | no | the guest goes on there, unless it is only to be reported |
//! | yes | yes | an alarm; it stays |
//! | yes | nothing is known, or nobody looks | the same |
//! | no | yes | an alarm: a takeover would cost the guest its clients |
//! | yes | not any more | the guest goes on there if it is still cut here when a host would have seen that it is not |
//!
//! A standby tells its primary at once, and what lasts it tells by another name: a primary acts only on what lasts, and no
//! person hears of anything else. So a switch that fails both hosts has the guest
//! go nowhere. What the standby says is hearsay (R10): it leads to no more than an offer, about which the arbiter decides.
//! What must not be done here: look at interfaces.

pub(super) mod known;
#[cfg(test)]
mod tests;

use std::time::Duration;

use understudy_replication::runtime::Trouble;

use self::known::cut_topic;
use super::{Effect, NodeCore, Role};
use crate::config::{GuestNetwork, OnCut};
use crate::node::events::EventKind;
use crate::node::networks::NetworkSeen;

impl NodeCore {
    /// These are the guest's.
    pub(in crate::node) fn know_networks(&mut self, all: Vec<GuestNetwork>) {
        self.networks.all = all;
    }

    /// What follows when the guest's network of this name is cut here.
    pub(super) fn on_cut(&self, id: &str) -> OnCut {
        let mut all = self.networks.all.iter();
        let network = all.find(|network| network.id == id);
        network.map(|it| it.on_cut).unwrap_or_default()
    }

    /// This host's networks are like this now.
    pub(super) fn networks_seen(
        &mut self,
        now: Duration,
        seen: Vec<NetworkSeen>,
        effects: &mut Vec<Effect>,
    ) {
        self.networks.here = Some(seen);
        self.weigh_networks(now, effects);
        self.report_health(effects);
    }

    /// The standby says what it lacks, or there is none.
    pub(super) fn standby_lacks(
        &mut self,
        now: Duration,
        troubles: Option<Vec<Trouble>>,
        effects: &mut Vec<Effect>,
    ) {
        self.networks.there = troubles;
        self.weigh_networks(now, effects);
    }

    /// Has a standby tell its primary.
    pub(super) fn report_health(&self, effects: &mut Vec<Effect>) {
        if let Some(troubles) = self.networks.troubles()
            && self.role == Role::Standby
        {
            effects.push(Effect::ReportHealth(troubles));
        }
    }

    /// The time of [`Networks::due`](known::Networks::due) may have come.
    pub(super) fn standby_settles(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        if self.networks.due().is_some_and(|at| at <= now) {
            self.weigh_networks(now, effects);
        }
    }

    /// Something of this is new, or the role is.
    pub(super) fn weigh_networks(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.networks.note_lacked(now);
        let alarms = match self.role {
            Role::Primary => self.networks.alarms_of_primary(),
            Role::Standby => self.networks.alarms_of_standby(),
            Role::Starting | Role::Unprotected | Role::Ended => Vec::new(),
        };
        let before = std::mem::replace(&mut self.networks.alarms, alarms.clone());
        for what in alarms.iter().filter(|what| !before.contains(what)) {
            self.tell(EventKind::NetworkFails { what: what.clone() }, effects);
        }
        for what in before.into_iter().filter(|what| !alarms.contains(what)) {
            self.tell(EventKind::NetworkWorks { what }, effects);
        }
        if self.role != Role::Primary {
            return;
        }
        let (mut fail, mut work) = (Vec::new(), Vec::new());
        for network in self.networks.here.iter().flatten() {
            let topic = cut_topic(&network.watched.id);
            match network.lasting_cut() {
                Some(cut) if self.networks.stays_because(network).is_none() => {
                    fail.push((topic, network.in_words(&cut.why)));
                }
                _ => work.push(topic),
            }
        }
        // Whether a guest that is just being handed over still has a reason does not matter, but why it went does.
        if !self.failing.is_under_way() {
            work.iter().for_each(|topic| self.host_works(topic));
        }
        for (topic, what) in fail {
            self.host_fails(now, &topic, what, effects);
        }
    }
}
