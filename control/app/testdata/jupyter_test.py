"""Rules of jupyter.py, without Jupyter: what a cell shows, which cell it is, and whose output goes where."""

import json
import os
import struct
import sys
import time
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import jupyter


def cell(code, count=None, **more):
    return dict({"cell_type": "code", "source": code, "metadata": {}, "outputs": [], "execution_count": count}, **more)


def text(cell):
    return "".join(output["text"] for output in cell["outputs"])


class Outputs(unittest.TestCase):
    def run_of(self, *messages):
        run = jupyter.Run("page", None, "code", 1)
        for kind, content in messages:
            run.take(kind, content)
        filled = cell("code")
        run.fill(filled)
        return filled

    def test_stream(self):
        filled = self.run_of(*[("stream", {"name": n, "text": t}) for n, t in [("stdout", "a"), ("stdout", "b\nc"), ("stderr", "!"), ("stdout", "d\n")]])
        self.assertEqual([(o["name"], o["text"]) for o in filled["outputs"]], [("stdout", "ab\nc"), ("stderr", "!"), ("stdout", "d\n")])
        self.assertEqual((filled["execution_count"], filled["metadata"]), (1, {"trusted": True}))

    def test_progress_bar(self):
        filled = self.run_of(*[("stream", {"name": "stderr", "text": t}) for t in ["  1 %", "\r 50 %", "\r", "100 %", "\ndone\r\n"]])
        self.assertEqual(text(filled), "100 %\ndone\n")

    def test_display(self):
        shown = {"data": {"text/plain": "a"}, "metadata": {}, "transient": {"display_id": "d"}}
        run = jupyter.Run("page", None, "code", 1)
        run.take("display_data", shown)
        run.update(dict(shown, data={"text/plain": "b"}))
        filled = cell("code")
        run.fill(filled)
        self.assertEqual(filled["outputs"], [{"output_type": "display_data", "data": {"text/plain": "b"}, "metadata": {}}])

    def test_clear(self):
        line = ("stream", {"name": "stdout", "text": "old"})
        new = ("stream", {"name": "stdout", "text": "new"})
        self.assertEqual(text(self.run_of(line, ("clear_output", {"wait": True}))), "old")
        self.assertEqual(text(self.run_of(line, ("clear_output", {"wait": True}), new)), "new")
        self.assertEqual(text(self.run_of(line, ("clear_output", {"wait": False}))), "")

    def test_too_much(self):
        many = [("stream", {"name": "stdout", "text": "x" * 999 + "\n"})] * (jupyter.MAX_RUN // 1000 + 50)
        got = text(self.run_of(*many))
        self.assertLess(len(got), jupyter.MAX_RUN + 2000)
        self.assertEqual(got.count("was not kept"), 1)


class Places(unittest.TestCase):
    def place(self, cells, *runs):
        return [(cells.index(c) if cells.count(c) == 1 else [n for n, each in enumerate(cells) if each is c][0], r.count) for c, r in jupyter.place(cells, runs)]

    def test_source(self):
        cells = [cell("a"), cell("b"), {"cell_type": "markdown", "source": "c"}]
        runs = [jupyter.Run("p", None, code, n) for n, code in enumerate(["b", "changed", "c"])]
        self.assertEqual(self.place(cells, *runs), [(1, 0)])

    def test_newest(self):
        self.assertEqual(self.place([cell("a", 9)], jupyter.Run("p", None, "a", 1), jupyter.Run("p", None, "a", 2)), [(0, 2)])

    def test_twins(self):
        first, second = jupyter.Run("p", None, "a", 1), jupyter.Run("p", None, "a", 2)
        self.assertEqual(self.place([cell("a"), cell("a")], first, second), [(1, 2), (0, 1)])
        self.assertEqual(self.place([cell("a", 2), cell("a")], first, second), [(0, 2), (1, 1)])
        self.assertEqual(self.place([cell("a", id="x"), cell("a", id="y")], jupyter.Run("p", "x", "a", 1)), [(0, 1)])

    def test_id_with_another_source(self):
        self.assertEqual(self.place([cell("b", id="x"), cell("a", id="y")], jupyter.Run("p", "x", "a", 1)), [])

    def test_id_of_request(self):
        header, metadata = {"msg_id": "m"}, {"cellId": "c"}
        plain = json.dumps({"header": header, "metadata": metadata})
        parts = [b"shell"] + [json.dumps(part).encode() for part in (header, {}, metadata, {})]
        at = [8 * (len(parts) + 2)]
        for part in parts:
            at.append(at[-1] + len(part))
        framed = struct.pack("<%dQ" % (len(at) + 1), len(at), *at) + b"".join(parts)
        for message in plain, framed:
            self.assertEqual(jupyter.cell_of(message), ("m", "c"))


class Pages(unittest.TestCase):
    """A kernel, on which the page old ran a cell and has gone."""

    def setUp(self):
        self.kernel = jupyter.Kernel()
        self.kernel.path = "n.ipynb"
        self.kernel.pages["connection"] = "old"
        self.say("1", "execute_input", code="a", execution_count=1)
        self.say("1", "stream", name="stdout", text="one\n")

    def say(self, parent, kind, session="old", **content):
        self.kernel.hear({"msg_type": kind, "content": content, "parent_header": {"msg_id": parent, "session": session}})

    def end(self):
        self.say("1", "stream", name="stdout", text="two\n")
        self.say("1", "status", execution_state="idle")

    def seen(self, step):
        cells = [cell("a")]
        step(cells)
        return text(cells[0])

    def test_connected_page_is_left_alone(self):
        self.end()
        self.assertEqual(self.seen(self.kernel.read), "")
        self.assertEqual(self.seen(self.kernel.saved), "")
        self.assertFalse(self.kernel.due(time.monotonic() + 100))

    def test_next_page(self):
        self.kernel.pages.clear()
        self.assertEqual(self.seen(self.kernel.read), "one\n")
        self.end()
        self.assertEqual(self.seen(self.kernel.read), "one\ntwo\n")

    def test_page_that_opened_meanwhile_saves(self):
        self.kernel.pages = {"connection": "new"}
        self.assertEqual(self.seen(self.kernel.read), "one\n")
        self.end()
        self.assertEqual(self.seen(self.kernel.saved), "one\ntwo\n")
        self.assertEqual(self.kernel.runs, {})

    def test_cleared_by_a_person(self):
        self.kernel.pages = {"connection": "new"}
        self.end()
        self.assertEqual(self.seen(self.kernel.read), "one\ntwo\n")
        self.assertEqual(self.seen(self.kernel.saved), "")

    def test_run_again_by_another_page(self):
        self.kernel.pages = {"connection": "new"}
        self.end()
        self.say("2", "execute_input", session="new", code="a", execution_count=2)
        self.assertEqual(self.seen(self.kernel.saved), "")

    def test_due(self):
        self.kernel.pages.clear()
        now = self.kernel.written = time.monotonic()
        self.assertFalse(self.kernel.due(now), "it runs, and was written just now")
        self.assertTrue(self.kernel.due(now + jupyter.SAVE + 1))
        self.end()
        self.assertTrue(self.kernel.due(now))
        self.kernel.rest = now + 1
        self.assertFalse(self.kernel.due(now), "a page may come back")

    def test_restart_ends_all(self):
        self.say("", "status", execution_state="starting")
        self.assertTrue(all(run.ended for run in self.kernel.runs.values()))


unittest.main()
