package logs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/time/rate"
)

// Argument is the word that a program which is its own log driver is started
// with: PROGRAM log-driver PATH.
const Argument = "log-driver"

// What a container writes is work for the host, outside of the container's own limits,
// and for a disk that all share: who writes more waits.
const (
	writeRate  = 8 << 20 // bytes per second, after writeBurst
	writeBurst = 32 << 20
	lineCost   = 64 // bytes that a line counts for besides its text
)

// drain is how long output is still taken after the shim asked for an end.
const drain = 3 * time.Second

// Drive is the log driver: it copies the container's stdout (descriptor 3) and
// stderr (4) to the log at path until both end. It tells the shim by closing
// descriptor 5 that it is ready, as containerd's binary logging wants it.
func Drive(path string) error {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, unix.SIGTERM, unix.SIGINT)
	w, err := open(path)
	if err != nil {
		return err
	}
	defer w.close()
	streams := map[byte]*os.File{Stdout: os.NewFile(3, "stdout"), Stderr: os.NewFile(4, "stderr")}
	ready := os.NewFile(5, "ready")
	if ready == nil {
		return errors.New("start log driver: it is started by containerd's shim, not by hand")
	}
	if err := ready.Close(); err != nil {
		return fmt.Errorf("tell shim that log driver is ready: %w", err)
	}
	var copies sync.WaitGroup
	for name, f := range streams {
		copies.Go(func() { w.copy(name, f) })
	}
	ended := make(chan struct{})
	go func() { copies.Wait(); close(ended) }()
	select {
	case <-ended:
	case <-stop:
		select {
		case <-ended:
		case <-time.After(drain):
		}
	}
	return nil
}

// writer appends lines to a log and rotates it. Several processes may write
// the same log for a moment, at a restart: the file is reopened when another
// one has rotated it.
type writer struct {
	path string
	max  int64
	pace *rate.Limiter // of bytes

	mu   sync.Mutex // guards file and buf
	file *os.File
	buf  []byte
}

func open(path string) (*writer, error) {
	w := &writer{path: path, max: MaxSize, pace: rate.NewLimiter(writeRate, writeBurst)}
	if err := w.reopen(); err != nil {
		return nil, err
	}
	return w, nil
}

func (w *writer) reopen() error {
	f, err := os.OpenFile(w.path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if w.file != nil {
		w.file.Close()
	}
	w.file = f
	return nil
}

func (w *writer) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.file.Close()
}

// copy writes everything from r as lines. It reads to the end whatever happens
// to the file: a full disk must not block the container.
func (w *writer) copy(stream byte, r io.Reader) {
	in := bufio.NewReaderSize(r, maxLine)
	for {
		text, err := in.ReadSlice('\n')
		part := errors.Is(err, bufio.ErrBufferFull)
		if n := len(text); n > 0 {
			if text[n-1] == '\n' {
				text = text[:n-1]
			}
			w.write(Line{At: time.Now(), Stream: stream, Part: part, Text: text})
			time.Sleep(w.pace.ReserveN(time.Now(), n+lineCost).Delay())
		}
		if err != nil && !part {
			return
		}
	}
}

func (w *writer) write(l Line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.buf = l.append(w.buf[:0])
	st, err := w.file.Stat()
	if err == nil && st.Size() > 0 && st.Size()+int64(len(w.buf)) > w.max {
		if err := w.rotate(); err != nil {
			return // the disk is in trouble: better lose a line than fill it
		}
	}
	w.file.Write(w.buf)
}

// rotate moves every file one back, unless another process has just done so.
func (w *writer) rotate() error {
	if err := unix.Flock(int(w.file.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	ours, err := w.file.Stat()
	if err != nil {
		return err
	}
	if now, err := os.Stat(w.path); err == nil && os.SameFile(ours, now) {
		for i := Files - 1; i > 0; i-- {
			if err := os.Rename(older(w.path, i-1), older(w.path, i)); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return w.reopen() // closing the old file gives the lock back
}
