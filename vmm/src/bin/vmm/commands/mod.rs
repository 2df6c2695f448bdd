//! One file for each subcommand, or for those that are alike, and what several of them share.

pub(crate) mod check;
pub(crate) mod demo;
mod disk_status;
pub(crate) mod node;
mod signals;
pub(crate) mod status;
