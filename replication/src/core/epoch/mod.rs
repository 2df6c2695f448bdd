//! One epoch as messages, from both sides: [`assemble`] makes them on the primary (steps ④ and ⑤),
//! [`staging`] collects them on the backup (steps ⑥ and ⑦), and [`tally`] counts them the same way
//! on both.

pub mod assemble;
pub mod staging;
pub mod tally;
