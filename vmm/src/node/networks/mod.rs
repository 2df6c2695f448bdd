//! Whether the guest reaches its clients through the taps of this host: one thread that looks, so that nothing else ever
//! waits for it.
//!
//! ```text
//!   sysfs: what there is of a tap ──► judge: for how long ──► the node's core: what follows
//! ```
//!
//! What must not be done here: decide what follows.

mod judge;
mod sysfs;

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::sync::watch;

use self::judge::Judge;
use self::sysfs::look;
use crate::config::WatchedNetwork;

/// Where the kernel shows interfaces.
const SYSFS: &str = "/sys/class/net";
/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(500);

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
    let mut watched: Vec<(WatchedNetwork, Judge)> = (networks.into_iter())
        .map(|network| (network, Judge::default()))
        .collect();
    std::thread::Builder::new()
        .name("networks".into())
        .spawn(move || {
            while !tell.is_closed() {
                let now = watched.iter_mut().map(|(network, judge)| {
                    let (reach, cut) =
                        judge.judge(&network.tap, look(Path::new(SYSFS), &network.tap));
                    let watched = network.clone();
                    NetworkSeen {
                        watched,
                        reach,
                        cut,
                    }
                });
                let now = Some(now.collect());
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
