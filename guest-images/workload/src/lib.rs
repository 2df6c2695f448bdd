//! What the built-in guest and its clients must agree on.
#![no_std]
#![forbid(unsafe_code)]
pub mod options;
