//! Applies a left-over journal to the images.
//!
//! Records may end early for two reasons. After a loss of power, what was not made durable may be torn or
//! missing; nobody relies on it. Otherwise, the files are damaged. The maps say which of the two it is if a
//! promotion has begun, and so does every record that was written after a later one had been made durable.
//! What must not be done here: changing anything before it is known that the images will reach what they must.

use super::journal::{FileHeader, JournalFile, Record, Survey};
use crate::disk::DiskError;
use crate::disk::place::{Place, START};
use crate::ids::EpochId;

/// A journal that was looked through. Nothing has been changed.
pub(crate) struct Replay<'a> {
    /// In the order of their records.
    files: Vec<(&'a JournalFile, Option<FileHeader>, Survey)>,
    /// Where the images are.
    applied: Place,
    /// Where they will be.
    reached: Place,
    /// The last place in the journal.
    ends: Place,
}

/// Looks through a journal, and checks that the images can be brought to `needed`. They are brought
/// to `limit` at most.
pub(crate) fn plan(
    files: &[JournalFile],
    limit: EpochId,
    needed: Place,
) -> Result<Replay<'_>, DiskError> {
    let mut found = Vec::new();
    for file in files {
        found.push((file, file.header()?, file.survey()?));
    }
    found.sort_by_key(|(_, _, survey)| survey.records.first().copied());
    let headers = found.iter().filter_map(|(_, header, _)| header.as_ref());
    let applied = headers.map(|header| header.applied).max().unwrap_or(START);
    let records = || found.iter().flat_map(|(_, _, survey)| &survey.records);
    let last = records().map(|(place, _)| *place).max().unwrap_or(START);
    let mut reached = applied;
    for (place, previous) in records().filter(|(place, _)| *place > applied) {
        if *previous != reached || place.1 > limit {
            break;
        }
        reached = *place;
    }
    let synced = found.iter().map(|(_, _, survey)| survey.synced).max();
    let needed = needed.max(synced.unwrap_or(START));
    let replay = Replay {
        files: found,
        applied,
        reached,
        ends: last.max(applied),
    };
    if reached < needed {
        return Err(replay.falls_short_of(needed));
    }
    replay.tell_loss();
    Ok(replay)
}

impl Replay<'_> {
    /// Whether there is nothing to be applied.
    pub(crate) fn is_empty(&self) -> bool {
        self.reached == self.applied
    }

    fn falls_short_of(&self, wanted: Place) -> DiskError {
        let bad = self.files.iter().find_map(|(file, header, survey)| {
            let what = match (header, survey.ends_early_at) {
                (None, _) => "its header is damaged".into(),
                (_, Some(at)) => format!("its record at byte {at} is damaged"),
                _ => return None,
            };
            Some((file.path.clone(), what))
        });
        let first = || self.files.first().map(|(file, ..)| file.path.clone());
        let (path, what) =
            bad.unwrap_or_else(|| (first().unwrap_or_default(), "records are missing".into()));
        DiskError::JournalDamaged {
            path,
            what,
            wanted,
            have: self.reached,
        }
    }

    /// Says what is dropped although nobody has relied on it.
    fn tell_loss(&self) {
        for (file, header, survey) in &self.files {
            let path = file.path.display();
            if header.is_none() {
                tracing::warn!("the journal {path} has no valid header, as after a loss of power");
            }
            if let Some(at) = survey.ends_early_at {
                tracing::warn!(
                    "the journal {path} has no valid record at byte {at}, as after a loss of power: what follows \
                     there is dropped, and was never promised to be durable"
                );
            }
        }
    }

    /// Applies the records to the images with `apply`: whole epochs in a row. Then `settle` makes
    /// the images durable, and the files are emptied. If it is interrupted at any point, it can
    /// safely be repeated.
    pub(crate) fn run(
        &self,
        mut apply: impl FnMut(&Record) -> Result<(), DiskError>,
        settle: impl FnOnce() -> Result<(), DiskError>,
    ) -> Result<(), DiskError> {
        if self.files.iter().all(|(_, _, s)| s.records.is_empty()) {
            return Ok(());
        }
        // An image may only receive what is durable in the journal.
        self.files.iter().try_for_each(|(file, ..)| file.sync())?;
        let mut at = self.applied;
        for (file, ..) in &self.files {
            file.walk(|record| {
                if record.previous == at && record.place <= self.reached {
                    apply(record)?;
                    at = record.place;
                }
                Ok(())
            })?;
        }
        if at != self.reached {
            // It was changed since it was looked through.
            return Err(self.falls_short_of(self.reached));
        }
        settle()?;
        for (file, ..) in &self.files {
            file.empty(self.ends)?;
        }
        Ok(())
    }
}
