package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// ansible runs modules as its users do: over the connections that it shares,
// with files that it copies and python3 that it finds there.
func (s *tools) ansible(way string) {
	w := s.p.w
	host := "tools.rg ansible_ssh_common_args='-F " + s.config + "'"
	if way == "gateway" { // as docs/ssh.md says: Ansible takes ansible_user for a user who has a home there
		host = "gpu ansible_host=" + srvAddr + " ansible_port=2222 ansible_ssh_private_key_file=" + w.dir + "/id" +
			" ansible_ssh_common_args='-o User=tools.default -o UserKnownHostsFile=" + w.dir + "/cli.known_hosts -o IdentitiesOnly=yes'"
	}
	inventory := filepath.Join(w.dir, "inventory-"+strings.Fields(way)[0])
	if err := os.WriteFile(inventory, []byte("[gpus]\n"+host+"\n"), 0o644); err != nil {
		s.Fatal(err)
	}
	// Its shared connections outlive it; a minute would be longer than this test.
	run := "ANSIBLE_HOME=" + w.dir + "/ansible ANSIBLE_SSH_ARGS='-o ControlMaster=auto -o ControlPersist=5s' ansible -i " + inventory + " gpus "
	s.cell("Ansible ping", "usual", way, run+"-m ping", `"ping": "pong"`)
	s.cell("Ansible command", "usual", way, run+"-m command -a 'uname -s'", "rc=0 >>\nLinux")
	src := inventory + ".copied"
	s.cell("Ansible copy", "usual", way, "head -c 300000 /dev/urandom | base64 >"+src+" && "+run+"-m copy -a 'src="+src+" dest=/tmp/copied mode=0640' && "+run+"-m copy -a 'src="+src+" dest=/tmp/copied mode=0640' && ssh -F "+s.config+" "+at("tools", way)+" cat /tmp/copied | cmp - "+src,
		`"changed": false`)
}

// displays: programs of an environment on the client's screen, by X11
// forwarding. The screen lets in only who shows its cookie.
func (s *tools) displays(way string) {
	w, f, to := s.p.w, " -F "+s.config+" ", at("tools", way)
	number := 4
	if way == "gateway" {
		number = 5
	}
	screen, authority := display(number), w.dir+"/Xauthority"
	w.in("client", "touch "+authority+" && xauth -q -f "+authority+" add "+screen+" . $(openssl rand -hex 16)")
	x := w.start("client", "x11.log", "Xvfb", screen, "-screen", "0", "777x555x24", "-auth", authority)
	defer w.end(x, syscall.SIGTERM)
	mine := "export DISPLAY=" + screen + " XAUTHORITY=" + authority + "; "
	eventually(s.T, 20*time.Second, "the client's screen", func() (string, bool) {
		out, err := w.try("client", mine+"xdpyinfo")
		return out, err == nil
	})
	if out, err := w.try("client", "DISPLAY="+screen+" XAUTHORITY=/dev/null xdpyinfo"); err == nil {
		s.Errorf("the screen lets anybody in: %s", out)
	}
	for _, option := range []string{"-X", "-Y"} {
		s.step("ssh "+option, "usual", way, func(t *testing.T) {
			ssh := mine + "ssh" + f + option + " " + to + " "
			if out, err := w.try("client", ssh+"'xdpyinfo; echo \"seen on $DISPLAY\"'"); err != nil || !strings.Contains(out, "777x555 pixels") || !strings.Contains(out, "seen on localhost:") {
				t.Errorf("%v %s", err, out)
			}
			if out, _ := w.try("client", ssh+"'XAUTHORITY=/dev/null xdpyinfo 2>&1'"); strings.Contains(out, "777x555") || !strings.Contains(out, "unable to open display") {
				t.Errorf("without the cookie: %s", out)
			}
		})
	}
	s.cell("ssh -x", "usual", way, mine+"ssh"+f+"-x "+to+" 'echo \"display ${DISPLAY-none}\"; xdpyinfo 2>&1; true'", "display none")
}
