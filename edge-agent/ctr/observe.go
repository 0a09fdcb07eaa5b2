package ctr

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	taskapi "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
)

// Observe returns everything that belongs to workloads on this host.
func (r *Runtime) Observe(ctx context.Context) (reconcile.Have, error) {
	ctx = r.ctx(ctx)
	have, err := r.observe(ctx)
	if err == nil {
		return have, nil
	}
	if errdefs.IsUnavailable(err) || errors.Is(err, context.DeadlineExceeded) || errdefs.IsDeadlineExceeded(err) {
		return have, reconcile.Faultf(errors.Join(reconcile.ErrUnavailable, err),
			"containerd does not answer on %s; start it (systemctl start containerd); what runs already runs on", r.cfg.Address)
	}
	return have, r.wrap("look at containers", err)
}

func (r *Runtime) observe(ctx context.Context) (have reconcile.Have, err error) {
	records, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return have, fmt.Errorf("list containers: %w", err)
	}
	reply, err := r.client.TaskService().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return have, fmt.Errorf("list tasks: %w", errgrpc.ToNative(err))
	}
	tasks := make(map[string]*taskapi.Process, len(reply.Tasks))
	for _, t := range reply.Tasks {
		tasks[cmp.Or(t.ContainerID, t.ID)] = t
	}
	for _, rec := range records {
		have.Containers = append(have.Containers, r.seen(ctx, rec, tasks[rec.ID]))
	}
	slices.SortFunc(have.Containers, func(a, b reconcile.Container) int { return cmp.Compare(a.ID, b.ID) })
	if have.Images, err = r.readyImages(ctx); err != nil {
		return have, err
	}
	have.Leftovers, err = r.leftovers()
	return have, err
}

// seen is one container. A task that the list left out is asked for by name: a
// shim that is slow to answer must not look like a container that ended.
func (r *Runtime) seen(ctx context.Context, rec containers.Container, task *taskapi.Process) reconcile.Container {
	c := fromLabels(rec)
	if task == nil {
		reply, err := r.client.TaskService().Get(ctx, &tasksapi.GetRequest{ContainerID: rec.ID})
		switch err = errgrpc.ToNative(err); {
		case err == nil:
			task = reply.Process
		case errdefs.IsNotFound(err):
			if !c.StartedAt.IsZero() {
				c.State = reconcile.Exited
			}
			if c.ExitedAt.Before(c.StartedAt) { // that end was of the run before
				c.ExitCode, c.ExitedAt = nil, time.Time{}
			}
		default:
			c.State = reconcile.Unclear
			return c
		}
	}
	switch task.GetStatus() {
	case taskapi.Status_RUNNING, taskapi.Status_PAUSED, taskapi.Status_PAUSING:
		c.State, c.Pid = reconcile.Running, task.Pid
		if c.StartedAt.IsZero() { // the agent died before it could note it
			c.StartedAt = processStart(task.Pid)
		}
	case taskapi.Status_STOPPED:
		code := int(task.ExitStatus)
		c.State, c.Unreaped, c.ExitCode, c.ExitedAt = reconcile.Exited, true, &code, task.ExitedAt.AsTime()
	case taskapi.Status_CREATED: // made, but the agent died before it was started
		c.State = reconcile.Created
	}
	c.Disk = r.diskUsed(ctx, rec, c.State)
	return c
}

func fromLabels(rec containers.Container) reconcile.Container {
	l := rec.Labels
	c := reconcile.Container{
		ID: rec.ID, Workload: l[labelWorkload], Revision: number(l[labelRevision]),
		StartedAt: moment(l[labelStarted]), ExitedAt: moment(l[labelExited]),
		Restarts: uint32(number(l[labelRestarts])), Address: l[labelAddress], Grace: defaultGrace,
	}
	if g := number(l[labelGrace]); g > 0 {
		c.Grace = time.Duration(g) * time.Second
	}
	if l[labelGPUs] != "" {
		c.GPUs = strings.Split(l[labelGPUs], ",")
	}
	if code, err := strconv.Atoi(l[labelExitCode]); err == nil {
		c.ExitCode = &code
	}
	return c
}

func number(s string) uint64 {
	n, _ := strconv.ParseUint(s, 10, 64)
	return n
}

func moment(s string) time.Time {
	if n := number(s); n > 0 {
		return time.UnixMilli(int64(n))
	}
	return time.Time{}
}

func milli(t time.Time) string { return strconv.FormatInt(t.UnixMilli(), 10) }

// processStart is when a process began: field 22 of its stat, in hundredths of
// a second since boot (proc(5)). Zero if that cannot be read.
func processStart(pid uint32) time.Time {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return time.Time{}
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	kernel, err := os.ReadFile("/proc/stat")
	_, after, ok := strings.Cut(string(kernel), "btime ")
	if err != nil || !ok || len(fields) < 20 {
		return time.Time{}
	}
	boot, _, _ := strings.Cut(after, "\n")
	return time.Unix(int64(number(boot)), 0).Add(time.Duration(number(fields[19])) * 10 * time.Millisecond)
}

// readyImages are the workloads whose image was pulled and is still here.
func (r *Runtime) readyImages(ctx context.Context) (map[string]uint64, error) {
	list, err := r.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	here := make(map[string]bool, len(list))
	for _, img := range list {
		here[img.Name] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	ready := make(map[string]uint64, len(r.ready))
	for id, img := range r.ready {
		if here[img.ref] {
			ready[id] = img.revision
		}
	}
	return ready, nil
}

// Watch reports ended tasks and processes that the kernel killed for memory.
func (r *Runtime) Watch(ctx context.Context, notify func(reconcile.Notice)) error {
	ctx, cancel := context.WithCancel(r.ctx(ctx))
	defer cancel()
	ns := "namespace==" + r.cfg.Namespace
	events, errs := r.client.Subscribe(ctx, ns+`,topic=="/tasks/exit"`, ns+`,topic=="/tasks/oom"`)
	for {
		select {
		case err := <-errs:
			return r.wrap("watch containers", err)
		case e := <-events:
			v, err := typeurl.UnmarshalAny(e.Event)
			if err != nil {
				continue
			}
			switch v := v.(type) {
			case *eventsapi.TaskExit:
				notify(reconcile.Notice{Container: v.ContainerID})
			case *eventsapi.TaskOOM:
				notify(reconcile.Notice{Container: v.ContainerID, OutOfMemory: true})
			}
		}
	}
}
