//! The life of a flow: TCP after RFC 7857 section 2 and RFC 5382 REQ-5, UDP after RFC 4787 REQ-5, ICMP after
//! RFC 5508 REQ-2. Alone in a file and free of I/O.

use crate::maps::Timeouts;

/// Where a flow is in its life; decides how long it may be idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FlowState {
    /// Only one side has spoken, or a TCP handshake is not complete.
    New = 0,
    /// Both sides have spoken.
    Established = 1,
    /// One side of a TCP connection has said that it will send no more.
    HalfClosed = 2,
    /// Both sides of a TCP connection have finished.
    Closed = 3,
    /// A side reset the TCP connection.
    Reset = 4,
}

impl FlowState {
    pub const ALL: [Self; 5] = [Self::New, Self::Established, Self::HalfClosed, Self::Closed, Self::Reset];

    /// The label in the API and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::HalfClosed => "half_closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }

    /// From a map; a number that is none of ours counts as the shortest life.
    #[inline(always)]
    pub const fn from_u8(state: u8) -> Self {
        match state {
            0 => Self::New,
            1 => Self::Established,
            2 => Self::HalfClosed,
            3 => Self::Closed,
            _ => Self::Reset,
        }
    }
}

/// IANA protocol numbers.
pub mod proto {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMP6: u8 = 58;
}

/// Bits of the thirteenth byte of a TCP header (RFC 9293 section 3.1).
pub mod bits {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// How long a flow may be idle, in seconds.
#[inline(always)]
pub const fn timeout(timeouts: &Timeouts, protocol: u8, state: FlowState) -> u32 {
    match (protocol, state) {
        // A half-closed connection may still carry data for hours one way.
        (proto::TCP, FlowState::Established | FlowState::HalfClosed) => timeouts.tcp_open,
        (proto::TCP, FlowState::New) => timeouts.tcp_opening,
        (proto::TCP, FlowState::Closed | FlowState::Reset) => timeouts.tcp_closing,
        (proto::UDP, _) => timeouts.udp,
        (_, _) => timeouts.icmp,
    }
}

/// Does this segment ask for a connection?
#[inline(always)]
pub const fn opens(segment: u8) -> bool {
    segment & (bits::SYN | bits::ACK | bits::RST | bits::FIN) == bits::SYN
}

/// What the state machine has to know besides the segment.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The segment comes from the side that sent the flow's first packet.
    pub from_opener: bool,
    /// The other side has answered before, or is answering now.
    pub answered: bool,
    /// The other direction has sent FIN.
    pub peer_finished: bool,
    /// A reset of an open connection came from the side that this segment comes from.
    pub aborted: bool,
}

/// The state after a TCP segment with these flag bits.
#[inline(always)]
pub const fn after_segment(state: FlowState, segment: u8, seen: Seen) -> FlowState {
    if segment & bits::RST != 0 {
        return FlowState::Reset;
    }
    match state {
        // The same ports are used again (RFC 5382 REQ-3 and TIME-WAIT reuse).
        FlowState::Closed | FlowState::Reset if opens(segment) => FlowState::New,
        // A reset that the receiver ignored must not end the connection (RFC 7857 section 2.2). Sequence numbers are
        // not followed here; but whoever has sent a reset himself sends nothing else afterwards.
        FlowState::Reset if seen.aborted => open(segment, seen),
        FlowState::Closed | FlowState::Reset => state,
        _ if segment & bits::FIN != 0 => open(segment, seen),
        FlowState::New if seen.from_opener && seen.answered && segment & bits::SYN == 0 => {
            FlowState::Established
        }
        FlowState::New | FlowState::Established | FlowState::HalfClosed => state,
    }
}

/// Of a connection that is known to be open, after this segment.
#[inline(always)]
const fn open(segment: u8, seen: Seen) -> FlowState {
    match (segment & bits::FIN != 0, seen.peer_finished) {
        (true, true) => FlowState::Closed,
        (true, false) | (false, true) => FlowState::HalfClosed,
        (false, false) => FlowState::Established,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPENER: Seen = Seen { from_opener: true, answered: true, peer_finished: false, aborted: false };
    const ANSWERER: Seen = Seen { from_opener: false, answered: true, peer_finished: false, aborted: false };

    #[test]
    fn a_handshake_is_complete_with_the_third_segment() {
        let unanswered = Seen { answered: false, ..OPENER };
        let state = after_segment(FlowState::New, bits::SYN, unanswered);
        assert_eq!(state, FlowState::New);
        let state = after_segment(state, bits::SYN | bits::ACK, ANSWERER);
        assert_eq!(state, FlowState::New);
        assert_eq!(after_segment(state, bits::ACK, OPENER), FlowState::Established);
    }

    #[test]
    fn one_fin_is_half_closed_two_are_closed() {
        let state = after_segment(FlowState::Established, bits::FIN | bits::ACK, OPENER);
        assert_eq!(state, FlowState::HalfClosed);
        let state = after_segment(state, bits::FIN | bits::ACK, Seen { peer_finished: true, ..ANSWERER });
        assert_eq!(state, FlowState::Closed);
    }

    #[test]
    fn a_repeated_fin_of_the_same_side_does_not_close() {
        let state = after_segment(FlowState::HalfClosed, bits::FIN | bits::ACK, OPENER);
        assert_eq!(state, FlowState::HalfClosed);
    }

    #[test]
    fn a_reset_shortens_and_a_new_syn_starts_over() {
        let state = after_segment(FlowState::Established, bits::RST, ANSWERER);
        assert_eq!(state, FlowState::Reset);
        assert_eq!(after_segment(state, bits::ACK, OPENER), FlowState::Reset);
        assert_eq!(after_segment(state, bits::SYN, OPENER), FlowState::New);
    }

    #[test]
    fn who_goes_on_has_not_sent_the_reset_and_the_connection_is_what_it_was() {
        let forged = Seen { aborted: true, ..ANSWERER };
        assert_eq!(after_segment(FlowState::Reset, bits::ACK, forged), FlowState::Established);
        assert_eq!(after_segment(FlowState::Reset, bits::FIN | bits::ACK, forged), FlowState::HalfClosed);
        assert_eq!(after_segment(FlowState::Reset, bits::RST, forged), FlowState::Reset);
        let half = Seen { peer_finished: true, ..forged };
        assert_eq!(after_segment(FlowState::Reset, bits::ACK, half), FlowState::HalfClosed);
        assert_eq!(after_segment(FlowState::Reset, bits::FIN | bits::ACK, half), FlowState::Closed);
    }

    #[test]
    fn only_a_bare_syn_opens() {
        assert!(opens(bits::SYN));
        assert!(opens(bits::SYN | 0x40), "ECN setup (RFC 3168) is no objection");
        for segment in [bits::SYN | bits::ACK, bits::ACK, bits::RST, bits::SYN | bits::FIN, 0] {
            assert!(!opens(segment), "{segment:#x}");
        }
    }

    #[test]
    fn every_usual_timeout_is_at_least_what_its_rfc_asks() {
        let usual = |protocol, state| timeout(&Timeouts::RFC, protocol, state);
        for state in FlowState::ALL {
            assert!(usual(proto::UDP, state) >= 120);
            assert!(usual(proto::ICMP, state) >= 60);
            assert!(usual(proto::ICMP6, state) >= 60);
            assert!(usual(proto::TCP, state) >= 240);
            assert_eq!(FlowState::from_u8(state as u8), state);
        }
        assert!(usual(proto::TCP, FlowState::Established) >= 7440);
        assert!(usual(proto::TCP, FlowState::HalfClosed) >= 7440);
    }
}
