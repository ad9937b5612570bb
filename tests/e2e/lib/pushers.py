"""The clients that push, beside what `clients` has of them. Each knows one registry, over plain HTTP."""

import json
import os

from lib.clients import BIN, PYTHON
from lib.harness import expect, expect_equal, sha256_of

CHART = {"Chart.yaml": "apiVersion: v2\nname: tide\nversion: 1.2.3\ndescription: High and low\n",
         "templates/note.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: tide\n"}


def file_sha256(site, folder):
    """The digests of the files right below a folder."""
    names = sorted(os.listdir(site.path(folder)))
    return {name: sha256_of(site.path(folder, name)) for name in names if os.path.isfile(site.path(folder, name))}


class Program:
    """One of the Go programs, run in the site's folder."""

    def __init__(self, site, host):
        self.site, self.host = site, host

    def run(self, *arguments, **options):
        return self.site.run(os.path.join(BIN, self.name), *arguments, **options).strip()


class Crane(Program):
    """go-containerregistry's own. It speaks plain HTTP to loopback by itself."""

    name = "crane"

    def validate(self, name):
        """Fetch and check all of it: manifests, configs, layers, digests, sizes."""
        self.run("validate", "--remote", f"{self.host}/{name}")

    def digest(self, name):
        return self.run("digest", f"{self.host}/{name}")


class Regctl(Program):
    """regclient's."""

    name = "regctl"

    def run(self, *arguments, **options):
        return super().run("--host", f"reg={self.host},tls=disabled", *arguments, **options)


class Helm(Program):
    """Charts as OCI artifacts."""

    name = "helm"

    def package(self):
        """A chart of our own; returns its file."""
        for name, text in CHART.items():
            self.site.write(f"chart/tide/{name}", text)
        self.run("package", "chart/tide", "--destination", self.site.make_folder("packages"))
        return self.site.path("packages", "tide-1.2.3.tgz")


class Cosign(Program):
    """Signatures with a key pair of our own: no certificate authority, no transparency log, no time stamps."""

    name = "cosign"
    SIGN = ("--yes", "--key", "cosign.key", "--allow-http-registry", "--use-signing-config=false", "--tlog-upload=false")
    VERIFY = ("--key", "cosign.pub", "--allow-http-registry", "--insecure-ignore-tlog=true")

    def run(self, *arguments, **options):
        return super().run(*arguments, COSIGN_PASSWORD="high tide", **options)


class OrasPush:
    """The Python `oras`, with files."""

    PUSH = "import oras.client, sys; oras.client.OrasClient(insecure=True).push(target=sys.argv[1], files=sys.argv[2:], " \
           "disable_path_validation=True)"

    def __init__(self, site):
        self.site = site

    def push(self, reference, *files):
        self.site.run(PYTHON, "-c", self.PUSH, reference, *files)


class Buildah:
    """Debian's buildah with storage of its own."""

    def __init__(self, site):
        self.site = site

    def run(self, *arguments):
        folders = [f"--{option}={self.site.make_folder('buildah', option)}" for option in ("root", "runroot")]
        return self.site.run("buildah", *folders, "--storage-driver=vfs", *arguments, BUILDAH_ISOLATION="chroot").strip()

    def build(self, name, file):
        """An image of nothing but a file."""
        container = self.run("from", "--name", name, "scratch")
        self.run("copy", container, file, "/")
        self.run("config", "--cmd", "/nothing", container)
        self.run("commit", "--rm", container, name)

    def push(self, name, reference, *options):
        """Returns the digest that it says it has pushed."""
        told = self.site.path("buildah.digest")
        self.run("push", "--tls-verify=false", "--digestfile", told, *options, name, f"docker://{reference}")
        with open(told) as file:
            return file.read().strip()

    def pull(self, reference):
        self.run("rmi", "--all", "--force")
        self.run("pull", "--quiet", "--tls-verify=false", reference)
        return json.loads(self.run("inspect", "--type", "image", reference))["FromImageDigest"]


def docker_push(docker, image, reference):
    """Tag and push with a docker daemon; returns the digest that it says."""
    docker.site.run(*docker.command("tag", image, reference))
    said = docker.site.run(*docker.command("push", reference))
    digests = [word for line in said.splitlines() if "digest: " in line for word in line.split() if word.startswith("sha256:")]
    expect(len(digests) == 1, f"docker push said no digest:\n{said}")
    return digests[0]


def expect_same_files(site, wanted, folder, what):
    """All files of `wanted`, unchanged, are in `folder`."""
    got = file_sha256(site, folder)
    expect_equal({name: got.get(name) for name in wanted}, wanted, what)
