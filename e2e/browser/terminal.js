// The browser's terminal, driven by a test through window.term.
import { FitAddon } from '@xterm/addon-fit';
import { Terminal } from '@xterm/xterm';
import '@xterm/xterm/css/xterm.css';
import { Player } from '../../console/player.js';
import { Session } from '../../console/terminal.js';

const xterm = new Terminal({ cursorBlink: false, scrollback: 5000 });
const fit = new FitAddon();
xterm.loadAddon(fit);
xterm.open(document.getElementById('terminal'));
fit.fit();

let session;
let output = ''; // all that came, as text
let bytes = 0;
let held = null; // what is not taken while the reader stands still
let end = null;
let states = [];
const decoder = new TextDecoder();

window.term = {
  // open starts a program, or joins the session of an id.
  async open({ base, token, command, id, plain = false }) {
    session = new Session({ base, token, command, session: id, term: plain ? undefined : 'xterm-256color', cols: xterm.cols, rows: xterm.rows });
    output = '', bytes = 0, end = null, states = [];
    session.onOutput = (chunk, taken) => {
      bytes += chunk.length;
      if (held) return held.push([chunk, taken]);
      output += decoder.decode(chunk, { stream: true });
      xterm.write(chunk, taken);
    };
    session.onState = (connected) => states.push(connected);
    session.onEnd = (how) => { end = how; };
    await session.open();
    return session.id;
  },
  type: (text) => session.type(text),
  // paste sends so many bytes, a letter each, and the end of the input.
  async paste({ letter, size }) {
    const piece = letter.repeat(100_000);
    for (let left = size; left > 0; left -= piece.length) {
      session.type(piece.slice(0, left));
      await session.room();
    }
    session.endInput();
  },
  // work types lines, a moment apart.
  async work(lines) {
    for (const line of lines) {
      session.type(`${line}\n`);
      await new Promise((done) => setTimeout(done, 20));
    }
  },
  hold: () => { held = []; },
  release() {
    const waiting = held;
    held = null;
    for (const [chunk, taken] of waiting) xterm.write(chunk, taken);
  },
  close: () => session.close(),
  // replay plays a recording to its end.
  async replay({ url, token, speed }) {
    const player = new Player();
    player.onReset = () => xterm.reset();
    player.onResize = (cols, rows) => xterm.resize(cols, rows);
    player.onOutput = (text) => xterm.write(text);
    const { duration } = await player.load(url, token);
    player.speed = speed;
    await new Promise((resolve) => { player.onEnd = resolve; player.play(); });
    return duration;
  },
  bytes: () => bytes,
  output: () => output,
  end: () => end,
  states: () => states,
  size: () => `${xterm.cols} x ${xterm.rows}`,
  screen() {
    const lines = [];
    for (let i = 0; i < xterm.buffer.active.length; i++) lines.push(xterm.buffer.active.getLine(i).translateToString(true));
    return lines.join('\n').trimEnd();
  },
};

xterm.onData((text) => session?.type(text));
xterm.onResize(({ cols, rows }) => session?.resize(cols, rows));
window.addEventListener('resize', () => fit.fit());
