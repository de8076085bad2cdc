-- The whole schema. Times are RFC 3339 text in UTC with milliseconds (2026-01-15T10:30:00.123Z), so they sort as text.

-- Accounts. Nothing that the persister writes (online_status, last_seen, presence_version) is indexed: index upkeep is
-- what batches cost (an index over the present rows took a fifth of the speed, to save 28 ms in 100,000 accounts).
CREATE TABLE users (
    -- Primary key; never given twice (AUTOINCREMENT). The user id in tokens and in Redis.
    id INTEGER PRIMARY KEY AUTOINCREMENT CHECK (id > 0),
    -- Name to sign in with; unique whatever the case of its ASCII letters.
    username TEXT NOT NULL,
    -- E-mail address, also good to sign in with; unique whatever the case of its ASCII letters.
    email TEXT NOT NULL,
    -- Hash of the password, PHC string.
    password_hash TEXT NOT NULL,
    -- What the account may do.
    role TEXT NOT NULL DEFAULT 'user' CHECK (role IN ('user', 'admin')),
    -- Standing; the latter three may not be present.
    status TEXT NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'pending', 'inactive', 'suspended', 'banned')),
    -- Second switch of the account rule: 0 bars the account from being present.
    is_active INTEGER NOT NULL DEFAULT 1 CHECK (is_active IN (0, 1)),
    -- The account rule, restated: the one place in this database. Computed; cannot be written.
    may_be_present INTEGER NOT NULL GENERATED ALWAYS AS (is_active AND status IN ('active', 'pending')) VIRTUAL,
    -- Mirror of the status in Redis; kept by the service, one step behind.
    online_status TEXT NOT NULL DEFAULT 'offline' CHECK (online_status IN ('online', 'away', 'offline')),
    -- Last heartbeat by the clock of Redis, written behind; null where there never was one.
    last_seen TEXT CHECK (last_seen GLOB '????-??-??T??:??:??.???Z'),
    -- Id of the newest recorded transition as a number; what is not newer is not recorded again.
    presence_version INTEGER NOT NULL DEFAULT 0,
    -- When the account was made.
    created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- When the service last changed the account itself; presence does not count.
    updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

CREATE UNIQUE INDEX users_username_key ON users (lower(username));
CREATE UNIQUE INDEX users_email_key ON users (lower(email));
CREATE INDEX users_blocked ON users (id) WHERE may_be_present = 0;

-- Every change of a user's presence, exactly once; per user it alternates, from offline on. No foreign key: its check
-- would cost a look-up for every row of a storm. The service deletes the history of an account that it deletes.
CREATE TABLE presence_transitions (
    -- Grows with every row: the order of the history.
    id INTEGER PRIMARY KEY,
    -- Where it comes from, <shard>/<ms>-<seq>: unique, so no transition is recorded twice.
    stream_id TEXT NOT NULL UNIQUE,
    -- Whose presence changed.
    user_id INTEGER NOT NULL,
    -- Status left behind: online, away or offline.
    from_status TEXT NOT NULL,
    -- New status: online, away or offline.
    to_status TEXT NOT NULL CHECK (to_status <> from_status),
    -- login, heartbeat, logout, expired, admin or blocked.
    reason TEXT NOT NULL,
    -- When it became true, by the clock of Redis.
    at TEXT NOT NULL,
    -- When it was written here.
    recorded_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

-- One user's history in its order: an index ends in the row's id.
CREATE INDEX presence_transitions_user_id ON presence_transitions (user_id);

-- Transitions of users of whom there is no row; kept for whoever wonders.
CREATE TABLE presence_set_aside (
    -- As in presence_transitions.
    stream_id TEXT PRIMARY KEY,
    -- The id that users did not hold at the time.
    user_id INTEGER NOT NULL,
    -- New status: online, away or offline.
    to_status TEXT NOT NULL,
    -- As in presence_transitions.
    reason TEXT NOT NULL,
    -- When it became true, by the clock of Redis.
    at TEXT NOT NULL,
    -- When it was written here.
    recorded_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

-- One login of an account on one device each.
CREATE TABLE login_sessions (
    -- Its name, which every token of it carries.
    sid TEXT PRIMARY KEY,
    -- Whose it is.
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    -- When the user signed in.
    created_at TEXT NOT NULL,
    -- When it last refreshed its tokens.
    last_used_at TEXT NOT NULL,
    -- What the client said it is.
    user_agent TEXT,
    -- When it ended by logout, theft or an administrator; null while it lives.
    ended_at TEXT
) STRICT;

CREATE INDEX login_sessions_user_id ON login_sessions (user_id);
CREATE INDEX login_sessions_ended_at ON login_sessions (ended_at) WHERE ended_at IS NOT NULL;

-- Refresh tokens that may still be presented: unused ones, and used ones for the grace. Two tabs hold one each.
CREATE TABLE refresh_tokens (
    -- SHA-256 of the token: all that is kept of it.
    token_hash BLOB PRIMARY KEY,
    -- The session it belongs to.
    sid TEXT NOT NULL REFERENCES login_sessions (sid) ON DELETE CASCADE,
    -- When it expires.
    expires_at TEXT NOT NULL,
    -- When it was first used; null while it was not.
    used_at TEXT
) STRICT;

CREATE INDEX refresh_tokens_sid ON refresh_tokens (sid);

-- Whose account changed in what the account rule or a token depends on; filled by triggers, pruned after a week.
-- SQLite writes one transaction at a time, so the order of ids is the order of commits; with AUTOINCREMENT
-- sqlite_sequence keeps the last id whatever is pruned.
CREATE TABLE account_changes (
    -- The place in the log.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The account that was made, changed or deleted.
    user_id INTEGER NOT NULL,
    -- When; pruning goes by it.
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

CREATE TRIGGER users_added AFTER INSERT ON users BEGIN
    INSERT INTO account_changes (user_id) VALUES (NEW.id);
END;

CREATE TRIGGER users_deleted AFTER DELETE ON users BEGIN
    INSERT INTO account_changes (user_id) VALUES (OLD.id);
    -- The sqlite3 shell leaves foreign keys off: there the cascade would not happen.
    DELETE FROM refresh_tokens WHERE sid IN (SELECT sid FROM login_sessions WHERE user_id = OLD.id);
    DELETE FROM login_sessions WHERE user_id = OLD.id;
END;

CREATE TRIGGER users_changed AFTER UPDATE OF id, role, status, is_active ON users
WHEN (OLD.id, OLD.role, OLD.status, OLD.is_active) IS NOT (NEW.id, NEW.role, NEW.status, NEW.is_active) BEGIN
    INSERT INTO account_changes (user_id) SELECT OLD.id UNION SELECT NEW.id;
END;
