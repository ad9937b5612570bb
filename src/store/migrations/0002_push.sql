-- Uploads, deletions, and a history that outlives its tag.

-- A client's unfinished upload; its bytes are `staging/upload-<id>`. `size` bytes of them are durable and are what
-- `state`, the hash's, was taken of. The repository need not exist yet.
CREATE TABLE upload (
    id         TEXT   NOT NULL PRIMARY KEY,
    origin     TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    owner      TEXT   NOT NULL,
    size       BIGINT NOT NULL,
    algorithm  TEXT   NOT NULL,
    state      TEXT   NOT NULL,
    touched_at BIGINT NOT NULL
);
CREATE INDEX upload_by_touched_at ON upload (touched_at);

-- Manifests whose grant a client took back. While they are kept, a tag can be rolled back to them.
CREATE TABLE manifest_deleted (
    repository BIGINT NOT NULL REFERENCES repository (id),
    digest     TEXT   NOT NULL,
    deleted_at BIGINT NOT NULL,
    PRIMARY KEY (repository, digest)
);
CREATE INDEX manifest_deleted_by_digest ON manifest_deleted (digest);

-- Blobs that a client deleted: not readable in the repository, whatever manifest there names them.
CREATE TABLE blob_deleted (
    repository BIGINT NOT NULL REFERENCES repository (id),
    digest     TEXT   NOT NULL,
    deleted_at BIGINT NOT NULL,
    PRIMARY KEY (repository, digest)
);
CREATE INDEX blob_deleted_by_digest ON blob_deleted (digest);

-- Every digest that a tag has named, the last one included; NULL where the tag was deleted. Rows are added and thinned
-- out, never changed, and stay when the tag goes.
CREATE TABLE tag_history_kept (
    repository BIGINT NOT NULL REFERENCES repository (id),
    tag        TEXT   NOT NULL,
    position   BIGINT NOT NULL,
    digest     TEXT,
    source     TEXT   NOT NULL,
    moved_at   BIGINT NOT NULL,
    PRIMARY KEY (repository, tag, position)
);
INSERT INTO tag_history_kept (repository, tag, position, digest, source, moved_at)
    SELECT repository, tag, position, digest, source, moved_at FROM tag_history;
DROP TABLE tag_history;
ALTER TABLE tag_history_kept RENAME TO tag_history;
CREATE INDEX tag_history_by_digest ON tag_history (digest);

CREATE INDEX tag_by_digest ON tag (digest);
