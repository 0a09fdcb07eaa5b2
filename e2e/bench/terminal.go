package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/gorilla/websocket"

	"github.com/remotegpu/remotegpu/control/terminal"
	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/tunnel"
)

// keystrokes compares a key's echo by a program's terminal, over the server's
// WebSocket, with that of a WebSocket server which sends back what it gets.
func keystrokes(b *bench) error {
	s, err := b.system()
	if err != nil {
		return err
	}
	const env = "terminal"
	if _, err := s.remotegpu("env", "create", env, "--image", image); err != nil {
		return err
	}
	t, err := s.open(env, serverAddr, "cat >/dev/null") // the terminal itself echoes
	if err != nil {
		return err
	}
	defer t.close()
	raw, hangUp, err := b.dialEcho()
	if err != nil {
		return err
	}
	defer hangUp()
	compare := func(where string) error {
		p, err := paired(b.often(),
			func() (measured, error) { return strokes(t.key) },
			func() (measured, error) { return strokes(raw.key) })
		if err != nil {
			return err
		}
		b.add("key to echo in a terminal"+where+", p50, against a WebSocket's", "ms", atMostMore(5), 0, p)
		b.add("key to echo in a terminal"+where+", p99, against a WebSocket's", "ms", atMostMore(5), 1, p)
		return nil
	}
	if err := compare(""); err != nil {
		return err
	}
	burning, err := b.start(settings{Role: "burn"})
	if err != nil {
		return err
	}
	err = compare(" while programs compute")
	burning.stop()
	if err != nil {
		return err
	}
	_, err = s.remotegpu("env", "rm", env)
	return err
}

// burnEnd computes on twice as many threads as there are CPUs.
func burnEnd(_ settings, ready func(...string)) error {
	threads := 2 * runtime.GOMAXPROCS(0)
	runtime.GOMAXPROCS(threads + 1)
	for range threads {
		go func() {
			for block := make([]byte, 64<<10); ; {
				sum := sha256.Sum256(block)
				copy(block, sum[:])
			}
		}()
	}
	ready()
	select {}
}

// strokes types like somebody fast, and returns p50 and p99 in milliseconds.
func strokes(key func() error) (measured, error) {
	var took []float64
	for range 100 {
		start := time.Now()
		if err := key(); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start).Seconds()*1e3)
		time.Sleep(5 * time.Millisecond)
	}
	return measured{quantile(0.5, took), quantile(0.99, took)}, nil
}

// resumption measures from the cut of a client's connection until the program's
// next output, over a long line. What it is compared with is three round trips.
func resumption(b *bench) error {
	const roundTrip = 50 * time.Millisecond
	s, err := b.system()
	if err != nil {
		return err
	}
	const env = "resume"
	if _, err := s.remotegpu("env", "create", env, "--image", image); err != nil {
		return err
	}
	line, err := b.start(settings{Role: "delay", To: serverAddr, Delay: roundTrip / 2})
	if err != nil {
		return err
	}
	defer line.stop()
	l, err := newLoad()
	if err != nil {
		return err
	}
	defer l.close()
	relay, err := b.relayWay(l.addr(), roundTrip)
	if err != nil {
		return err
	}
	defer relay.close()
	there, err := relay.ask(asEcho)
	if err != nil {
		return err
	}
	defer there.Close()
	t, err := s.open(env, line.addrs[0], "while :; do echo x; sleep 0.01; done")
	if err != nil {
		return err
	}
	defer t.close()
	p, err := paired(b.often(), t.cut, func() (measured, error) {
		m, err := oneTrip(there)
		if err == nil {
			m[0] *= 3
		}
		return m, err
	})
	if err != nil {
		return err
	}
	b.add("cut to first new byte, 50 ms round trip, against three of them", "ms", atMostMore(100), 0, p)
	_, err = s.remotegpu("env", "rm", env)
	return err
}

// webSocket is a plain one.
type webSocket struct{ *websocket.Conn }

// dialEcho starts a server that sends back what it gets, and connects with it
// as a terminal is with the product's.
func (b *bench) dialEcho() (*webSocket, func(), error) {
	p, err := b.start(settings{Role: "echo"})
	if err != nil {
		return nil, nil, err
	}
	cfg, err := settings{Dir: b.dir}.tlsConfig()
	if err != nil {
		p.stop()
		return nil, nil, err
	}
	ws, _, err := (&websocket.Dialer{TLSClientConfig: cfg}).Dial("wss://"+p.addrs[0], nil)
	if err != nil {
		p.stop()
		return nil, nil, err
	}
	return &webSocket{ws}, func() { ws.Close(); p.stop() }, nil
}

// key sends one byte, and waits for it.
func (w *webSocket) key() error {
	if err := w.WriteMessage(websocket.BinaryMessage, []byte{'x'}); err != nil {
		return err
	}
	_, _, err := w.ReadMessage()
	return err
}

func echoEnd(s settings, ready func(...string)) error {
	cfg, err := s.tlsConfig()
	if err != nil {
		return err
	}
	l, err := listen()
	if err != nil {
		return err
	}
	ready(l.Addr().String())
	srv := http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := new(websocket.Upgrader).Upgrade(w, r, nil)
		if err != nil {
			return // it has answered
		}
		defer c.Close()
		for {
			kind, p, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, p) != nil {
				return
			}
		}
	})}
	return srv.Serve(tls.NewListener(l, cfg))
}

// shell is a program in a terminal of an environment.
type shell struct {
	done   context.CancelFunc
	output chan time.Time // when some of it came
	typed  *io.PipeWriter

	mu   sync.Mutex // guards conn
	conn io.Closer  // the newest
}

// open runs a command in a terminal, as remotegpu ssh does, over the server at
// addr, and waits until it has said something.
func (s *system) open(env, addr, command string) (*shell, error) {
	roots := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(s.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	roots.AppendCertsFromPEM(ca)
	ctx, cancel := context.WithCancel(context.Background())
	in, typed := io.Pipe()
	sh := &shell{done: cancel, output: make(chan time.Time, 1000), typed: typed}
	path := "wss://" + addr + "/api/v1/workspaces/default/environments/" + env + "/terminal?"
	failed := make(chan error, 1)
	go func() {
		_, err := terminal.Run(ctx, terminal.Config{
			Session: protocol.NewID(protocol.PrefixSession), Stdin: in, Stdout: sh, Stderr: os.Stderr,
			Open: &protocol.SessionOpen{Term: "xterm", Command: "echo begun; " + command},
			Dial: func(ctx context.Context, q url.Values) (io.ReadWriteCloser, error) {
				c, err := tunnel.Dial(ctx, tunnel.DialConfig{URL: path + q.Encode(), TLS: &tls.Config{RootCAs: roots}, Header: http.Header{"Authorization": {"Bearer " + s.token}}})
				if err != nil {
					return nil, err
				}
				sh.mu.Lock()
				defer sh.mu.Unlock()
				sh.conn = c
				return c, nil
			},
		})
		failed <- err
	}()
	select {
	case <-sh.output:
		return sh, nil
	case err = <-failed:
	case <-time.After(answerLimit):
		err = errNoAnswer
	}
	cancel()
	return nil, fmt.Errorf("open a terminal: %w", err)
}

const answerLimit = 30 * time.Second

var errNoAnswer = fmt.Errorf("nothing came within %v", answerLimit)

// Write takes the program's output.
func (s *shell) Write(p []byte) (int, error) {
	select {
	case s.output <- time.Now():
	default: // nobody has looked for long
	}
	return len(p), nil
}

func (s *shell) close() { s.done() }

// after waits for output that comes after a moment.
func (s *shell) after(at time.Time) (time.Time, error) {
	late := time.After(answerLimit)
	for {
		select {
		case came := <-s.output:
			if came.After(at) {
				return came, nil
			}
		case <-late:
			return at, errNoAnswer
		}
	}
}

// key types one, and waits for its echo.
func (s *shell) key() error {
	start := time.Now()
	if _, err := s.typed.Write([]byte{'x'}); err != nil {
		return err
	}
	_, err := s.after(start)
	return err
}

// alreadyHere is when what had come before a cut has been shown; what comes
// over the next connection takes a round trip at least.
const alreadyHere = 20 * time.Millisecond

// cut closes the connection under the session, and returns how long it took
// until something came over the next one, in milliseconds.
func (s *shell) cut() (measured, error) {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	start := time.Now()
	if err := conn.Close(); err != nil {
		return nil, err
	}
	came, err := s.after(start.Add(alreadyHere))
	return measured{came.Sub(start).Seconds() * 1e3}, err
}
