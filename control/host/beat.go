package host

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

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

// noteBeats writes the narrow table alone: a host's row is wide and stays as it is.
func noteBeats(ctx context.Context, db pg.DB, beats map[string]*protocol.Status) ([]string, error) {
	n := len(beats)
	hosts, epochs := make([]string, 0, n), make([]int64, 0, n)
	cpu, load := make([]float32, 0, n), make([]float32, 0, n)
	memory, disk, uptime := make([]int64, 0, n), make([]int64, 0, n), make([]int64, 0, n)
	for host, st := range beats {
		u := st.Usage
		hosts, epochs = append(hosts, host), append(epochs, int64(st.Epoch))
		cpu, load = append(cpu, u.CPUPercent), append(load, u.Load1)
		memory, disk, uptime = append(memory, int64(u.MemoryUsed)), append(disk, int64(u.DiskUsed)), append(uptime, int64(u.UptimeSecs))
	}
	rows, err := db.Query(ctx, `update host_usage u set at = now(), cpu_percent = b.cpu, load1 = b.load, memory_used = b.memory, disk_used = b.disk, uptime = b.uptime
		from unnest($1::text[], $2::bigint[], $3::real[], $4::real[], $5::bigint[], $6::bigint[], $7::bigint[]) b (id, epoch, cpu, load, memory, disk, uptime)
		join hosts h on h.id = b.id and h.epoch = b.epoch and h.online and h.state <> 'retired'
		where u.host_id = b.id returning u.host_id`, hosts, epochs, cpu, load, memory, disk, uptime)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
