package transfer

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pkg/sftp"
)

// stopAt ends ctx when so much has been copied.
func stopAt(t *testing.T, j *Job, n int64) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	go func() {
		for ctx.Err() == nil {
			if done, _ := j.Bytes(); done >= n {
				cancel()
			}
			time.Sleep(50 * time.Microsecond)
		}
	}()
	return ctx
}

// TestInterrupted: what was begun leaves nothing, and what was there stays.
func TestInterrupted(t *testing.T) {
	big := string(random(16 << 20))
	for _, way := range []string{"up", "down"} {
		src, dst := t.TempDir(), t.TempDir()
		plant(t, src, map[string]string{"big": big})
		plant(t, dst, map[string]string{"big": "old"})
		j := &Job{From: []Place{{Path: src + "/big"}}, To: Place{Path: dst, Environment: "box", Files: far(t)}}
		if way == "down" {
			j.From[0].Files, j.To.Files = j.To.Files, nil
		}
		if err := j.Run(stopAt(t, j, 1<<20)); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", way, err)
		}
		if got := names(t, dst); got != "big" || string(must(t, dst+"/big")) != "old" {
			t.Errorf("%s: there is %s", way, got)
		}
	}
}

// TestLost: so does a connection that breaks, as far as this machine goes.
func TestLost(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	plant(t, src, map[string]string{"big": string(random(16 << 20))})
	for _, way := range []string{"up", "down"} {
		var srv *sftp.Server
		files := dial(t, func(in io.Reader, out io.WriteCloser) io.Closer {
			var err error
			if srv, err = sftp.NewServer(pipe{in, out}); err != nil {
				t.Fatal(err)
			}
			go srv.Serve()
			return srv
		}, 0)
		j := &Job{From: []Place{{Path: src + "/big"}}, To: Place{Path: dst, Environment: "box", Files: files}}
		if way == "down" {
			j.From[0], j.To = Place{Path: src + "/big", Environment: "box", Files: files}, Place{Path: dst}
		}
		context.AfterFunc(stopAt(t, j, 1<<20), func() { srv.Close() })
		err := j.Run(t.Context())
		if err == nil || !strings.HasPrefix(err.Error(), "box:") || !strings.HasSuffix(err.Error(), "/big: the connection was lost; copy it again") {
			t.Errorf("%s: %v", way, err)
		}
		if got := names(t, dst); way == "down" && got != "" {
			t.Errorf("%s: there is %s", way, got)
		}
		os.RemoveAll(dst)
		os.Mkdir(dst, 0o700)
	}
}

// TestFull: a full disk is named, and gets nothing but its space back.
func TestFull(t *testing.T) {
	src, small := t.TempDir(), t.TempDir()
	if err := syscall.Mount("tmpfs", small, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Unmount(small, syscall.MNT_DETACH) })
	plant(t, src, map[string]string{"big": string(random(1 << 20)), "a": "fits"})
	for _, words := range [][]string{{src + "/big", "box:" + small}, {"box:" + src + "/big", small}} {
		err := cp(t, words...)
		if err == nil || !strings.HasSuffix(err.Error(), "/big: the disk is full; free some of it, or copy to another folder") {
			t.Errorf("%q: %v", words, err)
		}
		if got := names(t, small); got != "" {
			t.Errorf("%q leaves %s", words, got)
		}
	}
}

// TestErrors: each says what is wrong, in the person's words.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	plant(t, dir, map[string]string{"file": "1", "dir/x": "2", "have/dir": "a file", "loop -> loop": "", "in/file/x": "a folder"})
	if err := syscall.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ src, dst, want string }{
		{"box:DIR/none", "DIR", "box:DIR/none: there is no such file or folder"},
		{"DIR/none", "box:DIR", "DIR/none: there is no such file or folder"},
		{"DIR/dir", "box:DIR/have", "box:DIR/have/dir is a file, and DIR/dir a folder"},
		{"DIR/file", "box:DIR/in", "box:DIR/in/file: file exists"},
		{"box:DIR/file", "DIR/in", "DIR/in/file: file exists"},
		{"DIR/file", "box:DIR/fifo", "box:DIR/fifo is no ordinary file; it is left as it is"},
		{"DIR/loop", "box:DIR", "DIR/loop: too many levels of symbolic links"},
		{"box:DIR/loop", "DIR", "box:DIR/loop: too many levels of symbolic links"},
		{"box:/proc/1/mem", "DIR", "box:/proc/1/mem: "},
	} {
		in := strings.NewReplacer("DIR", dir)
		err := cp(t, in.Replace(c.src), in.Replace(c.dst))
		if err == nil || !strings.HasPrefix(err.Error(), in.Replace(c.want)) || strings.Contains(err.Error(), "sftp") {
			t.Errorf("cp %s %s: %v, want %s", c.src, c.dst, err, c.want)
		}
	}
}

// hostile is an environment whose server lies about what it has.
type hostile struct{ list []fs.FileInfo }

type lie struct {
	fs.FileInfo
	name string
	mode fs.FileMode
}

func (l lie) Name() string      { return l.name }
func (l lie) Mode() fs.FileMode { return l.mode }
func (l lie) IsDir() bool       { return l.mode.IsDir() }

func (h hostile) ListAt(to []fs.FileInfo, at int64) (int, error) {
	if at >= int64(len(h.list)) {
		return 0, io.EOF
	}
	return copy(to, h.list[at:]), nil
}

func (h hostile) Filelist(r *sftp.Request) (sftp.ListerAt, error) {
	dir, err := os.Stat("/")
	if err != nil {
		return nil, err
	}
	switch {
	case r.Method == "Readlink":
		return hostile{[]fs.FileInfo{lie{dir, r.Filepath, 0}}}, nil
	case r.Method == "List" && r.Filepath == "/d":
		return h, nil
	case r.Method == "List":
		return hostile{[]fs.FileInfo{lie{dir, "stolen", 0o644}}}, nil
	case strings.HasSuffix(r.Filepath, "/stolen"):
		return hostile{[]fs.FileInfo{lie{dir, "stolen", 0o644}}}, nil
	}
	return hostile{[]fs.FileInfo{lie{dir, "d", fs.ModeDir | 0o755}}}, nil
}

func (h hostile) Readlink(string) (string, error) { return "../outside", nil }

func (h hostile) Fileread(*sftp.Request) (io.ReaderAt, error) { return strings.NewReader("bad"), nil }

// TestHostile: an environment that lies about its files writes nothing outside
// of the folder that was named.
func TestHostile(t *testing.T) {
	for name, list := range map[string][]fs.FileInfo{
		"up":                       {lie{name: "..", mode: fs.ModeDir | 0o755}},
		"up by a path":             {lie{name: "x/..", mode: fs.ModeDir | 0o755}},
		"root":                     {lie{name: "/", mode: fs.ModeDir | 0o755}},
		"a link, then a folder":    {lie{name: "a", mode: fs.ModeSymlink | 0o777}, lie{name: "a", mode: fs.ModeDir | 0o755}},
		"a folder, then a link":    {lie{name: "a", mode: fs.ModeDir | 0o755}, lie{name: "a", mode: fs.ModeSymlink | 0o777}},
		"a file with a path in it": {lie{name: "../outside/stolen", mode: 0o644}},
	} {
		base := t.TempDir()
		plant(t, base, map[string]string{"in/": "", "outside/": ""})
		stat, err := os.Stat("/")
		if err != nil {
			t.Fatal(err)
		}
		for i, l := range list {
			list[i] = lie{stat, l.(lie).name, l.(lie).mode}
		}
		h := hostile{list}
		files := dial(t, func(in io.Reader, out io.WriteCloser) io.Closer {
			srv := sftp.NewRequestServer(pipe{in, out}, sftp.Handlers{FileGet: h, FileList: h})
			go srv.Serve()
			return srv
		}, 0)
		j := Job{From: []Place{{Path: "/d", Environment: "box", Files: files}}, To: Place{Path: base + "/in"}, Skip: func(string) {}}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err = j.Run(ctx)
		cancel()
		t.Logf("%s: %v; %s", name, err, names(t, base))
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: it has no end", name)
		}
		if got := names(t, base+"/outside"); got != "" {
			t.Errorf("%s: outside there is %s", name, got)
		}
	}
}

// TestLongLine: with 100 ms there and back, a large file and many small ones do
// not wait for each of their parts.
func TestLongLine(t *testing.T) {
	src, dst := t.TempDir(), t.TempDir()
	few := map[string]string{"big": string(random(8 << 20))}
	for i := range 64 {
		few["many/"+string(rune('A'+i))] = "small"
	}
	plant(t, src, few)
	for _, way := range []string{"up", "down"} {
		for what, most := range map[string]time.Duration{"big": 1500 * time.Millisecond, "many": 5 * time.Second} { // one part or file after the other: 25 s, 45 s
			synctest.Test(t, func(t *testing.T) {
				files := dial(t, func(in io.Reader, out io.WriteCloser) io.Closer {
					srv, err := sftp.NewServer(pipe{in, out})
					if err != nil {
						t.Fatal(err)
					}
					go srv.Serve()
					return srv
				}, 50*time.Millisecond)
				j := Job{From: []Place{{Path: src + "/" + what}}, To: Place{Path: dst, Files: files}}
				if way == "down" {
					j.From[0].Files, j.To.Files = files, nil
				}
				began := time.Now()
				if err := j.Run(t.Context()); err != nil {
					t.Fatal(err)
				}
				took := time.Since(began)
				t.Logf("%s %s: %v", what, way, took)
				if took > most {
					t.Errorf("%s %s takes %v on a line of 100 ms, more than %v", what, way, took, most)
				}
			})
		}
	}
	if !bytes.Equal(must(t, dst+"/big"), must(t, src+"/big")) {
		t.Error("big is another")
	}
}

// TestStreams: - is this program's own input and output.
func TestStreams(t *testing.T) {
	dir := t.TempDir()
	text := random(1<<20 + 1)
	box := Place{Path: dir + "/file", Environment: "box", Files: far(t)}
	j := Job{To: box}
	if err := j.Write(t.Context(), plain{bytes.NewReader(text)}); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	j = Job{From: []Place{box}}
	if err := j.Read(t.Context(), &b); err != nil || !bytes.Equal(b.Bytes(), text) {
		t.Errorf("%d bytes of %d came back, %v", b.Len(), len(text), err)
	}
	if got := names(t, filepath.Dir(box.Path)); got != "file" {
		t.Errorf("there is %s", got)
	}
	box.Path = dir
	j = Job{To: box}
	if err := j.Write(t.Context(), strings.NewReader("x")); err == nil || !strings.Contains(err.Error(), "is a folder; say what the file is to be called") {
		t.Error(err)
	}
	j = Job{From: []Place{box}}
	if err := j.Read(t.Context(), io.Discard); err == nil || !strings.Contains(err.Error(), "is no file") {
		t.Error(err)
	}
}

// plain hides what a reader can do besides.
type plain struct{ io.Reader }
