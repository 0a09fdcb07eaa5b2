package host

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// TestStatesAndVerbs is the whole square; what is not in it is illegal.
func TestStatesAndVerbs(t *testing.T) {
	t.Parallel()
	legal := map[State]map[string]State{
		Pending:     {"approve": Active, "retire": Retired},
		Active:      {"cordon": Cordoned, "drain": Draining, "maintenance": Maintenance, "retire": Retired},
		Cordoned:    {"uncordon": Active, "drain": Draining, "maintenance": Maintenance, "activate": Active, "retire": Retired},
		Draining:    {"maintenance": Maintenance, "activate": Active, "retire": Retired},
		Maintenance: {"activate": Active, "retire": Retired},
		Retired:     {},
	}
	w := newWorld(t)
	m := w.join("box")
	dropped := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go pg.Listen(ctx, w.pool, Dropped, func(id string) { dropped <- id })
	<-dropped // it listens
	for state, to := range legal {
		for verb := range verbs {
			w.exec("update hosts set state = $2 where id = $1", m.id, state)
			h, err := w.Move(t.Context(), admin, "box", verb)
			if want, ok := to[verb]; ok {
				if err != nil || h.State != want {
					t.Errorf("%s of %s: %s, %v, want %s", verb, state, h.State, err, want)
				}
				continue
			}
			wantError(t, err, errs.Conflict, "This host is "+string(state))
			if h := w.get("box"); h.State != state {
				t.Errorf("%s of %s left %s", verb, state, h.State)
			}
		}
	}
	for range 5 { // once per retirement
		if id := <-dropped; id != m.id {
			t.Errorf("connections of %s end", id)
		}
	}
	if len(dropped) > 0 {
		t.Errorf("connections end %d times more", len(dropped))
	}
	_, err := w.Move(t.Context(), admin, "box", "explode")
	wantError(t, err, errs.Invalid, "cannot explode")
	_, err = w.Move(t.Context(), admin, "none", "cordon")
	wantError(t, err, errs.NotFound, "There is no host none")
}

// TestPresence: each step is what arrives, and whether the host is online then.
func TestPresence(t *testing.T) {
	t.Parallel()
	type step struct {
		what   string // birth, death, hello or status
		epoch  uint64
		online bool
	}
	for name, steps := range map[string][]step{
		"comes and goes":             {{"birth", 1, true}, {"death", 1, false}, {"birth", 2, true}, {"death", 2, false}},
		"late will":                  {{"birth", 1, true}, {"birth", 2, true}, {"death", 1, true}, {"death", 2, false}},
		"takeover, hello first":      {{"birth", 1, true}, {"hello", 2, true}, {"death", 1, true}, {"birth", 2, true}},
		"old birth after a new one":  {{"birth", 5, true}, {"birth", 4, true}, {"death", 4, true}, {"death", 5, false}},
		"status of the dead":         {{"birth", 1, true}, {"death", 1, false}, {"status", 1, false}, {"hello", 1, false}},
		"will twice":                 {{"birth", 1, true}, {"death", 1, false}, {"birth", 2, true}, {"death", 1, true}},
		"death of one never born":    {{"death", 3, false}, {"birth", 3, true}},
		"will of a later connection": {{"birth", 3, true}, {"death", 4, true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := w.join("box")
			for i, s := range steps {
				if err := w.arrive(t.Context(), m.id, s.what, s.epoch); err != nil {
					t.Fatal(err)
				}
				if h := w.get("box"); (h.Status == "online") != s.online {
					t.Fatalf("step %d (%s of %d): %s", i, s.what, s.epoch, h.Status)
				}
			}
		})
	}
}

func (w *world) arrive(ctx context.Context, id, what string, epoch uint64) (err error) {
	switch what {
	case "hello":
		return w.Hello(ctx, id, protocol.Hello{Version: protocol.Version, Epoch: epoch, Inventory: inventory("box")})
	case "status":
		return w.report(id, protocol.Status{Version: protocol.Version, Epoch: epoch, Seq: 1})
	}
	return w.Presence(ctx, id, protocol.Presence{Version: protocol.Version, Epoch: epoch, Online: what == "birth"})
}

// TestSilence: a host that says nothing for a minute is offline, and comes back
// with its next word.
func TestSilence(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m, quiet := w.join("box"), w.join("quiet")
	for _, id := range []string{m.id, quiet.id} {
		if err := w.arrive(t.Context(), id, "birth", 1); err != nil {
			t.Fatal(err)
		}
	}
	w.exec("update hosts set last_seen = now() - interval '50 seconds' where id = $1", m.id)
	w.exec("update hosts set last_seen = now() - interval '61 seconds' where id = $1", quiet.id)
	changed := make(chan string, 10)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go pg.Listen(ctx, w.pool, Changed, func(id string) { changed <- id })
	<-changed // it listens
	go w.Run(ctx)
	for id := range changed {
		if id == quiet.id {
			break
		}
		t.Errorf("%s changed", id)
	}
	if a, b := w.get("box").Status, w.get("quiet").Status; a != "online" || b != "offline" {
		t.Errorf("box is %s, quiet is %s", a, b)
	}
	if err := w.arrive(t.Context(), quiet.id, "status", 1); err != nil {
		t.Fatal(err)
	}
	if h := w.get("quiet"); h.Status != "online" || h.Health != "healthy" {
		t.Errorf("after a word it is %s, %s", h.Status, h.Health)
	}
}

// TestLost: what a dead replica had is offline, but for what has come back
// elsewhere; a word from a host that was taken for lost counts.
func TestLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	stays, moved := w.join("stays"), w.join("moved")
	for _, id := range []string{stays.id, moved.id} {
		if err := w.arrive(t.Context(), id, "birth", 1); err != nil {
			t.Fatal(err)
		}
	}
	there := New(w.pool, Config{Replica: func(string) string { return "rep_there" }}, w.log)
	if err := there.Presence(t.Context(), moved.id, protocol.Presence{Version: protocol.Version, Epoch: 2, Online: true}); err != nil {
		t.Fatal(err)
	}
	if err := w.Lost(t.Context(), "rep_here"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"stays": "offline", "moved": "online"} {
		if h := w.get(name); h.Status != want {
			t.Errorf("%s is %s", name, h.Status)
		}
		if online, err := w.Online(t.Context(), w.get(name).ID); err != nil || online != (want == "online") {
			t.Errorf("%s online: %v, %v", name, online, err)
		}
	}
	if err := w.arrive(t.Context(), stays.id, "status", 1); err != nil {
		t.Fatal(err)
	}
	if h := w.get("stays"); h.Status != "online" {
		t.Errorf("after a word it is %s", h.Status)
	}
	if online, err := w.Online(t.Context(), "host_none"); online || err != nil {
		t.Errorf("a host that is none: %v, %v", online, err)
	}
}

// TestEventsOnce: an agent repeats events until they are acknowledged.
func TestEventsOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.join("box")
	at := time.Now().UnixMilli()
	normal := protocol.Event{Seq: 7, At: at, Severity: protocol.SeverityNormal, Reason: "Pulled", Message: "Image {control}/lab/a:1 is here."}
	attack := protocol.Event{Seq: 8, At: at, Severity: protocol.SeveritySecurity, Reason: "DesiredRefused", Message: "Forged."}
	for seq, list := range [][]protocol.Event{{normal}, {normal, attack}, {normal, attack}, {attack}, {}} {
		st := protocol.Status{Version: protocol.Version, Epoch: 1, Seq: uint64(seq), Events: list}
		if err := w.report(m.id, st); err != nil {
			t.Error(err)
		}
	}
	all, err := w.Events(t.Context(), admin, "box", 0)
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]int{}
	for _, e := range all {
		reasons[e.Reason]++
		if e.Reason == "Pulled" && e.Message != "Image gpu.example.org:443/lab/a:1 is here." {
			t.Errorf("people read %q", e.Message)
		}
	}
	if reasons["Pulled"] != 1 || reasons["DesiredRefused"] != 1 || reasons["Joined"] != 1 {
		t.Errorf("events %v", reasons)
	}
	if n := w.count("select count(*) from audit_entries where action = $1 and detail ->> 'reason' = 'DesiredRefused'", string(auth.HostService)); n != 1 {
		t.Errorf("%d audit entries of the attack, want 1", n)
	}
	if later, err := w.Events(t.Context(), admin, "box", all[len(all)-1].ID); err != nil || len(later) != 0 {
		t.Errorf("after the last: %v, %v", later, err)
	}
	if _, err := w.Move(t.Context(), admin, "box", "retire"); err != nil { // it may be connected to a broker beside the server still
		t.Fatal(err)
	}
	before := w.count("select count(*) from host_events") + w.count("select count(*) from audit_entries")
	attack.Seq++
	if err := w.report(m.id, protocol.Status{Version: protocol.Version, Epoch: 1, Seq: 9, Events: []protocol.Event{attack}}); err != nil {
		t.Error(err)
	}
	if n := w.count("select count(*) from host_events") + w.count("select count(*) from audit_entries") - before; n != 0 {
		t.Errorf("what a retired host says is kept: %d events and audit entries", n)
	}
}

func TestUpdateAndList(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.join("alpha", "GPU-1")
	w.join("beta")
	w.join("gone")
	if _, err := w.Move(t.Context(), admin, "gone", "retire"); err != nil {
		t.Fatal(err)
	}
	labels, taken, bad := map[string]string{"rack": "7"}, "beta", "B"
	if h, err := w.Update(t.Context(), admin, "alpha", Change{Labels: &labels}); err != nil || h.Labels["rack"] != "7" || h.Name != "alpha" {
		t.Errorf("%+v, %v", h, err)
	}
	_, err := w.Update(t.Context(), admin, "alpha", Change{Name: &taken})
	wantError(t, err, errs.Conflict, "There is a host beta already")
	_, err = w.Update(t.Context(), admin, "alpha", Change{Name: &bad})
	wantError(t, err, errs.Invalid, "is no name")
	for _, odd := range []map[string]string{{"": "x"}, {"a b": "c"}, {"a=b": "c"}, {strings.Repeat("k", 64): ""}, {"rack": "7\x1b[2J"}, {"rack": strings.Repeat("v", 129)}} {
		_, err := w.Update(t.Context(), admin, "alpha", Change{Labels: &odd})
		wantError(t, err, errs.Invalid, "label")
		_, _, err = w.CreateToken(t.Context(), admin, JoinToken{Uses: 1, Labels: odd}, time.Hour)
		wantError(t, err, errs.Invalid, "label")
	}
	for _, c := range []struct {
		f    Filter
		want []string
	}{
		{Filter{}, []string{"alpha", "beta"}},
		{Filter{Label: "rack=7"}, []string{"alpha"}},
		{Filter{Search: "h100"}, []string{"alpha"}},
		{Filter{Search: "192.0.2"}, []string{"alpha", "beta"}},
		{Filter{Status: "online"}, nil},
		{Filter{Status: "offline", After: "alpha"}, []string{"beta"}},
		{Filter{Limit: 1}, []string{"alpha"}},
		{Filter{Search: "'; drop table hosts --"}, nil},
	} {
		all := w.list(c.f)
		if len(all) != len(c.want) {
			t.Errorf("%+v: %d hosts, want %v", c.f, len(all), c.want)
			continue
		}
		for i := range all {
			if all[i].Name != c.want[i] {
				t.Errorf("%+v: %s, want %s", c.f, all[i].Name, c.want[i])
			}
		}
	}
}

// TestFault: a host that can run nothing is shown as such, with what it says, and
// as well when it can again.
func TestFault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.join("box")
	if err := w.arrive(t.Context(), m.id, "birth", 1); err != nil {
		t.Fatal(err)
	}
	changed := make(chan string, 10)
	go pg.Listen(t.Context(), w.pool, Changed, func(id string) { changed <- id })
	<-changed
	for _, c := range []struct{ fault, status, health string }{
		{"containerd does not answer", "error", "unhealthy"}, {"containerd does not answer", "error", "unhealthy"}, {"", "online", "healthy"},
	} {
		before := w.get("box").Status
		if err := w.report(m.id, protocol.Status{Epoch: 1, Fault: c.fault}); err != nil {
			t.Fatal(err)
		}
		h := w.get("box")
		if h.Status != c.status || h.Health != c.health || h.HealthReason != c.fault {
			t.Errorf("with %q: %s, %s, %q", c.fault, h.Status, h.Health, h.HealthReason)
		}
		if all := w.list(Filter{Status: c.status}); len(all) != 1 {
			t.Errorf("%d hosts are listed with %s", len(all), c.status)
		}
		if before != c.status {
			<-changed
		}
	}
	select {
	case id := <-changed:
		t.Errorf("%q was told though nothing changed", id)
	default:
	}
}

// TestMaintainGPU: a GPU in maintenance says so, and to whom it does not belong it
// does not exist.
func TestMaintainGPU(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.join("box", "GPU-1", "GPU-2")
	w.join("other", "GPU-3")
	for _, c := range []struct {
		gpu         string
		maintenance bool
		want        string
	}{{"GPU-2", true, "available maintenance"}, {"0", true, "maintenance maintenance"}, {"0", true, "maintenance maintenance"}, {"GPU-2", false, "maintenance available"}} {
		h, err := w.MaintainGPU(t.Context(), admin, "box", c.gpu, c.maintenance)
		if err != nil {
			t.Fatal(err)
		}
		if got := h.GPUs[0].Status + " " + h.GPUs[1].Status; got != c.want {
			t.Errorf("%s %v: %s, want %s", c.gpu, c.maintenance, got, c.want)
		}
	}
	if n := w.count("select count(*) from host_events where reason = 'GPUMaintenance'"); n != 3 {
		t.Errorf("%d events, want one per change", n)
	}
	for _, gpu := range []string{"GPU-3", "7", ""} {
		_, err := w.MaintainGPU(t.Context(), admin, "box", gpu, true)
		wantError(t, err, errs.NotFound, "Host box has no GPU")
	}
	_, err := w.MaintainGPU(t.Context(), auth.Caller{Kind: auth.KindUser, ID: "usr_x"}, "box", "0", true)
	wantError(t, err, errs.Denied, "")
}

// TestLostDevice: a GPU that is gone stays to be seen, and comes back.
func TestLostDevice(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.join("box", "GPU-1", "GPU-2")
	if err := w.arrive(t.Context(), m.id, "birth", 1); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		gpus   []string
		health string
		reason string
	}{
		{[]string{"GPU-1"}, "degraded", "1 GPU(s) unhealthy"},
		{nil, "degraded", "2 GPU(s) unhealthy"},
		{[]string{"GPU-2", "GPU-1"}, "healthy", ""},
	} {
		if err := w.Hello(t.Context(), m.id, protocol.Hello{Epoch: 1, Inventory: inventory("box", c.gpus...)}); err != nil {
			t.Fatal(err)
		}
		if h := w.get("box"); len(h.GPUs) != 2 || h.Health != c.health || h.HealthReason != c.reason {
			t.Errorf("with %v: %s, %q, %d GPUs", c.gpus, h.Health, h.HealthReason, len(h.GPUs))
		}
	}
}
