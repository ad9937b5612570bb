-- Content that was found damaged, and whose uploads are whose.

-- What was kept and was found wrong or missing. `kind`: blob or manifest. `verdict`: wrong (its file is in
-- `quarantine/`) or missing. `found_by`: read, scrub, verify or start. `healed_at`: when it was kept again.
CREATE TABLE damage (
    digest    TEXT   NOT NULL,
    kind      TEXT   NOT NULL,
    size      BIGINT NOT NULL,
    verdict   TEXT   NOT NULL,
    found_by  TEXT   NOT NULL,
    found_at  BIGINT NOT NULL,
    healed_at BIGINT,
    PRIMARY KEY (digest, kind)
);
CREATE INDEX damage_by_found_at ON damage (found_at);

-- The address of the client that began it.
ALTER TABLE upload ADD COLUMN client TEXT NOT NULL DEFAULT '';
