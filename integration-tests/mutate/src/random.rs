//! Random numbers that come again from the same start.

/// A generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Begins at `start`.
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self(start)
    }

    /// The next 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 0 to `end` - 1; 0 where `end` is 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        usize::try_from(self.number().checked_rem(end).unwrap_or(0)).unwrap_or(0)
    }

    /// True once in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of them; `None` if there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        from.get(self.below(from.len()))
    }

    /// A number that programs get wrong more often than others.
    pub fn interesting(&mut self) -> u64 {
        const EDGES: [u64; 12] = [0, 1, 2, 16, 64, 127, 128, 255, 256, 1000, 1500, 4096];
        match self.below(4) {
            0 => EDGES[self.below(EDGES.len())],
            // Around each power of two, so around each type's end.
            1 => (1_u64 << self.below(64)).wrapping_add(self.number() % 3).wrapping_sub(1),
            2 => u64::MAX - self.number() % 3,
            _ => self.number() >> self.below(64),
        }
    }
}
