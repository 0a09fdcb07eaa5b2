#!/usr/bin/python3
"""The server of an editor: it answers who has the connection's token, and what
a client has on a connection it finds again, on another one, by its
reconnection token.

    server PORT|SOCKET TOKEN-FILE COMMIT
"""
import hashlib
import http.server
import os
import socketserver
import sys
import urllib.parse

at, token_file, commit = sys.argv[1:]
token = open(token_file).read().strip()
known = {}  # by reconnection token: the sum of all that came


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def address_string(self):
        return "client"

    def do_GET(self):
        url = urllib.parse.urlparse(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
        if url.path == "/version":
            self.answer(200, commit)
        elif query.get("tkn") != token:
            self.answer(403, "Forbidden.")
        elif self.headers.get("Upgrade") != "websocket":
            self.answer(400, "Bad request.")
        elif (query["reconnection"] == "true") != (query["reconnectionToken"] in known):
            self.answer(409, "Unknown reconnection token.")
        else:
            self.talk(known.setdefault(query["reconnectionToken"], hashlib.sha256()))

    def answer(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def talk(self, total):
        """Takes SIZE, a line, and so many bytes; gives the bytes back, and the
        sum of all that this client ever sent."""
        self.close_connection = True
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        while line := self.rfile.readline():
            data = self.rfile.read(int(line))
            total.update(data)
            self.wfile.write(data + total.hexdigest().encode() + b"\n")


class Port(socketserver.ThreadingTCPServer):
    daemon_threads = True


class Socket(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


server = Port(("127.0.0.1", 0), Handler) if at == "0" else Socket(at, Handler)
print("Extension host agent listening on", server.server_address[1] if at == "0" else at, flush=True)
server.serve_forever()
