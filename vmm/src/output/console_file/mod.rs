//! A console that is a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use understudy_replication::output::ConsoleSink;

#[cfg(test)]
mod tests;

/// A file with the guest's console output and nothing else: its length is the position.
///
/// Both hosts may name one file on shared storage; then each byte is in it once. If each host has a file of its own,
/// a backup that takes over appends to its own, which lacks what the other host wrote: its length says nothing then.
#[derive(Debug)]
pub struct ConsoleFile {
    file: File,
    content: Content,
}

/// What is in a console file.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// The output of an earlier run, to be dropped with the first byte of this guest. Not before: a host that is
    /// refused the guest must not empty the console of one that runs elsewhere.
    EarlierRun,
    /// As much as its length says, unless it is this host's own file. The length is read after the takeover: until
    /// then the old primary may append.
    ByLength,
    /// This many bytes of the guest's output.
    Bytes(u64),
}

impl ConsoleFile {
    /// For a guest that boots here: the file is emptied before the guest's first byte.
    ///
    /// # Errors
    /// If it cannot be opened or created.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::open(path, Content::EarlierRun)
    }

    /// For a standby: goes on with the file as it is when this side takes over.
    ///
    /// # Errors
    /// If it cannot be opened or created.
    pub fn join(path: &Path) -> io::Result<Self> {
        Self::open(path, Content::ByLength)
    }

    fn open(path: &Path, content: Content) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self { file, content })
    }

    /// How many of the `len` bytes at `position` a joined file already has. A longer file is not shared: the old
    /// primary cannot have written more than the guest had said by the takeover.
    fn present(&self, position: u64, len: usize) -> io::Result<usize> {
        let present = self.file.metadata()?.len().saturating_sub(position);
        Ok(usize::try_from(present).map_or(0, |present| if present <= len { present } else { 0 }))
    }
}

impl ConsoleSink for ConsoleFile {
    fn position(&mut self) -> io::Result<Option<u64>> {
        match self.content {
            Content::EarlierRun => Ok(Some(0)),
            // `append` finds out.
            Content::ByLength => Ok(None),
            Content::Bytes(position) => Ok(Some(position)),
        }
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let missing = match self.content {
            Content::EarlierRun => {
                self.file.set_len(0)?;
                bytes
            }
            Content::ByLength => &bytes[self.present(position, bytes.len())?..],
            Content::Bytes(_) => bytes,
        };
        let end = position.saturating_add(bytes.len() as u64);
        let mut rest = missing;
        // A full file system takes a part: what is in the file must not be written again.
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => rest = &rest[count..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.content = Content::Bytes(end - rest.len() as u64);
        }
        self.content = Content::Bytes(end);
        Ok(())
    }
}
