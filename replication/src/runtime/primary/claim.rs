//! Claims a guest that this side is to start. [`start`](crate::core::start) decides whether it may
//! before the arbiter is asked, and the other side is asked here.

use std::sync::Arc;
use std::time::Duration;

use understudy_transport::Endpoint;

use crate::arbiter::{Arbiter, Claim, Record, Verdict};
use crate::core::message::{Holdings, Inquiry};
use crate::core::start::{Own, Step};
use crate::ids::Generation;
use crate::peer_words::{NAME_CHARS_MAX, for_people};
use crate::ports::{Disks, Machine};
use crate::runtime::error::RuntimeError;
use crate::runtime::heartbeats::expect_silence;
use crate::runtime::inquiry::{NoAnswer, PATIENCE, ask};
use crate::runtime::reign::{Reign, check_history};
use crate::runtime::settings::Settings;
use crate::runtime::status::Side;

/// How long the other side may take to answer at a first start, when it is most likely not there.
const FIRST_PATIENCE: Duration = Duration::from_secs(1);

/// How a guest is to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// If nobody else has anything newer.
    Normal,
    /// The other side was asked when this generation was in force, and has no copy.
    Restart { known: Generation },
    /// Whatever others have is given up.
    Over,
}

/// Asks the arbiter for the guest, and the other side before if need be.
pub(super) fn claim_guest(
    machine: &impl Machine,
    arbiter: Arc<dyn Arbiter>,
    start: Start,
    backup: Option<&Endpoint>,
    settings: Settings,
) -> Result<Reign, RuntimeError> {
    let disks = machine.disks();
    // Checked before anything is claimed: a side that fails here must not become the last holder of
    // the guest.
    disks.check_whole()?;
    let record = arbiter.record()?;
    let applicant = Applicant {
        arbiter: &*arbiter,
        record: &record,
        disks: &*disks,
        backup,
        settings: &settings,
    };
    let claim = applicant.claim(start)?;
    let reign = Reign::new(Side::Primary, settings, arbiter, record);
    match reign.arbiter.claim(claim, &reign.claimant)? {
        Verdict::Granted(generation) => {
            disks.claim_images()?;
            disks.note(&reign.history(generation))?;
            Ok(Reign {
                generation,
                ..reign
            })
        }
        Verdict::Refused { current, holder } => Err(RuntimeError::Owned {
            holder,
            generation: current,
        }),
    }
}

/// A side that is to start the guest.
struct Applicant<'a> {
    arbiter: &'a dyn Arbiter,
    record: &'a Record,
    disks: &'a dyn Disks,
    backup: Option<&'a Endpoint>,
    settings: &'a Settings,
}

impl Applicant<'_> {
    fn own(&self) -> Own<'_> {
        Own {
            node: &self.settings.node,
            host: self.settings.host.as_deref(),
            has_replicated: self.disks.has_replicated(),
        }
    }

    /// What to ask the arbiter for.
    fn claim(&self, start: Start) -> Result<Claim, RuntimeError> {
        if start == Start::Over {
            self.say_what_is_given_up();
            return Ok(Claim::StartOver);
        }
        check_history(self.disks, self.record)?;
        match (start, self.own().first_step(self.record)) {
            (Start::Restart { known }, _) => Ok(Claim::Restart { known }),
            _ if self.record.generation.0 == 0 => self.first_start(),
            (_, Step::Claim(claim)) => Ok(claim),
            _ => self.ask_first(),
        }
    }

    /// The arbiter knows of no guest. Nobody else may know of one, either.
    fn first_start(&self) -> Result<Claim, RuntimeError> {
        expect_silence(self.settings)?;
        let known = self.record.generation;
        let Some(endpoint) = self.backup else {
            return Ok(Claim::Start { known });
        };
        let what = match self.ask(endpoint, FIRST_PATIENCE)? {
            Err(NoAnswer::OtherArbiter(current)) if current.0 > 0 => {
                format!("its arbiter knows of {current}")
            }
            Err(NoAnswer::Busy(busy)) => busy,
            Ok(Holdings {
                copy: Some((generation, _)),
                ..
            }) => format!("it has a copy of {generation}"),
            // It may not be there yet.
            Err(NoAnswer::OtherArbiter(_) | NoAnswer::Other(_)) | Ok(_) => {
                return Ok(Claim::Start { known });
            }
        };
        Err(RuntimeError::KnownElsewhere {
            peer: endpoint.to_string(),
            what,
        })
    }

    fn ask_first(&self) -> Result<Claim, RuntimeError> {
        let record = self.record;
        let known = record.generation;
        if self.arbiter.holder_lives()? {
            let holder = &record.holder;
            return Err(RuntimeError::Owned {
                holder: format!("{holder}, which is alive: start this side as its standby"),
                generation: known,
            });
        }
        let older = || RuntimeError::OlderDisks {
            holder: record.holder.clone(),
            generation: known,
        };
        let Some(endpoint) = self.backup else {
            // Nobody can be asked. If it is about a copy, the arbiter refuses.
            let has_newest = self.own().has_newest(record);
            return has_newest
                .then_some(Claim::Start { known })
                .ok_or_else(older);
        };
        let theirs = self.ask(endpoint, PATIENCE)?;
        let theirs = theirs.map_err(|why| RuntimeError::NotAsked {
            peer: endpoint.to_string(),
            why: why.to_string(),
            lost: self.lost().join(", and "),
        })?;
        match self.own().next_step(record, &theirs) {
            Step::Claim(claim) => Ok(claim),
            Step::Follow => Err(RuntimeError::Follows {
                node: for_people(&theirs.node, NAME_CHARS_MAX),
            }),
            Step::OlderDisks => Err(older()),
            // The arbiter names the one who may have a copy.
            Step::CopyElsewhere | Step::Ask => Ok(Claim::Start { known }),
        }
    }

    /// What may exist only elsewhere, or is known only to the disks.
    fn lost(&self) -> Vec<String> {
        let Record {
            generation,
            holder,
            backup,
            ..
        } = self.record;
        let copy = backup.as_ref().map(|backup| {
            format!("the copy of the guest's memory that {backup} may have ({generation})")
        });
        let disks = (!self.own().has_newest(self.record))
            .then(|| format!("what the guest wrote to its disks as {generation} of {holder}"));
        let unknown_here = self.disks.histories().into_iter().next();
        let unknown_here = unknown_here
            .filter(|(_, known)| !known.is_of(&self.record.arbiter))
            .map(|(disk, known)| {
                let (generation, arbiter) = (known.generation, known.arbiter.0);
                format!(
                    "whatever followed {generation} at the arbiter {arbiter}, as {disk} knows it"
                )
            });
        copy.into_iter().chain(disks).chain(unknown_here).collect()
    }

    fn say_what_is_given_up(&self) {
        let lost = self.lost();
        if lost.is_empty() {
            tracing::info!("starting over: nobody else has anything of the guest, as far as known");
        } else {
            tracing::warn!("starting over gives up {}", lost.join(", and "));
        }
    }

    /// Asks the other side what it has of the guest.
    fn ask(
        &self,
        endpoint: &Endpoint,
        patience: Duration,
    ) -> Result<Result<Holdings, NoAnswer>, RuntimeError> {
        let inquiry = Inquiry {
            vm: self.settings.vm.clone(),
            node: self.settings.node.clone(),
            arbiter: self.record.arbiter.clone(),
        };
        ask(endpoint, inquiry, patience)
    }
}
