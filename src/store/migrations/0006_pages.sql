-- Pages of referrers and of the names under which anything is kept, and manifests that are to be read once more.

DROP INDEX manifest_by_subject;
CREATE INDEX manifest_by_subject ON manifest (subject, digest) WHERE subject IS NOT NULL;
CREATE INDEX manifest_by_subject_and_type ON manifest (subject, artifact_type, digest) WHERE subject IS NOT NULL;

-- As clients would ask for it.
CREATE INDEX repository_by_shown ON repository ((CASE WHEN origin = '' THEN name ELSE origin || '/' || name END));

-- Manifests of unknown types that were kept without what they name and what they refer to. Nothing is collected while
-- there are any.
CREATE TABLE reread (
    digest TEXT NOT NULL PRIMARY KEY REFERENCES manifest (digest) ON DELETE CASCADE
);
INSERT INTO reread (digest) SELECT digest FROM manifest WHERE media_type NOT IN (
    'application/vnd.oci.image.manifest.v1+json',
    'application/vnd.oci.image.index.v1+json',
    'application/vnd.docker.distribution.manifest.v2+json',
    'application/vnd.docker.distribution.manifest.list.v2+json');
