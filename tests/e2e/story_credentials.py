"""An upstream of one's own: TLS from a private authority, and a password that goes nowhere else."""

import base64
import os

from lib.clients import Skopeo
from lib.harness import DIGESTS, expect, expect_equal, expect_in
from lib.rogue import LAWFUL, NAMES, PLACES, Rogue
from lib.sealock import Sealock
from lib.upstreams import PASSWORD, USER, Certificates, Registry

HOST = "registry.corp.example"
SETTINGS = """
[upstream.corp]
host = "{host}"
endpoints = ["{url}"]
ca_file = "{ca}"
username = "{user}"
password_file = "{password_file}"
# Nobody logs in at this sealock; without it, what is had with a password is for nobody.
anonymous = true
"""


def story(site):
    certificates = Certificates(site)
    registry = Registry(site, "registry-tls", certificates).start()
    registry.seed("--only", "security-products/*")
    right = {"host": HOST, "url": registry.url, "ca": certificates.ca, "user": USER,
             "password_file": site.write("password", PASSWORD + "\n")}
    skopeo = Skopeo(site)
    secrets, digest = f"{HOST}/security-products/secrets", DIGESTS["security-products/secrets:6"]

    with site.step("a private authority and a password: the pull succeeds"):
        sealock = Sealock(site, SETTINGS.format(**right), "right").start("--gate", "open")
        expect_in(digest, skopeo.pull(f"{sealock.host}/{secrets}:6"), "digests")
    with site.step("and again with the gate closed and the upstream gone"):
        sealock.close()
        registry.stop()
        expect_in(digest, skopeo.pull(f"{sealock.host}/{secrets}:6"), "digests")
        registry.start()
    sealock.stop()

    with site.step("a wrong password: 403 DENIED that names the upstream, never 401"):
        wrong = SETTINGS.format(**{**right, "password_file": site.write("wrong", "guess")})
        sealock = Sealock(site, wrong, "wrong-password").start("--gate", "open")
        reply = sealock.manifest(f"{HOST}/security-products/semgrep", "5")
        code, message = reply.error()
        expect_equal((reply.status, code), (403, "DENIED"), "reply")
        expect("corp" in message, f"the upstream is not named: {message}")
    sealock.stop()

    with site.step("an authority that is not trusted: 502, and no password is sent"):
        untrusted = "\n".join(line for line in SETTINGS.format(**right).splitlines() if not line.startswith("ca_file"))
        sealock = Sealock(site, untrusted, "untrusted").start("--gate", "open")
        expect_equal(sealock.manifest(f"{HOST}/security-products/semgrep", "5").status, 502, "status")
    sealock.stop()

    with site.step("an upstream that leads to hosts below, above and beside it, to another port or scheme: no password goes there"):
        names = Certificates(site, "rogue", NAMES)
        rogue = Rogue(names)
        settings = SETTINGS.format(**{**right, "host": LAWFUL[1].partition(":")[0], "ca": names.ca,
                                      "url": f"https://{LAWFUL[1]}"}) + '[log]\nlevel = "trace"\n'
        sealock = Sealock(site, settings, "rogue", site.path("rogue-data"))
        variables = [f"{scheme}_proxy={rogue.url}" for scheme in ("http", "https")]
        sealock.start("--gate", "open", under=["env", *variables])
        for number, place in enumerate(PLACES):
            for rogue.redirect, rogue.realm in ((place, None), (None, place)):
                reply = sealock.manifest(f"registry.corp.test/team/app{number}", "1")
                expect(reply.status in (403, 404, 502), f"{place}: {reply.status} {reply.body}")
        sealock.stop()
        rogue.stop()
        astray = [request for request in rogue.seen if request[2] and request[:2] != LAWFUL]
        expect(not astray, f"credentials went astray: {astray}")
        led = {(scheme, host) for scheme, host, _ in rogue.seen}
        expect(len(led) > 3, f"it was led nowhere: {led}")
        expect(any(credentials for *place, credentials in rogue.seen if tuple(place) == LAWFUL), "no password at all")

    with site.step("the password is in no log, no audit line, and nowhere else in the data folder"):
        basic = base64.b64encode(f"{USER}:{PASSWORD}".encode())
        for folder in (site.path("data"), sealock.data, site.path("logs")):
            for root, _, names in os.walk(folder):
                for name in names:
                    if not os.path.isfile(os.path.join(root, name)):
                        continue
                    with open(os.path.join(root, name), "rb") as file:
                        content = file.read()
                    expect(PASSWORD.encode() not in content and basic not in content, f"{root}/{name} has the password")
