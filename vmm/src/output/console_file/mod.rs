//! A console that is a file.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;

use understudy_replication::output::ConsoleSink;

#[cfg(test)]
mod tests;

/// A file that holds the guest's console output and nothing else, so that its length is the position.
///
/// Primary and backup may name the same file on shared storage: then it has every byte once. Where each
/// host has its own file, a backup that takes over appends what it is given; the file then lacks what
/// was written elsewhere, and its length tells nothing any more.
#[derive(Debug)]
pub struct ConsoleFile {
    file: File,
    content: Content,
}

/// What a console file has.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// The output of an earlier run, to be dropped when this guest first speaks. Not before: a host that
    /// asks for the guest and is refused must not empty the console of a guest that runs elsewhere.
    EarlierRun,
    /// As much as its length says, unless it is a file of this host's own. Asked when this side has taken
    /// over: until then the old primary may append.
    ByLength,
    /// So many bytes of the guest's output.
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

    /// How many of `len` bytes from `position` on a joined file has already. The old primary cannot have
    /// written more than the guest had said when this side took over: a longer file is not shared.
    fn present(&self, position: u64, len: usize) -> io::Result<usize> {
        let present = self.file.metadata()?.len().saturating_sub(position);
        Ok(usize::try_from(present).map_or(0, |present| if present <= len { present } else { 0 }))
    }
}

impl ConsoleSink for ConsoleFile {
    fn position(&mut self) -> io::Result<Option<u64>> {
        match self.content {
            Content::EarlierRun => Ok(Some(0)),
            // `append` knows more.
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
        self.file.write_all(missing)?;
        self.content = Content::Bytes(position.saturating_add(bytes.len() as u64));
        Ok(())
    }
}
