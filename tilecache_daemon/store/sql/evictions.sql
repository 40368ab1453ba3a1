-- lock_eviction --
-- One eviction at a time selects candidates.
SELECT pg_advisory_xact_lock(%(key)s::bigint);

-- list_evictable --
-- Tiles after a position in the order of use, least recently used first.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE (t.access_order, t.id) > (%(after_order)s, %(after_id)s)
ORDER BY t.access_order, t.id
LIMIT %(limit)s;

-- evict_tiles --
-- Deletes tiles and lists their files for removal, in one statement. Skips tiles that were
-- used since they were chosen, and those that another writer has locked.
WITH locked AS (
    SELECT t.id
    FROM tiles t
    JOIN unnest(%(ids)s::bigint[], %(orders)s::bigint[]) AS chosen (id, access_order)
      USING (id, access_order)
    FOR UPDATE OF t SKIP LOCKED
), deleted AS (
    DELETE FROM tiles t USING locked WHERE t.id = locked.id RETURNING t.*
)
INSERT INTO tile_evictions AS e (
    tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
    accessed_at, evicted_at, reason
)
SELECT tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
       accessed_at, %(now)s, %(reason)s
FROM deleted
ORDER BY access_order, id
RETURNING {eviction_columns};

-- list_replaced_file --
-- Lists the file of a tile for removal before its path changes.
INSERT INTO tile_evictions (
    tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
    accessed_at, evicted_at, reason
)
SELECT tile_uuid, zoom, x, y, source, flight_id, file_path, content_sha256, disk_bytes,
       accessed_at, %(now)s, 'replaced'
FROM tiles
WHERE tile_uuid = %(tile_uuid)s::uuid AND file_path <> %(file_path)s;

-- list_evictions --
-- Evictions after a position, oldest first.
SELECT {eviction_columns}
FROM tile_evictions e
WHERE e.id > %(after_id)s
ORDER BY e.id
LIMIT %(limit)s;

-- confirm_evictions --
-- Removes evictions from the list.
DELETE FROM tile_evictions
WHERE id = ANY(%(ids)s::bigint[])
RETURNING id;

-- is_any_file_listed --
-- Whether any file is listed for removal.
SELECT EXISTS (SELECT FROM tile_evictions);

-- find_listed_files --
-- Which of these files, one per line, are listed for removal.
SELECT DISTINCT file_path
FROM tile_evictions
WHERE file_path = ANY(string_to_array(%(file_paths)s, E'\n'));

-- undo_inserts --
-- Deletes rows that this transaction has inserted.
DELETE FROM tiles
WHERE tile_uuid = ANY(%(tile_uuids)s::uuid[]);

-- list_deletable --
-- Tiles of a zoom in a rectangle of cells that match a purge, after a position.
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
-- Tiles that match a purge, oldest capture first, after a position.
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
-- Tiles by id. Unknown ids are left out.
SELECT {tile_columns}, t.id, t.access_order
FROM tiles t
WHERE t.tile_uuid = ANY(%(tile_uuids)s::uuid[])
ORDER BY t.zoom, t.x, t.y, t.source, t.flight_id;
