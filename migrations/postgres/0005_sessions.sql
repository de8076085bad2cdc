-- Login sessions: a bounded number of them per account, and ends that Redis is told of by Redis's own clock.

-- The end of a session takes effect in Redis, which refuses its tokens. Every end is first written here, whoever writes
-- it, and stays marked as untold until the service has told Redis. The instant of that is Redis's, so that 'which ends
-- must a Redis that lost its data be told again' compares instants of one clock.
ALTER TABLE login_sessions ADD COLUMN end_untold boolean NOT NULL DEFAULT false;
ALTER TABLE login_sessions ADD COLUMN end_told_at timestamptz;

COMMENT ON COLUMN login_sessions.created_at IS 'When the user signed in, by the clock of Redis.';
COMMENT ON COLUMN login_sessions.last_used_at IS 'When it last refreshed its tokens, by the clock of Redis.';
COMMENT ON COLUMN login_sessions.ended_at IS 'When it ended: by logout, theft, an administrator, a block, a new password, its age or a later login; null while it is alive. For people: by the clock of whoever ended it, so no decision compares it with another clock.';
COMMENT ON COLUMN login_sessions.end_untold IS 'Whether Redis must still be told that the session has ended. Set by a trigger, cleared by the service.';
COMMENT ON COLUMN login_sessions.end_told_at IS 'When Redis was told of the end, by the clock of Redis; null where it was not, and for ends of before this column.';
COMMENT ON COLUMN refresh_tokens.used_at IS 'When it was first used, by the clock of Redis; null while it was not.';

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
UPDATE login_sessions SET end_untold = true WHERE ended_at > now() - interval '2 days';

-- For whoever ends a session without saying so in end_untold: an older version of the service, plain SQL.
CREATE FUNCTION presence_session_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.end_untold := NEW.ended_at IS NOT NULL;
    NEW.end_told_at := NULL;
    RETURN NEW;
END
$$;

CREATE FUNCTION presence_tell_session_end() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Equal notices of one transaction are sent once.
    PERFORM pg_notify('presence_account_changes', 'session');
    RETURN NULL;
END
$$;

CREATE TRIGGER login_sessions_added_ended BEFORE INSERT ON login_sessions
    FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL) EXECUTE FUNCTION presence_session_end();
CREATE TRIGGER login_sessions_ended BEFORE UPDATE OF ended_at ON login_sessions
    FOR EACH ROW WHEN (OLD.ended_at IS NULL AND NEW.ended_at IS NOT NULL AND NOT NEW.end_untold
        OR OLD.ended_at IS NOT NULL AND NEW.ended_at IS NULL)
    EXECUTE FUNCTION presence_session_end();
CREATE TRIGGER login_sessions_added_ended_told AFTER INSERT ON login_sessions
    FOR EACH ROW WHEN (NEW.ended_at IS NOT NULL) EXECUTE FUNCTION presence_tell_session_end();
-- Once a statement: a block may end very many sessions.
CREATE TRIGGER login_sessions_ended_told AFTER UPDATE OF ended_at ON login_sessions
    FOR EACH STATEMENT EXECUTE FUNCTION presence_tell_session_end();

-- Also for rows that replication brings, or a restore with triggers off.
ALTER TABLE login_sessions ENABLE ALWAYS TRIGGER login_sessions_added_ended;
ALTER TABLE login_sessions ENABLE ALWAYS TRIGGER login_sessions_ended;
ALTER TABLE login_sessions ENABLE ALWAYS TRIGGER login_sessions_added_ended_told;
ALTER TABLE login_sessions ENABLE ALWAYS TRIGGER login_sessions_ended_told;

-- As before, and says that the ends are untold. In the order of sids, as every other that ends several sessions: so two of
-- them do not wait in a circle.
CREATE OR REPLACE FUNCTION presence_end_sessions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    alive text[];
BEGIN
    alive := ARRAY(SELECT sid FROM login_sessions WHERE user_id = NEW.id AND ended_at IS NULL ORDER BY sid FOR UPDATE);
    IF cardinality(alive) > 0 THEN
        -- Not now(), which is when a long transaction began.
        UPDATE login_sessions SET ended_at = clock_timestamp(), end_untold = true WHERE sid = ANY (alive);
        DELETE FROM refresh_tokens WHERE sid = ANY (alive);
    END IF;
    RETURN NULL;
END
$$;

-- A mass of changes is read page by page, the newest first.
DROP INDEX account_changes_xid;
CREATE INDEX account_changes_xid ON account_changes (xid, id);
