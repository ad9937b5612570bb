-- What is kept. The bytes themselves are files under `blobs/`; a row is written only after its file is durable.
-- Digests are text (`sha256:…`), times are milliseconds since the epoch, sizes are bytes.

-- `origin` is the upstream's host, or '' for this site's own. Ids are never used again.
CREATE TABLE repository (
    id     BIGINT NOT NULL PRIMARY KEY,
    origin TEXT   NOT NULL,
    name   TEXT   NOT NULL,
    UNIQUE (origin, name)
);

CREATE TABLE blob (
    digest  TEXT   NOT NULL PRIMARY KEY,
    size    BIGINT NOT NULL,
    kept_at BIGINT NOT NULL,
    used_at BIGINT NOT NULL
);

-- `complete`: every byte for at least one platform is kept; written by the transaction that changes it.
CREATE TABLE manifest (
    digest        TEXT    NOT NULL PRIMARY KEY,
    media_type    TEXT    NOT NULL,
    size          BIGINT  NOT NULL,
    subject       TEXT,
    artifact_type TEXT,
    annotations   TEXT    NOT NULL,
    complete      BOOLEAN NOT NULL,
    kept_at       BIGINT  NOT NULL,
    used_at       BIGINT  NOT NULL
);
CREATE INDEX manifest_by_subject ON manifest (subject) WHERE subject IS NOT NULL;

-- What a manifest is made of. `kind`: config, layer, foreign (never needed), manifest (a child that can complete its
-- index), attestation (a child that cannot).
CREATE TABLE part (
    manifest   TEXT   NOT NULL REFERENCES manifest (digest) ON DELETE CASCADE,
    position   BIGINT NOT NULL,
    digest     TEXT   NOT NULL,
    kind       TEXT   NOT NULL,
    size       BIGINT NOT NULL,
    media_type TEXT   NOT NULL,
    platform   TEXT,
    PRIMARY KEY (manifest, position)
);
CREATE INDEX part_by_digest ON part (digest, manifest);

-- Where content may be read. A blob may be read too where a manifest that names it is granted.
CREATE TABLE manifest_grant (
    repository BIGINT NOT NULL REFERENCES repository (id),
    digest     TEXT   NOT NULL,
    PRIMARY KEY (repository, digest)
);
CREATE INDEX manifest_grant_by_digest ON manifest_grant (digest);

CREATE TABLE blob_grant (
    repository BIGINT NOT NULL REFERENCES repository (id),
    digest     TEXT   NOT NULL,
    PRIMARY KEY (repository, digest)
);
CREATE INDEX blob_grant_by_digest ON blob_grant (digest);

CREATE TABLE tag (
    repository BIGINT  NOT NULL REFERENCES repository (id),
    name       TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    source     TEXT    NOT NULL,
    checked_at BIGINT  NOT NULL,
    moved_at   BIGINT  NOT NULL,
    pinned     BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (repository, name)
);

-- Every digest that a tag has named, the last one included; rows are added and thinned out, never changed.
CREATE TABLE tag_history (
    repository BIGINT NOT NULL,
    tag        TEXT   NOT NULL,
    position   BIGINT NOT NULL,
    digest     TEXT   NOT NULL,
    source     TEXT   NOT NULL,
    moved_at   BIGINT NOT NULL,
    PRIMARY KEY (repository, tag, position),
    FOREIGN KEY (repository, tag) REFERENCES tag (repository, name) ON DELETE CASCADE
);
CREATE INDEX tag_history_by_digest ON tag_history (digest);

-- What was asked for while it could not be had.
CREATE TABLE wanted (
    name      TEXT   NOT NULL,
    reference TEXT   NOT NULL,
    client    TEXT   NOT NULL,
    first_at  BIGINT NOT NULL,
    last_at   BIGINT NOT NULL,
    count     BIGINT NOT NULL,
    PRIMARY KEY (name, reference)
);
CREATE INDEX wanted_by_last_at ON wanted (last_at);
