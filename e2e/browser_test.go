package e2e

import (
	"bufio"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// browser is Chromium in a role's network, driven through e2e/browser/driver.js.
type browser struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

// browser starts one with an empty page.
func (w *world) browser(role string) *browser {
	w.t.Helper()
	if _, err := os.Stat("browser/dist"); err != nil {
		w.t.Fatal("the test pages are not built: run make browser")
	}
	driver, err := filepath.Abs("browser/driver.js")
	if err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command("nsenter", "--net=/run/netns/"+w.ns(role), "node", driver)
	cmd.Env = append(os.Environ(), "HOME="+w.dir)
	log, err := os.Create(filepath.Join(w.dir, "browser.log"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	b := &browser{t: w.t}
	if b.in, err = cmd.StdinPipe(); err != nil {
		w.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.t.Fatal(err)
	}
	b.out = bufio.NewReaderSize(out, 1<<20)
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		if w.t.Failed() {
			w.t.Logf("end of browser.log:\n%s", tail(log.Name()))
		}
		b.in.Close()
		stuck := time.AfterFunc(20*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait()
		stuck.Stop()
	})
	return b
}

// args are the arguments of an operation of the driver.
type args map[string]any

// try does an operation and stores its answer in value, unless that is nil.
func (b *browser) try(op string, with args, value any) string {
	b.t.Helper()
	request := args{"op": op}
	for name, v := range with {
		request[name] = v
	}
	line, err := json.Marshal(request)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.in.Write(append(line, '\n')); err != nil {
		b.t.Fatalf("%s: the browser is gone: %v", op, err)
	}
	if line, err = b.out.ReadBytes('\n'); err != nil {
		b.t.Fatalf("%s: the browser is gone: %v", op, err)
	}
	var answer struct {
		Error string
		Value json.RawMessage
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		b.t.Fatalf("%s: answer %q: %v", op, line, err)
	}
	if answer.Error == "" && value != nil {
		if err := json.Unmarshal(answer.Value, value); err != nil {
			b.t.Fatalf("%s: value %s: %v", op, answer.Value, err)
		}
	}
	return answer.Error
}

// do is try for what must work.
func (b *browser) do(op string, with args, value any) {
	b.t.Helper()
	if fault := b.try(op, with, value); fault != "" {
		var said []string
		b.try("said", nil, &said)
		b.t.Fatalf("browser: %s\nthe page said: %q", fault, said)
	}
}

// eval runs js, the body of a function, in the page.
func (b *browser) eval(js string, value any) {
	b.t.Helper()
	b.do("eval", args{"js": js}, value)
}
