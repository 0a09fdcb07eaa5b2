package e2e

import (
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

const registry = srvAddr + ":8443"

// dockerImage is what the test pushes and pulls.
const dockerImage = registry + "/default/hello:1"

// docker is Debian's client, even where a newer one comes first in the path.
const docker = "/usr/bin/docker"

// dockerDaemon has files, mounts and network of its own, and starts no
// containers: nothing of this machine's /etc, /run and packet filter changes.
const dockerDaemon = `set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /run
mount -t overlay -o lowerdir=/etc,upperdir=$1/etc,workdir=$1/etc.work overlay /etc
rm -rf /etc/docker; mkdir -p /etc/docker/certs.d/$2
cp $1/ca.crt /etc/docker/certs.d/$2/ca.crt
exec dockerd --host unix://$1/docker.sock --pidfile $1/docker.pid --data-root $1/data --exec-root $1/exec \
	--bridge none --iptables=false --ip-forward=false --ip-masq=false`

// TestDocker pushes and pulls with Docker's own client and daemon.
func TestDocker(t *testing.T) {
	w := newWorld(t)
	p := w.newPlane()
	p.login()
	d := p.docker("me")
	if out := d.must("remotegpu token create docker | " + docker + " login --username me --password-stdin " + registry); !strings.Contains(out, "Login Succeeded") {
		t.Errorf("login: %s", out)
	}
	d.must("tar -C /bin -c busybox | " + docker + " import - hello && " + docker + " tag hello " + dockerImage)
	pushed := digest.FindString(d.must(docker + " push " + dockerImage))
	id := d.must(docker + " inspect --format '{{.Id}}' " + dockerImage)
	d.must(docker + " rmi hello " + dockerImage)
	if out := d.must(docker + " images --quiet"); out != "" {
		t.Errorf("the image is still there: %s", out)
	}
	pulled := digest.FindString(d.must(docker + " pull " + dockerImage))
	if pushed == "" || pulled != pushed {
		t.Errorf("pushed %q, pulled %q", pushed, pulled)
	}
	if got := d.must(docker + " inspect --format '{{.Id}}' " + dockerImage); got != id {
		t.Errorf("image %s came back as %s", id, got)
	}
	t.Run("refused", func(t *testing.T) { p.dockerRefused(t, d) })
}

var digest = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// dockerUser runs docker lines with a login of their own against one daemon.
type dockerUser struct {
	p    *plane
	name string
}

// docker starts a daemon that trusts the plane's authority.
func (p *plane) docker(name string) dockerUser {
	w := p.w
	w.t.Helper()
	dir := filepath.Join(w.dir, "docker")
	w.must("mkdir", "-p", dir+"/etc", dir+"/etc.work")
	w.in("client", "curl -fsSk -o "+dir+"/ca.crt "+p.url+"/ca.pem")
	w.start("client", "dockerd.log", "unshare", "--mount", "sh", "-c", dockerDaemon, "dockerd", dir, registry)
	d := dockerUser{p, name}
	eventually(w.t, 60*time.Second, "dockerd is ready", func() (string, bool) {
		out, err := d.try(docker + " version")
		return out, err == nil
	})
	return d
}

func (d dockerUser) try(line string) (string, error) {
	dir := filepath.Join(d.p.w.dir, "docker")
	return d.p.w.try("client", "export DOCKER_HOST=unix://"+dir+"/docker.sock DOCKER_CONFIG="+dir+"/"+d.name+"; "+line)
}

func (d dockerUser) must(line string) string {
	d.p.w.t.Helper()
	out, err := d.try(line)
	if err != nil {
		d.p.w.t.Fatalf("docker: %s: %v\n%s", line, err, out)
	}
	return out
}

// dockerRefused is what docker prints where the registry says no.
func (p *plane) dockerRefused(t *testing.T, me dockerUser) {
	w := p.w
	w.in("client", "echo 'correct horse' | remotegpu user create eve@example.org && remotegpu workspace create vault --owner eve@example.org"+
		" && echo 'correct horse' | remotegpu user create vic@example.org && remotegpu workspace add vic@example.org --role viewer")
	me.must(docker + " tag " + dockerImage + " " + registry + "/vault/secret:1 && " + docker + " push " + registry + "/vault/secret:1")
	viewer := dockerUser{p, "vic"}
	for _, c := range []struct {
		name, line, want string
		ok               bool
	}{
		{"wrong token", "echo rgt_wrong | " + docker + " login --username vic --password-stdin " + registry, "failed with status: 401 Unauthorized", false},
		{"no login", docker + " pull " + dockerImage, "no basic auth credentials", false},
		{"viewer logs in", "PIN=$(sed -n 's/.*\"pin\": *\"\\([^\"]*\\)\".*/\\1/p' $REMOTEGPU_CONFIG); export REMOTEGPU_CONFIG=$DOCKER_CONFIG.json; " +
			"echo 'correct horse' | remotegpu login " + p.url + " --email vic@example.org --password-stdin --pin $PIN && remotegpu token create docker | " + docker + " login --username vic --password-stdin " + registry, "Login Succeeded", true},
		{"viewer pulls", docker + " pull " + dockerImage, "Image is up to date", true},
		{"viewer pushes", docker + " push " + dockerImage, "denied: Your role in this workspace is viewer; this needs member", false},
		{"viewer pushes new", docker + " tag " + dockerImage + " " + registry + "/default/new:1; " + docker + " push " + registry + "/default/new:1", "denied: Your role in this workspace is viewer; this needs member", false},
		{"another workspace's, pull", docker + " pull " + registry + "/vault/secret:1", "denied: There is no such workspace, or you are not a member of it.", false},
		{"another workspace's, push", docker + " push " + registry + "/vault/secret:1", "denied: There is no such workspace, or you are not a member of it.", false},
		{"no such workspace", docker + " pull " + registry + "/nowhere/secret:1", "denied: There is no such workspace, or you are not a member of it.", false},
		{"no such image", docker + " pull " + registry + "/default/nothing:1", "manifest unknown", false},
		{"no workspace", docker + " pull " + registry + "/nothing:1", "the workspace is missing", false},
	} {
		out, err := viewer.try(c.line)
		if (err == nil) != c.ok || !strings.Contains(out, c.want) {
			t.Errorf("%s: %v: want %q in:\n%s", c.name, err, c.want, out)
		}
	}
}
