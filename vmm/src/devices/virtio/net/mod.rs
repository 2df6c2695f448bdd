//! virtio-net (VIRTIO 1.2, section 5.1) between the guest's rings, a network [`backend`] and the output
//! gate.
//!
//! Received frames go from the backend to the guest. Sent frames go to the gate's port, never to the
//! backend. On the way both tell where addresses are, for the announcement after a promotion.

mod announcer;
pub mod backend;
mod control;
mod device;
mod offload;
mod packet;
mod state;
#[cfg(test)]
mod tests;

pub use backend::HEADER_BYTES;
pub use device::{NetCounters, NetDevice};
