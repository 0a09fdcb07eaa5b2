package host

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/remotegpu/remotegpu/protocol"
)

// TestPagesAtOnce: many who list at once get each the page that they asked for,
// with all that was done before they asked.
func TestPagesAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for i := range 30 {
		_, err := w.pool.Exec(t.Context(), `with h as (insert into hosts (id, name, public_key, state, hostname, labels)
				values ($1, $1, $1::text::bytea, 'active', 'node', jsonb_build_object('n', $2::text)) returning id)
			insert into gpus (uuid, host_id, index, name, memory) select 'GPU-' || id, id, 0, case when $3 then 'NVIDIA A100' else 'NVIDIA H100' end, 1 from h`,
			fmt.Sprintf("h%02d", i), fmt.Sprint(i%3), i%10 == 0)
		if err != nil {
			t.Fatal(err)
		}
	}
	w.exec("select pg_notify($1, id) from hosts", Changed)
	for f, want := range map[Filter]string{
		{Limit: 2}: "h00 h01", {After: "h27"}: "h28 h29", {Label: "n=2", Limit: 3}: "h02 h05 h08", {Search: "a100"}: "h00 h10 h20", {Search: "H29"}: "h29",
		{Search: "h100", Limit: 2}: "h01 h02", {Search: "nowhere"}: "", {Search: "NODE", Label: "n=0", After: "h20", Status: "offline"}: "h21 h24 h27", {Status: "online"}: "",
	} {
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				got := ""
				for i, h := range w.list(f) {
					if i > 0 {
						got += " "
					}
					if got += h.Name; len(h.GPUs) != 1 || h.GPUs[0].Host != h.ID {
						t.Errorf("%s has %v", h.Name, h.GPUs)
					}
				}
				if got != want {
					t.Errorf("%+v gives %q, want %q", f, got, want)
				}
			})
		}
		defer all.Wait()
	}
	for i := range 20 { // beside those: what was told is seen at once
		name := fmt.Sprint("renamed-", i)
		w.exec("with h as (update hosts set hostname = $1 where name = 'h07' returning id) select pg_notify($2, id) from h", name, Changed)
		if page := w.list(Filter{After: "h06", Limit: 1}); page[0].Hostname != name {
			t.Errorf("%+v; want %s", page, name)
		}
	}
}

// TestListFollows: what modules do with hosts is in the next list, and what
// nobody tells of within seconds.
func TestListFollows(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := w.join("beta", "GPU-1", "GPU-2")
	want := func(what string, f Filter, ok func(all []Host) bool) {
		t.Helper()
		if all := w.list(f); !ok(all) {
			t.Errorf("%s: %+v", what, all)
		}
	}
	one := func(ok func(h Host) bool) func([]Host) bool {
		return func(all []Host) bool { return len(all) == 1 && ok(all[0]) }
	}
	names := func(names ...string) func([]Host) bool {
		return func(all []Host) bool {
			return slices.EqualFunc(all, names, func(h Host, name string) bool { return h.Name == name })
		}
	}
	want("a host joined", Filter{}, one(func(h Host) bool { return h.Status == "offline" && len(h.GPUs) == 2 }))
	if err := w.arrive(t.Context(), m.id, "birth", 1); err != nil {
		t.Fatal(err)
	}
	want("it came", Filter{Status: "online"}, one(func(h Host) bool { return h.Health == "healthy" }))
	labels, name := map[string]string{"rack": "7"}, "zeta"
	if _, err := w.Update(t.Context(), admin, "beta", Change{Name: &name, Labels: &labels}); err != nil {
		t.Fatal(err)
	}
	want("it has another name", Filter{Label: "rack=7"}, names("zeta"))
	want("a label of any value", Filter{Label: "rack"}, names("zeta"))
	want("its old name", Filter{Search: "beta", After: "y"}, names("zeta")) // it is the hostname still
	w.join("gamma")
	want("another joined", Filter{}, names("gamma", "zeta"))
	w.exec(`with a as (insert into host_allocations (workload, workspace_id, host_id, milli_cpu, memory, disk) values ('env_1', 'ws', $1, 1, 1, 1))
		insert into gpu_allocations (gpu, host_id, workload) values ('GPU-2', $1, 'env_1')`, m.id)
	w.exec("select pg_notify($1, $2)", capacityChanged, m.id+" env_1")
	want("a GPU was taken", Filter{After: "h"}, one(func(h Host) bool { return h.GPUs[1].Environment == "env_1" && h.GPUs[1].Status == "allocated" }))
	if _, err := w.Move(t.Context(), admin, "gamma", "retire"); err != nil {
		t.Fatal(err)
	}
	want("one has retired", Filter{}, names("zeta"))
	if err := w.Hello(t.Context(), m.id, protocol.Hello{Epoch: 1, Inventory: inventory("other", "GPU-1")}); err != nil {
		t.Fatal(err)
	}
	want("a GPU has gone", Filter{Search: "OTHER"}, one(func(h Host) bool { return h.Health == "degraded" }))
	if err := w.report(m.id, protocol.Status{Epoch: 1, Usage: protocol.Usage{CPUPercent: 12}}); err != nil {
		t.Fatal(err)
	}
	w.exec("update hosts set os = 'plan9'")
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		h := w.list(Filter{})[0]
		if h.CPUPercent == 12 && h.OS == "plan9" {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("never seen: %+v", h)
		}
	}
	shown, err := json.Marshal(w.list(Filter{})[0])
	if err != nil {
		t.Fatal(err)
	}
	if h, err := json.Marshal(w.get("zeta")); err != nil || !bytes.Equal(h, shown) {
		t.Errorf("list and show differ:\n%s\n%s, %v", shown, h, err)
	}
}

// TestReadAhead: what was told is read though nobody asks.
func TestReadAhead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, name := range []string{"alpha", "beta"} {
		w.join(name, "GPU-of-"+name)
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if page := bytes.Join(w.roster.page(Filter{Search: name}), nil); bytes.Contains(page, []byte("GPU-of-"+name)) {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("%s was not read", name)
			}
		}
	}
}
