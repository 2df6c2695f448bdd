//! A machine that has broken: something of this host failed, and it can neither go on nor be captured any more.
//!
//! A standby with a whole copy goes on from the last epoch; whoever takes over is told why. Without one, the guest ends.
//!
//! Some guests break any machine: they have KVM meet what it cannot do. So a machine that breaks soon after its guest was
//! taken over from another one that broke does so because of its guest, which ends there. Between two such takeovers lie
//! at least [`ITS_OWN_WITHIN`], so the guest does not go back and forth. The guest's state says that a machine broke, so
//! takeovers for other reasons in between change nothing.
//!
//! What must not be done here: tell what is the host's failure from what is the guest's doing. `vcpu::ending` does.

use std::time::Duration;

/// A guest whose machine breaks within this time after another one broke under it does that itself.
pub(super) const ITS_OWN_WITHIN: Duration = Duration::from_secs(10 * 60);
/// What this is called among what fails here.
pub(super) const TOPIC: &str = "machine";

#[derive(Debug, Default)]
pub(super) struct Broken {
    /// Why, if it is.
    what: Option<String>,
    /// Another machine has broken under this guest: when this side heard of it, and how long ago it was then.
    before: Option<(Duration, Duration)>,
}

impl Broken {
    /// The guest was taken over, from a machine that had broken or not.
    pub(super) fn taken_over(&mut self, now: Duration, machine_broke: bool) {
        self.before = machine_broke.then_some((now, Duration::ZERO));
    }

    /// The guest was taken over for whatever reason, and its state says this of an earlier takeover.
    pub(super) fn broke_earlier(&mut self, now: Duration, ago: Duration) {
        self.before.get_or_insert((now, ago));
    }

    /// How long ago another machine broke under this guest, if that is why this one does.
    pub(super) fn broke_before(&self, now: Duration) -> Option<Duration> {
        let (at, ago) = self.before?;
        let before = Some(ago.saturating_add(now.saturating_sub(at)));
        before.filter(|before| *before < ITS_OWN_WITHIN)
    }

    pub(super) fn begin(&mut self, what: String) {
        self.what = Some(what);
    }

    pub(super) fn what(&self) -> Option<&str> {
        self.what.as_deref()
    }

    /// From then on, nothing else that becomes of the machine leads to anything.
    pub(super) fn is_so(&self) -> bool {
        self.what.is_some()
    }
}
