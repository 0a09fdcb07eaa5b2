package chaos

import (
	"net"
	"slices"
	"sync"
	"time"
)

// Weather is how bad a line is. Zero: it passes everything at once.
type Weather struct {
	Delay time.Duration // one way
	// Jitter is added to Delay, another part of it for each connection and
	// direction, and another one each second: what two connections carry overtakes
	// each other. One keeps its order, as TCP does.
	Jitter time.Duration
	Rate   int  // bytes per second of each connection and direction; zero: no limit
	Silent bool // nothing passes, and nobody is told
	Refuse bool // new connections are reset
}

// Line relays connections, in user space, through what weather there is.
type Line struct {
	mu      sync.Mutex // guards what follows
	changed chan struct{}
	weather Weather
	pairs   []*pair
	count   uint64 // of connections so far
}

// pair is a connection and its other side.
type pair struct {
	near, far *net.TCPConn // near is who dialled
	half      sync.Once
	halved    chan struct{} // closed once
	number    uint64
}

const (
	chunk = 16 << 10
	// underWay is how many chunks a direction of a connection holds: its bandwidth
	// times delay.
	underWay = 512
	// halfOpen is how long a far end stays that nobody speaks for.
	halfOpen = 2 * time.Minute
)

// NewLine returns a line over which nothing goes yet.
func NewLine() *Line { return &Line{changed: make(chan struct{})} }

// Serve relays what from accepts to what dial returns, until from closes.
func (l *Line) Serve(from net.Listener, dial func() (net.Conn, error)) {
	for {
		near, err := from.Accept()
		if err != nil {
			return
		}
		go l.join(near.(*net.TCPConn), dial)
	}
}

// Set changes the weather.
func (l *Line) Set(w Weather) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.weather = w
	close(l.changed)
	l.changed = make(chan struct{})
}

// Cut resets the connections that which chooses, at both ends.
func (l *Line) Cut(which func(i int) bool) {
	for i, p := range l.all() {
		if which(i) {
			reset(p.near)
			reset(p.far)
		}
	}
}

// Halve resets the near end of all connections and leaves the far ends open,
// as a router does that has lost its table.
func (l *Line) Halve() {
	for _, p := range l.all() {
		p.half.Do(func() { close(p.halved) })
		reset(p.near)
	}
}

// Count returns how many connections there are.
func (l *Line) Count() int { return len(l.all()) }

func (l *Line) all() []*pair {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.pairs)
}

func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // fails only on one that is closed
	c.Close()
}

func (l *Line) now() (Weather, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.weather, l.changed
}

// join carries one connection until both directions have ended.
func (l *Line) join(near *net.TCPConn, dial func() (net.Conn, error)) {
	for {
		w, changed := l.now()
		if w.Refuse {
			reset(near)
			return
		}
		if !w.Silent {
			break
		}
		<-changed
	}
	conn, err := dial()
	if err != nil {
		reset(near)
		return
	}
	p := &pair{near: near, far: conn.(*net.TCPConn), halved: make(chan struct{})}
	l.mu.Lock()
	l.count++
	p.number = l.count
	l.pairs = append(l.pairs, p)
	l.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() {
		l.carry(p.far, near, 2*p.number)
		if !p.isHalved() {
			_ = p.far.CloseWrite() // fails only on one that is closed
		}
	})
	both.Go(func() {
		l.carry(near, p.far, 2*p.number+1)
		_ = near.CloseWrite()
	})
	both.Wait()
	l.mu.Lock()
	l.pairs = slices.DeleteFunc(l.pairs, func(o *pair) bool { return o == p })
	l.mu.Unlock()
	if p.isHalved() {
		time.Sleep(halfOpen)
	}
	reset(near)
	reset(p.far)
}

func (p *pair) isHalved() bool {
	select {
	case <-p.halved:
		return true
	default:
		return false
	}
}

// part is bytes on their way; the last one of a direction has none.
type part struct {
	bytes []byte
	due   time.Time
}

// carry moves bytes, in order, until from ends or to breaks. What has come
// before an orderly end gets there.
func (l *Line) carry(to, from *net.TCPConn, number uint64) {
	parts := make(chan part, underWay)
	broken := make(chan struct{})
	go func() {
		defer close(parts)
		for {
			b := make([]byte, chunk)
			n, err := from.Read(b)
			if n > 0 {
				select {
				case parts <- part{b[:n], time.Now().Add(l.late(number))}:
				case <-broken:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	for p := range parts {
		time.Sleep(time.Until(p.due))
		l.wait(len(p.bytes))
		if _, err := to.Write(p.bytes); err != nil {
			close(broken)
			from.CloseRead()
			break
		}
	}
}

// late is how long a byte takes that comes now.
func (l *Line) late(number uint64) time.Duration {
	w, _ := l.now()
	if w.Jitter == 0 {
		return w.Delay
	}
	mixed := (number + uint64(time.Now().Unix())) * 0x9e3779b97f4a7c15 // Fibonacci hashing
	return w.Delay + time.Duration(mixed>>11)%w.Jitter
}

// wait lets n bytes through when the weather does.
func (l *Line) wait(n int) {
	for {
		w, changed := l.now()
		if !w.Silent {
			if w.Rate > 0 {
				time.Sleep(time.Duration(n) * time.Second / time.Duration(w.Rate))
			}
			return
		}
		<-changed
	}
}
