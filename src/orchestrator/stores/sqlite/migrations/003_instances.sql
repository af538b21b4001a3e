-- Agents may have several instances, and runs of a session may go beside each other.
-- serves: 2
-- To a program of schema 2 an agent has the endpoint that was registered last, and runs wait in line.
CREATE TABLE instances (
    tenant TEXT NOT NULL,
    agent_id TEXT NOT NULL,
    instance_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    version TEXT,
    operator INTEGER NOT NULL,
    max_concurrency INTEGER,
    draining INTEGER NOT NULL,
    last_heartbeat INTEGER,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, agent_id, instance_id)
) WITHOUT ROWID;
INSERT INTO instances (
    tenant, agent_id, instance_id, endpoint, version, operator, max_concurrency, draining,
    last_heartbeat, created_at, updated_at)
SELECT tenant, agent_id, coalesce(instance_id, 'default'), endpoint, version, operator,
    max_concurrency, draining, last_heartbeat, created_at, updated_at FROM agents;

ALTER TABLE runs ADD COLUMN parallel INTEGER NOT NULL DEFAULT 0;
-- How many children a run has open is counted with each new one, however many it has had.
CREATE INDEX runs_of_parent_open ON runs (parent_run_id, key)
    WHERE parent_run_id IS NOT NULL
      AND status IN ('CREATED', 'RUNNING', 'PAUSED_WAITING_TOOL', 'PAUSED_WAITING_APPROVAL');
