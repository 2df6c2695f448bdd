//! What is wrong with the protection now: one text for each topic, until it is over. So one alarm hides no other, and
//! none outlives its cause.
//!
//! Must not be done here: deciding when something is over.

/// What an alarm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Topic {
    /// The arbiter gives no answer.
    Arbiter,
    /// The two sides do not see the same record of an arbiter that takes claims.
    Takeover,
    /// Storage of this host refuses what the protection needs.
    Disks,
    /// The other side, or the copy there or here.
    Peer,
    /// The guest is slowed.
    Speed,
}

/// The alarms that stand, the oldest first.
#[derive(Debug, Default)]
pub(super) struct Alarms(Vec<(Topic, String)>);

impl Alarms {
    /// Raises an alarm. It replaces an earlier one of its topic.
    pub(super) fn raise(&mut self, topic: Topic, text: String) {
        match self.0.iter_mut().find(|(other, _)| *other == topic) {
            Some((_, standing)) => *standing = text,
            None => self.0.push((topic, text)),
        }
    }

    /// Whether one of this topic stands.
    pub(super) fn stands(&self, topic: Topic) -> bool {
        self.0.iter().any(|(other, _)| *other == topic)
    }

    /// The topic's cause is gone.
    pub(super) fn over(&mut self, topic: Topic) {
        self.0.retain(|(other, _)| *other != topic);
    }

    /// All causes are gone.
    pub(super) fn all_over(&mut self) {
        self.0.clear();
    }

    /// All of them, for people.
    pub(super) fn text(&self) -> Option<String> {
        let texts: Vec<&str> = self.0.iter().map(|(_, text)| text.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alarm_hides_no_other_and_ends_with_its_cause() {
        let mut alarms = Alarms::default();
        assert_eq!(alarms.text(), None);
        alarms.raise(Topic::Disks, "the journal is full".into());
        alarms.raise(Topic::Arbiter, "no answer".into());
        alarms.raise(Topic::Disks, "the journal is fuller".into());
        let both = "the journal is fuller; no answer";
        assert_eq!(alarms.text().as_deref(), Some(both));
        alarms.over(Topic::Arbiter);
        assert_eq!(alarms.text().as_deref(), Some("the journal is fuller"));
        alarms.over(Topic::Peer);
        alarms.over(Topic::Disks);
        assert_eq!(alarms.text(), None);
    }
}
