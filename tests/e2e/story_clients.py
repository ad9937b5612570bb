"""Clients told how: each pulls over TLS with nothing but what `sealock client-config` put in place, and is seen to."""

import json
import os

from lib.clients import docker_classic
from lib.harness import DIGESTS, expect, expect_equal, expect_in
from lib.sealock import BINARY, Sealock
from lib.upstreams import free_port

# Docker's mirrors ask for Docker Hub's names without a host.
SETTINGS = """
[tls]
certificate = "{certificate}"

[route."library/**"]
upstream = "hub"
push = true
"""
ALPINE = DIGESTS["library/alpine:3"]
ALPINE_LAYOUT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "fixtures", "images", "alpine")


class Told:
    """A root folder with what `client-config` wrote for each kind of client."""

    def __init__(self, site, sealock, address):
        self.site, self.sealock, self.address = site, sealock, address
        self.root = site.make_folder("root")

    def write(self, kind):
        said = self.sealock.run("client-config", kind, "--write", "--root", self.root, "--address", self.address)
        again = self.sealock.run("client-config", kind, "--write", "--root", self.root, "--address", self.address)
        # Some kinds share a file: what one wrote is as the other wants it.
        expect(": changed" not in said, f"{kind}:\n{said}")
        expect(": written" not in again and ": changed" not in again and ": as it should be" in again, f"{kind}:\n{again}")

    def path(self, *parts):
        return os.path.join(self.root, "etc", *parts)

    def check(self, kind, *options, **environment):
        said = self.site.run(BINARY, "-c", self.sealock.settings, "client-config", kind, "--check", "--address", self.address,
                             "--root", self.root, *options, "--json", **environment)
        return json.loads(said)


def passed(verdict, agent):
    expect_equal((verdict["pulled"], verdict["through_here"]), (True, True), "pulled, through here")
    expect(any(seen["agent"].startswith(agent) for seen in verdict["seen"]), f"no {agent} in {verdict['seen']}")


def story(site):
    folder, port = site.make_folder("certs"), free_port()
    site.run(BINARY, "certs", "init", "--host", "localhost", "--ip", "127.0.0.1", "--folder", folder)
    settings = SETTINGS.format(certificate=os.path.join(folder, "server.crt"))
    sealock = Sealock(site, settings)
    sealock.process = site.start("sealock", [BINARY, "-c", sealock.settings, "serve", "--listen", f"127.0.0.1:{port}"])
    sealock.url = sealock.process.wait_for(r"listening on (https://\S+)")[1]
    told = Told(site, sealock, f"localhost:{port}")
    for kind in ("docker", "containerd", "podman", "cri-o", "k3s", "trivy", "oras", "helm"):
        with site.step(f"{kind}: what is needed is written, and the second time there is nothing to do"):
            told.write(kind)
    trusted = os.path.dirname(told.path("containers", "certs.d", told.address, "ca.crt"))
    for name in ("security-products/alpine:3", "library/alpine:3"):
        with site.step(f"skopeo trusts the authority that was written, and pushes {name}"):
            site.run("skopeo", "copy", "--all", "--dest-cert-dir", trusted, f"oci:{ALPINE_LAYOUT}", f"docker://{told.address}/{name}")

    remap = told.path("containers", "registries.conf.d", "50-sealock.conf")
    with site.step("skopeo pulls registry.gitlab.com's name by the remap"):
        out = site.empty_folder("skopeo")
        site.run("skopeo", "--registries-conf", remap, "copy", "--all", "--src-cert-dir", trusted,
                 "docker://registry.gitlab.com/security-products/alpine:3", f"dir:{out}")

    docker = docker_classic(site)
    docker.containerd.start()
    with site.step("containerd: --check pulls registry.gitlab.com's name, and it came through here"):
        # The files name the authority where it will be; here that is below the root.
        for host in os.listdir(told.path("containerd", "certs.d")):
            path = told.path("containerd", "certs.d", host, "hosts.toml")
            with open(path) as file:
                text = file.read()
            with open(path, "w") as file:
                file.write(text.replace('ca = "/etc/', f'ca = "{told.root}/etc/'))
        verdict = told.check("containerd", "--image", "registry.gitlab.com/security-products/alpine:3",
                             CONTAINERD_ADDRESS=docker.containerd.socket)
        passed(verdict, "containerd/")
        expect(all("ns=registry.gitlab.com" in seen["path"] for seen in verdict["seen"]), "it did not say whose name it is")
    with site.step("docker: --check pulls Docker Hub's name by the mirror of the daemon.json, and it came through here"):
        docker.options = ("--storage-driver=vfs",)
        with open(told.path("docker", "daemon.json")) as file:
            mirrors = json.load(file)["registry-mirrors"]
        docker.options += tuple(f"--registry-mirror={mirror}" for mirror in mirrors)
        docker.start()
        passed(told.check("docker", "--image", "docker.io/library/alpine:3", DOCKER_HOST=f"unix://{docker.socket}"), "docker/")
    with site.step("docker: a name that no mirror is for does not come through here, and that is said"):
        said = site.run_fails(BINARY, "-c", sealock.settings, "client-config", "docker", "--check", "--address", told.address,
                              "--image", "127.0.0.1:1/security-products/alpine:3", DOCKER_HOST=f"unix://{docker.socket}")
        expect_in("the server was not asked for it", said, "what it said")
    docker.process.stop()
    docker.containerd.stop()
    sealock.stop()
