//! What is tried: each scenario is a short function of actions and of checks that a client of the guest could
//! make. A new one is such a function and a line in [`ALL`].

mod clocks;
mod disks;
mod faults;
mod guide;

use anyhow::Result;

use super::guest::Mode;
use super::two_hosts::Testbed;
use faults::Fault;

/// See the [module documentation](self).
pub(super) struct Scenario {
    pub(super) name: &'static str,
    /// For `testbed list`.
    pub(super) about: &'static str,
    /// Whether its guest is the one that `cargo xtask guest-image` builds.
    pub(super) needs_image: bool,
    pub(super) act: fn(&mut Testbed) -> Result<()>,
}

const fn scenario(
    name: &'static str,
    about: &'static str,
    act: fn(&mut Testbed) -> Result<()>,
) -> Scenario {
    Scenario {
        name,
        about,
        needs_image: false,
        act,
    }
}

const fn with_image(scenario: Scenario) -> Scenario {
    Scenario {
        needs_image: true,
        ..scenario
    }
}

/// In the order in which `testbed run all` runs them.
pub(super) const ALL: &[Scenario] = &[
    scenario(
        "download-1",
        "power failure of the primary during a download, 1 vCPU",
        |testbed| faults::one(testbed, Fault::PowerFailure, 1),
    ),
    scenario("download-2", "the same with 2 vCPUs", |testbed| {
        faults::one(testbed, Fault::PowerFailure, 2)
    }),
    scenario(
        "there-and-back",
        "the failed host becomes the standby, then the other one fails",
        faults::there_and_back,
    ),
    scenario(
        "freeze",
        "the primary's host hangs, and goes on after the takeover: it is fenced and silent",
        |testbed| faults::one(testbed, Fault::Freeze, 1),
    ),
    scenario(
        "cut-off",
        "the primary's host is cut off from everything: the standby takes over",
        |testbed| faults::one(testbed, Fault::CutOff, 2),
    ),
    scenario(
        "cut-channel",
        "the hosts no longer reach each other: one goes on, one stops",
        faults::cut_channel,
    ),
    scenario(
        "suspended",
        "a guest that has suspended itself is taken over, and woken by its power button",
        clocks::suspended,
    ),
    scenario(
        "clock",
        "chrony sets the guest's clock right after power failures, from host to host and back (--times N)",
        clocks::corrected,
    ),
    scenario(
        "clock-jump",
        "the clocks of both hosts are set an hour ahead and back: nobody minds",
        clocks::jump,
    ),
    scenario(
        "random",
        "faults of all kinds at random moments, from host to host and back (--times N, --seed N)",
        faults::random,
    ),
    with_image(scenario(
        "databases-replicated-1",
        "Redis and fsynced records over two power failures, a disk on each host, 1 vCPU",
        |testbed| disks::databases(testbed, Mode::Replicated, 1),
    )),
    with_image(scenario(
        "databases-replicated-2",
        "the same with 2 vCPUs",
        |testbed| disks::databases(testbed, Mode::Replicated, 2),
    )),
    with_image(scenario(
        "databases-shared-1",
        "the same with one disk on shared storage, 1 vCPU",
        |testbed| disks::databases(testbed, Mode::Shared, 1),
    )),
    with_image(scenario(
        "databases-shared-2",
        "the same with 2 vCPUs",
        |testbed| disks::databases(testbed, Mode::Shared, 2),
    )),
    with_image(scenario(
        "freeze-shared",
        "a primary that hangs writes nothing to the shared disk when it goes on",
        |testbed| disks::freeze(testbed, Mode::Shared),
    )),
    with_image(scenario(
        "random-replicated",
        "Redis and fsynced records over faults of all kinds at random moments (--times N, --seed N)",
        |testbed| disks::random(testbed, Mode::Replicated),
    )),
    with_image(scenario(
        "random-shared",
        "the same with one disk on shared storage",
        |testbed| disks::random(testbed, Mode::Shared),
    )),
    with_image(scenario(
        "compile-replicated-1",
        "a compile goes on over a power failure, a disk on each host, 1 vCPU",
        |testbed| disks::compile(testbed, Mode::Replicated, 1),
    )),
    with_image(scenario(
        "compile-replicated-2",
        "the same with 2 vCPUs",
        |testbed| disks::compile(testbed, Mode::Replicated, 2),
    )),
    with_image(scenario(
        "compile-shared-1",
        "the same with one disk on shared storage, 1 vCPU",
        |testbed| disks::compile(testbed, Mode::Shared, 1),
    )),
    with_image(scenario(
        "compile-shared-2",
        "the same with 2 vCPUs",
        |testbed| disks::compile(testbed, Mode::Shared, 2),
    )),
    with_image(scenario(
        "soak",
        "a protected guest compiles over and over, undisturbed (--times N)",
        |testbed| disks::soak(testbed, Mode::Replicated),
    )),
    with_image(scenario(
        "guide",
        "docs/two-hosts.md, with its own commands and configuration",
        guide::follow,
    )),
];
