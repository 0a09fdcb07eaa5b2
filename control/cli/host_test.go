package cli

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestHosts: all hosts are listed, however many pages they are; a GPU goes into
// maintenance and comes back.
func TestHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	if out, code := w.run("host", "ls", "-o", "json"); code != 0 || strings.Contains(out, "null") {
		t.Errorf("no hosts: %d %s", code, out)
	}
	db, err := pgx.Connect(t.Context(), w.database)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close(t.Context())
	const hosts = 2000 // the last page is full
	for _, sql := range []string{
		`insert into hosts (id, name, public_key, state, labels) select 'host_' || i, 'h' || lpad(i::text, 4, '0'), i::text::bytea, 'active',
			jsonb_build_object('rack', (i % 100)::text) from generate_series(1, 2000) i`,
		`insert into gpus (uuid, host_id, index, name, memory) select 'GPU-' || i, 'host_7', i, 'NVIDIA H100', 80::bigint << 30 from generate_series(0, 1) i`,
		`select pg_notify('host_changed', 'host_' || i) from generate_series(1, 2000) i`,
	} {
		if _, err := db.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		args string
		want int
	}{{"", hosts}, {"--label rack=7", hosts / 100}, {"--label rack", hosts}, {"--search h100", 1 + 10}, {"--status error", 0}} {
		var all list[hostRow]
		out, code := w.run(append(strings.Fields("host ls -o json"), strings.Fields(c.args)...)...)
		if err := json.Unmarshal([]byte(out), &all); err != nil || code != 0 || len(all.Items) != c.want {
			t.Errorf("host ls %s: %d, %v, %d hosts, want %d", c.args, code, err, len(all.Items), c.want)
		}
	}
	for _, c := range []struct {
		args, want string
		code       int
	}{
		{"host gpu maintenance h0007 1", "GPU 1 of host h0007 is in maintenance.", 0},
		{"host gpu ls h0007", "GPU-1 NVIDIA H100 80 GiB maintenance", 0},
		{"host ls --search NVIDIA", "2 × NVIDIA H100 (1 free)", 0},
		{"host gpu activate h0007 GPU-1", "GPU GPU-1 of host h0007 may be given again.", 0},
		{"host gpu ls h0007", "GPU-1 NVIDIA H100 80 GiB available", 0},
		{"host gpu activate h0007 9", "Host h0007 has no GPU 9; see remotegpu host show h0007.", 1},
	} {
		out, code := w.run(strings.Fields(c.args)...)
		if code != c.code || !strings.Contains(strings.Join(strings.Fields(out), " "), c.want) {
			t.Errorf("%s: %d, want %q:\n%s", c.args, code, c.want, out)
		}
	}
}
