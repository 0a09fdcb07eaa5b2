package environment

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// query reads whole environments: their own row, their host, what they hold
// and what they wait for.
const query = `select e.id, e.workspace_id, e.name, e.owner_id, e.image, e.command, e.env, e.run_as, e.workdir, e.resources, e.mounts,
	e.affinity, e.prefer, e.restart, e.priority, e.host_id, coalesce(h.name, '') host_name,
	array(select g.gpu from gpu_allocations g left join gpus p on p.uuid = g.gpu where g.workload = e.id order by p.index, g.gpu) gpus,
	e.revision, e.want, e.created_at, e.changed_at, e.phase, e.message, e.pid, e.started_at, e.exit_code, e.restarts, e.retry_at,
	e.pulled, e.pull_total, e.address, e.generation, e.reported_revision, e.document_bytes, a.workload is not null placed, coalesce(q.summary, '') waits_for,
	case when e.host_id = '' then '' when h.id is null or h.state = 'retired' then 'gone' when not h.online then 'away'
	     when h.state in ('draining', 'maintenance') then 'drained' else 'up' end host_state
	from environments e left join hosts h on h.id = e.host_id left join host_allocations a on a.workload = e.id
	left join placement_queue q on q.workload = e.id `

func read(ctx context.Context, db pg.DB, where string, args ...any) ([]Environment, error) {
	rows, err := db.Query(ctx, query+where, args...)
	if err != nil {
		return nil, fmt.Errorf("read environments: %w", err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByName[Environment])
	if err != nil {
		return nil, fmt.Errorf("read environments: %w", err)
	}
	return all, nil
}

// byName returns the environment of a workspace by name or id, or pgx.ErrNoRows.
func byName(ctx context.Context, db pg.DB, ws, nameOrID string) (Environment, error) {
	return one(read(ctx, db, "where e.workspace_id = $1 and (e.name = $2 or e.id = $2)", ws, nameOrID))
}

func byID(ctx context.Context, db pg.DB, id string) (Environment, error) {
	return one(read(ctx, db, "where e.id = $1", id))
}

func one(all []Environment, err error) (Environment, error) {
	if err == nil && len(all) != 1 {
		err = pgx.ErrNoRows
	}
	if err != nil {
		return Environment{}, err
	}
	return all[0], nil
}

// lock keeps others from changing an environment and returns it as it is then.
// The lock comes first: what a query saw before waiting for it may be old.
func lock(ctx context.Context, tx pg.Tx, ws, nameOrID string) (Environment, error) {
	var id string
	err := tx.QueryRow(ctx, `select id from environments where ($1 = '' or workspace_id = $1) and (name = $2 and $1 <> '' or id = $2)
		for update`, ws, nameOrID).Scan(&id)
	if err != nil {
		return Environment{}, err
	}
	return byID(ctx, tx, id)
}

// lockHosts locks all environments of hosts, always in the same order.
func lockHosts(ctx context.Context, tx pg.Tx, hosts []string) ([]Environment, error) {
	if _, err := tx.Exec(ctx, "select from environments where host_id = any($1) order by id for update", hosts); err != nil {
		return nil, fmt.Errorf("lock environments: %w", err)
	}
	return read(ctx, tx, "where e.host_id = any($1) order by e.id", hosts)
}

// namesTaken returns which of these have a name that another one has.
func namesTaken(ctx context.Context, db pg.DB, all []*Environment) (map[*Environment]bool, error) {
	type key struct{ ws, name string }
	workspaces, names := make([]string, len(all)), make([]string, len(all))
	for i, e := range all {
		workspaces[i], names[i] = e.Workspace, e.Name
	}
	rows, err := db.Query(ctx, `select workspace_id, name from environments join unnest($1::text[], $2::text[]) t(workspace_id, name) using (workspace_id, name)`, workspaces, names)
	if err != nil {
		return nil, fmt.Errorf("look for names: %w", err)
	}
	used := map[key]bool{}
	var k key
	if _, err := pgx.ForEachRow(rows, []any{&k.ws, &k.name}, func() error {
		used[k] = true
		return nil
	}); err != nil {
		return nil, fmt.Errorf("look for names: %w", err)
	}
	taken := map[*Environment]bool{}
	for _, e := range all {
		k := key{e.Workspace, e.Name}
		taken[e] = used[k]
		used[k] = true // the first who asks has it
	}
	return taken, nil
}

func insertAll(ctx context.Context, tx pg.Tx, all []*Environment) error {
	type row struct {
		ID         string             `json:"id"`
		Workspace  string             `json:"workspace_id"`
		Name       string             `json:"name"`
		Owner      string             `json:"owner_id"`
		Image      string             `json:"image"`
		Command    []string           `json:"command"`
		Env        map[string]string  `json:"env"`
		User       string             `json:"run_as"`
		Workdir    string             `json:"workdir"`
		Resources  Resources          `json:"resources"`
		Mounts     []Mount            `json:"mounts"`
		Affinity   scheduler.Affinity `json:"affinity"`
		Prefer     scheduler.Affinity `json:"prefer"`
		Restart    string             `json:"restart"`
		Priority   int                `json:"priority"`
		Bytes      int                `json:"document_bytes"`
		Host       string             `json:"host_id"`
		Revision   uint64             `json:"revision"`
		Generation uint64             `json:"generation"`
		Want       string             `json:"want"`
		Phase      string             `json:"phase"`
		Message    string             `json:"message"`
	}
	rows := make([]row, len(all))
	for i, e := range all {
		rows[i] = row{e.ID, e.Workspace, e.Name, e.Owner, e.Image, nonNil(e.Command), orEmpty(e.Env), e.User, e.Workdir, e.Resources, nonNil(e.Mounts),
			e.Affinity, e.Prefer, e.Restart, e.Priority, e.Bytes, e.Host, e.Revision, e.Generation, e.Want, e.Phase, e.Message}
	}
	const columns = `id, workspace_id, name, owner_id, image, command, env, run_as, workdir, resources, mounts,
		affinity, prefer, restart, priority, document_bytes, host_id, revision, generation, want, phase, message`
	if _, err := tx.Exec(ctx, "insert into environments ("+columns+") select "+columns+" from jsonb_populate_recordset(null::environments, $1)", rows); err != nil {
		return fmt.Errorf("write environments: %w", err)
	}
	return nil
}

// lockAll is lock for many, always in the same order.
func lockAll(ctx context.Context, tx pg.Tx, ids []string) ([]Environment, error) {
	if _, err := tx.Exec(ctx, "select from environments where id = any($1) order by id for update", ids); err != nil {
		return nil, fmt.Errorf("lock environments: %w", err)
	}
	return read(ctx, tx, "where e.id = any($1)", ids)
}

// saveAll is save for those that were placed, or wait for another reason.
func saveAll(ctx context.Context, tx pg.Tx, all []*Environment) error {
	ids, hosts, generations, phases, messages := make([]string, len(all)), make([]string, len(all)), make([]int64, len(all)), make([]string, len(all)), make([]string, len(all))
	for i, e := range all {
		ids[i], hosts[i], generations[i], phases[i], messages[i] = e.ID, e.Host, int64(e.Generation), e.Phase, e.Message
	}
	_, err := tx.Exec(ctx, `update environments e set host_id = n.host, generation = n.generation, phase = n.phase, message = n.message,
			changed_at = case when e.phase = n.phase then e.changed_at else now() end
		from unnest($1::text[], $2::text[], $3::bigint[], $4::text[], $5::text[]) n(id, host, generation, phase, message) where e.id = n.id`,
		ids, hosts, generations, phases, messages)
	if err != nil {
		return fmt.Errorf("write environments: %w", err)
	}
	return nil
}

// save writes what changes in the life of an environment.
func save(ctx context.Context, tx pg.Tx, e *Environment) error {
	_, err := tx.Exec(ctx, `update environments set host_id = $2, revision = $3, generation = $4, want = $5, phase = $6, message = $7,
			changed_at = case when phase = $6 then changed_at else now() end,
			reported_revision = $8, pid = $9, started_at = $10, exit_code = $11, restarts = $12, retry_at = $13, pulled = $14, pull_total = $15, address = $16
		where id = $1`, e.ID, e.Host, int64(e.Revision), int64(e.Generation), e.Want, e.Phase, e.Message,
		int64(e.ReportedRevision), int64(e.Pid), e.StartedAt, e.ExitCode, int64(e.Restarts), e.RetryAt, int64(e.Pulled), int64(e.PullTotal), e.Address)
	if err != nil {
		return fmt.Errorf("write environment: %w", err)
	}
	return nil
}

func drop(ctx context.Context, tx pg.Tx, id string) error {
	_, err := tx.Exec(ctx, "delete from environments where id = $1", id)
	return err
}

// room is what a host's document has of environments.
type room struct {
	share
	of map[string]share // by workspace
}

type share struct{ bytes, count int }

func (s share) plus(bytes int) share { return share{s.bytes + bytes, s.count + 1} }

// fits reports whether there is room for e. The last quarter is for others than the
// workspace that has the rest: who makes environments without end fills no host.
func (r *room) fits(e *Environment) bool {
	all, own := r.plus(e.Bytes), r.of[e.Workspace].plus(e.Bytes)
	return all.bytes <= maxDocument && all.count <= maxPerHost && own.bytes <= maxDocument*3/4 && own.count <= maxPerHost*3/4
}

func (r *room) add(workspace string, s share) {
	r.bytes, r.count = r.bytes+s.bytes, r.count+s.count
	own := r.of[workspace]
	r.of[workspace] = share{own.bytes + s.bytes, own.count + s.count}
}

// rooms looks into the documents of hosts; nil: of all.
func rooms(ctx context.Context, db pg.DB, hosts []string) (map[string]*room, error) {
	which, args := "host_id <> ''", []any{}
	if hosts != nil {
		which, args = "host_id = any($1)", []any{hosts}
	}
	rows, err := db.Query(ctx, "select host_id, workspace_id, sum(document_bytes)::int, count(*)::int from environments where "+which+
		" and want <> 'deleted' group by host_id, workspace_id", args...)
	if err != nil {
		return nil, fmt.Errorf("look for full documents: %w", err)
	}
	all := map[string]*room{}
	for _, host := range hosts {
		all[host] = &room{of: map[string]share{}}
	}
	var host, workspace string
	var s share
	_, err = pgx.ForEachRow(rows, []any{&host, &workspace, &s.bytes, &s.count}, func() error {
		if all[host] == nil {
			all[host] = &room{of: map[string]share{}}
		}
		all[host].add(workspace, s)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for full documents: %w", err)
	}
	return all, nil
}

// document is what dispatch has for a host.
type document struct {
	dirty      bool // a change is not compiled yet
	generation uint64
}

// documentsOf returns those of hosts; of one that has none it is to be made.
func documentsOf(ctx context.Context, db pg.DB, hosts []string) (map[string]document, error) {
	docs := make(map[string]document, len(hosts))
	rows, err := db.Query(ctx, `select host, coalesce(dirty, true), coalesce(generation, 0) from unnest($1::text[]) host
		left join desired_documents on host_id = host`, hosts)
	if err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	var host string
	var d document
	if _, err = pgx.ForEachRow(rows, []any{&host, &d.dirty, &d.generation}, func() error {
		docs[host] = d
		return nil
	}); err != nil {
		return nil, fmt.Errorf("read documents: %w", err)
	}
	return docs, nil
}

// carries returns the generation of the host's document from which on an agent
// knows of a change that was noted as generation noted: changes that undid
// each other need no document of their own.
func (d document) carries(noted uint64) uint64 {
	if d.dirty {
		return noted
	}
	return min(noted, d.generation)
}

// claim notes hosts' reports and returns, for those that are newer than the
// host's last one, the last of its events taken before. A retired host may stay
// connected at a broker beside the server, and is not believed.
func claim(ctx context.Context, tx pg.Tx, said map[string]*protocol.Status) (map[string]uint64, error) {
	hosts := slices.Sorted(maps.Keys(said))
	epochs, seqs := make([]int64, len(hosts)), make([]int64, len(hosts))
	for i, host := range hosts {
		epochs[i], seqs[i] = int64(said[host].Epoch), int64(said[host].Seq)
	}
	rows, err := tx.Query(ctx, `insert into environment_reports as r (host_id, epoch, seq)
		select n.id, n.epoch, n.seq from unnest($1::text[], $2::bigint[], $3::bigint[]) n (id, epoch, seq)
		join hosts h on h.id = n.id and h.state <> 'retired' order by n.id
		on conflict (host_id) do update set epoch = excluded.epoch, seq = excluded.seq
		where (r.epoch, r.seq) < (excluded.epoch, excluded.seq) returning host_id, event_seq`, hosts, epochs, seqs)
	if err != nil {
		return nil, fmt.Errorf("note reports: %w", err)
	}
	last := map[string]uint64{}
	var host string
	var event uint64
	if _, err := pgx.ForEachRow(rows, []any{&host, &event}, func() error {
		last[host] = event
		return nil
	}); err != nil {
		return nil, fmt.Errorf("note reports: %w", err)
	}
	return last, nil
}

// noteDrained notes whether hosts, or with nil all, are drained, and returns those
// to which that is news: what runs there must be told.
func noteDrained(ctx context.Context, tx pg.Tx, hosts []string) ([]string, error) {
	which, args := "", []any(nil)
	if hosts != nil {
		which, args = "h.id = any($1) and ", []any{hosts}
	}
	rows, err := tx.Query(ctx, `with now as (insert into environment_reports as r (host_id, epoch, seq, drained)
		select h.id, 0, 0, h.state in ('draining', 'maintenance') from hosts h left join environment_reports k on k.host_id = h.id
		where `+which+`h.state <> 'retired' and k.drained is distinct from (h.state in ('draining', 'maintenance')) order by h.id
		on conflict (host_id) do update set drained = excluded.drained where r.drained <> excluded.drained
		returning r.host_id, r.drained or r.epoch > 0 as news) select host_id from now where news order by host_id`, args...)
	if err != nil {
		return nil, fmt.Errorf("note draining: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// Event is something that happened to an environment.
type Event struct {
	ID       int64     `db:"id" json:"id" doc:"Grows; give the last one as ?after= to go on from there"`
	At       time.Time `db:"at" json:"at"`
	Severity string    `db:"severity" json:"severity" enum:"normal,warning,security"`
	Reason   string    `db:"reason" json:"reason" doc:"A word for machines: Scheduled, Pulling, Pulled, Started, Exited …"`
	Message  string    `db:"message" json:"message"`
}

// tell appends an event; at nil is now. The environment's row is locked.
func tell(ctx context.Context, tx pg.Tx, e *Environment, at *time.Time, severity, reason, message string) error {
	_, err := tx.Exec(ctx, `insert into environment_events (environment_id, workspace_id, at, severity, reason, message)
		values ($1, $2, coalesce($3, clock_timestamp()), $4, $5, $6)`, e.ID, e.Workspace, at, severity, reason, message)
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

// happening is an event that is to be told.
type happening struct {
	environment string
	workspace   string
	at          *time.Time // nil: now
	severity    string
	reason      string
	message     string
}

func (e *Environment) happens(reason, message string) happening {
	return happening{e.ID, e.Workspace, nil, protocol.SeverityNormal, reason, message}
}

// tellAll is tell for many, in this order.
func tellAll(ctx context.Context, tx pg.Tx, all []happening) error {
	if len(all) == 0 {
		return nil
	}
	n := len(all)
	environments, workspaces, at, severities := make([]string, n), make([]string, n), make([]*time.Time, n), make([]string, n)
	reasons, messages := make([]string, n), make([]string, n)
	for i, h := range all {
		environments[i], workspaces[i], at[i], severities[i], reasons[i], messages[i] = h.environment, h.workspace, h.at, h.severity, h.reason, h.message
	}
	_, err := tx.Exec(ctx, `insert into environment_events (environment_id, workspace_id, at, severity, reason, message)
		select environment_id, workspace_id, coalesce(at, clock_timestamp()), severity, reason, message
		from unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::text[]) n (environment_id, workspace_id, at, severity, reason, message)`,
		environments, workspaces, at, severities, reasons, messages)
	if err != nil {
		return fmt.Errorf("write events: %w", err)
	}
	return nil
}

func events(ctx context.Context, db pg.DB, id string, after int64) ([]Event, error) {
	rows, err := db.Query(ctx, `select id, at, severity, reason, message from environment_events
		where environment_id = $1 and id > $2 order by id limit 500`, id, after)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowToStructByName[Event])
}

// Changed is the channel on which a Change is notified as JSON.
const Changed = "environment_changed"

// Change says that an environment, or its events, changed.
type Change struct {
	ID        string    `json:"id"`
	Workspace string    `json:"workspace"`
	Name      string    `json:"name"`
	Host      string    `json:"host,omitempty"`
	Phase     string    `json:"phase,omitempty"` // empty: the phase is the one it was
	Message   string    `json:"message,omitempty"`
	At        time.Time `json:"at"`
}

// announce notifies that e changed; its phase was before.
func announce(ctx context.Context, tx pg.Tx, e *Environment, before string) error {
	change, err := e.change(before)
	if err != nil {
		return err
	}
	return pg.Notify(ctx, tx, Changed, change)
}

// change is the payload of a notification that e changed.
func (e *Environment) change(before string) (string, error) {
	ch := Change{ID: e.ID, Workspace: e.Workspace, Name: e.Name, Host: e.Host, At: time.Now().UTC()}
	if e.Phase != before {
		ch.Phase, ch.Message = e.Phase, e.Message
		if r := []rune(ch.Message); len(r) > 500 { // a notification has at most 8000 bytes
			ch.Message = string(r[:500])
		}
	}
	b, err := json.Marshal(ch)
	return string(b), err
}

func workspaceName(ctx context.Context, db pg.DB, id string) (name string, err error) {
	err = db.QueryRow(ctx, "select name from workspaces where id = $1", id).Scan(&name)
	return name, err
}

// lostHosts returns those of hosts, or with nil of all, that are retired while
// environments still count on them.
func lostHosts(ctx context.Context, db pg.DB, hosts []string) ([]string, error) {
	sql, args := `select distinct e.host_id from environments e left join hosts h on h.id = e.host_id
		where e.host_id <> '' and (h.id is null or h.state = 'retired')
		and (e.want <> 'stopped' or e.phase <> 'failed' or exists (select from host_allocations where workload = e.id))`, []any(nil)
	if hosts != nil {
		sql, args = sql+" and e.host_id = any($1)", []any{hosts}
	}
	rows, err := db.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("look for retired hosts: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func nonNil[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func orEmpty(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
