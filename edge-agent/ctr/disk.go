package ctr

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
)

// measureEvery is how often a writable layer is measured: it means walking
// through all of its files.
const measureEvery = 30 * time.Second

type diskUse struct {
	bytes uint64
	at    time.Time
	busy  bool
}

// diskUsed returns the size of the container's writable layer as last measured
// and measures again in the background when that is old. Containers without a
// limit are not measured. One that ended is measured at once if its size is
// not known: it must not be started over its limit.
func (r *Runtime) diskUsed(ctx context.Context, rec containers.Container, state reconcile.State) uint64 {
	if rec.Labels[labelDiskLimit] == "" {
		return 0
	}
	r.mu.Lock()
	use := r.disk[rec.ID]
	begin := !use.busy && time.Since(use.at) > measureEvery
	if begin {
		use.busy = true
		r.disk[rec.ID] = use
	}
	r.mu.Unlock()
	switch {
	case !begin:
	case state == reconcile.Exited && use.at.IsZero():
		return r.measure(ctx, rec)
	default:
		go func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*measureEvery)
			defer cancel()
			r.measure(ctx, rec)
		}()
	}
	return use.bytes
}

func (r *Runtime) measure(ctx context.Context, rec containers.Container) uint64 {
	usage, err := r.client.SnapshotService(rec.Snapshotter).Usage(ctx, rec.SnapshotKey)
	r.mu.Lock()
	defer r.mu.Unlock()
	use := r.disk[rec.ID]
	use.busy, use.at = false, time.Now()
	if err == nil {
		use.bytes = uint64(usage.Size)
	} else {
		r.cfg.Log.Warn("size of container is unknown", "container", rec.ID, "err", err)
	}
	r.disk[rec.ID] = use
	return use.bytes
}

// diskFull reports whether err says so, also where it came as text from the
// daemon.
func diskFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || strings.Contains(err.Error(), "no space left on device") ||
		strings.Contains(err.Error(), "disk quota exceeded")
}

// usedPercent is how full the file system of dir is.
func usedPercent(dir string) (int, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	used, avail := st.Blocks-st.Bfree, st.Bavail
	if used+avail == 0 {
		return 0, nil
	}
	return int(used * 100 / (used + avail)), nil
}
