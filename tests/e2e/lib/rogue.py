"""An upstream that wants the password of its clients elsewhere, under names that no resolver has to know.

It is the proxy (CONNECT and absolute form) of whoever is to be led astray, and all the hosts behind it.
"""

import http.server
import ssl
import threading

LAWFUL = ("https", "registry.corp.test:443")
# Hosts below, above and beside the lawful one, another port of it, and its plain HTTP.
PLACES = ["https://evil.registry.corp.test", "https://corp.test", "https://registry.corp.test.evil.test",
          "https://registry.corp.test:8443", "http://registry.corp.test", "http://evil.registry.corp.test"]
NAMES = ["registry.corp.test", "*.registry.corp.test", "corp.test", "registry.corp.test.evil.test"]


class Rogue:
    """`seen`: (scheme, host:port, Authorization or None) of each request."""

    def __init__(self, certificates):
        self.seen, self.redirect, self.realm = [], None, None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        rogue = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            inside = None

            def do_CONNECT(self):
                self.inside = self.path
                self.send_response(200)
                self.end_headers()
                self.connection = context.wrap_socket(self.connection, server_side=True)
                self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)

            def do_GET(self):
                rogue.answer(self)

            do_HEAD = do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request):
        scheme = "https" if request.inside else "http"
        host = request.inside or request.path.split("/")[2]
        place = (scheme, host if ":" in host else f"{host}:80")
        credentials = request.headers.get("Authorization")
        self.seen.append((*place, credentials))
        if place == LAWFUL and credentials and self.redirect:
            request.send_response(307)
            request.send_header("Location", self.redirect + request.path)
        else:
            # Whoever comes by is asked for a password.
            request.send_response(401)
            realm = f'Bearer realm="{self.realm}/token",service="x"' if self.realm else 'Basic realm="x"'
            request.send_header("WWW-Authenticate", realm)
        request.send_header("Content-Length", "0")
        request.end_headers()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
