-- The history is its own source. users carries a copy of its newest status, and other applications cannot change that copy;
-- what belongs to an account goes with it; triggers fire for rows that arrive by replication, too.

-- Histories without an account: accounts that were deleted by plain SQL left them behind. Before the first lock on users.
WITH RECURSIVE owner (id) AS (
    SELECT min(user_id) FROM presence_transitions
    UNION ALL
    SELECT (SELECT min(t.user_id) FROM presence_transitions t WHERE t.user_id > owner.id) FROM owner WHERE owner.id IS NOT NULL
), gone AS MATERIALIZED (
    SELECT owner.id FROM owner WHERE owner.id IS NOT NULL AND NOT EXISTS (SELECT FROM users u WHERE u.id = owner.id)
)
DELETE FROM presence_transitions t USING gone WHERE t.user_id = gone.id;

-- How far SQL has come --------------------------------------------------------------------------------------------------

CREATE TABLE presence_positions (
    shard bigint PRIMARY KEY,
    stream_ms bigint NOT NULL,
    stream_seq bigint NOT NULL
-- Room on the page, so that a change touches no index (HOT).
) WITH (fillfactor = 50);

COMMENT ON TABLE presence_positions IS 'The newest transition that SQL has taken of each shard. It stays when the history is pruned.';
COMMENT ON COLUMN presence_positions.shard IS 'The shard; -1 for what was taken before this table was there.';
COMMENT ON COLUMN presence_positions.stream_ms IS 'First part of the id of the stream entry: milliseconds by the clock of Redis.';
COMMENT ON COLUMN presence_positions.stream_seq IS 'Second part of the id: the number within that millisecond.';

-- A version that lies days ahead was written by another application.
INSERT INTO presence_positions (shard, stream_ms, stream_seq)
    SELECT -1, newest >> 20, newest & 1048575 FROM (
        SELECT max(presence_version) AS newest FROM users
        WHERE presence_version >> 20 <= extract(epoch FROM now() + interval '1 day') * 1000
    ) AS versions WHERE newest > 0;

-- The copy in users -------------------------------------------------------------------------------------------------------

ALTER TABLE users ADD COLUMN presence_writes bigint NOT NULL DEFAULT 0
    CONSTRAINT users_presence_writes_range CHECK (presence_writes BETWEEN 0 AND 4611686018427387904);

COMMENT ON COLUMN users.presence_writes IS
    'Each write of the service to the columns of presence adds one; a write that does not is put back by a trigger.';
COMMENT ON COLUMN users.online_status IS
    'Mirror of the status in Redis: online, away or offline; kept by the service, one step behind. Other writes are put back.';
COMMENT ON COLUMN users.last_seen IS
    'Last heartbeat by the clock of Redis, written behind; null where there never was one. Other writes are put back.';
COMMENT ON COLUMN users.presence_version IS
    'Id of the newest recorded transition as a number; what is not newer is not recorded again. Other writes are put back.';

-- Instants that no program can read.
UPDATE users SET last_seen = NULL WHERE NOT (last_seen >= '1970-01-01Z' AND last_seen < '10000-01-01Z');

-- An ORM saves all columns of a row that it read earlier, the counter included: a stale value never is one more than the
-- present one.
CREATE FUNCTION presence_keep_copy() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    -- An instance of a version that does not know the counter yet, while versions are exchanged one instance after the other.
    IF NEW.presence_writes = OLD.presence_writes AND current_setting('application_name') = 'presenced' THEN
        RETURN NEW;
    END IF;
    -- The column's constraint refuses any other word.
    IF NEW.online_status NOT IN ('online', 'away', 'offline') THEN
        RETURN NEW;
    END IF;
    NEW.online_status := OLD.online_status;
    NEW.last_seen := OLD.last_seen;
    NEW.presence_version := OLD.presence_version;
    NEW.presence_writes := OLD.presence_writes;
    RETURN NEW;
END
$$;

-- The condition spares the service's own writes the call. Triggers run in the order of their names: this one must see what
-- other BEFORE triggers have made of the row. No list of columns, since those need not be named in the statement.
CREATE TRIGGER zz_users_presence_kept BEFORE UPDATE ON users
    FOR EACH ROW WHEN (NEW.presence_writes IS DISTINCT FROM OLD.presence_writes + 1
        AND (NEW.online_status IS DISTINCT FROM OLD.online_status
            OR NEW.last_seen IS DISTINCT FROM OLD.last_seen
            OR NEW.presence_version IS DISTINCT FROM OLD.presence_version
            OR NEW.presence_writes IS DISTINCT FROM OLD.presence_writes))
    EXECUTE FUNCTION presence_keep_copy();

-- A new account is offline, unless its history is there already (a dump that is restored: pg_dump writes the history before
-- users). A version and a last_seen that come along are kept.
CREATE FUNCTION presence_begin_copy() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.online_status IN ('online', 'away', 'offline') THEN
        NEW.online_status := COALESCE(
            (SELECT to_status FROM presence_transitions WHERE user_id = NEW.id ORDER BY id DESC LIMIT 1), 'offline');
    END IF;
    IF NOT (NEW.last_seen >= '1970-01-01Z' AND NEW.last_seen < '10000-01-01Z') THEN
        NEW.last_seen := NULL;
    END IF;
    NEW.presence_writes := 0;
    RETURN NEW;
END
$$;

-- Not for rows that arrive by replication: these were checked where they come from, and here may precede their history.
CREATE TRIGGER zz_users_presence_begun_local BEFORE INSERT ON users
    FOR EACH ROW WHEN (NEW.online_status IS DISTINCT FROM 'offline' OR NEW.last_seen IS NOT NULL
        OR NEW.presence_writes IS DISTINCT FROM 0)
    EXECUTE FUNCTION presence_begin_copy();

-- What goes with an account -----------------------------------------------------------------------------------------------

CREATE INDEX presence_set_aside_user_id ON presence_set_aside (user_id);

COMMENT ON TABLE presence_transitions IS
    'Every change of a user''s presence, exactly once; per user it alternates, from offline on. Deleted with the account.';
COMMENT ON TABLE presence_set_aside IS
    'Transitions of users of whom there is no row; kept for inspection. Those of an account are deleted with it.';

-- Once a statement, however many rows that deletes. Foreign keys delete the sessions, but not in a session whose
-- session_replication_role is replica.
CREATE FUNCTION presence_forget_users() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM presence_transitions t USING gone WHERE t.user_id = gone.id;
    DELETE FROM presence_set_aside a USING gone WHERE a.user_id = gone.id;
    DELETE FROM refresh_tokens r USING login_sessions s, gone WHERE r.sid = s.sid AND s.user_id = gone.id;
    DELETE FROM login_sessions s USING gone WHERE s.user_id = gone.id;
    RETURN NULL;
END
$$;

-- Replication applies rows one by one and fires no triggers of statements.
CREATE FUNCTION presence_forget_user() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM presence_transitions WHERE user_id = OLD.id;
    DELETE FROM presence_set_aside WHERE user_id = OLD.id;
    DELETE FROM refresh_tokens r USING login_sessions s WHERE r.sid = s.sid AND s.user_id = OLD.id;
    DELETE FROM login_sessions WHERE user_id = OLD.id;
    RETURN NULL;
END
$$;

-- DELETE and not TRUNCATE, which would wait for every reader of the history with users locked.
CREATE FUNCTION presence_forget_all_users() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM presence_transitions;
    DELETE FROM presence_set_aside;
    RETURN NULL;
END
$$;

CREATE TRIGGER users_forgotten AFTER DELETE ON users REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION presence_forget_users();
CREATE TRIGGER users_forgotten_replicated AFTER DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION presence_forget_user();
CREATE TRIGGER users_all_forgotten AFTER TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION presence_forget_all_users();

-- Rows that arrive by replication -----------------------------------------------------------------------------------------

-- Statement triggers count what arrives by SQL, row triggers what arrives by replication, each in its own kind of session.
-- New rows, which the service sums up now and then: a row that thousands of changes of one transaction move gets slow.
CREATE FUNCTION presence_count_replicated_user() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO user_counts (block, users) VALUES (NEW.id / 4096, 1), (-1, 1);
    ELSE
        INSERT INTO user_counts (block, users) VALUES (OLD.id / 4096, -1), (-1, -1);
    END IF;
    RETURN NULL;
END
$$;

ALTER TRIGGER users_counted_in ON users RENAME TO users_counted_in_local;
ALTER TRIGGER users_counted_out ON users RENAME TO users_counted_out_local;
CREATE TRIGGER users_counted_replicated AFTER INSERT OR DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION presence_count_replicated_user();

-- The log of account changes and the counts are each database's own: the triggers above fill them here as well, and the rows
-- of another database would be counted twice, or clash with these by their ids and end the replication.
CREATE FUNCTION presence_skip_row() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    RETURN NULL;
END
$$;

CREATE TRIGGER account_changes_skipped_replicated BEFORE INSERT OR UPDATE OR DELETE ON account_changes
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION presence_skip_row();
CREATE TRIGGER user_counts_skipped_replicated BEFORE INSERT OR UPDATE OR DELETE ON user_counts
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION presence_skip_row();

-- When each trigger fires follows from its name: _local in ordinary sessions, _replicated in those whose
-- session_replication_role is replica, all others always. ALTER TABLE … DISABLE TRIGGER and ENABLE TRIGGER (pg_restore
-- --disable-triggers does both) leave another state behind, which the service puts right within seconds.
CREATE FUNCTION presence_triggers_off() RETURNS TABLE (relation regclass, trigger name, wanted text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT t.tgrelid::regclass, t.tgname, states.wanted FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    CROSS JOIN LATERAL (SELECT
        CASE WHEN t.tgname LIKE '%\_replicated' THEN 'REPLICA' WHEN t.tgname LIKE '%\_local' THEN '' ELSE 'ALWAYS' END AS wanted
    ) AS states
    WHERE t.tgrelid IN ('users'::regclass, 'user_counts'::regclass, 'account_changes'::regclass, 'login_sessions'::regclass,
            'refresh_tokens'::regclass, 'presence_transitions'::regclass)
        AND NOT t.tgisinternal AND p.proname LIKE 'presence\_%'
        AND t.tgenabled <> CASE states.wanted WHEN 'REPLICA' THEN 'R' WHEN '' THEN 'O' ELSE 'A' END
$$;

-- With the rights of the schema's owner. Returns how many it has put right.
CREATE FUNCTION presence_enable_triggers() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    off record;
    enabled integer := 0;
BEGIN
    FOR off IN SELECT * FROM presence_triggers_off() LOOP
        EXECUTE format('ALTER TABLE %s ENABLE %s TRIGGER %I', off.relation, off.wanted, off.trigger);
        enabled := enabled + 1;
    END LOOP;
    RETURN enabled;
END
$$;

SELECT presence_enable_triggers();
