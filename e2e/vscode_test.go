package e2e

import (
	"bufio"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// remoteSSH is VS Code's side of Remote-SSH: it feeds testdata/vscode/bootstrap.sh
// to a shell over ssh, keeps that connection, and goes through what it forwards.
type remoteSSH struct {
	t        *testing.T
	w        *world
	ssh      string // with -F
	host     string
	commit   string // of the server that it wants; nobody else has it
	archive  string // the server, as it is downloaded
	client   string // path of client.py
	nextPort int
}

// bootstrapped is a connection, and what the other side said of the server.
type bootstrapped struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	socks int
	said  map[string]string
}

// vscode connects as VS Code does for the first time, loses the connection,
// and finds the same server again, through -D and through a socket.
func (s *tools) vscode(way string) {
	s.step("VS Code's bootstrap", "usual", way, func(t *testing.T) {
		w := s.p.w
		r := &remoteSSH{t: t, w: w, ssh: "ssh -F " + s.config, host: at("tools", way), commit: strings.ToLower(rand.Text()), nextPort: 7200}
		r.pack()
		first := r.bootstrap("port")
		if _, err := strconv.Atoi(first.said["listeningOn"]); err != nil || first.said["didLocalDownload"] != "1" {
			t.Fatalf("the first time: %v", first.said)
		}
		r.curl(first)
		management, extensions := rand.Text(), rand.Text()
		r.window(first, management, "false")
		r.window(first, extensions, "false")
		first.cmd.Process.Signal(syscall.SIGKILL) // the laptop's lid
		first.cmd.Wait()

		second := r.bootstrap("port")
		for _, same := range []string{"listeningOn", "connectionToken", "serverPid"} {
			if second.said[same] != first.said[same] {
				t.Errorf("%s was %s and is %s", same, first.said[same], second.said[same])
			}
		}
		if second.said["didLocalDownload"] != "0" {
			t.Errorf("the second time: %v", second.said)
		}
		r.window(second, management, "true")
		r.window(second, extensions, "true")
		r.refuses(second)
		r.overSocket()
		second.stdin.Close()
		if err := second.cmd.Wait(); err != nil {
			t.Errorf("the connection ends with %v", err)
		}
		w.in("client", r.ssh+" "+r.host+" kill "+second.said["serverPid"])
	})
}

// pack makes the archive of the server as it is downloaded.
func (r *remoteSSH) pack() {
	r.t.Helper()
	dir, err := filepath.Abs("testdata/vscode")
	if err != nil {
		r.t.Fatal(err)
	}
	r.client, r.archive = dir+"/client.py", filepath.Join(r.w.dir, r.commit)
	r.w.must("sh", "-c", "mkdir -p "+r.archive+"/vscode-server && cp "+dir+"/server.py "+r.archive+"/vscode-server/server && chmod 755 "+r.archive+"/vscode-server/server && "+
		"head -c 20000000 /dev/urandom >"+r.archive+"/vscode-server/node && tar -C "+r.archive+" -czf "+r.archive+"/vscode-server.tar.gz vscode-server && echo sent >"+r.archive+"/vscode-server.tar.gz.done")
}

// bootstrap runs the script on the host; listen is port or socket.
func (r *remoteSSH) bootstrap(listen string) *bootstrapped {
	r.t.Helper()
	script, err := os.ReadFile("testdata/vscode/bootstrap.sh")
	if err != nil {
		r.t.Fatal(err)
	}
	r.nextPort++
	b := &bootstrapped{said: map[string]string{}, socks: r.nextPort}
	line := fmt.Sprintf("exec %s -T -D %d %s bash", r.ssh, b.socks, r.host)
	b.cmd = exec.Command("nsenter", "--net=/run/netns/"+r.w.ns("client"), "sh", "-c", line)
	b.cmd.Env = append(os.Environ(), "PATH="+r.w.bin+":"+os.Getenv("PATH"), "REMOTEGPU_CONFIG="+filepath.Join(r.w.dir, "cli.json"), "HOME="+r.w.dir)
	b.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if b.stdin, err = b.cmd.StdinPipe(); err != nil {
		r.t.Fatal(err)
	}
	stdout, err := b.cmd.StdoutPipe()
	if err != nil {
		r.t.Fatal(err)
	}
	b.cmd.Stderr = b.cmd.Stdout
	if err := b.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.w.end(b.cmd, syscall.SIGTERM) })
	id := rand.Text()[:12]
	if _, err := fmt.Fprintf(b.stdin, "ID=%s\nCOMMIT=%s\nLISTEN=%s\n%s", id, r.commit, listen, script); err != nil {
		r.t.Fatal(err)
	}
	stuck := time.AfterFunc(slower*time.Minute, func() { b.cmd.Process.Kill() })
	defer stuck.Stop()
	r.read(b, stdout, id)
	return b
}

// read does what the script asks for, until it has said all.
func (r *remoteSSH) read(b *bootstrapped, stdout io.Reader, id string) {
	r.t.Helper()
	var all []string
	lines := bufio.NewScanner(stdout)
	for lines.Scan() {
		line := lines.Text()
		all = append(all, line)
		if name, value, ok := strings.Cut(line, "=="); ok {
			b.said[name] = strings.TrimSuffix(value, "==")
		}
		switch line {
		case id + ":trigger_server_download_end":
			r.w.in("client", "scp -q "+strings.TrimPrefix(r.ssh, "ssh ")+" "+r.archive+"/vscode-server.tar.gz "+r.archive+"/vscode-server.tar.gz.done "+r.host+":"+b.said["destFolder"])
		case id + ": end":
			go io.Copy(io.Discard, stdout)
			return
		}
	}
	r.t.Fatalf("the script does not end: %v\n%s", lines.Err(), strings.Join(all, "\n"))
}

// curl asks for the server's version, and comes without the token.
func (r *remoteSSH) curl(b *bootstrapped) {
	r.t.Helper()
	line := fmt.Sprintf("curl -sS -m 10 -w ' %%{http_code}' --socks5-hostname 127.0.0.1:%d http://127.0.0.1:%s/", b.socks, b.said["listeningOn"])
	if out := r.w.in("client", line+"version"); out != r.commit+" 200" {
		r.t.Errorf("version: %q", out)
	}
	if out := r.w.in("client", line+"x"); !strings.HasSuffix(out, " 403") {
		r.t.Errorf("without the token: %q", out)
	}
}

// window opens one of the two connections that a window has.
func (r *remoteSSH) window(b *bootstrapped, id, again string) {
	r.t.Helper()
	line := fmt.Sprintf("python3 %s socks %d %s %s %s %s %s/sent-%s", r.client, b.socks, b.said["listeningOn"], b.said["connectionToken"], id, again, r.archive, id)
	if out := r.w.in("client", line); out != "same" {
		r.t.Errorf("a window's connection: %q", out)
	}
}

// refuses sees that the server would tell a window that is not one.
func (r *remoteSSH) refuses(b *bootstrapped) {
	r.t.Helper()
	line := fmt.Sprintf("python3 %s socks %d %s %s %s true %s/sent-none", r.client, b.socks, b.said["listeningOn"], b.said["connectionToken"], rand.Text(), r.archive)
	if out, err := r.w.try("client", line); err == nil || !strings.Contains(out, "409") {
		r.t.Errorf("a window that never was: %q %v", out, err)
	}
}

// overSocket is the other mode: the server listens on a socket, which -L takes.
func (r *remoteSSH) overSocket() {
	r.t.Helper()
	b := r.bootstrap("socket")
	defer r.w.end(b.cmd, syscall.SIGTERM)
	if b.said["didLocalDownload"] != "0" || !strings.HasPrefix(b.said["listeningOn"], "/tmp/vscode-") {
		r.t.Fatalf("on a socket: %v", b.said)
	}
	r.nextPort++
	port := r.nextPort
	id := rand.Text()
	for _, again := range []string{"false", "true"} {
		forward := r.w.start("client", "vscode-socket.log", "sh", "-c", fmt.Sprintf("export PATH=%s:$PATH REMOTEGPU_CONFIG=%s/cli.json HOME=%s; exec %s -T -N -o ExitOnForwardFailure=yes -L 127.0.0.1:%d:%s %s",
			r.w.bin, r.w.dir, r.w.dir, r.ssh, port, b.said["listeningOn"], r.host))
		eventually(r.t, 20*time.Second, "the port of the socket", func() (string, bool) {
			out, err := r.w.try("client", fmt.Sprintf("curl -sS -m 5 http://127.0.0.1:%d/version", port))
			return out, err == nil && out == r.commit
		})
		if out := r.w.in("client", fmt.Sprintf("python3 %s port %d 0 %s %s %s %s/sent-%s", r.client, port, b.said["connectionToken"], id, again, r.archive, id)); out != "same" {
			r.t.Errorf("over the socket, again %s: %q", again, out)
		}
		r.w.end(forward, syscall.SIGKILL)
	}
	r.w.in("client", r.ssh+" "+r.host+" kill "+b.said["serverPid"])
}
