package protocol

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strconv"
	"strings"
)

// Desired is everything one host shall run. It replaces the document before
// it; a workload that is not in it is to be removed. Written by control alone.
type Desired struct {
	Version    int        `cbor:"1,keyasint"`           // Version
	Host       string     `cbor:"2,keyasint"`           // the host it is for; an agent refuses another's
	Generation uint64     `cbor:"3,keyasint"`           // grows by at least one with every change
	IssuedAt   int64      `cbor:"4,keyasint"`           // Unix seconds, for people; no decision hangs on it
	Workloads  []Workload `cbor:"5,keyasint,omitempty"` // sorted by ID
}

// Wanted states of a workload.
const (
	WantRunning = "running"
	WantStopped = "stopped" // the container goes, its files stay
)

// Restart policies.
const (
	RestartAlways    = "always"
	RestartOnFailure = "on-failure" // exit code other than 0
	RestartNever     = "never"
)

// Workload is one container that a host shall have.
type Workload struct {
	ID        string            `cbor:"1,keyasint"`            // env_… (later job_…, svc_…)
	Revision  uint64            `cbor:"2,keyasint"`            // a new one means a new container: restart, rebuild, changed spec
	Name      string            `cbor:"3,keyasint"`            // what people type; the container's hostname
	Workspace string            `cbor:"4,keyasint"`            // ws_…
	Want      string            `cbor:"5,keyasint"`            // WantRunning or WantStopped
	Image     string            `cbor:"6,keyasint"`            // full reference with registry; "{control}" as registry means the built-in one
	Command   []string          `cbor:"7,keyasint,omitempty"`  // empty: the container only waits for sessions
	Env       map[string]string `cbor:"8,keyasint,omitempty"`  // added to the image's
	User      string            `cbor:"9,keyasint,omitempty"`  // name or uid[:gid]; empty: the image's
	Workdir   string            `cbor:"10,keyasint,omitempty"` // empty: the image's
	GPUs      []string          `cbor:"11,keyasint,omitempty"` // UUIDs
	Limits    Limits            `cbor:"12,keyasint"`
	Mounts    []Mount           `cbor:"13,keyasint,omitempty"`
	Restart   string            `cbor:"14,keyasint"`           // RestartAlways, RestartOnFailure or RestartNever
	Grace     uint32            `cbor:"15,keyasint,omitempty"` // seconds between SIGTERM and SIGKILL; 0: 10
	PullAuth  bool              `cbor:"16,keyasint,omitempty"` // ask control over HTTPS for credentials before pulling
}

// Limits bound what a container may use. Zero means no limit, but for Pids and
// Shm, where zero means the agent's default (4096 and 64 MiB).
type Limits struct {
	MilliCPU uint64 `cbor:"1,keyasint,omitempty"` // thousandths of a core
	Memory   uint64 `cbor:"2,keyasint,omitempty"` // bytes
	Pids     uint64 `cbor:"3,keyasint,omitempty"`
	Shm      uint64 `cbor:"4,keyasint,omitempty"` // bytes of /dev/shm
	Disk     uint64 `cbor:"5,keyasint,omitempty"` // bytes of the writable layer
}

// Mount is a folder that the agent keeps for a workload or finds on the host.
type Mount struct {
	Target   string `cbor:"1,keyasint"`           // absolute path in the container
	Volume   string `cbor:"2,keyasint,omitempty"` // name of a folder kept per workload; it lives until the workload leaves the document
	HostPath string `cbor:"3,keyasint,omitempty"` // absolute path on the host; exactly one of Volume and HostPath is set
	ReadOnly bool   `cbor:"4,keyasint,omitempty"`
}

// ReservedDir is the folder in every container that holds the agent's helper;
// nothing may be mounted there.
const ReservedDir = "/.remotegpu"

// Digest returns the SHA-256 of the document's encoding.
func (d *Desired) Digest() ([]byte, error) {
	b, err := Marshal(d)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return sum[:], nil
}

// Validate checks version, host and the limits of every workload.
func (d *Desired) Validate() error {
	switch {
	case d.Version != Version:
		return fmt.Errorf("desired document has version %d, this agent knows %d: upgrade the agent", d.Version, Version)
	case !ValidID(PrefixHost, d.Host):
		return fmt.Errorf("desired document names no valid host: %.40q", d.Host)
	case d.Generation == 0 || tooMany(d.Generation):
		return fmt.Errorf("desired document has no generation")
	case len(d.Workloads) > MaxWorkloads:
		return fmt.Errorf("%d workloads are over the limit of %d", len(d.Workloads), MaxWorkloads)
	}
	seen := make(map[string]bool, len(d.Workloads))
	for i := range d.Workloads {
		w := &d.Workloads[i]
		if err := w.validate(); err != nil {
			return fmt.Errorf("workload %.40q: %w", w.ID, err)
		}
		if seen[w.ID] {
			return fmt.Errorf("workload %s stands twice in the document", w.ID)
		}
		seen[w.ID] = true
	}
	return nil
}

func (w *Workload) validate() error {
	switch {
	case !validName(w.ID):
		return fmt.Errorf("id may have only letters, digits, '-', '_' and at most 64 characters")
	case w.Want != WantRunning && w.Want != WantStopped:
		return fmt.Errorf("unknown wanted state %.40q", w.Want)
	case w.Restart != RestartAlways && w.Restart != RestartOnFailure && w.Restart != RestartNever:
		return fmt.Errorf("unknown restart policy %.40q", w.Restart)
	case w.Image == "" || len(w.Image) > MaxLabel:
		return fmt.Errorf("image reference is empty or over %d bytes", MaxLabel)
	case !validName(w.Name):
		return fmt.Errorf("name %.80q may have only letters, digits, '-', '_' and at most 64 characters", w.Name)
	case tooLong(w.Workspace, w.User) || len(w.Workdir) > MaxText || tooMany(w.Revision):
		return fmt.Errorf("workspace, user, workdir or revision is over its limits")
	}
	if err := w.Limits.validate(); err != nil {
		return err
	}
	if err := checkProcess(w.Command, w.Env); err != nil {
		return err
	}
	if err := checkGPUs(w.GPUs); err != nil {
		return err
	}
	targets := make(map[string]bool, len(w.Mounts))
	for _, m := range w.Mounts {
		if err := m.validate(); err != nil {
			return err
		}
		if targets[m.Target] {
			return fmt.Errorf("two mounts have the target %s", m.Target)
		}
		targets[m.Target] = true
	}
	return nil
}

// checkProcess refuses what execve cannot pass on, and more of it than is decoded.
func checkProcess(command []string, env map[string]string) error {
	if len(command) > maxElements || len(env) > maxPairs {
		return fmt.Errorf("%d arguments and %d variables are over the limits of %d and %d", len(command), len(env), maxElements, maxPairs)
	}
	for _, arg := range command {
		if strings.ContainsRune(arg, 0) {
			return fmt.Errorf("command has a zero byte")
		}
	}
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("environment variable %.80q is empty or has '=' or a zero byte", name)
		}
	}
	return nil
}

func checkGPUs(uuids []string) error {
	if len(uuids) > maxGPUs || anyTooLong(uuids) {
		return fmt.Errorf("GPUs are over the limit of %d", maxGPUs)
	}
	seen := make(map[string]bool, len(uuids))
	for _, uuid := range uuids {
		if uuid == "" || seen[uuid] {
			return fmt.Errorf("GPU %q is empty or stands twice", uuid)
		}
		seen[uuid] = true
	}
	return nil
}

// validate keeps products of the limits within signed integers.
func (l Limits) validate() error {
	if l.MilliCPU > 1<<32 || tooMany(l.Memory, l.Pids, l.Shm, l.Disk) {
		return fmt.Errorf("limits are beyond any machine")
	}
	return nil
}

func (m Mount) validate() error {
	switch {
	case !cleanAbs(m.Target) || m.Target == "/":
		return fmt.Errorf("mount target %.80q is not a clean absolute path", m.Target)
	case m.Target == ReservedDir || strings.HasPrefix(m.Target, ReservedDir+"/"):
		return fmt.Errorf("mount target %s is RemoteGPU's own folder: choose another", m.Target)
	case (m.Volume == "") == (m.HostPath == ""):
		return fmt.Errorf("mount at %s needs a volume or a host path, not both", m.Target)
	case m.Volume != "" && !validName(m.Volume):
		return fmt.Errorf("volume name %.80q may have only letters, digits, '-' and '_'", m.Volume)
	case m.HostPath != "" && !cleanAbs(m.HostPath):
		return fmt.Errorf("host path %.80q is not a clean absolute path", m.HostPath)
	}
	return nil
}

// Reference stands on the desired topic for a document over MaxDesired: what to
// fetch at ReferencePath, and how to know that it is the one. Written by control
// alone.
type Reference struct {
	Version    int    `cbor:"1,keyasint"` // Version
	Host       string `cbor:"2,keyasint"` // the host it is for; an agent refuses another's
	Generation uint64 `cbor:"3,keyasint"` // of the document
	Digest     []byte `cbor:"4,keyasint"` // SHA-256 of the signed document
	Size       uint64 `cbor:"5,keyasint"` // bytes of the signed document
}

// ReferencePath is where a host fetches its own document of a generation, with a
// bearer of AudienceAPI. Status 409 says that there is a newer one by now, whose
// reference is on its way.
func ReferencePath(generation uint64) string {
	return "/api/v1/agent/desired/" + strconv.FormatUint(generation, 10)
}

// Refer returns the reference to a signed document.
func Refer(host string, generation uint64, signed []byte) *Reference {
	sum := sha256.Sum256(signed)
	return &Reference{Version: Version, Host: host, Generation: generation, Digest: sum[:], Size: uint64(len(signed))}
}

// Validate checks version, host and limits.
func (r *Reference) Validate() error {
	switch {
	case r.Version != Version:
		return fmt.Errorf("reference has version %d, this agent knows %d: upgrade the agent", r.Version, Version)
	case !ValidID(PrefixHost, r.Host):
		return fmt.Errorf("reference names no valid host: %.40q", r.Host)
	case r.Generation == 0 || tooMany(r.Generation):
		return fmt.Errorf("reference has no generation")
	case len(r.Digest) != sha256.Size:
		return fmt.Errorf("reference has a digest of %d bytes", len(r.Digest))
	case r.Size == 0 || r.Size > MaxDocument:
		return fmt.Errorf("reference is to a document of %d bytes, the limit is %d", r.Size, MaxDocument)
	}
	return nil
}

// Check reports why fetched is not what r refers to.
func (r *Reference) Check(fetched []byte) error {
	if uint64(len(fetched)) != r.Size {
		return fmt.Errorf("fetched document has %d bytes, its reference says %d", len(fetched), r.Size)
	}
	if sum := sha256.Sum256(fetched); !bytes.Equal(sum[:], r.Digest) {
		return fmt.Errorf("fetched document has the digest %x, its reference says %x", sum[:8], r.Digest[:8])
	}
	return nil
}
