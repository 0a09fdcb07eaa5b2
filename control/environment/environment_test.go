package environment

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/pgtest"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// world is a workspace "lab", its member, and a way to play hosts.
type world struct {
	*Service
	t     testing.TB
	pool  *pg.Pool
	sched *scheduler.Service
	user  auth.Caller
	other auth.Caller // a member of "other"
	seq   uint64
}

func newWorld(t testing.TB) *world {
	t.Helper()
	pool := pgtest.New(t)
	ws := workspace.New(pool)
	w := &world{t: t, pool: pool, sched: scheduler.New(pool, slog.New(slog.DiscardHandler))}
	w.exec("insert into users (id, email, name) values ('usr_a', 'a@example.org', 'A')")
	for _, name := range []string{"lab", "other"} {
		made, err := ws.Create(t.Context(), auth.System("test"), name, "usr_a")
		if err != nil {
			t.Fatal(err)
		}
		if name == "other" {
			w.other = auth.Caller{Kind: auth.KindUser, ID: "usr_a", Name: "a@example.org", Roles: map[string]auth.Role{made.ID: auth.Member}}
		}
		if name == "lab" {
			w.user = auth.Caller{Kind: auth.KindUser, ID: "usr_a", Name: "a@example.org", Roles: map[string]auth.Role{made.ID: auth.Member}}
		}
	}
	w.Service = New(pool, Config{Resolve: ws.Resolve, Scheduler: w.sched, Registry: "gpu.example.org:8443"}, slog.New(slog.DiscardHandler))
	return w
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// host adds an online host with GPUs of 80 GiB, 64 cores and 256 GiB.
func (w *world) host(name string, gpus int) string {
	w.t.Helper()
	id := protocol.NewID(protocol.PrefixHost)
	w.exec(`insert into hosts (id, name, public_key, state, online, os, arch, cpus, memory, disk) values
		($1, $2, $3, 'active', true, 'linux', 'amd64', 64, 256::bigint << 30, 1000::bigint << 30)`, id, name, []byte(id))
	for i := range gpus {
		w.exec("insert into gpus (uuid, host_id, index, name, memory) values ($1, $2, $3, 'NVIDIA H100 80GB HBM3', 80::bigint << 30)",
			fmt.Sprintf("GPU-%s-%d", name, i), id, i)
	}
	return id
}

// compile plays dispatch: the host's document is made.
func (w *world) compile(host string) (generation uint64, list []protocol.Workload) {
	w.t.Helper()
	err := w.pool.QueryRow(w.t.Context(), `update desired_documents set generation = generation + 1, dirty = false
		where host_id = $1 returning generation`, host).Scan(&generation)
	if err != nil {
		w.t.Fatal(err)
	}
	lists, err := w.Workloads(w.t.Context(), w.pool, []string{host})
	if err != nil {
		w.t.Fatal(err)
	}
	return generation, lists[host]
}

// obey plays a host that has done all that its document says.
func (w *world) obey(host string, events ...protocol.Event) []protocol.Workload {
	w.t.Helper()
	generation, list := w.compile(host)
	var all []protocol.WorkloadStatus
	for _, l := range list {
		st := protocol.WorkloadStatus{ID: l.ID, Phase: l.Want}
		if l.Want == protocol.WantRunning {
			st.Revision, st.Pid, st.StartedAt = l.Revision, 4711, 1
		}
		all = append(all, st)
	}
	w.report(host, generation, all, events...)
	return list
}

func (w *world) report(host string, generation uint64, all []protocol.WorkloadStatus, events ...protocol.Event) {
	w.t.Helper()
	w.seq++
	err := w.said(w.t.Context(), host, protocol.Status{
		Version: 1, Epoch: 1, Seq: w.seq, Observed: generation, Applied: generation, Workloads: all, Events: events})
	if err != nil {
		w.t.Fatal(err)
	}
}

// said is what dispatch does with one status.
func (w *world) said(ctx context.Context, host string, st protocol.Status) error {
	return pg.InTx(ctx, w.pool, func(tx pg.Tx) error {
		return w.Report(ctx, tx, map[string]*protocol.Status{host: &st})
	})
}

func (w *world) create(spec Spec) Environment {
	w.t.Helper()
	e, err := w.Create(w.t.Context(), w.user, "lab", spec)
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) must(e Environment, err error) Environment {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
	return e
}

func (w *world) get(name string) Environment {
	w.t.Helper()
	return w.must(w.Get(w.t.Context(), w.user, "lab", name))
}

func (w *world) wantPhase(name, phase, message string) Environment {
	w.t.Helper()
	e := w.get(name)
	if e.Phase != phase || !strings.Contains(e.Message, message) {
		w.t.Errorf("%s is %s (%q), want %s (%q)", name, e.Phase, e.Message, phase, message)
	}
	return e
}

func (w *world) reasons(name string) []string {
	w.t.Helper()
	all, err := w.Events(w.t.Context(), w.user, "lab", name, 0, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	var words []string
	for _, e := range all {
		words = append(words, e.Reason)
	}
	return words
}

func wantError(t testing.TB, err error, kind errs.Kind, text string) {
	t.Helper()
	if err == nil || errs.KindOf(err) != kind || !strings.Contains(errs.Text(err), text) {
		t.Errorf("got %v (kind %d, %q), want kind %d with %q", err, errs.KindOf(err), errs.Text(err), kind, text)
	}
}

func TestLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	h := w.host("gpu-1", 2)
	e := w.create(Spec{Name: "box", Resources: Resources{GPUs: 2, Memory: 1 << 30}})
	if e.Phase != protocol.PhasePending || e.HostName != "gpu-1" || len(e.GPUs) != 2 || e.Image != "gpu.example.org:8443/library/starter:latest" {
		t.Errorf("created: %+v", e)
	}
	list := w.obey(h, protocol.Event{Seq: 5, At: 1, Severity: "normal", Reason: "Started", Message: "runs", Workload: e.ID})
	if len(list) != 1 || list[0].Want != protocol.WantRunning || !list[0].PullAuth || len(list[0].GPUs) != 2 || len(list[0].Mounts) != 2 {
		t.Errorf("workloads: %+v", list)
	}
	if e = w.wantPhase("box", protocol.PhaseRunning, ""); e.Pid != 4711 {
		t.Errorf("pid %d", e.Pid)
	}
	w.must(w.Stop(ctx, w.user, "lab", "box"))
	if e = w.wantPhase("box", protocol.PhaseStopping, ""); len(e.GPUs) != 2 {
		t.Errorf("it gives its GPUs back before its host says that it has ended: %v", e.GPUs)
	}
	w.obey(h)
	if e = w.wantPhase("box", protocol.PhaseStopped, ""); len(e.GPUs) != 0 || e.Host != h {
		t.Errorf("stopped: GPUs %v, host %q", e.GPUs, e.Host)
	}
	w.must(w.Start(ctx, w.user, "lab", "box"))
	w.obey(h)
	w.wantPhase("box", protocol.PhaseRunning, "")
	if err := w.Delete(ctx, w.user, "lab", "box"); err != nil {
		t.Fatal(err)
	}
	w.wantPhase("box", PhaseDeleting, "")
	w.obey(h)
	_, err := w.Get(ctx, w.user, "lab", "box")
	wantError(t, err, errs.NotFound, "no environment box")
	var left int
	if err := w.pool.QueryRow(ctx, "select (select count(*) from host_allocations) + (select count(*) from gpu_allocations)").Scan(&left); err != nil || left != 0 {
		t.Errorf("%d allocations left, %v", left, err)
	}
}

func TestOldNewsChangesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	h := w.host("gpu-1", 1)
	e := w.create(Spec{Name: "box", Image: "no-such:1"})
	old, _ := w.compile(h)
	failed := []protocol.WorkloadStatus{{ID: e.ID, Phase: protocol.PhaseFailed, Message: "image not found"}}
	w.report(h, old, failed)
	w.wantPhase("box", protocol.PhaseFailed, "image not found")
	w.must(w.Restart(ctx, w.user, "lab", "box"))
	w.report(h, old, failed)
	w.wantPhase("box", protocol.PhasePending, "waits for host")
	generation, _ := w.compile(h)
	running := []protocol.WorkloadStatus{{ID: e.ID, Phase: protocol.PhaseRunning, Revision: 2}}
	w.report(h, generation, running)
	w.wantPhase("box", protocol.PhaseRunning, "")
	for _, st := range []protocol.Status{{Epoch: 1, Seq: w.seq}, {Epoch: 1, Seq: w.seq - 1}, {Epoch: 0, Seq: w.seq + 100}} {
		st.Observed, st.Applied, st.Workloads = generation, generation, failed
		if err := w.said(ctx, h, st); err != nil {
			t.Fatal(err)
		}
		w.wantPhase("box", protocol.PhaseRunning, "")
	}
}

func TestWaitsAndIsServed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	h := w.host("gpu-1", 4)
	first := w.create(Spec{Name: "first", Resources: Resources{GPUs: 3}})
	w.create(Spec{Name: "second", Resources: Resources{GPUs: 2}})
	w.wantPhase("second", protocol.PhasePending, "Waiting for 2 GPUs: host gpu-1: 1 of 4 GPUs free, 2 asked.")
	if _, err := w.Create(ctx, w.user, "lab", Spec{Name: "third", Resources: Resources{GPUs: 5, GPUModel: "h100"}}); true {
		wantError(t, err, errs.Invalid, "No host has 5 × h100: the most on one host is 4; ask for at most 4")
	}
	if err := w.Delete(ctx, w.user, "lab", "first"); err != nil {
		t.Fatal(err)
	}
	w.obey(h)
	if err := w.sched.Turn(ctx); err != nil {
		t.Fatal(err)
	}
	if e := w.wantPhase("second", protocol.PhasePending, "waits for host gpu-1"); len(e.GPUs) != 2 || slices.Equal(e.GPUs, first.GPUs) {
		t.Errorf("second has %v", e.GPUs)
	}
	if got := w.reasons("second"); !slices.Equal(got, []string{"Created", "Waiting", "Scheduled"}) {
		t.Errorf("events %v", got)
	}
	history, err := w.Placements(ctx, w.user, "lab", "second")
	if err != nil || len(history) != 2 || history[0].Outcome != "placed" || history[1].Rejected[0].Reason != "host gpu-1: 1 of 4 GPUs free, 2 asked" {
		t.Errorf("history %+v, %v", history, err)
	}
}

// manyVariables are few bytes, but more than a host decodes: it would refuse its
// whole document.
func manyVariables() map[string]string {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	all := map[string]string{}
	for i := range 5000 {
		all[string([]byte{letters[i%52], letters[i/52%52], letters[i/52/52]})] = ""
	}
	return all
}

func TestBadInput(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host("gpu-1", 1)
	w.create(Spec{Name: "taken"})
	tests := []struct {
		name string
		spec Spec
		kind errs.Kind
		text string
	}{
		{"name", Spec{Name: "A b"}, errs.Invalid, "no name for an environment"},
		{"long name", Spec{Name: strings.Repeat("a", 41)}, errs.Invalid, "no name for an environment"},
		{"name taken", Spec{Name: "taken"}, errs.Conflict, "choose another name"},
		{"image", Spec{Name: "x", Image: "Not An Image"}, errs.Invalid, "or gpu.example.org:8443/"},
		{"no right to pull", Spec{Name: "x", Image: "{control}/other/secret:1"}, errs.Denied, "no right to pull gpu.example.org:8443/other/secret:1: "},
		{"no right by address", Spec{Name: "x", Image: "gpu.example.org:8443/other/secret:1"}, errs.Denied, "and gpu.example.org:8443/library/…"},
		{"no workspace", Spec{Name: "x", Image: "{control}/secret"}, errs.Invalid, "lacks the workspace"},
		{"another domain inside", Spec{Name: "x", Image: "{control}/../x"}, errs.Invalid, "is no image"},
		{"restart", Spec{Name: "x", Restart: "sometimes"}, errs.Invalid, "no restart policy"},
		{"variable", Spec{Name: "x", Env: map[string]string{"A-B": "1"}}, errs.Invalid, "no name for a variable"},
		{"large command", Spec{Name: "x", Command: []string{strings.Repeat("a", maxSpecBytes+1)}}, errs.Invalid, "over the limit"},
		{"many variables", Spec{Name: "x", Env: manyVariables()}, errs.Invalid, "5000 variables"},
		{"GPUs", Spec{Name: "x", Resources: Resources{GPUs: 2}}, errs.Invalid, "ask for at most 1"},
		{"model", Spec{Name: "x", Resources: Resources{GPUs: 1, GPUModel: "B200"}}, errs.Invalid, "choose another model"},
		{"memory", Spec{Name: "x", Resources: Resources{Memory: 1 << 50}}, errs.Invalid, "ask for less"},
		{"model without count", Spec{Name: "x", Resources: Resources{GPUModel: "H100"}}, errs.Invalid, "--gpus 1"},
		{"host", Spec{Name: "x", Affinity: scheduler.Affinity{Host: "nowhere"}}, errs.Invalid, "There is no host nowhere"},
		{"mount", Spec{Name: "x", Mounts: []Mount{{"/proc/x", "v"}}}, errs.Invalid, "Nothing can be mounted"},
		{"relative mount", Spec{Name: "x", Mounts: []Mount{{"data", "v"}}}, errs.Invalid, "plain absolute path"},
		{"volume", Spec{Name: "x", Mounts: []Mount{{"/data", "../v"}}}, errs.Invalid, "no name for a volume"},
		{"user", Spec{Name: "x", User: "a b"}, errs.Invalid, "is no user"},
		{"priority", Spec{Name: "x", Priority: 1}, errs.Denied, "Only an admin"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := w.Create(t.Context(), w.user, "lab", tt.spec)
			wantError(t, err, tt.kind, tt.text)
		})
	}
	all, err := w.List(t.Context(), w.user, "lab")
	if err != nil || len(all) != 1 {
		t.Errorf("%d environments, %v: what is refused must leave nothing", len(all), err)
	}
}

func TestHostLost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	h := w.host("gpu-1", 2)
	w.create(Spec{Name: "box", Resources: Resources{GPUs: 2}})
	w.create(Spec{Name: "doomed"})
	w.obey(h)
	w.exec("update hosts set online = false where id = $1", h)
	if e := w.wantPhase("box", PhaseUnreachable, "host gpu-1 is offline"); len(e.GPUs) != 2 {
		t.Errorf("an offline host keeps what it has, got %v", e.GPUs)
	}
	w.create(Spec{Name: "next", Resources: Resources{GPUs: 1}})
	w.wantPhase("next", protocol.PhasePending, "host gpu-1: is offline")
	if err := w.Delete(ctx, w.user, "lab", "doomed"); err != nil {
		t.Fatal(err)
	}
	w.wantPhase("doomed", PhaseDeleting, "when the host is back")
	w.exec("update hosts set state = 'retired' where id = $1", h)
	if err := w.followHosts(ctx, []string{h}); err != nil {
		t.Fatal(err)
	}
	e := w.wantPhase("box", protocol.PhaseFailed, "gpu-1 was retired")
	if len(e.GPUs) != 0 {
		t.Errorf("still has %v", e.GPUs)
	}
	// At a broker beside the server it stays connected: nobody believes it any more.
	w.report(h, e.Generation+1, []protocol.WorkloadStatus{{ID: e.ID, Revision: 1, Phase: protocol.PhaseRunning, Pid: 1}},
		protocol.Event{Seq: 1000, At: 1, Reason: "Lie", Message: "it goes on", Workload: e.ID})
	w.wantPhase("box", protocol.PhaseFailed, "gpu-1 was retired")
	var lies int
	if err := w.pool.QueryRow(ctx, "select count(*) from environment_events where reason = 'Lie'").Scan(&lies); err != nil || lies > 0 {
		t.Errorf("%d of its events are kept, %v", lies, err)
	}
	_, err := w.Get(ctx, w.user, "lab", "doomed")
	wantError(t, err, errs.NotFound, "")
	w.host("gpu-2", 2)
	e = w.must(w.Start(ctx, w.user, "lab", "box"))
	if e.HostName != "gpu-2" || len(e.GPUs) != 2 {
		t.Errorf("started anew on %q with %v", e.HostName, e.GPUs)
	}
}

func TestDrainedHostRunsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	h := w.host("gpu-1", 2)
	w.create(Spec{Name: "box", Resources: Resources{GPUs: 2}})
	w.obey(h)
	w.exec("update hosts set state = 'draining' where id = $1", h)
	for range 2 {
		if err := w.followHosts(ctx, []string{h}); err != nil {
			t.Fatal(err)
		}
	}
	if list := w.obey(h); list[0].Want != protocol.WantStopped {
		t.Errorf("a drained host shall have %+v", list[0])
	}
	w.wantPhase("box", protocol.PhasePending, "drained")
	w.exec("update hosts set state = 'active' where id = $1", h)
	if err := w.followHosts(ctx, []string{h}); err != nil {
		t.Fatal(err)
	}
	var dirty bool
	if err := w.pool.QueryRow(ctx, "select dirty from desired_documents").Scan(&dirty); err != nil || !dirty {
		t.Errorf("dirty %v, %v: the host is not told that it is active again", dirty, err)
	}
	w.obey(h)
	w.wantPhase("box", protocol.PhaseRunning, "")
}

// TestStartWaitsForItsOwnHost: files bind an environment to its host.
func TestStartWaitsForItsOwnHost(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ctx := t.Context()
	h := w.host("gpu-1", 2)
	w.create(Spec{Name: "box", Resources: Resources{GPUs: 2}})
	w.must(w.Stop(ctx, w.user, "lab", "box"))
	w.obey(h)
	w.host("gpu-2", 2)
	w.create(Spec{Name: "other", Resources: Resources{GPUs: 2}, Affinity: scheduler.Affinity{Host: "gpu-1"}})
	w.must(w.Start(ctx, w.user, "lab", "box"))
	w.wantPhase("box", protocol.PhasePending, "host gpu-1: 0 of 2 GPUs free, 2 asked")
	if list := w.obey(h); len(list) != 2 {
		t.Errorf("the host must keep the files of what waits: %+v", list)
	}
	w.wantPhase("box", protocol.PhasePending, "0 of 2 GPUs free")
	if err := w.Delete(ctx, w.user, "lab", "other"); err != nil {
		t.Fatal(err)
	}
	w.obey(h)
	if err := w.sched.Turn(ctx); err != nil {
		t.Fatal(err)
	}
	w.obey(h)
	if e := w.wantPhase("box", protocol.PhaseRunning, ""); e.Host != h {
		t.Errorf("it moved to %s", e.Host)
	}
}

func TestEventsAreFollowed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	go w.Run(t.Context())
	h := w.host("gpu-1", 1)
	e := w.create(Spec{Name: "box"})
	all, err := w.Events(t.Context(), w.user, "lab", "box", 0, 0)
	if err != nil || len(all) != 2 {
		t.Fatalf("%v, %v", all, err)
	}
	got := make(chan []Event)
	go func() {
		more, err := w.Events(t.Context(), w.user, "lab", "box", all[1].ID, MaxWait)
		if err != nil {
			t.Error(err)
		}
		got <- more
	}()
	event := protocol.Event{Seq: 9, At: time.Now().UnixMilli(), Severity: "warning", Reason: "PullFailed", Message: "no such image", Workload: e.ID}
	w.obey(h, event)
	if more := <-got; len(more) != 1 || more[0].Reason != "PullFailed" {
		t.Errorf("got %+v", more)
	}
	w.obey(h, event, protocol.Event{Seq: 10, Severity: "normal", Reason: "Pulled", Workload: e.ID})
	if words := w.reasons("box"); !slices.Equal(words, []string{"Created", "Scheduled", "PullFailed", "Pulled"}) {
		t.Errorf("events %v: each once", words)
	}
}

// TestAPhaseIsAwaited: who waits while a phase lasts hears of its end at once,
// and one who asks too late does not wait.
func TestAPhaseIsAwaited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	go w.Run(t.Context())
	w.listening()
	h := w.host("gpu-1", 1)
	e := w.create(Spec{Name: "box"})
	got := make(chan Environment)
	go func() {
		now, err := e, error(nil)
		for err == nil && now.Phase == e.Phase { // that it was made may be told only now
			now, err = w.await(t.Context(), w.user, &showInput{Workspace: "lab", Environment: "box", While: e.Phase, Wait: 30})
		}
		if err != nil {
			t.Error(err)
		}
		got <- now
	}()
	start := time.Now()
	w.obey(h)
	if e := <-got; e.Phase != protocol.PhaseRunning {
		t.Errorf("awaited: %s", e.Phase)
	}
	late := &showInput{Workspace: "lab", Environment: "box", While: e.Phase, Wait: 30}
	if e := w.must(w.await(t.Context(), w.user, late)); e.Phase != protocol.PhaseRunning || time.Since(start) >= MaxWait {
		t.Errorf("%s after %v", e.Phase, time.Since(start))
	}
}

func TestFind(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.host("gpu-1", 1)
	e := w.create(Spec{Name: "box", Env: map[string]string{"SECRET": "x"}})
	if _, err := w.Create(t.Context(), auth.System("test"), "other", Spec{Name: "box"}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"box", "box.lab", e.ID} {
		if got, err := w.Find(t.Context(), w.user, name); err != nil || got.ID != e.ID {
			t.Errorf("Find(%s) = %s, %v", name, got.ID, err)
		}
	}
	for _, name := range []string{"box.other", "box.nowhere", "nothing", "", ".", "box."} {
		if got, err := w.Find(t.Context(), w.user, name); name != "box." && err == nil {
			t.Errorf("Find(%s) = %+v", name, got)
		}
	}
	_, err := w.Find(t.Context(), auth.System("test"), "box")
	wantError(t, err, errs.Conflict, "box.WORKSPACE")
	viewer := w.user
	viewer.Roles = map[string]auth.Role{e.Workspace: auth.Viewer}
	if got := w.must(w.Find(t.Context(), viewer, "box")); len(got.Env) != 0 {
		t.Errorf("a viewer sees variables: %v", got.Env)
	}
	_, err = w.Stop(t.Context(), viewer, "lab", "box")
	wantError(t, err, errs.Denied, "member")
}
