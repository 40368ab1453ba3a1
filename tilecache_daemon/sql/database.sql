-- schema_revision --
-- The revision of the schema.
SELECT version_num FROM alembic_version;

-- latest_time_seen --
-- The latest moment that this database has recorded as past.
SELECT greatest(
    (SELECT max(accessed_at) FROM tiles),
    (SELECT created_at FROM tiles ORDER BY id DESC LIMIT 1)
);
