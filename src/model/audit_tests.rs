//! The comparison, case by case.

use super::Disagreement::{
    BlockedButPresent, DeadlineMissing, DeadlineTooFar, ExpiryDiffers, FenceHolds, FenceLacks,
    HistoryDiffers, KeyMissing, KeyOfWrongType, MirrorDiffers, StatusUnsupported, Stranger,
};
use super::*;
use OnlineStatus::{Away, Offline, Online};

const NOW: Millis = Millis(1_000_000);
const AHEAD: Millis = Millis(1_060_000);
const CERTAIN: Doubt = Doubt { waits: false, unheard: false, unfenced: false };

fn hash(status: OnlineStatus) -> Key {
    let said_online = status == Online;
    Key::Hash { expires: Some(AHEAD), status: Some(status), alive: Some(status), said_online }
}

fn present(status: OnlineStatus) -> InRedis {
    InRedis { user: 7, now: NOW, deadline: Some(AHEAD), key: hash(status), blocked: false }
}

fn absent() -> InRedis {
    InRedis { user: 7, now: NOW, deadline: None, key: Key::None, blocked: false }
}

fn account(mirror: OnlineStatus) -> InSql {
    InSql { user: 7, may_be_present: true, mirror, version: 5, last_seen: None, history: Some(mirror) }
}

fn found(redis: &InRedis, sql: &InSql) -> Vec<Disagreement> {
    compare(redis, Some(sql), CERTAIN)
}

#[test]
fn who_is_present_or_absent_everywhere_is_no_case() {
    for status in [Online, Away] {
        assert_eq!(found(&present(status), &account(status)), []);
    }
    assert_eq!(found(&absent(), &account(Offline)), []);
    let never = InSql { history: None, ..account(Offline) };
    assert_eq!(found(&absent(), &never), []);
    let pruned = InSql { history: None, ..account(Online) };
    assert_eq!(found(&present(Online), &pruned), []);
    assert_eq!(compare(&absent(), None, CERTAIN), []);
    let gone = InRedis { blocked: true, ..absent() };
    assert_eq!(compare(&gone, None, CERTAIN), [], "an account that is gone stays fenced off");
}

#[test]
fn a_deadline_ahead_needs_a_key_that_expires_then() {
    let redis = InRedis { key: Key::None, ..present(Online) };
    assert_eq!(found(&redis, &account(Online)), [KeyMissing { deadline: AHEAD }]);
    let redis = InRedis { key: Key::Other("list".into()), ..present(Online) };
    assert_eq!(found(&redis, &account(Online)), [KeyOfWrongType { kind: "list".into() }]);
    for expires in [None, Some(Millis(AHEAD.0 - 1))] {
        let key = Key::Hash { expires, status: Some(Online), alive: Some(Online), said_online: true };
        let redis = InRedis { key, ..present(Online) };
        assert_eq!(found(&redis, &account(Online)), [ExpiryDiffers { deadline: AHEAD, expires }]);
    }
    let far = Millis(NOW.0 + LONGEST_TTL_MS + 1);
    let redis = InRedis { deadline: Some(far), ..present(Online) };
    assert_eq!(found(&redis, &account(Online)), [DeadlineTooFar { deadline: far }]);
}

#[test]
fn a_key_needs_a_deadline() {
    let redis = InRedis { deadline: None, ..present(Online) };
    assert_eq!(found(&redis, &account(Online)), [DeadlineMissing { expires: Some(AHEAD) }]);
}

#[test]
fn a_deadline_that_has_passed_is_left_to_whoever_claims_it() {
    let past = Millis(NOW.0 - 1);
    for mirror in [Online, Offline] {
        let redis = InRedis { deadline: Some(past), key: Key::None, ..present(Online) };
        assert_eq!(found(&redis, &account(mirror)), []);
    }
    // Not deleted yet: the clock went on between two commands.
    let key = Key::Hash { expires: Some(past), status: Some(Online), alive: None, said_online: true };
    assert_eq!(found(&InRedis { deadline: Some(past), key, ..present(Online) }, &account(Online)), []);
}

#[test]
fn a_status_needs_a_session_that_has_said_so() {
    let odd = |status, alive, said_online| {
        let key = Key::Hash { expires: Some(AHEAD), status, alive, said_online };
        found(&InRedis { key, ..present(Online) }, &account(status.unwrap_or(Online)))
    };
    assert_eq!(
        odd(Some(Online), Some(Away), false),
        [StatusUnsupported { status: Some(Online), sessions: Some(Away) }]
    );
    assert_eq!(
        odd(Some(Away), Some(Online), true),
        [StatusUnsupported { status: Some(Away), sessions: Some(Online) }]
    );
    assert_eq!(odd(Some(Online), None, false), [StatusUnsupported { status: Some(Online), sessions: None }]);
    assert_eq!(odd(None, Some(Online), true), [StatusUnsupported { status: None, sessions: Some(Online) }]);
    assert_eq!(odd(Some(Offline), Some(Away), false).len(), 1);
    // The session that was online has died, and nobody has spoken since: known, and no contradiction.
    assert_eq!(odd(Some(Online), Some(Away), true), []);
}

#[test]
fn the_account_rule_holds_in_the_live_set_and_in_the_fence() {
    let barred = InSql { may_be_present: false, ..account(Offline) };
    let fenced = InRedis { blocked: true, ..absent() };
    assert_eq!(found(&fenced, &barred), []);
    assert_eq!(found(&absent(), &barred), [FenceLacks]);
    assert_eq!(found(&fenced, &account(Offline)), [FenceHolds]);
    let unfenced = Doubt { unfenced: true, ..CERTAIN };
    assert_eq!(compare(&absent(), Some(&barred), unfenced), [], "the missing fence itself is told");
    assert_eq!(compare(&fenced, Some(&account(Offline)), unfenced), []);
    for blocked in [true, false] {
        let redis = InRedis { blocked, ..present(Online) };
        assert_eq!(found(&redis, &barred), [BlockedButPresent]);
    }
    assert_eq!(compare(&present(Online), None, CERTAIN), [Stranger]);
    assert_eq!(compare(&present(Online), None, Doubt { waits: true, ..CERTAIN }), []);
}

#[test]
fn the_mirror_differs_only_where_nothing_is_on_its_way() {
    let cases =
        [(present(Online), Online, Offline), (absent(), Offline, Away), (present(Away), Away, Online)];
    for (redis, live, mirror) in cases {
        assert_eq!(found(&redis, &account(mirror)), [MirrorDiffers { mirror, live, version: 5 }]);
        for doubt in [Doubt { waits: true, ..CERTAIN }, Doubt { unheard: true, ..CERTAIN }] {
            assert_eq!(compare(&redis, Some(&account(mirror)), doubt), []);
        }
    }
}

#[test]
fn the_history_leads_to_the_mirror() {
    let sql = InSql { history: Some(Offline), ..account(Online) };
    let expected = [HistoryDiffers { mirror: Online, history: Offline, version: 5 }];
    assert_eq!(found(&present(Online), &sql), expected);
    let doubtful = Doubt { waits: true, unheard: true, unfenced: true };
    assert_eq!(compare(&present(Online), Some(&sql), doubtful), expected, "SQL alone tells");
}

#[test]
fn a_history_that_does_not_chain_is_found_across_pages_and_users_are_told_apart() {
    let step = |user, id, from, to| HistoryStep { user, id, from, to };
    let rows = [
        step(1, 1, Away, Online), // pruned before
        step(1, 2, Online, Offline),
        step(1, 5, Away, Offline),
        step(2, 3, Offline, Online),
        step(2, 4, Offline, Away),
    ];
    for cut in 0..=rows.len() {
        let mut last = None;
        let mut broken = breaks(&mut last, &rows[..cut]);
        broken.extend(breaks(&mut last, &rows[cut..]));
        let expected = [Break { before: rows[1], row: rows[2] }, Break { before: rows[3], row: rows[4] }];
        assert_eq!(broken, expected, "cut at {cut}");
        assert_eq!(last, Some(rows[4]));
    }
}
