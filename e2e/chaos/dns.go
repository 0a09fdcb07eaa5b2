package chaos

import (
	"net"
	"sync/atomic"

	"golang.org/x/net/dns/dnsmessage"
)

// Names is a DNS server that gives one address for every name, until it is told
// to do worse.
type Names struct {
	addr [4]byte
	does atomic.Int32
}

// What a DNS server does with questions.
const (
	Answers  = iota
	Silent   // it is away
	Fails    // it says that it failed
	Denies   // it says that there is no such name
	nameMood // how many there are
)

// NewNames answers what comes to conn, until it closes.
func NewNames(conn net.PacketConn, addr net.IP) *Names {
	n := &Names{addr: [4]byte(addr.To4())}
	go func() {
		question := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(question)
			if err != nil {
				return
			}
			if answer, ok := n.answer(question[:size]); ok {
				_, _ = conn.WriteTo(answer, from) // who asks asks again
			}
		}
	}()
	return n
}

// Do changes what it does.
func (n *Names) Do(what int) { n.does.Store(int32(what)) }

// Worse is one of the bad things that it may do.
func Worse(dice uint64) int { return Answers + 1 + int(dice%(nameMood-1)) }

func (n *Names) answer(question []byte) ([]byte, bool) {
	var p dnsmessage.Parser
	h, err := p.Start(question)
	if err != nil {
		return nil, false
	}
	q, err := p.Question()
	does := n.does.Load()
	if err != nil || does == Silent {
		return nil, false
	}
	m := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: h.ID, Response: true, Authoritative: true, RecursionDesired: h.RecursionDesired, RecursionAvailable: true},
		Questions: []dnsmessage.Question{q},
	}
	switch {
	case does == Fails:
		m.RCode = dnsmessage.RCodeServerFailure
	case does == Denies:
		m.RCode = dnsmessage.RCodeNameError
	case q.Type == dnsmessage.TypeA:
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class}, // a TTL of 0: nobody keeps it
			Body:   &dnsmessage.AResource{A: n.addr},
		}}
	}
	b, err := m.Pack()
	return b, err == nil
}
