-- Who may do what: keys, what was done with them, and what the tokens of a run may do.
-- serves: 2
-- A program of schema 1 asks nobody for a key, so it must not go on here.
CREATE TABLE keys (
    key_id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    digest BLOB NOT NULL,
    person TEXT,
    agent_id TEXT,
    environment TEXT NOT NULL,
    limits TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    expires_at INTEGER,
    revoked_at INTEGER,
    rotated_to TEXT,
    last_used_at INTEGER
) WITHOUT ROWID;
CREATE INDEX keys_of_tenant ON keys (tenant, created_at);

-- Each hash is over its own row and the hash of the row before it of the same tenant.
CREATE TABLE audit (
    tenant TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    target TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash BLOB NOT NULL,
    PRIMARY KEY (tenant, seq)
) WITHOUT ROWID;

ALTER TABLE runs ADD COLUMN attempting INTEGER NOT NULL DEFAULT 0;
ALTER TABLE invocations ADD COLUMN tracestate TEXT;
ALTER TABLE invocations ADD COLUMN scopes TEXT;
ALTER TABLE agents ADD COLUMN operator INTEGER NOT NULL DEFAULT 1;
ALTER TABLE agents ADD COLUMN scopes TEXT;
