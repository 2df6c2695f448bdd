//! What the program says on standard output and standard error. Either may be full or closed: then that is an error,
//! or not said at all, and never a panic. A host must not lose its guest to a full file system with logs on it.
//!
//! What must not be done elsewhere: `print!` and its like, which panic.

use std::fmt::Display;
use std::io::{self, Write};

use anyhow::{Context, Result};

/// Puts text on standard output.
pub(crate) fn print(text: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    write!(out, "{text}")
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// Puts a line on standard output.
pub(crate) fn line(text: impl Display) -> Result<()> {
    print(format_args!("{text}\n"))
}

/// Puts a line on standard error, if somebody takes it.
pub(crate) fn complain(text: impl Display) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
