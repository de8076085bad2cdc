//! The copy of presence in `users`, which other applications write to: what they write is put back, and nothing of it
//! decides where a history goes on.

use presenced::model::{Millis, OnlineStatus, Transition};
use presenced::store::MirrorPage;

use super::{Db, LATER, on_both, transition};
use OnlineStatus::{Away, Offline, Online};

on_both!(
    a_save_of_a_row_that_was_read_earlier_changes_nothing_of_presence,
    an_update_of_many_rows_changes_nothing_of_presence,
    a_save_together_with_a_block_changes_the_account_alone,
    an_insert_that_updates_a_row_changes_nothing_of_presence,
    a_new_row_begins_offline,
    a_row_that_comes_after_its_history_begins_where_that_leads,
    the_history_decides_where_a_user_is,
    a_user_whose_history_was_pruned_goes_on_from_the_copy,
    a_version_that_no_transition_had_delays_no_user,
    a_version_that_was_lost_lets_nothing_in_twice,
    a_last_seen_in_the_future_gives_way_to_a_heartbeat,
    a_last_seen_that_another_instance_has_just_written_stays,
    a_copy_that_differs_is_found_and_put_right,
    a_comparison_reads_page_by_page_and_counts_as_no_statement,
);

/// The row as an ORM reads it, and saves it later with another e-mail: every column, the counter included.
struct SavedRow {
    sql: String,
}

impl SavedRow {
    async fn read(db: &Db, user: i64) -> Self {
        let columns = [
            "online_status",
            "last_seen",
            "presence_version",
            "presence_writes",
            "password_hash",
            "role",
            "status",
        ];
        let mut sql = String::new();
        for column in columns {
            let quoted =
                format!("SELECT coalesce('''' || {column} || '''', 'NULL') FROM users WHERE id = {user}");
            sql += ", ";
            sql += column;
            sql += " = ";
            sql += &db.texts(&quoted).await[0];
        }
        Self { sql }
    }

    async fn save(&self, db: &Db, user: i64, email: &str) {
        db.sql(&format!("UPDATE users SET email = '{email}'{} WHERE id = {user}", self.sql)).await;
        assert_eq!(
            db.store.account(user).await.unwrap().unwrap().email,
            email,
            "the rest of the row is saved"
        );
    }
}

async fn a_save_of_a_row_that_was_read_earlier_changes_nothing_of_presence(db: Db) {
    let ada = db.user("ada").await;
    let mut rows = vec![SavedRow::read(&db, ada).await];
    for (ms, to) in [(1_000, Online), (2_000, Away), (3_000, Offline), (4_000, Online)] {
        db.record(0, &[transition(ms, ada, to)]).await.unwrap();
        let before = (db.mirror(ada).await, db.store.presences(&[ada]).await.unwrap());
        for (place, row) in rows.iter().enumerate() {
            row.save(&db, ada, &format!("{place}@{ms}.example")).await;
            assert_eq!(
                (db.mirror(ada).await, db.store.presences(&[ada]).await.unwrap()),
                before,
                "{place} at {ms}"
            );
        }
        db.touch(&[(ada, Millis(i64::try_from(ms).unwrap() + 500))]).await.unwrap();
        rows.push(SavedRow::read(&db, ada).await);
    }
    let history =
        ["offline>online heartbeat 1000", "online>away heartbeat 2000", "away>offline expired 3000"];
    assert_eq!(db.history(ada).await[..3], history);
    assert_eq!(db.mirror(ada).await, (Online, Some(4_500)));
}

async fn an_update_of_many_rows_changes_nothing_of_presence(db: Db) {
    db.users(3).await;
    db.record(0, &[transition(1_000, 1, Online), transition(1_001, 2, Away)]).await.unwrap();
    for change in [
        "online_status = 'offline'",
        "online_status = 'online', last_seen = NULL",
        "last_seen = created_at, updated_at = created_at",
        "presence_version = 9223372036854775807",
        "presence_writes = 0, presence_version = 0",
        "presence_writes = presence_writes + 2, online_status = 'away'",
    ] {
        db.sql(&format!("UPDATE users SET {change}")).await;
        assert_eq!(db.mirror(1).await, (Online, Some(1_000)), "{change}");
        assert_eq!(db.mirror(2).await, (Away, Some(1_001)), "{change}");
        assert_eq!(db.mirror(3).await, (Offline, None), "{change}");
    }
    db.record(0, &[transition(2_000, 1, Offline), transition(2_001, 3, Online)]).await.unwrap();
    assert_eq!((db.mirror(1).await.0, db.mirror(3).await.0), (Offline, Online), "the service goes on");
}

async fn a_save_together_with_a_block_changes_the_account_alone(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    let cursor = db.settled().await;
    db.sql("UPDATE users SET status = 'banned', online_status = 'offline', last_seen = NULL").await;
    assert!(!db.store.account(ada).await.unwrap().unwrap().may_be_present());
    assert_eq!(db.mirror(ada).await, (Online, Some(1_000)));
    assert_eq!(db.store.account_changes(&cursor).await.unwrap().users, [ada], "and the log has it");
}

async fn an_insert_that_updates_a_row_changes_nothing_of_presence(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.sql(&format!(
        "INSERT INTO users (id, username, email, password_hash, online_status) VALUES ({ada}, 'ada', 'b@b', 'x', 'away') \
         ON CONFLICT (id) DO UPDATE SET email = excluded.email, online_status = excluded.online_status, \
         last_seen = excluded.last_seen, presence_version = excluded.presence_version, \
         presence_writes = excluded.presence_writes"
    ))
    .await;
    assert_eq!(db.store.account(ada).await.unwrap().unwrap().email, "b@b");
    assert_eq!(db.mirror(ada).await, (Online, Some(1_000)));
}

const NEW_ROW: &str = "INSERT INTO users (username, email, password_hash, online_status, last_seen, presence_version, presence_writes)";

async fn a_new_row_begins_offline(db: Db) {
    db.sql(&format!("{NEW_ROW} VALUES ('a', 'a', 'x', 'online', '2026-01-15T10:30:00.120Z', 7, 9)")).await;
    let row = &db.store.presences_after(0, 1).await.unwrap()[0];
    let kept = Some(Millis(1_768_473_000_120));
    assert_eq!((row.mirror, row.last_seen, row.version), (Offline, kept, 7), "an import brings along when");
    assert_eq!(db.record(0, &[transition(1_000, row.user, Online)]).await.unwrap().recorded, 1);
    assert_eq!(db.history(row.user).await, ["offline>online heartbeat 1000"]);
    assert!(db.try_sql(&format!("{NEW_ROW} VALUES ('b', 'b', 'x', 'busy', NULL, 0, 0)")).await.is_err());
}

async fn a_row_that_comes_after_its_history_begins_where_that_leads(db: Db) {
    db.sql(
        "INSERT INTO presence_transitions (user_id, stream_id, from_status, to_status, reason, at) VALUES \
         (50, '0/1000-0', 'offline', 'online', 'heartbeat', '2026-01-15T10:30:00.120Z'), \
         (50, '0/2000-0', 'online', 'away', 'heartbeat', '2026-01-15T10:31:00.120Z')",
    )
    .await;
    db.sql("INSERT INTO users (id, username, email, password_hash, online_status) VALUES (50, 'a', 'a', 'x', 'online')")
        .await;
    assert_eq!(db.mirror(50).await.0, Away);
}

async fn the_history_decides_where_a_user_is(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    // What a disabled trigger let through. The user's expiry is recorded, and the copy is right with it.
    db.falsify("online_status = 'offline', last_seen = NULL", "true").await;
    assert_eq!(db.record(0, &[transition(2_000, ada, Offline)]).await.unwrap().recorded, 1);
    db.falsify("online_status = 'online'", "true").await;
    assert_eq!(db.record(0, &[transition(3_000, ada, Online)]).await.unwrap().recorded, 1);
    db.falsify("online_status = 'away'", "true").await;
    assert_eq!(db.record(0, &[transition(4_000, ada, Online)]).await.unwrap().recorded, 0, "no change");
    assert_eq!(db.mirror(ada).await, (Online, Some(4_000)));
    let rows =
        ["offline>online heartbeat 1000", "online>offline expired 2000", "offline>online heartbeat 3000"];
    assert_eq!(db.history(ada).await, rows);
}

async fn a_user_whose_history_was_pruned_goes_on_from_the_copy(db: Db) {
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.sql("DELETE FROM presence_transitions WHERE at < '2020-01-01T00:00:00.000Z'").await;
    assert_eq!(db.store.mend_mirrors_after(0, 10).await.unwrap().mended, 0);
    assert_eq!(db.record(0, &[transition(1_000, ada, Online)]).await.unwrap().recorded, 0, "taken already");
    db.record(0, &[transition(2_000, ada, Offline)]).await.unwrap();
    assert_eq!(db.history(ada).await, ["online>offline expired 2000"]);
    // One who was never present has no history to prune.
    let bob = db.user("bob").await;
    db.falsify("online_status = 'online'", &format!("id = {bob}")).await;
    assert_eq!(db.store.mend_mirrors_after(0, 10).await.unwrap().mended, 1);
    assert_eq!(db.mirror(bob).await.0, Offline);
}

async fn a_version_that_no_transition_had_delays_no_user(db: Db) {
    let (ada, bob) = (db.user("ada").await, db.user("bob").await);
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.falsify("presence_version = 9223372036854775807", "true").await;
    let batch =
        [transition(1_000, ada, Online), transition(2_000, ada, Offline), transition(2_001, bob, Online)];
    assert_eq!(db.record(0, &batch).await.unwrap().recorded, 2);
    assert_eq!(db.record(0, &batch).await.unwrap().recorded, 0);
    assert_eq!(db.history(ada).await, ["offline>online heartbeat 1000", "online>offline expired 2000"]);
    assert_eq!(db.history(bob).await, ["offline>online heartbeat 2001"]);
}

async fn a_version_that_was_lost_lets_nothing_in_twice(db: Db) {
    let ada = db.user("ada").await;
    let batch = [transition(1_000, ada, Online), transition(2_000, ada, Offline)];
    db.record(0, &batch).await.unwrap();
    for version in [0, -1] {
        db.falsify(&format!("presence_version = {version}"), "true").await;
        assert_eq!(db.record(0, &batch[..1]).await.unwrap().recorded, 0);
        assert_eq!(db.mirror(ada).await, (Offline, Some(1_000)));
        assert_eq!(db.record(0, &batch).await.unwrap().recorded, 0);
    }
    assert_eq!(db.history(ada).await.len(), 2);
}

/// A year ahead of all else.
const YEAR: &str = "2027-01-15T10:30:00.120Z";
const NOW: Millis = Millis(1_768_473_000_120);

async fn a_last_seen_in_the_future_gives_way_to_a_heartbeat(db: Db) {
    let (ada, bob, cyd) = (db.user("ada").await, db.user("bob").await, db.user("cyd").await);
    db.falsify(&format!("last_seen = '{YEAR}'"), "true").await;
    let at = |user| Transition {
        id: presenced::model::StreamId { ms: 1_768_473_000_120, seq: 0 },
        ..transition(1_768_473_000_000, user, Online)
    };
    db.store.record(0, &[at(ada)], NOW).await.unwrap();
    assert_eq!(db.mirror(ada).await, (Online, Some(1_768_473_000_000)));
    // A transition that knows no heartbeat: nothing is known of one.
    db.store.record(0, &[Transition { last_seen: None, ..at(bob) }], NOW).await.unwrap();
    assert_eq!(db.mirror(bob).await, (Online, None));
    assert_eq!(db.store.touch_last_seen(&[(cyd, Millis(1_768_473_000_001))], NOW).await.unwrap(), 1);
    assert_eq!(db.mirror(cyd).await.1, Some(1_768_473_000_001));
}

async fn a_last_seen_that_another_instance_has_just_written_stays(db: Db) {
    let ada = db.user("ada").await;
    // Another instance's heartbeats, a few seconds after this one's batch was taken.
    let newer = NOW.plus(9_000);
    db.store.touch_last_seen(&[(ada, newer)], newer).await.unwrap();
    assert_eq!(db.store.touch_last_seen(&[(ada, NOW)], NOW).await.unwrap(), 0);
    db.store.record(0, &[transition(1_768_473_000_120, ada, Online)], NOW).await.unwrap();
    assert_eq!(db.mirror(ada).await, (Online, Some(newer.0)));
}

async fn a_copy_that_differs_is_found_and_put_right(db: Db) {
    db.users(10).await;
    let batch: Vec<_> =
        (1..=6_i64).map(|user| transition(1_000 + user.unsigned_abs(), user, Online)).collect();
    db.record(0, &batch).await.unwrap();
    db.falsify("online_status = 'offline'", "id IN (2, 5)").await;
    db.falsify("online_status = 'away'", "id IN (3, 9)").await;
    let page = |last, mended| MirrorPage { last, is_full: last.is_some_and(|last| last < 10), mended };
    assert_eq!(db.store.mend_mirrors_after(0, 4).await.unwrap(), page(Some(4), 2));
    assert_eq!(db.store.mend_mirrors_after(4, 4).await.unwrap(), page(Some(8), 1));
    assert_eq!(db.store.mend_mirrors_after(8, 4).await.unwrap(), page(Some(10), 1));
    assert_eq!(db.store.mend_mirrors_after(10, 4).await.unwrap(), page(None, 0));
    for user in 1..=10 {
        assert_eq!(db.mirror(user).await.0, if user <= 6 { Online } else { Offline }, "{user}");
    }
    assert_eq!(db.store.mend_mirrors_after(0, 100).await.unwrap().mended, 0);
}

async fn a_comparison_reads_page_by_page_and_counts_as_no_statement(db: Db) {
    db.users(3).await;
    let before = db.store.statements();
    assert_eq!(db.store.mend_mirrors_after(0, 2).await.unwrap().last, Some(2));
    let upkeep = db.store.upkeep().await.unwrap();
    assert_eq!((upkeep.triggers_enabled, upkeep.ids_raised), (0, false));
    assert_eq!(db.store.upkeep().await.unwrap(), upkeep);
    assert_eq!(db.store.statements(), before);
}

#[tokio::test]
async fn a_stale_save_with_recursive_triggers_changes_nothing_of_presence_on_sqlite() {
    let db = Db::sqlite().await;
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    for recursive in ["ON", "OFF"] {
        db.sql(&format!(
            "PRAGMA recursive_triggers = {recursive}; \
             UPDATE users SET email = '{recursive}', online_status = 'offline', last_seen = NULL, presence_writes = 0"
        ))
        .await;
        assert_eq!(db.mirror(ada).await, (Online, Some(1_000)), "{recursive}");
        assert_eq!(db.store.account(ada).await.unwrap().unwrap().email, recursive);
    }
    assert!(db.texts("SELECT CAST(user_id AS text) FROM presence_corrections").await.is_empty());
}

#[tokio::test]
async fn a_row_that_replaces_another_keeps_its_history_on_sqlite() {
    let db = Db::sqlite().await;
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.sql(&format!(
        "INSERT OR REPLACE INTO users (id, username, email, password_hash) VALUES ({ada}, 'ada', 'new', 'x')"
    ))
    .await;
    assert_eq!(db.mirror(ada).await.0, Online);
    let batch = [transition(1_000, ada, Online), transition(2_000, ada, Offline)];
    assert_eq!(db.record(0, &batch).await.unwrap().recorded, 1);
    assert_eq!(db.history(ada).await, ["offline>online heartbeat 1000", "online>offline expired 2000"]);
}

#[tokio::test]
async fn neither_replica_sessions_nor_other_triggers_get_past_the_guard_on_postgres() {
    let db = Db::postgres().await;
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    db.sql("SET session_replication_role = replica; UPDATE users SET online_status = 'offline', last_seen = now(); RESET ALL")
        .await;
    assert_eq!(db.mirror(ada).await, (Online, Some(1_000)));
    // A trigger of another application changes the row of a statement that does not name the column.
    db.sql(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN NEW.last_seen := now(); NEW.online_status := 'away'; RETURN NEW; END $$; \
         CREATE TRIGGER touch BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION touch(); \
         UPDATE users SET email = 'new@example.com'",
    )
    .await;
    assert_eq!(db.mirror(ada).await, (Online, Some(1_000)));
}

#[tokio::test]
async fn an_instance_of_the_version_before_still_writes_on_postgres() {
    let db = Db::postgres().await;
    let ada = db.user("ada").await;
    let write = "UPDATE users SET online_status = 'online', presence_version = 1048576000, last_seen = '2026-01-15T10:30:00.12Z'";
    db.sql(&format!("SET application_name = 'presenced'; {write}; RESET ALL")).await;
    assert_eq!(db.mirror(ada).await, (Online, Some(1_768_473_000_120)));
    db.sql("UPDATE users SET online_status = 'offline'").await;
    assert_eq!(db.mirror(ada).await.0, Online);
}

#[tokio::test]
async fn an_instant_that_no_program_can_read_is_not_kept_on_postgres() {
    let db = Db::postgres().await;
    for (place, odd) in ["infinity", "-infinity", "200000-01-01", "1000-01-01 BC"].into_iter().enumerate() {
        db.sql(&format!(
            "INSERT INTO users (username, email, password_hash, last_seen) VALUES ('u{place}', 'u{place}', 'x', '{odd}')"
        ))
        .await;
    }
    assert!(db.store.presences_after(0, 10).await.unwrap().iter().all(|row| row.last_seen.is_none()));
}

#[tokio::test]
async fn triggers_that_were_disabled_are_enabled_again_on_postgres() {
    let db = Db::postgres().await;
    let ada = db.user("ada").await;
    db.record(0, &[transition(1_000, ada, Online)]).await.unwrap();
    assert_eq!(db.store.upkeep().await.unwrap().triggers_enabled, 0);
    // As pg_restore --disable-triggers does: enabled again, they do not fire for replicated rows.
    db.sql("ALTER TABLE users DISABLE TRIGGER ALL; UPDATE users SET online_status = 'away'; ALTER TABLE users ENABLE TRIGGER ALL")
        .await;
    assert_eq!(db.mirror(ada).await.0, Away, "nothing has seen it");
    assert!(db.store.upkeep().await.unwrap().triggers_enabled > 5);
    let after = db.store.upkeep().await.unwrap();
    assert_eq!(after.triggers_enabled, 0);
    assert_eq!(db.store.mend_mirrors_after(0, 10).await.unwrap().mended, 1);
    assert_eq!(db.mirror(ada).await.0, Online);
    db.sql("SET session_replication_role = replica; UPDATE users SET online_status = 'away'; RESET ALL")
        .await;
    assert_eq!(db.mirror(ada).await.0, Online);
    db.sql("TRUNCATE users CASCADE").await;
    assert_ne!(db.store.upkeep().await.unwrap().identity, after.identity, "another table, as it is stored");
    assert_eq!(db.store.record(0, &[], LATER).await.unwrap().recorded, 0);
}
