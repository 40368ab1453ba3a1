-- latest_time_seen --
-- The latest plausible time that the daemon has recorded, which must be past. Without an index by
-- a time, rows that are latest in another order are read.
WITH recent AS (
    (SELECT created_at, uploaded_at FROM tiles ORDER BY id DESC LIMIT 1000)
    UNION ALL
    (SELECT created_at, uploaded_at FROM tiles ORDER BY captured_at DESC LIMIT 1000)
), seen (moment) AS (
    (
        SELECT accessed_at FROM tiles
        WHERE accessed_at <= %(latest_plausible)s
        ORDER BY accessed_at DESC
        LIMIT 1
    )
    UNION ALL SELECT created_at FROM recent
    UNION ALL SELECT uploaded_at FROM recent
    UNION ALL (SELECT evicted_at FROM tile_evictions ORDER BY id DESC LIMIT 1000)
    UNION ALL SELECT created_at FROM sector_classifications
)
SELECT max(moment) FROM seen WHERE moment BETWEEN '2000-01-01' AND %(latest_plausible)s;

-- is_time_implausible --
-- Whether a tile has a time of its last use or creation that is not plausible.
SELECT EXISTS (SELECT FROM tiles WHERE accessed_at > %(latest_plausible)s)
    OR EXISTS (
        SELECT FROM (SELECT created_at FROM tiles ORDER BY id DESC LIMIT 1000) AS recent
        WHERE created_at > %(latest_plausible)s
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
