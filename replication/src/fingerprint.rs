//! What two machines must have in common so that one can take over the other's state.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Everything that must be equal on both hosts, as named values: memory layout, devices, CPU
/// features. The embedding VMM fills it; the handshake compares it key by key, so that a refusal can
/// name what differs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, String>);

/// One key on which two fingerprints differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The key, for example `memory.bytes` or `cpu.0x7.0.ebx`.
    pub key: String,
    /// The primary's value; `None` if it has no such key.
    pub primary: Option<String>,
    /// The backup's value; `None` if it has no such key.
    pub backup: Option<String>,
}

impl Fingerprint {
    /// An empty fingerprint.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one named value.
    pub fn set(&mut self, key: impl Into<String>, value: impl fmt::Display) {
        self.0.insert(key.into(), value.to_string());
    }

    /// Number of named values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys on which `self` (the primary's) and `backup` differ, in key order.
    #[must_use]
    pub fn differences(&self, backup: &Self) -> Vec<Difference> {
        let keys: std::collections::BTreeSet<&String> =
            self.0.keys().chain(backup.0.keys()).collect();
        keys.into_iter()
            .filter(|key| self.0.get(*key) != backup.0.get(*key))
            .map(|key| Difference {
                key: key.clone(),
                primary: self.0.get(key).cloned(),
                backup: backup.0.get(key).cloned(),
            })
            .collect()
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        write!(
            f,
            "{}: primary has {}, backup has {}",
            self.key,
            show(&self.primary),
            show(&self.backup)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_name_key_and_both_values() {
        let mut primary = Fingerprint::new();
        primary.set("memory.bytes", 1024);
        primary.set("device.net0", "virtio-net");
        let mut backup = Fingerprint::new();
        backup.set("memory.bytes", 2048);
        backup.set("device.net0", "virtio-net");
        backup.set("device.net1", "virtio-net");
        let lines: Vec<String> = primary
            .differences(&backup)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            lines,
            [
                "device.net1: primary has nothing, backup has virtio-net",
                "memory.bytes: primary has 1024, backup has 2048",
            ]
        );
    }
}
