//! Byte links between the two hosts of a protected virtual machine.
//!
//! Steps ⑤ (ship), ⑥ (stage) and ⑧ (ack) of the data path travel here as [`Frame`]s over a
//! [`Link`]: TCP, a Unix socket, any other pair of byte streams, or, for tests, an in-memory pair
//! with seeded faults ([`memory`]). Signs of life also travel beside the link as UDP packets
//! ([`heartbeat`]). `docs/PROTOCOL.md` specifies the bytes field by field.
//!
//! Architecture invariant: this crate does not know guests, what epochs mean, or what a role may
//! do. It moves frames, whole and in order, or returns a typed error that says why it cannot. Bytes
//! from the peer never cause a panic or an allocation beyond [`Limits`].
//!
//! ```
//! # use understudy_transport::{Endpoint, Frame, Limits, Listener, connect};
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let listener = Listener::bind(&"tcp:127.0.0.1:0".parse()?, Limits::default()).await?;
//! let (near, far) = tokio::join!(
//!     connect(listener.local_endpoint(), Limits::default()),
//!     listener.accept(),
//! );
//! let (mut near, mut far) = (near?, far?);
//! near.writer.send(&Frame { kind: 1, generation: 7, epoch: 3, body: "pages".into() }).await?;
//! assert_eq!(far.reader.recv().await?.body, "pages");
//! # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod connect;
mod decoder;
mod endpoint;
mod error;
pub mod frame;
pub mod heartbeat;
mod link;

pub mod memory;
mod metrics;
mod queue;
mod source;

pub use connect::{ConnectError, Listener, connect};
pub use decoder::FrameDecoder;
pub use endpoint::{Endpoint, EndpointError};
pub use error::LinkError;
pub use frame::{Frame, HEADER_BYTES, Limits, MAX_BODY_BYTES, PROTOCOL_VERSION};
pub use link::{Link, LinkReader, LinkWriter};
pub use metrics::{LinkCounters, LinkMetrics};
pub use queue::{SendQueue, SendTask};
