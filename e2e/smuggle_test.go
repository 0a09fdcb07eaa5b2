package e2e

import (
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// smuggled is a request that two programs could read in two ways. HOST and AUTH
// stand for the lines of one's own app, HIDDEN for a whole second request
// without a token; # is the number of the try.
type smuggled struct {
	name, request string
	answer        string // what we answer, first of all
	app           string // what the app gets; empty: nothing at all
	never         string // what it must not get
}

const hiddenLine = `(?m)^GET /hidden`

var smuggling = []smuggled{
	// What is seen below would be seen: both reach the app when both are allowed.
	{"two in turn", "GET /seen-# HTTP/1.1\r\nHOSTAUTH\r\nGET /hidden-# HTTP/1.1\r\nHOSTAUTH\r\n", "200 OK", hiddenLine, `nothing`},
	{"CL.TE", "POST /seen-# HTTP/1.1\r\nHOSTAUTHContent-Length: 120\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nHIDDEN", "(200|400)", "", hiddenLine},
	// 48 is the hidden one's length: it is a body, as long as nobody believes in the 4.
	{"TE.CL", "POST /seen-# HTTP/1.1\r\nHOSTAUTHTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n48\r\nHIDDEN\r\n0\r\n\r\n", "(200|400)", "", `(?im)^content-length`},
	{"a coding that is none", "POST /seen-# HTTP/1.1\r\nHOSTAUTHTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\nHIDDEN", "(400|501)", "", hiddenLine},
	{"two codings", "POST /seen-# HTTP/1.1\r\nHOSTAUTHTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\nHIDDEN", "(400|501)", "", hiddenLine},
	{"a space before the colon", "POST /seen-# HTTP/1.1\r\nHOSTAUTHContent-Length: 5\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nHIDDEN", "400", "", hiddenLine},
	{"two lengths", "POST /seen-# HTTP/1.1\r\nHOSTAUTHContent-Length: 0\r\nContent-Length: 90\r\n\r\nHIDDEN", "400", "", hiddenLine},
	{"a folded line", "POST /seen-# HTTP/1.1\r\nHOSTAUTHX-A: b\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\nHIDDEN", "(200|400)", "", hiddenLine},
	{"a folded header", "GET /seen-# HTTP/1.1\r\nHOSTAUTHX-A: b\r\n X-Forwarded-For: 6.6.6.6\r\nX-Forwarded-User:\r\n vic\r\n\r\n", "(200|400)", "", `(?m)^ |(?im)^x-forwarded-(for: 6|user)`},
	{"a bare carriage return", "GET /seen-# HTTP/1.1\r\nHOSTAUTHX-A: b\rX-Forwarded-For: 6.6.6.6\r\n\r\n", "400", "", `6\.6\.6\.6`},
	{"a body without a length", "GET /seen-# HTTP/1.1\r\nHOSTAUTH\r\nHIDDEN", "200 OK", `GET /seen-`, hiddenLine},
	{"Connection lists what we add", "GET /seen-# HTTP/1.1\r\nHOSTAUTHX-Mine: yes\r\nConnection: X-Forwarded-For, X-Forwarded-Host, X-Forwarded-Proto, Host, Authorization, close\r\n\r\n", "200 OK",
		`(?s)X-Forwarded-For: 203\.0\.113\.30.*X-Forwarded-Host: mine--8003--.*X-Forwarded-Proto: https`, `rgt_`},
	{"Connection takes the proof away", "GET /seen-# HTTP/1.1\r\nHOSTConnection: Authorization\r\nAUTHX-Mine: yes\r\n\r\n", "200 OK", `X-Mine: yes`, `rgt_`},
	{"headers that count as others", "GET /seen-# HTTP/1.1\r\nHOSTAUTHX-Mine: yes\r\nX_Forwarded_For: 6.6.6.6\r\nX-Forwarded_For: 6.6.6.6\r\nX_Real_IP: 6.6.6.6\r\nx_remotegpu_user: vic\r\n\r\n", "200 OK", `X-Mine: yes`, `6\.6\.6\.6|vic`},
	{"a header twice", "GET /seen-# HTTP/1.1\r\nHOSTAUTHX-Mine: yes\r\nX-Forwarded-For: 6.6.6.6\r\nX-Forwarded-For: 6.6.6.7\r\nForwarded: for=6.6.6.6\r\n\r\n", "200 OK", `X-Mine: yes`, `6\.6\.6\.`},
	{"two proofs", "GET /seen-# HTTP/1.1\r\nHOSTAUTHAuthorization: Basic eDp5\r\nX-Mine: yes\r\n\r\n", "200 OK", `X-Mine: yes`, `rgt_`},
	{"a token as a password", "GET /seen-# HTTP/1.1\r\nHOSTAUTHAuthorization: Basic BASIC\r\nX-Mine: yes\r\n\r\n", "200 OK", `X-Mine: yes`, `rgt_|BASIC`},
	{"a host twice", "GET /seen-# HTTP/1.1\r\nHOSTHost: $SAFE:8443\r\nAUTH\r\n", "400", "", `.`},
	{"a host in two words", "GET /seen-# HTTP/1.1\r\nHost: $RAW:8443 $SAFE:8443\r\nAUTH\r\n", "400", "", `.`},
	{"an answer that is split", "GET /seen-#?x=%0d%0aX-Forwarded-For:%206.6.6.6 HTTP/1.1\r\nHOSTAUTHX-Mine: yes\r\n\r\n", "200 OK", `X-Mine: yes`, `(?m)^X-Forwarded-For: 6`},
}

// recorder answers every connection, and keeps what it got byte by byte.
const recorder = `ssh $O mine.lair@$GW 'cat >/tmp/raw; /bin/busybox chmod 755 /tmp/raw; nc -ll -p 8003 -e /tmp/raw >/dev/null 2>&1 </dev/null &' <<'X'
#!/bin/sh
read -r line
echo "$line" >/tmp/raw.$$
printf 'HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok'
exec cat >>/tmp/raw.$$
X
`

// smuggle sends what two programs could read in two ways, and looks at what
// came to the app: what we have judged, and nothing else.
func smuggle(t *testing.T, eve *person, vars string) {
	vars += "raw() { f=$(mktemp); (printf \"$1\"; i=0; until [ -s $f ] || [ $((i+=1)) -gt 150 ]; do sleep 0.1; done; sleep 1) | timeout 20 openssl s_client -quiet -no_ign_eof -connect $GW:8443 2>/dev/null >$f; cat $f; rm $f; }\n" + "RAW=$(echo $MINE | sed s/--8000--/--8003--/); BASIC=$(printf x:$TOKEN | base64 -w 0)\n"
	if out, err := eve.does(vars, recorder); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	answers := make([]string, len(smuggling))
	var all sync.WaitGroup
	turn := make(chan struct{}, 4) // nc keeps few waiting
	for i, c := range smuggling {
		request := strings.NewReplacer("HIDDEN", "GET /hidden-# HTTP/1.1\r\nHost: $RAW:8443\r\n\r\n", "#", fmt.Sprintf("%d.", i),
			"HOST", "Host: $RAW:8443\r\n", "AUTH", "Authorization: Bearer $TOKEN\r\n", "BASIC", "$BASIC", "%", "%%").Replace(c.request)
		request = strings.NewReplacer("#", fmt.Sprintf("%d.", i), "\r", `\r`, "\n", `\n`).Replace(request)
		all.Go(func() {
			turn <- struct{}{}
			answers[i], _ = eve.does(vars, `raw "`+request+`"`)
			<-turn
		})
	}
	all.Wait()
	got, err := eve.does(vars, "ssh $O mine.lair@$GW 'for f in /tmp/raw.*; do echo; echo ==; cat $f; done'")
	if err != nil {
		t.Fatalf("%v %s", err, got)
	}
	for i, c := range smuggling {
		mark, seen := fmt.Sprintf("-%d.", i), ""
		for _, connection := range strings.Split(got, "\n==\n") {
			if strings.Contains(connection, "/seen"+mark) || strings.Contains(connection, "/hidden"+mark) {
				seen += connection
			}
		}
		first, _, _ := strings.Cut(answers[i], "\r\n")
		if !regexp.MustCompile(`^HTTP/1\.1 ` + c.answer).MatchString(first) {
			t.Errorf("%s: we answer %q, not %q", c.name, first, c.answer)
		}
		if !regexp.MustCompile(c.app).MatchString(seen) || regexp.MustCompile(c.never).MatchString(seen) {
			t.Errorf("%s: the app gets\n%s", c.name, seen)
		}
		t.Logf("%s: %s; the app gets %d bytes", c.name, first, len(seen))
	}
}
