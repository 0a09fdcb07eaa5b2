package ctr

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// controlHost at the start of an image means the control plane's registry.
const controlHost = "{control}/"

// stalledAfter is how long a pull may stand still before it is begun anew.
const stalledAfter = 2 * time.Minute

// reference returns the full name of a workload's image and its registry.
func (r *Runtime) reference(image string) (name, host string, digested bool, err error) {
	full := image
	if rest, ok := strings.CutPrefix(image, controlHost); ok {
		if r.cfg.Registry == "" {
			return "", "", false, reconcile.Finalf(nil, "image %s is in the control plane's registry, which this host does not know; join the host again", image)
		}
		full = r.cfg.Registry + "/" + rest
	}
	ref, err := reference.ParseDockerRef(full)
	if err != nil {
		return "", "", false, reconcile.Finalf(err, "image reference %q cannot be read; write it as registry/name:tag", image)
	}
	_, digested = ref.(reference.Digested)
	return ref.String(), reference.Domain(ref), digested, nil
}

// Pull fetches and unpacks the image of w. A tag is looked up anew for every
// revision; if its registry cannot be reached, the image that is here will do.
func (r *Runtime) Pull(ctx context.Context, w protocol.Workload, progress func(done, total uint64)) error {
	name, host, digested, err := r.reference(w.Image)
	if err != nil {
		return err
	}
	ctx = r.ctx(ctx)
	if digested && r.usable(ctx, name) {
		r.isReady(w, name)
		return nil
	}
	err = r.fetch(ctx, w, name, host, progress)
	switch {
	case errdefs.IsNotFound(err) && !answered(err):
		// containerd's garbage collection took a layer that an earlier, cancelled
		// pull had left, between our look at it and our use of it.
		err = r.fetch(ctx, w, name, host, progress)
	case err == nil && !r.usable(ctx, name):
		// containerd died in the midst of a collection: its snapshotter has layers
		// that it knows nothing of, and says that they are there already.
		if err = r.collect(ctx); err == nil {
			err = r.fetch(ctx, w, name, host, progress)
		}
	}
	if err != nil {
		if ctx.Err() == nil && !answered(err) && r.usable(ctx, name) {
			r.cfg.Log.Warn("registry cannot be reached, image from before is used", "env", w.ID, "image", name, "err", err)
			r.isReady(w, name)
			return nil
		}
		return r.pullFault(w, host, err)
	}
	r.isReady(w, name)
	return nil
}

// collect has containerd collect its garbage now.
func (r *Runtime) collect(ctx context.Context) error {
	l, err := r.client.LeasesService().Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("take lease: %w", err)
	}
	return r.client.LeasesService().Delete(ctx, l, leases.SynchronousDelete)
}

func (r *Runtime) isReady(w protocol.Workload, name string) {
	r.mu.Lock()
	r.ready[w.ID] = readyImage{w.Revision, name}
	r.mu.Unlock()
}

// usable reports whether the image is here and unpacked.
func (r *Runtime) usable(ctx context.Context, name string) bool {
	img, err := r.client.GetImage(ctx, name)
	if err != nil {
		return false
	}
	ok, err := img.IsUnpacked(ctx, r.cfg.Snapshotter)
	return err == nil && ok
}

func (r *Runtime) fetch(ctx context.Context, w protocol.Workload, name, host string, progress func(done, total uint64)) error {
	var watching sync.WaitGroup
	defer watching.Wait() // after stop: progress is never called once this has returned
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	ctx, release, err := r.client.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(24*time.Hour))
	if err != nil {
		return fmt.Errorf("take lease: %w", err)
	}
	defer func() {
		ctx, cancel := r.aside(ctx)
		defer cancel()
		if err := release(ctx); err != nil && !errdefs.IsNotFound(err) {
			r.cfg.Log.Debug("lease stays until it expires", "err", err)
		}
	}()
	t := newTracker(r.client.ContentStore(), progress, func() { stop(errStalled) })
	watching.Go(func() { t.run(ctx) })
	_, err = r.client.Pull(ctx, name,
		containerd.WithResolver(r.resolver(ctx, w, host)),
		containerd.WithPullUnpack,
		containerd.WithPullSnapshotter(r.cfg.Snapshotter),
		containerd.WithImageHandlerWrapper(t.wrap),
		containerd.WithPullLabel(labelUsed, strconv.FormatInt(time.Now().Unix(), 10)))
	if cause := context.Cause(ctx); err != nil && cause == errStalled {
		return cause
	}
	return err
}

// Sweep deletes images that no workload wants and no container uses: after
// ImageTTL, or at once while the disk is nearly full.
func (r *Runtime) Sweep(ctx context.Context, want []protocol.Workload) error {
	ctx = r.ctx(ctx)
	used, err := r.usedImages(ctx, want)
	if err != nil {
		return r.wrap("sweep images", err)
	}
	ttl := r.cfg.ImageTTL
	if percent, err := usedPercent(r.cfg.ImageDir); err == nil && percent >= r.cfg.DiskHigh {
		r.cfg.Log.Warn("disk is nearly full, unused images go", "dir", r.cfg.ImageDir, "percent", percent)
		ttl = 0
	}
	list, err := r.client.ImageService().List(ctx)
	if err != nil {
		return r.wrap("sweep images", err)
	}
	now := time.Now()
	for _, img := range list {
		last := time.Unix(int64(number(img.Labels[labelUsed])), 0)
		switch {
		case used[img.Name] && now.Sub(last) < time.Hour:
		case used[img.Name] || last.Unix() == 0:
			err = r.markUsed(ctx, img, now)
		case now.Sub(last) >= ttl:
			r.cfg.Log.Info("image removed", "image", img.Name)
			err = r.client.ImageService().Delete(ctx, img.Name, images.SynchronousDelete())
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return r.wrap("sweep image "+img.Name, err)
		}
	}
	return nil
}

func (r *Runtime) markUsed(ctx context.Context, img images.Image, at time.Time) error {
	img.Labels = maps.Clone(img.Labels)
	if img.Labels == nil {
		img.Labels = map[string]string{}
	}
	img.Labels[labelUsed] = strconv.FormatInt(at.Unix(), 10)
	_, err := r.client.ImageService().Update(ctx, img, "labels."+labelUsed)
	return err
}

// usedImages are the names of images that must stay.
func (r *Runtime) usedImages(ctx context.Context, want []protocol.Workload) (map[string]bool, error) {
	used := map[string]bool{}
	wanted := map[string]bool{}
	for _, w := range want {
		wanted[w.ID] = true
		if name, _, _, err := r.reference(w.Image); err == nil {
			used[name] = true
		}
	}
	records, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, err
	}
	for _, c := range records {
		used[c.Image] = true
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range slices.Collect(maps.Keys(r.ready)) {
		if !wanted[id] {
			delete(r.ready, id)
		}
	}
	return used, nil
}
