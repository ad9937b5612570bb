"""Over TLS and with a login: each client pulls and pushes with what `sealock client-config` put in place, and nothing else.

The clients live on a machine whose /etc has what was written for them, and that knows the registry by its name. There,
`sealock client-config KIND --check` tells for each whether a pull comes through here, and what is wrong if it does not.
"""

import json
import os
import re
import shutil
import time
from datetime import datetime
from types import SimpleNamespace

from lib.clients import BIN, PYTHON, TRIVY, Podman, artifact, docker_classic, docker_current
from lib.harness import DIGESTS, FIXTURES, PATH, expect, expect_equal, expect_in, sha256_of, wait_until
from lib.pushers import Buildah, Helm, docker_push
from lib.sealock import BINARY, Sealock
from lib.secure import Machine, SecureSealock
from lib.upstreams import Registry, Upstreams

# The registry has a name for each client, and one that none is told of; all are in its certificate.
CLIENTS = ("docker", "containerd", "podman", "skopeo", "buildah", "crane", "regctl", "cosign", "helm", "oras", "trivy", "curl")
NAMES = tuple(f"{client}.registry.internal" for client in (*CLIENTS, "other"))
At = SimpleNamespace(**{name.partition(".")[0]: f"{name}:5000" for name in NAMES})
UNTRUSTED = "certificate signed by unknown authority"
# What is written for whom. The last of podman's kin has the names of the upstreams, too.
WRITTEN = (("docker --containerd-store", At.docker), ("containerd", At.containerd), ("podman", At.skopeo),
           ("podman", At.buildah), ("podman", At.podman), ("trivy", At.trivy), ("oras", At.oras), ("helm", At.helm))
# As which of them each kind is checked.
CHECKED = {"gitlab": At.docker, "cri-o": At.podman, **{kind.split()[0]: address for kind, address in WRITTEN}}
SETTINGS = """
[access.groups]
ci = ["alice", "carol"]

[[access.rule]]
repository = "security-products/**"
verbs = ["pull"]
to = ["group:ci"]

[[access.rule]]
repository = "team/**"
verbs = ["pull", "push", "delete"]
to = ["user:alice"]

[[access.rule]]
repository = "trivy-db"
verbs = ["pull"]
to = ["anonymous"]

# Docker's mirrors ask for Docker Hub's names without a host, and without a login.
[route."library/**"]
upstream = "hub"

[[access.rule]]
repository = "library/**"
verbs = ["pull"]
to = ["anonymous"]
"""
# Trivy takes spaces and commas for the ends of passwords, so carol has none; any other client takes any letters.
ALICE, CAROL = "spring tide: 4, 2 m!", "neap-tide:1m"
IMAGE, DIGEST = "security-products/semgrep:5", DIGESTS["security-products/semgrep:5"]
SECRETS = "security-products/secrets:6"
ALPINE, ALPINE_LAYOUT = "docker.io/library/alpine:3", os.path.join(FIXTURES, "images", "alpine")
# Where `client-config` puts the authority for those that have no place of their own.
CA, TRIVY_CA = "/etc/sealock/client-ca.crt", "/etc/trivy/sealock-ca.crt"


def fill(site, data):
    """What was filled before there were rules: analyzers, and Trivy's database."""
    upstreams = Upstreams(site).start()
    upstreams.registry.seed()
    sealock = Sealock(site, upstreams.settings(), "filling", data).start("--gate", "open")
    for name in (IMAGE, SECRETS, "trivy-db:2", ALPINE):
        site.run("skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{sealock.host}/{name}",
                 f"dir:{site.empty_folder('filled')}")
    sealock.close()
    sealock.stop()
    upstreams.stop()


def log_out(site):
    """Nobody is logged in on the machine any more."""
    site.write("home/.docker/config.json", '{"auths": {}}')


class Check:
    """`sealock client-config KIND --check`, run where the clients are."""

    def __init__(self, site, sealock):
        self.site, self.sealock = site, sealock
        self.elsewhere = Registry(site, "elsewhere")

    def command(self, kind, *options, programs=None, **environment):
        """`programs` are the only ones that are installed."""
        path = f"{BIN}:{self.site.environment['PATH']}"
        if programs:
            path = self.site.empty_folder("programs")
            for program in programs:
                os.symlink(shutil.which(program, path=PATH), os.path.join(path, os.path.basename(program)))
        address = () if "--address" in options else ("--address", CHECKED[kind])
        words = [f"{name}={value}" for name, value in {"PATH": path, **environment}.items()]
        return ["env", *words, BINARY, "-c", self.sealock.settings, "client-config", kind, "--check", *address, *options]

    def passes(self, agent, kind, *options, image=None, typed="", **environment):
        """It came through here, pulled by `agent`; its verdict is returned. Without `image` it chooses for itself."""
        named = ("--image", image) if image else ()
        verdict = json.loads(self.site.run(*self.command(kind, "--json", *named, *options, **environment), typed=typed))
        expect_equal((verdict["pulled"], verdict["through_here"]), (True, True), "pulled, through here")
        expect(any(seen["agent"].startswith(agent) for seen in verdict["seen"]), f"no {agent} in {verdict['seen']}")
        expect_equal(verdict["image"], image or verdict["image"], "the image")
        return verdict

    def fails(self, words, *arguments, typed="", **options):
        """It must say `words`; that it was pulled elsewhere, for one."""
        done = self.site.try_run(*self.command(*arguments, **options), typed=typed)
        expect_equal(done.returncode, 1, f"status of\n{done.stdout}{done.stderr}\n")
        expect_in(words, done.stdout + done.stderr, "what it said")

    def start_elsewhere(self):
        """A registry that is not ours, on the clients' machine; its image is returned."""
        self.elsewhere.start()
        image = f"{self.elsewhere.host}/library/alpine:3"
        self.site.run("skopeo", "copy", "--all", f"oci:{ALPINE_LAYOUT}", f"docker://{image}")
        return image


PAST, UNLOGGED, STRANGE = "was pulled, but not through here", "it was not logged in", "does not trust the certificate of"


def docker_checks(check, docker, elsewhere):
    """carol is logged in."""
    site, host = docker.site, {"DOCKER_HOST": f"unix://{docker.socket}"}
    with site.step(f"{docker.name}: --check as carol, by the registry's name, and of what scanners pull"):
        check.passes("docker/", "docker", image=f"{At.docker}/{IMAGE}", **host)
        verdict = check.passes("docker/", "gitlab", **host)
        expect_in(f"{At.docker}/registry.gitlab.com/security-products/", verdict["image"], "what it chose")
    with site.step(f"{docker.name}: --check tells what went past, what nobody may pull, and whom docker does not trust"):
        check.fails(PAST, "docker", "--image", elsewhere, **host)
        check.fails("no access rule lets this login pull it", "docker", "--image", f"{At.docker}/team/nobody:1", **host)
        check.fails("is not kept under this name", "docker", "--image", f"{At.docker}/security-products/semgrep:99", **host)
        check.fails(STRANGE, "docker", "--address", At.other, "--image", f"{At.other}/{IMAGE}", **host)
    with site.step(f"{docker.name}: --check tells that nobody is logged in"):
        log_out(site)
        check.fails(UNLOGGED, "docker", "--image", f"{At.docker}/{IMAGE}", **host)


def hosts_toml_checks(check, docker):
    """With containerd's store, other registries' names come here, too, but without a login."""
    host = {"DOCKER_HOST": f"unix://{docker.socket}"}
    with docker.site.step(f"{docker.name}: --check by Docker Hub's name, and by another that is not open to all"):
        verdict = check.passes("docker/", "docker", "--containerd-store", image=ALPINE, **host)
        expect(all("ns=docker.io" in seen["path"] for seen in verdict["seen"]), f"it did not say whose name it is: {verdict}")
        check.fails("without a login", "docker", "--image", "docker.io/acme/nobody:1", **host)


def docker_story(site, docker, robot, check, elsewhere, more=lambda *_: None):
    log_out(site)
    docker.empty()
    target = f"{At.docker}/team/{docker.name}/semgrep:5"

    def log_in(name, password):
        said = site.run(*docker.command("login", "-u", name, "--password-stdin", At.docker), typed=password)
        expect_in("Login Succeeded", said, "what it said")

    with site.step(f"{docker.name} does not trust the registry by a name that it was not told of"):
        expect_in(UNTRUSTED, site.run_fails(*docker.command("pull", f"{At.other}/{IMAGE}")), "what it said")
    with site.step(f"{docker.name}: without a login nothing is pulled, and a wrong password is none"):
        site.run_fails(*docker.command("pull", f"{At.docker}/{IMAGE}"))
        said = site.run_fails(*docker.command("login", "-u", "carol", "--password-stdin", At.docker), typed="guess")
        expect_in("the name or the password is wrong", said, "what it said")
    with site.step(f"{docker.name} logs in as carol, pulls, and may not push"):
        log_in("carol", CAROL)
        with open(site.path("home/.docker/config.json")) as file:
            expect("identitytoken" in file.read(), "it keeps the password in place of a token")
        expect_equal(docker.pull(f"{At.docker}/{IMAGE}"), [DIGEST], "digest")
        site.run(*docker.command("tag", f"{At.docker}/{IMAGE}", target))
        expect_in("no access rule allows it", site.run_fails(*docker.command("push", target)), "what it said")
    docker_checks(check, docker, elsewhere)
    more(check, docker)
    with site.step(f"{docker.name} logs in as alice, pushes, forgets it, and pulls it back"):
        log_in("alice", ALICE)
        digest = docker_push(docker, f"{At.docker}/{IMAGE}", target)
        docker.empty()
        expect_equal(docker.pull(target), [digest], "digest")
    with site.step(f"{docker.name}: skopeo takes docker's login, but does not log in beside it"):
        site.run("skopeo", "inspect", "--raw", f"docker://{target}")
        said = site.run_fails("skopeo", "login", "-u", "alice", "--password-stdin", At.docker, typed=ALICE)
        expect_in("contains an Identity token", said, "what it said")
    with site.step(f"{docker.name}: the robot pushes what runners pull, and nothing else"):
        docker.pull(f"{At.docker}/{IMAGE}")
        log_in("loader", robot)
        docker_push(docker, f"{At.docker}/{IMAGE}", f"{At.docker}/security-products/{docker.name}:6")
        site.run(*docker.command("tag", f"{At.docker}/{IMAGE}", target))
        expect_in("no access rule allows it", site.run_fails(*docker.command("push", target)), "what it said")
    docker.process.stop()
    docker.containerd.stop()


def ctr(site, containerd, check, elsewhere):
    hosts = ("--hosts-dir", "/etc/containerd/certs.d")
    command = (os.path.join(BIN, "ctr"), "--address", containerd.socket, "--namespace", "e2e", "images")
    target = f"{At.containerd}/team/ctr/semgrep:5"
    with site.step("ctr does not trust the registry by a name that it was not told of"):
        said = site.run_fails(*command, "pull", *hosts, "--user", f"alice:{ALICE}", f"{At.other}/{IMAGE}")
        expect_in(UNTRUSTED, said, "what it said")
    with site.step("ctr pulls as alice, by the registry's name and by the upstream's, pushes and pulls back"):
        site.run_fails(*command, "pull", *hosts, f"{At.containerd}/{IMAGE}")
        for name in (f"{At.containerd}/{IMAGE}", f"registry.gitlab.com/{IMAGE}"):
            site.run(*command, "pull", *hosts, "--all-platforms", "--user", f"alice:{ALICE}", name)
        site.run(*command, "push", *hosts, "--user", f"alice:{ALICE}", target, f"{At.containerd}/{IMAGE}")
        containerd.empty()
        site.run(*command, "pull", *hosts, "--all-platforms", "--user", f"alice:{ALICE}", target)
        expect_in(DIGEST, site.run(*command, "ls"), "`ctr images ls`")
    for name, program in (("ctr 1.6", "/usr/bin/ctr"), ("ctr 2.4", os.path.join(BIN, "ctr"))):
        told = {"programs": (program,), "CONTAINERD_ADDRESS": containerd.socket}
        with site.step(f"{name}: --check with a login, which is in no argument, and without"):
            verdict = check.passes("containerd/", "containerd", "--user", "alice", typed=ALICE, **told)
            expect_in("registry.gitlab.com/security-products/", verdict["image"], "what it chose")
            expect(ALICE not in json.dumps(verdict), "it tells the password")
            check.passes("containerd/", "containerd", "--user", "carol", image=f"{At.containerd}/{IMAGE}", typed=CAROL, **told)
            check.fails("it was not let in as `alice`", "containerd", "--user", "alice", typed="guess", **told)
            check.fails(UNLOGGED, "containerd", **told)
        with site.step(f"{name}: --check tells what went past, what is not kept, and whom it does not trust"):
            check.fails(PAST, "containerd", "--image", elsewhere, **told)
            missing = ("--image", "registry.gitlab.com/security-products/semgrep:99", "--user", "carol")
            check.fails("is not kept under this name", "containerd", *missing, typed=CAROL, **told)
            check.fails(STRANGE, "containerd", "--address", At.other, "--image", f"{At.other}/{IMAGE}", **told)
    containerd.stop()


def containers_checks(site, check, elsewhere):
    """alice is logged in."""
    storage = f'[storage]\ndriver = "vfs"\ngraphroot = "{site.make_folder("check", "root")}"\nrunroot = "{site.make_folder("check", "run")}"\n'
    storage = {"CONTAINERS_STORAGE_CONF": site.write("check-storage.conf", storage)}
    nobody = os.path.dirname(site.write("nobody/config.json", '{"auths": {}}'))
    for program, agent in (("podman", "containers/"), ("buildah", "Buildah/"), ("skopeo", "skopeo/")):
        told = {"programs": (program,), **storage}
        with site.step(f"{program}: --check as alice, by both names, and what went past or is not trusted"):
            expect_in("registry.gitlab.com/", check.passes(agent, "podman", **told)["image"], "what it chose")
            check.passes(agent, "podman", image=f"{At.podman}/{IMAGE}", **told)
            check.fails(PAST, "podman", "--image", elsewhere, **told)
            check.fails(STRANGE, "podman", "--address", At.other, "--image", f"{At.other}/{IMAGE}", **told)
            check.fails("is not kept under this name", "podman", "--image", f"{At.podman}/security-products/semgrep:99", **told)
            check.fails(UNLOGGED, "podman", **told, DOCKER_CONFIG=nobody)


def containers(site, check, elsewhere):
    """podman, skopeo and buildah: one place for the authority, one file for the login."""
    podman, buildah = Podman(site), Buildah(site)
    log_out(site)
    with site.step("podman, skopeo and buildah do not trust the registry by a name that they were not told of"):
        for command in (podman.command("pull", f"{At.other}/{IMAGE}"), ("skopeo", "inspect", f"docker://{At.other}/{IMAGE}"),
                        ("buildah", "login", "-u", "alice", "-p", ALICE, At.other)):
            expect_in(UNTRUSTED, site.run_fails(*command), "what it said")
    with site.step("podman logs in, pulls by both names, pushes and pulls back"):
        site.run(*podman.command("login", "-u", "alice", "--password-stdin", At.podman), typed=ALICE)
        for name in (f"{At.podman}/{IMAGE}", f"registry.gitlab.com/{SECRETS}"):
            site.run(*podman.command("pull", "--quiet", name))
        target, told = f"{At.podman}/team/podman/semgrep:5", site.path("podman.digest")
        site.run(*podman.command("push", "--quiet", "--digestfile", told, f"{At.podman}/{IMAGE}", target))
        podman.empty()
        site.run(*podman.command("pull", "--quiet", target))
        with open(told) as file:
            expect_in(file.read().strip(), site.run(*podman.command("image", "inspect", target)), "what it has")
    containers_checks(site, check, elsewhere)
    with site.step("podman logs out, and pulls no more"):
        site.run(*podman.command("logout", At.podman))
        site.run_fails(*podman.command("pull", "--quiet", target))
    with site.step("skopeo copies with a file of logins, and with a login in the command"):
        logins, folder = site.path("skopeo-logins.json"), site.empty_folder("skopeo")
        site.run("skopeo", "login", "--authfile", logins, "-u", "alice", "--password-stdin", At.skopeo, typed=ALICE)
        target = f"docker://{At.skopeo}/team/skopeo/semgrep:5"
        site.run("skopeo", "copy", "--all", "--authfile", logins, f"docker://{At.skopeo}/{IMAGE}", target)
        site.run("skopeo", "copy", "--all", "--src-creds", f"alice:{ALICE}", target, f"dir:{folder}")
        expect_equal(sha256_of(os.path.join(folder, "manifest.json")), DIGEST, "digest")
        site.run_fails("skopeo", "inspect", target)
    with site.step("buildah logs in, pushes what it built, and pulls it back"):
        buildah.run("login", "-u", "alice", "-p", ALICE, At.buildah)
        buildah.build("built", site.write("built.txt", "a file in an image\n"))
        told = site.path("buildah.digest")
        buildah.run("push", "--digestfile", told, "built", f"docker://{At.buildah}/team/buildah:1")
        buildah.run("rmi", "--all", "--force")
        buildah.run("pull", "--quiet", f"{At.buildah}/team/buildah:1")
        with open(told) as file:
            expect_in(file.read().strip(), buildah.run("inspect", "--type", "image", f"{At.buildah}/team/buildah:1"), "what it has")
        buildah.run("logout", At.buildah)


class Client:
    """One of the Go programs, which are told of the authority by SSL_CERT_FILE. regctl reads docker's certs.d besides."""

    def __init__(self, site, name):
        self.site, self.program = site, os.path.join(BIN, name)

    def run(self, *arguments, **options):
        return self.site.run(self.program, *arguments, SSL_CERT_FILE=CA, **options).strip()

    def fails(self, *arguments, **options):
        return self.site.run_fails(self.program, *arguments, SSL_CERT_FILE=CA, **options)


def go_programs(site, sealock):
    crane, regctl, cosign = (Client(site, name) for name in ("crane", "regctl", "cosign"))
    log_out(site)
    image = f"{At.crane}/team/crane:5"
    with site.step("crane, regctl, cosign and Trivy do not trust the registry by a name that nobody told them of"):
        other = f"{At.other}/{IMAGE}"
        for program, *arguments in (("crane", "digest", other), ("regctl", "image", "digest", other), ("cosign", "tree", other),
                                    ("trivy", "image", "--image-src", "remote", "--scanners", "secret", other)):
            expect_in(UNTRUSTED, site.run_fails(os.path.join(BIN, program), *arguments), f"what {program} said")
    with site.step("crane logs in, copies, validates and lists, and without the login does not"):
        crane.run("auth", "login", At.crane, "-u", "alice", "--password-stdin", typed=ALICE)
        crane.run("copy", f"{At.crane}/{IMAGE}", image)
        expect_equal(crane.run("digest", image), DIGEST, "digest")
        crane.run("validate", "--remote", image)
        expect(sealock.process.find("mounted sha256:[0-9a-f]+ in team/crane"), "its token was not good for a mount")
        crane.run("auth", "logout", At.crane)
        crane.fails("digest", image)
    with site.step("regctl logs in and copies, and without the login does not"):
        regctl.run("registry", "login", At.regctl, "-u", "alice", "--pass-stdin", typed=ALICE)
        regctl.run("image", "copy", "--referrers", "--digest-tags", f"{At.regctl}/team/crane:5", f"{At.regctl}/team/regctl:5")
        expect_equal(regctl.run("image", "digest", f"{At.regctl}/team/regctl:5"), DIGEST, "digest")
        regctl.run("registry", "logout", At.regctl)
        regctl.fails("image", "digest", f"{At.regctl}/team/crane:5")
    log_out(site)
    with site.step("cosign logs in, signs as a tag and as a referrer, and verifies both"):
        cosign.run("generate-key-pair", COSIGN_PASSWORD="high tide")
        cosign.run("login", At.cosign, "-u", "alice", "--password-stdin", typed=ALICE)
        for bundle in ("false", "true"):
            cosign.run("sign", "--yes", "--key", "cosign.key", "--use-signing-config=false", "--tlog-upload=false",
                       f"--new-bundle-format={bundle}", f"{At.cosign}/team/crane@{DIGEST}", COSIGN_PASSWORD="high tide")
            said = cosign.run("verify", "--key", "cosign.pub", "--insecure-ignore-tlog=true", f"--new-bundle-format={bundle}",
                              f"{At.cosign}/team/crane@{DIGEST}")
            expect_in(DIGEST, said, "verified")
    log_out(site)


def strangers(site):
    """What a check is told to trust the registry by, where nothing is in place: another authority."""
    folder = site.make_folder("strangers")
    if not os.listdir(folder):
        site.run(BINARY, "certs", "init", "--host", NAMES[0], "--folder", folder)
    return "--root", site.empty_folder("nothing"), "--ca-file", os.path.join(folder, "ca.crt")


def helm_story(site, check):
    helm, trust = Helm(site, At.helm), ("--ca-file", CA)
    charts = f"oci://{At.helm}/team/charts"
    with site.step("helm logs in, pushes a chart and pulls it back, and without the login does not"):
        package, folder = helm.package(), site.make_folder("helm-out")
        helm.run("registry", "login", *trust, "-u", "alice", "--password-stdin", At.helm, typed=ALICE)
        helm.run("push", *trust, package, charts)
        pull = ("pull", *trust, f"{charts}/tide", "--version", "1.2.3", "--destination", folder)
        helm.run(*pull)
        expect_equal(sha256_of(os.path.join(folder, "tide-1.2.3.tgz")), sha256_of(package), "the chart")
    with site.step("helm: --check chooses the chart; without the login, or the authority, it says so"):
        expect_equal(check.passes("Helm/", "helm")["image"], f"{At.helm}/team/charts/tide:1.2.3", "what it chose")
        check.fails(STRANGE, "helm", *strangers(site))
        helm.run("registry", "logout", At.helm)
        check.fails(UNLOGGED, "helm")
        site.run_fails(os.path.join(BIN, "helm"), *pull)


# The password is read from standard input, as a pipeline would give it. It logs in with each request: by itself oras for
# Python gets a token when it asks whether a blob is there, and then goes on with that, which is for pulls alone.
ORAS = """
import sys, oras.client
client = oras.client.OrasClient(auth_backend="basic")
client.login(hostname=sys.argv[1], username="alice", password=sys.stdin.read())
client.push(target=sys.argv[2], files=[sys.argv[3]], disable_path_validation=True)
print(*client.pull(target=sys.argv[2], outdir=sys.argv[4]))
"""


def oras(site):
    log_out(site)
    with site.step("oras logs in, pushes a file and pulls it back"):
        file = site.write("oras-in/tide.txt", "high\n" * 1000)
        site.run(PYTHON, "-c", ORAS, At.oras, f"{At.oras}/team/oras:1", file, site.empty_folder("oras"), typed=ALICE,
                 REQUESTS_CA_BUNDLE=CA)
        expect_equal(sha256_of(site.path("oras", "tide.txt")), sha256_of(file), "the file")
    with site.step("oras pulls Trivy's database without a login"):
        log_out(site)
        pull = "import oras.client, sys; oras.client.OrasClient().pull(target=sys.argv[1], outdir=sys.argv[2])"
        site.run(PYTHON, "-c", pull, f"{At.oras}/trivy-db:2", site.empty_folder("oras"), REQUESTS_CA_BUNDLE=CA)
        expect_equal(sha256_of(site.path("oras", "db.tar.gz")), artifact("trivy-db/db.tar.gz"), "the database")


def trivy(site, check):
    log_out(site)
    with site.step("Trivy: --check pulls its database; without the authority, it says so"):
        verdict = check.passes("trivy/", "trivy")
        expect_equal(verdict["image"], f"{At.trivy}/ghcr.io/aquasecurity/trivy-db:2", "what it chose")
        check.fails(STRANGE, "trivy", *strangers(site))

    def command(kind, *arguments):
        return TRIVY, kind, "--cache-dir", site.empty_folder("trivy"), "--format", "json", *arguments

    told = {"TRIVY_CONFIG": "/etc/trivy/trivy.yaml", "SSL_CERT_FILE": TRIVY_CA}
    with site.step("Trivy gets its database without a login, and finds with it"):
        found = site.run(*command("rootfs", "--scanners", "vuln", os.path.join(FIXTURES, "scan", "rootfs")), **told)
        expect_in("CVE-2024-5535", found, "findings")
    scan = ("image", "--image-src", "remote", "--scanners", "secret", f"{At.trivy}/{IMAGE}")
    with site.step("Trivy scans an image with a login in its variables, and without does not"):
        site.run_fails(*command(*scan), **told)
        found = json.loads(site.run(*command(*scan), **told, TRIVY_USERNAME="carol", TRIVY_PASSWORD=CAROL))
        expect_equal(found["ArtifactName"], f"{At.trivy}/{IMAGE}", "what was scanned")


def as_user(name, password):
    return "--user", f"{name}:{password}"


def manifest(sealock, image, *options):
    name, _, tag = image.partition(":")
    return sealock.get(f"/v2/{name}/manifests/{tag}", "--header", "Accept: */*", *options)


def token(sealock, scope, *login):
    return json.loads(sealock.get(f"/token?service={At.curl}&scope={scope}", *login).body)["token"]


def refusals(site, sealock, robot):
    alice, carol, loader = as_user("alice", ALICE), as_user("carol", CAROL), as_user("loader", robot)
    with site.step("a wrong password is 401, and the right one goes on"):
        reply = manifest(sealock, IMAGE, *as_user("carol", "guess"))
        expect_equal((reply.status, reply.error()[0]), (401, "UNAUTHORIZED"), "reply")
        expect_equal(manifest(sealock, IMAGE, *carol).status, 200, "carol's status")
    with site.step("what is forbidden and what is not there are answered alike"):
        for login, status in (((), 401), (carol, 403)):
            replies = [manifest(sealock, image, *login) for image in ("team/crane:5", "team/nobody:5")]
            bodies = {re.sub('crane|nobody|"request":"[0-9a-f]+"', "", reply.body) for reply in replies}
            challenges = {re.sub("crane|nobody", "", reply.headers.get("www-authenticate", "")) for reply in replies}
            expect_equal([reply.status for reply in replies], [status, status], "status")
            expect(len(bodies) == len(challenges) == 1, f"they can be told apart: {bodies} {challenges}")
        statuses = [manifest(sealock, image, *alice).status for image in ("team/crane:5", "team/nobody:5")]
        expect_equal(statuses, [200, 404], "alice's")
    with site.step("a token is for what it was asked for, and says so elsewhere"):
        bearer = ("--header", f"Authorization: Bearer {token(sealock, 'repository:team/crane:pull', *alice)}")
        expect_equal(manifest(sealock, "team/crane:5", *bearer).status, 200, "status")
        reply = manifest(sealock, IMAGE, *bearer)
        expect_equal(reply.status, 401, "status elsewhere")
        expect_in('error="insufficient_scope"', reply.headers["www-authenticate"], "the challenge")
        reply = sealock.get("/v2/team/crane/blobs/uploads/", "--request", "POST", *bearer)
        expect_equal(reply.status, 401, "status of a push with a token for pulls")
    with site.step("the catalog shows each what they may pull"):
        def seen(*login):
            bearer = ("--header", f"Authorization: Bearer {token(sealock, 'registry:catalog:*', *login)}")
            reply = sealock.get("/v2/_catalog?n=1000", *bearer)
            return reply.status, set(json.loads(reply.body)["repositories"])
        (_, all_seen), (_, carols), (status, anyones) = seen(*alice), seen(*carol), seen()
        expect(any(name.startswith("team/") for name in all_seen), f"alice's team is not there: {all_seen}")
        expect_equal(carols, {name for name in all_seen if not name.startswith("team/")}, "carol's")
        expect(any(name.endswith("security-products/semgrep") for name in carols), f"no analyzers: {carols}")
        expect_equal((status, {name.rpartition("/")[2] for name in anyones}), (200, {"trivy-db", "alpine"}), "anyone's")
    with site.step("a robot's token that has ended is 401"):
        short, ends_at = sealock.add_robot("short", "security-products/**", "pull", "2s")
        expect_equal(manifest(sealock, IMAGE, *as_user("short", short)).status, 200, "status before")
        ends_at = datetime.fromisoformat(ends_at.replace("Z", "+00:00")).timestamp()
        wait_until(lambda: time.time() > ends_at, "its end")
        expect_equal(manifest(sealock, IMAGE, *as_user("short", short)).status, 401, "status after")
    with site.step("a robot that is revoked is out at once, and so are its tokens; so is a user who is removed"):
        sealock.add_user("dora", "slack water")
        bearers = [("--header", f"Authorization: Bearer {token(sealock, f'repository:{name}:pull', *login)}")
                   for name, login in (("security-products/semgrep", loader), ("trivy-db", as_user("dora", "slack water")))]
        for image, bearer in zip((IMAGE, "trivy-db:2"), bearers):
            expect_equal(manifest(sealock, image, *bearer).status, 200, f"status of {image} before")
        sealock.run("robot", "revoke", "loader")
        sealock.run("user", "rm", "dora")
        for image, login in ((IMAGE, loader), (IMAGE, bearers[0]), ("trivy-db:2", bearers[1])):
            expect_equal(manifest(sealock, image, *login).status, 401, f"status of {image}")


# Large enough, at this rate, that what the kernel buffers is not all of it.
BLOB_BYTES, RATE = 48 << 20, "8M"


def rotation(site, sealock):
    """A new certificate while somebody pulls."""
    with site.step("the certificate is renewed during a slow pull: it ends well, and new connections get the new one"):
        with open(site.path("blob"), "wb") as file:
            file.write(os.urandom(BLOB_BYTES))
        digest = sha256_of(site.path("blob"))
        begun = sealock.get("/v2/team/slow/blobs/uploads/", "--request", "POST", *as_user("alice", ALICE))
        where = begun.headers["location"]
        where = where.removeprefix(sealock.url) + ("&" if "?" in where else "?") + f"digest={digest}"
        put = sealock.get(where, "--request", "PUT", "--header", "Content-Type: application/octet-stream", "--data-binary",
                          f"@{site.path('blob')}", "--header", "Expect:", *as_user("alice", ALICE))
        expect_equal(put.status, 201, "status of the push")
        got, before = site.path("got"), sealock.shown()
        pull = site.start("slow-pull", ["curl", "--silent", "--show-error", "--fail", "--limit-rate", RATE, "--cacert", sealock.ca,
                                        *as_user("alice", ALICE), "--output", got, f"{sealock.url}/v2/team/slow/blobs/{digest}"])
        wait_until(lambda: os.path.exists(got) and os.path.getsize(got), "the first bytes")
        sealock.run("certs", "renew")
        after = wait_until(lambda: sealock.shown() != before and sealock.shown(), "the new certificate")
        expect(pull.running(), "the pull was over before the new certificate was there: nothing is shown by it")
        wanted = site.run("openssl", "x509", "-noout", "-serial", "-in", sealock.certificate).strip()
        expect_equal(after, wanted, "the certificate that is shown")
        expect_equal(manifest(sealock, IMAGE, *as_user("carol", CAROL)).status, 200, "status by a new connection")
        expect_equal(pull.popen.wait(60), 0, "the pull's status")
        expect_equal(sha256_of(got), digest, "what was pulled")


# How fast the slow line is: too slow for all layers within the robot's life, and fast enough for one.
SLOW, LAYERS, LAYER_BYTES, BRIEF = 2 << 20, 4, 6 << 20, "5s"
THROTTLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "lib", "throttle.py")


def endings(site, sealock):
    """A login that ends while somebody pulls."""
    slow, crane = At.crane.replace(":5000", ":5001"), Client(site, "crane")
    layers = [site.path(f"layer-{number}.tar") for number in range(LAYERS)]
    for layer in layers:
        with open(site.write(f"{layer}.content", ""), "wb") as file:
            file.write(os.urandom(LAYER_BYTES))
        site.run("tar", "--create", "--file", layer, f"--directory={site.folder}", os.path.basename(file.name))
    line = site.start("slow-line", [PYTHON, THROTTLE, f"{Machine.ADDRESS}:5001", f"{Machine.ADDRESS}:5000", str(SLOW)])
    line.wait_for("listening")

    def log_in(host, name):
        password, _ = sealock.add_robot(name, "team/layers", "pull", {"brief": BRIEF}.get(name, "1h"))
        crane.run("auth", "login", host, "-u", name, "--password-stdin", typed=password)
        return password

    with site.step("a robot's token ends while crane pulls: the layer under way comes whole, the next is refused"):
        crane.run("auth", "login", At.crane, "-u", "alice", "--password-stdin", typed=ALICE)
        crane.run("append", "--new_tag", f"{At.crane}/team/layers:1", *[f"--new_layer={layer}" for layer in layers])
        told = json.loads(crane.run("manifest", f"{At.crane}/team/layers:1"))
        brief, got, digest = log_in(slow, "brief"), site.path("under-way"), told["layers"][0]["digest"]
        # Slower still than the line.
        under_way = site.start("under-way", ["curl", "--silent", "--fail", "--limit-rate", str(LAYER_BYTES // 9), "--cacert", sealock.ca,
                                             *as_user("brief", brief), "--output", got,
                                             f"https://{At.crane}/v2/team/layers/blobs/{digest}"])
        wait_until(lambda: os.path.exists(got) and os.path.getsize(got), "the first bytes")
        said = crane.fails("pull", f"{slow}/team/layers:1", site.path("layers.tar"))
        expect_in("UNAUTHORIZED", said, "what it said")
        expect_in("/blobs/", said, "what it was refused")
        expect(under_way.running(), "what was under way was over before the robot's end")
        expect_equal(under_way.popen.wait(60), 0, "the status of what was under way")
        expect_equal(sha256_of(got), digest, "what was under way")
    with site.step("and with another token, it goes on"):
        log_in(slow, "another")
        crane.run("pull", f"{slow}/team/layers:1", site.path("layers.tar"))
    log_out(site)
    line.stop()


def story(site):
    machine = Machine(site, NAMES)
    sealock = SecureSealock(site, SETTINGS, names=NAMES)
    with site.step("before there are rules, it is filled"):
        fill(site, sealock.data)
    with site.step("users, a robot, and what each client needs"):
        sealock.add_user("alice", ALICE)
        sealock.add_user("carol", CAROL)
        robot, _ = sealock.add_robot("loader", "security-products/**", "pull,push")
        for kind, address in WRITTEN:
            sealock.run("client-config", *kind.split(), "--write", "--root", machine.root, "--address", address)
        check = Check(site, sealock)
        # podman and its kin must be told which registries have no TLS.
        site.write("machine/etc/containers/registries.conf.d/60-elsewhere.conf",
                   f'[[registry]]\nlocation = "{check.elsewhere.host}"\ninsecure = true\n')
        with open(site.path("machine/etc/docker/daemon.json")) as file:
            mirrors = [f"--registry-mirror={mirror}" for mirror in json.load(file)["registry-mirrors"]]
    machine.start()
    sealock.start("--listen", f"{machine.ADDRESS}:5000")
    sealock.url = f"https://{At.curl}"
    elsewhere = check.start_elsewhere()
    classic, current = docker_classic(site), docker_current(site)
    # Debian's dockerd looks up Docker Hub's address though its mirror has all: story_clients has it with a mirror.
    current.options += tuple(mirrors)
    docker_story(site, classic, robot, check, elsewhere)
    current.containerd.start()
    ctr(site, current.containerd, check, elsewhere)
    containers(site, check, elsewhere)
    go_programs(site, sealock)
    helm_story(site, check)
    oras(site)
    trivy(site, check)
    docker_story(site, current, robot, check, elsewhere, hosts_toml_checks)
    refusals(site, sealock, robot)
    rotation(site, sealock)
    endings(site, sealock)
    with site.step("zero packets left: nothing was sent outside, by sealock or by any client"):
        machine.witness.expect_silence()
    with site.step("sealock stops in order, and --check says that none runs"):
        sealock.stop()
        check.fails("no sealock serves", "trivy")
