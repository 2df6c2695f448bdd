//! What two machines must have in common so that one can take over the other's state.
//!
//! Three kinds of things are compared: values, which must be equal; abilities, which the primary's guest
//! may use and of which the backup may have more; and measures, which may be so far apart as the backup can
//! make up for, or as large as it has room for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

/// Everything that matters to a takeover: memory layout and devices as named values, CPU features and the
/// like as abilities of named parts. The embedding VMM fills it; the handshake compares it one by one, so
/// that a refusal can name what differs and what is lacking.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Must be equal on both hosts.
    values: BTreeMap<String, String>,
    /// What the guest may use, by part.
    needs: BTreeMap<String, BTreeSet<String>>,
    /// What was measured, such as the speed of a clock.
    measures: BTreeMap<String, u64>,
    /// Which measures of a guest this host can do with. Nobody but this host asks.
    #[serde(skip)]
    endures: BTreeMap<String, Endures>,
    /// What this host could give a guest, by part. Nobody but this host asks, so it does not travel.
    #[serde(skip)]
    has: BTreeMap<String, BTreeSet<String>>,
}

/// Which measures a host can do with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endures {
    /// So many millionths off its own.
    Ppm(u64),
    /// Up to this.
    AtMost(u64),
}

/// One thing on which two machines do not fit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Difference {
    /// A value that must be equal and is not.
    Unequal {
        /// The key, for example `memory.bytes`.
        key: String,
        /// The primary's value; `None` if it has no such key.
        primary: Option<String>,
        /// The backup's value; `None` if it has no such key.
        backup: Option<String>,
    },
    /// An ability that the backup would need and has not.
    Lacking {
        /// The part, for example `CPU`.
        part: String,
        /// The ability, in words.
        what: String,
    },
}

impl Fingerprint {
    /// An empty fingerprint.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds or replaces one named value, which must be equal on both hosts.
    pub fn set(&mut self, key: impl Into<String>, value: impl fmt::Display) {
        self.values.insert(key.into(), value.to_string());
    }

    /// Adds something the guest may use: a host whose `part` has not got it cannot take over.
    pub fn need(&mut self, part: impl Into<String>, what: impl fmt::Display) {
        let part = self.needs.entry(part.into()).or_default();
        part.insert(what.to_string());
    }

    /// Adds something that this host can give a guest, whether the guest uses it or not.
    pub fn have(&mut self, part: impl Into<String>, what: impl fmt::Display) {
        let part = self.has.entry(part.into()).or_default();
        part.insert(what.to_string());
    }

    /// Adds or replaces a measure of the machine.
    pub fn measure(&mut self, key: impl Into<String>, value: u64) {
        self.measures.insert(key.into(), value);
    }

    /// Says that a guest from another host can go on here only if its measure is at most `ppm` millionths
    /// off this host's. Without this, any difference can be made up for.
    pub fn endure(&mut self, key: impl Into<String>, ppm: u64) {
        self.endures.insert(key.into(), Endures::Ppm(ppm));
    }

    /// Says that a guest from another host can go on here only if its measure is at most `most`.
    pub fn limit(&mut self, key: impl Into<String>, most: u64) {
        self.endures.insert(key.into(), Endures::AtMost(most));
    }

    /// Forgets what the guest may use of `part`.
    pub fn need_nothing(&mut self, part: &str) {
        self.needs.remove(part);
    }

    /// Number of named values, of measures, and of things the guest may use.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values.len()
            + self.measures.len()
            + self.needs.values().map(BTreeSet::len).sum::<usize>()
    }

    /// Whether nothing is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where `self` (the primary's) and `backup` do not fit: values in the order of their keys, then what
    /// the backup lacks, then measures too far apart or too large.
    #[must_use]
    pub fn differences(&self, backup: &Self) -> Vec<Difference> {
        let keys: BTreeSet<&String> = self.values.keys().chain(backup.values.keys()).collect();
        let mut unequal: Vec<Difference> = keys
            .into_iter()
            .filter(|key| self.values.get(*key) != backup.values.get(*key))
            .map(|key| self.unequal(backup, key))
            .collect();
        // All that one host alone has of a thing is one difference.
        unequal.dedup();
        let lacking = self.needs.iter().flat_map(|(part, needed)| {
            let has = backup.has.get(part);
            needed
                .iter()
                .filter(move |what| !has.is_some_and(|has| has.contains(*what)))
                .map(|what| Difference::Lacking {
                    part: part.clone(),
                    what: what.clone(),
                })
        });
        let too_much = self.measures.iter().filter_map(|(key, value)| {
            let can = match *backup.endures.get(key)? {
                Endures::Ppm(ppm) => {
                    let here = *backup.measures.get(key)?;
                    let apart = u128::from(value.abs_diff(here)) * 1_000_000;
                    (apart > u128::from(*value) * u128::from(ppm))
                        .then(|| format!("{here} and can make up for {ppm} millionths"))
                }
                Endures::AtMost(most) => (*value > most).then(|| format!("at most {most}")),
            };
            can.map(|can| Difference::Unequal {
                key: key.clone(),
                primary: Some(value.to_string()),
                backup: Some(can),
            })
        });
        unequal.into_iter().chain(lacking).chain(too_much).collect()
    }

    /// The difference of which `key` is a part: that of its value, or of the thing (`device.net1` for
    /// `device.net1.type`) if one host has nothing of that at all.
    fn unequal(&self, backup: &Self, key: &str) -> Difference {
        let value = |print: &Self| print.values.get(key).cloned();
        let (mut key, mut primary, mut their) = (key, value(self), value(backup));
        if let Some((thing, _)) = key.rsplit_once('.') {
            let (here, there) = (self.of_thing(thing), backup.of_thing(thing));
            let list = |values: Vec<String>| (!values.is_empty()).then(|| values.join(", "));
            if here.is_empty() != there.is_empty() && here.len() + there.len() > 1 {
                (key, primary, their) = (thing, list(here), list(there));
            }
        }
        Difference::Unequal {
            key: key.to_owned(),
            primary,
            backup: their,
        }
    }

    /// All values of `thing`, with their names.
    fn of_thing(&self, thing: &str) -> Vec<String> {
        let start = format!("{thing}.");
        let values = self.values.range(start.clone()..);
        let values = values.take_while(|(key, _)| key.starts_with(&start));
        let named = values.map(|(key, value)| format!("{} {value}", &key[start.len()..]));
        named.collect()
    }
}

impl Difference {
    /// The key of the unequal value, or the part that lacks something.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Self::Unequal { key, .. } => key,
            Self::Lacking { part, .. } => part,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "nothing".into());
        match self {
            Self::Unequal {
                key,
                primary,
                backup,
            } => write!(
                f,
                "{key}: primary has {}, backup has {}",
                show(primary),
                show(backup)
            ),
            Self::Lacking { part, what } => write!(f, "the standby's {part} lacks {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(primary: &Fingerprint, backup: &Fingerprint) -> Vec<String> {
        let differences = primary.differences(backup);
        differences.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn differences_name_key_and_both_values() {
        let mut primary = Fingerprint::new();
        primary.set("memory.bytes", 1024);
        primary.set("device.net0", "virtio-net");
        let mut backup = Fingerprint::new();
        backup.set("memory.bytes", 2048);
        backup.set("device.net0", "virtio-net");
        backup.set("device.net1", "virtio-net");
        assert_eq!(
            lines(&primary, &backup),
            [
                "device.net1: primary has nothing, backup has virtio-net",
                "memory.bytes: primary has 1024, backup has 2048",
            ]
        );
    }

    #[test]
    fn a_thing_that_only_one_host_has_is_one_difference() {
        let with = |disk: &str| {
            let mut print = Fingerprint::new();
            print.set(format!("device.{disk}.type"), "virtio-blk");
            print.set(format!("device.{disk}.capacity"), "8 sectors");
            print.set("device.net0.mac", "a");
            print
        };
        let (primary, mut backup) = (with("disk0"), with("data"));
        backup.set("device.net0.mac", "b");
        assert_eq!(
            lines(&primary, &backup),
            [
                "device.data: primary has nothing, backup has capacity 8 sectors, type virtio-blk",
                "device.disk0: primary has capacity 8 sectors, type virtio-blk, backup has nothing",
                "device.net0.mac: primary has a, backup has b",
            ]
        );
        // Of what both have, a value that only one has is told alone.
        let mut more = with("disk0");
        more.set("device.disk0.replication", "shared");
        assert_eq!(
            lines(&primary, &more),
            ["device.disk0.replication: primary has nothing, backup has shared"]
        );
    }

    #[test]
    fn a_backup_may_be_able_to_do_more_but_not_less() {
        let mut small = Fingerprint::new();
        let mut large = Fingerprint::new();
        for print in [&mut small, &mut large] {
            print.need("CPU", "sse2");
            print.have("CPU", "sse2");
        }
        large.have("CPU", "avx");
        // That the other host could do more matters as little as what it lets its guests use.
        assert_eq!(lines(&small, &large), [""; 0]);
        assert_eq!(lines(&large, &small), [""; 0]);
        large.need("CPU", "avx");
        assert_eq!(lines(&small, &large), [""; 0]);
        assert_eq!(lines(&large, &small), ["the standby's CPU lacks avx"]);
        assert_eq!(lines(&large, &large), [""; 0]);
        large.need("KVM", "MSR 0x10");
        assert_eq!(lines(&large, &large), ["the standby's KVM lacks MSR 0x10"]);
        large.need_nothing("CPU");
        assert_eq!(lines(&large, &small), ["the standby's KVM lacks MSR 0x10"]);
    }

    #[test]
    fn measures_may_be_as_far_apart_as_the_backup_can_make_up_for() {
        let with = |khz| {
            let mut print = Fingerprint::new();
            print.measure("cpu.tsc_khz", khz);
            print
        };
        assert_eq!(lines(&with(2_000_000), &with(3_000_000)), [""; 0]);
        let mut fixed = with(2_020_000);
        fixed.endure("cpu.tsc_khz", 10_000);
        assert_eq!(lines(&with(2_000_000), &fixed), [""; 0]);
        assert_eq!(
            lines(&with(2_000_000 - 1), &fixed),
            [
                "cpu.tsc_khz: primary has 1999999, backup has 2020000 and can make up for 10000 millionths"
            ]
        );
        assert_eq!(lines(&with(u64::MAX), &fixed).len(), 1);
    }

    #[test]
    fn measures_may_be_as_large_as_the_backup_has_room_for() {
        let with = |mtu| {
            let mut print = Fingerprint::new();
            print.measure("device.net0.mtu", mtu);
            print.limit("device.net0.mtu", mtu);
            print
        };
        assert_eq!(lines(&with(1500), &with(1500)), [""; 0]);
        assert_eq!(lines(&with(1500), &with(9000)), [""; 0]);
        assert_eq!(
            lines(&with(9000), &with(1500)),
            ["device.net0.mtu: primary has 9000, backup has at most 1500"]
        );
    }

    #[test]
    fn only_what_the_guest_may_use_travels() {
        let mut print = Fingerprint::new();
        print.set("vcpus", 1);
        print.need("CPU", "sse2");
        let bytes = postcard::to_stdvec(&print).unwrap();
        print.have("CPU", "avx");
        print.endure("cpu.tsc_khz", 1);
        print.limit("device.net0.mtu", 1);
        assert_eq!(postcard::to_stdvec(&print).unwrap(), bytes);
        let mut arrived: Fingerprint = postcard::from_bytes(&bytes).unwrap();
        arrived.have("CPU", "avx");
        arrived.endure("cpu.tsc_khz", 1);
        arrived.limit("device.net0.mtu", 1);
        assert_eq!(arrived, print);
    }
}
