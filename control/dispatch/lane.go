package dispatch

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	laneIdle    = 5 * time.Minute // a lane without work ends; the next message starts it again
	resync      = 10 * time.Minute
	workTimeout = 20 * time.Second
	maxPresence = 8
	maxWork     = 16 // hosts that are worked for at a time: each holds a database connection
)

// What one host may cost: more of it waits, and only its own work with it.
const (
	workRate   = 10 // per second that its lane works, after workBurst
	workBurst  = 40
	eventRate  = 2 // of its events per second that are kept, after eventBurst; it sends the others again
	eventBurst = 512
)

var repeats = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second}

// lanes are what is going on for each host: one goroutine per host does its
// work in order, and only the newest of each kind of message is kept, so a
// flood costs its sender alone.
type lanes struct {
	svc   *Service
	slots chan struct{}

	mu  sync.Mutex // guards ctx and all
	ctx context.Context
	all map[string]*lane
}

// lane is one host's.
type lane struct {
	host string
	wake chan struct{} // of one

	mu       sync.Mutex // guards what follows
	hello    *protocol.Hello
	status   *protocol.Status
	presence []protocol.Presence // the last maxPresence: birth and death must both count
	touched  bool

	// The goroutine's own.
	pace    *rate.Limiter // of work
	events  *rate.Limiter // that are kept
	has     held
	tries   int
	nextPub time.Time
}

func (l *lanes) init(s *Service) {
	l.svc, l.all, l.slots = s, map[string]*lane{}, make(chan struct{}, maxWork)
}

func (l *lanes) start(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ctx = ctx
	for _, ln := range l.all {
		go l.run(ctx, ln)
	}
}

// change lets fn change a host's lane, which is made when there is none, and
// wakes it.
func (l *lanes) change(host string, fn func(*lane)) {
	l.mu.Lock()
	ln, ok := l.all[host]
	if !ok {
		ln = &lane{
			host: host, wake: make(chan struct{}, 1),
			pace: rate.NewLimiter(workRate, workBurst), events: rate.NewLimiter(eventRate, eventBurst),
		}
		l.all[host] = ln
		if l.ctx != nil {
			go l.run(l.ctx, ln)
		}
	}
	ln.mu.Lock()
	fn(ln)
	ln.mu.Unlock()
	l.mu.Unlock()
	ln.kick()
}

func (ln *lane) kick() {
	select {
	case ln.wake <- struct{}{}:
	default:
	}
}

func (l *lanes) wake(host string) { l.change(host, func(ln *lane) { ln.touched = true }) }

func (l *lanes) wakeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, ln := range l.all {
		ln.mu.Lock()
		ln.touched = true
		ln.mu.Unlock()
		ln.kick()
	}
}

// retire ends an idle lane, unless something came in the last moment.
func (l *lanes) retire(ln *lane) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(ln.wake) > 0 || l.svc.cfg.Connected(ln.host) {
		return false
	}
	delete(l.all, ln.host)
	return true
}

func (l *lanes) run(ctx context.Context, ln *lane) {
	wait := time.Duration(0)
	lastSync := time.Now().Add(-rand.N(resync)) // a fleet must not resync in step
	for {
		idle := wait == 0
		if idle {
			wait = laneIdle
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-ln.wake:
			timer.Stop()
		case <-timer.C:
			if idle && l.retire(ln) {
				return
			}
		}
		again := time.Since(lastSync) > resync
		if again {
			lastSync = time.Now()
		}
		if ln.pace.Wait(ctx) != nil {
			return
		}
		l.slots <- struct{}{}
		work, cancel := context.WithTimeout(ctx, workTimeout)
		wait = l.svc.work(work, ln, again)
		cancel()
		<-l.slots
	}
}
