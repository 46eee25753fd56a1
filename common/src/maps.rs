//! Keys and values of the maps that the programs and the agent share.

/// Rules of all kinds that can exist at once: the size of the `rule` and `rule_stat` maps.
pub const MAX_RULES: u32 = 16384;
