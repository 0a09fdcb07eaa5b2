package e2e

import (
	"strings"
	"sync"
	"testing"
)

type foreignTry struct{ name, line, right string }

// foreign are requests that a page of another site could make a browser send;
// @ is where the page is from. A page of the right site gets what it asks for.
var foreign = []foreignTry{
	{"terminal", "upgrade -H 'Origin: @' \"$URL/api/v1/workspaces/lair/environments/mine/terminal?session=$NEW&client=$CLIENT&op=create&cols=80&rows=24\"", "$URL"},
	{"terminal, with a ticket", "T=$(api -d '{\"session\":\"'$NEW'\"}' $URL/api/v1/workspaces/lair/environments/mine/terminal/ticket | sed -n 's/.*\"ticket\":\"\\([^\"]*\\).*/\\1/p'); TOKEN=; " +
		"upgrade -H Authorization: -H 'Origin: @' -H \"Sec-WebSocket-Protocol: remotegpu.terminal.v1, remotegpu.ticket.$T\" \"$URL/api/v1/workspaces/lair/environments/mine/terminal?session=$NEW&client=$CLIENT&op=create&cols=80&rows=24\"", "$URL"},
	{"forward", "upgrade -H 'Origin: @' \"$URL/api/v1/workspaces/lair/environments/mine/dial?network=tcp&address=127.0.0.1:8000\"", "$URL"},
	{"desktop", "TOKEN=; upgrade -H Authorization: -H 'Origin: @' $URL/api/v1/rdp", "$URL"},
	{"app, with its cookie", "TOKEN=; upgrade -H Authorization: --resolve $SOCKET:8443:$GW -H \"Cookie: $C\" -H 'Origin: @' https://$SOCKET:8443/", "https://$SOCKET:8443"},
}

// foreignPages opens WebSockets from pages of other sites (CSWSH).
func foreignPages(t *testing.T, eve *person, vars string) {
	// A program that takes any request for a WebSocket's.
	if out, err := eve.does(vars, `ssh $O mine.lair@$GW 'printf "#!/bin/sh\nread line; printf \"HTTP/1.1 101 Switching Protocols\\\\r\\\\nUpgrade: websocket\\\\r\\\\nConnection: Upgrade\\\\r\\\\n\\\\r\\\\n\"; exec cat\n" >/tmp/socket; /bin/busybox chmod 755 /tmp/socket; nc -ll -p 8002 -e /tmp/socket >/dev/null 2>&1 </dev/null &'`); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	vars += "SOCKET=$(echo $MINE | sed s/--8000--/--8002--/); C=$(curl -sk -o /dev/null -c - --resolve $SOCKET:8443:$GW \"$(api -d '{\"app\":\"lair/mine/8002\"}' $URL/api/v1/apps/open | sed -n 's/.*\"url\":\"\\([^\"]*\\)\".*/\\1/p' | sed 's/\\\\u0026/\\&/g')\" | awk '/__Host-remotegpu-app/ { print $6 \"=\" $7 }')\n"
	var all sync.WaitGroup
	defer all.Wait()
	for _, c := range foreign {
		all.Go(func() { c.isRefused(t, eve, vars) })
	}
}

func (c foreignTry) isRefused(t *testing.T, eve *person, vars string) {
	from := func(origin string) string {
		out, _ := eve.does(vars, strings.ReplaceAll(c.line, "'Origin: @'", `"Origin: `+origin+`"`))
		return out
	}
	if out := from(c.right); !strings.Contains(out, "status 101") {
		t.Errorf("%s: the right page does not get it: %q", c.name, out)
	}
	for _, origin := range []string{"https://evil.test", "null", "https://$GW", "https://$GW.evil.test:8443", "http://$GW:8443", "https://$SAFE:8443"} {
		if out := from(origin); !strings.Contains(out, "status 403") || strings.Contains(out, "101") {
			t.Errorf("%s: a page of %s gets %q", c.name, origin, out)
		}
	}
}
