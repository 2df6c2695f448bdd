//! UDP heartbeats as the drivers use them. There may be no such path. A path that fails is no
//! reason to stop; it is only one sign of life less.

use understudy_transport::heartbeat::{Heartbeat, HeartbeatSocket, Sender};

use super::error::RuntimeError;
use super::settings::Settings;
use super::threads::tokio_runtime;
use crate::ids::Generation;

pub(super) struct Heartbeats {
    socket: Option<HeartbeatSocket>,
    sender: Sender,
    /// Whether the last attempt to send failed; repeated failures are not logged again.
    failing: bool,
    /// The last heartbeat of each kind of sender, primary and backup.
    last: [Option<Heartbeat>; 2],
}

/// A heartbeat that is newer than all before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    /// From a side that runs the guest.
    pub(super) from_primary: bool,
    pub(super) session: u64,
    pub(super) generation: Generation,
}

impl Heartbeats {
    pub(super) async fn open(settings: &Settings, sender: Sender) -> Result<Self, RuntimeError> {
        let socket = match settings.heartbeat {
            None => None,
            Some(path) => Some(
                HeartbeatSocket::bind(path.listen, Some(path.peer), &settings.vm)
                    .await
                    .map_err(|source| RuntimeError::Heartbeat {
                        listen: path.listen,
                        source,
                    })?,
            ),
        };
        Ok(Self {
            socket,
            sender,
            failing: false,
            last: [None; 2],
        })
    }

    pub(super) async fn send(&mut self, generation: Generation, session: u64) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        let sent = socket.send(self.sender, generation.0, session).await;
        if let Err(error) = &sent
            && !self.failing
        {
            tracing::warn!(%error, "cannot send heartbeats; the logging channel remains");
        }
        self.failing = sent.is_err();
    }

    /// Waits for the next heartbeat that matters, forever if there is no such path: a backup hears
    /// primaries only, because another backup would keep a dead primary alive. A primary also hears
    /// primaries: one may have been promoted. Cancel safe.
    pub(super) async fn recv(&mut self) -> Heard {
        loop {
            let Some(socket) = &mut self.socket else {
                return std::future::pending().await;
            };
            match socket.recv().await {
                Ok(heartbeat)
                    if heartbeat.sender == Sender::Backup && self.sender == Sender::Backup => {}
                Ok(heartbeat) => {
                    let last = &mut self.last[usize::from(heartbeat.sender == Sender::Backup)];
                    if last.is_some_and(|last| is_old(heartbeat, last)) {
                        continue;
                    }
                    *last = Some(heartbeat);
                    return Heard {
                        from_primary: heartbeat.sender == Sender::Primary,
                        session: heartbeat.session,
                        generation: Generation(heartbeat.generation),
                    };
                }
                Err(error) => {
                    // This may be an ICMP error of an earlier packet. The next call waits again.
                    tracing::debug!(%error, "heartbeat socket");
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Makes sure that no primary is heard of a guest that is started for the first time: its arbiter
/// may be another one than the other host's, for example because nothing is mounted in its place.
pub(super) fn expect_silence(settings: &Settings) -> Result<(), RuntimeError> {
    let Some(path) = settings.heartbeat else {
        return Ok(());
    };
    tokio_runtime()?.block_on(async {
        let mut heartbeats = Heartbeats::open(settings, Sender::Primary).await?;
        let hear = async { while !heartbeats.recv().await.from_primary {} };
        match tokio::time::timeout(settings.policy.heartbeat_timeout, hear).await {
            Ok(()) => Err(RuntimeError::RunsElsewhere { peer: path.peer }),
            Err(_) => Ok(()),
        }
    })
}

/// Whether a heartbeat was overtaken by `last`, or repeats it. Otherwise anyone who has seen one
/// could keep a dead side alive with it.
fn is_old(heartbeat: Heartbeat, last: Heartbeat) -> bool {
    heartbeat.session == last.session && heartbeat.sequence <= last.sequence
}
