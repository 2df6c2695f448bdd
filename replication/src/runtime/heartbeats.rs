//! UDP heartbeats as the drivers use them. There may be no such path. A path that fails is no
//! reason to stop; it is only one sign of life less.

use understudy_transport::heartbeat::{HeartbeatSocket, Sender};

use super::error::RuntimeError;
use super::settings::Settings;
use crate::ids::Generation;

pub(super) struct Heartbeats {
    socket: Option<HeartbeatSocket>,
    sender: Sender,
    /// Whether the last attempt to send failed; repeated failures are not logged again.
    failing: bool,
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
        })
    }

    pub(super) async fn send(&mut self, generation: Generation) {
        let Some(socket) = &mut self.socket else {
            return;
        };
        let sent = socket.send(self.sender, generation.0).await;
        if let Err(error) = &sent
            && !self.failing
        {
            tracing::warn!(%error, "cannot send heartbeats; the logging channel remains");
        }
        self.failing = sent.is_err();
    }

    /// Waits for the other side's next heartbeat, forever if there is no such path. Cancel safe.
    pub(super) async fn recv(&mut self) -> Generation {
        loop {
            let Some(socket) = &mut self.socket else {
                return std::future::pending().await;
            };
            match socket.recv().await {
                Ok(heartbeat) if heartbeat.sender != self.sender => {
                    return Generation(heartbeat.generation);
                }
                Ok(_) => {}
                Err(error) => {
                    // This may be an ICMP error of an earlier packet. The next call waits again.
                    tracing::debug!(%error, "heartbeat socket");
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}
