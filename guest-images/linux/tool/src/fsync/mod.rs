//! Records that are acknowledged over TCP only after `fsync`, and the proof that none is lost.
//!
//! Records are numbered from 0 on, [`RECORD_BYTES`] long, and lie in order in files of
//! [`RECORDS_PER_FILE`]. They are appended one after the other, so "acknowledged up to N" says which must be
//! there. The protocol is lines: `append COUNT` is answered by `ack NUMBER` for each record once it is on
//! disk; `count` by `count RECORDS`; `verify ACKED` by `ok records=R torn_bytes=T` or `bad WHY`, where ACKED
//! is how many records were acknowledged. What cannot be done is answered by `error WHY`.

mod check;
mod client;
mod record;
mod server;
mod store;

pub use check::{CheckError, Checked, check};
pub use client::{Client, ClientError};
pub use record::{RECORD_BYTES, RECORDS_PER_FILE, RecordError, decode, encode};
pub use server::{LINE_BYTES_MAX, serve};
pub use store::{Store, StoreError};

/// TCP port in the guest.
pub const PORT: u16 = 8003;
