-- What can be fetched again. `filled`: it came from the repository's upstream, and nobody ever brought it there by other
-- ways. Only such content is evicted; what is not known to be such, is not.
ALTER TABLE manifest_grant ADD COLUMN filled BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE blob_grant ADD COLUMN filled BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE trash_grant ADD COLUMN filled BOOLEAN NOT NULL DEFAULT FALSE;

-- Of what was kept before: what tags named that were filled, with what that is made of.
WITH RECURSIVE came (repository, digest) AS (
    SELECT h.repository, h.digest FROM tag_history h JOIN repository r ON r.id = h.repository
        WHERE r.origin <> '' AND h.source = 'filled' AND h.digest IS NOT NULL
    UNION
    SELECT came.repository, p.digest FROM came JOIN part p ON p.manifest = came.digest
        WHERE p.kind IN ('manifest', 'attestation'))
UPDATE manifest_grant SET filled = TRUE
    WHERE EXISTS (SELECT 1 FROM came
            WHERE came.repository = manifest_grant.repository AND came.digest = manifest_grant.digest)
        AND NOT EXISTS (SELECT 1 FROM tag_history h WHERE h.repository = manifest_grant.repository
            AND h.digest = manifest_grant.digest AND h.source <> 'filled');

UPDATE blob_grant SET filled = TRUE
    WHERE EXISTS (SELECT 1 FROM part p
        JOIN manifest_grant g ON g.digest = p.manifest AND g.repository = blob_grant.repository AND g.filled
        WHERE p.digest = blob_grant.digest AND p.kind IN ('config', 'layer'));
