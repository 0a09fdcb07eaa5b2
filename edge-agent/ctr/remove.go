package ctr

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/errdefs"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
)

// killWithin is how long a killed container may take to be gone.
const killWithin = 15 * time.Second

// Reap notes how a container ended, in its labels, and deletes its dead task.
func (r *Runtime) Reap(ctx context.Context, c reconcile.Container) error {
	ctx = r.ctx(ctx)
	container, err := r.client.LoadContainer(ctx, c.ID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return r.wrap("load container", err)
	}
	task, err := container.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return r.wrap("load task", err)
	}
	status, err := task.Status(ctx)
	if err != nil {
		return r.wrap("look at task", err)
	}
	if status.Status != containerd.Stopped {
		return nil
	}
	next := map[string]string{labelExited: milli(status.ExitTime), labelExitCode: strconv.Itoa(int(status.ExitStatus))}
	if old, err := container.Labels(ctx); err == nil && old[labelStarted] == "" {
		next[labelStarted] = milli(c.StartedAt)
		if c.StartedAt.IsZero() {
			next[labelStarted] = next[labelExited]
		}
	}
	if _, err := container.SetLabels(ctx, next); err != nil {
		return r.wrap("note end of container", err)
	}
	if _, err := task.Delete(ctx); err != nil && !errdefs.IsNotFound(err) {
		return r.wrap("delete task", err)
	}
	return nil
}

// Stop ends the container: SIGTERM, and SIGKILL after c.Grace.
func (r *Runtime) Stop(ctx context.Context, c reconcile.Container) error {
	ctx = r.ctx(ctx)
	container, err := r.client.LoadContainer(ctx, c.ID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return r.wrap("load container", err)
	}
	task, err := container.Task(ctx, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return r.wrap("load task", err)
	}
	ended, err := task.Wait(ctx)
	if err != nil {
		return r.wrap("wait for container", err)
	}
	if gone, err := r.signal(ctx, task, ended, syscall.SIGTERM, c.Grace); gone || err != nil {
		return err
	}
	gone, err := r.signal(ctx, task, ended, syscall.SIGKILL, killWithin, containerd.WithKillAll)
	if err == nil && !gone {
		return reconcile.Faultf(nil, "the container does not end, even when killed; a process may hang in the driver or on a disk: look at the host, it may need a reboot")
	}
	return err
}

// signal sends s and waits for the end, for at most d.
func (r *Runtime) signal(ctx context.Context, task containerd.Task, ended <-chan containerd.ExitStatus, s syscall.Signal, d time.Duration, opts ...containerd.KillOpts) (gone bool, err error) {
	err = task.Kill(ctx, s, opts...)
	if errdefs.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, r.wrap(fmt.Sprintf("send signal %d", s), err)
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case status := <-ended:
		return status.Error() == nil, r.wrap("wait for container", status.Error())
	case <-timer.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// Remove deletes the container and its writable layer, running or not.
func (r *Runtime) Remove(ctx context.Context, c reconcile.Container) error {
	ctx = r.ctx(ctx)
	container, err := r.client.LoadContainer(ctx, c.ID)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return r.wrap("load container", err)
	}
	task, err := container.Task(ctx, nil)
	if err == nil {
		_, err = task.Delete(ctx, containerd.WithProcessKill)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return r.wrap("delete task", err)
	}
	if err := r.emptyLayer(ctx, container); err != nil {
		return r.wrap("empty container", err)
	}
	// The record may name a snapshot that is gone already.
	err = container.Delete(ctx, containerd.WithSnapshotCleanup)
	if err != nil && !errdefs.IsNotFound(err) {
		return r.wrap("delete container", err)
	}
	r.mu.Lock()
	delete(r.disk, c.ID)
	r.mu.Unlock()
	return nil
}

// emptyLayer deletes what is in a container's writable layer, so that containerd finds
// little to delete.
func (r *Runtime) emptyLayer(ctx context.Context, container containerd.Container) error {
	rec, err := container.Info(ctx)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := r.client.SnapshotService(rec.Snapshotter).Mounts(ctx, rec.SnapshotKey)
	if err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	for _, m := range mounts {
		for _, option := range m.Options {
			if dir, upper := strings.CutPrefix(option, "upperdir="); upper && m.Type == "overlay" {
				if err := removeTree(dir); err != nil {
					return err
				}
				if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrNotExist) { // containerd has lost all of it
					return err
				}
			}
		}
	}
	return nil
}

// Purge deletes what is left of a workload: network, folders, volumes, log.
func (r *Runtime) Purge(ctx context.Context, workload string) error {
	if err := r.cfg.Network.Detach(ctx, workload); err != nil {
		return fmt.Errorf("detach network: %w", err)
	}
	r.mu.Lock()
	delete(r.ready, workload)
	r.mu.Unlock()
	return r.wrap("remove leftovers", r.removeDirs(workload))
}

// ReadLog calls each for the last tail lines (below zero: all) that the
// workload wrote, over restarts, and with follow for what it writes until ctx
// ends.
func (r *Runtime) ReadLog(ctx context.Context, workload string, tail int, follow bool, each func(logs.Line) error) error {
	return logs.Read(ctx, r.logPath(workload), tail, follow, each)
}
