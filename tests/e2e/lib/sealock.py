"""sealock itself, as an operator runs it: settings, `serve`, the gate, and what it answers."""

import json
import os
import signal

from lib.harness import CHECKOUT, expect, wait_until

BINARY = os.path.abspath(os.environ.get("SEALOCK") or os.path.join(CHECKOUT, "target", "release", "sealock"))

SETTINGS = """presets = ["gitlab", "trivy", "hub"]

[server]
listen = ["127.0.0.1:0"]
data = "{data}"

{more}"""


class Reply:
    """What curl got: status, headers by lower-case name, body."""

    def __init__(self, text):
        # Line ends are plain here: the output was read as text.
        head, _, self.body = text.partition("\n\n")
        first, *lines = head.split("\n")
        self.status = int(first.split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def error(self):
        """The first error of an OCI error body: its code and message."""
        error = json.loads(self.body)["errors"][0]
        return error["code"], error["message"]


class Sealock:
    """One data folder, and the server that owns it while it runs."""

    def __init__(self, site, settings, name="sealock", data=None):
        self.site, self.name = site, name
        self.data = data or site.path("data")
        self.settings = site.write(f"{name}.toml", SETTINGS.format(data=self.data, more=settings))
        self.process = None
        self.url = None

    def start(self, *options, under=()):
        """`under`: a program, with its arguments, that is to run it, such as strace."""
        self.process = self.site.start(self.name, [*under, BINARY, "-c", self.settings, "serve", *options])
        self.url = self.process.wait_for(r"listening on (https?://\S+)")[1]
        return self

    def stop(self):
        """Ask it to end; it must do so by itself and in order."""
        status = self.process.stop()
        expect(status == 0, f"{self.name} ended with status {status} when asked to stop")

    def kill(self):
        """End it as the kernel would: at once, wherever it is. What runs it ends with it."""
        if self.process:
            pid = self.pid()
            if pid:
                os.kill(pid, signal.SIGKILL)
            else:
                # It did not get as far, or its disk is gone.
                self.process.popen.kill()
            self.process.popen.wait()

    def pid(self):
        """Of the server itself, whatever runs it; None if it does not run."""
        try:
            with open(os.path.join(self.data, "lock")) as lock:
                pid = int(lock.read().split()[0])
            with open(f"/proc/{pid}/cmdline") as command:
                return pid if self.settings in command.read() else None
        except (OSError, IndexError, ValueError):
            return None

    @property
    def host(self):
        return self.url.partition("://")[2]

    def run(self, *arguments, **options):
        return self.site.run(BINARY, "-c", self.settings, *arguments, **options)

    def open(self, why):
        self.run("gate", "open", "--for", "1h", "--why", why)

    def close(self):
        """Close the gate; fills that run, for the client or by themselves, may end first."""
        self.run("gate", "close", "--drain", "1m")
        wait_until(self.is_closed, "the gate to close")

    def is_closed(self):
        """Nothing may leave any more, and nothing is on its way out either."""
        gate = json.loads(self.run("gate", "status", "--json"))
        return not gate["open"] and not gate["draining"]

    def wanted(self):
        """The demand ledger, as text: one line of JSON is enough to look for names."""
        return json.dumps(json.loads(self.run("status", "--wanted", "--json")))

    def audit(self):
        """The audit file's events, oldest first."""
        with open(os.path.join(self.data, "audit", "audit.jsonl")) as lines:
            return [json.loads(line) for line in lines]

    def get(self, path, *options):
        """GET a path with curl, which works inside a network namespace too."""
        return Reply(self.site.run("curl", "--silent", "--show-error", "--include", "--max-time", "90", *options, self.url + path))

    def manifest(self, name, reference):
        accept = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, " \
                 "application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json"
        return self.get(f"/v2/{name}/manifests/{reference}", "--header", f"Accept: {accept}")

    def stale_manifest(self, name, reference):
        """The manifest if it is served, and served as stale: with `Warning: 299`. Otherwise None."""
        reply = self.manifest(name, reference)
        return reply if reply.status == 200 and reply.headers.get("warning", "").startswith("299 ") else None
