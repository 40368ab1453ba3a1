-- lock_eviction --
-- One eviction at a time decides what goes next.
SELECT pg_advisory_xact_lock(%(key)s::bigint);

-- list_evictable --
-- Tiles from a place in the order of use on, least recently used first.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE (t.access_order, t.id) > (%(after_order)s, %(after_id)s)
ORDER BY t.access_order, t.id
LIMIT %(limit)s;

-- evict_tiles --
-- Takes rows out and lists them for their files' removal, in one statement.
-- A tile that was used since it was chosen, or that a writer holds, stays.
WITH held AS (
    SELECT t.id
    FROM tiles t
    JOIN unnest(%(ids)s::bigint[], %(orders)s::bigint[]) AS chosen (id, access_order)
      USING (id, access_order)
    FOR UPDATE OF t SKIP LOCKED
), gone AS (
    DELETE FROM tiles t USING held WHERE t.id = held.id RETURNING t.*
)
INSERT INTO tile_evictions AS e (
    tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
    accessed_at, evicted_at, reason
)
SELECT tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
       accessed_at, %(now)s, %(reason)s
FROM gone
ORDER BY access_order, id
RETURNING {eviction_columns};

-- list_replaced_file --
-- Lists the file of a tile that is about to get another one.
INSERT INTO tile_evictions (
    tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
    accessed_at, evicted_at, reason
)
SELECT tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
       accessed_at, %(now)s, 'replaced'
FROM tiles
WHERE tile_uuid = %(tile_uuid)s::uuid AND file_path <> %(file_path)s;

-- list_evictions --
-- Evictions from a place on, oldest first.
SELECT {eviction_columns}
FROM tile_evictions e
WHERE e.id > %(after_id)s
ORDER BY e.id
LIMIT %(limit)s;

-- confirm_evictions --
-- Takes evictions off the list.
DELETE FROM tile_evictions
WHERE id = ANY(%(ids)s::bigint[])
RETURNING id;

-- is_any_file_listed --
-- Whether files wait for their removal at all.
SELECT EXISTS (SELECT FROM tile_evictions);

-- find_listed_files --
-- Which of these files, a line each, are to be removed.
SELECT DISTINCT file_path
FROM tile_evictions
WHERE file_path = ANY(string_to_array(%(file_paths)s, E'\n'));

-- take_back_tiles --
-- Takes out rows that this transaction has put in.
DELETE FROM tiles
WHERE tile_uuid = ANY(%(tile_uuids)s::uuid[]);

-- list_deletable --
-- Tiles of a zoom in a rectangle of cells that match a purge, from a place on.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE t.zoom = %(zoom)s
  AND t.x BETWEEN %(x_from)s AND %(x_to)s
  AND t.y BETWEEN %(y_from)s AND %(y_to)s
  AND (t.x, t.y, t.id) > (%(after_x)s, %(after_y)s, %(after_id)s)
  AND (%(sources)s::text[] IS NULL OR t.source = ANY(%(sources)s::text[]))
  AND (%(captured_before)s::timestamptz IS NULL OR t.captured_at < %(captured_before)s)
  AND (%(flight_id)s::uuid IS NULL OR t.flight_id = %(flight_id)s::uuid)
ORDER BY t.x, t.y, t.id
LIMIT %(limit)s;

-- list_deletable_by_capture --
-- Tiles anywhere that match a purge, oldest capture first, from a place on.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE (t.captured_at, t.id) > (%(after_captured_at)s::timestamptz, %(after_id)s)
  AND t.captured_at < coalesce(%(captured_before)s::timestamptz, 'infinity')
  AND t.zoom = ANY(%(zooms)s::int[])
  AND (%(sources)s::text[] IS NULL OR t.source = ANY(%(sources)s::text[]))
  AND (%(flight_id)s::uuid IS NULL OR t.flight_id = %(flight_id)s::uuid)
ORDER BY t.captured_at, t.id
LIMIT %(limit)s;

-- list_deletable_by_id --
-- Tiles by id.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE t.tile_uuid = ANY(%(tile_uuids)s::uuid[])
ORDER BY t.zoom, t.x, t.y, t.source, t.flight_id;
