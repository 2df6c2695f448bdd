//! What follows when something happens to the guest: the words of configurations and command lines.
//!
//! What must not be done here: any of it. The machine's owner does.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// When the guest wants a reset, or crashes in the way that resets a PC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnReboot {
    /// The guest starts again in place.
    #[default]
    Restart,
    /// The machine ends.
    Exit,
}

/// When the guest's kernel reports a panic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnPanic {
    /// The panic is reported; the guest decides what follows.
    #[default]
    Report,
    /// The guest is reset at once.
    Restart,
    /// The machine ends.
    Exit,
}

/// When the guest has not fed its watchdog in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnWatchdog {
    /// It is reset.
    #[default]
    Reset,
    /// It is powered off.
    Poweroff,
    /// The event is reported, nothing else.
    None,
}

/// When this host's storage fails a request of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// The guest goes on at the standby, which does the request again. Without one, it sees the error.
    #[default]
    Handover,
    /// The guest sees the error.
    Report,
    /// The guest goes on at the standby. Without one, the request waits, and is done again until it succeeds.
    Wait,
}

/// A word that is not one of those expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected one of: {0}")]
pub struct UnknownAction(&'static str);

impl FromStr for OnReboot {
    type Err = UnknownAction;

    fn from_str(word: &str) -> Result<Self, UnknownAction> {
        match word {
            "restart" => Ok(Self::Restart),
            "exit" => Ok(Self::Exit),
            _ => Err(UnknownAction("restart, exit")),
        }
    }
}

impl FromStr for OnPanic {
    type Err = UnknownAction;

    fn from_str(word: &str) -> Result<Self, UnknownAction> {
        match word {
            "report" => Ok(Self::Report),
            "restart" => Ok(Self::Restart),
            "exit" => Ok(Self::Exit),
            _ => Err(UnknownAction("report, restart, exit")),
        }
    }
}

impl FromStr for OnError {
    type Err = UnknownAction;

    fn from_str(word: &str) -> Result<Self, UnknownAction> {
        match word {
            "handover" => Ok(Self::Handover),
            "report" => Ok(Self::Report),
            "wait" => Ok(Self::Wait),
            _ => Err(UnknownAction("handover, report, wait")),
        }
    }
}

impl FromStr for OnWatchdog {
    type Err = UnknownAction;

    fn from_str(word: &str) -> Result<Self, UnknownAction> {
        match word {
            "reset" => Ok(Self::Reset),
            "poweroff" => Ok(Self::Poweroff),
            "none" => Ok(Self::None),
            _ => Err(UnknownAction("reset, poweroff, none")),
        }
    }
}
