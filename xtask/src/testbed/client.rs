//! Clients of the guest, on this side of the service network.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::network::GUEST;
use super::wait::until;

/// A client that waits that long for the next byte gives up.
const PATIENCE: Duration = Duration::from_secs(90);
const CHUNK_BYTES: usize = 16 << 10;

/// A download under way that compares every byte.
pub(super) struct Download {
    thread: JoinHandle<Result<Downloaded>>,
    bytes: Arc<AtomicU64>,
}

/// A download that got all its bytes, each as it had to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Downloaded {
    pub(super) bytes: u64,
    /// Longest wait for the next byte.
    pub(super) gap: Duration,
}

impl Download {
    /// Fetches `/numbers`, the lines 1 to `lines`, in about `duration`, so that there is time for something to
    /// happen during it.
    pub(super) fn start(lines: u64, duration: Duration) -> Result<Self> {
        let expected: Vec<u8> = (1..=lines)
            .flat_map(|line| format!("{line}\n").into_bytes())
            .collect();
        let bytes = Arc::new(AtomicU64::new(0));
        let progress = Arc::clone(&bytes);
        let thread = std::thread::Builder::new()
            .name("download".into())
            .spawn(move || download(&expected, duration, &progress))?;
        Ok(Self { thread, bytes })
    }

    /// Waits until it has got that much.
    pub(super) fn await_bytes(&self, bytes: u64) -> Result<()> {
        let what = format!("{bytes} bytes of the download");
        until(&what, PATIENCE, || {
            let got = self.bytes.load(Ordering::Relaxed);
            ensure!(
                got >= bytes || !self.thread.is_finished(),
                "the download ended after {got} bytes"
            );
            Ok((got >= bytes).then_some(()))
        })
    }

    /// Waits for its end.
    pub(super) fn finish(self) -> Result<Downloaded> {
        match self.thread.join() {
            Ok(outcome) => outcome.context("download"),
            Err(_) => bail!("the download's thread panicked"),
        }
    }
}

fn download(expected: &[u8], duration: Duration, progress: &AtomicU64) -> Result<Downloaded> {
    let mut stream = TcpStream::connect(format!("{GUEST}:80"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /numbers HTTP/1.0\r\n\r\n")?;
    skip_header(&mut stream)?;
    let pause = duration.div_f64((expected.len() / CHUNK_BYTES).max(1) as f64);
    let mut got = 0;
    let mut gap = Duration::ZERO;
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let asked = Instant::now();
        let count = match stream.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            read => read.with_context(|| format!("the connection broke after {got} bytes"))?,
        };
        gap = gap.max(asked.elapsed());
        if count == 0 {
            break;
        }
        let want = expected.get(got..got + count);
        ensure!(
            want == Some(&buffer[..count]),
            "the bytes {got} to {} are not as they must be",
            got + count
        );
        got += count;
        progress.store(got as u64, Ordering::Relaxed);
        std::thread::sleep(pause.mul_f64(count as f64 / CHUNK_BYTES as f64));
    }
    ensure!(
        got == expected.len(),
        "the connection ended after {got} of {} bytes",
        expected.len()
    );
    Ok(Downloaded {
        bytes: got as u64,
        gap,
    })
}

fn skip_header(stream: &mut TcpStream) -> Result<()> {
    let mut header = Vec::new();
    let mut byte = [0];
    while !header.ends_with(b"\r\n\r\n") {
        ensure!(header.len() < 4096, "no end of the HTTP header");
        stream.read_exact(&mut byte)?;
        header.push(byte[0]);
    }
    ensure!(
        header.starts_with(b"HTTP/1.0 200") || header.starts_with(b"HTTP/1.1 200"),
        "the guest answered {}",
        String::from_utf8_lossy(&header)
    );
    Ok(())
}
