package environment

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/remotegpu/remotegpu/control/audit"
	"github.com/remotegpu/remotegpu/control/auth"
	"github.com/remotegpu/remotegpu/control/dispatch"
	"github.com/remotegpu/remotegpu/control/errs"
	"github.com/remotegpu/remotegpu/control/pg"
	"github.com/remotegpu/remotegpu/control/scheduler"
	"github.com/remotegpu/remotegpu/protocol"
)

// creation is what one Create asks, and what became of it.
type creation struct {
	caller  auth.Caller
	asked   Environment
	e       Environment
	refused error
}

var (
	errNameTaken = errors.New("name is taken")
	errCrowded   = errors.New("a host's document is full")
)

// careFor is for how many seconds hosts with full documents are avoided after one
// was met.
const careFor = 10

// carefully runs fn, which places environments, in a transaction: without care
// for full documents, which takes a look at all environments, unless one is met.
func (s *Service) carefully(ctx context.Context, ids []string, fn func(tx pg.Tx, careful bool) error) error {
	careful := time.Now().Unix()-s.crowded.Load() < careFor
	err := pg.InTx(ctx, s.pool, func(tx pg.Tx) error { return fn(tx, careful) })
	if errors.Is(err, errCrowded) {
		s.crowded.Store(time.Now().Unix())
		err = pg.InTx(ctx, s.pool, func(tx pg.Tx) error { return fn(tx, true) })
	}
	if err != nil {
		s.cfg.Scheduler.Forget(ids)
	}
	return err
}

// createAll makes environments in one transaction. What is wrong with one of them
// alone is left in it.
func (s *Service) createAll(ctx context.Context, all []*creation) error {
	ids := make([]string, len(all))
	for i, m := range all {
		ids[i] = m.asked.ID
	}
	return s.carefully(ctx, ids, func(tx pg.Tx, careful bool) error {
		open, err := unnamed(ctx, tx, all)
		if err != nil {
			return err
		}
		return s.create(ctx, tx, open, careful)
	})
}

// unnamed begins creations anew and returns those whose name is free.
func unnamed(ctx context.Context, tx pg.Tx, all []*creation) (open []*creation, err error) {
	list := make([]*Environment, len(all))
	for i, m := range all {
		m.e, m.refused = m.asked, nil
		list[i] = &m.e
	}
	taken, err := namesTaken(ctx, tx, list)
	for _, m := range all {
		if taken[&m.e] {
			m.refused = errNameTaken
			continue
		}
		open = append(open, m)
	}
	return open, err
}

func (s *Service) create(ctx context.Context, tx pg.Tx, all []*creation, careful bool) error {
	asked := make([]*Environment, len(all))
	for i, m := range all {
		asked[i] = &m.e
	}
	decisions, err := s.decide(ctx, tx, asked, careful)
	if err != nil {
		return err
	}
	var made []*Environment
	var told []happening
	var changes []string
	var acts []audit.Act
	for i, m := range all {
		e := &m.e
		if decisions[i].Never {
			m.refused = errs.E(errs.Invalid, decisions[i].Summary)
			continue
		}
		told = append(told, e.happens("Created", "Created by "+m.caller.Name+" with image "+e.Image+"."))
		told = append(told, e.settled(decisions[i])...)
		change, err := e.change("")
		if err != nil {
			return err
		}
		made, changes = append(made, e), append(changes, change)
		acts = append(acts, audit.Act{Caller: m.caller, Action: auth.EnvironmentWrite, Target: e.ID, Workspace: e.Workspace,
			Detail: map[string]any{"op": "create", "name": e.Name, "image": e.Image, "resources": e.Resources}})
	}
	if len(made) == 0 {
		return nil
	}
	if err := insertAll(ctx, tx, made); err != nil {
		return err
	}
	if err := tellAll(ctx, tx, told); err != nil {
		return err
	}
	if err := audit.RecordAll(ctx, tx, acts); err != nil {
		return err
	}
	if err := pg.NotifyAll(ctx, tx, Changed, changes); err != nil {
		return err
	}
	return again(ctx, tx, made)
}

// again reads environments as they are now.
func again(ctx context.Context, tx pg.Tx, all []*Environment) error {
	ids := make([]string, len(all))
	for i, e := range all {
		ids[i] = e.ID
	}
	now, err := read(ctx, tx, "where e.id = any($1)", ids)
	if err != nil {
		return err
	}
	place := make(map[string]int, len(now))
	for i := range now {
		place[now[i].ID] = i
	}
	for _, e := range all {
		i, there := place[e.ID]
		if !there {
			return fmt.Errorf("environment %s was written and is not there", e.ID)
		}
		*e = now[i]
	}
	return nil
}

// place asks for hosts and notes where environments go, or what they wait for.
func (s *Service) place(ctx context.Context, tx pg.Tx, all []*Environment, careful bool) error {
	decisions, err := s.decide(ctx, tx, all, careful)
	if err != nil {
		return err
	}
	var told []happening
	for i, e := range all {
		told = append(told, e.settled(decisions[i])...)
	}
	return tellAll(ctx, tx, told)
}

// settled notes a decision and returns what is to be told of it. Generation is
// set already.
func (e *Environment) settled(d scheduler.Decision) []happening {
	if d.Placed() {
		e.Host, e.HostName, e.GPUs, e.Placed, e.WaitsFor = d.Host, d.HostName, d.GPUs, true, ""
		e.Phase, e.Message = protocol.PhasePending, "waits for host "+d.HostName+" to take it"
		return []happening{e.happens("Scheduled", d.Summary)}
	}
	waited := e.WaitsFor
	e.Phase, e.Message, e.WaitsFor, e.Placed = protocol.PhasePending, "", d.Summary, false
	if d.Summary == waited {
		return nil
	}
	return []happening{e.happens("Waiting", d.Summary)}
}

// decide lets the scheduler place environments and tells their hosts. With care
// it avoids hosts whose documents are full, else it fails when one is chosen.
func (s *Service) decide(ctx context.Context, tx pg.Tx, all []*Environment, careful bool) ([]scheduler.Decision, error) {
	requests := make([]scheduler.Request, len(all))
	for i, e := range all {
		requests[i] = e.request()
		requests[i].New = e.CreatedAt.IsZero() // it has no row yet
	}
	if careful {
		if err := avoidFull(ctx, tx, all, requests); err != nil {
			return nil, err
		}
	}
	decisions, err := s.cfg.Scheduler.PlaceAll(ctx, tx, requests)
	if err != nil {
		return nil, fmt.Errorf("place environments: %w", err)
	}
	if !careful {
		if err := findFull(ctx, tx, all, decisions); err != nil {
			return nil, err
		}
	}
	var hosts []string
	for i, d := range decisions {
		if d.Placed() && all[i].HostState != hostGone {
			hosts = append(hosts, d.Host)
		}
	}
	if len(hosts) == 0 {
		return decisions, nil
	}
	generations, err := dispatch.TouchAll(ctx, tx, hosts)
	for i, d := range decisions {
		if generation, touched := generations[d.Host]; touched {
			all[i].Generation = generation
		}
	}
	return decisions, err
}

// avoidFull keeps requests away from hosts whose documents have no room for them.
func avoidFull(ctx context.Context, tx pg.Tx, all []*Environment, requests []scheduler.Request) error {
	known, err := rooms(ctx, tx, nil)
	if err != nil {
		return err
	}
	for i, e := range all {
		for host, r := range known {
			if e.Host == "" && !r.fits(e) {
				requests[i].Avoid = append(requests[i].Avoid, host)
			}
		}
	}
	return nil
}

// findFull fails when newcomers do not fit the documents of the hosts that they
// got. Those hosts are locked.
func findFull(ctx context.Context, tx pg.Tx, all []*Environment, decisions []scheduler.Decision) error {
	var hosts []string
	for i, d := range decisions {
		if d.Placed() && all[i].Host == "" {
			hosts = append(hosts, d.Host)
		}
	}
	if len(hosts) == 0 {
		return nil
	}
	known, err := rooms(ctx, tx, hosts)
	if err != nil {
		return err
	}
	for i, d := range decisions {
		if !d.Placed() || all[i].Host != "" {
			continue
		}
		r := known[d.Host]
		if !r.fits(all[i]) {
			return errCrowded
		}
		r.add(all[i].Workspace, share{all[i].Bytes, 1})
	}
	return nil
}

// retry gives waiting environments another try; the scheduler calls it, with
// those first that are served first.
func (s *Service) retry(ctx context.Context, ids []string) error {
	err := s.retryAll(ctx, ids)
	if err == nil || len(ids) == 1 || ctx.Err() != nil {
		return err
	}
	var each []error
	for _, id := range ids { // one does not keep the others
		each = append(each, s.retryAll(ctx, []string{id}))
	}
	return errors.Join(each...)
}

func (s *Service) retryAll(ctx context.Context, ids []string) error {
	return s.carefully(ctx, ids, func(tx pg.Tx, careful bool) error {
		locked, err := lockAll(ctx, tx, ids)
		if err != nil {
			return err
		}
		there := make(map[string]*Environment, len(locked))
		for i := range locked {
			there[locked[i].ID] = &locked[i]
		}
		var due []*Environment
		for _, id := range ids {
			e := there[id]
			switch {
			case e != nil && e.Placed:
			case e == nil || e.Want != wantRunning:
				if err := scheduler.Release(ctx, tx, id); err != nil { // it waits no longer
					return err
				}
			default:
				due = append(due, e)
			}
		}
		if len(due) == 0 {
			return nil
		}
		return s.placeWaiting(ctx, tx, due, careful)
	})
}

func (s *Service) placeWaiting(ctx context.Context, tx pg.Tx, all []*Environment, careful bool) error {
	before := make([]string, len(all))
	for i, e := range all {
		before[i] = e.Phase
	}
	if err := s.place(ctx, tx, all, careful); err != nil {
		return err
	}
	if err := saveAll(ctx, tx, all); err != nil {
		return err
	}
	changes := make([]string, len(all))
	for i, e := range all {
		var err error
		if changes[i], err = e.change(before[i]); err != nil {
			return err
		}
	}
	return pg.NotifyAll(ctx, tx, Changed, changes)
}
