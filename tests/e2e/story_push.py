"""Pushed and pulled back, by every client, while the gate is shut; and what GitLab's guide makes of it.

All of it is told in a network namespace whose witnesses count what leaves: nothing may.
"""

import json
import os

from lib.clients import BIN, Clients, Skopeo
from lib.harness import DIGESTS, HERE, expect, expect_equal, expect_in, sha256_of
from lib.pushers import Buildah, Cosign, Crane, Helm, OrasPush, Regctl, docker_push, expect_same_files, file_sha256
from lib.sealock import Sealock
from lib.upstreams import Registry
from lib.witness import Namespace

SEMGREP, SECRETS, DAST = "security-products/semgrep:5", "security-products/secrets:6", "security-products/dast:latest"
OCI_INDEX, DOCKER_LIST = "application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"
LOADER = os.path.join(HERE, "loader")
COPY = ("skopeo", "copy", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false")


def carry(site):
    """The images as folders, every byte as upstream has it. The upstream is gone afterwards."""
    registry = Registry(site).start()
    registry.seed("--only", "security-products/*")
    for name in (SEMGREP, SECRETS, DAST):
        site.run(*COPY, "--all", f"docker://{registry.host}/{name}", f"dir:{site.make_folder(carried(name))}")
    registry.stop()


def carried(name):
    return "carried-" + name.partition("/")[2].replace(":", "-")


def skopeo(site, sealock, crane):
    """Every platform, both families of types, as they are and converted."""
    puller = Skopeo(site)
    for name in (SEMGREP, SECRETS):
        for options in ((), ("--preserve-digests",)):
            target = f"team/skopeo{len(options)}/{name.partition('/')[2]}"
            with site.step(f"skopeo copy --all {' '.join(options)} {name} and back"):
                site.run(*COPY, "--all", *options, f"dir:{site.path(carried(name))}", f"docker://{sealock.host}/{target}")
                expect_equal(puller.pull(f"{sealock.host}/{target}"), [DIGESTS[name]], "digest")
                crane.validate(target)
    for family, wanted in (("oci", OCI_INDEX), ("v2s2", DOCKER_LIST)):
        for name in (SEMGREP, SECRETS):
            target = f"team/{family}/{name.partition('/')[2]}"
            with site.step(f"skopeo copy --all --format {family} {name} and back"):
                site.run(*COPY, "--all", "--format", family, f"dir:{site.path(carried(name))}", f"docker://{sealock.host}/{target}")
                expect_equal(json.loads(crane.run("manifest", f"{sealock.host}/{target}"))["mediaType"], wanted, "type")
                puller.pull(f"{sealock.host}/{target}")
                crane.validate(target)
    with site.step("skopeo copies within sealock, and mounts"):
        inside = f"docker://{sealock.host}/team/mounted/semgrep:5"
        site.run(*COPY, "--all", f"docker://{sealock.host}/team/skopeo0/semgrep:5", inside)
        crane.validate("team/mounted/semgrep:5")
    with site.step("skopeo delete, and nobody finds it"):
        site.run("skopeo", "delete", "--tls-verify=false", inside)
        expect_equal(sealock.manifest("team/mounted/semgrep", "5").status, 404, "status")
        crane.validate("team/skopeo0/semgrep:5")


def podman_and_buildah(site, sealock, clients, crane):
    podman, buildah = clients.podman, Buildah(site)
    with site.step("podman pushes what it pulled, and pulls it back"):
        source, target = f"{sealock.host}/team/skopeo0/secrets:6", f"{sealock.host}/team/podman/secrets:6"
        podman.pull(source)
        told = site.path("podman.digest")
        site.run(*podman.command("push", "--quiet", "--tls-verify=false", "--digestfile", told, source, target))
        podman.empty()
        with open(told) as file:
            expect_in(file.read().strip(), podman.pull(target), "digests")
        crane.validate("team/podman/secrets:6")
    for family in ("oci", "v2s2"):
        with site.step(f"buildah builds, pushes as {family} and pulls back"):
            buildah.build(f"built-{family}", site.write(f"{family}.txt", f"a file in an image of {family}\n"))
            target = f"team/buildah-{family}:1"
            digest = buildah.push(f"built-{family}", f"{sealock.host}/{target}", "--format", family)
            expect_equal(buildah.pull(f"{sealock.host}/{target}"), digest, "digest")
            crane.validate(target)


def artifacts(site, sealock, clients):
    """oras and helm."""
    with site.step("oras pushes two files and pulls them back"):
        site.write("oras-in/one.txt", "one\n")
        site.write("oras-in/two.txt", "two\n" * 100_000)
        wanted = file_sha256(site, "oras-in")
        OrasPush(site).push(f"{sealock.host}/team/oras:1", *(site.path("oras-in", name) for name in wanted))
        expect_equal(sorted(clients.oras.pull(f"{sealock.host}/team/oras:1")), sorted(wanted.values()), "digests of files")
    helm = Helm(site, sealock.host)
    with site.step("helm pushes a chart, shows it and pulls it back"):
        package = helm.package()
        helm.run("push", "--plain-http", package, f"oci://{sealock.host}/charts")
        shown = helm.run("show", "chart", "--plain-http", f"oci://{sealock.host}/charts/tide", "--version", "1.2.3")
        expect_in("description: High and low", shown, "`helm show chart`")
        helm.run("pull", "--plain-http", f"oci://{sealock.host}/charts/tide", "--version", "1.2.3",
                 "--destination", site.make_folder("helm-out"))
        expect_equal(sha256_of(site.path("helm-out", "tide-1.2.3.tgz")), sha256_of(package), "the chart")


def crane_story(site, sealock, crane):
    source, own = f"{sealock.host}/team/skopeo0/semgrep:5", f"{sealock.host}/team/crane"
    with site.step("crane pulls a layout and a tar, and pushes both"):
        crane.run("pull", "--format", "oci", source, site.path("crane-layout"))
        crane.run("push", "--index", site.path("crane-layout"), f"{own}/layout:1")
        crane.run("pull", "--platform", "linux/amd64", source, site.path("crane.tar"))
        crane.run("push", site.path("crane.tar"), f"{own}/tar:1")
        for name in ("team/crane/layout:1", "team/crane/tar:1"):
            crane.validate(name)
    with site.step("crane copies, and the digest stays"):
        crane.run("copy", source, f"{own}/copy:5")
        expect_equal(crane.digest("team/crane/copy:5"), DIGESTS[SEMGREP], "digest")
        crane.validate("team/crane/copy:5")
    with site.step("crane appends a layer and changes labels"):
        site.write("layer/extra.txt", "one more file\n")
        site.run("tar", "--create", "--file", site.path("layer.tar"), "--directory", site.path("layer"), "extra.txt")
        crane.run("append", "--base", f"{own}/tar:1", "--new_layer", site.path("layer.tar"), "--new_tag", f"{own}/tar:more")
        crane.run("mutate", "--label", "tide=high", "--annotation", "org.example.tide=low", "--tag", f"{own}/tar:labelled", f"{own}/tar:more")
        expect_equal(json.loads(crane.run("config", f"{own}/tar:labelled"))["config"]["Labels"]["tide"], "high", "label")
        for name in ("team/crane/tar:more", "team/crane/tar:labelled"):
            crane.validate(name)
    with site.step("crane lists repositories and tags"):
        catalog = crane.run("catalog", sealock.host).splitlines()
        for name in ("team/crane/copy", "team/crane/tar", "team/skopeo0/semgrep", "charts/tide"):
            expect_in(name, catalog, "`crane catalog`")
        expect_equal(crane.run("ls", f"{own}/tar").splitlines(), ["1", "labelled", "more"], "`crane ls`")
    with site.step("crane tags and deletes"):
        crane.run("tag", f"{own}/tar:1", "2")
        crane.run("delete", f"{own}/tar:2")
        expect_equal(crane.run("ls", f"{own}/tar").splitlines(), ["1", "labelled", "more"], "tags after one was deleted")
        crane.run("delete", f"{own}/tar@{crane.digest('team/crane/tar:labelled')}")
        expect_equal(crane.run("ls", f"{own}/tar").splitlines(), ["1", "more"], "tags after a manifest was deleted")
        crane.validate("team/crane/tar:more")


def cosign_story(site, sealock, crane):
    cosign = Cosign(site, sealock.host)
    image = f"{sealock.host}/team/crane/copy@{DIGESTS[SEMGREP]}"
    predicate = site.write("predicate.json", '{"tide": "high"}')
    with site.step("cosign signs as a tag and as a referrer, and verifies both"):
        cosign.run("generate-key-pair")
        for bundle in ("false", "true"):
            cosign.run("sign", *cosign.SIGN, f"--new-bundle-format={bundle}", image)
            expect_in(DIGESTS[SEMGREP], cosign.run("verify", *cosign.VERIFY, f"--new-bundle-format={bundle}", image), "verified")
        expect_in(DIGESTS[SEMGREP].replace(":", "-") + ".sig", crane.run("ls", f"{sealock.host}/team/crane/copy").splitlines(), "tags")
    with site.step("cosign attests as a tag and as a referrer, and verifies both"):
        for bundle in ("false", "true"):
            cosign.run("attest", *cosign.SIGN, f"--new-bundle-format={bundle}", "--type", "custom", "--predicate", predicate, image)
            cosign.run("verify-attestation", *cosign.VERIFY, f"--new-bundle-format={bundle}", "--type", "custom", image)
    with site.step("and another key does not verify"):
        other = site.make_folder("other-key")
        cosign.run("generate-key-pair", "--output-key-prefix", os.path.join(other, "cosign"))
        options = [os.path.join(other, "cosign.pub") if word == "cosign.pub" else word for word in cosign.VERIFY]
        said = site.run_fails(os.path.join(BIN, "cosign"), "verify", *options, image)
        expect_in("signature", said, "why")


def regctl_story(site, sealock, crane):
    regctl = Regctl(site, sealock.host)
    image, own = f"{sealock.host}/team/crane/copy:5", f"{sealock.host}/team/regctl"
    with site.step("regctl copies an image with its referrers and digest tags: signatures travel along"):
        regctl.run("image", "copy", "--referrers", "--digest-tags", image, f"{own}:5")
        expect_equal(crane.digest("team/regctl:5"), DIGESTS[SEMGREP], "digest")
        before, after = (json.loads(regctl.run("artifact", "list", name, "--format", "{{json .Descriptors}}")) for name in (image, f"{own}:5"))
        expect(len(before) >= 2, f"signature and attestation as referrers: {before}")
        expect_equal({entry["digest"] for entry in after}, {entry["digest"] for entry in before}, "referrers")
        expect_equal(crane.run("ls", own), crane.run("ls", f"{sealock.host}/team/crane/copy"), "tags")
        Cosign(site, sealock.host).run("verify", *Cosign.VERIFY, "--new-bundle-format=false", f"{own}@{DIGESTS[SEMGREP]}")
    with site.step("regctl puts an artifact, gets it back, and finds it as a referrer"):
        note = site.write("note.txt", "checked on the quay\n")
        put = ("artifact", "put", "--artifact-type", "application/vnd.example.note", "--file", note, "--file-media-type", "text/plain")
        regctl.run(*put, f"{own}:note")
        regctl.run(*put, "--subject", f"{own}:5")
        expect_equal(regctl.run("artifact", "get", f"{own}:note"), "checked on the quay", "the artifact")
        got = regctl.run("artifact", "get", "--subject", f"{own}:5", "--filter-artifact-type", "application/vnd.example.note")
        expect_equal(got, "checked on the quay", "the referrer")
        expect_in("application/vnd.example.note", regctl.run("artifact", "tree", f"{own}:5"), "`regctl artifact tree`")
    with site.step("regctl reads a blob and heads it; curl a part of it"):
        layer = regctl.run("image", "manifest", "--platform", "linux/amd64", f"{own}:5", "--format", "{{(index .Layers 0).Digest}}")
        size = int(regctl.run("blob", "head", own, layer, "--format", "{{.GetDescriptor.Size}}"))
        expect_equal(part_of(site, f"{sealock.url}/v2/team/regctl/blobs/{layer}"), f"206 10 bytes 10-19/{size}", "reply")
    with site.step("regctl deletes a tag and leaves its manifest to the others"):
        regctl.run("image", "copy", f"{own}:5", f"{own}:gone")
        regctl.run("tag", "delete", f"{own}:gone")
        expect("gone" not in regctl.run("tag", "ls", own).splitlines(), "the tag is still listed")
        expect_equal(crane.digest("team/regctl:5"), DIGESTS[SEMGREP], "digest")
        crane.validate("team/regctl:5")


def part_of(site, url):
    """Status, size and Content-Range of a ranged GET."""
    said = site.run("curl", "--silent", "--show-error", "--dump-header", site.path("head.txt"), "--range", "10-19", "--output",
                    site.path("part.bin"), "--write-out", "%{http_code} %{size_download}", url)
    with open(site.path("head.txt")) as head:
        ranges = [line.split(": ", 1)[1].strip() for line in head if line.lower().startswith("content-range: ")]
    return " ".join([said, *ranges])


def daemons(site, sealock, clients, crane):
    """Both docker daemons, and containerd by itself."""
    for docker in (clients.docker_classic, clients.docker_current):
        with site.step(f"{docker.name} pushes what it pulled, forgets it and pulls it back"):
            source, target = f"{sealock.host}/team/skopeo0/semgrep:5", f"team/{docker.name}/semgrep:5"
            docker.pull(source)
            digest = docker_push(docker, source, f"{sealock.host}/{target}")
            docker.empty()
            expect_equal(docker.pull(f"{sealock.host}/{target}"), [digest], "digest")
            crane.validate(target)
            # The other mounts what it runs, and in this namespace each program has mounts of its own.
            if docker is clients.docker_classic:
                expect_in("semgrep fixture analyzer", docker.run(f"{sealock.host}/{target}"), "output")
    ctr = clients.ctr
    with site.step("ctr pushes every platform of what it pulled, and pulls it back"):
        source, target = f"{sealock.host}/team/skopeo0/semgrep:5", f"{sealock.host}/team/ctr/semgrep:5"
        site.run(*ctr.command("images", "pull", "--plain-http", "--all-platforms", source))
        site.run(*ctr.command("images", "push", "--plain-http", target, source))
        ctr.empty()
        site.run(*ctr.command("images", "pull", "--plain-http", "--all-platforms", target))
        expect_in(DIGESTS[SEMGREP], site.run(*ctr.command("images", "ls")), "`ctr images ls`")
        expect_equal(crane.digest("team/ctr/semgrep:5"), DIGESTS[SEMGREP], "digest")
        crane.validate("team/ctr/semgrep:5")
    # The current docker's containerd was emptied under it.
    clients.docker_current.empty()


def guide(site, sealock, clients, crane):
    """GitLab's guide for offline sites: analyzers come as tars; runners find them by SECURE_ANALYZERS_PREFIX."""
    loading, runner = clients.docker_classic, clients.docker_current
    analyzers = site.make_folder("analyzers")
    with site.step("outside, `docker save` makes the files that are carried: semgrep_6.tar, secrets_7.tar.gz, dast_5.tar"):
        for name, version, kind in ((SEMGREP, "semgrep_6", ".tar"), (SECRETS, "secrets_7", ".tar.gz"), (DAST, "dast_5", ".tar")):
            saved, image = os.path.join(analyzers, f"{version}.tar"), f"registry.gitlab.com/security-products/{version.replace('_', ':')}"
            archive = site.path(f"{version}.archive")
            site.run("skopeo", "copy", "--quiet", f"dir:{site.path(carried(name))}", f"docker-archive:{archive}:{image}")
            site.run(*loading.command("load", "--input", archive))
            site.run(*loading.command("save", "--output", saved, image))
            if kind == ".tar.gz":
                site.run("gzip", saved)
                site.write("analyzers/secrets_7.tar.gz.sha256sum", sha256_of(saved + ".gz")[len("sha256:"):] + "  secrets_7.tar.gz\n")
    files = [os.path.join(analyzers, name) for name in ("semgrep_6.tar", "secrets_7.tar.gz", "dast_5.tar")]

    def load(docker, *arguments):
        return site.run(LOADER, *arguments, DOCKER_HOST=f"unix://{docker.socket}").splitlines()

    clients.docker_classic.empty()
    with site.step("the loader pushes them under the prefix that the runners use, while the gate is closed"):
        prefix = f"{sealock.host}/security-products"
        expect_equal(load(loading, prefix, *files), [f"{prefix}/{name}" for name in ("semgrep:6", "secrets:7", "dast:5")], "pushed")
    with site.step("and under prefixes of sites' own, with a tag of their own"):
        for docker, prefix in ((loading, f"{sealock.host}/analyzers"), (runner, f"{sealock.host}/namespace/sub")):
            expect_equal(load(docker, prefix, files[0]), [f"{prefix}/semgrep:6"], "pushed")
            expect_equal(load(docker, "--tag", "latest", prefix, files[2]), [f"{prefix}/dast:latest"], "pushed")
    with site.step("a file that is damaged is not loaded, the others are, and the loader says so"):
        with open(files[1] + ".sha256sum", "w") as file:
            file.write("0" * 64 + "  secrets_7.tar.gz\n")
        done = site.try_run(LOADER, f"{sealock.host}/again", files[1], files[0], DOCKER_HOST=f"unix://{loading.socket}")
        expect_equal((done.returncode, done.stdout), (1, f"{sealock.host}/again/semgrep:6\n"), "status and what was pushed")
        expect_in("not loaded: " + files[1], done.stderr, "what it said")

    pulls = ["security-products/semgrep:6", "security-products/secrets:7", "security-products/dast:5", "analyzers/semgrep:6",
             "analyzers/dast:latest", "namespace/sub/semgrep:6", "namespace/sub/dast:latest"]
    for client in (loading, runner, clients.podman):
        client.empty()
        for name in pulls:
            with site.step(f"gate closed: {client.name} pulls $PREFIX/{name}, as a runner does"):
                client.pull(f"{sealock.host}/{name}")
    with site.step("gate closed: the job runs in what it pulled, and all of it is whole"):
        expect_in("semgrep fixture analyzer", loading.run(f"{sealock.host}/security-products/semgrep:6"), "output")
        for name in pulls:
            # The current docker pushes what it loaded uncompressed, which `crane validate` takes for damaged, whatever the
            # registry; skopeo checks the digests of that.
            if name.startswith("namespace/"):
                clients.skopeo.pull(f"{sealock.host}/{name}")
            else:
                crane.validate(name)


def story(site):
    carry(site)
    witness = Namespace(site).start()
    sealock = Sealock(site, "").start()
    clients, crane = Clients(site, sealock), Crane(site, sealock.host)
    clients.empty()
    skopeo(site, sealock, crane)
    podman_and_buildah(site, sealock, clients, crane)
    artifacts(site, sealock, clients)
    crane_story(site, sealock, crane)
    cosign_story(site, sealock, crane)
    regctl_story(site, sealock, crane)
    daemons(site, sealock, clients, crane)
    guide(site, sealock, clients, crane)
    with site.step("all of it is there after a restart"):
        sealock.stop()
        sealock = Sealock(site, "").start()
        crane = Crane(site, sealock.host)
        for name in crane.run("catalog", sealock.host).splitlines():
            for tag in crane.run("ls", f"{sealock.host}/{name}").splitlines():
                expect_equal(sealock.manifest(name, tag).status, 200, f"{name}:{tag}")
        for name in ("team/crane/copy:5", "security-products/semgrep:6"):
            crane.validate(name)
    with site.step("zero packets left: nothing was sent outside, by sealock or by any client"):
        witness.expect_silence()
    with site.step("sealock stops in order"):
        sealock.stop()
