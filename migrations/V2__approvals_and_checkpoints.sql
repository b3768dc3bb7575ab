-- What people are asked about: one row for each approval_requested that nobody has answered. Derived from the journal.
CREATE TABLE approvals (
    position   INTEGER PRIMARY KEY,          -- of the entry that asks
    run        INTEGER NOT NULL,             -- runs.place
    call       TEXT    NOT NULL,             -- turn and place in its answer: 3.0
    expires_us INTEGER NOT NULL              -- microseconds since 1970, UTC
) STRICT;

CREATE UNIQUE INDEX approvals_by_call ON approvals (run, call);
CREATE INDEX approvals_by_expiry ON approvals (expires_us);

-- How runs stood at some of their entries, so that a long one can be opened without reading all of them. Derived from the
-- journal, and sealed, since it is whole.
CREATE TABLE checkpoints (
    run      INTEGER PRIMARY KEY,            -- runs.place
    sequence INTEGER NOT NULL,               -- of the last entry that is in it
    state    BLOB    NOT NULL                -- the state without its conversation, sealed
) STRICT;

-- The conversations, in pieces: a checkpoint adds only what was said since the one before it.
CREATE TABLE checkpoint_items (
    place INTEGER PRIMARY KEY,
    run   INTEGER NOT NULL,                  -- runs.place
    first INTEGER NOT NULL,                  -- place of its first item in the conversation, from 0
    items BLOB    NOT NULL                   -- sealed
) STRICT;

CREATE UNIQUE INDEX checkpoint_items_by_run ON checkpoint_items (run, first);

-- When the store was restored from a backup, until a daemon has made its runs stand still; microseconds since 1970, UTC.
ALTER TABLE owner ADD COLUMN restored_us INTEGER;
