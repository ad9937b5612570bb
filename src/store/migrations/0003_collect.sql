-- What was collected and can still be put back. Its file is `trash/<alg>-<hex>`.
-- `kind`: blob, manifest, or file (content without a row). `media_type`: of a manifest.
CREATE TABLE trash (
    digest     TEXT   NOT NULL,
    kind       TEXT   NOT NULL,
    size       BIGINT NOT NULL,
    media_type TEXT,
    thrown_at  BIGINT NOT NULL,
    PRIMARY KEY (digest, kind)
);

-- Where it could be read.
CREATE TABLE trash_grant (
    digest     TEXT   NOT NULL,
    kind       TEXT   NOT NULL,
    repository BIGINT NOT NULL REFERENCES repository (id),
    PRIMARY KEY (digest, kind, repository)
);

-- Where jobs go on after a restart. `position`: the last digest that was seen to.
CREATE TABLE job (
    name       TEXT   NOT NULL PRIMARY KEY,
    position   TEXT   NOT NULL,
    changed_at BIGINT NOT NULL
);

-- Who keeps whom: a manifest its parts, a subject its referrers.
CREATE VIEW keeps (keeper, kept) AS
    SELECT manifest, digest FROM part
    UNION ALL
    SELECT subject, digest FROM manifest WHERE subject IS NOT NULL;
