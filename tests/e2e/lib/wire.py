"""A client of sealock that knows of every request whether it was answered: what the crash stories push and read with."""

import http.client
import json
import urllib.parse

PATIENCE_SECONDS = 60


class Unanswered(Exception):
    """The connection broke before the whole reply was there: what was asked for may have been done or not."""


class Reply:
    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def __repr__(self):
        return f"{self.status} {self.body[:300]!r}"

    def code(self):
        """The first error code of an error body."""
        return json.loads(self.body)["errors"][0]["code"]


class Wire:
    """One keep-alive connection; not for two threads at once."""

    def __init__(self, url):
        self.address = urllib.parse.urlsplit(url).netloc
        self.connection = None

    def ask(self, method, path, body=None, **headers):
        """Ask once, and never again by itself: a request that broke off is the story's to judge."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.connection is None:
            self.connection = http.client.HTTPConnection(self.address, timeout=PATIENCE_SECONDS)
        try:
            self.connection.request(method, path, body=body, headers=named)
            reply = self.connection.getresponse()
            whole = reply.read()
        except (OSError, http.client.HTTPException) as why:
            self.close()
            raise Unanswered(f"{method} {path}: {why!r}") from why
        if reply.will_close:
            self.close()
        return Reply(reply.status, {name.lower(): value for name, value in reply.getheaders()}, whole)

    def close(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def path_of(location):
    """An upload's `Location` as a path with its query."""
    parts = urllib.parse.urlsplit(location)
    return parts.path + (f"?{parts.query}" if parts.query else "")
