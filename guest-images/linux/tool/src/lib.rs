//! Services of the Linux guest whose every promise can be checked, and their clients.
//!
//! The guest runs them as `guest-tool`; whoever tests a guest uses the clients and checkers. What must not be
//! done here: depend on the VMM, or on anything but a file system and TCP.
#![forbid(unsafe_code)]

pub mod fsync;
pub mod stream;
