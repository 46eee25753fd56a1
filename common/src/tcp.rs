//! The life of a flow, after RFC 7857 section 2 and RFC 4787.

/// Where a flow is in its life; decides how long it may be idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// Only one side has spoken.
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
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::HalfClosed => "half_closed",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }
}
