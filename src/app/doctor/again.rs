//! The later looks: a suspicion counts only if the very same facts are found again, and again, while nothing about them is
//! on its way.
//!
//! The proof for a mirror that differs: SQL is asked, then Redis, then the stream, then SQL once more, and its version of the
//! user is the same in both answers. A transition that Redis made before it was asked was in the stream then; it is not in
//! the stream now, so SQL has committed it before its second answer; that has the version of its first, so it *is* the
//! latest transition of the user as of Redis's answer, and the two must agree. All that where Redis has not lost its data
//! meanwhile, which its epoch tells in the end.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::sleep;

use super::findings::{Finding, ShardTrouble};
use super::look::Suspicions;
use super::patience::patiently;
use super::patient::Patient;
use crate::model::UserId;
use crate::model::audit::{Disagreement, InSql};

/// The pauses before the later looks. A block is everywhere within a second; one that is not was not on its way.
const PAUSES: [Duration; 2] = [Duration::from_millis(1_500), Duration::from_millis(2_500)];

/// What persists of the suspicions.
pub(super) async fn confirm(
    patient: &Patient<'_>,
    mut suspicions: Suspicions,
) -> anyhow::Result<Vec<Finding>> {
    let mut users = Vec::new();
    for pause in PAUSES {
        if suspicions.len() == 0 {
            return Ok(vec![]);
        }
        sleep(pause).await;
        users = look_at_users(patient, &suspicions).await?;
        suspicions.users = users.iter().map(|(user, found, _)| (*user, found.clone())).collect();
        look_at_strays(patient, &mut suspicions).await?;
        look_at_sessions(patient, &mut suspicions).await?;
        look_at_breaks(patient, &mut suspicions).await?;
        look_at_shards(patient, &mut suspicions).await?;
    }
    let mut findings: Vec<Finding> = suspicions.shards.into_iter().map(Finding::Shard).collect();
    findings.extend(suspicions.strays.into_iter().map(|(shard, member)| Finding::Stray { shard, member }));
    for (user, found, sql) in users {
        findings.extend(found.into_iter().map(|what| Finding::User { user, what, sql: sql.clone() }));
    }
    findings.extend(suspicions.sessions.into_iter().map(|(user, sid)| Finding::Session { user, sid }));
    findings.extend(suspicions.breaks.into_iter().map(Finding::Break));
    Ok(findings)
}

type Persisting = (UserId, Vec<Disagreement>, Option<InSql>);

async fn look_at_users(patient: &Patient<'_>, suspicions: &Suspicions) -> anyhow::Result<Vec<Persisting>> {
    let ids: Vec<UserId> = suspicions.users.keys().copied().collect();
    // In this order; see above.
    let before = patient.in_sql(&ids).await?;
    let redis = patient.in_redis(&ids).await?;
    let waits = patient.waits(&ids.iter().copied().collect::<HashSet<_>>()).await?;
    let mut after = patient.in_sql(&ids).await?;
    let shards: HashSet<u32> = ids.iter().map(|user| patient.shard_of(*user)).collect();
    let reborn = patient.reborn(&shards).await?;
    let mut persisting = Vec::new();
    for redis in redis {
        let user = redis.user;
        let sql = after.remove(&user);
        let on_its_way = patient.may_wait(&waits, user)
            || !stood_still(before.get(&user), sql.as_ref())
            || reborn.contains(&patient.shard_of(user));
        let again = patient.compare(&redis, sql.as_ref(), on_its_way);
        let found: Vec<_> =
            suspicions.users[&user].iter().filter(|what| again.contains(what)).cloned().collect();
        if !found.is_empty() {
            persisting.push((user, found, sql));
        }
    }
    persisting.sort_unstable_by_key(|(user, ..)| *user);
    Ok(persisting)
}

/// Whether two answers of SQL are of one version of the user; `last_seen` is written behind, and counts for nothing.
fn stood_still(before: Option<&InSql>, after: Option<&InSql>) -> bool {
    match (before, after) {
        (Some(before), Some(after)) => before.version == after.version && before.mirror == after.mirror,
        (None, None) => true,
        _ => false,
    }
}

async fn look_at_strays(patient: &Patient<'_>, suspicions: &mut Suspicions) -> anyhow::Result<()> {
    for shard in patient.context.live.shards().filter(|shard| patient.can_be_asked(*shard)) {
        let members: Vec<String> = suspicions
            .strays
            .iter()
            .filter(|(of, _)| *of == shard)
            .map(|(_, member)| member.clone())
            .collect();
        for chunk in members.chunks(1_000) {
            let live = &patient.context.live;
            let there = patiently(async || live.still_members(shard, chunk).await).await?;
            for (member, there) in chunk.iter().zip(there) {
                if !there {
                    suspicions.strays.remove(&(shard, member.clone()));
                }
            }
        }
    }
    Ok(())
}

async fn look_at_sessions(patient: &Patient<'_>, suspicions: &mut Suspicions) -> anyhow::Result<()> {
    // Ended is ended: only Redis is asked again.
    let live = &patient.context.live;
    let there = patiently(async || live.sessions_present(&suspicions.sessions).await).await?;
    let mut there = there.into_iter();
    suspicions.sessions.retain(|_| there.next().unwrap_or(false));
    Ok(())
}

async fn look_at_breaks(patient: &Patient<'_>, suspicions: &mut Suspicions) -> anyhow::Result<()> {
    let mut persisting = Vec::new();
    for broken in std::mem::take(&mut suspicions.breaks) {
        let before = broken.before;
        let store = &patient.context.store;
        let rows = patiently(async || store.history_after(before.user, before.id - 1, 2).await).await?;
        if rows == [broken.before, broken.row] {
            persisting.push(broken);
        }
    }
    suspicions.breaks = persisting;
    Ok(())
}

async fn look_at_shards(patient: &Patient<'_>, suspicions: &mut Suspicions) -> anyhow::Result<()> {
    let first = std::mem::take(&mut suspicions.shards);
    let shards: HashSet<u32> = first.iter().map(ShardTrouble::shard).collect();
    let used = patient.context.live.shards();
    let mut again = Vec::new();
    for shard in shards.iter().filter(|shard| used.contains(shard)) {
        again.extend(patient.look_at_shard(*shard).await?);
    }
    if shards.iter().any(|shard| !used.contains(shard)) {
        again.extend(patient.abandoned().await?);
    }
    suspicions.shards = first
        .iter()
        .filter_map(|trouble| {
            let same_shard: Vec<_> =
                again.iter().filter(|later| later.shard() == trouble.shard()).cloned().collect();
            trouble.persists(&same_shard)
        })
        .collect();
    Ok(())
}
