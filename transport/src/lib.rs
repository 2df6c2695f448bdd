//! Byte links between the two hosts of a protected virtual machine.
#![forbid(unsafe_code)]
