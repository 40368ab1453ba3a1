-- list_flights --
-- Flights by id after a position, those that only tiles tell of, too: with the usage, the first and
-- the last capture, and of each zoom the columns and rows of the tiles in the western and in the
-- eastern half of the map. The least and the greatest are read from indexes.
WITH page AS (
    SELECT known.id
    FROM (
        SELECT id FROM flights
        UNION
        SELECT flight_id FROM tile_flight_usage GROUP BY flight_id HAVING sum(tile_count) > 0
    ) AS known
    WHERE known.id > %(after)s::uuid
      AND (%(flight_id)s::uuid IS NULL OR known.id = %(flight_id)s::uuid)
    ORDER BY known.id
    LIMIT %(limit)s
), zooms AS MATERIALIZED (
    SELECT flight_id, zoom, sum(tile_count) AS tile_count, sum(used_bytes) AS used_bytes,
           sum(pending_count) AS pending_count, sum(pending_bytes) AS pending_bytes
    FROM tile_flight_usage
    WHERE flight_id IN (SELECT id FROM page)
    GROUP BY flight_id, zoom
    HAVING sum(tile_count) > 0
)
SELECT page.id::text, coalesce(f.name, ''), f.started_at, f.ended_at, f.id IS NOT NULL,
       coalesce(used.tile_count, 0)::bigint, coalesce(used.used_bytes, 0),
       coalesce(used.pending_count, 0)::bigint, coalesce(used.pending_bytes, 0),
       (SELECT min(t.captured_at) FROM tiles t WHERE t.flight_id = page.id),
       (SELECT max(t.captured_at) FROM tiles t WHERE t.flight_id = page.id),
       coalesce(used.extents, '{}')
FROM page
LEFT JOIN flights f USING (id)
LEFT JOIN LATERAL (
    SELECT sum(z.tile_count) AS tile_count, sum(z.used_bytes) AS used_bytes,
           sum(z.pending_count) AS pending_count, sum(z.pending_bytes) AS pending_bytes,
           array_agg(ARRAY[z.zoom, e.west_from, e.west_to, e.east_from, e.east_to, e.y_from, e.y_to])
               FILTER (WHERE z.zoom BETWEEN 0 AND 22) AS extents
    FROM zooms z
    CROSS JOIN LATERAL (
        SELECT
            (SELECT min(t.x) FROM tiles t
             WHERE t.flight_id = page.id AND t.zoom = z.zoom AND t.x < 1 << z.zoom >> 1) AS west_from,
            (SELECT max(t.x) FROM tiles t
             WHERE t.flight_id = page.id AND t.zoom = z.zoom AND t.x < 1 << z.zoom >> 1) AS west_to,
            (SELECT min(t.x) FROM tiles t
             WHERE t.flight_id = page.id AND t.zoom = z.zoom AND t.x >= 1 << z.zoom >> 1) AS east_from,
            (SELECT max(t.x) FROM tiles t
             WHERE t.flight_id = page.id AND t.zoom = z.zoom AND t.x >= 1 << z.zoom >> 1) AS east_to,
            (SELECT min(t.y) FROM tiles t
             WHERE t.flight_id = page.id AND t.zoom = z.zoom) AS y_from,
            (SELECT max(t.y) FROM tiles t
             WHERE t.flight_id = page.id AND t.zoom = z.zoom) AS y_to
    ) AS e
    WHERE z.flight_id = page.id
) AS used ON true
ORDER BY page.id;

-- set_flight --
-- Records the name and times of a flight, or changes them.
INSERT INTO flights (id, name, started_at, ended_at)
VALUES (%(flight_id)s, %(name)s, %(started_at)s, %(ended_at)s)
ON CONFLICT (id) DO UPDATE
SET name = excluded.name, started_at = excluded.started_at, ended_at = excluded.ended_at;

-- delete_flight --
-- Deletes the record of a flight; its tiles stay.
DELETE FROM flights WHERE id = %(flight_id)s RETURNING id;

-- count_flight_usage_rows --
-- How many differences of flights are not summed up yet.
SELECT count(*) - count(DISTINCT (flight_id, zoom)) FROM tile_flight_usage;

-- fold_flight_usage --
-- Sums up the differences of each flight and zoom that has several, unless another transaction is
-- doing so.
WITH folded AS (
    DELETE FROM tile_flight_usage
    WHERE pg_try_advisory_xact_lock(%(key)s::bigint)
      AND (flight_id, zoom) IN (
          SELECT flight_id, zoom FROM tile_flight_usage
          GROUP BY flight_id, zoom
          HAVING count(*) > 1
      )
    RETURNING *
)
INSERT INTO tile_flight_usage
SELECT flight_id, zoom, sum(tile_count), sum(used_bytes), sum(pending_count), sum(pending_bytes)
FROM folded
GROUP BY flight_id, zoom
HAVING sum(tile_count) <> 0 OR sum(used_bytes) <> 0
    OR sum(pending_count) <> 0 OR sum(pending_bytes) <> 0;
