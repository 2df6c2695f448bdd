//! Waiting for what happens elsewhere, with a deadline, and saying what happens when.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(50);

static BEGIN: OnceLock<Instant> = OnceLock::new();

/// Prints a line with the time since the first one.
pub(super) fn say(text: impl std::fmt::Display) {
    let begin = BEGIN.get_or_init(Instant::now);
    eprintln!("{:7.1} s  {text}", begin.elapsed().as_secs_f64());
}

/// Looks until there is something. A look may fail for good.
pub(super) fn until<T>(
    what: &str,
    patience: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if Instant::now() > deadline {
            bail!("waited {} s in vain for {what}", patience.as_secs());
        }
        std::thread::sleep(LOOK);
    }
}
