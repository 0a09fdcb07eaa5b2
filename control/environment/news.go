package environment

import (
	"context"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/protocol"
)

// news is what reports change, to be written together.
type news struct {
	told    map[string]bool   // environments of which there are events
	highest map[string]uint64 // event by host, where it grew
	events  []happening
	changed []*Environment
	gone    []*Environment
	changes []string // to be notified
}

func (n *news) tell(e *Environment, h happening) {
	n.told[e.ID] = true
	n.events = append(n.events, h)
}

func (n *news) change(e *Environment, before string) error {
	c, err := e.change(before)
	n.changes = append(n.changes, c)
	return err
}

// takeEvents keeps each event of a host's environments once.
func (n *news) takeEvents(host string, list []protocol.Event, last uint64, byID map[string]*Environment) {
	for _, ev := range list {
		if ev.Seq <= last {
			continue
		}
		n.highest[host] = max(n.highest[host], ev.Seq)
		if e := byID[ev.Workload]; e != nil && e.Host == host { // else of the host itself, or of an environment that is gone
			n.tell(e, happening{e.ID, e.Workspace, moment(ev.At), severity(ev.Severity), ev.Reason, ev.Message})
		}
	}
}

func (n *news) write(ctx context.Context, tx pg.Tx) error {
	if err := tellAll(ctx, tx, n.events); err != nil {
		return err
	}
	for _, e := range n.gone {
		if err := erase(ctx, tx, e); err != nil {
			return err
		}
	}
	if err := saveReported(ctx, tx, n.changed); err != nil {
		return err
	}
	if err := setEventSeqs(ctx, tx, n.highest); err != nil {
		return err
	}
	return pg.NotifyAll(ctx, tx, Changed, n.changes)
}

func severity(s string) string {
	if s == protocol.SeverityNormal || s == protocol.SeveritySecurity {
		return s
	}
	return protocol.SeverityWarning
}

// saveReported is save for what a report can change.
func saveReported(ctx context.Context, tx pg.Tx, all []*Environment) error {
	if len(all) == 0 {
		return nil
	}
	n := len(all)
	ids, phases, messages, addresses := make([]string, n), make([]string, n), make([]string, n), make([]string, n)
	revisions, pids, restarts, pulled, totals := make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n), make([]int64, n)
	started, retry, codes := make([]*time.Time, n), make([]*time.Time, n), make([]*int, n)
	for i, e := range all {
		ids[i], phases[i], messages[i], addresses[i] = e.ID, e.Phase, e.Message, e.Address
		revisions[i], pids[i], restarts[i], pulled[i], totals[i] = int64(e.ReportedRevision), int64(e.Pid), int64(e.Restarts), int64(e.Pulled), int64(e.PullTotal)
		started[i], retry[i], codes[i] = e.StartedAt, e.RetryAt, e.ExitCode
	}
	_, err := tx.Exec(ctx, `update environments e set phase = n.phase, message = n.message, changed_at = case when e.phase = n.phase then e.changed_at else now() end,
			address = n.address, reported_revision = n.revision, pid = n.pid, restarts = n.restarts, pulled = n.pulled, pull_total = n.total,
			started_at = n.started, retry_at = n.retry, exit_code = n.code
		from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[],
			$10::timestamptz[], $11::timestamptz[], $12::int[]) n (id, phase, message, address, revision, pid, restarts, pulled, total, started, retry, code)
		where e.id = n.id`, ids, phases, messages, addresses, revisions, pids, restarts, pulled, totals, started, retry, codes)
	if err != nil {
		return fmt.Errorf("write environments: %w", err)
	}
	return nil
}

func setEventSeqs(ctx context.Context, tx pg.Tx, highest map[string]uint64) error {
	if len(highest) == 0 {
		return nil
	}
	hosts, seqs := make([]string, 0, len(highest)), make([]int64, 0, len(highest))
	for host, seq := range highest {
		hosts, seqs = append(hosts, host), append(seqs, int64(seq))
	}
	_, err := tx.Exec(ctx, `update environment_reports r set event_seq = n.seq from unnest($1::text[], $2::bigint[]) n (id, seq)
		where r.host_id = n.id`, hosts, seqs) // claim has locked them
	return err
}
