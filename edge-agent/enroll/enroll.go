// Package enroll makes this machine a host of a control plane.
//
// It owns the one request that shows a join token and the host's public key.
// It does not own where the identity is kept (package state). Its invariants:
// the private key never leaves the machine; running it twice changes nothing;
// every failure is one sentence that says what to do.
package enroll

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"github.com/remotegpu/remotegpu/edge-agent/reach"
	"github.com/remotegpu/remotegpu/edge-agent/state"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	path      = "/api/v1/agent/enroll"
	maxAnswer = 64 << 10 // bytes
)

// Request is what a person gives. Server, Token and Inventory are required.
type Request struct {
	Server    *reach.Server
	CA        string // PEM, kept for later connections
	Token     string
	Name      string // wished; empty: the hostname
	Agent     string // version
	Inventory protocol.Inventory
}

// Result is what came of it.
type Result struct {
	Host     string
	Name     string
	Approved bool // false: an admin must approve the host first
	Already  bool // it was enrolled before; nothing changed
}

// Known returns the result for a host that is enrolled already, and an error
// if that is with another server. It is for a data folder whose agent runs.
func Known(id *state.Identity, server string) (Result, error) {
	if id.Server != server {
		return Result{}, fmt.Errorf("this machine is already host %s of %s: run the server's install script with --uninstall first to move it to %s", id.Name, id.Server, server)
	}
	return Result{Host: id.Host, Name: id.Name, Approved: true, Already: true}, nil
}

// Enroll enrols the machine whose data folder is store.
func Enroll(ctx context.Context, store *state.Store, r Request) (Result, error) {
	if id := store.Identity(); id != nil {
		return Known(id, r.Server.String())
	}
	if r.Token == "" {
		return Result{}, errors.New("a join token is needed: take one from Hosts, Add host in the console and give it with --token")
	}
	key, err := store.HostKey()
	if err != nil {
		return Result{}, err
	}
	if _, err := r.Server.Measure(ctx); err != nil {
		return Result{}, errors.New(r.Server.Sentence(err))
	}
	answer, err := ask(ctx, r, key)
	if err != nil {
		return Result{}, err
	}
	id := identity(r, key, answer)
	if err := store.SaveIdentity(id); err != nil {
		return Result{}, err
	}
	return Result{Host: id.Host, Name: id.Name, Approved: answer.Approved}, nil
}

func ask(ctx context.Context, r Request, key ed25519.PrivateKey) (*protocol.Enrolled, error) {
	public := key.Public().(ed25519.PublicKey)
	body, err := json.Marshal(protocol.Enroll{
		Token: r.Token, PublicKey: public, Proof: ed25519.Sign(key, protocol.EnrollProof(r.Token, public)),
		Name: r.Name, Agent: r.Agent, Inventory: r.Inventory,
	})
	if err != nil {
		return nil, fmt.Errorf("encode enrolment: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Server.URL("https", path), bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make enrolment request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := r.Server.HTTP().Do(req)
	if err != nil {
		return nil, errors.New(r.Server.Sentence(err))
	}
	defer res.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, errors.New(r.Server.Sentence(err))
	}
	if res.StatusCode/100 != 2 {
		return nil, problem(r.Server, res.StatusCode, raw)
	}
	return decode(r.Server, raw)
}

// decode reads the server's answer and checks it.
func decode(server fmt.Stringer, raw []byte) (*protocol.Enrolled, error) {
	var answer protocol.Enrolled
	if err := json.Unmarshal(raw, &answer); err != nil {
		return nil, fmt.Errorf("%s did not answer as a RemoteGPU server does: check the address", server)
	}
	if !protocol.ValidID(protocol.PrefixHost, answer.Host) || len(answer.Keys) == 0 {
		return nil, fmt.Errorf("%s answered without a host id or without its keys: check the address and the server's version", server)
	}
	for _, k := range answer.Keys {
		if len(k) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("%s answered with a key of %d bytes: check the server's version", server, len(k))
		}
	}
	return &answer, nil
}

// problem is what went wrong in the server's own words, if it has some.
func problem(server fmt.Stringer, status int, raw []byte) error {
	if said := reach.Detail(raw); said != "" {
		return errors.New(said)
	}
	if status == http.StatusNotFound {
		return fmt.Errorf("%s is no RemoteGPU server: check the address", server)
	}
	return fmt.Errorf("%s, or what stands in front of it, answered %d (%s): try again later, or look at the server's log", server, status, http.StatusText(status))
}

func identity(r Request, key ed25519.PrivateKey, a *protocol.Enrolled) *state.Identity {
	id := &state.Identity{Server: r.Server.String(), CA: r.CA, Host: a.Host, Name: a.Name, PrivateKey: key, Registry: a.Registry}
	for _, k := range a.Keys {
		id.Keys = append(id.Keys, k)
	}
	return id
}
