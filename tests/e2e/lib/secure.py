"""A sealock that speaks TLS and asks for logins, set up by its own commands: `certs init`, `user add`, `robot add`."""

import json

from lib.sealock import BINARY, Sealock

TLS = """
[tls]
certificate = "{certificate}"
reload_every = "1s"
"""


class SecureSealock(Sealock):
    """What it serves is for 127.0.0.1 and `names`; clients are to trust `ca`, and nothing else vouches for it."""

    def __init__(self, site, settings, name="sealock", names=("localhost",)):
        self.certificates = site.make_folder(f"{name}-certs")
        hosts = [word for host in names for word in ("--host", host)]
        site.run(BINARY, "certs", "init", *hosts, "--ip", "127.0.0.1", "--folder", self.certificates)
        self.ca = f"{self.certificates}/ca.crt"
        # Settings begin with what is in no table; a data folder of its own keeps the users of several apart.
        tls = TLS.format(certificate=f"{self.certificates}/server.crt")
        super().__init__(site, tls + settings, name, site.path(f"{name}-data"))

    def add_user(self, name, password):
        self.run("user", "add", name, typed=password + "\n")

    def add_robot(self, name, repository, verbs, life="1d"):
        """Returns its token."""
        said = self.run("robot", "add", name, "--repository", repository, "--verbs", verbs, "--for", life, "--json")
        return json.loads(said)["token"]

    def get(self, path, *options):
        return super().get(path, "--cacert", self.ca, *options)
