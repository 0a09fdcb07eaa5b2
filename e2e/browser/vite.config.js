// Builds the test pages: every *.html here is one.
import { readdirSync } from 'node:fs';
import { defineConfig } from 'vite';

// The RDP client carries its WASM as base64 in its script. As a file of its own
// it is a quarter smaller, compiles while it loads, and is compressed on the way.
function wasmAsFile() {
  const inlined = /"data:application\/wasm;base64,([A-Za-z0-9+/=]+)"/;
  return {
    name: 'wasm-as-file',
    transform(code, id) {
      if (!id.includes('iron-remote-desktop-rdp')) return null;
      const found = inlined.exec(code);
      if (!found) throw new Error('the RDP client no longer carries its WASM inline: drop this transform');
      const ref = this.emitFile({ type: 'asset', name: 'rdp.wasm', source: Buffer.from(found[1], 'base64') });
      return { code: code.replace(found[0], `import.meta.ROLLUP_FILE_URL_${ref}`), map: null };
    },
  };
}

export default defineConfig({
  base: '/test-pages/',
  plugins: [wasmAsFile()],
  build: {
    target: 'es2022',
    rollupOptions: { input: readdirSync('.').filter((name) => name.endsWith('.html')) },
  },
});
