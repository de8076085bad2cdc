//! One call of a script through [`LiveSet`], as data: so that it can be made twice, and told to Redis and model alike.

use presenced::live::{
    Checked, Due, FormerFence, Heartbeat, HeartbeatOutcome, InShard, LiveSet, Loss, Mend, Mended, OnlinePage,
    Presences, StatusOutcome, Turn, Verdict, Work,
};
use presenced::model::{HeartbeatWord, Millis, OnlineStatus, Page, SessionId, SessionKey, StreamId, UserId};
use std::time::Duration;

/// How long no deadline is claimed after data were lost.
pub const HOLD_MS: i64 = 120_000;
/// Users on a page, and members looked at.
pub const FEW: u32 = 2;
pub const MANY: u32 = 100;

/// One heartbeat; `sid` is empty for a token without one.
#[derive(Debug, Clone)]
pub struct Beat {
    pub user: UserId,
    pub sid: String,
    pub word: HeartbeatWord,
}

/// A call. Instants are the model's.
#[derive(Debug, Clone)]
pub enum Call {
    /// By `lua/heartbeat.lua` alone.
    Heartbeat {
        shard: u32,
        beats: Vec<Beat>,
    },
    Arrive {
        shard: u32,
        beats: Vec<Beat>,
    },
    Leave {
        user: UserId,
        sid: String,
        expires_at: Option<i64>,
    },
    EndAgain {
        user: UserId,
        sid: String,
    },
    SetStatus {
        user: UserId,
        to: OnlineStatus,
    },
    Claim {
        shard: u32,
        users: Vec<UserId>,
    },
    Block {
        shard: u32,
        moves: String,
        verdicts: Vec<(UserId, Verdict)>,
    },
    BeginFence,
    RaiseFence {
        shard: u32,
        held: bool,
        /// The last moment at which lost data served.
        lost: Option<i64>,
        /// The newest entry that SQL holds.
        newest: Option<StreamId>,
    },
    EndFence,
    MoveFence {
        shard: u32,
        from: String,
        to: String,
    },
    AdoptFence {
        shard: u32,
        former: FormerFence,
    },
    Epoch {
        shard: u32,
    },
    Reconcile {
        shard: u32,
        users: Vec<(UserId, Option<i64>)>,
    },
    Mend {
        shard: u32,
        users: Vec<UserId>,
    },
    Take {
        consumer: usize,
        shard: u32,
        most: u32,
    },
    Ack {
        shard: u32,
        work: Work,
    },
    Fence {
        shard: u32,
    },
    Due {
        shard: u32,
        most: u32,
    },
    Read {
        users: Vec<UserId>,
    },
    Online {
        page: Page,
    },
    Unsettled,
    Seen {
        shard: u32,
    },
    Check {
        user: UserId,
        sid: String,
    },
}

/// What came of it. Instants are the model's.
#[derive(Debug, Clone)]
pub enum Reply {
    Nothing,
    Renewed(i64, Vec<Option<OnlineStatus>>),
    Beats(i64, Vec<HeartbeatOutcome>),
    Status(StatusOutcome),
    Count(Option<u64>),
    Stands(bool),
    Age(i64),
    Turn(Turn),
    Due(Due),
    Mended(Vec<Mended>),
    Fence { cursor: Option<String>, former: Option<String>, is_damaged: bool },
    Presences(Presences),
    Online(OnlinePage),
    Unsettled(Vec<(UserId, OnlineStatus)>),
    Seen { users: Vec<(UserId, Millis)>, lent: Vec<UserId>, more: bool },
    Checked(Checked),
}

impl Call {
    /// Whether a second run may change more than times. Words that contradict each other within one batch change the
    /// status anew each time, as two heartbeats would; a take renews its turn; a second declaration before SQL has the
    /// first is left out by the chain.
    pub fn repeats(&self) -> bool {
        match self {
            Self::Arrive { beats, .. } => beats.iter().any(|one| {
                let contradicts = |other: &Beat| {
                    (other.user, &other.sid) == (one.user, &one.sid)
                        && other.word == HeartbeatWord::Away
                        && matches!(one.word, HeartbeatWord::Online | HeartbeatWord::Login)
                };
                beats.iter().any(contradicts)
            }),
            Self::Take { .. } | Self::Reconcile { .. } => true,
            _ => false,
        }
    }

    /// Makes the call. `offset` is the model's time less Redis's.
    pub async fn make(&self, consumers: &[LiveSet], offset: i64) -> Reply {
        let live = &consumers[0];
        let here = |at: Millis| Millis(at.0 + offset);
        match self {
            Self::Heartbeat { shard, beats } => {
                let (now, renewed) = live.heartbeat(*shard, &batch(beats)).await.unwrap();
                Reply::Renewed(here(now).0, renewed)
            }
            Self::Arrive { shard, beats } => {
                let (now, outcomes) = live.arrive(*shard, &batch(beats)).await.unwrap();
                Reply::Beats(here(now).0, outcomes)
            }
            Self::Leave { user, sid, expires_at } => {
                let expires_at = Millis(expires_at.map_or(0, |at| at - offset));
                live.leave(*user, &session(sid), expires_at).await.unwrap();
                Reply::Nothing
            }
            Self::EndAgain { user, sid } => {
                live.end_again(&[(*user, session(sid))]).await.unwrap();
                Reply::Nothing
            }
            Self::SetStatus { user, to } => Reply::Status(live.set_status(*user, *to).await.unwrap()),
            Self::Claim { shard, users } => Reply::Count(Some(live.claim(*shard, users).await.unwrap())),
            Self::Block { shard, moves, verdicts } => {
                Reply::Count(live.block(*shard, moves, verdicts).await.unwrap())
            }
            Self::BeginFence => {
                let mut begun = true;
                for shard in live.shards() {
                    begun &= live.begin_fence(shard, "model").await.unwrap();
                }
                Reply::Stands(begun)
            }
            Self::RaiseFence { shard, held, lost, newest } => {
                let hold = if *held { Duration::from_millis(HOLD_MS.unsigned_abs()) } else { Duration::ZERO };
                let served_until = Millis(lost.map_or(0, |at| at - offset));
                let loss = Loss { hold, served_until, newest_in_sql: *newest };
                Reply::Stands(live.raise_fence(*shard, "0", "model", &loss).await.unwrap())
            }
            Self::EndFence => {
                live.end_fence("model").await.unwrap();
                Reply::Nothing
            }
            Self::MoveFence { shard, from, to } => {
                Reply::Stands(live.move_fence(*shard, from, to).await.unwrap())
            }
            Self::AdoptFence { shard, former } => {
                Reply::Stands(live.adopt_fence(*shard, former).await.unwrap())
            }
            Self::Epoch { shard } => Reply::Age(millis(live.epoch(*shard).await.unwrap().age)),
            Self::Reconcile { shard, users } => {
                let users: Vec<_> =
                    users.iter().map(|(user, seen)| (*user, seen.map(|at| Millis(at - offset)))).collect();
                Reply::Count(live.reconcile(*shard, &users).await.unwrap())
            }
            Self::Mend { shard, users } => {
                let mend = |user: &UserId| Mend { user: *user, fallback: OnlineStatus::Online, tell: false };
                let users: Vec<_> = users.iter().map(mend).collect();
                Reply::Mended(live.mend(*shard, &users).await.unwrap())
            }
            Self::Take { consumer, shard, most } => {
                Reply::Turn(consumers[*consumer].take(*shard, *most).await.unwrap())
            }
            Self::Ack { shard, work } => {
                live.ack(*shard, work).await.unwrap();
                Reply::Nothing
            }
            Self::Fence { shard } => {
                let fence = live.fence(*shard).await.unwrap();
                let former = fence.former.map(|former| former.cursor);
                Reply::Fence { cursor: fence.cursor, former, is_damaged: fence.is_damaged }
            }
            Self::Due { shard, most } => {
                let mut due = live.due(*shard, *most).await.unwrap();
                for (_, deadline) in &mut due.passed {
                    *deadline = here(*deadline);
                }
                Reply::Due(due)
            }
            Self::Read { users } => {
                let mut read = live.read_and_count(users).await.unwrap();
                for user in &mut read.users {
                    if let InShard::Known { presence: Some(presence), .. } = user {
                        presence.last_seen = presence.last_seen.map(here);
                    }
                }
                Reply::Presences(read)
            }
            Self::Online { page } => Reply::Online(live.online(*page).await.unwrap()),
            Self::Unsettled => Reply::Unsettled(live.unsettled(MANY as usize).await.unwrap().unwrap()),
            Self::Seen { shard } => {
                let page = live.seen(*shard, None, FEW).await.unwrap();
                let users = page.users.into_iter().map(|(user, at)| (user, here(at))).collect();
                Reply::Seen { users, lent: page.lent, more: page.next.is_some() }
            }
            Self::Check { user, sid } => {
                Reply::Checked(live.check(*user, SessionId::parse(sid).as_ref()).await.unwrap())
            }
        }
    }
}

fn session(sid: &str) -> SessionId {
    SessionId::parse(sid).expect("a session with a name")
}

pub fn millis(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap()
}

fn batch(beats: &[Beat]) -> Vec<Heartbeat> {
    let who = |beat: &Beat| SessionKey { user: beat.user, sid: SessionId::parse(&beat.sid) };
    beats.iter().map(|beat| Heartbeat { who: who(beat), word: beat.word }).collect()
}
