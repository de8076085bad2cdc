//! The chain: how transitions from the stream become rows of one user's history (invariants 3, 5 and 11).

use super::{Millis, OnlineStatus, Reason, StreamId, Transition};

/// What SQL holds of a user, as it is read: the row of `users`, which other applications write to, and the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// `users.online_status`.
    pub mirror: OnlineStatus,
    /// `users.presence_version`.
    pub version: i64,
    /// `users.last_seen`.
    pub last_seen: Option<Millis>,
    /// Where the newest row of the history leads to, and the stream entry that it comes from.
    pub newest: Option<(OnlineStatus, StreamId)>,
}

/// What a user's history has come to before a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// Where the history leads to.
    pub status: OnlineStatus,
    /// [`StreamId::version`] of the newest transition that SQL has taken.
    pub version: i64,
    /// The last heartbeat.
    pub last_seen: Option<Millis>,
}

/// What no column of `users` can exceed, unless another application wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// [`StreamId::version`] of the newest transition of any user that SQL has taken.
    pub version: i64,
    /// The latest instant that a heartbeat can have.
    pub last_seen: Millis,
}

impl Stored {
    /// Where the user's history has got to (invariant 11). The newest row of the history decides. The mirror counts only
    /// where a version says that there were rows, which have been pruned. A version that no transition had, or that is
    /// missing, gives way to that of the newest row, and a `last_seen` in the future to none.
    pub fn recorded(self, bounds: Bounds) -> Recorded {
        let is_taken = self.version > 0 && self.version <= bounds.version;
        let status = match self.newest {
            Some((status, _)) => status,
            None if is_taken => self.mirror,
            None => OnlineStatus::Offline,
        };
        let newest = self.newest.map_or(0, |(_, id)| id.version());
        Recorded {
            status,
            version: if is_taken { self.version } else { newest },
            last_seen: self.last_seen.filter(|seen| *seen <= bounds.last_seen),
        }
    }
}

/// A row of `presence_transitions`, but for the user and `recorded_at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistoryRow {
    /// The stream entry that it comes from.
    pub id: StreamId,
    /// The status left behind.
    pub from: OnlineStatus,
    /// The new status.
    pub to: OnlineStatus,
    /// Why.
    pub reason: Reason,
    /// When it became true.
    pub at: Millis,
}

/// **The chain**: takes one user's transitions in stream order and moves `recorded` along them; returns the rows to add.
///
/// A transition whose version is not newer than `recorded` was written by an earlier run of the same batch and is left
/// out. One that leads to where the history already stands is no change: between whole lives the scripts never
/// append such a one, so it tells of a Redis that lost its data and heard the user anew; it moves the version and
/// `last_seen` and adds no row. Correct only for batches that are a prefix of what the stream still holds, which
/// `lua/take.lua` guarantees.
pub fn chain<'a>(
    recorded: &mut Recorded,
    transitions: impl IntoIterator<Item = &'a Transition>,
) -> Vec<HistoryRow> {
    let mut rows = Vec::new();
    for transition in transitions {
        if transition.id.version() <= recorded.version {
            continue;
        }
        recorded.version = transition.id.version();
        recorded.last_seen = recorded.last_seen.max(transition.last_seen);
        if transition.to == recorded.status {
            continue;
        }
        rows.push(HistoryRow {
            id: transition.id,
            from: recorded.status,
            to: transition.to,
            reason: transition.reason,
            at: transition.at,
        });
        recorded.status = transition.to;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nobody() -> Recorded {
        Recorded { status: OnlineStatus::Offline, version: 0, last_seen: None }
    }

    const BOUNDS: Bounds = Bounds { version: 100 << 20, last_seen: Millis(1_000) };

    fn stored(mirror: OnlineStatus, version: i64, newest: Option<(OnlineStatus, u64)>) -> Stored {
        let newest = newest.map(|(to, ms)| (to, StreamId { ms, seq: 0 }));
        Stored { mirror, version, last_seen: Some(Millis(1_000)), newest }
    }

    #[test]
    fn the_history_says_where_a_user_is_and_the_mirror_only_where_it_was_pruned() {
        use OnlineStatus::{Away, Offline, Online};
        let status = |stored: Stored| stored.recorded(BOUNDS).status;
        assert_eq!(status(stored(Offline, 50 << 20, Some((Online, 50)))), Online);
        assert_eq!(status(stored(Online, 0, Some((Away, 50)))), Away);
        assert_eq!(status(stored(Away, 50 << 20, None)), Away, "pruned");
        assert_eq!(status(stored(Online, 0, None)), Offline, "never present");
        assert_eq!(status(stored(Online, 101 << 20, None)), Offline, "no transition had this version");
    }

    #[test]
    fn a_version_that_no_transition_had_gives_way_to_the_history() {
        let version =
            |version, newest| stored(OnlineStatus::Offline, version, newest).recorded(BOUNDS).version;
        let newest = Some((OnlineStatus::Online, 50));
        assert_eq!(version(60 << 20, newest), 60 << 20, "taken, and no change");
        assert_eq!(version(40 << 20, newest), 40 << 20, "lowered, to take newer ones again");
        assert_eq!(version(100 << 20, None), 100 << 20);
        for odd in [0, -5, (100 << 20) + 1, i64::MAX] {
            assert_eq!((version(odd, newest), version(odd, None)), (50 << 20, 0), "{odd}");
        }
    }

    #[test]
    fn a_last_seen_in_the_future_counts_as_nothing() {
        let at = |ms| Stored { last_seen: Some(Millis(ms)), ..stored(OnlineStatus::Offline, 0, None) };
        assert_eq!(at(1_000).recorded(BOUNDS).last_seen, Some(Millis(1_000)));
        assert_eq!(at(1_001).recorded(BOUNDS).last_seen, None);
    }

    fn any_stream() -> impl Strategy<Value = Vec<Transition>> {
        prop::collection::vec(prop::sample::select(OnlineStatus::ALL.to_vec()), 0..20).prop_map(|words| {
            words
                .into_iter()
                .enumerate()
                .map(|(index, to)| Transition {
                    id: StreamId { ms: 1_000 + index as u64, seq: 0 },
                    user: 1,
                    to,
                    reason: Reason::Heartbeat,
                    at: Millis(1_000 + i64::try_from(index).unwrap()),
                    last_seen: None,
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_history_alternates_whatever_the_stream_says(stream in any_stream()) {
            let mut recorded = nobody();
            let rows = chain(&mut recorded, &stream);
            let mut status = OnlineStatus::Offline;
            for row in &rows {
                prop_assert_eq!(row.from, status);
                prop_assert_ne!(row.from, row.to);
                status = row.to;
            }
            prop_assert_eq!(status, recorded.status);
            prop_assert_eq!(stream.last().map_or(OnlineStatus::Offline, |last| last.to), recorded.status);
        }

        #[test]
        fn a_batch_cut_anywhere_and_written_again_adds_nothing(stream in any_stream(), cut in 0usize..20, again in 0usize..20) {
            let mut whole = nobody();
            let expected = chain(&mut whole, &stream);
            let cut = cut.min(stream.len());
            let mut parts = nobody();
            let mut rows = chain(&mut parts, &stream[..cut]);
            rows.extend(chain(&mut parts, &stream[again.min(cut)..]));
            rows.extend(chain(&mut parts, &stream));
            prop_assert_eq!(rows, expected);
            prop_assert_eq!(parts, whole);
        }
    }
}
