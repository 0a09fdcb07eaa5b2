package rdp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/remotegpu/remotegpu/protocol"
)

// Stream is the client's end: bytes.
type Stream interface {
	io.ReadWriter
	CloseWithError(err error)
}

// Serve moves bytes between client and server, changed as the request says,
// until one of them ends. It closes neither.
func (s *Session) Serve(client Stream) error {
	r := &run{
		Session: s,
		client:  &out{w: bufio.NewWriterSize(client, 64<<10)},
		server:  &out{w: bufio.NewWriterSize(s.server, 16<<10)},
		toHost:  toHost(s.req.Clipboard), fromHost: fromHost(s.req.Clipboard),
	}
	r.clipboardAt.Store(-1)
	ended := make(chan error, 2)
	go func() { ended <- r.up(client) }()
	go func() { ended <- r.down() }()
	err := <-ended
	if errors.Is(err, errUnreadable) {
		client.CloseWithError(err)
	}
	return err
}

// out is a direction's end, which both directions write to in whole units.
type out struct {
	mu sync.Mutex // guards w
	w  *bufio.Writer
}

// write sends a unit, at once unless more is about to come.
func (o *out) write(unit []byte, more bool) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, err := o.w.Write(unit); err != nil {
		return err
	}
	if more {
		return nil
	}
	return o.w.Flush()
}

// run is a Session that moves bytes. Each goroutine owns the fields of its
// direction; what they tell each other is atomic.
type run struct {
	*Session
	client, server   *out
	toHost, fromHost direction // of the clipboard

	began       atomic.Bool   // the client has sent MCS Connect Initial: the server's bytes are units from here on
	clipboardAt atomic.Int32  // place of the clipboard among the client's channels
	main        atomic.Uint32 // number of the main channel
	clipboard   atomic.Uint32 // number of the clipboard's channel, 0 for none
	user        atomic.Uint32 // whom the client's data is from
	host        atomic.Uint32 // whom the server's data is from
	informed    bool          // up: the client's info has gone
	connected   bool          // down: MCS Connect Response has come
	share       share         // down
}

// up moves what the client says.
func (r *run) up(client io.Reader) error {
	in := newFrames(client)
	for {
		unit, err := in.next()
		if err != nil {
			return fmt.Errorf("read from the client: %w", err)
		}
		if unit, err = r.fromClient(unit); err != nil {
			return err
		}
		if err := r.server.write(unit, in.more()); err != nil {
			return fmt.Errorf("write to the server: %w", err)
		}
	}
}

// fromClient returns what becomes of a unit; nothing is left of some.
func (r *run) fromClient(unit []byte) ([]byte, error) {
	if unit[0] != tpktVersion {
		return unit, nil
	}
	if !r.began.Load() {
		at, err := r.connectInitial(unit, r.req.Clipboard == protocol.ClipboardNone)
		r.clipboardAt.Store(int32(at))
		r.began.Store(true)
		return unit, err
	}
	if err := readable(unit); err != nil {
		return nil, err
	}
	m, ok := parseMessage(unit)
	if !ok {
		return unit, nil
	}
	r.user.Store(uint32(m.sender))
	switch uint32(m.channel) {
	case r.main.Load():
		if r.informed {
			return unit, nil
		}
		r.informed = true
		if m.data, ok = clientInfo(m.data, r.login, r.xrdp); ok {
			return m.unit(), nil
		}
	case r.clipboard.Load():
		return r.copied(unit, m, &r.toHost, r.client)
	}
	return unit, nil
}

// copied lets a message of the clipboard's channel through, or answers it to
// whom it came from.
func (r *run) copied(unit []byte, m message, d *direction, back *out) ([]byte, error) {
	ok, answer := d.pass(m.data)
	if answer != nil {
		reply := message{choice: sendIndication, sender: uint16(r.host.Load()), channel: m.channel, data: answer}
		if back == r.server {
			reply.choice, reply.sender = sendRequest, uint16(r.user.Load())
		}
		if err := back.write(reply.unit(), false); err != nil {
			return nil, err
		}
	}
	if !ok {
		return nil, nil
	}
	return unit, nil
}

// down moves what the server says. What comes before the client has begun with
// MCS is CredSSP's and passes as it is.
func (r *run) down() error {
	in := newFrames(r.Session.server)
	in.began = true
	for {
		if _, err := in.r.Peek(1); err != nil {
			return fmt.Errorf("read from the server: %w", err)
		}
		var unit []byte
		var err error
		if r.began.Load() {
			if unit, err = in.next(); err == nil {
				unit, err = r.fromServer(unit)
			}
		} else {
			unit = make([]byte, in.r.Buffered())
			_, err = io.ReadFull(in.r, unit)
		}
		if err != nil {
			return err
		}
		if err := r.client.write(unit, in.more()); err != nil {
			return fmt.Errorf("write to the client: %w", err)
		}
	}
}

func (r *run) fromServer(unit []byte) ([]byte, error) {
	if unit[0] != tpktVersion {
		return unit, nil
	}
	if !r.connected {
		r.connected = true
		return unit, r.connectResponse(unit)
	}
	m, ok := parseMessage(unit)
	if !ok || m.choice != sendIndication {
		return unit, nil
	}
	switch uint32(m.channel) {
	case r.main.Load():
		r.host.Store(uint32(m.sender))
		if data, changed := r.share.mend(m.data); changed {
			m.data = data
			return m.unit(), nil
		}
	case r.clipboard.Load():
		return r.copied(unit, m, &r.fromHost, r.server)
	}
	return unit, nil
}

func (r *run) connectResponse(unit []byte) error {
	main, others, err := channelIDs(unit)
	if err != nil {
		return err
	}
	r.main.Store(uint32(main))
	if at := int(r.clipboardAt.Load()); at >= 0 && at < len(others) {
		r.clipboard.Store(uint32(others[at]))
	}
	return nil
}
