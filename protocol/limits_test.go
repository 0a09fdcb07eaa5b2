package protocol

import (
	"math"
	"strconv"
	"strings"
	"testing"
)

// change makes one thing wrong with a full, valid document.
type change[T any] struct {
	name string
	do   func(*T)
	want string // part of the error; empty: still valid
}

func checkLimits[T any](t *testing.T, full func() *T, changes []change[T]) {
	t.Helper()
	valid := func(doc *T) error { return any(doc).(validator).Validate() }
	if err := valid(full()); err != nil {
		t.Fatal("the full document:", err)
	}
	for _, c := range changes {
		doc := full()
		c.do(doc)
		err := valid(doc)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		data, err := Marshal(doc)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := Unmarshal(data, new(T)); (err == nil) != (c.want == "") {
			t.Errorf("%s: Unmarshal and Validate differ: %v", c.name, err)
		}
	}
}

var (
	long   = strings.Repeat("x", MaxLabel+1)
	longer = strings.Repeat("x", MaxText+1)
	nan    = float32(math.NaN())
	inf    = float32(math.Inf(1))
)

func repeat[T any](n int, v T) []T {
	all := make([]T, n)
	for i := range all {
		all[i] = v
	}
	return all
}

func variables(n int) map[string]string {
	all := make(map[string]string, n)
	for i := range n {
		all["V"+strconv.Itoa(i)] = ""
	}
	return all
}

func TestDesiredLimits(t *testing.T) {
	checkLimits(t, fullDesired, []change[Desired]{
		{"version 0", func(d *Desired) { d.Version = 0 }, "upgrade the agent"},
		{"version 2", func(d *Desired) { d.Version = 2 }, "upgrade the agent"},
		{"no host", func(d *Desired) { d.Host = "" }, "no valid host"},
		{"another kind of id", func(d *Desired) { d.Host = "env_0123456789abcdefghjk" }, "no valid host"},
		{"host with a path", func(d *Desired) { d.Host = "host_../../456789abcdefg" }, "no valid host"},
		{"generation 0", func(d *Desired) { d.Generation = 0 }, "no generation"},
		{"generation of 64 bits", func(d *Desired) { d.Generation = math.MaxUint64 }, "no generation"},
		{"no workloads", func(d *Desired) { d.Workloads = nil }, ""},
		{"too many workloads", func(d *Desired) { d.Workloads = make([]Workload, MaxWorkloads+1) }, "over the limit of 1024"},
		{"workload twice", func(d *Desired) { d.Workloads = append(d.Workloads, d.Workloads[0]) }, "stands twice"},
	})
}

func TestWorkloadLimits(t *testing.T) {
	w := func(do func(*Workload)) func(*Desired) { return func(d *Desired) { do(&d.Workloads[0]) } }
	checkLimits(t, fullDesired, []change[Desired]{
		{"no id", w(func(w *Workload) { w.ID = "" }), "id may have only"},
		{"id is a path", w(func(w *Workload) { w.ID = "../etc" }), "id may have only"},
		{"id is an option", w(func(w *Workload) { w.ID = "-rf" }), "id may have only"},
		{"id of 65 characters", w(func(w *Workload) { w.ID = strings.Repeat("a", 65) }), "id may have only"},
		{"id of 64 characters", w(func(w *Workload) { w.ID = strings.Repeat("a", 64) }), ""},
		{"want", w(func(w *Workload) { w.Want = "paused" }), `unknown wanted state "paused"`},
		{"restart", w(func(w *Workload) { w.Restart = "" }), `unknown restart policy ""`},
		{"no image", w(func(w *Workload) { w.Image = "" }), "image reference is empty"},
		{"long image", w(func(w *Workload) { w.Image = long }), "image reference is empty or over"},
		{"name with a dot", w(func(w *Workload) { w.Name = "a.b" }), "name"},
		{"name with a newline", w(func(w *Workload) { w.Name = "a\nb" }), "name"},
		{"long workspace", w(func(w *Workload) { w.Workspace = long }), "over its limits"},
		{"long user", w(func(w *Workload) { w.User = long }), "over its limits"},
		{"long workdir", w(func(w *Workload) { w.Workdir = longer }), "over its limits"},
		{"revision of 64 bits", w(func(w *Workload) { w.Revision = math.MaxUint64 }), "over its limits"},
		{"zero byte in command", w(func(w *Workload) { w.Command = []string{"a\x00b"} }), "zero byte"},
		{"variable without name", w(func(w *Workload) { w.Env = map[string]string{"": "x"} }), "environment variable"},
		{"variable with =", w(func(w *Workload) { w.Env = map[string]string{"A=B": "x"} }), "environment variable"},
		{"zero byte in variable", w(func(w *Workload) { w.Env = map[string]string{"A": "\x00"} }), "environment variable"},
		{"most variables", w(func(w *Workload) { w.Env = variables(maxPairs) }), ""},
		{"too many variables", w(func(w *Workload) { w.Env = variables(maxPairs + 1) }), "variables"},
		{"most arguments", w(func(w *Workload) { w.Command = make([]string, maxElements) }), ""},
		{"too many arguments", w(func(w *Workload) { w.Command = make([]string, maxElements+1) }), "arguments"},
		{"GPU twice", w(func(w *Workload) { w.GPUs = []string{"GPU-1", "GPU-1"} }), "stands twice"},
		{"GPU without UUID", w(func(w *Workload) { w.GPUs = []string{""} }), "is empty"},
		{"too many GPUs", w(func(w *Workload) { w.GPUs = repeat(maxGPUs+1, "GPU-1") }), "over the limit of 64"},
		{"no limits", w(func(w *Workload) { w.Limits = Limits{} }), ""},
		{"memory of 64 bits", w(func(w *Workload) { w.Limits.Memory = math.MaxUint64 }), "beyond any machine"},
		{"cpu whose quota overflows", w(func(w *Workload) { w.Limits.MilliCPU = math.MaxInt64 }), "beyond any machine"},
		{"shm of 64 bits", w(func(w *Workload) { w.Limits.Shm = 1 << 63 }), "beyond any machine"},
	})
}

func TestMountLimits(t *testing.T) {
	m := func(mounts ...Mount) func(*Desired) { return func(d *Desired) { d.Workloads[0].Mounts = mounts } }
	checkLimits(t, fullDesired, []change[Desired]{
		{"none", m(), ""},
		{"relative target", m(Mount{Target: "data", Volume: "v"}), "clean absolute path"},
		{"target with ..", m(Mount{Target: "/a/../etc", Volume: "v"}), "clean absolute path"},
		{"target with //", m(Mount{Target: "//etc", Volume: "v"}), "clean absolute path"},
		{"the root", m(Mount{Target: "/", Volume: "v"}), "clean absolute path"},
		{"no target", m(Mount{Volume: "v"}), "clean absolute path"},
		{"over the helper", m(Mount{Target: "/.remotegpu", Volume: "v"}), "choose another"},
		{"beside the helper", m(Mount{Target: "/.remotegpu/run", Volume: "v"}), "choose another"},
		{"a name that only looks so", m(Mount{Target: "/.remotegpu2", Volume: "v"}), ""},
		{"neither volume nor path", m(Mount{Target: "/a"}), "not both"},
		{"volume and path", m(Mount{Target: "/a", Volume: "v", HostPath: "/b"}), "not both"},
		{"volume is a path", m(Mount{Target: "/a", Volume: "../b"}), "volume name"},
		{"relative host path", m(Mount{Target: "/a", HostPath: "b"}), "host path"},
		{"host path with ..", m(Mount{Target: "/a", HostPath: "/srv/../etc"}), "host path"},
		{"the host's root", m(Mount{Target: "/a", HostPath: "/"}), ""},
		{"target twice", m(Mount{Target: "/a", Volume: "v"}, Mount{Target: "/a", Volume: "w"}), "two mounts"},
	})
}

func TestHelloLimits(t *testing.T) {
	g := func(do func(*GPU)) func(*Hello) { return func(h *Hello) { do(&h.Inventory.GPUs[0]) } }
	checkLimits(t, fullHello, []change[Hello]{
		{"version 0", func(h *Hello) { h.Version = 0 }, "upgrade the older end"},
		{"epoch of 64 bits", func(h *Hello) { h.Epoch = math.MaxUint64 }, "over its limits"},
		{"long boot id", func(h *Hello) { h.BootID = long }, "over its limits"},
		{"long digest", func(h *Hello) { h.Digest = make([]byte, 65) }, "over its limits"},
		{"many capabilities", func(h *Hello) { h.Capabilities = repeat(65, "x") }, "over its limits"},
		{"long capability", func(h *Hello) { h.Capabilities = []string{long} }, "over its limits"},
		{"clock far behind", func(h *Hello) { h.ClockOffset = math.MinInt64 }, ""},
		{"long hostname", func(h *Hello) { h.Inventory.Hostname = long }, "inventory is over"},
		{"long CUDA", func(h *Hello) { h.Inventory.CUDA = long }, "inventory is over"},
		{"many addresses", func(h *Hello) { h.Inventory.Addresses = repeat(65, "::1") }, "inventory is over"},
		{"long address", func(h *Hello) { h.Inventory.Addresses = []string{long} }, "inventory is over"},
		{"memory of 64 bits", func(h *Hello) { h.Inventory.Memory = math.MaxUint64 }, "inventory is over"},
		{"many GPUs", func(h *Hello) { h.Inventory.GPUs = make([]GPU, maxGPUs+1) }, "inventory is over"},
		{"no GPUs", func(h *Hello) { h.Inventory.GPUs = nil }, ""},
		{"GPU without UUID", g(func(g *GPU) { g.UUID = "" }), "inventory of GPU"},
		{"GPU twice", func(h *Hello) { h.Inventory.GPUs[1].UUID = h.Inventory.GPUs[0].UUID }, "stands twice"},
		{"long UUID", g(func(g *GPU) { g.UUID = long }), "inventory of GPU"},
		{"many links", g(func(g *GPU) { g.Links = make([]uint32, 65) }), "inventory of GPU"},
		{"long message", g(func(g *GPU) { g.HealthMessage = longer }), "inventory of GPU"},
		{"power that is no number", g(func(g *GPU) { g.PowerLimit = nan }), "inventory of GPU"},
		{"endless heat", g(func(g *GPU) { g.TempLimit = inf }), "inventory of GPU"},
		{"GPU memory of 64 bits", g(func(g *GPU) { g.Memory = 1 << 63 }), "inventory of GPU"},
	})
}

func TestStatusLimits(t *testing.T) {
	w := func(do func(*WorkloadStatus)) func(*Status) { return func(s *Status) { do(&s.Workloads[0]) } }
	e := func(do func(*Event)) func(*Status) { return func(s *Status) { do(&s.Events[0]) } }
	g := func(do func(*GPUUsage)) func(*Status) { return func(s *Status) { do(&s.Usage.GPUUsed[0]) } }
	checkLimits(t, fullStatus, []change[Status]{
		{"version 2", func(s *Status) { s.Version = 2 }, "upgrade the older end"},
		{"seq of 64 bits", func(s *Status) { s.Seq = 1 << 63 }, "status is over"},
		{"many workloads", func(s *Status) { s.Workloads = make([]WorkloadStatus, 2*MaxWorkloads+1) }, "status is over"},
		{"many events", func(s *Status) { s.Events = make([]Event, MaxEvents+1) }, "status is over"},
		{"a phase of a later version", w(func(w *WorkloadStatus) { w.Phase = "migrating" }), ""},
		{"long id", w(func(w *WorkloadStatus) { w.ID = long }), "status of workload"},
		{"long phase", w(func(w *WorkloadStatus) { w.Phase = long }), "status of workload"},
		{"long message", w(func(w *WorkloadStatus) { w.Message = longer }), "status of workload"},
		{"bytes of 64 bits", w(func(w *WorkloadStatus) { w.Total = math.MaxUint64 }), "status of workload"},
		{"zero byte in a message", w(func(w *WorkloadStatus) { w.Message = "a\x00b" }), "status of workload"},
		{"zero byte in a fault", func(s *Status) { s.Fault = "\x00" }, "status is over"},
		{"exit code of 40 bits", w(func(w *WorkloadStatus) { code := 1 << 40; w.ExitCode = &code }), "status of workload"},
		{"a start in the year 292 million", w(func(w *WorkloadStatus) { w.StartedAt = math.MaxInt64 }), "status of workload"},
		{"long reason", e(func(e *Event) { e.Reason = long }), "event 5 is over"},
		{"zero byte in a reason", e(func(e *Event) { e.Reason = "\x00" }), "event 5 is over"},
		{"an event before 1970", e(func(e *Event) { e.At = -1 }), "event 5 is over"},
		{"long event", e(func(e *Event) { e.Message = longer }), "event 5 is over"},
		{"event seq of 64 bits", e(func(e *Event) { e.Seq = math.MaxUint64 }), "is over"},
		{"cpu that is no number", func(s *Status) { s.Usage.CPUPercent = nan }, "usage is over"},
		{"endless load", func(s *Status) { s.Usage.Load1 = inf }, "usage is over"},
		{"many GPUs", func(s *Status) { s.Usage.GPUUsed = repeat(maxGPUs+1, s.Usage.GPUUsed[0]) }, "usage is over"},
		{"GPU without UUID", g(func(g *GPUUsage) { g.UUID = "" }), "usage of GPU"},
		{"zero byte in a UUID", g(func(g *GPUUsage) { g.UUID = "GPU-\x00" }), "usage of GPU"},
		{"heat that is no number", g(func(g *GPUUsage) { g.Temperature = nan }), "usage of GPU"},
	})
}

func TestTelemetryLimits(t *testing.T) {
	checkLimits(t, fullTelemetry, []change[TelemetryBatch]{
		{"version 0", func(b *TelemetryBatch) { b.Version = 0 }, "upgrade the older end"},
		{"sequence 0", func(b *TelemetryBatch) { b.First = 0 }, "empty or over"},
		{"sequence that overflows", func(b *TelemetryBatch) { b.First = math.MaxInt64 }, "empty or over"},
		{"no samples", func(b *TelemetryBatch) { b.At = nil }, "empty or over"},
		{"many samples", func(b *TelemetryBatch) { b.At = make([]int64, maxSamples+1) }, "empty or over"},
		{"a value too few", func(b *TelemetryBatch) { b.Host[0].Values = b.Host[0].Values[:1] }, "has 1 values for 2 samples"},
		{"a value too many", func(b *TelemetryBatch) { b.GPUs[0].Series[0].Values = make([]float32, 3) }, "has 3 values for 2 samples"},
		{"many series", func(b *TelemetryBatch) { b.Host = repeat(257, b.Host[0]) }, "over the limit of 256"},
		{"many GPUs", func(b *TelemetryBatch) { b.GPUs = repeat(maxGPUs+1, b.GPUs[0]) }, "empty or over"},
		{"GPU without UUID", func(b *TelemetryBatch) { b.GPUs[0].UUID = "" }, "valid UUID"},
		{"a metric of a later version", func(b *TelemetryBatch) { b.Host[0].Metric = 999 }, ""},
	})
}

func TestSmallDocumentLimits(t *testing.T) {
	checkLimits(t, func() *Presence { return &Presence{Version: 1} }, []change[Presence]{
		{"version 0", func(p *Presence) { p.Version = 0 }, "presence has version 0"},
		{"epoch of 64 bits", func(p *Presence) { p.Epoch = 1 << 63 }, "over its limits"},
	})
	checkLimits(t, func() *Ack { return &Ack{Version: 1} }, []change[Ack]{
		{"version 2", func(a *Ack) { a.Version = 2 }, "ack has version 2"},
		{"kept away for long", func(a *Ack) { a.Spread = MaxSpread + 1 }, "over its limits"},
	})
	checkLimits(t, func() *Dial { return &Dial{Version: 1, Token: "t"} }, []change[Dial]{
		{"version 2", func(d *Dial) { d.Version = 2 }, "another version"},
		{"no token", func(d *Dial) { d.Token = "" }, "no valid token"},
		{"long token", func(d *Dial) { d.Token = long }, "no valid token"},
	})
	checkLimits(t, func() *StreamHeader { return &StreamHeader{Version: 1} }, []change[StreamHeader]{
		{"version 2", func(h *StreamHeader) { h.Version = 2 }, "another version"},
		{"long workload", func(h *StreamHeader) { h.Workload = long }, "over its limits"},
		{"long trace", func(h *StreamHeader) { h.Trace = long }, "over its limits"},
		{"long target", func(h *StreamHeader) { h.Target = &Target{Address: long} }, "over its limits"},
		{"rdp without a request", func(h *StreamHeader) { h.RDP = &RDPRequest{} }, "over its limits"},
		{"long rdp request", func(h *StreamHeader) { h.RDP = &RDPRequest{Negotiation: make([]byte, MaxNegotiation+1)} }, "over its limits"},
		{"long clipboard", func(h *StreamHeader) { h.RDP = &RDPRequest{Negotiation: []byte{3}, Clipboard: long} }, "over its limits"},
	})
	checkLimits(t, func() *StreamReply { return &StreamReply{Version: 1} }, []change[StreamReply]{
		{"version 0", func(r *StreamReply) { r.Version = 0 }, "another version"},
		{"long message", func(r *StreamReply) { r.Message = longer }, "over its limits"},
		{"long address", func(r *StreamReply) { r.Address = long }, "over its limits"},
		{"long confirm", func(r *StreamReply) { r.RDP = &RDPReply{Confirm: make([]byte, MaxNegotiation+1)} }, "over its limits"},
		{"long certificates", func(r *StreamReply) { r.RDP = &RDPReply{Certificates: [][]byte{make([]byte, MaxCertificates), {0}}} }, "over its limits"},
		{"long key", func(r *StreamReply) { r.Key = []byte(longer) }, "over its limits"},
	})
	checkLimits(t, func() *Accepted { return &Accepted{Version: 1, ID: "x"} }, []change[Accepted]{
		{"version 0", func(a *Accepted) { a.Version = 0 }, "another version"},
		{"no id", func(a *Accepted) { a.ID = "" }, "over its limits"},
		{"long remote", func(a *Accepted) { a.Remote = long }, "over its limits"},
	})
	checkLimits(t, func() *SessionOpen { return &SessionOpen{Version: 1} }, []change[SessionOpen]{
		{"version 0", func(o *SessionOpen) { o.Version = 0 }, "another version"},
		{"many arguments", func(o *SessionOpen) { o.Args = make([]string, 4097) }, "over its limits"},
		{"long terminal", func(o *SessionOpen) { o.Term = long }, "over its limits"},
		{"long subsystem", func(o *SessionOpen) { o.Subsystem = long }, "over its limits"},
		{"long cookie", func(o *SessionOpen) { o.X11 = &X11{Cookie: []byte(long)} }, "over its limits"},
	})
}

func TestAttachLimits(t *testing.T) {
	checkLimits(t, fullAttach, []change[Attach]{
		{"version 0", func(a *Attach) { a.Version = 0 }, "another version"},
		{"long name", func(a *Attach) { a.Name = long }, "over its limits"},
		{"long subsystem", func(a *Attach) { a.Subsystem = long }, "over its limits"},
		{"session of another kind", func(a *Attach) { a.Session = "env" + a.Session[3:] }, "names no session"},
		{"short client", func(a *Attach) { a.Client = a.Client[:23] }, "names no session, client"},
		{"nobody", func(a *Attach) { a.User = "" }, "or user"},
		{"no op", func(a *Attach) { a.Op = "" }, "unknown"},
		{"unknown mode", func(a *Attach) { a.Mode = "root" }, "unknown"},
		{"unknown share", func(a *Attach) { a.Share = "all" }, "unknown"},
		{"for ever", func(a *Attach) { a.Keep = MaxKeep + 1 }, "at most"},
		{"more bytes than there are", func(a *Attach) { a.Received = 1 << 63 }, "over its limits"},
	})
	checkLimits(t, func() *SessionQuery { return &SessionQuery{Version: 1, User: "usr_x"} }, []change[SessionQuery]{
		{"nobody", func(q *SessionQuery) { q.User = "" }, "over its limits"},
	})
	checkLimits(t, func() *SessionList { return &SessionList{Version: 1, Sessions: []LiveSession{{}}} }, []change[SessionList]{
		{"version 0", func(l *SessionList) { l.Version = 0 }, "another version"},
		{"too many", func(l *SessionList) { l.Sessions = repeat(1025, LiveSession{}) }, "over its limits"},
		{"long program", func(l *SessionList) { l.Sessions[0].Program = long }, "over its limits"},
	})
}

func TestEnrollLimits(t *testing.T) {
	for name, do := range map[string]func(*Enroll){
		"no token":     func(e *Enroll) { e.Token = "" },
		"long token":   func(e *Enroll) { e.Token = long },
		"short key":    func(e *Enroll) { e.PublicKey = e.PublicKey[:31] },
		"no proof":     func(e *Enroll) { e.Proof = nil },
		"long name":    func(e *Enroll) { e.Name = long },
		"bad hardware": func(e *Enroll) { e.Inventory.GPUs[0].PowerLimit = nan },
	} {
		doc := fullEnroll()
		if err := doc.Validate(); err != nil {
			t.Fatal(err)
		}
		do(doc)
		if err := doc.Validate(); err == nil {
			t.Errorf("%s is valid", name)
		}
	}
}
