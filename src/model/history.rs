//! The chain: how transitions from the stream become rows of one user's history (invariants 3 and 5).

use super::{Millis, OnlineStatus, Reason, StreamId, Transition};

/// What SQL holds of a user before a batch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recorded {
    /// `users.online_status`: where the user's history has got to.
    pub status: OnlineStatus,
    /// `users.presence_version`: [`StreamId::version`] of the newest transition that SQL has taken.
    pub version: i64,
    /// `users.last_seen`.
    pub last_seen: Option<Millis>,
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
