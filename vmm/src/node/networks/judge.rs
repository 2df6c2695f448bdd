//! Whether what is seen of a tap means that the guest reaches nobody through it, and whether that lasts.
//!
//! A tap is judged by what it had: one that never was part of a bridge may be routed, a bridge without an uplink may
//! be translated to addresses of the host, and an uplink that never worked may be a socket without a cable. A short interruption, as of a cable that is put elsewhere, is nothing to act
//! on. It is known at once all the same, and for a while: a host that is cut itself must not be thought to be the better
//! one, nor one whose cable comes and goes. Ping targets that have answered and do so no more are a fault of their own,
//! which is looked for less often.
//! What must not be done here: look, or wait.

use std::collections::BTreeSet;

use super::ping::Silence;
use super::sysfs::{Bridge, Tap, Way};
use super::{Cut, Reach};

/// So many looks in a row show that it lasts: a second, at least, and not two.
const LOOKS_CUT: u32 = 3;
/// So many looks in a row show that it is over.
pub(super) const LOOKS_GOOD: u32 = 3;

/// Judges one tap, look by look.
#[derive(Debug, Default)]
pub(super) struct Judge {
    /// It was seen before.
    was_there: bool,
    /// The furthest that its frames ever got.
    reach: Reach,
    /// Its bridge has had a card: then nothing else counts as an uplink.
    had_card: bool,
    /// The uplinks of its bridge that have ever worked.
    had: BTreeSet<String>,
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
    /// Judges what a look at the tap of this name has shown, and what is known by ping targets.
    pub(super) fn judge(
        &mut self,
        name: &str,
        tap: Option<Tap>,
        silence: Option<Silence>,
    ) -> (Reach, Option<Cut>) {
        match (self.fault(name, tap), silence) {
            (Some(why), _) => {
                self.why = why;
                self.looks_bad = self.looks_bad.saturating_add(1);
                self.looks_good = 0;
                self.is_cut = true;
                self.lasts |= self.looks_bad >= LOOKS_CUT;
            }
            (None, Some(Silence { why, lasts })) => {
                self.why = why;
                (self.looks_bad, self.looks_good) = (0, 0);
                self.is_cut = true;
                self.lasts |= lasts;
            }
            (None, None) => {
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
        self.had_card |= bridge.ways_out.iter().any(|way| way.is_card);
        let uplinks: Vec<&Way> = (bridge.ways_out.iter())
            .filter(|way| way.is_card == self.had_card)
            .collect();
        self.had
            .retain(|had| uplinks.iter().any(|way| way.name == *had));
        let works = uplinks.iter().filter(|way| way.works);
        self.had.extend(works.map(|way| way.name.clone()));
        let lost: Vec<&str> = (uplinks.iter().map(|way| way.name.as_str()))
            .filter(|name| self.had.contains(*name))
            .collect();
        if uplinks.iter().any(|way| way.works) {
            self.reach = Reach::Uplink;
            None
        } else if !lost.is_empty() {
            let lost = lost.join(", ");
            Some(format!("no uplink of the bridge {its_name} works ({lost})"))
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

    /// What is called `veth` is no card.
    fn bridged(ways_out: &[(&str, bool)]) -> Tap {
        let ways_out = ways_out.iter().map(|(name, works)| Way {
            name: (*name).into(),
            is_card: !name.starts_with("veth"),
            works: *works,
        });
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
            last = judge.judge("tap0", Some(tap.clone()), None).1;
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
        assert_eq!(Judge::default().judge("tap0", None, None).1, None);
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
        (0..LOOKS_CUT).for_each(|_| drop(judge.judge("tap0", None, None)));
        let cut = judge.judge("tap0", None, None).1.unwrap();
        assert!(cut.why.contains("gone"), "{cut:?}");
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
    }

    #[test]
    fn an_uplink_that_never_worked_is_not_lost() {
        let unplugged = bridged(&[("eth0", false)]);
        let mut judge = Judge::default();
        assert_eq!(looks(&mut judge, 9, &unplugged), None);
        assert_eq!(judge.reach, Reach::Bridge, "the other host is told so");
        // Only the one that worked is named.
        looks(&mut judge, 1, &bridged(&[("eth0", false), ("eth1", true)]));
        let down = bridged(&[("eth0", false), ("eth1", false)]);
        let why = lasting(&mut judge, &down);
        assert!(why.contains("(eth1)"), "{why}");
        // One that is put into the place of another one begins anew, but the bridge had an uplink.
        let why = lasting(&mut judge, &unplugged);
        assert!(why.contains("no uplink any more"), "{why}");
    }

    #[test]
    fn containers_are_no_uplink_of_a_bridge_that_has_had_a_card() {
        let up = bridged(&[("eth0", true), ("veth7", true)]);
        for (now, why) in [
            (bridged(&[("eth0", false), ("veth7", true)]), "(eth0)"),
            (bridged(&[("veth7", true)]), "no uplink any more"),
        ] {
            let mut judge = Judge::default();
            assert_eq!(looks(&mut judge, 1, &up), None);
            let said = lasting(&mut judge, &now);
            assert!(said.contains(why), "{said}");
        }
        let mut judge = Judge::default();
        looks(&mut judge, 1, &up);
        let stopped = bridged(&[("eth0", true), ("veth7", false)]);
        assert_eq!(looks(&mut judge, LOOKS_CUT, &stopped), None);
        // Without a card, it may lead anywhere.
        let mut judge = Judge::default();
        looks(&mut judge, 1, &bridged(&[("veth7", true)]));
        assert_eq!(judge.reach, Reach::Uplink);
        let why = lasting(&mut judge, &bridged(&[("veth7", false)]));
        assert!(why.contains("(veth7)"), "{why}");
    }

    #[test]
    fn ping_targets_that_are_silent_are_a_fault_that_is_known_at_once_and_acted_on_later() {
        let up = bridged(&[("eth0", true)]);
        let mut judge = Judge::default();
        assert_eq!(looks(&mut judge, 1, &up), None);
        let mut silent = |lasts: bool| {
            let why = "nobody answers".to_owned();
            let silence = Some(Silence { why, lasts });
            judge.judge("tap0", Some(up.clone()), silence).1.unwrap()
        };
        for _ in 0..9 {
            let cut = silent(false);
            assert!(!cut.lasts && cut.why == "nobody answers", "{cut:?}");
        }
        assert!(silent(true).lasts);
        assert!(looks(&mut judge, LOOKS_GOOD - 1, &up).unwrap().lasts);
        assert_eq!(looks(&mut judge, 1, &up), None);
    }

    #[test]
    fn one_uplink_that_works_is_enough() {
        let tap = bridged(&[("eth0", false), ("eth1", true)]);
        let mut judge = Judge::default();
        assert_eq!(looks(&mut judge, LOOKS_CUT, &tap), None);
        assert_eq!(judge.reach, Reach::Uplink);
    }
}
