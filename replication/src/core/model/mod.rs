//! The exhaustive model: the cores that ship, two hosts, an arbiter, and everything that can go
//! wrong between them, in every order, within bounds. `docs/SAFETY.md` says what that proves.
//!
//! | file | what it knows |
//! | --- | --- |
//! | [`world`] | the state: hosts, link, arbiter, what was said; what may happen next |
//! | [`host`] | a node on a host: what a runtime does around its core |
//! | [`effects`] | what the cores do, and which rules each step must keep |
//! | [`link`] | what goes over the link |
//! | [`arbiter`] | both kinds of arbiter, step by step |
//! | [`settle`] | a run in which nothing more goes wrong: somebody must speak |
//! | [`tests`] | the models and their bounds |
//!
//! Must not be done here: saying again what a core does. A core is given inputs, and its effects
//! are carried out.

mod arbiter;
mod effects;
mod host;
mod link;
mod settle;
mod tests;
mod world;

use stateright::Property;

use world::{Action, World};

/// What must hold in every state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Rule {
    /// Nobody says anything in a generation that it was not granted, and nobody says anything while
    /// a later generation runs elsewhere that lacks it.
    OneSpeaker,
    /// Whoever takes over has everything that was said before.
    NothingLost,
    /// Output leaves only if the backup has acknowledged its epoch, or under a grant.
    OutputCommit,
    /// Only whole epochs are continued.
    WholeEpochs,
    /// A number is granted to one process.
    GrantedOnce,
    /// Nobody is fenced or promoted, adopts a generation, gives up a copy or begins one for any other
    /// reason than an arbiter's answer that says so.
    OnlyTheArbiter,
    /// Nobody promises a takeover that would not be granted.
    TruePromise,
    /// Whoever has a machine that has broken claims nothing from a backup that could go on.
    GivesWay,
    /// Nobody claims the guest while its machine is away.
    CanTakeOver,
    /// The guest is told of a flush only if the backup's host holds it durably, or without a backup.
    KeepsFlushes,
    /// Nobody whose machine cannot load the guest's state takes it from a primary that can go on.
    LeavesIt,
}

/// Bounds of one model.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// Epochs in a session. The capture of the next one hangs.
    epochs: u64,
    /// Marks in all sessions together, apart from each session's first.
    beats: u64,
    /// The backup has a disk, and the primary shares one.
    disks: bool,
    /// Each state is tried, not only that of the first epoch.
    trials: bool,
    /// What is promised of takeovers is part of the state.
    promises: bool,
    /// The two hosts use different records from the beginning.
    apart: bool,
}

/// One model: where it begins, with bounds.
struct Model {
    begins: World,
    /// What must be reachable, or the model shows nothing.
    reached: Vec<Property<Model>>,
}

impl stateright::Model for Model {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![self.begins.clone()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        if world.broken.is_none() {
            world.actions(actions);
        }
    }

    fn next_state(&self, before: &World, action: Action) -> Option<World> {
        let mut world = before.clone();
        world.act(action);
        Some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("never two speakers", |_, world: &World| {
                world.keeps(Rule::OneSpeaker)
            }),
            Property::always(
                "nothing was said that the surviving state lacks",
                |_, world: &World| world.keeps(Rule::NothingLost),
            ),
            Property::always(
                "nothing leaves before it is acknowledged or granted",
                |_, world: &World| world.keeps(Rule::OutputCommit),
            ),
            Property::always("only whole epochs are continued", |_, world: &World| {
                world.keeps(Rule::WholeEpochs)
            }),
            Property::always("no generation is granted twice", |_, world: &World| {
                world.keeps(Rule::GrantedOnce)
            }),
            Property::always(
                "nothing irrevocable follows from hearsay",
                |_, world: &World| world.keeps(Rule::OnlyTheArbiter),
            ),
            Property::always(
                "no takeover is promised that would not be granted",
                |_, world: &World| world.keeps(Rule::TruePromise),
            ),
            Property::always(
                "who has a machine that has broken claims nothing",
                |_, world: &World| world.keeps(Rule::GivesWay),
            ),
            Property::always(
                "nobody claims the guest while its machine is away",
                |_, world: &World| world.keeps(Rule::CanTakeOver),
            ),
            Property::always(
                "who cannot load the guest's state takes it from nobody who can go on",
                |_, world: &World| world.keeps(Rule::LeavesIt),
            ),
            Property::always(
                "nothing is flushed for the guest before the backup has done so",
                |_, world: &World| world.keeps(Rule::KeepsFlushes),
            ),
            Property::always(
                "who works and reaches the arbiter speaks in the end",
                |_, world: &World| world.settles(),
            ),
        ];
        all.extend(self.reached.iter().cloned());
        all
    }
}
