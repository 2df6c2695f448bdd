//! The control socket: how `vmm status`, `vmm stop` and their like reach a running [`node`](crate::node). A Unix
//! stream socket; one JSON object a line each way. A question is `{"request": "status"}`; an answer says by which
//! version of this protocol, and is `{"version": 3, "ok": …}`, `{"version": 3, "denied": {…}}` with a
//! [`Denial`], or `{"version": 3, "error": "…"}` if the question made no sense. `verify-disks` is answered by a line
//! a second that says how far it is, and one with the result.
//!
//! What must not be done here: decide anything. The node does.

mod client;
mod clients;
mod server;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::node::{Denial, Request, Verified};

pub use client::{EndWatch, events, request, status, verify_disks, watch_end};
pub use server::{ControlServer, ControlSocket};

/// Version of questions, answers, and what is in them.
pub const VERSION: u32 = 3;
/// Longest line either side accepts.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// How long a client or the server waits for the other's line.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    request: Question,
}

/// What can be asked on the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Question {
    Status,
    /// The kept events after a number. Answered as soon as there is one, or when that time is over.
    Events {
        after: u64,
        patience_ms: u64,
    },
    /// Answered when the node has ended, or not within that time.
    AwaitEnd {
        patience_ms: u64,
    },
    /// Compares the disks' images with the standby's.
    VerifyDisks {
        bytes_per_second: u64,
        repair: bool,
    },
    #[serde(untagged)]
    Node(Request),
}

/// How far a comparison of the disks' images is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verifying {
    /// It has come to its end.
    pub done: bool,
    /// What was found so far.
    #[serde(flatten)]
    pub found: Verified,
}

impl Question {
    /// Whether its answer may take long.
    fn waits(self) -> bool {
        match self {
            Self::Events { patience_ms, .. } | Self::AwaitEnd { patience_ms } => patience_ms > 0,
            Self::VerifyDisks { .. } => true,
            Self::Status | Self::Node(_) => false,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Answer {
    version: u32,
    #[serde(flatten)]
    what: AnswerKind,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum AnswerKind {
    Ok(Value),
    Denied(Denial),
    Error(String),
}

/// Why a control socket cannot be had, or gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Another process serves it.
    #[error("the control socket {} is in use by a running vmm", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has the socket's name.
    #[error("{} is there already and is no socket", path.display())]
    NoSocket {
        /// The path.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {what} the control socket {}", path.display())]
    System {
        /// What was attempted.
        what: &'static str,
        /// The socket.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The running program speaks another version of the protocol.
    #[error(
        "the vmm behind {} is of another version: it speaks {}, this one version {VERSION} of the control socket's \
         protocol; ask it with the vmm that started it",
        path.display(), version_in_words(*.found)
    )]
    OtherVersion {
        /// The socket.
        path: PathBuf,
        /// Its version, if it told one.
        found: Option<u32>,
    },
    /// The running program ended before it answered.
    #[error("the vmm behind {} has ended in the middle of its answer", path.display())]
    Gone {
        /// The socket.
        path: PathBuf,
    },
    /// The answer made no sense.
    #[error("the answer on {} is no vmm's: {why}", path.display())]
    Malformed {
        /// The socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The node does not do it.
    #[error(transparent)]
    Denied(Denial),
}

fn version_in_words(version: Option<u32>) -> String {
    version.map_or_else(
        || "one from before versions were told".into(),
        |version| format!("version {version}"),
    )
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ControlError + use<> {
    let path = path.to_path_buf();
    move |source| ControlError::System { what, path, source }
}
