//! The disks of both sides, in memory and in files.

mod comparison;
mod crashes;
mod end;
mod faults;
mod flushes;
mod host;
mod identity;
mod in_use;
mod journal;
mod large;
mod log;
mod lost_journal;
mod map;
mod names;
mod overlay;
mod pair;
mod released;
mod replicated;
mod room;
mod session;
mod shared;
mod under_way;
mod verify;
mod waits;
