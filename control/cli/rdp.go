package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/remotegpu/remotegpu/control/forward"
	"github.com/remotegpu/remotegpu/protocol"
)

type rdpRow struct {
	Address  string `json:"address"`
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty"`
	File     string `json:"file"`
}

func (a *app) rdpCommand() *cobra.Command {
	var port uint16
	noLaunch := false
	cmd := &cobra.Command{
		Use: "rdp ENV|host:NAME", Short: "A remote desktop, with this machine's RDP client",
		Long: `Listen on 127.0.0.1 and carry an RDP client's connections to the RDP server of an
environment, or of a host itself (platform admins), over the server's HTTPS port.
Writes a .rdp file and starts the RDP client of this machine, if there is one:
mstsc, Windows App, or FreeRDP. An environment needs an RDP server on its port
3389; the desktop image has one, and its user and password are shown here.`,
		Example: "  remotegpu rdp my-desktop\n  remotegpu rdp my-desktop --no-launch --port 13389\n  remotegpu rdp host:lab-3",
		Args:    args(1, 1, "an environment or host:NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.rdp(cmd.Context(), args[0], port, !noLaunch)
		},
	}
	cmd.Flags().Uint16Var(&port, "port", 0, "local port (default: any that is free)")
	cmd.Flags().BoolVar(&noLaunch, "no-launch", false, "start no RDP client")
	return cmd
}

func (a *app) rdp(ctx context.Context, name string, port uint16, launch bool) error {
	c, err := a.connect()
	if err != nil {
		return err
	}
	way := a.way(c, name)
	host, isHost := strings.CutPrefix(name, "host:")
	path := c.environment(name, "rdp")
	if isHost {
		path = hostPath(host, "rdp")
	}
	if err := way.probeRDP(ctx, path); err != nil {
		return err
	}
	var r rdpRow
	if !isHost {
		if r.User, r.Password, err = c.desktopLogin(ctx, name); err != nil {
			return err
		}
	}
	all, err := forward.Listen([]forward.Spec{{Local: port}})
	if err != nil {
		return err
	}
	l := all[0]
	defer l.Close()
	r.Address = l.Local()
	if r.File, err = writeRDPFile(strings.ReplaceAll(name, ":", "-"), r); err != nil {
		return err
	}
	defer os.RemoveAll(filepath.Dir(r.File))
	if err := a.show(r, r.print); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var used atomic.Bool
	if launch {
		go func() {
			if startRDP(ctx, r, way.say) && used.Load() {
				cancel() // what was opened has ended
			}
		}()
	}
	dial := func(ctx context.Context, _ protocol.Target) (forward.Stream, error) {
		used.Store(true)
		conn, err := c.dial(ctx, path)
		if err != nil {
			return nil, err
		}
		return conn, nil
	}
	lost := func(err error) {
		if ctx.Err() == nil { // else it was cut here
			way.broke(err)
		}
	}
	return l.Serve(ctx, forward.Config{Dial: dial, Say: way.say, Lost: lost})
}

func (r rdpRow) print(w io.Writer) {
	row(w, "RDP", r.Address)
	if r.User != "" {
		row(w, "USER", r.User)
		row(w, "PASSWORD", r.Password)
	}
	row(w, "FILE", r.File)
}

// probeRDP asks the RDP server for a connection, as a client that knows TLS and
// CredSSP does: what is wrong is said here, and not by a client in its own way.
func (w *way) probeRDP(ctx context.Context, path string) error {
	conn, err := w.client.dial(ctx, path)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // fails only on a closed socket
	answer := make([]byte, 11)
	if _, err = conn.Write([]byte{3, 0, 0, 19, 14, 0xe0, 0, 0, 0, 0, 0, 1, 0, 8, 0, 3, 0, 0, 0}); err == nil {
		_, err = io.ReadFull(conn, answer)
	}
	switch {
	case err != nil:
		return fmt.Errorf("the RDP server of %s ended the connection at once (%w); look at its log", w.env, err)
	case answer[0] != 3 || answer[5]&0xf0 != 0xd0:
		return fmt.Errorf("what listens on port 3389 of %s is no RDP server", w.env)
	}
	return nil
}

// desktopLogin reads user and password of the desktop image; another image has
// its own, which its user knows.
func (c *client) desktopLogin(ctx context.Context, env string) (user, password string, err error) {
	client, err := c.sshClient(ctx, c.qualified(env))
	if err != nil {
		return "", "", nil
	}
	defer client.Close()
	ses, err := client.NewSession()
	if err != nil {
		return "", "", nil
	}
	defer ses.Close()
	out, err := ses.StdoutPipe()
	if err != nil || ses.Start("cat "+protocol.DesktopCredentials) != nil {
		return "", "", nil
	}
	text, err := io.ReadAll(io.LimitReader(out, protocol.MaxDesktopCredentials+1))
	if err != nil {
		return "", "", nil
	}
	return protocol.ParseDesktopLogin(string(text))
}

// writeRDPFile writes what mstsc and its kin open, in a folder of its own.
func writeRDPFile(name string, r rdpRow) (string, error) {
	dir, err := os.MkdirTemp("", "remotegpu-rdp-")
	if err != nil {
		return "", err
	}
	lines := []string{
		"full address:s:" + r.Address, "prompt for credentials:i:0", "authentication level:i:0", "screen mode id:i:1",
		"dynamic resolution:i:1", "redirectclipboard:i:1", "redirectprinters:i:0", "drivestoredirect:s:", "autoreconnection enabled:i:1",
	}
	if r.User != "" {
		lines = append(lines, "username:s:"+r.User)
	}
	file := filepath.Join(dir, name+".rdp")
	return file, os.WriteFile(file, []byte(strings.Join(lines, "\r\n")+"\r\n"), 0o600)
}

// startRDP runs this machine's RDP client and reports whether it was seen to
// end.
func startRDP(ctx context.Context, r rdpRow, say func(string)) bool {
	cmd := rdpClient(ctx, r)
	if cmd == nil {
		say("there is no RDP client on this machine; open the file, or connect any client with the address")
		return false
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if exit := cmd.ProcessState; err != nil && ctx.Err() == nil && (exit == nil || !endedByUser[exit.ExitCode()]) {
		say(fmt.Sprintf("%s has ended (%v); its last words: %s", filepath.Base(cmd.Path), err, lastLine(said.String())))
	}
	return runtime.GOOS != "darwin" // whose open returns at once
}

// endedByUser are FreeRDP's exit statuses after the person has disconnected or
// logged off.
var endedByUser = map[int]bool{0: true, 1: true, 2: true, 11: true, 12: true}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// rdpClient returns how this machine's RDP client is started, nil without one.
// A password goes by stdin: others can see arguments.
func rdpClient(ctx context.Context, r rdpRow) *exec.Cmd {
	switch runtime.GOOS {
	case "windows":
		return exec.CommandContext(ctx, "mstsc", r.File)
	case "darwin":
		return exec.CommandContext(ctx, "open", r.File)
	}
	if os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "" {
		return nil
	}
	for _, name := range []string{"xfreerdp3", "xfreerdp", "wlfreerdp3", "wlfreerdp"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		// The certificate is made by the environment itself; what lies between is
		// this machine's loopback and the server's own TLS.
		arguments := []string{r.File, "/cert:ignore", "/dynamic-resolution", "+clipboard"}
		if r.Password != "" {
			arguments = append(arguments, "/from-stdin:force")
		}
		cmd := exec.CommandContext(ctx, path, arguments...)
		cmd.Stdin = strings.NewReader(r.Password + "\n")
		return cmd
	}
	return nil
}
