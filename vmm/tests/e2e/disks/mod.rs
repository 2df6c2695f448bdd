//! Disks of protected guests: every write that anybody was told of is there after the loss of a host, and every
//! image is that of one moment. The guest checks what it reads, the test checks the images themselves.

mod ends;
mod failures;
mod hangs;
pub(crate) mod hosts;
mod moments;
mod refusals;
mod replaced;
mod replicated;
mod restarts;
mod shared;
mod verify;
