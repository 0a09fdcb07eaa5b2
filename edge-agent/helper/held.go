package main

import (
	"bufio"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
	"github.com/remotegpu/remotegpu/protocol/resume"
	"github.com/remotegpu/remotegpu/protocol/scrollback"
)

// held is a session that outlives its connections. Its owner's client gets
// every byte, and a program waits for it as for a terminal; others are shown
// what the scrollback has, at their own pace.
type held struct {
	session
	id, user, name string
	since          time.Time
	keep           time.Duration
	gone           chan struct{} // closed when the owner is, for good
	leave          sync.Once

	lock    sync.Mutex // guards what follows
	owner   *viewer
	viewers map[string]*viewer // by client id; the owner too
	share   string
	program string
	screen  *scrollback.Buffer // nil without a terminal
	over    bool               // nobody new may come
	moved   *sync.Cond         // on lock: screen or last have changed, or a viewer has left
	last    []byte             // the exit frame; nil: it runs
}

// viewer is one client of a held session.
type viewer struct {
	client, user, mode string
	pipe               *resume.Conn
	filter             *scrollback.Filter // of a new owner, until what was replayed to it has ended; guarded by held.lock
}

// maxViewers is how many clients a session has at a time, with those that may
// come back.
const maxViewers = 32

// shareWindow bounds what is under way to somebody who watches.
const shareWindow = scrollback.Size

// last bytes: how long those who watch may take for them.
const farewell = 10 * time.Second

func newHeld(s *server, a protocol.Attach) *held {
	h := &held{
		id: a.Session, user: a.User, name: a.Name, since: time.Now(), keep: resume.Keep, gone: make(chan struct{}),
		viewers: map[string]*viewer{}, share: a.Share,
	}
	if h.share == "" {
		h.share = protocol.ShareNone
	}
	h.session.server, h.session.conn = s, h
	h.moved = sync.NewCond(&h.lock)
	h.owner = h.add(a, protocol.ModeOwn)
	return h
}

// add makes a viewer. It needs lock, or nobody else who knows h.
func (h *held) add(a protocol.Attach, mode string) *viewer {
	if a.Keep > 0 && mode == protocol.ModeOwn {
		h.keep = time.Duration(a.Keep) * time.Second
	}
	cfg := resume.Config{Keep: h.keep}
	if mode != protocol.ModeOwn {
		cfg.Window = shareWindow
	}
	v := &viewer{client: a.Client, user: a.User, mode: mode, pipe: resume.New(cfg)}
	h.viewers[v.client] = v
	return v
}

// run is the session's life.
func (h *held) run(first *viewer) {
	defer h.server.forget(h)
	defer h.session.forget()
	in := protocol.NewFrameReader(bufio.NewReaderSize(first.pipe, 64<<10))
	kind, payload, err := in.Next()
	if err != nil {
		return // the client left before it said what it wants
	}
	o, err := request(kind, payload)
	if err == nil && o.User != "" {
		err = errors.New("a session runs as the environment's own user")
	}
	if err != nil {
		h.fail(exitUsage, text(err))
		h.end()
		return
	}
	h.lock.Lock()
	h.program = programName(o)
	if o.Term != "" {
		h.screen = &scrollback.Buffer{}
	}
	h.lock.Unlock()
	out, ended, err := h.start(o)
	if err != nil {
		h.failStart(err)
		h.end()
		return
	}
	go h.follow(first, in)
	ws := h.finish(out, ended, h.gone)
	if h.lastFrame() == nil { // those who watch are there still
		h.exit(ws)
	}
	h.end()
}

func (h *held) lastFrame() []byte {
	h.lock.Lock()
	defer h.lock.Unlock()
	return h.last
}

// programName is what people see in a list: the program, without what was
// typed after it, which may hold a secret.
func programName(o protocol.SessionOpen) string {
	words := o.Args
	if len(words) == 0 {
		words = strings.Fields(o.Command)
	}
	for len(words) > 0 && strings.Contains(words[0], "=") { // NAME=VALUE before the program
		words = words[1:]
	}
	if len(words) == 0 {
		return "login shell"
	}
	return protocol.Cut(words[0][:min(len(words[0]), 60)])
}

// follow does what the owner's client says until it is gone for good, or
// another has taken over.
func (h *held) follow(v *viewer, in *protocol.FrameReader) {
	h.readFrames(in)
	h.lock.Lock()
	mine := h.owner == v
	h.lock.Unlock()
	if mine {
		h.leave.Do(func() { close(h.gone) })
	}
}

// Write takes one frame of the session and brings it to the owner. When the
// owner's client changes meanwhile, the new one has it already.
func (h *held) Write(frame []byte) (int, error) {
	kind, payload := protocol.FrameType(frame[0]), frame[5:]
	h.lock.Lock()
	v, out := h.owner, frame
	switch {
	case kind == protocol.FrameExit:
		h.last = append([]byte(nil), frame...)
	case h.screen != nil:
		_, _ = h.screen.Write(payload) // never fails
		if v.filter != nil {
			out = v.filtered(payload)
		}
	}
	h.moved.Broadcast()
	h.lock.Unlock()
	if _, err := v.pipe.Write(out); err != nil {
		h.lock.Lock()
		defer h.lock.Unlock()
		if h.owner == v {
			return 0, err
		}
	}
	return len(frame), nil
}

// filtered passes output on to an owner who was shown old output that had not
// ended. It needs held.lock.
func (v *viewer) filtered(payload []byte) []byte {
	out := v.filter.Append(nil, payload)
	if v.filter.Ground() {
		v.filter = nil
	}
	return stdoutFrame(out)
}

// stdoutFrame is a frame, or nothing when there is nothing in it.
func stdoutFrame(p []byte) []byte {
	if len(p) == 0 {
		return nil
	}
	var frame sliceWriter
	_ = protocol.WriteFrame(&frame, protocol.FrameStdout, p) // within its limit
	return frame
}

type sliceWriter []byte

func (w *sliceWriter) Write(p []byte) (int, error) {
	*w = append(*w, p...)
	return len(p), nil
}

// CloseWrite says to all that nothing more comes.
func (h *held) CloseWrite() error {
	h.lock.Lock()
	owner := h.owner
	h.lock.Unlock()
	return owner.pipe.CloseWrite()
}

// end keeps the last frame until the owner has it.
func (h *held) end() {
	for {
		h.lock.Lock()
		owner := h.owner
		h.lock.Unlock()
		_ = owner.pipe.CloseWrite() // it may be gone
		select {
		case <-owner.pipe.Delivered():
		case <-owner.pipe.Done():
		}
		h.lock.Lock()
		same := h.owner == owner
		h.over = same
		var rest []*viewer
		for _, v := range h.viewers {
			rest = append(rest, v)
		}
		h.lock.Unlock()
		if same {
			h.dismiss(rest)
			return
		}
	}
}

// dismiss lets everybody have the last bytes, and then nobody back in.
func (h *held) dismiss(all []*viewer) {
	late := time.After(farewell)
	for _, v := range all {
		select {
		case <-v.pipe.Delivered():
		case <-v.pipe.Done():
		case <-late:
			late = time.After(0)
		}
	}
	for _, v := range all {
		_ = v.pipe.Close() // as above
	}
}

// describe is the session's line in a list, if user may see it.
func (h *held) describe(user string) (row protocol.LiveSession, visible bool) {
	h.lock.Lock()
	defer h.lock.Unlock()
	row = protocol.LiveSession{
		ID: h.id, User: h.user, Name: h.name, Since: h.since.Unix(), Attached: h.owner.pipe.Attached(),
		Others: uint32(len(h.viewers) - 1), Share: h.share, Program: h.program, Terminal: h.screen != nil,
	}
	return row, h.user == user || h.share != protocol.ShareNone
}

// admit returns the client that a names, and makes it if that is wanted and
// allowed.
func (h *held) admit(a protocol.Attach) (*viewer, error) {
	h.lock.Lock()
	defer h.lock.Unlock()
	if h.user != a.User && h.share == protocol.ShareNone {
		return nil, errors.New("there is no such session, or its owner does not share it")
	}
	if v := h.viewers[a.Client]; v != nil && v.user == a.User {
		return v, nil // it comes back, or its first try has been lost
	}
	switch {
	case a.Op == protocol.AttachResume:
		return nil, errors.New("another client has taken the session over, or its owner no longer shares it")
	case a.Op != protocol.AttachJoin || h.viewers[a.Client] != nil:
		return nil, errors.New("there is a session of this name already")
	}
	if h.over {
		return nil, errors.New("this session has ended")
	}
	if len(h.viewers) >= maxViewers {
		return nil, fmt.Errorf("%d clients are attached to this session already; let one leave", maxViewers)
	}
	mode, err := h.mode(a)
	if err != nil {
		return nil, err
	}
	if mode == protocol.ModeOwn {
		return h.takeOver(a), nil
	}
	v := h.add(a, mode)
	go h.show(v)
	go h.listen(v)
	return v, nil
}

// mode is what a may do. It needs lock.
func (h *held) mode(a protocol.Attach) (string, error) {
	owner := h.user == a.User
	mode := a.Mode
	switch {
	case mode != "":
	case owner:
		mode = protocol.ModeOwn
	default:
		mode = h.share // a share is named as the mode that it allows
	}
	switch {
	case h.program == "":
		return "", errors.New("this session is only starting; try again")
	case h.screen == nil:
		return "", errors.New("this session has no terminal, so only the client that started it can be attached")
	case mode == protocol.ModeWatch, owner, mode == h.share:
		return mode, nil
	}
	return "", fmt.Errorf("the session's owner lets others %s", h.share)
}

// takeOver makes a the owner's client, in place of the one that was. It needs
// lock.
func (h *held) takeOver(a protocol.Attach) *viewer {
	old := h.owner
	v := h.add(a, protocol.ModeOwn)
	v.filter = &scrollback.Filter{}
	buf := make([]byte, 32<<10)
	for pos := h.screen.Start(); pos < h.screen.End(); {
		n, next, _ := h.screen.Read(pos, buf)
		_, _ = v.pipe.Write(stdoutFrame(v.filter.Append(nil, buf[:n]))) // less than its window
		pos = next
	}
	if v.filter.Ground() {
		v.filter = nil
	}
	if h.last != nil {
		_, _ = v.pipe.Write(h.last) // as above
	}
	h.owner = v
	delete(h.viewers, old.client)
	h.setShare(a.Share)
	go func() {
		old.pipe.Dismiss("Another client has taken the session over.")
		h.signal(syscall.SIGWINCH) // a program that fills the screen draws it anew
	}()
	go h.follow(v, protocol.NewFrameReader(bufio.NewReaderSize(v.pipe, 64<<10)))
	return v
}

// setShare changes what others may do. Who may no longer is sent away. It
// needs lock.
func (h *held) setShare(share string) {
	if share == "" || share == h.share {
		return
	}
	h.share = share
	for _, v := range h.viewers {
		if v.user != h.user && (share == protocol.ShareNone || v.mode == protocol.ModeWrite && share != protocol.ShareWrite) {
			go v.pipe.Dismiss("The owner no longer shares the session like this.")
		}
	}
}
