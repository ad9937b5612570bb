"""Nobody comes in without a certificate: each client shows its own with what `sealock client-config` put in place, and nothing else."""

import os

from lib.clients import BIN, TRIVY, Podman, docker_classic, docker_current
from lib.harness import DIGESTS, FIXTURES, expect, expect_equal, expect_in, sha256_of
from lib.pushers import Helm
from lib.secure import Machine, SecureSealock

NAMES = ("registry.site.internal",)
HOST = f"{NAMES[0]}:5000"
KINDS = ("docker", "containerd", "podman", "trivy", "oras", "helm")
SETTINGS = """client_ca = "{authority}"
client_auth = "required"
"""
IMAGE, DIGEST = "security-products/alpine:3", DIGESTS["library/alpine:3"]
# The server's alert, as Go says it; it may have hung up before the client has read it.
REFUSED = ("certificate required", "broken pipe", "connection reset")


def company(site):
    """An authority for clients, and what it gave this machine: its certificate, that, and the key of that."""
    folder = site.make_folder("company")
    of = {name: os.path.join(folder, name) for name in ("ca.crt", "ca.key", "node.csr", "node.crt", "node.key")}
    new = ("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    site.run(*new, "-x509", "-days", "2", "-subj", "/CN=company", "-keyout", of["ca.key"], "-out", of["ca.crt"])
    site.run(*new, "-subj", "/CN=node", "-keyout", of["node.key"], "-out", of["node.csr"])
    # Without extensions, it would be of version 1, which rustls takes from nobody.
    client = site.write("company/node.ext", "extendedKeyUsage = clientAuth\n")
    site.run("openssl", "x509", "-req", "-extfile", client, "-in", of["node.csr"], "-CA", of["ca.crt"], "-CAkey", of["ca.key"], "-CAcreateserial",
             "-days", "2", "-out", of["node.crt"])
    for name in ("ca.key", "node.key"):
        os.chmod(of[name], 0o600)
    return of["ca.crt"], of["node.crt"], of["node.key"]


def write(site, machine, sealock, certificate, key):
    """What each kind needs; returns the flags that helm is told to use."""
    printed = ""
    for kind in KINDS:
        with site.step(f"{kind}: what it shows is put in place, and its key is not shown to anybody else"):
            command = ("client-config", kind, "--address", HOST, "--client-cert", certificate, "--client-key", key)
            printed = sealock.run(*command) + sealock.run(*command, "--write", "--root", machine.root)
            expect("PRIVATE KEY" not in printed, "the key is printed")
    for folder, _, names in os.walk(machine.root):
        for name in names:
            if name.endswith(".key"):
                expect_equal(os.stat(os.path.join(folder, name)).st_mode & 0o777, 0o600, f"mode of {folder}/{name}")
    pull = next(line for line in printed.splitlines() if line.startswith("helm pull "))
    return pull.removeprefix("helm pull ").partition(" oci:")[0].split()


def refused(said, who):
    expect(any(words in said for words in REFUSED), f"{who} was not asked for a certificate:\n{said}")


def containers(site):
    podman, name = Podman(site), f"registry.gitlab.com/{IMAGE}"
    with site.step("skopeo and podman show it: skopeo pushes, and both pull by the upstream's name"):
        layout, out = os.path.join(FIXTURES, "images", "alpine"), site.empty_folder("skopeo")
        site.run("skopeo", "copy", "--all", f"oci:{layout}", f"docker://{HOST}/{IMAGE}")
        site.run("skopeo", "copy", "--all", f"docker://{name}", f"dir:{out}")
        expect_equal(sha256_of(os.path.join(out, "manifest.json")), DIGEST, "digest")
        site.run(*podman.command("pull", "--quiet", name))
    with site.step("skopeo with the authority alone is refused"):
        bare = site.write("bare/ca.crt", site.run("cat", f"/etc/containers/certs.d/{HOST}/ca.crt"))
        refused(site.run_fails("skopeo", "inspect", "--cert-dir", os.path.dirname(bare), f"docker://{HOST}/{IMAGE}"), "skopeo")


def ctr(site, containerd):
    command = (os.path.join(BIN, "ctr"), "--address", containerd.socket, "--namespace", "e2e", "images")
    hosts = ("--hosts-dir", "/etc/containerd/certs.d")
    with site.step(f"ctr with {containerd.name} shows it: by the upstream's name, and by the registry's"):
        for name in (f"registry.gitlab.com/{IMAGE}", f"{HOST}/{IMAGE}"):
            site.run(*command, "pull", *hosts, "--all-platforms", name)
        expect_in(DIGEST, site.run(*command, "ls"), "`ctr images ls`")
        site.run(*command, "push", *hosts, f"{HOST}/team/{containerd.name}:3", f"{HOST}/{IMAGE}")


def docker(site, daemon):
    daemon.containerd.start()
    daemon.start()
    with site.step(f"{daemon.name} shows it"):
        expect_equal(daemon.pull(f"{HOST}/{IMAGE}"), [DIGEST], "digest")
    daemon.process.stop()
    daemon.containerd.stop()


def helm_story(site, flags):
    helm, charts = Helm(site, HOST), f"oci://{HOST}/charts"
    package, folder = helm.package(), site.make_folder("helm-out")
    with site.step("helm shows it by the flags that are printed, and without them is refused"):
        helm.run("push", *flags, package, charts)
        helm.run("pull", *flags, f"{charts}/tide", "--version", "1.2.3", "--destination", folder)
        expect_equal(sha256_of(os.path.join(folder, "tide-1.2.3.tgz")), sha256_of(package), "the chart")
        bare = flags[:flags.index("--cert-file")]
        said = site.run_fails(os.path.join(BIN, "helm"), "pull", *bare, f"{charts}/tide", "--version", "1.2.3", "--destination", folder)
        refused(said, "helm")


def trivy(site):
    with site.step("Trivy has nothing to show, as it is told: it is refused"):
        said = site.run_fails(TRIVY, "image", "--cache-dir", site.empty_folder("trivy"), "--image-src", "remote", "--scanners", "secret",
                              f"{HOST}/{IMAGE}", SSL_CERT_FILE="/etc/trivy/sealock-ca.crt")
        refused(said, "trivy")


def story(site):
    authority, certificate, key = company(site)
    machine = Machine(site, NAMES)
    sealock = SecureSealock(site, SETTINGS.format(authority=authority), names=NAMES)
    flags = write(site, machine, sealock, certificate, key)
    machine.start()
    sealock.start("--listen", f"{machine.ADDRESS}:5000")
    containers(site)
    current = docker_current(site)
    current.containerd.start()
    ctr(site, current.containerd)
    current.containerd.stop()
    docker(site, docker_classic(site))
    docker(site, current)
    helm_story(site, flags)
    trivy(site)
    with site.step("zero packets left: nothing was sent outside, by sealock or by any client"):
        machine.witness.expect_silence()
    with site.step("sealock stops in order"):
        sealock.stop()
