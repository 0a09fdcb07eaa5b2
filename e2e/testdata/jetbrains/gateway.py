"""What JetBrains Gateway does over SSH, with an SSH client that is no OpenSSH and
reads its configuration itself, as Gateway's is: the order and the commands are
those of its logs.

    gateway.py CONFIG HOST WORKER ARCHIVE SENT

It says "deployed WORKER ARCHIVE" (what it has copied), "link LINK", and "ready".
Then it does what it reads, one word a line: talk (through the forward that is
open), reopen (a new connection through the same forward), terminal; it answers
each with the word.
"""
import asyncio
import hashlib
import json
import os
import shlex
import ssl
import sys
import time
import warnings

warnings.simplefilter("ignore")
import asyncssh  # noqa: E402

config, host, worker, archive, sent = sys.argv[1:]
MARKER = "REMOTE_EXEC_OUTPUT_MARKER_"
PROJECT = "/tmp/project"


def say(*words):
    print(*words, flush=True)


class Host:
    """The two connections: one for commands, forwards and the terminal, one for files."""

    async def connect(self):
        options = {"config": [config], "keepalive_interval": 5, "keepalive_count_max": 12}
        self.conn = await asyncssh.connect(host, **options)
        self.files = await (await asyncssh.connect(host, **options)).start_sftp_client()
        assert (await self.plain("uname -sm")).startswith("Linux "), "uname"
        self.shell = await self.plain("echo $SHELL")
        assert self.shell.startswith("/"), f"the shell is {self.shell!r}"
        home = await self.run("echo $HOME")
        assert home.startswith("/"), f"the home is {home!r}"
        cache = await self.run("echo $XDG_CACHE_HOME") or home.rstrip("/") + "/.cache"
        self.base = cache + "/JetBrains/RemoteDev"

    async def plain(self, command):
        return (await self.conn.run(command, check=True, stdin=asyncssh.DEVNULL)).stdout.strip()

    async def result(self, command):
        """Runs a command in a login shell, whose profile may say things first."""
        line = f"{self.shell} -lc " + shlex.quote(f"echo {MARKER} && {command}")
        return await self.conn.run(line, stdin=asyncssh.DEVNULL)

    async def run(self, command):
        done = await self.result(command)
        assert done.exit_status == 0, f"{command}: {done.exit_status} {done.stdout} {done.stderr}"
        return done.stdout.split(MARKER, 1)[1].strip()

    async def ask(self, *words):
        """Has the worker do something."""
        return json.loads(await self.run(shlex.join([self.worker, *words])))["data"]

    async def upload(self, local, remote):
        """Copies a file beside its place, and moves it there when all of it is there."""
        await self.run(shlex.join(["mkdir", "-p", os.path.dirname(remote)]))
        tmp = f"{remote}.{time.monotonic_ns()}.tmp"
        await self.files.put(local, tmp)
        assert (await self.files.stat(tmp)).size == os.path.getsize(local), "the copy's size"
        await self.run(shlex.join(["mv", tmp, remote]))

    async def deploy(self):
        """Copies the worker and the backend, where they are not yet."""
        with open(worker, "rb") as file:
            self.worker = f"{self.base}/remote-dev-worker/remote-dev-worker_{hashlib.sha256(file.read()).hexdigest()}"
        copied_worker = copied_archive = False
        if any([(await self.result(f"test {flag} {self.worker}")).exit_status for flag in ("-f", "-x")]):
            await self.upload(worker, self.worker)
            await self.run("chmod 755 " + self.worker)
            copied_worker = True
        self.ide = f"{self.base}/dist/{os.path.basename(archive)}"
        if not await self.files.exists(self.ide + "/bin/remote-dev-server.sh"):
            await self.upload(archive, self.ide + ".tar.gz")
            await self.ask("expand", "--archive=" + self.ide + ".tar.gz", "--ide-path=" + self.ide)
            copied_archive = True
        assert "bin" in await self.files.listdir(self.ide), "what was unpacked"
        say("deployed", copied_worker, copied_archive)

    async def status(self):
        return json.loads(await self.ask("host-status", "--ide-path=" + self.ide, "--project-path=" + PROJECT))

    async def start(self):
        """Finds the backend that has the project, or starts it by an exec that stays."""
        link = (await self.status()).get("joinLink")
        self.log = None
        if not link:
            await self.run("mkdir -p " + PROJECT)
            line = f"{self.shell} -lc " + shlex.quote(f"{self.ide}/bin/remote-dev-server.sh run {PROJECT}")
            self.log = await self.conn.create_process(line)
            said = await asyncio.wait_for(self.log.stdout.readline(), 30)
            link = said.removeprefix("Join link: ").strip()
            assert link == (await self.status())["joinLink"], f"the backend says {said}"
        say("link", link)
        address, _, rest = link.removeprefix("tcp://").partition("#")
        self.secret = dict(pair.split("=", 1) for pair in rest.split("&"))
        self.forward = await self.conn.forward_local_port("127.0.0.1", 0, "127.0.0.1", int(address.rsplit(":", 1)[1]))


class Window:
    """The thin client: TLS through the forward, to the certificate that the link names."""

    def __init__(self, h):
        self.h, self.name = h, os.path.basename(sent)

    async def open(self, token=None):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
        self.r, self.w = await asyncio.open_connection("127.0.0.1", self.h.forward.get_port(), ssl=tls)
        cert = self.w.get_extra_info("ssl_object").getpeercert(True)
        assert hashlib.sha256(cert).hexdigest().upper() == self.h.secret["fp"], "somebody else's certificate"
        self.w.write(f"{token or self.h.secret['jt']}\n{self.name}\n".encode())

    async def reopen(self):
        """Tries until somebody answers: a host that has just lost its line is offline for a moment."""
        for _ in range(30):
            try:
                return await self.open()
            except OSError:
                await asyncio.sleep(1)
        await self.open()

    async def talk(self):
        data = os.urandom(1 << 20)
        with open(sent, "ab") as file:
            file.write(data)
        self.w.write(b"%d\n" % len(data) + data)
        assert await self.r.readexactly(len(data)) == data, "what came back is not what was sent"
        with open(sent, "rb") as file:
            total = hashlib.sha256(file.read()).hexdigest()
        assert (await self.r.readline()).decode().strip() == total, "the backend has got something else"
        if self.h.log:  # the exec that has started it
            said = await self.h.log.stdout.readline()
            assert said == f"Got {len(data)} from {self.name}\n", f"the backend's log says {said!r}"

    async def refused(self):
        """Comes without the token."""
        await self.open("x")
        assert await self.r.read() == b"", "the backend answers without the token"
        if self.h.log:
            assert "without" in await self.h.log.stdout.readline(), "the backend's log"


class Terminal:
    """A shell with a PTY, of which the size changes."""

    async def open(self, h):
        self.p = await h.conn.create_process(term_type="xterm-256color", term_size=(80, 24))
        self.n = 0

    async def talk(self):
        self.n += 1
        self.p.change_terminal_size(100 + self.n, 30)
        self.p.stdin.write("echo $((6 * 7)): $(stty size)\n")
        await self.p.stdout.readuntil(f"42: 30 {100 + self.n}")


async def main():
    h = Host()
    await h.connect()
    await h.deploy()
    await h.start()
    window, terminal = Window(h), Terminal()
    await window.refused()
    await window.open()
    await terminal.open(h)
    say("ready")
    while word := (await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)).strip():
        if word == "reopen":
            await window.reopen()
        await (terminal if word == "terminal" else window).talk()
        say(word)
    h.conn.close()


asyncio.run(main())
