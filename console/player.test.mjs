// Run by node's test runner: node --test console/player.test.mjs
import assert from "node:assert/strict";
import test from "node:test";
import { Player } from "./player.js";

const file = [
  { version: 2, width: 100, height: 30, timestamp: 1790000000, title: "one" },
  [0.1, "o", "first "], [0.2, "o", "second "], [60, "r", "120x40"], [60.1, "o", "third "], [60.1, "x", "of another kind"], [60.2, "o", "last"],
].map((line) => JSON.stringify(line)).join("\n") + "\n";

function player(options) {
  const p = new Player(options), said = [];
  p.onOutput = (text) => said.push(text);
  p.onResize = (cols, rows) => said.push(`${cols}x${rows}`);
  p.onReset = () => said.push("reset");
  return { p, said };
}

test("a wait is no longer than asked for, and each event comes once", async () => {
  const { p, said } = player({ idle: 0.3 });
  const { title, duration, started } = p.open(file);
  assert.equal(title, "one");
  assert.ok(Math.abs(duration - 0.7) < 1e-6, String(duration));
  assert.equal(started.getTime(), 1790000000000);
  const times = [];
  p.onTime = (at) => times.push(at);
  p.speed = 2;
  const began = performance.now();
  await new Promise((resolve) => { p.onEnd = resolve; p.play(); });
  const took = performance.now() - began;
  assert.ok(took > 300 && took < 2000, `${took} ms`);
  assert.equal(said.join("|").replace(/\|(?=second|last)/g, ""), "reset|100x30|first second |120x40|third last");
  assert.deepEqual(times, [...times].sort((a, b) => a - b));
  assert.equal(p.playing, false);
  assert.ok(Math.abs(p.time - duration) < 1e-6);
});

test("seek shows the screen of then, forth and back", () => {
  const { p, said } = player({ idle: 1 });
  p.open(file);
  said.length = 0;
  p.seek(0.15);
  assert.deepEqual(said.splice(0), ["reset", "100x30", "first "]);
  p.seek(1.25);
  assert.deepEqual(said.splice(0), ["second ", "120x40"]);
  p.seek(0.2);
  assert.deepEqual(said.splice(0), ["reset", "100x30", "first second "]);
  p.seek(99);
  assert.deepEqual(said.splice(0), ["120x40", "third last"]);
});

test("pause holds the time; play at the end begins anew", async () => {
  const { p, said } = player();
  p.open(file);
  p.play();
  p.pause();
  const at = p.time;
  await new Promise((done) => setTimeout(done, 80));
  assert.equal(p.time, at);
  p.seek(99);
  said.length = 0;
  p.play();
  assert.deepEqual(said.slice(0, 2), ["reset", "100x30"]);
  p.pause();
});

test("what is no recording is said to be none", () => {
  const { p } = player();
  assert.throws(() => p.open('{"version": 1}\n'), /version 2/);
  assert.throws(() => p.open("nonsense"), SyntaxError);
});
