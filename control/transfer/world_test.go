package transfer

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pkg/sftp"
)

// far is an environment: the server of SFTP that its helper runs.
func far(t *testing.T) *sftp.Client {
	t.Helper()
	return dial(t, func(in io.Reader, out io.WriteCloser) io.Closer {
		srv, err := sftp.NewServer(pipe{in, out})
		if err != nil {
			t.Error(err)
		}
		go srv.Serve()
		return srv
	}, 0)
}

type pipe struct {
	io.Reader
	io.WriteCloser
}

// dial connects with what serves, over a line that takes delay for each way.
func dial(t *testing.T, serve func(io.Reader, io.WriteCloser) io.Closer, delay time.Duration) *sftp.Client {
	t.Helper()
	toServer, fromClient := line(delay)
	toClient, fromServer := line(delay)
	srv := serve(toServer, fromServer)
	client, err := sftp.NewClientPipe(toClient, fromClient, Options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { srv.Close(); client.Close() })
	return client
}

// line holds what is written for a while, without a limit on how much.
func line(delay time.Duration) (io.Reader, io.WriteCloser) {
	out, in := io.Pipe()
	if delay == 0 {
		return out, in
	}
	farOut, farIn := io.Pipe()
	type packet struct {
		at   time.Time
		data []byte
	}
	held := make(chan packet, 1<<16)
	go func() {
		defer close(held)
		for buf := make([]byte, 64<<10); ; {
			n, err := out.Read(buf)
			if err != nil {
				return
			}
			held <- packet{time.Now().Add(delay), slices.Clone(buf[:n])}
		}
	}()
	go func() {
		defer farIn.Close()
		for p := range held {
			time.Sleep(time.Until(p.at))
			if _, err := farIn.Write(p.data); err != nil {
				out.Close()
				return
			}
		}
	}()
	return farOut, in
}

var when = time.Date(2020, 2, 3, 4, 5, 6, 0, time.UTC)

// plant makes files: a name with / at its end is a folder, "a -> b" a link.
func plant(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		link, to, isLink := strings.Cut(name, " -> ")
		at := filepath.Join(dir, link)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		switch {
		case err != nil:
		case isLink:
			err = os.Symlink(to, at)
		case strings.HasSuffix(name, "/"):
			err = os.MkdirAll(at, 0o755)
		default:
			err = os.WriteFile(at, []byte(files[name]), 0o640)
		}
		if err == nil && !isLink {
			err = os.Chtimes(at, when, when)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// look says all of a folder, a line for each.
func look(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, name)
		text := ""
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(name)
			if err != nil {
				return err
			}
			text = fmt.Sprintf("%d %.40q", len(b), b)
		case info.Mode().Type() == fs.ModeSymlink:
			to, err := os.Readlink(name)
			text = to
			fmt.Fprintf(&b, "%s -> %s\n", rel, text)
			return err
		}
		fmt.Fprintf(&b, "%s %v %v %s\n", rel, info.Mode(), info.ModTime().UTC().Format(time.DateTime), text)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// names lists what is below a folder.
func names(t *testing.T, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if rel, relErr := filepath.Rel(dir, name); rel != "." && relErr == nil {
			all = append(all, rel)
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Join(all, " ")
}

// cp copies as the command does. Env is box or other.
func cp(t *testing.T, words ...string) error {
	t.Helper()
	files := map[string]*sftp.Client{}
	places := make([]Place, len(words))
	for i, word := range words {
		p := Parse(word)
		if p.Environment != "" {
			if files[p.Environment] == nil {
				files[p.Environment] = far(t)
			}
			p.Files = files[p.Environment]
		}
		places[i] = p
	}
	last := len(places) - 1
	j := Job{From: places[:last], To: places[last], Skip: func(line string) { t.Log(line) }}
	return j.Run(t.Context())
}
