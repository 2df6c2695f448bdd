//! One epoch as messages. [`assemble`] makes them on the primary (steps ④ and ⑤), [`staging`]
//! collects them on the backup (steps ⑥ and ⑦), and [`tally`] counts them in the same way on both
//! sides.

pub mod assemble;
pub mod staging;
pub mod tally;
