//! curl in the clients' namespace; every byte it gets is compared with the pattern.

use std::io::Read;
use std::process::{Child, ChildStdout, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use understudy_workload::pattern;

use super::await_some;
use super::namespace::Namespace;
use super::topology::GUEST;

/// A running curl. Dropping it kills it.
struct Curl {
    child: Child,
    output: Option<ChildStdout>,
}

impl Curl {
    fn start(client: &Namespace, path: &str) -> Self {
        let mut child = client
            .command("curl")
            // Unbuffered, silent but for errors; 60 s without a byte are an error.
            .args(["-sSN", "--speed-time", "60", "--speed-limit", "1"])
            .arg(format!("http://{GUEST}:8000{path}"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("curl starts");
        let output = child.stdout.take();
        Self { child, output }
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A download that goes on only as the test reads it, but for what fits into buffers.
pub(crate) struct Download {
    curl: Curl,
    output: ChildStdout,
    position: u64,
}

impl Download {
    pub(crate) fn start(client: &Namespace, bytes: u64) -> Self {
        let mut curl = Curl::start(client, &format!("/file?bytes={bytes}"));
        let output = curl.output.take().expect("it is piped");
        Self {
            curl,
            output,
            position: 0,
        }
    }

    /// Reads up to `position`, at least.
    pub(crate) fn read_to(&mut self, position: u64) {
        while self.position < position {
            assert!(self.read() > 0, "curl ended at byte {}", self.position);
        }
    }

    /// Reads the rest; returns the whole length and how curl ended.
    pub(crate) fn finish(mut self) -> (u64, ExitStatus) {
        while self.read() > 0 {}
        let exit = self.curl.child.wait().expect("curl is a child");
        (self.position, exit)
    }

    fn read(&mut self) -> usize {
        let mut buffer = [0; 64 * 1024];
        let count = self.output.read(&mut buffer).expect("a pipe can be read");
        pattern::check(self.position, &buffer[..count]).unwrap();
        self.position += count as u64;
        count
    }
}

/// An endless stream, read as it comes.
pub(crate) struct Stream {
    _curl: Curl,
    position: Arc<AtomicU64>,
    /// Why it ended, if it did.
    end: Arc<Mutex<Option<String>>>,
}

impl Stream {
    pub(crate) fn start(client: &Namespace) -> Self {
        let mut curl = Curl::start(client, "/stream");
        let mut output = curl.output.take().expect("it is piped");
        let (position, end) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new(None)));
        let (reached, ended) = (Arc::clone(&position), Arc::clone(&end));
        std::thread::spawn(move || {
            let mut buffer = [0; 64 * 1024];
            let why = loop {
                let at = reached.load(Ordering::SeqCst);
                let count = match output.read(&mut buffer) {
                    Ok(0) => break format!("curl ended at byte {at}"),
                    Ok(count) => count,
                    Err(error) => break error.to_string(),
                };
                if let Err(mismatch) = pattern::check(at, &buffer[..count]) {
                    break mismatch.to_string();
                }
                reached.store(at + count as u64, Ordering::SeqCst);
            };
            *ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
        });
        Self {
            _curl: curl,
            position,
            end,
        }
    }

    /// Waits for so many bytes more than it has now, all of them right.
    pub(crate) fn await_more(&self, bytes: u64) {
        let begin = self.position.load(Ordering::SeqCst);
        let wanted = begin + bytes;
        await_some(&format!("stream bytes from {begin} to {wanted}"), || {
            let position = self.position.load(Ordering::SeqCst);
            let end = self.end.lock().unwrap_or_else(PoisonError::into_inner);
            assert!(end.is_none(), "the stream broke: {end:?}");
            (position >= wanted).then_some(())
        });
    }
}
