"""What sealock asks of the kernel, seen and stopped by strace."""

import os
import re

from lib.harness import expect

# All that changes what is on the disk, as one trace of a push, a tag move, a deletion and a collection shows; SQLite
# writes by pwrite64 and syncs by fsync.
CHANGING = ("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "unlink", "ftruncate", "mkdir")
# Calls that a run makes, at most, of any one kind in any one thread: more is a loop without end.
CALLS_MAX = 5000
TIDY = ("strace", "--follow-forks", "--quiet=all")

LINE = re.compile(r"(?P<thread>\d+) +(?P<rest>.*)")
STARTED = re.compile(r"(?P<call>\w+)\((?P<arguments>.*)")
RESUMED = re.compile(r"<\.\.\. (?P<call>\w+) resumed>(?P<arguments>.*)")
PATH = re.compile(r"<(/[^>]*)>|\"(/[^\"]*)\"")


def killing(call, number):
    """Run under this, a program is killed at the `number`th `call` of whichever thread makes so many first.

    strace counts each kind of call of each thread by itself.
    """
    return (*TIDY, "--output=/dev/null", f"--trace={call}", f"--inject={call}:signal=SIGKILL:when={number}")


def failing(call, number, file):
    """As `killing`, but the call fails as on a broken disk; `file`: see `injected`."""
    return (*TIDY, "--decode-fds=path", f"--output={file}", f"--trace={call}", f"--inject={call}:error=EIO:when={number}")


def injected(file):
    """The path of the call that was made to fail; None if it was never made. The program still runs."""
    with open(file, errors="replace") as lines:
        failed = next((line for line in lines if "(INJECTED)" in line), None)
    return failed and PATH.search(failed)[1]


def watching(file):
    calls = "fsync,fdatasync,rename,renameat2,mkdir,write,writev,sendto,sendmsg"
    return (*TIDY, "--decode-fds=path", "--string-limit=64", f"--output={file}", f"--trace={calls}")


class Trace:
    """What was made durable, and what was answered, in order: an fsync counts when it has ended, an answer when it begins."""

    def __init__(self, file, data):
        self.data, self.events = data, []
        begun = {}
        with open(file, errors="replace") as lines:
            for line in lines:
                match = LINE.match(line)
                if match:
                    self.read(match["thread"], match["rest"], begun)

    def read(self, thread, rest, begun):
        if resumed := RESUMED.match(rest):
            call, arguments = resumed["call"], begun.pop((thread, resumed["call"]), "") + resumed["arguments"]
        elif started := STARTED.match(rest):
            call, arguments = started["call"], started["arguments"]
            if arguments.rstrip().endswith("<unfinished ...>"):
                begun[thread, call] = arguments
                if call in ("write", "writev", "sendto", "sendmsg"):
                    self.note_answer(arguments)
                return
            if call in ("write", "writev", "sendto", "sendmsg"):
                self.note_answer(arguments)
                return
        else:
            return
        paths = [os.path.relpath(one or other, self.data) for one, other in PATH.findall(arguments)]
        if not arguments.rstrip().endswith("= 0") or call in ("write", "writev", "sendto", "sendmsg"):
            return
        if call in ("fsync", "fdatasync"):
            self.events.append(f"sync {paths[0]}")
        elif call.startswith("rename"):
            self.events.append(f"rename {paths[-2]} to {paths[-1]}")
        elif call == "mkdir":
            self.events.append(f"mkdir {paths[-1]}")

    def note_answer(self, arguments):
        if answer := re.search(r"HTTP/1\.1 (\d{3})", arguments):
            self.events.append(f"answer {answer[1]}")
        elif "listening on" in arguments:
            self.events.append("listening")

    def between_answers(self):
        """The events before each answer and since the one before it, the answer last; without what came before listening."""
        pieces, piece = [], []
        for event in self.events[self.events.index("listening") + 1:]:
            piece.append(event)
            if event.startswith("answer"):
                pieces.append(piece)
                piece = []
        return pieces


def expect_order(events, patterns, what):
    """`events` has, among others, one that matches each of `patterns`, in their order."""
    left = iter(events)
    for pattern in patterns:
        expect(any(re.fullmatch(pattern, event) for event in left),
               f"{what}: no `{pattern}` where it must be, in\n" + "\n".join(events))
