//! Guests to run.
#![forbid(unsafe_code)]
