//! What is tried: each scenario is a short function of actions and of checks that a client of the guest could
//! make. A new one is such a function and a line in [`ALL`].

mod faults;

use anyhow::Result;

use super::lab::Lab;

/// See the [module documentation](self).
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// For `testbed list`.
    pub(super) about: &'static str,
    pub(super) act: fn(&mut Lab) -> Result<()>,
}

/// In the order in which `testbed run all` runs them.
pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "download-1",
        about: "power failure of the primary during a download, 1 vCPU",
        act: |lab| faults::download(lab, 1),
    },
    Scenario {
        name: "download-2",
        about: "the same with 2 vCPUs",
        act: |lab| faults::download(lab, 2),
    },
    Scenario {
        name: "there-and-back",
        about: "the failed host becomes the standby, then the other one fails",
        act: faults::there_and_back,
    },
    Scenario {
        name: "freeze",
        about: "the primary's host hangs, and goes on after the takeover: it is fenced and silent",
        act: faults::freeze,
    },
    Scenario {
        name: "cut-channel",
        about: "the hosts no longer reach each other: one goes on, one stops",
        act: faults::cut_channel,
    },
    Scenario {
        name: "cut-off",
        about: "the primary's host is cut off from everything: the standby takes over",
        act: faults::cut_off,
    },
];
