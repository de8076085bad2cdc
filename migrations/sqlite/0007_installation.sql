-- Which installation this database is of: one row. Redis holds the same id, so that a service whose database and Redis do not
-- belong together is refused at the start. A copy of the database that gets a Redis of its own may keep it.
CREATE TABLE installation (
    -- Random id; the key presence:{0}:installation in Redis holds the same.
    id TEXT NOT NULL,
    -- Keeps the table at one row.
    is_only INTEGER PRIMARY KEY CHECK (is_only = 1)
) STRICT;

INSERT INTO installation (id, is_only) VALUES (lower(hex(randomblob(16))), 1);
