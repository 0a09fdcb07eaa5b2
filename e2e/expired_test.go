package e2e

import (
	"regexp"
	"strings"
	"testing"
)

// late is a way in that ends: by its time, or by its first use. Its time is
// over when the database says so.
type late struct {
	name, get, use string // get prints what use has as $L
	works, refused string // what use answers
	once           bool
	expire         string // SQL
}

const (
	takeTicket = "api -d '{\"session\":\"'$LATE'\"}' $URL/api/v1/workspaces/vault/environments/safe/terminal/ticket | sed -n 's/.*\"ticket\":\"\\([^\"]*\\).*/\\1/p'"
	useTicket  = "TOKEN=; upgrade -H Authorization: -H \"Sec-WebSocket-Protocol: remotegpu.terminal.v1, remotegpu.ticket.$L\" \"$URL/api/v1/workspaces/vault/environments/safe/terminal?session=$LATE&client=$CLIENT&op=create&cols=80&rows=24\""
	openApp    = "api -d '{\"app\":\"vault/safe/8000\"}' $URL/api/v1/apps/open | sed -n 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/p' | sed 's/\\\\u0026/\\&/g'"
	webSafe    = "curl -sk -m 10 -w '\\nstatus %{http_code}' --resolve $SAFE:8443:$GW "
	logInPage  = "curl -sk -o /dev/null -c - -H \"Origin: $URL\" -d \"{\\\"email\\\":\\\"$EMAIL\\\",\\\"password\\\":\\\"$PASSWORD\\\",\\\"app\\\":\\\"vault/safe/8000\\\"}\" $URL/apps/login | awk '/remotegpu-login/ { print $6 \"=\" $7 }'"
	apiToken   = "update api_tokens set expires_at = now() - interval '1 second' where name = 'late'"
	newToken   = "remotegpu token create late"
)

var lates = []late{
	{"API token at the API", newToken, "TOKEN=$L; api $URL/api/v1/account", "status 200", "status 401", false, apiToken},
	{"API token of the command line", newToken, "sed \"s/rgs_[^\\\"]*/$L/\" $REMOTEGPU_CONFIG >$DIR/late.json; REMOTEGPU_CONFIG=$DIR/late.json remotegpu env ls", "safe", "token|log in", false, apiToken},
	{"API token at the registry", newToken, "curl -sk -m 10 -o /dev/null -w 'status %{http_code}' -u t:$L $URL/v2/", "status 200", "status 401", false, apiToken},
	{"API token at the broker", newToken, "timeout 20 mosquitto_sub -V 5 -h $GW -p 8883 --cafile $CA -u token -P $L -W 4 -t 'rg/v1/workspaces/'$(api $URL/api/v1/workspaces/vault | sed -n 's/.*\\(ws_[0-9a-z]*\\).*/\\1/p')'/events/#' 2>&1; echo status $?", "status 27", "Bad User Name or Password|Not authorized", false, apiToken},
	{"API token at an app", newToken, webSafe + "-H \"Authorization: Bearer $L\" https://$SAFE:8443/", secret, "status 401", false, apiToken},
	{"login of the command line", "sed -n 's/.*\"token\": *\"\\(rgs_[^\"]*\\)\".*/\\1/p' $REMOTEGPU_CONFIG", "TOKEN=$L; api $URL/api/v1/account", "status 200", "status 401", false,
		"update sessions set expires_at = now() - interval '1 second' where user_id = (select id from users where email = 'vic@example.org')"},
	{"ticket for a terminal", takeTicket, useTicket, "status 101", "status 401", true, "update tickets set expires_at = now() - interval '1 second' where kind = 'terminal'"},
	{"ticket for an app", openApp, webSafe + "\"$L\"", "status 303", "status 401", true, "update tickets set expires_at = now() - interval '1 second' where kind = 'app ticket'"},
	{"cookie of an app", webSafe + "-o /dev/null -c - \"$(" + openApp + ")\" | awk '/__Host-remotegpu-app/ { print $6 \"=\" $7 }'", webSafe + "-H \"Cookie: $L\" https://$SAFE:8443/", secret, "status 401", false,
		"update tickets set expires_at = now() - interval '1 second' where kind = 'app cookie'"},
	{"login for apps", logInPage, "curl -sk -m 10 -w 'status %{http_code}' -H \"Cookie: $L\" \"$URL/apps/login?app=vault%2Fsafe%2F8000\"", "status 303", "status 200", false,
		"update tickets set expires_at = now() - interval '1 second' where kind = 'app login'"},
}

// expired uses what its owner was given once more, and after its time.
func expired(t *testing.T, p *plane, vic *person, vars string) {
	vars += "LATE=ses_" + strings.Repeat("y", 20) + "\n"
	for _, c := range lates {
		t.Run(c.name, func(t *testing.T) {
			use := func() string {
				out, _ := vic.does(vars, "L=$(cat $DIR/late)\n"+c.use)
				return out
			}
			get := func() {
				if out, err := vic.does(vars, "("+c.get+") >$DIR/late && grep -q . $DIR/late"); err != nil {
					t.Fatalf("nothing is given: %v %s", err, out)
				}
			}
			refused := func(how string) {
				if out := use(); !regexp.MustCompile(c.refused).MatchString(out) || strings.Contains(out, c.works) {
					t.Errorf("%s: %q lacks %q", how, out, c.refused)
				}
			}
			get()
			if out := use(); !strings.Contains(out, c.works) {
				t.Fatalf("it does not work in time: %q lacks %q", out, c.works)
			}
			if c.once {
				refused("used again")
				get()
			}
			p.sql(c.expire)
			refused("after its time")
		})
	}
	if out, err := vic.does(vars, "echo \"$PASSWORD\" | remotegpu login $URL --email $EMAIL --password-stdin --pin $(sed -n 's/.*\"pin\": *\"\\([^\"]*\\)\".*/\\1/p' $REMOTEGPU_CONFIG) --workspace vault"); err != nil {
		t.Fatalf("log in again: %v %s", err, out)
	}
}
