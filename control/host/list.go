package host

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

// Filter narrows a list of hosts; zero fields mean any.
type Filter struct {
	Status string
	Search string // in name, hostname, address or GPU
	Label  string // key=value
	After  string // name, for paging
	Limit  int    // 0: 100
}

// where returns the condition on rows of hosts h, with its arguments; models are
// the names of GPUs that the search finds.
func (f Filter) where(models []string) (string, []any) {
	conditions, args := []string{"h.state <> 'retired'"}, []any{}
	arg := func(value any) string {
		args = append(args, value)
		return fmt.Sprintf("$%d", len(args))
	}
	if f.After != "" {
		conditions = append(conditions, "h.name > "+arg(f.After))
	}
	if f.Status != "" {
		conditions = append(conditions, status+" = "+arg(f.Status))
	}
	if f.Label != "" {
		conditions = append(conditions, strings.ReplaceAll("h.labels ->> split_part($?, '=', 1) = substr($?, strpos($?, '=') + 1)", "$?", arg(f.Label)))
	}
	if f.Search != "" {
		found := strings.ReplaceAll("h.name ilike '%' || $? || '%' or h.hostname ilike '%' || $? || '%' or h.address ilike '%' || $? || '%'", "$?", arg(f.Search))
		if len(models) > 0 { // a scalar: looked up for each host until the page is full, and not for all before
			found += " or (select true from gpus where host_id = h.id and name = any(" + arg(models) + ") limit 1)"
		}
		conditions = append(conditions, "("+found+")")
	}
	return strings.Join(conditions, " and "), args
}

// models returns the names of GPUs in which there is search, by jumping from each
// name to the next.
func models(ctx context.Context, db pg.DB, search string) ([]string, error) {
	if search == "" {
		return nil, nil
	}
	rows, err := db.Query(ctx, `with recursive models as ((select name from gpus order by name limit 1)
		union all select (select name from gpus where name > m.name order by name limit 1) from models m where m.name is not null)
		select name from models where name ilike '%' || $1 || '%'`, search)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// list returns a page of hosts: what is derived and joined is so for those alone
// that are on it.
func list(ctx context.Context, db pg.DB, f Filter) ([]Host, error) {
	if f.Limit <= 0 || f.Limit > 1000 {
		f.Limit = 100
	}
	found, err := models(ctx, db, f.Search)
	if err != nil {
		return nil, err
	}
	where, args := f.where(found)
	sql := fmt.Sprintf("select %s %s join (select h.id from hosts h where %s order by h.name limit %d) page on page.id = h.id order by h.name", columns, from, where, f.Limit)
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	hosts, err := pgx.CollectRows(rows, pgx.RowToStructByName[Host])
	if err != nil || len(hosts) == 0 {
		return hosts, err
	}
	ids, place := make([]string, len(hosts)), map[string]int{}
	for i := range hosts {
		ids[i], place[hosts[i].ID], hosts[i].GPUs = hosts[i].ID, i, []GPU{}
	}
	gpus, err := gpusOf(ctx, db, ids)
	for _, g := range gpus {
		i := place[g.Host]
		hosts[i].GPUs = append(hosts[i].GPUs, g)
	}
	return hosts, err
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
