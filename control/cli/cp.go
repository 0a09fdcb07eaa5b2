package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/pkg/sftp"
	"github.com/spf13/cobra"
	"golang.org/x/crypto/ssh"

	"github.com/remotegpu/remotegpu/control/progress"
	"github.com/remotegpu/remotegpu/control/transfer"
	"github.com/remotegpu/remotegpu/protocol"
)

const (
	cpPace   = 100 * time.Millisecond // between two looks at how it gets on
	cpLeaves = 5 * time.Second        // that an interrupted copy has to tidy up
)

func (a *app) cpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "cp SRC... DST", Short: "Copy files and folders to or from an environment",
		Long: `Copy files and folders between this machine and environments, over the server's
HTTPS port. What is in an environment is written ENV:PATH or ENV.WORKSPACE:PATH;
a path without a slash in front begins in its home. - is stdin or stdout.

A folder is copied with all that is in it, with modes, times and links. It gets
below DST if that is a folder; FOLDER/. is only what is in it. A file has its name
when all of it is there. Between two environments the bytes pass this machine.`,
		Example: "  remotegpu cp train.py data my-env:/gemini/code/\n  remotegpu cp my-env:/gemini/output/model.pt .\n  tar c . | remotegpu cp - my-env:/tmp/all.tar",
		Args:    args(2, -1, "what to copy and where"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.cp(cmd.Context(), args)
		},
	}
	fl := cmd.Flags() // for those whose fingers know cp and scp: it is so anyway
	fl.BoolP("recursive", "r", false, "")
	fl.BoolP("preserve", "p", false, "")
	_ = fl.MarkHidden("recursive") // they are there
	_ = fl.MarkHidden("preserve")
	return cmd
}

type cpRow struct {
	Files   int64   `json:"files"`
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

func (a *app) cp(ctx context.Context, words []string) error {
	places := make([]transfer.Place, len(words))
	for i, word := range words {
		places[i] = transfer.Parse(word)
	}
	last := len(places) - 1
	stream := slices.ContainsFunc(places, func(p transfer.Place) bool { return p.Path == "-" && p.Environment == "" })
	switch {
	case !slices.ContainsFunc(places, func(p transfer.Place) bool { return p.Environment != "" }):
		return usageError{errors.New("neither side is in an environment; write it ENV:PATH")}
	case places[last].Environment == "" && slices.ContainsFunc(places[:last], func(p transfer.Place) bool { return p.Environment == "" }):
		return usageError{errors.New("what is here already is for cp to copy; write what is in an environment ENV:PATH")}
	case stream && len(places) != 2:
		return usageError{errors.New("- is the only source or the target")}
	}
	close, err := a.files(ctx, places)
	defer close()
	if err != nil {
		return err
	}
	j := &transfer.Job{From: places[:last], To: places[last]}
	j.Skip = func(line string) { fmt.Fprintln(a.errOut, "remotegpu:", line) }
	run := j.Run
	switch {
	case stream && last == 1 && words[0] == "-":
		run = func(ctx context.Context) error { return j.Write(ctx, os.Stdin) }
	case stream:
		run = func(ctx context.Context) error { return j.Read(ctx, a.out) }
	}
	began := time.Now()
	if err := a.watch(ctx, j, run); err != nil {
		return err
	}
	files, _ := j.Files()
	n, _ := j.Bytes()
	if a.output == "json" && words[last] != "-" {
		return a.show(cpRow{files, n, time.Since(began).Seconds()}, nil)
	}
	fmt.Fprintf(a.errOut, "Copied %s (%s) to %s\n", count(int(files), "file"), progress.Size(uint64(n)), j.To)
	return nil
}

// watch runs a copy and shows on a terminal how it gets on.
func (a *app) watch(ctx context.Context, j *transfer.Job, run func(context.Context) error) error {
	line := progress.New(a.errOut)
	defer line.End()
	result := make(chan error, 1)
	go func() { result <- run(ctx) }()
	began := time.Now()
	for {
		select {
		case err := <-result:
			return err
		case <-time.After(cpPace):
		}
		if done, all := j.Files(); line.Live() && all > 0 {
			n, total := j.Bytes()
			rate := progress.Size(uint64(float64(n) / time.Since(began).Seconds()))
			text := fmt.Sprintf("  %s, %s/s", progress.Bar(uint64(n), uint64(total)), rate)
			if n > total { // of a stream nobody knows it
				text = fmt.Sprintf("  %s, %s/s", progress.Size(uint64(n)), rate)
			}
			if all > 1 {
				text += fmt.Sprintf(", %d of %d files", done, all)
			}
			line.Show(text)
		}
	}
}

// files connects with the environments of all places. An interrupted copy has
// them a while longer.
func (a *app) files(ctx context.Context, places []transfer.Place) (close func(), err error) {
	var opened []io.Closer
	close = func() {
		for _, c := range opened {
			c.Close()
		}
	}
	c, err := a.connect()
	if err != nil {
		return close, err
	}
	clients := map[string]*sftp.Client{}
	for i, p := range places {
		if p.Environment == "" {
			continue
		}
		if clients[p.Environment] == nil {
			a.comesUp(ctx, c, p.Environment) // if it does not, sftp says so
			conn, files, err := c.sftp(ctx, p.Environment)
			if err != nil {
				return close, err
			}
			opened = append(opened, conn)
			clients[p.Environment] = files
		}
		places[i].Files = clients[p.Environment]
	}
	context.AfterFunc(ctx, func() { time.AfterFunc(cpLeaves, close) })
	return close, nil
}

// sftp opens SFTP to an environment.
func (c *client) sftp(ctx context.Context, env string) (_ *ssh.Client, files *sftp.Client, err error) {
	conn, err := c.sshClient(ctx, c.qualified(env))
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer func() {
		if stop(); err != nil {
			conn.Close()
		}
	}()
	ses, err := conn.NewSession()
	if err != nil {
		return nil, nil, fmt.Errorf("open session: %w", err)
	}
	in, err := ses.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := ses.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	why, err := ses.StderrPipe()
	if err != nil {
		return nil, nil, err
	}
	said := make(chan string, 1)
	go func() {
		text, _ := io.ReadAll(io.LimitReader(why, 4<<10)) // what came is enough
		said <- strings.TrimSpace(strings.TrimPrefix(string(text), "remotegpu: "))
	}()
	if err = ses.RequestSubsystem(protocol.SubsystemSFTP); err == nil {
		files, err = sftp.NewClientPipe(out, in, transfer.Options...)
	}
	if err != nil {
		conn.Close() // so that nothing more is said
		if text := <-said; text != "" {
			return nil, nil, errors.New(text)
		}
		return nil, nil, fmt.Errorf("%s does not serve files: %w", env, err)
	}
	return conn, files, nil
}
