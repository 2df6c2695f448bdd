//! One epoch as messages, from both sides: [`staging`] collects them on the backup (steps ⑥ and ⑦), [`tally`] counts
//! them on both.

pub mod staging;
pub mod tally;
