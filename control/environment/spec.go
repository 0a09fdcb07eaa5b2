package environment

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/control/workspace"
	"github.com/remotegpu/remotegpu/protocol"
)

// Spec is what a person asks for. Zero fields take the default.
type Spec struct {
	Name      string             `json:"name" maxLength:"64" doc:"Small letters, digits and hyphens, at most 40"`
	Image     string             `json:"image,omitempty" maxLength:"256" doc:"Default: the starter image"`
	Command   []string           `json:"command,omitempty" maxItems:"256" doc:"Default: none, the container waits for sessions"`
	Env       map[string]string  `json:"env,omitempty"`
	User      string             `json:"user,omitempty" maxLength:"64" doc:"Name or uid[:gid]; default: the image's"`
	Workdir   string             `json:"workdir,omitempty" maxLength:"256"`
	Resources Resources          `json:"resources,omitempty"`
	Mounts    []Mount            `json:"mounts,omitempty" maxItems:"32" doc:"Default: /gemini/code and /gemini/output"`
	Restart   string             `json:"restart,omitempty" doc:"always, on-failure or never; default: always"`
	Priority  int                `json:"priority,omitempty" minimum:"0" maximum:"100" doc:"Higher is served first; more than 0 needs a workspace admin"`
	Affinity  scheduler.Affinity `json:"affinity,omitempty" doc:"Only there"`
	Prefer    scheduler.Affinity `json:"prefer,omitempty" doc:"There, if possible"`
}

// StarterImage is what an environment gets that names no image.
const StarterImage = controlRegistry + "library/starter:latest"

const (
	controlRegistry = "{control}/"
	maxSpecBytes    = 16 << 10 // command and variables: the host's document must stay small
	maxVariables    = 1024     // a host decodes no document in which somebody has 4096 and more
	maxBytes        = 1 << 60  // no machine has more

	// A host's document must not grow over protocol.MaxDocument, or its host would
	// hear nothing new; some room is left for those who are placed at once.
	maxDocument = protocol.MaxDocument * 3 / 4
	maxPerHost  = protocol.MaxWorkloads / 2
)

var (
	nameRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)
	varRule  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	userRule = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,31})?$`)
)

// check fills defaults in and says what is wrong. ws is the workspace's name,
// registry the address of the built-in registry.
func (s *Spec) check(ws, registry string) (err error) {
	if !nameRule.MatchString(s.Name) {
		return errs.Ef(errs.Invalid, "%.60q is no name for an environment: use 1 to 40 small letters, digits and hyphens.", s.Name)
	}
	if s.Image, err = image(s.Image, ws, registry); err != nil {
		return err
	}
	switch s.Restart {
	case "":
		s.Restart = protocol.RestartAlways
	case protocol.RestartAlways, protocol.RestartOnFailure, protocol.RestartNever:
	default:
		return errs.Ef(errs.Invalid, "%.40q is no restart policy; use always, on-failure or never.", s.Restart)
	}
	if s.User != "" && !userRule.MatchString(s.User) {
		return errs.Ef(errs.Invalid, "%.60q is no user; write a name or uid[:gid].", s.User)
	}
	if s.Workdir != "" && (!path.IsAbs(s.Workdir) || path.Clean(s.Workdir) != s.Workdir) {
		return errs.Ef(errs.Invalid, "The working folder %.60q must be a plain absolute path, like /gemini/code.", s.Workdir)
	}
	if err := s.checkProcess(); err != nil {
		return err
	}
	if err := s.Resources.check(); err != nil {
		return err
	}
	return s.checkMounts()
}

func (s *Spec) checkProcess() error {
	if len(s.Env) > maxVariables {
		return errs.Ef(errs.Invalid, "%d variables are over the limit of %d; put them in a file under /gemini/code.", len(s.Env), maxVariables)
	}
	total := 0
	for _, arg := range s.Command {
		if strings.ContainsRune(arg, 0) {
			return errs.E(errs.Invalid, "The command has a zero byte, which no program can be given; remove it.")
		}
		total += len(arg)
	}
	for k, v := range s.Env {
		if !varRule.MatchString(k) {
			return errs.Ef(errs.Invalid, "%.60q is no name for a variable: use letters, digits and underscores, no digit first.", k)
		}
		if strings.ContainsRune(v, 0) {
			return errs.Ef(errs.Invalid, "The variable %s has a zero byte; remove it.", k)
		}
		total += len(k) + len(v)
	}
	if total > maxSpecBytes {
		return errs.Ef(errs.Invalid, "Command and variables take %d bytes, over the limit of %d; put large values in a file under /gemini/code.", total, maxSpecBytes)
	}
	return nil
}

func (r *Resources) check() error {
	switch {
	case r.GPUs < 0 || r.GPUs > 64:
		return errs.E(errs.Invalid, "An environment has 0 to 64 GPUs, as many as one host can have; for more, use several environments.")
	case r.GPUs == 0 && (r.GPUModel != "" || r.GPUMemory > 0):
		return errs.E(errs.Invalid, "A GPU model or GPU memory is asked, but no GPU; say how many: --gpus 1")
	case r.MilliCPU > 1e9, max(r.Memory, r.Disk, r.Shm, r.GPUMemory) > maxBytes, r.Pids > 1<<22:
		return errs.E(errs.Invalid, "More is asked than any machine has; check the units (memory and disk are in bytes, cores in thousandths).")
	case r.Memory > 0 && r.Memory < 16<<20:
		return errs.Ef(errs.Invalid, "%d bytes of memory are too few for any container; ask for at least 16 MiB.", r.Memory)
	case r.Memory > 0 && r.Shm > r.Memory:
		return errs.E(errs.Invalid, "/dev/shm is part of the memory and cannot be larger; raise memory or lower shm.")
	}
	return nil
}

// defaultMounts are the folders that outlive the container.
var defaultMounts = []Mount{{Target: "/gemini/code", Volume: "code"}, {Target: "/gemini/output", Volume: "output"}}

var reserved = []string{"/", "/proc", "/sys", "/dev", "/.remotegpu", "/etc", "/bin", "/sbin", "/lib", "/lib64", "/usr", "/run", "/boot"}

var volumeRule = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$`)

func (s *Spec) checkMounts() error {
	if s.Mounts == nil {
		s.Mounts = slices.Clone(defaultMounts)
	}
	seen := map[string]bool{}
	for _, m := range s.Mounts {
		switch {
		case !path.IsAbs(m.Target) || path.Clean(m.Target) != m.Target || len(m.Target) > 256:
			return errs.Ef(errs.Invalid, "The mount target %.60q must be a plain absolute path, like /data.", m.Target)
		case slices.Contains(reserved, m.Target) || slices.ContainsFunc(reserved[1:5], func(r string) bool { return strings.HasPrefix(m.Target, r+"/") }):
			return errs.Ef(errs.Invalid, "Nothing can be mounted at %s; the container needs it. Use a folder such as /data.", m.Target)
		case seen[m.Target]:
			return errs.Ef(errs.Invalid, "Two mounts have the target %s; give each its own.", m.Target)
		case !volumeRule.MatchString(m.Volume):
			return errs.Ef(errs.Invalid, "%.60q is no name for a volume: use 1 to 40 small letters, digits and hyphens.", m.Volume)
		}
		seen[m.Target] = true
	}
	return nil
}

// image returns the full reference of what a person wrote, or why workspace ws
// may not have it.
func image(written, ws, registry string) (string, error) {
	if written == "" {
		return StarterImage, nil
	}
	address := cmp.Or(registry, strings.TrimSuffix(controlRegistry, "/")) // as people call it
	rest, own := strings.CutPrefix(written, controlRegistry)
	if domain, path, _ := strings.Cut(written, "/"); !own && strings.EqualFold(domain, registry) {
		rest, own = path, true
	}
	if !own {
		named, err := reference.ParseDockerRef(written)
		if err != nil {
			return "", errs.Ef(errs.Invalid, "%.120q is no image: write it like python:3.13, registry.example.org/name:tag or %s/%s/name:tag.", written, address, ws)
		}
		return short(named.String())
	}
	named, err := reference.ParseDockerRef("control.invalid/" + rest)
	if err != nil || reference.Domain(named) != "control.invalid" {
		return "", errs.Ef(errs.Invalid, "%.120q is no image: on the built-in registry write %s/%s/name:tag.", written, address, ws)
	}
	owner, name, _ := strings.Cut(reference.Path(named), "/")
	switch {
	case name == "":
		return "", errs.Ef(errs.Invalid, "%.120q lacks the workspace: on the built-in registry write %s/%s/name:tag.", written, address, ws)
	case owner != ws && owner != workspace.Library:
		return "", errs.Ef(errs.Denied, "Workspace %s has no right to pull %s: on the built-in registry it may use %[3]s/%[1]s/… and %[3]s/%[4]s/…; have the image pushed to one of them.",
			ws, address+"/"+strings.TrimPrefix(named.String(), "control.invalid/"), address, workspace.Library)
	}
	return short(controlRegistry + strings.TrimPrefix(named.String(), "control.invalid/"))
}

func short(image string) (string, error) {
	if len(image) > protocol.MaxLabel {
		return "", errs.Ef(errs.Invalid, "The image's name has %d characters, over the limit of %d; use a shorter one.", len(image), protocol.MaxLabel)
	}
	return image, nil
}

func builtIn(image string) bool { return strings.HasPrefix(image, controlRegistry) }

// environment makes a new one of a checked spec.
func (s *Spec) environment(id, ws string, c auth.Caller) Environment {
	return Environment{
		ID: id, Workspace: ws, Name: s.Name, Owner: c.ID, Image: s.Image, Command: s.Command, Env: s.Env, User: s.User, Workdir: s.Workdir,
		Resources: s.Resources, Mounts: s.Mounts, Affinity: s.Affinity, Prefer: s.Prefer, Restart: s.Restart, Priority: s.Priority,
		Revision: 1, Want: wantRunning, Phase: protocol.PhasePending,
	}
}
