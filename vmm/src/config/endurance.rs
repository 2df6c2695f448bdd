//! What a protected guest's process is to have of its host, so that a host that is short of memory or time does not look
//! like one that has failed.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Which memory of the process stays in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LockMemory {
    /// None: the host may swap it out.
    Off,
    /// What was used once.
    #[default]
    OnFault,
    /// All of it, from the beginning.
    All,
}

/// When the thread runs that sends heartbeats and acknowledgements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// When its turn comes.
    Normal,
    /// Before others, by its nice value.
    #[default]
    High,
    /// Before all that are not real-time themselves.
    Realtime,
}

/// All of it. What is not said is had where the host allows it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Endurance {
    /// The kernel ends other processes first when it runs out of memory.
    pub oom_protection: Option<bool>,
    /// Which memory stays in memory.
    pub lock_memory: Option<LockMemory>,
    /// When heartbeats are sent.
    pub priority: Option<Priority>,
}

impl FromStr for LockMemory {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "off" => Ok(Self::Off),
            "on-fault" => Ok(Self::OnFault),
            "all" => Ok(Self::All),
            _ => Err("expected one of: off, on-fault, all".into()),
        }
    }
}

impl FromStr for Priority {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "normal" => Ok(Self::Normal),
            "high" => Ok(Self::High),
            "realtime" => Ok(Self::Realtime),
            _ => Err("expected one of: normal, high, realtime".into()),
        }
    }
}
