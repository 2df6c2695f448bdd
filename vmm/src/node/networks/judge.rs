//! Whether what is seen of a tap means that the guest reaches nobody through it, and whether that lasts.
//!
//! A tap is judged by what it had: one that never was part of a bridge may be routed, and a bridge without an uplink may
//! be translated to addresses of the host. A short interruption, as of a cable that is put elsewhere, is nothing to act
//! on. It is known at once all the same, and for a while: a host that is cut itself must not be thought to be the better
//! one, nor one whose cable comes and goes.
//! What must not be done here: look, or wait.

use super::sysfs::{Bridge, Tap};
use super::{Cut, Reach};

/// So many looks in a row show that it lasts: a second, at least, and not two.
const LOOKS_CUT: u32 = 3;
/// So many looks in a row show that it is over.
const LOOKS_GOOD: u32 = 3;

/// Judges one tap, look by look.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// It was seen before.
    was_there: bool,
    /// The furthest that its frames ever got.
    reach: Reach,
    /// The last reason for which frames reach nobody.
    why: String,
    /// Looks in a row at which they did not.
    looks_bad: u32,
    /// Looks in a row at which they did.
    looks_good: u32,
    /// They did not, and have not done so for long enough since.
    is_cut: bool,
    /// They did not for so long that it is acted on.
    lasts: bool,
}

impl Judge {
    /// Judges what a look at the tap of this name has shown.
    pub(super) fn judge(&mut self, name: &str, tap: Option<Tap>) -> (Reach, Option<Cut>) {
        match self.fault(name, tap) {
            Some(why) => {
                self.why = why;
                self.looks_bad = self.looks_bad.saturating_add(1);
                self.looks_good = 0;
                self.is_cut = true;
                self.lasts |= self.looks_bad >= LOOKS_CUT;
            }
            None => {
                self.looks_good = self.looks_good.saturating_add(1);
                self.looks_bad = 0;
                if self.looks_good >= LOOKS_GOOD {
                    (self.is_cut, self.lasts) = (false, false);
                }
            }
        }
        let cut = self.is_cut.then(|| Cut {
            why: self.why.clone(),
            lasts: self.lasts,
        });
        (self.reach, cut)
    }

    fn fault(&mut self, name: &str, tap: Option<Tap>) -> Option<String> {
        let Some(tap) = tap else {
            // In another network namespace than this process sees, there is nothing to be judged.
            return (self.was_there).then(|| format!("the tap {name} is gone"));
        };
        self.was_there = true;
        if !tap.works {
            return Some(format!("the tap {name} is down; ip link set {name} up"));
        }
        let Some(master) = tap.master else {
            return (self.reach >= Reach::Bridge)
                .then(|| format!("the tap {name} is not part of its bridge any more"));
        };
        let Some(bridge) = master.bridge else {
            self.reach = Reach::Uplink;
            return None;
        };
        self.fault_of(name, &bridge, &master.name)
    }

    fn fault_of(&mut self, name: &str, bridge: &Bridge, its_name: &str) -> Option<String> {
        if !bridge.is_up {
            return Some(format!("the bridge {its_name} is down"));
        }
        if !bridge.forwards {
            // With a spanning tree it takes half a minute before it does so for the first time.
            return (self.reach >= Reach::Bridge)
                .then(|| format!("the bridge {its_name} does not forward for {name} any more"));
        }
        self.reach = self.reach.max(Reach::Bridge);
        let ways: Vec<&str> = (bridge.ways_out.iter())
            .map(|(way, _)| way.as_str())
            .collect();
        if bridge.ways_out.iter().any(|(_, works)| *works) {
            self.reach = Reach::Uplink;
            None
        } else if !ways.is_empty() {
            let ways = ways.join(", ");
            Some(format!("no uplink of the bridge {its_name} works ({ways})"))
        } else {
            (self.reach == Reach::Uplink)
                .then(|| format!("the bridge {its_name} has no uplink any more"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sysfs::Master;
    use super::*;

    fn bridged(ways_out: &[(&str, bool)]) -> Tap {
        let ways_out = ways_out.iter().map(|(way, works)| ((*way).into(), *works));
        let bridge = Bridge {
            is_up: true,
            forwards: true,
            ways_out: ways_out.collect(),
        };
        let name = "lan".into();
        let bridge = Some(bridge);
        Tap {
            works: true,
            master: Some(Master { name, bridge }),
        }
    }

    fn bare() -> Tap {
        Tap {
            works: true,
            master: None,
        }
    }

    /// The same look so often.
    fn looks(judge: &mut Judge, times: u32, tap: &Tap) -> Option<Cut> {
        let mut last = None;
        for _ in 0..times {
            last = judge.judge("tap0", Some(tap.clone())).1;
        }
        last
    }

    fn lasting(judge: &mut Judge, tap: &Tap) -> String {
        let cut = looks(judge, LOOKS_CUT, tap).expect("it is cut");
        assert!(cut.lasts, "{cut:?}");
        cut.why
    }

    #[test]
    fn what_comes_back_soon_is_known_but_does_not_last_and_what_is_over_is_so_only_after_a_while() {
        let (up, down) = (bridged(&[("eth0", true)]), bridged(&[("eth0", false)]));
        let mut judge = Judge::default();
        assert_eq!(looks(&mut judge, 1, &up), None);
        let cut = looks(&mut judge, LOOKS_CUT - 1, &down).expect("known at once");
        assert!(!cut.lasts);
        let short = Some(cut);
        assert_eq!(looks(&mut judge, LOOKS_GOOD - 1, &up), short, "not over");
        // Bad looks do not add up over good ones.
        assert_eq!(looks(&mut judge, LOOKS_CUT - 1, &down), short);
        assert_eq!(looks(&mut judge, LOOKS_GOOD - 1, &up), short);
        assert_eq!(looks(&mut judge, 1, &up), None);
        let why = lasting(&mut judge, &down);
        assert!(why.contains("lan") && why.contains("eth0"), "{why}");
        let cut = looks(&mut judge, LOOKS_GOOD - 1, &up).expect("not over yet");
        assert!(cut.lasts);
        assert_eq!(looks(&mut judge, 1, &up), None);
    }

    #[test]
    fn a_network_is_judged_by_what_it_had() {
        // Routed, or translated: nobody knows what it is good for.
        for tap in [bare(), bridged(&[])] {
            assert_eq!(looks(&mut Judge::default(), 9, &tap), None);
        }
        assert_eq!(Judge::default().judge("tap0", None).1, None);
        let had_bridge = || {
            let mut judge = Judge::default();
            looks(&mut judge, 1, &bridged(&[]));
            judge
        };
        let mut blocked = bridged(&[]);
        let bridge = blocked.master.as_mut().and_then(|it| it.bridge.as_mut());
        bridge.unwrap().forwards = false;
        assert_eq!(looks(&mut Judge::default(), 9, &blocked), None, "not yet");
        let why = lasting(&mut had_bridge(), &blocked);
        assert!(why.contains("does not forward"), "{why}");
        let why = lasting(&mut had_bridge(), &bare());
        assert!(why.contains("not part of its bridge"), "{why}");
        let mut judge = had_bridge();
        (0..LOOKS_CUT).for_each(|_| drop(judge.judge("tap0", None)));
        assert!(judge.judge("tap0", None).1.unwrap().why.contains("gone"));
        let mut judge = Judge::default();
        assert_eq!(looks(&mut judge, 1, &bridged(&[("eth0", true)])), None);
        let why = lasting(&mut judge, &bridged(&[]));
        assert!(why.contains("no uplink any more"), "{why}");
    }

    #[test]
    fn what_nobody_can_be_reached_through_is_a_fault_from_the_beginning() {
        let mut off = bare();
        off.works = false;
        assert!(lasting(&mut Judge::default(), &off).contains("tap0 is down"));
        let blocked = |change: fn(&mut Bridge)| {
            let mut tap = bridged(&[("eth0", true)]);
            let master = tap.master.as_mut().unwrap();
            change(master.bridge.as_mut().unwrap());
            lasting(&mut Judge::default(), &tap)
        };
        assert!(blocked(|it| it.is_up = false).contains("lan is down"));
        let why = lasting(&mut Judge::default(), &bridged(&[("eth0", false)]));
        assert!(why.contains("no uplink"), "{why}");
    }

    #[test]
    fn one_uplink_that_works_is_enough() {
        let tap = bridged(&[("eth0", false), ("eth1", true)]);
        let mut judge = Judge::default();
        assert_eq!(looks(&mut judge, LOOKS_CUT, &tap), None);
        assert_eq!(judge.reach, Reach::Uplink);
    }
}
