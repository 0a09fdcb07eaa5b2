package host

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// Report takes what statuses, by host, say of the hosts themselves.
func (s *Service) Report(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) error {
	changed, err := s.noteStatuses(ctx, tx, said)
	if err != nil {
		return fmt.Errorf("note statuses: %w", err)
	}
	if err := setUsage(ctx, tx, said); err != nil {
		return fmt.Errorf("note usage: %w", err)
	}
	sick, err := setGPUHealth(ctx, tx, said)
	if err != nil {
		return fmt.Errorf("note health of GPUs: %w", err)
	}
	fresh, err := insertEvents(ctx, tx, said)
	if err != nil {
		return fmt.Errorf("keep events of hosts: %w", err)
	}
	if err := s.auditSecurity(ctx, tx, fresh); err != nil {
		return err
	}
	return pg.NotifyAll(ctx, tx, Changed, append(changed, sick...))
}

// auditSecurity puts what an agent refused into the audit log too.
func (s *Service) auditSecurity(ctx context.Context, tx pg.Tx, fresh []hostEvent) error {
	for _, e := range fresh {
		if e.Severity != protocol.SeveritySecurity {
			continue
		}
		s.log.Warn("security event", "host", e.host, "reason", e.Reason, "message", e.Message)
		host := auth.Caller{Kind: auth.KindHost, ID: e.host}
		if err := audit.Record(ctx, tx, host, auth.HostService, e.host, "", map[string]any{"reason": e.Reason, "message": e.Message}); err != nil {
			return err
		}
	}
	return nil
}

// Beats notes that hosts are there and what they use, all in one statement, and
// returns those it has noted: a host that is not known as online by this very
// connection has more to say than a heartbeat.
func (s *Service) Beats(ctx context.Context, beats map[string]*protocol.Status) ([]string, error) {
	noted, err := noteBeats(ctx, s.pool, beats)
	if err != nil {
		return nil, fmt.Errorf("note heartbeats: %w", err)
	}
	return noted, nil
}

// usages are the columns of what hosts use, sorted by host.
type usages struct {
	hosts                []string
	epochs               []int64
	cpu, load            []float32
	memory, disk, uptime []int64
}

func usagesOf(said map[string]*protocol.Status) (c usages) {
	c.hosts = slices.Sorted(maps.Keys(said))
	for _, host := range c.hosts {
		st := said[host]
		u := st.Usage
		c.epochs, c.cpu, c.load = append(c.epochs, int64(st.Epoch)), append(c.cpu, u.CPUPercent), append(c.load, u.Load1)
		c.memory, c.disk, c.uptime = append(c.memory, int64(u.MemoryUsed)), append(c.disk, int64(u.DiskUsed)), append(c.uptime, int64(u.UptimeSecs))
	}
	return c
}

// noteBeats writes the narrow table alone: a host's row is wide and stays as it is.
// The next heartbeat makes good what is lost.
func noteBeats(ctx context.Context, pool *pg.Pool, beats map[string]*protocol.Status) (noted []string, err error) {
	c := usagesOf(beats)
	var b pgx.Batch
	b.Queue(pg.Unhurried)
	b.Queue(`with l as (select b.* from unnest($1::text[], $2::bigint[], $3::real[], $4::real[], $5::bigint[], $6::bigint[], $7::bigint[])
			b (id, epoch, cpu, load, memory, disk, uptime) join hosts h on h.id = b.id and h.epoch = b.epoch and h.online and h.state <> 'retired'
			join host_usage u on u.host_id = b.id order by b.id for no key update of u)
		update host_usage u set at = now(), cpu_percent = l.cpu, load1 = l.load, memory_used = l.memory, disk_used = l.disk, uptime = l.uptime
		from l where u.host_id = l.id returning u.host_id`, c.hosts, c.epochs, c.cpu, c.load, c.memory, c.disk, c.uptime).Query(func(rows pgx.Rows) error {
		noted, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
	err = pool.SendBatch(ctx, &b).Close()
	return noted, err
}

// setUsage does it for hosts of which nothing may be known yet.
func setUsage(ctx context.Context, db pg.DB, said map[string]*protocol.Status) error {
	c := usagesOf(said)
	_, err := db.Exec(ctx, `insert into host_usage (host_id, at, cpu_percent, load1, memory_used, disk_used, uptime)
		select id, now(), cpu, load, memory, disk, uptime
		from unnest($1::text[], $2::real[], $3::real[], $4::bigint[], $5::bigint[], $6::bigint[]) n (id, cpu, load, memory, disk, uptime) order by id
		on conflict (host_id) do update set at = now(), cpu_percent = excluded.cpu_percent, memory_used = excluded.memory_used,
			disk_used = excluded.disk_used, load1 = excluded.load1, uptime = excluded.uptime`,
		c.hosts, c.cpu, c.load, c.memory, c.disk, c.uptime)
	return err
}

// noteStatuses notes that hosts are there, where, and what ails them; an older
// connection changes nothing, and a row that says so already stays as it is. It
// returns the hosts that were offline before, or whose fault changed.
func (s *Service) noteStatuses(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) (changed []string, err error) {
	hosts := slices.Sorted(maps.Keys(said))
	epochs, replicas, faults := make([]int64, len(hosts)), make([]string, len(hosts)), make([]string, len(hosts))
	for i, host := range hosts {
		epochs[i], replicas[i], faults[i] = int64(said[host].Epoch), s.replica(host), said[host].Fault
	}
	rows, err := tx.Query(ctx, `with old as (select h.id, h.online, h.fault, n.epoch, n.replica, n.fault says
			from unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) n (id, epoch, replica, fault) join hosts h using (id)
			where h.epoch <= n.epoch and h.state <> 'retired' and (h.online, h.epoch, h.replica, h.fault) is distinct from (true, n.epoch, n.replica, n.fault)
			order by h.id for no key update of h)
		update hosts h set online = true, epoch = old.epoch, replica = old.replica, fault = old.says, last_seen = now() from old
		where h.id = old.id and h.epoch <= old.epoch and h.state <> 'retired' returning h.id, not old.online or old.fault <> old.says`, hosts, epochs, replicas, faults)
	if err != nil {
		return nil, err
	}
	var id string
	var news bool
	_, err = pgx.ForEachRow(rows, []any{&id, &news}, func() error {
		if news {
			changed = append(changed, id)
		}
		return nil
	})
	return changed, err
}

// setGPUHealth returns the hosts whose GPUs became healthy or sick.
func setGPUHealth(ctx context.Context, db pg.DB, said map[string]*protocol.Status) ([]string, error) {
	var hosts, uuids []string
	var healthy []bool
	for _, host := range slices.Sorted(maps.Keys(said)) {
		for _, g := range said[host].Usage.GPUUsed {
			hosts, uuids, healthy = append(hosts, host), append(uuids, g.UUID), append(healthy, g.Healthy)
		}
	}
	if len(hosts) == 0 {
		return nil, nil
	}
	rows, err := db.Query(ctx, `update gpus set healthy = n.healthy from unnest($1::text[], $2::text[], $3::bool[]) n (host, uuid, healthy)
		where gpus.uuid = n.uuid and gpus.host_id = n.host and gpus.healthy <> n.healthy returning gpus.host_id`, hosts, uuids, healthy)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// hostEvent is an event of an agent, and whose.
type hostEvent struct {
	host string
	*protocol.Event
}

// insertEvents keeps each of the agents' events once and returns the new ones;
// those of retired hosts it does not keep.
func insertEvents(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) (fresh []hostEvent, err error) {
	type key struct {
		host string
		seq  int64
	}
	all := map[key]*protocol.Event{}
	var hosts, severities, reasons, messages, workloads []string
	var seqs []int64
	var at []time.Time
	for _, host := range slices.Sorted(maps.Keys(said)) {
		for i := range said[host].Events {
			e := &said[host].Events[i]
			all[key{host, int64(e.Seq)}] = e
			hosts, seqs, at = append(hosts, host), append(seqs, int64(e.Seq)), append(at, time.UnixMilli(e.At))
			severities, reasons, messages, workloads = append(severities, e.Severity), append(reasons, e.Reason), append(messages, e.Message), append(workloads, e.Workload)
		}
	}
	if len(hosts) == 0 {
		return nil, nil
	}
	rows, err := tx.Query(ctx, `insert into host_events (host_id, seq, at, severity, reason, message, workload)
		select n.* from unnest($1::text[], $2::bigint[], $3::timestamptz[], $4::text[], $5::text[], $6::text[], $7::text[])
			n (host, seq, at, severity, reason, message, workload) join hosts h on h.id = n.host and h.state <> 'retired'
		on conflict (host_id, seq) do nothing returning host_id, seq`, hosts, seqs, at, severities, reasons, messages, workloads)
	if err != nil {
		return nil, err
	}
	var k key
	_, err = pgx.ForEachRow(rows, []any{&k.host, &k.seq}, func() error {
		fresh = append(fresh, hostEvent{k.host, all[k]})
		return nil
	})
	return fresh, err
}
