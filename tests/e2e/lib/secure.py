"""A sealock that speaks TLS and asks for logins, and a machine on which clients find what it wrote for them."""

import json
import os

from lib.harness import expect_equal
from lib.sealock import BINARY, Sealock
from lib.witness import INSIDE, Namespace

TLS = """
[tls]
certificate = "{certificate}"
reload_every = "1s"
"""


class SecureSealock(Sealock):
    """Set up by its own commands. Its certificate is for 127.0.0.1 and `names`, and nobody but its authority vouches for it."""

    def __init__(self, site, settings, name="sealock", names=("localhost",)):
        self.certificates = site.make_folder(f"{name}-certs")
        hosts = [word for host in names for word in ("--host", host)]
        site.run(BINARY, "certs", "init", *hosts, "--ip", "127.0.0.1", "--folder", self.certificates)
        self.ca = os.path.join(self.certificates, "ca.crt")
        self.certificate = os.path.join(self.certificates, "server.crt")
        # A data folder of its own keeps the users of several apart.
        super().__init__(site, TLS.format(certificate=self.certificate) + settings, name, site.path(f"{name}-data"))

    def add_user(self, name, password):
        self.run("user", "add", name, typed=password + "\n")

    def add_robot(self, name, repository, verbs, life="1d"):
        """Its token, and when that ends."""
        said = self.run("robot", "add", name, "--repository", repository, "--verbs", verbs, "--for", life, "--json")
        return (told := json.loads(said))["token"], told["expires_at"]

    def get(self, path, *options):
        return super().get(path, "--cacert", self.ca, *options)

    def shown(self):
        """The serial number of the certificate that a new connection gets."""
        address = self.host
        said = self.site.run("openssl", "s_client", "-connect", address, "-servername", address.partition(":")[0])
        return self.site.run("openssl", "x509", "-noout", "-serial", typed=said).strip()


class Machine:
    """Where clients live: a network namespace from which nothing gets out, and an /etc in which lies, above what is
    there anyway, what `sealock client-config` wrote below `root`. `names` lead to `ADDRESS`, which is no loopback address: docker would not
    look at the certificate of one."""

    ADDRESS = INSIDE

    def __init__(self, site, names):
        self.site, self.names, self.witness = site, names, Namespace(site)
        self.root = site.make_folder("machine")

    def start(self):
        """Let every later command of the site run inside. What is written below the root later on is not seen."""
        site = self.site
        site.write("machine/etc/hosts", f"127.0.0.1 localhost\n{self.ADDRESS} {' '.join(self.names)}\n")
        self.witness.start()
        site.write("machine/etc/resolv.conf", site.run("cat", "/etc/resolv.conf"))
        layers = f"lowerdir={self.root}/etc:/etc,upperdir={site.make_folder('etc-changes')},workdir={site.make_folder('etc-work')}"
        # Each program sees what others mount: one mount namespace for all, which this process keeps.
        mount = f"mount -t overlay machine -o {layers} /etc && echo mounted && exec tail -f /dev/null"
        keeper = site.start("machine", ["sh", "-c", mount])
        keeper.wait_for("mounted")
        # What is cleaned up is cleaned up from outside: by then nobody keeps the inside.
        site.cleanups.append(lambda: setattr(site, "inside", []))
        site.inside = ["nsenter", f"--target={keeper.popen.pid}", "--net", "--mount", f"--wdns={site.folder}"]
        expect_equal(site.run("cat", "/etc/hosts").split()[-1], self.names[-1], "the hosts file inside")
        return self
