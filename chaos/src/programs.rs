//! Other programs that must succeed.

use std::io::Write;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// Runs a program; an error says what it said.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    run_with_input(program, arguments, "")
}

/// The same, with something to read.
pub(crate) fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // Who does not read it says so by its exit code.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .with_context(|| format!("cannot wait for {program}"))?;
    ensure!(
        output.status.success(),
        "`{program} {}` ({}): {}{input}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
