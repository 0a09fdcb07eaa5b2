package main

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Where copies lie: in memory, at both ends.
const (
	copyDir  = "/run/bench" // of the run's own
	copyBack = copyDir + "/back"
	copyFar  = "/dev/shm/copy"
)

// files compares copying through the gateway with OpenSSH's own server in the
// same container, both by OpenSSH's client with its default settings.
func files(b *bench) error {
	s, err := b.system()
	if err != nil {
		return err
	}
	const env = "files"
	if _, err := s.remotegpu("env", "create", env, "--image", image, "--shm", "3GiB"); err != nil {
		return err
	}
	direct, err := s.startSSHD(env)
	if err != nil {
		return err
	}
	loads, err := b.loads()
	if err != nil {
		return err
	}
	gateway, n := &door{s, "2222", env + "@127.0.0.1"}, b.seldom()
	if b.quick && b.n == 0 {
		n = 1 // with the one that warms up, that takes more than a minute
	}
	for _, l := range loads {
		for _, tool := range []string{"scp", "sftp", "rsync"} {
			var p pairs
			err := b.profiled(tool+" "+l.what, func() (err error) {
				p, err = paired(n,
					func() (measured, error) { return gateway.copy(tool, l) },
					func() (measured, error) { return direct.copy(tool, l) })
				return err
			})
			if err != nil {
				return fmt.Errorf("%s of %s: %w", tool, l.what, err)
			}
			b.add(fmt.Sprintf("%s of %s up, against sshd", tool, l.what), l.unit, atLeast(0.9), 0, p)
			b.add(fmt.Sprintf("%s of %s down, against sshd", tool, l.what), l.unit, atLeast(0.9), 1, p)
		}
	}
	_, err = s.remotegpu("env", "rm", env)
	return errors.Join(err, os.RemoveAll(copyDir))
}

// startSSHD runs OpenSSH's server in the environment, at the container's own
// address, which this host reaches.
func (s *system) startSSHD(env string) (*door, error) {
	key, err := os.ReadFile(s.key + ".pub")
	if err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(s.dir, "sshd.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := s.ssh(env, "cat >/root/key && exec /usr/sbin/sshd -D -e -f /dev/null -h /etc/host_key -o UsePAM=no -o StrictModes=no "+
		"-o AuthorizedKeysFile=/root/key -o PidFile=none -o 'Subsystem=sftp /usr/lib/openssh/sftp-server'")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(key), log, log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s.started = append([]*exec.Cmd{cmd}, s.started...)
	text, err := s.remotegpu("env", "show", env)
	if err != nil {
		return nil, err
	}
	var shown struct{ Address string }
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		return nil, err
	}
	return &door{s, "22", "root@" + shown.Address}, until("sshd in the container listens", func() error {
		c, err := net.Dial("tcp", net.JoinHostPort(shown.Address, "22"))
		if err == nil {
			c.Close()
		}
		return err
	})
}

// copied is what is copied.
type copied struct {
	what, path string
	folder     bool
	amount     float64 // of unit
	unit       string  // per second
}

// loads makes one large file and many small ones.
func (b *bench) loads() ([]copied, error) {
	mib, n := 1024, 10000
	if b.quick {
		mib, n = 128, 1000
	}
	large, small := filepath.Join(copyDir, "large"), filepath.Join(copyDir, "small")
	if err := os.MkdirAll(small, 0o755); err != nil {
		return nil, err
	}
	f, err := os.Create(large)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for range mib {
		_, _ = rand.Read(buf) // never fails
		if _, err := f.Write(buf); err != nil {
			return nil, err
		}
	}
	for i := range n {
		if err := os.WriteFile(filepath.Join(small, fmt.Sprint(i)), buf[i:i+4096], 0o644); err != nil {
			return nil, err
		}
	}
	return []copied{
		{fmt.Sprintf("%d MiB", mib), large, false, float64(mib<<20) / 1e6, "MB/s"},
		{fmt.Sprintf("%d files of 4 KiB", n), small, true, float64(n), "files/s"},
	}, nil
}

// door is a way into the container by SSH.
type door struct {
	*system
	port, to string
}

// copy brings l up and back down; it returns how much of it a second, each.
func (d *door) copy(tool string, l copied) (m measured, err error) {
	ssh := append(d.sshOptions(), "-p", d.port, d.to, "rm -rf "+copyFar)
	if _, err := d.output("ssh", ssh...); err != nil {
		return nil, err
	}
	if err := os.RemoveAll(copyBack); err != nil {
		return nil, err
	}
	for _, up := range []bool{true, false} {
		cmd := d.tool(tool, l, up)
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
		}
		m = append(m, l.amount/time.Since(start).Seconds())
	}
	_, err = d.output("diff", "-r", l.path, copyBack)
	return m, err
}

func (d *door) tool(name string, l copied, up bool) *exec.Cmd {
	from, to := l.path, copyFar
	if !up {
		from, to = copyFar, copyBack
	}
	verb := map[bool]string{true: "put", false: "get"}[up]
	if name == "sftp" {
		cmd := d.command("sftp", append(d.sshOptions(), "-q", "-P", d.port, "-b", "-", d.to)...)
		cmd.Stdin = strings.NewReader(verb + " -r " + from + " " + to + "\n")
		return cmd
	}
	if name == "rsync" && l.folder {
		from += "/" // what is in it
	}
	if up {
		to = d.to + ":" + to
	} else {
		from = d.to + ":" + from
	}
	if name == "rsync" {
		return d.command("rsync", "-r", "-e", "ssh -p "+d.port+" "+strings.Join(d.sshOptions(), " "), from, to)
	}
	return d.command("scp", append(d.sshOptions(), "-q", "-r", "-P", d.port, from, to)...)
}
