#!/usr/bin/env python3
"""Killed, unplugged, disk broken, disk full: what was acknowledged is there, and nothing is half done. See docs/durability.md.

    tests/e2e/run crash                              bounded, as CI has it
    tests/e2e/story_crash.py --rounds 500            by hand: more kills and power cuts
    tests/e2e/story_crash.py --calls all             a kill at every system call
    tests/e2e/story_crash.py --seed 17 --only kill   the same load again
"""

import argparse
import copy
import json
import os
import random
import re
import shutil
import sys
import time

sys.dont_write_bytecode = True

from lib import calls, disks, harness  # noqa: E402
from lib.harness import Died, Failure, expect, expect_equal, expect_in  # noqa: E402
from lib.ledger import MANIFEST_TYPE, Image, digest_of  # noqa: E402
from lib.load import Client, Load  # noqa: E402
from lib.sealock import BINARY, Sealock  # noqa: E402
from lib.wire import Unanswered, Wire  # noqa: E402

HISTORY = 3
# What pushes and fills leave free for the catalog: ROOM_LEFT_BYTES in src/store/mod.rs.
RESERVE = 64 << 20
CLIENTS = 4
# Collections take what they may, at once, and nobody gets it back.
SETTINGS = """
[keep]
grace = "{grace}"
keep_untagged = false
history = %d
trash_for = "0s"
""" % HISTORY

# What CI has time for.
KILL_SECONDS, POWER_SECONDS, CALLS_SECONDS = 60, 20, 90


class Options:
    """How much of each; None: as long as CI has time for."""
    rounds, calls, only = None, None, None
    seed = None


def story(site, options=Options):
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    site.say(f"seed {seed}")
    parts = {"kill": kills, "calls": every_call, "order": order, "power": power_cuts, "errors": failed_syncs, "full": full_disk}
    for name, part in parts.items():
        if options.only in (None, name):
            part(site, seed, options)


# -- what they all stand on

class Crash:
    """A sealock with its clients, which is made to die, and looked into when it is up again."""

    def __init__(self, site, name, seed, grace="1s", data=None):
        self.site, self.seed = site, seed
        self.sealock = Sealock(site, SETTINGS.format(grace=grace), name=name, data=data or site.path(name))
        self.clients = [Client(site, self.sealock, f"c{number}", seed, HISTORY) for number in range(CLIENTS)]
        self.collections = 0
        # A program that runs it may be stopped without it.
        site.cleanups.append(self.sealock.kill)

    def start(self, under=()):
        # Its log would grow with each round.
        if self.sealock.process:
            self.site.processes.remove(self.sealock.process)
        self.sealock.start(under=under)
        return self

    def load(self):
        return Load(self.site, self.sealock, self.clients).start()

    def join(self, load):
        load.join()
        self.collections += load.collections

    def check(self, everything=False):
        """What was acknowledged is there, or gone; what is there is whole. The server is up."""
        wire = Wire(self.sealock.url)
        left = [name for name in os.listdir(os.path.join(self.sealock.data, "staging")) if not name.startswith("upload-")]
        expect_equal(left, [], "left in staging")
        for client in self.clients:
            for ledger in client.ledgers if everything else client.ledgers[-2:]:
                ledger.check(wire)
        expect_equal(wire.ask("GET", "/v2/_catalog").status, 200, "status of _catalog")
        wire.close()
        verified = json.loads(self.sealock.run("verify", "--json"))
        expect_equal(verified["bad_count"], 0, f"bad blobs: {verified}")

    def acknowledged(self):
        return sum(client.acknowledged() for client in self.clients)


def rounds_of(options, seconds):
    """Numbers of rounds: as many as are asked for, or until the time is up."""
    ends, number = time.monotonic() + seconds, 0
    while (options.rounds is None and time.monotonic() < ends) or number < (options.rounds or 0):
        yield number
        number += 1


# -- killed at any instant

def kills(site, seed, options):
    with site.step("killed at any instant under load: what was acknowledged holds"):
        chance, crash = random.Random(seed), Crash(site, "kill", seed)
        killed = 0
        for number in rounds_of(options, KILL_SECONDS):
            if chance.random() < 0.15:
                killed += kill_while_it_starts(crash, chance.uniform(0, 0.06))
            crash.start()
            crash.check(everything=number % 10 == 0)
            load = crash.load()
            time.sleep(chance.uniform(0.02, 0.9))
            crash.sealock.kill()
            killed += 1
            crash.join(load)
        crash.start().check(everything=True)
        crash.sealock.stop()
        site.say(f"     {killed} kills, {crash.acknowledged()} acknowledged, {crash.collections} collections: nothing lost")
        expect(crash.acknowledged() > 10 * killed and crash.collections > 0, "too little was done between the kills")


def kill_while_it_starts(crash, after):
    sealock = crash.sealock
    if sealock.process:
        crash.site.processes.remove(sealock.process)
    sealock.process = crash.site.start(sealock.name, [BINARY, "-c", sealock.settings, "serve"])
    time.sleep(after)
    sealock.process.popen.kill()
    sealock.process.popen.wait()
    return 1


# -- killed at every system call

def play(client):
    """One of each, always the same; ends early where sealock does."""
    client.connect()
    try:
        client.push_image("2", [300, 9_000, 70_000])
        client.push_image("1", [200, 5_000])
        client.move_tag("latest", next(iter(client.here.tags["2"])))
        client.copy_image()
        client.roll_back("1")
        client.leave_upload()
        client.cancel_upload()
        client.delete_blob(next(iter(client.here.loose)))
        client.delete_tag("next")
        client.delete_manifest(next(iter(client.here.tags["1.0"])))
        collect(client)
        client.push_image("3", [100, 2_000])
        # What the first one took lies in the trash no longer than that.
        collect(client)
        return True
    except Unanswered:
        return False
    finally:
        client.wire.close()


def collect(client):
    done = client.site.try_run(BINARY, "-c", client.sealock.settings, "gc", "--json")
    if done.returncode != 0:
        raise Unanswered(done.stderr)


def prepare(site, seed):
    """A data folder with something of everything in it, and what its client knows of it."""
    for folder in ("calls", "calls-before"):
        site.empty_folder(folder)
    crash = Crash(site, "calls", seed, grace="0s")
    crash.start()
    client = crash.clients[0]
    crash.clients = [client]
    client.connect()
    for tag in ("1", "1", "1.0", "next", "2"):
        client.push_image(tag, [100, 1_000])
    loose = Image(f"loose {seed}", [4_000])
    for digest, data in loose.blobs.items():
        client.here.loose[digest] = data
        client.push_blob(client.here, digest, data)
    client.wire.close()
    client.wire = None
    crash.sealock.stop()
    shutil.copytree(crash.sealock.data, site.path("calls-before"), dirs_exist_ok=True)
    return crash, (client.here, client.beside, client.random.getstate())


def begin_again(crash, known):
    """The data folder and its client as `prepare` left them."""
    shutil.rmtree(crash.sealock.data)
    shutil.copytree(crash.site.path("calls-before"), crash.sealock.data)
    client = crash.clients[0]
    # Together, so that what they share stays shared.
    here, beside = copy.deepcopy(known[:2])
    client.here, client.beside, client.ledgers = here, beside, [here, beside]
    client.random.setstate(known[2])


def every_call(site, seed, options):
    """By hand at every call; in CI at every so many, beginning at another one each time."""
    with site.step("killed at a system call of a push, tag move, rollback, deletion or collection, and of the start"):
        crash, known = prepare(site, seed)
        began = time.monotonic()
        counts = {call: count_calls(site, crash, known, call) for call in calls.CHANGING}
        # A run that is killed is shorter, but it is started and looked into once more.
        run_seconds = (time.monotonic() - began) / len(counts)
        step = {None: round(sum(counts.values()) * run_seconds / CALLS_SECONDS), "all": 1}.get(options.calls, options.calls)
        chance, figures = random.Random(seed), []
        for call, count in counts.items():
            # Also of what is rare.
            apart = max(1, min(step, count // 5))
            killed = kill_at_each(crash, known, call, range(1 + chance.randrange(apart), calls.CALLS_MAX, apart))
            figures.append(f"{killed} at {call}")
        site.say("     kills: " + ", ".join(figures))


def kill_at_each(crash, known, call, numbers):
    """Kill it at the `call` of each number, until all is done without a kill; returns how often it was killed."""
    for killed, number in enumerate(numbers):
        begin_again(crash, known)
        if not run_until_killed(crash, calls.killing(call, number)):
            return killed
        try:
            crash.start().check(everything=True)
        except Failure as failure:
            raise Failure(f"killed at {call} {number}: {failure}") from failure
        finally:
            crash.sealock.kill()
    raise Failure(f"{calls.CALLS_MAX} times {call}, and no end")


def count_calls(site, crash, known, call):
    """How many of them the busiest thread makes."""
    begin_again(crash, known)
    file = site.path("calls.trace")
    run_until_killed(crash, (*calls.TIDY, f"--output={file}", f"--trace={call}"))
    counts = {}
    with open(file) as lines:
        for line in lines:
            if re.match(rf"\d+ +{call}\(", line):
                thread = line.split()[0]
                counts[thread] = counts.get(thread, 0) + 1
    return max(counts.values(), default=0)


def run_until_killed(crash, under):
    """Whether it was killed; if not, all was played."""
    try:
        crash.start(under)
    except Died:
        return True
    try:
        played = play(crash.clients[0])
        if not played:
            crash.sealock.process.popen.wait(harness.READY_SECONDS)
        return not played
    finally:
        crash.sealock.kill()


# -- in which order

def order(site, seed, _):
    staged, blob, wal = r"sync staging/.*", r"rename staging/\S+ to blobs/sha256/\w+", r"sync catalog\.sqlite-wal"
    placed = [staged, blob, r"sync blobs/sha256"]
    crash = Crash(site, "order", seed, grace="0s")
    file = site.path("order.trace")
    crash.start(calls.watching(file))
    client = crash.clients[0]
    client.connect()
    ledger, image = client.here, Image(f"order {seed}", [300, 9_000])
    ledger.images[image.digest] = image
    first, second = image.blobs.items()
    base = f"/v2/{ledger.repository}"

    def asked(what, patterns, method, path, body=None, status=201, **headers):
        asked_for.append((what, patterns))
        reply = client.wire.ask(method, base + path, body, **headers)
        expect_equal(reply.status, status, what)
        return reply

    asked_for = []
    asked("a blob pushed in one go", [*placed, wal], "POST", f"/blobs/uploads/?digest={first[0]}", first[1])
    location = asked("an upload begun", [wal], "POST", "/blobs/uploads/", status=202).headers["location"].removeprefix(base)
    asked("a piece of an upload", [r"sync staging/upload-.*", r"sync staging", wal], "PATCH", location, second[1][:4_000], 202)
    asked("another piece", [r"sync staging/upload-.*", wal], "PATCH", location, second[1][4_000:], 202)
    asked("an upload closed", [*placed, wal], "PUT", f"{location}?digest={second[0]}")
    asked("a manifest pushed by tag", [*placed, wal], "PUT", "/manifests/1", image.bytes, Content_Type=MANIFEST_TYPE)
    asked("a tag moved", [wal], "PUT", "/manifests/2", image.bytes, Content_Type=MANIFEST_TYPE)
    asked("a tag deleted", [wal], "DELETE", "/manifests/2", status=202)
    asked("a manifest deleted", [wal], "DELETE", f"/manifests/{image.digest}", status=202)
    asked("a blob deleted", [wal], "DELETE", f"/blobs/{first[0]}", status=202)
    asked_for.append(("a collection", [wal, r"rename blobs/sha256/\w+ to trash/.*", r"sync trash", r"sync blobs/sha256"]))
    crash.sealock.run("gc")
    client.wire.close()
    crash.sealock.kill()
    trace = calls.Trace(file, crash.sealock.data)
    answers = trace.between_answers()
    expect_equal(len(answers), len(asked_for), "answers")
    for (what, patterns), events in zip(asked_for, answers):
        with site.step(f"in this order: {what}, then the answer"):
            calls.expect_order(events, patterns, what)
    with site.step("in this order: each folder made, its parent synced, then the first answer"):
        begun = trace.events[:trace.events.index("listening")]
        made = [event.removeprefix("mkdir ") for event in begun if event.startswith("mkdir ")]
        expect_in("blobs/sha256", made, "folders made")
        for folder in made:
            parent = os.path.normpath(os.path.join(folder, ".."))
            calls.expect_order(begun, [f"mkdir {re.escape(folder)}", f"sync {re.escape(parent)}"], folder)


# -- the power is cut

def power_cuts(site, seed, options):
    lacks = disks.missing()
    for kind in disks.MAKERS:
        with site.step(f"power cut on {kind} under load, collections included: what was acknowledged holds"):
            expect(not lacks, f"cannot cut the power here; missing: {', '.join(lacks)}")
            chance, disk = random.Random(seed), disks.LoopDisk(site, kind)
            crash = Crash(site, f"power-{kind}", seed, data=os.path.join(disk.point, "data"))
            cuts = 0
            for number in rounds_of(options, POWER_SECONDS):
                crash.start().check(everything=number % 10 == 0)
                load = crash.load()
                time.sleep(chance.uniform(0.1, 1.2))
                # Between the cut and the kill requests may fail; what is acknowledged then must be there too.
                for client in crash.clients:
                    client.excused = range(500, 600)
                disk.cut()
                crash.sealock.kill()
                cuts += 1
                try:
                    crash.join(load)
                finally:
                    disk.power_on()
                for client in crash.clients:
                    client.excused = ()
            crash.start().check(everything=True)
            crash.sealock.stop()
            site.say(f"     {cuts} cuts, {crash.acknowledged()} acknowledged, {crash.collections} collections: nothing lost")


# -- an fsync fails

def failed_syncs(site, seed, options):
    """Of what is synced one fails: nothing is acknowledged on top of it, pulls go on, and all that was kept is there."""
    crash, known = prepare(site, seed)
    client = crash.clients[0]
    with site.step("an fsync fails: the store takes nothing more in and says so, and goes on serving"):
        outcomes = {"no start": 0, "read-only": 0, "checkpoint": 0}
        for call in ("fdatasync", "fsync"):
            last = count_calls(site, crash, known, call)
            step = 1 if options.calls == "all" else max(1, last // 8)
            for number in range(1, last + 1, step):
                outcome = fail_sync(site, crash, known, call, number)
                if outcome:
                    outcomes[outcome] += 1
        site.say("     " + ", ".join(f"{count} times {outcome}" for outcome, count in outcomes.items()))
        expect(outcomes["read-only"] > 3, "hardly any fsync failed")
    client.excused = ()


def fail_sync(site, crash, known, call, number):
    """How it ended where the `number`th `call` failed; None if there were not so many."""
    begin_again(crash, known)
    client, file = crash.clients[0], site.path("errors.trace")
    client.excused = range(500, 600)
    try:
        crash.start(calls.failing(call, number, file))
    except Died:
        crash.start().check(everything=True)
        crash.sealock.kill()
        return "no start"
    try:
        play(client)
        failed = calls.injected(file)
        if failed and not failed.endswith("/catalog.sqlite"):
            expect_read_only(crash, client)
            outcome = "read-only"
        else:
            # A checkpoint that fails is made again: the log still has everything.
            outcome = "checkpoint" if failed else None
    finally:
        crash.sealock.kill()
    client.excused = ()
    try:
        crash.start().check(everything=True)
    except Failure as failure:
        raise Failure(f"{call} {number} of {failed} failed: {failure}") from failure
    finally:
        crash.sealock.kill()
    return outcome


def expect_read_only(crash, client):
    """It takes nothing in, says so, and serves what is kept, to the last blob."""
    wire = Wire(crash.sealock.url)
    base = f"/v2/{client.here.repository}"
    reply = wire.ask("POST", f"{base}/blobs/uploads/")
    expect_equal(reply.status, 503, "status of a push to a store that lost a write")
    expect_equal(reply.code(), "UNAVAILABLE", "its code")
    expect_in("read-only", json.loads(reply.body)["errors"][0]["message"], "its message")
    expect_equal(wire.ask("DELETE", f"{base}/manifests/1").status, 503, "status of a deletion from it")
    expect(json.loads(crash.sealock.run("status", "--json"))["read_only"], "`sealock status` does not say it")
    for tag in client.here.tags:
        client.here.check_tag(wire, tag)
    expect_equal(wire.ask("GET", f"{base}/tags/list").status, 200, "status of tags/list")
    wire.close()


# -- the disk is full

def play_full(crash, client):
    """All that a client does, and collections: each is done, or refused because the disk is full."""
    client.connect()
    for _ in range(3):
        for step in (client.push_image, client.move_tag, client.copy_image, client.delete_tag, client.delete_manifest,
                     client.leave_upload, client.delete_blob):
            step()
        done = crash.site.try_run(BINARY, "-c", crash.sealock.settings, "gc")
        expect(done.returncode == 0 or "the disk is full" in done.stderr, f"sealock gc: {done.stderr}")
    client.wire.close()


def full_disk(site, seed, _):
    disk = disks.SmallDisk(site, "small", 200)
    crash = Crash(site, "full", seed, grace="0s", data=os.path.join(disk.point, "data"))
    crash.clients = crash.clients[:1]
    client = crash.clients[0]
    crash.start()
    with site.step("the disk is full in the middle of everything: 507, nothing half done, and on it goes with room"):
        refused = 0
        for leave in (0, 0, 4_096, 10_000, 40_000, 100_000, 300_000, RESERVE + 2_000_000):
            client.excused = ()
            client.connect()
            for tag in ("1", "1", "1.0", "next", "2"):
                client.push_image(tag, [100, 1_000])
            client.wire.close()
            disk.fill(leave)
            client.excused = (507,)
            before = client.acknowledged()
            client.connect()
            large = bytes(3_000_000)
            reply = client.wire.ask("POST", f"/v2/{client.here.repository}/blobs/uploads/?digest={digest_of(large)}", large)
            expect_equal(reply.status, 507, "status of a push to a full disk")
            expect_equal(reply.code(), "UNAVAILABLE", "its code")
            client.wire.close()
            play_full(crash, client)
            refused += client.refused
            disk.make_room()
            client.excused = ()
            crash.check(everything=True)
            site.say(f"     {leave} bytes left: {client.acknowledged() - before} acknowledged, {client.refused} refused")
            client.refused = 0
        expect(refused > 5, "hardly anything was refused")
    with site.step("started with a full disk: what is kept is served, and pushes are taken once there is room"):
        client.connect()
        client.push_image("2", [100, 1_000])
        disk.fill()
        crash.sealock.kill()
        crash.start()
        client.connect()
        expect_equal(client.wire.ask("GET", f"/v2/{client.here.repository}/manifests/2").status, 200, "status of a pull")
        client.wire.close()
        disk.make_room()
        client.connect()
        client.push_image("1", [100, 1_000])
        client.wire.close()
        crash.check(everything=True)
        crash.sealock.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="kills, and power cuts of each file system")
    parser.add_argument("--calls", type=lambda text: text if text == "all" else int(text), help="`all`, or every so many")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--only", choices=("kill", "calls", "order", "power", "errors", "full"))
    options = parser.parse_args()
    with harness.Site("crash") as site:
        story(site, options)
    site.say(f"{site.passed} passed, {site.failed} failed")
    return 1 if site.failed else 0


if __name__ == "__main__":
    sys.exit(main())
