"""The main job: pulled while the gate is open, pulled again while it is shut and the upstreams are gone."""

import json
import os
from collections import Counter

from lib.clients import Clients, artifact, every_pull
from lib.harness import DIGESTS, FIXTURES, expect, expect_equal, expect_in, wait_until
from lib.sealock import Sealock
from lib.upstreams import Upstreams

# A moved tag must be seen at once, not after 15 minutes.
FRESH = """
[pull]
fresh_for = "1s"
"""

NEVER = "security-products/never-pulled"


def herd(site, clients, sealock, upstreams):
    """Many clients, one download."""
    with site.step("gate open: eight Trivy at once download the database, upstream sends it once"):
        clients.trivy.verify(sealock.host, "--only", "db", "--jobs", "8")
        layer = artifact("trivy-db/db.tar.gz")
        sent = [r["bytes"] for r in upstreams.fronts["ghcr"].requests() if r["face"] == "blobs" and layer in r["path"]]
        expect_equal(sum(sent), os.path.getsize(os.path.join(FIXTURES, "trivy-db", "db.tar.gz")), "bytes sent by upstream")


def operator(site, sealock):
    """The commands that only look."""
    with site.step("`config check`, `healthcheck`, `status --json` and `ls --json` answer"):
        sealock.run("config", "check")
        sealock.run("healthcheck")
        json.loads(sealock.run("status", "--json"))
        listed = json.loads(sealock.run("ls", "--json"))
        expect_in("security-products/semgrep", json.dumps(listed), "`sealock ls`")


def audited(site, sealock, upstreams):
    """What went out, by the audit file and by those who were asked."""
    def differences():
        told = Counter((e["method"], e["path"], e["status"]) for e in sealock.audit() if e["event"] == "request")
        seen = Counter((r["method"], r["path"].partition("?")[0], r["status"]) for r in upstreams.requests())
        return (told - seen) + (seen - told)

    with site.step("the audit file tells who opened the gate and why, and every request that the upstreams saw"):
        expect("first filling" in [e["why"] for e in sealock.audit() if e["event"] == "gate"], "the opening is not told")
        wait_until(lambda: expect_equal(differences(), Counter(), "requests on one side only") or True, "the audit file")


def pull_all(site, clients, sealock, when):
    for client, name, digest in every_pull(clients, sealock.host):
        with site.step(f"{when}: {client.name} pulls {name}"):
            expect_in(digest, client.pull(name), "digests")


def scan_all(site, clients, sealock, when):
    with site.step(f"{when}: Trivy downloads its databases and checks, and scans files and images (verify-trivy)"):
        clients.trivy.verify(sealock.host)
    with site.step(f"{when}: Trivy finds CVE-2024-5535 with the bare name trivy-db"):
        expect_in("CVE-2024-5535", clients.trivy.find(sealock.host), "findings")
    with site.step(f"{when}: Trivy reports the checks of the bare name trivy-checks"):
        expect_equal(clients.trivy.checks(sealock.host), {"FIX001", "FIX002"}, "check ids")


def misses(site, clients, sealock):
    """A name that nobody ever pulled: the operator is told why, wherever he looks."""
    for client in (clients.docker_classic, clients.skopeo, clients.trivy):
        with site.step(f"gate closed: {client.name} shows why {NEVER} cannot be had"):
            expect_in("gate is closed", client.pull_fails(f"{sealock.host}/{NEVER}:1"), "what it said")
    with site.step("gate closed: the reply is a 404 MANIFEST_UNKNOWN that names the gate"):
        reply = sealock.manifest(NEVER, "1")
        code, message = reply.error()
        expect_equal((reply.status, code), (404, "MANIFEST_UNKNOWN"), "reply")
        expect_in("gate is closed", message, "message")
    with site.step("gate closed: what could not be had is listed as wanted"):
        expect_in(NEVER, sealock.wanted(), "`sealock status --wanted`")


def moved_tag(site, clients, sealock, upstreams):
    """The database moves on upstream; the gate opens for it and closes again."""
    here, there = (f"{host}/aquasecurity/trivy-db:2" for host in (sealock.host, upstreams.registry.host))
    before = [DIGESTS["aquasecurity/trivy-db:2"]]
    with site.step("upstream moves trivy-db:2, the gate opens, the tag follows"):
        expect_equal(clients.skopeo.pull(here), before, "digest before")
        upstreams.start()
        upstreams.registry.seed("--only", "aquasecurity/trivy-db", "--db", "next")
        moved = clients.skopeo.pull(there)
        expect(moved != before, "upstream's tag did not move")
        sealock.open("the database moved")
        wait_until(lambda: clients.skopeo.pull(here) == moved, "the new digest")
        clients.trivy.verify(sealock.host, "--only", "db,rootfs", "--expect", "CVE-2024-6119")
    with site.step("the gate closes again, the upstreams stop: the new database stays"):
        sealock.close()
        upstreams.stop()
        expect_equal(clients.skopeo.pull(here), moved, "digest")
        clients.trivy.verify(sealock.host, "--only", "db,rootfs", "--expect", "CVE-2024-6119")


def story(site):
    upstreams = Upstreams(site).start()
    upstreams.registry.seed()
    sealock = Sealock(site, upstreams.settings() + FRESH).start()
    clients = Clients(site, sealock)
    clients.empty()

    with site.step("the gate of a new site is closed: nothing is asked upstream"):
        expect_equal(sealock.manifest("security-products/semgrep", "5").status, 404, "status")
        expect_equal(upstreams.requests(), [], "requests at the fronts")

    sealock.open("first filling")
    herd(site, clients, sealock, upstreams)
    pull_all(site, clients, sealock, "gate open")
    scan_all(site, clients, sealock, "gate open")
    with site.step("no credential followed a redirect to the blob host"):
        expect_equal([r["path"] for r in upstreams.requests() if r["face"] == "blobs" and r["authorization"]], [], "requests")

    with site.step("the gate closes"):
        sealock.close()
    audited(site, sealock, upstreams)
    with site.step("the upstreams are stopped, the clients are emptied"):
        upstreams.stop()
        clients.empty()
    pull_all(site, clients, sealock, "gate closed")
    for docker in (clients.docker_classic, clients.docker_current):
        with site.step(f"gate closed: {docker.name} runs what it pulled"):
            expect_in("semgrep fixture analyzer", docker.run(f"{sealock.host}/security-products/semgrep:5"), "output")
    scan_all(site, clients, sealock, "gate closed")
    with site.step("gate closed: a reply to ?ns= says which upstream's content it is"):
        reply = sealock.manifest("library/alpine", "3?ns=docker.io")
        expect_equal((reply.status, reply.headers.get("oci-namespace")), (200, "docker.io"), "reply")
    misses(site, clients, sealock)
    operator(site, sealock)

    moved_tag(site, clients, sealock, upstreams)
    with site.step("sealock stops in order"):
        sealock.stop()
