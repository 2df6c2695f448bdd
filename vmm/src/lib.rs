//! A small rust-vmm based VMM whose guests survive the loss of their host.
