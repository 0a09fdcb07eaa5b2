package e2e

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// secret is what nobody but its owner may see; wherever it is kept, it is this.
const secret = "the-owners-secret"

const sharedImage = srvAddr + ":8443/library/busybox:1"

// person is somebody with an account, a key and a workspace of their own.
type person struct {
	w    *world
	vars string // shell lines that set what tries use
}

// person makes a user who owns a workspace with one running environment. Its
// app is a page with the secret, and shows the headers that it got.
func (p *plane) person(name, workspace, env, page string) *person {
	p.w.t.Helper()
	dir := filepath.Join(p.w.dir, name)
	config := filepath.Join(dir, "cli.json")
	email, password := name+"@example.org", "correct horse "+name
	pin := "$(sed -n 's/.*\"pin\": *\"\\([^\"]*\\)\".*/\\1/p' $REMOTEGPU_CONFIG)"
	p.w.in("client", "mkdir -p "+dir+" && echo '"+password+"' | remotegpu user create "+email+" && remotegpu workspace create "+workspace+" --owner "+email)
	p.w.in("client", "PIN="+pin+"; export REMOTEGPU_CONFIG="+config+"; echo '"+password+"' | remotegpu login "+p.url+" --email "+email+" --password-stdin --pin $PIN --workspace "+workspace+
		" && ssh-keygen -q -t ed25519 -N '' -f "+dir+"/id && remotegpu key add "+dir+"/id.pub && remotegpu token create try >"+dir+"/token"+
		" && remotegpu env create "+env+" --image "+sharedImage+` -- sh -c 'B=/bin/busybox; $B mkdir -p /www/cgi-bin; echo `+page+` >/www/index.html; echo `+page+` >/page
printf "#!/bin/sh\necho; env\n" >/www/cgi-bin/headers; $B chmod 755 /www/cgi-bin/headers; exec $B httpd -f -p 8000 -h /www'`)
	options := "-F none -i " + dir + "/id -o Port=2222 -o IdentitiesOnly=yes -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=10"
	return &person{p.w, "export REMOTEGPU_CONFIG=" + config + "; PASSWORD='" + password + "'; EMAIL=" + email + "; DIR=" + dir + "; OWN=" + workspace + "; TOKEN=$(cat " + dir + "/token); GW=" + srvAddr + "; O='" + options + "'; URL=" + p.url +
		"\napi() { curl -sk -m 10 --path-as-is -H \"Authorization: Bearer $TOKEN\" -H 'Content-Type: application/json' -w '\\nstatus %{http_code}' \"$@\"; }" +
		"\nupgrade() { api --http1.1 -m 5 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' \"$@\" | tr -d '\\000'; }\n"}
}

// does runs a shell line as this person; vars are more settings.
func (who *person) does(vars, line string) (string, error) {
	return who.w.try("client", who.vars+vars+line)
}

// try is something that its owner can do and nobody else.
type try struct {
	name, line string
	shows      string // what the owner sees; empty: the secret
	refused    string // what anybody else is told
}

// theirs are ways to what is another workspace's.
var theirs = []try{
	{"ssh by name", "ssh $O safe@$GW cat /page", "", "no environment safe"},
	{"ssh by name and workspace", "ssh $O safe.vault@$GW cat /page", "", "no environment safe in a workspace vault"},
	{"ssh by id", "ssh $O $ID@$GW cat /page", "", "no environment env_"},
	{"sftp", "echo 'get /page '$DIR'/got' >$DIR/batch; sftp -q $O -b $DIR/batch safe.vault@$GW && cat $DIR/got", "", "Connection closed"},
	{"scp", "scp -q $O safe.vault@$GW:/page $DIR/got && cat $DIR/got", "", "Connection closed"},
	{"scp, the old protocol", "scp -O -q $O safe.vault@$GW:/page $DIR/got && cat $DIR/got", "", "no environment"},
	{"ssh -W to its port", "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 2) | ssh $O -W 127.0.0.1:8000 safe.vault@$GW", "", "stdio forwarding failed"},
	{"a jump through the gateway", `ssh $O -o ProxyCommand="ssh $O -W safe.vault:22 jump@$GW" x@safe.vault cat /page`, "", "stdio forwarding failed"},
	{"end to end over HTTPS", `ssh $O -o ProxyCommand='remotegpu ssh-proxy --end-to-end safe.vault' x@safe.vault cat /page`, "", "no environment"},
	{"remotegpu ssh", "remotegpu -w vault ssh safe -- cat /page", "", "no such workspace"},
	{"list of sessions", "remotegpu -w vault sessions safe", "ses_", "no such workspace"},
	{"terminal", "upgrade \"$URL/api/v1/workspaces/vault/environments/safe/terminal?session=$NEW&client=$CLIENT&op=create&cols=80&rows=24\"", "status 101", "status 404"},
	{"ticket for a terminal", "api -d '{\"session\":\"'$SES'\"}' $URL/api/v1/workspaces/vault/environments/safe/terminal/ticket", "status 201", "status 404"},
	{"forward", "upgrade \"$URL/api/v1/workspaces/vault/environments/safe/dial?network=tcp&address=127.0.0.1:8000\"", "status 101", "status 404"},
	{"forward by id", "upgrade \"$URL/api/v1/workspaces/vault/environments/$ID/dial?network=tcp&address=127.0.0.1:8000\"", "status 101", "status 404"},
	{"app by its host", "api --resolve $SAFE:8443:$GW https://$SAFE:8443/", "", "status 404"},
	{"Jupyter's app by its host", "api --resolve $JUPYTER:8443:$GW https://$JUPYTER:8443/", "status 503", "status 404"},
	{"ticket for an app", "api -d '{\"app\":\"vault/safe/8000\"}' $URL/api/v1/apps/open", "ticket=", "status 404"},
	{"make an app public", "api -X PUT -d '{\"visibility\":\"workspace\"}' $URL/api/v1/workspaces/vault/environments/safe/apps/8000", "status 200", "status 404"},
	{"token for a desktop", "api -d '{}' $URL/api/v1/workspaces/vault/environments/safe/rdp", "rgd_", "status 404"},
	{"desktop of a system's client", "upgrade $URL/api/v1/workspaces/vault/environments/safe/rdp", "status 503", "status 404"},
	{"recordings", "api $URL/api/v1/workspaces/vault/recordings", "status 200", "status 404"},
	{"log", "remotegpu -w vault env logs safe; api $URL/api/v1/workspaces/vault/environments/safe/logs", "status 200", "status 404"},
	{"pull a private image", "skopeo inspect --tls-verify=false --creds token:$TOKEN docker://$GW:8443/vault/private:1", "sha256:", "unauthorized|denied"},
	{"a private image's layer as one's own", "curl -sk -m 10 -o /dev/null -w 'status %{http_code}' -u token:$TOKEN -X POST \"$URL/v2/$OWN/mounted/blobs/uploads/?mount=$DIGEST&from=vault/private\"", "status 201", "status 40[134]"},
	{"an environment of a private image", "remotegpu env create own --wait=false --image $GW:8443/vault/private:1 && remotegpu env rm own && echo made", "made", "vault"},
	{"become a member", "remotegpu -w vault workspace add eve@example.org --role viewer && remotegpu -w vault workspace remove eve@example.org && echo added", "added", "no such workspace"},
}

// own are addresses that one's own environment must not reach.
var own = []struct{ name, address, refused string }{
	{"the host's loopback", "127.0.0.1:7001", "Nothing listens"},
	{"the host's address", "192.168.77.2:7002", "cannot reach"},
	{"the bridge's address", "$BRIDGE:7003", "cannot reach"},
	{"the metadata service", "169.254.169.254:7004", "cannot reach"},
	{"another tenant's environment", "$THERE:8000", "cannot reach"},
}

// odd are requests that no client makes; none may show the secret.
var odd = []try{
	{"host shell", "ssh $O host:box@$GW cat /etc/owner", "", "platform admin"},
	{"a host by jump", "ssh $O -W host:box:22 jump@$GW </dev/null", "", "."},
	{"sftp above the root", "printf 'get /../../../../etc/owner '$DIR'/got\\n' >$DIR/batch; sftp -q $O -b $DIR/batch mine.lair@$GW && cat $DIR/got", "", "not found|No such file"},
	{"sftp by a link out", "ssh $O mine.lair@$GW 'ln -sf ../../../../../../etc/owner /tmp/link' && echo 'get /tmp/link '$DIR'/got' >$DIR/batch; sftp -q $O -b $DIR/batch mine.lair@$GW && cat $DIR/got", "", "not found|No such file"},
	{"containerd's socket", "upgrade \"$URL/api/v1/workspaces/lair/environments/mine/dial?network=unix&address=/run/containerd/containerd.sock\"", "", "status 503"},
	{"registry by dots", "api -u token:$TOKEN $URL/v2/lair/../vault/page/tags/list", "", "status (30[17]|4..)"},
	{"registry by coded dots", "api -u token:$TOKEN $URL/v2/lair/%2e%2e/vault/page/tags/list", "", "status (30[17]|4..)"},
	{"downloads by dots", "api $URL/dl/../srv/first-login.json", "", "status [34]"},
	{"downloads by coded dots", "api $URL/dl/..%2f..%2fsrv/first-login.json", "", "status 40[04]"},
	{"a terminal for another's ticket", "T=$(api -d '{\"session\":\"'$NEW'\"}' $URL/api/v1/workspaces/lair/environments/mine/terminal/ticket | sed -n 's/.*\"ticket\":\"\\([^\"]*\\).*/\\1/p'); test -n \"$T\" || echo LEADS to no ticket; TOKEN=; " +
		"upgrade -H Authorization: -H \"Sec-WebSocket-Protocol: remotegpu.terminal.v1, remotegpu.ticket.$T\" \"$URL/api/v1/workspaces/vault/environments/safe/terminal?session=$NEW&client=$CLIENT&op=create\"", "", "status 40[14]"},
	{"a user's token at the tunnel", "upgrade $URL/tunnel", "", "status 403"},
	{"an unsigned token of a host", "TOKEN=$NONE; upgrade $URL/tunnel", "", "status 401"},
	{"a login that leads elsewhere", `curl -sk -H "Origin: $URL" -d "{\"email\":\"$EMAIL\",\"password\":\"$PASSWORD\",\"app\":\"lair/mine/8000\",\"return\":\"//evil.test/\"}" $URL/apps/login | sed 's/evil/LEADS/'`, "", `return=%2F("|&|\\)`},
	{"a login for another's app", `curl -sk -w 'status %{http_code}' -H "Origin: $URL" -d "{\"email\":\"$EMAIL\",\"password\":\"$PASSWORD\",\"app\":\"vault/safe/8000\"}" $URL/apps/login`, "", "status 404"},
	{"a login form of another site", `curl -sk -w 'status %{http_code}' -H "Origin: https://evil.test" -d "{\"email\":\"$EMAIL\",\"password\":\"$PASSWORD\",\"app\":\"lair/mine/8000\"}" $URL/apps/login`, "", "status 403"},
	{"another host in the target", `raw "GET https://$SAFE:8443/ HTTP/1.1\r\nHost: $MINE:8443\r\nAuthorization: Bearer $TOKEN\r\nConnection: close\r\n\r\n"`, "", "404 Not Found"},
}

const rawLine = "raw() { (printf \"$1\"; sleep 1) | timeout 5 openssl s_client -quiet -connect $GW:8443 2>/dev/null; }\n"

// TestNobodyElse has two people on one host. Each way that the one has to what
// is theirs is tried by the other.
func TestNobodyElse(t *testing.T) {
	w := newWorld(t)
	p, m := w.newPlane("--apps-domain", "apps.test", "--mqtt-listen", srvAddr+":8883"), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	w.in("client", "T=$(remotegpu token create copy); skopeo copy -q --src-tls-verify=false --dest-tls-verify=false --src-creds token:$T --dest-creds token:$T docker://"+busyboxImage+" docker://"+sharedImage)
	p.join(m, "--name box")
	vic, eve := p.person("vic", "vault", "safe", secret), p.person("eve", "lair", "mine", "eves-page")
	vars := "CA=" + m.files + "/etc/remotegpu/ca.pem; DIGEST=" + vic.privateImage(t) + "; " + tryVars(t, vic, eve)

	t.Run("another's", func(t *testing.T) { onlyTheOwner(t, vic, eve, vars) })
	t.Run("beyond the environment", func(t *testing.T) { onlyInside(t, m, vic, eve, vars) })
	t.Run("odd", func(t *testing.T) {
		m.must("echo " + secret + " >/etc/owner")
		for _, c := range odd {
			out, _ := eve.does(vars+rawLine, c.line)
			c.check(t, out)
		}
	})
	t.Run("cookies", func(t *testing.T) { cookies(t, vic, eve, vars) })
	t.Run("pages of other sites", func(t *testing.T) { foreignPages(t, eve, vars) })
	t.Run("headers", func(t *testing.T) { headers(t, eve, vars) })
	t.Run("smuggling", func(t *testing.T) { smuggle(t, eve, vars) })
	t.Run("another host", func(t *testing.T) { otherHost(t, p, m, eve, vars) })
	t.Run("expired", func(t *testing.T) { expired(t, p, vic, vars) })
	t.Run("the helper's socket", func(t *testing.T) { helperSocket(t, eve, vars) })
	t.Run("cookies by path", func(t *testing.T) { cookiesByPath(t, p, vic, eve, vars) })
}

// privateImage pushes an image that only vic's workspace may use, and returns
// the digest of its layer.
func (who *person) privateImage(t *testing.T) string {
	t.Helper()
	out, err := who.does("", "skopeo copy -q --src-tls-verify=false --dest-tls-verify=false --src-creds token:$TOKEN --dest-creds token:$TOKEN docker://"+sharedImage+" docker://$GW:8443/vault/private:1 && "+
		"skopeo inspect --raw --tls-verify=false --creds token:$TOKEN docker://$GW:8443/vault/private:1")
	digest := regexp.MustCompile(`sha256:[0-9a-f]{64}`).FindAllString(out, -1)
	if err != nil || len(digest) != 2 {
		t.Fatalf("the private image: %v %s", err, out)
	}
	return digest[1] // the first is the configuration's
}

// tryVars are the names by which tries know what there is.
func tryVars(t *testing.T, vic, eve *person) string {
	t.Helper()
	out, err := vic.does("", "remotegpu env show safe -o json; ssh $O safe.vault@$GW ip -4 -o addr show eth0; cat "+filepath.Join(vic.w.dir, "eve")+"/none 2>/dev/null; true")
	id, there := regexp.MustCompile(`env_[0-9a-z]{20}`).FindString(out), regexp.MustCompile(`inet ([0-9.]+)`).FindStringSubmatch(out)
	if err != nil || id == "" || there == nil {
		t.Fatalf("%v %s", err, out)
	}
	out, err = eve.does("", "remotegpu env show mine -o json; ssh $O mine.lair@$GW ip -4 route")
	mine, bridge := regexp.MustCompile(`env_[0-9a-z]{20}`).FindString(out), regexp.MustCompile(`default via ([0-9.]+)`).FindStringSubmatch(out)
	if err != nil || mine == "" || bridge == nil {
		t.Fatalf("%v %s", err, out)
	}
	host := regexp.MustCompile(`host_[0-9a-z]{20}`).FindString(vic.w.in("client", "remotegpu host ls -o json"))
	code := base64.RawURLEncoding.EncodeToString
	none := code([]byte(`{"alg":"none","typ":"JWT"}`)) + "." + code([]byte(`{"iss":"`+host+`","sub":"`+host+`","aud":"tunnel","exp":4102444800}`)) + "."
	vic.w.start("client", "live.log", "sh", "-c", "PATH="+vic.w.bin+":$PATH; "+vic.vars+"exec remotegpu ssh safe -- 'cat /page; sleep 600'")
	ses := ""
	eventually(t, 20*time.Second, "a session that is held", func() (string, bool) {
		out, _ := vic.does("", "remotegpu sessions safe")
		ses = regexp.MustCompile(`ses_[0-9a-z]{20}`).FindString(out)
		return out, ses != ""
	})
	app := func(env, name, id string) string { return env + "--" + name + "--" + id[4:14] + ".apps.test" }
	return "ID=" + id + "; THERE=" + there[1] + "; BRIDGE=" + bridge[1] + "; NONE=" + none + "; SES=" + ses + "; NEW=ses_" + strings.Repeat("z", 20) + "; CLIENT=cli_" + strings.Repeat("z", 20) +
		"; SAFE=" + app("safe", "8000", id) + "; JUPYTER=" + app("safe", "8888", id) + "; MINE=" + app("mine", "8000", mine) + "\n"
}

// check fails when the secret shows, or the refusal does not.
func (c try) check(t *testing.T, out string) {
	t.Helper()
	if strings.Contains(out, secret) || strings.Contains(out, `"password"`) || strings.Contains(out, "LEADS") {
		t.Errorf("%s gets through:\n%s", c.name, out)
	}
	if !regexp.MustCompile(c.refused).MatchString(out) {
		t.Errorf("%s: the answer lacks %q: %q", c.name, c.refused, out)
	}
}

func onlyTheOwner(t *testing.T, vic, eve *person, vars string) {
	for _, c := range theirs {
		shows := c.shows
		if shows == "" {
			shows = secret
		}
		if out, _ := vic.does(vars, c.line); !strings.Contains(out, shows) {
			t.Errorf("%s: its owner does not see %q, so the try says nothing: %q", c.name, shows, out)
		}
		out, _ := eve.does("rm -f $DIR/got\n"+vars, c.line)
		if strings.Contains(out, shows) {
			t.Errorf("%s: anybody sees %q: %s", c.name, shows, out)
		}
		c.check(t, out)
	}
}

// onlyInside forwards from an environment to services that do listen, and that
// the host itself reaches.
func onlyInside(t *testing.T, m *machine, vic, eve *person, vars string) {
	m.must("mkdir -p /run/www && echo " + secret + " >/run/www/index.html && ip addr add 169.254.169.254/32 dev lo")
	for _, at := range []string{"127.0.0.1:7001", "192.168.77.2:7002", "0.0.0.0:7003", "169.254.169.254:7004"} {
		m.must("busybox httpd -p " + at + " -h /run/www")
		_, port, _ := strings.Cut(at, ":")
		if out, err := m.sh("curl -sS -m 5 http://" + strings.Replace(at, "0.0.0.0", "127.0.0.1", 1) + "/"); err != nil || !strings.Contains(out, secret) {
			t.Fatalf("the host itself does not reach %s: %v %s", port, err, out)
		}
	}
	const get = "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1) | timeout 30 ssh -o LogLevel=VERBOSE $O "
	ways := []struct{ name, line, shows string }{
		{"a forward over HTTPS", "upgrade -m 30 \"$URL/api/v1/workspaces/lair/environments/mine/dial?network=tcp&address=ADDRESS\"", "status 101"},
		{"ssh -W through the gateway", get + "-W ADDRESS mine.lair@$GW 2>&1", "eves-page"},
		{"ssh -W from end to end", get + "-o ProxyCommand='remotegpu ssh-proxy --end-to-end mine.lair' -W ADDRESS x@mine.lair 2>&1", "eves-page"},
	}
	if out, _ := vic.does(vars, "(printf 'GET / HTTP/1.0\\r\\n\\r\\n'; sleep 1) | timeout 30 ssh $O -W $THERE:8000 safe.vault@$GW"); !strings.Contains(out, secret) {
		t.Errorf("the other tenant does not reach itself at its address, so the tries say nothing: %q", out)
	}
	var all sync.WaitGroup
	for _, way := range ways {
		if out, _ := eve.does(vars, strings.NewReplacer("ADDRESS", "127.0.0.1:8000", "-m 30", "-m 5").Replace(way.line)); !strings.Contains(out, way.shows) {
			t.Errorf("%s does not reach what is inside: %q", way.name, out)
		}
		for _, c := range own { // what is dropped takes its time
			all.Go(func() {
				out, _ := eve.does(vars, strings.ReplaceAll(way.line, "ADDRESS", c.address))
				try{name: c.name + " by " + way.name, refused: c.refused}.check(t, out)
			})
		}
	}
	all.Wait()
}

// cookies takes the ways in of an app to other places.
func cookies(t *testing.T, vic, eve *person, vars string) {
	at := vars + "R=\"--resolve $SAFE:8443:$GW --resolve $MINE:8443:$GW\"; web() { curl -sk -m 10 -w '\\nstatus %{http_code}' $R \"$@\"; }\n" +
		"open=$(api -d '{\"app\":\"lair/mine/8000\"}' $URL/api/v1/apps/open | sed -n 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/p' | sed 's/\\\\u0026/\\&/g'); web -o /dev/null -c $DIR/jar \"$open\" >/dev/null; C=$(awk '/__Host-remotegpu-app/ { print $6 \"=\" $7 }' $DIR/jar)\n"
	if out, _ := eve.does(at, "web -H \"Cookie: $C\" https://$MINE:8443/"); !strings.Contains(out, "eves-page") {
		t.Fatalf("the cookie does not open its own app: %q", out)
	}
	for _, c := range []try{
		{"a used ticket", "web \"$open\"", "", "status 401"},
		{"a ticket at another app", "open=$(api -d '{\"app\":\"lair/mine/8000\"}' $URL/api/v1/apps/open | sed -n 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/p' | sed 's/\\\\u0026/\\&/g'); web \"$(echo \"$open\" | sed s/$MINE/$SAFE/)\"", "", "status 404"},
		{"a cookie at another app", "web -H \"Cookie: $C\" https://$SAFE:8443/", "", "status 401"},
		{"a cookie at the API", "web -H \"Cookie: $C\" $URL/api/v1/account", "", "status 401"},
		{"a cookie at a terminal", "TOKEN=; upgrade -H Authorization: -H \"Cookie: $C\" \"$URL/api/v1/workspaces/lair/environments/mine/terminal?session=$NEW&client=$CLIENT&op=create\"", "", "status 401"},
		{"a page of another site with the cookie", "web -H \"Cookie: $C\" -H 'Origin: https://evil.test' https://$MINE:8443/", "", "status 403"},
		{"a WebSocket of another site with the cookie", "web --http1.1 -H \"Cookie: $C\" -H 'Origin: https://evil.test' -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' https://$MINE:8443/", "", "status 403"},
		{"another app's page with the cookie", "web -H \"Cookie: $C\" -H \"Origin: https://$SAFE:8443\" https://$MINE:8443/", "", "status 403"},
	} {
		out, _ := eve.does(at, c.line)
		c.check(t, out)
		if strings.Contains(out, "eves-page") {
			t.Errorf("%s gets through: %s", c.name, out)
		}
	}
}

// cookiesByPath is cookies where apps share an origin and differ by their
// paths: a server that has no domain for them.
func cookiesByPath(t *testing.T, p *plane, vic, eve *person, vars string) {
	p.kill()
	p.args = slices.DeleteFunc(p.args, func(arg string) bool { return arg == "--apps-domain" || arg == "apps.test" })
	p.start()
	vars += "AT=https://$GW:8444/apps; web() { curl -sk -m 10 --path-as-is -w '\nstatus %{http_code}' \"$@\"; }\n" +
		"enter() { web -o /dev/null -c - \"$(api -d '{\"app\":\"'$1'\"}' $URL/api/v1/apps/open | sed -n 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/p' | sed 's/\\\\u0026/\\&/g')\" | awk -v as=$2 '/__Secure-remotegpu-app/ { print as \"=\" $6 \"=\" $7 \"; \" as \"_PATH=\" $3 }'; }\n"
	eventually(t, 60*time.Second, "the app is reached again", func() (string, bool) {
		out, _ := vic.does(vars, "eval \"$(enter vault/safe/8000 V)\"; web -H \"Cookie: $V\" $AT/vault/safe/8000/; echo $V_PATH")
		return out, strings.Contains(out, secret) && strings.HasSuffix(out, "status 200/apps/vault/safe/8000/")
	})
	vars += "eval \"$(enter lair/mine/8000 C)\"\n"
	if out, _ := eve.does(vars, "web -H \"Cookie: $C\" $AT/lair/mine/8000/; echo $C_PATH"); !strings.Contains(out, "eves-page") || !strings.HasSuffix(out, "status 200/apps/lair/mine/8000/") {
		t.Fatalf("the cookie does not open its own app, or leads further: %q", out)
	}
	if out, _ := eve.does(vars, "web -H \"Authorization: Bearer $TOKEN\" $AT/lair/mine/8003/"); !strings.Contains(out, "status 200") {
		t.Fatalf("there is no second app: %q", out)
	}
	for _, c := range []try{
		{"a cookie at another's app", "web -H \"Cookie: $C\" $AT/vault/safe/8000/", "", "status 401"},
		{"a cookie at another app of one's own", "web -H \"Cookie: $C\" $AT/lair/mine/8003/", "", "status 401"},
		{"a cookie at another's app by dots", "web -H \"Cookie: $C\" $AT/lair/mine/8000/../../../vault/safe/8000/index.html", "", "status (30[178]|4..)"},
		{"a cookie at another's app by coded dots", "web -H \"Cookie: $C\" $AT/lair/mine/8000/%2e%2e/%2e%2e/%2e%2e/vault/safe/8000/index.html", "", "status (30[178]|4..)"},
		{"a cookie at another's app by a coded slash", "web -H \"Cookie: $C\" $AT/lair/mine%2f..%2f..%2fvault%2fsafe/8000/", "", "status 40[14]"},
		{"a cookie under the name of the other form", "web -H \"Cookie: __Host-remotegpu-app=${C#*=}\" $AT/lair/mine/8000/", "", "status 401"},
		{"a cookie at the API", "web -H \"Cookie: $C\" $URL/api/v1/account", "", "status 401"},
		{"the API at the apps' origin", "web -H \"Authorization: Bearer $TOKEN\" https://$GW:8444/api/v1/account", "", "status 404"},
		{"another site's page with the cookie", "web -H \"Cookie: $C\" -H 'Origin: https://evil.test' $AT/lair/mine/8000/", "", "status 403"},
		{"the console's page with the cookie", "web -H \"Cookie: $C\" -H \"Origin: $URL\" $AT/lair/mine/8000/", "", "status 403"},
		{"a ticket at another app", "web \"$(api -d '{\"app\":\"lair/mine/8000\"}' $URL/api/v1/apps/open | sed -n 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/p' | sed 's/\\\\u0026/\\&/g; s,lair/mine,vault/safe,g')\"", "", "status 404"},
	} {
		out, _ := eve.does(vars, c.line)
		c.check(t, out)
		if strings.Contains(out, "eves-page") || strings.Contains(out, "eve@example.org") {
			t.Errorf("%s gets through: %s", c.name, out)
		}
	}
}

// headers looks at what an app is told of who asks.
func headers(t *testing.T, eve *person, vars string) {
	out, _ := eve.does(vars, "api --resolve $MINE:8443:$GW -H 'X-Forwarded-For: 6.6.6.6' -H 'X-Forwarded-User: vic' -H 'X-Real-IP: 6.6.6.6' -H 'X-Remotegpu-User: vic' -H 'Connection: X-Forwarded-For, X-Forwarded-User' -H 'X-Mine: yes' https://$MINE:8443/cgi-bin/headers")
	if !strings.Contains(out, "HTTP_X_MINE=yes") || !strings.Contains(out, "HTTP_X_FORWARDED_FOR=203.0.113.30") {
		t.Fatalf("the app does not say what it got: %q", out)
	}
	token, err := os.ReadFile(filepath.Join(eve.w.dir, "eve", "token"))
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{strings.TrimSpace(string(token)), "6.6.6.6", "=vic"} {
		if strings.Contains(out, bad) {
			t.Errorf("the app sees %q: %s", bad, out)
		}
	}
}

// helperSocket asks the environment's first process for a session as only the
// agent may. It hangs up, and says so in the log.
func helperSocket(t *testing.T, eve *person, vars string) {
	out, _ := eve.does(vars, "rm -f $DIR/s; timeout 60 ssh $O -N -L $DIR/s:/.remotegpu/run/session.sock mine.lair@$GW & P=$!; for i in $(seq 100); do test -S $DIR/s && break; sleep 0.3; done; "+
		"test -S $DIR/s && echo listens; curl -sS -m 5 --unix-socket $DIR/s http://x/ 2>&1; kill $P; wait")
	if !strings.Contains(out, "listens") || !strings.Contains(out, "curl: (") {
		t.Errorf("the socket: %q", out)
	}
	eventually(t, 10*time.Second, "the helper says that it refused", func() (string, bool) {
		out, _ := eve.does(vars, "remotegpu env logs mine")
		return out, strings.Contains(out, "asked for a session")
	})
}
