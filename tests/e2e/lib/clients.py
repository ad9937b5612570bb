"""The real clients. Each can `pull` a name, which returns the digests it then knows it by, and can be made `empty`."""

import json
import os
import re

from lib.harness import DIGESTS, FIXTURES, TOOLS, Failure, expect, expect_equal, sha256_of

BIN = os.path.join(TOOLS, "bin")
PYTHON = os.path.join(TOOLS, "python", "bin", "python")
TRIVY = os.path.join(BIN, "trivy")


def search_path(site, program):
    """A daemon finds its helpers, the shim above all, beside itself first."""
    return f"{os.path.dirname(program)}:{site.environment['PATH']}"


class Skopeo:
    """Debian's skopeo. It copies every platform of an index, and the manifest's bytes are hashed here."""

    name = "skopeo"

    def __init__(self, site):
        self.site = site

    def empty(self):
        """Nothing to do: every copy goes to a new folder."""

    def pull(self, reference):
        folder = self.site.empty_folder("skopeo")
        self.site.run(*self.command(reference, folder))
        return [sha256_of(os.path.join(folder, "manifest.json"))]

    def pull_fails(self, reference):
        return self.site.run_fails(*self.command(reference, self.site.empty_folder("skopeo")))

    @staticmethod
    def command(reference, folder):
        return "skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{reference}", f"dir:{folder}"


class Podman:
    """Debian's podman with storage of its own."""

    name = "podman"

    def __init__(self, site):
        self.site = site

    def empty(self):
        self.site.try_run(*self.command("rmi", "--all", "--force"))
        self.site.empty_folder("podman")

    def command(self, *arguments):
        folders = {option: self.site.make_folder("podman", option) for option in ("root", "runroot", "tmpdir")}
        options = [f"--{option}={folder}" for option, folder in folders.items()]
        return ["podman", *options, "--storage-driver=vfs", "--events-backend=none", *arguments]

    def pull(self, reference):
        self.site.run(*self.command("pull", "--quiet", "--tls-verify=false", reference))
        listed = self.site.run(*self.command("image", "inspect", "--format", "{{json .RepoDigests}}", reference))
        # It lists the digest of the index, if there is one, beside that of the platform's manifest.
        return [name.rpartition("@")[2] for name in json.loads(listed)]


class Containerd:
    """A containerd with folders and a socket of its own; both docker daemons need one, and `ctr` is its client."""

    def __init__(self, site, name, binary):
        self.site, self.name, self.binary = site, name, binary
        self.socket = site.path(name + ".sock")
        self.process = None

    def start(self):
        # No kubelet interface, and nothing in folders that others use.
        off = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime",
               "io.containerd.nri.v1.nri", "io.containerd.internal.v1.opt", "io.containerd.tracing.processor.v1.otlp"]
        settings = self.site.write(f"{self.name}.toml", "version = 2\n" + f"disabled_plugins = {json.dumps(off)}\n")
        self.process = self.site.start(self.name, [self.binary, "--config", settings, "--address", self.socket,
                                                   "--root", self.site.make_folder(self.name, "root"),
                                                   "--state", self.site.make_folder(self.name, "state")],
                                       PATH=search_path(self.site, self.binary))
        self.process.wait_for("containerd successfully booted")

    def stop(self):
        if self.process:
            self.process.stop()

    def empty(self):
        self.stop()
        self.site.empty_folder(self.name)
        self.start()


class Ctr:
    """containerd by itself. `hosts` are the registries whose names lead to sealock; that adds `?ns=`."""

    name = "ctr"

    def __init__(self, site, containerd, sealock_url, hosts):
        self.site, self.containerd = site, containerd
        for host in hosts:
            site.write(f"hosts/{host}/hosts.toml", f'server = "{sealock_url}"\n\n[host."{sealock_url}"]\n'
                                                   '  capabilities = ["pull", "resolve"]\n')

    def empty(self):
        self.containerd.empty()

    def command(self, *arguments):
        return [os.path.join(BIN, "ctr"), "--address", self.containerd.socket, "--namespace", "e2e", *arguments]

    def pull(self, reference):
        self.site.run(*self.command("images", "pull", "--hosts-dir", self.site.path("hosts"), reference))
        for line in self.site.run(*self.command("images", "ls")).splitlines():
            if line.startswith(reference + " "):
                return re.findall(r"sha256:[0-9a-f]{64}", line)
        raise Failure(f"`ctr images ls` does not list {reference}")


class Docker:
    """A docker daemon with its own containerd, folders and socket, and no network but the host's."""

    def __init__(self, site, name, dockerd, containerd, *options):
        self.site, self.name, self.dockerd, self.containerd, self.options = site, name, dockerd, containerd, options
        self.socket = site.path(name + ".sock")
        self.process = None

    def start(self):
        """Start the daemon; its containerd is started by whoever owns it."""
        site = self.site
        self.process = site.start(
            self.name, [self.dockerd, "--config-file", site.write(f"{self.name}.json", "{}"),
                        "--host", f"unix://{self.socket}", "--containerd", self.containerd.socket,
                        "--data-root", site.make_folder(self.name, "root"), "--exec-root", site.make_folder(self.name, "exec"),
                        "--pidfile", site.path(self.name, "pid"), "--bridge", "none", "--iptables=false",
                        "--ip-forward=false", "--ip-masq=false", *self.options],
            PATH=search_path(site, self.dockerd))
        self.process.wait_for("API listen on")

    def empty(self):
        if self.process:
            self.process.stop()
        self.containerd.empty()
        self.site.empty_folder(self.name)
        self.start()
        expect_equal(self.site.run(*self.command("images", "--quiet")), "", f"images in an emptied {self.name}")

    def command(self, *arguments):
        return ["docker", "--host", f"unix://{self.socket}", *arguments]

    def pull(self, reference):
        said = self.site.run(*self.command("pull", reference))
        digest = re.search(r"(?m)^Digest: (sha256:[0-9a-f]{64})$", said)
        expect(digest, f"docker pull said no digest:\n{said}")
        return [digest[1]]

    def pull_fails(self, reference):
        return self.site.run_fails(*self.command("pull", reference))

    def run(self, reference):
        """Run an image that is here, without a network, and return what it printed."""
        return self.site.run(*self.command("run", "--rm", "--network=none", reference))


def docker_classic(site):
    """Debian's docker.io: 20.10, with its classic image store."""
    return Docker(site, "docker-20.10", "/usr/sbin/dockerd", Containerd(site, "containerd-1.6", "/usr/bin/containerd"),
                  "--storage-driver=vfs")


def docker_current(site):
    """The current line, with the containerd image store."""
    # Debian's runc knows no time namespaces.
    return Docker(site, "docker-29", os.path.join(BIN, "dockerd"), Containerd(site, "containerd-2.4", os.path.join(BIN, "containerd")),
                  "--ip6tables=false", "--feature", "time-namespaces=false")


class Oras:
    """The Python `oras`. It tells no digest and checks none, so what it wrote is hashed here."""

    name = "oras"
    PULL = "import oras.client, sys; print(*oras.client.OrasClient(insecure=True).pull(target=sys.argv[1], outdir=sys.argv[2]))"

    def __init__(self, site):
        self.site = site

    def empty(self):
        """Nothing to do: every pull goes to a new folder."""

    def pull(self, reference):
        files = self.site.run(PYTHON, "-c", self.PULL, reference, self.site.empty_folder("oras")).split()
        return [sha256_of(file) for file in files if os.path.isabs(file)]


class Trivy:
    """The real Trivy 0.59.1, straight, and through tests/fixtures/verify-trivy."""

    name = "trivy"
    VERIFY = os.path.join(FIXTURES, "verify-trivy")
    # Host-prefixed names for what is not a default route; the databases go by `aquasecurity/...`.
    MAP = ("--map", "docker.io=docker.io", "--map", "registry.gitlab.com=registry.gitlab.com")

    def __init__(self, site):
        self.site = site

    def verify(self, host, *options):
        """Databases, checks, file systems, images and the SBOM referrer; each time with an empty cache."""
        return self.site.run(self.VERIFY, host, *self.MAP, *options, TRIVY=TRIVY)

    def find(self, host):
        """Scan a Debian root file system with nothing cached and the bare name `trivy-db`; returns the CVE ids."""
        report = self.scan("rootfs", "--db-repository", f"{host}/trivy-db", "--scanners", "vuln", "--offline-scan",
                           os.path.join(FIXTURES, "scan", "rootfs"))
        return {finding["VulnerabilityID"] for result in report for finding in result.get("Vulnerabilities", [])}

    def checks(self, host):
        """The ids that the checks of the bare name `trivy-checks` report."""
        report = self.scan("config", "--checks-bundle-repository", f"{host}/trivy-checks:1", os.path.join(FIXTURES, "scan", "config"))
        return {finding["ID"] for result in report for finding in result.get("Misconfigurations", [])}

    def scan(self, *arguments):
        return json.loads(self.site.run(*self.command(*arguments, "--format", "json")))["Results"]

    def pull_fails(self, reference):
        return self.site.run_fails(*self.command("image", "--image-src", "remote", "--scanners", "secret", reference))

    def command(self, kind, *arguments):
        return [TRIVY, kind, "--cache-dir", self.site.empty_folder("trivy"), *arguments]


class Clients:
    """Every client that pulls, ready to, for one sealock. `ctr` and the current docker share a containerd."""

    def __init__(self, site, sealock):
        self.docker_classic, self.docker_current = docker_classic(site), docker_current(site)
        self.skopeo, self.podman, self.oras, self.trivy = Skopeo(site), Podman(site), Oras(site), Trivy(site)
        self.ctr = Ctr(site, self.docker_current.containerd, sealock.url, ["registry.gitlab.com", "docker.io"])

    def empty(self):
        for client in (self.skopeo, self.podman, self.oras, self.docker_classic, self.docker_current):
            client.empty()


def artifact(path):
    """The digest of a file that an artifact of the fixtures delivers."""
    return sha256_of(os.path.join(FIXTURES, path))


def every_pull(clients, host):
    """The pulls of the story, each through its own kind of name: client, name, expected digest."""
    semgrep, secrets = DIGESTS["security-products/semgrep:5"], DIGESTS["security-products/secrets:6"]
    alpine, debian, dast = (DIGESTS[name] for name in ("library/alpine:3", "library/debian:12", "security-products/dast:latest"))
    signature = f"security-products/semgrep:{semgrep.replace(':', '-')}.sig"
    return [
        # SECURE_ANALYZERS_PREFIX=host:5000/security-products
        (clients.skopeo, f"{host}/security-products/semgrep:5", semgrep),
        (clients.skopeo, f"{host}/{signature}", DIGESTS[signature]),
        (clients.podman, f"{host}/security-products/secrets:6", secrets),
        (clients.docker_classic, f"{host}/security-products/dast:latest", dast),
        (clients.docker_classic, f"{host}/security-products/semgrep:5", semgrep),
        (clients.docker_current, f"{host}/security-products/semgrep:5", semgrep),
        # The upstream's name in front, with and without `library/`
        (clients.skopeo, f"{host}/registry.gitlab.com/security-products/secrets:6", secrets),
        (clients.podman, f"{host}/docker.io/alpine:3", alpine),
        (clients.docker_classic, f"{host}/docker.io/library/alpine:3", alpine),
        (clients.docker_current, f"{host}/docker.io/alpine:3", alpine),
        # ?ns=
        (clients.ctr, "registry.gitlab.com/security-products/semgrep:5", semgrep),
        (clients.ctr, "docker.io/library/debian:12", debian),
        # Bare, as Trivy's guide writes it
        (clients.oras, f"{host}/trivy-db:2", artifact("trivy-db/db.tar.gz")),
        (clients.oras, f"{host}/trivy-checks:1", artifact("trivy-checks/bundle.tar.gz")),
        (clients.oras, f"{host}/aquasec/trivy-java-db:1", artifact("trivy-java-db/javadb.tar.gz")),
    ]
