-- Login sessions: a bounded number of them per account, and ends that Redis is told of by Redis's own clock.

-- The end of a session takes effect in Redis, which refuses its tokens. Every end is first written here, whoever writes
-- it, and stays marked as untold until the service has told Redis. The instant of that is Redis's, so that 'which ends
-- must a Redis that lost its data be told again' compares instants of one clock. created_at, last_used_at and
-- refresh_tokens.used_at are by the clock of Redis from now on; ended_at is for people, by the clock of whoever ended it.

-- Whether Redis must still be told that the session has ended. Set by a trigger, cleared by the service.
ALTER TABLE login_sessions ADD COLUMN end_untold INTEGER NOT NULL DEFAULT 0 CHECK (end_untold IN (0, 1));
-- When Redis was told of the end, by the clock of Redis; null where it was not, and for ends of before this column.
ALTER TABLE login_sessions ADD COLUMN end_told_at TEXT;

-- An account's sessions are deleted with it (all of them), forgotten when they are old (those that ended long ago), counted
-- and listed (those alive), and told to Redis (those untold). No look at one kind reads the rows of another.
DROP INDEX login_sessions_user_id;
DROP INDEX login_sessions_ended_at;
CREATE INDEX login_sessions_user_id ON login_sessions (user_id, ended_at);
CREATE INDEX login_sessions_alive ON login_sessions (user_id, created_at, sid) WHERE ended_at IS NULL;
CREATE INDEX login_sessions_end_untold ON login_sessions (user_id, sid) WHERE end_untold;
CREATE INDEX login_sessions_end_told_at ON login_sessions (end_told_at) WHERE end_told_at IS NOT NULL;

-- What ended lately, by any clock, is told once more and then bears an instant of Redis's. An access token lives for a day
-- at most, so older ends matter to no token.
UPDATE login_sessions SET end_untold = 1 WHERE ended_at > strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-2 days');

-- Moves with every end of a session: the instances look at it, as they look at the end of account_changes.
CREATE TABLE session_ends (
    -- There is one row.
    id INTEGER PRIMARY KEY CHECK (id = 1),
    -- How many sessions have ended since this table is there.
    ended INTEGER NOT NULL
) STRICT;

INSERT INTO session_ends (id, ended) VALUES (1, 0);

CREATE TRIGGER login_sessions_added_ended AFTER INSERT ON login_sessions WHEN NEW.ended_at IS NOT NULL BEGIN
    UPDATE login_sessions SET end_untold = 1, end_told_at = NULL WHERE sid = NEW.sid;
    UPDATE session_ends SET ended = ended + 1;
END;

-- For whoever ends a session without saying so in end_untold: an older version of the service, plain SQL.
CREATE TRIGGER login_sessions_ended AFTER UPDATE OF ended_at ON login_sessions
WHEN OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL AND NOT NEW.end_untold
    OR OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL
BEGIN
    UPDATE login_sessions SET end_untold = NEW.ended_at IS NOT NULL, end_told_at = NULL WHERE sid = NEW.sid;
    UPDATE session_ends SET ended = ended + 1;
END;

-- As before, but only those alive are looked at, so that an account with many old sessions costs no more; and it says itself
-- that the ends are untold, once for all of them.
DROP TRIGGER users_sessions_end;

CREATE TRIGGER users_sessions_end AFTER UPDATE OF status, is_active, password_hash ON users
WHEN OLD.may_be_present AND NOT NEW.may_be_present
    OR OLD.password_hash <> NEW.password_hash AND OLD.password_rehashes = NEW.password_rehashes
BEGIN
    DELETE FROM refresh_tokens
        WHERE sid IN (SELECT sid FROM login_sessions WHERE user_id = NEW.id AND ended_at IS NULL);
    UPDATE login_sessions SET ended_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now'), end_untold = 1
        WHERE user_id = NEW.id AND ended_at IS NULL;
    UPDATE session_ends SET ended = ended + 1;
END;
