//! What a signal to end means to a primary whose guest could go on elsewhere.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What SIGTERM, SIGINT and SIGHUP mean to a primary with a standby that could take the guest over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnSigterm {
    /// The guest goes on there.
    #[default]
    Handover,
    /// The guest is stopped.
    Stop,
}

impl FromStr for OnSigterm {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "handover" => Ok(Self::Handover),
            "stop" => Ok(Self::Stop),
            _ => Err("expected one of: handover, stop".into()),
        }
    }
}
