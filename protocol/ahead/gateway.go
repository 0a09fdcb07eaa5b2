package ahead

import (
	"path"
	"strconv"
	"sync"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

const (
	keepFor  = 2 * time.Millisecond // a message that nobody waits for
	freshFor = time.Second          // what was read ahead
)

// Gateway is the end at the client. One goroutine calls FromClient and End,
// another FromHost.
type Gateway struct {
	host, client func(p []byte) error // p of host has protocol.FrameRoom before what is to be written
	writes       bool                 // are answered ahead as well

	requests, answers splitter
	back              []byte // for the client; FromHost's own

	answering sync.Mutex // one message at a time to the client

	sending sync.Mutex // guards what follows, and the order of what goes to the host
	out     []byte     // for the host, after its room
	late    *time.Timer
	err     error

	mu      sync.Mutex // guards what follows
	on      bool
	waiting int // messages that the host has to answer
	opens   map[uint32]*file
	fresh   *file             // the one whose handle came last, while nothing else was sent since
	folder  string            // where one was opened, written and closed, with nothing between
	virtual uint64            // handles that were made here
	early   map[string][]byte // handles of which an open or a write was answered early: nil, or the status of a failure
	told    map[uint32]teller // by request
}

// teller is a request whose answer tells of what failed with a file.
type teller struct {
	handle string
	closes bool
}

// file is one that is being opened, or just was.
type file struct {
	handle string
	write  bool
	folder string // where it is, if it is made when it is not there
	wrote  bool   // its first write was answered ahead
	data   []byte // all of it; nil: not known
	next   uint64 // what the client reads next
	since  time.Time
}

// NewGateway returns a gateway between two sides that are written to by host
// and client. What host gets has room for the head of a frame. Checks says that the
// client looks at what a close says; only then is anything written ahead.
func NewGateway(host, client func(p []byte) error, checks bool) *Gateway {
	g := &Gateway{
		host: host, client: client, writes: checks, out: make([]byte, protocol.FrameRoom, most),
		opens: map[uint32]*file{}, early: map[string][]byte{}, told: map[uint32]teller{},
	}
	g.late = time.AfterFunc(time.Hour, func() { _ = g.End() }) // its error comes again
	g.late.Stop()
	return g
}

// FromClient takes what the client sends.
func (g *Gateway) FromClient(p []byte) error {
	g.sending.Lock()
	defer g.sending.Unlock()
	urgent, empty := false, len(g.out) == protocol.FrameRoom
	var answers []byte
	g.requests.take(p, func(m []byte) {
		answer, keep := g.request(m)
		answers = append(answers, answer...)
		urgent = urgent || !keep && answer == nil
	}, func(p []byte, last bool) {
		g.passRequest(last)
		g.out = append(g.out, p...)
		urgent = true
	})
	if answers != nil {
		if err := g.answer(answers); err != nil {
			return err
		}
	}
	if urgent || len(g.out) > maxKept {
		g.flush()
	} else if empty && len(g.out) > protocol.FrameRoom {
		g.late.Reset(keepFor)
	}
	return g.err
}

// End sends what was kept: nothing comes from the client any more.
func (g *Gateway) End() error {
	g.late.Stop()
	g.sending.Lock()
	defer g.sending.Unlock()
	g.flush()
	return g.err
}

// flush needs sending.
func (g *Gateway) flush() {
	for rest := g.out; len(rest) > protocol.FrameRoom && g.err == nil; {
		n := min(len(rest), protocol.FrameRoom+protocol.MaxFrame)
		g.err = g.host(rest[:n])
		rest = rest[n-protocol.FrameRoom:] // what was written is the room of what comes next
	}
	g.out = g.out[:protocol.FrameRoom]
}

func (g *Gateway) answer(p []byte) error {
	g.answering.Lock()
	defer g.answering.Unlock()
	return g.client(p)
}

// passRequest notes a request that is not looked at.
func (g *Gateway) passRequest(last bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fresh = nil
	if last {
		g.waiting++
	}
}

// request answers m, or has it sent; keep says that this is not urgent. It
// needs sending.
func (g *Gateway) request(m []byte) (answer []byte, keep bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.on && g.waiting == 0 {
		if answer, sent := g.ahead(m); answer != nil {
			g.out = append(g.out, sent...)
			return answer, true
		}
	}
	last := g.fresh
	g.fresh = nil
	g.waiting++
	switch kindOf(m) {
	case typeInit:
		m = extended(m)
	case typeOpen:
		g.noteOpen(m)
	case typeClose:
		handle := fieldsOf(m).text()
		if g.isEarly(handle) {
			g.told[idOf(m)] = teller{handle, true}
		}
		if last != nil && last.wrote && last.handle == handle {
			g.folder = last.folder
		}
	case typeExtended:
		in := fieldsOf(m)
		if name, handle := in.text(), in.text(); name == extensionSync && g.isEarly(handle) {
			g.told[idOf(m)] = teller{handle, false}
		}
	}
	g.out = append(g.out, m...)
	return nil, false
}

func (g *Gateway) isEarly(handle string) bool {
	_, early := g.early[handle]
	return early
}

// noteOpen needs mu.
func (g *Gateway) noteOpen(m []byte) {
	f := fieldsOf(m)
	name := f.text()
	switch flags := f.number(); {
	case !g.on || f.bad || len(g.opens) >= maxFiles:
	case flags == flagRead:
		g.opens[idOf(m)] = &file{}
	case isNew(flags) && g.writes:
		g.opens[idOf(m)] = &file{write: true, folder: path.Dir(name)}
	case flags&(flagRead|flagWrite) == flagWrite && g.writes:
		g.opens[idOf(m)] = &file{write: true}
	}
}

// ahead answers a request itself; sent is for the host. It needs mu.
func (g *Gateway) ahead(m []byte) (answer, sent []byte) {
	if kindOf(m) == typeOpen {
		return g.openAhead(m)
	}
	in := fieldsOf(m)
	kind, id, handle := kindOf(m), idOf(m), in.text()
	f := g.fresh
	if in.bad || f == nil || handle != f.handle {
		return nil, nil
	}
	switch {
	case kind == typeWrite && f.write && !f.wrote && in.long() == 0 && !in.bad && len(g.early) < maxFiles:
		g.early[handle] = nil
		f.wrote = true
		return status(id, statusOK), as(TypeQuietWrite, m)
	case kind == typeFsetstat && f.wrote && in.number() == attributeSize && !in.bad:
		return status(id, statusOK), as(TypeQuietFsetstat, m) // scp's, which cuts what was longer
	case f.data == nil || time.Since(f.since) > freshFor:
	case kind == typeRead:
		at, n := in.long(), uint64(in.number())
		if in.bad || at != f.next {
			return nil, nil
		}
		data := f.data[at:min(at+n, uint64(len(f.data)))]
		if len(data) == 0 {
			return status(id, statusEOF), nil
		}
		f.next += uint64(len(data))
		return message(typeDataRead, id, number(uint32(len(data))), data), nil
	case kind == typeClose:
		g.fresh = nil
		return status(id, statusOK), as(TypeQuietClose, m)
	}
	return nil, nil
}

// openAhead opens a new file beside one that the client wrote just so. It needs mu.
func (g *Gateway) openAhead(m []byte) (answer, sent []byte) {
	in := fieldsOf(m)
	folder := path.Dir(in.text())
	if flags := in.number(); in.bad || !isNew(flags) || folder != g.folder || len(m) > maxOpen || len(g.early) >= maxFiles {
		return nil, nil
	}
	g.virtual++
	handle := virtualPrefix + strconv.FormatUint(g.virtual, 36)
	g.fresh = &file{handle: handle, write: true, folder: folder}
	g.early[handle] = nil
	return message(typeHandle, idOf(m), text(handle)), message(TypeQuietOpen, idOf(m), text(handle), m[headBytes:])
}

// FromHost takes what the host sends.
func (g *Gateway) FromHost(p []byte) error {
	g.answering.Lock()
	defer g.answering.Unlock()
	g.back = g.back[:0]
	passed := 0 // answers whose last byte is in back
	g.answers.take(p, g.response, func(p []byte, last bool) {
		g.back = append(g.back, p...)
		if last {
			passed++
		}
	})
	if len(g.back) == 0 {
		return nil
	}
	err := g.client(g.back)
	g.mu.Lock()
	g.waiting -= passed
	g.mu.Unlock()
	return err
}

// response takes one answer.
func (g *Gateway) response(m []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	id := idOf(m)
	switch kindOf(m) {
	case TypeData:
		if f := g.opens[id]; f != nil {
			f.data = []byte(fieldsOf(m).text())
		}
		return
	case TypeFailed:
		g.folder = ""
		in := fieldsOf(m)
		handle := in.text()
		if failure, early := g.early[handle]; early && failure == nil { // the first one is the cause of the others
			g.early[handle] = message(typeStatus, id, in.rest)
		}
		return
	case typeVersion:
		m, g.on = shortened(m)
	case typeHandle:
		if f := g.opens[id]; f != nil && (f.write || f.data != nil) && g.waiting == 1 { // what was sent behind it may change it
			f.handle, f.since = fieldsOf(m).text(), time.Now()
			g.fresh = f
		}
	}
	delete(g.opens, id)
	g.waiting--
	g.back = append(g.back, g.withFailure(id, m)...)
}

// withFailure is the answer m, or the failure that it has to tell. It needs mu.
func (g *Gateway) withFailure(id uint32, m []byte) []byte {
	t, tells := g.told[id]
	if !tells {
		return m
	}
	delete(g.told, id)
	failure := g.early[t.handle]
	if t.closes {
		delete(g.early, t.handle)
	}
	if failure != nil {
		m = message(typeStatus, id, failure[headBytes:])
	}
	if !isOK(m) {
		g.folder = ""
	}
	return m
}
