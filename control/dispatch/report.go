package dispatch

import (
	"context"
	"maps"
	"slices"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// maxTogether is for how many hosts one transaction is; a status or document may
// have megabytes.
const maxTogether = 32

// report is what a host says.
type report struct {
	host   string
	status *protocol.Status
}

// keep takes what hosts say at the same moment: all of it, or nothing.
func (s *Service) keep(ctx context.Context, all []report) error {
	byHost := make(map[string]*protocol.Status, len(all))
	for _, a := range all {
		byHost[a.host] = a.status
	}
	return pg.InTx(ctx, s.pool, func(tx pg.Tx) error {
		if _, err := tx.Exec(ctx, pg.Impatient); err != nil {
			return err
		}
		if err := s.cfg.Workload(ctx, tx, byHost); err != nil {
			return err
		}
		if err := s.cfg.HostState(ctx, tx, byHost); err != nil {
			return err
		}
		return noteObserved(ctx, tx, byHost)
	})
}

// noteObserved notes which documents hosts have.
func noteObserved(ctx context.Context, tx pg.Tx, byHost map[string]*protocol.Status) error {
	hosts := slices.Sorted(maps.Keys(byHost))
	observed, applied := make([]int64, len(hosts)), make([]int64, len(hosts))
	for i, host := range hosts {
		observed[i], applied[i] = int64(byHost[host].Observed), int64(byHost[host].Applied)
	}
	_, err := tx.Exec(ctx, `with new as (select d.host_id, n.observed, n.applied
			from unnest($1::text[], $2::bigint[], $3::bigint[]) n (host_id, observed, applied) join desired_documents d using (host_id)
			where (d.observed, d.applied) is distinct from (n.observed, n.applied) order by d.host_id for no key update of d)
		update desired_documents d set observed = new.observed, applied = new.applied from new where d.host_id = new.host_id`,
		hosts, observed, applied)
	return err
}

// lastEvent is up to where the events of a status are kept with it.
func lastEvent(st *protocol.Status) (seq uint64) {
	for i := range st.Events {
		seq = max(seq, st.Events[i].Seq)
	}
	return seq
}
