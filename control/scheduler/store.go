package scheduler

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
)

// Notification channels: the payload is the id of a host.
const (
	capacityChanged = "capacity_changed" // something was allocated or given back
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

// held returns what a workload has already.
func held(ctx context.Context, db pg.DB, workload string) (d Decision, err error) {
	err = db.QueryRow(ctx, `select a.host_id, h.name, array(select g.gpu from gpu_allocations g where g.workload = a.workload order by g.gpu)
		from host_allocations a join hosts h on h.id = a.host_id where a.workload = $1`, workload).Scan(&d.Host, &d.HostName, &d.GPUs)
	if pg.IsNone(err) {
		return Decision{}, nil
	}
	if err != nil {
		return Decision{}, fmt.Errorf("read allocation: %w", err)
	}
	d.Summary = "Stays on host " + d.HostName + "."
	return d, nil
}

// readHosts returns the hosts that are not retired, or the one with that id,
// by name.
func readHosts(ctx context.Context, db pg.DB, id string) ([]Host, error) {
	rows, err := db.Query(ctx, `select h.id, h.name, h.os, h.arch, h.labels, h.state, h.online, h.cpus, h.memory, h.disk,
			coalesce(a.milli_cpu, 0), coalesce(a.memory, 0), coalesce(a.disk, 0)
		from hosts h left join (select host_id, sum(milli_cpu)::bigint milli_cpu, sum(memory)::bigint memory, sum(disk)::bigint disk
			from host_allocations where $1 = '' or host_id = $1 group by host_id) a on a.host_id = h.id
		where h.state <> 'retired' and ($1 = '' or h.id = $1) order by h.name`, id)
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	hosts, err := pgx.CollectRows(rows, scanHost)
	if err != nil {
		return nil, fmt.Errorf("read hosts: %w", err)
	}
	return hosts, readGPUs(ctx, db, id, hosts)
}

func scanHost(row pgx.CollectableRow) (h Host, err error) {
	var state string
	var online bool
	var cpus int
	err = row.Scan(&h.ID, &h.Name, &h.OS, &h.Arch, &h.Labels, &state, &online, &cpus, &h.Memory, &h.Disk,
		&h.UsedMilliCPU, &h.UsedMemory, &h.UsedDisk)
	h.MilliCPU, h.State, h.Region = uint64(cpus)*1000, stateOf(state, online), h.Labels["region"]
	return h, err
}

// stateOf: what a person has decided about a host comes before what is with it.
func stateOf(state string, online bool) State {
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
	if !online {
		return Offline
	}
	return Ready
}

func readGPUs(ctx context.Context, db pg.DB, host string, hosts []Host) error {
	place := make(map[string]int, len(hosts))
	for i := range hosts {
		place[hosts[i].ID] = i
	}
	rows, err := db.Query(ctx, `select g.host_id, g.uuid, g.index, g.name, g.memory, g.numa_node, g.links,
			g.healthy and not g.maintenance, a.gpu is not null
		from gpus g left join gpu_allocations a on a.gpu = g.uuid
		where g.present and ($1 = '' or g.host_id = $1) order by g.host_id, g.index`, host)
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

// lockHost keeps others from allocating on a host and returns it as it is now.
func lockHost(ctx context.Context, tx pg.Tx, id string) (Host, error) {
	if _, err := tx.Exec(ctx, "select from hosts where id = $1 for no key update", id); err != nil {
		return Host{}, fmt.Errorf("lock host: %w", err)
	}
	hosts, err := readHosts(ctx, tx, id)
	if err != nil {
		return Host{}, err
	}
	if len(hosts) == 0 {
		return Host{ID: id, State: Offline}, nil // it has been retired meanwhile
	}
	return hosts[0], nil
}

// allocate writes what d gives to r. It is false, and nothing is written, when
// somebody else has one of the GPUs.
func allocate(ctx context.Context, tx pg.Tx, r Request, d Decision) (ok bool, err error) {
	sub, err := tx.Begin(ctx)
	if err != nil {
		return false, err
	}
	defer sub.Rollback(ctx) // after Commit it does nothing
	_, err = sub.Exec(ctx, `insert into host_allocations (workload, workspace_id, host_id, milli_cpu, memory, disk)
		values ($1, $2, $3, $4, $5, $6)`, r.Workload, r.Workspace, d.Host, int64(r.MilliCPU), int64(r.Memory), int64(r.Disk))
	if err != nil {
		return false, fmt.Errorf("allocate host: %w", err)
	}
	_, err = sub.Exec(ctx, "insert into gpu_allocations (gpu, host_id, workload) select unnest($1::text[]), $2, $3", d.GPUs, d.Host, r.Workload)
	if pg.IsUnique(err, "gpu_allocations_pkey") {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("allocate GPUs: %w", err)
	}
	return true, sub.Commit(ctx)
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

// enqueue lets r wait and reports whether the reason is a new one.
func enqueue(ctx context.Context, tx pg.Tx, r Request, d Decision) (news bool, err error) {
	var before string
	err = tx.QueryRow(ctx, "select summary from placement_queue where workload = $1 for update", r.Workload).Scan(&before)
	if err != nil && !pg.IsNone(err) {
		return false, fmt.Errorf("read queue: %w", err)
	}
	_, err = tx.Exec(ctx, `insert into placement_queue (workload, workspace_id, request, priority, summary, rejected) values ($1, $2, $3, $4, $5, $6)
		on conflict (workload) do update set request = excluded.request, priority = excluded.priority, tried_at = now(),
			summary = excluded.summary, rejected = excluded.rejected`,
		r.Workload, r.Workspace, r, r.Priority, d.Summary, nonNil(d.Rejected))
	if err != nil {
		return false, fmt.Errorf("write queue: %w", err)
	}
	return before != d.Summary, nil
}

// dequeue returns how long the workload has waited.
func dequeue(ctx context.Context, tx pg.Tx, workload string) (waited time.Duration, err error) {
	err = tx.QueryRow(ctx, "delete from placement_queue where workload = $1 returning clock_timestamp() - since", workload).Scan(&waited)
	if err != nil && !pg.IsNone(err) {
		return 0, fmt.Errorf("leave queue: %w", err)
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

func insertPlacement(ctx context.Context, db pg.DB, r Request, d Decision, outcome string, waited, took time.Duration) error {
	gpus := d.GPUs
	if gpus == nil {
		gpus = []string{}
	}
	_, err := db.Exec(ctx, `insert into placements (workload, workspace_id, outcome, host_id, gpus, strategy, looked, summary, rejected, waited_ms, decision_us)
		values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)`, r.Workload, r.Workspace, outcome, d.Host, gpus, string(d.Strategy), d.Looked,
		d.Summary, nonNil(d.Rejected), waited.Milliseconds(), took.Microseconds())
	if err != nil {
		return fmt.Errorf("write placement: %w", err)
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

func nonNil(r []Rejection) []Rejection {
	if r == nil {
		return []Rejection{}
	}
	return r
}
