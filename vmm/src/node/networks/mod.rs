//! Whether the guest reaches its clients through the taps of this host: one thread that looks, so that nothing else ever
//! waits for it.
//!
//! ```text
//!   sysfs: what there is of a tap ──┬─► judge: for how long ──► the node's core: what follows
//!   ping: who answers ──────────────┘
//! ```
//!
//! What must not be done here: decide what follows.

mod judge;
pub(super) mod ping;
mod sysfs;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use self::judge::Judge;
use self::ping::{Answers, Pings};
use self::sysfs::{Tap, look};
use crate::config::WatchedNetwork;

/// Where the kernel shows interfaces.
const SYSFS: &str = "/sys/class/net";
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A host has seen by then that a network leads somewhere again: the round of pings that was under way ends without an
/// answer, the next one has one, and the judge waits for some more good looks.
pub(super) const GOOD_AGAIN_WITHIN: Duration =
    LOOK.saturating_mul(2 * ping::ROUND_LOOKS + judge::LOOKS_GOOD - 1);

/// How far the guest's frames get on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// To the host itself, which may pass them on.
    #[default]
    Tap,
    /// To a bridge.
    Bridge,
    /// To a bridge with a way out of this host.
    Uplink,
}

/// A network as this host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NetworkSeen {
    pub(super) watched: WatchedNetwork,
    /// How far frames have ever got here.
    pub(super) reach: Reach,
    /// Why they reach nobody now.
    pub(super) cut: Option<Cut>,
    /// What its ping targets say to this host.
    pub(super) answers: Answers,
}

/// The guest's frames reach nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cut {
    /// In plain words.
    pub(super) why: String,
    /// It is not over in a moment.
    pub(super) lasts: bool,
}

/// What was seen last; `None` before the first look.
pub(super) type Seen = watch::Receiver<Option<Vec<NetworkSeen>>>;

/// Watches `networks` for as long as somebody wants to know.
///
/// # Errors
/// If there is no thread to be had.
pub(super) fn watch_all(networks: Vec<WatchedNetwork>) -> io::Result<Seen> {
    let (tell, seen) = watch::channel(None);
    let mut watched: Vec<Watch> = networks.into_iter().map(Watch::new).collect();
    std::thread::Builder::new()
        .name("networks".into())
        .spawn(move || {
            while !tell.is_closed() {
                let now = Some(watched.iter_mut().map(Watch::look).collect());
                tell.send_if_modified(|last| {
                    let changes = *last != now;
                    *last = now;
                    changes
                });
                std::thread::sleep(LOOK);
            }
        })?;
    Ok(seen)
}

/// A network, and what is known of it so far.
struct Watch {
    network: WatchedNetwork,
    judge: Judge,
    pings: Pings,
}

impl Watch {
    fn new(network: WatchedNetwork) -> Self {
        Self {
            judge: Judge::default(),
            pings: Pings::new(&network.ping),
            network,
        }
    }

    fn look(&mut self) -> NetworkSeen {
        let tap = look(Path::new(SYSFS), &self.network.tap);
        self.pings.look(tap.as_ref().and_then(Tap::bridge));
        let silence = self.pings.silence();
        let (reach, cut) = self.judge.judge(&self.network.tap, tap, silence);
        NetworkSeen {
            watched: self.network.clone(),
            reach,
            cut,
            answers: self.pings.answers(),
        }
    }
}
