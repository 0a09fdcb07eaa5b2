// Package host knows the machines of the fleet.
//
// It owns hosts and their GPUs, join tokens, enrolment, lifecycle, presence and
// what hosts report of themselves; what runs on them is environment's, what
// they are told dispatch's. Its invariant: everything about a machine was found
// by its agent; people set only name, labels, tags, groups and state.
package host

import (
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/remotegpu/remotegpu/control/errs"
)

// State is where a host is in its life; people move it.
type State string

// States.
const (
	Pending     State = "pending"     // has joined, waits for approval; gets no document
	Active      State = "active"      //
	Cordoned    State = "cordoned"    // nothing new is placed
	Draining    State = "draining"    // and what runs is stopped
	Maintenance State = "maintenance" // somebody works on it; drained
	Retired     State = "retired"     // out of the fleet for good; its key is worth nothing
)

// verbs are the legal moves: what people do, from where, to where.
var verbs = map[string]struct {
	from []State
	to   State
}{
	"approve":     {[]State{Pending}, Active},
	"cordon":      {[]State{Active}, Cordoned},
	"uncordon":    {[]State{Cordoned}, Active},
	"drain":       {[]State{Active, Cordoned}, Draining},
	"maintenance": {[]State{Active, Cordoned, Draining}, Maintenance},
	"activate":    {[]State{Cordoned, Draining, Maintenance}, Active},
	"retire":      {[]State{Pending, Active, Cordoned, Draining, Maintenance}, Retired},
}

// Next returns the state after verb, or an error that says why not.
func (s State) Next(verb string) (State, error) {
	v, ok := verbs[verb]
	if !ok {
		return "", errs.Ef(errs.Invalid, "A host cannot %.30s.", verb)
	}
	for _, from := range v.from {
		if s == from {
			return v.to, nil
		}
	}
	return "", errs.Ef(errs.Conflict, "This host is %s; from there it cannot %s.", s, verb)
}

// Host is a machine of the fleet.
type Host struct {
	Machine
	Pulse
}

// Machine is what changes seldom of a host.
type Machine struct {
	ID           string            `db:"id" json:"id"`
	Name         string            `db:"name" json:"name"`
	State        State             `db:"state" json:"state" enum:"pending,active,cordoned,draining,maintenance,retired"`
	Status       string            `db:"status" json:"status" enum:"online,offline,maintenance,error"`
	Health       string            `db:"health" json:"health" enum:"healthy,degraded,unhealthy"`
	HealthReason string            `db:"health_reason" json:"health_reason,omitempty"`
	RegisteredAt time.Time         `db:"registered_at" json:"registered_at"`
	Address      string            `db:"address" json:"address,omitempty" doc:"As the control plane saw it"`
	Hostname     string            `db:"hostname" json:"hostname"`
	Addresses    []string          `db:"addresses" json:"addresses" doc:"Of its own interfaces"`
	OS           string            `db:"os" json:"os"`
	OSVersion    string            `db:"os_version" json:"os_version"`
	Kernel       string            `db:"kernel" json:"kernel"`
	Arch         string            `db:"arch" json:"arch"`
	Deployment   string            `db:"deployment" json:"deployment" enum:"traditional,kubernetes,hybrid"`
	CPUModel     string            `db:"cpu_model" json:"cpu_model"`
	CPUs         int               `db:"cpus" json:"cpus"`
	Memory       int64             `db:"memory" json:"memory" doc:"Bytes"`
	Disk         int64             `db:"disk" json:"disk" doc:"Bytes"`
	Runtime      string            `db:"runtime" json:"runtime"`
	Driver       string            `db:"driver" json:"driver,omitempty"`
	CUDA         string            `db:"cuda" json:"cuda,omitempty"`
	Agent        string            `db:"agent" json:"agent" doc:"Version of its agent"`
	ClockOffset  int64             `db:"clock_offset" json:"clock_offset" doc:"Milliseconds that its clock is ahead"`
	Labels       map[string]string `db:"labels" json:"labels"`
	Tags         []string          `db:"tags" json:"tags"`
	Groups       []string          `db:"groups" json:"groups"`
	GPUs         []GPU             `db:"-" json:"gpus"`
}

// Pulse is what a host reports all the time; lists have it as it was seconds ago.
type Pulse struct {
	LastSeen   *time.Time `db:"last_seen" json:"last_seen,omitempty"`
	CPUPercent float32    `db:"cpu_percent" json:"cpu_percent"`
	Load1      float32    `db:"load1" json:"load1"`
	MemoryUsed int64      `db:"memory_used" json:"memory_used" doc:"Bytes"`
	DiskUsed   int64      `db:"disk_used" json:"disk_used" doc:"Bytes"`
	Uptime     int64      `db:"uptime" json:"uptime" doc:"Seconds"`
	Observed   int64      `db:"observed" json:"observed" doc:"Generation of the document that its agent has"`
	Applied    int64      `db:"applied" json:"applied" doc:"Generation that its containers agree with"`
}

// GPU is a device of a host.
type GPU struct {
	UUID          string  `db:"uuid" json:"uuid"`
	Host          string  `db:"host_id" json:"host"`
	Index         int     `db:"index" json:"index"`
	Name          string  `db:"name" json:"name"`
	Brand         string  `db:"brand" json:"brand"`
	Architecture  string  `db:"architecture" json:"architecture"`
	Memory        int64   `db:"memory" json:"memory" doc:"Bytes"`
	CUDACores     int     `db:"cuda_cores" json:"cuda_cores"`
	Capability    string  `db:"capability" json:"capability" doc:"Compute capability"`
	PowerLimit    float32 `db:"power_limit" json:"power_limit" doc:"Watts"`
	TempLimit     float32 `db:"temp_limit" json:"temp_limit" doc:"°C"`
	MIG           bool    `db:"mig" json:"mig"`
	NUMANode      int     `db:"numa_node" json:"numa_node" doc:"-1: unknown"`
	PCI           string  `db:"pci" json:"pci"`
	Status        string  `db:"status" json:"status" enum:"available,allocated,maintenance,error"`
	Health        string  `db:"health" json:"health" enum:"healthy,unhealthy"`
	HealthMessage string  `db:"health_message" json:"health_message,omitempty"`
	Environment   string  `db:"environment" json:"environment,omitempty" doc:"Who has it"`
}

// Event is something that happened on or to a host.
type Event struct {
	ID       int64     `db:"id" json:"id"`
	At       time.Time `db:"at" json:"at"`
	Severity string    `db:"severity" json:"severity" enum:"normal,warning,security"`
	Reason   string    `db:"reason" json:"reason"`
	Message  string    `db:"message" json:"message"`
	Workload string    `db:"workload" json:"workload,omitempty"`
}

// JoinToken lets hosts join, without its secret.
type JoinToken struct {
	ID        string            `db:"id" json:"id"`
	Uses      int               `db:"uses" json:"uses" doc:"How many hosts may join with it"`
	Used      int               `db:"used" json:"used"`
	ExpiresAt time.Time         `db:"expires_at" json:"expires_at"`
	Approval  bool              `db:"approval" json:"approval" doc:"Hosts wait until an admin approves them"`
	Labels    map[string]string `db:"labels" json:"labels" doc:"Given to hosts that join with it"`
	Revoked   bool              `db:"revoked" json:"revoked"`
	CreatedAt time.Time         `db:"created_at" json:"created_at"`
}

// offlineAfter is how long a host may be silent; agents report every 30 s.
const offlineAfter = 60 * time.Second

var nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$`)

func validName(name string) error {
	if !nameRule.MatchString(name) {
		return errs.Ef(errs.Invalid, "%.80q is no name for a host: use 1 to 63 small letters, digits, dots and hyphens.", name)
	}
	return nil
}

const (
	maxLabels = 64 // of a host
	maxValue  = 128
)

var keyRule = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)

// validLabels refuses those that nobody could ask for, or read in a list.
func validLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return errs.Ef(errs.Invalid, "%d labels are over the limit of %d.", len(labels), maxLabels)
	}
	for key, value := range labels {
		if !keyRule.MatchString(key) {
			return errs.Ef(errs.Invalid, "%.80q is no key of a label: use 1 to 63 letters, digits, dots, hyphens, underscores and slashes.", key)
		}
		if len(value) > maxValue || strings.ContainsFunc(value, func(r rune) bool { return !unicode.IsPrint(r) }) {
			return errs.Ef(errs.Invalid, "%.80q is no value for label %s: use at most %d bytes, all of them printable.", value, key, maxValue)
		}
	}
	return nil
}

// check returns what is wrong with a token at now, or nil.
func (t JoinToken) check(now time.Time) error {
	const again = " Make a new one: remotegpu host join"
	switch {
	case t.Revoked:
		return errs.E(errs.Denied, "This join token was revoked."+again)
	case now.After(t.ExpiresAt):
		return errs.E(errs.Denied, "This join token expired on "+t.ExpiresAt.UTC().Format("2006-01-02 15:04 UTC")+"."+again)
	case t.Used >= t.Uses:
		return errs.Ef(errs.Denied, "This join token is used up: %d of %d hosts have joined with it.%s", t.Used, t.Uses, again)
	}
	return nil
}
