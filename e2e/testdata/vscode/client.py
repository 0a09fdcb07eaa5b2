"""The window of an editor: it goes through a SOCKS port to a port of the other
side, or to a local port that is forwarded to a socket there, and upgrades.

    client.py socks|port LOCAL-PORT PORT TOKEN RECONNECTION-TOKEN true|false SENT

It sends a MiB, which must come back, and compares the server's sum of all that
it has got under the reconnection token with the file SENT.
"""
import hashlib
import os
import socket
import struct
import sys
import threading

how, local, port, token, window, again, sent = sys.argv[1:]
s = socket.create_connection(("127.0.0.1", int(local)), 20)
f = s.makefile("rb")
if how == "socks":
    s.sendall(b"\x05\x01\x00")
    assert f.read(2) == b"\x05\x00", "SOCKS greeting"
    s.sendall(b"\x05\x01\x00\x01" + socket.inet_aton("127.0.0.1") + struct.pack(">H", int(port)))
    reply = f.read(10)
    assert reply[1] == 0, f"SOCKS says {reply[1]}"
s.sendall(
    f"GET /?reconnectionToken={window}&reconnection={again}&skipWebSocketFrames=true&tkn={token} HTTP/1.1\r\nHost: localhost\r\n"
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
)
status = f.readline().decode().split(" ", 1)[1].strip()
while f.readline() not in (b"\r\n", b""):
    pass
if not status.startswith("101"):
    sys.exit(status)
data = os.urandom(1 << 20)
with open(sent, "ab") as file:
    file.write(data)
threading.Thread(target=s.sendall, args=(b"%d\n" % len(data) + data,), daemon=True).start()
assert f.read(len(data)) == data, "what came back is not what was sent"
with open(sent, "rb") as file:
    assert f.readline().decode().strip() == hashlib.sha256(file.read()).hexdigest(), "the server has got something else"
print("same")
