//! A small reproducible random number generator (splitmix64).

pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// A number that is often near an edge.
    pub fn value(&mut self) -> u64 {
        let base = match self.below(8) {
            0 => self.below(4),
            1 => u64::MAX - self.below(4),
            2 => 1 << self.below(64),
            3 => (1 << self.below(64)) - 1,
            4 => [
                0x80,
                0x7f,
                0x8000,
                0x7fff,
                0x8000_0000,
                0x7fff_ffff,
                1 << 63,
                (1 << 63) - 1,
            ][self.below(8) as usize],
            5 => self.next() >> self.below(64),
            _ => self.next(),
        };
        if self.chance(10) { base.wrapping_neg() } else { base }
    }
}
