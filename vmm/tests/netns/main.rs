//! Two hosts as network namespaces: `vmm primary` and `vmm standby` with taps and bridges, the
//! logging channel over TCP, heartbeats over UDP, and a client with the kernel's TCP stack. Every way
//! between the hosts can be cut by itself, and every frame the guest sends is seen where it enters
//! the clients' network.
//!
//! These tests need root, `/dev/kvm`, iproute2, curl and util-linux; without them they fail and say
//! so. They run one after the other: the machine is shared, and silence is what failovers are made of.
#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod client;
mod clients;
mod cuts;
mod kill;
mod namespace;
mod offload;
mod pair;
mod slow_link;
mod sniffer;
mod taps;
mod topology;
mod trials;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a test waits for what must come. Only a failure makes it wait that long.
const DEADLINE: Duration = Duration::from_secs(60);
/// Pause between two looks at something that changes by itself.
const LOOK: Duration = Duration::from_millis(5);

/// Programs that the tests run, and the Debian packages that have them.
const TOOLS: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("tc", "iproute2"),
    ("curl", "curl"),
    ("setpriv", "util-linux"),
];

/// Lets one test work at a time, on a machine that has what it needs.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    // A test that failed has cleaned up behind itself.
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(
        nix::unistd::geteuid().is_root(),
        "network namespaces need root: run these tests as root"
    );
    for (tool, package) in TOOLS {
        let found = ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
            .iter()
            .any(|directory| Path::new(directory).join(tool).exists());
        assert!(found, "{tool} is missing: apt-get install {package}");
    }
    assert!(Path::new("/dev/kvm").exists(), "/dev/kvm is missing");
    namespace::remove_leftovers();
    alone
}

/// Waits until `look` finds something; `what` is said if it does not in time.
fn await_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(LOOK);
    }
}
