"""A network namespace whose only way out leads to a sink, and two witnesses that count what takes it."""

import json
import os
import re

from lib.harness import expect

# Benchmarking addresses (RFC 2544): nobody's, and routed nowhere.
INSIDE, SINK = "198.18.0.1", "198.18.0.2"


class Namespace:
    """Whoever lives in here has a default route and a name server, both at the sink, which answers nothing.

    The witnesses are an nft counter on everything that leaves by another way than loopback, and tcpdump at the sink.
    """

    def __init__(self, site):
        self.site = site
        self.inside, self.sink = (f"sealock-e2e-{os.getpid()}-{name}" for name in ("inside", "sink"))
        self.tcpdump = None

    def start(self):
        """Make it, and let every later command of the site run inside."""
        for namespace in (self.inside, self.sink):
            self.site.run("ip", "netns", "add", namespace)
            self.site.cleanups.append(lambda namespace=namespace: self.site.try_run("ip", "netns", "delete", namespace))
            # Without IPv6 the kernel has nothing to say by itself.
            self.site.run(*self.enter(namespace), "sysctl", "--quiet", "net.ipv6.conf.all.disable_ipv6=1",
                          "net.ipv6.conf.default.disable_ipv6=1")
        self.ip("link", "add", "way-out", "netns", self.inside, "type", "veth", "peer", "name", "arrival", "netns", self.sink)
        for namespace, address, device in ((self.inside, INSIDE, "way-out"), (self.sink, SINK, "arrival")):
            self.ip("-netns", namespace, "address", "add", f"{address}/30", "dev", device)
            self.ip("-netns", namespace, "link", "set", "lo", "up")
            self.ip("-netns", namespace, "link", "set", device, "up")
        self.ip("-netns", self.inside, "route", "add", "default", "via", SINK)

        # The kernel asks for the neighbour's address by itself; all else counts.
        self.tcpdump = self.site.start("tcpdump", [*self.enter(self.sink), "tcpdump", "-i", "arrival", "-n", "-l", "-q",
                                                   "--immediate-mode", "not arp"])
        self.tcpdump.wait_for("listening on arrival")
        rules = self.site.write("witness.nft", "table inet witness {\n counter way_out {}\n chain output {\n"
                                               "  type filter hook output priority 0;\n"
                                               '  oifname != "lo" counter name way_out\n }\n}\n')
        self.site.run(*self.enter(self.inside), "nft", "--file", rules)

        resolver = self.site.write("resolv.conf", f"nameserver {SINK}\noptions timeout:1 attempts:1\n")
        # A mount namespace too, so that this name server is the one that everything inside asks.
        self.site.inside = [*self.enter(self.inside), "unshare", "--mount", "sh", "-c",
                            f'mount --bind {resolver} /etc/resolv.conf && exec "$@"', "sh"]
        return self

    def ip(self, *arguments):
        self.site.run("ip", *arguments)

    @staticmethod
    def enter(namespace):
        # Not `ip netns exec`, which hides the control groups that docker needs.
        return ["nsenter", f"--net=/run/netns/{namespace}"]

    def counted(self):
        """Packets that left, by the nft counter."""
        listed = json.loads(self.site.run("nft", "--json", "list", "counters"))
        return sum(entry["counter"]["packets"] for entry in listed["nftables"] if "counter" in entry)

    def captured(self):
        """What tcpdump saw at the sink, a line for each packet."""
        return [line for line in self.tcpdump.output().splitlines() if re.match(r"\d\d:\d\d:\d\d\.", line)]

    def expect_silence(self):
        expect(self.counted() == 0 and not self.captured(),
               f"{self.counted()} packets left while the gate was closed; tcpdump saw\n" + "\n".join(self.captured()[:20]))
