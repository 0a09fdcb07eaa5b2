// Plays recordings: asciicast v2 files, without dependencies.
//
//   const p = new Player({ idle: 2 });  // no wait is longer than that, in seconds
//   p.onOutput = (text) => terminal.write(text);  p.onResize = (cols, rows) => terminal.resize(cols, rows);
//   p.onReset = () => terminal.reset();  p.onTime = (seconds) => …;  p.onEnd = () => …;
//   const { title, duration } = await p.load("/api/v1/workspaces/lab/recordings/rec_…", token);
//   p.play();  p.pause();  p.seek(12.5);  p.speed = 4;

const TICK_MS = 50;

export class Player {
  onOutput = () => {}; onResize = () => {}; onReset = () => {}; onTime = () => {}; onEnd = () => {};
  #idle; #speed = 1; #events = []; #next = 0; #at = 0; #width = 80; #height = 24; #timer = null; #since = 0;

  constructor({ idle = 2 } = {}) { this.#idle = idle; }

  // load fetches a recording and shows its first moment.
  async load(url, token) {
    const r = await fetch(url, { headers: { Authorization: "Bearer " + token } });
    if (!r.ok) throw new Error((await r.json()).detail ?? "The recording cannot be read.");
    return this.open(await r.text());
  }

  // open takes the text of a file. Its times are given without long waits.
  open(text) {
    const [head, ...lines] = text.trimEnd().split("\n").map((line) => JSON.parse(line));
    if (head.version !== 2) throw new Error("The recording is no asciicast of version 2.");
    this.pause();
    let real = 0, shown = 0;
    this.#events = lines.map(([at, kind, data]) => {
      shown += Math.min(Math.max(at - real, 0), this.#idle);
      real = at;
      return { at: shown, kind, data };
    });
    [this.#width, this.#height] = [head.width, head.height];
    this.seek(0);
    return { title: head.title ?? "", duration: shown, started: new Date(head.timestamp * 1000) };
  }

  get playing() { return this.#timer !== null; }
  get time() { return this.#at; }
  get speed() { return this.#speed; }
  set speed(times) { this.#advance(); this.#speed = times; }

  play() {
    if (this.playing) return;
    if (this.#next === this.#events.length) this.seek(0);
    this.#since = performance.now();
    this.#timer = setInterval(() => this.#advance(), TICK_MS);
  }

  pause() {
    this.#advance();
    clearInterval(this.#timer);
    this.#timer = null;
  }

  // seek shows what the screen showed at a time.
  seek(seconds) {
    if (seconds < this.#at || this.#next === 0) {
      this.#next = 0;
      this.onReset();
      this.onResize(this.#width, this.#height);
    }
    this.#since = performance.now();
    this.#show(seconds);
  }

  #advance() {
    if (!this.playing) return;
    const now = performance.now(), at = this.#at + (now - this.#since) / 1000 * this.#speed;
    this.#since = now;
    this.#show(at);
    if (this.#next < this.#events.length) return;
    clearInterval(this.#timer);
    this.#timer = null;
    this.onEnd();
  }

  // show brings the screen from where it is to a later time.
  #show(at) {
    let text = "";
    for (; this.#next < this.#events.length && this.#events[this.#next].at <= at; this.#next++) {
      const { kind, data } = this.#events[this.#next];
      if (kind === "o") text += data;
      const size = kind === "r" && /^(\d+)x(\d+)$/.exec(data);
      if (size) {
        if (text) this.onOutput(text);
        text = "";
        this.onResize(Number(size[1]), Number(size[2]));
      }
    }
    if (text) this.onOutput(text);
    this.#at = this.#next === this.#events.length ? this.#events.at(-1)?.at ?? 0 : at;
    this.onTime(this.#at);
  }
}
