-- Sessions end with a block or a new password, however that came about, and administrators leave a trail.

-- How often the service has put a stronger hash of the same password in place of a weak one: such a change ends no
-- session. Any other change of password_hash ends the account's sessions.
ALTER TABLE users ADD COLUMN password_rehashes INTEGER NOT NULL DEFAULT 0;

-- The last administrator is looked for here.
CREATE INDEX users_admins ON users (id) WHERE role = 'admin';

-- Hashes that were made elsewhere, newest first, are looked for now and then (how long they take to verify); mostly
-- there are none, and the table is large.
CREATE INDEX users_foreign_hash ON users (id) WHERE substr(password_hash, 1, 31) <> '$argon2id$v=19$m=19456,t=2,p=1$'
    AND substr(password_hash, 1, 1) NOT IN ('', '!');

CREATE TRIGGER users_sessions_end AFTER UPDATE OF status, is_active, password_hash ON users
WHEN OLD.may_be_present AND NOT NEW.may_be_present
    OR OLD.password_hash <> NEW.password_hash AND OLD.password_rehashes = NEW.password_rehashes
BEGIN
    DELETE FROM refresh_tokens WHERE sid IN (SELECT sid FROM login_sessions WHERE user_id = NEW.id);
    UPDATE login_sessions SET ended_at = strftime('%Y-%m-%dT%H:%M:%fZ', 'now')
        WHERE user_id = NEW.id AND ended_at IS NULL;
END;

-- A new password must reach every instance, too: sessions have ended by it.
DROP TRIGGER users_changed;

CREATE TRIGGER users_changed AFTER UPDATE OF id, role, status, is_active, password_hash ON users
WHEN (OLD.id, OLD.role, OLD.status, OLD.is_active) IS NOT (NEW.id, NEW.role, NEW.status, NEW.is_active)
    OR OLD.password_hash <> NEW.password_hash AND OLD.password_rehashes = NEW.password_rehashes
BEGIN
    INSERT INTO account_changes (user_id) SELECT OLD.id UNION SELECT NEW.id;
END;

-- What administrators did by the API, in the transaction that did it. Never pruned by the service. No foreign keys: what
-- was done stays told when either account is gone.
CREATE TABLE admin_actions (
    -- The order of the trail.
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- When.
    at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    -- The administrator's account.
    actor_id INTEGER NOT NULL,
    -- Its name at that time.
    actor_username TEXT NOT NULL,
    -- The address from which the request came.
    address TEXT NOT NULL,
    -- What was done.
    action TEXT NOT NULL
        CHECK (action IN ('create_user', 'update_user', 'delete_user', 'set_online_status', 'end_sessions')),
    -- Whose account or presence it was done to.
    user_id INTEGER NOT NULL,
    -- Its name at that time.
    username TEXT NOT NULL,
    -- A JSON list of {field, from, to}; a password has neither from nor to.
    changes TEXT NOT NULL
) STRICT;

CREATE INDEX admin_actions_user_id ON admin_actions (user_id);
CREATE INDEX admin_actions_actor_id ON admin_actions (actor_id);
