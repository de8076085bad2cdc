//! SQL's side, as far as the stream's promises go: batches committed once or again, late or never, through the same chain
//! as the store's.

use std::collections::{BTreeMap, BTreeSet};

use presenced::live::Work;
use presenced::model::history::{HistoryRow, Recorded, chain};
use presenced::model::{Millis, OnlineStatus, StreamId, Transition, UserId};

use super::reference::Entry;

/// A batch that a slow persister holds.
#[derive(Debug, Clone)]
pub struct HeldWork {
    pub shard: u32,
    pub work: Work,
}

/// What SQL holds.
#[derive(Default)]
pub struct Persisted {
    users: BTreeMap<UserId, Recorded>,
    pub held: Vec<HeldWork>,
    rows: BTreeMap<UserId, Vec<String>>,
    row_ids: BTreeSet<(u32, StreamId)>,
    /// Every entry ever appended, by Redis's name for it, with the model's instants.
    entries: BTreeMap<(u32, StreamId), Transition>,
    /// Every entry ever appended, in order; `None` since data were lost.
    whole: Option<Vec<Transition>>,
    /// The latest instant in each user's history.
    latest: BTreeMap<UserId, i64>,
    /// The newest entry that was committed, of whatever shard.
    pub newest: Option<StreamId>,
    /// Accounts that were deleted once: nobody keeps a history of theirs.
    pub deleted: BTreeSet<UserId>,
}

fn nobody() -> Recorded {
    Recorded { status: OnlineStatus::Offline, version: 0, last_seen: None }
}

impl Persisted {
    pub fn new() -> Self {
        Self { whole: Some(Vec::new()), ..Self::default() }
    }

    /// Hears of a new entry.
    pub fn appended(&mut self, shard: u32, entry: &Entry) -> Result<(), String> {
        let transition = transition(entry);
        let is_newer = self.recorded(transition.user).version < transition.id.version();
        if !is_newer {
            return Err(format!("SQL would leave out {transition:?}: it holds a newer one"));
        }
        if let Some(whole) = &mut self.whole {
            whole.push(transition.clone());
        }
        self.entries.insert((shard, transition.id), transition);
        Ok(())
    }

    pub fn lost(&mut self) {
        self.whole = None;
    }

    /// What SQL knows of a user.
    pub fn recorded(&self, user: UserId) -> Recorded {
        self.users.get(&user).copied().unwrap_or_else(nobody)
    }

    /// The status that a user will have come to when SQL has all of these entries.
    pub fn will_be(&self, user: UserId, stream: &[Entry]) -> OnlineStatus {
        let mut recorded = self.recorded(user);
        let theirs: Vec<_> = stream.iter().filter(|entry| entry.user == user).map(transition).collect();
        chain(&mut recorded, &theirs);
        recorded.status
    }

    /// SQL commits a batch.
    pub fn commit(&mut self, shard: u32, work: &Work) -> Result<(), String> {
        for transition in &work.transitions {
            let id = (shard, transition.id);
            let transition = &self.entries[&id];
            self.newest = self.newest.max(Some(transition.id));
            let recorded = self.users.entry(transition.user).or_insert_with(nobody);
            for row in chain(recorded, [transition]) {
                if !self.row_ids.insert(id) {
                    return Err(format!("{} was recorded twice", row.id));
                }
                let latest = self.latest.entry(transition.user).or_insert(i64::MIN);
                if row.at.0 < *latest && !self.deleted.contains(&transition.user) {
                    return Err(format!(
                        "{transition:?} lies {} ms before what came before it",
                        *latest - row.at.0
                    ));
                }
                *latest = row.at.0;
                self.rows.entry(transition.user).or_default().push(told(&row));
            }
        }
        Ok(())
    }

    /// When all is committed, the history is that of all that was ever appended.
    pub fn must_be_whole(&self) -> Result<(), String> {
        let Some(whole) = &self.whole else { return Ok(()) };
        let mut expected: BTreeMap<UserId, (Recorded, Vec<String>)> = BTreeMap::new();
        for transition in whole {
            let (recorded, rows) = expected.entry(transition.user).or_insert_with(|| (nobody(), vec![]));
            rows.extend(chain(recorded, [transition]).iter().map(told));
        }
        let expected = expected.into_iter().map(|(user, (_, rows))| (user, rows));
        let expected: BTreeMap<_, _> = expected.filter(|(_, rows)| !rows.is_empty()).collect();
        if expected == self.rows {
            Ok(())
        } else {
            Err(format!("SQL holds {:#?}\n  not {expected:#?}", self.rows))
        }
    }
}

fn told(row: &HistoryRow) -> String {
    format!("{}>{} {}", row.from, row.to, row.id)
}

fn transition(entry: &Entry) -> Transition {
    Transition {
        id: entry.id().parse().expect("an id"),
        user: entry.user,
        to: entry.to,
        reason: entry.reason,
        at: Millis(entry.at),
        last_seen: entry.seen.map(Millis),
    }
}
