package e2e

import (
	"encoding/hex"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/remotegpu/remotegpu/edge-agent/link"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

// hostTry is a request of a host: $AS is who it says it is, $OF whose things it
// wants, $PROOF the token that it signed.
type hostTry struct {
	name, audience, line string
	works, refused       string
	byOne                bool // host one shows that it works; else two, with its own
}

const mosquitto = "-V 5 -h $GW -p 8883 --cafile $CA -u host -P $PROOF -i $AS -t rg/v1/hosts/$OF/"

var hostTries = []hostTry{
	{"read orders", protocol.AudienceMQTT, "timeout 20 mosquitto_sub -W 4 " + mosquitto + "desired 2>&1; echo status $?", "status 27", "denied|[Nn]ot (authorized|valid)|Bad User Name or Password", false},
	{"read who is to dial", protocol.AudienceMQTT, "timeout 20 mosquitto_sub -W 4 " + mosquitto + "dial 2>&1; echo status $?", "status 27", "denied|[Nn]ot (authorized|valid)|Bad User Name or Password", false},
	{"speak", protocol.AudienceMQTT, "timeout 10 mosquitto_pub -q 1 -m x " + mosquitto + "status 2>&1; echo told: $?", "^told: 0", "[Nn]ot (authorized|valid)|Bad User Name or Password", false},
	{"pull an image", protocol.AudienceRegistry, "curl -sk -m 10 -o /dev/null -w 'status %{http_code}' -u $AS:$PROOF $URL/v2/vault/private/tags/list", "status 200", "status 40[134]", true},
	{"fetch orders", protocol.AudienceAPI, "TOKEN=$PROOF; api $URL/api/v1/agent/desired/$GEN", "status 200", "status 40[149]", true},
}

// hosts are the box, whose agent runs, and another one that has joined and of
// which we hold the key.
type hosts struct {
	t        *testing.T
	one, two *state.Identity
	eve      *person
	vars     string
}

// otherHost shows one host's proofs where another's things are.
func otherHost(t *testing.T, p *plane, m *machine, eve *person, vars string) {
	line := p.w.in("client", "remotegpu host join -o json")
	token := regexp.MustCompile(`rgj_[0-9A-Z]+`).FindString(line)
	m.must("REMOTEGPU_DATA_DIR=/var/lib/second REMOTEGPU_TOKEN=" + token + " remotegpu-agent enroll --name second --server " + p.url + " --ca /etc/remotegpu/ca.pem")
	h := &hosts{t: t, eve: eve}
	for dir, id := range map[string]**state.Identity{"remotegpu": &h.one, "second": &h.two} {
		var err error
		if *id, err = state.ReadIdentity(filepath.Join(m.files, "var/lib", dir)); err != nil {
			t.Fatal(err)
		}
	}
	generation, _ := p.secrets(h.one.Host)
	h.vars = vars + "GEN=" + strconv.FormatUint(generation, 10) + "\n"
	for _, c := range hostTries {
		owner := h.two
		if c.byOne {
			owner = h.one
		}
		if out := h.try(c.line, owner.Host, owner.Host, h.proof(owner, owner.Host, c.audience)); !regexp.MustCompile(c.works).MatchString(out) {
			t.Errorf("%s: a host does not get its own, so the tries say nothing: %q", c.name, out)
		}
		own, forged := h.proof(h.two, h.two.Host, c.audience), h.proof(h.two, h.one.Host, c.audience)
		for how, out := range map[string]string{
			"of another":                          h.try(c.line, h.two.Host, h.one.Host, own),
			"as another, with its own proof":      h.try(c.line, h.one.Host, h.one.Host, own),
			"as another, with a proof that it is": h.try(c.line, h.one.Host, h.one.Host, forged),
		} {
			if regexp.MustCompile(c.works).MatchString(out) || !regexp.MustCompile(c.refused).MatchString(out) {
				t.Errorf("%s %s: %q lacks %q", c.name, how, out, c.refused)
			}
		}
	}
	h.tunnel()
	h.dialToken(p, m)
}

// proof is a token that id's key signs, as host says who it is.
func (h *hosts) proof(id *state.Identity, host, audience string) string {
	h.t.Helper()
	as := *id
	as.Host = host
	token, err := link.NewSigner(&as, time.Now).Token(audience)
	if err != nil {
		h.t.Fatal(err)
	}
	return token
}

func (h *hosts) try(line, as, of, proof string) string {
	out, _ := h.eve.does(h.vars+"AS="+as+"; OF="+of+"; PROOF="+proof+"\n", line)
	return out
}

// tunnel dials where streams come from.
func (h *hosts) tunnel() {
	h.t.Helper()
	lives := jwt.NewWithClaims(jwt.SigningMethodEdDSA, jwt.RegisteredClaims{
		Subject: h.two.Host, Audience: jwt.ClaimStrings{protocol.AudienceTunnel},
		IssuedAt: jwt.NewNumericDate(time.Now()), ExpiresAt: jwt.NewNumericDate(time.Now().Add(24 * time.Hour)),
	})
	long, err := lives.SignedString(h.two.PrivateKey)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, c := range []struct{ name, proof, want string }{
		{"its own", h.proof(h.two, h.two.Host, protocol.AudienceTunnel), "status 101"},
		{"another's name", h.proof(h.two, h.one.Host, protocol.AudienceTunnel), "status 401"},
		{"a proof for the broker", h.proof(h.two, h.two.Host, protocol.AudienceMQTT), "status 401"},
		{"a proof for a day", long, "status 401"},
	} {
		if out := h.try("TOKEN=$PROOF; upgrade $URL/tunnel", h.two.Host, h.two.Host, c.proof); !strings.Contains(out, c.want) {
			h.t.Errorf("the tunnel with %s: %q lacks %q", c.name, out, c.want)
		}
	}
}

// dialToken shows the tunnel what was sent to another host. That one's agent
// stands still meanwhile, so that the stream is still waited for.
func (h *hosts) dialToken(p *plane, m *machine) {
	h.t.Helper()
	w := p.w
	admin := w.in("client", "remotegpu token create listen")
	heard := w.listen("dial.log", "-V 5 -W 60 -h "+srvAddr+" -p 8883 --cafile "+m.files+"/etc/remotegpu/ca.pem -u token -P "+admin+" -C 1 -F %x -t "+protocol.HostTopic(h.one.Host, protocol.TopicDial))
	agent := m.pidOf(h.t, "remotegpu-agent run")
	if err := syscall.Kill(agent, syscall.SIGSTOP); err != nil {
		h.t.Fatal(err)
	}
	defer syscall.Kill(agent, syscall.SIGCONT)
	asked := w.start("client", "dial-asks.log", "sh", "-c", h.eve.vars+"ssh $O mine.lair@$GW true")
	heard.Wait()
	raw, err := hex.DecodeString(strings.TrimSpace(heard.heard()))
	var d protocol.Dial
	if err == nil {
		err = protocol.Unmarshal(raw, &d)
	}
	if err != nil || d.Token == "" {
		h.t.Fatalf("what was sent to the host: %v %q", err, raw)
	}
	const line = "TOKEN=$PROOF; upgrade -H \"X-Remotegpu-Stream: $STREAM\" $URL/tunnel"
	for _, c := range []struct {
		who  *state.Identity
		want string
	}{{h.two, "status 403"}, {h.one, "status 101"}, {h.one, "status 403"}} { // refused, right, and used
		out := h.try("STREAM="+d.Token+"; "+line, c.who.Host, c.who.Host, h.proof(c.who, c.who.Host, protocol.AudienceTunnel))
		if !strings.Contains(out, c.want) {
			h.t.Errorf("a request to dial, shown by %s: %q lacks %q", c.who.Name, out, c.want)
		}
	}
	w.end(asked, syscall.SIGTERM)
}
