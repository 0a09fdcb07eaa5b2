// Package recording keeps what was on people's terminals, where a workspace
// wants that.
//
// It owns the policy of each workspace, the recordings and their files in the
// blob store; who has a session, and its bytes, come from package access. Its
// invariant: where a policy says so there is no session without its recording:
// when the store cannot take one, the session does not begin, and when it
// stops taking, the session ends. What people type is never kept, only what
// their terminal showed.
//
// A recording is an asciicast v2 file (https://docs.asciinema.org/manual/asciicast/v2/),
// written in parts while the session runs, so that little is lost with a
// server, and joined after it:
//
//	recordings/rec_…/00000001.cast …  ──► recordings/rec_….cast
package recording

import (
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
)

// Modes of a policy.
const (
	Off      = "off"
	Terminal = "terminal" // sessions with a terminal
	All      = "all"      // commands without one, and files by SFTP, too
)

// Policy is what a workspace wants to be recorded.
type Policy struct {
	Mode     string `db:"mode" json:"mode" enum:"off,terminal,all" doc:"terminal: sessions with a terminal; all: commands and SFTP too"`
	KeepDays int    `db:"keep_days" json:"keep_days" minimum:"1" maximum:"3650"`
}

// defaultPolicy is that of a workspace that has not chosen one.
var defaultPolicy = Policy{Mode: Off, KeepDays: 30}

// Wants reports whether a session is recorded.
func (p Policy) Wants(terminal bool) bool { return p.Mode == All || p.Mode == Terminal && terminal }

// Ways of access that are recorded.
const (
	ViaSSH      = "ssh"
	ViaTerminal = "terminal" // remotegpu ssh, attach and the browser
	ViaSFTP     = "sftp"     // a line per file
)

// Recording is one session as its terminal showed it.
type Recording struct {
	ID              string     `db:"id" json:"id"`
	Workspace       string     `db:"workspace_id" json:"workspace"`
	Environment     string     `db:"environment_id" json:"environment"`
	EnvironmentName string     `db:"environment_name" json:"environment_name"`
	User            string     `db:"user_id" json:"user"`
	UserName        string     `db:"user_name" json:"user_name"`
	Via             string     `db:"via" json:"via" enum:"ssh,terminal,sftp"`
	StartedAt       time.Time  `db:"started_at" json:"started_at"`
	EndedAt         *time.Time `db:"ended_at" json:"ended_at,omitempty" doc:"Absent while it runs"`
	Cut             bool       `db:"cut" json:"cut,omitempty" doc:"It ended with the server that made it; a session that went on has another recording"`
	Bytes           int64      `db:"bytes" json:"bytes" doc:"Of the asciicast file"`
	ExpiresAt       time.Time  `db:"expires_at" json:"expires_at" doc:"When it is deleted"`
}

// Subject is the environment that somebody has a session in.
type Subject struct{ ID, Name, Workspace string }

// Session is what is known of a session when it begins.
type Session struct {
	Via        string
	Term       string // empty: no terminal
	Cols, Rows uint16
}

func validPolicy(p Policy) error {
	if p.Mode != Off && p.Mode != Terminal && p.Mode != All {
		return errs.Ef(errs.Invalid, "%.20q is no mode of recording; use off, terminal or all.", p.Mode)
	}
	if p.KeepDays < 1 || p.KeepDays > 3650 {
		return errs.E(errs.Invalid, "Recordings are kept for 1 to 3650 days.")
	}
	return nil
}

// mayRead is asked in the workspace of the recording.
const mayRead = auth.RecordingRead
