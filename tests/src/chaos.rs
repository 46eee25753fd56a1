//! A router that somebody changes all the time, and where its packets may come out meanwhile. Pure.
//!
//! ```text
//!  inside eth0 ------ lan0 - br-lab  (routing)  wan0 ------ eth0 outside
//!  other  eth0 ------ lan1 -/                                several cards, told apart by their MAC
//! ```
//!
//! Each state says for itself where a packet of ours comes out if it comes out at all. A packet that was on its way while
//! states changed may be where any of them says.

use std::{fmt, net::Ipv4Addr};

use crate::{dice::Dice, lab::INSIDE};

/// What is talked to: not an address of the outside's network, so that routes decide how it is reached.
pub const TARGET: [u8; 4] = [198, 51, 100, 7];

/// The inside host, and the router as it knows it.
pub const INSIDE_MAC: &str = "02:00:00:00:03:01";
pub const ROUTER_MAC: &str = "02:00:00:00:01:01";
const OTHER_ROUTER_MAC: &str = "02:00:00:00:01:02";

/// The outside's network has two gateways, and each may have either of two cards. The first of all is the real one.
pub const GATEWAYS: [(&str, [[u8; 6]; 2]); 2] = [
    ("203.0.113.2", [[2, 0, 0, 0, 2, 0x0a], [2, 0, 0, 0, 2, 0x0b]]),
    ("203.0.113.3", [[2, 0, 0, 0, 2, 0x1a], [2, 0, 0, 0, 2, 0x1b]]),
];

/// The table that a rule sends packets to the target to.
const RULED: &str = "77";

/// Where packets to the target are sent, by a table of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leads {
    /// It says nothing.
    No,
    ToSecond,
    Nowhere,
}

/// A port of the bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Port {
    Up,
    Down,
    /// In no bridge.
    Apart,
}

/// At the end of which port the inside host is, as the bridge sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Inside,
    Other,
}

/// Everything that changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    pub route: Leads,
    /// A table of its own, asked first.
    pub rule: Leads,
    /// Which of its cards each gateway has.
    pub cards: [usize; 2],
    pub station: End,
    pub lan0: Port,
    pub lan1: Port,
    /// The bridge has the MAC that the inside host sends to.
    pub addressed: bool,
    /// Of the host's own packet filter.
    pub drops_out: bool,
    pub drops_in: bool,
    /// Of the worker's.
    pub firewall: bool,
    /// These concern nobody: a narrower uplink, a route and a link elsewhere, another forward.
    pub narrow: bool,
    pub elsewhere: bool,
    pub bridge: bool,
    pub forward: bool,
}

/// What is done to come from one state to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// A command line in the router's namespace.
    Run(String),
    /// The worker's own rules: made, or deleted.
    Firewall(bool),
    Forward(bool),
}

impl State {
    pub const CALM: Self = Self {
        route: Leads::No,
        rule: Leads::No,
        cards: [0, 0],
        station: End::Inside,
        lan0: Port::Up,
        lan1: Port::Up,
        addressed: true,
        drops_out: false,
        drops_in: false,
        firewall: false,
        narrow: false,
        elsewhere: false,
        bridge: false,
        forward: false,
    };

    /// The MAC to which packets for the target leave, from the inside.
    pub fn out(&self) -> Option<[u8; 6]> {
        let gateway = self.gateway().filter(|_| self.lets_out())?;
        Some(GATEWAYS[gateway].1[self.cards[gateway]])
    }

    fn gateway(&self) -> Option<usize> {
        match if self.rule == Leads::No { self.route } else { self.rule } {
            Leads::No => Some(0),
            Leads::ToSecond => Some(1),
            Leads::Nowhere => None,
        }
    }

    fn lets_out(&self) -> bool {
        self.addressed && !self.drops_out && !self.firewall
    }

    /// Where packets for the inside host come out.
    pub fn inwards(&self) -> Option<End> {
        self.delivers().filter(|_| !self.drops_in)
    }

    fn delivers(&self) -> Option<End> {
        let port = match self.station {
            End::Inside => self.lan0,
            End::Other => self.lan1,
        };
        (port == Port::Up).then_some(self.station)
    }

    /// The next one.
    #[must_use]
    pub fn changed(mut self, dice: &mut Dice) -> Self {
        let before = self;
        while self == before {
            let leads = [Leads::No, Leads::ToSecond, Leads::Nowhere];
            match dice.next(34) {
                0..=4 => self.route = dice.pick(&leads),
                5..=8 => self.rule = dice.pick(&leads),
                9..=12 => self.cards[dice.next(2)] ^= 1,
                13..=16 if self.lan1 != Port::Apart => self.station = dice.pick(&[End::Inside, End::Other]),
                17 => self.lan0 = dice.pick(&[Port::Up, Port::Down]),
                18..=19 => {
                    self.lan1 = dice.pick(&[Port::Up, Port::Down, Port::Apart]);
                    if self.lan1 == Port::Apart {
                        self.station = End::Inside;
                    }
                }
                20 => self.addressed ^= true,
                21 => self.drops_out ^= true,
                22 => self.drops_in ^= true,
                23 => self.firewall ^= true,
                24 => self.narrow ^= true,
                25..=26 => self.elsewhere ^= true,
                27 => self.bridge ^= true,
                28 => self.forward ^= true,
                // What keeps everything off the fast path is ended sooner than it is begun.
                29..=33 => (self.drops_out, self.drops_in, self.firewall) = (false, false, false),
                _ => {}
            }
        }
        self
    }

    /// The one most like it in which packets pass. On the way there none passes, or as they do then.
    #[must_use]
    pub fn passable(self) -> Self {
        let led = |leads: Leads| if leads == Leads::Nowhere { Leads::No } else { leads };
        let (route, rule) = (led(self.route), led(self.rule));
        let open = Self { drops_out: false, drops_in: false, firewall: false, ..self };
        Self { route, rule, addressed: true, lan0: Port::Up, ..open }
    }

    /// From here to where it all began, one change after the other.
    pub fn back(self) -> Vec<Self> {
        let mut steps = vec![self, self.passable()];
        let mut then = |next: fn(Self) -> Self| steps.extend(steps.last().copied().map(next));
        then(|last| Self { rule: Leads::No, ..last });
        then(|last| Self { route: Leads::No, ..last });
        then(|last| Self { cards: [0, last.cards[1]], ..last });
        then(|last| Self { cards: [0, 0], ..last });
        then(|last| Self { station: End::Inside, ..last });
        then(|last| Self { lan1: Port::Up, ..last });
        then(|_| Self::CALM);
        steps.dedup();
        steps.split_off(1)
    }

    /// Whether the next one is one that the fast path must hear of: more changes than what concerns nobody.
    pub fn tells(&self, next: &Self) -> bool {
        Self { bridge: next.bridge, forward: next.forward, ..*self } != *next
    }

    /// What makes this one into the next one.
    pub fn acts(&self, next: &Self) -> Vec<Act> {
        let mut acts = Vec::new();
        let mut run = |line: &dyn fmt::Display| acts.push(Act::Run(line.to_string()));
        let second = GATEWAYS[1].0;
        let target = Ipv4Addr::from(TARGET);
        for (was, is, table) in [(self.route, next.route, "main"), (self.rule, next.rule, RULED)] {
            if was == is {
                continue;
            }
            match is {
                Leads::No => run(&format_args!("ip route del {target} table {table}")),
                Leads::ToSecond => run(&format_args!("ip route replace {target} via {second} table {table}")),
                Leads::Nowhere => run(&format_args!("ip route replace blackhole {target} table {table}")),
            }
            // The rule comes when its table says something, and goes with that.
            if table == RULED && (was == Leads::No || is == Leads::No) {
                let verb = if is == Leads::No { "del" } else { "add" };
                run(&format_args!("ip rule {verb} to {target} lookup {table} priority 100"));
            }
        }
        for (gateway, (address, cards)) in GATEWAYS.into_iter().enumerate() {
            if self.cards[gateway] != next.cards[gateway] {
                let card = text(cards[next.cards[gateway]]);
                run(&format_args!("ip neigh replace {address} lladdr {card} dev wan0 nud permanent"));
            }
        }
        if self.lan1 != next.lan1 {
            match next.lan1 {
                Port::Apart => run(&"ip link set lan1 nomaster"),
                Port::Up | Port::Down if self.lan1 == Port::Apart => run(&"ip link set lan1 master br-lab"),
                Port::Up | Port::Down => {}
            }
            let way = if next.lan1 == Port::Down { "down" } else { "up" };
            run(&format_args!("ip link set lan1 {way}"));
        }
        // An entry goes with the port that it leads to.
        if self.station != next.station || (self.lan1 != next.lan1 && next.lan1 == Port::Apart) {
            run(&station(next.station));
        }
        if self.lan0 != next.lan0 {
            let way = if next.lan0 == Port::Down { "down" } else { "up" };
            run(&format_args!("ip link set lan0 {way}"));
        }
        if self.addressed != next.addressed {
            let mac = if next.addressed { ROUTER_MAC } else { OTHER_ROUTER_MAC };
            run(&format_args!("ip link set br-lab address {mac}"));
            // The kernel forgets all neighbours then.
            run(&neighbour());
        }
        if (self.drops_out, self.drops_in) != (next.drops_out, next.drops_in) {
            let rule = |drops: bool, to: Ipv4Addr| match drops {
                true => format!("; add rule ip chaos f ip daddr {to} drop"),
                false => String::new(),
            };
            let (out, inwards) = (rule(next.drops_out, target), rule(next.drops_in, INSIDE));
            run(&format_args!("nft flush chain ip chaos f{out}{inwards}"));
        }
        if self.narrow != next.narrow {
            run(&format_args!("ip link set wan0 mtu {}", if next.narrow { 1400 } else { 1500 }));
        }
        if self.elsewhere != next.elsewhere {
            let verb = if next.elsewhere { "add" } else { "del" };
            run(&format_args!("ip route {verb} blackhole 192.0.2.0/24"));
        }
        if self.bridge != next.bridge {
            run(&format_args!("ip link {} chaos type bridge", if next.bridge { "add" } else { "del" }));
        }
        if self.firewall != next.firewall {
            acts.push(Act::Firewall(next.firewall));
        }
        if self.forward != next.forward {
            acts.push(Act::Forward(next.forward));
        }
        acts
    }
}

/// Whether a packet that was on its way while these were in force may leave to that MAC.
///
/// Each may have decided about a part of its way: one may wait between its route and its neighbour's card.
pub fn may_leave(states: &[State], to: [u8; 6]) -> bool {
    let led = |gateway: usize| states.iter().any(|state| state.gateway() == Some(gateway));
    let has = |gateway: usize| states.iter().any(|state| GATEWAYS[gateway].1[state.cards[gateway]] == to);
    states.iter().any(State::lets_out) && (0..GATEWAYS.len()).any(|gateway| led(gateway) && has(gateway))
}

/// The same of one that comes out inside.
pub fn may_arrive(states: &[State], at: End) -> bool {
    states.iter().any(|state| !state.drops_in) && states.iter().any(|state| state.delivers() == Some(at))
}

/// Where the bridge has the inside host, whatever frames say.
pub fn station(end: End) -> String {
    let port = match end {
        End::Inside => "lan0",
        End::Other => "lan1",
    };
    format!("bridge fdb replace {INSIDE_MAC} dev {port} master static sticky")
}

/// How the router knows the inside host.
pub fn neighbour() -> String {
    format!("ip neigh replace {INSIDE} lladdr {INSIDE_MAC} dev br-lab nud permanent")
}

pub fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_table_that_says_something_decides() {
        let calm = State::CALM;
        assert_eq!(calm.out(), Some(GATEWAYS[0].1[0]));
        let routed = State { route: Leads::ToSecond, cards: [0, 1], ..calm };
        assert_eq!(routed.out(), Some(GATEWAYS[1].1[1]));
        assert_eq!(State { rule: Leads::Nowhere, ..routed }.out(), None);
        assert_eq!(
            State { rule: Leads::ToSecond, route: Leads::Nowhere, ..calm }.out(),
            Some(GATEWAYS[1].1[0])
        );
        assert_eq!(State { firewall: true, ..calm }.out(), None);
    }

    #[test]
    fn a_station_is_reached_through_a_port_that_is_up() {
        let moved = State { station: End::Other, ..State::CALM };
        assert_eq!(moved.inwards(), Some(End::Other));
        assert_eq!(State { lan1: Port::Down, ..moved }.inwards(), None);
        assert_eq!(State { lan1: Port::Down, ..State::CALM }.inwards(), Some(End::Inside));
    }

    #[test]
    fn of_a_packet_that_waits_on_its_way_several_states_decide() {
        let before = State { cards: [1, 0], drops_in: true, ..State::CALM };
        let after = State { route: Leads::Nowhere, station: End::Other, ..State::CALM };
        let card = |gateway: usize, which: usize| GATEWAYS[gateway].1[which];
        assert!(may_leave(&[before, after], card(0, 0)) && may_leave(&[before, after], card(0, 1)));
        assert!(!may_leave(&[before, after], card(1, 0)), "nobody leads there");
        assert!(!may_leave(&[after], card(0, 0)));
        assert!(may_arrive(&[before, after], End::Inside) && may_arrive(&[before, after], End::Other));
        assert!(!may_arrive(&[before], End::Inside) && !may_arrive(&[after], End::Inside));
    }

    #[test]
    fn the_way_back_ends_where_it_began() {
        let mut dice = Dice::new(11);
        let mut state = State::CALM;
        assert!(state.back().is_empty());
        for _ in 0..100 {
            state = state.changed(&mut dice);
            assert!(state.passable().out().is_some());
            assert_eq!(state.back().last().copied().unwrap_or(state), State::CALM);
        }
    }

    #[test]
    fn every_change_is_one_that_something_is_done_for() {
        let mut dice = Dice::new(7);
        let mut state = State::CALM;
        for _ in 0..1000 {
            let next = state.changed(&mut dice);
            assert!(!state.acts(&next).is_empty(), "{state:?} to {next:?}");
            assert!(next.acts(&next).is_empty());
            state = next;
        }
    }
}
