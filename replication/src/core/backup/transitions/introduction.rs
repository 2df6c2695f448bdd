//! The handshake from the backup's side: which primaries it accepts.

use super::disks::Disks;
use super::{BackupCore, Effect, Link, Phase};
use crate::core::message::{Hello, Message, Refusal};
use crate::core::violation::ProtocolViolation;
use crate::fingerprint::Difference;
use crate::ids::{EpochId, Generation};

impl BackupCore {
    pub(super) fn introduced(
        &mut self,
        generation: Generation,
        hello: Hello,
        out: &mut Vec<Effect>,
    ) {
        if generation.0 == 0 {
            return self.violated(&ProtocolViolation::NoGeneration, out);
        }
        if let Some(refusal) = self.objection(generation, &hello) {
            out.push(Effect::Send(Message::Refuse(refusal)));
            return self.close_link(out);
        }
        let link = std::mem::replace(&mut self.link, Link::Down);
        if self.committed.is_some() {
            // A later generation goes on, so what is committed here is outdated.
            self.reset(
                format!("{} introduced itself: {generation}", hello.node),
                out,
            );
        }
        debug_assert!(matches!(link, Link::Stranger { .. }));
        self.link = Link::Welcomed;
        self.generation = generation;
        self.phase = Phase::Syncing;
        self.staging.restart(EpochId(1));
        self.primary_node = Some(hello.node);
        self.heard_at = self.now;
        self.beat_sent_at = self.now;
        self.disks = Disks::default();
        out.push(Effect::Welcome {
            node: self.identity.node.clone(),
        });
    }

    fn objection(&self, generation: Generation, hello: &Hello) -> Option<Refusal> {
        let mine = &self.identity;
        if hello.vm != mine.vm {
            return Some(Refusal::OtherVm {
                vm: mine.vm.clone(),
            });
        }
        let mut differences = hello.fingerprint.differences(&mine.fingerprint);
        if hello.layout != mine.layout {
            differences.push(Difference::Unequal {
                key: "memory".into(),
                primary: Some(hello.layout.to_string()),
                backup: Some(mine.layout.to_string()),
            });
        }
        if !differences.is_empty() {
            return Some(Refusal::Differs(differences));
        }
        let current = self.generation;
        if generation < current {
            return Some(Refusal::Stale { current });
        }
        (generation == current && self.committed.is_some()).then(|| {
            Refusal::Busy(format!(
                "holds a committed epoch of {current}; who goes on needs the next generation"
            ))
        })
    }
}
