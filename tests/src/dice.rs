//! Chance that can be repeated: the same seed, the same sequence (Marsaglia's xorshift).

/// Numbers from a seed.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        // 0 would stay 0.
        Self(seed | 1)
    }

    /// One of 0 to `below`, which is not among them.
    pub fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).expect("64 bits") % below.max(1)
    }

    pub fn byte(&mut self) -> u8 {
        self.next(256).to_le_bytes()[0]
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.next(of.len())]
    }
}

/// What an environment variable says about how much, or which.
pub fn number(name: &str, usual: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(usual)
}
