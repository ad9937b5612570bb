"""Clients that push, move tags, roll back, delete and collect, and note each acknowledgement; until sealock is gone."""

import random
import threading

from lib.harness import Failure, expect, expect_equal
from lib.ledger import MANIFEST_TYPE, Image, Ledger, Upload, digest_of
from lib.sealock import BINARY
from lib.wire import Unanswered, Wire, path_of

TAGS = ("latest", "1", "1.0", "next")
# A repository that has this many is left as it is, and the client goes on in a new one.
IMAGES_MAX = 25
COLLECT_PAUSE_SECONDS = 0.05


class Client:
    """One client with repositories of its own: what it did last to a name is what must be found there."""

    def __init__(self, site, sealock, name, seed, history):
        self.site, self.sealock, self.name, self.history = site, sealock, name, history
        self.random = random.Random(f"{seed} {name}")
        self.ledgers = []
        # The first is written to; what is in it is mounted into the second.
        self.here, self.beside = self.new_ledger(), self.new_ledger()
        self.wire = None
        # Statuses that are neither an acknowledgement nor wrong: of a disk that is full or broken on purpose.
        self.excused, self.refused = (), 0

    def new_ledger(self):
        ledger = Ledger(f"crash/{self.name}/{len(self.ledgers)}", self.history)
        self.ledgers.append(ledger)
        return ledger

    def connect(self):
        self.wire = Wire(self.sealock.url)

    def work(self, stop):
        """One thing after another, until `stop` or a request is not answered."""
        self.connect()
        steps = {self.push_image: 40, self.move_tag: 14, self.roll_back: 6, self.copy_image: 10, self.delete_tag: 7,
                 self.delete_manifest: 7, self.delete_blob: 8, self.leave_upload: 8, self.cancel_upload: 3}
        try:
            while not stop.is_set():
                if len(self.here.images) > IMAGES_MAX:
                    self.here, self.beside = self.new_ledger(), self.new_ledger()
                self.random.choices(list(steps), steps.values())[0]()
        except Unanswered:
            pass
        finally:
            self.wire.close()

    def acknowledged(self):
        return sum(ledger.acknowledged for ledger in self.ledgers)

    def answered(self, reply, statuses, what):
        """Whether it was done; a Failure for any answer that is not one of `statuses`, or excused."""
        if reply.status in self.excused:
            self.refused += 1
            return False
        expect(reply.status in statuses, f"{what}: {reply}, not {statuses}")
        return reply.status < 300

    # -- what it does

    def push_image(self, tag=None, sizes=None):
        """New, or one that it pushed before and that may be half gone."""
        ledger, tag = self.here, tag or self.random.choice(TAGS)
        if sizes is None and ledger.images and self.random.random() < 0.2:
            image = self.random.choice(list(ledger.images.values()))
        else:
            sizes = sizes or [self.random.choice((300, 9_000, 70_000, 300_000)) for _ in range(self.random.randint(2, 4))]
            image = Image(self.random.random(), sizes)
            ledger.images[image.digest] = image
        for digest, data in image.blobs.items():
            if not self.push_blob(ledger, digest, data):
                return
        self.put_manifest(ledger, image, tag)

    def put_manifest(self, ledger, image, tag):
        path, kept = f"/v2/{ledger.repository}/manifests/{tag}", [(ledger.tags, tag, image.digest), (ledger.manifests, image.digest, True)]
        reply = ledger.tell(lambda: self.wire.ask("PUT", path, image.bytes, Content_Type=MANIFEST_TYPE), kept)
        if not self.answered(reply, (201, 400), path) and reply.status == 400:
            # Its blobs came longer ago than the grace time, and a collection has taken them.
            expect_equal(reply.code(), "MANIFEST_BLOB_UNKNOWN", f"code of {path}")

    def push_blob(self, ledger, digest, data):
        """In one go, or as an upload in pieces."""
        uploads, kept = f"/v2/{ledger.repository}/blobs/uploads/", [(ledger.blobs, digest, True)]
        if self.random.random() < 0.4:
            reply = ledger.tell(lambda: self.wire.ask("POST", f"{uploads}?digest={digest}", data), kept)
            return self.answered(reply, (201,), f"POST {uploads}")
        location = self.begin_upload(ledger, data)
        if location is None:
            return False
        while (left := len(data) - max(ledger.uploads[location].sizes)) > 0:
            if not self.append(ledger, location, self.random.randint(min(left, 1000), left)):
                return False
        upload, mark = ledger.uploads[location], "&" if "?" in location else "?"
        upload.may_be_gone = True
        reply = ledger.tell(lambda: self.wire.ask("PUT", f"{location}{mark}digest={digest}"), kept)
        if self.answered(reply, (201,), f"PUT {location}"):
            del ledger.uploads[location]
            return True
        return False

    def begin_upload(self, ledger, whole):
        path = f"/v2/{ledger.repository}/blobs/uploads/"
        reply = self.wire.ask("POST", path)
        if not self.answered(reply, (202,), f"POST {path}"):
            return None
        location = path_of(reply.headers["location"])
        ledger.uploads[location] = Upload(whole)
        ledger.acknowledged += 1
        return location

    def append(self, ledger, location, count):
        upload = ledger.uploads[location]
        start = max(upload.sizes)
        upload.sizes.add(start + count)
        piece = upload.whole[start:start + count]
        reply = self.wire.ask("PATCH", location, piece, Content_Range=f"{start}-{start + count - 1}")
        if not self.answered(reply, (202,), f"PATCH {location}"):
            return False
        upload.sizes = {start + count}
        ledger.acknowledged += 1
        return True

    def leave_upload(self):
        """An upload that nobody finishes before the crash."""
        whole = self.random.randbytes(self.random.choice((5_000, 200_000)))
        location = self.begin_upload(self.here, whole)
        for _ in range(self.random.randint(0, 2)):
            if location and not self.append(self.here, location, len(whole) // 3):
                break

    def cancel_upload(self):
        location = self.begin_upload(self.here, self.random.randbytes(5_000))
        if location and self.append(self.here, location, 3_000):
            upload = self.here.uploads[location]
            upload.may_be_gone = True
            upload.cancelled = self.answered(self.wire.ask("DELETE", location), (204,), f"DELETE {location}")

    def move_tag(self, tag=None, to=None):
        """Onto what another tag names."""
        settled = self.here.settled()
        if settled:
            to = to or self.random.choice(list(settled.values()))
            self.put_manifest(self.here, self.here.images[to], tag or self.random.choice(TAGS))

    def roll_back(self, tag=None):
        """To what the tag named before, by the command."""
        ledger = self.here
        tag = tag or self.random.choice(TAGS)
        if tag not in ledger.settled():
            return
        before = [digest for digest, certain in ledger.named[tag][-ledger.history:]
                  if certain and ledger.must_stay(digest) and ledger.tags[tag] != {digest}]
        if not before:
            return
        to = self.random.choice(before)
        said = []

        def ask():
            command = (BINARY, "-c", self.sealock.settings, "tag", "rollback", f"{ledger.repository}:{tag}", "--to", to)
            done = self.site.try_run(*command)
            said.append(done.stderr)
            if done.returncode != 0 and any(sign in done.stderr for sign in ("broke off", "no sealock serves", "Connection reset")):
                raise Unanswered(done.stderr)
            # On a broken disk it may have been done all the same.
            return _Done(200 if done.returncode == 0 else 500 if self.excused else 400)
        reply = ledger.tell(ask, [(ledger.tags, tag, to), (ledger.manifests, to, True)])
        expect(reply.status == 200 or self.excused, f"rollback of {ledger.repository}:{tag} to {to}: {said[0]}")

    def copy_image(self):
        """Mounted into the repository beside, and named there."""
        settled = self.here.settled()
        if not settled:
            return
        image = self.here.images[self.random.choice(list(settled.values()))]
        self.beside.images[image.digest] = image
        for digest in image.blobs:
            path = f"/v2/{self.beside.repository}/blobs/uploads/?mount={digest}&from={self.here.repository}"
            reply = self.beside.tell(lambda path=path: self.wire.ask("POST", path), [(self.beside.blobs, digest, True)])
            if not self.answered(reply, (201,), f"POST {path}"):
                return
        self.put_manifest(self.beside, image, self.random.choice(TAGS))

    def delete_tag(self, tag=None):
        ledger = self.here
        tag = tag or self.random.choice(TAGS)
        path = f"/v2/{ledger.repository}/manifests/{tag}"
        states = ledger.tags.get(tag, {None})
        reply = ledger.tell(lambda: self.wire.ask("DELETE", path), [(ledger.tags, tag, None)])
        expected = {404 if names is None else 202 for names in states}
        if not self.answered(reply, expected, f"DELETE {path}") and reply.status == 404:
            ledger.tags[tag] = {None}

    def delete_manifest(self, digest=None):
        """And so the tags that name it."""
        ledger = self.here
        digest = digest or next(iter(self.random.sample(list(ledger.settled().values()), 1 if ledger.settled() else 0)), None)
        if digest is None:
            return
        gone = [(ledger.manifests, digest, False), *((ledger.tags, tag, None) for tag in ledger.may_name(digest))]
        path = f"/v2/{ledger.repository}/manifests/{digest}"
        self.answered(ledger.tell(lambda: self.wire.ask("DELETE", path), gone), (202,), f"DELETE {path}")

    def delete_blob(self, digest=None):
        """Of those that no manifest names; or it pushes one."""
        ledger = self.here
        there = [known for known in ledger.loose if ledger.blobs.get(known) == {True}]
        if digest is None and (not there or self.random.random() < 0.5):
            data = self.random.randbytes(self.random.choice((100, 40_000)))
            digest = digest_of(data)
            ledger.loose[digest] = data
            self.push_blob(ledger, digest, data)
            return
        digest = digest or self.random.choice(there)
        path = f"/v2/{ledger.repository}/blobs/{digest}"
        reply = ledger.tell(lambda: self.wire.ask("DELETE", path), [(ledger.blobs, digest, False)])
        # 404: a collection was faster.
        if not self.answered(reply, (202, 404), f"DELETE {path}") and reply.status == 404:
            ledger.blobs[digest] = {False}


class _Done:
    """A command's end, as a reply."""

    def __init__(self, status):
        self.status = status


class Load:
    """Clients and a collector at work, each in a thread of its own."""

    def __init__(self, site, sealock, clients, collecting=True):
        self.site, self.sealock, self.clients = site, sealock, clients
        self.stopping, self.failures, self.collections = threading.Event(), [], 0
        self.threads = [threading.Thread(target=self.watch, args=(client.work, self.stopping)) for client in clients]
        if collecting:
            self.threads.append(threading.Thread(target=self.watch, args=(self.collect,)))

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def join(self):
        """Wait until all have seen that sealock is gone, or that they are to stop; raises what one of them met."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        if self.failures:
            raise self.failures[0]

    def watch(self, work, *arguments):
        try:
            work(*arguments)
        except Exception as failure:  # Raised again by `join`.
            self.failures.append(failure)

    def collect(self):
        while not self.stopping.is_set():
            done = self.site.try_run(BINARY, "-c", self.sealock.settings, "gc", "--json")
            if done.returncode == 0:
                self.collections += 1
            elif not self.clients[0].excused and not any(sign in done.stderr for sign in ("broke off", "no sealock serves")):
                raise Failure(f"sealock gc: {done.stderr}")
            self.stopping.wait(COLLECT_PAUSE_SECONDS)
