package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// wisher is everybody who asks something of the system: environments come and
// go by the API, and people go into those that stay, by OpenSSH.
type wisher struct {
	y   *yard
	rnd *rand.Rand // of the one goroutine that makes environments come and go

	mu     sync.Mutex // guards what follows
	paused bool
	busy   int              // that are asking just now
	asked  map[string]asked // by environment
	went   map[string]went  // by environment
	answer map[string]int   // how often which answer came
	next   int
}

// asked is how often something was asked of an environment. Open: it is being
// asked just now, or nobody knows whether it got through.
type asked struct {
	asked int
	open  bool
}

// went is how often somebody went in.
type went struct{ tried, done int }

// mostEnvironments is how many come and go per host.
const mostEnvironments = 3

func newWisher(y *yard) *wisher {
	return &wisher{y: y, rnd: rand.New(rand.NewPCG(y.seed, 1)), asked: map[string]asked{}, went: map[string]went{}, answer: map[string]int{}}
}

// keep makes the environment of a host that is asked nothing, and waits for it.
func (w *wisher) keep(b *box) {
	w.y.t.Helper()
	code, body, err := w.call(http.MethodPost, "", spec(b.kept(), 1, b.name))
	if err != nil || code != http.StatusCreated {
		w.y.t.Fatalf("create %s: %d %s %v", b.kept(), code, body, err)
	}
	w.asked[b.kept()] = asked{asked: 1}
	w.y.p.waitPhase(b.kept(), "running", time.Minute)
}

func spec(name string, gpus int, host string) map[string]any {
	s := map[string]any{"name": name, "image": "{control}/default/busybox:1", "resources": map[string]any{"gpus": gpus}}
	if host != "" {
		s["affinity"] = map[string]any{"host": host}
	}
	return s
}

// run asks until ctx ends.
func (w *wisher) run(ctx context.Context) {
	go w.loop(ctx, 600*time.Millisecond/time.Duration(1+w.y.hosts()/50), w.change)
	for _, b := range w.y.boxes {
		go w.loop(ctx, 2*time.Second, func() { w.visit(b.kept()) })
	}
}

// loop does something again and again while nobody pauses it.
func (w *wisher) loop(ctx context.Context, every time.Duration, do func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(every/2 + rand.N(every)):
		}
		w.mu.Lock()
		paused := w.paused
		if !paused {
			w.busy++
		}
		w.mu.Unlock()
		if paused {
			continue
		}
		do()
		w.mu.Lock()
		w.busy--
		w.mu.Unlock()
	}
}

// pause lets nobody ask any more; busy says that somebody is at it still.
func (w *wisher) pause() (busy string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused = true
	if w.busy > 0 {
		return fmt.Sprint(w.busy, " requests are under way")
	}
	return ""
}

// known says that all is at rest: what nobody knew about has got through or not.
func (w *wisher) known() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for name, a := range w.asked {
		a.open = false
		w.asked[name] = a
	}
}

func (w *wisher) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused = false
}

// change asks for one thing of one environment.
func (w *wisher) change() {
	w.mu.Lock()
	var names []string
	for name := range w.asked {
		if strings.HasPrefix(name, "comes-") {
			names = append(names, name)
		}
	}
	if len(names) == 0 || len(names) < mostEnvironments*w.y.hosts() && w.rnd.IntN(3) == 0 {
		w.next++
		name := fmt.Sprint("comes-", w.next)
		w.mu.Unlock()
		w.ask(name, http.MethodPost, "", spec(name, w.rnd.IntN(2), ""))
		return
	}
	name := names[w.rnd.IntN(len(names))]
	w.mu.Unlock()
	switch w.rnd.IntN(4) {
	case 0:
		w.ask(name, http.MethodPost, "/"+name+"/stop", nil)
	case 1:
		w.ask(name, http.MethodPost, "/"+name+"/start", nil)
	case 2:
		w.ask(name, http.MethodPost, "/"+name+"/restart", nil)
	case 3:
		w.ask(name, http.MethodDelete, "/"+name, nil)
	}
}

// clear deletes all that came and has not gone.
func (w *wisher) clear() {
	for name := range w.counts() {
		if strings.HasPrefix(name, "comes-") {
			w.ask(name, http.MethodDelete, "/"+name, nil)
		}
	}
}

// ask makes one request and notes what is known about it.
func (w *wisher) ask(name, method, path string, body any) {
	w.mu.Lock()
	a := w.asked[name]
	w.asked[name] = asked{a.asked + 1, true}
	w.mu.Unlock()
	code, text, err := w.call(method, path, body)
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err != nil:
		w.answer["none"]++
		return // open: it may have got through
	case code == http.StatusNotFound:
		delete(w.asked, name)
	case code < 500:
		w.asked[name] = asked{a.asked + 1, a.open}
	case code == http.StatusInternalServerError:
		w.y.say(fmt.Sprintf("%s %s: %d %s", method, path, code, text))
	}
	w.answer[fmt.Sprint(code)]++
}

// call makes a request of the API in the workspace.
func (w *wisher) call(method, path string, body any) (code int, text string, err error) {
	var in io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, "", err
		}
		in = bytes.NewReader(b)
	}
	r, err := http.NewRequest(method, w.y.p.url+"/api/v1/workspaces/default/environments"+path, in)
	if err != nil {
		return 0, "", err
	}
	r.Header.Set("Authorization", "Bearer "+w.y.token)
	r.Header.Set("Content-Type", "application/json")
	answer, err := w.y.api.Do(r)
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	b, err := io.ReadAll(answer.Body)
	return answer.StatusCode, string(b), err
}

// visit goes into an environment once.
func (w *wisher) visit(name string) {
	w.mu.Lock()
	g := w.went[name]
	g.tried++
	w.went[name] = g
	said := fmt.Sprint("visit ", g.tried)
	w.mu.Unlock()
	out, err := w.y.w.try("client", "timeout 30 "+w.y.ssh+" "+name+".default@"+srvAddr+" echo "+said)
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || out != said {
		if strings.Contains(out, "Internal error") {
			w.y.say("ssh " + name + ": " + out)
		}
		w.answer["no visit: "+out[strings.LastIndex(out, "\n")+1:]]++
		return
	}
	g = w.went[name]
	g.done++
	w.went[name] = g
	w.answer["visit"]++
}

// counts is a copy of what was asked.
func (w *wisher) counts() map[string]asked {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.asked)
}

func (w *wisher) accesses() map[string]went {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.went)
}

// String says how much was asked.
func (w *wisher) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := "Answers to what was asked meanwhile:"
	for _, answer := range slices.Sorted(maps.Keys(w.answer)) {
		text += fmt.Sprintf("\n- %s: %d", answer, w.answer[answer])
	}
	return text + "\n"
}
