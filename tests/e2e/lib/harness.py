"""Processes, folders and steps: everything a story starts, it stops again, and every failure shows the logs."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CHECKOUT = os.path.dirname(os.path.dirname(HERE))
FIXTURES = os.path.join(CHECKOUT, "tests", "fixtures")
TOOLS = os.path.join(CHECKOUT, "target", "e2e-tools")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY_SECONDS = 60
COMMAND_SECONDS = 180
POLL_SECONDS = 0.05
TAIL_LINES = 15

with open(os.path.join(FIXTURES, "digests.json")) as file:
    DIGESTS = {name: entry["digest"] for name, entry in json.load(file).items()}


class Failure(Exception):
    """Something was not as the story says; the text is for the reader of the report."""


class Died(Failure):
    """A process ended that should run; no use in waiting for it."""


def expect(condition, message):
    if not condition:
        raise Failure(message)


def expect_equal(got, wanted, what):
    expect(got == wanted, f"{what}: got {got!r}, wanted {wanted!r}")


def expect_in(part, whole, what):
    expect(part in whole, f"{what}: no {part!r} in\n{whole}")


def wait_until(condition, what, seconds=READY_SECONDS):
    """Ask `condition` until it returns something true; that is returned. A Failure it raises counts as not yet."""
    deadline, last = time.monotonic() + seconds, None
    while True:
        try:
            value = condition()
            if value:
                return value
        except Died:
            raise
        except Failure as failure:
            last = failure
        if time.monotonic() > deadline:
            raise Failure(f"waited {seconds} s for {what}" + (f"; last: {last}" if last else ""))
        time.sleep(POLL_SECONDS)


def remove_folder(folder):
    """Remove a folder, and first what is mounted below it: docker mounts its own and does not always unmount it."""
    with open("/proc/self/mountinfo") as mounts:
        points = [line.split()[4] for line in mounts]
    for point in reversed(points):
        if point.startswith(folder + "/"):
            subprocess.run(["umount", point], check=True)
    if os.path.exists(folder):
        shutil.rmtree(folder)


def printable(text):
    return "".join(character if character.isprintable() else "?" for character in text)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return "sha256:" + digest.hexdigest()


def clean_environment(home):
    """The caller's environment without what would lead a client elsewhere: proxies, registries, credentials."""
    drop = re.compile(r"(?i)^((https?|all|no|ftp)_proxy|(docker|containers?|containerd|trivy|registry|sealock)_.*|xdg_.*|ssl_cert_.*)$")
    kept = {name: value for name, value in os.environ.items() if not drop.match(name)}
    return {**kept, "HOME": home, "DOCKER_CONFIG": os.path.join(home, ".docker"), "LC_ALL": "C.UTF-8",
            "PATH": PATH}


class Process:
    """A long-running program. Its output goes to a log file; `ready` finds in there that it is up."""

    def __init__(self, name, command, environment, folder):
        self.name = name
        self.log = os.path.join(folder, name + ".log")
        with open(self.log, "ab") as log:
            self.log_start = log.tell()
            # A session of its own: Ctrl-C reaches us alone, and we stop things in order.
            self.popen = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                                          stderr=subprocess.STDOUT, start_new_session=True)

    def output(self):
        """What it printed since this start."""
        with open(self.log, errors="replace") as log:
            log.seek(self.log_start)
            return log.read()

    def find(self, pattern):
        """The first match in its output; a Failure if it ended instead."""
        match = re.search(pattern, self.output())
        if not match and self.popen.poll() is not None:
            raise Died(f"{self.name} ended with status {self.popen.returncode}:\n{self.output()[-4000:]}")
        return match

    def wait_for(self, pattern):
        return wait_until(lambda: self.find(pattern), f"`{pattern}` from {self.name}\n{self.output()[-4000:]}")

    def running(self):
        return self.popen.poll() is None

    def stop(self, how=signal.SIGTERM, seconds=20):
        if self.running():
            self.popen.send_signal(how)
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        return self.popen.returncode


class Site:
    """One story's folder, processes and count of steps. `inside` is put before every command: see lib/witness.py."""

    def __init__(self, name):
        self.name = name
        # Short: a unix socket's path ends at 107 characters, podman's run root at 50.
        self.folder = tempfile.mkdtemp(prefix="sealock-e2e-", dir="/tmp")
        self.inside = []
        self.processes = []
        self.cleanups = []
        self.passed = self.failed = 0
        self.environment = clean_environment(self.make_folder("home"))
        self.write("home/.docker/config.json", "{}")
        self.make_folder("logs")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in reversed(self.processes):
            process.stop()
        for cleanup in reversed(self.cleanups):
            cleanup()
        remove_folder(self.folder)

    def path(self, *parts):
        return os.path.join(self.folder, *parts)

    def make_folder(self, *parts):
        os.makedirs(self.path(*parts), exist_ok=True)
        return self.path(*parts)

    def empty_folder(self, *parts):
        remove_folder(self.path(*parts))
        return self.make_folder(*parts)

    def write(self, name, text):
        path = self.path(name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(text)
        return path

    def start(self, name, command, **environment):
        """Start a program that runs until it is stopped, here or at the end of the story."""
        command = [*self.inside, *command]
        process = Process(name, command, {**self.environment, **environment}, self.path("logs"))
        self.processes.append(process)
        return process

    def try_run(self, *command, seconds=COMMAND_SECONDS, typed="", **environment):
        """Run a command to its end, whatever that is. `typed` is its standard input: a password, above all."""
        command = [*self.inside, *command]
        try:
            return subprocess.run(command, env={**self.environment, **environment}, cwd=self.folder, text=True,
                                  input=typed, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds)
        except subprocess.TimeoutExpired as timeout:
            raise Failure(f"no end after {seconds} s: {' '.join(command)}\n{timeout.stdout}\n{timeout.stderr}") from None

    def run(self, *command, **options):
        """Run a command that must succeed; its standard output is returned."""
        done = self.try_run(*command, **options)
        expect(done.returncode == 0, f"status {done.returncode} from {' '.join(command)}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run_fails(self, *command, **options):
        """Run a command that must fail; all it said is returned."""
        done = self.try_run(*command, **options)
        said = done.stdout + done.stderr
        expect(done.returncode != 0, f"should have failed: {' '.join(command)}\n{said}")
        return said

    @contextlib.contextmanager
    def step(self, title):
        """One line of the report. A failure is shown with the logs, and the story goes on."""
        started = time.monotonic()
        marks = {process.log: os.path.getsize(process.log) for process in self.processes}
        try:
            yield
        except Exception as failure:  # Whatever went wrong is the report's to say, and no reason to skip the rest.
            self.failed += 1
            self.say(f"FAIL {title}: {type(failure).__name__}: {failure}")
            self.show_logs(marks)
        else:
            self.passed += 1
            self.say(f"ok   {title} ({time.monotonic() - started:.1f} s)")

    def say(self, text):
        print("\n".join(f"{self.name:15} {line}" for line in text.splitlines()), flush=True)

    def show_logs(self, marks):
        """The end of what each process logged since `marks`."""
        for log in dict.fromkeys(process.log for process in self.processes):
            with open(log, errors="replace") as file:
                file.seek(marks.get(log, 0))
                lines = file.read().splitlines()[-TAIL_LINES:]
            if lines:
                self.say(f"---- {os.path.basename(log)}")
                self.say("\n".join("  " + printable(line[:400]) for line in lines))
