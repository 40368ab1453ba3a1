-- lock_policy_for_share --
-- Blocks changes to sectors and rules until the transaction ends.
SELECT pg_advisory_xact_lock_shared(%(key)s::bigint);

-- list_sectors --
-- All sectors by name, in the order by which pages continue.
SELECT name, classification, south, west, north, east, created_at, polygon::text
FROM sector_classifications
ORDER BY name COLLATE "C";

-- list_rules --
-- All rules.
SELECT classification, max_age_months, action
FROM tile_freshness_rules;

-- relabel_tiles --
-- Updates the labels of the next tiles as `FreshnessPolicy.evaluate` does. Labels of revision
-- 0001 (`stale_warn`, `stale_reject`) stay, since the rules behind them are unknown. While the
-- clock is not trusted, no tile in a sector with a rule becomes `fresh`. A tile
-- that was changed since it was read keeps its new label.
WITH batch AS (
    SELECT id, latitude, longitude, captured_at, freshness_status
    FROM tiles
    WHERE id > %(after_id)s
    ORDER BY id
    LIMIT %(limit)s
), verdict AS (
    SELECT t.id, t.captured_at, t.freshness_status AS old_label,
           coalesce(rule.label, 'fresh') AS new_label,
           rule.label IS NOT NULL AS aged
    FROM batch AS t
    LEFT JOIN LATERAL ({rule_label}) AS rule (label) ON true
), relabelled AS (
    UPDATE tiles t
    SET freshness_status = verdict.new_label
    FROM verdict
    WHERE t.id = verdict.id
      AND t.captured_at = verdict.captured_at
      AND t.freshness_status = verdict.old_label
      AND verdict.new_label <> verdict.old_label
      AND verdict.old_label IN ('fresh', 'downgraded', 'rejected')
      AND (%(clock_trusted)s OR NOT (verdict.aged AND verdict.new_label = 'fresh'))
    RETURNING t.tile_uuid
)
SELECT (SELECT max(id) FROM batch) AS last_id,
       (SELECT count(*) FROM batch) AS evaluated,
       (SELECT count(*) FROM relabelled) AS relabelled;

-- list_expiring --
-- Tiles whose label becomes worse after a time and not after another, by capture time after a
-- position. Those captured outside of a range, which is a few days wider than the rules have it, are
-- not read.
SELECT t.tile_uuid::text, t.zoom, t.x, t.y, t.source, t.flight_id::text, t.captured_at,
       coalesce(t.disk_bytes, 0), t.freshness_status, d.expires_at, d.expired_label, d.name, t.id
FROM tiles t
CROSS JOIN LATERAL ({decisive_rule}) AS d
WHERE t.captured_at BETWEEN %(captured_from)s AND %(captured_to)s
  AND (t.captured_at, t.id) > ({after_captured_at}, %(after_id)s::bigint)
  AND d.expires_at > %(now)s AND d.expires_at <= %(until)s
  AND (t.freshness_status = 'fresh'
       OR (t.freshness_status = 'downgraded' AND d.expired_label = 'rejected'))
ORDER BY t.captured_at, t.id
LIMIT %(limit)s;

-- lock_policy_for_update --
-- Blocks inserts and other changes to sectors and rules until the transaction ends.
SELECT pg_advisory_xact_lock(%(key)s::bigint);

-- set_sector --
-- Adds a sector, or changes the classification and area of the one with this name.
INSERT INTO sector_classifications (
    name, classification, south, west, north, east, created_at, polygon,
    edge_souths, edge_wests, edge_norths, edge_easts
)
VALUES (
    %(name)s, %(classification)s, %(south)s, %(west)s, %(north)s, %(east)s, %(now)s,
    %(polygon)s::jsonb, %(edge_souths)s::float8[], %(edge_wests)s::float8[],
    %(edge_norths)s::float8[], %(edge_easts)s::float8[]
)
ON CONFLICT (name) DO UPDATE
SET classification = excluded.classification, south = excluded.south, west = excluded.west,
    north = excluded.north, east = excluded.east, polygon = excluded.polygon,
    edge_souths = excluded.edge_souths, edge_wests = excluded.edge_wests,
    edge_norths = excluded.edge_norths, edge_easts = excluded.edge_easts
RETURNING name, classification, south, west, north, east, created_at, polygon::text;

-- count_relabelled --
-- How many of the next tiles would get another label, per pair of labels, and how many of these
-- were used since a time. As `relabel_tiles`, without a change.
WITH batch AS (
    SELECT * FROM tiles WHERE id > %(after_id)s ORDER BY id LIMIT %(limit)s
), verdict AS (
    SELECT t.freshness_status AS old_label, coalesce(rule.label, 'fresh') AS new_label,
           rule.label IS NOT NULL AS aged, t.accessed_at
    FROM batch AS t
    LEFT JOIN LATERAL ({rule_label}) AS rule (label) ON true
)
SELECT (SELECT max(id) FROM batch), old_label, new_label, count(*),
       count(*) FILTER (WHERE accessed_at > %(used_since)s)
FROM verdict
WHERE new_label <> old_label
  AND old_label IN ('fresh', 'downgraded', 'rejected')
  AND (%(clock_trusted)s OR NOT (aged AND new_label = 'fresh'))
GROUP BY 2, 3
UNION ALL
SELECT max(id), NULL, NULL, 0, 0 FROM batch;

-- delete_sector --
-- Deletes a sector.
DELETE FROM sector_classifications WHERE name = %(name)s RETURNING name;

-- set_rule --
-- Sets the rule of a classification.
INSERT INTO tile_freshness_rules (classification, max_age_months, action)
VALUES (%(classification)s, %(max_age_months)s, %(action)s)
ON CONFLICT (classification) DO UPDATE
SET max_age_months = excluded.max_age_months, action = excluded.action;
