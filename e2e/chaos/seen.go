package chaos

import (
	"fmt"
	"slices"
	"time"
)

// Seen is what one look at the system found. What could not be looked at, since
// it is broken just then, is as it was seen last.
type Seen struct {
	At     time.Duration // since the run began
	Quiet  bool          // nothing is broken, and everything has come to rest
	Hosts  map[string]Host
	Wishes map[string]Wish   // by workload
	Old    bool              // the database did not answer: wishes and audit are those of a look before
	Audit  map[string]Access // by workload
	Levels map[string]Level  // by process
	Shells []Shell
	Said   []string // by any program, that it must never say; since the run began
}

// Host is a machine that runs workloads.
type Host struct {
	Containers []Container
	Wished     map[string]Wish // what was wished when the containers were seen
	Old        bool            // they could not be seen: these are those of a look before
	Boot       int             // counts its boots
	Made       uint64          // newest generation of its document, as the control plane has it
	Disk       uint64          // generation on the agent's disk
	Obeyed     uint64          // generation below which the agent's counter says that it obeys nothing
	Online     bool
}

// Container is one that lives.
type Container struct {
	ID, Workload string
	Revision     uint64
	GPUs         []string
	Life         string // pid and start time of its first process
}

// Wish is what the control plane is to bring about.
type Wish struct {
	Name    string
	Host    string // where its files are; empty: nowhere yet
	Runs    bool   // it is to run there
	Asked   int    // counts what was asked of it
	Settled bool   // what was asked last has been brought about, and nothing is being asked
}

// Access is how often somebody went into a workload.
type Access struct {
	Done   int // times that it worked
	Tried  int // times that nobody knows whether it got through, besides
	Noted  int // entries
	Double int // ends of one stream beyond its first
}

// Level is what a process takes.
type Level struct {
	Files  int // open
	Memory int64
	Has    int // containers of its host
}

// Shell is an interactive session whose transcript is checked.
type Shell struct {
	Name  string
	Lines int
	Wrong string // what of the transcript is not as it must be; empty: nothing
}

// Invariant is what must hold.
type Invariant struct {
	Name  string
	Quiet bool // at rest only, to which it may take a while to come
	// Check returns what breaks it; first is the first quiet look, was the one before.
	Check func(first, was, now *Seen) string
}

// Invariants is all that must hold.
var Invariants = []Invariant{
	{"no GPU in two workloads", false, oneOwner},
	{"no workload in two containers", false, oneContainer},
	{"no container without a wish", false, wished},
	{"no wish without a container", true, granted},
	{"generation never goes back", false, forward},
	{"who was asked nothing keeps pid and start time", false, kept},
	{"transcripts are byte-identical", false, transcripts},
	{"audit has each access once", false, noted},
	{"files and memory are back at the start level", true, level},
	{"every host is online at rest", true, online},
	{"no program says what it must never say", false, silent},
}

func oneOwner(_, _, now *Seen) string {
	owner := map[string]string{}
	for host, h := range now.Hosts {
		for _, c := range h.Containers {
			for _, gpu := range c.GPUs {
				is := c.Workload + " on " + host
				if other, taken := owner[gpu]; taken {
					return fmt.Sprintf("GPU %s is in %s and in %s", gpu, other, is)
				}
				owner[gpu] = is
			}
		}
	}
	return ""
}

func oneContainer(_, _, now *Seen) string {
	lives := map[string]string{}
	for host, h := range now.Hosts {
		for _, c := range h.Containers {
			if other, ok := lives[c.Workload]; ok {
				return fmt.Sprintf("%s lives on %s and on %s", c.Workload, other, host)
			}
			lives[c.Workload] = host
		}
	}
	return ""
}

// wished forgives what is true of one look alone: container and wish are not
// looked at in the same moment.
func wished(_, was, now *Seen) string {
	if was.Old || now.Old {
		return "" // what was wished just before the database fell silent has not been seen
	}
	for host, h := range now.Hosts {
		for _, c := range h.Containers {
			before, known := was.Hosts[host]
			long := known && slices.ContainsFunc(before.Containers, func(o Container) bool { return o.ID == c.ID && o.Life == c.Life })
			_, wish := now.Wishes[c.Workload]
			_, wishBefore := was.Wishes[c.Workload]
			if long && !h.Old && !wish && !wishBefore {
				return fmt.Sprintf("container %s of %s runs on %s and nobody wants it", c.ID, c.Workload, host)
			}
			if at := now.Wishes[c.Workload].Host; wish && at != "" && at != host && long && !h.Old {
				return fmt.Sprintf("container %s of %s runs on %s, its place is %s", c.ID, c.Workload, host, at)
			}
		}
	}
	return ""
}

func granted(_, _, now *Seen) string {
	runs := map[string]bool{}
	for _, h := range now.Hosts {
		for _, c := range h.Containers {
			runs[c.Workload] = true
		}
	}
	for id, wish := range now.Wishes {
		if wish.Runs != runs[id] {
			return fmt.Sprintf("%s (%s) is to run on %q: %v; it runs: %v", id, wish.Name, wish.Host, wish.Runs, runs[id])
		}
	}
	return ""
}

func forward(_, was, now *Seen) string {
	for host, h := range now.Hosts {
		b := was.Hosts[host]
		for _, g := range []struct {
			of         string
			before, is uint64
		}{{"document", b.Made, h.Made}, {"host's own", b.Disk, h.Disk}, {"host's counter", b.Obeyed, h.Obeyed}} {
			if g.is < g.before {
				return fmt.Sprintf("the %s generation of %s went from %d to %d", g.of, host, g.before, g.is)
			}
		}
		for _, c := range h.Containers {
			for _, old := range b.Containers {
				if old.Workload == c.Workload && c.Revision < old.Revision {
					return fmt.Sprintf("the revision of %s went from %d to %d", c.Workload, old.Revision, c.Revision)
				}
			}
		}
	}
	return ""
}

// kept compares with what was wished when a container was seen: what is asked and
// brought about while containerd does not answer is no surprise afterwards.
func kept(_, was, now *Seen) string {
	for host, h := range now.Hosts {
		before := was.Hosts[host]
		if before.Boot != h.Boot {
			continue
		}
		for _, old := range before.Containers {
			a, b := before.Wished[old.Workload], now.Wishes[old.Workload]
			if !a.Settled || !b.Settled || a.Asked != b.Asked {
				continue
			}
			i := slices.IndexFunc(h.Containers, func(c Container) bool { return c.Workload == old.Workload })
			if i < 0 {
				return fmt.Sprintf("%s on %s, of which nothing was asked, is gone", old.Workload, host)
			}
			if c := h.Containers[i]; c.Life != old.Life || c.ID != old.ID {
				return fmt.Sprintf("%s on %s, of which nothing was asked, was %s (%s) and is %s (%s)", old.Workload, host, old.ID, old.Life, c.ID, c.Life)
			}
		}
	}
	return ""
}

func transcripts(_, _, now *Seen) string {
	for _, s := range now.Shells {
		if s.Wrong != "" {
			return s.Name + ": " + s.Wrong
		}
	}
	return ""
}

func noted(_, _, now *Seen) string {
	for id, a := range now.Audit {
		if a.Noted < a.Done || a.Noted > a.Done+a.Tried || a.Double > 0 {
			return fmt.Sprintf("%s: %d accesses and %d tries, %d entries, %d ends noted twice", id, a.Done, a.Tried, a.Noted, a.Double)
		}
	}
	return ""
}

// Slack of a level: what one more or less of the pools and caches of a process
// in the same state takes.
const (
	moreFiles  = 48 // connections to the database alone may be 24 more
	eachFiles  = 8  // of a container
	moreMemory = 96 << 20
)

func level(first, _, now *Seen) string {
	for name, l := range now.Levels {
		start, ok := first.Levels[name]
		if !ok {
			continue
		}
		if l.Files > start.Files+start.Files/10+moreFiles+eachFiles*max(0, l.Has-start.Has) {
			return fmt.Sprintf("%s has %d open files and %d containers, at the start %d and %d", name, l.Files, l.Has, start.Files, start.Has)
		}
		if l.Memory > 2*start.Memory+moreMemory {
			return fmt.Sprintf("%s takes %d MiB, at the start %d", name, l.Memory>>20, start.Memory>>20)
		}
	}
	return ""
}

func online(_, _, now *Seen) string {
	for host, h := range now.Hosts {
		if !h.Online {
			return host + " is offline"
		}
	}
	return ""
}

func silent(_, _, now *Seen) string {
	if len(now.Said) > 0 {
		return now.Said[0]
	}
	return ""
}
