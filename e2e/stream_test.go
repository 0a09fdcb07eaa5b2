package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
)

// board serves what pages like TensorBoard's do with long answers: events as
// they come, a WebSocket that echoes, and uploads.
const board = `
import asyncio, hashlib, tornado.web, tornado.websocket
class Page(tornado.web.RequestHandler):
    def get(self): self.write('<title>board</title>')
class Events(tornado.web.RequestHandler):
    async def get(self):
        self.set_header('Content-Type', 'text/event-stream')
        for i in range(20):
            self.write(f'id: {i}\ndata: step {i}\n\n')
            await self.flush()
            await asyncio.sleep(0.1)
class Echo(tornado.websocket.WebSocketHandler):
    def on_message(self, message): self.write_message(message, binary=isinstance(message, bytes))
@tornado.web.stream_request_body
class Upload(tornado.web.RequestHandler):
    def prepare(self):
        self.request.connection.set_max_body_size(1 << 30)
        self.sum, self.size = hashlib.sha256(), 0
    def data_received(self, chunk):
        self.sum.update(chunk)
        self.size += len(chunk)
    def post(self): self.write({'size': self.size, 'sum': self.sum.hexdigest()})
async def main():
    tornado.web.Application([('/', Page), ('/events', Events), ('/echo', Echo), ('/upload', Upload)]).listen(6006, '127.0.0.1')
    await asyncio.Event().wait()
asyncio.run(main())
`

// streams: server-sent events come one by one, a WebSocket echoes texts and
// large messages, and a large upload arrives whole, in a browser at the app's
// own address.
func (w *world) streams(t *testing.T, b *browser) {
	t.Helper()
	program := filepath.Join(w.dir, "board.py")
	if err := os.WriteFile(program, []byte(board), 0o644); err != nil {
		t.Fatal(err)
	}
	w.in("client", "remotegpu ssh lab -- 'cat >/tmp/board.py; setsid python3 /tmp/board.py >/tmp/board.log 2>&1 </dev/null & for i in $(seq 100); do curl -sf 127.0.0.1:6006 && break; sleep 0.1; done' <"+program)
	var o opened
	if err := json.Unmarshal([]byte(w.in("client", "remotegpu app open lab 6006 -o json")), &o); err != nil {
		t.Fatal(err)
	}
	b.do("goto", args{"url": o.URL}, nil)
	var title string
	if b.eval("return document.title", &title); title != "board" {
		t.Fatalf("the app's page is %q", title)
	}
	var events struct {
		Steps  int
		Spread float64 // ms from the first to the last
	}
	b.eval(`const source = new EventSource('/events'), at = [];
		return await new Promise((resolve, reject) => {
			source.onmessage = event => {
				if (event.data !== 'step ' + at.length) reject(new Error(event.data + ' as number ' + at.length));
				at.push(performance.now());
				if (at.length === 20) { source.close(); resolve({ steps: at.length, spread: at[19] - at[0] }); }
			};
			source.onerror = () => reject(new Error('events end after ' + at.length));
		})`, &events)
	if events.Steps != 20 || events.Spread < 1000 {
		t.Errorf("%d events came within %.0f ms; they were sent over 1.9 s", events.Steps, events.Spread)
	}
	var echoed struct{ Texts, Bytes int }
	b.eval(`const socket = new WebSocket('wss://' + location.host + '/echo');
		socket.binaryType = 'arraybuffer';
		await new Promise((resolve, reject) => { socket.onopen = resolve; socket.onerror = () => reject(new Error('no WebSocket')); });
		const echo = message => new Promise((resolve, reject) => {
			socket.onmessage = event => resolve(event.data);
			socket.onclose = event => reject(new Error('closed: ' + event.code));
			socket.send(message);
		});
		let texts = 0;
		for (let i = 0; i < 100; i++) texts += await echo('message ' + i) === 'message ' + i;
		const large = new Uint8Array(4 << 20).map((_, i) => i * 31 >> 3), back = new Uint8Array(await echo(large));
		let bytes = 0;
		for (let i = 0; i < large.length; i++) bytes += large[i] === back[i];
		return { texts, bytes };`, &echoed)
	if echoed.Texts != 100 || echoed.Bytes != 4<<20 {
		t.Errorf("echoed are %d of 100 texts and %d of %d bytes", echoed.Texts, echoed.Bytes, 4<<20)
	}
	var up struct {
		Size      int
		Sum, Want string
	}
	b.eval(`const body = new Uint8Array(64 << 20).map((_, i) => i % 251);
		const want = [...new Uint8Array(await crypto.subtle.digest('SHA-256', body))].map(b => b.toString(16).padStart(2, '0')).join('');
		const answer = await fetch('/upload', { method: 'POST', body });
		if (!answer.ok) throw new Error(answer.status + ' ' + await answer.text());
		return { ...await answer.json(), want };`, &up)
	if up.Size != 64<<20 || up.Sum != up.Want {
		t.Errorf("uploaded are %d of %d bytes, sum %s, want %s", up.Size, 64<<20, up.Sum, up.Want)
	}
}
