//! The repairs. Each looks again in the step that changes something, so that what has changed since is left alone; all of
//! them use the ways by which the service itself changes Redis and SQL.

use std::collections::HashMap;

use super::findings::{Finding, ShardTrouble};
use super::patient::{PAGE, Patient};
use crate::live::{Mend, Mended};
use crate::model::audit::{Disagreement, InSql};
use crate::model::{Millis, OnlineStatus, StreamId, UserId};
use crate::tasks;

/// What became of a finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It was mended, in words.
    Mended(&'static str),
    /// It was different by then: the next look tells.
    Changed,
    /// It could not be mended.
    Failed(String),
    /// It is not for a program to mend.
    ByHand,
}

const OVERTAKEN: Outcome = Outcome::Changed;

/// Mends what can be; one outcome for each finding, in order. A failure of one is told with it and keeps nothing else from
/// being mended.
pub(super) async fn mend(patient: &Patient<'_>, findings: &[Finding]) -> Vec<Outcome> {
    let mut surgery = Surgery { patient, findings, outcomes: vec![Outcome::ByHand; findings.len()] };
    surgery.shards().await;
    surgery.strays().await;
    surgery.sessions().await;
    surgery.presences().await;
    surgery.account_rule().await;
    surgery.mirrors().await;
    surgery.histories().await;
    surgery.hand_over().await;
    surgery.outcomes
}

struct Surgery<'a> {
    patient: &'a Patient<'a>,
    findings: &'a [Finding],
    outcomes: Vec<Outcome>,
}

/// A finding about a user: its place, the user, what SQL holds.
type About = (usize, UserId, Option<InSql>);

impl Surgery<'_> {
    fn set<E: std::fmt::Display>(&mut self, index: usize, done: Result<Outcome, E>) {
        self.outcomes[index] = done.unwrap_or_else(|error| Outcome::Failed(error.to_string()));
    }

    /// The users of whom something is found that `wanted` picks, a page at a time.
    fn about(&self, wanted: impl Fn(&Disagreement) -> bool) -> Vec<Vec<About>> {
        let about: Vec<About> = self
            .findings
            .iter()
            .enumerate()
            .filter_map(|(index, finding)| match finding {
                Finding::User { user, what, sql } if wanted(what) => Some((index, *user, sql.clone())),
                _ => None,
            })
            .collect();
        about.chunks(PAGE as usize).map(<[_]>::to_vec).collect()
    }

    fn per_shard(&self, about: Vec<About>) -> HashMap<u32, Vec<About>> {
        let mut shards: HashMap<u32, Vec<About>> = HashMap::new();
        for one in about {
            shards.entry(self.patient.context.live.shard_of(one.1)).or_default().push(one);
        }
        shards
    }

    async fn shards(&mut self) {
        let context = self.patient.context;
        let mut fence = None;
        for (index, finding) in self.findings.iter().enumerate() {
            let Finding::Shard(trouble) = finding else { continue };
            let done = match trouble {
                ShardTrouble::Unfenced { .. } => {
                    if fence.is_none() {
                        // All shards' at once.
                        fence = Some(self.raise_fence().await);
                    }
                    fence.clone().unwrap_or(Err(String::new()))
                }
                ShardTrouble::Unclaimed { .. } => tasks::sweep_once(&context.live)
                    .await
                    .map(|_| Outcome::Mended("claimed: those users are offline, as of their deadlines"))
                    .map_err(|error| error.to_string()),
                ShardTrouble::Waiting { .. } | ShardTrouble::Unreadable { .. } => {
                    tasks::drain_all(context).await.map_err(|error| format!("{error:#}")).map(|drained| {
                        if drained.others_at_it {
                            Outcome::Changed
                        } else {
                            Outcome::Mended(
                                "written to SQL; what no transition could be read from was dropped",
                            )
                        }
                    })
                }
                ShardTrouble::OddKey { .. } | ShardTrouble::Abandoned { .. } => Ok(Outcome::ByHand),
            };
            self.set(index, done);
        }
    }

    async fn raise_fence(&self) -> Result<Outcome, String> {
        let context = self.patient.context;
        context.presence.restore_fence().await.map_err(|error| error.to_string())?;
        for shard in context.live.shards() {
            context.live.epoch(shard).await.map_err(|error| error.to_string())?;
        }
        Ok(Outcome::Mended("built anew from SQL"))
    }

    async fn strays(&mut self) {
        for (index, finding) in self.findings.iter().enumerate() {
            if let Finding::Stray { shard, member } = finding {
                let dropped =
                    self.patient.context.live.drop_strays(*shard, std::slice::from_ref(member)).await;
                self.set(index, dropped.map(|()| Outcome::Mended("dropped from the live set")));
            }
        }
    }

    async fn sessions(&mut self) {
        for (index, finding) in self.findings.iter().enumerate() {
            if let Finding::Session { user, sid } = finding {
                let ended = self.patient.context.live.end_again(&[(*user, sid.clone())]).await;
                self.set(
                    index,
                    ended.map(|()| Outcome::Mended("ended in Redis, too; its tokens are refused")),
                );
            }
        }
    }

    /// Where Redis contradicts itself.
    async fn presences(&mut self) {
        let within_redis = |what: &Disagreement| {
            matches!(
                what,
                Disagreement::KeyMissing { .. }
                    | Disagreement::KeyOfWrongType { .. }
                    | Disagreement::DeadlineMissing { .. }
                    | Disagreement::DeadlineTooFar { .. }
                    | Disagreement::ExpiryDiffers { .. }
                    | Disagreement::StatusUnsupported { .. }
            )
        };
        for page in self.about(within_redis) {
            self.mend_in_redis(page, false).await;
        }
    }

    async fn mend_in_redis(&mut self, page: Vec<About>, tell: bool) {
        for (shard, about) in self.per_shard(page) {
            let users: Vec<Mend> = about
                .iter()
                .map(|(_, user, sql)| Mend {
                    user: *user,
                    fallback: sql.as_ref().map_or(OnlineStatus::Online, |sql| sql.mirror),
                    tell,
                })
                .collect();
            match self.patient.context.live.mend(shard, &users).await {
                Ok(mended) => {
                    for ((index, ..), mended) in about.iter().zip(mended) {
                        self.outcomes[*index] = in_words(mended);
                    }
                }
                Err(error) => self.failed(&about, &error),
            }
        }
    }

    fn failed(&mut self, about: &[About], error: &impl std::fmt::Display) {
        for (index, ..) in about {
            self.outcomes[*index] = Outcome::Failed(error.to_string());
        }
    }

    /// Fence and live set are told what SQL says of these accounts, as after any change of them.
    async fn account_rule(&mut self) {
        let ruled = |what: &Disagreement| {
            matches!(
                what,
                Disagreement::BlockedButPresent
                    | Disagreement::FenceLacks
                    | Disagreement::FenceHolds
                    | Disagreement::Stranger
            )
        };
        for about in self.about(ruled) {
            let users: Vec<UserId> = about.iter().map(|(_, user, _)| *user).collect();
            match self.patient.context.presence.account_changed(&users).await {
                Ok(_) => {
                    for (index, ..) in &about {
                        self.outcomes[*index] =
                            Outcome::Mended("fence and live set now say what SQL says of the account");
                    }
                }
                Err(error) => self.failed(&about, &error),
            }
        }
    }

    /// SQL is told by a transition, which the persister writes with history and mirror alike.
    async fn mirrors(&mut self) {
        for about in self.about(|what| matches!(what, Disagreement::MirrorDiffers { .. })) {
            self.lower_versions(&about).await;
            let live = |index: usize| match &self.findings[index] {
                Finding::User { what: Disagreement::MirrorDiffers { live, .. }, .. } => *live,
                _ => OnlineStatus::Offline,
            };
            let (present, absent): (Vec<About>, Vec<About>) =
                about.into_iter().partition(|(index, ..)| live(*index).is_online());
            self.mend_in_redis(present, true).await;
            for (shard, about) in self.per_shard(absent) {
                let users: Vec<_> = about
                    .iter()
                    .map(|(_, user, sql)| (*user, sql.as_ref().and_then(|sql| sql.last_seen)))
                    .collect();
                match self.patient.context.live.reconcile(shard, &users).await {
                    Ok(declared) => {
                        for (index, ..) in &about {
                            self.outcomes[*index] = match declared {
                                Some(_) => Outcome::Mended(
                                    "declared offline, as of the time the last sign of life wore off",
                                ),
                                None => OVERTAKEN,
                            };
                        }
                    }
                    Err(error) => self.failed(&about, &error),
                }
            }
        }
    }

    /// A version ahead of Redis's clock would keep every transition from being recorded until that has caught up.
    async fn lower_versions(&self, about: &[About]) {
        let now = self.patient.context.live.shards().map(|shard| self.patient.stock(shard).now).max();
        let now = version_of(now.unwrap_or(Millis(0)));
        let ahead: Vec<(UserId, i64)> = about
            .iter()
            .filter_map(|(_, user, sql)| Some((*user, sql.as_ref()?.version)))
            .filter(|(_, version)| *version > now)
            .collect();
        if let Err(error) = self.patient.context.store.lower_versions(&ahead, now).await {
            tracing::warn!(%error, "versions ahead of Redis's clock could not be lowered");
        }
    }

    async fn histories(&mut self) {
        for about in self.about(|what| matches!(what, Disagreement::HistoryDiffers { .. })) {
            let users: Vec<(UserId, i64)> =
                about.iter().filter_map(|(_, user, sql)| Some((*user, sql.as_ref()?.version))).collect();
            match self.patient.context.store.mend_mirror(&users).await {
                Ok(_) => {
                    for (index, ..) in &about {
                        self.outcomes[*index] =
                            Outcome::Mended("the mirror was set to where the history leads");
                    }
                }
                Err(error) => self.failed(&about, &error),
            }
        }
        for (index, finding) in self.findings.iter().enumerate() {
            if let Finding::Break(broken) = finding {
                let done = self.patient.context.store.mend_history(broken).await;
                let done = done.map(|mended| match mended {
                    true if broken.row.to == broken.before.to => {
                        Outcome::Mended("the row that led nowhere was taken out")
                    }
                    true => Outcome::Mended("the row now begins where the one before it ended"),
                    false => OVERTAKEN,
                });
                self.set(index, done);
            }
        }
    }

    /// Where no service runs, nobody else writes to SQL what the repairs have appended.
    async fn hand_over(&self) {
        if let Err(error) = tasks::drain_all(self.patient.context).await {
            tracing::warn!(error = format!("{error:#}"), "what was mended waits in the stream for SQL");
        }
    }
}

/// The version of a transition made at this instant.
pub(super) fn version_of(at: Millis) -> i64 {
    StreamId { ms: at.0.unsigned_abs(), seq: 0 }.version()
}

fn in_words(mended: Mended) -> Outcome {
    Outcome::Mended(match mended {
        Mended::Nothing => return OVERTAKEN,
        Mended::KeyMade => "the key was made anew, to stand until the deadline or the next heartbeat",
        Mended::ExpirySet => "the key expires at the deadline again",
        Mended::DeadlineSet => "the deadline was set by what the key tells",
        Mended::StatusSet => "the status was set to what the sessions come to, and recorded",
        Mended::KeyDropped => {
            "the key was deleted: nobody alive was in it, or the account may not be present"
        }
        Mended::Told => "SQL is told the status that Redis has",
    })
}
