//! virtio-rng (VIRTIO 1.2, section 5.4): the host's random numbers for the guest. It has no state of its own; it
//! is tested with the register file (`virtio/tests.rs`), in front of which it is the simplest device.

mod device;

pub use device::RngDevice;
