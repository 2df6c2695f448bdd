//! UDP heartbeats as the drivers use them. There may be no such path. A path that fails is no
//! reason to stop; it is only one sign of life less.

use understudy_transport::heartbeat::{HeartbeatSocket, Sender};

use super::error::RuntimeError;
use super::settings::Settings;
use super::threads::tokio_runtime;
use crate::core::heartbeats::{Heartbeat, HeartbeatFilter};
use crate::ids::Generation;

pub(super) struct Heartbeats {
    socket: Option<HeartbeatSocket>,
    sender: Sender,
    /// Whether the last attempt to send failed; repeated failures are not logged again.
    failing: bool,
    filter: HeartbeatFilter,
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
            filter: HeartbeatFilter::new(sender == Sender::Primary),
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

    /// Waits for the next heartbeat that counts in `session`, forever if there is no such path.
    /// Cancel safe.
    pub(super) async fn recv(&mut self, session: u64) -> Heartbeat {
        loop {
            let heartbeat = self.recv_any().await;
            if self.filter.admits(&heartbeat, session) {
                return heartbeat;
            }
        }
    }

    /// Waits for the next heartbeat, whoever sent it. Cancel safe.
    async fn recv_any(&mut self) -> Heartbeat {
        loop {
            let Some(socket) = &mut self.socket else {
                return std::future::pending().await;
            };
            match socket.recv().await {
                Ok(heartbeat) => {
                    return Heartbeat {
                        from_primary: heartbeat.sender == Sender::Primary,
                        session: heartbeat.session,
                        generation: Generation(heartbeat.generation),
                        sequence: heartbeat.sequence,
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
        let hear = async { while !heartbeats.recv_any().await.from_primary {} };
        match tokio::time::timeout(settings.policy.heartbeat_timeout, hear).await {
            Ok(()) => Err(RuntimeError::RunsElsewhere { peer: path.peer }),
            Err(_) => Ok(()),
        }
    })
}
