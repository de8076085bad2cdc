-- The history is its own source. users carries a copy of its newest status, and other applications cannot change that copy;
-- what belongs to an account goes with it.

-- Histories without an account: accounts that were deleted by plain SQL left them behind.
DELETE FROM presence_transitions WHERE user_id NOT IN (SELECT id FROM users);

-- The newest transition that SQL has taken of each shard. It stays when the history is pruned.
CREATE TABLE presence_positions (
    -- The shard; -1 for what was taken before this table was there.
    shard INTEGER PRIMARY KEY,
    -- First part of the id of the stream entry: milliseconds by the clock of Redis.
    stream_ms INTEGER NOT NULL,
    -- Second part of the id: the number within that millisecond.
    stream_seq INTEGER NOT NULL
) STRICT;

-- A version that lies days ahead was written by another application.
INSERT INTO presence_positions (shard, stream_ms, stream_seq)
    SELECT -1, newest >> 20, newest & 1048575 FROM (
        SELECT max(presence_version) AS newest FROM users
        WHERE presence_version >> 20 <= (CAST(strftime('%s', 'now') AS INTEGER) + 86400) * 1000
    ) WHERE newest > 0;

-- Each write of the service to the columns of presence adds one; a write that does not is put back by a trigger.
ALTER TABLE users ADD COLUMN presence_writes INTEGER NOT NULL DEFAULT 0
    CHECK (presence_writes BETWEEN 0 AND 4611686018427387904);

-- Instants that no program can read.
UPDATE users SET last_seen = NULL WHERE last_seen IS NOT NULL AND strftime('%s', last_seen) IS NULL;

-- Whose copy is being put back, for the length of the trigger below: where recursive triggers are on, it would see its own
-- correction as another change.
CREATE TABLE presence_corrections (
    -- The account.
    user_id INTEGER PRIMARY KEY
) STRICT;

-- An ORM saves all columns of a row that it read earlier, the counter included: a stale value never is one more than the
-- present one. The condition spares the service's own writes the rest.
CREATE TRIGGER users_presence_kept AFTER UPDATE OF online_status, last_seen, presence_version, presence_writes ON users
WHEN NEW.presence_writes <> OLD.presence_writes + 1
    AND (NEW.online_status, NEW.last_seen, NEW.presence_version, NEW.presence_writes)
        IS NOT (OLD.online_status, OLD.last_seen, OLD.presence_version, OLD.presence_writes)
    AND NOT EXISTS (SELECT 1 FROM presence_corrections WHERE user_id = NEW.id)
BEGIN
    INSERT INTO presence_corrections (user_id) VALUES (NEW.id);
    UPDATE users SET online_status = OLD.online_status, last_seen = OLD.last_seen,
        presence_version = OLD.presence_version, presence_writes = OLD.presence_writes WHERE id = NEW.id;
    DELETE FROM presence_corrections WHERE user_id = NEW.id;
END;

-- A new account is offline, unless its history is there already (a restored dump; INSERT OR REPLACE of an account). A version
-- and a last_seen that come along are kept.
CREATE TRIGGER users_presence_begun AFTER INSERT ON users
WHEN NEW.online_status <> 'offline' OR NEW.last_seen IS NOT NULL
    OR EXISTS (SELECT 1 FROM presence_transitions WHERE user_id = NEW.id)
BEGIN
    UPDATE users SET presence_writes = presence_writes + 1,
        online_status = coalesce(
            (SELECT to_status FROM presence_transitions WHERE user_id = NEW.id ORDER BY id DESC LIMIT 1), 'offline'),
        last_seen = CASE WHEN strftime('%s', NEW.last_seen) IS NOT NULL THEN NEW.last_seen END
        WHERE id = NEW.id;
END;

CREATE INDEX presence_set_aside_user_id ON presence_set_aside (user_id);

-- What goes with an account, beside its sessions.
CREATE TRIGGER users_forgotten AFTER DELETE ON users BEGIN
    DELETE FROM presence_transitions WHERE user_id = OLD.id;
    DELETE FROM presence_set_aside WHERE user_id = OLD.id;
END;
