package host

import (
	"context"
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// columns derive status and health, so that they can never disagree with what
// they come from.
const columns = `h.id, h.name, h.state, h.registered_at, h.address, h.hostname, h.addresses, h.os, h.os_version,
	h.kernel, h.arch, h.deployment, h.cpu_model, h.cpus, h.memory, h.disk, h.runtime, h.driver, h.cuda, h.agent, h.clock_offset,
	h.labels, h.tags, h.groups,
	` + status + ` status,
	case when not h.online or h.fault <> '' then 'unhealthy' when g.bad > 0 or abs(h.clock_offset) > 30000 then 'degraded' else 'healthy' end health,
	case when not h.online then 'not connected' when h.fault <> '' then h.fault when g.bad > 0 then g.bad || ' GPU(s) unhealthy'
	     when abs(h.clock_offset) > 30000 then 'clock is ' || h.clock_offset / 1000 || ' s off' else '' end health_reason, ` + pulse

const pulse = `greatest(h.last_seen, u.at) last_seen,
	coalesce(u.cpu_percent, 0) cpu_percent, coalesce(u.load1, 0) load1, coalesce(u.memory_used, 0) memory_used,
	coalesce(u.disk_used, 0) disk_used, coalesce(u.uptime, 0) uptime,
	coalesce(d.observed, 0) observed, coalesce(d.applied, 0) applied`

// status says what a person sees of state and presence.
const status = "case when h.state = 'maintenance' then 'maintenance' when not h.online then 'offline' when h.fault <> '' then 'error' else 'online' end"

const pulseFrom = ` from hosts h left join host_usage u on u.host_id = h.id left join desired_documents d on d.host_id = h.id `

const from = pulseFrom + `cross join lateral (select count(*) bad from gpus where host_id = h.id and not (healthy and present)) g `

const gpuColumns = `g.uuid, g.host_id, g.index, g.name, g.brand, g.architecture, g.memory, g.cuda_cores, g.capability,
	g.power_limit, g.temp_limit, g.mig, g.numa_node, g.pci, g.health_message,
	case when not (g.healthy and g.present) then 'error' when g.maintenance then 'maintenance'
	     when a.workload is not null then 'allocated' else 'available' end status,
	case when g.healthy and g.present then 'healthy' else 'unhealthy' end health, coalesce(a.workload, '') environment`

func find(ctx context.Context, db pg.DB, nameOrID string) (Host, error) {
	rows, err := db.Query(ctx, "select "+columns+from+"where h.id = $1 or h.name = $1", nameOrID)
	if err != nil {
		return Host{}, err
	}
	h, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[Host])
	if err != nil {
		return h, err
	}
	h.GPUs, err = gpusOf(ctx, db, []string{h.ID})
	if h.GPUs == nil {
		h.GPUs = []GPU{}
	}
	return h, err
}

// lockState returns a host's id and state and keeps others from changing it.
func lockState(ctx context.Context, tx pg.Tx, nameOrID string) (id string, state State, err error) {
	err = tx.QueryRow(ctx, "select id, state from hosts where id = $1 or name = $1 for update", nameOrID).Scan(&id, &state)
	return id, state, err
}

func setState(ctx context.Context, db pg.DB, id string, state State) error {
	_, err := db.Exec(ctx, "update hosts set state = $2 where id = $1", id, state)
	return err
}

func byKey(ctx context.Context, db pg.DB, key []byte) (id, name string, state State, err error) {
	err = db.QueryRow(ctx, "select id, name, state from hosts where public_key = $1", key).Scan(&id, &name, &state)
	return id, name, state, err
}

func keyOf(ctx context.Context, db pg.DB, id string) (key []byte, name string, state State, err error) {
	err = db.QueryRow(ctx, "select public_key, name, state from hosts where id = $1", id).Scan(&key, &name, &state)
	return key, name, state, err
}

func insert(ctx context.Context, db pg.DB, h Host, key []byte) error {
	_, err := db.Exec(ctx, "insert into hosts (id, name, public_key, state, labels, address) values ($1, $2, $3, $4, $5, $6)",
		h.ID, h.Name, key, h.State, h.Labels, h.Address)
	return err
}

// lockNames makes those who choose a name like base wait for each other.
func lockNames(ctx context.Context, tx pg.Tx, base string) error {
	_, err := tx.Exec(ctx, "select pg_advisory_xact_lock(hashtextextended('name of a host ' || $1, 0))", base)
	return err
}

func nameTaken(ctx context.Context, db pg.DB, name string) (taken bool, err error) {
	err = db.QueryRow(ctx, "select exists (select from hosts where name = $1)", name).Scan(&taken)
	return taken, err
}

// setInventory writes what the agent found. A GPU that is gone stays, as not
// present; one that another host has reported stays that host's, so that a
// lying host can take nobody's, until that host is retired.
func setInventory(ctx context.Context, tx pg.Tx, id string, inv protocol.Inventory) error {
	digest, err := digestOf(inv)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `update hosts set hostname = $2, os = $3, os_version = $4, kernel = $5, arch = $6, deployment = $7,
		addresses = $8, cpu_model = $9, cpus = $10, memory = $11, disk = $12, runtime = $13, driver = $14, cuda = $15 where id = $1`,
		id, inv.Hostname, inv.OS, inv.OSVersion, inv.Kernel, inv.Arch, inv.Deployment, nonNil(inv.Addresses), inv.CPUModel,
		int32(inv.CPUs), int64(inv.Memory), int64(inv.Disk), inv.Runtime, inv.Driver, inv.CUDA)
	if err != nil {
		return err
	}
	var batch pgx.Batch
	uuids := []string{}
	for _, g := range inv.GPUs {
		links := make([]int32, len(g.Links))
		for i, n := range g.Links {
			links[i] = int32(n)
		}
		batch.Queue(`insert into gpus (uuid, host_id, index, name, brand, architecture, memory, cuda_cores, capability,
				power_limit, temp_limit, mig, numa_node, pci, links, healthy, health_message)
			values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
			on conflict (uuid) do update set host_id = excluded.host_id, index = excluded.index, name = excluded.name,
				memory = excluded.memory, power_limit = excluded.power_limit, temp_limit = excluded.temp_limit, mig = excluded.mig,
				numa_node = excluded.numa_node, pci = excluded.pci, links = excluded.links, healthy = excluded.healthy,
				health_message = excluded.health_message, present = true
			where gpus.host_id = excluded.host_id or exists (select from hosts where id = gpus.host_id and state = 'retired')`,
			g.UUID, id, int32(g.Index), g.Name, g.Brand, g.Architecture, int64(g.Memory), int32(g.CUDACores), g.Capability,
			g.PowerLimit, g.TempLimit, g.MIG, g.NUMANode, g.PCI, links, g.Healthy, g.HealthMessage)
		uuids = append(uuids, g.UUID)
	}
	batch.Queue("update gpus set present = false where host_id = $1 and not uuid = any($2)", id, uuids)
	batch.Queue(`update hosts set inventory = case when (select count(*) from gpus where host_id = $1 and present) = $2 then $3::bytea else '' end
		where id = $1`, id, len(uuids), digest) // a GPU that is another host's may be ours some day
	return tx.SendBatch(ctx, &batch).Close()
}

// digestOf tells inventories apart.
func digestOf(inv protocol.Inventory) ([]byte, error) {
	b, err := protocol.Marshal(&inv)
	if err != nil {
		return nil, fmt.Errorf("encode inventory: %w", err)
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// helloAgain is seen for a host whose inventory is the one that was kept; else
// it changes nothing.
func helloAgain(ctx context.Context, db pg.DB, id string, h protocol.Hello, inventory []byte) (known, cameOnline bool, err error) {
	err = db.QueryRow(ctx, `update hosts set online = true, epoch = $2, last_seen = now(), agent = $3, boot_id = $4, clock_offset = $5
		from (select id, online from hosts where id = $1) old
		where hosts.id = $1 and hosts.epoch <= $2 and hosts.state <> 'retired' and hosts.inventory = $6 returning not old.online`,
		id, int64(h.Epoch), h.Agent, h.BootID, h.ClockOffset, inventory).Scan(&cameOnline)
	if pg.IsNone(err) {
		return false, false, nil
	}
	return err == nil, cameOnline, err
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// seen notes that a host is there, and at which replica; an older connection
// changes nothing. It reports whether the host was offline before.
func seen(ctx context.Context, db pg.DB, id, replica string, epoch uint64) (cameOnline bool, err error) {
	err = db.QueryRow(ctx, `update hosts set online = true, epoch = $2, replica = $3, last_seen = now() from (select id, online from hosts where id = $1) old
		where hosts.id = $1 and hosts.epoch <= $2 and hosts.state <> 'retired' returning not old.online`, id, int64(epoch), replica).Scan(&cameOnline)
	if pg.IsNone(err) {
		return false, nil
	}
	return cameOnline, err
}

// died notes the end of a connection, unless a newer one has come. What the
// dead one still says does not bring the host back: its epoch is over.
func died(ctx context.Context, db pg.DB, id string, epoch uint64) (wentOffline bool, err error) {
	tag, err := db.Exec(ctx, "update hosts set online = false, epoch = epoch + 1 where id = $1 and epoch = $2 and online", id, int64(epoch))
	return tag.RowsAffected() > 0, err
}

// lost marks hosts offline that were connected to a replica that has died. Their
// epoch stays: should the replica live after all, their next word counts.
func lost(ctx context.Context, db pg.DB, replica string) ([]string, error) {
	rows, err := db.Query(ctx, "update hosts set online = false where online and replica = $1 returning id", replica)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// silent marks hosts offline that have not been heard for long. Heartbeats are
// in host_usage alone.
func silent(ctx context.Context, db pg.DB, after time.Duration) ([]string, error) {
	rows, err := db.Query(ctx, `update hosts set online = false where online and last_seen < now() - $1::interval
		and not exists (select from host_usage where host_id = hosts.id and at >= now() - $1::interval) returning id`, after)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func ownEvent(ctx context.Context, db pg.DB, id, severity, reason, message string) error {
	_, err := db.Exec(ctx, "insert into host_events (host_id, at, severity, reason, message) values ($1, now(), $2, $3, $4)",
		id, severity, reason, message)
	return err
}

func events(ctx context.Context, db pg.DB, id string, after int64) ([]Event, error) {
	rows, err := db.Query(ctx, `select id, at, severity, reason, message, workload from
		(select * from host_events where host_id = $1 and id > $2 order by id desc limit 500) e order by id`, id, after)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Event])
}
