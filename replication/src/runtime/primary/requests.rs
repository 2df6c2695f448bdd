//! What the owners of a primary want of it.
//!
//! Must not be done here: deciding what follows; the core does that.

use std::collections::VecDeque;

use understudy_transport::Endpoint;

use super::Request;
use super::driver::Driver;
use super::retry::Retry;
use crate::core::primary::PrimaryInput;
use crate::runtime::capture::CaptureJob;

impl Driver {
    /// `None`: no handle is left, so nobody could ask again.
    pub(super) fn requested(
        &mut self,
        request: Option<Request>,
        inputs: &mut VecDeque<PrimaryInput>,
    ) {
        match request {
            Some(Request::Checkpoint) => inputs.push_back(PrimaryInput::CheckpointWanted),
            // A guest that has ended is not reset.
            Some(Request::ResetGuest) if self.core.is_ending() => {}
            Some(Request::ResetGuest) => self.order(CaptureJob::ResetGuest),
            Some(Request::SetBackup(backup)) => self.set_backup(backup, inputs),
            Some(Request::Unprotect) => {
                self.unprotecting = true;
                self.set_backup(None, inputs);
            }
            Some(Request::HandOver(why)) => inputs.push_back(PrimaryInput::HandOver { why }),
            Some(Request::MachineBroke(why)) => {
                inputs.push_back(PrimaryInput::MachineBroke { why });
            }
            Some(Request::GuestStopped) => inputs.push_back(PrimaryInput::GuestStopped),
            Some(Request::Stop) if !self.stop_asked => {
                self.stop_asked = true;
                inputs.push_back(PrimaryInput::GuestStopped);
            }
            Some(Request::Stop) | None => {
                let held = self.setup.gate.counts().held_bytes;
                tracing::warn!("ending at once: {held} bytes of the guest's output are dropped");
                self.abandoned = true;
                inputs.push_back(PrimaryInput::Abandoned);
            }
        }
    }

    /// Sets another backup or none. The present one is dismissed.
    fn set_backup(&mut self, backup: Option<Endpoint>, inputs: &mut VecDeque<PrimaryInput>) {
        if self.setup.backup == backup {
            return;
        }
        let cause = match &backup {
            Some(endpoint) => format!("the guest is to be protected by {endpoint} instead"),
            None => "the guest is not to be protected any more".into(),
        };
        self.setup.backup = backup;
        self.backup_changed = true;
        self.retry = Retry::new();
        inputs.push_back(PrimaryInput::BackupDismissed { cause });
    }
}
