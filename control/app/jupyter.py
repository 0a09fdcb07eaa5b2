"""Keeps what cells print while no page is there to take it.

An extension of Jupyter's server, for jupyter_server 1 and 2 and the classic
notebook. Jupyter leaves outputs to pages: a kernel's messages go to the page
that ran the cell, and the notebook file has what a page saved. This listens to
each kernel as well, and gives the outputs of executions whose page has gone to

  - the next page that opens the notebook, with what it reads;
  - what another page saves meanwhile;
  - the file, where no page is connected.

A cell gets outputs only while its source is what was executed. A page that has
merely lost its line comes back, is told everything by Jupyter and saves it, so
its file is left alone for hours: it would be told that the file has changed.
"""

import copy
import importlib
import inspect
import json
import struct
import time

MAX_RUN = 8 << 20  # characters that are kept of an execution
MAX_KERNEL = 64 << 20  # of all executions of a kernel that are not saved
SETTLE = 15  # seconds after which a page that has left is not merely reloading
OPENING = 30  # between reading a notebook and connecting with its kernel
LOST = 12 * 3600  # for a page without a line to come back
SAVE = 60  # between writes while a cell runs

FIELDS = {
    "display_data": ("data", "metadata"),
    "execute_result": ("data", "metadata", "execution_count"),
    "error": ("ename", "evalue", "traceback"),
}


def settle(text):
    """What a terminal shows of text, in which a carriage return goes back to the line's beginning."""
    if "\r" not in text:
        return text
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        shown = ""
        for part in line.split("\r"):
            shown = part + shown[len(part) :]
        lines.append(shown)
    return "\n".join(lines) + ("\r" if text.endswith("\r") else "")


class Run:
    """One execution: its session is the page's, its cell an id where pages tell it."""

    def __init__(self, session, cell, code, count):
        self.session, self.cell, self.code, self.count = session, cell, code, count
        self.ended = None  # when it did
        self.given = False  # all of it, to a page
        self.changed = True  # since the last write
        self.clear()

    def clear(self):
        self.outputs, self.displays, self.size = [], [], 0
        self.clearing = self.full = False

    def take(self, kind, content):
        """Take an output as the kernel sends it."""
        self.changed = True
        if kind == "clear_output" and content.get("wait"):
            self.clearing = True
            return
        if kind == "clear_output" or self.clearing:
            self.clear()
        if kind == "stream":
            self._write(content["name"], content["text"])
        elif kind in FIELDS:
            self._show(kind, content)

    def _write(self, name, text):
        if self._over(0):
            return
        if not self.outputs or self.outputs[-1].get("name") != name:
            self.outputs.append({"output_type": "stream", "name": name, "text": []})
        chunks = self.outputs[-1]["text"]
        tail = chunks.pop() if chunks and not chunks[-1].endswith("\n") else ""
        text = settle(tail + text)
        self.size += len(text) - len(tail)
        head, newline, last = text.rpartition("\n")
        chunks.extend(part for part in (head + newline, last) if part)

    def _show(self, kind, content):
        if self._over(len(json.dumps(content.get("data")))):
            return
        output = {"output_type": kind}
        for field in FIELDS[kind]:
            output[field] = content.get(field)
        self.outputs.append(output)
        display = content.get("transient", {}).get("display_id")
        if display:
            self.displays.append((display, output))

    def _over(self, more):
        if self.size + more <= MAX_RUN:
            self.size += more
            return False
        if not self.full:
            self.full = True
            note = "\n[output beyond %d MiB was not kept while no page was open]\n" % (MAX_RUN >> 20)
            self.outputs.append({"output_type": "stream", "name": "stderr", "text": [note]})
        return True

    def update(self, content):
        """Change what is displayed under an id."""
        for display, output in self.displays:
            if display == content.get("transient", {}).get("display_id"):
                output["data"], output["metadata"] = content["data"], content["metadata"]
                self.changed = True

    def fill(self, cell):
        """Make the outputs those of a cell of a notebook; they are trusted, for a page ran it here."""
        cell["outputs"] = [dict(o, text="".join(o["text"])) if "text" in o else copy.deepcopy(o) for o in self.outputs]
        cell["execution_count"] = self.count
        cell.setdefault("metadata", {})["trusted"] = True


def source(cell):
    text = cell.get("source", "")
    return text if isinstance(text, str) else "".join(text)


def place(cells, runs):
    """Pairs of a cell and the newest execution of it. Without ids, the source decides, and among twins their order."""
    free = {n: cell for n, cell in enumerate(cells) if cell.get("cell_type") == "code"}
    known = {cell["id"]: n for n, cell in free.items() if "id" in cell}
    pairs = []
    for run in reversed(list(runs)):

        def rank(n):
            count = free[n].get("execution_count")
            return (0 if count == run.count else 1 if count is None else 2), -n

        among = [known[run.cell]] if run.cell in known else sorted(free, key=rank)
        for n in among:
            if n in free and source(free[n]) == run.code:
                pairs.append((free.pop(n), run))
                break
    return pairs


def cell_of(message):
    """The id of an execute_request and of its cell, as pages since JupyterLab 3 send it."""
    if isinstance(message, str):
        message = json.loads(message)
        return message["header"]["msg_id"], message["metadata"]["cellId"]
    (count,) = struct.unpack_from("<Q", message)  # v1.kernel.websocket.jupyter.org: offsets, then parts
    at = struct.unpack_from("<%dQ" % count, message, 8)
    header, metadata = (json.loads(message[at[n] : at[n + 1]]) for n in (1, 3))
    return header["msg_id"], metadata["cellId"]


class Kernel:
    """What is known of a kernel."""

    def __init__(self):
        self.runs = {}  # by the id of the execute_request, oldest first
        self.cells = {}  # likewise, of requests that have not begun
        self.pages = {}  # session by connection
        self.path = ""  # of the notebook
        self.left = self.written = self.rest = 0  # rest: nothing is written before
        self.gone = False

    def hear(self, message):
        """Take a message of the kernel."""
        kind, content = message["msg_type"], message["content"]
        parent = message["parent_header"].get("msg_id")
        run = self.runs.get(parent)
        if kind == "execute_input":
            run = Run(message["parent_header"].get("session"), self.cells.pop(parent, None), content["code"], content["execution_count"])
            self.runs[parent] = run
        elif kind == "status" and content["execution_state"] == "starting":
            self.end(self.runs.values())
        elif kind == "status" and content["execution_state"] == "idle" and run:
            self.end([run])
        elif kind == "update_display_data":
            for each in self.runs.values():
                each.update(content)
        elif run and (kind in FIELDS or kind in ("stream", "clear_output")):
            run.take(kind, content)
            self._bound()

    def end(self, runs):
        for run in runs:
            run.ended = run.ended or time.monotonic()

    def _bound(self):
        size = sum(run.size for run in self.runs.values())
        for parent, run in list(self.runs.items()):
            if size > MAX_KERNEL and run.ended:
                size -= run.size
                del self.runs[parent]

    def orphan(self, run):
        return run.session not in self.pages.values()

    def fill(self, cells):
        """Give a notebook's cells what their pages do not have any more."""
        found = [(cell, run) for cell, run in place(cells, self.runs.values()) if self.orphan(run)]
        for cell, run in found:
            run.fill(cell)
        return found

    def forget(self, which):
        self.runs = {parent: run for parent, run in self.runs.items() if not which(run)}

    def read(self, cells):
        """A page reads the notebook."""
        for _, run in self.fill(cells):
            run.given = bool(run.ended)

    def saved(self, cells):
        """A page saves the notebook: what has ended is there afterwards, or was changed by a person."""
        self.forget(lambda run: run.given)
        self.fill(cells)
        late = time.monotonic() - 5  # a page that is still connected may not have it all yet
        self.forget(lambda run: run.ended and (self.orphan(run) or run.ended < late))

    def due(self, now):
        """Whether the file is to be written."""
        if self.pages or not self.path or now < self.rest:
            return False
        changed = [run for run in self.runs.values() if run.changed or run.ended]
        return any(run.ended for run in changed) or bool(changed) and now - self.written > SAVE


async def result(value):
    return await value if inspect.isawaitable(value) else value


class Keeper:
    """Listens to the kernels of a server, and stands before its notebooks."""

    def __init__(self, app, package):
        self.log, self.manager, self.sessions = app.log, app.kernel_manager, app.session_manager
        self.kernels = {}
        self.writing = False
        contents = app.contents_manager
        self.get, self.save = contents.get, contents.save
        self._watch(package)
        contents.get, contents.save = self._get, self._save

    def _watch(self, package):
        """Be told of pages that connect with kernels."""
        handler = handler_of(package)
        opened, message, closed = handler.open, handler.on_message, handler.on_close

        def open(page, *args, **kwargs):
            self._try(self.come, page)
            return opened(page, *args, **kwargs)

        def on_message(page, data):
            if ("cellId" if isinstance(data, str) else b"cellId") in data:
                self._try(self.asked, page, data)
            return message(page, data)

        def on_close(page):
            self._try(self.leave, page)
            return closed(page)

        handler.open, handler.on_message, handler.on_close = open, on_message, on_close

    def _try(self, step, *args):
        """No fault of ours is one of Jupyter's."""
        try:
            return step(*args)
        except Exception as err:
            self.log.warning("remotegpu: %s: %r", step.__name__, err)

    def come(self, page):
        name = page.kernel_id
        kernel = self.kernels.get(name)
        if kernel is None:
            kernel = self.kernels[name] = self.listen(name)
        kernel.pages[page] = page.get_argument("session_id", None)
        connection, page.bye = page.ws_connection, False
        close = connection.close

        def closing(*args, **kwargs):
            # A page that goes says so; of a line that breaks nobody does.
            page.bye |= connection.client_terminated and not connection.server_terminated
            return close(*args, **kwargs)

        connection.close = closing

    def listen(self, name):
        from jupyter_client.session import Session

        manager, kernel = self.manager.get_kernel(name), Kernel()
        session = Session(config=manager.session.config, key=manager.session.key)
        kernel.stream = manager.connect_iopub()

        def hear(parts):
            kernel.hear(session.deserialize(session.feed_identities(parts)[1]))

        kernel.stream.on_recv(lambda parts: self._try(hear, parts))
        return kernel

    def asked(self, page, data):
        parent, cell = cell_of(data)
        for kernel in self.kernels.values():
            if page in kernel.pages:
                kernel.cells[parent] = cell

    def leave(self, page):
        for kernel in self.kernels.values():
            if page in kernel.pages:
                del kernel.pages[page]
                kernel.left = time.monotonic()
                kernel.rest = kernel.left + (SETTLE if page.bye else LOST)

    def at(self, path):
        return [kernel for kernel in self.kernels.values() if kernel.path and kernel.path == path.strip("/")]

    def _get(self, path, *args, **kwargs):
        """Jupyter's own get, and what is missing in the file."""
        got = self.get(path, *args, **kwargs)
        if not kwargs.get("content", args[0] if args else True):
            return got
        for kernel in self.at(path):
            kernel.rest = max(kernel.rest, time.monotonic() + OPENING)
        if inspect.isawaitable(got):
            return self._read_later(path, got)
        self._try(self.read, path, got)
        return got

    async def _read_later(self, path, got):
        from tornado import gen

        for _ in range(50):
            if not self.writing:
                break
            await gen.sleep(0.1)
        model = await got
        self._try(self.read, path, model)
        return model

    def read(self, path, model):
        for kernel in self.at(path):
            if model.get("type") == "notebook" and model.get("content"):
                kernel.read(model["content"]["cells"])

    def _save(self, model, path="", *args, **kwargs):
        """Jupyter's own save, with what the page does not have."""
        self._try(self.saved, path, model)
        return self.save(model, path, *args, **kwargs)

    def saved(self, path, model):
        for kernel in self.at(path):
            if model.get("type") == "notebook" and model.get("content"):
                kernel.saved(model["content"]["cells"])

    async def run(self):
        """Write what is due, for ever."""
        from tornado import gen

        while True:
            await gen.sleep(2)
            try:
                await self.paths()
                for name, kernel in list(self.kernels.items()):
                    self.check(name, kernel)
                    if kernel.due(time.monotonic()):
                        await self.write(kernel)
            except Exception as err:
                self.log.warning("remotegpu: keep outputs: %r", err)

    async def paths(self):
        """Notebooks have names that change."""
        if not any(kernel.runs for kernel in self.kernels.values()):
            return
        for session in await result(self.sessions.list_sessions()):
            kernel = self.kernels.get(session["kernel"]["id"])
            if kernel and session.get("type", "notebook") == "notebook":
                kernel.path = session["path"].strip("/")

    def check(self, name, kernel):
        """Notice that a kernel has ended; its page may still be there."""
        if name in self.manager:
            return
        if not kernel.gone:
            kernel.gone, now = True, time.monotonic()
            kernel.end(kernel.runs.values())
            kernel.stream.close()
            if kernel.pages or now - kernel.left < SETTLE:
                kernel.rest = now + LOST
        if not kernel.runs and not kernel.pages:
            del self.kernels[name]

    async def write(self, kernel):
        """Put into the file what is not there, and forget what has ended."""
        kernel.written, self.writing = time.monotonic(), True
        try:
            model = await result(self.get(kernel.path, content=True, type="notebook"))
            ended = [run for run in kernel.runs.values() if run.ended]
            found = kernel.fill(model["content"]["cells"])
            for _, run in found:
                run.changed = False
            if found:
                await result(self.save(model, kernel.path))
            kernel.forget(ended.__contains__)
            self.log.info("remotegpu: %s has the output of cells whose page has gone: %d", kernel.path, len(found))
        except Exception as err:
            kernel.rest = kernel.written + SAVE
            if getattr(err, "status_code", None) == 404:
                kernel.runs = {}
            self.log.warning("remotegpu: outputs are not in %s: %r", kernel.path, err)
        finally:
            took = time.monotonic() - kernel.written
            kernel.rest = max(kernel.rest, kernel.written + 20 * took)
            self.writing = False


def handler_of(package):
    """The class that connects pages with kernels."""
    for module, name in (("websocket", "KernelWebsocketHandler"), ("handlers", "ZMQChannelsHandler")):
        try:
            return getattr(importlib.import_module(package + ".services.kernels." + module), name)
        except (ImportError, AttributeError):
            pass
    raise ImportError("this " + package + " is not known")


def load(app, package):
    from tornado.ioloop import IOLoop

    IOLoop.current().spawn_callback(Keeper(app, package).run)
    app.log.info("remotegpu: what cells print while no page is open is kept")


def _jupyter_server_extension_points():
    return [{"module": __name__}]


def _load_jupyter_server_extension(app):
    load(app, "jupyter_server")


def load_jupyter_server_extension(app):  # the classic notebook's name
    load(app, "notebook")
