-- Login names: one rule of equality for usernames and e-mail addresses. The key of a name is its NFKC_Casefold. SQLite
-- computes the keys of ASCII names, by lower(), which folds ASCII alone; the accounts of all others are marked, and the
-- service computes their keys within a second.

-- The keys of usernames and e-mail addresses: what a login, a search and uniqueness go by. Kept by triggers and the
-- service; write to users, not here.
CREATE TABLE login_names (
    -- The account.
    user_id INTEGER NOT NULL,
    -- NFKC_Casefold of the name, at most 1,024 bytes; in byte order.
    name_key TEXT NOT NULL CHECK (name_key <> ''),
    -- Whether it is the key of the username.
    of_username INTEGER NOT NULL CHECK (of_username IN (0, 1)),
    -- Whether it is the key of the e-mail address.
    of_email INTEGER NOT NULL CHECK (of_email IN (0, 1)),
    -- Whether a login by the name means this account: of each key one row at most. 0 for an account from before the keys
    -- whose name an older one has too.
    holds INTEGER NOT NULL DEFAULT 1 CHECK (holds IN (0, 1)),
    PRIMARY KEY (user_id, name_key)
) STRICT, WITHOUT ROWID;

-- Accounts with a name that SQLite cannot fold: the service computes their keys and removes the row.
CREATE TABLE login_names_missing (
    -- The account.
    user_id INTEGER PRIMARY KEY,
    -- Whether the account is from before the keys: then it takes its key from a younger account that holds it.
    is_older INTEGER NOT NULL DEFAULT 0
) STRICT;

INSERT INTO login_names (user_id, name_key, of_username, of_email)
    SELECT id, lower(username), 1, lower(username) = lower(email) FROM users
        WHERE length(CAST(username AS BLOB)) = length(username) AND length(username) BETWEEN 1 AND 1024
    UNION ALL SELECT id, lower(email), 0, 1 FROM users
        WHERE length(CAST(email AS BLOB)) = length(email) AND length(email) BETWEEN 1 AND 1024
            AND lower(username) <> lower(email)
    ORDER BY 1, 2;

-- Of two accounts with one login name the older keeps it. `presenced doctor` names the other.
CREATE INDEX login_names_all ON login_names (name_key);
UPDATE login_names SET holds = 0 WHERE (user_id, name_key) IN (
    SELECT n.user_id, n.name_key FROM (
        SELECT name_key, min(user_id) AS holder FROM login_names GROUP BY name_key HAVING count(*) > 1
    ) AS shared CROSS JOIN login_names n ON n.name_key = shared.name_key AND n.user_id <> shared.holder
);
DROP INDEX login_names_all;

INSERT INTO login_names_missing (user_id, is_older)
    SELECT id, 1 FROM users WHERE length(CAST(username AS BLOB)) <> length(username)
        OR length(CAST(email AS BLOB)) <> length(email);

CREATE UNIQUE INDEX login_names_key ON login_names (name_key) WHERE holds;
CREATE INDEX login_names_clashes ON login_names (name_key) WHERE NOT holds;

-- RAISE comes before each insert, for the conflict policy of the statement that fires a trigger (INSERT OR REPLACE)
-- overrides that of the trigger. A name that differs from a key by ASCII case alone has that key, also where the name is
-- not ASCII.
CREATE TRIGGER users_named AFTER INSERT ON users BEGIN
    -- REPLACE deletes without triggers; what it leaves behind is no account's.
    DELETE FROM login_names WHERE user_id = NEW.id;
    DELETE FROM login_names WHERE holds AND name_key IN (lower(NEW.username), lower(NEW.email))
        AND NOT EXISTS (SELECT 1 FROM users u WHERE u.id = login_names.user_id);
    SELECT RAISE(ABORT, 'login_names.name_key: another account has this username or e-mail address')
        WHERE EXISTS (SELECT 1 FROM login_names WHERE holds AND name_key IN (lower(NEW.username), lower(NEW.email)));
    INSERT INTO login_names (user_id, name_key, of_username, of_email)
        SELECT NEW.id, name_key, max(of_username), max(of_email) FROM (
            SELECT lower(NEW.username) AS name_key, 1 AS of_username, 0 AS of_email
                WHERE length(CAST(NEW.username AS BLOB)) = length(NEW.username)
            UNION ALL SELECT lower(NEW.email), 0, 1 WHERE length(CAST(NEW.email AS BLOB)) = length(NEW.email)
        ) WHERE length(name_key) BETWEEN 1 AND 1024 GROUP BY name_key;
    INSERT INTO login_names_missing (user_id) SELECT NEW.id
        WHERE length(CAST(NEW.username AS BLOB)) <> length(NEW.username)
            OR length(CAST(NEW.email AS BLOB)) <> length(NEW.email)
        ON CONFLICT (user_id) DO UPDATE SET is_older = 0;
END;

CREATE TRIGGER users_unnamed AFTER DELETE ON users BEGIN
    DELETE FROM login_names WHERE user_id = OLD.id;
    DELETE FROM login_names_missing WHERE user_id = OLD.id;
END;

CREATE TRIGGER users_named_on AFTER UPDATE OF id ON users WHEN OLD.id <> NEW.id BEGIN
    UPDATE login_names SET user_id = NEW.id WHERE user_id = OLD.id;
    UPDATE login_names_missing SET user_id = NEW.id WHERE user_id = OLD.id;
END;

-- A name that SQLite cannot fold keeps its former key until the service has the new one.
CREATE TRIGGER users_renamed AFTER UPDATE OF username ON users WHEN lower(OLD.username) <> lower(NEW.username) BEGIN
    SELECT RAISE(ABORT, 'login_names.name_key: another account has this username or e-mail address')
        WHERE EXISTS (SELECT 1 FROM login_names WHERE holds AND name_key = lower(NEW.username) AND user_id <> NEW.id);
    UPDATE login_names SET of_username = 0 WHERE user_id = NEW.id
        AND length(CAST(NEW.username AS BLOB)) = length(NEW.username);
    INSERT INTO login_names (user_id, name_key, of_username, of_email)
        SELECT NEW.id, lower(NEW.username), 1, 0 WHERE length(CAST(NEW.username AS BLOB)) = length(NEW.username)
            AND length(NEW.username) BETWEEN 1 AND 1024
        ON CONFLICT (user_id, name_key) DO UPDATE SET of_username = 1, holds = 1;
    DELETE FROM login_names WHERE user_id = NEW.id AND NOT of_username AND NOT of_email;
    INSERT INTO login_names_missing (user_id) SELECT NEW.id
        WHERE length(CAST(NEW.username AS BLOB)) <> length(NEW.username) ON CONFLICT (user_id) DO UPDATE SET is_older = 0;
    -- Wakes the service.
    INSERT INTO account_changes (user_id) SELECT NEW.id
        WHERE length(CAST(NEW.username AS BLOB)) <> length(NEW.username);
END;

CREATE TRIGGER users_readdressed AFTER UPDATE OF email ON users WHEN lower(OLD.email) <> lower(NEW.email) BEGIN
    SELECT RAISE(ABORT, 'login_names.name_key: another account has this username or e-mail address')
        WHERE EXISTS (SELECT 1 FROM login_names WHERE holds AND name_key = lower(NEW.email) AND user_id <> NEW.id);
    UPDATE login_names SET of_email = 0 WHERE user_id = NEW.id AND length(CAST(NEW.email AS BLOB)) = length(NEW.email);
    INSERT INTO login_names (user_id, name_key, of_username, of_email)
        SELECT NEW.id, lower(NEW.email), 0, 1 WHERE length(CAST(NEW.email AS BLOB)) = length(NEW.email)
            AND length(NEW.email) BETWEEN 1 AND 1024
        ON CONFLICT (user_id, name_key) DO UPDATE SET of_email = 1, holds = 1;
    DELETE FROM login_names WHERE user_id = NEW.id AND NOT of_username AND NOT of_email;
    INSERT INTO login_names_missing (user_id) SELECT NEW.id
        WHERE length(CAST(NEW.email AS BLOB)) <> length(NEW.email) ON CONFLICT (user_id) DO UPDATE SET is_older = 0;
    INSERT INTO account_changes (user_id) SELECT NEW.id WHERE length(CAST(NEW.email AS BLOB)) <> length(NEW.email);
END;

-- A key that is given up goes to the oldest account that has it too.
CREATE TRIGGER login_names_passed_on AFTER DELETE ON login_names WHEN OLD.holds BEGIN
    UPDATE login_names SET holds = 1 WHERE name_key = OLD.name_key
        AND user_id = (SELECT min(c.user_id) FROM login_names c WHERE c.name_key = OLD.name_key AND NOT c.holds)
        AND NOT EXISTS (SELECT 1 FROM login_names h WHERE h.name_key = OLD.name_key AND h.holds);
END;
