//! A guest that is started from nothing, on a host that should not, or may.

use understudy_replication::core::primary::PrimaryPhase;

use super::events::Event;
use super::world::{Side, World};

impl World {
    /// Somebody stops the standby of this host and starts the guest there from nothing. The arbiter
    /// refuses that while a holder lives or a standby may have a copy. If the storage has taken the
    /// holder's locks away (`lapsed`), a holder that runs alone looks dead: then two run, until the
    /// first one asks the arbiter again.
    pub fn start_guest(&mut self, host: usize, lapsed: bool) {
        let has_ended = self.hosts.iter().any(|host| {
            matches!(&host.side, Side::Primary(node)
                if node.guest.ended || node.core.phase() == PrimaryPhase::Stopped)
        });
        if has_ended || matches!(self.hosts[host].side, Side::Primary(_)) {
            return;
        }
        self.kill(host, false);
        let holder = self.arbiter.holder();
        let lives = self.process(holder.0) == holder;
        // Whoever has just taken over has locked the storage anew.
        let looks_dead =
            !lives || (lapsed && matches!(self.hosts[holder.0].side, Side::Primary(_)));
        let answers = self.arbiter.available && !self.arbiter.went_back;
        if !answers || !looks_dead || self.arbiter.standby_noted {
            self.count("starts refused");
            let process = self.process(host);
            return self.soon(5_000, 60_000, Event::Restart(process));
        }
        self.count(if lives {
            "starts beside a holder"
        } else {
            "starts from nothing"
        });
        self.trace(host, || {
            format!("starts the guest from nothing, holder {holder:?}")
        });
        let generation = self.arbiter.start(self.process(host));
        self.client.begin_anew();
        self.boot_guest(host, generation);
    }
}
