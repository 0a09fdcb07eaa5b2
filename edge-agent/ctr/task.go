package ctr

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// ContainerID is the name of a workload's container in containerd.
func ContainerID(workload string, revision uint64) string {
	return fmt.Sprintf("%s-%d", workload, revision)
}

// Create makes the container with its writable layer. Its spec is made by
// Start, every time anew: GPUs and network differ after a reboot.
func (r *Runtime) Create(ctx context.Context, w protocol.Workload) error {
	if err := r.checkMounts(w); err != nil {
		return err
	}
	ctx = r.ctx(ctx)
	name, _, _, err := r.reference(w.Image)
	if err != nil {
		return err
	}
	id := ContainerID(w.ID, w.Revision)
	if _, err := r.client.LoadContainer(ctx, id); err == nil {
		return nil
	}
	image, err := r.client.GetImage(ctx, name)
	if err != nil {
		return r.wrap("find image", err)
	}
	ctx, release, err := r.client.WithLease(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
	if err != nil {
		return r.wrap("create container", err)
	}
	defer func() {
		ctx, cancel := r.aside(ctx)
		defer cancel()
		release(ctx)
	}()
	// A snapshot without container is from a creation that was cut off.
	if err := r.client.SnapshotService(r.cfg.Snapshotter).Remove(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return r.wrap("remove old snapshot", err)
	}
	_, err = r.client.NewContainer(ctx, id,
		containerd.WithImage(image),
		containerd.WithSnapshotter(r.cfg.Snapshotter),
		containerd.WithNewSnapshot(id, image),
		containerd.WithRuntime(runtimeName, nil),
		containerd.WithSpec(&oci.Spec{}),
		containerd.WithContainerLabels(labels(w)))
	return r.wrap("create container", err)
}

func labels(w protocol.Workload) map[string]string {
	l := map[string]string{
		labelWorkload: w.ID, labelRevision: strconv.FormatUint(w.Revision, 10), labelSpec: specHash(w),
		labelGPUs: strings.Join(w.GPUs, ","), labelGrace: strconv.Itoa(int(w.Grace)),
	}
	if w.Limits.Disk > 0 {
		l[labelDiskLimit] = strconv.FormatUint(w.Limits.Disk, 10)
	}
	return l
}

// specHash is of what a container is made from, without what may change while
// it lives.
func specHash(w protocol.Workload) string {
	w.Want, w.Restart, w.Grace, w.Revision = "", "", 0, 0
	b, err := protocol.Marshal(w)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// Start attaches the network and runs the container.
func (r *Runtime) Start(ctx context.Context, w protocol.Workload, c reconcile.Container) error {
	if err := r.checkMounts(w); err != nil {
		return err
	}
	ctx = r.ctx(ctx)
	container, err := r.client.LoadContainer(ctx, c.ID)
	if err != nil {
		return r.wrap("load container", err)
	}
	task, err := container.Task(ctx, nil)
	if err == nil {
		status, err := task.Status(ctx)
		if err == nil && (status.Status == containerd.Running || status.Status == containerd.Paused) {
			return nil
		}
		if _, err := task.Delete(ctx, containerd.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			return r.wrap("delete old task", err)
		}
	} else if !errdefs.IsNotFound(err) {
		return r.wrap("load task", err)
	}
	if err := r.prepare(ctx, container, w); err != nil {
		return r.wrap("prepare container", err)
	}
	return r.launch(ctx, container, w)
}

// prepare makes everything around the container and writes its spec.
func (r *Runtime) prepare(ctx context.Context, container containerd.Container, w protocol.Workload) error {
	rec, err := container.Info(ctx)
	if err != nil {
		return err
	}
	image, err := r.imageConfig(ctx, container)
	if err != nil {
		return err
	}
	uid, gid, err := r.owner(ctx, rec, orElse(w.User, image.User))
	if err != nil {
		return err
	}
	netns, address, err := r.cfg.Network.Attach(ctx, w.ID)
	if err != nil {
		return fmt.Errorf("attach network: %w", err)
	}
	if netns == "" { // without a path runc would make an empty one and never share it
		return errors.New("attach network: it has no namespace")
	}
	err = errors.Join(r.makeRunDir(w.ID), r.makeEtc(w, address), r.makeVolumes(w, uid, gid), os.MkdirAll(filepath.Dir(r.logPath(w.ID)), 0o700))
	if err != nil {
		return err
	}
	spec, err := r.spec(ctx, w, rec, image, netns)
	if err != nil {
		return err
	}
	return container.Update(ctx, func(_ context.Context, _ *containerd.Client, c *containers.Container) error {
		any, err := typeurl.MarshalAny(spec)
		if err != nil {
			return fmt.Errorf("write OCI spec: %w", err)
		}
		c.Spec = any
		c.Labels[labelAddress] = address
		return nil
	})
}

func (r *Runtime) imageConfig(ctx context.Context, container containerd.Container) (ocispec.ImageConfig, error) {
	image, err := container.Image(ctx)
	if err != nil {
		return ocispec.ImageConfig{}, reconcile.Faultf(err, "the image of the container is no longer on this host; restart the environment to pull it again")
	}
	spec, err := image.Spec(ctx)
	if err != nil {
		return ocispec.ImageConfig{}, fmt.Errorf("read image config: %w", err)
	}
	return spec.Config, nil
}

// owner returns the numbers of the user as the image knows it.
func (r *Runtime) owner(ctx context.Context, rec containers.Container, user string) (uid, gid uint32, err error) {
	if user == "" {
		return 0, 0, nil
	}
	if err := r.checkUserFiles(ctx, rec); err != nil {
		return 0, 0, err
	}
	s := oci.Spec{Linux: &specs.Linux{}}
	if err := oci.WithUser(user)(ctx, r.client, &rec, &s); err != nil {
		if errdefs.IsUnavailable(err) {
			return 0, 0, err
		}
		return 0, 0, reconcile.Finalf(err, "user %q is not in the image; choose one that is, or a number", user)
	}
	return s.Process.User.UID, s.Process.User.GID, nil
}

// checkUserFiles refuses lists of users that are no files. The container, which does
// not run, may have left there what it likes, and containerd's code opens it before
// it looks: that would wait for the other end of a pipe, or be heard by a device.
func (r *Runtime) checkUserFiles(ctx context.Context, rec containers.Container) error {
	mounts, err := r.client.SnapshotService(rec.Snapshotter).Mounts(ctx, rec.SnapshotKey)
	if err != nil {
		return err
	}
	return mount.WithReadonlyTempMount(ctx, mounts, func(root string) error {
		for _, name := range []string{"/etc/passwd", "/etc/group"} {
			path, err := fs.RootPath(root, name)
			if err != nil {
				return reconcile.Finalf(err, "%s of the image leads nowhere; build the image anew", name)
			}
			if st, err := os.Lstat(path); err == nil && !st.Mode().IsRegular() {
				return reconcile.Finalf(nil, "%s of the image is no plain file, so its users are not known; restart the environment, or build the image anew", name)
			}
		}
		return nil
	})
}

// launch makes the task and starts it; on failure nothing of it stays.
func (r *Runtime) launch(ctx context.Context, container containerd.Container, w protocol.Workload) (err error) {
	uri := &url.URL{Scheme: "binary", Path: r.cfg.LogDriver, RawQuery: url.Values{logs.Argument: {r.logPath(w.ID)}}.Encode()}
	task, err := container.NewTask(ctx, cio.LogURI(uri))
	if err != nil {
		return r.launchFault(w, err)
	}
	defer func() {
		if err != nil {
			ctx, cancel := r.aside(ctx)
			defer cancel()
			task.Delete(ctx, containerd.WithProcessKill)
		}
	}()
	begun := time.Now()
	if err := task.Start(ctx); err != nil {
		return r.launchFault(w, err)
	}
	// The container runs: what follows is only noted, and Observe does without.
	noted, cancel := r.aside(ctx)
	defer cancel()
	if err := r.note(noted, container, begun); err != nil {
		r.cfg.Log.Warn("start of container is not noted", "container", container.ID(), "err", err)
	}
	return nil
}

func (r *Runtime) note(ctx context.Context, container containerd.Container, begun time.Time) error {
	old, err := container.Labels(ctx)
	if err != nil {
		return err
	}
	next := map[string]string{labelStarted: milli(begun)}
	if old[labelStarted] != "" {
		next[labelRestarts] = strconv.FormatUint(number(old[labelRestarts])+1, 10)
	}
	_, err = container.SetLabels(ctx, next)
	return err
}

// launchFault says for a person why runc did not start the container.
func (r *Runtime) launchFault(w protocol.Workload, err error) error {
	text := err.Error()
	switch {
	case errdefs.IsUnavailable(err), diskFull(err):
	case strings.Contains(text, "error mounting"):
		return reconcile.Faultf(err, "a folder could not be mounted into the container; check the mounts of %s (%s)", w.Name, lastPart(text))
	case strings.Contains(text, "/.remotegpu/helper") && strings.Contains(text, "exec"):
		return reconcile.Faultf(err, "the agent's helper cannot run in the container; repair the agent's installation (%s)", r.cfg.Helper)
	case strings.Contains(text, "OCI runtime create failed"), strings.Contains(text, "runc create failed"):
		return reconcile.Faultf(err, "the host could not make the container; check its limits and mounts (%s)", lastPart(text))
	}
	return r.wrap("start container", err)
}

// lastPart is the tail of a wrapped error's text: runc puts the cause there.
func lastPart(text string) string {
	if i := strings.LastIndex(text, "runc create failed: "); i >= 0 {
		text = text[i+len("runc create failed: "):]
	}
	if len(text) > 300 {
		text = text[:300] + "…"
	}
	return strings.TrimSuffix(text, ": unknown")
}
