-- Which installation this database is of. Redis holds the same id, so that a service whose database and Redis do not belong
-- together is refused at the start: staging must not block the users of production.

CREATE TABLE installation (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    is_only boolean PRIMARY KEY DEFAULT true CONSTRAINT installation_is_only CHECK (is_only)
);

COMMENT ON TABLE installation IS 'One row: which installation this database is of. A copy of the database that gets a Redis of its own may keep it.';
COMMENT ON COLUMN installation.id IS 'Random id; the key presence:{0}:installation in Redis holds the same.';
COMMENT ON COLUMN installation.is_only IS 'Keeps the table at one row.';

INSERT INTO installation DEFAULT VALUES;
