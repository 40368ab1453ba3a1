-- latest_time_seen --
-- The latest time that this database has recorded, which must be past.
SELECT greatest(
    (SELECT max(accessed_at) FROM tiles),
    (SELECT created_at FROM tiles ORDER BY id DESC LIMIT 1)
);

-- send_marker --
-- Sent last in a transaction: all its other notifications arrive before.
SELECT pg_notify('tilecache_changes', %(payload)s);

-- set_writer --
-- The writer's id in the change notifications of this transaction.
SELECT set_config('tilecache.writer', %(writer)s, true);

-- limit_lock_wait --
-- The rest of the transaction waits at most 20 ms for each lock.
SET LOCAL lock_timeout = '20ms';
