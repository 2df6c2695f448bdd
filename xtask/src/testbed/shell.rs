//! Commands in hosts and guests: a shell behind a TCP port there. Each command has a connection of its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Longest output that is read.
const OUTPUT_BYTES_MAX: usize = 8 << 20;
/// Precedes the exit code, after everything else.
const MARK: &str = "\n<<exit ";

/// What a command printed, errors among it, and its exit code.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) text: String,
    pub(super) code: i32,
}

/// Runs a shell script behind `address` to its end. Who may have lost its power gives no answer to a connection:
/// `connect` is the patience with that.
pub(super) fn run(
    address: &str,
    script: &str,
    connect: Duration,
    patience: Duration,
) -> Result<Output> {
    let address: SocketAddr = address.parse()?;
    let deadline = Instant::now() + patience;
    let mut stream = TcpStream::connect_timeout(&address, connect)
        .with_context(|| format!("no shell at {address}"))?;
    stream.set_write_timeout(Some(patience))?;
    // The script's commands must not read what follows it.
    let text = format!("{{ {script}\n}} 2>&1 < /dev/null\nprintf '\\n<<exit %d>>' $?\nexit\n");
    stream.write_all(text.as_bytes())?;
    let said =
        read_to_mark(&mut stream, deadline).with_context(|| format!("`{script}` at {address}"))?;
    let (text, code) = said
        .rsplit_once(MARK)
        .with_context(|| format!("`{script}` at {address} ended without exit code: {said}"))?;
    let code = code.trim_end().trim_end_matches('>').parse()?;
    let text = text.to_owned();
    Ok(Output { text, code })
}

/// The same for a script that must succeed; returns what it printed.
pub(super) fn must(
    address: &str,
    script: &str,
    connect: Duration,
    patience: Duration,
) -> Result<String> {
    let output = run(address, script, connect, patience)?;
    ensure!(
        output.code == 0,
        "`{script}` at {address} ended with {}: {}",
        output.code,
        output.text
    );
    Ok(output.text)
}

fn read_to_mark(stream: &mut TcpStream, deadline: Instant) -> Result<String> {
    let mut said = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("no end in time; so far: {}", String::from_utf8_lossy(&said));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => said.extend_from_slice(&buffer[..count]),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) => {}
            Err(error) => return Err(error.into()),
        }
        ensure!(said.len() <= OUTPUT_BYTES_MAX, "too much output");
        if said.ends_with(b">>") {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}
