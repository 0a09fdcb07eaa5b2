package host

import (
	"fmt"
	"sync"
	"testing"
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
	for f, want := range map[Filter]string{
		{Limit: 2}: "h00 h01", {After: "h27"}: "h28 h29", {Label: "n=2", Limit: 3}: "h02 h05 h08", {Search: "a100"}: "h00 h10 h20", {Search: "H29"}: "h29",
		{Search: "h100", Limit: 2}: "h01 h02", {Search: "nowhere"}: "", {Search: "NODE", Label: "n=0", After: "h20", Status: "offline"}: "h21 h24 h27", {Status: "online"}: "",
	} {
		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				page, err := w.List(t.Context(), admin, f)
				got := ""
				for i, h := range page {
					if i > 0 {
						got += " "
					}
					if got += h.Name; len(h.GPUs) != 1 || h.GPUs[0].Host != h.ID {
						t.Errorf("%s has %v", h.Name, h.GPUs)
					}
				}
				if err != nil || got != want {
					t.Errorf("%+v gives %q, want %q, %v", f, got, want, err)
				}
			})
		}
		defer all.Wait()
	}
	for i := range 20 { // beside those: what is done is seen
		name := fmt.Sprint("renamed-", i)
		if _, err := w.pool.Exec(t.Context(), "update hosts set hostname = $1 where name = 'h07'", name); err != nil {
			t.Fatal(err)
		}
		if page, err := w.List(t.Context(), admin, Filter{After: "h06", Limit: 1}); err != nil || page[0].Hostname != name {
			t.Errorf("%+v, %v; want %s", page, err, name)
		}
	}
}
