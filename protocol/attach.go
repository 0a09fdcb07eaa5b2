package protocol

import "fmt"

// Attach is the first frame of a StreamSession stream for a session that
// outlives its connection: the helper holds the program and its terminal, and
// after this frame both ends speak package resume, inside which the frames of
// the session are the same as ever.
//
//	client        control plane                 helper in the container
//	  | request --->| attach (Attach) ------------->| checks whose session it is
//	  |<=================== resume: hello, … =======| holds it Keep seconds
//	  |==================== open, stdin, … ========>| without its owner
//
// The control plane writes it, at every connection, for a caller that it has
// just authorised.
type Attach struct {
	Version  int    `cbor:"1,keyasint"`
	Session  string `cbor:"2,keyasint"`           // ses_…, chosen by the client that creates it
	Client   string `cbor:"3,keyasint"`           // cli_…, the same on all connections of one client
	User     string `cbor:"4,keyasint"`           // usr_…, who is attached
	Name     string `cbor:"5,keyasint,omitempty"` // of the user, for people
	Op       string `cbor:"6,keyasint"`           // one of the Attach ops
	Mode     string `cbor:"7,keyasint,omitempty"` // one of the modes; empty: the most that is allowed
	Share    string `cbor:"8,keyasint,omitempty"` // what the owner allows others from now on; empty: as it was
	Keep     uint32 `cbor:"9,keyasint,omitempty"` // seconds that it lives without its owner; 0: 15 minutes
	Received uint64 `cbor:"10,keyasint,omitempty"`

	Subsystem string `cbor:"11,keyasint,omitempty"` // which one the session is going to open, at every connection; empty: none
}

// What an Attach wants.
const (
	AttachCreate = "create" // a new session, or the same client's first try again
	AttachJoin   = "join"   // a session that is there
	AttachResume = "resume" // to go on as the client that was attached before
)

// Modes of being attached. The owner is one client of the user who created the
// session; a newer one takes it over.
const (
	ModeOwn   = "own"
	ModeWatch = "watch"
	ModeWrite = "write"
)

// Shares of a session: what others who have access to the environment may do.
const (
	ShareNone  = "none"
	ShareWatch = "watch"
	ShareWrite = "write"
)

// Subprotocols of the WebSocket of a terminal, for browsers, which can send no
// headers: the first is spoken, the other carries a ticket.
const (
	TerminalProtocol = "remotegpu.terminal.v1"
	TicketProtocol   = "remotegpu.ticket." // and the ticket after it
)

// MaxKeep is the longest that a session lives without its owner, in seconds.
const MaxKeep = 7 * 24 * 3600

// SessionQuery asks a helper for its sessions that User may see. It is the
// first frame of a stream, and SessionList the only one back.
type SessionQuery struct {
	Version int    `cbor:"1,keyasint"`
	User    string `cbor:"2,keyasint"`
}

// SessionList is the answer to a SessionQuery.
type SessionList struct {
	Version  int           `cbor:"1,keyasint"`
	Sessions []LiveSession `cbor:"2,keyasint,omitempty"`
}

// LiveSession is one session that a helper holds.
type LiveSession struct {
	ID       string `cbor:"1,keyasint"`           // ses_…
	User     string `cbor:"2,keyasint"`           // usr_…, the owner
	Name     string `cbor:"3,keyasint,omitempty"` // of the owner, for people
	Since    int64  `cbor:"4,keyasint"`           // Unix seconds
	Attached bool   `cbor:"5,keyasint,omitempty"` // the owner is, right now
	Others   uint32 `cbor:"6,keyasint,omitempty"` // who watch or write
	Share    string `cbor:"7,keyasint"`           // one of the shares
	Program  string `cbor:"8,keyasint,omitempty"` // what runs in it
	Terminal bool   `cbor:"9,keyasint,omitempty"`
}

// Validate checks the request's limits.
func (a *Attach) Validate() error {
	switch {
	case a.Version != Version || tooLong(a.User, a.Name, a.Subsystem) || tooMany(a.Received):
		return fmt.Errorf("attach request is of another version or over its limits")
	case !ValidID(PrefixSession, a.Session) || !ValidID(PrefixClient, a.Client) || a.User == "":
		return fmt.Errorf("attach request names no session, client or user")
	case a.Op != AttachCreate && a.Op != AttachJoin && a.Op != AttachResume:
		return fmt.Errorf("attach request wants %.40q, which is unknown", a.Op)
	case a.Mode != "" && a.Mode != ModeOwn && a.Mode != ModeWatch && a.Mode != ModeWrite:
		return fmt.Errorf("attach request has mode %.40q, which is unknown", a.Mode)
	case a.Share != "" && a.Share != ShareNone && a.Share != ShareWatch && a.Share != ShareWrite:
		return fmt.Errorf("attach request shares %.40q, which is unknown", a.Share)
	case a.Keep > MaxKeep:
		return fmt.Errorf("a session is kept for at most %d seconds", MaxKeep)
	}
	return nil
}

// Validate checks the request's limits.
func (q *SessionQuery) Validate() error {
	if q.Version != Version || q.User == "" || tooLong(q.User) {
		return fmt.Errorf("query for sessions is of another version or over its limits")
	}
	return nil
}

// Validate checks the list's limits.
func (l *SessionList) Validate() error {
	if l.Version != Version || len(l.Sessions) > 1024 {
		return fmt.Errorf("list of sessions is of another version or over its limits")
	}
	for _, s := range l.Sessions {
		if tooLong(s.ID, s.User, s.Name, s.Share, s.Program) {
			return fmt.Errorf("a session in the list is over its limits")
		}
	}
	return nil
}
