"""Upstreams that break: cut, corrupted, stalled, refusing, gone. Each fault on a front of its own."""

import json

from lib.clients import Skopeo
from lib.harness import DIGESTS, expect, expect_equal, expect_in, wait_until
from lib.sealock import Sealock
from lib.upstreams import Upstreams

# A kept tag is asked for again at once, so that upstream's refusal is noticed.
FRESH = """
[pull]
fresh_for = "1s"
"""


def story(site):
    upstreams = Upstreams(site).start()
    upstreams.registry.seed()
    sealock = Sealock(site, upstreams.settings() + FRESH).start()
    skopeo = Skopeo(site)
    sealock.open("faults")

    def pull(name, digest):
        expect_in(digest, skopeo.pull(f"{sealock.host}/{name}"), "digests")

    with site.step("upstream cuts a blob half-way, twice: the client's pull succeeds"):
        gitlab = upstreams.fronts["gitlab"]
        gitlab.fault("cut", after=1_000_000, times=2)
        pull("security-products/dast:latest", DIGESTS["security-products/dast:latest"])
        seen = gitlab.requests()
        expect_equal(len([r for r in seen if r.get("fault") == "cut"]), 2, "cuts")
        resumed = [r for r in seen if r["face"] == "blobs" and r["range"] and not r["range"].startswith("bytes=0-")]
        expect(resumed, "no blob was resumed by Range")

    with site.step("upstream stalls in the middle of a blob: the pull waits, and succeeds"):
        upstreams.fronts["gitlab"].fault("stall", after=100, seconds=3)
        pull("security-products/semgrep:5", DIGESTS["security-products/semgrep:5"])

    with site.step("upstream sends a wrong byte, always: no client ever gets the whole blob"):
        ghcr = upstreams.fronts["ghcr"]
        ghcr.fault("corrupt", after=100, times=1000)
        layer = json.loads(sealock.manifest("aquasecurity/trivy-java-db", "1").body)["layers"][0]["digest"]
        # curl checks nothing but the length.
        site.run_fails("curl", "--silent", "--show-error", "--fail", "--output", site.path("blob"),
                       f"{sealock.url}/v2/aquasecurity/trivy-java-db/blobs/{layer}")
        expect([r for r in ghcr.requests() if r.get("fault") == "corrupt"], "the fault did not happen")
    with site.step("and once upstream sends the right bytes, the pull succeeds"):
        ghcr.reset()
        name = "aquasecurity/trivy-java-db:1"
        wait_until(lambda: pull(name, DIGESTS[name]) or True, f"a pull of {name}")

    with site.step("upstream answers 503: what is kept is served, and says that it is stale"):
        hub = upstreams.fronts["hub"]
        pull("docker.io/library/alpine:3", DIGESTS["library/alpine:3"])
        hub.fault("status", status=503, times=1000)
        stale = wait_until(lambda: sealock.stale_manifest("docker.io/library/alpine", "3"), "a reply with a Warning")
        expect_equal(stale.headers["docker-content-digest"], DIGESTS["library/alpine:3"], "digest")
        expect("age" in stale.headers, f"no Age in {stale.headers}")
        pull("docker.io/library/alpine:3", DIGESTS["library/alpine:3"])

    with site.step("upstream answers 429 for what is not kept: 429 with its Retry-After"):
        upstreams.fronts["mirror-gcr"].fault("status", status=429, retry=7, times=1000)
        reply = sealock.manifest("aquasec/trivy-db", "2")
        expect_equal((reply.status, reply.error()[0]), (429, "TOOMANYREQUESTS"), "reply")
        expect("retry-after" in reply.headers, f"no Retry-After in {reply.headers}")

    with site.step("upstream is gone while the gate is open: kept content is served, the rest is 502"):
        upstreams.stop()
        pull("security-products/dast:latest", DIGESTS["security-products/dast:latest"])
        reply = sealock.manifest("security-products/secrets", "6")
        expect_equal(reply.status, 502, "status")
    with site.step("sealock stops in order"):
        sealock.stop()
