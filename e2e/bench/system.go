package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/e2e"
)

// Where the system listens. Nothing else does: the run has a network of its own.
const (
	serverAddr = "127.0.0.1:8443"
	sshAddr    = "127.0.0.1:2222"
	debugAddr  = "127.0.0.1:6060"
	plainAddr  = "127.0.0.1:8080" // of a server whose TLS nginx ends
	repository = serverAddr + "/default/busybox"
	image      = repository + ":1"
)

// system is a server and an agent as users have them, with a containerd of
// their own and a small image in the registry. The run is its host.
type system struct {
	dir, bin   string
	containerd string   // its socket
	behind     []string // flags of a server that does not end TLS itself
	token      string   // of an admin
	key        string   // file of a private key whose public one the gateway knows
	started    []*exec.Cmd
	server     *exec.Cmd // one of them, and the agent
	agent      *exec.Cmd
}

// system starts it on the first call.
func (b *bench) system() (*system, error) {
	if b.sys != nil {
		return b.sys, nil
	}
	if !inside() {
		return nil, errors.New("it starts containers, which needs root: run 'sudo make bench'")
	}
	bin, err := filepath.Abs(b.bin)
	if err != nil {
		return nil, err
	}
	s := &system{dir: b.dir, bin: bin, containerd: filepath.Join(b.dir, "containerd.sock")}
	for _, step := range []func() error{s.startServer, s.login, s.startContainerd, s.pushImage, s.startAgent, s.addKey} {
		if err := step(); err != nil {
			s.stop()
			return nil, err
		}
	}
	b.sys = s
	return s, nil
}

// behindNginx starts a server alone, where nginx ends TLS.
func (b *bench) behindNginx() (s *system, err error) {
	if !inside() {
		return nil, errors.New("it takes a network of its own, which needs root: run 'sudo make bench'")
	}
	s = &system{dir: filepath.Join(b.dir, "proxied"), behind: []string{"--behind-proxy", "--listen", plainAddr}}
	if s.bin, err = filepath.Abs(b.bin); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return nil, err
	}
	cert, conf := filepath.Join(b.dir, "cert.pem"), filepath.Join(s.dir, "nginx.conf")
	text := e2e.Nginx{Dir: s.dir, Listen: serverAddr, Cert: cert, Key: cert, Server: plainAddr}.Config()
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		return nil, err
	}
	for _, step := range []func() error{func() error { return s.start("nginx", "-c", conf) }, s.startServer, s.login} {
		if err := step(); err != nil {
			s.stop()
			return nil, err
		}
	}
	return s, nil
}

// stop ends it; containers end with the run's pid namespace.
func (s *system) stop() {
	if s == nil {
		return
	}
	for _, cmd := range s.started {
		_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		late := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait() // how it ended is of no matter
		late.Stop()
	}
}

// start runs a program until stop.
func (s *system) start(name string, args ...string) error {
	log, err := os.Create(filepath.Join(s.dir, filepath.Base(name)+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	s.started = append([]*exec.Cmd{cmd}, s.started...)
	return nil
}

// until tries for half a minute; it fails with the last error.
func until(what string, try func() error) error {
	var err error
	for range 300 {
		if err = try(); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("%s: not within 30 s: %w", what, err)
}

// command is a program that knows the system.
func (s *system) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "REMOTEGPU_CONFIG="+filepath.Join(s.dir, "cli.json"), "TERM=dumb")
	return cmd
}

// output runs a program and returns what it prints.
func (s *system) output(name string, args ...string) (string, error) {
	var errs bytes.Buffer
	cmd := s.command(name, args...)
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", filepath.Base(name), err, errs.String())
	}
	return strings.TrimSpace(string(out)), nil
}

// remotegpu runs the command line.
func (s *system) remotegpu(args ...string) (string, error) {
	return s.output(filepath.Join(s.bin, "remotegpu"), args...)
}

func (s *system) startServer() error {
	args := []string{"server", "--data-dir", filepath.Join(s.dir, "server"),
		"--url", "https://" + serverAddr, "--listen", serverAddr, "--ssh-listen", sshAddr, "--debug-listen", debugAddr}
	if err := s.start(filepath.Join(s.bin, "remotegpu"), append(args, s.behind...)...); err != nil {
		return fmt.Errorf("%w ('make build' builds it)", err)
	}
	s.server = s.started[0]
	return until("the server is ready", func() error {
		_, err := s.output("curl", "-fsSk", "-m", "2", "https://"+serverAddr+"/readyz")
		return err
	})
}

// login logs the command line in as the first admin and keeps the server's CA.
func (s *system) login() error {
	conn, err := tls.Dial("tcp", serverAddr, &tls.Config{InsecureSkipVerify: true}) // it is ours; its key is pinned below
	if err != nil {
		return err
	}
	chain := conn.ConnectionState().PeerCertificates
	conn.Close()
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[len(chain)-1].Raw})
	if err := os.WriteFile(filepath.Join(s.dir, "ca.pem"), ca, 0o644); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "server/first-login.json"))
	if err != nil {
		return err
	}
	var first struct{ Email, Password string }
	if err := json.Unmarshal(text, &first); err != nil {
		return err
	}
	pin := sha256.Sum256(chain[0].RawSubjectPublicKeyInfo)
	cmd := s.command(filepath.Join(s.bin, "remotegpu"), "login", "https://"+serverAddr, "--email", first.Email, "--password-stdin",
		"--pin", "sha256//"+base64.StdEncoding.EncodeToString(pin[:]))
	cmd.Stdin = strings.NewReader(first.Password + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("log in: %w: %s", err, out)
	}
	s.token, err = s.remotegpu("token", "create", "bench")
	return err
}

func (s *system) startContainerd() error {
	config := filepath.Join(s.dir, "containerd.toml")
	text := fmt.Sprintf("version = 2\nroot = %q\nstate = \"/run/containerd\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n",
		filepath.Join(s.dir, "containerd"), s.containerd)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		return err
	}
	if err := s.start("containerd", "--config", config); err != nil {
		return err
	}
	return until("containerd is up", func() error { _, err := s.ctr("version"); return err })
}

// ctr runs containerd's own client in a namespace that is not the agent's.
func (s *system) ctr(args ...string) (string, error) {
	return s.output("ctr", append([]string{"--address", s.containerd, "--namespace", "bench"}, args...)...)
}

// imageScript makes an image of busybox and of this machine's own rsync and
// sshd, the other end that the gateway's is compared with.
const imageScript = `set -e; root=$1; mkdir -p $root/bin $root/etc $root/tmp $root/root $root/run/sshd; cp "$(command -v busybox)" $root/bin/busybox
for a in sh cat ls id sleep rm mkdir; do ln -sf busybox $root/bin/$a; done
printf 'root:x:0:0:root:/root:/bin/sh\nsshd:x:100:100::/run/sshd:/bin/sh\n' >$root/etc/passwd
for p in "$(command -v rsync)" /usr/sbin/sshd /usr/lib/openssh/sftp-server; do
	for f in $p $(ldd $p | grep -o '/[^ ]*'); do mkdir -p "$root$(dirname $f)"; cp -L $f $root$f; done
done
ssh-keygen -q -t ed25519 -N '' -f $root/etc/host_key
tar -C $root -c . | go run ./deploy/images/oci -dir $root.oci -tag 1`

// pushImage makes the image, pushes it, and gives it to ctr.
func (s *system) pushImage() error {
	root := filepath.Join(s.dir, "busybox")
	if _, err := s.output("sh", "-c", imageScript, "sh", root); err != nil {
		return err
	}
	if _, err := s.output("skopeo", "copy", "-q", "--dest-tls-verify=false", "--dest-creds", "token:"+s.token, "oci:"+root+".oci:1", "docker://"+image); err != nil {
		return err
	}
	layout := root + ".oci.tar"
	if _, err := s.output("tar", "-C", root+".oci", "-cf", layout, "."); err != nil {
		return err
	}
	_, err := s.ctr("images", "import", "--base-name", repository, layout)
	return err
}

var joinToken = regexp.MustCompile(`rgj_\w+`)

func (s *system) startAgent() error {
	line, err := s.remotegpu("host", "join")
	if err != nil {
		return err
	}
	agent, data := filepath.Join(s.bin, "remotegpu-agent"), filepath.Join(s.dir, "agent")
	_, err = s.output(agent, "enroll", "--data-dir", data, "--gpu-source", "none", "--server", "https://"+serverAddr,
		"--ca", filepath.Join(s.dir, "ca.pem"), "--token", joinToken.FindString(line))
	if err != nil {
		return err
	}
	err = s.start(agent, "run", "--data-dir", data, "--containerd", s.containerd, "--gpu-source", "none",
		"--helper", filepath.Join(s.bin, "remotegpu-helper"), "--log-dir", s.dir)
	s.agent = s.started[0]
	return err
}

func (s *system) addKey() error {
	s.key = filepath.Join(s.dir, "id_ed25519")
	if _, err := s.output("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", s.key); err != nil {
		return err
	}
	_, err := s.remotegpu("key", "add", s.key+".pub")
	return err
}

// sshOptions are those of every call of OpenSSH's client.
func (s *system) sshOptions() []string {
	return []string{"-F", "none", "-i", s.key, "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"}
}

// ssh is a call of OpenSSH's client to an environment.
func (s *system) ssh(env string, args ...string) *exec.Cmd {
	options := append(s.sshOptions(), "-p", "2222", env+"@127.0.0.1")
	return s.command("ssh", append(options, args...)...)
}

// profiled does something, and writes a CPU profile of the server over its first
// seconds where profiles are wanted.
func (b *bench) profiled(name string, do func() error) error {
	if b.profile == "" {
		return do()
	}
	written := make(chan error, 1)
	go func() {
		res, err := http.Get("http://" + debugAddr + "/debug/pprof/profile?seconds=10")
		if err != nil {
			written <- err
			return
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err == nil {
			err = os.WriteFile(filepath.Join(b.profile, "server-"+strings.ReplaceAll(name, " ", "-")+".pprof"), text, 0o644)
		}
		written <- err
	}()
	err := do()
	if failed := <-written; failed != nil {
		fmt.Fprintf(os.Stderr, "no profile of the server, %s: %v\n", name, failed) // it may have been killed
	}
	return err
}
