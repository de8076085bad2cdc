-- Login names: one rule of equality for usernames and e-mail addresses, whatever the locale of this database. The key of a
-- name is its NFKC_Casefold. This database computes the keys of ASCII names, by lower() in byte order, which no locale
-- changes; the accounts of all others are marked, and the service computes their keys within a second.

CREATE TABLE login_names (
    user_id bigint NOT NULL,
    name_key text COLLATE "C" NOT NULL CONSTRAINT login_names_not_empty CHECK (name_key <> ''),
    of_username boolean NOT NULL,
    of_email boolean NOT NULL,
    holds boolean NOT NULL DEFAULT true
);

CREATE TABLE login_names_missing (
    user_id bigint PRIMARY KEY REFERENCES users (id) ON DELETE CASCADE ON UPDATE CASCADE,
    is_older boolean NOT NULL DEFAULT false
);

COMMENT ON TABLE login_names IS 'The keys of usernames and e-mail addresses: what a login, a search and uniqueness go by. Kept by triggers and the service; write to users, not here.';
COMMENT ON COLUMN login_names.user_id IS 'The account.';
COMMENT ON COLUMN login_names.name_key IS 'NFKC_Casefold of the name, at most 1,024 bytes. In byte order, so that no locale counts.';
COMMENT ON COLUMN login_names.of_username IS 'Whether it is the key of the username.';
COMMENT ON COLUMN login_names.of_email IS 'Whether it is the key of the e-mail address.';
COMMENT ON COLUMN login_names.holds IS 'Whether a login by the name means this account: of each key one row at most. False for an account from before the keys whose name an older one has too.';
COMMENT ON TABLE login_names_missing IS 'Accounts with a name that this database cannot fold: the service computes their keys and removes the row.';
COMMENT ON COLUMN login_names_missing.user_id IS 'The account.';
COMMENT ON COLUMN login_names_missing.is_older IS 'Whether the account is from before the keys: then it takes its key from a younger account that holds it.';
COMMENT ON COLUMN users.username IS 'Name to sign in with; unique by the key in login_names, among usernames and e-mail addresses.';
COMMENT ON COLUMN users.email IS 'E-mail address, also good to sign in with; unique by the key in login_names, among usernames and e-mail addresses.';

CREATE FUNCTION presence_is_ascii(name text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURN (name COLLATE "C") !~ '[^\u0001-\u007f]';

-- Accounts that there are ----------------------------------------------------------------------------------------------

-- No account is written until this migration is over, so that none is left out. Reading goes on.
LOCK TABLE users IN SHARE ROW EXCLUSIVE MODE;

INSERT INTO login_names (user_id, name_key, of_username, of_email)
    SELECT id, lower(username COLLATE "C"), true, lower(username COLLATE "C") = lower(email COLLATE "C") FROM users
        WHERE presence_is_ascii(username) AND octet_length(username) BETWEEN 1 AND 1024
    UNION ALL SELECT id, lower(email COLLATE "C"), false, true FROM users
        WHERE presence_is_ascii(email) AND octet_length(email) BETWEEN 1 AND 1024
            AND lower(username COLLATE "C") <> lower(email COLLATE "C");

-- Of two accounts with one login name the older keeps it. `presenced doctor` names the other.
UPDATE login_names n SET holds = false FROM (
    SELECT name_key, min(user_id) AS holder FROM login_names GROUP BY name_key HAVING count(*) > 1
) AS shared WHERE n.name_key = shared.name_key AND n.user_id <> shared.holder;

INSERT INTO login_names_missing (user_id, is_older)
    SELECT id, true FROM users WHERE NOT presence_is_ascii(username) OR NOT presence_is_ascii(email);

ALTER TABLE login_names ADD PRIMARY KEY (user_id, name_key);
ALTER TABLE login_names ADD FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE ON UPDATE CASCADE;
CREATE UNIQUE INDEX login_names_key ON login_names (name_key) WHERE holds;
CREATE INDEX login_names_clashes ON login_names (name_key) WHERE NOT holds;

-- Accounts to come -----------------------------------------------------------------------------------------------------

CREATE FUNCTION presence_name_is_held(held text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    RAISE unique_violation USING CONSTRAINT = 'login_names_key', TABLE = 'login_names',
        MESSAGE = 'another account has this username or e-mail address (login_names_key)',
        DETAIL = format('Key (name_key)=(%s) already exists.', held);
END
$$;

-- Only a name that is new or changes is touched. One that cannot be computed here keeps its former key until the service
-- has the new one.
CREATE FUNCTION presence_name_user() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    k_username text := lower(NEW.username COLLATE "C");
    k_email text := lower(NEW.email COLLATE "C");
    plain_username boolean := presence_is_ascii(NEW.username);
    plain_email boolean := presence_is_ascii(NEW.email);
    new_username boolean := true;
    new_email boolean := true;
    held text;
BEGIN
    IF TG_OP = 'UPDATE' THEN
        new_username := lower(OLD.username COLLATE "C") <> k_username;
        new_email := lower(OLD.email COLLATE "C") <> k_email;
    END IF;
    -- What another server has accepted must not end its replication: the service compares and names clashes.
    IF current_setting('session_replication_role') = 'replica' THEN
        plain_username := false;
        plain_email := false;
    ELSIF new_username AND NOT plain_username OR new_email AND NOT plain_email THEN
        -- As far as this database can tell: a name that differs from a key by ASCII case alone has that key.
        SELECT name_key INTO held FROM login_names WHERE holds AND user_id <> NEW.id
            AND (new_username AND name_key = k_username OR new_email AND name_key = k_email) LIMIT 1;
        IF FOUND THEN
            PERFORM presence_name_is_held(held);
        END IF;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        UPDATE login_names SET of_username = of_username AND NOT (new_username AND plain_username),
            of_email = of_email AND NOT (new_email AND plain_email) WHERE user_id = NEW.id;
    END IF;
    INSERT INTO login_names AS n (user_id, name_key, of_username, of_email)
        SELECT NEW.id, name_key, bool_or(of_username), bool_or(of_email) FROM (
            SELECT k_username AS name_key, true AS of_username, false AS of_email WHERE new_username AND plain_username
            UNION ALL SELECT k_email, false, true WHERE new_email AND plain_email
        ) AS names
        WHERE octet_length(name_key) BETWEEN 1 AND 1024 GROUP BY name_key ORDER BY name_key
        ON CONFLICT (user_id, name_key) DO UPDATE SET of_username = n.of_username OR excluded.of_username,
            of_email = n.of_email OR excluded.of_email, holds = true;
    IF TG_OP = 'UPDATE' THEN
        DELETE FROM login_names WHERE user_id = NEW.id AND NOT of_username AND NOT of_email;
    END IF;
    IF new_username AND NOT plain_username OR new_email AND NOT plain_email THEN
        -- Touches a row that is there: the service, which may be at work on it, must come back to it.
        INSERT INTO login_names_missing (user_id) VALUES (NEW.id)
            ON CONFLICT (user_id) DO UPDATE SET is_older = false;
        PERFORM pg_notify('presence_account_changes', '');
    END IF;
    RETURN NULL;
END
$$;

-- A key that is given up goes to the oldest account that has it too.
CREATE FUNCTION presence_pass_on_login_names() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE login_names n SET holds = true FROM (
        SELECT c.name_key, min(c.user_id) AS user_id FROM given_up g
            JOIN login_names c ON c.name_key = g.name_key AND NOT c.holds
            WHERE g.holds AND NOT EXISTS (SELECT FROM login_names h WHERE h.name_key = g.name_key AND h.holds)
            GROUP BY c.name_key
    ) AS heir WHERE n.user_id = heir.user_id AND n.name_key = heir.name_key;
    RETURN NULL;
END
$$;

CREATE TRIGGER users_named AFTER INSERT ON users
    FOR EACH ROW EXECUTE FUNCTION presence_name_user();
CREATE TRIGGER users_renamed AFTER UPDATE OF username, email ON users
    FOR EACH ROW WHEN ((OLD.username, OLD.email) IS DISTINCT FROM (NEW.username, NEW.email))
    EXECUTE FUNCTION presence_name_user();
CREATE TRIGGER login_names_passed_on AFTER DELETE ON login_names REFERENCING OLD TABLE AS given_up
    FOR EACH STATEMENT EXECUTE FUNCTION presence_pass_on_login_names();

-- Also for what arrives by replication, where no cascade of a foreign key does its part.
ALTER TABLE users ENABLE ALWAYS TRIGGER users_named;
ALTER TABLE users ENABLE ALWAYS TRIGGER users_renamed;
ALTER TABLE login_names ENABLE ALWAYS TRIGGER login_names_passed_on;

CREATE FUNCTION presence_name_replicated_user() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        DELETE FROM login_names WHERE user_id = OLD.id;
        DELETE FROM login_names_missing WHERE user_id = OLD.id;
    ELSE
        UPDATE login_names SET user_id = NEW.id WHERE user_id = OLD.id;
        UPDATE login_names_missing SET user_id = NEW.id WHERE user_id = OLD.id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER users_deleted_names_replicated AFTER DELETE ON users
    FOR EACH ROW EXECUTE FUNCTION presence_name_replicated_user();
CREATE TRIGGER users_moved_names_replicated AFTER UPDATE OF id ON users
    FOR EACH ROW WHEN (OLD.id <> NEW.id) EXECUTE FUNCTION presence_name_replicated_user();
ALTER TABLE users ENABLE REPLICA TRIGGER users_deleted_names_replicated;
ALTER TABLE users ENABLE REPLICA TRIGGER users_moved_names_replicated;

-- The keys are each database's own: those of another would clash with what the triggers write here.
CREATE TRIGGER login_names_skipped_replicated BEFORE INSERT OR UPDATE OR DELETE ON login_names
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION presence_skip_row();
CREATE TRIGGER login_names_missing_skipped_replicated BEFORE INSERT OR UPDATE OR DELETE ON login_names_missing
    FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION presence_skip_row();
ALTER TABLE login_names ENABLE REPLICA TRIGGER login_names_skipped_replicated;
ALTER TABLE login_names_missing ENABLE REPLICA TRIGGER login_names_missing_skipped_replicated;

-- As before, for the triggers of these two tables as well.
CREATE OR REPLACE FUNCTION presence_triggers_off() RETURNS TABLE (relation regclass, trigger name, wanted text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT t.tgrelid::regclass, t.tgname, states.wanted FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
    CROSS JOIN LATERAL (SELECT
        CASE WHEN t.tgname LIKE '%\_replicated' THEN 'REPLICA' WHEN t.tgname LIKE '%\_local' THEN '' ELSE 'ALWAYS' END AS wanted
    ) AS states
    WHERE t.tgrelid IN ('users'::regclass, 'user_counts'::regclass, 'account_changes'::regclass, 'login_sessions'::regclass,
            'refresh_tokens'::regclass, 'presence_transitions'::regclass, 'login_names'::regclass,
            'login_names_missing'::regclass)
        AND NOT t.tgisinternal AND p.proname LIKE 'presence\_%'
        AND t.tgenabled <> CASE states.wanted WHEN 'REPLICA' THEN 'R' WHEN '' THEN 'O' ELSE 'A' END
$$;

-- The former indexes went by lower() of the database's locale, which is not the rule. In byte order it is a part of the rule,
-- that INSERT … ON CONFLICT DO NOTHING can go by. Some locales have let in accounts that are equal by it (Turkish: 'DIN' and
-- 'din'); there it is no constraint. Last, because from here on nobody reads users until this migration is over.
DO $$
DECLARE
    of record;
BEGIN
    FOR of IN SELECT 'users_username_key' AS name, 'username' AS field UNION ALL SELECT 'users_email_key', 'email' LOOP
        BEGIN
            EXECUTE format('CREATE UNIQUE INDEX %I ON users (lower(%I COLLATE "C"))', of.name || '_new', of.field);
        EXCEPTION WHEN unique_violation THEN
            EXECUTE format('CREATE INDEX %I ON users (lower(%I COLLATE "C"))', of.name || '_new', of.field);
        END;
    END LOOP;
END
$$;

DROP INDEX users_username_key, users_email_key;
ALTER INDEX users_username_key_new RENAME TO users_username_key;
ALTER INDEX users_email_key_new RENAME TO users_email_key;
