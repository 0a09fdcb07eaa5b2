package e2e

import (
	"strings"
	"testing"
	"time"
)

// atOnce is how long a person may wait for an answer that needs nobody else. Who
// asks a host that does not answer waits for 15 s.
const atOnce = 10 * time.Second

// offline uses every way to an environment whose host is away. Each says so at
// once, and none waits for it.
func offline(t *testing.T, p *plane, env, ssh string) {
	w := p.w
	token := w.in("client", "remotegpu token create offline")
	api := "curl -sSk -m 30 -H 'Authorization: Bearer " + token + "' " + p.url + "/api/v1/workspaces/default/environments/" + env
	upgrade := " --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=='"
	ssh = strings.Replace(ssh, "-o LogLevel=ERROR", "-o LogLevel=VERBOSE", 1)
	to := " " + env + ".default@" + srvAddr
	for name, line := range map[string]string{
		"ssh":                       ssh + to + " true",
		"a terminal":                ssh + " -tt" + to + " </dev/null",
		"sftp":                      strings.NewReplacer("ssh -F", "sftp -F", "-p 2222", "-P 2222").Replace(ssh) + " -b /dev/null" + to,
		"ssh -W":                    ssh + " -W 127.0.0.1:80" + to + " </dev/null",
		"ssh from end to end":       "ssh -F none -o BatchMode=yes -o ProxyCommand='remotegpu ssh-proxy --end-to-end " + env + "' -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null x@" + env + " true",
		"remotegpu ssh":             "timeout 20 remotegpu ssh " + env + " -- true",
		"remotegpu rdp":             "remotegpu rdp " + env,
		"remotegpu jupyter":         "remotegpu jupyter " + env,
		"a browser's terminal":      api + "/terminal?session=ses_zzzzzzzzzzzzzzzzzzzz\\&client=cli_zzzzzzzzzzzzzzzzzzzz\\&op=create\\&cols=80\\&rows=24" + upgrade + "; false",
		"a forward":                 api + "/dial?network=tcp\\&address=127.0.0.1:80" + upgrade + "; false",
		"a token for a desktop":     api + "/rdp -X POST -H 'Content-Type: application/json' -d '{}'; false",
		"an app":                    "curl -sSk -m 30 -H 'Authorization: Bearer " + token + "' https://" + srvAddr + ":8444/apps/default/" + env + "/80/; false",
		"the log of an environment": "remotegpu env logs " + env,
		"the host's shell":          ssh + " host:box@" + srvAddr + " true",
	} {
		began := time.Now()
		out, err := w.try("client", line+" 2>&1")
		if err == nil || !strings.Contains(out, "offline") {
			t.Errorf("%s: %v %s", name, err, out)
		}
		if took := time.Since(began); took > atOnce {
			t.Errorf("%s: it is said after %v", name, took)
		}
	}
}
