// Drives Chromium for a Go test: one JSON request a line on stdin, one JSON
// answer a line on stdout, in turn. Pages below /test-pages/ of any origin come
// from dist/, so that a test page has the origin of the server under test.
import { readFile } from 'node:fs/promises';
import { extname, join, normalize } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const dist = fileURLToPath(new URL('./dist', import.meta.url));
const types = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css', '.wasm': 'application/wasm' };

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  // A page that the test puts in comes from no address, and Chromium keeps such
  // from the loopback, where some of the servers under test are.
  args: ['--no-sandbox', '--disable-dev-shm-usage', '--disable-gpu', '--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets'],
});
const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1280, height: 800 } });
const page = await context.newPage();
const said = [];
page.on('console', (message) => said.push(`${message.type()}: ${message.text()}`.slice(0, 500)));
page.on('pageerror', (error) => said.push(`error: ${error.message}`.slice(0, 500)));

await context.route('**/test-pages/**', async (route) => {
  const path = normalize(new URL(route.request().url()).pathname.replace(/^.*\/test-pages\//, ''));
  const file = join(dist, path);
  if (!file.startsWith(dist)) return route.abort();
  await route.fulfill({
    body: await readFile(file),
    contentType: types[extname(file)] ?? 'application/octet-stream',
    headers: { 'Content-Security-Policy': "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' wss: data:" },
  });
});

// Every request is { op, …arguments }; what its function returns is the answer.
const ops = {
  async goto({ url }) {
    const response = await page.goto(url);
    return response?.status() ?? 0;
  },
  close: () => page.close(), // the tab, as a person does
  grant: ({ origin, permissions }) => context.grantPermissions(permissions, { origin }),
  cookies: ({ url }) => context.cookies(url),
  // eval runs the body of a function of arg in the page.
  eval: ({ js, arg }) => page.evaluate(`(async (arg) => { ${js} })(${JSON.stringify(arg ?? null)})`),
  // wait does so until that is something. Playwright's own waiting needs eval in
  // the page, which its policy forbids.
  async wait({ js, arg, seconds = 30 }) {
    for (const deadline = Date.now() + seconds * 1000; ; ) {
      const value = await ops.eval({ js, arg });
      if (value) return value;
      if (Date.now() > deadline) throw new Error(`not within ${seconds} s: ${js}`);
      await new Promise((done) => setTimeout(done, 50));
    }
  },
  text: ({ selector }) => page.locator(selector).innerText(),
  fill: ({ selector, text }) => page.locator(selector).fill(text),
  click: ({ selector, x, y }) => (selector ? page.locator(selector).click() : page.mouse.click(x, y)),
  move: ({ x, y }) => page.mouse.move(x, y, { steps: 3 }),
  press: ({ key }) => page.keyboard.press(key),
  // type presses Shift itself: a remote desktop sees keys, not letters.
  async type({ text, delay = 15 }) {
    const shifted = '~!@#$%^&*()_+{}|:"<>?';
    for (const letter of text) {
      const shift = (letter !== letter.toLowerCase() || shifted.includes(letter)) && letter !== '\n';
      if (shift) await page.keyboard.down('Shift');
      await page.keyboard.press(letter === '\n' ? 'Enter' : letter, { delay });
      if (shift) await page.keyboard.up('Shift');
    }
  },
  screenshot: ({ file }) => page.screenshot({ path: file }).then(() => file),
  viewport: ({ width, height }) => page.setViewportSize({ width, height }),
  said: () => said.splice(0),
};

for await (const line of createInterface({ input: process.stdin })) {
  const { op, ...args } = JSON.parse(line);
  let answer;
  try {
    answer = { value: (await ops[op](args)) ?? null };
  } catch (error) {
    answer = { error: `${op}: ${error.message}` };
  }
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}
await browser.close();
