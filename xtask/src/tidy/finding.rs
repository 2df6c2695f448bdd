//! What a rule finds.

use std::fmt;

/// What is wrong in one place.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Finding {
    pub(super) path: String,
    pub(super) line: usize,
    pub(super) rule: &'static str,
    /// What in the file it is about, as exceptions name it; empty for the file itself.
    pub(super) item: String,
    /// What is wrong, and what to do.
    pub(super) message: String,
}

impl fmt::Display for Finding {
    /// With rule and item as an exception would name them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.rule)?;
        if !self.item.is_empty() {
            write!(f, " ({})", self.item)?;
        }
        write!(f, ": {}", self.message)
    }
}
