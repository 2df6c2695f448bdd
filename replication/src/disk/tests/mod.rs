//! The disks of both sides, in memory and in files.

mod comparison;
mod crashes;
mod faults;
mod host;
mod identity;
mod journal;
mod lost_journal;
mod map;
mod overlay;
mod pair;
mod replicated;
mod session;
mod shared;
mod under_way;
mod verify;
mod waits;
