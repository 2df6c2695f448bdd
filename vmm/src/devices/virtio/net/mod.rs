//! virtio-net (VIRTIO 1.2, section 5.1) between the guest's rings, a network [`backend`] and the output
//! gate.
//!
//! Received frames go from the backend to the guest. Sent frames go to the gate's port, never to the
//! backend.

pub mod backend;
mod device;
mod offload;
mod state;
#[cfg(test)]
mod tests;

pub use backend::HEADER_BYTES;
pub use device::{NetCounters, NetDevice};
