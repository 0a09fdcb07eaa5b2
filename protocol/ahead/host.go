package ahead

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"math"
	"os"
	"slices"
	"sync"
)

// asked is a request that was not answered yet.
type asked struct {
	kind    byte
	quiet   bool
	path    string // to be read ahead; empty: nothing is
	handle  string // as the gateway knows it
	failure []byte // the status that it gets, whatever the server says; of the quiet open whose handle it has

	from, to uint64 // bytes of a read or write
	isOpen   func() // of an open to append: told when it is; nil: it is none
}

func (a asked) writes() bool { return a.kind == typeWrite || a.kind == TypeQuietWrite }

func (a asked) moves() bool { return a.kind == typeRead || a.writes() }

func (a asked) unnames() bool {
	return a.kind == typeRename || a.kind == typeRemove || a.kind == typeRmdir
}

func (a asked) closes() bool { return a.kind == typeClose || a.kind == TypeQuietClose }

// follows reports whether the server may not do a before b, which came before it, is
// done. It does reads and writes beside each other and beside all else, which it does
// in order; only with a close it waits for them.
func (a asked) follows(b asked) bool {
	switch {
	case b.kind == TypeQuietOpen, b.isOpen != nil: // whose handle is not known yet
		return true
	case a.moves() && b.moves(): // of any file: two handles may be of the same
		return (a.writes() || b.writes()) && a.from < b.to && b.from < a.to
	}
	return a.moves() != b.moves() && !a.closes()
}

// opened is what became of a quiet open: a handle of the server's, or a status.
type opened struct {
	handle  string
	failure []byte
}

// Host is the end at the server of SFTP, which answers in the order in which it
// is asked, but does several things at a time. The server reads from it and writes its
// answers to Answer. What must not be done out of order it gets one after the other,
// also where there is no gateway.
type Host struct {
	// Append is called before the server opens a file to append to, and what it returns
	// when that is open: the server itself writes where the client says. Nil: it may.
	Append func(path string) (isOpen func())

	in    *bufio.Reader
	ready []byte // of a message, for the server
	left  int    // bytes of it that follow on in

	mu       sync.Mutex // guards what follows
	answered sync.Cond
	closed   bool
	begun    bool // the first request has come, which says whether it is on
	on       bool
	asked    []asked
	opened   map[string]opened // by virtual handle
	appended map[string]bool   // by the server's handle: what is written goes to the end
}

// NewHost returns the host's end; in is what comes from the gateway.
func NewHost(in io.Reader) *Host {
	h := &Host{in: bufio.NewReaderSize(in, 4<<10), opened: map[string]opened{}, appended: map[string]bool{}}
	h.answered.L = &h.mu
	return h
}

// Close ends a Read that waits for the server.
func (h *Host) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	h.answered.Broadcast()
}

// Read reads requests as a server knows them.
func (h *Host) Read(p []byte) (int, error) {
	if len(h.ready) == 0 && h.left == 0 {
		if err := h.next(); err != nil {
			return 0, err
		}
	}
	if len(h.ready) > 0 {
		n := copy(p, h.ready)
		h.ready = h.ready[n:]
		return n, nil
	}
	n, err := h.in.Read(p[:min(len(p), h.left)])
	h.left -= n
	return n, err
}

// next reads the next message's begin: all of it where it is looked at.
func (h *Host) next() error {
	head, err := h.in.Peek(5)
	if err != nil {
		if len(head) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	kind, size := head[4], 4+int(binary.BigEndian.Uint32(head))
	if size < headBytes { // it is no message
		h.ready, h.left = make([]byte, max(size, 5)), 0
		_, err = io.ReadFull(h.in, h.ready)
		return err
	}
	m := make([]byte, min(size, h.look(kind)))
	if _, err := io.ReadFull(h.in, m); err != nil {
		return err
	}
	h.left = size - len(m)
	h.ready = h.request(m)
	return nil
}

// look is how much of a message is looked at: its handle and place, or more.
func (h *Host) look(kind byte) int {
	switch kind {
	case typeInit, typeOpen, typeRemove, typeRmdir, typeRename, TypeQuietOpen, typeExtended:
		return most
	}
	return headBytes + 4 + maxHandle + 8 + 4 // a read's all, and a write's length
}

// request notes one, and returns what the server is to see of it.
func (h *Host) request(m []byte) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.begun {
		h.begun = true
		h.on = kindOf(m) == typeInit && bytes.HasSuffix(m, append(text(extension), text(revision)...))
	}
	a, appends := h.reads(m)
	alone := appends != "" || a.unnames()
	for !h.closed && (alone && len(h.asked) > 0 || slices.ContainsFunc(h.asked, a.follows)) {
		h.answered.Wait()
	}
	switch {
	case appends != "":
		a.isOpen = h.Append(appends)
	case a.unnames() && h.left == 0 && !mayUnname(m):
		a.failure = message(typeStatus, idOf(m), number(statusFailure), text("what is there is not of that kind, or in the way"), text(""))
		m = message(a.kind, idOf(m), text(""), text("")) // which cannot be done
	}
	if h.on {
		m = h.own(m, &a)
	}
	h.asked = append(h.asked, a)
	return m
}

// reads returns what m asks for, and of an open to append the path. It needs mu.
func (h *Host) reads(m []byte) (a asked, appends string) {
	a.kind = kindOf(m)
	in := fieldsOf(m)
	name := in.text()
	switch {
	case a.kind == typeOpen && h.Append != nil && in.number()&(flagWrite|flagAppend) == flagWrite|flagAppend && !in.bad:
		appends = name
	case a.closes():
		delete(h.appended, name)
	case a.moves():
		a.from = in.long()
		if a.to = a.from + uint64(in.number()); in.bad || a.to < a.from || h.appended[name] {
			a.from, a.to = 0, math.MaxUint64
		}
	}
	return a, appends
}

// mayUnname reports whether the server does with a name what the draft says: its rename
// puts a file in the place of another, and it removes files and folders alike.
func mayUnname(m []byte) bool {
	in := fieldsOf(m)
	name, to := in.text(), in.text()
	st, err := os.Lstat(name)
	if err != nil {
		return true // it says so itself
	}
	if kindOf(m) != typeRename {
		return st.IsDir() == (kindOf(m) == typeRmdir)
	}
	_, err = os.Lstat(to)
	return err != nil
}

// own is a request as the server knows it. It needs mu.
func (h *Host) own(m []byte, a *asked) []byte {
	in := fieldsOf(m)
	switch a.kind {
	case TypeQuietWrite:
		a.quiet, m[4] = true, typeWrite
	case TypeQuietFsetstat:
		a.quiet, m[4] = true, typeFsetstat
	case TypeQuietClose:
		a.quiet, m[4] = true, typeClose
	case typeOpen:
		if path := in.text(); in.number() == flagRead && !in.bad {
			a.path = path
		}
	case TypeQuietOpen:
		if handle, open, ok := QuietOpen(m[headBytes:]); ok { // else the server takes it for what it does not know, and ends
			a.quiet, a.handle = true, handle
			m = resized(message(typeOpen, idOf(m), open), h.left)
		}
	}
	return h.translated(m, a)
}

// translated is the request m with the server's handle instead of a virtual one. It
// needs mu.
func (h *Host) translated(m []byte, a *asked) []byte {
	in := fieldsOf(m)
	switch kindOf(m) {
	case typeClose, typeRead, typeWrite, typeFstat, typeFsetstat:
	case typeExtended:
		if in.text() != extensionSync { // others have no handle
			return m
		}
	default:
		return m
	}
	before := len(m) - len(in.rest)
	a.handle = in.text()
	o, virtual := h.opened[a.handle]
	if in.bad || !virtual {
		return m
	}
	if kindOf(m) == typeClose {
		delete(h.opened, a.handle)
	}
	a.failure = o.failure
	return resized(slices.Concat(m[:before], text(o.handle), in.rest), h.left)
}

// resized is m with its length put right, left bytes of which follow.
func resized(m []byte, left int) []byte {
	binary.BigEndian.PutUint32(m, uint32(len(m)-4+left))
	return m
}

// Answer returns what the gateway gets for a message of the server: nothing,
// another or more than one.
func (h *Host) Answer(m []byte) []byte {
	a, on := h.question(m)
	if a.failure != nil {
		m = message(typeStatus, idOf(m), a.failure[headBytes:])
	}
	switch {
	case !on:
	case a.quiet && (isOK(m) || a.kind == TypeQuietOpen && kindOf(m) == typeHandle):
		return nil
	case a.quiet:
		return failed(a.handle, m)
	case a.kind == typeInit:
		return extended(m)
	case a.path != "" && kindOf(m) == typeHandle:
		if data := small(a.path); data != nil {
			return append(message(TypeData, idOf(m), text(string(data))), m...)
		}
	}
	return m
}

// question is what m answers; who waits for that may go on.
func (h *Host) question(m []byte) (a asked, on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.asked) == 0 || len(m) < headBytes {
		return a, false
	}
	a = h.asked[0]
	h.asked = slices.Delete(h.asked, 0, 1)
	switch {
	case a.isOpen != nil && kindOf(m) == typeHandle:
		a.isOpen()
		h.appended[fieldsOf(m).text()] = true
	case a.kind == TypeQuietOpen && a.quiet && kindOf(m) == typeHandle:
		h.opened[a.handle] = opened{handle: fieldsOf(m).text()}
	case a.kind == TypeQuietOpen && a.quiet:
		h.opened[a.handle] = opened{failure: slices.Clone(m)}
	}
	h.answered.Broadcast()
	return a, h.on
}

// failed says what became of something quiet.
func failed(handle string, m []byte) []byte {
	in := fieldsOf(m)
	code, why := in.number(), in.text()
	return message(TypeFailed, idOf(m), text(handle), number(code), text(why[:min(len(why), maxWhy)]), text(""))
}

// small returns all of a small file; nil: it is none, or nothing that ends.
func small(path string) []byte {
	st, err := os.Stat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 || st.Size() > mostData {
		return nil // the kernel's own files say that they are empty
	}
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, mostData+1))
	if err != nil || len(data) == 0 || len(data) > mostData {
		return nil
	}
	return data
}

// as is m as a message of another type.
func as(kind byte, m []byte) []byte {
	m = slices.Clone(m)
	m[4] = kind
	return m
}

// extended is an init or version with our extension, as its last.
func extended(m []byte) []byte {
	m = slices.Concat(m, text(extension), text(revision))
	binary.BigEndian.PutUint32(m, uint32(len(m)-4))
	return m
}

// shortened is a version without it, and whether it was there.
func shortened(m []byte) ([]byte, bool) {
	rest, found := bytes.CutSuffix(m, append(text(extension), text(revision)...))
	if !found {
		return m, false
	}
	rest = slices.Clone(rest)
	binary.BigEndian.PutUint32(rest, uint32(len(rest)-4))
	return rest, true
}
