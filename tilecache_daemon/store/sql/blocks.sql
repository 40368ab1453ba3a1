-- read_blocks --
-- The tiles in some rectangles of cells, each within one block: a row per block. The conditions
-- on cells within a block match no index, so that the planner uses the index of blocks.
SELECT a.*
FROM unnest(%(x_from)s::int[], %(x_to)s::int[], %(y_from)s::int[], %(y_to)s::int[])
         AS b (x_from, x_to, y_from, y_to)
CROSS JOIN LATERAL (
    SELECT {tile_records}
    FROM tiles t
    WHERE t.zoom = %(zoom)s
      AND t.x >> 5 = b.x_from >> 5
      AND t.y >> 5 = b.y_from >> 5
      AND t.x & 31 BETWEEN b.x_from & 31 AND b.x_to & 31
      AND t.y & 31 BETWEEN b.y_from & 31 AND b.y_to & 31
    HAVING count(*) > 0
) AS a;

-- read_tiles --
-- Tiles by id, all in one row (no row if there are none). Unknown ids are left out.
SELECT {tile_records}
FROM tiles t
WHERE t.tile_uuid = ANY(%(tile_uuids)s::uuid[])
HAVING count(*) > 0;

-- read_block_tiles --
-- The tiles of a few blocks of a zoom, of each those in a rectangle of its cells: a row per
-- block, in order, with 18 bytes per tile: its cell in the block times 8 plus the rank of its label,
-- its capture time and size. An array of rows takes PostgreSQL and psycopg several times as long.
SELECT coalesce(a.tiles, ''::bytea)
FROM unnest(%(x_from)s::int[], %(x_to)s::int[], %(y_from)s::int[], %(y_to)s::int[])
         WITH ORDINALITY AS b (x_from, x_to, y_from, y_to, position)
CROSS JOIN LATERAL (
    SELECT string_agg(
               int2send((((t.y & 31) * 32 + (t.x & 31)) * 8 + {label_rank})::smallint)
                   || timestamptz_send(t.captured_at) || int8send(coalesce(t.disk_bytes, 0)),
               ''::bytea
           ) AS tiles
    FROM tiles t
    WHERE t.zoom = %(zoom)s
      AND t.x >> 5 = b.x_from >> 5
      AND t.y >> 5 = b.y_from >> 5
      AND t.x & 31 BETWEEN b.x_from & 31 AND b.x_to & 31
      AND t.y & 31 BETWEEN b.y_from & 31 AND b.y_to & 31
) AS a
ORDER BY b.position;

-- read_block_tiles_at --
-- The same with the labels at the time `now`.
SELECT coalesce(a.tiles, ''::bytea)
FROM unnest(%(x_from)s::int[], %(x_to)s::int[], %(y_from)s::int[], %(y_to)s::int[])
         WITH ORDINALITY AS b (x_from, x_to, y_from, y_to, position)
CROSS JOIN LATERAL (
    SELECT string_agg(
               int2send((((t.y & 31) * 32 + (t.x & 31)) * 8 + {label_rank_at})::smallint)
                   || timestamptz_send(t.captured_at) || int8send(coalesce(t.disk_bytes, 0)),
               ''::bytea
           ) AS tiles
    FROM tiles t
    CROSS JOIN LATERAL ({label_at}) AS at (label)
    WHERE t.zoom = %(zoom)s
      AND t.x >> 5 = b.x_from >> 5
      AND t.y >> 5 = b.y_from >> 5
      AND t.x & 31 BETWEEN b.x_from & 31 AND b.x_to & 31
      AND t.y & 31 BETWEEN b.y_from & 31 AND b.y_to & 31
) AS a
ORDER BY b.position;
