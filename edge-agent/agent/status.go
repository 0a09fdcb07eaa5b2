package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/remotegpu/remotegpu/edge-agent/link"
)

const (
	socketName   = "agent.sock"
	statusWithin = 3 * time.Second
)

// Status is how the agent is, for people on its host.
type Status struct {
	Version    string     `json:"version"`
	Server     string     `json:"server"`
	Host       string     `json:"host"`
	Name       string     `json:"name"`
	Link       link.State `json:"link"`
	Clock      string     `json:"clock,omitempty"` // how far it is off, if it is
	Generation uint64     `json:"generation"`      // of the document that is obeyed; 0: none yet
	Applied    uint64     `json:"applied"`         // generation that containerd agrees with
	Workloads  []Workload `json:"workloads"`
}

// Workload is one workload in a Status.
type Workload struct {
	ID      string `json:"id"`
	Name    string `json:"name,omitempty"`
	Phase   string `json:"phase"`
	Message string `json:"message,omitempty"`
}

// ErrNotRunning says that no agent serves the run folder.
var ErrNotRunning = errors.New("the agent does not run here: start it with `systemctl start remotegpu-agent`, or `remotegpu-agent supervise --detach` without systemd")

func (p *parts) status() Status {
	id := p.store.Identity()
	s := Status{
		Version: p.cfg.Version, Server: id.Server, Host: id.Host, Name: id.Name,
		Link: p.link.State(), Applied: p.loop.Applied(), Workloads: []Workload{},
	}
	if said, _ := p.notLetIn.Load().(string); said != "" && s.Link.Phase == link.Refused {
		s.Link.Message = said
	}
	if offset := p.server.Offset(); offset != 0 {
		s.Clock = offset.Round(time.Second).String()
	}
	names := map[string]string{}
	if d, _ := p.store.Desired(); d != nil {
		s.Generation = d.Generation
		for _, w := range d.Workloads {
			names[w.ID] = w.Name
		}
	}
	for _, w := range p.loop.Statuses() {
		s.Workloads = append(s.Workloads, Workload{w.ID, names[w.ID], w.Phase, w.Message})
	}
	return s
}

// serveStatus answers on a socket in the run folder that only root may open.
func serveStatus(ctx context.Context, runDir string, status func() Status) error {
	path := filepath.Join(runDir, socketName)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove old status socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("open status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return fmt.Errorf("protect status socket: %w", err)
	}
	srv := &http.Server{
		ReadTimeout: statusWithin, WriteTimeout: statusWithin,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(status()) // whoever asked may have gone
		}),
	}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(l); ctx.Err() == nil {
		return fmt.Errorf("serve status: %w", err)
	}
	return nil
}

// ReadStatus asks the agent that serves a run folder.
func ReadStatus(ctx context.Context, runDir string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, statusWithin)
	defer cancel()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(runDir, socketName))
	}}
	defer transport.CloseIdleConnections()
	var s Status
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/", nil)
	if err != nil {
		return s, err
	}
	res, err := transport.RoundTrip(req)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return s, ErrNotRunning
	}
	if errors.Is(err, fs.ErrPermission) {
		return s, errors.New("only root may ask the agent: run it with sudo")
	}
	if err != nil {
		return s, fmt.Errorf("ask the agent: %w", err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return s, fmt.Errorf("read the agent's answer: %w", err)
	}
	return s, nil
}
