//! The client of the fsync service. What must not be done here: count a record as acknowledged before its line
//! is here, whole and the one that is due.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::check::Checked;

const ANSWER_BYTES_MAX: u64 = 1024;

/// What went wrong in a conversation.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The connection failed.
    #[error("the connection to the fsync service: {0}")]
    Io(#[from] io::Error),
    /// The service closed it.
    #[error("the fsync service closed the connection")]
    Closed,
    /// An answer that is none.
    #[error("the fsync service answered {0:?}")]
    Answer(String),
    /// Records are lost or damaged.
    #[error("the check in the guest failed: {0}")]
    Bad(String),
}

/// A connection to the service.
#[derive(Debug)]
pub struct Client {
    input: BufReader<TcpStream>,
}

impl Client {
    /// Connects; `patience` is how long each answer may take, a failover included.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn connect(address: SocketAddr, patience: Duration) -> Result<Self, ClientError> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            input: BufReader::new(stream),
        })
    }

    /// Has records appended and calls `acked` with the number of each that is acknowledged.
    ///
    /// # Errors
    /// If the connection or the service fails.
    pub fn append(&mut self, count: u64, mut acked: impl FnMut(u64)) -> Result<(), ClientError> {
        self.ask(&format!("append {count}"))?;
        for _ in 0..count {
            let line = self.line()?;
            let number = line.strip_prefix("ack ").and_then(|word| word.parse().ok());
            acked(number.ok_or(ClientError::Answer(line))?);
        }
        Ok(())
    }

    /// How many records there are.
    ///
    /// # Errors
    /// If the connection or the service fails.
    pub fn count(&mut self) -> Result<u64, ClientError> {
        self.ask("count")?;
        let line = self.line()?;
        let count = line
            .strip_prefix("count ")
            .and_then(|word| word.parse().ok());
        count.ok_or(ClientError::Answer(line))
    }

    /// Has the guest check all records, of which the first `acked` were acknowledged.
    ///
    /// # Errors
    /// [`ClientError::Bad`] if one of them is lost or damaged.
    pub fn verify(&mut self, acked: u64) -> Result<Checked, ClientError> {
        self.ask(&format!("verify {acked}"))?;
        let line = self.line()?;
        if let Some(why) = line.strip_prefix("bad ") {
            return Err(ClientError::Bad(why.to_owned()));
        }
        let read = || {
            let (records, torn) = line
                .strip_prefix("ok records=")?
                .split_once(" torn_bytes=")?;
            Some(Checked {
                records: records.parse().ok()?,
                torn_bytes: torn.parse().ok()?,
            })
        };
        read().ok_or_else(|| ClientError::Answer(line.clone()))
    }

    fn ask(&mut self, line: &str) -> Result<(), ClientError> {
        let mut stream = self.input.get_ref();
        Ok(stream.write_all(format!("{line}\n").as_bytes())?)
    }

    fn line(&mut self) -> Result<String, ClientError> {
        let mut line = String::new();
        (&mut self.input)
            .take(ANSWER_BYTES_MAX)
            .read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(whole) => Ok(whole.to_owned()),
            None if line.is_empty() => Err(ClientError::Closed),
            None => Err(ClientError::Answer(line)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::super::{Store, serve};
    use super::*;

    fn service(directory: &std::path::Path) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let store = Store::open(directory).unwrap();
        std::thread::spawn(move || serve(&listener, store));
        Client::connect(address, Duration::from_secs(30)).unwrap()
    }

    #[test]
    fn what_is_acknowledged_is_there_and_what_is_lost_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = service(directory.path());
        let mut acked = Vec::new();
        client.append(5, |number| acked.push(number)).unwrap();
        client.append(2, |number| acked.push(number)).unwrap();
        assert_eq!(acked, [0, 1, 2, 3, 4, 5, 6]);
        assert_eq!(client.count().unwrap(), 7);
        assert_eq!(client.verify(7).unwrap().records, 7);
        let error = client.verify(8).unwrap_err();
        assert!(matches!(error, ClientError::Bad(_)), "{error}");
    }

    #[test]
    fn nonsense_is_refused_and_long_lines_end_the_conversation() {
        let directory = tempfile::tempdir().unwrap();
        let mut client = service(directory.path());
        for nonsense in ["append -1", "append", "verify x", "count 1", ""] {
            client.ask(nonsense).unwrap();
            let line = client.line().unwrap();
            assert!(line.starts_with("error "), "{nonsense}: {line}");
        }
        client.ask(&"a".repeat(63)).unwrap();
        assert!(client.line().unwrap().starts_with("error there are"));
        client.ask(&"a".repeat(64)).unwrap();
        assert!(client.line().unwrap().starts_with("error a line"));
    }
}
