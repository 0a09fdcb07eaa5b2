package ahead

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"slices"
	"sync"
)

// asked is a request that was not answered yet.
type asked struct {
	kind  byte
	quiet bool
	path  string // to be read ahead; empty: nothing is
}

// Host is the end at the server of SFTP, which answers in the order in which it
// is asked. The server reads from it and writes its answers to Answer.
type Host struct {
	in io.Reader

	head []byte // of the message under way: all of it where it is looked at
	left int    // bytes of it to come

	mu    sync.Mutex // guards what follows
	on    bool
	asked []asked
}

// NewHost returns the host's end; in is what comes from the gateway.
func NewHost(in io.Reader) *Host { return &Host{in: in} }

// Read reads requests as a server knows them.
func (h *Host) Read(p []byte) (int, error) {
	n, err := h.in.Read(p)
	h.scan(p[:n])
	return n, err
}

// scan finds the messages of p and makes ours to what they are.
func (h *Host) scan(p []byte) {
	for len(p) > 0 {
		if len(h.head) < 5 {
			h.head = append(h.head, p[0])
			if len(h.head) == 5 {
				p[0] = h.begin(p[0])
			}
			p = p[1:]
		} else {
			n := min(h.left, len(p))
			if len(h.head)+n <= most && (h.head[4] == typeOpen || h.head[4] == typeInit) {
				h.head = append(h.head, p[:n]...)
			}
			h.left -= n
			p = p[n:]
		}
		if len(h.head) >= 5 && h.left == 0 {
			h.end()
			h.head = h.head[:0]
		}
	}
}

// begin returns what the server is to see as the message's type.
func (h *Host) begin(kind byte) byte {
	h.left = max(int(binary.BigEndian.Uint32(h.head))-1, 0)
	switch {
	case kind == TypeQuietWrite && h.on:
		return typeWrite
	case kind == TypeQuietClose && h.on:
		return typeClose
	}
	return kind
}

// end notes a whole request.
func (h *Host) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	kind := h.head[4]
	a := asked{kind: kind, quiet: kind == TypeQuietWrite || kind == TypeQuietClose}
	switch {
	case kind == typeInit:
		h.on = bytes.HasSuffix(h.head, append(text(extension), text(revision)...))
	case kind == typeOpen && len(h.head) >= headBytes:
		f := fieldsOf(h.head)
		if path := f.text(); f.number() == flagRead && !f.bad {
			a.path = path
		}
	}
	if h.on {
		h.asked = append(h.asked, a)
	}
}

// Answer returns what the gateway gets for a message of the server: nothing,
// another or more than one.
func (h *Host) Answer(m []byte) []byte {
	h.mu.Lock()
	if !h.on || len(h.asked) == 0 || len(m) < headBytes {
		h.mu.Unlock()
		return m
	}
	a := h.asked[0]
	h.asked = slices.Delete(h.asked, 0, 1)
	h.mu.Unlock()
	switch {
	case a.quiet && kindOf(m) == typeStatus && fieldsOf(m).number() == statusOK:
		return nil
	case a.quiet:
		return as(typeFailed, m)
	case a.kind == typeInit:
		return extended(m)
	case a.path != "" && kindOf(m) == typeHandle:
		if data := small(a.path); data != nil {
			return append(message(TypeData, idOf(m), text(string(data))), m...)
		}
	}
	return m
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
