// The browser's end of a session that survives: protocol/resume and the frames
// of protocol/session.go, without dependencies. docs/sessions.md tells the rest.
//
//   const s = new Session({ base: "/api/v1/workspaces/lab/environments/box", token, term: "xterm-256color", cols, rows });
//   s.onOutput = (bytes, taken) => terminal.write(bytes, taken);  // taken: call it when shown; it is the flow control
//   s.onState = (connected) => …;  s.onEnd = ({ code, message }) => …;
//   terminal.onData((text) => s.type(text));  terminal.onResize(({ cols, rows }) => s.resize(cols, rows));
//   await s.open();
//
// type returns false while the program does not read what was typed; it is kept
// all the same. Who sends a file awaits s.room() between its pieces.

export const HELLO = 0x41, REFUSE = 0x42, DATA = 0x43, EOF = 0x44, ACK = 0x45, PING = 0x46, PONG = 0x47, CLOSE = 0x48;
const OPEN = 1, STDIN = 2, STDIN_END = 3, RESIZE = 4, STDOUT = 6, STDERR = 7, EXIT = 8;
const WINDOW = 2 << 20, MAX_DATA = 16 << 10, ACK_EVERY = 32 << 10, MAX_FRAME = 64 << 10;
const SUSPECT_MS = 3000, IDLE_MS = 10000, LOOK_MS = 500, RETRY_MIN_MS = 250, RETRY_MOST_MS = 4000, KEEP_MS = 15 * 60 * 1000;

const text = new TextEncoder(), utf8 = new TextDecoder();

export function frame(kind, payload = new Uint8Array()) {
  const b = new Uint8Array(5 + payload.length);
  b[0] = kind;
  new DataView(b.buffer).setUint32(1, payload.length);
  b.set(payload, 5);
  return b;
}

function number(n) {
  const b = new Uint8Array(8);
  new DataView(b.buffer).setBigUint64(0, BigInt(n));
  return b;
}

const readNumber = (b) => Number(new DataView(b.buffer, b.byteOffset, 8).getBigUint64(0));

export function join(...parts) {
  const b = new Uint8Array(parts.reduce((n, p) => n + p.length, 0));
  let at = 0;
  for (const p of parts) { b.set(p, at); at += p.length; }
  return b;
}

// Frames cuts a stream of bytes, in pieces of any size, into frames.
export class Frames {
  rest = new Uint8Array();

  *push(bytes) {
    this.rest = this.rest.length ? join(this.rest, bytes) : bytes;
    while (this.rest.length >= 5) {
      const n = new DataView(this.rest.buffer, this.rest.byteOffset).getUint32(1);
      if (n > MAX_FRAME) throw new Error("a frame is over its limit");
      if (this.rest.length < 5 + n) return;
      const one = [this.rest[0], this.rest.subarray(5, 5 + n)];
      this.rest = this.rest.subarray(5 + n);
      yield one;
    }
  }
}

// cbor writes numbers, texts and maps with small numbers as keys: all that the
// documents of a session need.
export function cbor(v) {
  const head = (major, n) => n < 24 ? [major | n] : n < 256 ? [major | 24, n] : n < 65536 ? [major | 25, n >> 8, n & 255] : [major | 26, n >>> 24, (n >> 16) & 255, (n >> 8) & 255, n & 255];
  if (typeof v === "number") return Uint8Array.from(head(0, v));
  if (typeof v === "string") { const b = text.encode(v); return join(Uint8Array.from(head(0x60, b.length)), b); }
  const keys = Object.keys(v).filter((k) => v[k] !== undefined).map(Number).sort((a, b) => a - b);
  return join(Uint8Array.from(head(0xa0, keys.length)), ...keys.flatMap((k) => [cbor(k), cbor(v[k])]));
}

// uncbor reads them.
export function uncbor(b) {
  let at = 0;
  const read = () => {
    const first = b[at++], major = first >> 5;
    let n = first & 31;
    if (n > 23) { const size = 1 << (n - 24); n = 0; for (let i = 0; i < size; i++) n = n * 256 + b[at++]; }
    switch (major) {
      case 0: return n;
      case 1: return -1 - n;
      case 3: { const s = utf8.decode(b.subarray(at, at + n)); at += n; return s; }
      case 5: { const m = {}; for (let i = 0; i < n; i++) { const k = read(); m[k] = read(); } return m; }
    }
    throw new Error("a document holds something unknown");
  };
  return read();
}

// Pipe is the dialling end of protocol/resume. dial({ received, resume })
// returns a promise of a WebSocket-like object that is open.
export class Pipe {
  onData = () => {}; onState = () => {}; onEnd = () => {};
  #dial; #keep; #out = []; #outBytes = 0; #acked = 0; #received = 0; #taken = 0;
  #link = null; #ended = false; #dialling = false; #lostAt = 0; #timer = null; #waiting = null; #room = [];

  constructor({ dial, keepMs = KEEP_MS }) {
    this.#dial = dial;
    this.#keep = keepMs;
  }

  async open() {
    await this.#connect({ received: 0, resume: false });
    this.#timer = setInterval(() => this.#look(), LOOK_MS);
  }

  // write queues bytes; it returns false when the window is full, and the
  // program is not reading: the caller then should not send more for now.
  write(bytes) {
    if (this.#ended) return false;
    this.#out.push(bytes);
    this.#outBytes += bytes.length;
    this.#flush();
    return this.#outBytes < WINDOW;
  }

  // room resolves when the window is not full, or the pipe has ended.
  room() {
    return this.#ended || this.#outBytes < WINDOW ? Promise.resolve() : new Promise((resolve) => this.#room.push(resolve));
  }

  #wake() {
    if (this.#ended || this.#outBytes < WINDOW) for (const resolve of this.#room.splice(0)) resolve();
  }

  // take says that n bytes of what onData gave are done with.
  take(n) {
    this.#taken += n;
    const l = this.#link;
    if (l && (this.#taken - l.acked >= ACK_EVERY)) this.#ack(l);
    else if (l && !l.ackTimer) l.ackTimer = setTimeout(() => { l.ackTimer = null; this.#ack(l); }, 50);
  }

  // poke says that the network may have changed.
  poke() {
    if (this.#link) { this.#link.patience = 250; this.#ping(this.#link); }
    this.#waiting?.();
  }

  close() {
    this.#send(this.#link, frame(CLOSE));
    this.#end("");
  }

  #ack(l) {
    if (l !== this.#link || this.#taken === l.acked) return;
    l.acked = this.#taken;
    this.#send(l, frame(ACK, number(this.#taken)));
  }

  #ping(l) {
    if (l.asked) return;
    l.asked = Date.now();
    l.pinged = l.sent;
    this.#send(l, frame(PING));
  }

  #send(l, bytes) {
    if (l && l === this.#link && l.ws.readyState === 1) l.ws.send(bytes);
  }

  // flush sends what the link has not carried yet, as far as the other end's
  // window reaches.
  #flush() {
    const l = this.#link;
    if (!l) return;
    let at = this.#acked;
    const most = this.#acked + WINDOW;
    for (const part of this.#out) {
      if (at >= most) break;
      const end = Math.min(part.length, most - at);
      for (let i = Math.max(l.sent - at, 0); i < end; i += MAX_DATA) {
        const piece = part.subarray(i, Math.min(i + MAX_DATA, end));
        this.#send(l, frame(DATA, join(number(at + i), piece)));
        l.sent = at + i + piece.length;
      }
      at += part.length;
    }
    if (l.sent > l.pinged) this.#ping(l);
  }

  #acknowledged(n) {
    let gone = n - this.#acked;
    if (gone > this.#outBytes) throw new Error("more was acknowledged than written");
    while (gone > 0) {
      const part = this.#out[0], k = Math.min(gone, part.length);
      if (k === part.length) this.#out.shift(); else this.#out[0] = part.subarray(k);
      this.#acked += k; this.#outBytes -= k; gone -= k;
    }
    this.#wake();
  }

  async #connect(attempt) {
    const ws = await this.#dial(attempt);
    ws.binaryType = "arraybuffer";
    const l = { ws, sent: 0, pinged: 0, acked: 0, asked: 0, heard: Date.now(), patience: SUSPECT_MS, ackTimer: null };
    await new Promise((resolve, reject) => {
      const frames = new Frames();
      let begun = false;
      ws.onmessage = ({ data }) => {
        if (typeof data === "string") { if (data === "ping") ws.send("pong"); return; }
        try {
          for (const [kind, payload] of frames.push(new Uint8Array(data))) {
            if (begun) { this.#handle(l, kind, payload); continue; }
            if (kind === REFUSE) throw Object.assign(new Error(utf8.decode(payload)), { final: true });
            if (kind !== HELLO) throw Object.assign(new Error("The environment is older than sessions that survive; restart it."), { final: true });
            begun = true;
            l.sent = l.pinged = readNumber(payload);
            const old = this.#link;
            this.#link = l;
            old?.ws.close();
            resolve();
            this.#ack(l);
            this.#flush();
          }
        } catch (err) {
          if (begun) this.#end(err.message); else reject(err);
          ws.close();
        }
      };
      ws.onclose = ({ reason }) => {
        reject(new Error("the connection was closed"));
        if (l === this.#link) { this.#link = null; this.#reconnect(Number(/^retry-after=([\d.]+)s$/.exec(reason ?? "")?.[1] ?? 0) * 1000); }
      };
    });
  }

  #handle(l, kind, payload) {
    if (l !== this.#link) return; // what is in it comes again on the newer one
    l.heard = Date.now();
    switch (kind) {
      case DATA: {
        const known = this.#received - readNumber(payload), bytes = payload.subarray(8);
        if (known < 0) throw new Error("bytes are missing");
        if (known < bytes.length) { this.#received += bytes.length - known; this.onData(bytes.slice(known)); }
        break;
      }
      case EOF: if (readNumber(payload) === this.#received) { this.#received++; this.#taken++; this.#ack(l); } break;
      case ACK: this.#acknowledged(Math.max(readNumber(payload), this.#acked)); this.#flush(); break;
      case PING: this.#send(l, frame(PONG)); break;
      case PONG: l.asked = 0; l.patience = SUSPECT_MS; if (l.sent > l.pinged) this.#ping(l); break;
      case CLOSE: this.#end(utf8.decode(payload)); break;
      default: throw new Error("an unknown frame came");
    }
  }

  #look() {
    const l = this.#link, now = Date.now();
    if (!l) return;
    if (l.asked && now - Math.max(l.asked, l.heard) >= l.patience) this.#reconnect(0);
    else if (!l.asked && now - l.heard >= IDLE_MS) this.#ping(l);
  }

  // reconnect dials until there is a link that answers; an old one that is only
  // silent stays until then.
  async #reconnect(wait) {
    if (this.#dialling || this.#ended) return;
    this.#dialling = true;
    this.#lostAt = Date.now();
    this.onState(false);
    for (let tries = 0; !this.#ended; tries++) {
      if (tries > 0) wait ||= Math.random() * Math.min(RETRY_MIN_MS << Math.min(tries, 10), RETRY_MOST_MS);
      if (wait > 0) await new Promise((resolve) => { this.#waiting = resolve; setTimeout(resolve, wait); });
      wait = 0;
      if (this.#link && !this.#link.asked) break; // it has answered after all
      if (Date.now() - this.#lostAt > this.#keep) { this.#end("The server could not be reached for too long, so the session has been given up."); break; }
      try {
        await this.#connect({ received: this.#received, resume: true });
        break;
      } catch (err) {
        if (err.final) this.#end(err.message);
      }
    }
    this.#dialling = false;
    if (!this.#ended) this.onState(true);
    if (!this.#ended && !this.#link) this.#reconnect(0);
  }

  #end(message) {
    if (this.#ended) return;
    this.#ended = true;
    clearInterval(this.#timer);
    this.#link?.ws.close();
    this.#wake();
    this.onEnd(message);
  }
}

const letters = "0123456789abcdefghjkmnpqrstvwxyz";

export const newID = (prefix) => prefix + Array.from(crypto.getRandomValues(new Uint8Array(20)), (b) => letters[b & 31]).join("");

// Session is a shell or a command in an environment; with session, one that is
// there already.
export class Session {
  onOutput = (bytes, taken) => taken(); onState = () => {}; onEnd = () => {};
  #pipe; #frames = new Frames(); #over = false;

  constructor({ base, token, session, command, term, cols = 80, rows = 24, mode, share }) {
    this.id = session ?? newID("ses_");
    const client = newID("cli_");
    this.#pipe = new Pipe({
      dial: async ({ received, resume }) => {
        const r = await fetch(base + "/terminal/ticket", {
          method: "POST", body: JSON.stringify({ session: this.id }),
          headers: { "Content-Type": "application/json", Authorization: "Bearer " + token },
        });
        const answer = await r.json();
        if (!r.ok) throw Object.assign(new Error(answer.detail), { final: r.status >= 400 && r.status < 500 && r.status !== 429 });
        const q = new URLSearchParams({ session: this.id, client, received, op: resume ? "resume" : session ? "join" : "create" });
        if (mode) q.set("mode", mode);
        if (share) q.set("share", share);
        const url = new URL(base + "/terminal?" + q, location.href);
        url.protocol = url.protocol.replace("http", "ws");
        const ws = new WebSocket(url, ["remotegpu.terminal.v1", "remotegpu.ticket." + answer.ticket]);
        await new Promise((resolve, reject) => { ws.onopen = resolve; ws.onerror = ws.onclose = () => reject(new Error("the connection was refused")); });
        return ws;
      },
    });
    this.#pipe.onData = (bytes) => this.#data(bytes);
    this.#pipe.onState = (connected) => this.onState(connected);
    this.#pipe.onEnd = (message) => this.#finish({ code: 255, message });
    this.open = async () => {
      await this.#pipe.open();
      if (session) this.resize(cols, rows);
      else this.#pipe.write(frame(OPEN, cbor({ 1: 1, 2: command, 5: term, 6: { 1: cols, 2: rows } })));
      globalThis.addEventListener?.("online", () => this.#pipe.poke());
    };
  }

  type(input) {
    const bytes = typeof input === "string" ? text.encode(input) : input;
    let room = true;
    for (let i = 0; i < bytes.length; i += MAX_DATA) room = this.#pipe.write(frame(STDIN, bytes.subarray(i, i + MAX_DATA)));
    return room;
  }

  room() { return this.#pipe.room(); }
  endInput() { this.#pipe.write(frame(STDIN_END)); } // the program reads the end of its stdin

  resize(cols, rows) { this.#pipe.write(frame(RESIZE, cbor({ 1: cols, 2: rows }))); }
  close() { this.#pipe.close(); }

  #data(bytes) {
    for (const [kind, payload] of this.#frames.push(bytes)) {
      const size = 5 + payload.length;
      if (kind === STDOUT || kind === STDERR) {
        this.onOutput(payload.slice(), () => this.#pipe.take(size));
        continue;
      }
      this.#pipe.take(size);
      if (kind === EXIT) {
        const e = uncbor(payload);
        this.#finish({ code: e[2] ?? 0, signal: e[3], message: e[4] ?? "" });
        this.#pipe.close();
      }
    }
  }

  #finish(end) {
    if (this.#over) return;
    this.#over = true;
    this.onEnd(end);
  }
}
