package relay

import (
	"fmt"
	"sync"

	"github.com/remotegpu/remotegpu/protocol"
)

// room is how many streams there may be at a time. One tenant may have most of it,
// but the last quarter is for those who have little: nobody keeps another's people
// out, nor the host's owner.
type room struct {
	max    int
	tenant func(workload string) string // who shares what; nil: nobody does

	mu       sync.Mutex // guards what follows
	open     int
	byTenant map[string]int
}

func (r *room) enter(workload string) (leave func(), no *protocol.StreamReply) {
	who := workload
	if r.tenant != nil && workload != "" {
		who = r.tenant(workload)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	few := max(1, r.max/16)
	switch {
	case r.open >= r.max:
		return nil, refused("This host has %d sessions and forwards already; close some.", r.open)
	case workload != "" && r.open >= r.max-r.max/4 && r.byTenant[who] >= few:
		return nil, refused("Your workspace has %d sessions and forwards on this host, and it has little room left, which is for others; close some.", r.byTenant[who])
	}
	r.open++
	r.byTenant[who]++
	return sync.OnceFunc(func() { r.leave(who) }), nil
}

func (r *room) leave(who string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open--
	if r.byTenant[who]--; r.byTenant[who] == 0 {
		delete(r.byTenant, who)
	}
}

func refused(format string, args ...any) *protocol.StreamReply {
	return &protocol.StreamReply{Code: protocol.ReplyLimit, Message: fmt.Sprintf(format, args...)}
}
