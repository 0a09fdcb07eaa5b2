package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

// Notification channels: the payload is the id of a host.
const (
	capacityChanged = "capacity_changed" // something was given back, or, after a space, the workload that has something now
	hostChanged     = "host_changed"     // the host itself; sent by module host

	somebodyWaits = "queue" // payload in place of a host
)

// Placement is a decision in the history.
type Placement struct {
	ID         int64       `db:"id" json:"id"`
	At         time.Time   `db:"at" json:"at"`
	Workload   string      `db:"workload" json:"workload"`
	Workspace  string      `db:"workspace_id" json:"workspace"`
	Outcome    string      `db:"outcome" json:"outcome" enum:"placed,waiting,refused"`
	Host       string      `db:"host_id" json:"host,omitempty"`
	GPUs       []string    `db:"gpus" json:"gpus"`
	Strategy   Strategy    `db:"strategy" json:"strategy"`
	Looked     int         `db:"looked" json:"looked" doc:"Hosts looked at"`
	Summary    string      `db:"summary" json:"summary"`
	Rejected   []Rejection `db:"rejected" json:"rejected" doc:"Why other hosts did not do"`
	WaitedMS   int64       `db:"waited_ms" json:"waited_ms"`
	DecisionUS int64       `db:"decision_us" json:"decision_us" doc:"How long the decision took"`
}

// setting is what is set for all, and where the last placement went.
type setting struct {
	Strategy Strategy
	last     string
}

func settings(ctx context.Context, db pg.DB) (set setting, err error) {
	err = db.QueryRow(ctx, `select strategy, coalesce((select host_id from placements where outcome = 'placed' order by id desc limit 1), '')
		from scheduler_settings`).Scan(&set.Strategy, &set.last)
	if err != nil {
		return set, fmt.Errorf("read scheduler settings: %w", err)
	}
	return set, nil
}

func setStrategy(ctx context.Context, tx pg.Tx, to Strategy) (before Strategy, err error) {
	err = tx.QueryRow(ctx, `update scheduler_settings s set strategy = $1 from (select strategy from scheduler_settings for update) old
		returning old.strategy`, string(to)).Scan(&before)
	return before, err
}

// held returns what workloads have already.
func held(ctx context.Context, db pg.DB, workloads []string) (map[string]Decision, error) {
	if len(workloads) == 0 {
		return nil, nil
	}
	rows, err := db.Query(ctx, `select a.workload, a.host_id, h.name, array(select g.gpu from gpu_allocations g where g.workload = a.workload order by g.gpu)
		from host_allocations a join hosts h on h.id = a.host_id where a.workload = any($1)`, workloads)
	if err != nil {
		return nil, fmt.Errorf("read allocations: %w", err)
	}
	all := map[string]Decision{}
	var workload string
	var d Decision
	_, err = pgx.ForEachRow(rows, []any{&workload, &d.Host, &d.HostName, &d.GPUs}, func() error {
		d.Summary = "Stays on host " + d.HostName + "."
		all[workload] = d
		d.GPUs = nil
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read allocations: %w", err)
	}
	return all, nil
}

// readHosts returns the hosts that are not retired, by name: all, or with ids
// those among them.
func readHosts(ctx context.Context, db pg.DB, ids []string) ([]Host, error) {
	of, which, args := "", "", []any{}
	if ids != nil { // texts of their own: one plan would read all for one
		of, which, args = "where host_id = any($1)", "and h.id = any($1)", []any{ids}
	}
	rows, err := db.Query(ctx, `select h.id, h.name, h.os, h.arch, h.labels, h.state, h.online, h.fault <> '', h.cpus, h.memory, h.disk,
			coalesce(a.milli_cpu, 0), coalesce(a.memory, 0), coalesce(a.disk, 0)
		from hosts h left join (select host_id, sum(milli_cpu)::bigint milli_cpu, sum(memory)::bigint memory, sum(disk)::bigint disk
			from host_allocations `+of+` group by host_id) a on a.host_id = h.id
		where h.state <> 'retired' `+which+` order by h.name`, args...)
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	hosts, err := pgx.CollectRows(rows, scanHost)
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	return hosts, readGPUs(ctx, db, ids, hosts)
}

func scanHost(row pgx.CollectableRow) (h Host, err error) {
	var state string
	var online, faulty bool
	var cpus int
	err = row.Scan(&h.ID, &h.Name, &h.OS, &h.Arch, &h.Labels, &state, &online, &faulty, &cpus, &h.Memory, &h.Disk,
		&h.UsedMilliCPU, &h.UsedMemory, &h.UsedDisk)
	h.MilliCPU, h.State, h.Region = uint64(cpus)*1000, stateOf(state, online, faulty), h.Labels["region"]
	return h, err
}

// stateOf: what a person has decided about a host comes before what is with it.
func stateOf(state string, online, faulty bool) State {
	switch state {
	case "pending":
		return Unapproved
	case "cordoned":
		return Cordoned
	case "draining":
		return Draining
	case "maintenance":
		return Maintenance
	}
	switch {
	case !online:
		return Offline
	case faulty:
		return Unhealthy
	}
	return Ready
}

func readGPUs(ctx context.Context, db pg.DB, ids []string, hosts []Host) error {
	which, args := "", []any{}
	if ids != nil {
		which, args = "and g.host_id = any($1)", []any{ids}
	}
	place := make(map[string]int, len(hosts))
	for i := range hosts {
		place[hosts[i].ID] = i
	}
	rows, err := db.Query(ctx, `select g.host_id, g.uuid, g.index, g.name, g.memory, g.numa_node, g.links,
			g.healthy and not g.maintenance, a.gpu is not null
		from gpus g left join gpu_allocations a on a.gpu = g.uuid
		where g.present `+which+` order by g.host_id, g.index`, args...)
	if err != nil {
		return fmt.Errorf("read GPUs: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var id string
		var g GPU
		if err := rows.Scan(&id, &g.UUID, &g.Index, &g.Model, &g.Memory, &g.NUMA, &g.Links, &g.Healthy, &g.Taken); err != nil {
			return fmt.Errorf("read GPUs: %w", err)
		}
		if i, there := place[id]; there {
			hosts[i].GPUs = append(hosts[i].GPUs, g)
		}
	}
	return rows.Err()
}

// lockHosts keeps others from allocating on hosts and returns them as they are
// now, but for those that were retired meanwhile.
func lockHosts(ctx context.Context, tx pg.Tx, ids []string) ([]Host, error) {
	if _, err := tx.Exec(ctx, "select from hosts where id = any($1) order by id for no key update", ids); err != nil {
		return nil, fmt.Errorf("lock hosts: %w", err)
	}
	return readHosts(ctx, tx, ids)
}

// allocate writes what was decided for those requests. Of a request that it
// returns nothing is written: somebody else has one of its GPUs.
func allocate(ctx context.Context, tx pg.Tx, all []Request, out []Decision, these []int) (taken []int, err error) {
	if len(these) == 0 {
		return nil, nil
	}
	type row struct {
		Workload  string `json:"workload"`
		Workspace string `json:"workspace_id"`
		Host      string `json:"host_id"`
		MilliCPU  uint64 `json:"milli_cpu"`
		Memory    uint64 `json:"memory"`
		Disk      uint64 `json:"disk"`
	}
	rows := make([]row, 0, len(these))
	var gpus, hosts, workloads []string
	for _, i := range these {
		r, d := all[i], out[i]
		rows = append(rows, row{r.Workload, r.Workspace, d.Host, r.MilliCPU, r.Memory, r.Disk})
		for _, gpu := range d.GPUs {
			gpus, hosts, workloads = append(gpus, gpu), append(hosts, d.Host), append(workloads, r.Workload)
		}
	}
	_, err = tx.Exec(ctx, `insert into host_allocations (workload, workspace_id, host_id, milli_cpu, memory, disk)
		select workload, workspace_id, host_id, milli_cpu, memory, disk from jsonb_populate_recordset(null::host_allocations, $1)`, rows)
	if err != nil {
		return nil, fmt.Errorf("allocate hosts: %w", err)
	}
	if len(gpus) == 0 {
		return nil, nil
	}
	tag, err := tx.Exec(ctx, `insert into gpu_allocations (gpu, host_id, workload)
		select gpu, host, workload from unnest($1::text[], $2::text[], $3::text[]) t(gpu, host, workload) order by gpu on conflict (gpu) do nothing`, gpus, hosts, workloads)
	if err != nil {
		return nil, fmt.Errorf("allocate GPUs: %w", err)
	}
	if tag.RowsAffected() == int64(len(gpus)) {
		return nil, nil
	}
	return deallocateTorn(ctx, tx, all, out, these)
}

// deallocateTorn takes from requests that got not all of their GPUs what they got.
func deallocateTorn(ctx context.Context, tx pg.Tx, all []Request, out []Decision, these []int) (taken []int, err error) {
	workloads, counts := make([]string, len(these)), make([]int32, len(these))
	place := map[string]int{}
	for k, i := range these {
		workloads[k], counts[k], place[all[i].Workload] = all[i].Workload, int32(len(out[i].GPUs)), i
	}
	rows, err := tx.Query(ctx, `delete from host_allocations a using unnest($1::text[], $2::int[]) t(workload, gpus)
		where a.workload = t.workload and t.gpus <> (select count(*) from gpu_allocations g where g.workload = a.workload) returning a.workload`, workloads, counts)
	if err != nil {
		return nil, fmt.Errorf("release allocations: %w", err)
	}
	torn, err := pgx.CollectRows(rows, pgx.RowTo[string])
	for _, workload := range torn {
		taken = append(taken, place[workload])
	}
	return taken, err
}

func deallocate(ctx context.Context, tx pg.Tx, workload string) (host string, err error) {
	err = tx.QueryRow(ctx, "delete from host_allocations where workload = $1 returning host_id", workload).Scan(&host)
	if pg.IsNone(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("release allocation: %w", err)
	}
	return host, nil // its GPUs went by cascade
}

// entry is a settled request, for queue and history.
type entry struct {
	r            Request
	d            Decision
	outcome      string
	waited, took time.Duration
}

// enqueue lets requests wait and returns those whose reason is a new one.
func enqueue(ctx context.Context, tx pg.Tx, all []entry) ([]entry, error) {
	if len(all) == 0 {
		return nil, nil
	}
	type row struct {
		Workload  string      `json:"workload"`
		Workspace string      `json:"workspace_id"`
		Request   Request     `json:"request"`
		Priority  int         `json:"priority"`
		Summary   string      `json:"summary"`
		Rejected  []Rejection `json:"rejected"`
	}
	queued := make([]row, len(all))
	for i, e := range all {
		queued[i] = row{e.r.Workload, e.r.Workspace, e.r, e.r.Priority, e.d.Summary, nonNil(e.d.Rejected)}
	}
	rows, err := tx.Query(ctx, `with now as (select * from jsonb_populate_recordset(null::placement_queue, $1)),
		put as (insert into placement_queue (workload, workspace_id, request, priority, since, summary, rejected)
			select workload, workspace_id, request, priority, clock_timestamp(), summary, rejected from now
			on conflict (workload) do update set request = excluded.request, priority = excluded.priority, tried_at = now(),
				summary = excluded.summary, rejected = excluded.rejected)
		select now.workload from now left join placement_queue q on q.workload = now.workload where q.summary is distinct from now.summary`, queued)
	if err != nil {
		return nil, fmt.Errorf("write queue: %w", err)
	}
	news, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, fmt.Errorf("write queue: %w", err)
	}
	return slices.DeleteFunc(all, func(e entry) bool { return !slices.Contains(news, e.r.Workload) }), nil
}

// dequeue returns how long workloads have waited.
func dequeue(ctx context.Context, tx pg.Tx, workloads []string) (waited map[string]time.Duration, err error) {
	if len(workloads) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, "delete from placement_queue where workload = any($1) returning workload, clock_timestamp() - since", workloads)
	if err != nil {
		return nil, fmt.Errorf("leave queue: %w", err)
	}
	waited = map[string]time.Duration{}
	var workload string
	var so time.Duration
	_, err = pgx.ForEachRow(rows, []any{&workload, &so}, func() error {
		waited[workload] = so
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("leave queue: %w", err)
	}
	return waited, nil
}

// queue returns the requests that wait, in the order in which they are served.
func queue(ctx context.Context, db pg.DB) ([]waiting, error) {
	rows, err := db.Query(ctx, "select request, summary from placement_queue order by priority desc, since, workload")
	if err != nil {
		return nil, fmt.Errorf("read queue: %w", err)
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (w waiting, err error) {
		err = row.Scan(&w.Request, &w.summary)
		return w, err
	})
}

type waiting struct {
	Request
	summary string
}

func insertPlacements(ctx context.Context, db pg.DB, all []entry) error {
	type row struct {
		Workload   string      `json:"workload"`
		Workspace  string      `json:"workspace_id"`
		Outcome    string      `json:"outcome"`
		Host       string      `json:"host_id"`
		GPUs       []string    `json:"gpus"`
		Strategy   Strategy    `json:"strategy"`
		Looked     int         `json:"looked"`
		Summary    string      `json:"summary"`
		Rejected   []Rejection `json:"rejected"`
		WaitedMS   int64       `json:"waited_ms"`
		DecisionUS int64       `json:"decision_us"`
	}
	rows := make([]row, len(all))
	for i, e := range all {
		rows[i] = row{e.r.Workload, e.r.Workspace, e.outcome, e.d.Host, nonNil(e.d.GPUs), e.d.Strategy, e.d.Looked,
			e.d.Summary, nonNil(e.d.Rejected), e.waited.Milliseconds(), e.took.Microseconds()}
	}
	_, err := db.Exec(ctx, `insert into placements (workload, workspace_id, outcome, host_id, gpus, strategy, looked, summary, rejected, waited_ms, decision_us)
		select workload, workspace_id, outcome, host_id, gpus, strategy, looked, summary, rejected, waited_ms, decision_us
		from jsonb_populate_recordset(null::placements, $1)`, rows)
	if err != nil {
		return fmt.Errorf("write placements: %w", err)
	}
	return nil
}

func placements(ctx context.Context, db pg.DB, workload string, before int64, limit int) ([]Placement, error) {
	rows, err := db.Query(ctx, `select id, at, workload, workspace_id, outcome, host_id, gpus, strategy, looked, summary, rejected, waited_ms, decision_us
		from placements where ($1 = '' or workload = $1) and ($2 = 0 or id < $2) order by id desc limit $3`, workload, before, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Placement])
}

func prune(ctx context.Context, db pg.DB, older time.Duration) error {
	_, err := db.Exec(ctx, "delete from placements where at < now() - $1::interval", older)
	return err
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
