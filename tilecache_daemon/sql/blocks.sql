-- read_blocks --
-- All tiles of a few blocks of a zoom.
SELECT {tile_columns}
FROM unnest(%(x)s::int[], %(y)s::int[]) AS b (x, y)
JOIN tiles t ON t.zoom = %(zoom)s AND t.x >> 5 = b.x AND t.y >> 5 = b.y;
