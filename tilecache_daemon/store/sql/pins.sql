-- end_pins --
-- Ends the pins whose time has come, and takes that back if the clock was ahead. Returns the ids of
-- those that hold. While the clock is not trusted, none ends.
WITH states AS (
    SELECT p.id,
           CASE WHEN %(clock_trusted)s THEN coalesce(p.expires_at <= %(now)s, false)
                ELSE p.ended
           END AS ended
    FROM tile_pins p
), changed AS (
    UPDATE tile_pins p
    SET ended = states.ended
    FROM states
    WHERE p.id = states.id AND p.ended <> states.ended
)
SELECT id FROM states WHERE NOT ended ORDER BY id;

-- delete_pin --
-- Deletes a pin with its blocks.
DELETE FROM tile_pins WHERE name = %(name)s RETURNING id;

-- insert_pin --
-- Adds a pin.
INSERT INTO tile_pins (name, region, zooms, cell_count, created_at, expires_at)
VALUES (%(name)s, %(region)s, %(zooms)s::int[], %(cell_count)s, %(now)s, %(expires_at)s)
RETURNING id;

-- insert_pin_blocks --
-- Adds the blocks of a pin at a zoom; `cells` has 128 bytes for each.
INSERT INTO tile_pin_blocks (zoom, x, y, pin_id, cells)
SELECT %(zoom)s, b.x, b.y, %(pin_id)s, substring(%(cells)s::bytea FROM (b.position::int - 1) * 128 + 1 FOR 128)
FROM unnest(%(x)s::int[], %(y)s::int[]) WITH ORDINALITY AS b (x, y, position);

-- list_pins --
-- Pins by name after a position, each with the number and size of the tiles that it holds.
SELECT p.name, p.region, p.zooms, p.cell_count, p.created_at, p.expires_at, p.ended,
       held.tile_count, held.used_bytes
FROM tile_pins p
CROSS JOIN LATERAL (
    SELECT count(*) AS tile_count, coalesce(sum(t.disk_bytes), 0) AS used_bytes
    FROM tile_pin_blocks b
    JOIN tiles t ON t.zoom = b.zoom AND t.x >> 5 = b.x AND t.y >> 5 = b.y
    WHERE b.pin_id = p.id AND NOT p.ended
      AND get_bit(b.cells, (t.y & 31) * 32 + (t.x & 31)) = 1
) AS held
WHERE (%(name)s::text IS NULL OR p.name = %(name)s)
  AND p.name COLLATE "C" > %(after_name)s COLLATE "C"
ORDER BY p.name COLLATE "C"
LIMIT %(limit)s;

-- read_pinned_usage --
-- The number and size of the tiles that any pin holds, and the size of those of them that wait for
-- upload.
SELECT count(*), coalesce(sum(disk_bytes), 0),
       coalesce(sum(disk_bytes) FILTER (WHERE source = 'onboard_ingest' AND uploaded_at IS NULL), 0)
FROM (
    SELECT DISTINCT t.id, t.disk_bytes, t.source, t.uploaded_at
    FROM tile_pins p
    JOIN tile_pin_blocks b ON b.pin_id = p.id
    JOIN tiles t ON t.zoom = b.zoom AND t.x >> 5 = b.x AND t.y >> 5 = b.y
    WHERE NOT p.ended AND get_bit(b.cells, (t.y & 31) * 32 + (t.x & 31)) = 1
) AS held;

-- count_pinned_evictable --
-- How many tiles an eviction would take if pins did not hold them, and the names of these pins.
SELECT count(DISTINCT t.id), coalesce(array_agg(DISTINCT p.name), '{}')
FROM tile_pins p
JOIN tile_pin_blocks b ON b.pin_id = p.id
JOIN tiles t ON t.zoom = b.zoom AND t.x >> 5 = b.x AND t.y >> 5 = b.y
WHERE NOT p.ended
  AND get_bit(b.cells, (t.y & 31) * 32 + (t.x & 31)) = 1
  AND (%(include_pending)s OR t.source <> 'onboard_ingest' OR t.uploaded_at IS NOT NULL)
  AND t.disk_bytes > 0;

-- find_pinned --
-- Which of some tiles pins hold, each with the names of the pins.
SELECT t.id, array_agg(p.name ORDER BY p.name)
FROM tiles t
JOIN tile_pin_blocks b ON t.zoom = b.zoom AND t.x >> 5 = b.x AND t.y >> 5 = b.y
JOIN tile_pins p ON p.id = b.pin_id
WHERE t.id = ANY(%(ids)s::bigint[])
  AND NOT p.ended
  AND get_bit(b.cells, (t.y & 31) * 32 + (t.x & 31)) = 1
GROUP BY t.id;
