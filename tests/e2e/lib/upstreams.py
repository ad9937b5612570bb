"""The far side: Debian's docker-registry, plain or with TLS and a password, and the fronts that make it look real."""

import json
import os
import socket
import urllib.request

from lib.harness import FIXTURES, HERE, wait_until

SEED = os.path.join(FIXTURES, "seed-upstream")
USER, PASSWORD = "site-reader", "correct-horse-battery"

# Each upstream of the presets, and the repositories that it alone has.
ORIGINS = {"gitlab": "security-products/", "ghcr": "aquasecurity/", "mirror-gcr": "aquasec/", "hub": "library/,acme/"}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Registry:
    """One docker-registry with a folder and a port of its own."""

    def __init__(self, site, name="registry", tls=None):
        self.site, self.name, self.tls = site, name, tls
        self.port = free_port()
        self.process = None

    def start(self):
        storage = self.site.make_folder(self.name)
        settings = {"version": 0.1, "log": {"level": "warn", "accesslog": {"disabled": True}},
                    "storage": {"filesystem": {"rootdirectory": storage}, "delete": {"enabled": True}},
                    "http": {"addr": f"127.0.0.1:{self.port}"}}
        if self.tls:
            settings["http"]["tls"] = {"certificate": self.tls.certificate, "key": self.tls.key}
            settings["auth"] = {"htpasswd": {"realm": "e2e", "path": self.password_file()}}
        # JSON is YAML too.
        path = self.site.write(f"{self.name}.yml", json.dumps(settings))
        self.process = self.site.start(self.name, ["docker-registry", "serve", path], OTEL_TRACES_EXPORTER="none")
        wait_until(self.accepts, f"{self.name} to listen")
        return self

    def accepts(self):
        self.process.find("$")
        # By a program of the site's, which may live in a network of its own.
        return self.site.try_run("curl", "--silent", "--insecure", "--max-time", "5", "--output", "/dev/null", self.url).returncode == 0

    def password_file(self):
        # docker-registry knows bcrypt (-B) only.
        return self.site.write("htpasswd", self.site.run("htpasswd", "-Bbn", USER, PASSWORD))

    def stop(self):
        self.process.stop()

    @property
    def url(self):
        return f"{'https' if self.tls else 'http'}://{self.host}"

    @property
    def host(self):
        return f"127.0.0.1:{self.port}"

    def seed(self, *options):
        """Fill it with the fixtures; see tests/fixtures/README.md for the options."""
        access = ["--user", f"{USER}:{PASSWORD}", "--cafile", self.tls.ca] if self.tls else []
        self.site.run(SEED, self.url, "--quiet", *access, *options)


class Front:
    """tests/e2e/front before a registry: bearer tokens, redirected blobs, faults on order, a log of requests."""

    def __init__(self, site, registry, name="front", only=""):
        self.site, self.registry, self.name, self.only = site, registry, name, only
        self.url = None
        self.process = None

    def start(self):
        again = ["--port", self.url.rpartition(":")[2]] if self.url else []
        self.process = self.site.start(self.name, [os.path.join(HERE, "front"), "--registry", self.registry.url,
                                                   "--only", self.only, *again])
        self.url = self.process.wait_for(r"listening on (\S+)")[1]
        return self

    def stop(self):
        self.process.stop()

    def requests(self):
        """Every request it has seen, oldest first."""
        with open(self.process.log) as log:
            return [json.loads(line) for line in log if line.startswith("{")]

    def fault(self, kind, **options):
        query = "&".join(f"{name}={value}" for name, value in {"kind": kind, **options}.items())
        self.control(f"fault?{query}")

    def reset(self):
        self.control("reset")

    def control(self, what):
        request = urllib.request.Request(f"{self.url}/__control/{what}", method="POST")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        opener.open(request, timeout=10).close()


class Upstreams:
    """One plain registry with everything, behind one front for each upstream of the presets."""

    def __init__(self, site):
        self.registry = Registry(site)
        self.fronts = {name: Front(site, self.registry, f"front-{name}", only) for name, only in ORIGINS.items()}

    def start(self):
        self.registry.start()
        for front in self.fronts.values():
            front.start()
        return self

    def stop(self):
        for front in self.fronts.values():
            front.stop()
        self.registry.stop()

    def requests(self):
        """Every request at any of the fronts."""
        return [request for front in self.fronts.values() for request in front.requests()]

    def settings(self):
        """The presets' upstreams, but with these fronts as their endpoints."""
        return "".join(f'[upstream.{name}]\nendpoints = ["{front.url}"]\n' for name, front in self.fronts.items())


class Certificates:
    """An authority of our own and a certificate from it for 127.0.0.1, or for `names`, made by openssl."""

    def __init__(self, site, folder="certs", names=()):
        self.folder = site.make_folder(folder)
        self.ca, self.certificate, self.key = (site.path(folder, name) for name in ("ca.crt", "server.crt", "server.key"))
        ca_key, request = site.path(folder, "ca.key"), site.path(folder, "server.csr")
        names = ",".join(f"DNS:{name}" for name in names) or "IP:127.0.0.1,DNS:localhost"
        extensions = site.write(f"{folder}/extensions", f"subjectAltName={names}\nbasicConstraints=CA:false\n")
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        site.run("openssl", "req", "-x509", *curve, "-days", "2", "-subj", "/CN=sealock e2e authority",
                 "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", ca_key, "-out", self.ca)
        site.run("openssl", "req", *curve, "-subj", "/CN=127.0.0.1", "-keyout", self.key, "-out", request)
        site.run("openssl", "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", ca_key, "-CAcreateserial",
                 "-days", "2", "-extfile", extensions, "-out", self.certificate)
