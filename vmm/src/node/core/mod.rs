//! What becomes of a node: which role follows which, what a guest's reset, panic, watchdog or end leads to, and
//! what requests mean. The table is on top of [`super`].
//!
//! Input in, effects out; the shell obeys. What must not be done here: threads, clocks, machines, log.

mod broken;
mod disks;
mod failing;
mod guest;
mod handover;
mod networks;
mod pace;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use understudy_replication::Generation;
use understudy_replication::runtime::{EventKind as ReplicationEvent, Trouble};

use self::broken::Broken;
use self::disks::HeldRequests;
use self::failing::Failing;
use self::handover::Handover;
use self::networks::known::Networks;
use self::pace::Pace;
use super::events::EventKind;
use super::networks::NetworkSeen;
use super::request::{Denial, Request};
use super::status::{GuestStatus, NotHandedOver, Standing};
use super::{Ended, Role};
use crate::config::OnSigterm;
use crate::machine::{MachineEvent, OnPanic, OnReboot, OnWatchdog};

/// What is to follow from what becomes of the guest, and of the node.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// When it wants a reset, or crashes in the way that resets a PC.
    pub on_reboot: OnReboot,
    /// When its kernel says that it has panicked.
    pub on_panic: OnPanic,
    /// When it has not fed its watchdog in time.
    pub on_watchdog: OnWatchdog,
    /// When the node is to end and a standby could take the guest over.
    pub on_sigterm: OnSigterm,
}

/// How soon a role is tried again that could not be taken up.
const START_RETRY: Duration = Duration::from_secs(1);

/// A role to be taken up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextRole {
    /// The guest is started here, if nobody else has anything newer.
    Primary,
    /// The same, whatever others have.
    PrimaryOver,
    /// The guest is started here: the other host was asked when this generation was in force, and has no copy.
    PrimaryRestarting(Generation),
    /// A second copy.
    Standby,
    /// The same, until it turns out that the guest may be started here.
    StandbyThatMayStart,
}

/// What the core hears.
#[derive(Debug, Clone)]
pub(super) enum Input {
    /// The first role is taken up. `can_restart`: whether there is a kernel to begin anew with.
    Began { role: Role, can_restart: bool },
    /// The guest is not started here now: the other host may have something newer.
    StartWaits { why: String },
    /// The standby has no copy, nobody else has one, and the guest may be started here.
    IsToStart { known: Generation },
    /// A role that follows another one could not be taken up.
    NotTakenUp { what: String },
    /// What replication tells; that the role has ended comes as [`Input::RoleOver`].
    Replication(ReplicationEvent),
    /// Something became of the machine.
    Guest(MachineEvent),
    /// The guest's networks on this host, when one of them has changed.
    Networks(Vec<NetworkSeen>),
    /// The standby could not be told to stop: it is about to be the primary. Whoever asked has been told so.
    StopMissed,
    /// The time of [`NodeCore::next_timer`] has come.
    Timer,
    /// The role is over. Its last effect has been obeyed, or it failed.
    RoleOver(RoleEnd),
}

/// How a role ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RoleEnd {
    /// As it was told to.
    Done,
    /// At once, without what the guest had still to say.
    Abandoned,
    /// The standby has taken the guest over, as it was asked to.
    HandedOver { reason: String },
    /// The machine has broken, and the standby is to take the guest over; it was not waited for.
    LeftToStandby { what: String },
    /// Another side owns the guest.
    Fenced { reason: String },
    /// It could not go on, or not be taken up.
    Failed { what: String },
}

/// What the shell does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Effect {
    /// Tell everybody.
    Tell(EventKind),
    /// Start the guest over in place.
    RestartGuest,
    /// The guest has ended: end the role once all that it said has left.
    EndRole,
    /// Cut the guest's power, and end the role. Told so again, a primary waits for nothing.
    StopGuest,
    /// End the role of a standby.
    StopStandby,
    /// Ask the arbiter for the guest.
    Promote,
    /// Have the standby take the guest over.
    HandOver(String),
    /// The guest sees the errors of what this disk has failed.
    AnswerFailed(String),
    /// What this disk has failed is done again.
    RetryFailed(String),
    /// The machine is to count as broken.
    BreakMachine(String),
    /// The guest's state is to say that the machine it comes from broke just now.
    RememberBroken,
    /// The machine has broken: the guest is to go on at the standby, from the last epoch.
    LeaveMachine(String),
    /// Tell a standby's primary what the guest would lack here.
    ReportHealth(Vec<Trouble>),
    /// Press the guest's power button.
    PressPowerButton,
    /// End the epoch.
    Checkpoint,
    /// Protect the guest that was taken over.
    Protect,
    /// Take up a role.
    TakeUp(NextRole),
    /// The node is over.
    Finish(Ended),
}

/// What replication says of a standby at the moment of a request.
#[derive(Debug, Clone, Default)]
pub(super) struct SyncState {
    pub(super) in_sync: bool,
    pub(super) phase: String,
}

/// Decides for one node.
#[derive(Debug)]
pub(super) struct NodeCore {
    role: Role,
    rules: Rules,
    can_restart: bool,
    protected: bool,
    /// What is wrong with the protection.
    alarm: Option<String>,
    guest: GuestStatus,
    pace: Pace,
    /// When to try again to take up a role.
    start_at: Option<Duration>,
    /// When the guest that stands still is to be started over.
    restart_at: Option<Duration>,
    /// When a guest that was started over will have run for so long that what was wrong before is over.
    steady_at: Option<Duration>,
    /// Why the guest ends: from then on nothing that becomes of it leads to anything else.
    ending: Option<Ended>,
    /// The guest is being handed over because the node is to end.
    is_leaving: bool,
    /// What fails on this host.
    failing: Failing,
    handover: Handover,
    held: HeldRequests,
    broken: Broken,
    networks: Networks,
    /// What was asked of this host and cannot be had.
    pub(super) lacks: Vec<String>,
    /// Devices of the present machine that lost what they were connected to, and what is said of it.
    lost_connections: BTreeMap<String, String>,
    /// The standby was told to stop. It ends, also if it is promoted first.
    is_stopping_standby: bool,
    /// What became of a guest that was taken over before its standby was told that it is the primary.
    before_promotion: Vec<MachineEvent>,
}

impl NodeCore {
    pub(super) fn new(rules: Rules) -> Self {
        Self {
            role: Role::Starting,
            rules,
            can_restart: false,
            protected: false,
            alarm: None,
            guest: GuestStatus::default(),
            pace: Pace::default(),
            start_at: None,
            restart_at: None,
            steady_at: None,
            ending: None,
            is_leaving: false,
            failing: Failing::default(),
            handover: Handover::default(),
            held: HeldRequests::default(),
            broken: Broken::default(),
            networks: Networks::default(),
            lacks: Vec::new(),
            lost_connections: BTreeMap::new(),
            is_stopping_standby: false,
            before_promotion: Vec::new(),
        }
    }

    /// How things stand while the node has not ended.
    pub(super) fn standing(&self) -> Standing {
        let not_handed_over = self.not_handed_over();
        let stays = not_handed_over.as_ref().map(NotHandedOver::to_string);
        let lost = self.lost_connections.values().cloned();
        let host_alarms = (self.lacks.iter().cloned())
            .chain(lost)
            .chain(self.networks.alarms().iter().cloned())
            .chain(stays);
        Standing {
            role: self.role,
            protected: self.protected,
            alarm: self.alarm.clone(),
            guest: self.guest.clone(),
            host_alarms: host_alarms.collect(),
            not_handed_over,
            ended: None,
        }
    }

    fn is_primary(&self) -> bool {
        self.role == Role::Primary
    }

    /// When [`Input::Timer`] is due, in time since the node's start.
    pub(super) fn next_timer(&self) -> Option<Duration> {
        let role = self.start_at.or(self.restart_at).or(self.steady_at);
        let escape = self.failing.due().filter(|_| self.may_escape());
        let rest = [self.held.due(), self.networks.due()];
        (role.into_iter().chain(escape))
            .chain(rest.into_iter().flatten())
            .min()
    }

    /// What follows from something that happened.
    pub(super) fn input(&mut self, now: Duration, input: Input) -> Vec<Effect> {
        let mut effects = Vec::new();
        match input {
            Input::Began { role, can_restart } => {
                self.role = role;
                self.can_restart = can_restart;
                if role == Role::Primary {
                    // Whatever kept it from being started.
                    self.alarm = None;
                }
                self.pace.started(now);
                self.connected_anew();
                self.tell(EventKind::RoleBegan { role }, &mut effects);
                self.weigh_networks(now, &mut effects);
                self.report_health(&mut effects);
            }
            Input::StartWaits { why } => {
                self.alarm(EventKind::StartWaits { why }, &mut effects);
                effects.push(Effect::TakeUp(NextRole::StandbyThatMayStart));
            }
            Input::IsToStart { .. } if self.is_stopping_standby => {
                self.role_over(RoleEnd::Done, &mut effects);
            }
            Input::IsToStart { known } => {
                self.role = Role::Starting;
                self.tell(EventKind::IsToStart, &mut effects);
                effects.push(Effect::TakeUp(NextRole::PrimaryRestarting(known)));
            }
            Input::NotTakenUp { what } => self.not_taken_up(now, what, &mut effects),
            Input::Replication(event) => self.replication(now, event, &mut effects),
            Input::Guest(event) => self.guest_event(now, event, &mut effects),
            Input::Networks(seen) => self.networks_seen(now, seen, &mut effects),
            Input::StopMissed => self.is_stopping_standby = false,
            Input::Timer => self.timer(now, &mut effects),
            Input::RoleOver(end) => self.role_over(end, &mut effects),
        }
        effects
    }

    /// What follows from a request.
    ///
    /// # Errors
    /// If it cannot be done in this role.
    pub(super) fn request(
        &mut self,
        request: Request,
        sync: &SyncState,
    ) -> Result<Vec<Effect>, Denial> {
        match (self.role, request) {
            (role, Request::Leave) if role != Role::Primary => self.request(Request::Stop, sync),
            (Role::Starting, Request::Stop) if self.start_at.is_some() => {
                let mut effects = Vec::new();
                self.role_over(RoleEnd::Done, &mut effects);
                Ok(effects)
            }
            (Role::Starting, _) => Err(match &self.alarm {
                Some(why) if self.start_at.is_some() => Denial::Waiting { why: why.clone() },
                _ => Denial::Starting,
            }),
            (Role::Ended, _) => Err(Denial::Ended),
            (Role::Standby, Request::Stop) => {
                self.is_stopping_standby = true;
                Ok(vec![Effect::StopStandby])
            }
            // Its power is cut already, and nothing of it is waited for.
            (Role::Unprotected, Request::Stop) if self.ending.is_some() => Ok(Vec::new()),
            (Role::Unprotected | Role::Primary, Request::Stop) => Ok(self.stop_guest()),
            (Role::Standby, Request::Failover) if !sync.in_sync => {
                let phase = sync.phase.clone();
                Err(Denial::NotInSync { phase })
            }
            (Role::Standby, Request::Failover) => Ok(vec![Effect::Promote]),
            (Role::Primary, Request::Failover) if !sync.in_sync => Err(Denial::NotProtected),
            (Role::Primary, Request::Failover) => Ok(self.hand_over("somebody has asked for it")),
            // Not if the arbiter has to decide which side goes on.
            (Role::Primary, Request::Leave) if self.is_leaving && sync.in_sync => Ok(Vec::new()),
            (Role::Primary, Request::Leave) if self.may_hand_over(sync) => {
                self.is_leaving = true;
                Ok(self.hand_over("the primary's host is to stop"))
            }
            (_, Request::Leave) => self.request(Request::Stop, sync),
            (Role::Unprotected, Request::Failover | Request::Checkpoint) => {
                Err(Denial::Unprotected)
            }
            (Role::Standby, Request::PowerButton | Request::Checkpoint) => {
                Err(Denial::GuestElsewhere)
            }
            (Role::Unprotected | Role::Primary, Request::PowerButton) => Ok(vec![
                Effect::Tell(EventKind::PowerButtonPressed),
                Effect::PressPowerButton,
            ]),
            (Role::Primary, Request::Checkpoint) => Ok(vec![Effect::Checkpoint]),
        }
    }

    fn stop_guest(&mut self) -> Vec<Effect> {
        self.is_leaving = false;
        self.end(Ended::Stopped);
        vec![Effect::Tell(EventKind::StopRequested), Effect::StopGuest]
    }

    /// The first reason counts.
    fn end(&mut self, why: Ended) {
        self.ending.get_or_insert(why);
        self.restart_at = None;
        self.steady_at = None;
    }

    fn promoted(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.role = Role::Primary;
        // It was a standby's: why its promotion had to wait, or why it was none.
        self.alarm = None;
        self.pace.started(now);
        self.failing.came(now);
        effects.push(Effect::Protect);
        self.weigh_networks(now, effects);
        if self.is_stopping_standby {
            effects.extend(self.stop_guest());
        }
        for event in std::mem::take(&mut self.before_promotion) {
            self.guest_event(now, event, effects);
        }
    }

    /// It is tried again. The reason is told once.
    fn not_taken_up(&mut self, now: Duration, what: String, effects: &mut Vec<Effect>) {
        self.role = Role::Starting;
        self.start_at = Some(now + START_RETRY);
        let event = EventKind::RoleWaits { what };
        if self.alarm != Some(event.to_string()) {
            self.alarm(event, effects);
        }
    }

    /// Each change is told once, however often replication says it.
    fn replication(&mut self, now: Duration, event: ReplicationEvent, effects: &mut Vec<Effect>) {
        match event {
            ReplicationEvent::Promoted {
                epoch,
                cause,
                machine_broke,
            } if self.role == Role::Standby => {
                let epoch = epoch.0;
                self.broken.taken_over(now, machine_broke);
                if machine_broke {
                    effects.push(Effect::RememberBroken);
                }
                self.tell(EventKind::Promoted { epoch, cause }, effects);
                self.promoted(now, effects);
            }
            ReplicationEvent::Protected if !self.protected => {
                self.protected = true;
                // What went wrong before has been made good.
                self.alarm = None;
                self.handover_is_possible();
                self.tell(EventKind::Protected, effects);
                self.escape(now, effects);
            }
            ReplicationEvent::Unprotected if self.protected => {
                self.protected = false;
                self.tell(EventKind::Unprotected, effects);
                if !self.failing.is_under_way() {
                    self.guest_stays(now, effects);
                }
            }
            ReplicationEvent::NotHandedOver { why } => {
                let told = EventKind::NotHandedOver { why: why.clone() };
                self.tell(told, effects);
                self.failing.stayed(now);
                self.handover_failed(&why);
                self.weigh_networks(now, effects);
                if self.stays_broken(&why, effects) {
                    return;
                }
                self.guest_stays(now, effects);
                if std::mem::take(&mut self.is_leaving) && self.ending.is_none() {
                    effects.extend(self.stop_guest());
                }
            }
            ReplicationEvent::BackupHealth { troubles } => {
                self.standby_lacks(now, troubles, effects);
            }
            ReplicationEvent::GoingAlone { cause } => {
                self.alarm(EventKind::BackupLost { cause }, effects);
            }
            ReplicationEvent::Alarm(what) if self.alarm.as_ref() != Some(&what) => {
                self.alarm(EventKind::Alarm { what }, effects);
            }
            _ => {}
        }
    }

    fn alarm(&mut self, what: EventKind, effects: &mut Vec<Effect>) {
        self.alarm = Some(what.to_string());
        self.tell(what, effects);
    }

    fn timer(&mut self, now: Duration, effects: &mut Vec<Effect>) {
        self.escape(now, effects);
        self.retry_held(now, effects);
        self.standby_settles(now, effects);
        if let Some(at) = self.start_at {
            if at <= now {
                self.start_at = None;
                effects.push(Effect::TakeUp(NextRole::StandbyThatMayStart));
            }
            return;
        }
        if self.restart_at.is_none() && self.steady_at.is_some_and(|at| at <= now) {
            self.steady_at = None;
            self.guest.alarm = None;
        }
        if self.restart_at.is_none_or(|at| now < at) {
            return;
        }
        self.restart_at = None;
        self.pace.started(now);
        self.steady_at = Some(now + pace::STEADY);
        self.guest.restarts += 1;
        self.tell(EventKind::GuestRestarted, effects);
        effects.push(Effect::RestartGuest);
    }

    fn role_over(&mut self, end: RoleEnd, effects: &mut Vec<Effect>) {
        if self.role == Role::Ended {
            return;
        }
        let ended = match end {
            RoleEnd::Done => self.ending.take().unwrap_or(Ended::Stopped),
            RoleEnd::Abandoned => Ended::Abandoned,
            RoleEnd::HandedOver { reason } => Ended::HandedOver {
                reason,
                trouble: self.failing.in_words(),
            },
            RoleEnd::LeftToStandby { what } => Ended::LeftToStandby { what },
            RoleEnd::Fenced { reason } => Ended::Fenced { reason },
            RoleEnd::Failed { what } => Ended::Failed { what },
        };
        self.role = Role::Ended;
        self.protected = false;
        self.start_at = None;
        self.restart_at = None;
        self.tell(EventKind::Ended(ended.clone()), effects);
        effects.push(Effect::Finish(ended));
    }

    /// Tells of it, and notes it if it is something about the guest that a person should know.
    fn tell(&mut self, what: EventKind, effects: &mut Vec<Effect>) {
        if what.is_about_guests_health() {
            self.guest.alarm = Some(what.to_string());
            self.steady_at = None;
        }
        effects.push(Effect::Tell(what));
    }
}
