package chaos

import (
	"strings"
	"testing"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

// sound is a system in which all is well.
func sound() *Seen {
	return &Seen{
		Hosts: map[string]Host{
			"one": {Online: true, Made: 10, Disk: 9, Obeyed: 9, Containers: []Container{{ID: "c1", Workload: "env_1", Revision: 2, GPUs: []string{"g1"}, Life: "12 99"}}},
			"two": {Online: true, Made: 5, Disk: 5, Obeyed: 5, Containers: []Container{{ID: "c2", Workload: "env_2", Revision: 1, GPUs: []string{"g2"}, Life: "13 99"}}},
		},
		Wishes: map[string]Wish{
			"env_1": {Name: "a", Host: "one", Runs: true, Asked: 3, Settled: true},
			"env_2": {Name: "b", Host: "two", Runs: true, Asked: 1, Settled: true},
			"env_3": {Name: "c"},
		},
		Audit:  map[string]Access{"env_1": {Done: 2, Tried: 1, Noted: 3}},
		Levels: map[string]Level{"the server": {Files: 50, Memory: 100 << 20}},
		Shells: []Shell{{Name: "s", Lines: 3}},
	}
}

// with is a sound system but for one host's or wish's change.
func with(change func(s *Seen)) *Seen {
	s := sound()
	change(s)
	for name, h := range s.Hosts {
		if h.Wished == nil {
			h.Wished = s.Wishes
			s.Hosts[name] = h
		}
	}
	return s
}

func host(name string, change func(*Host)) func(*Seen) {
	return func(s *Seen) {
		h := s.Hosts[name]
		change(&h)
		s.Hosts[name] = h
	}
}

func container(name string, change func(*Container)) func(*Seen) {
	return host(name, func(h *Host) { change(&h.Containers[0]) })
}

func wish(id string, change func(*Wish)) func(*Seen) {
	return func(s *Seen) {
		w := s.Wishes[id]
		change(&w)
		s.Wishes[id] = w
	}
}

func TestInvariants(t *testing.T) {
	nothing := func(*Seen) {}
	stranger := host("two", func(h *Host) {
		h.Containers = append(h.Containers, Container{ID: "c9", Workload: "env_9", Life: "1 1"})
	})
	newLife := container("one", func(c *Container) { c.Life = "77 123" })
	for _, tt := range []struct {
		name     string
		was, now func(*Seen)
		breaks   string // name of the only invariant that it breaks; empty: none
	}{
		{"all is well", nothing, nothing, ""},
		{"a GPU twice", nothing, container("two", func(c *Container) { c.GPUs = []string{"g1"} }), "no GPU in two workloads"},
		{"a workload twice", nothing, host("one", func(h *Host) {
			h.Containers = append(h.Containers, Container{ID: "c1b", Workload: "env_1", Revision: 2, Life: "14 99"})
		}), "no workload in two containers"},
		{"a container that nobody wants, in one look", nothing, stranger, ""},
		{"a container that nobody wants, seen once", stranger, func(s *Seen) { stranger(s); host("two", func(h *Host) { h.Old = true })(s) }, ""},
		{"a container that nobody wants, as far as was seen", func(s *Seen) { stranger(s); s.Old = true }, stranger, ""},
		{"a container that nobody wants", stranger, stranger, "no container without a wish"},
		{"a container at the wrong place", wish("env_2", func(w *Wish) { w.Host = "one" }), wish("env_2", func(w *Wish) { w.Host = "one" }), "no container without a wish"},
		{"a wish that is not granted", nothing, wish("env_3", func(w *Wish) { w.Host, w.Runs = "one", true }), "no wish without a container"},
		{"a container that should have ended", nothing, wish("env_2", func(w *Wish) { w.Runs = false }), "no wish without a container"},
		{"an older document", nothing, host("one", func(h *Host) { h.Made = 9 }), "generation never goes back"},
		{"an older document on disk", nothing, host("one", func(h *Host) { h.Disk = 8 }), "generation never goes back"},
		{"an older counter", nothing, host("one", func(h *Host) { h.Obeyed = 8 }), "generation never goes back"},
		{"a newer document", nothing, host("one", func(h *Host) { h.Made, h.Disk, h.Obeyed = 12, 12, 12 }), ""},
		{"another life", nothing, newLife, "who was asked nothing keeps pid and start time"},
		{"another life after a boot", nothing, func(s *Seen) { newLife(s); host("one", func(h *Host) { h.Boot = 1 })(s) }, ""},
		{"another life, as asked", nothing, func(s *Seen) { newLife(s); wish("env_1", func(w *Wish) { w.Asked = 4 })(s) }, ""},
		{"another life, asked while the host was not seen", host("one", func(h *Host) {
			h.Old, h.Wished = true, map[string]Wish{"env_1": {Name: "a", Host: "one", Runs: true, Asked: 2, Settled: true}}
		}), newLife, ""},
		{"another life while the host was not seen", host("one", func(h *Host) { h.Old = true }), newLife, "who was asked nothing keeps pid and start time"},
		{"another life while it is unclear", wish("env_1", func(w *Wish) { w.Settled = false }), newLife, ""},
		{"an older revision, as asked", nothing, func(s *Seen) {
			container("one", func(c *Container) { c.Revision = 1 })(s)
			wish("env_1", func(w *Wish) { w.Asked = 4 })(s)
		}, "generation never goes back"},
		{"a wrong transcript", nothing, func(s *Seen) { s.Shells[0].Wrong = "line 3" }, "transcripts are byte-identical"},
		{"an access without an entry", nothing, func(s *Seen) { s.Audit["env_1"] = Access{Done: 2, Noted: 1} }, "audit has each access once"},
		{"an entry without an access", nothing, func(s *Seen) { s.Audit["env_1"] = Access{Done: 2, Noted: 3} }, "audit has each access once"},
		{"a stream that ends twice", nothing, func(s *Seen) { s.Audit["env_1"] = Access{Done: 2, Noted: 2, Double: 1} }, "audit has each access once"},
		{"files that stay open", nothing, func(s *Seen) { s.Levels["the server"] = Level{Files: 120, Memory: 100 << 20} }, "files and memory are back at the start level"},
		{"memory that stays", nothing, func(s *Seen) { s.Levels["the server"] = Level{Files: 50, Memory: 500 << 20} }, "files and memory are back at the start level"},
		{"a host that is away", nothing, host("two", func(h *Host) { h.Online = false }), "every host is online at rest"},
		{"a panic", nothing, func(s *Seen) { s.Said = []string{"panic"} }, "no program says what it must never say"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			was, now := with(tt.was), with(tt.now)
			broken := map[string]string{}
			for _, v := range Invariants {
				if what := v.Check(sound(), was, now); what != "" {
					broken[v.Name] = what
				}
			}
			if tt.breaks == "" && len(broken) > 0 || tt.breaks != "" && broken[tt.breaks] == "" {
				t.Errorf("broken: %v, want %q", broken, tt.breaks)
			}
			delete(broken, tt.breaks)
			if tt.breaks != "" && len(broken) > 0 {
				t.Errorf("broken besides: %v", broken)
			}
		})
	}
}
