-- Who ended whose sessions, and who did what: sessions end with a block or a new password, however that came about, and
-- administrators leave a trail.

-- Sessions end with their account's right to be present, and with its password ----------------------------------------

ALTER TABLE users ADD COLUMN password_rehashes integer NOT NULL DEFAULT 0;

COMMENT ON COLUMN users.password_rehashes IS 'How often the service has put a stronger hash of the same password in place of a weak one: such a change ends no session.';
COMMENT ON COLUMN users.password_hash IS 'Hash of the password: PHC string, or as Django stores it until the next login. A plain UPDATE of it ends the account''s sessions.';

-- The last administrator is looked for here, and role is none of the persister's columns.
CREATE INDEX users_admins ON users (id) WHERE role = 'admin';

-- Hashes that were made elsewhere, newest first, are looked for now and then (how long they take to verify); mostly
-- there are none, and the table is large.
CREATE INDEX users_foreign_hash ON users (id) WHERE left(password_hash, 31) <> '$argon2id$v=19$m=19456,t=2,p=1$'
    AND left(password_hash, 1) NOT IN ('', '!');

-- In the order of sids, as whoever else ends several sessions: so two of them do not wait in a circle.
CREATE FUNCTION presence_end_sessions() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    alive text[];
BEGIN
    alive := ARRAY(SELECT sid FROM login_sessions WHERE user_id = NEW.id AND ended_at IS NULL ORDER BY sid FOR UPDATE);
    -- Not now(), which is when a long transaction began.
    UPDATE login_sessions SET ended_at = clock_timestamp() WHERE sid = ANY (alive);
    DELETE FROM refresh_tokens WHERE sid = ANY (alive);
    RETURN NULL;
END
$$;

CREATE TRIGGER users_sessions_end AFTER UPDATE OF status, is_active, password_hash ON users
    FOR EACH ROW WHEN (OLD.may_be_present AND NOT NEW.may_be_present
        OR OLD.password_hash <> NEW.password_hash AND OLD.password_rehashes = NEW.password_rehashes)
    EXECUTE FUNCTION presence_end_sessions();

-- A new password must reach every instance, too: sessions have ended by it.
DROP TRIGGER users_changed ON users;

CREATE TRIGGER users_changed AFTER UPDATE OF id, role, status, is_active, password_hash ON users
    FOR EACH ROW WHEN ((OLD.id, OLD.role, OLD.status, OLD.is_active)
        IS DISTINCT FROM (NEW.id, NEW.role, NEW.status, NEW.is_active)
        OR OLD.password_hash <> NEW.password_hash AND OLD.password_rehashes = NEW.password_rehashes)
    EXECUTE FUNCTION presence_log_account_change();

COMMENT ON COLUMN login_sessions.ended_at IS 'When it ended: by logout, theft, an administrator, a block or a new password; null while it lives.';

-- The trail of administrators -----------------------------------------------------------------------------------------

-- No foreign keys: what was done stays told when either account is gone.
CREATE TABLE admin_actions (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor_id bigint NOT NULL,
    actor_username text NOT NULL,
    address text NOT NULL,
    action text NOT NULL CONSTRAINT admin_actions_action_word
        CHECK (action IN ('create_user', 'update_user', 'delete_user', 'set_online_status', 'end_sessions')),
    user_id bigint NOT NULL,
    username text NOT NULL,
    changes jsonb NOT NULL
);

CREATE INDEX admin_actions_user_id ON admin_actions (user_id, id);
CREATE INDEX admin_actions_actor_id ON admin_actions (actor_id, id);

COMMENT ON TABLE admin_actions IS 'What administrators did by the API, in the transaction that did it. Never pruned by the service.';
COMMENT ON COLUMN admin_actions.id IS 'Primary key: the order of the trail.';
COMMENT ON COLUMN admin_actions.at IS 'When.';
COMMENT ON COLUMN admin_actions.actor_id IS 'The administrator''s account.';
COMMENT ON COLUMN admin_actions.actor_username IS 'Its name at that time.';
COMMENT ON COLUMN admin_actions.address IS 'The address from which the request came.';
COMMENT ON COLUMN admin_actions.action IS 'create_user, update_user, delete_user, set_online_status or end_sessions.';
COMMENT ON COLUMN admin_actions.user_id IS 'Whose account or presence it was done to.';
COMMENT ON COLUMN admin_actions.username IS 'Its name at that time.';
COMMENT ON COLUMN admin_actions.changes IS 'A list of {field, from, to}; a password has neither from nor to.';
