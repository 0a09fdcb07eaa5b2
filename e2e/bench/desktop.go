package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"time"
)

const desktopImage = serverAddr + "/default/desktop:1"

// desktop measures a remote desktop in Chromium against what people take for
// immediate: nothing else shows one in a browser over the same hops.
func desktop(b *bench) error {
	s, err := b.system()
	if err != nil {
		return err
	}
	if err := s.startDesktop(); err != nil {
		return err
	}
	p, err := s.openPage()
	if err != nil {
		return err
	}
	defer p.close()
	frames, err := paired(b.seldom(), func() (measured, error) { return s.firstFrame(p) }, constant(1.5))
	if err != nil {
		return err
	}
	b.add("desktop in a browser, connect to first frame, against 1.5 s", "s", atMost(1), 0, frames)
	keys, err := paired(b.often(), p.keyToPixel, constant(50))
	if err != nil {
		return err
	}
	b.add("desktop in a browser, key to pixel, against 50 ms", "ms", atMost(1), 0, keys)
	return nil
}

func constant(v float64) func() (measured, error) {
	return func() (measured, error) { return measured{v}, nil }
}

// startDesktop pushes the desktop image and starts an environment of it.
func (s *system) startDesktop() error {
	found, _ := filepath.Glob("run/images/desktop-*")
	if len(found) != 1 {
		return errors.New("the desktop image is not built: run make desktop-image")
	}
	if _, err := s.output("skopeo", "copy", "-q", "--dest-tls-verify=false", "--dest-creds", "token:"+s.token, "oci:"+found[0]+":latest", "docker://"+desktopImage); err != nil {
		return err
	}
	if _, err := s.remotegpu("env", "create", "desk", "--image", desktopImage, "--", "desktop"); err != nil {
		return err
	}
	return until("the RDP server listens", func() error { _, err := s.remotegpu("ssh", "desk", "--", "pgrep -x xrdp"); return err })
}

// page is Chromium on the test page of the RDP client; see e2e/browser/driver.js.
type page struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func (s *system) openPage() (*page, error) {
	cmd := s.command("node", "e2e/browser/driver.js")
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%w (Node.js runs the browser)", err)
	}
	return &page{cmd, in, bufio.NewReaderSize(out, 1<<20)}, nil
}

func (p *page) close() {
	p.in.Close()
	late := time.AfterFunc(20*time.Second, func() { _ = p.cmd.Process.Kill() })
	defer late.Stop()
	_ = p.cmd.Wait() // how it ended is of no matter
}

// do asks the driver for an operation; value gets what it answers.
func (p *page) do(request map[string]any, value any) error {
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := p.in.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("the browser is gone: %w", err)
	}
	if line, err = p.out.ReadBytes('\n'); err != nil {
		return fmt.Errorf("the browser is gone: %w (make browser builds its pages)", err)
	}
	var answer struct {
		Error string
		Value json.RawMessage
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return err
	}
	if answer.Error != "" {
		return errors.New(answer.Error)
	}
	if value == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, value)
}

// firstFrame connects anew and waits for what is drawn first.
func (s *system) firstFrame(p *page) (measured, error) {
	text, err := s.output("curl", "-fsSk", "-X", "POST", "-H", "Authorization: Bearer "+s.token, "-H", "Content-Type: application/json", "-d", "{}",
		"https://"+serverAddr+"/api/v1/workspaces/default/environments/desk/rdp")
	if err != nil {
		return nil, err
	}
	var ticket struct{ Token string }
	if err := json.Unmarshal([]byte(text), &ticket); err != nil {
		return nil, err
	}
	arg := map[string]any{"address": "wss://" + serverAddr + "/api/v1/rdp", "token": ticket.Token, "width": 1024, "height": 768}
	var connected struct{ Error json.RawMessage }
	var ms float64
	for _, step := range []struct {
		request map[string]any
		value   any
	}{
		{map[string]any{"op": "goto", "url": "https://" + serverAddr + "/test-pages/rdp.html"}, nil},
		{map[string]any{"op": "eval", "js": "await window.rdp.ready()"}, nil},
		{map[string]any{"op": "eval", "js": "return await window.rdp.connect(arg)", "arg": arg}, &connected},
		{map[string]any{"op": "wait", "js": "return window.rdp.firstFrame()"}, &ms},
		{map[string]any{"op": "wait", "js": "return window.rdp.pixels().colours > 20"}, nil}, // the terminal
		{map[string]any{"op": "click", "x": 300, "y": 300}, nil},
	} {
		err := p.do(step.request, step.value)
		if err == nil && connected.Error != nil {
			err = fmt.Errorf("the client says %s", connected.Error)
		}
		if err != nil {
			return nil, err
		}
	}
	return measured{ms / 1000}, nil
}

// keyToPixel is the time from a key's event in the page to the next drawing.
func (p *page) keyToPixel() (measured, error) {
	var ms float64
	for _, step := range []map[string]any{
		{"op": "eval", "js": `window.pressed = 0; addEventListener('keydown', () => { window.pressed ||= performance.now() }, { capture: true, once: true });
			await new Promise((done) => setTimeout(done, 150))`},
		{"op": "press", "key": "a"},
		{"op": "wait", "js": "const at = window.pressed && window.rdp.drawnAfter(window.pressed); return at ? at - window.pressed : 0"},
	} {
		var value any
		if err := p.do(step, &value); err != nil {
			return nil, err
		}
		ms, _ = value.(float64) // of the last step
	}
	return measured{ms}, nil
}
