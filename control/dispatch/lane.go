package dispatch

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"runtime"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	laneIdle    = 5 * time.Minute  // after so long without a connection a lane is forgotten; the next message makes it again
	resync      = 30 * time.Minute // heals what nobody told of; takes 3 ms of PostgreSQL for each host
	workTimeout = 20 * time.Second
	beatEvery   = 250 * time.Millisecond // heartbeats that came meanwhile are noted together; seldom is in bursts, which people's keys wait behind
	maxPresence = 8

	returnsPerCore = 100 // hosts that may come back per second: one takes 5 ms and more of the server and PostgreSQL
	maxWork        = 32  // hosts that are worked for at a time: most share a transaction
	maxSingle      = 8   // of them those that hold a database connection of their own
)

// What one host may cost: more of it waits, and only its own work with it.
const (
	workRate   = 10 // per second that its lane is worked for, after workBurst
	workBurst  = 40
	eventRate  = 2 // of its events per second that are kept, after eventBurst; it sends the others again
	eventBurst = 512
)

var repeats = []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second}

// lanes are what is going on for each host. Whoever has work waits in line for
// a worker; one at a time works for a host, in order, and only the newest of each
// kind of message is kept, so a flood costs its sender alone. A host with
// nothing to do costs neither a goroutine nor a timer.
type lanes struct {
	svc *Service

	mu    sync.Mutex // guards what follows, and the lanes but for what their workers own
	more  *sync.Cond // ready has grown, or the end has come
	all   map[string]*lane
	ready []*lane
	beats map[string]*protocol.Status // heartbeats to note, by host
}

// lane is one host's.
type lane struct {
	host   string
	todo   todo
	pace   *rate.Limiter // of work
	queued bool          // it is in ready, or will be when its pace allows
	busy   bool          // a worker has it
	again  bool          // something came while it was busy
	missed bool          // its document waits for it to be connected: it need not say hello when the line to a broker is back
	timer  *time.Timer
	said   [sha256.Size]byte // what the last status said that was taken whole
	synced time.Time         // when the document was last looked at without being asked

	// The worker's own.
	events  *rate.Limiter // that are kept
	has     held
	newest  uint64 // generation that was looked at last; 0: none
	unsure  bool   // the look after that one failed
	tries   int
	nextPub time.Time
}

// todo is what waits for a worker.
type todo struct {
	hello    *protocol.Hello
	status   *protocol.Status
	presence []protocol.Presence // the last maxPresence: birth and death must both count
	touched  bool
}

func (t todo) empty() bool {
	return t.hello == nil && t.status == nil && len(t.presence) == 0 && !t.touched
}

func (l *lanes) init(s *Service) {
	l.svc, l.all, l.beats, l.more = s, map[string]*lane{}, map[string]*protocol.Status{}, sync.NewCond(&l.mu)
}

// run works until ctx ends.
func (l *lanes) run(ctx context.Context) {
	var working sync.WaitGroup
	defer func() { // ctx has ended
		l.mu.Lock()
		l.more.Broadcast()
		l.mu.Unlock()
		working.Wait()
	}()
	for range maxWork {
		working.Go(func() {
			for l.work(ctx) {
			}
		})
	}
	beat, idle := time.NewTicker(beatEvery), time.NewTicker(laneIdle)
	defer beat.Stop()
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-beat.C:
			l.svc.noteBeats(ctx, l.takeBeats())
		case <-idle.C:
			l.forget()
		}
	}
}

// of returns a host's lane, which is made when there is none. It needs mu.
func (l *lanes) of(host string) *lane {
	ln := l.all[host]
	if ln == nil {
		ln = &lane{
			host: host, synced: time.Now().Add(-rand.N(resync)), // a fleet must not resync in step
			pace: rate.NewLimiter(workRate, workBurst), events: rate.NewLimiter(eventRate, eventBurst),
		}
		l.all[host] = ln
	}
	return ln
}

// change lets fn change what waits for a host.
func (l *lanes) change(host string, fn func(*todo)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	ln := l.of(host)
	fn(&ln.todo)
	l.enqueue(ln)
}

// enqueue needs mu.
func (l *lanes) enqueue(ln *lane) {
	switch {
	case ln.busy:
		ln.again = true
		return
	case ln.queued:
		return
	}
	ln.queued = true
	if wait := ln.pace.Reserve().Delay(); wait > 0 {
		time.AfterFunc(wait, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.line(ln)
		})
		return
	}
	l.line(ln)
}

// line puts a lane at the end of the line. It needs mu.
func (l *lanes) line(ln *lane) {
	l.ready = append(l.ready, ln)
	l.more.Signal()
}

// spread is over how many seconds these hosts should come back.
func (l *lanes) spread() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return min(uint64(len(l.all)/(returnsPerCore*runtime.GOMAXPROCS(0))), protocol.MaxSpread)
}

// miss notes that the host has to get its document when it is heard again.
func (l *lanes) miss(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ln := l.all[host]; ln != nil {
		ln.missed = true
	}
}

func (l *lanes) wake(host string) { l.change(host, func(t *todo) { t.touched = true }) }

// work does what waits for the next host in line; false: the end has come.
func (l *lanes) work(ctx context.Context) bool {
	l.mu.Lock()
	for len(l.ready) == 0 && ctx.Err() == nil {
		l.more.Wait()
	}
	if ctx.Err() != nil {
		l.mu.Unlock()
		return false
	}
	ln := l.ready[0]
	l.ready = l.ready[1:]
	ln.queued, ln.busy, ln.again = false, true, false
	if ln.timer != nil {
		ln.timer.Stop()
	}
	now := ln.todo
	ln.todo = todo{}
	if time.Since(ln.synced) > resync {
		ln.synced, now.touched = time.Now(), true
	}
	l.mu.Unlock()
	within, cancel := context.WithTimeout(ctx, workTimeout)
	defer cancel()
	wait := l.svc.work(within, ln, now)
	l.mu.Lock()
	defer l.mu.Unlock()
	ln.busy = false
	switch {
	case ln.again:
		l.enqueue(ln)
	case wait > 0:
		ln.timer = time.AfterFunc(wait, func() {
			l.mu.Lock()
			defer l.mu.Unlock()
			l.enqueue(ln)
		})
	}
	return true
}

// putBack lets what could not be done wait again, behind what came meanwhile:
// a newer message stands for an older one.
func (l *lanes) putBack(ln *lane, left todo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	t := &ln.todo
	if t.hello == nil {
		t.hello = left.hello
	}
	if t.status == nil {
		t.status = left.status
	}
	t.presence = append(append([]protocol.Presence{}, left.presence...), t.presence...)
	t.presence = t.presence[max(0, len(t.presence)-maxPresence):]
	t.touched = t.touched || left.touched
}

// forget drops the lanes of hosts that are not connected.
func (l *lanes) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for host, ln := range l.all {
		if !ln.busy && !ln.queued && ln.todo.empty() && !l.svc.cfg.Connected(host) {
			delete(l.all, host)
		}
	}
}
