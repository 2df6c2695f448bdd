//! Consoles that keep nothing: the terminal, and none at all.

use std::io::{self, Write};

use understudy_replication::output::ConsoleSink;

/// The terminal. It shows what it is given: what another host's terminal shows is not known.
#[derive(Debug, Default)]
pub struct Terminal {
    position: Option<u64>,
}

impl ConsoleSink for Terminal {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(self.position)
    }

    fn append(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)?;
        out.flush()?;
        self.position = Some(position.saturating_add(bytes.len() as u64));
        Ok(())
    }
}

/// No console: bytes are forgotten.
#[derive(Debug, Default)]
pub struct NoConsole;

impl ConsoleSink for NoConsole {
    fn position(&mut self) -> io::Result<Option<u64>> {
        Ok(None)
    }

    fn append(&mut self, _position: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
