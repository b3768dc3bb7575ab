-- What people are asked about: one row for each approval_requested that nobody has answered. Derived from the journal.
CREATE TABLE approvals (
    position   INTEGER PRIMARY KEY,          -- of the entry that asks
    run        INTEGER NOT NULL,             -- runs.place
    call       TEXT    NOT NULL,             -- turn and place in its answer: 3.0
    expires_us INTEGER NOT NULL              -- microseconds since 1970, UTC
) STRICT;

CREATE UNIQUE INDEX approvals_by_call ON approvals (run, call);
CREATE INDEX approvals_by_expiry ON approvals (expires_us);
