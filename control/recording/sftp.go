package recording

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"sync"

	"github.com/remotegpu/remotegpu/protocol/ahead"
)

// SFTP listens to both directions of an SFTP version 3 connection
// (draft-ietf-secsh-filexfer-02) and tells what happened to which file, one
// line each. It believes nothing: what it cannot read it leaves out. What it
// keeps is bounded in bytes; of what is more, it tells that it was asked for.
type SFTP struct {
	mu    sync.Mutex // guards what follows
	tell  func(line string)
	asked map[uint32][]request // by the client, without an answer yet: first asked, first answered
	files map[string]*file     // open, by handle
	kept  int                  // size of asked and files
	stray *moved               // by handles of no file that is known here
	up    packets              // from the client
	down  packets              // from the server
}

type request struct {
	kind  byte
	line  string // told when it is granted; of an open, the path
	of    *moved // of a read: what it counts for
	write bool
	got   uint64 // of an open: what came before its handle
}

func (r request) size() int { return entrySize + len(r.line) }

// moved is how many bytes the client has read and written.
type moved struct{ got, sent uint64 }

type file struct {
	path  string
	write bool
	*moved
}

func (f *file) size(handle string) int { return entrySize + len(f.path) + len(handle) }

// Types of packets.
const (
	sftpInit     = 1
	sftpVersion  = 2
	sftpOpen     = 3
	sftpClose    = 4
	sftpRead     = 5
	sftpWrite    = 6
	sftpSetstat  = 9
	sftpRemove   = 13
	sftpMkdir    = 14
	sftpRmdir    = 15
	sftpRename   = 18
	sftpSymlink  = 20
	sftpStatus   = 101
	sftpHandle   = 102
	sftpData     = 103
	sftpExtended = 200

	maxKept   = 1 << 20        // bytes, of what is asked and of open files
	entrySize = 128            // of the maps and their structs, about
	maxHandle = 256            // bytes, says the protocol
	maxPath   = 4096           // bytes; PATH_MAX of Linux
	sftpHead  = 2*maxPath + 64 // bytes of a packet that are looked at: two paths
	maxPacket = 256 << 20      // more cannot be a packet
)

// NewSFTP returns a listener that calls tell with every line, without a line
// end.
func NewSFTP(tell func(line string)) *SFTP {
	return &SFTP{tell: tell, asked: map[uint32][]request{}, files: map[string]*file{}, stray: &moved{}}
}

// FromClient takes the next bytes of the client.
func (s *SFTP) FromClient(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.up.take(p, s.ask)
}

// FromServer takes the next bytes of the server.
func (s *SFTP) FromServer(p []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down.take(p, s.answer)
}

// Close tells of files that are open still, and of what has no answer.
func (s *SFTP) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.files {
		s.tell(f.line() + ", not closed")
	}
	for _, same := range s.asked {
		for _, r := range same {
			s.unfollowed(r, ": no answer")
		}
	}
	if n := s.stray; n.got > 0 || n.sent > 0 {
		s.tell(fmt.Sprintf("of files that nobody was seen to open: %d bytes read, %d written", n.got, n.sent))
	}
	clear(s.files)
	clear(s.asked)
	s.kept = 0
}

// ask takes the begin of a packet of the client.
func (s *SFTP) ask(head []byte) {
	p := fields{rest: head[1:]}
	id := p.u32()
	r := request{kind: head[0]}
	switch head[0] {
	case sftpOpen:
		r.line = p.text()
		r.write = p.u32()&0x1a != 0 // WRITE, CREAT, TRUNC
	case sftpInit:
		return
	case ahead.TypeQuietOpen:
		if handle, open, ok := ahead.QuietOpen(p.rest); ok { // else the host opens nothing
			path := fields{rest: open}
			s.open(handle, request{kind: sftpOpen, line: path.text(), write: true})
		}
		return
	case ahead.TypeQuietFsetstat:
		return
	case ahead.TypeQuietClose:
		s.shut(p.text(), "")
		return
	case sftpClose: // its answer tells of an open and of writes that had none
		if f := s.forget(p.text()); f != nil {
			r.line = f.line()
		}
	case sftpRead:
		r.of = s.of(p.text())
	case sftpWrite, ahead.TypeQuietWrite:
		if n := s.of(p.text()); len(p.rest) >= 12 {
			n.sent += uint64(binary.BigEndian.Uint32(p.rest[8:]))
		}
		if head[0] == ahead.TypeQuietWrite {
			return
		}
	case sftpSetstat:
		r.line = "attributes " + quoted(p.text())
	case sftpRemove:
		r.line = "remove " + quoted(p.text())
	case sftpRmdir:
		r.line = "rmdir " + quoted(p.text())
	case sftpMkdir:
		r.line = "mkdir " + quoted(p.text())
	case sftpRename, sftpSymlink:
		r.line = pair(head[0], p.text(), p.text())
	case sftpExtended:
		r.line = extended(p.text(), &p)
	}
	if p.short {
		r = request{kind: head[0], of: s.stray}
	}
	s.keep(id, r)
}

// keep remembers r until its answer, also one of which nothing is told: another may
// have the same id.
func (s *SFTP) keep(id uint32, r request) {
	if s.kept+r.size() > maxKept {
		s.unfollowed(r, tooMuch)
		return
	}
	s.asked[id] = append(s.asked[id], r)
	s.kept += r.size()
}

// take returns the request that an answer is for.
func (s *SFTP) take(id uint32) (r request, known bool) {
	same := s.asked[id]
	if len(same) == 0 {
		return r, false
	}
	r = same[0]
	s.kept -= r.size()
	if s.asked[id] = same[1:]; len(same) == 1 {
		delete(s.asked, id)
	}
	return r, true
}

const tooMuch = ": too much at a time to follow"

// unfollowed tells of r though nobody knows what becomes of it.
func (s *SFTP) unfollowed(r request, why string) {
	switch r.kind {
	case sftpRead: // the file itself is told of
	case sftpOpen:
		s.tell(r.verb() + quoted(r.line) + why)
	default:
		if r.line != "" {
			s.tell(r.line + why)
		}
	}
}

func (r request) verb() string {
	if r.write {
		return "put "
	}
	return "get "
}

// open follows a file until it is shut.
func (s *SFTP) open(handle string, r request) {
	f := &file{r.line, r.write, &moved{got: r.got}}
	s.shut(handle, ", not closed")
	if len(handle) > maxHandle || s.kept+f.size(handle) > maxKept {
		s.unfollowed(r, tooMuch)
		return
	}
	s.files[handle] = f
	s.kept += f.size(handle)
}

// of returns what bytes by a handle count for.
func (s *SFTP) of(handle string) *moved {
	if f := s.files[handle]; f != nil {
		return f.moved
	}
	return s.stray
}

func (s *SFTP) shut(handle, how string) {
	if f := s.forget(handle); f != nil {
		s.tell(f.line() + how)
	}
}

// forget returns the file that it forgets; nil: there is none.
func (s *SFTP) forget(handle string) *file {
	f := s.files[handle]
	if f != nil {
		s.kept -= f.size(handle)
		delete(s.files, handle)
	}
	return f
}

func pair(kind byte, a, b string) string {
	if kind == sftpSymlink {
		return "symlink " + quoted(a) + " " + quoted(b)
	}
	return "rename " + quoted(a) + " " + quoted(b)
}

func extended(name string, p *fields) string {
	switch name {
	case "posix-rename@openssh.com":
		return pair(sftpRename, p.text(), p.text())
	case "hardlink@openssh.com":
		return "hardlink " + quoted(p.text()) + " " + quoted(p.text())
	}
	return ""
}

// answer takes the begin of a packet of the server.
func (s *SFTP) answer(head []byte) {
	p := fields{rest: head[1:]}
	id := p.u32()
	switch {
	case p.short || head[0] == sftpVersion || head[0] == ahead.TypeFailed: // they answer nothing
		return
	case head[0] == ahead.TypeData: // its answer follows
		if same := s.asked[id]; len(same) > 0 && same[0].kind == sftpOpen {
			same[0].got += uint64(p.u32())
		}
		return
	}
	r, known := s.take(id)
	switch {
	case !known:
	case head[0] == sftpHandle && r.kind == sftpOpen:
		if handle := p.text(); p.short {
			s.unfollowed(r, ": no answer")
		} else {
			s.open(handle, r)
		}
	case r.kind == sftpRead:
		if head[0] == sftpData {
			r.of.got += uint64(p.u32())
		}
	case head[0] != sftpStatus: // of one that is told of it is none
		s.unfollowed(r, ": no answer")
	case r.line == "":
	case r.kind == sftpOpen:
		s.tell(r.verb() + quoted(r.line) + ": refused")
	case p.u32() == 0:
		s.tell(r.line)
	default:
		s.tell(r.line + ": refused")
	}
}

func (f *file) line() string {
	switch {
	case f.sent > 0 && f.got > 0:
		return fmt.Sprintf("change %s, %d bytes read, %d written", quoted(f.path), f.got, f.sent)
	case f.sent > 0 || f.write && f.got == 0:
		return fmt.Sprintf("put %s, %d bytes", quoted(f.path), f.sent)
	}
	return fmt.Sprintf("get %s, %d bytes", quoted(f.path), f.got)
}

// quoted makes a path safe to show: it may hold anything.
func quoted(path string) string { return strconv.Quote(path) }
