package e2e

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSurvival cuts the client's link, the agent's and the server's life 100
// times at random while a person works in a session: the transcript is as if
// nothing had happened. With hosts at a mosquitto there are fewer cuts, of which
// it gets its share: sessions go the same way there, and another minute will do.
func TestSurvival(t *testing.T) { eachBroker(t, survival) }

func survival(t *testing.T, w *world) {
	cuts, recorded, outage := 100, 25, 45*time.Second
	if w.external {
		cuts, recorded, outage = 30, 8, 15*time.Second
	}
	p, m := w.newPlane(), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "--name box")
	w.in("client", "remotegpu env create one --image "+busyboxImage)

	t.Run("plain ssh", func(t *testing.T) { plainSurvives(t, p, m, outage) })
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("RG_SEED"); text != "" {
		if _, err := fmt.Sscan(text, &seed); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("RG_SEED=%d", seed)
	storm := &storm{w: w, p: p, m: m, rnd: rand.New(rand.NewPCG(seed, 0)), t: t}
	storm.rage(seed, cuts)
	w.in("client", "remotegpu recording policy all")
	shown := storm.rage(seed+1, recorded)
	recording := w.onlyRecording()
	if sum := sha256.Sum256([]byte(recording)); hex.EncodeToString(sum[:]) != shown {
		t.Errorf("the recording's %d bytes are not what was shown: %.500s", len(recording), recording)
	}
}

// rage cuts n times while a person works in a session, and returns the checksum
// of what the session showed.
func (s *storm) rage(seed uint64, n int) (shown string) {
	s.took = map[string][]time.Duration{}
	work := s.w.newWork(s.t, "one", seed, hurried)
	work.until(1, 30*time.Second)
	for _, kind := range s.plan(n) {
		seen, _ := work.lines()
		began := time.Now()
		s.cut(kind)
		work.until(seen+2, 90*time.Second) // one line may have been on its way
		s.took[kind] = append(s.took[kind], time.Since(began))
	}
	shown = work.finish()
	s.report()
	if out := s.w.in("client", "remotegpu sessions one -o json"); strings.TrimSpace(out) != "[]" {
		s.t.Errorf("a session is left: %s", out)
	}
	return shown
}

// onlyRecording returns what the one recording that there is shows, when it has
// ended.
func (w *world) onlyRecording() (shown string) {
	w.t.Helper()
	var all struct {
		Items []struct {
			ID    string  `json:"id"`
			Ended *string `json:"ended_at"`
			Cut   bool    `json:"cut"`
		} `json:"items"`
	}
	eventually(w.t, 20*time.Second, "the recording has ended", func() (string, bool) {
		out := w.in("client", "remotegpu recording ls -o json")
		err := json.Unmarshal([]byte(out), &all)
		return out, err == nil && len(all.Items) == 1 && all.Items[0].Ended != nil && !all.Items[0].Cut
	})
	for _, line := range strings.Split(w.in("client", "remotegpu play --raw "+all.Items[0].ID), "\n")[1:] {
		var event [3]any
		if json.Unmarshal([]byte(line), &event) == nil && event[1] == "o" {
			shown += event[2].(string)
		}
	}
	return shown
}

// storm cuts.
type storm struct {
	w    *world
	p    *plane
	m    *machine
	t    *testing.T
	rnd  *rand.Rand
	took map[string][]time.Duration // until the next line, by kind
	last int                        // of the client's address
}

// plan returns n cuts in random order, the slow kinds few times.
func (s *storm) plan(n int) []string {
	percents := map[string]int{"server killed": 5, "server stopped": 2, "agent killed": 5, "agent's link reset": 14, "client's link silent": 4, "client's address": 15}
	if s.w.external {
		percents["mosquitto killed"] = 14
	}
	var kinds []string
	for kind, percent := range percents {
		kinds = append(kinds, slices.Repeat([]string{kind}, max(1, percent*n/100))...)
	}
	slices.Sort(kinds) // a map has no order
	for len(kinds) < n {
		kinds = append(kinds, "client's link reset")
	}
	s.rnd.Shuffle(n, func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
	return kinds
}

func (s *storm) cut(kind string) {
	switch kind {
	case "server killed":
		s.p.kill()
		s.p.start()
	case "server stopped":
		s.w.end(s.p.cmd, syscall.SIGTERM)
		s.p.start()
	case "agent killed":
		s.m.kill(s.t, "remotegpu-agent run")
	case "agent's link reset":
		s.w.reset("host")
	case "mosquitto killed":
		s.w.killMosquitto()
		s.w.reset("host") // or nobody would need it
		s.w.startMosquitto()
	case "client's link reset":
		s.w.reset("client")
	case "client's link silent":
		s.w.in("client", "nft add table inet hush && nft 'add chain inet hush in { type filter hook input priority 0; policy drop; }' && nft 'add chain inet hush out { type filter hook output priority 0; policy drop; }'")
		time.Sleep(time.Duration(1000+s.rnd.IntN(4000)) * time.Millisecond)
		s.w.in("client", "nft delete table inet hush")
	case "client's address":
		old := s.last
		s.last = (s.last + 1) % 5
		s.w.in("client", fmt.Sprintf("ip addr del 203.0.113.%d/24 dev wan; ip addr add 203.0.113.%d/24 dev wan", 30+old, 30+s.last))
	}
}

// reset breaks all connections of a role with the server and a broker beside it,
// at both ends; new ones get through.
func (w *world) reset(role string) { w.in(role, resetLinks) }

const resetLinks = `ports=$(ss -Htn state established '( dport = :8443 or dport = :8883 )' | awk '{ n = split($3, a, ":"); printf "%s%s", c, a[n]; c = ", " }')
[ -n "$ports" ] || exit 0
nft delete table inet cut 2>/dev/null
nft -f - <<X
table inet cut {
  chain out { type filter hook output priority 0; tcp dport { 8443, 8883 } tcp sport { $ports } tcp flags & rst == 0 reject with tcp reset; }
  chain in { type filter hook input priority 0; tcp sport { 8443, 8883 } tcp dport { $ports } tcp flags & rst == 0 reject with tcp reset; }
}
X`

// report logs how soon the session went on, and fails when that is slow where
// nothing but the session itself had to come back. Of a few times it says nothing:
// what was cut before may still be coming back.
func (s *storm) report() {
	for _, kind := range slices.Sorted(maps.Keys(s.took)) {
		all := s.took[kind]
		slices.Sort(all)
		s.t.Logf("%-22s %3d times, next line after p50 %v, worst %v", kind, len(all), all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
		if p50 := all[len(all)/2]; kind == "client's link reset" && len(all) >= 10 && p50 > time.Second {
			s.t.Errorf("after a reset of the client's link, half of the times nothing comes for %v", p50)
		}
	}
}

// plainSurvives: OpenSSH's own session goes on after the host was away for a
// while, its connections were reset, and its agent was killed.
func plainSurvives(t *testing.T, p *plane, m *machine, outage time.Duration) {
	w := p.w
	args := strings.Fields(p.sshKey() + " one.default@" + srvAddr)
	cmd := exec.Command("nsenter", append([]string{"--net=/run/netns/" + w.ns("client")}, args...)...)
	cmd.Args = append(cmd.Args, "echo ready; cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var errOut bytes.Buffer
	cmd.Stderr = &errOut
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	lines := bufio.NewReader(out)
	want := func(text string) {
		t.Helper()
		if line, err := lines.ReadString('\n'); line != text+"\n" {
			t.Fatalf("read %q, %v, want %q; ssh says %s", line, err, text, errOut.String())
		}
	}
	want("ready")
	w.in("nat1", "nft add table inet hush && nft 'add chain inet hush f { type filter hook forward priority -10; policy drop; }'")
	fmt.Fprintln(in, "during")
	time.Sleep(outage)
	w.in("nat1", "nft delete table inet hush")
	want("during")
	fmt.Fprintln(in, "after")
	want("after")
	w.reset("host")
	fmt.Fprintln(in, "after a reset")
	want("after a reset")
	m.kill(t, "remotegpu-agent run")
	fmt.Fprintln(in, "after the agent's end")
	want("after the agent's end")
	in.Close()
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v: %s", err, errOut.String())
	}
}
