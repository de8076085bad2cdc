//! Chance that can be repeated.

/// A generator good enough for choices (Steele and Vigna's `SplitMix64`): the same seed, the same rolls.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number from zero to `sides - 1`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }

    /// A number from `low` to `high - 1`.
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        low + i64::try_from(self.roll((high - low).unsigned_abs())).unwrap()
    }

    /// True in so many cases of a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.roll(100) < chance
    }

    /// A generator of its own for part of the work, whatever order the parts run in.
    pub fn split(&self, part: u64) -> Self {
        let mut dice = Self(self.0 ^ part.wrapping_mul(0xd6e8_feb8_6659_fd93));
        dice.roll(2);
        dice
    }
}
