package broker

import "sync"

// turns lets one handler at a time work on a message of a host. A host has an
// entry only while there is one, for ids come and go.
type turns struct {
	mu sync.Mutex // guards of and the counts in it
	of map[string]*turn
}

type turn struct {
	sync.Mutex
	users int // who has it or waits
}

// take waits for the turn of host; done ends it.
func (t *turns) take(host string) (done func()) {
	t.mu.Lock()
	one := t.of[host]
	if one == nil {
		one = &turn{}
		t.of[host] = one
	}
	one.users++
	t.mu.Unlock()
	one.Lock()
	return func() {
		one.Unlock()
		t.mu.Lock()
		defer t.mu.Unlock()
		if one.users--; one.users == 0 {
			delete(t.of, host)
		}
	}
}
