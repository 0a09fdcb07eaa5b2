package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	mostTimes = 2.0  // what an attack may make of somebody else's median
	noise     = 10.0 // milliseconds that two cores shared by both ends, and others, add by themselves
)

// These are the attacks of e2e/peer, in the order in which they are tried.
var (
	atBroker = []string{"a flood of statuses", "forged statuses", "security events", "wills by the thousand", "malformed MQTT", "slow-loris at MQTT"}
	atServer = []string{"certificates", "enrolments with 1 MB of labels", "slow-loris at HTTPS", "guessed passwords", "guessed tokens",
		"SSH banners", "compressed bombs", "oversized headers"}
)

// took are the samples that e2e/peer prints, by what was done.
type took map[string][]float64

func median(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(all))[len(all)/2]
}

func p95(all []float64) float64 {
	if len(all) == 0 {
		return 0
	}
	return slices.Sorted(slices.Values(all))[len(all)*95/100]
}

// TestHostilePeers: what a hostile peer does costs nobody else more than twice
// the time, and changes nothing of theirs. Each attack is measured against the
// quiet moments before and after it; the attacker runs at the lowest priority,
// for it would have a machine of its own.
func TestHostilePeers(t *testing.T) { eachBroker(t, hostilePeers) }

func hostilePeers(t *testing.T, w *world) {
	attacks, flags := slices.Concat(atBroker, atServer), []string{"--mqtt-listen", srvAddr + ":8883"}
	if w.external { // mosquitto listens there; no host waits behind the server's other doors, and a minute and a half is enough
		attacks, flags = slices.Concat(atBroker, atServer[:3]), nil
	}
	p, m := w.newPlane(flags...), w.machine()
	t.Cleanup(func() { m.dump(t) })
	p.login()
	p.pushBusybox()
	p.join(m, "--name box")
	w.in("client", "remotegpu env create mine --image "+busyboxImage)
	peer, conf := p.newPeer()
	before := p.life(m, "mine")
	var quiet took
	t.Logf("milliseconds, median / p95: quiet → beside the attack, and how many times the median")
	for _, attack := range attacks {
		t.Run(attack, func(t *testing.T) {
			misses, stuck := 0, 0
			for range 5 { // whatever else this machine does is no attack of ours
				slow, steady, err := w.beside(t, attack, &quiet, func() *exec.Cmd {
					return w.start("proxy", "peer.log", "nice", "-n", "19", peer, "-as", attack, "-config", conf, "-for", "6s")
				})
				if err != nil {
					if t.Log(err); stuck == 1 {
						t.Fatal("twice nothing works, with nobody attacking: ", err)
					}
					stuck++
					continue
				}
				if slow == "" {
					return
				}
				if t.Log(slow); steady {
					misses++
				}
				if misses == 3 {
					t.Fatal("three times, while the machine was steady: ", slow)
				}
			}
			t.Log("NOT MEASURED: the machine is too busy with other things")
		})
	}
	if e := p.env("mine"); e.Phase != "running" || strings.Contains(e.Message, "forged") {
		t.Errorf("another host's lies changed the environment: %+v", e)
	}
	if now := p.life(m, "mine"); now != before {
		t.Errorf("the container is another: %s, was %s", now, before)
	}
	if out := w.in("client", "remotegpu env events mine"); strings.Contains(out, "Forged") {
		t.Errorf("another host's event is among the environment's: %s", out)
	}
}

// beside measures somebody who behaves before, beside and after an attack, and
// says what of theirs takes too long, and whether before was as after. What is
// measured after one attack, in quiet, is before the next. An error says that
// they could not work with nobody attacking.
func (w *world) beside(t *testing.T, attack string, quiet *took, begin func() *exec.Cmd) (slow string, steady bool, err error) {
	t.Helper()
	log := filepath.Join(w.dir, "peer.log")
	os.Remove(log)
	good := func(lasts time.Duration) (took, error) { return w.behave("client", lasts) }
	if *quiet == nil {
		if *quiet, err = good(2 * time.Second); err != nil {
			return "", false, err
		}
	}
	before, cmd := *quiet, begin()
	time.Sleep(time.Second)
	during, failed := good(4 * time.Second)
	cmd.Wait()
	after, err := good(2 * time.Second)
	*quiet = after
	switch {
	case err != nil:
		return "", false, err
	case failed != nil:
		return failed.Error(), true, nil
	}
	steady = true
	for _, what := range []string{"request", "keystroke", "heartbeat", "login"} {
		least, base := min(median(before[what]), median(after[what])), max(median(before[what]), median(after[what]))
		steady = steady && base <= 1.5*least+3
		got := median(during[what])
		t.Logf("%-9s %6.1f /%6.1f → %6.1f /%6.1f  %.1f×", what, base, max(p95(before[what]), p95(after[what])), got, p95(during[what]), got/base)
		if got > mostTimes*base+noise {
			slow += fmt.Sprintf("a %s takes %.1f ms, quiet %.1f; ", what, got, base)
		}
	}
	said := strings.TrimSpace(tail(log))
	t.Log(said)
	if !regexp.MustCompile(`^[1-9]\d* tries`).MatchString(said) {
		t.Errorf("%s: it did nothing: %s", attack, said)
	}
	return slow, steady, nil
}

// behave measures somebody who behaves, in the network of a role.
func (w *world) behave(role string, lasts time.Duration) (s took, err error) {
	out, err := w.try(role, fmt.Sprintf("%s/peer -config %s/peer.json -for %v", w.dir, w.dir, lasts))
	if err == nil {
		err = json.Unmarshal([]byte(out[strings.LastIndex(out, "{"):]), &s)
	}
	if err != nil {
		err = fmt.Errorf("who behaves cannot work: %w %s", err, out)
	}
	return s, err
}

// newPeer builds e2e/peer and writes what it needs to know: the environment mine,
// once it runs, is the one that it types in.
func (p *plane) newPeer() (peer, conf string) {
	w := p.w
	w.t.Helper()
	p.waitPhase("mine", "running", 60*time.Second)
	p.sshKey()
	peer, conf = filepath.Join(w.dir, "peer"), filepath.Join(w.dir, "peer.json")
	w.must("go", "build", "-o", peer, "./peer")
	var env struct{ ID, Host string }
	if err := json.Unmarshal([]byte(w.in("client", "remotegpu env show mine")), &env); err != nil {
		w.t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{
		"Address": srvAddr, "HTTPS": "8443", "MQTT": "8883", "SSH": "2222",
		"Token": w.in("client", "remotegpu token create peer"),
		"Join":  regexp.MustCompile(`rgj_[0-9A-Z]+`).FindString(w.in("client", "remotegpu host join --uses 1000")),
		"Key":   filepath.Join(w.dir, "id"), "Env": "mine.default", "Victim": env.Host, "Target": env.ID,
		"Certified": w.external,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(conf, b, 0o600); err != nil {
		w.t.Fatal(err)
	}
	return peer, conf
}
