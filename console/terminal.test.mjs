// Run by node's test runner: node --test console/terminal.test.mjs
import assert from "node:assert/strict";
import { webcrypto } from "node:crypto";
import test from "node:test";
import { ACK, CLOSE, DATA, Frames, HELLO, PING, PONG, Pipe, REFUSE, cbor, frame, join, newID, uncbor } from "./terminal.js";

globalThis.crypto ??= webcrypto; // not there in Debian 12's Node 18
const num = (n) => { const b = new Uint8Array(8); new DataView(b.buffer).setBigUint64(0, BigInt(n)); return b; };
const readNum = (b) => Number(new DataView(b.buffer, b.byteOffset, 8).getBigUint64(0));
const bytes = (text) => new TextEncoder().encode(text);

// Far is an answering end that returns what it gets, over sockets that break.
class Far {
  received = 0; sent = new Uint8Array(); acked = 0; links = []; attempts = []; random;

  constructor(seed = 1) { this.random = () => (seed = (seed * 1103515245 + 12345) % 2147483648) / 2147483648; }

  dial = async (attempt) => {
    this.attempts.push(attempt);
    if (this.refuse) return this.socket((ws) => ws.deliver(frame(REFUSE, bytes(this.refuse))));
    if (this.random() < 0.2 && attempt.resume) throw new Error("no way");
    return this.socket((ws) => {
      ws.deliver(frame(HELLO, num(this.received)));
      ws.at = Math.max(attempt.received, this.acked);
      this.link = ws;
      this.echo(ws);
    });
  };

  socket(begin) {
    const ws = {
      readyState: 1, frames: new Frames(),
      send: (b) => { if (ws.readyState === 1) setImmediate(() => this.take(ws, b)); },
      close: () => { if (ws.readyState === 1) { ws.readyState = 3; ws.onclose?.({ reason: "" }); } },
      deliver: (b) => { // in pieces, and perhaps not to the end
        for (let i = 0; i < b.length;) {
          const n = 1 + Math.floor(this.random() * b.length), piece = b.slice(i, i + n);
          i += n;
          setImmediate(() => { if (ws.readyState === 1) ws.onmessage({ data: piece.buffer }); });
        }
      },
    };
    setImmediate(() => begin(ws));
    this.links.push(ws);
    return ws;
  }

  take(ws, b) {
    if (ws !== this.link || ws.readyState !== 1 || typeof b === "string") return;
    for (const [kind, payload] of ws.frames.push(b)) {
      if (kind === DATA) {
        const known = this.received - readNum(payload), data = payload.slice(8);
        assert.ok(known >= 0, "bytes are missing");
        if (known < data.length) { this.received += data.length - known; this.sent = join(this.sent, data.slice(known)); }
        ws.deliver(frame(ACK, num(this.received)));
      }
      if (kind === ACK) { this.acked = readNum(payload); assert.ok(this.acked <= ws.at, "more was acknowledged than sent"); }
      if (kind === PING) ws.deliver(frame(PONG));
      if (kind === CLOSE) this.closed = true;
    }
    this.echo(ws);
  }

  echo(ws) {
    while (ws.at < this.sent.length) {
      const piece = this.sent.slice(ws.at, ws.at + 5000);
      ws.deliver(frame(DATA, join(num(ws.at), piece)));
      ws.at += piece.length;
    }
  }
}

test("what the program does not read waits here, within the window", async () => {
  const far = new Far(3), pipe = new Pipe({ dial: far.dial }), frames = new Frames();
  let sent = 0;
  far.random = () => 0.9;
  far.take = (ws, b) => { if (typeof b !== "string") for (const [kind, payload] of frames.push(b)) if (kind === DATA) sent += payload.length - 8; };
  await pipe.open();
  const piece = new Uint8Array(64 << 10);
  for (let i = 0; i < 32; i++) assert.equal(pipe.write(piece), i < 31, "after " + i);
  pipe.write(piece);
  let room = false;
  const waits = pipe.room().then(() => { room = true; });
  await new Promise((done) => setTimeout(done, 20));
  assert.equal(sent, 2 << 20);
  assert.equal(room, false);
  far.link.deliver(frame(ACK, num(100_000)));
  await waits;
  await new Promise((done) => setTimeout(done, 20));
  assert.equal(sent, 33 * piece.length);
  pipe.close();
});

test("nothing is lost or doubled over broken connections", async () => {
  for (let seed = 1; seed <= 5; seed++) {
    const far = new Far(seed), pipe = new Pipe({ dial: far.dial });
    let got = new Uint8Array();
    pipe.onData = (b) => { got = join(got, b); pipe.take(b.length); };
    await pipe.open();
    const want = new Uint8Array(200_000);
    for (let i = 0; i < want.length; i++) want[i] = (i * 7 + (i >> 8)) & 255;
    for (let i = 0; i < want.length; i += 4000) {
      pipe.write(want.slice(i, i + 4000));
      await new Promise((resolve) => setTimeout(resolve, 1));
      if (i % 20_000 === 0) far.links.at(-1).close();
    }
    for (const late = Date.now() + 20_000; got.length < want.length;) {
      assert.ok(Date.now() < late, `${got.length} of ${want.length} bytes`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
    assert.deepEqual(got, want);
    assert.ok(far.attempts.length > 2 && far.attempts.slice(1).every((a) => a.resume));
    pipe.close();
  }
});

test("a silent connection gets a rival", async () => {
  const far = new Far(3), pipe = new Pipe({ dial: far.dial });
  const states = [];
  let got = "";
  pipe.onState = (connected) => states.push(connected);
  pipe.onData = (b) => { got += new TextDecoder().decode(b); pipe.take(b.length); };
  await pipe.open();
  far.links[0].send = () => {}; // as when a NAT has forgotten it
  pipe.write(bytes("hello"));
  pipe.poke();
  for (const late = Date.now() + 10_000; got !== "hello"; await new Promise((resolve) => setTimeout(resolve, 5))) assert.ok(Date.now() < late);
  assert.deepEqual(states.slice(0, 2), [false, true]);
  pipe.close();
});

test("a refusal ends it with its sentence", async () => {
  const far = new Far();
  far.refuse = "This session is no longer there.";
  await assert.rejects(new Pipe({ dial: far.dial }).open(), /no longer there/);
  const other = new Far(7), pipe = new Pipe({ dial: other.dial });
  const ended = new Promise((resolve) => { pipe.onEnd = resolve; });
  await pipe.open();
  other.refuse = "The container was restarted.";
  other.links[0].close();
  assert.equal(await ended, "The container was restarted.");
});

test("documents are those of the golden vectors", async () => {
  const { readFile } = await import("node:fs/promises");
  const golden = (name) => readFile(new URL(`../protocol/testdata/v1/${name}.cbor`, import.meta.url));
  assert.deepEqual(Buffer.from(cbor({ 1: 1, 6: { 1: 0, 2: 0 } })), await golden("session-open-shell"));
  assert.deepEqual(Buffer.from(cbor({ 1: 200, 2: 50 })), await golden("window-size"));
  assert.deepEqual(uncbor(await golden("session-exit-signal")), { 1: 1, 2: 137, 3: "KILL", 4: "Killed: out of memory." });
});

test("ids are those of the protocol", () => assert.match(newID("ses_"), /^ses_[0-9a-hjkmnp-tv-z]{20}$/));
