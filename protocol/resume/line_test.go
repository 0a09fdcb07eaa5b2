package resume

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"
)

// line is the network between a client and a server: cables can be cut, stop
// without a word and go on late.
type line struct {
	t      *testing.T
	server *Conn

	mu      sync.Mutex // guards what follows
	cables  []*cable
	down    bool // dials fail
	refuse  string
	waiting bool // dials wait until their time is over
	dials   []Attempt
}

// cable carries one transport.
type cable struct {
	ends   [4]net.Conn
	gate   chan struct{} // of one, full while it is stalled
	moved  sync.Mutex    // guards bytes and writes
	bytes  int
	writes int
	cutAt  int           // it breaks after so many bytes; 0: never
	delay  time.Duration // of each piece
	served chan struct{}
}

func newLine(t *testing.T, cfg Config) *line {
	l := &line{t: t, server: New(cfg)}
	t.Cleanup(func() {
		l.server.end(errClosed)
		for _, c := range l.all() {
			c.cut()
		}
	})
	return l
}

func (l *line) all() []*cable {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*cable(nil), l.cables...)
}

func (l *line) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

func (l *line) last() *cable {
	all := l.all()
	return all[len(all)-1]
}

func (l *line) dial(ctx context.Context, a Attempt) (io.ReadWriteCloser, error) {
	return l.lay(ctx, a, &cable{})
}

func (l *line) lay(ctx context.Context, a Attempt, c *cable) (io.ReadWriteCloser, error) {
	l.mu.Lock()
	l.dials = append(l.dials, a)
	down, refuse, waiting := l.down, l.refuse, l.waiting
	l.mu.Unlock()
	if waiting {
		<-ctx.Done()
	}
	if down || waiting {
		return nil, errors.New("no way")
	}
	c.served, c.gate = make(chan struct{}), make(chan struct{}, 1)
	c.ends[0], c.ends[1] = net.Pipe()
	c.ends[2], c.ends[3] = net.Pipe()
	go c.pump(c.ends[1], c.ends[2])
	go c.pump(c.ends[2], c.ends[1])
	l.mu.Lock()
	l.cables = append(l.cables, c)
	l.mu.Unlock()
	go func() {
		defer close(c.served)
		if refuse != "" {
			Refuse(c.ends[3], refuse)
			return
		}
		_ = l.server.Serve(c.ends[3], a.Received)
	}()
	return c.ends[0], nil
}

// pump moves bytes one way; what it has read and not written when the cable is
// cut is lost.
func (c *cable) pump(from, to net.Conn) {
	defer c.cut()
	buf := make([]byte, 3000)
	for {
		n, err := from.Read(buf)
		if err != nil {
			return
		}
		if c.delay > 0 {
			time.Sleep(c.delay)
		}
		c.stall()
		c.goOn()
		c.moved.Lock()
		c.writes++
		c.bytes += n
		broken := c.cutAt > 0 && c.bytes >= c.cutAt
		c.moved.Unlock()
		if broken {
			n = rand.IntN(n + 1) // it breaks in the middle
		}
		if _, err := to.Write(buf[:n]); err != nil || broken {
			return
		}
	}
}

// stall makes nothing move until goOn. (To wait for a mutex is not what time in
// a synctest bubble passes for.)
func (c *cable) stall() { c.gate <- struct{}{} }
func (c *cable) goOn()  { <-c.gate }

func (c *cable) cut() {
	for _, end := range c.ends {
		if end != nil {
			end.Close()
		}
	}
}

func (l *line) client(cfg DialConfig) *Client {
	l.t.Helper()
	if cfg.Dial == nil {
		cfg.Dial = l.dial
	}
	c, err := Dial(l.t.Context(), cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.end(errClosed) })
	return c
}
