-- How many accounts there are, without counting them, for lists of all accounts: count(*) reads the whole table.

-- One row would make every registration wait for the one before it to commit, and two transactions that add several could
-- wait for each other in a circle. So a number is the sum of its slots, and whoever changes it takes a slot that nobody
-- holds, or a new one: there are as many slots of a number as there ever were writers at once, and nobody ever waits.
CREATE TABLE user_counts (
    block bigint NOT NULL,
    slot bigint GENERATED ALWAYS AS IDENTITY,
    users bigint NOT NULL,
    PRIMARY KEY (block, slot)
-- Room on the page, so that a change of a number touches no index (HOT).
) WITH (fillfactor = 50);

COMMENT ON TABLE user_counts IS 'How many rows users holds, in all and for each 4096 ids; filled by triggers, put right at each start of the service.';
COMMENT ON COLUMN user_counts.block IS 'Which number: -1 of all rows, else of those whose id / 4096 is this.';
COMMENT ON COLUMN user_counts.slot IS 'Which part of it: the number is the sum of all its slots.';
COMMENT ON COLUMN user_counts.users IS 'How many; a part may be negative.';

-- Once a statement, however many rows that adds or deletes.
CREATE FUNCTION presence_count_users() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    sign bigint := CASE TG_OP WHEN 'INSERT' THEN 1 ELSE -1 END;
BEGIN
    -- Only at this level is a slot that somebody has changed since the snapshot no error, so elsewhere each takes a new one.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        INSERT INTO user_counts (block, users)
            SELECT id / 4096, sign * count(*) FROM changed GROUP BY 1
            UNION ALL SELECT -1, sign * count(*) FROM changed HAVING count(*) > 0;
        RETURN NULL;
    END IF;
    WITH change AS MATERIALIZED (
        SELECT id / 4096 AS block, sign * count(*) AS users FROM changed GROUP BY 1
        UNION ALL SELECT -1, sign * count(*) FROM changed HAVING count(*) > 0
    ), free AS MATERIALIZED (
        SELECT change.block, one.slot, change.users FROM change CROSS JOIN LATERAL (
            SELECT c.slot FROM user_counts c WHERE c.block = change.block LIMIT 1 FOR UPDATE SKIP LOCKED
        ) AS one
    ), moved AS (
        UPDATE user_counts c SET users = c.users + free.users FROM free
        WHERE c.block = free.block AND c.slot = free.slot RETURNING c.block
    )
    INSERT INTO user_counts (block, users)
        SELECT block, users FROM change WHERE block NOT IN (SELECT block FROM moved);
    RETURN NULL;
END
$$;

CREATE FUNCTION presence_count_moved_user() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO user_counts (block, users) VALUES (OLD.id / 4096, -1), (NEW.id / 4096, 1);
    RETURN NULL;
END
$$;

-- TRUNCATE waits for every transaction that has written to users, and lets no other write until it is over.
CREATE FUNCTION presence_count_no_users() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    DELETE FROM user_counts;
    RETURN NULL;
END
$$;

-- From the first of these on nobody else writes to users until this migration is over, so that nobody is left out.
CREATE TRIGGER users_counted_in AFTER INSERT ON users REFERENCING NEW TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION presence_count_users();
CREATE TRIGGER users_counted_out AFTER DELETE ON users REFERENCING OLD TABLE AS changed
    FOR EACH STATEMENT EXECUTE FUNCTION presence_count_users();
CREATE TRIGGER users_counted_on AFTER UPDATE OF id ON users
    FOR EACH ROW WHEN (OLD.id / 4096 <> NEW.id / 4096) EXECUTE FUNCTION presence_count_moved_user();
CREATE TRIGGER users_counted_off AFTER TRUNCATE ON users
    FOR EACH STATEMENT EXECUTE FUNCTION presence_count_no_users();

INSERT INTO user_counts (block, users)
    SELECT id / 4096, count(*) FROM users GROUP BY 1 UNION ALL SELECT -1, count(*) FROM users;
