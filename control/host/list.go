package host

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

// Filter narrows a list of hosts; zero fields mean any.
type Filter struct {
	Status string
	Search string // in name, hostname, address or GPU, in any case
	Label  string // key=value, or key
	After  string // name, for paging
	Limit  int    // 0: 100
}

// match reports whether a host is wanted. Search is in small letters.
func (f Filter) match(e *entry) bool {
	if f.Status != "" && f.Status != e.status {
		return false
	}
	if f.Label != "" {
		key, want, exact := strings.Cut(f.Label, "=")
		if got, has := e.labels[key]; !has || exact && got != want {
			return false
		}
	}
	return strings.Contains(e.text, f.Search)
}

// page returns the JSON of a list of hosts by name, in pieces that do not change.
func (r *roster) page(f Filter) [][]byte {
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 100
	}
	f.Search = strings.ToLower(f.Search)
	out := append(make([][]byte, 0, 2*f.Limit+2), []byte(`{"items":[`))
	r.mu.RLock()
	defer r.mu.RUnlock()
	first := 0
	if f.After != "" {
		first = sort.Search(len(r.hosts), func(i int) bool { return r.hosts[i].name > f.After })
	}
	for _, e := range r.hosts[first:] {
		if len(out) > 2*f.Limit {
			break
		}
		if f.match(e) {
			out = append(out, e.machine, e.pulse)
		}
	}
	if last := len(out) - 1; last > 0 {
		out[last] = out[last][:len(out[last])-1] // nothing comes after it
	}
	return append(out, []byte(`]}`))
}

// known is a host as a roster reads it.
type known struct {
	Host
	Version int64 `db:"version"` // of its row
}

// allHosts returns the ids of all hosts but those that are retired.
func allHosts(ctx context.Context, db pg.DB) ([]string, error) {
	rows, err := db.Query(ctx, "select id from hosts where state <> 'retired' order by id")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// readRoster returns hosts with their GPUs, but those that are retired.
func readRoster(ctx context.Context, db pg.DB, ids []string) ([]known, error) {
	rows, err := db.Query(ctx, "select "+columns+", h.xmin::text::bigint version"+from+"where h.state <> 'retired' and h.id = any($1)", ids)
	if err != nil {
		return nil, err
	}
	hosts, err := pgx.CollectRows(rows, pgx.RowToStructByName[known])
	if err != nil || len(hosts) == 0 {
		return hosts, err
	}
	found, place := make([]string, len(hosts)), make(map[string]int, len(hosts))
	for i := range hosts {
		found[i], place[hosts[i].ID], hosts[i].GPUs = hosts[i].ID, i, []GPU{}
	}
	gpus, err := gpusOf(ctx, db, found)
	for _, g := range gpus {
		h := &hosts[place[g.Host]]
		h.GPUs = append(h.GPUs, g)
	}
	return hosts, err
}

func newEntry(h *known) (*entry, error) {
	machine, err := json.Marshal(&h.Machine)
	if err != nil {
		return nil, fmt.Errorf("encode host %s: %w", h.ID, err)
	}
	machine[len(machine)-1] = ','
	pulse, err := encode(&h.Pulse)
	return &entry{name: h.Name, status: h.Status, labels: h.Labels, text: searched(&h.Host), version: h.Version, machine: machine, pulse: pulse}, err
}

// beat is what a host reports, as an entry has it, and the version of its row.
type beat struct {
	id      string
	version int64
	pulse   []byte
}

func readBeats(ctx context.Context, db pg.DB) ([]beat, error) {
	rows, err := db.Query(ctx, "select h.id, h.xmin::text::bigint, "+pulse+pulseFrom+"where h.state <> 'retired'")
	if err != nil {
		return nil, err
	}
	var p Pulse
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (b beat, err error) {
		err = row.Scan(&b.id, &b.version, &p.LastSeen, &p.CPUPercent, &p.Load1, &p.MemoryUsed, &p.DiskUsed, &p.Uptime, &p.Observed, &p.Applied)
		if err == nil {
			b.pulse, err = encode(&p)
		}
		return b, err
	})
}

// encode returns what an entry has of p.
func encode(p *Pulse) ([]byte, error) {
	text, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode what a host reports: %w", err)
	}
	return append(text[1:], ','), nil
}

func gpusOf(ctx context.Context, db pg.DB, hosts []string) ([]GPU, error) {
	rows, err := db.Query(ctx, "select "+gpuColumns+` from gpus g left join gpu_allocations a on a.gpu = g.uuid
		where g.host_id = any($1) order by g.host_id, g.index`, hosts)
	if err != nil {
		return nil, err
	}
	all := make([]GPU, 0, 8*len(hosts))
	var g GPU
	_, err = pgx.ForEachRow(rows, []any{&g.UUID, &g.Host, &g.Index, &g.Name, &g.Brand, &g.Architecture, &g.Memory, &g.CUDACores, &g.Capability,
		&g.PowerLimit, &g.TempLimit, &g.MIG, &g.NUMANode, &g.PCI, &g.HealthMessage, &g.Status, &g.Health, &g.Environment}, func() error {
		all = append(all, g) // by place: a page has a thousand of them
		return nil
	})
	return all, err
}

// searched is what a search looks in.
func searched(h *Host) string {
	words := []string{h.Name, h.Hostname, h.Address}
	for i := range h.GPUs {
		if !slices.Contains(words[3:], h.GPUs[i].Name) {
			words = append(words, h.GPUs[i].Name)
		}
	}
	return strings.ToLower(strings.Join(words, "\n"))
}
