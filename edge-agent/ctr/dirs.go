package ctr

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/remotegpu/remotegpu/edge-agent/ctr/logs"
	"github.com/remotegpu/remotegpu/edge-agent/reconcile"
	"github.com/remotegpu/remotegpu/protocol"
)

// Where things of a workload lie on the host.
func (r *Runtime) volumesDir(workload string) string {
	return filepath.Join(r.cfg.DataDir, "volumes", workload)
}
func (r *Runtime) runDir(workload string) string { return filepath.Join(r.cfg.RunDir, "w", workload) }
func (r *Runtime) etcDir(workload string) string { return filepath.Join(r.cfg.RunDir, "etc", workload) }
func (r *Runtime) logPath(workload string) string {
	return filepath.Join(r.cfg.DataDir, "logs", workload+".log")
}

// makeRunDir mounts the small tmpfs that the workload's container shares with
// the host. It has a size, because root in the container may write to it.
func (r *Runtime) makeRunDir(workload string) error {
	dir := r.runDir(workload)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make run dir: %w", err)
	}
	if mounted, err := isMountpoint(dir); err != nil || mounted {
		return err
	}
	err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=256k,nr_inodes=64,mode=0700")
	if err != nil {
		return fmt.Errorf("mount run dir: %w", err)
	}
	return nil
}

// isMountpoint compares the folder's device with its parent's.
func isMountpoint(dir string) (bool, error) {
	var own, up unix.Stat_t
	if err := unix.Lstat(dir, &own); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	if err := unix.Lstat(filepath.Dir(dir), &up); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	return own.Dev != up.Dev, nil
}

// makeEtc writes the files that are mounted over the image's.
func (r *Runtime) makeEtc(w protocol.Workload, address string) error {
	dir := r.etcDir(w.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make etc files: %w", err)
	}
	hosts := "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
	own := "127.0.1.1"
	if ip, _, _ := strings.Cut(address, "/"); ip != "" {
		own = ip
	}
	hosts += own + "\t" + w.Name + "\n"
	for name, text := range map[string]string{"hosts": hosts, "hostname": w.Name + "\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return fmt.Errorf("make etc files: %w", err)
		}
	}
	return nil
}

// makeVolumes makes the folders of volumes that do not exist yet; a new one
// belongs to the user that the container runs as.
func (r *Runtime) makeVolumes(w protocol.Workload, uid, gid uint32) error {
	dir := r.volumesDir(w.ID)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("make volumes: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("make volumes: %w", err)
	}
	defer root.Close()
	for _, m := range w.Mounts {
		if m.Volume == "" {
			continue
		}
		err := root.Mkdir(m.Volume, 0o755)
		if errors.Is(err, os.ErrExist) {
			continue
		}
		if err == nil {
			err = root.Lchown(m.Volume, int(uid), int(gid))
		}
		if err != nil {
			return fmt.Errorf("make volume %s: %w", m.Volume, err)
		}
	}
	return nil
}

// leftovers are the workloads that have any folder, log or network here.
func (r *Runtime) leftovers() ([]string, error) {
	found, err := r.cfg.Network.List()
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	found = slices.Clone(found)
	for _, dir := range []string{r.volumesDir(""), r.runDir(""), r.etcDir(""), filepath.Dir(r.logPath(""))} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("list leftovers: %w", err)
		}
		for _, e := range entries {
			name, _, _ := strings.Cut(e.Name(), ".") // ID.log, ID.log.1
			if isID(name) {
				found = append(found, name)
			}
		}
	}
	slices.Sort(found)
	return slices.Compact(found), nil
}

// isID reports whether name can be a workload's: nothing else is ever removed.
func isID(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") == ""
}

// removeDirs deletes everything that lies on disk for a workload.
func (r *Runtime) removeDirs(workload string) error {
	if !isID(workload) {
		return fmt.Errorf("remove folders: %q is no workload", workload)
	}
	dir := r.runDir(workload)
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount run dir: %w", err)
	}
	for _, dir := range []string{dir, r.etcDir(workload)} {
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("remove folders: %w", err)
		}
	}
	if err := removeTree(r.volumesDir(workload)); err != nil {
		return fmt.Errorf("remove volumes: %w", err)
	}
	if err := logs.Remove(r.logPath(workload)); err != nil {
		return fmt.Errorf("remove log: %w", err)
	}
	return nil
}

// removeTree deletes what a container has filled. Go's os.RemoveAll, which containerd
// has too, keeps a file open for each level, and a container may make so many that
// there would be none left for anybody.
func removeTree(dir string) error {
	if out, err := exec.Command("rm", "-rf", "--one-file-system", "--", dir).CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %.300s", err, out)
	}
	return nil
}

// checkMounts refuses mounts that cannot or must not work.
func (r *Runtime) checkMounts(w protocol.Workload) error {
	for _, m := range w.Mounts {
		for _, own := range []string{"/proc", "/sys", "/dev", "/.remotegpu"} {
			if within(m.Target, own) && !within(m.Target, "/dev/shm") {
				return reconcile.Finalf(nil, "nothing can be mounted at %s; choose another folder", m.Target)
			}
		}
		if m.HostPath == "" {
			continue
		}
		for _, own := range []string{r.cfg.DataDir, r.cfg.RunDir} {
			if within(m.HostPath, own) || within(own, m.HostPath) {
				return reconcile.Finalf(nil, "the host's folder %s holds the agent's own files and cannot be mounted; choose another", m.HostPath)
			}
		}
		if _, err := os.Stat(m.HostPath); err != nil {
			return reconcile.Finalf(err, "the host has no %s; make it there or change the mount at %s", m.HostPath, m.Target)
		}
	}
	return nil
}

func within(path, dir string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
