package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/jackc/pgx/v5"

	"github.com/remotegpu/remotegpu/e2e/chaos"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

// seeWithin bounds a look at one part: what stands still is not seen.
const seeWithin = 2 * time.Second

// look sees how things are. What is asked meanwhile is told by two counts around it.
func (y *yard) look(was, now *chaos.Seen) {
	before, doneBefore := y.wisher.counts(), y.wisher.accesses()
	now.Hosts = make(map[string]chaos.Host, len(y.boxes))
	hosts := make([]chaos.Host, len(y.boxes))
	var all sync.WaitGroup
	for i, b := range y.boxes {
		all.Go(func() { hosts[i] = b.look(was.Hosts[b.name]) })
	}
	now.Wishes, now.Audit = map[string]chaos.Wish{}, map[string]chaos.Access{}
	maps.Copy(now.Wishes, was.Wishes)
	maps.Copy(now.Audit, was.Audit)
	simulated, fleetErr := y.fleet.look()
	rows, err := y.query()
	all.Wait()
	if fleetErr != nil {
		y.say("the fleet: " + fleetErr.Error())
	}
	for name, r := range rows.hosts {
		if h, ok := simulated[r.id]; ok {
			h.Made, h.Online = r.made, r.online
			now.Hosts[name] = h
		}
	}
	for name, h := range was.Hosts {
		if _, ok := now.Hosts[name]; !ok {
			h.Old = true
			now.Hosts[name] = h
		}
	}
	for i, b := range y.boxes {
		if r, ok := rows.hosts[b.name]; ok {
			b.id, hosts[i].Made, hosts[i].Online = r.id, r.made, r.online
		}
		now.Hosts[b.name] = hosts[i]
	}
	after, doneAfter := y.wisher.counts(), y.wisher.accesses()
	if now.Old = err != nil; !now.Old {
		now.Wishes = rows.wishes
	}
	for id, wish := range now.Wishes {
		a, b := before[wish.Name], after[wish.Name]
		if err != nil && wish.Asked != b.asked { // the row is older than what was asked
			wish.Settled = false
		}
		wish.Asked = b.asked
		wish.Settled = wish.Settled && a == b && !b.open
		now.Wishes[id] = wish
		if noted, ok := rows.noted[id]; ok {
			noted.Done = doneBefore[wish.Name].done
			noted.Tried = doneAfter[wish.Name].tried - noted.Done
			now.Audit[id] = noted
		}
	}
	wished := steady(was.Wishes, now.Wishes)
	for name, h := range now.Hosts {
		if !h.Old {
			h.Wished = wished
			now.Hosts[name] = h
		}
	}
	for i, k := range y.shells {
		lines, wrong := k.lines()
		now.Shells = append(now.Shells, chaos.Shell{Name: "a shell in " + y.boxes[i].kept(), Lines: lines, Wrong: wrong})
	}
	now.Said = y.complaints()
	if now.Quiet {
		now.Levels = y.levels(now)
	}
}

// steady returns wishes as they were for sure when containers were seen, which was
// before their rows were: settled is what was so in the look before too.
func steady(was, now map[string]chaos.Wish) map[string]chaos.Wish {
	wished := maps.Clone(now)
	for id, wish := range wished {
		before := was[id]
		wish.Settled = wish.Settled && before.Settled && before.Asked == wish.Asked
		wished[id] = wish
	}
	return wished
}

// look sees one host; was is how it was seen last.
func (b *box) look(was chaos.Host) chaos.Host {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := was
	now.Boot = b.boots
	containers, err := b.containers(was)
	if now.Old = err != nil; !now.Old {
		now.Containers = containers
	}
	dir := b.path(b.dir)
	if id, err := state.ReadIdentity(dir); err == nil {
		signed, _ := os.ReadFile(filepath.Join(dir, "desired.cose"))
		if d, err := protocol.Verify(signed, id.Host, id.Keys); err == nil {
			now.Disk = d.Generation
		}
	}
	var counters struct{ Generation uint64 }
	if text, err := os.ReadFile(filepath.Join(dir, "state.json")); err == nil && json.Unmarshal(text, &counters) == nil && counters.Generation > 0 {
		now.Obeyed = counters.Generation // 0: both files were lost, and with them what was obeyed
	}
	return now
}

// containers lists those that live. containerd leaves a task out whose shim is
// slow to answer: who lived before is asked of the kernel.
func (b *box) containers(was chaos.Host) (alive []chaos.Container, err error) {
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(context.Background(), "remotegpu"), seeWithin)
	defer cancel()
	if b.first() == 0 { // it has no power
		return nil, nil
	}
	if b.ctr == nil {
		b.ctr, err = client.New(b.path("/run/containerd/containerd.sock"), client.WithDefaultNamespace("remotegpu"), client.WithTimeout(seeWithin))
		if err != nil {
			return nil, err
		}
	}
	records, err := b.ctr.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	reply, err := b.ctr.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	lives := map[string]string{}
	for _, c := range was.Containers {
		if pid, _, _ := strings.Cut(c.Life, " "); b.life(pid) == c.Life {
			lives[c.ID] = c.Life
		}
	}
	for _, task := range reply.Tasks {
		if task.Status == taskapi.Status_RUNNING {
			lives[task.ID] = b.life(strconv.Itoa(int(task.Pid)))
		}
	}
	for _, r := range records {
		life := lives[r.ID]
		if life == "" {
			continue
		}
		c := chaos.Container{ID: r.ID, Workload: r.Labels["remotegpu.dev/workload"], Life: life}
		c.Revision, _ = strconv.ParseUint(r.Labels["remotegpu.dev/revision"], 10, 64)
		if gpus := r.Labels["remotegpu.dev/gpus"]; gpus != "" {
			c.GPUs = strings.Split(gpus, ",")
		}
		alive = append(alive, c)
	}
	return alive, nil
}

// life is pid and start time of a process of the machine; empty: it has ended.
func (b *box) life(pid string) string {
	stat, err := os.ReadFile(b.path("/proc/" + pid + "/stat"))
	if err != nil {
		return ""
	}
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return pid + " " + fields[19] // field 22 of all, proc(5)
}

// rows is what the database says.
type rows struct {
	hosts  map[string]hostRow // by name
	names  map[string]string  // of hosts, by id
	wishes map[string]chaos.Wish
	noted  map[string]chaos.Access
}

type hostRow struct {
	id     string
	made   uint64
	online bool
}

// query reads the database. Entries that begin an access by OpenSSH have "via";
// those of its end name their stream.
func (y *yard) query() (r rows, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), seeWithin)
	defer cancel()
	db, err := y.connect(ctx)
	if err != nil {
		return r, err
	}
	defer db.Close(ctx)
	r = rows{map[string]hostRow{}, map[string]string{}, map[string]chaos.Wish{}, map[string]chaos.Access{}}
	var name string
	var h hostRow
	var made int64
	_, err = each(ctx, db, `select h.name, h.id, h.online, coalesce(d.generation, 0) from hosts h left join desired_documents d on d.host_id = h.id`,
		[]any{&name, &h.id, &h.online, &made}, func() { h.made = uint64(made); r.hosts[name], r.names[h.id] = h, name })
	var id string
	var w chaos.Wish
	if err == nil {
		_, err = each(ctx, db, `select e.id, e.name, e.host_id, e.want = 'running' and a.workload is not null,
			e.want = 'running' and e.phase = 'running' and e.reported_revision = e.revision
			from environments e left join host_allocations a on a.workload = e.id`,
			[]any{&id, &w.Name, &w.Host, &w.Runs, &w.Settled}, func() {
				wish := w
				wish.Host = r.names[w.Host]
				r.wishes[id] = wish
			})
	}
	var a chaos.Access
	if err == nil {
		_, err = each(ctx, db, `select target, count(*) filter (where detail->>'via' = 'ssh' and detail->>'kind' = 'session'),
			count(detail->>'stream') - count(distinct detail->>'stream') from audit_entries where target like 'env_%' group by target`,
			[]any{&id, &a.Noted, &a.Double}, func() { r.noted[id] = a })
	}
	if err != nil {
		return rows{}, err
	}
	return r, nil
}

func each(ctx context.Context, db *pgx.Conn, sql string, into []any, do func()) (int64, error) {
	found, err := db.Query(ctx, sql)
	if err != nil {
		return 0, err
	}
	tag, err := pgx.ForEachRow(found, into, func() error { do(); return nil })
	return tag.RowsAffected(), err
}

// connect returns a connection to the control plane's database.
func (y *yard) connect(ctx context.Context) (*pgx.Conn, error) {
	return pgx.Connect(ctx, y.database)
}

// rest makes no more wishes and says what has not come to rest.
func (y *yard) rest(ctx context.Context) string {
	if busy := y.wisher.pause(); busy != "" {
		return busy
	}
	ctx, cancel := context.WithTimeout(ctx, seeWithin)
	defer cancel()
	db, err := y.connect(ctx)
	if err != nil {
		return "the database: " + err.Error()
	}
	defer db.Close(context.WithoutCancel(ctx))
	var what string
	var restless []string
	_, err = each(ctx, db, `select 'host ' || name || ' is offline' from hosts where not online
		union all select 'the document of ' || host_id || ' is at ' || generation || ', applied is ' || applied || ', dirty ' || dirty from desired_documents where dirty or applied <> generation
		union all select name || ' is to be ' || want || ' and is ' || phase || ': ' || message from environments e where want = 'deleted'
			or want = 'stopped' and phase not in ('stopped', 'exited', 'failed')
			or want = 'running' and (phase <> 'running' or reported_revision <> revision) and exists (select from host_allocations a where a.workload = e.id)`,
		[]any{&what}, func() { restless = append(restless, what) })
	if err != nil {
		return "the database: " + err.Error()
	}
	if len(restless) > 0 {
		return strings.Join(restless, "; ")
	}
	if slow := y.shellsGoOn(); slow != "" {
		return slow
	}
	y.wisher.known()
	return ""
}

// shellsGoOn says which shell has not brought a line since the calm began.
func (y *yard) shellsGoOn() string {
	y.mu.Lock()
	defer y.mu.Unlock()
	if y.rested == nil {
		for _, k := range y.shells {
			n, _ := k.lines()
			y.rested = append(y.rested, n)
		}
	}
	for i, k := range y.shells {
		n, _ := k.lines()
		if n < y.rested[i]+2 { // one line may have been on its way
			return fmt.Sprintf("the shell in %s has %d lines, as when the storm was over", y.boxes[i].kept(), n)
		}
	}
	return ""
}

// resume lets wishes be made again.
func (y *yard) resume() {
	y.mu.Lock()
	y.rested = nil
	y.mu.Unlock()
	y.wisher.resume()
}

// levels is what the programs take.
func (y *yard) levels(now *chaos.Seen) map[string]chaos.Level {
	l := map[string]chaos.Level{}
	for _, s := range y.servers {
		l[s.name] = level(s.cmd.Process.Pid)
	}
	for _, b := range y.boxes {
		for name, words := range map[string]string{"the agent of ": "remotegpu-agent run", "containerd of ": "containerd --"} {
			if found := b.running([]string{words}); len(found) == 1 {
				of := level(found[0])
				of.Has = len(now.Hosts[b.name].Containers)
				l[name+b.name] = of
			}
		}
	}
	return l
}

func level(pid int) (l chaos.Level) {
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	l.Files = len(files)
	statm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	var size int64
	fmt.Sscan(string(statm), &size, &l.Memory)
	l.Memory *= int64(os.Getpagesize())
	return l
}

// say notes what must never be said.
func (y *yard) say(what string) {
	y.mu.Lock()
	defer y.mu.Unlock()
	y.said = append(y.said, what)
}

// never is what no log may have.
var never = []string{"\npanic: ", "\nfatal error: ", "DATA RACE", "nil pointer dereference"}

// complaints returns what was said that must never be.
func (y *yard) complaints() []string {
	var logs []string
	for _, s := range y.servers {
		logs = append(logs, filepath.Join(y.w.dir, s.log))
	}
	for _, b := range y.boxes {
		logs = append(logs, filepath.Join(b.files, "var/log/remotegpu/agent.log"))
	}
	for _, log := range logs {
		size := y.read[log]
		for _, bad := range never {
			if occurrences(log, size, bad) > 0 {
				y.say(log + " has " + strings.TrimSpace(bad))
			}
		}
		if info, err := os.Stat(log); err == nil {
			y.read[log] = max(0, info.Size()-64) // what is written in two halves
		}
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	return append([]string(nil), y.said...)
}

// occurrences counts a text in a file from an offset on.
func occurrences(file string, from int64, text string) int {
	f, err := os.Open(file)
	if err != nil {
		return 0
	}
	defer f.Close()
	if _, err := f.Seek(from, io.SeekStart); err != nil && !errors.Is(err, os.ErrInvalid) {
		return 0
	}
	b, _ := io.ReadAll(f)
	return bytes.Count(b, []byte(text))
}
