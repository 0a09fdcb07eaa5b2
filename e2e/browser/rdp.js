// The RDP client of the browser, driven by a test through window.rdp.
import '@devolutions/iron-remote-desktop';
import { Backend, displayControl, init } from '@devolutions/iron-remote-desktop-rdp';

const draws = []; // when something was drawn, ms since the page began
const put = CanvasRenderingContext2D.prototype.putImageData;
CanvasRenderingContext2D.prototype.putImageData = function (...args) {
  draws.push(performance.now());
  return put.apply(this, args);
};

let element;
let session;

function words(error) {
  if (error && typeof error.backtrace === 'function') {
    const details = error.rdcleanpathDetails?.();
    return { kind: error.kind(), status: details?.httpStatusCode, text: error.backtrace() };
  }
  return { text: String(error?.message ?? error) };
}

async function start() {
  await init('INFO');
  element = document.createElement('iron-remote-desktop');
  element.setAttribute('verbose', 'true');
  element.setAttribute('scale', 'real');
  element.setAttribute('flexcenter', 'false');
  element.module = Backend;
  const ready = new Promise((resolve) => {
    element.addEventListener('ready', (event) => resolve(event.detail.irgUserInteraction), { once: true });
  });
  document.body.append(element);
  return ready;
}

const interaction = start();

window.rdp = {
  // connect resolves once the session runs, or with an error in words.
  async connect({ address, token, width, height, username = '', password = '' }) {
    const ui = await interaction;
    const began = performance.now();
    draws.length = 0;
    window.rdp.ended = undefined;
    try {
      const config = ui
        .configBuilder()
        .withUsername(username)
        .withPassword(password)
        .withDestination('the-token-says')
        .withProxyAddress(address)
        .withServerDomain('')
        .withAuthToken(token)
        .withDesktopSize({ width, height })
        .withExtension(displayControl(true))
        .build();
      session = await ui.connect(config);
    } catch (error) {
      return { error: words(error) };
    }
    ui.setVisibility(true);
    window.rdp.began = began;
    session.run().then(
      (info) => (window.rdp.ended = { reason: info.reason() }),
      (error) => (window.rdp.ended = { error: words(error) }),
    );
    return { connected: performance.now() - began };
  },
  ready: () => interaction.then(() => true),
  firstFrame: () => (draws.length ? draws[0] - window.rdp.began : 0),
  draws: () => draws.length,
  drawnAfter: (time) => draws.find((at) => at > time) ?? 0,
  lastDraw: () => draws.at(-1) ?? 0,
  canvas: () => element.shadowRoot.querySelector('canvas'),
  size: () => ({ width: window.rdp.canvas().width, height: window.rdp.canvas().height }),
  // pixels tells how many different colours there are and a sum over all of them.
  pixels() {
    const c = window.rdp.canvas();
    const data = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
    let sum = 0;
    const colours = new Set();
    for (const p of data) {
      sum = (Math.imul(sum, 31) + p) | 0;
      if (colours.size < 4096) colours.add(p);
    }
    return { sum, colours: colours.size };
  },
  resize: async (width, height) => (await interaction).resize(width, height),
  shutdown: async () => (await interaction).shutdown(),
};
