"""Nothing leaves: the offline pulls again, where every packet that tries to get out is counted."""

from lib.clients import Clients, Skopeo, Trivy, every_pull
from lib.harness import expect_equal, expect_in, wait_until
from lib.sealock import Sealock
from lib.upstreams import Upstreams
from lib.witness import Namespace

# Inside, the presets keep their real endpoints, so that a leak would be a name look-up. And an address, so that it
# would be a connection: TEST-NET-2 (RFC 5737), which is nobody's.
ADDRESS = "198.51.100.7"
INSIDE = f"""
[upstream.nobody]
host = "{ADDRESS}"
endpoints = ["https://{ADDRESS}"]
"""


def fill(site, sealock):
    """Pull what the clients will ask for; skopeo in the place of each, as it takes every platform."""
    skopeo, trivy = Skopeo(site), Trivy(site)
    for _, name, _ in every_pull(Clients(site, sealock), sealock.host):
        skopeo.pull(name if name.startswith(sealock.host) else f"{sealock.host}/{name}")
    trivy.verify(sealock.host)


def story(site):
    upstreams = Upstreams(site).start()
    upstreams.registry.seed()
    sealock = Sealock(site, upstreams.settings(), "filling").start()
    sealock.open("filling")
    with site.step("outside, gate open: everything is filled"):
        fill(site, sealock)
    sealock.close()
    sealock.stop()
    upstreams.stop()

    witness = Namespace(site).start()
    sealock = Sealock(site, INSIDE, "inside").start()
    clients = Clients(site, sealock)
    clients.empty()
    for client, name, digest in every_pull(clients, sealock.host):
        with site.step(f"inside, gate closed: {client.name} pulls {name}"):
            expect_in(digest, client.pull(name), "digests")
    with site.step("inside, gate closed: Trivy downloads and scans"):
        clients.trivy.verify(sealock.host)
        expect_in("CVE-2024-5535", clients.trivy.find(sealock.host), "findings")
    with site.step("inside, gate closed: names that are not kept are refused"):
        for name in ("security-products/never", f"{ADDRESS}/some/image", "docker.io/library/never", "trivy-db"):
            reply = sealock.manifest(name, "never")
            expect_equal((reply.status, reply.error()[0]), (404, "MANIFEST_UNKNOWN"), name)
            expect_in("gate is closed", reply.error()[1], "message")
    with site.step("zero packets left"):
        witness.expect_silence()

    for name, what in ((f"{ADDRESS}/some/image", f"> {ADDRESS}.443"), ("security-products/never", ".53:")):
        with site.step(f"and the witnesses work: with the gate open, asking for {name} is seen"):
            counted, captured = witness.counted(), len(witness.captured())
            sealock.open("to be seen")
            asking = site.start("asking", ["curl", "--silent", "--max-time", "60", f"{sealock.url}/v2/{name}/manifests/1"])
            wait_until(lambda: any(what in line for line in witness.captured()[captured:]), f"`{what}` at the sink")
            wait_until(lambda: witness.counted() > counted, "the nft counter to move")
            asking.stop()
            sealock.run("gate", "close")
    with site.step("sealock stops in order"):
        sealock.stop()
