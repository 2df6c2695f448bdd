//! Connections whose peer has not introduced itself yet. Several are listened to at once, so that
//! one that says nothing keeps nobody out. The core is only given a link together with a `Hello` or
//! an `Inquiry`.
//!
//! Must not be done here: deciding who is accepted. The core does that.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use understudy_transport::{Limits, Link};

use crate::core::message::{Bye, Message, Refusal};
use crate::ids::Generation;
use crate::log_thinning::LogThinning;
use crate::runtime::metrics::Metrics;
use crate::runtime::session::Session;

/// How many are listened to. One more takes the place of another one.
pub(super) const STRANGERS_MAX: usize = 64;
/// How many are being told that they are refused. More are refused without a word.
const FAREWELLS_MAX: usize = 64;
/// How long a peer may take to introduce itself.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest frame body taken from a stranger: that of a `Hello`.
const BODY_BYTES_MAX: u32 = 64 << 10;

/// A peer that has introduced itself.
pub(super) struct Introduced {
    pub(super) session: Session,
    pub(super) generation: Generation,
    /// How it has introduced itself.
    pub(super) hello: Message,
}

/// What became of a stranger who did not introduce itself.
enum Failed {
    /// It went without a word.
    Gone,
    /// It said nothing for too long.
    Silent { peer: String },
    /// It said something else.
    Nonsense { peer: String, cause: String },
}

pub(super) struct Strangers {
    send_bytes_max: u32,
    metrics: Metrics,
    introductions: JoinSet<Result<Introduced, Failed>>,
    /// Those who have not introduced themselves yet, in the order in which they came.
    waiting: VecDeque<Waiting>,
    farewells: JoinSet<()>,
    log: LogThinning,
}

struct Waiting {
    host: String,
    introduction: AbortHandle,
}

impl Strangers {
    pub(super) fn new(send_bytes_max: u32, metrics: Metrics) -> Self {
        Self {
            send_bytes_max,
            metrics,
            introductions: JoinSet::new(),
            waiting: VecDeque::new(),
            farewells: JoinSet::new(),
            log: LogThinning::default(),
        }
    }

    /// Listens to one more. `generation` is this side's, for an answer to nonsense.
    pub(super) fn listen_to(&mut self, link: Link, generation: Generation) {
        self.metrics.strangers(|counts| counts.connections += 1);
        if self.waiting.len() == STRANGERS_MAX {
            self.turn_one_away();
        }
        let host = host(&link.peer).to_owned();
        let introduction = introduction(link, self.send_bytes_max, generation);
        self.waiting.push_back(Waiting {
            host,
            introduction: self.introductions.spawn(introduction),
        });
    }

    /// Waits until somebody has introduced itself. Cancel safe.
    pub(super) async fn introduced(&mut self) -> Introduced {
        loop {
            let Some(ended) = self.introductions.join_next_with_id().await else {
                return std::future::pending().await;
            };
            let id = match &ended {
                Ok((id, _)) => *id,
                Err(error) => error.id(),
            };
            self.waiting
                .retain(|waiting| waiting.introduction.id() != id);
            match ended {
                Ok((_, Ok(introduced))) => return introduced,
                Ok((_, Err(failed))) => self.failed(failed),
                // It was turned away.
                Err(_) => {}
            }
        }
    }

    /// Refuses one that has introduced itself.
    pub(super) fn refuse(
        &mut self,
        introduced: Introduced,
        generation: Generation,
        refusal: Refusal,
    ) {
        let mut session = introduced.session;
        self.metrics.strangers(|counts| counts.refused += 1);
        if let Some(left_out) = self.log.line("refused") {
            let peer = &session.peer;
            tracing::warn!(peer, left_out, "refused a primary: {refusal}");
        }
        while self.farewells.try_join_next().is_some() {}
        if self.farewells.len() < FAREWELLS_MAX {
            session.send(generation, &Message::Refuse(refusal));
            self.farewells.spawn(session.close());
        }
    }

    /// Makes room: the host with the most strangers loses its oldest one. So whoever fills all
    /// places takes them from itself.
    fn turn_one_away(&mut self) {
        let strangers_of = |host: &str| self.waiting.iter().filter(|it| it.host == host).count();
        // Of several equals, `max_by_key` returns the last one.
        let newest_first = (0..self.waiting.len()).rev();
        let chosen = newest_first.max_by_key(|index| strangers_of(&self.waiting[*index].host));
        let Some(waiting) = chosen.and_then(|index| self.waiting.remove(index)) else {
            return;
        };
        waiting.introduction.abort();
        self.metrics.strangers(|counts| counts.turned_away += 1);
        if let Some(left_out) = self.log.line("turned away") {
            tracing::warn!(
                host = waiting.host,
                left_out,
                "{STRANGERS_MAX} connections have not introduced themselves; closed one for the next"
            );
        }
    }

    fn failed(&mut self, failed: Failed) {
        match failed {
            Failed::Gone => self.metrics.strangers(|counts| counts.gone += 1),
            Failed::Silent { peer } => {
                self.metrics.strangers(|counts| counts.silent += 1);
                if let Some(left_out) = self.log.line("silent") {
                    tracing::warn!(
                        peer,
                        left_out,
                        "a connection did not introduce itself within {PATIENCE:?}"
                    );
                }
            }
            Failed::Nonsense { peer, cause } => {
                self.metrics.strangers(|counts| counts.malformed += 1);
                if let Some(left_out) = self.log.line("nonsense") {
                    tracing::warn!(peer, left_out, "cannot understand a connection: {cause}");
                }
            }
        }
    }
}

async fn introduction(
    mut link: Link,
    send_bytes_max: u32,
    generation: Generation,
) -> Result<Introduced, Failed> {
    link.reader.set_limits(Limits {
        body_bytes_max: BODY_BYTES_MAX,
    });
    let mut session = Session::start(link, send_bytes_max);
    let peer = session.peer.clone();
    let received = tokio::time::timeout(PATIENCE, session.recv()).await;
    let cause = match received {
        Ok(Ok((generation, hello @ (Message::Hello(_) | Message::Inquiry(_))))) => {
            session.set_limits(Limits::default());
            return Ok(Introduced {
                session,
                generation,
                hello,
            });
        }
        Ok(Ok((_, message))) => format!("{} instead of an introduction", message.name()),
        Ok(Err(error)) if error.is_peer_gone() => return Err(Failed::Gone),
        Ok(Err(error)) => error.to_string(),
        Err(_) => return Err(Failed::Silent { peer }),
    };
    // The other side may be of another version, and can then tell a person.
    session.send(generation, &Message::Bye(Bye::Protocol(cause.clone())));
    session.close().await;
    Err(Failed::Nonsense { peer, cause })
}

/// The host of a peer, without the port. All peers on a Unix socket are one host.
fn host(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(host, _)| host)
}

#[cfg(test)]
mod tests;
