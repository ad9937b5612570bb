"""File systems of the story's own: one that loses power, and one that is small."""

import fcntl
import os
import shutil
import struct

from lib.harness import PATH, Failure, expect, wait_until

# ext4's EXT4_IOC_SHUTDOWN is xfs's XFS_IOC_GOINGDOWN, and so is the flag: leave the journal unflushed (linux/fs/ext4/ext4.h).
SHUTDOWN, WITHOUT_FLUSH = 0x8004587D, 2
SIZE_BYTES = 512 << 20
MAKERS = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}


def missing():
    """What this machine lacks to cut the power, in words; empty if nothing."""
    lacks = [maker[0] for maker in MAKERS.values() if not shutil.which(maker[0], path=PATH)]
    if not os.path.exists("/dev/loop-control"):
        lacks.append("loop devices (/dev/loop-control)")
    with open("/proc/filesystems") as known:
        systems = known.read().split()
    # A module that is not loaded yet is loaded by mount.
    lacks += [f"{system} in the kernel" for system in MAKERS
              if system not in systems and not shutil.which("modprobe", path=PATH)]
    return lacks


class LoopDisk:
    """A file system of `kind` in a file, whose power can be cut."""

    def __init__(self, site, kind):
        self.site, self.point = site, site.make_folder(kind)
        image = site.path(f"{kind}.image")
        with open(image, "wb") as file:
            file.truncate(SIZE_BYTES)
        site.run(*MAKERS[kind], image)
        self.device = site.run("losetup", "--find", "--show", image).strip()
        site.cleanups.append(self.remove)
        self.mount()

    def mount(self):
        self.site.run("mount", self.device, self.point)

    def unmount(self):
        # Who was killed a moment ago may still hold it.
        wait_until(self.try_unmount, f"{self.point} to be unmounted")

    def try_unmount(self):
        done = self.site.try_run("umount", self.point)
        if done.returncode != 0:
            raise Failure(done.stderr)
        return True

    def cut(self):
        """From now on nothing reaches the disk: neither what is only in memory nor the journal's last entries."""
        folder = os.open(self.point, os.O_RDONLY)
        try:
            fcntl.ioctl(folder, SHUTDOWN, struct.pack("I", WITHOUT_FLUSH))
        finally:
            os.close(folder)

    def power_on(self):
        """What a machine finds when it is started again."""
        self.unmount()
        self.mount()

    def remove(self):
        if os.path.ismount(self.point):
            self.unmount()
        self.site.run("losetup", "--detach", self.device)


class SmallDisk:
    """A file system of so many MiB, and a file that takes what is to be taken of it."""

    def __init__(self, site, name, mebibytes):
        self.site, self.point = site, site.make_folder(name)
        site.run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", self.point)
        site.cleanups.append(lambda: site.run("umount", self.point))
        self.ballast = os.path.join(self.point, "ballast")

    def fill(self, leave=0):
        """Take all but `leave` bytes."""
        with open(self.ballast, "wb") as file:
            found = os.statvfs(self.point)
            size = found.f_bavail * found.f_frsize - leave
            expect(size > 0, f"{self.point} is full already")
            os.posix_fallocate(file.fileno(), 0, size)

    def make_room(self):
        os.remove(self.ballast)
