-- How many accounts there are, without counting them, for lists of all accounts: count(*) reads a whole index.

-- Filled by triggers, put right at each start of the service. SQLite has one writer, so nobody waits here who did not before.
CREATE TABLE user_counts (
    -- Which number: -1 of all rows of users, else of those whose id / 4096 is this.
    block INTEGER PRIMARY KEY,
    -- How many.
    users INTEGER NOT NULL
) STRICT;

INSERT INTO user_counts (block, users)
    SELECT id / 4096, count(*) FROM users GROUP BY 1 UNION ALL SELECT -1, count(*) FROM users;

CREATE TRIGGER users_counted_in AFTER INSERT ON users BEGIN
    INSERT INTO user_counts (block, users) VALUES (-1, 1), (NEW.id / 4096, 1)
        ON CONFLICT (block) DO UPDATE SET users = users + excluded.users;
END;

CREATE TRIGGER users_counted_out AFTER DELETE ON users BEGIN
    UPDATE user_counts SET users = users - 1 WHERE block IN (-1, OLD.id / 4096);
END;

CREATE TRIGGER users_counted_on AFTER UPDATE OF id ON users WHEN OLD.id / 4096 <> NEW.id / 4096 BEGIN
    UPDATE user_counts SET users = users - 1 WHERE block = OLD.id / 4096;
    INSERT INTO user_counts (block, users) VALUES (NEW.id / 4096, 1)
        ON CONFLICT (block) DO UPDATE SET users = users + 1;
END;
