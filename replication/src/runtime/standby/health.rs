//! What fails on this host, on its way to the standby's thread. Only how things are now counts, so the newest takes the
//! place of what nobody has looked at yet, and whoever tells it never waits.
//!
//! Must not be done here: judging what fails.

use tokio::sync::watch::{self, Receiver, Sender};

use crate::core::message::Trouble;

/// Tells a standby what fails on its host; see
/// [`StandbyHandle::report_health`](super::StandbyHandle::report_health).
#[derive(Debug, Clone)]
pub struct HealthTeller(Sender<Vec<Trouble>>);

/// Where the standby finds it.
pub(super) struct HealthNews(Receiver<Vec<Trouble>>);

pub(super) fn channel() -> (HealthTeller, HealthNews) {
    // What is there at the beginning counts as seen.
    let (tell, news) = watch::channel(Vec::new());
    (HealthTeller(tell), HealthNews(news))
}

impl HealthTeller {
    /// Returns whether somebody may still look at it.
    pub(super) fn tell(&self, troubles: Vec<Trouble>) -> bool {
        self.0.send(troubles).is_ok()
    }
}

impl HealthNews {
    /// Waits for something newer than what was returned last. A wait that is given up misses nothing.
    pub(super) async fn next(&mut self) -> Vec<Trouble> {
        if self.0.changed().await.is_err() {
            // Nobody is left who could tell.
            std::future::pending::<()>().await;
        }
        self.0.borrow_and_update().clone()
    }
}
