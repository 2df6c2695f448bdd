//! Asks the other side what it has of a guest that is to be started.
//!
//! Must not be done here: deciding what follows; [`start`](crate::core::start) does.

use std::time::Duration;

use understudy_transport::{Endpoint, Limits, connect};

use super::error::RuntimeError;
use super::session::Session;
use super::threads::tokio_runtime;
use crate::core::message::{Holdings, Inquiry, Message, Refusal};
use crate::ids::Generation;

/// How long the other side may take to answer: less than a person who asks this process for
/// something waits.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// An answer is a few bytes.
const SEND_BYTES_MAX: u32 = 1 << 20;

/// Why the other side did not say what it has.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoAnswer {
    /// It asks another arbiter, which has granted this generation.
    #[error("it asks another arbiter, where {0} is in force")]
    OtherArbiter(Generation),
    /// It is there, and keeps or takes over a guest of this name.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Other(String),
}

/// Asks, and waits for the answer. Must not be called from within an asynchronous runtime.
pub(super) fn ask(
    endpoint: &Endpoint,
    inquiry: Inquiry,
    patience: Duration,
) -> Result<Result<Holdings, NoAnswer>, RuntimeError> {
    Ok(tokio_runtime()?.block_on(async {
        match tokio::time::timeout(patience, asking(endpoint, inquiry)).await {
            Ok(answer) => answer,
            Err(_) => Err(NoAnswer::Other(format!("no answer within {patience:?}"))),
        }
    }))
}

async fn asking(endpoint: &Endpoint, inquiry: Inquiry) -> Result<Holdings, NoAnswer> {
    let link = connect(endpoint, Limits::default())
        .await
        .map_err(no_answer)?;
    let mut session = Session::start(link, SEND_BYTES_MAX);
    // It holds no generation.
    session.send(Generation(0), &Message::Inquiry(inquiry));
    let (_, answer) = session.recv().await.map_err(no_answer)?;
    match answer {
        Message::Holdings(holdings) => Ok(holdings),
        Message::Refuse(Refusal::OtherArbiter { current, .. }) => {
            Err(NoAnswer::OtherArbiter(current))
        }
        Message::Refuse(busy @ Refusal::Busy(_)) => Err(NoAnswer::Busy(busy.to_string())),
        Message::Refuse(refusal) => Err(no_answer(refusal)),
        Message::Bye(bye) => Err(no_answer(bye)),
        other => Err(no_answer(format!("it answers {}", other.name()))),
    }
}

fn no_answer(why: impl std::fmt::Display) -> NoAnswer {
    NoAnswer::Other(why.to_string())
}
