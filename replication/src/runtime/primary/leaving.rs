//! A guest that is handed over takes along what it is given meanwhile.

use super::driver::Driver;
use crate::core::message::Message;

impl Driver {
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
