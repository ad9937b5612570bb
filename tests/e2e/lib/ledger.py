"""The oracle: what one client was told about its repository, and whether sealock holds to it after a crash.

It lives outside of sealock and outlives it. Of everything it knows which states may be found: one where the last request
about it was answered, two where it was not, and never a third. What is found then is what must be found from now on.
"""

import hashlib
import json
import random

from lib.harness import expect, expect_equal, expect_in
from lib.wire import path_of

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Image:
    """A manifest and its blobs, all of them from one seed."""

    def __init__(self, seed, sizes):
        made = random.Random(f"image {seed}")
        self.blobs = {digest_of(data): data for data in (made.randbytes(size) for size in sizes)}
        described = [{"digest": digest, "size": len(data)} for digest, data in self.blobs.items()]
        config, layers = {"mediaType": CONFIG_TYPE, **described[0]}, [{"mediaType": LAYER_TYPE, **one} for one in described[1:]]
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
        self.bytes = json.dumps(manifest).encode()
        self.digest = digest_of(self.bytes)


class Upload:
    """An upload under way: `whole` is what it is to become, `sizes` what it may have reached."""

    def __init__(self, whole):
        self.whole, self.digest = whole, digest_of(whole)
        # Whether its closing or cancelling was asked for, and whether the latter was acknowledged.
        self.sizes, self.may_be_gone, self.cancelled = {0}, False, False


class Ledger:
    """One repository, written to by one client. `history`: digests that a collection leaves each tag."""

    def __init__(self, repository, history):
        self.repository, self.history = repository, history
        # What may be found of each: a digest or None of a tag; True or False of a manifest or blob.
        self.tags, self.manifests, self.blobs = {}, {}, {}
        # What each tag was told to name, oldest first, and whether that was certainly done.
        self.named = {}
        self.images, self.loose, self.uploads = {}, {}, {}
        self.acknowledged = 0

    def tell(self, ask, changes):
        """Send a request that asks for `changes` (table, key, value), and note what its reply, or its absence, means."""
        before = [table.get(key, {None if table is self.tags else False}) for table, key, _ in changes]
        for (table, key, value), known in zip(changes, before):
            table[key] = known | {value}
            if table is self.tags:
                # While there is no such tag, a collection may take what it named.
                self.named[key] = [] if value is None else [*self.named.get(key, ()), (value, False)]
        reply = ask()
        if reply.status < 300:
            self.acknowledged += 1
        for (table, key, value), known in zip(changes, before):
            if reply.status < 300:
                table[key] = {value}
                if table is self.tags and value is not None:
                    self.named[key][-1] = (value, True)
            elif reply.status < 500:
                table[key] = known
        return reply

    def may_name(self, digest):
        """Tags that may name it now."""
        return [tag for tag, states in self.tags.items() if digest in states]

    def must_stay(self, digest):
        """Whether no collection may take the manifest: a tag names it, or named it lately and is still there.

        `named` also has what was asked for and perhaps not done, so nothing was named longer ago than it says.
        """
        def held(tag):
            states = self.tags.get(tag, {None})
            return None not in states and (states == {digest} or (digest, True) in self.named[tag][-self.history:])
        return self.manifests.get(digest) == {True} and any(held(tag) for tag in self.named)

    def settled(self):
        """Tags of which it is certain what they name."""
        return {tag: next(iter(states)) for tag, states in self.tags.items() if len(states) == 1 and None not in states}

    # -- after the crash

    def check(self, wire):
        """Hold all of it against what sealock has, and take what is found as known from now on."""
        self.check_uploads(wire)
        must_stay = {digest for digest in self.manifests if self.must_stay(digest)}
        found_tags = {tag: self.check_tag(wire, tag) for tag in self.tags}
        found = {digest: self.check_manifest(wire, digest, digest in must_stay) for digest in self.manifests}
        needed = {blob for digest, there in found.items() if there for blob in self.images[digest].blobs}
        found_blobs = {digest: self.check_blob(wire, digest, digest in needed) for digest in {*self.blobs, *needed}}
        self.check_lists(wire, found_tags)
        self.tags = {tag: {names} for tag, names in found_tags.items()}
        self.manifests = {digest: {there} for digest, there in found.items()}
        self.blobs = {digest: {there} for digest, there in found_blobs.items()}

    def get(self, wire, face, reference, data):
        """Whether it is there with the right bytes; a Failure for anything between that and 404."""
        path = f"/v2/{self.repository}/{face}/{reference}"
        reply = wire.ask("GET", path)
        if reply.status == 404:
            return False
        expect_equal(reply.status, 200, f"status of {path}")
        expect(reply.body == data, f"{path} has other bytes: {len(reply.body)}, not {len(data)}")
        return True

    def check_tag(self, wire, tag):
        states = self.tags[tag]
        path = f"/v2/{self.repository}/manifests/{tag}"
        reply = wire.ask("GET", path)
        expect(reply.status in (200, 404), f"{path}: {reply}")
        names = digest_of(reply.body) if reply.status == 200 else None
        expect(names in states, f"{path} names {names}; may be {states}")
        if names and self.named[tag] and self.named[tag][-1][0] == names:
            self.named[tag][-1] = (names, True)
        if names:
            expect_equal(reply.headers["docker-content-digest"], names, f"digest of {path}")
            for blob, data in self.images[names].blobs.items():
                expect(self.get(wire, "blobs", blob, data), f"{path} names {names}, whose {blob} is gone")
        return names

    def check_manifest(self, wire, digest, must_stay):
        states = self.manifests[digest]
        there = self.get(wire, "manifests", digest, self.images[digest].bytes)
        # What nothing names any more may have been collected.
        told = {tag: self.named[tag][-self.history:] for tag in self.named if any(digest == one for one, _ in self.named[tag])}
        expect(there in states or (not there and not must_stay), f"{self.repository}@{digest}: found {there}, not {states}; named {told}")
        # What was collected was not to stay.
        expect(there or not must_stay, f"{self.repository}@{digest} is gone; named {told}, tags {self.tags}")
        return there

    def check_blob(self, wire, digest, needed):
        states = self.blobs.get(digest, {True, False})
        data = self.loose.get(digest) or next(image.blobs[digest] for image in self.images.values() if digest in image.blobs)
        there = self.get(wire, "blobs", digest, data)
        expect(there or not needed, f"{self.repository}: {digest} is gone, but a manifest names it")
        expect(there in states or needed or not there, f"{self.repository}: blob {digest} is there; may be {states}")
        return there

    def check_lists(self, wire, found_tags):
        reply = wire.ask("GET", f"/v2/{self.repository}/tags/list")
        there = {tag for tag, names in found_tags.items() if names}
        if reply.status == 404:
            expect(not there, f"{self.repository}: no list of its tags, but it has {there}")
        else:
            expect_equal(reply.status, 200, "status of tags/list")
            expect_equal(set(json.loads(reply.body)["tags"] or ()), there, f"tags of {self.repository}")
        for digest in list(self.images)[-3:]:
            expect_equal(wire.ask("GET", f"/v2/{self.repository}/referrers/{digest}").status, 200, "status of referrers")

    def check_uploads(self, wire):
        """Each goes on where it was left, or its blob is there; and is finished, or cancelled and then gone."""
        for number, (location, upload) in enumerate(self.uploads.items()):
            reply = wire.ask("GET", location)
            expect(not upload.cancelled or reply.status == 404, f"{location} is there, and its cancelling was acknowledged")
            if reply.status == 404:
                expect(upload.may_be_gone, f"the upload {location} is gone")
                self.note_loose(upload)
                self.blobs[upload.digest] = {True, False}
                continue
            expect_equal(reply.status, 204, f"status of {location}")
            # An upload that has nothing says `0-0`.
            last = int(reply.headers["range"].partition("-")[2])
            size = last + 1 if last else 0
            expect_in(size, upload.sizes, f"bytes of {location}")
            if number % 3 == 2:
                expect_equal(wire.ask("DELETE", location).status, 204, f"status of cancelling {location}")
                expect_equal(wire.ask("GET", location).status, 404, f"status of {location} when it was cancelled")
                continue
            if size < len(upload.whole):
                reply = wire.ask("PATCH", location, upload.whole[size:], Content_Range=f"{size}-{len(upload.whole) - 1}")
                expect_equal(reply.status, 202, f"status of going on with {location}")
                location = path_of(reply.headers["location"])
            self.note_loose(upload)
            mark = "&" if "?" in location else "?"
            reply = self.tell(lambda: wire.ask("PUT", f"{location}{mark}digest={upload.digest}"), [(self.blobs, upload.digest, True)])
            expect_equal(reply.status, 201, f"status of closing {location}")
        self.uploads = {}

    def note_loose(self, upload):
        if not any(upload.digest in image.blobs for image in self.images.values()):
            self.loose[upload.digest] = upload.whole
