//! How often something may be done: the generic cell rate algorithm (GCRA), as one pure function.
//!
//! All that is remembered of a limit is one instant, at which its count is back to nothing; `lua/limit.lua` keeps it in
//! Redis and computes the same. The source of the algorithm is ITU-T I.371; its use for rate limits is Brandur Leach's
//! "Rate Limiting, Cells, and GCRA".

use std::str::FromStr;
use std::time::Duration;

/// So many at once, and as many again in each period, one by one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    count: u32,
    period: Duration,
}

/// What a limit says to one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// Whether it may be done. One that may not does not count.
    pub admitted: bool,
    /// After how long the next may be done, microseconds.
    pub next_us: i64,
}

impl Limit {
    /// The longest period.
    pub const LONGEST: Duration = Duration::from_hours(24);
    /// The most at once.
    pub const MOST: u32 = 1_000_000;

    /// `count` at once and in each `period`; `None` where either is nothing or too large.
    pub fn new(count: u32, period: Duration) -> Option<Self> {
        let good =
            (1..=Self::MOST).contains(&count) && (Duration::from_millis(1)..=Self::LONGEST).contains(&period);
        good.then_some(Self { count, period })
    }

    /// `count` at once and in each minute; at least one.
    pub const fn per_minute(count: u32) -> Self {
        Self { count: if count == 0 { 1 } else { count }, period: Duration::from_mins(1) }
    }

    /// The time in which one is given back, microseconds, rounded up.
    pub fn interval_us(self) -> i64 {
        let interval = self.period.as_micros().div_ceil(u128::from(self.count));
        i64::try_from(interval).unwrap_or(i64::MAX)
    }

    /// How far ahead of now the instant may be at which all is given back, microseconds.
    pub fn tolerance_us(self) -> i64 {
        self.interval_us().saturating_mul(i64::from(self.count))
    }

    /// One more at `now_us`, where all will be given back at `full_us`: what becomes of it, and when all is given back
    /// then. Both by one clock, microseconds.
    pub fn take(self, full_us: i64, now_us: i64) -> (Taken, i64) {
        let latest = now_us.saturating_add(self.tolerance_us());
        // No count reaches further ahead: such a one is from before the clock was set back.
        let full_us = if full_us > latest { now_us } else { full_us };
        let after = full_us.max(now_us).saturating_add(self.interval_us());
        if after > latest {
            return (Taken { admitted: false, next_us: after - latest }, full_us);
        }
        let next_us = (after.saturating_add(self.interval_us()) - latest).max(0);
        (Taken { admitted: true, next_us }, after)
    }
}

/// `60/1m`: sixty at once, and one more each second.
impl FromStr for Limit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let read = || {
            let (count, period) = text.split_once('/')?;
            let count = count.parse().ok().filter(|_| count.bytes().all(|byte| byte.is_ascii_digit()))?;
            Self::new(count, humantime::parse_duration(period).ok()?)
        };
        read().ok_or_else(|| {
            format!("must be a count and a time, such as 60/1m; at most {} and 24h", Self::MOST)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_limit_is_read_and_a_bad_one_refused() {
        let limit: Limit = "60/1m".parse().unwrap();
        assert_eq!((limit.interval_us(), limit.tolerance_us()), (1_000_000, 60_000_000));
        assert_eq!("30/5m".parse::<Limit>().unwrap().interval_us(), 10_000_000);
        assert_eq!("7/1m".parse::<Limit>().unwrap().interval_us(), 8_571_429);
        for bad in [
            "",
            "60",
            "/1m",
            "60/",
            "0/1m",
            "-1/1m",
            "+1/1m",
            "60/0s",
            "60/25h",
            "1000001/1m",
            "60/1m/2",
            "x/1m",
        ] {
            assert!(bad.parse::<Limit>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn so_many_at_once_and_then_one_an_interval() {
        let limit: Limit = "3/3s".parse().unwrap();
        let (mut full, now) = (0, 1_000_000_000);
        for next in [0, 0, 1_000_000] {
            let (taken, after) = limit.take(full, now);
            assert_eq!(taken, Taken { admitted: true, next_us: next });
            full = after;
        }
        assert_eq!(limit.take(full, now), (Taken { admitted: false, next_us: 1_000_000 }, full));
        assert_eq!(limit.take(full, now + 999_999), (Taken { admitted: false, next_us: 1 }, full));
        let (taken, full) = limit.take(full, now + 1_000_000);
        assert_eq!(taken, Taken { admitted: true, next_us: 1_000_000 });
        assert!(!limit.take(full, now + 1_000_000).0.admitted);
        assert!(limit.take(full, now + 10_000_000).0.admitted);
    }

    proptest! {
        /// What a client is told is the truth: not before that time, and at that time.
        #[test]
        fn whoever_waits_as_long_as_he_was_told_is_admitted(
            count in 1u32..50, period_ms in 1u64..100_000, gaps in prop::collection::vec(0i64..5_000_000, 1..100),
        ) {
            let limit = Limit::new(count, Duration::from_millis(period_ms)).unwrap();
            let (mut full, mut now, mut admitted) = (0, 1_000_000_000_000, Vec::new());
            for gap in gaps {
                now += gap;
                let (taken, after) = limit.take(full, now);
                if taken.admitted {
                    admitted.push(now);
                }
                full = after;
                if taken.next_us > 0 {
                    prop_assert!(!limit.take(full, now + taken.next_us - 1).0.admitted);
                }
                prop_assert!(limit.take(full, now + taken.next_us).0.admitted);
            }
            // Never more than the count and what an interval gives back, in any stretch.
            for (index, from) in admitted.iter().enumerate() {
                for (further, to) in admitted[index..].iter().enumerate() {
                    let most = i64::from(count) + (to - from) / limit.interval_us();
                    prop_assert!(i64::try_from(further).unwrap() < most);
                }
            }
        }
    }
}
