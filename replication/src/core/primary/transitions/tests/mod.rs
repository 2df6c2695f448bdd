//! Each rule of the primary's transition table: a primary with a clock of its own, for the tests
//! beside.

mod arbitration;
mod broken;
mod disks;
mod dismissal;
mod ending;
mod epochs;
mod handover;
mod health;
mod losing;
mod status;
mod strays;
mod throttle;

use super::syncing::CAPTURE_FAILURES_MAX;
use super::*;
use crate::arbiter::{ArbiterId, Verdict};
use crate::core::message::{EpochSummary, Welcome};
use crate::core::primary::Pause;
use crate::ids::EpochId;

const MS: Duration = Duration::from_millis(1);
const GENERATION: Generation = Generation(3);
const SESSION: u64 = 7;

fn hello() -> Hello {
    Hello {
        vm: "vm0".into(),
        node: "a".into(),
        fingerprint: Default::default(),
        layout: Default::default(),
        arbiter: ArbiterId("arbiter".into()),
        session: SESSION,
    }
}

fn mark(beat: u64) -> Mark {
    Mark {
        session: SESSION,
        beat,
    }
}

/// After the mark of the handshake.
fn claim() -> Effect {
    Effect::Claim {
        known: GENERATION,
        mark: mark(1),
    }
}

/// The mark that is to be written in a session.
fn confirm(beat: u64) -> Effect {
    Effect::Confirm {
        generation: GENERATION,
        beat: beat - 1,
        mark: Some(mark(beat)),
    }
}

/// The question of a doubt, which must not write anything.
fn doubt() -> Effect {
    Effect::Confirm {
        generation: GENERATION,
        beat: 1,
        mark: None,
    }
}

fn link_up() -> Input {
    Input::LinkUp { session: SESSION }
}

fn unavailable() -> Input {
    let why = "no answer".into();
    Input::ArbiterUnavailable { why }
}

fn confirmed() -> Input {
    Input::Verdict(Verdict::Granted(GENERATION))
}

fn welcome_of_b() -> Welcome {
    Welcome {
        node: "b".into(),
        host: None,
        session: 0,
        disks: Vec::new(),
    }
}

/// A primary with a clock of its own.
struct Bench {
    core: PrimaryCore,
    now: Duration,
}

impl Bench {
    fn new() -> Self {
        let now = 1000 * MS;
        Self {
            core: PrimaryCore::new(Policy::default(), hello(), GENERATION, now),
            now,
        }
    }

    /// Without what both sides tell each other about the arbiter, and how much the guest is slowed; see
    /// [`Bench::give_all`].
    fn give(&mut self, input: Input) -> Vec<Effect> {
        let mut out = self.give_all(input);
        out.retain(|effect| {
            !matches!(
                effect,
                Effect::Takeover(_)
                    | Effect::Throttle(_)
                    | Effect::Send(Message::Marked(_) | Message::NoArbiter(_))
            )
        });
        out
    }

    fn give_all(&mut self, input: Input) -> Vec<Effect> {
        self.core.handle(self.now, input)
    }

    fn hear(&mut self, message: Message) -> Vec<Effect> {
        let generation = self.core.generation();
        self.give(Input::Received {
            generation,
            message,
        })
    }

    fn ack(&mut self, epoch: u64) -> Vec<Effect> {
        let epoch = EpochId(epoch);
        let durable = EpochId(0);
        self.hear(Message::Ack { epoch, durable })
    }

    /// Lets time pass in small steps, the backup giving signs of life over the link or not.
    fn pass(&mut self, time: Duration, link: bool, path: bool) -> Vec<Effect> {
        let end = self.now + time;
        let mut out = Vec::new();
        while self.now < end {
            self.now += MS;
            if link {
                out.extend(self.hear(Message::Heartbeat));
            }
            if path {
                let generation = self.core.generation();
                out.extend(self.give(Input::HeartbeatHeard {
                    session: SESSION,
                    generation,
                }));
            }
            out.extend(self.give(Input::Tick));
        }
        out.retain(|effect| *effect != Effect::Send(Message::Heartbeat));
        out
    }

    fn welcomed() -> Self {
        let mut bench = Self::new();
        assert_eq!(
            bench.give(link_up()),
            [Effect::Send(Message::Hello(hello()))]
        );
        let welcome = Message::Welcome(welcome_of_b());
        let disks = Vec::new();
        assert_eq!(bench.hear(welcome), [confirm(1)]);
        assert_eq!(bench.give(confirmed()), []);
        assert_eq!(
            bench.hear(Message::Seen(mark(1))),
            [Effect::StartSync { disks }]
        );
        bench
    }

    /// Synced; epoch 1 is to be captured.
    fn capturing() -> Self {
        let mut bench = Self::welcomed();
        let effects = bench.give(Input::SyncRoundShipped {
            pages_left: 0,
            disk_bytes_left: 0,
            left_takes: Duration::ZERO,
        });
        assert_eq!(effects, [Effect::Capture(EpochId(1))]);
        bench
    }

    fn ship(&mut self, epoch: u64) {
        let epoch = EpochId(epoch);
        assert_eq!(
            self.give(Input::Captured {
                epoch,
                pause: Pause::default(),
            }),
            []
        );
        assert_eq!(self.give(Input::Shipped { epoch, bytes: 0 }), []);
    }

    /// The next epoch is being captured.
    fn in_capture(mut self) -> Self {
        let effects = self.give(Input::CheckpointWanted);
        assert_eq!(effects, [Effect::Capture(EpochId(2))]);
        self
    }

    /// Epoch 1 is acked.
    fn protected() -> Self {
        let mut bench = Self::capturing();
        bench.ship(1);
        assert_eq!(bench.ack(1), [Effect::Release(EpochId(1))]);
        bench
    }
}

fn claims(effects: &[Effect]) -> bool {
    effects == [Effect::CloseLink, claim()]
}
