// Package ctr runs workloads as containers of containerd.
//
// It owns everything a workload has on the host: image, container, snapshot,
// task, OCI spec, run dir, volumes and log. It decides nothing: package
// reconcile says which step is next, and Runtime does it. Networks are made by
// somebody else, through Network. Its invariant: what it must know again after
// a crash lies in containerd's labels or in folders, never in memory alone; no
// container has more rights than Docker's defaults give, but for the GPUs and
// mounts that its workload names.
//
// The disk limit of a workload is measured, not enforced: overlayfs has no
// quota of its own, so a container may go over it for up to half a minute
// before it is stopped with a message that says so.
package ctr

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// Labels of a container; times are Unix milliseconds.
const (
	labelWorkload  = "remotegpu.dev/workload"
	labelRevision  = "remotegpu.dev/revision"
	labelSpec      = "remotegpu.dev/spec" // hash of the workload, for people who compare
	labelGPUs      = "remotegpu.dev/gpus"
	labelGrace     = "remotegpu.dev/grace" // seconds
	labelDiskLimit = "remotegpu.dev/disk"  // bytes; absent: none
	labelStarted   = "remotegpu.dev/started"
	labelExited    = "remotegpu.dev/exited"
	labelExitCode  = "remotegpu.dev/exit-code"
	labelRestarts  = "remotegpu.dev/restarts"
	labelAddress   = "remotegpu.dev/address"
	labelUsed      = "remotegpu.dev/used" // of an image: Unix seconds when last wanted
)

const (
	runtimeName = "io.containerd.runc.v2"
	// callWithin bounds what must be fast: deleting a lease, cleaning up.
	callWithin   = 20 * time.Second
	defaultGrace = 10 * time.Second
)

// Network makes the networks of workloads. All four are required.
type Network struct {
	// Attach returns the path of the workload's network namespace and its
	// address, making both if needed.
	Attach func(ctx context.Context, workload string) (netns, address string, err error)
	Detach func(ctx context.Context, workload string) error
	List   func() (workloads []string, err error)
	// ResolvConf returns the file to mount at /etc/resolv.conf; empty: none.
	ResolvConf func() string
}

// Config is what a Runtime needs.
type Config struct {
	Address   string // containerd's socket; required
	Namespace string // of containerd; empty: "remotegpu"
	DataDir   string // volumes/ and logs/ are made in it; required
	RunDir    string // w/ and etc/ are made in it; required
	Helper    string // the helper program on the host; required
	LogDriver string // program that runs logs.Drive when called as PROGRAM log-driver PATH; required
	Network   Network
	// Registry is the host[:port] that "{control}" in an image stands for, and
	// RegistryCA whom it is trusted by (nil: the system's).
	Registry   string
	RegistryCA *x509.CertPool
	// Credentials returns what to log in to a registry with, for workloads with
	// PullAuth; nil: nothing.
	Credentials func(ctx context.Context, w protocol.Workload, registryHost string) (user, password string, err error)
	CDIDirs     []string      // besides /etc/cdi and /var/run/cdi, stronger than them
	Snapshotter string        // empty: overlayfs
	ImageDir    string        // on the file system that holds images; empty: /var/lib/containerd, else DataDir
	ImageTTL    time.Duration // how long an image stays that nobody wants; 0: 24 h
	DiskHigh    int           // percent of ImageDir's file system above which it goes at once; 0: 85
	Log         *slog.Logger
}

// Runtime is reconcile.Runtime on containerd. It is safe for concurrent use.
type Runtime struct {
	cfg    Config
	client *containerd.Client

	mu    sync.Mutex
	ready map[string]readyImage // by workload: whose image is here; guarded by mu
	disk  map[string]diskUse    // by container; guarded by mu
}

type readyImage struct {
	revision uint64
	ref      string
}

var _ reconcile.Runtime = (*Runtime)(nil)

// New returns a runtime. It does not need containerd to be there yet.
func New(cfg Config) (*Runtime, error) {
	cfg.Namespace = cmp.Or(cfg.Namespace, "remotegpu")
	cfg.Snapshotter = cmp.Or(cfg.Snapshotter, "overlayfs")
	cfg.ImageTTL = cmp.Or(cfg.ImageTTL, 24*time.Hour)
	cfg.DiskHigh = cmp.Or(cfg.DiskHigh, 85)
	if cfg.ImageDir == "" {
		cfg.ImageDir = cfg.DataDir
		if _, err := os.Stat("/var/lib/containerd"); err == nil {
			cfg.ImageDir = "/var/lib/containerd"
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	for _, p := range []string{cfg.Address, cfg.DataDir, cfg.RunDir, cfg.Helper, cfg.LogDriver} {
		if !filepath.IsAbs(p) {
			return nil, fmt.Errorf("set up containers: %q is not an absolute path", p)
		}
	}
	client, err := containerd.New(cfg.Address,
		containerd.WithDefaultNamespace(cfg.Namespace),
		containerd.WithDefaultRuntime(runtimeName),
		containerd.WithTimeout(2*time.Second)) // also the longest pause between tries to connect
	if err != nil {
		return nil, fmt.Errorf("set up containerd client: %w", err)
	}
	return &Runtime{
		cfg: cfg, client: client,
		ready: map[string]readyImage{}, disk: map[string]diskUse{},
	}, nil
}

// Close gives the connection back; containers run on.
func (r *Runtime) Close() error { return r.client.Close() }

// ctx names the namespace and keeps the client library's own log quiet.
func (r *Runtime) ctx(ctx context.Context) context.Context {
	return log.WithLogger(namespaces.WithNamespace(ctx, r.cfg.Namespace), silent)
}

// silent swallows what containerd's client library logs; errors come back anyway.
var silent = func() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}()

// aside is for cleaning up after ctx may have ended.
func (r *Runtime) aside(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), callWithin)
}

// wrap says what was being done when err came, and marks an absent daemon.
func (r *Runtime) wrap(doing string, err error) error {
	var fault *reconcile.Fault
	switch {
	case err == nil, errors.As(err, &fault):
		return err
	case errdefs.IsUnavailable(err) || errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%s: %w: %w", doing, reconcile.ErrUnavailable, err)
	case diskFull(err):
		return reconcile.Faultf(err, "the host's disk is full; free space on the host, or remove environments or images from it")
	}
	return fmt.Errorf("%s: %w", doing, err)
}
