//! One file for each subcommand, and what several of them share.

pub(crate) mod check;
pub(crate) mod demo;
mod disk_status;
pub(crate) mod keeper;
pub(crate) mod replicated;
pub(crate) mod run;
pub(crate) mod signals;
pub(crate) mod status;
pub(crate) mod vm;
