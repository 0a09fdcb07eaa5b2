package door

import (
	"io"
	"net"
	"sync"
	"time"
)

// idle keeps the far deadlines of a server's connections.
var idle = &clock{far: 8 * time.Second, around: 4 * time.Second}

// Idle returns l with connections whose far deadlines cost no timer each. The
// runtime goes through all timers of a processor whenever one that was stopped is
// set anew to a near time, as pgx does with every query: that was a tenth of a
// server's work beside ten thousand idle hosts. A deadline that is far away is only
// noted here, and kept up to four seconds late.
func Idle(l net.Listener) net.Listener { return idleListener{l, idle} }

type idleListener struct {
	net.Listener
	clock *clock
}

func (l idleListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.clock.wrap(c), nil
}

// parts are looked at one after the other, so that each look is short.
const parts = 16

// clock looks at all its connections once around, while there are any. It has each
// until it is closed.
type clock struct {
	far, around time.Duration

	mu      sync.Mutex // guards what follows
	conns   [parts]map[*timed]struct{}
	next    int // part that takes the next one
	n       int
	running bool
}

func (k *clock) wrap(inner net.Conn) *timed {
	c := &timed{Conn: inner, clock: k}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.next = (k.next + 1) % parts
	c.part = k.next
	if k.conns[c.part] == nil {
		k.conns[c.part] = map[*timed]struct{}{}
	}
	k.conns[c.part][c] = struct{}{}
	k.n++
	if !k.running {
		k.running = true
		go k.run()
	}
	return c
}

func (k *clock) forget(c *timed) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, known := k.conns[c.part][c]; known {
		delete(k.conns[c.part], c)
		k.n--
	}
}

func (k *clock) run() {
	tick := time.NewTicker(k.around / parts)
	defer tick.Stop()
	for i := 0; ; i = (i + 1) % parts {
		<-tick.C
		if !k.look(i) {
			return
		}
	}
}

// look keeps the deadlines of a part, and returns whether the clock goes on.
func (k *clock) look(part int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	for c := range k.conns[part] {
		c.read.check(now, c.Conn.SetReadDeadline)
		c.write.check(now, c.Conn.SetWriteDeadline)
	}
	k.running = k.n > 0
	return k.running
}

// timed is a connection of a clock.
type timed struct {
	net.Conn
	clock       *clock
	part        int
	read, write limit
}

func (c *timed) SetReadDeadline(t time.Time) error {
	return c.read.move(t, c.clock.far, c.Conn.SetReadDeadline)
}

func (c *timed) SetWriteDeadline(t time.Time) error {
	return c.write.move(t, c.clock.far, c.Conn.SetWriteDeadline)
}

func (c *timed) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

func (c *timed) Close() error {
	c.clock.forget(c)
	return c.Conn.Close()
}

// CloseWrite ends the socket's writing, where it can be ended alone.
func (c *timed) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// ReadFrom lets the kernel send files.
func (c *timed) ReadFrom(r io.Reader) (int64, error) { return io.Copy(c.Conn, r) }

// limit is a deadline: noted here, or the socket's own.
type limit struct {
	mu   sync.Mutex // guards what follows, and the socket's
	at   time.Time  // that is far away; zero: none
	near bool       // the socket has one
}

// move sets the deadline. Of a socket that is closed the next read or write tells.
func (l *limit) move(t time.Time, far time.Duration, set func(time.Time) error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.at = time.Time{}
	if time.Until(t) > far {
		l.at, t = t, time.Time{}
	}
	if t.IsZero() && !l.near {
		return nil
	}
	l.near = !t.IsZero()
	return set(t)
}

// check ends what is under way when the deadline has passed.
func (l *limit) check(now time.Time, set func(time.Time) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.at.IsZero() && now.After(l.at) {
		l.at, l.near = time.Time{}, true
		_ = set(now) // fails only on a closed socket
	}
}
