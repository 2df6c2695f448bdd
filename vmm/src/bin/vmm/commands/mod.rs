//! One file for each subcommand, or for those that are alike, and what several of them share.

pub(crate) mod arbiter;
pub(crate) mod check;
pub(crate) mod demo;
mod disk_status;
pub(crate) mod node;
mod signals;
pub(crate) mod status;
pub(crate) mod verify;

use understudy_vmm::node::{Side, Status};

/// Whether a primary holds its output until it is known which side goes on.
fn is_undecided(status: &Status) -> bool {
    status.side == Side::Primary && status.phase == "claiming"
}
