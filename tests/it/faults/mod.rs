//! The fault harness: real instances, real servers, a crowd, and faults at random instants; then everything that anybody was
//! told is held against what SQL and Redis say.
//!
//! | module | is |
//! |---|---|
//! | [`world`] | the instances and servers of a run |
//! | [`servers`] | its Redis: one, or a cluster |
//! | [`crowd`] | the users, and what they do |
//! | [`fault`] | what goes wrong |
//! | [`ledger`] | what each user was told |
//! | [`watch`] | what the machine does to a run by itself |
//! | [`check`] | what must be true afterwards |
//!
//! A few rounds run with the other tests. `make faults ROUNDS=500` goes on for as long as that takes, from a seed that it
//! prints; `make faults SEED=…` repeats a round's choices (not its timing: the machine has its own), and
//! `make faults KINDS=KillRedis,CutClients` has these in each round instead of what its seed draws. `ON=cluster` takes a cluster of
//! three primaries.

mod check;
mod crowd;
mod fault;
mod ledger;
mod servers;
mod watch;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use self::check::{Checked, Terms, check};
use self::crowd::{SESSIONS, Stage, now};
use self::fault::{Kind, inject, last};
use self::ledger::{Beat, Fault, Ledger, Span, Told};
use self::servers::Servers;
use self::watch::Watch;
use self::world::{TTL, USERS, World};
use crate::support::dice::Dice;
use crate::support::mint::access_token;

/// How late a transition may be where nothing is wrong, ms: in a round that has the machine to itself, and beside other tests.
const ALONE_MS: i64 = 1_000;
const BESIDE_MS: i64 = 3_000;

/// A round's faults, drawn from its seed where they are not given.
async fn round(
    world: &mut World,
    number: u64,
    seed: u64,
    kinds: Option<&[Kind]>,
    punctual_ms: i64,
) -> Result<String, String> {
    let mut dice = Dice::new(seed);
    let before = world.last_row().await;
    let stage = begin(world, number).await;
    let watch = Watch::begin(&world.redis, &world.sql);
    let crowd: Vec<_> = (2..=USERS)
        .map(|user| tokio::spawn(crowd::live(stage.clone(), user, dice.split(user.unsigned_abs()))))
        .collect();

    last(700).await;
    let at = now();
    let copy = world.copy_redis();
    let drawn: Vec<Kind> = match kinds {
        Some(kinds) => kinds.to_vec(),
        None => (0..dice.between(1, 4))
            .map(|_| Kind::ALL[usize::try_from(dice.roll(Kind::ALL.len() as u64)).unwrap()])
            .collect(),
    };
    let mut faults = Vec::new();
    for kind in &drawn {
        last(dice.between(0, 900)).await;
        faults.push(inject(world, *kind, &copy, &mut dice).await);
    }
    std::fs::remove_dir_all(&copy.path).ok();
    world.is_whole().await;
    last(dice.between(300, 1_200)).await;
    stage.over.store(true, Ordering::Relaxed);
    for one in crowd {
        one.await.map_err(|error| error.to_string())?;
    }

    let mut ledger = std::mem::take(&mut *stage.ledger.lock().unwrap());
    widen(&mut ledger, &faults);
    let mut wrong = statuses_agree(world, &ledger, &faults).await;
    wrong.extend(world.settle().await.err());
    let course: Vec<String> = faults.iter().map(|fault| fault.after(at)).collect();
    let stalls = watch.end().await;
    let stalled: Vec<String> = stalls
        .iter()
        .filter(|stall| !faults.iter().any(|fault| fault.span.meets(stall.span)))
        .map(|stall| stall.after(at))
        .collect();
    faults.extend(stalls);
    let rows = world.rows_after(before).await;
    let ttl_ms = i64::try_from(TTL.as_millis()).unwrap();
    let terms = Terms { ttl_ms, punctual_ms, faults };
    let mut checked = Checked::default();
    // The administrator's own presence is at one of the servers.
    let administration = terms.of(1);
    for (user, told) in &mut ledger {
        let own = terms.of(*user);
        told.failures.extend(told.administration.drain(..).filter(|asked| !administration.excuses(*asked)));
        let mut order: Vec<_> = told.beats.drain(..).zip(told.sent.drain(..)).collect();
        order.sort_unstable_by_key(|(beat, _)| beat.at);
        (told.beats, told.sent) = order.into_iter().unzip();
        let rows = rows.get(user).map_or(&[][..], Vec::as_slice);
        wrong.extend(
            check(told, rows, &own, &mut checked)
                .into_iter()
                .map(|line| format!("user {user}: {line}\n    {told:?}\n    {rows:?}")),
        );
    }
    let report = format!(
        "round {number} seed {seed}, {}: {} heartbeats, {} due to the ms, {} punctual, the slowest {} ms{}{}",
        course.join(", "),
        checked.kept,
        checked.exact,
        checked.punctual,
        checked.slowest_ms,
        if stalled.is_empty() { "" } else { "; " },
        stalled.join(", ")
    );
    if wrong.is_empty() {
        Ok(report)
    } else {
        let shown = wrong.iter().take(12).cloned().collect::<Vec<_>>().join("\n");
        Err(format!("{report}\n{} wrong, instants from {at}:\n{shown}", wrong.len()))
    }
}

/// Everybody has new sessions, which SQL knows, and nobody is blocked.
async fn begin(world: &World, number: u64) -> Stage {
    world.sql.run("UPDATE users SET status = 'active' WHERE status <> 'active'").await;
    world
        .sql
        .run(&format!(
            "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at) SELECT 'r{number}u' || u || 's' || s, u, \
             now(), now() FROM generate_series(2, {USERS}) u, generate_series(0, {}) s",
            SESSIONS - 1
        ))
        .await;
    Stage {
        addresses: world.addresses.clone(),
        sql: world.sql.clone(),
        ledger: Arc::default(),
        over: Arc::new(AtomicBool::new(false)),
        admin: access_token(1, "").into(),
        round: number,
    }
}

/// What the service says at this moment of those of whom there is no doubt.
async fn statuses_agree(world: &World, ledger: &Ledger, faults: &[Fault]) -> Vec<String> {
    let ttl_ms = i64::try_from(TTL.as_millis()).unwrap();
    let asked = now();
    // Deadlines from before a loss are not what they were.
    let lost_until = |user: i64| {
        let losses = faults.iter().filter(|fault| fault.forgot_since.is_some() && fault.concerns(user));
        losses.map(|fault| fault.span.to).max().unwrap_or(0)
    };
    let statuses = world.statuses().await;
    let answered = now();
    let mut wrong = Vec::new();
    for (user, told) in ledger {
        let Some(latest) = told.beats.iter().map(|beat| beat.at).max() else { continue };
        if !told.is_plain(Span { from: latest, to: answered }) || latest <= lost_until(*user) {
            continue;
        }
        let says = &statuses[user];
        let present = says != "offline";
        let deadline = latest + ttl_ms;
        if (answered <= deadline && !present) || (asked > deadline && present) {
            wrong.push(format!("user {user} is {says} at {asked}, last heard at {latest}"));
        }
    }
    wrong
}

/// A request that met a fault may have counted as late as a moment after that fault had healed: it waited in a socket.
fn widen(ledger: &mut Ledger, faults: &[Fault]) {
    const MOMENT_MS: i64 = 1_000;
    let healed = |span: Span| {
        let met = faults.iter().filter(|fault| fault.span.meets(span)).map(|fault| fault.span.to);
        met.max().map_or(span.to, |healed| span.to.max(healed + MOMENT_MS))
    };
    for told in ledger.values_mut() {
        let ends = told.ends.iter_mut().filter(|end| !end.acknowledged).map(|end| &mut end.asked);
        for span in told.doubts.iter_mut().chain(&mut told.edits).chain(ends) {
            span.to = healed(*span);
        }
        excuse(told, faults);
        for span in &mut told.perhaps_blocked {
            span.to = healed(*span) + MOMENT_MS;
        }
    }
}

/// A session that had ended and is in the copy with which Redis comes back may speak until Redis has been told of its end
/// again, a moment later; then it ends again. What it says meanwhile is no promise.
fn excuse(told: &mut Told, faults: &[Fault]) {
    const MOMENT_MS: i64 = 1_000;
    let ttl_ms = i64::try_from(TTL.as_millis()).unwrap();
    let risen = |beat: &Beat, sent: i64| {
        let ended = told
            .ends
            .iter()
            .any(|end| end.acknowledged && end.session == beat.session && end.asked.to < sent);
        let cut = told.cuts.iter().any(|cut| cut.had_ended(beat.session, sent));
        let comes_back = |fault: &Fault| {
            fault.forgot_since.is_some() && (0..MOMENT_MS).contains(&(beat.at - fault.span.to))
        };
        (ended || cut) && faults.iter().any(comes_back)
    };
    let (excused, kept): (Vec<_>, Vec<_>) =
        told.beats.drain(..).zip(told.sent.drain(..)).partition(|(beat, sent)| risen(beat, *sent));
    (told.beats, told.sent) = kept.into_iter().unzip();
    told.edits.extend(excused.iter().map(|(beat, _)| Span { from: beat.at, to: beat.at + ttl_ms }));
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value}: a whole number is asked for")))
}

/// Rounds with these faults each, on one world.
async fn rounds(redis: Servers, seed: u64, plan: &[&[Kind]]) {
    let mut world = World::start(redis).await;
    for (index, kinds) in plan.iter().enumerate() {
        let number = index as u64;
        match round(&mut world, number, seed + number, Some(kinds), BESIDE_MS).await {
            Ok(report) => println!("{report}"),
            Err(report) => panic!("{report}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_late_or_risen_when_instances_and_connections_fail() {
    use Kind::{
        CutBackends, CutClients, CutPostgresMidCommand, CutRedisMidCommand, CutSubscribers, FlushScripts,
        KillInstance, KillPostgres, MuteEvents, PauseInstance, PausePostgres, StopInstance,
    };
    rounds(
        Servers::one().await,
        1,
        &[
            &[KillInstance, FlushScripts, CutRedisMidCommand, CutSubscribers],
            &[StopInstance, MuteEvents, CutBackends, CutPostgresMidCommand, CutClients],
            &[PauseInstance, KillPostgres, PausePostgres],
        ],
    )
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_late_or_risen_when_redis_fails() {
    use Kind::{EmptyRedis, FlushRedis, HangRedis, KillRedis, OlderRedis, PauseRedis};
    let plan: [&[Kind]; 5] =
        [&[KillRedis, PauseRedis], &[EmptyRedis], &[HangRedis], &[OlderRedis], &[FlushRedis]];
    rounds(Servers::one().await, 2, &plan).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_late_or_risen_when_others_share_redis_and_sql() {
    use Kind::{EvictKeys, ForgetRowLock, SaveStaleRows, StepSqlClock};
    rounds(
        Servers::one().await,
        3,
        &[&[SaveStaleRows, ForgetRowLock, StepSqlClock], &[EvictKeys], &[ForgetRowLock, SaveStaleRows]],
    )
    .await;
}

/// Users whose shard is at another primary notice nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_late_or_risen_when_one_primary_of_a_cluster_fails() {
    use Kind::{EmptyRedis, EvictKeys, FlushRedis, KillRedis, PauseRedis};
    let plan: [&[Kind]; 4] = [&[KillRedis, PauseRedis], &[EmptyRedis], &[FlushRedis], &[EvictKeys]];
    rounds(Servers::cluster().await, 4, &plan).await;
}

/// `make faults`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "as long as you like: make faults ROUNDS=500"]
async fn faults_at_random_instants() {
    let seed = number("SEED").unwrap_or_else(|| u64::try_from(now()).unwrap());
    let count = number("ROUNDS").unwrap_or(10);
    let kinds = std::env::var("KINDS").ok().filter(|names| !names.is_empty());
    let kinds: Option<Vec<Kind>> = kinds.map(|names| names.split(',').map(Kind::named).collect());
    let on_cluster = match std::env::var("ON").as_deref() {
        Err(_) | Ok("" | "one") => false,
        Ok("cluster") => true,
        Ok(other) => panic!("ON={other}: 'one' server or a 'cluster' is asked for"),
    };
    let servers = async || if on_cluster { Servers::cluster().await } else { Servers::one().await };
    println!("SEED={seed} ROUNDS={count}");
    let mut world = World::start(servers().await).await;
    let mut failed = Vec::new();
    for index in 0..count {
        match round(&mut world, index, seed + index, kinds.as_deref(), ALONE_MS).await {
            Ok(report) => println!("{report}"),
            Err(report) => {
                println!("FAILED {report}\n{}", world.said());
                failed.push(seed + index);
                // The next round begins on a clean slate.
                world = World::start(servers().await).await;
            }
        }
    }
    assert!(failed.is_empty(), "{} of {count} rounds failed; seeds: {failed:?}", failed.len());
    println!("{count} rounds passed");
}
