//! A guest that is handed over takes along what it is given meanwhile.

use super::driver::Driver;
use crate::core::message::Message;

impl Driver {
    /// The backup is to take the guest over. What the network has taken, it need not repeat.
    pub(super) fn hand_over(&mut self, why: String, machine_broke: bool) {
        let message = Message::TakeOver {
            why,
            machine_broke,
            left_through: self.setup.gate.left_through(),
        };
        if let Some(session) = &mut self.session {
            session.send(self.core.generation(), &message);
        }
    }

    /// The backup was told to take the guest over.
    pub(super) fn guest_leaves(&mut self) {
        self.setup.gate.follow_arrivals();
        self.send_arrivals();
    }

    /// The guest could not be handed over.
    pub(super) fn guest_stays(&mut self, why: String) {
        self.setup.gate.forget_arrivals();
        self.metrics.not_handed_over(why);
    }

    /// What the guest was given here follows it.
    pub(super) fn send_arrivals(&mut self) {
        let arrivals = self.setup.gate.take_arrivals();
        if let (Some(session), false) = (&mut self.session, arrivals.is_empty()) {
            session.send(self.core.generation(), &Message::Arrived(arrivals));
        }
    }
}
