//! How each failure is made, and undone.

use anyhow::Result;

use crate::flood::Flood;
use crate::hosts::World;
use crate::network::{Side, Way};
use crate::schedule::{Failure, Planned};

/// Makes it, if `begins`; undoes it otherwise.
pub(crate) fn set(world: &mut World, planned: &Planned, begins: bool) -> Result<()> {
    let (primary, standby) = (Side::A, Side::B);
    let cut = |way, from: &[Side]| -> Result<()> {
        for side in from {
            world.network.set_cut(way, *side, begins)?;
        }
        Ok(())
    };
    match planned.failure {
        Failure::PrimaryKilled => set_killed(world, primary, begins)?,
        Failure::StandbyKilled => set_killed(world, standby, begins)?,
        Failure::PrimaryStopped if begins => world.stop(primary)?,
        Failure::PrimaryStopped => world.power_on(primary),
        Failure::PrimaryFrozen => world.set_frozen(primary, begins)?,
        Failure::StandbyFrozen => world.set_frozen(standby, begins)?,
        Failure::ChannelCutOneWay => {
            let from = if planned.from_primary {
                primary
            } else {
                standby
            };
            cut(Way::Channel, &[from])?;
        }
        Failure::ChannelCut => cut(Way::Channel, &Side::BOTH)?,
        Failure::HeartbeatsCut => cut(Way::Beat, &Side::BOTH)?,
        Failure::ClientsCut => world.network.set_uplink(primary, !begins)?,
        Failure::ArbiterHung => world.arbiter().set_frozen(begins)?,
        Failure::ArbiterAway => world.set_arbiter_away(begins)?,
        Failure::ArbiterFull => world.arbiter().set_full(begins)?,
        Failure::PrimaryStorageHung => world.storage(primary).set_frozen(begins)?,
        Failure::PrimaryStorageFails => world.storage(primary).set_full(begins)?,
        Failure::PrimaryStorageEio => world.set_storage_gone(primary, begins)?,
        Failure::StandbyStorageHung => world.storage(standby).set_frozen(begins)?,
        Failure::StandbyStorageFails => world.storage(standby).set_full(begins)?,
        Failure::StandbyStorageEio => world.set_storage_gone(standby, begins)?,
        Failure::Flood => {
            let flood = begins.then(|| Flood::start(&world.network));
            world.flood = flood.transpose()?;
        }
        Failure::MemoryPressure => world.set_memory_scarce(primary, begins)?,
    }
    Ok(())
}

fn set_killed(world: &mut World, side: Side, is_killed: bool) -> Result<()> {
    if is_killed {
        return world.kill(side);
    }
    world.power_on(side);
    Ok(())
}
