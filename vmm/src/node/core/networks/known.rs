//! What is known of the guest's networks on both hosts, and what people should know of it.
//!
//! What must not be done here: decide what follows.

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_replication::runtime::Trouble;

use crate::config::{GuestNetwork, OnCut, digest};
use crate::node::events::ON_STANDBY;
use crate::node::networks::ping::{self, Answers};
use crate::node::networks::{Cut, GOOD_AGAIN_WITHIN, NetworkSeen, Reach};

/// What is known of the networks.
#[derive(Debug, Default)]
pub(in crate::node::core) struct Networks {
    /// The guest's, whether they are watched or not.
    pub(super) all: Vec<GuestNetwork>,
    /// On this host; `None` before the first look.
    pub(super) here: Option<Vec<NetworkSeen>>,
    /// What a primary's standby says that it lacks; `None`: nothing.
    pub(super) there: Option<Vec<Trouble>>,
    /// Those of the guest's that the standby lacked, by name, until it has had them for long enough.
    lacked: BTreeMap<String, Lacked>,
    /// What stands of it, for people.
    pub(super) alarms: Vec<String>,
}

/// A network that the standby lacked.
#[derive(Debug, Clone, Copy)]
enum Lacked {
    /// It has not said anything else yet.
    Still,
    /// It has it again: if this host has not by then, the standby is the better place.
    Until(Duration),
}

/// Longest name of a network that stands in a topic as it is: more is cut off on the way to the other host, and would not
/// be found there.
const ID_CHARS_MAX: usize = 46;

/// A network's name, or what stands for a long one.
fn short(id: &str) -> String {
    if id.chars().count() <= ID_CHARS_MAX {
        return id.to_owned();
    }
    let digest = format!("~{:016x}", digest(id.bytes()));
    let kept = ID_CHARS_MAX - digest.len();
    id.chars().take(kept).chain(digest.chars()).collect()
}

pub(super) fn cut_topic(id: &str) -> String {
    format!("network {}", short(id))
}

fn bridge_topic(id: &str) -> String {
    format!("bridge of network {}", short(id))
}

fn uplink_topic(id: &str) -> String {
    format!("uplink of network {}", short(id))
}

fn ping_topic(id: &str) -> String {
    format!("ping of network {}", short(id))
}

/// It may be over in a moment.
fn doubt_topic(id: &str) -> String {
    format!("doubtful network {}", short(id))
}

/// None has answered, but may do so in a moment.
fn early_ping_topic(id: &str) -> String {
    format!("early ping of network {}", short(id))
}

/// It is no trouble, but nobody knows whether there is one.
fn unwatched_topic(id: &str) -> String {
    format!("unwatched network {}", short(id))
}

impl NetworkSeen {
    pub(super) fn lasting_cut(&self) -> Option<&Cut> {
        self.cut.as_ref().filter(|cut| cut.lasts)
    }

    pub(super) fn in_words(&self, why: &str) -> String {
        format!("network {}: {why}", self.watched.id)
    }

    /// What a guest that comes from a better place would lack here.
    pub(super) fn troubles(&self) -> Vec<Trouble> {
        let id = &self.watched.id;
        let reach = match (self.lasting_cut(), self.reach) {
            (Some(cut), _) => Some((cut_topic(id), cut.why.clone())),
            (None, Reach::Tap) => Some((bridge_topic(id), self.lacks_bridge())),
            (None, Reach::Bridge) => {
                let why = "the bridge has no uplink, as the primary's has".into();
                Some((uplink_topic(id), why))
            }
            (None, Reach::Uplink) => None,
        };
        let doubt = self.cut.as_ref().filter(|cut| !cut.lasts);
        let doubt = doubt.map(|cut| (doubt_topic(id), cut.why.clone()));
        let ping = match self.answers {
            Answers::NotYet => {
                let why = "no ping target has answered yet".into();
                Some((early_ping_topic(id), why))
            }
            Answers::Never => Some((ping_topic(id), self.lacks_answers())),
            Answers::NotAsked | Answers::Some => None,
        };
        (reach.into_iter().chain(doubt).chain(ping))
            .map(|(topic, why)| Trouble::new(&topic, &self.in_words(&why)))
            .collect()
    }

    fn lacks_answers(&self) -> String {
        let targets = ping::in_words(&self.watched.ping);
        format!(
            "no ping target has ever answered this host, so none says whether clients are reached ({targets}); does the \
             bridge have an address of this host?"
        )
    }

    fn lacks_bridge(&self) -> String {
        let tap = &self.watched.tap;
        format!(
            "no bridge forwards for the tap {tap}, so after a takeover the guest might reach nobody; ip link set {tap} up \
             master BRIDGE"
        )
    }

    /// It is not judged by its ping targets then.
    fn silent_from_the_start(&self) -> Option<String> {
        let is_so = self.answers == Answers::Never;
        is_so.then(|| self.in_words(&self.lacks_answers()))
    }

    /// What of this the standby says that it lacks.
    fn lacks<'a>(&self, troubles: &'a [Trouble]) -> Option<&'a Trouble> {
        let id = &self.watched.id;
        troubles.iter().find(|trouble| {
            let topic = trouble.topic.as_str();
            topic == cut_topic(id)
                || (topic == bridge_topic(id) && self.reach >= Reach::Bridge)
                || (topic == uplink_topic(id) && self.reach >= Reach::Uplink)
                || (topic == ping_topic(id) && self.answers == Answers::Some)
        })
    }

    /// The same, also if it is over in a moment, or may be among those that are not named.
    fn may_lack(&self, troubles: &[Trouble]) -> bool {
        let id = &self.watched.id;
        let is_in_doubt = |trouble: &Trouble| {
            let topic = trouble.topic.as_str();
            topic == doubt_topic(id)
                || (topic == early_ping_topic(id) && self.answers == Answers::Some)
                || trouble.is_further()
        };
        self.lacks(troubles).is_some() || troubles.iter().any(is_in_doubt)
    }

    /// Whether the standby says that it does not know.
    fn is_unwatched(&self, troubles: &[Trouble]) -> bool {
        let topic = unwatched_topic(&self.watched.id);
        troubles.iter().any(|trouble| trouble.topic == topic)
    }
}

impl Networks {
    /// What a standby has to say; `None` before the first look.
    pub(super) fn troubles(&self) -> Option<Vec<Trouble>> {
        let here = self.here.as_ref()?;
        let lacks = here.iter().flat_map(NetworkSeen::troubles);
        let unwatched = self.all.iter().filter(|it| it.watched().is_none());
        let unwatched = unwatched.map(|network| {
            let id = &network.id;
            let why = format!("network {id}: nobody watches it");
            Trouble::new(&unwatched_topic(id), &why)
        });
        Some(lacks.chain(unwatched).collect())
    }

    /// Notes what the standby lacks at this time. What has cut both hosts is over on both, but not in the same moment.
    pub(super) fn note_lacked(&mut self, now: Duration) {
        if let (Some(troubles), Some(here)) = (&self.there, &self.here) {
            for network in here {
                let id = &network.watched.id;
                if network.may_lack(troubles) {
                    self.lacked.insert(id.clone(), Lacked::Still);
                } else if let Some(lacked @ Lacked::Still) = self.lacked.get_mut(id) {
                    *lacked = Lacked::Until(now + GOOD_AGAIN_WITHIN);
                }
            }
        }
        (self.lacked).retain(|_, lacked| !matches!(lacked, Lacked::Until(at) if *at <= now));
    }

    /// When the standby will have had a network for long enough.
    pub(in crate::node::core) fn due(&self) -> Option<Duration> {
        let until = |lacked: &Lacked| match lacked {
            Lacked::Still => None,
            Lacked::Until(at) => Some(*at),
        };
        self.lacked.values().filter_map(until).min()
    }

    /// What a person should know now.
    pub(in crate::node::core) fn alarms(&self) -> &[String] {
        &self.alarms
    }

    /// Why the guest stays although this network is cut here.
    pub(super) fn stays_because(&self, network: &NetworkSeen) -> Option<&'static str> {
        match &self.there {
            _ if network.watched.on_cut != OnCut::Handover => Some("which is only reported"),
            None => Some("and no standby has said that its own works: the guest stays"),
            Some(troubles) if self.costs_another(troubles) => {
                Some("but the standby's host lacks another one, which works here: the guest stays")
            }
            Some(troubles) if network.may_lack(troubles) => {
                Some("and the standby's does not work either: the guest stays")
            }
            Some(troubles) if network.is_unwatched(troubles) => {
                Some("and nobody watches the standby's: the guest stays")
            }
            Some(_) if self.lacked.contains_key(&network.watched.id) => {
                Some("and the standby's has only just come back: the guest stays for now")
            }
            Some(_) => None,
        }
    }

    /// Whether clients would lose the guest that reach it now.
    fn costs_another(&self, troubles: &[Trouble]) -> bool {
        let mut here = self.here.iter().flatten();
        here.any(|network| network.cut.is_none() && network.may_lack(troubles))
    }

    /// What a primary's people should know.
    pub(super) fn alarms_of_primary(&self) -> Vec<String> {
        let there = self.there.as_deref().unwrap_or_default();
        let of_network = |network: &NetworkSeen| {
            let here = network.lasting_cut().map(|cut| {
                let stays = self.stays_because(network);
                let stays = stays.map(|why| format!(", {why}")).unwrap_or_default();
                format!("{}{stays}", network.in_words(&cut.why))
            });
            let lacks = network.lacks(there);
            let there = lacks.map(|trouble| format!("{ON_STANDBY}{}", trouble.why));
            here.into_iter()
                .chain(network.silent_from_the_start())
                .chain(there)
        };
        let further = there.iter().filter(|trouble| trouble.is_further());
        let further = further.map(|trouble| format!("{ON_STANDBY}{}", trouble.why));
        let all = self.here.iter().flatten().flat_map(of_network);
        all.chain(further).collect()
    }

    /// What a standby's people should know.
    pub(super) fn alarms_of_standby(&self) -> Vec<String> {
        let of_network = |network: &NetworkSeen| {
            let reach = match network.lasting_cut() {
                Some(cut) => Some(network.in_words(&cut.why)),
                None => (network.reach == Reach::Tap && network.cut.is_none())
                    .then(|| network.in_words(&network.lacks_bridge())),
            };
            reach.into_iter().chain(network.silent_from_the_start())
        };
        self.here.iter().flatten().flat_map(of_network).collect()
    }
}
