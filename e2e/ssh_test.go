package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tools are the cells of the table that TestSSHTools logs.
type tools struct {
	*testing.T
	p      *plane
	config string // for ssh -F: as ssh-config has written it, with short-cuts
	rows   []string
}

// cell runs one line in the client's network as one cell of the table. What it
// prints must hold want.
func (s *tools) cell(name, image, way, line, want string) {
	s.step(name, image, way, func(t *testing.T) {
		out, err := s.p.w.try("client", line)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", line, err, out)
		} else {
			t.Logf("%s\n%s", line, out)
		}
	})
}

// step is a cell that is more than a line.
func (s *tools) step(name, image, way string, run func(*testing.T)) {
	began, result := time.Now(), "FAILS"
	if s.Run(name+" "+image+" "+way, run) {
		result = fmt.Sprintf("works (%.1f s)", time.Since(began).Seconds())
	}
	s.rows = append(s.rows, fmt.Sprintf("| %s | %s | %s | %s |", name, image, way, result))
}

// TestSSHTools runs the programs that people use, from behind no NAT to a host
// behind two, to a usual image, to busybox alone and to an image with nothing.
func TestSSHTools(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.pushTools()
	p.pushNothing()
	p.join(m, "--name lab")
	for env, image := range map[string]string{"tools": "tools", "busy": "busybox", "bare": "nothing"} {
		w.in("client", "remotegpu env create "+env+" --image "+strings.Replace(busyboxImage, "busybox", image, 1))
	}
	s := &tools{T: t, p: p, config: p.sshConfig()}
	for _, way := range []string{"end to end", "gateway"} {
		s.files(way)
		s.forwards(way)
		s.ansible(way)
		s.vscode(way)
		s.jetbrains(way)
		s.displays(way)
	}
	s.small()
	s.jumps()
	s.errors()
	s.walls(m)
	t.Log("\n| what | image | way | |\n| --- | --- | --- | --- |\n" + strings.Join(s.rows, "\n"))
}

// sshConfig installs remotegpu's configuration, twice, and adds a name by which
// the same environments are reached through the gateway's port.
func (p *plane) sshConfig() string {
	w := p.w
	p.sshKey()
	w.in("client", "mkdir -p -m 700 "+w.dir+"/.ssh && printf 'Host other\\n  Port 7\\n' >"+w.dir+"/.ssh/config && remotegpu ssh-config --install && remotegpu ssh-config --install")
	config := filepath.Join(w.dir, ".ssh/config")
	b, err := os.ReadFile(config)
	if err != nil || string(b) != "Include remotegpu.conf\nHost other\n  Port 7\n" {
		w.t.Fatalf("--install twice leaves %q %v", b, err)
	}
	// OpenSSH finds a relative Include by the password file, not by HOME.
	all := strings.Replace(string(b), "remotegpu.conf", w.dir+"/.ssh/remotegpu.conf", 1) + "Host *\n  BatchMode yes\n  ConnectTimeout 20\n  LogLevel ERROR\n  IdentitiesOnly yes\n  IdentityFile " + w.dir + "/id\n"
	for _, env := range []string{"tools", "busy", "bare"} {
		all += "Host " + env + ".gw\n  HostName " + srvAddr + "\n  Port 2222\n  User " + env + ".default\n  UserKnownHostsFile " + w.dir + "/cli.known_hosts\n  StrictHostKeyChecking yes\n"
	}
	all += "Host gateway\n  HostName " + srvAddr + "\n  Port 2222\n  UserKnownHostsFile " + w.dir + "/cli.known_hosts\n  StrictHostKeyChecking yes\n"
	file := filepath.Join(w.dir, "ssh_config")
	if err := os.WriteFile(file, []byte(all), 0o600); err != nil {
		w.t.Fatal(err)
	}
	for host, want := range map[string]string{"busy.rg": "hostname busy.rg.default.rg", "busy.default.rg": "ssh-proxy %h", "other": "port 7"} {
		if out := w.in("client", "ssh -F "+config+" -G "+host); !strings.Contains(out, want) {
			w.t.Errorf("ssh -G %s: %s", host, out)
		}
	}
	return file
}

// at is what ssh calls env, by a way.
func at(env, way string) string {
	if way == "gateway" {
		return env + ".gw"
	}
	return env + ".rg"
}

// files moves them by every tool.
func (s *tools) files(way string) {
	w, f := s.p.w, " -F "+s.config+" "
	src := w.dir + "/src"
	w.in("client", "rm -rf "+src+"* && mkdir -p "+src+"/sub && head -c 3000000 /dev/urandom >"+src+"/big && echo small >"+src+"/sub/'a b' && chmod 640 "+src+"/big")
	tmp := "/tmp/" + strings.Fields(way)[0]
	for _, env := range []string{"tools", "busy", "bare"} {
		w.in("client", "echo 'mkdir "+tmp+"' | sftp"+f+"-b - "+at(env, way))
	}
	compare := " && diff -r " + src + " " + src + ".back && rm -rf " + src + ".back"
	for env, image := range map[string]string{"tools": "usual", "busy": "busybox only", "bare": "nothing"} {
		to := at(env, way)
		if env != "bare" {
			s.cell("exec", image, way, "ssh"+f+to+" 'echo out; exit 7'; echo status $?", "out\nstatus 7")
		} else {
			s.cell("exec", image, way, "ssh"+f+to+" true; echo status $?", "has no shell")
		}
		s.cell("scp", image, way, "scp"+f+"-qrp "+src+" "+to+":"+tmp+"/new && scp"+f+"-qrp "+to+":"+tmp+"/new "+src+".back"+compare, "")
		s.cell("scp -O", image, way, "scp"+f+"-Oqrp "+src+" "+to+":"+tmp+"/old && scp"+f+"-Oqrp "+to+":"+tmp+"/old "+src+".back"+compare, "")
		s.cell("sftp", image, way, "printf 'put "+src+"/big /tmp/up\\nrename /tmp/up /tmp/up2\\nget /tmp/up2 "+src+".got\\nrm /tmp/up2\\n' | sftp"+f+"-b - "+to+" && cmp "+src+"/big "+src+".got", "")
		if env != "tools" {
			s.cell("rsync, without one there", image, way, "rsync -a -e 'ssh"+f+"' "+src+"/ "+to+":"+tmp+"/r/ 2>&1; echo status $?", "no rsync")
		}
	}
	to := at("tools", way)
	s.cell("rsync", "usual", way, "rsync -a --delete -e 'ssh"+f+"' "+src+"/ "+to+":"+tmp+"/r/ && rsync -a -e 'ssh"+f+"' "+to+":"+tmp+"/r/ "+src+".back/"+compare, "")
	s.cell("git", "usual", way, "ssh"+f+to+" 'rm -rf /tmp/g; git init -q --bare /tmp/g' && cd "+w.dir+" && rm -rf g g2 && git init -q g && cd g && git -c user.name=a -c user.email=a@b commit -q --allow-empty -m one && "+
		"export GIT_SSH_COMMAND='ssh"+f+"' && git push -q "+to+":/tmp/g HEAD:main && git clone -q -b main "+to+":/tmp/g ../g2 && git -C ../g2 log --format=%s", "one")
}

// small files go ahead of their answers: all arrive but one that cannot, which is told.
func (s *tools) small() {
	w, f, to := s.p.w, " -F "+s.config+" ", at("busy", "gateway")
	src := w.dir + "/many"
	w.in("client", "mkdir "+src+" && for i in $(seq 100 139); do echo $i >"+src+"/$i; done && ssh"+f+to+" 'mkdir -p /tmp/small/sftp/120 /tmp/small/scp/many/120; echo longer than before >/tmp/small/scp/many/130'")
	for tool, copies := range map[string]string{
		"/tmp/small/sftp":     "echo 'put " + src + "/* /tmp/small/sftp/' | sftp -q" + f + to,
		"/tmp/small/scp/many": "scp -qr" + f + src + " " + to + ":/tmp/small/scp",
	} {
		said := w.in("client", copies+" 2>&1; echo status $?")
		if !strings.Contains(said, "ailure") || strings.Contains(tool, "scp") != strings.Contains(said, "status 1") {
			s.Errorf("%s, one of which cannot be written, said %s", copies, said)
		}
		if there := w.in("client", "ssh"+f+to+" 'cd "+tool+" && rmdir 120 && ls | wc -l && cat *' | tr '\\n' ' '"); !strings.HasPrefix(there, "39 100 101 ") || !strings.Contains(there, " 119 121 ") || !strings.HasSuffix(there, " 129 130 131 132 133 134 135 136 137 138 139") {
			s.Errorf("%s left there %q", copies, there)
		}
		s.Logf("%s: %s", copies, said)
	}
}

// forwards go both ways. What listens in an environment is a shell's nc.
func (s *tools) forwards(way string) {
	w, f, to := s.p.w, " -F "+s.config+" ", at("busy", way)
	mux := f + "-o ControlPath=" + w.dir + "/m-%C "
	for _, port := range []string{"7001", "7002", "7003"} {
		w.in("client", "ssh"+f+to+" 'nc -ll -p "+port+" -e echo inside-"+port+" >/dev/null 2>&1 </dev/null &'")
	}
	listen := w.start("client", "outside.log", "socat", "TCP-LISTEN:7009,bind=127.0.0.1,fork,reuseaddr", "SYSTEM:echo outside")
	defer w.end(listen, 15)
	s.cell("ControlMaster", "busybox only", way, "ssh"+mux+"-MNf "+to+" >/dev/null 2>&1 && ssh"+mux+to+" echo one && for i in 1 2 3 4 5 6 7 8 9 10; do ssh"+mux+to+" 'sleep 0.2; echo many' & done; wait", "many")
	s.cell("-L", "busybox only", way, "ssh"+mux+"-O forward -L 7101:127.0.0.1:7001 "+to+" && socat -T 5 - TCP:127.0.0.1:7101 </dev/null", "inside-7001")
	s.cell("-L of a name", "busybox only", way, "ssh"+mux+"-O forward -L 7102:localhost:7002 "+to+" && socat -T 5 - TCP:127.0.0.1:7102 </dev/null", "inside-7002")
	s.cell("-D", "busybox only", way, "ssh"+mux+"-O forward -D 7103 "+to+" && socat -T 5 - SOCKS4A:127.0.0.1:127.0.0.1:7003,socksport=7103 </dev/null", "inside-7003")
	s.cell("-R", "busybox only", way, "ssh"+mux+"-O forward -R 7104:127.0.0.1:7009 "+to+" && ssh"+mux+to+" 'nc -w 5 127.0.0.1 7104 </dev/null'", "outside")
	s.cell("-R 0", "busybox only", way, "port=$(ssh"+mux+"-O forward -R 0:127.0.0.1:7009 "+to+") && ssh"+mux+to+" \"nc -w 5 127.0.0.1 $port </dev/null\"", "outside")
	s.cell("-R cancelled", "busybox only", way, "ssh"+mux+"-O cancel -R 7104:127.0.0.1:7009 "+to+" && ssh"+mux+to+" 'nc -w 5 127.0.0.1 7104 </dev/null || echo closed'", "closed")
	w.in("client", "ssh"+mux+"-O exit "+to+" 2>/dev/null")
	s.cell("-L with nothing there", "busybox only", way, "ssh"+f+"-o LogLevel=VERBOSE -W 127.0.0.1:9 "+to+" 2>&1; true", "Nothing listens on 127.0.0.1:9")
	s.cell("agent forwarding", "usual", way, "eval $(ssh-agent) >/dev/null; ssh-add -q "+w.dir+"/id; ssh"+f+"-A "+at("tools", way)+" 'ssh-add -l; kill -0 1; true'; ssh-agent -k >/dev/null", "ED25519")
}

// jumps are -J through the gateway, end to end, and through an environment.
func (s *tools) jumps() {
	w, f := s.p.w, " -F "+s.config+" "
	ca := "@cert-authority * $(grep -m1 cert-authority " + w.dir + "/cli.known_hosts | cut -d' ' -f3-)"
	w.in("client", "echo \""+ca+"\" >"+w.dir+"/any.known_hosts")
	s.cell("ssh -J", "busybox only", "end to end", "ssh"+f+"-o UserKnownHostsFile="+w.dir+"/any.known_hosts -o StrictHostKeyChecking=yes -J gateway busy.default echo jumped", "jumped")
	s.cell("scp -J", "nothing", "end to end", "scp"+f+"-q -o UserKnownHostsFile="+w.dir+"/any.known_hosts -o StrictHostKeyChecking=yes -J gateway "+w.dir+"/id.pub bare.default:/tmp/ && echo copied", "copied")
	s.cell("ENV.WORKSPACE.rg", "busybox only", "end to end", "ssh"+f+"busy.default.rg echo named", "named")
	s.cell("a name that others may have", "busybox only", "end to end", "ssh"+f+"-o HostName=busy.rg -o LogLevel=VERBOSE busy.rg echo fooled 2>&1; true", "not a listed principal")
	s.cell("host shell", "the host", "end to end", "ssh"+f+"lab.rghost 'id -u; hostname'", "0")
	s.cell("host shell", "the host", "gateway", "ssh"+f+"-l host:lab gateway 'id -u; hostname'", "0")
	s.cell("sftp", "the host", "end to end", "echo 'ls /etc/remotegpu' | sftp"+f+"-b - lab.rghost", "agent.env")
	s.cell("a terminal says which way it is", "busybox only", "end to end", "echo exit | ssh"+f+"-tt busy.rg 2>&1; true", "end to end")
}

// errors are sentences.
func (s *tools) errors() {
	w, f := s.p.w, " -F "+s.config+" "
	w.in("client", "ssh-keygen -q -t ed25519 -N '' -f "+w.dir+"/strange")
	s.cell("key not registered", "", "gateway", "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o BatchMode=yes -i "+w.dir+"/strange -p 2222 busy.default@"+srvAddr+" true 2>&1; true", "remotegpu key add")
	w.in("client", "remotegpu env stop bare")
	for _, way := range []string{"end to end", "gateway"} {
		s.cell("environment stopped", "", way, "ssh"+f+at("bare", way)+" true 2>&1; true", "remotegpu env start")
	}
}

// pushTools makes an image of busybox with what people have in theirs, from this
// machine: bash, git, rsync, python3, a client of X.
func (p *plane) pushTools() {
	root := filepath.Join(p.w.dir, "tools")
	p.w.must("sh", "-c", "cp -a "+p.w.dir+"/busybox "+root+` && cd `+root+` && mkdir -p usr/bin usr/lib/git-core
for a in $(busybox --list); do [ -e bin/$a ] || ln -s busybox bin/$a; done
python=$(readlink -f /usr/bin/python3); lib=/usr/lib/$(basename $python)
tar -c --exclude=test --exclude=idlelib --exclude=lib2to3 --exclude=ensurepip --exclude='config-*' $lib 2>/dev/null | tar -x
ln -s ${python##*/} usr/bin/python3
for f in $python $lib/lib-dynload/*.so /usr/bin/rsync /usr/bin/git /bin/bash /usr/bin/ssh-add /usr/lib/git-core/git-remote-https /usr/bin/flock /usr/bin/nohup /usr/bin/xdpyinfo; do
  [ -e $f ] || continue
  mkdir -p .$(dirname $f); cp -L $f .$f
  ldd $f | grep -o '/[^ ]*' | while read -r lib; do mkdir -p .$(dirname $lib); cp -Lu $lib .$lib; done
done
for a in git-receive-pack git-upload-pack git-upload-archive; do ln -sf git usr/bin/$a; ln -sf ../../bin/git usr/lib/git-core/$a; done`)
	p.push(root, "tools")
}

// pushNothing makes an image with one empty folder.
func (p *plane) pushNothing() {
	root := filepath.Join(p.w.dir, "nothing")
	p.w.must("mkdir", "-p", root+"/tmp")
	p.push(root, "nothing")
}

func (p *plane) push(root, image string) {
	p.w.t.Helper()
	p.w.must("sh", "-c", "tar -C "+root+" -cf "+root+".tar . && go run ../deploy/images/oci -dir "+root+".oci -tag 1 <"+root+".tar")
	token := p.w.in("client", "remotegpu token create push-"+image)
	p.w.in("client", "skopeo copy -q --dest-tls-verify=false --dest-creds token:"+token+" oci:"+root+".oci:1 docker://"+strings.Replace(busyboxImage, "busybox", image, 1))
}
