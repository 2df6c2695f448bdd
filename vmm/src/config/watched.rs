//! Which networks of the guest are watched on this host, and what follows when one is cut.

use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A network of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNetwork {
    /// Its name, equal on both hosts.
    pub id: String,
    /// The tap of this host, if it is connected by one.
    pub tap: Option<String>,
    /// What follows when it is cut.
    pub on_cut: OnCut,
    /// Who answers while it is not.
    pub ping: Vec<IpAddr>,
}

impl GuestNetwork {
    /// If anybody looks at it. Of a socket it is known only whether somebody is at its other end.
    #[must_use]
    pub fn watched(&self) -> Option<WatchedNetwork> {
        let tap = self.tap.clone()?;
        (self.on_cut != OnCut::Ignore).then(|| WatchedNetwork {
            id: self.id.clone(),
            tap,
            on_cut: self.on_cut,
            ping: self.ping.clone(),
        })
    }
}

/// A network of the guest that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchedNetwork {
    /// Its name, equal on both hosts.
    pub id: String,
    /// The tap of this host.
    pub tap: String,
    /// What follows when it is cut.
    pub on_cut: OnCut,
    /// Who answers this host while it is not.
    pub ping: Vec<IpAddr>,
}

/// When a network of a primary's host is cut, and the standby's is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCut {
    /// The guest goes on at the standby.
    #[default]
    Handover,
    /// It is an alarm, nothing else.
    Report,
    /// Nobody looks.
    Ignore,
}

impl FromStr for OnCut {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "handover" => Ok(Self::Handover),
            "report" => Ok(Self::Report),
            "ignore" => Ok(Self::Ignore),
            _ => Err("expected one of: handover, report, ignore".into()),
        }
    }
}
